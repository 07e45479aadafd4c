package authorized

import (
	"bytes"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/testnet"
	"golang.org/x/crypto/ssh"
)

// skKey is a hardware key of ed25519 in software (PROTOCOL.u2f of OpenSSH): its
// flags say what it claims of its user, 1 for a touch and 4 for a PIN.
type skKey struct {
	private     ed25519.PrivateKey
	application string
	flags       byte
}

func (k skKey) Type() string                        { return "sk-ssh-ed25519@openssh.com" }
func (k skKey) PublicKey() ssh.PublicKey            { return k }
func (k skKey) Verify([]byte, *ssh.Signature) error { return fmt.Errorf("only sshd verifies") }

func (k skKey) Marshal() []byte {
	public := make([]byte, ed25519.PublicKeySize)
	if k.private != nil {
		copy(public, k.private[32:])
	}
	return ssh.Marshal(struct {
		Type        string
		Key         []byte
		Application string
	}{k.Type(), public, k.application})
}

func (k skKey) line() string {
	return k.Type() + " " + base64.StdEncoding.EncodeToString(k.Marshal())
}

func (k skKey) Sign(_ io.Reader, data []byte) (*ssh.Signature, error) {
	application, hash := sha256.Sum256([]byte(k.application)), sha256.Sum256(data)
	state := binary.BigEndian.AppendUint32([]byte{k.flags}, 7) // the counter
	signed := bytes.Join([][]byte{application[:], state, hash[:]}, nil)
	return &ssh.Signature{Format: k.Type(), Blob: ed25519.Sign(k.private, signed), Rest: state}, nil
}

// difference is how sshd and we answer one spelling.
type difference uint8

const (
	same     difference = iota
	stricter            // sshd takes it from one address at least, we from none
	looser              // the other way round
)

// String gives the word above.
func (d difference) String() string { return [...]string{"same", "stricter", "looser"}[d] }

// spelling is a line of the file. %K stands for the key's type and itself, %T
// and %B for one of them, %S for %B in another spelling.
type spelling struct {
	line   string
	differ difference // always with the reason beside it
	key    string     // "": ed25519
}

