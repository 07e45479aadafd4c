//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/knockd"
	"github.com/sallyport/sallyport/internal/testnet"
	"github.com/sallyport/sallyport/internal/warden"
)

// promptly fails if f waits for somebody.
func promptly(t *testing.T, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { f(); close(done) }()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Fatalf("%s waits for ever", what)
	}
}

// What is no ordinary file in the place of the pid file holds nothing up, and stays
// as it is.
func TestPidFileThatIsNone(t *testing.T) {
	dir := t.TempDir()
	pipe, held, full := filepath.Join(dir, "pipe"), filepath.Join(dir, "held"), filepath.Join(dir, "full")
	for _, path := range []string{pipe, held} {
		if err := unix.Mkfifo(path, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// Whoever made this one has both of its ends, so that it opens, and says nothing.
	ends, err := unix.Open(held, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(ends)
	for _, path := range []string{pipe, held, "/dev/null", dir} {
		promptly(t, "writing "+path, func() {
			if writePid(path) == nil {
				t.Errorf("%s was written to", path)
			}
		})
		promptly(t, "removing "+path, func() { removePid(path) })
		if !exists(path) {
			t.Errorf("%s is gone", path)
		}
	}
	if n, err := unix.Read(ends, make([]byte, 99)); err != unix.EAGAIN {
		t.Errorf("the pipe had %d bytes: %v", n, err)
	}
	// An ordinary one has nothing left of what it held.
	os.WriteFile(full, []byte(strings.Repeat("9", 100)), 0o644)
	if err := writePid(full); err != nil {
		t.Fatal(err)
	}
	if text, _ := os.ReadFile(full); string(text) != fmt.Sprintf("%d\n", os.Getpid()) {
		t.Errorf("the file holds %q", text)
	}
}

// A link of root's leads to the log, as administrators make them; one of somebody
// else's, also behind root's, would choose a file for root to write to.
func TestLogFileBehindLinks(t *testing.T) {
	testnet.RequireRoot(t)
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	link := func(target, name string, owner int) {
		t.Helper()
		if err := errors.Join(os.Symlink(target, at(name)), os.Lchown(at(name), owner, owner)); err != nil {
			t.Fatal(err)
		}
	}
	os.MkdirAll(at("sub"), 0o755)
	link("log", "roots", 0)
	link("sub/../new", "relative", 0)
	link(at("relative"), "absolute", 0)
	link("victim", "strangers", nobody)
	link("strangers", "behind", 0)
	link("circle", "circle", 0)
	link("sub", "directory", 0)
	for _, test := range []struct {
		path, file string
		good       bool
	}{
		{"plain", "plain", true}, {"roots", "log", true}, {"absolute", "new", true}, {"directory/in", "sub/in", true},
		{"strangers", "victim", false}, {"behind", "victim", false}, {"circle", "circle", false},
	} {
		q, err := openLogFile(at(test.path))
		if (err == nil) != test.good {
			t.Errorf("%s: %v", test.path, err)
		}
		if err == nil {
			io.WriteString(q, "words")
			q.flush()
			q.to.(*logFile).Close()
		}
		text, _ := os.ReadFile(at(test.file))
		if got := strings.Contains(string(text), "words"); got != test.good {
			t.Errorf("%s: %s was written to: %v", test.path, test.file, got)
		}
	}
	if exists(at("victim")) {
		t.Error("a stranger's link made a file")
	}
	if _, err := openLogFile(at("strangers")); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("user %d made", nobody)) {
		t.Errorf("it says %v", err)
	}
}

// Containers log to /dev/stdout, which is a link to one of the kernel's own.
func TestLogFileThatIsAStandardStream(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	link := filepath.Join(t.TempDir(), "stdout")
	if err := os.Symlink(fmt.Sprintf("/proc/self/fd/%d", w.Fd()), link); err != nil {
		t.Fatal(err)
	}
	q, err := openLogFile(link)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(q, "words")
	q.flush()
	q.to.(*logFile).Close()
	w.Close()
	if text, _ := io.ReadAll(r); !strings.HasSuffix(string(text), "] words\n") {
		t.Errorf("the pipe had %q", text)
	}
}

// One form for what can't be printed; other text is what programs look for.
func TestOneLine(t *testing.T) {
	for message, want := range map[string]string{
		"":                            "",
		"\n":                          "\n",
		"192.0.2.7: Tür 1: Stage 1":   "192.0.2.7: Tür 1: Stage 1",
		"2001:db8::7: 門\t\\n%: due\n": "2001:db8::7: 門\t\\n%: due\n",
		"a\rb\x1b[2J\x00":             `a\rb\x1b[2J\x00`,
		"a\n[2026-11-22 09:30] 192.0.2.7: door: OPEN SESAME\n": `a\n[2026-11-22 09:30] 192.0.2.7: door: OPEN SESAME` + "\n",
		"a\u202eb\u2028c\u009b\u00a0":                          `a\u202eb\u2028c\u009b\u00a0`,
		"T\xfcr '\x7f'\n":                                      `T\xfcr '\x7f'` + "\n",
	} {
		if got := oneLine(message); got != want {
			t.Errorf("%q became %q, want %q", message, got, want)
		}
	}
}

const hostileName = "a\x1b[2J\rb\u202e"

// A door's name and its commands reach each of the four places as one printable line.
func TestDoorsInTheLogs(t *testing.T) {
	dir := t.TempDir()
	lines, _ := datagrams(t, filepath.Join(dir, "devlog"))
	var out, bad testnet.Output
	l := newKnockdLog(&ui{out: &out, err: &bad})
	l.loud = true
	if err := l.open(filepath.Join(dir, "log"), false); err != nil {
		t.Fatal(err)
	}
	l.syslog = &logQueue{to: &syslogger{path: filepath.Join(dir, "devlog")}}
	f, err := knockd.Parse("f", []byte("["+hostileName+"]\nsequence = 7000\ncommand = echo \x1b[2J\rx\n"))
	if err != nil {
		t.Fatal(err)
	}
	k := &knockdDoors{options: &knockdOptions{debug: true}, log: l}
	k.use(reading{file: f, cfg: f.Config(knockd.Settings{})})
	k.debug(f)
	r := k.current()
	for what := range warden.Due + 1 {
		for _, addr := range []string{"192.0.2.7", "2001:db8::7"} {
			k.Tell(warden.Entry{What: what, Door: r.cfg.Knocks[0].Name, Addr: netip.MustParseAddr(addr), Command: "echo \x1b[2J\rx"})
		}
	}
	l.system("re-opening log file: " + hostileName + "\n")
	l.flush()
	file, _ := os.ReadFile(filepath.Join(dir, "log"))
	logged := string(file) + out.String() + bad.String()
	for range 2*(int(warden.Due)+1) + 1 {
		logged += next(t, lines)
	}
	if i := strings.IndexFunc(logged, func(r rune) bool { return r < ' ' && r != '\n' || r == 0x202e }); i >= 0 {
		t.Errorf("raw: %q", logged[max(0, i-60):min(len(logged), i+20)])
	}
	if n := strings.Count(logged, `a\x1b[2J\rb\u202e: Stage 0`); n != 6 {
		t.Errorf("%d lines of 6 name the door:\n%s", n, logged)
	}
}

// warned gives what open says for a file and a command line.
func warned(t *testing.T, o *knockdOptions) (stderr, logFile string, err error) {
	t.Helper()
	var bad testnet.Output
	u := &ui{out: io.Discard, err: &bad}
	log := u.detach(false)
	o.logFile = filepath.Join(t.TempDir(), "log")
	k := &knockdDoors{options: o, log: newKnockdLog(u)}
	k.slog = slog.New(slog.NewMultiHandler(log.Handler(), k.log.handler()))
	err = k.open()
	k.log.flush()
	u.flush()
	text, _ := os.ReadFile(o.logFile)
	return bad.String(), string(text), err
}

// A page's quotes around options make operands of them, which nobody reads.
func TestTypographicArguments(t *testing.T) {
	conf := filepath.Join(t.TempDir(), "knockd.conf")
	if err := os.WriteFile(conf, []byte("[a]\nsequence = 7000,3000,55000\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for args, want := range map[string][]string{
		"-c CONF -v":                nil,
		"-c CONF »-i eth0″":         {`'»' (U+00BB) in the argument "»-i"`, `'″' (U+2033) in the argument "eth0″"`, `write " instead`},
		"-c CONF –v ‐v":             {`'–' (U+2013)`, `'‐' (U+2010)`, `write - instead`},
		"-c CONF ‑v −v x\u202fy":    {`'‑' (U+2011)`, `'−' (U+2212)`, `'\u202f' (U+202F)`, `write a space instead`},
		"–c /nowhere/odd -c CONF.x": {`'–' (U+2013)`},
	} {
		words := strings.Split(strings.ReplaceAll(args, "CONF", conf), " ")
		o, err := parseKnockd(words)
		if err != nil {
			t.Fatal(err)
		}
		o.args = words
		stderr, logged, err := warned(t, &o)
		if (err != nil) != strings.Contains(args, "CONF.x") {
			t.Errorf("%q: %v", args, err)
		}
		n := strings.Count(stderr, "is a typographic character")
		if (n > 0) != (want != nil) || err == nil && strings.Count(logged, "is a typographic character") != n {
			t.Errorf("%q: it said\n%s\nand logged\n%s", args, stderr, logged)
		}
		for _, text := range want {
			if !strings.Contains(stderr, text) || err == nil && !strings.Contains(logged, text) {
				t.Errorf("%q: %q is not in\n%s\nor not in\n%s", args, text, stderr, logged)
			}
		}
	}
}

// Who can write to the file is told of at the start, and once.
func TestConfigThatOthersWrite(t *testing.T) {
	conf := filepath.Join(t.TempDir(), "knockd.conf")
	if err := os.WriteFile(conf, []byte("[a]\nsequence = 7000,3000,55000\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for mode, want := range map[os.FileMode]int{0o644: 0, 0o664: 1, 0o646: 1} {
		if err := os.Chmod(conf, mode); err != nil {
			t.Fatal(err)
		}
		stderr, logged, err := warned(t, &knockdOptions{config: conf})
		const line = "who can do that runs commands as root"
		if err != nil || strings.Count(stderr, line) != want || strings.Count(logged, line) != want {
			t.Errorf("%04o: %v\n%s\n%s", mode, err, stderr, logged)
		}
	}
}

// onceOnly is a door with a file of one-time sequences, as it was read.
func onceOnly(t *testing.T, path, list string) (*knockdDoors, *config.Config, *testnet.Output) {
	t.Helper()
	if err := os.WriteFile(path, []byte(list), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := knockd.Parse("f", []byte("[once]\none_time_sequences = "+path+"\n[other]\nsequence = 9000\n"))
	if err != nil {
		t.Fatal(err)
	}
	bad := new(testnet.Output)
	k := &knockdDoors{options: &knockdOptions{}, log: newKnockdLog(&ui{out: io.Discard, err: bad})}
	k.use(reading{file: f, cfg: f.Config(knockd.Settings{})})
	return k, k.current().cfg, bad
}

// Whatever becomes of the mark, there is a next config: with the next sequence, or
// with that door shut. An error keeps the knock from counting.
func TestSpendGivesTheNextConfig(t *testing.T) {
	const failed, empty = "error while disabling used one time sequence for door once", "no more sequences left in the one time sequences file for door once"
	for _, test := range []struct {
		name, list string
		meanwhile  func(path string)
		next       []uint16 // the ports of the next sequence; nil: shut
		elsewhere  bool
		bad        bool
		said       string
	}{
		{name: "marked", list: " 1,2\n 3,4\n", next: []uint16{3, 4}},
		{name: "the last one", list: " 1,2\n", said: empty},
		{name: "gone", list: " 1,2\n 3,4\n", meanwhile: func(path string) { os.Remove(path) }, bad: true, said: failed},
		{name: "no file", list: " 1,2\n 3,4\n", meanwhile: func(path string) { os.Remove(path); unix.Mkfifo(path, 0o600) }, bad: true, said: failed},
		{name: "spent elsewhere", list: " 1,2\n 3,4\n", meanwhile: func(path string) { os.WriteFile(path, []byte("#1,2\n 3,4\n"), 0o600) }, next: []uint16{3, 4}, elsewhere: true, bad: true},
		{name: "the last one spent elsewhere", list: " 1,2\n", meanwhile: func(path string) { os.WriteFile(path, []byte("#1,2\n"), 0o600) }, elsewhere: true, bad: true, said: empty},
	} {
		path := filepath.Join(t.TempDir(), "once")
		k, cfg, said := onceOnly(t, path, test.list)
		if test.meanwhile != nil {
			test.meanwhile(path)
		}
		next, err := k.Spend(cfg, 0)
		if (err != nil) != test.bad || errors.Is(err, knockd.ErrSpentElsewhere) != test.elsewhere || next == nil || next == cfg {
			t.Fatalf("%s: %v, %v", test.name, next, err)
		}
		var ports []uint16
		for _, s := range next.Knocks[0].Sequence {
			ports = append(ports, s.Port)
		}
		if !slices.Equal(ports, test.next) || len(next.Knocks[1].Sequence) != 1 || len(cfg.Knocks[0].Sequence) != 2 {
			t.Errorf("%s: the next sequence is %v, want %v", test.name, ports, test.next)
		}
		if got := said.String(); strings.Contains(got, failed) != (test.said == failed) || strings.Contains(got, empty) != (test.said == empty) {
			t.Errorf("%s: it said %q", test.name, got)
		}
		// The one after it is known, too, so that another door's can be spent.
		if _, err := k.Spend(next, 1); err != nil && strings.Contains(err.Error(), "read again") {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}

// The daemon itself, in the background, with a pipe for its pid file, as whoever may
// write to its directory can make one.
func TestKnockdWithAPipeForItsPid(t *testing.T) {
	g := newGround(t)
	g.write("knockd.conf", allMoments)
	pipe := filepath.Join(g.dir, "pid")
	if err := unix.Mkfifo(pipe, 0o666); err != nil {
		t.Fatal(err)
	}
	g.start("", "-d", "-i", g.serverWire, "-c", "knockd.conf", "-p", pipe)
	t.Cleanup(g.killBackground)
	if status := g.status(); status != 0 || !strings.Contains(g.err.String(), "could not create pid file "+pipe) {
		t.Fatalf("status %d: %s", status, g.err.String())
	}
	for n, f := range families {
		g.hit(f.server, "7000")
		g.await("ran", "hi", n+1)
	}
}

// serveKnockd starts sallyport serve with a knockd.conf.
func (g *ground) serveKnockd(args ...string) {
	g.t.Helper()
	g.ours = filepath.Join(g.dir, "sallyport")
	if err := os.Symlink(testnet.Binary(g.t), g.ours); err != nil {
		g.t.Fatal(err)
	}
	g.start("", append([]string{"serve", "--knockd", "knockd.conf", "-i", g.serverWire}, args...)...)
}

// says waits for words on standard error.
func (g *ground) says(words string) {
	g.t.Helper()
	eventually(g.t, words+" in\n"+g.err.String(), func() bool { return strings.Contains(g.err.String(), words) })
}

func (g *ground) hides() bool {
	out, _ := g.server.Output("nft", "list", "table", "inet", "sallyport")
	return strings.Contains(out, "tcp . 22")
}

// A first start with --native undoes itself, unless somebody confirms it.
func TestKnockdOnTrial(t *testing.T) {
	for _, confirmed := range []bool{false, true} {
		g := newGround(t)
		g.write("knockd.conf", "[options]\n logfile = DIR/log\n"+pair)
		g.serveKnockd("--native", "--undo-after", "5s")
		g.says("serving on trial: run 'sallyport confirm'")
		if !g.hides() {
			t.Fatal("it hides nothing")
		}
		for _, f := range families {
			client := map[string]string{"ipv4": "192.0.2.1", "ipv6": "2001:db8::1"}[f.name]
			g.hit(f.server, "7000", "9000", "8000")
			eventually(t, "the grant", func() bool {
				return strings.Contains(g.server.Run("nft", "list", "table", "inet", "sallyport"), client+" . tcp . 22 ")
			})
		}
		if !confirmed {
			if status := g.status(); status != exitFailed || g.hides() {
				t.Errorf("status %d, hiding %v: %s", status, g.hides(), g.err.String())
			}
			g.says("nobody confirmed in time: nothing is hidden any more")
			continue
		}
		if out := g.server.Run(g.ours, "confirm", "--control", filepath.Join(g.dir, "run", "control.sock")); !strings.Contains(out, "confirmed: the hiding stays") {
			t.Errorf("confirm says %q", out)
		}
		time.Sleep(6 * time.Second)
		if !g.hides() {
			t.Errorf("a confirmed hiding is gone: %s", g.err.String())
		}
		if status := g.ends(syscall.SIGTERM); status != exitDone || !g.hides() {
			t.Errorf("status %d, hiding %v: %s", status, g.hides(), g.err.String())
		}
	}
}

// Where no door can be the kernel's there is nothing to try.
func TestKnockdOnTrialOfNothing(t *testing.T) {
	g := newGround(t)
	g.write("knockd.conf", allMoments)
	g.serveKnockd("--native", "--undo-after", "5s")
	g.says("nothing is on trial: no door's commands can become the kernel's")
	g.says("serving")
}

// With --observe a knock is told of, and nothing runs, opens, hides or is used up.
func TestKnockdObserves(t *testing.T) {
	for _, native := range []bool{false, true} {
		g := newGround(t)
		once := g.write("once", " 7101,7102\n")
		g.write("knockd.conf", "[options]\n logfile = DIR/log\n"+pair+"[once]\n one_time_sequences = DIR/once\n command = echo once >> DIR/ran\n")
		args := []string{"--observe"}
		if native {
			args = append(args, "--native")
		}
		g.serveKnockd(args...)
		g.says("observing: nothing is hidden and nothing will be opened")
		for n, f := range families {
			g.hit(f.server, "7000", "9000", "8000")
			g.hit(f.server, "7101", "7102")
			g.await("log", "openSSH: OPEN SESAME", n+1)
		}
		opened := "would run action=openSSH"
		if native {
			opened = "would open"
		}
		for _, client := range []string{"192.0.2.1", "2001:db8::1"} {
			g.says("would run action=other address=" + client + " ")
		}
		g.says(opened)
		g.ends(syscall.SIGTERM)
		if exists(filepath.Join(g.dir, "ran")) || g.hides() || strings.Contains(g.server.Run("nft", "list", "tables"), "sallyport") {
			t.Errorf("native %v: something was done: %s", native, g.err.String())
		}
		if text, _ := os.ReadFile(once); string(text) != " 7101,7102\n" {
			t.Errorf("a sequence was used up: %q", text)
		}
		if log, _ := os.ReadFile(filepath.Join(g.dir, "log")); strings.Contains(string(log), "running command") {
			t.Errorf("it claims to run something:\n%s", log)
		}
	}
}
