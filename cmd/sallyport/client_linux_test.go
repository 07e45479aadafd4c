package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/sallyport/sallyport/internal/spa"
)

// TestClientStories runs the client's stories: no network but the loopback
// interface's, a home of their own, and ssh's own programs.
func TestClientStories(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/client",
		Setup: func(env *testscript.Env) error {
			env.Setenv("HOME", filepath.Join(env.WorkDir, "home"))
			return os.Mkdir(filepath.Join(env.WorkDir, "home"), 0o700)
		},
		Condition: func(cond string) (bool, error) {
			path, ok := strings.CutPrefix(cond, "exists:")
			_, err := os.Stat(path)
			return ok && err == nil, nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"server": storyServer, "agent": storyAgent, "fingerprint": storyFingerprint, "opened": storyOpened,
			"later": storyLater, "mode": storyMode, "broken": storyBroken, "ssh-G": storySSH,
		},
	})
}

// storyServer makes a server's key: server.key, the address as a file and as
// $ADDRESS.
func storyServer(ts *testscript.TestScript, _ bool, args []string) {
	suite := map[string]spa.Suite{"classic": spa.Classic, "post-quantum": spa.PostQuantum}[args[0]]
	key, err := spa.NewServerKey(suite)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs("server.key"), []byte(spa.FormatKeyFile([]spa.FileKey{{Key: key}})), 0o600))
	ts.Check(os.WriteFile(ts.MkAbs("address"), []byte(key.Address().String()+"\n"), 0o600))
	ts.Setenv("ADDRESS", key.Address().String())
}

