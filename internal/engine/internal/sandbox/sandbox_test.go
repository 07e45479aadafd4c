//go:build linux

package sandbox

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/internal/testnet"
)

const testUID = 65533

func TestEveryPartIsProvenWhereTheWardenIsRoot(t *testing.T) {
	testnet.RequireRoot(t)
	for kind, size := range map[string]string{"": "0 0", "journal": "536870976 536870976", "sockets": "536870976 536870976", "nflog": "536870976 536870976", "log": "536870976 536870976"} {
		t.Run(kind, func(t *testing.T) { everyPartIsProven(t, kind, size) })
	}
}

func everyPartIsProven(t *testing.T, kind, fileSize string) {
	e := startEngine(t, confinement{layerB: true, uid: testUID, files: kind}, "wait")
	lines := e.until(t, "inside")
	if len(lines) != 13 {
		t.Errorf("want 12 proofs, got\n%s", strings.Join(lines, "\n"))
	}
	for _, line := range lines[:len(lines)-1] {
		if !strings.Contains(line, ": true: ") {
			t.Errorf("not proven: %s", line)
		}
	}
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", e.cmd.Process.Pid))
	if len(tasks) < 2 {
		t.Errorf("a Go program has several threads, found %d", len(tasks))
	}
	for _, task := range tasks {
		status, err := os.ReadFile(task)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{
			"Uid:\t65533\t65533\t65533\t65533\n", "Gid:\t65533\t65533\t65533\t65533\n", "Groups:\t \n",
			"CapInh:\t0000000000000000\n", "CapPrm:\t0000000000000000\n", "CapEff:\t0000000000000000\n",
			"CapBnd:\t0000000000000000\n", "CapAmb:\t0000000000000000\n",
			"Umask:\t0777\n", "NoNewPrivs:\t1\n", "Seccomp:\t2\n", "Seccomp_filters:\t1\n",
		} {
			if !strings.Contains(string(status), want) {
				t.Errorf("%s lacks %q", task, want)
			}
		}
	}
	limits, _ := os.ReadFile(fmt.Sprintf("/proc/%d/limits", e.cmd.Process.Pid))
	for name, want := range map[string]string{"Max core file size": "0 0", "Max file size": fileSize, "Max open files": "64 64", "Max processes": "256 256"} {
		_, after, _ := strings.Cut(string(limits), name)
		if got := strings.Fields(after); len(got) < 2 || got[0]+" "+got[1] != want {
			t.Errorf("%s: want %s in\n%s", name, want, limits)
		}
	}
	// proc(5): what is not dumpable belongs to root there.
	if info, err := os.Stat(fmt.Sprintf("/proc/%d/mem", e.cmd.Process.Pid)); err != nil || info.Sys().(*syscall.Stat_t).Uid != 0 {
		t.Errorf("the engine's memory belongs to its uid: %v", err)
	}
	e.link.Close()
	e.until(t, "done")
}

func TestWithoutPrivilegeLayerAHoldsAndLayerBIsSaidToBeAbsent(t *testing.T) {
	testnet.RequireRoot(t) // to make the packet socket; the child has nothing of it
	e := startEngine(t, confinement{uid: testUID, groups: []uint32{testUID, 65532}}, "wait")
	text := strings.Join(e.until(t, "inside"), "\n")
	for _, want := range []string{
		"no privilege: true", "descriptors: true", "limits: true", "no_new_privs: true", "landlock: true", "seccomp: true",
		"own uid: true", "no supplementary groups: false", "empty bounding set: false",
		"empty network namespace: false", "empty mount namespace: false", "own IPC and UTS namespaces: false",
	} {
		if !strings.Contains(text, "proof: "+want) {
			t.Errorf("want %q in\n%s", want, text)
		}
	}
}

