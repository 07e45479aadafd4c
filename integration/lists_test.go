//go:build linux

package integration_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/onetime"
	"github.com/sallyport/sallyport/internal/testnet"
)

// listHouse has a list of one-time sequences at the server and a copy at the client.
type listHouse struct {
	*peopleHouse
	p          path
	list, copy string
	lines      []onetime.Sequence // of the list, in the beginning
}

func newListHouse(t *testing.T, p path, lines string) *listHouse {
	t.Helper()
	h := &listHouse{peopleHouse: newPeopleHouse(t), p: p}
	h.list, h.copy = filepath.Join(h.dir, "server"), filepath.Join(h.dir, "client")
	h.must("keygen", "--otp-list", lines, "--out", h.list)
	text, err := os.ReadFile(h.list)
	if err != nil {
		t.Fatal(err)
	}
	h.write(h.copy, string(text))
	h.lines, _ = onetime.Sequences(onetime.LinesOf(text))
	return h
}

func (h *listHouse) must(args ...string) string {
	h.t.Helper()
	_, words := h.peopleHouse.must("", args...)
	return words
}

func (h *listHouse) write(file, text string) {
	h.t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		h.t.Fatal(err)
	}
}

func (h *listHouse) config() string {
	return `[daemon]
state_dir = "DIR/state"
control = "DIR/control.sock"
[service.ssh]
ports = ["22/tcp"]
open_for = "1s"
[knock.front]
type = "sequence"
opens = ["ssh"]
list = "` + h.list + `"
look_ahead = 5
`
}

// enter knocks with the client's next line, and waits until the grant is over.
func (h *listHouse) enter() {
	h.t.Helper()
	h.must("knock", h.p.server.String(), "--otp-list", h.copy)
	h.await(true, 22, h.p)
	h.await(false, 22, h.p)
}

// inVain knocks with what may not open.
func (h *listHouse) inVain(args ...string) {
	h.t.Helper()
	h.must(append([]string{"knock", h.p.server.String()}, args...)...)
	time.Sleep(200 * time.Millisecond)
	h.is(false, 22, h.p)
}

// replay sends line i as it stood.
func (h *listHouse) replay(i int) {
	h.t.Helper()
	h.inVain(strings.Fields(h.lines[i].Text)...)
}

// lose has the client's next lines get lost on their way.
func (h *listHouse) lose(n int) {
	h.t.Helper()
	for range n {
		if _, _, err := onetime.Take(h.copy); err != nil {
			h.t.Fatal(err)
		}
	}
}

// left is how many lines of the server's list are unused.
func (h *listHouse) left(want int) {
	h.t.Helper()
	text, err := os.ReadFile(h.list)
	if err != nil {
		h.t.Fatal(err)
	}
	if good, bad := onetime.Sequences(onetime.LinesOf(text)); len(good) != want || len(bad) > 0 {
		h.t.Errorf("%d unused lines, want %d; faults %v", len(good), want, bad)
	}
}

func eachList(t *testing.T, lines string, test func(t *testing.T, h *listHouse)) {
	t.Parallel()
	for _, p := range paths {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			h := newListHouse(t, p, lines)
			h.serve(h.config())
			test(t, h)
			for _, s := range h.lines {
				if strings.Contains(h.Log(), s.Steps[0].String()) {
					t.Errorf("a step of a line is in the log:\n%s", h.Log())
				}
			}
		})
	}
}

// TestListLinesAreGoodOnce: also after lost knocks, a restart and kill -9; beyond
// look_ahead nothing opens until the server's list is copied to the client.
func TestListLinesAreGoodOnce(t *testing.T) {
	eachList(t, "30", func(t *testing.T, h *listHouse) {
		h.enter()
		h.left(29)
		h.replay(0)

		h.lose(4) // lines 1 to 4; the next is the last one that is taken
		h.enter()
		h.left(24)
		for _, i := range []int{1, 4, 5} {
			h.replay(i)
		}

		h.lose(5)
		h.inVain("--otp-list", h.copy)
		h.left(24)
		text, _ := os.ReadFile(h.list)
		h.write(h.copy, string(text))
		h.enter()
		h.left(23)

		h.Signal(syscall.SIGTERM)
		h.Wait()
		h.Start()
		h.Await("serving")
		h.replay(6)
		h.enter()
		h.left(22)
	})
}

