//go:build linux

package run

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/sallyport/sallyport/internal/testnet"
)

var (
	v4 = netip.MustParseAddr("192.0.2.7")
	v6 = netip.MustParseAddr("2001:db8::7")
)

// TestMain is also the spawner, and a daemon that a test kills.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == "spawner" {
		if err := Spawner(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if len(os.Args) == 3 && os.Args[1] == "descriptors" {
		descriptors(os.Args[2])
		os.Exit(0)
	}
	if len(os.Args) > 2 && os.Args[1] == "words" {
		os.WriteFile(os.Args[2], []byte(strings.Join(os.Args, "\x00")), 0o600)
		os.Exit(42)
	}
	if dir := os.Getenv("RUN_TEST_DAEMON"); dir != "" {
		daemon(dir)
	}
	os.Exit(m.Run())
}

// descriptors writes which of its first thousand descriptors this process got.
func descriptors(to string) {
	var open []int
	for fd := range 1000 {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil {
			open = append(open, fd)
		}
	}
	os.WriteFile(to, fmt.Appendln(nil, open), 0o600)
}

// daemon owns a runner until it is killed: it runs the action of its environment
// for both families and says when both have run.
func daemon(dir string) {
	os.Unsetenv("RUN_TEST_DAEMON")
	ran := make(chan struct{}, 16)
	r, err := New(Options{StateDir: dir, Needed: true, Log: slog.New(slog.DiscardHandler), Tell: func(e Event) {
		if e.What == Running {
			ran <- struct{}{}
		}
	}})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	var a config.Action
	if err := json.Unmarshal([]byte(os.Getenv("ACTION")), &a); err != nil {
		panic(err)
	}
	words := os.Getenv("WORDS")
	a.Run = config.Command{"/bin/sh", "-c", "echo start {addr} $SALLYPORT_GRANT >>" + words}
	a.Undo = config.Command{"/bin/sh", "-c", "echo undo {addr} $SALLYPORT_GRANT >>" + words}
	a.RunIPv6, a.UndoIPv6, a.Address = a.Run, a.Undo, "{addr}"
	a.UndoAfter, _ = time.ParseDuration(os.Getenv("AFTER"))
	for _, addr := range []netip.Addr{v4, v6} {
		if err := r.Run(Job{Action: &a, Addr: addr}, time.Now()); err != nil {
			panic(err)
		}
		<-ran
	}
	time.Sleep(time.Minute) // a test ends it long before
	os.Exit(1)
}

// world is a runner whose events and log a test can look at.
type world struct {
	*Runner
	t      *testing.T
	dir    string // the state directory
	out    string // a file that commands write into
	mu     sync.Mutex
	events []Event
	log    *testnet.Output
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, dir: t.TempDir(), out: filepath.Join(t.TempDir(), "out"), log: &testnet.Output{}}
	w.start()
	t.Cleanup(func() { w.Close() })
	return w
}

func (w *world) options() Options {
	log := slog.New(slog.NewTextHandler(w.log, nil))
	return Options{StateDir: w.dir, Log: log, Tell: func(e Event) {
		if e.What == Said { // they are many
			log.Info("a command says", "action", e.Action, "address", e.Addr, "line", e.Command)
			return
		}
		w.mu.Lock()
		w.events = append(w.events, e)
		w.mu.Unlock()
	}}
}

func (w *world) start() {
	w.t.Helper()
	r, err := New(w.options())
	if err != nil {
		w.t.Fatal(err)
	}
	w.Runner = r
}

// restart is what a new daemon does after a clean end of the old one.
func (w *world) restart() {
	w.t.Helper()
	w.Close()
	w.start()
}

// shell makes an action whose commands are shell texts, in which OUT is the file.
func (w *world) shell(name, run, undo string, after time.Duration) *config.Action {
	sh := func(text string) config.Command {
		if text == "" {
			return nil
		}
		return config.Command{"/bin/sh", "-c", strings.ReplaceAll(text, "OUT", w.out)}
	}
	return &config.Action{
		Name: name, Run: sh(run), RunIPv6: sh(run), Undo: sh(undo), UndoIPv6: sh(undo),
		UndoAfter: after, Address: "{addr}",
	}
}

// logs is an action that writes what runs into the file.
func (w *world) logs(name string, after time.Duration) *config.Action {
	return w.shell(name, "echo start {addr} >>OUT", "echo undo {addr} >>OUT", after)
}

