//go:build linux

package source

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// snap is the room for one packet in bytes. The capture's filter cuts at
	// the same number, three glued SPA datagrams with their headers; what is
	// longer arrives cut.
	snap = 4608
	// batch is how many packets one system call brings. At 64 the call itself
	// hardly counts beside the copying, and the buffers are 288 KiB, of which an
	// idle daemon touches a page or two.
	batch = 64
	// batches bounds one Drain to 256 packets, well under a millisecond of work:
	// a flood must not keep the border and the administrator waiting.
	batches = 4
)

// message is struct mmsghdr of recvmmsg(2).
type message struct {
	header unix.Msghdr
	length uint32
}

// inbox is the room for a batch of packets from one socket.
type inbox struct {
	fd       int
	size     uint32 // of a sender's address, in bytes
	messages [batch]message
	vectors  [batch]unix.Iovec
	buffers  [batch][snap]byte
}

// open makes the inbox ready for fd. The kernel writes the i-th sender's
// address, of so many bytes, to from(i), which the caller keeps alive.
func (in *inbox) open(fd int, size uint32, from func(i int) unsafe.Pointer) {
	in.fd, in.size = fd, size
	for i := range in.messages {
		in.vectors[i].Base = &in.buffers[i][0]
		in.vectors[i].SetLen(snap)
		h := &in.messages[i].header
		h.Name = (*byte)(from(i))
		h.Iov = &in.vectors[i]
		h.SetIovlen(1)
	}
}

// receive fills the buffers with what waits and gives the number of packets.
func (in *inbox) receive() (int, error) {
	for i := range in.messages {
		// The kernel overwrites the room for the address with its length.
		in.messages[i].header.Namelen = in.size
	}
	for {
		n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(in.fd), uintptr(unsafe.Pointer(&in.messages)), batch, unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		case unix.EAGAIN:
			return 0, nil
		default:
			return 0, errno
		}
	}
}

// bytes gives what the inbox has of the i-th packet.
func (in *inbox) bytes(i int) []byte { return in.buffers[i][:min(in.messages[i].length, snap)] }

// cut reports whether the i-th packet was longer than its room.
func (in *inbox) cut(i int) bool { return in.messages[i].header.Flags&unix.MSG_TRUNC != 0 }