func TestEnterRefusesWhatLayerACannotHold(t *testing.T) {
	testnet.RequireRoot(t)
	leak, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer leak.Close()
	for _, c := range []struct {
		name string
		confinement
		want string
	}{
		{"root", confinement{}, "error: sandbox: no privilege: the engine runs as root"},
		{"root with layer B", confinement{layerB: true}, "error: sandbox: no privilege: the engine runs as root"},
		{"root's group", confinement{uid: testUID, gid0: true}, "error: sandbox: no privilege: the engine runs with group 0"},
		{"ambient", confinement{uid: testUID, ambient: []uintptr{unix.CAP_NET_RAW}}, "error: sandbox: no privilege: a capability is left in the permitted"},
		{"leak", confinement{uid: testUID, leak: leak}, "error: sandbox: descriptors: descriptor 5 was inherited"},
		{"leak beside a journal", confinement{uid: testUID, leak: leak, files: "journal"}, "error: sandbox: descriptors: descriptor 7 was inherited"},
		{"leak beside sockets", confinement{uid: testUID, leak: leak, files: "sockets"}, "error: sandbox: descriptors: descriptor 8 was inherited"},
		{"no capture", confinement{uid: testUID, missing: true}, "error: sandbox: descriptors: descriptor 4 was not given"},
		{"half a journal", confinement{uid: testUID, files: "journal", missing: true}, "error: sandbox: descriptors: descriptor 6 was not given"},
		{"a socket too few", confinement{uid: testUID, files: "sockets", missing: true}, "error: sandbox: descriptors: descriptor 7 was not given"},
	} {
		t.Run(c.name, func(t *testing.T) { startEngine(t, c.confinement, "wait").until(t, c.want) })
	}
}

// Each call that the self-test tries is let through once; the self-test must
// see it.
func TestTheSelfTestSeesEveryHoleInTheFilter(t *testing.T) {
	testnet.RequireRoot(t)
	holes := append(append([]attempt{{name: "clone3", nr: unix.SYS_CLONE3}}, once...), archAttempts...)
	holes = append(append(holes, onDescriptors...), forbidden(given, given.Capture)...)
	holes = append(holes, forbidden(given, 0)...)
	tried := map[uintptr]bool{}
	for _, hole := range holes {
		if tried[hole.nr] {
			continue
		}
		tried[hole.nr] = true
		t.Run(hole.name, func(t *testing.T) {
			e := startEngine(t, confinement{uid: testUID}, fmt.Sprintf("broken %d", hole.nr))
			if lines := e.until(t, "")[0]; !strings.HasPrefix(lines, "error: sandbox: seccomp: ") {
				t.Errorf("not seen: %s", lines)
			}
		})
	}
}

// role is what a descriptor is to the engine.
type role string

const (
	asBorder, asCapture, asJournal, asSocket, asLog, asControl, asNull role = "border", "capture", "journal", "socket", "log", "control", "null"
)

// may lists who may do what: all that some descriptors may and others not, and
// what none may do.
var may = map[uint32][]role{
	unix.SYS_WRITE:     {asBorder, asControl, asNull},
	unix.SYS_READ:      {asBorder, asCapture, asJournal, asSocket, asLog, asControl, asNull},
	unix.SYS_PREAD64:   {asBorder, asCapture, asJournal, asSocket, asLog, asControl, asNull},
	unix.SYS_FSTAT:     {asBorder, asCapture, asJournal, asSocket, asLog, asControl, asNull},
	unix.SYS_RECVMSG:   {asBorder},
	unix.SYS_RECVMMSG:  {asCapture, asSocket},
	unix.SYS_PWRITE64:  {asJournal},
	unix.SYS_FTRUNCATE: {asJournal},
	unix.SYS_FDATASYNC: {asJournal},
	unix.SYS_SENDTO:    nil, unix.SYS_SENDMSG: nil, unix.SYS_CONNECT: nil, unix.SYS_BIND: nil, unix.SYS_SETSOCKOPT: nil,
	unix.SYS_FSYNC: nil, unix.SYS_FALLOCATE: nil, unix.SYS_LSEEK: nil, unix.SYS_PWRITEV: nil, unix.SYS_GETSOCKOPT: nil,
}

