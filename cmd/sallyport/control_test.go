//go:build linux

package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/control"
)

// hijacked is a control socket behind which somebody else gives the answers:
// an engine that strangers took over can say anything.
func hijacked(t *testing.T, answer io.Reader) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "control.sock")
	for _, path := range []string{socket, control.ChangeSocket(socket)} {
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			bufio.NewReader(conn).ReadString('\n')
			io.Copy(conn, answer)
		}()
	}
	return socket
}

// tool runs a command against the socket and gives its status and both streams.
func tool(socket string, args ...string) (status int, out, words string) {
	var stdout, stderr bytes.Buffer
	args = append([]string{args[0], "--control", socket}, args[1:]...)
	status = run(&ui{out: &stdout, err: &stderr}, args)
	return status, stdout.String(), stderr.String()
}

// somebody is a key's fingerprint.
const somebody = "SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU"

var tools = [][]string{
	{"status"}, {"grants"}, {"open", "ssh", "192.0.2.7"}, {"close", "2001:db8::7"}, {"close", "--key", somebody}, {"confirm"}, {"events"},
}

func TestAnAnswerThatIsNoneIsAnError(t *testing.T) {
	for _, args := range tools {
		for _, answer := range []string{"{}\n", "null\n", "{\"done\":null}\n", "\x00\n"} {
			status, out, words := tool(hijacked(t, strings.NewReader(answer)), args...)
			if status != exitFailed || out != "" || !strings.Contains(words, "the daemon's answer is not understood") {
				t.Errorf("%v, answered %q: status %d, %q, %q", args, answer, status, out, words)
			}
		}
	}
}

func TestAnAnswerThatNeverComes(t *testing.T) {
	for _, args := range tools {
		status, out, words := tool(hijacked(t, strings.NewReader("")), args...)
		want := "the daemon closed the connection without an answer: only root and the daemon's own user may ask; if you are one of them"
		if args[0] == "events" {
			want = "the daemon ended"
		}
		if status != exitFailed || out != "" || !strings.Contains(words, want) {
			t.Errorf("%v: status %d, %q, %q", args, status, out, words)
		}
	}
}

// endless is an answer without a line's end.
type endless struct{}

func (endless) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = 'x'
	}
	return len(b), nil
}

func TestAnEndlessAnswerIsBounded(t *testing.T) {
	status, _, words := tool(hijacked(t, endless{}), "grants")
	if status != exitFailed || !strings.Contains(words, "it has more than 67108864 bytes") {
		t.Errorf("status %d, %q", status, words)
	}
}

// What a hijacked engine says reaches root's terminal in no way but as text.
func TestAnAnswerCantWriteToTheTerminal(t *testing.T) {
	const bad, shown = `\u001b[2J\u0007\nsallyport: x\u202e`, "?[2J??sallyport: x?"
	until := time.Now().Add(time.Hour).Format(time.RFC3339)
	for _, c := range []struct {
		answer string
		args   []string
	}{
		{`{"error":"` + bad + `"}`, []string{"confirm"}},
		{`{"done":{"result":"` + bad + `","until":"` + until + `"}}`, []string{"open", "ssh", "2001:db8::7"}},
		{`{"status":{"counters":{"` + bad + `":1}}}`, []string{"status"}},
		{`{"status":{"sandbox":[{"part":"a","why":"` + bad + `"}]}}`, []string{"status"}},
		{`{"grants":{"Grants":[{"Addr":"192.0.2.7","Service":"ssh","By":"` + bad + `"}]}}`, []string{"grants"}},
		{`{"grants":{"Grants":[{"Addr":"192.0.2.7","Service":"` + bad + `","By":"x"}]}}`, []string{"grants", "--json"}},
		{`{"event":{"what":"` + bad + `","addr":"2001:db8::7"}}`, []string{"events"}},
	} {
		_, out, words := tool(hijacked(t, strings.NewReader(c.answer+"\n")), c.args...)
		said := out + words
		if strings.ContainsAny(said, "\x1b\a\u202e") || strings.Contains(said, "\nsallyport: x") || !strings.Contains(said, shown) {
			t.Errorf("%v, answered %s: said %q", c.args, c.answer, said)
		}
	}
}