var spellings = []spelling{
	// The shape of a line.
	{line: "%K"},
	{line: "%K\n"},
	{line: "%K\r\n"},
	{line: "%K me@host\r\n"},
	{line: "# a comment\r\n\r\n \t# another\n \t \n%K\n"},
	{line: " \t%K"},
	{line: "%T \t %B \t me"},
	{line: "\v%K"},
	{line: "\ufeff%K"},
	{line: "#%K"},
	{line: "%T\v%B"},
	{line: "%T %B\v\f"},
	{line: "%T %B\vme"},
	{line: "%T %B\u00a0"},
	{line: "%T %B="},
	{line: "%T A%B"},
	{line: "%T"},
	{line: "%B"},
	{line: "%K " + strings.Repeat("x", 100_000)},
	{line: `command="` + strings.Repeat("x", 100_000) + `" %K`},
	{line: "%K x\x00y", differ: stricter}, // an editor shows what sshd does not read
	{line: "no-such %K\n%K"},
	{line: "%K\nno-such %K"},
	{line: `from="192.0.2.99" %K` + "\n%K", differ: stricter}, // a key has one line here
	{line: "%T %T %B"},
	{line: "ssh-rsa %B"},
	{line: "SSH-ED25519 %B"},
	{line: "1024 35 12345 %K"},

	// Types and sizes.
	{key: "p256", line: "%K"},
	{key: "p256", line: "%T %S"},
	{key: "p384", line: "%K"},
	{key: "p521", line: "%K"},
	{key: "p521", line: "ecdsa-sha2-nistp256 %B"},
	{key: "rsa2048", line: "%K"},
	{key: "rsa2048", line: "rsa-sha2-512 %B", differ: stricter}, // an accident: it names a signature
	{key: "rsa1024", line: "%K", differ: stricter},              // too short for a new protocol
	{key: "rsa4104", line: "%K", differ: stricter},              // its signature does not fit into a datagram
	{line: "%T-cert-v01@openssh.com %B"},

	// Hardware keys: a touch is asked for unless the line lets it be.
	{key: "touched", line: "%K"},
	{key: "untouched", line: "%K"},
	{key: "untouched", line: "no-touch-required %K"},
	{key: "untouched", line: "no-touch-required,touch-required %K"},
	{key: "touched", line: "verify-required %K"},
	{key: "verified", line: "verify-required %K"},
	{key: "touched", line: "verify-required,no-verify-required %K"},
	{line: "no-touch-required,verify-required %K"},

	// Options and their quotes.
	{line: "restrict %K"},
	{line: "RESTRICT,No-Pty %K"},
	{line: "restrict, %K"},
	{line: ",,restrict,,pty %K"},
	{line: ", %K"},
	{line: "restrict\t %K"},
	{line: "restrict, pty %K"},
	{line: "restrict\u00a0%K"},
	{line: "restrict\v%K"},
	{line: "restrictpty %K"},
	{line: "restrict=\"\" %K"},
	{line: "restrict\"\" %K"},
	{line: "no-restrict %K"},
	{line: "no-no-pty %K"},
	{line: "port-forwarding,no-agent-forwarding,X11-forwarding,no-x11-forwarding,pty,user-rc %K"},
	{line: "no-such-option %K"},
	{line: `no-such="x" %K`},
	{line: `command="a b, #\"c\"" %K`},
	{line: `command="a\\" b" %K`},
	{line: `command="a\\"b" %K`},
	{line: `command="a\" %K`},
	{line: `command="" %K`},
	{line: `command=a %K`},
	{line: `command %K`},
	{line: `command ="a" %K`},
	{line: `command= "a" %K`},
	{line: `command="a"b %K`},
	{line: `command="a""b" %K`},
	{line: `command="a" %T %B`},
	{line: `command="a"%K`},
	{line: `command="a",command="b" %K`},
	{line: `command='a' %K`},
	{line: `\"command="a" %K`},
	{line: `environment="A_1=b c" %K`},
	{line: `environment="A-1=b" %K`},
	{line: `environment="A" %K`},
	{line: `environment="=b" %K`},
	{line: `environment="A=b",environment="A=c" %K`},
	{line: `permitopen="host:22",permitopen="[2001:db8::1]:*",permitopen="host/80" %K`},
	{line: `permitopen="22" %K`},
	{line: `permitopen=":22" %K`},
	{line: `permitopen="host:" %K`},
	{line: `permitopen="host:0" %K`},
	{line: `permitopen="host: 22" %K`},
	{line: `permitopen="host:+22" %K`},
	{line: `permitopen="host:65536" %K`},
	{line: `permitopen="[::1" %K`},
	{line: `permitopen="[::1]x:22" %K`},
	{line: `permitopen="host:no-such-service" %K`, differ: looser}, // which services exist is sshd's to look up
	{line: `permitlisten="8080" %K`},
	{line: `permitlisten="localhost:8080" %K`},
	{line: `permitlisten="x y" %K`},
	{line: `tunnel="0" %K`},
	{line: `tunnel="ANY" %K`},
	{line: `tunnel="2147483645" %K`},
	{line: `tunnel="2147483646" %K`},
	{line: `tunnel="-1" %K`},
	{line: `tunnel="any:any" %K`},
	{line: `cert-authority %K`},
	{line: `principals="root" %K`},
	{line: `services="ssh" %K`, differ: looser}, // ours, and the next three
	{line: `max-time="1h" %K`, differ: looser},
	{line: `not-before="20200101Z" %K`, differ: looser},
	{line: `no-address %K`, differ: looser},

	// From where. Four addresses ask, .10 and .77 of each family.
	{line: `from="192.0.2.10" %K`},
	{line: `from="2001:db8::10" %K`},
	{line: `from="2001:DB8:0:0::0010" %K`},
	{line: `from="192.0.2.10,2001:db8::77" %K`},
	{line: `from="192.0.2.0/26,2001:db8::/122" %K`},
	{line: `from="192.0.2.0/24,2001:db8::/64" %K`},
	{line: `from="192.0.2.0/24,!192.0.2.77,!2001:db8::10,2001:db8::/64" %K`},
	{line: `from="!192.0.2.77,!2001:db8::77" %K`},
	{line: `from="!192.0.2.77,*" %K`},
	{line: `from="*" %K`},
	{line: `from="!*" %K`},
	{line: `from="*,!2001:db8::/32" %K`},
	{line: `from="0.0.0.0/0" %K`},
	{line: `from="::/0" %K`},
	{line: `from="192.0.2.10/32,2001:db8::10/128" %K`},
	{line: `from="192.0.2.0/024" %K`},
	{line: `from="" %K`},
	{line: `from="192.0.2.10," %K`},
	{line: `from=",192.0.2.10" %K`},
	{line: `from="*,!" %K`},
	{line: `from="192.0.2.10/24" %K`},
	{line: `from="*,2001:db8::10/64" %K`},
	{line: `from="*,192.0.2.0/33" %K`},
	{line: `from="::ffff:192.0.2.10" %K`},
	{line: `from="no.such.host" %K`},
	{line: `from="192.0.2.10",from="2001:db8::10" %K`},
	{line: `from=192.0.2.10 %K`},
	{line: `from="192.0.2.1*,2001:db8::1?" %K`, differ: stricter}, // a pattern over an address's spelling
	{line: `from="**" %K`, differ: stricter},
	{line: `from="*,no.such.host" %K`, differ: stricter},  // names are not looked up
	{line: `from="*,192.0.2.0/129" %K`, differ: stricter}, // sshd takes it for a name
	{line: `from="*,192.0.2.0/" %K`, differ: stricter},
	{line: `from="192.0.2.10, 2001:db8::10" %K`, differ: stricter},
	{line: `from="192.0.522" %K`, differ: stricter}, // inet_aton's spelling of 192.0.2.10
	{line: `from="0xc000020a" %K`, differ: stricter},
	{line: `from="192.0.2.012" %K`, differ: stricter}, // octal
	{line: `from="192.0.2.0/+24" %K`},

	// Times that do not depend on now.
	{line: `expiry-time="20380101" %K`},
	{line: `expiry-time="99991231235959Z" %K`},
	{line: `expiry-time="20990231Z" %K`},
	{line: `expiry-time="20990101235961Z" %K`},
	{line: `expiry-time="20990101235962Z" %K`},
	{line: `expiry-time="20991301Z" %K`},
	{line: `expiry-time="20990001Z" %K`},
	{line: `expiry-time="20990132Z" %K`},
	{line: `expiry-time="20990101240000Z" %K`},
	{line: `expiry-time="2099010112Z" %K`},
	{line: `expiry-time="20990101ZZ" %K`},
	{line: `expiry-time="20990101 Z" %K`},
	{line: `expiry-time="2099-01-01" %K`},
	{line: `expiry-time="" %K`},
	{line: `expiry-time="Z" %K`},
	{line: `expiry-time="forever" %K`},
	{line: `expiry-time=20990101 %K`},
	{line: `expiry-time="19700101Z" %K`},
	{line: `expiry-time="19700101000001Z" %K`},
	{line: `expiry-time="2099 1 1Z" %K`, differ: stricter}, // the C library skips blanks
	{line: `expiry-time="19691231Z" %K`},
}

