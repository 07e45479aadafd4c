//go:build linux

package sandbox

import (
	"fmt"
	"runtime"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// attempt is a system call that must give EPERM. The arguments are such that
// an open door would be seen and not walked through: without the filter each
// gives another error, or does nothing that lasts.
type attempt struct {
	name string
	nr   uintptr
	args [6]uintptr
}

// onDescriptors are tried on each inherited descriptor, with its number as the
// first argument. An inherited AF_PACKET, UDP or netlink socket belongs to the
// host's network namespace for ever: each of these could send on the host's wire or
// to its firewall, change what the socket hears, or copy it to a number that the
// filter does not know.
var onDescriptors = []attempt{
	{name: "sendto", nr: unix.SYS_SENDTO},
	{name: "sendmsg", nr: unix.SYS_SENDMSG},
	{name: "sendmmsg", nr: unix.SYS_SENDMMSG},
	{name: "writev", nr: unix.SYS_WRITEV},
	{name: "pwritev", nr: unix.SYS_PWRITEV},
	{name: "pwritev2", nr: unix.SYS_PWRITEV2},
	{name: "sendfile", nr: unix.SYS_SENDFILE},
	{name: "splice", nr: unix.SYS_SPLICE},
	{name: "tee", nr: unix.SYS_TEE},
	{name: "vmsplice", nr: unix.SYS_VMSPLICE},
	{name: "connect", nr: unix.SYS_CONNECT},
	{name: "bind", nr: unix.SYS_BIND},
	{name: "listen", nr: unix.SYS_LISTEN},
	{name: "accept4", nr: unix.SYS_ACCEPT4},
	{name: "shutdown", nr: unix.SYS_SHUTDOWN, args: [6]uintptr{1: 99}},
	{name: "setsockopt SO_DETACH_FILTER", nr: unix.SYS_SETSOCKOPT, args: [6]uintptr{1: unix.SOL_SOCKET, 2: unix.SO_DETACH_FILTER}},
	{name: "setsockopt SO_ATTACH_FILTER", nr: unix.SYS_SETSOCKOPT, args: [6]uintptr{1: unix.SOL_SOCKET, 2: unix.SO_ATTACH_FILTER}},
	{name: "getsockopt SO_TYPE", nr: unix.SYS_GETSOCKOPT, args: [6]uintptr{1: unix.SOL_SOCKET, 2: unix.SO_TYPE}},
	{name: "fcntl F_DUPFD", nr: unix.SYS_FCNTL, args: [6]uintptr{1: unix.F_DUPFD}},
	{name: "fcntl F_SETFL", nr: unix.SYS_FCNTL, args: [6]uintptr{1: unix.F_SETFL}},
	{name: "dup", nr: unix.SYS_DUP},
	{name: "dup3", nr: unix.SYS_DUP3, args: [6]uintptr{1: 1 << 20}},
	{name: "ioctl", nr: unix.SYS_IOCTL},
	{name: "fallocate", nr: unix.SYS_FALLOCATE},
	{name: "fsync", nr: unix.SYS_FSYNC},
	{name: "lseek", nr: unix.SYS_LSEEK, args: [6]uintptr{2: 99}},
	{name: "openat", nr: unix.SYS_OPENAT},
	{name: "io_uring_enter", nr: unix.SYS_IO_URING_ENTER},
	{name: "bpf", nr: unix.SYS_BPF, args: [6]uintptr{1: 1}},
}

// once are tried once.
var once = []attempt{
	{name: "socket", nr: unix.SYS_SOCKET, args: [6]uintptr{unix.AF_INET, unix.SOCK_STREAM}},
	{name: "socketpair", nr: unix.SYS_SOCKETPAIR, args: [6]uintptr{unix.AF_UNIX, unix.SOCK_STREAM}},
	{name: "openat /", nr: unix.SYS_OPENAT, args: [6]uintptr{^uintptr(0), pointer(&root)}},
	{name: "openat2", nr: unix.SYS_OPENAT2},
	{name: "execve", nr: unix.SYS_EXECVE},
	{name: "execveat", nr: unix.SYS_EXECVEAT},
	{name: "clone of a process", nr: unix.SYS_CLONE, args: [6]uintptr{badClone}},
	{name: "unshare", nr: unix.SYS_UNSHARE},
	{name: "setns", nr: unix.SYS_SETNS, args: [6]uintptr{^uintptr(0)}},
	{name: "ptrace", nr: unix.SYS_PTRACE, args: [6]uintptr{999}},
	{name: "process_vm_readv", nr: unix.SYS_PROCESS_VM_READV, args: [6]uintptr{5: 1}},
	{name: "process_vm_writev", nr: unix.SYS_PROCESS_VM_WRITEV, args: [6]uintptr{5: 1}},
	{name: "kill", nr: unix.SYS_KILL, args: [6]uintptr{noProcess}},
	{name: "tkill", nr: unix.SYS_TKILL, args: [6]uintptr{noProcess}},
	{name: "tgkill of another", nr: unix.SYS_TGKILL, args: [6]uintptr{noProcess, noProcess}},
	{name: "rt_sigqueueinfo", nr: unix.SYS_RT_SIGQUEUEINFO},
	{name: "pidfd_open", nr: unix.SYS_PIDFD_OPEN},
	{name: "pidfd_send_signal", nr: unix.SYS_PIDFD_SEND_SIGNAL, args: [6]uintptr{^uintptr(0)}},
	{name: "pidfd_getfd", nr: unix.SYS_PIDFD_GETFD, args: [6]uintptr{^uintptr(0)}},
	{name: "setuid", nr: unix.SYS_SETUID, args: [6]uintptr{^uintptr(0)}},
	{name: "setgid", nr: unix.SYS_SETGID, args: [6]uintptr{^uintptr(0)}},
	{name: "setresuid", nr: unix.SYS_SETRESUID, args: [6]uintptr{^uintptr(0), ^uintptr(0), ^uintptr(0)}},
	{name: "setfsuid", nr: unix.SYS_SETFSUID, args: [6]uintptr{^uintptr(0)}},
	{name: "capset", nr: unix.SYS_CAPSET},
	{name: "prctl", nr: unix.SYS_PRCTL, args: [6]uintptr{unix.PR_GET_DUMPABLE}},
	{name: "seccomp", nr: unix.SYS_SECCOMP, args: [6]uintptr{99}},
	{name: "perf_event_open", nr: unix.SYS_PERF_EVENT_OPEN},
	{name: "keyctl", nr: unix.SYS_KEYCTL, args: [6]uintptr{9999}},
	{name: "add_key", nr: unix.SYS_ADD_KEY},
	{name: "request_key", nr: unix.SYS_REQUEST_KEY},
	{name: "userfaultfd", nr: unix.SYS_USERFAULTFD, args: [6]uintptr{1<<20 | 1}},
	{name: "io_uring_setup", nr: unix.SYS_IO_URING_SETUP},
	{name: "io_uring_register", nr: unix.SYS_IO_URING_REGISTER, args: [6]uintptr{^uintptr(0)}},
	{name: "mount", nr: unix.SYS_MOUNT},
	{name: "umount2", nr: unix.SYS_UMOUNT2, args: [6]uintptr{1: 1 << 20}},
	{name: "memfd_create", nr: unix.SYS_MEMFD_CREATE},
	{name: "eventfd2", nr: unix.SYS_EVENTFD2, args: [6]uintptr{1: 1}},
	{name: "epoll_create1", nr: unix.SYS_EPOLL_CREATE1, args: [6]uintptr{1}},
	{name: "inotify_init1", nr: unix.SYS_INOTIFY_INIT1, args: [6]uintptr{1}},
	{name: "pipe2", nr: unix.SYS_PIPE2},
	{name: "personality", nr: unix.SYS_PERSONALITY, args: [6]uintptr{0xffffffff}}, // asks and changes nothing
	{name: "prlimit64", nr: unix.SYS_PRLIMIT64},
	{name: "unlinkat", nr: unix.SYS_UNLINKAT},
	{name: "getdents64", nr: unix.SYS_GETDENTS64},
	{name: "chdir", nr: unix.SYS_CHDIR},
	{name: "name_to_handle_at", nr: unix.SYS_NAME_TO_HANDLE_AT},
	{name: "msgget", nr: unix.SYS_MSGGET, args: [6]uintptr{99}},
	{name: "futex of another kind", nr: unix.SYS_FUTEX, args: [6]uintptr{1: 99}},
	{name: "mmap PROT_EXEC", nr: unix.SYS_MMAP, args: [6]uintptr{0, 4096, unix.PROT_READ | unix.PROT_EXEC, unix.MAP_PRIVATE | unix.MAP_ANONYMOUS, ^uintptr(0)}},
	{name: "mprotect PROT_EXEC", nr: unix.SYS_MPROTECT, args: [6]uintptr{2: unix.PROT_EXEC}},
	{name: "pkey_mprotect", nr: unix.SYS_PKEY_MPROTECT, args: [6]uintptr{2: unix.PROT_EXEC, 3: ^uintptr(0)}},
}

const (
	noProcess = 0x7ffffff0 // above every pid (PID_MAX_LIMIT is 4,194,304)
	// badClone asks for no thread, in a combination that the kernel refuses
	// (clone(2): CLONE_THREAD without CLONE_SIGHAND).
	badClone = unix.CLONE_THREAD
)

var root = [2]byte{'/', 0}

func pointer(b *[2]byte) uintptr { return uintptr(unsafe.Pointer(b)) }

// tryEverything is the proof that the filter is on and whole.
func tryEverything(fds Files) error {
	for _, a := range append(once, archAttempts...) {
		if err := a.try(); err != nil {
			return err
		}
	}
	for _, fd := range fds.all() {
		for _, a := range append(onDescriptors, forbidden(fds, fd)...) {
			a.args[0] = uintptr(fd)
			a.name = fmt.Sprintf("%s on descriptor %d", a.name, fd)
			if err := a.try(); err != nil {
				return err
			}
		}
	}
	return otherProcess()
}

// forbidden are the calls that are allowed on some descriptors, and not on fd.
func forbidden(fds Files, fd int) []attempt {
	var list []attempt
	packets, journal := slices.Contains(fds.packets(), fd), slices.Contains(fds.journals(), fd)
	if packets || journal || slices.Contains(fds.logs(), fd) {
		list = append(list, attempt{name: "write", nr: unix.SYS_WRITE})
	}
	if !packets {
		list = append(list, attempt{name: "recvmmsg", nr: unix.SYS_RECVMMSG})
	}
	if fd != fds.Capture {
		list = append(list, attempt{name: "getsockopt PACKET_STATISTICS", nr: unix.SYS_GETSOCKOPT, args: [6]uintptr{1: unix.SOL_PACKET, 2: unix.PACKET_STATISTICS}})
	}
	if !journal {
		list = append(list,
			attempt{name: "pwrite64", nr: unix.SYS_PWRITE64},
			attempt{name: "ftruncate", nr: unix.SYS_FTRUNCATE, args: [6]uintptr{1: ^uintptr(0)}},
			attempt{name: "fdatasync", nr: unix.SYS_FDATASYNC})
	}
	if fd != fds.Border {
		list = append(list, attempt{name: "recvmsg", nr: unix.SYS_RECVMSG})
	}
	return list
}

func (a attempt) try() error {
	_, _, errno := unix.RawSyscall6(a.nr, a.args[0], a.args[1], a.args[2], a.args[3], a.args[4], a.args[5])
	runtime.KeepAlive(&root)
	if errno != unix.EPERM {
		return fmt.Errorf("%s gave %q where the filter gives EPERM", a.name, errno)
	}
	return nil
}

// otherProcess tries to start one, which no bad argument can stand for: vfork
// and fork have none.
func otherProcess() error {
	pid, _, errno := unix.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	if errno == 0 && pid == 0 {
		unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
	}
	if errno != unix.EPERM {
		return fmt.Errorf("a process could be started: %q", errno)
	}
	if _, _, errno = unix.RawSyscall(unix.SYS_CLONE3, 0, 0, 0); errno != unix.ENOSYS {
		return fmt.Errorf("clone3 gave %q where the filter gives ENOSYS", errno)
	}
	return nil
}