var roles = []struct {
	fds  Files
	what map[uint32]role
}{
	{given, map[uint32]role{0: asNull, 3: asBorder, 4: asCapture, 5: asControl, ^uint32(0): asControl}},
	{Files{Border: 3, Capture: 4}, map[uint32]role{0: asNull, 3: asBorder, 4: asCapture, 5: asControl}}, // no journal is named
	{withJournal, map[uint32]role{0: asNull, 3: asBorder, 4: asCapture, 5: asJournal, 6: asJournal, 7: asControl, ^uint32(0): asControl}},
	{bySockets, map[uint32]role{0: asNull, 3: asBorder, 4: asSocket, 5: asJournal, 6: asJournal, 7: asSocket, 8: asControl, ^uint32(0): asControl}},
	{byNFLOG, map[uint32]role{0: asNull, 3: asBorder, 4: asSocket, 5: asJournal, 6: asJournal, 7: asControl, ^uint32(0): asControl}},
	{byLog, map[uint32]role{0: asNull, 3: asBorder, 4: asLog, 5: asJournal, 6: asJournal, 7: asControl, ^uint32(0): asControl}},
	{Files{Border: 3, Capture: -1, Journal: [2]int{-1, 5}, Sockets: []int{4}}, map[uint32]role{4: asSocket, 5: asJournal, ^uint32(0): asControl}},
}

// A call is let through on one descriptor that may not do it; the self-test
// must see that too.
func TestTheSelfTestSeesAHoleOnEachDescriptor(t *testing.T) {
	testnet.RequireRoot(t)
	for kind, what := range map[string]map[uint32]role{"journal": roles[2].what, "sockets": roles[3].what, "nflog": roles[4].what, "log": roles[5].what} {
		for fd, role := range what {
			for nr, who := range may {
				if role == asControl || slices.Contains(who, role) {
					continue
				}
				t.Run(fmt.Sprintf("%s/call %d on %s %d", kind, nr, role, fd), func(t *testing.T) {
					e := startEngine(t, confinement{uid: testUID, files: kind}, fmt.Sprintf("broken %d %d", nr, fd))
					want := fmt.Sprintf("on descriptor %d gave", fd)
					if line := e.until(t, "")[0]; !strings.HasPrefix(line, "error: sandbox: seccomp: ") || !strings.Contains(line, want) {
						t.Errorf("not seen: %s", line)
					}
				})
			}
		}
	}
}

// The journal's descriptors were opened before landlock, and keep what they
// could do.
func TestTheJournalIsWritten(t *testing.T) {
	testnet.RequireRoot(t)
	for _, kind := range []string{"journal", "sockets"} {
		for _, layerB := range []bool{false, true} {
			e := startEngine(t, confinement{uid: testUID, layerB: layerB, files: kind}, "write")
			e.link.Close()
			text := strings.Join(e.until(t, "done"), "\n")
			for _, fd := range withJournal.Journal {
				for _, want := range []string{
					"pwrite on %d: 14 <nil>", "ftruncate on %d: <nil>", "fdatasync on %d: <nil>", "fstat on %d: 8 <nil>",
					"write on %d: operation not permitted", "pwrite behind the end on %d: file too large",
				} {
					if want = fmt.Sprintf(want, fd); !strings.Contains(text, want+"\n") {
						t.Errorf("%s, layer B %v: want %q in\n%s", kind, layerB, want, text)
					}
				}
				b := make([]byte, 20)
				if n, _ := e.files[fd-3].ReadAt(b, 0); string(b[:n]) != "\x00\x00\x00hello" {
					t.Errorf("the journal holds %q", b[:n])
				}
			}
		}
	}
}

func TestASocketIsReadInside(t *testing.T) {
	testnet.RequireRoot(t)
	e := startEngine(t, confinement{uid: testUID, layerB: true, files: "sockets"}, "receive")
	text := strings.Join(e.until(t, "drained: <nil>"), "\n")
	for _, want := range []string{`received "hello" from ::1`, `received "hello" from 127.0.0.1`} {
		if !strings.Contains(text, want) {
			t.Errorf("want %q in\n%s", want, text)
		}
	}
}

