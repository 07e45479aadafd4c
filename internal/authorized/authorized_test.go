package authorized

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/sallyport/sallyport/internal/spa"
	"golang.org/x/crypto/ssh"
	"pgregory.net/rapid"
)

var equal = []cmp.Option{
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	cmp.Comparer(func(a, b spa.PublicKey) bool { return bytes.Equal(a.Blob(), b.Blob()) }),
}

// ed is a key whose bytes are all b: no one has its secret, and every run of a
// test sees the same text.
func ed(b byte) string {
	wire := ssh.Marshal(struct {
		Type string
		Key  []byte
	}{"ssh-ed25519", bytes.Repeat([]byte{b}, ed25519.PublicKeySize)})
	return "ssh-ed25519 " + base64.StdEncoding.EncodeToString(wire)
}

// canonical is a line that reads back as an equal key, less the line's number.
func canonical(k Key) string {
	line := k.Public.Type() + " " + base64.StdEncoding.EncodeToString(k.Public.Blob())
	return strings.TrimLeft(wish(k)+" "+strings.TrimRight(line+" "+k.Comment, " "), " ")
}

// wish is a key's options in their canonical spelling.
func wish(k Key) string {
	const stamp = "20060102150405Z"
	var o []string
	add := func(there bool, format string, args ...any) {
		if there {
			o = append(o, fmt.Sprintf(format, args...))
		}
	}
	var from []string
	for _, p := range k.From {
		from = append(from, map[bool]string{true: "!"}[p.Not]+p.Prefix.String())
	}
	add(k.Services != nil, `services="%s"`, strings.Join(k.Services, ","))
	add(k.MaxTime != 0, `max-time="%s"`, k.MaxTime)
	add(!k.NotBefore.IsZero(), `not-before="%s"`, k.NotBefore.Format(stamp))
	add(!k.Expires.IsZero(), `expiry-time="%s"`, k.Expires.Format(stamp))
	add(k.NoAddress, "no-address")
	add(k.From != nil, `from="%s"`, strings.Join(from, ","))
	add(k.NoTouchRequired, "no-touch-required")
	add(k.VerifyRequired, "verify-required")
	return strings.Join(o, ",")
}

// localTime sets this process's time zone for a test.
func localTime(t *testing.T, name string) {
	zone, err := time.LoadLocation(name)
	if err != nil {
		t.Fatal(err)
	}
	before := time.Local
	time.Local = zone
	t.Cleanup(func() { time.Local = before })
}