// server is a real sshd in a namespace of its own, with /run of its own because
// it wants a directory there.
type server struct {
	ns   *testnet.Namespace
	keys string // its AuthorizedKeysFile
	log  string
}

const sshdPort = 2222

func startSSHD(t *testing.T) *server {
	sshd, err := exec.LookPath("/usr/sbin/sshd")
	if err != nil {
		t.Skip("needs OpenSSH's sshd")
	}
	dir := t.TempDir()
	s := &server{ns: testnet.New(t), keys: filepath.Join(dir, "keys"), log: filepath.Join(dir, "log")}
	s.ns.Address("lo", "192.0.2.10/32", "192.0.2.77/32", "2001:db8::10/128", "2001:db8::77/128")
	host, config := filepath.Join(dir, "host"), filepath.Join(dir, "config")
	_, private, _ := ed25519.GenerateKey(rand.Reader)
	writeKey(t, host, private)
	text := fmt.Sprintf("Port %d\nHostKey %s\nAuthorizedKeysFile %s\n", sshdPort, host, s.keys) +
		"StrictModes no\nUsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\n" +
		"UseDNS no\nPidFile none\nMaxStartups 100\nLoginGraceTime 10\nRequiredRSASize 1024\nLogLevel DEBUG\n"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("unshare", "--mount", "sh", "-c",
		`mount -t tmpfs none /run && mkdir -m 755 /run/sshd && exec "$0" -D -f "$1" -E "$2"`, sshd, config, s.log)
	cmd.Env = append(os.Environ(), "TZ=Asia/Tokyo")
	if err := s.ns.Start(cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	s.wait(t)
	return s
}

func writeKey(t *testing.T, path string, private any) {
	t.Helper()
	block, err := ssh.MarshalPrivateKey(private, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (s *server) dial(from netip.Addr) (c net.Conn, err error) {
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0)), Timeout: 5 * time.Second, FallbackDelay: -1}
	s.ns.Do(func() { c, err = d.Dial("tcp", netip.AddrPortFrom(from, sshdPort).String()) })
	return c, err
}

