//go:build linux

package source

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Socket is the datagrams that arrive at one UDP socket. One goroutine uses it.
type Socket struct {
	inbox
	port uint16
	from [batch]unix.RawSockaddrInet6 // or RawSockaddrInet4, which is shorter
}

// NewSocket reads from fd, a bound UDP socket that takes datagrams from
// everybody, of IPv6, IPv4 or both; the caller keeps and closes it. It asks the
// kernel about fd, so it comes before the sandbox. The error says that fd is no
// such socket.
func NewSocket(fd int) (*Socket, error) {
	port, err := boundPort(fd)
	if err != nil {
		return nil, fmt.Errorf("descriptor %d is no UDP socket to read from: %w", fd, err)
	}
	s := &Socket{port: port}
	s.open(fd, unix.SizeofSockaddrInet6, func(i int) unsafe.Pointer { return unsafe.Pointer(&s.from[i]) })
	return s, nil
}

// boundPort asks what fd is, and for its port.
func boundPort(fd int) (uint16, error) {
	switch proto, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL); {
	case err != nil:
		return 0, err
	case proto != unix.IPPROTO_UDP:
		return 0, errors.New("it speaks another protocol")
	}
	if _, err := unix.Getpeername(fd); err != unix.ENOTCONN {
		return 0, errors.New("it is connected and hears one sender alone")
	}
	local, err := unix.Getsockname(fd)
	if err != nil {
		return 0, err
	}
	port := 0
	switch local := local.(type) {
	case *unix.SockaddrInet4:
		port = local.Port
	case *unix.SockaddrInet6:
		port = local.Port
	}
	if port == 0 {
		return 0, errors.New("it is bound to no port")
	}
	return uint16(port), nil
}

// Drain hands over the datagrams that wait, at most 256 of them, in the order
// of their arrival: the data, who sent it, and the port that it came to. What is
// longer than any that a client of ours makes is left out. The bytes are valid
// until observe returns. It does not wait and allocates nothing. An error means
// that the socket is of no more use.
func (s *Socket) Drain(observe func(payload []byte, src netip.AddrPort, dstPort uint16)) error {
	for range batches {
		n, err := s.receive()
		if err != nil {
			return fmt.Errorf("receiving datagrams on port %d: %w; spa knocks are no longer seen", s.port, err)
		}
		for i := range n {
			// Half of a message is not what its sender meant.
			if src := s.sender(i); src.IsValid() && !s.cut(i) {
				observe(s.bytes(i), src, s.port)
			}
		}
		if n < batch {
			return nil
		}
	}
	return nil
}

// sender gives the i-th datagram's sender, or the zero value for an address of
// a kind that UDP has not. A zone is left out: it says by which interface a
// link-local sender came, and no grant knows interfaces.
func (s *Socket) sender(i int) netip.AddrPort {
	from := &s.from[i]
	// Both families have the port at the same place, in network byte order.
	port := binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(&from.Port))[:])
	switch from.Family {
	case unix.AF_INET:
		return netip.AddrPortFrom(netip.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(from)).Addr), port)
	case unix.AF_INET6:
		return netip.AddrPortFrom(netip.AddrFrom16(from.Addr).Unmap(), port)
	}
	return netip.AddrPort{}
}
