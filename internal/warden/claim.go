//go:build linux

package warden

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// claimName is an abstract socket (unix(7)): the kernel frees it with the
// process, and it belongs to the network namespace, as the table does.
const claimName = "@sallyport"

// claim makes sure that one daemon serves this network namespace: two would
// take each other's grants back. The socket lives as long as the process.
func claim() error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("claiming this machine: %w", err)
	}
	err = unix.Bind(fd, &unix.SockaddrUnix{Name: claimName})
	if err == nil {
		err = unix.Listen(fd, 1)
	}
	if err == nil {
		return nil
	}
	defer unix.Close(fd)
	if !errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("claiming this machine: %w", err)
	}
	return fmt.Errorf("another sallyport serves this machine already%s; stop it first, or send it SIGHUP to read its config again", holder(fd))
}

// holder says who has the name: anybody on this machine can take it, and then
// the administrator must know whom to ask.
func holder(fd int) string {
	if unix.Connect(fd, &unix.SockaddrUnix{Name: claimName}) != nil {
		return ""
	}
	c, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return ""
	}
	return fmt.Sprintf(" (pid %d, uid %d)", c.Pid, c.Uid)
}

func closeFd(fd int) { unix.Close(fd) }
