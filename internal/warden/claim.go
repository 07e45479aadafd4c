//go:build linux

package warden

import (
	"errors"
	"fmt"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// claimName is an abstract socket (unix(7)): the kernel frees it with the
// process, and it belongs to the network namespace, as the table does.
const claimName = "@sallyport"

// claim makes sure that one daemon serves this network namespace: two would
// take each other's grants back. The socket lives as long as the process.
func claim() error {
	l, err := net.Listen("unix", claimName)
	if err == nil {
		go release(l)
		return nil
	}
	if !errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("claiming this machine: %w", err)
	}
	return fmt.Errorf("another sallyport serves this machine already%s; stop it first, or send it SIGHUP to read its config again", holder())
}

// release lets go of those who asked who we are: the kernel has told them, and
// a full queue would make the next one wait.
func release(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			time.Sleep(100 * time.Millisecond) // EMFILE passes
			continue
		}
		conn.Close()
	}
}

// holder says who has the name: anybody on this machine can take it, and then
// the administrator must know whom to ask.
func holder() string {
	unknown := fmt.Sprintf(" or some program holds its name, the abstract socket %s, and does not say who it is", claimName)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return unknown
	}
	defer unix.Close(fd)
	if unix.Connect(fd, &unix.SockaddrUnix{Name: claimName}) != nil {
		return unknown
	}
	c, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return unknown
	}
	return fmt.Sprintf(" (pid %d, uid %d)", c.Pid, c.Uid)
}

func closeFd(fd int) { unix.Close(fd) }
