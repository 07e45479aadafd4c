//go:build linux

// Package source reads packets from descriptors that the warden opened: whole
// ones from a packet socket or from an NFLOG group, their headers from the lines
// of a firewall's log, the data of datagrams from UDP sockets; and those of a
// capture file. It needs no privilege, opens nothing and sets nothing.
package source

import (
	"encoding/binary"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Source is the packets that arrive at one packet socket. One goroutine uses
// it.
type Source struct {
	inbox
	from [batch]unix.RawSockaddrLinklayer
}

// New reads from fd, an AF_PACKET socket of type SOCK_DGRAM; the caller keeps
// and closes it. The error says that fd is no such socket.
func New(fd int) (*Source, error) {
	if _, err := unix.GetsockoptTpacketStats(fd, unix.SOL_PACKET, unix.PACKET_STATISTICS); err != nil {
		return nil, fmt.Errorf("descriptor %d is no packet socket: %w", fd, err)
	}
	s := &Source{}
	s.open(fd, unix.SizeofSockaddrLinklayer, func(i int) unsafe.Pointer { return unsafe.Pointer(&s.from[i]) })
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
			return fmt.Errorf("receiving packets: %w; knocks are no longer seen", err)
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

// packet gives the i-th packet of the batch, or nil for what the filter should
// have kept out: the descriptor's filter is another process's work, and a
// packet that is not addressed to this host must not count even if it fails.
func (s *Source) packet(i int) []byte {
	from := &s.from[i]
	b := s.bytes(i)
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