func (w *world) run(a *config.Action, addr netip.Addr) {
	w.t.Helper()
	if err := w.Run(Job{Action: a, Addr: addr}, time.Now()); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) lines() []string {
	text, _ := os.ReadFile(w.out)
	return slices.Collect(strings.Lines(string(text)))
}

func (w *world) text() string { return strings.Join(w.lines(), "") }

func (w *world) told() []Event {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.events)
}

// eventually waits at most five seconds.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); !f(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within five seconds: %s", what)
		}
	}
}

func (w *world) until(want string) {
	w.t.Helper()
	for end := time.Now().Add(5 * time.Second); w.text() != want; time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			w.t.Fatalf("commands wrote\n%swant\n%s%s", w.text(), want, w.log)
		}
	}
}

func families(t *testing.T, f func(t *testing.T, addr netip.Addr)) {
	for _, addr := range []netip.Addr{v4, v6} {
		t.Run(addr.String(), func(t *testing.T) { f(t, addr) })
	}
}

func TestStartAndUndo(t *testing.T) {
	families(t, func(t *testing.T, addr netip.Addr) {
		w := newWorld(t)
		w.run(w.logs("a", 50*time.Millisecond), addr)
		w.until(fmt.Sprintf("start %s\nundo %[1]s\n", addr))
		var got []What
		for _, e := range w.told() {
			if e.Action != "a" || e.Addr != addr {
				t.Errorf("event %+v", e)
			}
			got = append(got, e.What)
		}
		if want := []What{Running, Due, Running}; !slices.Equal(got, want) {
			t.Errorf("events %v, want %v", got, want)
		}
		if want := fmt.Sprintf("/bin/sh -c echo start %s >>%s", addr, w.out); w.told()[0].Command != want {
			t.Errorf("the command is told as %q, want %q", w.told()[0].Command, want)
		}
		eventually(t, "the journal forgets", func() bool { return len(w.journaled()) == 0 })
	})
}

// journaled is what the journal on disk has.
func (w *world) journaled() []record {
	text, err := os.ReadFile(filepath.Join(w.dir, journalName))
	if err != nil {
		w.t.Fatal(err)
	}
	old := read(bytes.NewReader(text))
	if old.damage != nil {
		w.t.Fatal(old.damage)
	}
	return old.records
}

// Each family has commands of its own.
func TestFamilies(t *testing.T) {
	w := newWorld(t)
	a := w.logs("a", 0)
	a.RunIPv6, a.UndoIPv6 = nil, nil
	w.run(a, v6)
	w.run(a, netip.MustParseAddr("::ffff:192.0.2.7"))
	w.until("start 192.0.2.7\n")
	if !w.Undo(a, v4, everybody, time.Now()) || w.Undo(a, v6, everybody, time.Now()) {
		t.Error("an undo without a start, or a start without an undo")
	}
	w.until("start 192.0.2.7\nundo 192.0.2.7\n")
}

// A knock while the undo is still to come starts nothing and moves the undo.
func TestPutOff(t *testing.T) {
	for _, how := range []string{"Run", "Extend"} {
		families(t, func(t *testing.T, addr netip.Addr) {
			w := newWorld(t)
			a := w.logs("a", 400*time.Millisecond)
			began := time.Now()
			w.run(a, addr)
			time.Sleep(300 * time.Millisecond)
			if how == "Run" {
				w.run(a, addr)
			} else if !w.Extend(a, addr, "", time.Now()) || w.Extend(a, netip.MustParseAddr("192.0.2.8"), "", time.Now()) {
				t.Error("Extend is wrong about what is still to come")
			}
			short := *a
			short.UndoAfter = time.Millisecond
			w.run(&short, addr) // never shortens
			w.until(fmt.Sprintf("start %s\nundo %[1]s\n", addr))
			if took := time.Since(began); took < 690*time.Millisecond {
				t.Errorf("the undo ran after %v", took)
			}
			if w.Extend(a, addr, "", time.Now()) || w.Undo(a, addr, everybody, time.Now()) {
				t.Error("an undo that has run is still to come")
			}
		})
	}
}