func (s *server) wait(t *testing.T) {
	t.Helper()
	for range 100 {
		if c, err := s.dial(netip.MustParseAddr("2001:db8::10")); err == nil {
			c.Close()
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	log, _ := os.ReadFile(s.log)
	t.Fatalf("sshd does not listen\n%s", log)
}

// login reports whether sshd lets a key in, with a file of one line.
func (s *server) login(t *testing.T, line string, key ssh.Signer, from netip.Addr) bool {
	t.Helper()
	if err := os.WriteFile(s.keys, []byte(line), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := s.dial(from)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	client, _, _, err := ssh.NewClientConn(c, "", &ssh.ClientConfig{
		User: "root", Auth: []ssh.AuthMethod{ssh.PublicKeys(key)}, HostKeyCallback: ssh.InsecureIgnoreHostKey(),
	})
	if err == nil {
		client.Close()
		return true
	}
	if !strings.Contains(err.Error(), "unable to authenticate") {
		log, _ := os.ReadFile(s.log)
		t.Fatalf("%q: %v\n%s", line, err, log[max(0, len(log)-4000):])
	}
	return false
}

// ours is the same question to Parse.
func ours(line string, key ssh.Signer, from netip.Addr) bool {
	keys, _ := Parse([]byte(line))
	for i := range keys {
		k := &keys[i]
		if !bytes.Equal(k.Public.Blob(), key.PublicKey().Marshal()) || !k.At(time.Now()) || !k.AllowsFrom(from) {
			continue
		}
		// The engine asks this of a hardware key's signature.
		if sk, ok := key.(skKey); ok && (sk.flags&1 == 0 && !k.NoTouchRequired || sk.flags&4 == 0 && k.VerifyRequired) {
			continue
		}
		return true
	}
	return false
}

func TestAsSSHD(t *testing.T) {
	s := startSSHD(t)
	localTime(t, "Asia/Tokyo")
	signers := testSigners(t)
	here := time.Now().In(time.Local)
	stamp := func(d time.Duration, suffix string) string {
		at := here.Add(d)
		if suffix != "" {
			at = at.UTC()
		}
		return at.Format("20060102150405") + suffix
	}
	sources := []netip.Addr{
		netip.MustParseAddr("192.0.2.10"), netip.MustParseAddr("2001:db8::10"),
		netip.MustParseAddr("192.0.2.77"), netip.MustParseAddr("2001:db8::77"),
	}
	accepted, refused := 0, 0
	for _, test := range append(spellings, []spelling{
		{line: `expiry-time="` + stamp(time.Hour, "") + `" %K`},
		{line: `expiry-time="` + stamp(-time.Hour, "") + `" %K`},
		{line: `expiry-time="` + stamp(time.Hour, "Z") + `" %K`},
		{line: `expiry-time="` + stamp(-time.Hour, "z") + `" %K`},
		{line: `expiry-time="` + stamp(time.Hour, "utc") + `" %K`},
		{line: `expiry-time="` + stamp(-time.Hour, "UTC") + `" %K`},
		{line: `expiry-time="` + here.Add(time.Hour).Format("200601021504") + `" %K`},
		{line: `expiry-time="` + here.Add(-48*time.Hour).Format("20060102") + `" %K`},
		{line: `expiry-time="` + here.Add(48*time.Hour).Format("20060102") + `" %K`},
		{line: `expiry-time="` + stamp(time.Hour, "Z") + `",expiry-time="` + stamp(-time.Hour, "Z") + `" %K`},
		{line: `expiry-time="` + stamp(-time.Hour, "Z") + `",expiry-time="` + stamp(time.Hour, "Z") + `" %K`},
	}...) {
		key := signers[test.key]
		kind, blob, _ := strings.Cut(strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key.PublicKey()))), " ")
		line := strings.NewReplacer("%K", kind+" "+blob, "%S", sloppy(blob), "%T", kind, "%B", blob).Replace(test.line)
		from := sources[:2]
		if strings.Contains(test.line, "from") {
			from = sources
		}
		sshdTook, weTook := 0, 0
		for _, a := range from {
			theirs, mine := s.login(t, line, key, a), ours(line, key, a)
			if theirs {
				sshdTook++
			}
			if mine {
				weTook++
			}
			if test.differ == same && theirs != mine {
				t.Errorf("%.200q %s from %v: sshd says %v, we say %v", test.line, test.key, a, theirs, mine)
			}
		}
		switch {
		case test.differ == stricter && (sshdTook == 0 || weTook > 0), test.differ == looser && (sshdTook > 0 || weTook == 0):
			t.Errorf("%.200q %s: we are not %v: sshd takes it from %d addresses, we from %d", test.line, test.key, test.differ, sshdTook, weTook)
		case test.differ == same && sshdTook > 0:
			accepted++
		case test.differ == same:
			refused++
		}
	}
	// A table of which all is refused would show nothing.
	if accepted < 40 || refused < 40 {
		t.Errorf("both accept %d spellings and both refuse %d: sshd is not asked properly", accepted, refused)
	}
}

// testSigners are the keys that the table can name.
func testSigners(t *testing.T) map[string]ssh.Signer {
	t.Helper()
	made := map[string]ssh.Signer{}
	add := func(name string, private any) {
		signer, err := ssh.NewSignerFromKey(private)
		if err != nil {
			t.Fatal(err)
		}
		made[name] = signer
	}
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	add("", private)
	add("p256", ecdsaKey(t, elliptic.P256()))
	add("p384", ecdsaKey(t, elliptic.P384()))
	add("p521", ecdsaKey(t, elliptic.P521()))
	for _, bits := range []int{1024, 2048, 4104} {
		k, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			t.Fatal(err)
		}
		add(fmt.Sprint("rsa", bits), k)
	}
	for flags, name := range []string{"untouched", "touched", 5: "verified"} {
		if name != "" {
			made[name] = skKey{private, "ssh:", byte(flags)}
		}
	}
	return made
}