func TestGoRunsInside(t *testing.T) {
	testnet.RequireRoot(t)
	for _, mode := range []string{
		"load",
		"deadly", // proves that the runtime never meets a denial, also one it would shrug off
	} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			e := startEngine(t, confinement{layerB: true, uid: testUID}, mode)
			e.until(t, "inside")
			e.link.Close()
			e.until(t, "done")
			if err := e.cmd.Wait(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestAPanicInsideIsToldAndEndsTheEngine(t *testing.T) {
	testnet.RequireRoot(t)
	e := startEngine(t, confinement{uid: testUID}, "panic")
	e.until(t, "panic: the engine's own bug")
	e.until(t, "goroutine 1")
	if e.cmd.Wait(); e.cmd.ProcessState.ExitCode() != 2 {
		t.Errorf("want exit 2, got %v", e.cmd.ProcessState)
	}
}

func TestAForeignCallConventionKills(t *testing.T) {
	testnet.RequireRoot(t)
	e := startEngine(t, confinement{uid: testUID}, "x32")
	e.until(t, "inside")
	e.cmd.Wait()
	if s := e.cmd.ProcessState.Sys().(syscall.WaitStatus); s.Signal() != unix.SIGSYS {
		t.Errorf("want death by SIGSYS, got %v", e.cmd.ProcessState)
	}
}

// verdict runs the filter over one call. The kernel loads words in the
// machine's order, bpf.VM in network order.
func verdict(t *testing.T, vm *bpf.VM, arch, nr uint32, args ...uint32) uint32 {
	t.Helper()
	data := make([]byte, 64)
	binary.BigEndian.PutUint32(data[offNumber:], nr)
	binary.BigEndian.PutUint32(data[offArch:], arch)
	for i, a := range args {
		binary.BigEndian.PutUint32(data[offArgs+8*i:], a)
	}
	got, err := vm.Run(data)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(got)
}

func newFilter(t *testing.T, fds Files) *bpf.VM {
	t.Helper()
	p := program(rules(fds))
	if len(p) > 200 {
		t.Errorf("the program has %d instructions; it should stay small", len(p))
	}
	vm, err := bpf.NewVM(p)
	if err != nil {
		t.Fatal(err)
	}
	return vm
}

// Each descriptor may do what it is for, and no other call that some may.
func TestFilterVerdictsByDescriptor(t *testing.T) {
	for _, tt := range roles {
		vm := newFilter(t, tt.fds)
		for fd, what := range tt.what {
			for nr, who := range may {
				want := uint32(denied)
				if slices.Contains(who, what) {
					want = unix.SECCOMP_RET_ALLOW
				}
				if got := verdict(t, vm, auditArch, nr, fd); got != want {
					t.Errorf("%+v: call %d on descriptor %d (%s): got %#x, want %#x", tt.fds, nr, int32(fd), what, got, want)
				}
			}
		}
	}
}

func TestFilterVerdicts(t *testing.T) {
	vm := newFilter(t, given)
	pid := uint32(os.Getpid())
	const allowed = unix.SECCOMP_RET_ALLOW
	for _, c := range []struct {
		name string
		nr   uint32
		args []uint32
		want uint32
	}{
		{"write to the log", unix.SYS_WRITE, []uint32{2}, allowed},
		{"write to the border", unix.SYS_WRITE, []uint32{3}, allowed},
		{"write to the capture", unix.SYS_WRITE, []uint32{4}, denied},
		{"write to control", unix.SYS_WRITE, []uint32{9}, allowed},
		{"recvmmsg capture", unix.SYS_RECVMMSG, []uint32{4}, allowed},
		{"recvmmsg border", unix.SYS_RECVMMSG, []uint32{3}, denied},
		{"recvmsg border", unix.SYS_RECVMSG, []uint32{3}, allowed},
		{"recvmsg capture", unix.SYS_RECVMSG, []uint32{4}, denied},
		{"statistics", unix.SYS_GETSOCKOPT, []uint32{4, unix.SOL_PACKET, unix.PACKET_STATISTICS}, allowed},
		{"statistics elsewhere", unix.SYS_GETSOCKOPT, []uint32{3, unix.SOL_PACKET, unix.PACKET_STATISTICS}, denied},
		{"other level", unix.SYS_GETSOCKOPT, []uint32{4, unix.SOL_SOCKET, unix.PACKET_STATISTICS}, denied},
		{"other option", unix.SYS_GETSOCKOPT, []uint32{4, unix.SOL_PACKET, unix.PACKET_RX_RING}, denied},
		{"detach", unix.SYS_SETSOCKOPT, []uint32{4, unix.SOL_SOCKET, unix.SO_DETACH_FILTER}, denied},
		{"mmap", unix.SYS_MMAP, []uint32{0, 4096, unix.PROT_READ | unix.PROT_WRITE}, allowed},
		{"mmap exec", unix.SYS_MMAP, []uint32{0, 4096, unix.PROT_READ | unix.PROT_EXEC}, denied},
		{"mprotect exec", unix.SYS_MPROTECT, []uint32{0, 4096, unix.PROT_EXEC}, denied},
		{"a thread", unix.SYS_CLONE, []uint32{threadFlags}, allowed},
		{"a thread with TLS", unix.SYS_CLONE, []uint32{threadFlags | unix.CLONE_SETTLS}, allowed},
		{"fork", unix.SYS_CLONE, []uint32{uint32(unix.SIGCHLD)}, denied},
		{"a thread in a namespace", unix.SYS_CLONE, []uint32{threadFlags | unix.CLONE_NEWUSER}, denied},
		{"clone3", unix.SYS_CLONE3, nil, unknown},
		{"futex wait", unix.SYS_FUTEX, []uint32{0, 128}, allowed},
		{"futex wake", unix.SYS_FUTEX, []uint32{0, 129}, allowed},
		{"futex requeue", unix.SYS_FUTEX, []uint32{0, 131}, denied},
		{"futex lock PI", unix.SYS_FUTEX, []uint32{0, 134}, denied},
		{"own thread", unix.SYS_TGKILL, []uint32{pid}, allowed},
		{"init", unix.SYS_TGKILL, []uint32{1}, denied},
		{"seals", unix.SYS_FCNTL, []uint32{9, unix.F_GET_SEALS}, allowed},
		{"dup", unix.SYS_FCNTL, []uint32{4, unix.F_DUPFD_CLOEXEC}, denied},
		{"x32", x32Bit | unix.SYS_READ, nil, killProcess},
	} {
		if got := verdict(t, vm, auditArch, c.nr, c.args...); got != c.want {
			t.Errorf("%s: got %#x, want %#x", c.name, got, c.want)
		}
	}
	if got := verdict(t, vm, unix.AUDIT_ARCH_I386, unix.SYS_READ); got != killProcess {
		t.Errorf("i386: got %#x, want death", got)
	}
}

// With no argument set, exactly these calls pass, of all numbers there are.
func TestFilterAllowsNothingUnlisted(t *testing.T) {
	vm, err := bpf.NewVM(program(rules(given)))
	if err != nil {
		t.Fatal(err)
	}
	want := map[uint32]bool{}
	for _, nr := range []uint32{
		unix.SYS_PPOLL, unix.SYS_READ, unix.SYS_WRITE, unix.SYS_CLOSE, unix.SYS_FSTAT, unix.SYS_PREAD64, unix.SYS_EPOLL_PWAIT, unix.SYS_EPOLL_CTL,
		unix.SYS_NANOSLEEP, unix.SYS_SCHED_YIELD, unix.SYS_MADVISE, unix.SYS_MMAP, unix.SYS_MUNMAP, unix.SYS_MPROTECT, unix.SYS_EXIT,
		unix.SYS_GETPID, unix.SYS_GETTID, unix.SYS_RT_SIGRETURN, unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGACTION, unix.SYS_SIGALTSTACK,
		unix.SYS_CLOCK_GETTIME, unix.SYS_GETRANDOM, unix.SYS_RESTART_SYSCALL, unix.SYS_EXIT_GROUP,
	} {
		want[nr] = true
	}
	for _, r := range archRules {
		want[r.nr] = true
	}
	for nr := uint32(0); nr < 2048; nr++ {
		if got := verdict(t, vm, auditArch, nr) == unix.SECCOMP_RET_ALLOW; got != want[nr] {
			t.Errorf("system call %d: allowed is %v, want %v", nr, got, want[nr])
		}
	}
}

func TestABorderOfOnesOwnIsNoProofOfAnOwnUID(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	if ownUser(Files{Border: pair[0]}) {
		t.Error("the uid is the border's maker's")
	}
}
