//go:build linux

package sandbox

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/internal/testnet"
)

// The test binary plays both sides: started under this name it is the engine,
// and its second argument says what it does once it is inside.
const engineName = "sandbox test: engine"

var given = Files{Border: 3, Capture: 4}

func TestMain(m *testing.M) {
	if os.Args[0] == engineName {
		os.Exit(engineSide(os.Args[1]))
	}
	// What whoever started the test left open is not the engine's.
	unix.CloseRange(3, ^uint(0)>>1, unix.CLOSE_RANGE_CLOEXEC)
	os.Exit(m.Run())
}

// engineSide tells its report or its error on descriptor 2, one line each.
func engineSide(mode string) int {
	word, rest, _ := strings.Cut(mode, " ")
	var report Report
	var err error
	switch word {
	case "broken": // as Enter, with one call let through that must not be
		var nr uint32
		fmt.Sscan(rest, &nr)
		report, err = enter(given, append([]rule{{nr: nr}}, rules(given)...))
	case "deadly": // the same list, but what it denies kills
		runtime.LockOSThread()
		startPoller()
		if err = noNewPrivs(); err != nil {
			break
		}
		err = install(deadly(program(rules(given))))
	default:
		report, err = Enter(given)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "error: %v\n", err)
		return 1
	}
	for _, p := range report {
		fmt.Fprintf(os.Stderr, "proof: %s: %v: %s\n", p.Part, p.Proven, p.Why)
	}
	fmt.Fprintln(os.Stderr, "inside")
	switch word {
	case "x32":
		unix.RawSyscall(x32Bit|unix.SYS_GETPID, 0, 0, 0)
	case "panic":
		panic("the engine's own bug")
	case "load", "deadly":
		load(2 * time.Second)
	}
	var b [64]byte
	unix.Read(given.Border, b[:]) // until the warden's side is gone
	fmt.Fprintln(os.Stderr, "done")
	return 0
}

func deadly(p []bpf.Instruction) []bpf.Instruction {
	for i, in := range p {
		if in == (bpf.RetConstant{Val: denied}) {
			p[i] = bpf.RetConstant{Val: killProcess}
		}
	}
	return p
}

// load makes Go's runtime use what it has: threads that come and go, timers,
// the collector under pressure, memory given back, faults caught, preemption.
func load(d time.Duration) {
	end := time.Now().Add(d)
	var work sync.WaitGroup
	for range 4 {
		work.Go(func() {
			for time.Now().Before(end) {
				thread := make(chan struct{})
				go func() { // its thread ends with it
					defer close(thread)
					runtime.LockOSThread()
					time.Sleep(time.Millisecond)
				}()
				<-thread
				fault()
			}
		})
	}
	work.Go(func() {
		for n := 0; time.Now().Before(end); n++ { // no call, so it is preempted by signal
		}
	})
	var keep [][]byte
	for time.Now().Before(end) {
		b := make([]byte, 1<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		if keep = append(keep, b); len(keep) == 64 {
			keep = nil
			debug.FreeOSMemory()
		}
	}
	work.Wait()
	poll := []unix.PollFd{{Fd: int32(given.Border), Events: unix.POLLIN}, {Fd: int32(given.Capture), Events: unix.POLLIN}}
	unix.Poll(poll, 1)
}

func fault() {
	defer func() { recover() }()
	var p *int
	*p = 1 // SIGSEGV, which the runtime turns into a panic
}

// engine is a running child.
type engine struct {
	cmd   *exec.Cmd
	lines *bufio.Scanner
	link  *os.File // the warden's end of the border
}

// confinement is what the test's warden does to the child.
type confinement struct {
	layerB  bool
	uid     uint32
	groups  []uint32
	ambient []uintptr
	leak    *os.File // given as descriptor 5
	gid0    bool     // the group is root's
}

// startEngine starts this binary as the engine. Everything is dead and closed
// when the test ends.
func startEngine(t *testing.T, c confinement, mode string) *engine {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	link, border := os.NewFile(uintptr(pair[0]), "link"), os.NewFile(uintptr(pair[1]), "border")
	capture := packetSocket(t)
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{engineName, mode}
	cmd.Env = []string{"GOMAXPROCS=2", "GODEBUG=decoratemappings=0,containermaxprocs=0"}
	cmd.Stderr = write
	cmd.ExtraFiles = []*os.File{border, capture}
	if c.leak != nil {
		cmd.ExtraFiles = append(cmd.ExtraFiles, c.leak)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential:  &syscall.Credential{Uid: c.uid, Gid: c.uid, Groups: c.groups},
		AmbientCaps: c.ambient,
	}
	if c.gid0 {
		cmd.SysProcAttr.Credential.Gid = 0
	}
	if c.uid == 0 {
		cmd.SysProcAttr.Credential = nil
	}
	err = startOn(t, cmd, c)
	border.Close()
	capture.Close()
	write.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		link.Close()
		cmd.Process.Kill()
		cmd.Wait()
		read.Close()
	})
	return &engine{cmd, bufio.NewScanner(read), link}
}

// startOn starts cmd, with layer B on a thread of its own.
func startOn(t *testing.T, cmd *exec.Cmd, c confinement) error {
	if !c.layerB {
		return cmd.Start()
	}
	dir := t.TempDir()
	os.Chmod(filepath.Dir(dir), 0o755)
	os.Chmod(dir, 0o755)
	binary, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return err
	}
	if err := testnet.WriteProgram(filepath.Join(dir, Binary), binary); err != nil {
		return err
	}
	cmd.Path = "/" + Binary
	cmd.Dir = "/"
	cmd.SysProcAttr.Chroot = dir
	failed := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := confineThread(dir)
		if err == nil {
			err = cmd.Start()
		}
		failed <- err
	}()
	return <-failed
}

func confineThread(dir string) error {
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS); err != nil {
		return err
	}
	for _, err := range []error{
		unix.Sethostname([]byte(Hostname)),
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount(dir, dir, "", unix.MS_BIND, ""),
		unix.Mount("", dir, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""),
	} {
		if err != nil {
			return err
		}
	}
	for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil {
			return err
		}
	}
	return nil
}

func packetSocket(t *testing.T) *os.File {
	var fd int
	var err error
	testnet.New(t).Do(func() {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0x0300) // ETH_P_ALL
	})
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), "capture")
}

// until reads lines up to one with this beginning and returns all of them.
func (e *engine) until(t *testing.T, prefix string) []string {
	t.Helper()
	var lines []string
	timer := time.AfterFunc(20*time.Second, func() { e.cmd.Process.Kill() })
	defer timer.Stop()
	for e.lines.Scan() {
		lines = append(lines, e.lines.Text())
		if strings.HasPrefix(e.lines.Text(), prefix) {
			return lines
		}
	}
	t.Fatalf("no line %q, but:\n%s", prefix, strings.Join(lines, "\n"))
	return nil
}