func TestAgain(t *testing.T) {
	w := newWorld(t)
	a := w.shell("a", "echo start $SALLYPORT_GRANT >>OUT", "echo undo $SALLYPORT_GRANT >>OUT", 100*time.Millisecond)
	a.Again = true
	w.run(a, v4)
	w.run(a, v4)
	eventually(t, "two starts and two undos", func() bool { return len(w.lines()) == 4 })
	seen := map[string]int{}
	for _, l := range w.lines() {
		_, grant, _ := strings.Cut(l, " ")
		seen[grant]++
	}
	if len(seen) != 2 {
		t.Errorf("a run and its undo share a number that another run has not: %q", w.lines())
	}
}

// Asked for, it runs now; and commands for one address and action keep their order.
func TestOrder(t *testing.T) {
	w := newWorld(t)
	a := w.shell("a", "sleep .1; echo start >>OUT", "sleep .1; echo undo >>OUT", time.Hour)
	want := ""
	for range 3 {
		w.run(a, v6)
		if !w.Undo(a, v6, everybody, time.Now()) {
			t.Fatal("nothing to undo")
		}
		want += "start\nundo\n"
	}
	w.until(want)
}

// Like knockd's, the time counts from the end of the start command (measured).
func TestUndoCountsFromTheEndOfTheStart(t *testing.T) {
	w := newWorld(t)
	a := w.shell("a", "sleep .4; date +%s%N >>OUT", "date +%s%N >>OUT", 300*time.Millisecond)
	w.run(a, v4)
	eventually(t, "both", func() bool { return len(w.lines()) == 2 })
	first, _ := strconv.ParseInt(strings.TrimSpace(w.lines()[0]), 10, 64)
	second, _ := strconv.ParseInt(strings.TrimSpace(w.lines()[1]), 10, 64)
	if between := time.Duration(second - first); between < 290*time.Millisecond {
		t.Errorf("the undo ran %v after the end of the start", between)
	}
}

// A start that hangs doesn't keep its undo away for ever.
func TestPatience(t *testing.T) {
	now := time.Now()
	c := &command{launched: now}
	u := &undo{due: now.Add(10 * time.Second), after: 10 * time.Second, start: c}
	if got := u.comes().Sub(now); got != 70*time.Second {
		t.Errorf("the undo of a start that hangs comes after %v", got)
	}
	r := &Runner{lines: map[line][]*command{}, wake: make(chan struct{}, 1)}
	r.lines[line{}] = []*command{c, {patient: now.Add(time.Second)}}
	second := r.lines[line{}][1]
	for after, want := range map[time.Duration]bool{0: true, time.Second: false} {
		if got := r.waits(second, now.Add(after)); got != want {
			t.Errorf("after %v it waits: %v", after, got)
		}
	}
	if c.launched = (time.Time{}); !r.waits(second, now.Add(time.Hour)) {
		t.Error("an undo overtook a start that had not begun")
	}
}

func TestStatus(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, test := range []struct {
		name  string
		words config.Command
		want  int
	}{
		{"success", config.Command{"/bin/true"}, 0},
		{"failure", config.Command{"/bin/sh", "-c", "exit 7"}, 7},
		{"signal", config.Command{"/bin/sh", "-c", "kill -9 $$"}, 137},
		{"own SIGTERM", config.Command{"/bin/sh", "-c", "kill $$; exit 3"}, 143},
		{"own SIGPIPE", config.Command{"/bin/sh", "-c", "kill -PIPE $$; exit 3"}, 141},
		{"own SIGHUP", config.Command{"/bin/sh", "-c", "kill -HUP $$; exit 3"}, 129},
		{"none", config.Command{"/nonexistent/program"}, 127},
		{"none in PATH", config.Command{"no-such-program-anywhere"}, 127},
		{"in PATH", config.Command{"false"}, 1},
		{"no mode", config.Command{file("mode", "#!/bin/sh\n", 0o644)}, 126},
		{"a directory", config.Command{"/etc"}, 126},
		{"no interpreter", config.Command{file("interp", "#!/nonexistent/sh\n", 0o755)}, 127},
		{"no interpreter line", config.Command{file("bare", "exit $1\n", 0o755), "5"}, 5},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			w.run(&config.Action{Name: "a", Run: test.words}, v4)
			w.run(w.shell("last", "sleep .1; echo done >>OUT", "", 0), v4)
			w.until("done\n")
			got := 0
			for _, e := range w.told() {
				if e.What == Failed && e.Action == "a" {
					got = e.Status
				}
			}
			if got != test.want {
				t.Errorf("status %d, want %d\n%s", got, test.want, w.log)
			}
		})
	}
}