// Each text stands before a key. What comes of it is the options' canonical
// spelling, or the error.
func TestOptions(t *testing.T) {
	localTime(t, "Asia/Tokyo")
	const (
		comma   = `write a comma behind it, or a blank behind the last option`
		quotes  = `its value must stand in double quotes, as in name="value"`
		only    = "only addresses and CIDR networks work (192.0.2.7, 192.0.2.0/24, 2001:db8::/32), because no name is looked up"
		bits    = "the address has bits set behind the network's length, which sshd refuses too; set them to 0"
		mapped  = "it is an IPv4 address within IPv6, from which nobody comes; write it as IPv4"
		maxTime = "option max-time: write a time in whole seconds from 1s to 720h, as 90s, 30m or 1h30m"
		behind  = "there is no key behind the options; outside double quotes a blank ends them"
		cert    = "this is for certificates, which are not taken; write the key itself without it"
		badName = "is no service's name, which has 1 to 32 of a-z, 0-9, _ and -"
	)
	for _, test := range []struct{ text, want string }{
		{``, ``},
		{`services="ssh"`, `services="ssh"`},
		{`SERVICES="ssh,web-2,a_b"`, `services="ssh,web-2,a_b"`},
		{`services=""`, `option services: name 1 ` + badName},
		{`services="ssh,"`, `option services: name 2 ` + badName},
		{`services="ssh, web"`, `option services: name 2 ` + badName},
		{`services="Ssh"`, `option services: name 1 ` + badName},
		{`services="` + strings.Repeat("a", 33) + `"`, `option services: name 1 ` + badName},
		{`services="ssh,web,ssh"`, `option services: name 3 stands there twice; name it once`},
		{`services="` + strings.Repeat("a,", 1024) + `a"`, `option services: it has more than 1024 names; leave it out, and all that its knock opens is opened`},
		{`services=ssh`, "option services: " + quotes},
		{`services`, "option services: " + quotes},
		{`services="ssh`, "option services: the double quote behind its value is missing"},
		{`services="ssh",services="web"`, "option services: it stands there twice; write it once"},
		{`max-time="1h"`, `max-time="1h0m0s"`},
		{`max-time="1s"`, `max-time="1s"`},
		{`max-time="720h"`, `max-time="720h0m0s"`},
		{`max-time="720h1s"`, maxTime},
		{`max-time="999ms"`, maxTime},
		{`max-time="1500ms"`, maxTime},
		{`max-time="-1h"`, maxTime},
		{`max-time="60"`, maxTime},
		{`no-address`, `no-address`},
		{`no-address,NO-ADDRESS`, `no-address`},
		{`no-address="yes"`, "option no-address: it takes no value"},
		{`address`, "address is unknown, and sshd too refuses a line for that; correct it or take it out"},

		{`expiry-time="20300102"`, `expiry-time="20300101150000Z"`}, // local time
		{`expiry-time="20300102Z"`, `expiry-time="20300102000000Z"`},
		{`expiry-time="20300102z"`, `expiry-time="20300102000000Z"`},
		{`expiry-time="203001020304"`, `expiry-time="20300101180400Z"`},
		{`expiry-time="20300102030405Utc"`, `expiry-time="20300102030405Z"`},
		{`expiry-time="20300231Z"`, `expiry-time="20300303000000Z"`},
		{`expiry-time="20300101235961Z"`, `expiry-time="20300102000001Z"`},
		{`expiry-time="20300102Z",expiry-time="20310102Z"`, `expiry-time="20300102000000Z"`},
		{`expiry-time="20310102Z",expiry-time="20300102Z"`, `expiry-time="20300102000000Z"`},
		{`expiry-time="99991231235959Z"`, `expiry-time="99991231235959Z"`},
		{`expiry-time="99991231235960Z"`, "option expiry-time: " + timeFault},
		{`expiry-time="19700101Z"`, "option expiry-time: " + timeFault},
		{`expiry-time="19700101000001Z"`, `expiry-time="19700101000001Z"`},
		{`expiry-time="00010101Z"`, "option expiry-time: " + timeFault}, // Go's zero time
		{`expiry-time="20301301Z"`, "option expiry-time: " + timeFault},
		{`expiry-time="20300001Z"`, "option expiry-time: " + timeFault},
		{`expiry-time="20300100Z"`, "option expiry-time: " + timeFault},
		{`expiry-time="20300101240000Z"`, "option expiry-time: " + timeFault},
		{`expiry-time="203001020360Z"`, "option expiry-time: " + timeFault},
		{`expiry-time="20300101235962Z"`, "option expiry-time: " + timeFault},
		{`expiry-time="2030 1 1Z"`, "option expiry-time: " + timeFault},
		{`expiry-time="2030-1-1"`, "option expiry-time: " + timeFault},
		{`expiry-time=""`, "option expiry-time: " + timeFault},
		{`expiry-time="Z"`, "option expiry-time: " + timeFault},
		{`expiry-time="never"`, "option expiry-time: " + timeFault},
		{`not-before="20300102Z"`, `not-before="20300102000000Z"`},
		{`not-before="tomorrow"`, "option not-before: " + timeFault},
		{`not-before="20300102Z",not-before="20300102Z"`, "option not-before: it stands there twice; write it once"},
		{`not-before="20300102Z",expiry-time="20300103Z"`, `not-before="20300102000000Z",expiry-time="20300103000000Z"`},
		{`not-before="20300103Z",expiry-time="20300103Z"`, "the key is never valid: not-before is not before expiry-time"},

		{`from="192.0.2.7,2001:db8::7"`, `from="192.0.2.7/32,2001:db8::7/128"`},
		{`from="192.0.2.0/24,!192.0.2.7,2001:DB8:0::/32,!2001:db8::7"`, `from="192.0.2.0/24,!192.0.2.7/32,2001:db8::/32,!2001:db8::7/128"`},
		{`from="*"`, `from="0.0.0.0/0,::/0"`},
		{`from="!*"`, `from="!0.0.0.0/0,!::/0"`},
		{`from="0.0.0.0/0"`, `from="0.0.0.0/0"`},
		{`from="192.0.2.0/024"`, `from="192.0.2.0/24"`},
		{`from=""`, "option from: pattern 1: " + only},
		{`from="192.0.2.7,"`, "option from: pattern 2: " + only},
		{`from="!"`, "option from: pattern 1: " + only},
		{`from="!!192.0.2.7"`, "option from: pattern 1: " + only},
		{`from="host.example"`, "option from: pattern 1: " + only},
		{`from="192.0.2.7,*.example"`, "option from: pattern 2: " + only},
		{`from="192.0.2.*"`, "option from: pattern 1: " + only},
		{`from="192.0.2.?"`, "option from: pattern 1: " + only},
		{`from="**"`, "option from: pattern 1: " + only},
		{`from="127.1"`, "option from: pattern 1: " + only},
		{`from="fe80::1%lo"`, "option from: pattern 1: " + only},
		{`from="192.0.2.7, 192.0.2.8"`, "option from: pattern 2: " + only},
		{`from="192.0.2.7/24"`, "option from: pattern 1: " + bits},
		{`from="2001:db8::7/64"`, "option from: pattern 1: " + bits},
		{`from="192.0.2.0/33"`, "option from: pattern 1: the length behind the slash must be from 0 to 32"},
		{`from="2001:db8::/129"`, "option from: pattern 1: the length behind the slash must be from 0 to 128"},
		{`from="192.0.2.0/"`, "option from: pattern 1: the length behind the slash must be from 0 to 32"},
		{`from="::ffff:192.0.2.7"`, "option from: pattern 1: " + mapped},
		{`from="::ffff:0:0/96"`, "option from: pattern 1: " + mapped},
		{`from="192.0.2.7",from="192.0.2.7"`, "option from: it stands there twice; write it once"},

		{`no-touch-required`, `no-touch-required`},
		{`no-touch-required,touch-required`, ``},
		{`verify-required`, `verify-required`},
		{`verify-required,no-verify-required`, ``},

		{`restrict,port-forwarding,no-port-forwarding,agent-forwarding,no-agent-forwarding`, ``},
		{`X11-forwarding,no-x11-Forwarding,pty,no-pty,user-rc,no-user-rc,,restrict,`, ``},
		{`command="echo \"a b\", #c",no-address`, `no-address`},
		{`command="a\\"b"`, ""},
		{`command="a\"`, "option command: the double quote behind its value is missing"},
		{`command="a\\" b",no-address`, `no-address`},
		{`command="a",command="b"`, "option command: it stands there twice; write it once"},
		{`environment="A_1=b",environment="A=\"c\""`, ``},
		{`environment="A-1=b"`, "option environment: it must be NAME=value, the name of letters, digits and _"},
		{`environment="AB"`, "option environment: it must be NAME=value, the name of letters, digits and _"},
		{`permitopen="host:22",permitopen="[2001:db8::1]:*",permitopen="host/ssh"`, ``},
		{`permitopen="22"`, "option permitopen: it must be HOST:PORT"},
		{`permitopen="host:0"`, "option permitopen: it must be HOST:PORT"},
		{`permitopen="host:65536"`, "option permitopen: it must be HOST:PORT"},
		{`permitopen="[::1"`, "option permitopen: it must be HOST:PORT"},
		{`permitlisten="8080",permitlisten="localhost:8080"`, ``},
		{`permitlisten="0"`, "option permitlisten: it must be HOST:PORT"},
		{`tunnel="3",tunnel="Any"`, ``},
		{`tunnel="x"`, "option tunnel: it must be any or the number of a device"},
		{`principals="root"`, "option principals: " + cert},
		{`cert-authority`, "option cert-authority: " + cert},

		{`no-such-option`, "no-such-option is unknown, and sshd too refuses a line for that; correct it or take it out"},
		{`no-restrict`, "no-restrict is unknown, and sshd too refuses a line for that; correct it or take it out"},
		{`Hunter2`, "an option is unknown, and sshd too refuses a line for that; correct it or take it out"},
		{`="x"`, "an option is unknown, and sshd too refuses a line for that; correct it or take it out"},
		{`no-pty"x y"`, "option no-pty: " + comma},
		{`from="192.0.2.7"x`, "option from: " + comma},
		{`restrict, no-address`, behind},
		{`restrict no-address`, behind},
	} {
		keys, faults := Parse([]byte(strings.TrimLeft(test.text+" "+ed(1)+" me@host", " ")))
		if got := verdict(keys, faults); got != test.want {
			t.Errorf("%s\n got %s\nwant %s", test.text, got, test.want)
		}
		if len(keys) == 1 && keys[0].Comment != "me@host" {
			t.Errorf("%s: comment %q", test.text, keys[0].Comment)
		}
	}
}

