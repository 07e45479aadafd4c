//go:build linux

package sandbox

import (
	"bufio"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/internal/engine/internal/source"
	"github.com/sallyport/sallyport/internal/testnet"
)

// The test binary plays both sides: started under this name it is the engine,
// its second argument says what it does once it is inside, and its third which
// descriptors it has.
const engineName = "sandbox test: engine"

// given is what the engine has if a test says nothing else.
var given = Files{Border: 3, Capture: 4, Journal: [2]int{-1, -1}}

// withJournal and bySockets are what else it may have.
var (
	withJournal = Files{Border: 3, Capture: 4, Journal: [2]int{5, 6}}
	bySockets   = Files{Border: 3, Capture: -1, Journal: [2]int{5, 6}, Sockets: []int{4, 7}}
	byNFLOG     = Files{Border: 3, Capture: -1, Journal: [2]int{5, 6}, NFLOG: 4}
	byLog       = Files{Border: 3, Capture: -1, Journal: [2]int{5, 6}, Log: 4}
)

var kinds = map[string]Files{"": given, "journal": withJournal, "sockets": bySockets, "nflog": byNFLOG, "log": byLog}

func TestMain(m *testing.M) {
	if os.Args[0] == engineName {
		os.Exit(engineSide(os.Args[1], kinds[os.Args[2]]))
	}
	// What whoever started the test left open is not the engine's.
	unix.CloseRange(3, ^uint(0)>>1, unix.CLOSE_RANGE_CLOEXEC)
	os.Exit(m.Run())
}

// engineSide tells its report or its error on descriptor 2, one line each.
func engineSide(mode string, given Files) int {
	word, rest, _ := strings.Cut(mode, " ")
	var socket *source.Socket
	var report Report
	var err error
	switch word {
	case "broken": // as Enter, with one call let through that must not be, on all descriptors or one
		hole := rule{}
		var fd uint32
		if n, _ := fmt.Sscan(rest, &hole.nr, &fd); n == 2 {
			hole.when = []condition{equals(0, fd)}
		}
		report, err = enter(given, append([]rule{hole}, rules(given)...))
	case "receive":
		if socket, err = source.NewSocket(given.Sockets[0]); err == nil {
			report, err = Enter(given)
		}
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
	case "write":
		useJournal(given)
	case "receive":
		err := socket.Drain(func(b []byte, src netip.AddrPort, _ uint16) {
			fmt.Fprintf(os.Stderr, "received %q from %v\n", b, src.Addr())
		})
		fmt.Fprintf(os.Stderr, "drained: %v\n", err)
	}
	var b [64]byte
	unix.Read(given.Border, b[:]) // until the warden's side is gone
	fmt.Fprintln(os.Stderr, "done")
	return 0
}

// useJournal does what a journal is for, and what must not be done to it.
func useJournal(given Files) {
	for _, fd := range given.Journal {
		n, err := unix.Pwrite(fd, []byte("hello, journal"), 3)
		fmt.Fprintf(os.Stderr, "pwrite on %d: %d %v\n", fd, n, err)
		fmt.Fprintf(os.Stderr, "ftruncate on %d: %v\n", fd, unix.Ftruncate(fd, 8))
		fmt.Fprintf(os.Stderr, "fdatasync on %d: %v\n", fd, unix.Fdatasync(fd))
		var stat unix.Stat_t
		err = unix.Fstat(fd, &stat)
		fmt.Fprintf(os.Stderr, "fstat on %d: %d %v\n", fd, stat.Size, err)
		_, err = unix.Write(fd, []byte("x"))
		fmt.Fprintf(os.Stderr, "write on %d: %v\n", fd, err)
		_, err = unix.Pwrite(fd, []byte("x"), maxJournal)
		fmt.Fprintf(os.Stderr, "pwrite behind the end on %d: %v\n", fd, err)
	}
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
	files []*os.File
}

// confinement is what the test's warden does to the child.
type confinement struct {
	layerB  bool
	uid     uint32
	groups  []uint32
	ambient []uintptr
	leak    *os.File // given as descriptor 5
	gid0    bool     // the group is root's
	files   string   // which descriptors it gets: one of kinds
	missing bool     // the last of them is not given
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
	files := append([]*os.File{border}, packetFiles(t, kinds[c.files])...)
	if c.missing {
		files = files[:len(files)-1]
	}
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{engineName, mode, c.files}
	cmd.Env = []string{"GOMAXPROCS=2", "GODEBUG=decoratemappings=0,containermaxprocs=0"}
	cmd.Stderr = write
	cmd.ExtraFiles = files
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
	return &engine{cmd, bufio.NewScanner(read), link, files}
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

// packetFiles makes what the engine gets from number 4 on. They close with the
// test.
func packetFiles(t *testing.T, given Files) []*os.File {
	t.Helper()
	var files []*os.File
	for fd := given.Border + 1; fd < given.Border+10; fd++ {
		switch {
		case fd == given.Capture:
			files = append(files, packetSocket(t))
		case slices.Contains(given.Sockets, fd):
			files = append(files, udpSocket(t))
		case fd == given.NFLOG:
			files = append(files, netlinkSocket(t))
		case fd == given.Log:
			read, write, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			files = append(files, read)
			t.Cleanup(func() { write.Close() })
		case slices.Contains(given.Journal[:], fd):
			f, err := os.Create(filepath.Join(t.TempDir(), "journal"))
			if err != nil {
				t.Fatal(err)
			}
			files = append(files, f)
		}
	}
	t.Cleanup(func() {
		for _, f := range files {
			f.Close()
		}
	})
	return files
}

// netlinkSocket gives one that speaks to a namespace's firewall.
func netlinkSocket(t *testing.T) *os.File {
	t.Helper()
	var fd int
	var err error
	testnet.New(t).Do(func() {
		fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	})
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), "netlink")
}

// udpSocket gives a bound UDP socket with two datagrams in it.
func udpSocket(t *testing.T) *os.File {
	t.Helper()
	var fd int
	var err error
	testnet.New(t).Do(func() {
		if fd, err = unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return
		}
		if err = unix.Bind(fd, &unix.SockaddrInet6{Port: 62201}); err != nil {
			return
		}
		for _, to := range []netip.Addr{netip.MustParseAddr("::1"), netip.MustParseAddr("::ffff:127.0.0.1")} {
			if err = unix.Sendto(fd, []byte("hello"), 0, &unix.SockaddrInet6{Port: 62201, Addr: to.As16()}); err != nil {
				return
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), "socket")
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