// storyAgent starts an agent that ends with the story.
func storyAgent(ts *testscript.TestScript, _ bool, _ []string) {
	socket := ts.MkAbs("agent.sock")
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	cmd := exec.CommandContext(ctx, "ssh-agent", "-D", "-P", "/usr/lib/*,/usr/local/lib/*", "-a", socket)
	ts.Check(cmd.Start())
	ts.Defer(func() { cancel(); cmd.Wait() })
	for range 500 {
		if conn, err := net.Dial("unix", socket); err == nil {
			conn.Close()
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	ts.Setenv("SSH_AUTH_SOCK", socket)
}

func storyPublic(ts *testscript.TestScript, file string) *spa.PublicKey {
	blob, err := base64.StdEncoding.DecodeString(strings.Fields(ts.ReadFile(file))[1])
	ts.Check(err)
	key, err := spa.ParsePublicKey(blob)
	ts.Check(err)
	return key
}

func storyFingerprint(ts *testscript.TestScript, _ bool, args []string) {
	ts.Setenv("FINGERPRINT", storyPublic(ts, args[0]).Fingerprint().String())
}

// open reads a datagram as the server would.
func open(ts *testscript.TestScript, file, public string) *spa.Opened {
	keys, err := spa.ParseKeyFile(ts.ReadFile("server.key"))
	ts.Check(err)
	datagram := []byte(ts.ReadFile(file))
	if !spa.IsSize(len(datagram)) || !keys[0].Key.Gate().First(datagram) || !keys[0].Key.Gate().Second(datagram) {
		ts.Fatalf("%d bytes do not pass the gate", len(datagram))
	}
	o, err := keys[0].Key.Open(datagram)
	ts.Check(err)
	_, err = o.Verify(storyPublic(ts, public))
	ts.Check(err)
	return o
}

func storyOpened(ts *testscript.TestScript, _ bool, args []string) {
	o := open(ts, args[0], args[1])
	if age := time.Since(time.Unix(0, o.Stamp)); age < 0 || age > time.Minute {
		ts.Fatalf("its time is %v ago", age)
	}
	text := func(a netip.Addr) string {
		if !a.IsValid() {
			return "-"
		}
		return a.String()
	}
	fmt.Fprintf(ts.Stdout(), "%v services=%v for=%v ipv4=%s ipv6=%s own=%v\n", o.Action, o.Services, o.For, text(o.IPv4), text(o.IPv6), o.Own)
}

func storyLater(ts *testscript.TestScript, _ bool, args []string) {
	if a, b := open(ts, args[0], args[2]).Stamp, open(ts, args[1], args[2]).Stamp; b <= a {
		ts.Fatalf("%s has %d, %s has %d", args[0], a, args[1], b)
	}
}

func storyMode(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.ParseUint(args[0], 8, 32)
	ts.Check(err)
	info, err := os.Stat(ts.MkAbs(args[1]))
	ts.Check(err)
	if info.Mode().Perm() != fs.FileMode(want) {
		ts.Fatalf("%s has the mode %o", args[1], info.Mode().Perm())
	}
}

// storyBroken replaces the stored server home.
func storyBroken(ts *testscript.TestScript, _ bool, args []string) {
	text := strings.ReplaceAll(args[0], `\n`, "\n")
	ts.Check(os.WriteFile(ts.MkAbs("home/.config/sallyport/home.toml"), []byte(text), 0o600))
}

// storySSH asks ssh what it makes of the story's configuration. ssh takes the
// home that the password database has, so the story's is mounted on it, in a
// mount namespace.
func storySSH(ts *testscript.TestScript, _ bool, args []string) {
	me, err := os.UserHomeDir()
	ts.Check(err)
	if home := passwdHome(); home != "" {
		me = home
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	unshare := []string{"-m"}
	if os.Getuid() != 0 {
		unshare = []string{"-rm"}
	}
	cmd := exec.CommandContext(ctx, "unshare", append(unshare, "sh", "-c", `mount --bind "$1" "$2" && exec ssh -G "$3"`, "sh", ts.MkAbs("home"), me, args[0])...)
	var words bytes.Buffer
	cmd.Stdout, cmd.Stderr = ts.Stdout(), &words
	if err := cmd.Run(); err != nil {
		ts.Fatalf("ssh -G: %v\n%s", err, words.String())
	}
}

func passwdHome() string {
	text, err := exec.Command("getent", "passwd", strconv.Itoa(os.Getuid())).Output()
	if fields := strings.Split(string(text), ":"); err == nil && len(fields) > 5 {
		return fields[5]
	}
	return ""
}

// Two knocks at once never have one number: the server would take the second
// for a repeat.
func TestCounterGivesNoNumberTwice(t *testing.T) {
	file := filepath.Join(t.TempDir(), "counter")
	now := time.Unix(1000, 0) // a clock that stands still
	var mu sync.Mutex
	seen := map[int64]bool{}
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 25 {
				n, err := nextStamp(file, now)
				mu.Lock()
				if err != nil || seen[n] || n < now.UnixNano() {
					t.Errorf("%d, %v, given before: %v", n, err, seen[n])
				}
				seen[n] = true
				mu.Unlock()
			}
		})
	}
	all.Wait()
	if len(seen) != 200 {
		t.Errorf("%d numbers of 200", len(seen))
	}
}

// What a shell and ssh make of the program's path is one word, and the path.
func TestProgramIsOneWordForTheShell(t *testing.T) {
	for _, path := range []string{"/usr/bin/sallyport", "/opt/my programs/sallyport", "/a/it's", `/a/$HOME "x" \y;z&`, "/a/`id`", "/a/*"} {
		text, err := quoteCommand(path, "linux")
		if err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("sh", "-c", "printf %s "+text).Output()
		if err != nil || string(out) != path {
			t.Errorf("%q became %q (%v)", path, out, err)
		}
	}
	if text, _ := quoteCommand("/a/100%h/x", "linux"); text != "/a/100%%h/x" {
		t.Errorf("ssh would expand %q", text)
	}
	if text, err := quoteCommand("/a\nHost *", "linux"); err == nil {
		t.Errorf("a line end came through: %q", text)
	}
}

