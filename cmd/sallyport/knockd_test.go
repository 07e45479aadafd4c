//go:build linux

package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

// TestKnockdStories runs what needs no network under the name knockd.
func TestKnockdStories(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: filepath.Join("testdata", "knockd")})
}

func TestKnockdOptions(t *testing.T) {
	for _, test := range []struct {
		args string
		want knockdOptions
	}{
		{"", knockdOptions{config: "/etc/knockd.conf"}},
		{"-dvi eth0 -c x.conf", knockdOptions{config: "x.conf", background: true, verbose: true, interfaces: []string{"eth0"}}},
		{"-i eth0 -ieth1,ppp0 --interface any -D", knockdOptions{config: "/etc/knockd.conf", debug: true, interfaces: []string{"eth0", "eth1", "ppp0", "any"}}},
		{"-c x.conf -d -i eth0 -D", knockdOptions{config: "x.conf", background: true, debug: true, interfaces: []string{"eth0"}}},
		{"operand --conf=x.conf -l4 --pid p -g=l", knockdOptions{config: "x.conf", lookup: true, ipv4Only: true, pidFile: "p", logFile: "=l"}},
		{"--strict --native --only -- -d", knockdOptions{config: "/etc/knockd.conf", strict: true, native: true, ipv4Only: true}},
	} {
		got, err := parseKnockd(strings.Fields(test.args))
		if diff := cmp.Diff(test.want, got, cmp.AllowUnexported(knockdOptions{})); err != nil || diff != "" {
			t.Errorf("%q: %v\n%s", test.args, err, diff)
		}
	}
}

// The command line goes before the file, but with the original's own rules.
func TestCommandLineBeforeFile(t *testing.T) {
	for _, test := range []struct {
		line, file, ours, strict string
	}{
		{"", "", "", ""},
		{"line", "", "line", "line"},
		{"", "file", "file", "file"},
		{"line", "file", "line", "file"},
	} {
		for strict, want := range map[bool]string{false: test.ours, true: test.strict} {
			k := knockdDoors{options: &knockdOptions{strict: strict}}
			if got := k.said(test.line, test.file); got != want {
				t.Errorf("%q and %q, strict %v: %q, want %q", test.line, test.file, strict, got, want)
			}
		}
	}
}

// A daemon removes no other's file, and writes through no link.
func TestPidFile(t *testing.T) {
	dir := t.TempDir()
	path, link := filepath.Join(dir, "pid"), filepath.Join(dir, "link")
	if err := writePid(path); err != nil {
		t.Fatal(err)
	}
	if text, _ := os.ReadFile(path); string(text) != fmt.Sprintf("%d\n", os.Getpid()) {
		t.Errorf("the file holds %q", text)
	}
	removePid(path)
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("the file is still there: %v", err)
	}
	os.WriteFile(path, []byte("1\n"), 0o644)
	if removePid(path); !exists(path) {
		t.Error("another process's file is gone")
	}
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	if err := writePid(link); err == nil {
		t.Error("it wrote through a link")
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// datagrams is a logger that listens at path, and what it gets.
func datagrams(t *testing.T, path string) (got <-chan string, end func()) {
	t.Helper()
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	lines := make(chan string, 10000)
	go func() {
		for b := make([]byte, 9000); ; {
			n, err := l.Read(b)
			if err != nil {
				return
			}
			lines <- string(b[:n])
		}
	}()
	end = func() { l.Close(); os.Remove(path) }
	t.Cleanup(end)
	return lines, end
}

func next(t *testing.T, lines <-chan string) string {
	t.Helper()
	select {
	case line := <-lines:
		return line
	case <-time.After(10 * time.Second):
		t.Fatal("no line came")
		return ""
	}
}

var syslogLine = regexp.MustCompile(`^<29>[A-Z][a-z][a-z] [ 1-3][0-9] [0-2][0-9]:[0-5][0-9]:[0-5][0-9] knockd: (?s:(.*))$`)

// A logger that is not there yet, restarts, or takes a stream.
func TestSyslog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	s := &syslogger{path: path}
	write := func(message string) { s.Write([]byte(message)) }
	write("nobody listens")
	lines, end := datagrams(t, path)
	expect := func(want string) {
		t.Helper()
		line := next(t, lines)
		if m := syslogLine.FindStringSubmatch(line); m == nil || m[1] != want {
			t.Errorf("it sent %q, want %q", line, want)
		}
	}
	write("first")
	expect(syslogLost + " lines=1")
	expect("first")
	end()
	lines, end = datagrams(t, path)
	write("the logger was restarted\n")
	expect("the logger was restarted\n")
	end()
	write("gone")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	write("a stream")
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	s.conn.Close()
	text, _ := io.ReadAll(conn)
	messages := strings.Split(string(text), "\x00")
	if len(messages) != 3 || !strings.HasSuffix(messages[0], syslogLost+" lines=1") || !strings.HasSuffix(messages[1], "knockd: a stream") {
		t.Errorf("the stream had %q", text)
	}
}

