//go:build linux

package sandbox

import (
	"fmt"
	"os"
	"slices"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// rule lets one system call through if every condition on its arguments holds.
// Several rules for one call are alternatives.
type rule struct {
	nr   uint32
	when []condition
}

// condition holds if arg&mask == is, or with not if they differ. Only the low
// 32 bits are looked at: the kernel too takes each argument named in the rules
// as an int, or has all its flags there.
type condition struct {
	arg  uint32 // 0 to 5
	mask uint32
	is   uint32
	not  bool
}

// on gives one rule for each descriptor: the call is allowed with that as its
// first argument, if the other conditions hold.
func on(fds []int, nr uint32, when ...condition) []rule {
	var list []rule
	for _, fd := range fds {
		list = append(list, rule{nr, append([]condition{equals(0, uint32(fd))}, when...)})
	}
	return list
}

// notOn gives one rule: the call is allowed on all descriptors but these.
func notOn(fds []int, nr uint32) []rule {
	var when []condition
	for _, fd := range fds {
		when = append(when, condition{arg: 0, mask: ^uint32(0), is: uint32(fd), not: true})
	}
	return []rule{{nr, when}}
}

func equals(arg, value uint32) condition { return condition{arg: arg, mask: ^uint32(0), is: value} }
func without(arg, bits uint32) condition { return condition{arg: arg, mask: bits} }

const (
	// threadFlags is what Go's runtime starts a thread with; a fork or a
	// namespace needs other flags. CLONE_SETTLS is set on amd64 only.
	threadFlags = unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND | unix.CLONE_SYSVSEM | unix.CLONE_THREAD

	// futexPrivate is FUTEX_PRIVATE_FLAG with FUTEX_WAIT (0) or, one bit more,
	// FUTEX_WAKE (futex(2)); the others have had exploitable bugs.
	futexPrivate = 128
)

// rules is the whole list of what the engine may ask of the kernel; those of
// each packet come first. What the list lacks is given up: above all every way
// to send on the sockets that packets come in by, to change their filters, to
// copy a descriptor out of reach of these numbers, to open, and to start a
// process.
func rules(fds Files) []rule {
	packets, journals := fds.packets(), fds.journals()
	var statistics []int
	if fds.Capture >= 0 {
		statistics = []int{fds.Capture}
	}
	return slices.Concat(
		on(packets, unix.SYS_RECVMMSG),
		[]rule{
			{unix.SYS_PPOLL, nil}, // wait for packets, border and control
			{unix.SYS_FUTEX, []condition{{arg: 1, mask: ^uint32(1), is: futexPrivate}}},
		},
		// A packet socket sends by plain write(2), a netlink socket speaks to the
		// firewall so. The journal is written at a place that the engine names, or
		// a line could end up inside another.
		notOn(slices.Concat(packets, fds.logs(), journals), unix.SYS_WRITE),
		[]rule{{unix.SYS_READ, nil}},
		on([]int{fds.Border}, unix.SYS_RECVMSG), // messages and the descriptors with them
		on(statistics, unix.SYS_GETSOCKOPT, equals(1, unix.SOL_PACKET), equals(2, unix.PACKET_STATISTICS)),
		on(journals, unix.SYS_PWRITE64),
		on(journals, unix.SYS_FDATASYNC),
		on(journals, unix.SYS_FTRUNCATE),
		general(),
		archRules)
}

// general are the rules that depend on no descriptor.
func general() []rule {
	pid := uint32(os.Getpid())
	return []rule{
		{unix.SYS_CLOSE, nil},
		{unix.SYS_FSTAT, nil},   // the size of a sealed memfd, or of the journal
		{unix.SYS_PREAD64, nil}, // its bytes
		{unix.SYS_FCNTL, []condition{equals(1, unix.F_GET_SEALS)}}, // that it is sealed; not F_DUPFD, not F_SETFL

		// Go's runtime: memory (never executable), threads, signals, time.
		{unix.SYS_EPOLL_PWAIT, nil},
		{unix.SYS_EPOLL_CTL, nil},
		{unix.SYS_NANOSLEEP, nil},
		{unix.SYS_SCHED_YIELD, nil},
		{unix.SYS_MADVISE, nil},
		{unix.SYS_MMAP, []condition{without(2, unix.PROT_EXEC)}},
		{unix.SYS_MUNMAP, nil},
		{unix.SYS_MPROTECT, []condition{without(2, unix.PROT_EXEC)}},
		{unix.SYS_CLONE, []condition{{arg: 0, mask: ^uint32(unix.CLONE_SETTLS), is: threadFlags}}},
		{unix.SYS_EXIT, nil},                           // a thread ends
		{unix.SYS_TGKILL, []condition{equals(0, pid)}}, // preemption: SIGURG to a thread of its own
		{unix.SYS_GETPID, nil},                         // tgkill's argument
		{unix.SYS_GETTID, nil},                         // a new thread's name of itself
		{unix.SYS_RT_SIGRETURN, nil},                   // back from a signal handler
		{unix.SYS_RT_SIGPROCMASK, nil},                 // around clone
		{unix.SYS_RT_SIGACTION, nil},                   // a panic sets SIGABRT to its default
		{unix.SYS_SIGALTSTACK, nil},                    // each thread's signal stack
		{unix.SYS_CLOCK_GETTIME, nil},                  // where the vDSO has no clock
		{unix.SYS_GETRANDOM, nil},                      // where the vDSO has none; crypto and hash seeds
		{unix.SYS_RESTART_SYSCALL, nil},                // a sleep goes on after SIGSTOP and SIGCONT
		{unix.SYS_EXIT_GROUP, nil},                     // the end
	}
}

// Offsets in struct seccomp_data (seccomp(2)), in bytes; both architectures
// are little-endian, so an argument's low word comes first.
const (
	offNumber = 0
	offArch   = 4
	offArgs   = 16
)

const (
	killProcess = unix.SECCOMP_RET_KILL_PROCESS
	denied      = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
	unknown     = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
)

// program compiles the rules. Each is one block that ends in a return, or falls
// to the next rule with the call's number in A again, so no jump is longer than
// a block.
func program(allow []rule) []bpf.Instruction {
	p := []bpf.Instruction{
		bpf.LoadAbsolute{Off: offArch, Size: 4},
		// i386 and x32 give the same numbers other meanings: there is no honest
		// reason to call through them.
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: auditArch, SkipTrue: 1},
		bpf.RetConstant{Val: killProcess},
		bpf.LoadAbsolute{Off: offNumber, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpLessThan, Val: x32Bit, SkipTrue: 1},
		bpf.RetConstant{Val: killProcess},
	}
	for _, r := range allow {
		b := block(r.when)
		p = append(p, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: r.nr, SkipTrue: uint8(len(b))})
		p = append(p, b...)
	}
	// A filter cannot read clone3's flags, which are behind a pointer; ENOSYS
	// makes a caller fall back to clone.
	return append(p,
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.SYS_CLONE3, SkipTrue: 1},
		bpf.RetConstant{Val: unknown},
		bpf.RetConstant{Val: denied})
}

