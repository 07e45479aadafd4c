//go:build linux

package warden

import (
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"sync"

	"github.com/sallyport/sallyport/internal/border"
	"golang.org/x/sys/unix"
)

// link is the running engine and the border to it. Whatever goes wrong with
// either ends the daemon: half a daemon is worse than none, which systemd
// starts again.
type link struct {
	*border.Conn
	child    *child
	messages chan border.Message
	ended    chan struct{} // closed at the end, when err is set
	err      error         // the first reason for the end
	once     sync.Once
}

// startEngine starts the engine with one end of a new border; the other
// descriptors that it gets are the caller's.
func startEngine(f engineFiles) (*link, error) {
	conn, file, err := border.Pair()
	if err != nil {
		return nil, err
	}
	defer file.Close()
	engineEnd, err := file.SyscallConn()
	if err != nil {
		return nil, err
	}
	l := &link{Conn: conn, messages: make(chan border.Message), ended: make(chan struct{})}
	// Fd() would make the engine's end block, see os.File.
	controlErr := engineEnd.Control(func(fd uintptr) {
		f.border = int(fd)
		l.child, err = start(f)
	})
	if err = errors.Join(err, controlErr); err != nil {
		conn.Close()
		return nil, fmt.Errorf("starting the engine: %w", err)
	}
	// Of a user without privilege nobody expects more walls.
	if notes := l.child.notes; len(notes) > 0 && (!f.replay || unix.Geteuid() == 0) {
		f.log.Warn("the engine has no privilege, but fewer walls than it could have: " + strings.Join(notes, "; "))
	}
	go l.read()
	go func() { l.fail(l.child.wait()) }()
	return l, nil
}

// read passes on what the engine sends. It waits for the warden, so that an
// engine that asks too fast waits in its own queue.
func (l *link) read() {
	for {
		m, fd, err := l.Receive()
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, unix.ECONNRESET):
			return // the engine is gone, and wait says how
		case err == nil && fd >= 0:
			closeFd(fd)
			err = border.ErrMessage // the engine has nothing to hand over
		}
		if err != nil {
			l.fail(fmt.Errorf("the engine is not itself any more: %w", err))
			return
		}
		select {
		case l.messages <- m:
		case <-l.ended:
			return
		}
		// The next receive blocks this thread with the message still unserved;
		// let it be served here first, or it waits for another thread to wake.
		runtime.Gosched()
	}
}

// fail ends the daemon with err, unless it is ending already.
func (l *link) fail(err error) {
	l.once.Do(func() {
		l.err = err
		close(l.ended)
	})
}

// close ends the engine.
func (l *link) close() {
	l.child.kill()
	l.Close()
}
