//go:build linux

package warden

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/internal/testnet"
)

// The test binary plays three sides: the test, the engine, and a warden with
// less privilege than the test has, or one that is killed.
const plainWarden = "warden test: warden"

func init() {
	switch os.Args[0] {
	case engineArgs[0]:
		os.Exit(engineSide())
	case plainWarden:
		os.Exit(wardenSide())
	}
}

// view is what the engine sees before it has done anything itself.
type view struct {
	Args, Env, Root []string
	Files           map[int]string // number: kind
	Hostname        string
	Up              []string // interfaces
	NoNewPrivs      int
	OpenProc        string
}

// engineSide obeys one word from the border.
func engineSide() int {
	var b [64]byte
	for {
		n, err := unix.Read(3, b[:])
		if err != nil || n <= 0 {
			return 0
		}
		switch string(b[:n]) {
		case "look":
			text, _ := json.Marshal(look())
			unix.Write(3, text)
		case "talk":
			os.Stderr.WriteString("plain\n\x1b[31mred\x1b[0m \u202eback\xff\tend\r\n" + strings.Repeat("long", 1000) + "\nlast without newline")
			return 3
		case "chatter":
			for i := range 10 * maxBurst {
				fmt.Fprintln(os.Stderr, "line", i)
			}
			return 4
		}
	}
}

func look() view {
	v := view{Args: os.Args, Env: os.Environ(), Files: map[int]string{}}
	for fd := range 1024 {
		var s unix.Stat_t
		if unix.Fstat(fd, &s) == nil {
			v.Files[fd] = map[uint32]string{unix.S_IFCHR: "device", unix.S_IFIFO: "pipe", unix.S_IFSOCK: "socket", unix.S_IFREG: "file"}[s.Mode&unix.S_IFMT]
		}
	}
	entries, _ := os.ReadDir("/")
	for _, e := range entries {
		v.Root = append(v.Root, e.Name())
	}
	v.Hostname, _ = os.Hostname()
	links, _ := net.Interfaces()
	for _, l := range links {
		if l.Flags&net.FlagUp != 0 {
			v.Up = append(v.Up, l.Name)
		}
	}
	v.NoNewPrivs, _ = unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
	_, err := os.Open("/proc/self/status")
	v.OpenProc = fmt.Sprint(err)
	return v
}

// wardenSide starts an engine, says its number and the notes, and waits to be
// killed, or for its standard input's end. The argument "deleted" makes it
// delete its own binary first, as an upgrade does.
func wardenSide() int {
	if len(os.Args) > 1 {
		name, _ := os.Executable()
		if err := os.Remove(name); err != nil {
			panic(err)
		}
	}
	border, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		panic(err)
	}
	// The engine holds both ends, so it never sees the border close.
	c, err := start(engineFiles{border: border[1], capture: border[0], log: slog.New(slog.DiscardHandler)})
	if err != nil {
		fmt.Println("error:", err)
		return 1
	}
	fmt.Println(c.pid)
	for _, note := range c.notes {
		fmt.Println(note)
	}
	fmt.Println("end")
	io.Copy(io.Discard, os.Stdin)
	return 0
}

// startTest starts an engine here; it ends with the test. ask sends a word.
func startTest(t *testing.T) (c *child, log *testnet.Output, border int) {
	t.Helper()
	return startWith(t, nil)
}

// startWith is startTest with other files.
func startWith(t *testing.T, change func(*engineFiles)) (c *child, log *testnet.Output, border int) {
	t.Helper()
	testnet.RequireRoot(t)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[1])
	log = &testnet.Output{}
	f := engineFiles{border: pair[1], capture: pair[1]}
	if change != nil {
		change(&f)
	}
	f.log = slog.New(slog.NewTextHandler(log, nil))
	c, err = start(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.kill(); c.wait(); unix.Close(pair[0]) })
	unix.SetsockoptTimeval(pair[0], unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10})
	return c, log, pair[0]
}

func ask(t *testing.T, border int, word string) []byte {
	t.Helper()
	if _, err := unix.Write(border, []byte(word)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1<<16)
	n, err := unix.Read(border, b)
	if err != nil {
		t.Fatal(err)
	}
	return b[:n]
}