// TestListClientKilledAtTheFirstPacket: the line was marked before, so that it is never
// sent again, and the server takes the one behind it.
func TestListClientKilledAtTheFirstPacket(t *testing.T) {
	eachList(t, "30", func(t *testing.T, h *listHouse) {
		const sends = "sendto,sendmsg,sendmmsg,write"
		text, _ := os.ReadFile(h.copy)
		for _, file := range []string{h.copy, h.list} { // a datagram first: a TCP step is a connect, as a look at the routes is
			h.write(file, "4101/udp 9202/tcp 6303/udp\n"+string(text))
		}
		h.Signal(syscall.SIGHUP)
		h.Await("was read again")
		out, err := h.client.Output("timeout", "20", "strace", "-f", "-qq", "-e", "trace="+sends, "-e", "inject="+sends+":signal=KILL",
			h.bin, "knock", h.p.server.String(), "--otp-list", h.copy)
		if err == nil {
			t.Fatalf("it was not killed: %s", out)
		}
		if text, _ := os.ReadFile(h.copy); text[0] != '#' {
			t.Errorf("the line was not marked before it was sent: %s\n%s", text, out)
		}
		h.is(false, 22, h.p)
		h.enter()
		h.left(29)
	})
}

// TestListKilledAtTheMark: kill -9 as soon as the mark is on the disk. Whether the grant
// was made or not, the line is worth nothing afterwards.
func TestListKilledAtTheMark(t *testing.T) {
	eachList(t, "30", func(t *testing.T, h *listHouse) {
		killed := make(chan bool)
		go func() {
			defer close(killed)
			for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
				text, _ := os.ReadFile(h.list)
				if at := h.lines[0].Offset; int64(len(text)) > at && text[at] == '#' {
					h.Signal(syscall.SIGKILL)
					killed <- true
					return
				}
			}
		}()
		h.must("knock", h.p.server.String(), "--otp-list", h.copy)
		if !<-killed {
			t.Fatal("the line was never marked")
		}
		h.Wait()
		h.await(false, 22, h.p)
		h.Start()
		h.Await("serving")
		h.replay(0)
		h.enter()
		h.left(28)
	})
}

// TestListGrowsAndEnds: the log says that lines come to their end; a longer list is
// taken up with SIGHUP, and without one too.
func TestListGrowsAndEnds(t *testing.T) {
	eachList(t, "2", func(t *testing.T, h *listHouse) {
		h.Await("is nearly used up")
		h.enter()
		h.enter()
		h.Await("is used up")
		if _, words, err := h.run("", "knock", h.p.server.String(), "--otp-list", h.copy); err == nil || !strings.Contains(words, "no unused line left") {
			t.Errorf("the client: %v, %s", err, words)
		}
		for i, more := range []string{"4101/tcp 9202/udp 6303/tcp\n", "5101/tcp 9902/udp 6803/tcp\n"} {
			for _, file := range []string{h.list, h.copy} {
				text, _ := os.ReadFile(file)
				h.write(file, string(text)+more)
			}
			if i == 0 {
				h.Signal(syscall.SIGHUP)
				h.Await("was read again")
			} else {
				time.Sleep(time.Second)
			}
			h.enter()
		}
	})
}

// TestListOfTwoDaemons: a line counts at one of them.
func TestListOfTwoDaemons(t *testing.T) {
	eachList(t, "30", func(t *testing.T, h *listHouse) {
		other := &listHouse{peopleHouse: newPeopleHouse(t), p: h.p, list: h.list, copy: h.copy, lines: h.lines}
		other.serve(other.config())
		for i := range 8 { // more than look_ahead: each follows the other
			h.enter()
			other.replay(i)
			time.Sleep(500 * time.Millisecond) // inotify, and the pause behind it
		}
		other.enter()
		h.replay(8)
		h.left(21)
	})
}