// verdict is what one line came to.
func verdict(keys []Key, faults []Error) string {
	switch {
	case len(keys) == 1 && len(faults) == 0:
		return wish(keys[0])
	case len(keys) == 0 && len(faults) == 1 && faults[0].Line == 1:
		return faults[0].Text
	}
	return fmt.Sprint("neither a key nor an error: ", len(keys), faults)
}

func wire(t *testing.T, public any) string {
	t.Helper()
	k, err := ssh.NewPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(k)))
}

// sloppy sets one of the two bits that padding leaves unused. Of a key without padding
// it makes another one.
func sloppy(key string) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
	i := len(key) - 2 // before the "="
	next := (strings.IndexByte(alphabet, key[i]) + 1) % len(alphabet)
	return key[:i] + alphabet[next:next+1] + "="
}

func ecdsaKey(t *testing.T, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// rsaOf is a public key of that many bits; nobody has its secret, if it has one.
func rsaOf(bits uint) *rsa.PublicKey {
	n := new(big.Int).Lsh(big.NewInt(1), bits-1)
	return &rsa.PublicKey{N: n.Add(n, big.NewInt(1)), E: 65537}
}

// Types, sizes, comments and the shape of a line. %[1]s is a good key.
func TestLines(t *testing.T) {
	good := ed(1)
	kind, blob, _ := strings.Cut(good, " ")
	p256 := wire(t, &ecdsaKey(t, elliptic.P256()).PublicKey)
	sk := skKey{application: "ssh:"}.line()
	const damaged = "the key is damaged (it is not base64); copy the whole line again"
	for _, test := range []struct{ text, want string }{
		{good, "ok"},
		{" \t " + good, "ok"},
		{kind + " \t " + blob + " \t ", "ok"},
		{good + "\r", "ok"},
		{good + "\v\f", "ok"},
		{p256, "ok"},
		{wire(t, &ecdsaKey(t, elliptic.P384()).PublicKey), "ok"},
		{wire(t, &ecdsaKey(t, elliptic.P521()).PublicKey), "ok"},
		{wire(t, rsaOf(2048)), "ok"},
		{wire(t, rsaOf(4096)), "ok"},
		{sk, "ok"},
		{good + " a  b", "ok a  b"},
		{good + " # not a comment of the file", "ok # not a comment of the file"},
		{good + " \x1b[31mred\x1b[0m\ttab", "ok ?[31mred?[0m tab"},
		{good + " \u202edesrever \xff", "ok ?desrever ?"},
		{good + " caf\u00e9\r", "ok caf\u00e9"},
		{good + " " + strings.Repeat("\u00e9", 40), "ok " + strings.Repeat("\u00e9", 32)},
		{good + " " + strings.Repeat("x", 63) + "\u00e9", "ok " + strings.Repeat("x", 63)},
		{good + " " + strings.Repeat("x", 20000), "ok " + strings.Repeat("x", 64)},
		{"", ""}, {"  \t", ""}, {"\r", ""}, {"# " + good, ""}, {" \t#", ""},
		{`no-pty ` + kind, damaged},
		{kind, damaged},
		{kind + " " + blob[:len(blob)-1], damaged},
		{kind + " " + strings.Replace(blob, "A", "*", 1), damaged},
		{kind + " " + strings.Replace(blob, "A", "\u00a0", 1), damaged},
		{sloppy(p256), damaged},
		{kind + " " + blob[:len(blob)-4], "the ssh-ed25519 key is " + spa.ErrFormat.Error()},
		{"ssh-rsa " + blob, "the line says ssh-rsa, but its key is of type ssh-ed25519; copy the whole line again"},
		{"ecdsa-sha2-nistp384 " + strings.Fields(p256)[1], "the line says ecdsa-sha2-nistp384, but its key is of type ecdsa-sha2-nistp256; copy the whole line again"},
		{kind + "\v" + blob, "a type can't be used: it is not known here; use ed25519, ecdsa, rsa or their hardware forms (sk-)"},
		{"SSH-ED25519 " + blob, "an option is unknown, and sshd too refuses a line for that; correct it or take it out"},
		{wire(t, rsaOf(2047)), "the RSA key has 2047 bits; from 2048 to 4096 are taken"},
		{wire(t, rsaOf(4097)), "the RSA key has 4097 bits; from 2048 to 4096 are taken"},
		{"ssh-dss AAAA", "ssh-dss can't be used: DSA keys have 1024 bits, too few; make an ed25519 key"},
		{"ssh-ed448 AAAA", "ssh-ed448 can't be used: it is not known here; use ed25519, ecdsa, rsa or their hardware forms (sk-)"},
		{"rsa-sha2-512 AAAA", "rsa-sha2-512 can't be used: it names a signature; the key's type is ssh-rsa"},
		{"webauthn-sk-ecdsa-sha2-nistp256@openssh.com AAAA", "webauthn-sk-ecdsa-sha2-nistp256@openssh.com can't be used: it names a browser's signature, which no SSH client makes"},
		{"ssh-ed25519-cert-v01@openssh.com AAAA", "ssh-ed25519-cert-v01@openssh.com can't be used: certificates are not taken; write the key itself"},
		{"no-pty sk-ssh-ed25519-cert-v01@openssh.com AAAA", "sk-ssh-ed25519-cert-v01@openssh.com can't be used: certificates are not taken; write the key itself"},
		{"no-pty", "there is no key on this line; write options, type, key and comment on one line"},
		{good + " a\x00b", "there is a zero byte in it; is this a text file"},
		{"---- BEGIN SSH2 PUBLIC KEY ----", "this is the head of another kind of key file; write the one line that ssh-keygen puts into a .pub file"},
	} {
		keys, faults := Parse([]byte(test.text))
		got := ""
		switch {
		case len(keys) == 1 && len(faults) == 0:
			got = strings.TrimSpace("ok " + keys[0].Comment)
		case len(keys) == 0 && len(faults) == 1:
			got = faults[0].Text
		case len(keys)+len(faults) > 0:
			got = fmt.Sprint(len(keys), " keys and ", faults)
		}
		if got != test.want {
			t.Errorf("%.100q\n got %s\nwant %s", test.text, got, test.want)
		}
	}
}

func TestGoodLinesWorkWhateverTheOthersAre(t *testing.T) {
	text := "# mine\r\n" + ed(1) + " one\r\n\r\nno-such " + ed(2) + "\nservices=\"ssh\" " + ed(2) + " two\n" +
		"\x00\xff\n" + ed(1) + " again\nno-address " + ed(3) // no line end: it counts all the same
	keys, faults := Parse([]byte(text))
	var got []string
	for _, k := range keys {
		got = append(got, fmt.Sprintf("%d %s %s", k.Line, wish(k), k.Comment))
	}
	for _, e := range faults {
		got = append(got, e.Error())
	}
	want := []string{"2  one", `5 services="ssh" two`, "8 no-address ",
		"line 4: no-such is unknown, and sshd too refuses a line for that; correct it or take it out",
		"line 6: there is a zero byte in it; is this a text file",
		"line 7: same key as line 2, whose options count; this line is not used"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestBounds(t *testing.T) {
	var many strings.Builder
	for i := range MaxKeys + 5 {
		b := [4]byte{byte(i), byte(i >> 8)}
		many.WriteString(strings.Replace(ed(9), "CQkJCQkJ", base64.StdEncoding.EncodeToString(append(b[:], 9, 9)), 1) + "\n")
	}
	keys, faults := Parse([]byte(many.String()))
	if len(keys) != MaxKeys || len(faults) != 1 || faults[0].Line != MaxKeys+1 || !strings.Contains(faults[0].Text, "more than 16384 keys") {
		t.Errorf("%d keys, %v", len(keys), faults)
	}

	first := ed(1) + "\n"
	fill := first + "#" + strings.Repeat("x", MaxSize-len(first)-1)
	if keys, faults = Parse([]byte(fill)); len(keys) != 1 || len(faults) != 0 {
		t.Errorf("a file of %d bytes: %d keys, %v", len(fill), len(keys), faults)
	}
	keys, faults = Parse([]byte(fill + "x\n" + ed(2)))
	if len(keys) != 1 || len(faults) != 1 || faults[0].Line != 2 {
		t.Errorf("a longer file: %d keys, %v", len(keys), faults)
	}
	keys, faults = Parse([]byte(fill + "\n" + ed(2)))
	if len(keys) != 1 || len(faults) != 1 || faults[0].Line != 3 {
		t.Errorf("a line behind the limit: %d keys, %v", len(keys), faults)
	}

	keys, faults = Parse([]byte(strings.Repeat("x\n", 5000) + ed(1)))
	if len(keys) != 1 || len(faults) != maxFaults || faults[maxFaults-1].Line != maxFaults {
		t.Errorf("5000 bad lines: %d keys, %d errors", len(keys), len(faults))
	}
}

// A private key given by mistake must not reach a log, line by line.
func TestErrorsKeepSecrets(t *testing.T) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(private, "")
	if err != nil {
		t.Fatal(err)
	}
	file := string(pem.EncodeToMemory(block))
	file += `command="s3cret word" ` + ed(1) + ` x` + "\n" + `environment="s3cret" ` + ed(2) + "\n" +
		`from="s3cret.example" ` + ed(3) + "\ns3cretS3CRET " + ed(4) + "\nssh-rsa s3cret\nssh-ed25519 AAAA" + "s3cret\n"
	_, faults := Parse([]byte(file))
	if len(faults) < 10 {
		t.Fatalf("%d errors", len(faults))
	}
	for _, line := range strings.Fields(file) {
		for i := 0; i+12 <= len(line); i += 4 {
			for _, e := range faults {
				if piece := line[i : i+8]; strings.Contains(e.Error(), "s3cret") || strings.Contains(e.Error(), piece) &&
					!strings.Contains("ssh-ed25519 environment= command=", piece) {
					t.Fatalf("an error quotes the file: %s", e)
				}
			}
		}
	}
}

// sshd(8) promises the system's time zone, which has summer time; sshd itself
// asks the C library for standard time all year.
func TestSummerTime(t *testing.T) {
	localTime(t, "Europe/Berlin")
	for text, want := range map[string]string{
		"20300101120000": "20300101110000Z",
		"20300701120000": "20300701100000Z",
		"20300701":       "20300630220000Z",
	} {
		keys, faults := Parse([]byte(`expiry-time="` + text + `" ` + ed(1)))
		if got := verdict(keys, faults); got != `expiry-time="`+want+`"` {
			t.Errorf("%s: %s", text, got)
		}
	}
}

func TestAt(t *testing.T) {
	at := func(s int64) time.Time { return time.Unix(s, 0).UTC() }
	for _, test := range []struct {
		from, to time.Time
		now      int64
		want     bool
	}{
		{time.Time{}, time.Time{}, 1000, true},
		{at(1000), time.Time{}, 999, false},
		{at(1000), time.Time{}, 1000, true},
		{time.Time{}, at(1000), 999, true},
		{time.Time{}, at(1000), 1000, false},
		{at(1000), at(1001), 1000, true},
		{at(1000), at(1001), 1001, false},
	} {
		k := Key{NotBefore: test.from, Expires: test.to}
		if got := k.At(at(test.now)); got != test.want {
			t.Errorf("%v to %v at %d: %v", test.from, test.to, test.now, got)
		}
	}
}

func TestOpens(t *testing.T) {
	all, some, none := Key{}, Key{Services: []string{"ssh", "web"}}, Key{Services: []string{}}
	if !all.Opens("ssh") || !some.Opens("web") || some.Opens("we") || some.Opens("") || none.Opens("ssh") {
		t.Error("services= does not decide")
	}
}

func TestAllowsFromTable(t *testing.T) {
	for _, test := range []struct{ from, yes, no string }{
		{"", "192.0.2.7 2001:db8::7 fe80::1%eth0", ""},
		{"*", "192.0.2.7 2001:db8::7 fe80::1%eth0", ""},
		{"!*", "", "192.0.2.7 2001:db8::7"},
		{"192.0.2.7,2001:db8::7", "192.0.2.7 ::ffff:192.0.2.7 2001:db8::7", "192.0.2.8 2001:db8::8"},
		{"192.0.2.0/24,2001:db8::/32", "192.0.2.7 2001:db8::7", "192.0.3.7 2001:db9::7"},
		{"!192.0.2.7,!2001:db8::7", "", "192.0.2.7 192.0.2.8 2001:db8::7 2001:db8::8"},
		{"!192.0.2.7,*,!2001:db8::7", "192.0.2.8 2001:db8::8", "192.0.2.7 ::ffff:192.0.2.7 2001:db8::7"},
		{"*,!192.0.2.0/24,192.0.2.7,!2001:db8::/32,2001:db8::7", "192.0.3.7 2001:db9::7", "192.0.2.7 2001:db8::7"},
		{"0.0.0.0/0", "192.0.2.7", "2001:db8::7"},
		{"::/0", "2001:db8::7", "192.0.2.7 ::ffff:192.0.2.7"},
		{"fe80::/10", "fe80::1%eth0 fe80::1", "fec0::1"},
		{"*,!fe80::/10", "2001:db8::7", "fe80::1%eth0"},
	} {
		k := fromKey(t, test.from)
		for list, want := range map[string]bool{test.yes: true, test.no: false} {
			for _, a := range strings.Fields(list) {
				if k.AllowsFrom(netip.MustParseAddr(a)) != want {
					t.Errorf("from=%q: %s is not %v", test.from, a, want)
				}
			}
		}
	}
	if k := fromKey(t, "*"); k.AllowsFrom(netip.Addr{}) {
		t.Error("no address at all matches a pattern")
	}
	if k := (Key{From: []Pattern{}}); k.AllowsFrom(netip.IPv6Loopback()) {
		t.Error("an empty list lets somebody in")
	}
}

func fromKey(t interface{ Fatal(...any) }, from string) Key {
	line := ed(1)
	if from != "" {
		line = `from="` + from + `" ` + line
	}
	keys, faults := Parse([]byte(line))
	if len(keys) != 1 {
		t.Fatal(from, faults)
	}
	return keys[0]
}

// model answers as sshd(8) puts it, on addresses written as strings of bits.
func model(patterns []string, a netip.Addr) bool {
	binary := func(a netip.Addr) string {
		var b strings.Builder
		for _, octet := range a.AsSlice() {
			fmt.Fprintf(&b, "%08b", octet)
		}
		return b.String()
	}
	some := func(not bool) bool {
		return slices.ContainsFunc(patterns, func(p string) bool {
			if strings.HasPrefix(p, "!") != not {
				return false
			}
			prefix := netip.MustParsePrefix(strings.TrimPrefix(p, "!"))
			return len(binary(prefix.Addr())) == len(binary(a)) && strings.HasPrefix(binary(a), binary(prefix.Addr())[:prefix.Bits()])
		})
	}
	return some(false) && !some(true)
}

// drawAddr draws from few addresses, so that patterns often match.
func drawAddr(t *rapid.T) netip.Addr {
	octet := func() byte { return rapid.SampledFrom([]byte{0, 1, 2, 128, 255}).Draw(t, "octet") }
	if rapid.Bool().Draw(t, "IPv4") {
		return netip.AddrFrom4([4]byte{192, octet(), 2, octet()})
	}
	return netip.AddrFrom16([16]byte{0x20, 1, 0x0d, octet(), 7: octet(), 15: octet()})
}

func TestAllowsFromAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		patterns := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) string {
			a := drawAddr(t)
			p, _ := a.Prefix(rapid.SampledFrom([]int{0, 8, 9, 16, 24, 31, 32, 64, a.BitLen()}).Filter(func(n int) bool { return n <= a.BitLen() }).Draw(t, "bits"))
			return rapid.SampledFrom([]string{"", "", "!"}).Draw(t, "not") + p.String()
		}), 1, 6).Draw(t, "patterns")
		k := fromKey(t, strings.Join(patterns, ","))
		for range 8 {
			a := drawAddr(t)
			got, want := k.AllowsFrom(a), model(patterns, a)
			if got != want {
				t.Fatalf("from=%q and %v: %v, the model says %v", patterns, a, got, want)
			}
			if k.AllowsFrom(netip.AddrFrom16(a.As16())) != got {
				t.Fatalf("from=%q and %v: another answer to the mapped form", patterns, a)
			}
		}
	})
}

