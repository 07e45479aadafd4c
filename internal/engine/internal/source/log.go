//go:build linux

package source

import (
	"bytes"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// chunk is how many bytes one read brings at most, about 60 lines.
const chunk = 16 << 10

// Log is the lines of a firewall's log that come through a pipe. One goroutine uses
// it.
type Log struct {
	fd       int
	lines    Lines
	size     int  // bytes of an unfinished line at the beginning of buffer
	skipping bool // the rest of a line that is too long
	buffer   [maxLine + chunk]byte
	headers  [maxHeaders]byte
	clock    func() time.Time
	now      int64 // seconds since 1970, when the lines in hand came
	received uint32
	dropped  uint32
	declined uint32
	other    uint32
}

// NewLog reads from fd, the reading end of a pipe that does not block; the caller
// keeps and closes it. It asks the kernel about fd, so it comes before the sandbox.
// The error says that fd is no such pipe.
func NewLog(fd int) (*Log, error) {
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		return nil, fmt.Errorf("descriptor %d: %w", fd, err)
	}
	how, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil || stat.Mode&unix.S_IFMT != unix.S_IFIFO || how&unix.O_ACCMODE != unix.O_RDONLY || how&unix.O_NONBLOCK == 0 {
		return nil, fmt.Errorf("descriptor %d is no pipe to read lines from without waiting", fd)
	}
	return &Log{fd: fd, clock: time.Now}, nil
}

// Use says which lines count from now on. Before it none does.
func (l *Log) Use(lines Lines) { l.lines = lines }

// Drain hands over the packets that waiting lines tell of, at most 64 KiB of lines,
// in their order: each as the headers that the line shows, from the IP header on,
// with the index of the interface that it came in by, or -1 for one that is not
// known. The bytes are valid until observe returns. It does not wait and allocates
// nothing. An error means that no line will come any more.
func (l *Log) Drain(observe func(b []byte, ifindex int)) error {
	for range batches {
		n, err := unix.Read(l.fd, l.buffer[l.size:l.size+chunk])
		switch {
		case err == unix.EAGAIN:
			return nil
		case err == unix.EINTR:
			continue
		case err != nil:
			return fmt.Errorf("reading lines of the log: %w; knocks are no longer seen", err)
		case n == 0:
			return errors.New("nobody follows the log any more; knocks are no longer seen")
		}
		l.now = l.clock().Unix()
		l.split(l.size+n, observe)
	}
	return nil
}

// split takes the whole lines out of the first n bytes and keeps what is behind.
func (l *Log) split(n int, observe func(b []byte, ifindex int)) {
	rest := l.buffer[:n]
	for {
		end := bytes.IndexByte(rest, '\n')
		if end < 0 {
			break
		}
		l.line(rest[:end], observe)
		rest = rest[end+1:]
	}
	// A line that has no end in sight is not kept: a forger's would fill the buffer.
	if len(rest) > maxLine {
		l.skipping = true
		rest = nil
	}
	l.size = copy(l.buffer[:], rest)
	if l.skipping {
		l.size = 0
	}
}

func (l *Log) line(b []byte, observe func(b []byte, ifindex int)) {
	switch {
	case l.skipping:
		l.skipping = false
		l.dropped++
		return
	case bytes.IndexByte(b, 0) >= 0: // the warden's mark: lines are missing here
		l.dropped++
		return
	}
	p := parser{now: l.now}
	link, ok := p.read(b, &l.lines, &l.headers)
	switch {
	case !ok && bytes.Contains(b, []byte("IN=")):
		l.declined++
		return
	case !ok:
		return // somebody else's words
	case p.other:
		l.declined++
		l.other++
		return
	}
	l.received++
	index, known := l.lines.Links[string(link)]
	if !known {
		index = -1
	}
	observe(p.packet, index)
}

// Stats gives the lines since the last call that told of a packet, and how often
// some were lost: torn by a rotation, overrun in the kernel, or longer than 2,048
// bytes.
func (l *Log) Stats() (received, dropped uint32) {
	received, dropped = l.received, l.dropped
	l.received, l.dropped = 0, 0
	return received, dropped
}

// Declined gives the lines since the last call that speak of an interface, as a
// firewall's do, and did not count; and how many of these only because their time was
// more than a minute from now.
func (l *Log) Declined() (declined, other uint32) {
	declined, other = l.declined, l.other
	l.declined, l.other = 0, 0
	return declined, other
}
