//go:build linux

package warden

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// claimName is an abstract socket (unix(7)): the kernel frees it with the
// process, and it belongs to the network namespace, as the table does.
const claimName = "@sallyport"

// claim makes sure that one daemon serves this network namespace: two would
// take each other's grants back. The socket lives as long as the process. Any
// user of this machine can take the name, and must not keep the daemon out by
// it: only root or our own user can be a daemon.
func claim(log *slog.Logger) error {
	l, err := net.Listen("unix", claimName)
	if err == nil {
		go release(l)
		return nil
	}
	if !errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("claiming this machine: %w", err)
	}
	h, err := holder()
	if !ours(h, err) {
		log.Warn("the abstract socket "+claimName+" is held by a program that is no daemon of ours, so a second daemon would not be noticed", "pid", h.Pid, "uid", h.Uid)
		return nil
	}
	return fmt.Errorf("another sallyport serves this machine already (pid %d, uid %d); stop it first, or send it SIGHUP to read its config again", h.Pid, h.Uid)
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

// holder asks the kernel who listens under the name. A daemon of ours always
// does; the error says that nobody listens.
func holder() (unix.Ucred, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return unix.Ucred{}, err
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: claimName}); err != nil {
		return unix.Ucred{}, err
	}
	c, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return unix.Ucred{}, err
	}
	return *c, nil
}

// serving reports whether a daemon serves this network namespace.
func serving() bool {
	h, err := holder()
	return ours(h, err)
}

func ours(holder unix.Ucred, err error) bool {
	return err == nil && (holder.Uid == 0 || int(holder.Uid) == os.Geteuid())
}

func closeFd(fd int) { unix.Close(fd) }
