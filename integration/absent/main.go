//go:build linux

// Command absent runs a program as a kernel without some part would: a seccomp
// filter gives it the error that such a kernel gives. It is a simulation, for
// tests, and says so.
//
//	absent nftables|packet PROGRAM ARGUMENT…
package main

import (
	"fmt"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// part is what socket(2) refuses, and how: the errors are those of a kernel
// without the protocol (netlink_create) or the family (__sock_create).
type part struct {
	name     string
	family   uint32
	protocol int64 // -1: any
	errno    syscall.Errno
}

var parts = map[string]part{
	"nftables": {"nftables", unix.AF_NETLINK, unix.NETLINK_NETFILTER, unix.EPROTONOSUPPORT},
	"packet":   {"AF_PACKET", unix.AF_PACKET, -1, unix.EAFNOSUPPORT},
}

func main() {
	if len(os.Args) < 3 || parts[os.Args[1]].name == "" {
		fmt.Fprintln(os.Stderr, "absent: give nftables or packet, and a program")
		os.Exit(2)
	}
	p := parts[os.Args[1]]
	fmt.Fprintf(os.Stderr, "absent: simulated: a kernel without %s\n", p.name)
	runtime.LockOSThread() // the filter is this thread's, and exec(2) keeps this thread
	err := install(p.filter())
	if err == nil {
		err = syscall.Exec(os.Args[2], os.Args[2:], os.Environ())
	}
	fmt.Fprintln(os.Stderr, "absent:", err)
	os.Exit(2)
}

// filter reads struct seccomp_data (seccomp(2)): the number at 0, the low words
// of the first and third argument at 16 and 32.
func (p part) filter() []bpf.Instruction {
	refuse := bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(p.errno)}
	allow := bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW}
	protocol := bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(p.protocol), SkipFalse: 1}
	if p.protocol < 0 {
		protocol = bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: 0, SkipFalse: 1} // always
	}
	return []bpf.Instruction{
		bpf.LoadAbsolute{Off: 0, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.SYS_SOCKET, SkipFalse: 5},
		bpf.LoadAbsolute{Off: 16, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: p.family, SkipFalse: 3},
		bpf.LoadAbsolute{Off: 32, Size: 4},
		protocol,
		refuse,
		allow,
	}
}

// install needs CAP_SYS_ADMIN, and so leaves no_new_privs as it is: the program
// meets one difference and no other.
func install(instructions []bpf.Instruction) error {
	raw, err := bpf.Assemble(instructions)
	if err != nil {
		return err
	}
	filter := make([]unix.SockFilter, len(raw))
	for i, in := range raw {
		filter[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&prog))); errno != 0 {
		return fmt.Errorf("seccomp: %w; run as root", errno)
	}
	return nil
}