// Where no daemon of ours answers, those that serve a knockd.conf are named, a few of
// them, and no socket that a killed one left behind.
func TestOtherDaemonsThatAnswerAreNamed(t *testing.T) {
	for _, c := range []struct{ alive, dead, named int }{{0, 0, 0}, {0, 3, 0}, {1, 3, 1}, {5, 2, mostNamed}} {
		dir := t.TempDir()
		socket := func(name string, dead bool) {
			l, err := net.Listen("unix", filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			l.(*net.UnixListener).SetUnlinkOnClose(!dead)
			if dead {
				l.Close()
			}
			t.Cleanup(func() { l.Close() })
		}
		for i := range c.dead {
			socket(fmt.Sprintf("knockd-%d.sock", i), true)
		}
		for i := range c.alive {
			socket(fmt.Sprintf("knockd-1%d.sock", i), false)
		}
		status, out, words := tool(filepath.Join(dir, "control.sock"), "status")
		named := strings.Count(words, "/knockd-1")
		if status != exitFailed || out != "" || named != c.named || strings.Count(words, "/knockd-") != named || strings.Contains(words, "is 'sallyport serve' running?") != (named == 0) {
			t.Errorf("%+v: status %d, %q, %q", c, status, out, words)
		}
	}
}

// Where the daemon refuses to explain, or ends, nothing is said of the address.
func TestNoVerdictWithoutAnExplanation(t *testing.T) {
	for _, addr := range []string{"192.0.2.7", "2001:db8::7"} {
		for answer, want := range map[string]string{`{"error":"four at a time"}` + "\n": "sallyport: four at a time\n", "": "sallyport: the daemon ended\n"} {
			status, out, words := tool(hijacked(t, strings.NewReader(answer)), "explain", addr)
			if status != exitFailed || out != "" || words != want {
				t.Errorf("%s, answered %q: status %d, %q, %q", addr, answer, status, out, words)
			}
		}
	}
}

// What no daemon would take is a slip on the command line, and none is asked.
func TestWrongRequestsAreUsageErrors(t *testing.T) {
	const closes = "close takes an address or a network, a service before it"
	for _, c := range []struct {
		args string
		want string
	}{
		{"open ssh 192.0.2", `<addr>: "192.0.2" is not an address, such as 192.0.2.7 or 2001:db8::7`},
		{"open ssh 2001:db8", `"2001:db8" is not an address`},
		{"open ssh fe80::1%lo", "open needs an IPv4 or IPv6 address without a zone; leave out %lo"},
		{"open ssh 0.0.0.0", "nobody can connect from 0.0.0.0"},
		{"open ssh ::", "nobody can connect from ::"},
		{"open ssh 224.0.0.1", "nobody can connect from 224.0.0.1"},
		{"open ssh ff02::1", "nobody can connect from ff02::1"},
		{"open ssh ::ffff:127.0.0.1", "nobody can connect from 127.0.0.1"},
		{"open ssh 192.0.2.7 --for 1ns", "--for: the duration must be 1s or more"},
		{"open ssh 2001:db8::7 --for 30", `--for: "30" has no unit; write 30s for seconds`},
		{"close", closes},
		{"close ssh", `"ssh" is not an address, such as 192.0.2.7 or 2001:db8::7; ` + closes},
		{"close ssh 22 192.0.2.7", `close takes a port behind its service, such as ssh 22/tcp, and not "22"`},
		{"close ssh 22-23/tcp 2001:db8::7", "close takes a port behind its service"},
		{"close ssh 22/tcp 192.0.2.0/33", `"192.0.2.0/33" is not an address`},
		{"close 2001:db8::/64 --cut", "--cut ends the connections of one address"},
		{"close ssh 22/tcp 192.0.2.7 --cut", "--cut ends the connections of one address"},
		{"close fe80::1%lo", "close needs an IPv4 or IPv6 address without a zone"},
	} {
		args := strings.Fields(c.args)
		status, out, words := tool("/nonexistent", args...)
		if status != exitUsage || out != "" || !strings.Contains(words, c.want) {
			t.Errorf("%s: status %d, %q, %q, want %q", c.args, status, out, words, c.want)
		}
	}
}

// What a close did not do is said as well, and a key that opened nothing is no
// success: perhaps the fingerprint is another's.
func TestCloseSaysWhatItDid(t *testing.T) {
	const again = "whoever has the key can knock again until its line leaves authorized_keys"
	for _, c := range []struct {
		args   string
		count  int
		cut    int
		left   int
		status int
		want   string
	}{
		{"close 192.0.2.7", 0, 0, 0, 0, "0 grants of 192.0.2.7 ended; live connections go on"},
		{"close ssh 2001:db8::7 --cut", 1, 3, 0, 0, "1 grants of 2001:db8::7 ended, 3 connections cut"},
		{"close ssh 22/tcp 192.0.2.7", 1, 0, 0, 0, "1 grants of 192.0.2.7 ended"},
		{"close ssh 192.0.2.0/24", 1, 0, 0, 0, "1 grants of 192.0.2.0/24 ended"},
		{"close 2001:db8::7/64", 1, 0, 0, 0, "1 grants of 2001:db8::/64 ended"},
		{"close 2001:db8::7/128", 1, 0, 0, 0, "1 grants of 2001:db8::7 ended"},
		{"close 192.0.2.7 --cut", 0, 0, 0, 0, "0 grants of 192.0.2.7 ended, 0 connections cut"},
		{"close --key " + somebody, 2, 0, 0, 0, "2 grants of " + somebody + " ended; live connections go on; " + again},
		{"close --key " + somebody, 0, 0, 0, exitFailed, "no grant of " + somebody + " is there, so nothing was closed"},
		{"close --json --key " + somebody, 0, 0, 0, exitFailed, "no grant of " + somebody},
		{"close --cut --key " + somebody, 0, 2, 0, 0, "0 grants of " + somebody + " ended, 2 connections cut; " + again},
		{"close --cut --key " + somebody, 0, 0, 4, 0, "; 4 addresses that others use too were left"},
		{"close --cut --key " + somebody, 1, 0, 0, 0, "1 grants of " + somebody + " ended, 0 connections cut; " + again},
		{"close --cut --key " + somebody, 0, 0, 0, exitFailed, "no grant of " + somebody + " is there, nor a connection"},
	} {
		answer := fmt.Sprintf(`{"done":{"result":"closed","count":%d,"cut":%d,"left":%d}}`+"\n", c.count, c.cut, c.left)
		status, out, words := tool(hijacked(t, strings.NewReader(answer)), strings.Fields(c.args)...)
		if status != c.status || out != "" || !strings.Contains(words, c.want) {
			t.Errorf("%s, %d ended: status %d, %q, %q, want %q", c.args, c.count, status, out, words, c.want)
		}
	}
}

// A packet's source is never 4-in-6, and neither is what a grant's line says.
func TestAnAddressIsPrintedAsPacketsHaveIt(t *testing.T) {
	answer := `{"done":{"result":"` + control.EventClosed + `","count":1,"until":"2026-01-02T03:04:05Z"}}` + "\n"
	for _, args := range [][]string{{"open", "ssh", "::ffff:192.0.2.7"}, {"close", "::ffff:192.0.2.7"}} {
		if _, _, words := tool(hijacked(t, strings.NewReader(answer)), args...); !strings.Contains(words, " 192.0.2.7 ") {
			t.Errorf("%v: said %q", args, words)
		}
	}
}

// A line says what was opened to whom: a network, one port, one connection, a person.
func TestGrantsSayWhatIsOpen(t *testing.T) {
	until := time.Now().Add(time.Minute + time.Second).Format(time.RFC3339)
	answer := `{"grants":{"Grants":[{"Addr":"2001:db8::","Bits":64,"Service":"mail","Proto":6,"Port":25,"Once":true,"By":"enc person:ann","Until":"` + until + `"}]}}` + "\n"
	status, out, _ := tool(hijacked(t, strings.NewReader(answer)), "grants")
	if want := regexp.MustCompile(`^2001:db8::/64  mail 25/tcp  for (1m\ds|59s) or one connection  asked by enc person:ann\n$`); status != 0 || !want.MatchString(out) {
		t.Errorf("status %d, %q", status, out)
	}
	answer = `{"event":{"time":"` + until + `","what":"open","addr":"192.0.2.0","bits":24,"knock":"enc","service":"mail","port":"25/tcp","key":"ann"}}` + "\n"
	_, out, _ = tool(hijacked(t, strings.NewReader(answer)), "events")
	if want := " open address=192.0.2.0/24 knock=enc service=mail port=25/tcp key=ann\n"; !strings.HasSuffix(out, want) {
		t.Errorf("%q, want %q", out, want)
	}
}