func TestNamesOfServers(t *testing.T) {
	for name, good := range map[string]bool{
		"home": true, "web-1.example_x": true, "7": true, strings.Repeat("a", 64): true,
		"": false, strings.Repeat("a", 65): false, "..": false, "-a": false, "a/b": false, `a\b`: false, "A": false, "a b": false,
		"a*": false, "192.0.2.1": false, "2001:db8::1": false, "1.2.3.4": false, "icmp": false, "sallyport1abc": false, "a\x00": false, "ä": false,
	} {
		if err := checkServerName(name); (err == nil) != good {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// A comment comes from an agent: it must not begin a line of its own in
// somebody's authorized_keys.
func TestCommentsStayOnTheirLine(t *testing.T) {
	for text, want := range map[string]string{
		"me@there": "me@there", "a\nssh-rsa AAAA": "assh-rsa AAAA", "\x1b[2Jx\r": "[2Jx", "bad \xff": "bad ",
		strings.Repeat("é", 40): strings.Repeat("é", 32),
	} {
		if got := comment(text); got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}

// slow is a key that waits for its user.
type slow struct {
	public []byte
	wait   time.Duration
}

func (s slow) PublicKey() []byte { return s.public }

func (s slow) Sign([]byte) ([]byte, error) {
	time.Sleep(s.wait)
	return nil, nil
}

func TestAKeyThatWaitsSaysSo(t *testing.T) {
	hardware := wire("sk-ssh-ed25519@openssh.com", strings.Repeat("x", 32), "ssh:")
	plain := wire("ssh-ed25519", strings.Repeat("x", 32))
	for _, test := range []struct {
		key  slow
		want string
	}{
		{slow{hardware, patience + 500*time.Millisecond}, "sallyport: touch your security key\n"},
		{slow{plain, patience + 500*time.Millisecond}, "sallyport: waiting for ssh-agent: it may want you to confirm\n"},
		{slow{hardware, 0}, ""},
	} {
		var words bytes.Buffer
		(&patient{Signer: test.key, u: &ui{err: &words}}).Sign(nil)
		if words.String() != test.want {
			t.Errorf("it said %q, want %q", words.String(), test.want)
		}
	}
}

func wire(fields ...string) (b []byte) {
	for _, field := range fields {
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(field))), field...)
	}
	return b
}

// ssh asks for its own service alone: what is not opened can't be attacked.
func TestProxyAsksForNoMoreThanItsPort(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("XDG_CONFIG_HOME", dir)
	key, err := spa.NewServerKey(spa.Classic)
	if err != nil {
		t.Fatal(err)
	}
	raw := rawServer{Host: "h", Address: key.Address().String(), Key: dir + "/key", Services: map[string]uint16{"ssh": 22, "web": 443}}
	if err := raw.store(dir+"/sallyport/work.toml", "work"); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ host, port, want string }{
		{"192.0.2.1", "22", "[ssh]"}, {"2001:db8::1", "443", "[web]"}, {"h", "8080", "[]"},
	} {
		o, err := (&proxyCmd{Name: "work", Host: test.host, Port: test.port}).order()
		if err != nil || fmt.Sprint(o.request.Services) != test.want || o.host != test.host {
			t.Errorf("%s: %v, %v", test.port, o, err)
		}
	}
	none, zero := wayOut{}, time.Duration(0)
	for _, c := range []proxyCmd{
		{"none", "h", "22", none, nil}, {"work", "h:1", "22", none, nil}, {"work", "h", "0", none, nil}, {"work", "h", "53/udp", none, nil}, {"work", "h", "22", none, &zero},
		{"work", "h", "22", wayOut{Source: "eth0"}, nil}, {"work", "2001:db8::1", "22", wayOut{Source: "192.0.2.1"}, nil},
	} {
		if _, err := c.order(); err == nil {
			t.Errorf("%v was taken", c)
		} else if _, usage := err.(usageError); !usage {
			t.Errorf("%v: %v is no mistake of the command line", c, err)
		}
	}
}
