//go:build linux

package warden

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/internal/border"
	"github.com/sallyport/sallyport/internal/control"
)

// controlSockets accept the administrator's connections. The warden looks at who
// is there and by which socket he came, never at what he says: the connection
// goes to the engine unread.
type controlSockets struct {
	listeners []net.Listener
	accepted  chan visit
	log       *slog.Logger
	last      uint32
}

// visit is an administrator's connection. Only one that came by the socket for
// changes gets a ticket: a hijacked engine must not be able to open a service
// because somebody asked for the status.
type visit struct {
	*net.UnixConn
	changes bool
}

// listen opens both control sockets.
func listen(path string, log *slog.Logger) (*controlSockets, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("the control socket: %w; make the directory, or set control", err)
	}
	c := &controlSockets{accepted: make(chan visit), log: log}
	for _, socket := range []struct {
		path    string
		changes bool
	}{{path, false}, {control.ChangeSocket(path), true}} {
		l, err := listenUnix(socket.path)
		if err != nil {
			c.close()
			return nil, err
		}
		c.listeners = append(c.listeners, l)
		go c.accept(l, socket.changes)
	}
	return c, nil
}

// listenUnix opens one socket, mode 0600. A file that a daemon left behind,
// killed or not, is replaced.
func listenUnix(path string) (*net.UnixListener, error) {
	if info, err := os.Lstat(path); err == nil {
		if info.Mode().Type() != os.ModeSocket {
			return nil, fmt.Errorf("the control socket: %s is there and is no socket; move it away, or set control", path)
		}
		// Another network namespace has a claim of its own but may share the file.
		if conn, err := net.Dial("unix", path); err == nil {
			conn.Close()
			return nil, fmt.Errorf("the control socket: another daemon answers at %s; set control to another path", path)
		}
		os.Remove(path)
	}
	old := unix.Umask(0o177)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	unix.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("the control socket: %w; make %s writable for root, or set control", err, filepath.Dir(path))
	}
	l.SetUnlinkOnClose(false) // by then the path may be another daemon's
	return l, nil
}

func (c *controlSockets) accept(l *net.UnixListener, changes bool) {
	for {
		conn, err := l.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(100 * time.Millisecond) // EMFILE passes; spinning on it would not help
			continue
		}
		if !mayControl(conn) {
			c.log.Warn("a connection to the control socket was refused: only root and the daemon's own user may")
			conn.Close()
			continue
		}
		c.accepted <- visit{conn, changes}
	}
}

// mayControl asks the kernel who is at the other end (unix(7), SO_PEERCRED):
// the mode of the file is not the only thing between a user and the firewall.
func mayControl(conn *net.UnixConn) bool {
	raw, err := conn.SyscallConn()
	if err != nil {
		return false
	}
	allowed := false
	raw.Control(func(fd uintptr) {
		c, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		allowed = err == nil && (c.Uid == 0 || int(c.Uid) == os.Geteuid())
	})
	return allowed
}

func (c *controlSockets) close() {
	for _, l := range c.listeners {
		l.Close()
	}
}

// pass hands a connection to the engine, with a ticket for one change if it came
// by the socket for changes.
func (w *warden) pass(v visit) {
	defer v.Close() // the engine gets a copy of the descriptor
	m := &border.Control{}
	if v.changes {
		w.control.last++
		m.Ticket = w.control.last
		w.gate.tickets.issue(m.Ticket, time.Now())
	}
	raw, err := v.SyscallConn()
	if err != nil {
		return
	}
	raw.Control(func(fd uintptr) { // non-blocking already: package net sees to that
		err = w.engine.SendFile(m, int(fd))
	})
	if err != nil {
		w.engine.fail(fmt.Errorf("the border broke: %w", err))
	}
}
