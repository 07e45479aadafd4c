//go:build linux

package source

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// NFLOG is the packets that rules of the host's firewall send to one group. One
// goroutine uses it.
type NFLOG struct {
	inbox
	from     [batch]unix.RawSockaddrNetlink
	next     uint32 // number of the next packet, once one came
	began    bool
	received uint32
	dropped  uint32
}

// NewNFLOG reads from fd, a netlink socket that is bound to a group; the caller
// keeps and closes it. It asks the kernel about fd, so it comes before the sandbox.
// The error says that fd is no such socket.
func NewNFLOG(fd int) (*NFLOG, error) {
	proto, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err == nil {
		var domain int
		if domain, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN); domain != unix.AF_NETLINK || proto != unix.NETLINK_NETFILTER {
			err = errors.Join(err, errors.New("it is of another kind"))
		}
	}
	if err != nil {
		return nil, fmt.Errorf("descriptor %d is no netlink socket of the firewall's: %w", fd, err)
	}
	s := &NFLOG{}
	s.open(fd, unix.SizeofSockaddrNetlink, func(i int) unsafe.Pointer { return unsafe.Pointer(&s.from[i]) })
	return s, nil
}

// Drain hands over the packets that wait, at most 256 of them, in the order of
// their arrival: each from its IP header on, with the index of the interface that
// it came in by. The bytes are valid until observe returns. It does not wait and
// allocates nothing. An error means that the socket is of no more use.
func (s *NFLOG) Drain(observe func(b []byte, ifindex int)) error {
	for range batches {
		n, err := s.receive()
		if err == unix.ENOBUFS {
			continue // packets were lost, and their numbers will say how many
		}
		if err != nil {
			return fmt.Errorf("receiving from the NFLOG group: %w; knocks are no longer seen", err)
		}
		for i := range n {
			if s.from[i].Pid == 0 { // the kernel; a process can't be 0
				s.messages(s.bytes(i), s.cut(i), observe)
			}
		}
		if n < batch {
			return nil
		}
	}
	return nil
}

const (
	messageHeader = 20                         // bytes: struct nlmsghdr and struct nfgenmsg behind it
	packetMessage = unix.NFNL_SUBSYS_ULOG << 8 // and NFULNL_MSG_PACKET, which is 0

	// linux/netfilter/nfnetlink_log.h: enum nfulnl_attr_type.
	attrHeader, attrIn, attrPayload, attrNumber = 1, 4, 9, 12
	// attrKind is what of an attribute's type says which it is (linux/netlink.h,
	// NLA_TYPE_MASK).
	attrKind                  = 0x3fff
	hookPrerouting, hookInput = 0, 1 // linux/netfilter.h: enum nf_inet_hooks
)

// messages takes the packets out of one datagram of the kernel's: as the group is
// set, one. Of one that is longer than the buffer the end is missing, and that is
// the packet's end, which the kernel writes last.
func (s *NFLOG) messages(b []byte, cut bool, observe func(b []byte, ifindex int)) {
	for len(b) >= messageHeader {
		size := int(binary.NativeEndian.Uint32(b))
		if size > len(b) && cut {
			size = len(b)
		}
		if size < messageHeader || size > len(b) {
			return
		}
		if binary.NativeEndian.Uint16(b[4:]) == packetMessage {
			s.packet(b[16], b[messageHeader:size], cut, observe)
		}
		b = b[min((size+3)&^3, len(b)):]
	}
}

// packet reads one message's attributes. Only packets on their way in count: a
// rule in forward or output, or in a bridge, sees those of others.
func (s *NFLOG) packet(family byte, attrs []byte, cut bool, observe func(b []byte, ifindex int)) {
	var payload []byte
	hook, ifindex := byte(0xff), -1
	for len(attrs) >= 4 {
		size, kind := int(binary.NativeEndian.Uint16(attrs)), binary.NativeEndian.Uint16(attrs[2:])&attrKind
		if size > len(attrs) && cut {
			size = len(attrs)
		}
		if size < 4 || size > len(attrs) {
			return
		}
		switch value := attrs[4:size]; {
		case kind == attrHeader && len(value) == 4: // protocol, hook, padding
			hook = value[2]
		case kind == attrIn && len(value) == 4:
			ifindex = int(binary.BigEndian.Uint32(value))
		case kind == attrNumber && len(value) == 4:
			s.count(binary.BigEndian.Uint32(value))
		case kind == attrPayload:
			payload = value
		}
		attrs = attrs[min((size+3)&^3, len(attrs)):]
	}
	if len(payload) == 0 || ifindex <= 0 || hook != hookPrerouting && hook != hookInput {
		return
	}
	if family == unix.AF_INET && payload[0]>>4 == 4 || family == unix.AF_INET6 && payload[0]>>4 == 6 {
		observe(payload, ifindex)
	}
}

// count notes a packet's number: those in between were lost for want of room.
func (s *NFLOG) count(number uint32) {
	if s.began {
		s.dropped += number - s.next
	}
	s.received++
	s.began, s.next = true, number+1
}

// Stats gives the packets that the rules sent to the group since the last call, and
// how many of them were lost because the receive buffer was full.
func (s *NFLOG) Stats() (received, dropped uint32) {
	received, dropped = s.received+s.dropped, s.dropped
	s.received, s.dropped = 0, 0
	return received, dropped
}