// x32Bit marks a call of the x32 ABI on amd64 (__X32_SYSCALL_BIT); no call of
// arm64 is so high either.
const x32Bit = 0x40000000

func block(when []condition) []bpf.Instruction {
	var b []bpf.Instruction
	for i, c := range when {
		b = append(b, bpf.LoadAbsolute{Off: offArgs + 8*c.arg, Size: 4}, bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: c.mask})
		// Behind this jump: three instructions for each condition to come, and
		// the return that allows; then the number is loaded again.
		skip := uint8(3*(len(when)-i-1) + 1)
		if c.not {
			b = append(b, bpf.JumpIf{Cond: bpf.JumpEqual, Val: c.is, SkipTrue: skip})
		} else {
			b = append(b, bpf.JumpIf{Cond: bpf.JumpEqual, Val: c.is, SkipFalse: skip})
		}
	}
	b = append(b, bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW})
	if len(when) > 0 {
		b = append(b, bpf.LoadAbsolute{Off: offNumber, Size: 4})
	}
	return b
}

// install puts the filter on every thread at once (SECCOMP_FILTER_FLAG_TSYNC),
// those that start later inherit it, and nothing takes it off again.
func install(p []bpf.Instruction) error {
	raw, err := bpf.Assemble(p)
	if err != nil {
		return err
	}
	filter := make([]unix.SockFilter, len(raw))
	for i, in := range raw {
		filter[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	thread, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return fmt.Errorf("the kernel refused the filter: %w; it needs CONFIG_SECCOMP_FILTER", errno)
	}
	if thread != 0 {
		return fmt.Errorf("thread %d could not take the filter", thread)
	}
	return nil
}