// A command has three descriptors, a session of its own, no signal ignored, and of
// the environment what is for it.
func TestWhatACommandInherits(t *testing.T) {
	leaked, err := unix.Open("/dev/null", unix.O_RDONLY, 0) // not close-on-exec
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(leaked)
	for _, v := range []string{"NOTIFY_SOCKET=/x", "LISTEN_FDS=1", "WATCHDOG_USEC=1", "INVOCATION_ID=1", "JOURNAL_STREAM=1:2", "SALLYPORT_SECRET=1", "KEPT=yes"} {
		name, value, _ := strings.Cut(v, "=")
		t.Setenv(name, value)
	}
	w := newWorld(t)
	script := `{ pwd; readlink /proc/$$/fd/0
test "$(cut -d' ' -f6 /proc/$$/stat)" = $$ && echo session
env | grep -E '^(NOTIFY|LISTEN|WATCHDOG|INVOC|JOURNAL|SALLYPORT|KEPT)' | sort; } >OUT.tmp; mv OUT.tmp OUT`
	a := w.shell("a", script, "", 0)
	job := Job{Action: a, Addr: v6, Services: []string{"ssh", "web"}, Ports: []config.PortRange{
		{Proto: sequence.TCP, Low: 22, High: 22}, {Proto: sequence.UDP, Low: 8000, High: 8080},
	}}
	if err := w.Run(job, time.Now()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it writes", func() bool { return w.text() != "" })
	got := w.text()
	_, grant, _ := strings.Cut(got, "SALLYPORT_GRANT=")
	grant, _, _ = strings.Cut(grant, "\n")
	if n, err := strconv.ParseUint(grant, 10, 64); err != nil || n == 0 {
		t.Errorf("SALLYPORT_GRANT=%s", grant)
	}
	want := fmt.Sprintf(`/
/dev/null
session
KEPT=yes
SALLYPORT_ADDR=2001:db8::7
SALLYPORT_GRANT=%s
SALLYPORT_PORT=22/tcp 8000-8080/udp
SALLYPORT_SERVICE=ssh web
`, grant)
	if got != want {
		t.Errorf("a command has\n%swant\n%s", got, want)
	}
	// Its own status: a shell blocks signals for a moment when it waits.
	w.run(&config.Action{Name: "sig", Run: config.Command{"/bin/grep", "-E", "SigIgn|SigBlk", "/proc/self/status"}}, v4)
	// make leaves the C library's own signals, 32 and 33, ignored.
	for _, want := range []string{`line=SigBlk:\\t0{8}[0-9a-f]0{7}`, `line=SigIgn:\\t0{7}[01][08]0{7}`} {
		eventually(t, want, func() bool { return regexp.MustCompile(want).MatchString(w.log.String()) })
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	fds := w.out + ".fds"
	// Without the setting Go itself has a cgroup's file open.
	w.run(&config.Action{Name: "fds", Run: config.Command{"/usr/bin/env", "GODEBUG=containermaxprocs=0", self, "descriptors", fds}}, v4)
	var open []byte
	eventually(t, "its descriptors", func() bool {
		open, _ = os.ReadFile(fds)
		return len(open) > 0
	})
	if string(open) != "[0 1 2]\n" {
		t.Errorf("a command has the descriptors %s", open)
	}
}

// The pipe is an ordinary one: a program meets no EAGAIN.
func TestOutputBlocks(t *testing.T) {
	w := newWorld(t)
	w.run(w.shell("a", "grep flags /proc/self/fdinfo/2 >OUT", "", 0), v4)
	eventually(t, "it writes", func() bool { return w.text() != "" })
	flags, _ := strconv.ParseUint(strings.TrimSpace(strings.TrimPrefix(w.text(), "flags:")), 8, 64)
	if flags&unix.O_NONBLOCK != 0 {
		t.Errorf("the output is non-blocking: %o", flags)
	}
}

// Words reach a program as they are: no shell, no second reading.
func TestHostileWords(t *testing.T) {
	w := newWorld(t)
	words := []string{"$(touch /nonexistent/x)", "`id`", "a\nb", `"'\`, "%s%n", "\xff\xfe", "", " ", "-n", "{addr}", "\u202e", "; reboot"}
	a := &config.Action{Name: "a", Address: "{addr}", Run: append(config.Command{"/bin/sh", "-c", `printf '%s\0' "$@" >` + w.out, "sh"}, words...)}
	w.run(a, v4)
	words[9] = v4.String()
	w.until(strings.Join(words, "\x00") + "\x00")
	if strings.Count(w.log.String(), "\n") > 0 && strings.Contains(w.log.String(), "\u202e") {
		t.Error("a word was logged as it is")
	}
}

// The shell that only executes a program changes no word, nor takes one for itself.
func TestWordsPassTheShell(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	families(t, func(t *testing.T, addr netip.Addr) {
		w := newWorld(t)
		words := config.Command{self, "words", w.out, "-c", "--", "echo", "exec", "%s%n", "a\nb\n", "", " ", "$1", "`id`", "*", "\\", "'", `"`, "\xff", "A=1", ">x"}
		w.run(&config.Action{Name: "a", Run: words, RunIPv6: words}, addr)
		w.until(strings.Join(words, "\x00"))
		eventually(t, "the status", func() bool {
			told := w.told()
			return len(told) == 2 && told[1].What == Failed && told[1].Status == 42
		})
	})
}

func TestOutputLines(t *testing.T) {
	w := newWorld(t)
	w.run(w.shell("a", `printf 'plain\n\033[2J\nlevel=ERROR\r\nno end'; echo err >&2; echo x >>OUT`, "", 0), v4)
	w.until("x\n")
	for _, want := range []string{`line=plain`, `line=\x1b[2J`, `line="level=ERROR"`, `no enderr`, "address=192.0.2.7", "action=a"} {
		eventually(t, want, func() bool { return strings.Contains(w.log.String(), want) })
	}
}

// Much output neither blocks a command nor floods the log.
func TestMuchOutput(t *testing.T) {
	for name, script := range map[string]string{
		"1 MB without an end": "head -c 1000000 /dev/zero | tr '\\0' x; echo done >>OUT",
		"100,000 lines":       "seq 100000; echo done >>OUT",
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.run(w.shell("a", script, "", 0), v4)
			w.until("done\n")
			w.Close()
			log := w.log.String()
			if n := strings.Count(log, "\n"); n == 0 || n > 2*maxSecond+2 || len(log) > 100*maxLine {
				t.Errorf("%d lines, %d bytes of log", n, len(log))
			}
		})
	}
	l := &lines{out: make(chan report, 1000)}
	now := time.Now()
	for range 10 {
		for range 100 {
			l.line([]byte("x\n"), false, now)
		}
		now = now.Add(time.Second)
	}
	if l.passed != maxLines || l.lost != 900 {
		t.Errorf("%d lines passed and %d lost", l.passed, l.lost)
	}
}