func TestJSON(t *testing.T) {
	localTime(t, "Asia/Tokyo")
	text := strings.Join([]string{
		ed(1),
		`services="ssh,web",max-time="1h",not-before="20250102",expiry-time="99991231235959Z",no-address,from="!192.0.2.7,192.0.2.0/24,2001:db8::/32,!2001:db8::7",no-touch-required,verify-required ` + ed(2) + " caf\u00e9 <&>",
		`from="*" ` + ed(3) + " \xff",
		wire(t, rsaOf(4096)),
		wire(t, &ecdsaKey(t, elliptic.P521()).PublicKey),
		skKey{application: "ssh:"}.line(),
	}, "\n")
	keys, faults := Parse([]byte(text))
	if len(keys) != 6 {
		t.Fatal(faults)
	}
	data, err := json.Marshal(keys)
	if err != nil {
		t.Fatal(err)
	}
	var again []Key
	if err := json.Unmarshal(data, &again); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(keys, again, equal...); diff != "" {
		t.Errorf("-sent +received:\n%s", diff)
	}
	if again[0].From != nil || again[0].Services != nil || again[1].From == nil {
		t.Error("nil and empty lists changed places")
	}
}

// The engine asks these for each datagram that verifies.
func TestNoAllocations(t *testing.T) {
	k := fromKey(t, "*,!192.0.2.0/24,!fe80::/10")
	k.Services = []string{"ssh", "web"}
	now := time.Now()
	for _, text := range []string{"192.0.2.7", "2001:db8::7", "fe80::1%eth0", "::ffff:192.0.2.7"} {
		a := netip.MustParseAddr(text)
		if n := testing.AllocsPerRun(100, func() { k.AllowsFrom(a); k.At(now); k.Opens("web") }); n != 0 {
			t.Errorf("%s: %v allocations", text, n)
		}
	}
}