func TestTheEngineIsConfinedBeforeItsFirstInstruction(t *testing.T) {
	c, _, border := startTest(t)
	var v view
	if err := json.Unmarshal(ask(t, border, "look"), &v); err != nil {
		t.Fatal(err)
	}
	for _, f := range []struct {
		name      string
		got, want any
	}{
		{"arguments", v.Args, append(engineArgs[:2:2], "--sockets=0")},
		{"environment", v.Env, engineEnv},
		{"root", v.Root, []string{engineBinary}},
		{"host name", v.Hostname, engineHost},
		{"interfaces that are up", v.Up, []string(nil)},
		{"no_new_privs", v.NoNewPrivs, 1},
		{"/proc", v.OpenProc, "open /proc/self/status: no such file or directory"},
		{"files", fmt.Sprint(v.Files), "map[0:device 1:device 2:pipe 3:socket 4:socket]"},
	} {
		if fmt.Sprint(f.got) != fmt.Sprint(f.want) {
			t.Errorf("%s: got %q, want %q", f.name, f.got, f.want)
		}
	}
	proc := fmt.Sprintf("/proc/%d/", c.pid)
	status, err := os.ReadFile(proc + "status")
	if err != nil {
		t.Fatal(err)
	}
	ids := fmt.Sprintf("\t%[1]d\t%[1]d\t%[1]d\t%[1]d\n", c.uid)
	for _, want := range []string{"Uid:" + ids, "Gid:", "Groups:\t \n", "CapInh:\t0000000000000000\n", "CapPrm:\t0000000000000000\n",
		"CapEff:\t0000000000000000\n", "CapBnd:\t0000000000000000\n", "CapAmb:\t0000000000000000\n", "NoNewPrivs:\t1\n"} {
		if !strings.Contains(string(status), want) {
			t.Errorf("status lacks %q", want)
		}
	}
	if session, err := unix.Getsid(c.pid); err != nil || session != c.pid {
		t.Errorf("it is in session %d, %v", session, err)
	}
	for _, ns := range []string{"net", "mnt", "ipc", "uts"} {
		ours, _ := os.Readlink("/proc/self/ns/" + ns)
		if its, err := os.Readlink(proc + "ns/" + ns); err != nil || its == ours {
			t.Errorf("namespace %s: %s, ours %s, %v", ns, its, ours, err)
		}
	}
	if mounts, err := os.ReadFile(proc + "mounts"); err != nil || bytes.Count(mounts, []byte("\n")) != 2 || bytes.Contains(mounts, []byte(" rw,")) {
		t.Errorf("want two read-only mounts, got %v\n%s", err, mounts)
	}
	for _, note := range c.notes {
		if !strings.HasPrefix(note, "there is no user sallyport, so it runs as uid ") {
			t.Errorf("note: %s", note)
		}
	}
}

// The numbers of the descriptors are the engine's only way to know them.
func TestTheEngineGetsItsFilesByNumber(t *testing.T) {
	j, _, err := openJournal(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer j.release()
	udp, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(udp)
	for _, c := range []struct {
		name        string
		change      func(*engineFiles)
		args, files string
	}{
		{"a journal and a capture", func(f *engineFiles) { f.journal = j.descriptors() },
			"--journal --sockets=0", "0:device 1:device 2:pipe 3:socket 4:socket 5:file 6:file"},
		{"a journal and sockets", func(f *engineFiles) { f.capture, f.journal, f.sockets = -1, j.descriptors(), []int{udp, udp} },
			"--no-capture --journal --sockets=2", "0:device 1:device 2:pipe 3:socket 5:file 6:file 7:socket 8:socket"},
		{"sockets alone", func(f *engineFiles) { f.capture, f.sockets = -1, []int{udp} },
			"--no-capture --sockets=1", "0:device 1:device 2:pipe 3:socket 7:socket"},
	} {
		_, _, border := startWith(t, c.change)
		var v view
		if err := json.Unmarshal(ask(t, border, "look"), &v); err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(v.Args[2:], " "); got != c.args {
			t.Errorf("%s: arguments %q, want %q", c.name, got, c.args)
		}
		if got := fmt.Sprint(v.Files); got != "map["+c.files+"]" {
			t.Errorf("%s: files %s, want %s", c.name, got, c.files)
		}
	}
}

func TestStartLeavesTheWardenAsItWas(t *testing.T) {
	state := func() string {
		status, _ := os.ReadFile("/proc/self/status")
		i, j := bytes.Index(status, []byte("\nUid:")), bytes.Index(status, []byte("\nSeccomp:"))
		text := string(status[i:bytes.IndexByte(status, 'V')]) + string(status[bytes.Index(status, []byte("CapInh")):j])
		for _, ns := range []string{"net", "mnt", "ipc", "uts"} {
			link, _ := os.Readlink("/proc/self/ns/" + ns)
			text += link
		}
		name, _ := os.Hostname()
		mounts, _ := os.ReadFile("/proc/self/mounts")
		return text + name + string(mounts)
	}
	before := state()
	for range 4 {
		startTest(t)
	}
	if after := state(); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

func TestWaitSaysHowTheEngineEnded(t *testing.T) {
	c, _, border := startTest(t)
	unix.Write(border, []byte("talk"))
	if err := c.wait(); err == nil || err.Error() != "the engine ended with status 3" {
		t.Error(err)
	}
	c.kill() // after the end: nothing
	c, _, _ = startTest(t)
	c.kill()
	if err := c.wait(); err == nil || err.Error() != "the engine was ended by killed" {
		t.Error(err)
	}
}

func TestTheEngineEndsWhenTheBorderCloses(t *testing.T) {
	c, _, border := startTest(t)
	unix.Shutdown(border, unix.SHUT_RDWR)
	if err := c.wait(); err.Error() != "the engine ended with status 0" {
		t.Error(err)
	}
}

// waitFor polls until the log has the text: the pipe may be behind the death.
func waitFor(t *testing.T, log *testnet.Output, text string) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !strings.Contains(log.String(), text); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("no %q in\n%s", text, log)
		}
	}
}