// At most 48 starts run at once; an undo doesn't wait for starts.
func TestBounds(t *testing.T) {
	w := newWorld(t)
	slow := func(i int) *config.Action {
		return w.shell("a"+strconv.Itoa(i), "echo + >>OUT; sleep .1; echo - >>OUT", "", 0)
	}
	undone := w.shell("u", "true", "echo undo >>OUT.undo", time.Hour)
	w.run(undone, v4)
	eventually(t, "the start of the undo", func() bool { return len(w.told()) == 1 })
	for i := range 200 {
		w.run(slow(i), v6)
	}
	if !w.Undo(undone, v4, everybody, time.Now()) {
		t.Error("nothing to undo")
	}
	eventually(t, "the undo", func() bool { _, err := os.Stat(w.out + ".undo"); return err == nil })
	if n := strings.Count(w.text(), "-\n"); n > 100 {
		t.Errorf("the undo waited for %d starts", n)
	}
	eventually(t, "200 commands", func() bool { return strings.Count(w.text(), "-\n") == 200 })
	most, now := 0, 0
	for _, l := range w.lines() {
		if now--; l == "+\n" {
			now += 2
		}
		most = max(most, now)
	}
	if most > maxRunning || most < maxRunning/2 {
		t.Errorf("%d ran at once", most)
	}
}

// Undos have room where starts never end.
func TestStartsThatNeverEnd(t *testing.T) {
	w := newWorld(t)
	a := w.shell("u", "true", "echo undo >>OUT", time.Hour)
	w.run(a, v6)
	for i := range 2 * maxRunning {
		w.run(w.shell("a"+strconv.Itoa(i), "sleep 3", "", 0), v6)
	}
	eventually(t, "starts run", func() bool { return len(w.told()) > maxRunning })
	time.Sleep(200 * time.Millisecond) // as many as may
	w.Undo(a, v6, everybody, time.Now())
	began := time.Now()
	w.until("undo\n")
	if took := time.Since(began); took > time.Second {
		t.Errorf("the undo waited %v", took)
	}
}