// A logger that reads nothing holds up neither the daemon nor the log file.
func TestAFullSyslogHoldsUpNothing(t *testing.T) {
	dir := t.TempDir()
	deaf, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "log"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer deaf.Close()
	l := newKnockdLog(&ui{out: io.Discard, err: io.Discard})
	file := filepath.Join(dir, "file")
	if err := l.open(file, false); err != nil {
		t.Fatal(err)
	}
	l.syslog = &logQueue{to: &syslogger{path: filepath.Join(dir, "log")}}
	began := time.Now()
	const lines = 900 // fewer than a queue holds
	for i := range lines {
		l.record(fmt.Sprint("line ", i))
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("%d lines took %v", lines, took)
	}
	l.file.flush()
	if text, _ := os.ReadFile(file); bytes.Count(text, []byte("\n")) != lines {
		t.Errorf("the file has %d lines, want %d", bytes.Count(text, []byte("\n")), lines)
	}
}

// A log that is a pipe which nobody reads is refused and waited for by nobody.
func TestALogFileThatIsAPipe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	l := newKnockdLog(&ui{out: io.Discard, err: io.Discard})
	opened := make(chan error, 1)
	go func() { opened <- l.open(path, false) }()
	select {
	case err := <-opened:
		if err == nil {
			t.Error("it was opened")
		}
	case <-time.After(5 * time.Second):
		t.Fatal("it waits for a reader")
	}
}

// What the DNS says of an address is anybody's; so is which addresses are asked for.
func TestNames(t *testing.T) {
	n := &names{asked: make(chan netip.Addr, maxAsked), known: map[netip.Addr]string{}}
	four, six := netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8::7")
	for _, addr := range []netip.Addr{four, six} {
		if got := n.of(addr); got != "" || <-n.asked != addr {
			t.Errorf("%v was known as %q", addr, got)
		}
		for _, bad := range []string{
			"", " ", addr.String(), addr.String() + " ", addr.String() + " a b", addr.String() + " \x1b[2J", addr.String() + " a\tb",
			addr.String() + " " + strings.Repeat("a", 254), addr.String() + " ü", "x client.example", "192.0.2.8 client.example",
		} {
			if n.take(bad); n.of(addr) != "" || len(n.known) > 2 {
				t.Errorf("%q was taken: %q", bad, n.of(addr))
			}
		}
		n.take(addr.String() + " client-1.example")
		if got := n.of(addr); got != " (client-1.example)" {
			t.Errorf("%v is %q", addr, got)
		}
	}
	// A flood is not asked for beyond a bound, and remembered in another.
	for i := range 3 * maxNames {
		n.of(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}))
		if i >= maxAsked {
			continue
		}
		if i%2 == 1 {
			<-n.asked
		}
	}
	if len(n.asked) != maxAsked {
		t.Errorf("%d wait, want %d", len(n.asked), maxAsked)
	}
	for i := range 3 * maxNames {
		if len(n.asked) > 0 {
			<-n.asked
		}
		n.of(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}))
	}
	if len(n.known) != maxNames {
		t.Errorf("%d are remembered, want %d", len(n.known), maxNames)
	}
}
