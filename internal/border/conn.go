//go:build linux

package border

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Conn is one end of the border: a SOCK_SEQPACKET socket (unix(7)), which
// keeps datagrams whole and tells when the other side is gone.
type Conn struct{ fd int }

// sendLimit is how long the warden waits for an engine that does not read. An
// engine that reads nothing for so long is stuck or hijacked.
const sendLimit = 10 * time.Second

// Pair makes the border. The warden's end blocks; the engine's end does not,
// because the engine serves many sources and must never wait for one message.
func Pair() (warden *Conn, engine *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("border: socketpair: %w", err)
	}
	limit := unix.NsecToTimeval(int64(sendLimit))
	err = errors.Join(
		unix.SetsockoptTimeval(fds[0], unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit),
		unix.SetNonblock(fds[1], true))
	if err != nil {
		unix.Close(fds[0])
		unix.Close(fds[1])
		return nil, nil, fmt.Errorf("border: %w", err)
	}
	return NewConn(fds[0]), os.NewFile(uintptr(fds[1]), "border"), nil
}

// NewConn takes over a socket that Pair made: the engine inherits it by number.
func NewConn(fd int) *Conn { return &Conn{fd: fd} }

// Fd is the socket's number, for poll(2).
func (c *Conn) Fd() int { return c.fd }

// Close closes this end; the other side's Receive then gives io.EOF.
func (c *Conn) Close() error { return unix.Close(c.fd) }

// Send sends one message. It uses write(2), the only call that the engine's
// sandbox leaves it for sending; the error is EAGAIN when the queue is full.
func (c *Conn) Send(m Message) error {
	b := Encode(m)
	return again(func() error { _, err := unix.Write(c.fd, b[:]); return err })
}

// again repeats a call that a signal interrupted. Go's runtime uses signals,
// and a socket with a time limit is never restarted (signal(7)).
func again(call func() error) error {
	for {
		if err := call(); err != unix.EINTR {
			return err
		}
	}
}

// SendFile sends one message and, with it, a descriptor. The caller keeps its
// own copy of the descriptor and closes it.
func (c *Conn) SendFile(m Message, fd int) error {
	b := Encode(m)
	return again(func() error { return unix.Sendmsg(c.fd, b[:], unix.UnixRights(fd), nil, unix.MSG_NOSIGNAL) })
}

// SendJSON sends one message with v as JSON in a sealed memory file: the
// receiver can map or read it, and nobody can change it any more.
func (c *Conn) SendJSON(m Message, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	fd, err := unix.MemfdCreate("border", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return fmt.Errorf("border: memfd_create: %w", err)
	}
	defer unix.Close(fd)
	for at := 0; at < len(text); {
		n, err := unix.Pwrite(fd, text[at:], int64(at))
		if err != nil {
			return fmt.Errorf("border: %w", err)
		}
		at += n
	}
	const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		return fmt.Errorf("border: sealing: %w", err)
	}
	return c.SendFile(m, fd)
}

// Receive gives the next message and the descriptor that came with it, or -1.
// It ends with io.EOF when the other side is gone, with EAGAIN when a
// non-blocking end has nothing, with ErrMessage when the datagram is no message
// or carries a descriptor that its kind does not have.
func (c *Conn) Receive() (Message, int, error) {
	var b [Size + 1]byte // one byte more, so that a longer datagram shows
	var oob [64]byte     // room for more than the one descriptor that may come
	var n, oobn, flags int
	err := again(func() (err error) {
		n, oobn, flags, _, err = unix.Recvmsg(c.fd, b[:], oob[:], unix.MSG_CMSG_CLOEXEC)
		return err
	})
	if err != nil {
		return nil, -1, err
	}
	if n == 0 {
		return nil, -1, io.EOF
	}
	fds := descriptors(oob[:oobn])
	m, err := Decode(b[:n])
	if err == nil && flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) == 0 && len(fds) == descriptorsOf(m) {
		if len(fds) == 1 {
			return m, fds[0], nil
		}
		return m, -1, nil
	}
	for _, fd := range fds {
		unix.Close(fd)
	}
	return nil, -1, ErrMessage
}

// descriptorsOf is how many descriptors a message of this kind carries.
func descriptorsOf(m Message) int {
	switch m.(type) {
	case *Config, *Host, *Control, *Listing:
		return 1
	}
	return 0
}

func descriptors(oob []byte) []int {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	var fds []int
	for i := range messages {
		got, err := unix.ParseUnixRights(&messages[i])
		if err == nil {
			fds = append(fds, got...)
		}
	}
	return fds
}

// maxBulk bounds what one memory file may bring, in bytes.
const maxBulk = 64 << 20

// ReadJSON reads a memory file that came with a message into v and closes it.
func ReadJSON(fd int, v any) error {
	defer unix.Close(fd)
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		return fmt.Errorf("border: fstat: %w", err)
	}
	if stat.Size > maxBulk {
		return fmt.Errorf("border: a memory file of %d bytes is over the bound of %d", stat.Size, maxBulk)
	}
	text := make([]byte, stat.Size)
	for at := 0; at < len(text); {
		n, err := unix.Pread(fd, text[at:], int64(at))
		if err != nil {
			return fmt.Errorf("border: pread: %w", err)
		}
		if n == 0 {
			return io.ErrUnexpectedEOF
		}
		at += n
	}
	return json.Unmarshal(text, v)
}