// A service that a knock started goes on when the daemon has gone, and may write.
func TestServiceOutlivesTheDaemon(t *testing.T) {
	w := newWorld(t)
	w.run(w.shell("a", "(sleep .6; echo text; echo text >&2; echo alive >>OUT) & echo started >>OUT", "", 0), v4)
	w.until("started\n")
	pid := spawnerOf(t, os.Getpid())
	w.Close()
	for _, s := range []unix.Signal{unix.SIGHUP, unix.SIGINT, unix.SIGTERM, unix.SIGPIPE} {
		unix.Kill(pid, s)
	}
	w.until("started\nalive\n")
	eventually(t, "the spawner ends", func() bool { _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); return err != nil })
}

// spawnerOf finds the one spawner of a process.
func spawnerOf(t *testing.T, parent int) int {
	t.Helper()
	files, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, f := range files {
		text, _ := os.ReadFile(f)
		_, rest, _ := strings.Cut(string(text), ") ")
		fields := strings.Fields(rest)
		line, _ := os.ReadFile(filepath.Join(filepath.Dir(f), "cmdline"))
		if len(fields) > 1 && fields[1] == strconv.Itoa(parent) && fields[0] != "Z" && bytes.HasPrefix(line, []byte("sallyport: spawner\x00")) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(f)))
			return pid
		}
	}
	t.Fatal("there is no spawner")
	return 0
}

// A spawner that somebody killed is replaced, and no undo is lost.
func TestSpawnerKilled(t *testing.T) {
	w := newWorld(t)
	a := w.logs("a", time.Hour)
	w.run(a, v4)
	w.until("start 192.0.2.7\n")
	unix.Kill(spawnerOf(t, os.Getpid()), unix.SIGKILL)
	w.Undo(a, v4, everybody, time.Now())
	w.until("start 192.0.2.7\nundo 192.0.2.7\n")
}

// Actions of the daemon's start are undone at its end, or at the next start.
func TestAtStart(t *testing.T) {
	for _, clean := range []bool{true, false} {
		t.Run(fmt.Sprint(clean), func(t *testing.T) {
			w := newWorld(t)
			a := w.shell("a", "echo start [$SALLYPORT_ADDR] >>OUT", "echo undo >>OUT", 0)
			a.AtStart = true
			w.run(a, netip.Addr{})
			w.until("start []\n")
			if clean {
				w.Finish()
				if w.text() != "start []\nundo\n" {
					t.Errorf("Finish did not wait: %q", w.text())
				}
			}
			w.restart()
			w.run(a, netip.Addr{})
			w.until("start []\nundo\nstart []\n")
		})
	}
}

// What was not begun in time is said, and not lost.
func TestFinishSaysWhatIsLeft(t *testing.T) {
	families(t, func(t *testing.T, addr netip.Addr) {
		w := newWorld(t)
		a := w.shell("a", "true", "sleep 1", time.Hour)
		const n = actionRunning + 3
		for i := range n {
			w.run(a, nth(addr, i))
		}
		eventually(t, "all starts", func() bool { return len(w.told()) == n })
		w.finish(func(*undo) bool { return true }, time.After(300*time.Millisecond))
		if !strings.Contains(w.log.String(), fmt.Sprintf("level=ERROR msg=\"undos of the daemon's end take long: those that run go on by themselves, and those that wait come after its next start, at their time\" running=%d waiting=3", actionRunning)) {
			t.Errorf("it says %s", w.log)
		}
		w.Close()
		if got := len(w.journaled()); got != 3 {
			t.Errorf("%d undos are in the journal, want 3", got)
		}
	})
}