func TestWhatTheEngineSaysIsSanitised(t *testing.T) {
	c, log, border := startTest(t)
	unix.Write(border, []byte("talk"))
	c.wait()
	waitFor(t, log, "last without newline")
	for _, want := range []string{
		`msg="engine: plain"`, `msg="engine: ?[31mred?[0m ?back? end"`, `msg="engine: last without newline"`,
		`msg="engine: ` + strings.Repeat("long", maxLine/4) + `"`,
	} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("no %s in\n%s", want, log)
		}
	}
	if n := strings.Count(log.String(), "\n"); n != 4 {
		t.Errorf("want 4 lines, got %d\n%s", n, log)
	}
}

func TestWhatTheEngineSaysIsBounded(t *testing.T) {
	log := &testnet.Output{}
	l := &engineLog{log: slog.New(slog.NewTextHandler(log, nil))}
	now := time.Unix(1000, 0)
	for range 3 * maxBurst {
		l.line([]byte("x"), now)
	}
	if n := strings.Count(log.String(), "engine: x"); n != maxBurst {
		t.Errorf("want %d lines at once, got %d", maxBurst, n)
	}
	l.line([]byte("later"), now.Add(perLine))
	if !strings.Contains(log.String(), `"lines lost"=200`) || !strings.Contains(log.String(), "engine: later") {
		t.Errorf("the loss is not told:\n%s", log)
	}
	l.line([]byte("too soon"), now.Add(perLine*3/2))
	l.line([]byte("in time"), now.Add(perLine*2))
	if strings.Contains(log.String(), "too soon") || !strings.Contains(log.String(), "in time") {
		t.Errorf("want one line each %v:\n%s", perLine, log)
	}
	c, real, border := startTest(t)
	unix.Write(border, []byte("chatter"))
	c.wait()
	waitFor(t, real, "engine: line 0")
	if n := strings.Count(real.String(), "\n"); n > 2*maxBurst {
		t.Errorf("%d lines in a moment", n)
	}
}

// startWarden starts this binary as a warden with attr, and gives the engine's
// pidfd, or -1, and the notes. drop are capabilities that the warden lacks.
func startWarden(t *testing.T, args []string, attr *syscall.SysProcAttr, drop ...uintptr) (warden *exec.Cmd, engine int, notes []string) {
	t.Helper()
	testnet.RequireRoot(t)
	dir := t.TempDir()
	os.Chmod(dir, 0o755)
	os.Chmod(filepath.Dir(dir), 0o755)
	binary, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "warden")
	if err := testnet.WriteProgram(path, binary); err != nil {
		t.Fatal(err)
	}
	cmd := &exec.Cmd{Path: path, Args: append([]string{plainWarden}, args...), SysProcAttr: attr, Stderr: os.Stderr}
	out, _ := cmd.StdoutPipe()
	in, _ := cmd.StdinPipe()
	done := make(chan error)
	go onSpareThread(func() {
		for _, c := range drop {
			unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0)
		}
		done <- cmd.Start()
	})
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); cmd.Process.Kill(); cmd.Wait() })
	text := make([]byte, 0, 4096)
	for !bytes.HasSuffix(text, []byte("end\n")) {
		n, err := out.Read(text[len(text):cap(text)])
		text = text[:len(text)+n]
		if err != nil {
			return cmd, -1, strings.Split(string(text), "\n")
		}
	}
	lines := strings.Split(string(text), "\n")
	pid, _ := strconv.Atoi(lines[0])
	engine, err = unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatalf("pidfd_open %d: %v", pid, err)
	}
	t.Cleanup(func() {
		unix.PidfdSendSignal(engine, unix.SIGKILL, nil, 0)
		unix.Close(engine)
	})
	return cmd, engine, lines[1 : len(lines)-2]
}

func TestAKilledWardenTakesTheEngineWithIt(t *testing.T) {
	for range 10 { // which of its threads dies last is chance, and that one signals the engine
		killWarden(t)
	}
}