// TestListsThatAreRefused at the start, with the line.
func TestListsThatAreRefused(t *testing.T) {
	t.Parallel()
	ns := testnet.New(t)
	const readOnly = `unshare -m sh -c 'mount --bind LIST LIST && mount -o remount,bind,ro LIST && exec "$0" "$@"' %s`
	for _, test := range []struct {
		name, words, text string
		mode              os.FileMode
		more              string
		want              []string
	}{
		{"unwritable", readOnly, "7000/tcp 8500/udp 7800/tcp\n", 0o600, "", []string{"knock.front.list: ", "read-only file system"}},
		{"others read it", "%s", "7000/tcp 8500/udp 7800/tcp\n", 0o644, "", []string{"chmod 600"}},
		{"no steps", "%s", "7000/tcp 8500/udp 7800/tcp\n\n7001/tcp 70000/tcp\n", 0o600, "", []string{"LIST:3: ", "step 2"}},
		{"a scan opens it", "%s", "7000/tcp 8500/udp 7800/tcp\n7000/tcp 7001/tcp\n", 0o600, "", []string{"LIST:2: ", "scan"}},
		{"the beginning of another", "%s", "7000/tcp 8500/udp\n7000/tcp 8500/udp 7800/tcp\n", 0o600, "", []string{"LIST:2: ", "line 1"}},
		{"twice", "%s", "7000/tcp 8500/udp\n9000/tcp 8000/udp\n7000/tcp  8500/udp\n", 0o600, "", []string{"LIST:3: ", "line 1"}},
		{"used before", "%s", "#000/tcp 8500/udp 7800/tcp\n7000/tcp 8500/udp 7800/tcp\n", 0o600, "", []string{"LIST:2: ", "line 1 once more"}},
		{"another knock's", "%s", "7000/tcp 8500/udp 7800/tcp\n", 0o600, "[knock.back]\ntype = \"sequence\"\nopens = [\"ssh\"]\nsequence = [\"7000/tcp\", \"8500/udp\"]\n", []string{"LIST:1: ", "knock.back"}},
		{"of two knocks", "%s", "7000/tcp 8500/udp 7800/tcp\n", 0o600, "[knock.back]\ntype = \"sequence\"\nopens = [\"ssh\"]\nlist = \"LIST\"\n", []string{"knock.back.list: ", "knock.front"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			list := filepath.Join(t.TempDir(), "list")
			if err := os.WriteFile(list, []byte(test.text), test.mode); err != nil {
				t.Fatal(err)
			}
			config := "[service.ssh]\nports = [\"22/tcp\"]\n[knock.front]\ntype = \"sequence\"\nopens = [\"ssh\"]\nlist = \"LIST\"\n" + test.more
			with := func(text string) string { return strings.ReplaceAll(text, "LIST", list) }
			d := ns.Launch(wrapper(t, with(test.words)), with(config))
			if status := d.Wait(); status != 2 {
				t.Errorf("status %d", status)
			}
			said := d.Log()
			for _, want := range test.want {
				if want = with(want); !strings.Contains(said, want) {
					t.Errorf("it says nothing of %q:\n%s", want, said)
				}
			}
			if strings.Contains(said, "7000") && !strings.Contains(said, "such as 7000/tcp") {
				t.Errorf("a step is in the log:\n%s", said)
			}
		})
	}
}

// TestAListHidesNothingAfterDown: each line that is used has the daemon turn to the next
// ones, and what was taken down stays down all the same.
func TestAListHidesNothingAfterDown(t *testing.T) {
	eachList(t, "6", func(t *testing.T, h *listHouse) {
		h.enter()
		h.server.Run(h.bin, "down")
		h.Await("the table was taken down")
		h.must("knock", h.p.server.String(), "--otp-list", h.copy)
		h.Await("lines_left=4")
		time.Sleep(300 * time.Millisecond)
		h.is(true, 22, h.p)
		h.left(4)
	})
}
