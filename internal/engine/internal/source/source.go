//go:build linux

// Package source reads packets from a descriptor that the warden opened. It
// needs no privilege, opens nothing and sets nothing.
package source

import (
	"encoding/binary"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// snap is the room for one packet in bytes. The capture's filter cuts at
	// the same number; what is longer arrives cut and loses only payload.
	snap = 2048
	// batch is how many packets one system call brings. At 64 the call itself
	// hardly counts beside the copying, and the buffers are 128 KiB, of which an
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

// Source is the packets that arrive at one packet socket. One goroutine uses
// it.
type Source struct {
	fd       int
	messages [batch]message
	vectors  [batch]unix.Iovec
	from     [batch]unix.RawSockaddrLinklayer
	buffers  [batch][snap]byte
}

// New reads from fd, an AF_PACKET socket of type SOCK_DGRAM; the caller keeps
// and closes it. The error says that fd is no such socket.
func New(fd int) (*Source, error) {
	if _, err := unix.GetsockoptTpacketStats(fd, unix.SOL_PACKET, unix.PACKET_STATISTICS); err != nil {
		return nil, fmt.Errorf("descriptor %d is no packet socket: %w", fd, err)
	}
	s := &Source{fd: fd}
	for i := range s.messages {
		s.vectors[i].Base = &s.buffers[i][0]
		s.vectors[i].SetLen(snap)
		h := &s.messages[i].header
		h.Name = (*byte)(unsafe.Pointer(&s.from[i]))
		h.Iov = &s.vectors[i]
		h.SetIovlen(1)
	}
	return s, nil
}

// Drain hands over the packets that wait, at most 256 of them, in the order of
// their arrival: each from its IP header on, with the index of the interface
// that it came in by. The bytes are valid until observe returns. It does not
// wait and allocates nothing. An error means that the socket is of no more use.
func (s *Source) Drain(observe func(b []byte, ifindex int)) error {
	for range batches {
		n, err := s.receive()
		if err != nil {
			return err
		}
		for i := range n {
			if b := s.packet(i); b != nil {
				observe(b, int(s.from[i].Ifindex))
			}
		}
		if n < batch {
			return nil
		}
	}
	return nil
}

// receive fills the buffers with what waits and gives the number of packets.
func (s *Source) receive() (int, error) {
	for i := range s.messages {
		// The kernel overwrites the room for the address with its length.
		s.messages[i].header.Namelen = unix.SizeofSockaddrLinklayer
	}
	for {
		n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(s.fd), uintptr(unsafe.Pointer(&s.messages)), batch, unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		case unix.EAGAIN:
			return 0, nil
		default:
			return 0, fmt.Errorf("receiving packets: %w; knocks are no longer seen", errno)
		}
	}
}

// packet gives the i-th packet of the batch, or nil for what the filter should
// have kept out: the descriptor's filter is another process's work, and a
// packet that is not addressed to this host must not count even if it fails.
func (s *Source) packet(i int) []byte {
	from := &s.from[i]
	b := s.buffers[i][:min(s.messages[i].length, snap)]
	if from.Pkttype != unix.PACKET_HOST || len(b) == 0 {
		return nil
	}
	// What the frame says must be what the packet says, or the host, which goes
	// by the frame, reads another packet than we do.
	if from.Protocol == ethIPv4 && b[0]>>4 == 4 || from.Protocol == ethIPv6 && b[0]>>4 == 6 {
		return b
	}
	return nil
}

// EtherTypes as they stand in a sockaddr_ll: in network byte order.
var ethIPv4, ethIPv6 = htons(unix.ETH_P_IP), htons(unix.ETH_P_IPV6)

func htons(v uint16) uint16 {
	return binary.NativeEndian.Uint16([]byte{byte(v >> 8), byte(v)})
}

// Stats gives the packets that passed the filter since the last call, and how
// many of them were dropped because the receive buffer was full.
func (s *Source) Stats() (received, dropped uint32) {
	stats, err := unix.GetsockoptTpacketStats(s.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		return 0, 0 // the same socket's Drain says what is wrong
	}
	return stats.Packets, stats.Drops
}