func killWarden(t *testing.T) {
	warden, engine, _ := startWarden(t, nil, nil)
	warden.Process.Kill()
	warden.Wait()
	poll := []unix.PollFd{{Fd: int32(engine), Events: unix.POLLIN}} // readable when it has ended
	n, err := unix.Poll(poll, 10_000)
	for err == unix.EINTR {
		n, err = unix.Poll(poll, 10_000)
	}
	if n != 1 {
		t.Fatalf("the engine outlives its warden: %v", err)
	}
}

func TestWhatTheKernelRefusesIsSaid(t *testing.T) {
	plain := &syscall.Credential{Uid: 65533, Gid: 65533}
	const fallback = "there is no user sallyport, so it runs as uid 65527 (systemd-sysusers makes the user)"
	const noUID = "no uid of its own: CAP_SETUID and CAP_SETGID are missing, so it has the warden's, 65533"
	refused := []string{
		"no network namespace: operation not permitted", "no IPC and UTS namespaces: operation not permitted",
		"no mount namespace: open_tree: operation not permitted",
	}
	for _, c := range []struct {
		name string
		attr *syscall.SysProcAttr // nil: root
		drop []uintptr
		want []string
	}{
		{"root", nil, nil, nil},
		{"root without CAP_SYS_ADMIN", nil, []uintptr{unix.CAP_SYS_ADMIN}, refused},
		{"root without CAP_SETPCAP", nil, []uintptr{unix.CAP_SETPCAP}, []string{"the bounding set is kept: prctl: operation not permitted"}},
		{"root without CAP_KILL", nil, []uintptr{unix.CAP_KILL}, []string{"the engine ends only when it sees the border close: CAP_KILL is missing"}},
		{"no privilege", &syscall.SysProcAttr{Credential: plain}, nil,
			append(slices.Clone(refused), "the bounding set is kept: prctl: operation not permitted", noUID)},
		{"ambient network capabilities", &syscall.SysProcAttr{Credential: plain, AmbientCaps: []uintptr{unix.CAP_NET_RAW, unix.CAP_NET_ADMIN}}, nil,
			append(slices.Clone(refused), "the bounding set is kept: prctl: operation not permitted", noUID)},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, engine, notes := startWarden(t, nil, c.attr, c.drop...)
			notes = slices.DeleteFunc(notes, func(n string) bool { return n == fallback })
			if !slices.Equal(notes, c.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(notes, "\n"), strings.Join(c.want, "\n"))
			}
			status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pidOf(t, engine)))
			for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapAmb"} {
				if !strings.Contains(string(status), set+":\t0000000000000000\n") {
					t.Errorf("%s is not empty:\n%s", set, status)
				}
			}
		})
	}
}

func TestAReplacedBinaryStillStarts(t *testing.T) {
	// Linux 6.18 cannot attach a mount of a deleted file: the engine then runs
	// with the host's files in sight, and landlock alone before them.
	_, engine, notes := startWarden(t, []string{"deleted"}, nil)
	if engine < 0 {
		t.Fatalf("no engine: %q", notes)
	}
	if out, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pidOf(t, engine))); err != nil || !strings.HasSuffix(out, " (deleted)") {
		t.Errorf("it runs %s, %v", out, err)
	}
}

func pidOf(t *testing.T, pidfd int) (pid int) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", pidfd))
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(text), "Pid:\t")
	fmt.Sscan(after, &pid)
	return
}

func TestTheEnginesUser(t *testing.T) {
	none := func(string) (*user.User, error) { return nil, errors.New("none") }
	is := func(uid, gid string) func(string) (*user.User, error) {
		return func(string) (*user.User, error) { return &user.User{Uid: uid, Gid: gid, Username: "somebody"}, nil }
	}
	for _, c := range []struct {
		name         string
		byName, byID func(string) (*user.User, error)
		uid, gid     uint32
		note, err    string
	}{
		{name: "made by the package", byName: is("990", "991"), byID: none, uid: 990, gid: 991},
		{name: "missing", byName: none, byID: none, uid: fallbackID, gid: fallbackID, note: "there is no user sallyport, so it runs as uid 65527 (systemd-sysusers makes the user)"},
		{name: "missing, fallback taken", byName: none, byID: is("65527", "1"), err: "belongs to somebody"},
		{name: "root", byName: is("0", "991"), byID: none, err: "neither root's nor nobody's"},
		{name: "root's group", byName: is("990", "0"), byID: none, err: "neither root's nor nobody's"},
		{name: "nobody", byName: is("65534", "65534"), byID: none, err: "neither root's nor nobody's"},
		{name: "no number", byName: is("x", "1"), byID: none, err: "invalid syntax"},
	} {
		var ch child
		id, err := ch.identity(c.byName, c.byID)
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: %v", c.name, err)
			}
			continue
		}
		if err != nil || id.Uid != c.uid || id.Gid != c.gid || strings.Join(ch.notes, "") != c.note {
			t.Errorf("%s: got %v %q %v", c.name, id, ch.notes, err)
		}
	}
}