func TestSystemd(t *testing.T) {
	all := facts{booted: true, root: true, systemdRun: "/usr/bin/systemd-run", pid: 7}
	want := []string{
		"/usr/bin/systemd-run", "--scope", "--quiet", "--collect", "--no-ask-password",
		"--description=Commands that knocks run", "--", "/proc/7/exe", "spawner",
	}
	if path, args := all.command(false); path != want[0] || !slices.Equal(args, want) {
		t.Errorf("%s %q", path, args)
	}
	for name, f := range map[string]facts{
		"not booted": {root: true, systemdRun: "/x"}, "not root": {booted: true, systemdRun: "/x"}, "not there": {booted: true, root: true},
	} {
		if path, _ := f.command(false); path != "/proc/self/exe" {
			t.Errorf("%s: %s", name, path)
		}
	}
	if path, _ := all.command(true); path != "/proc/self/exe" {
		t.Error("systemd-run is tried again")
	}
	if _, err := start("/bin/false", []string{"false", "--scope"}); err == nil {
		t.Error("a systemd-run that fails is not noticed")
	}
	// The binary by the path that systemd-run gets.
	exe := fmt.Sprintf("/proc/%d/exe", os.Getpid())
	s, err := start("/usr/bin/env", []string{"env", exe, "spawner"})
	if err != nil {
		t.Fatal(err)
	}
	s.conn.Close()
}

func TestEnvironment(t *testing.T) {
	got := environment([]string{"A=1", "LISTEN_PID=3", "LISTENER=1", "SALLYPORT_X=1"})
	if want := []string{"A=1", "LISTENER=1", "PATH=" + defaultPath}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if got := environment([]string{"PATH=/x"}); !slices.Equal(got, []string{"PATH=/x"}) {
		t.Errorf("%q", got)
	}
}

func TestEscape(t *testing.T) {
	for in, want := range map[string]string{
		"a\r\n": "a", "\x1b[1m": `\x1b[1m`, "\xff": `\xff`, "é\u202e": `é\u202e`, "a\x00b\tc": `a\x00b\tc`, "\ufffd": "\ufffd",
	} {
		if got := escape([]byte(in)); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

// everybody is content with an undo.
func everybody(string) bool { return true }

// What one asked for, another can't take back: a forged closing sequence must not end
// what a key has begun, nor one key what another has.
func TestUndoIsForWhoAsked(t *testing.T) {
	for _, addr := range []netip.Addr{v4, v6} {
		w := newWorld(t)
		a := w.logs("shared", time.Hour)
		is := func(name string) func(string) bool { return func(by string) bool { return by == name } }
		for _, by := range []string{"a", "b"} {
			if err := w.Run(Job{Action: a, Addr: addr, By: by}, time.Now()); err != nil {
				t.Fatal(err)
			}
		}
		if w.Undo(a, addr, is("c"), time.Now()) || w.Undo(a, addr, is("a"), time.Now()) {
			t.Error("it was undone while b wants it")
		}
		if w.Extend(a, addr, "a", time.Now()) || !w.Extend(a, addr, "b", time.Now()) {
			t.Error("an extension is not for who asked")
		}
		w.restart()
		if w.Undo(a, addr, is("a"), time.Now()) || !w.Undo(a, addr, is("b"), time.Now()) {
			t.Error("the journal does not know who asked")
		}
	}
}

// Where nothing can be started for a while, an undo is not given up: the port that it
// closes would stay open.
func TestAnUndoIsTriedAgain(t *testing.T) {
	families(t, func(t *testing.T, addr netip.Addr) {
		w := newWorld(t)
		w.run(w.logs("a", 200*time.Millisecond), addr)
		w.until("start " + addr.String() + "\n")
		limit := func(n uint64) {
			for _, pid := range spawners(t) {
				var old unix.Rlimit
				if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &old); err != nil {
					t.Fatal(err)
				}
				if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: n, Max: old.Max}, nil); err != nil {
					t.Fatal(err)
				}
			}
		}
		limit(4)
		eventually(t, "a failure", func() bool { return strings.Contains(w.log.String(), "is tried again") })
		limit(1000)
		w.Runner.mu.Lock()
		for _, s := range w.undos.turns {
			for _, c := range s.waiting {
				c.again = time.Now() // the test need not wait for that
			}
		}
		w.Runner.mu.Unlock()
		w.wakeUp()
		w.until("start " + addr.String() + "\nundo " + addr.String() + "\n")
		eventually(t, "it is struck off", func() bool { return len(w.journaled()) == 0 })
	})
}

// spawners gives the processes that start commands for this one.
func spawners(t *testing.T) (pids []int) {
	t.Helper()
	tasks, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		list, _ := os.ReadFile(task)
		for child := range strings.FieldsSeq(string(list)) {
			args, _ := os.ReadFile("/proc/" + child + "/cmdline")
			if pid, err := strconv.Atoi(child); err == nil && strings.Contains(string(args), "spawner") {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}
