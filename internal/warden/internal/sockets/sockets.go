// Package sockets lists the sockets of this host.
package sockets

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/internal/sequence"
)

// States is a set of states as bits, by the kernel's numbers (tcp_states.h).
type States uint32

// The states that List is asked for.
const (
	Unconnected States = 1 << 7  // TCP_CLOSE, which is also a UDP socket without a peer
	Listening   States = 1 << 10 // TCP_LISTEN

	// Connections are the states 1 to 12 but TIME_WAIT, which has no socket any
	// more, and those above.
	Connections States = 1<<13 - 2 - 1<<6 - Unconnected - Listening
)

// Socket is one socket by its two ends; IPv4 is IPv4, also when an IPv6 socket
// carries it. One that listens has no remote end: it is the zero address.
type Socket struct{ Local, Remote netip.AddrPort }

// OneAddress reports whether the socket takes what is sent to one address only
// and strangers can send there: nobody outside can dial a loopback address.
func (s Socket) OneAddress() bool {
	return !s.Local.Addr().IsUnspecified() && !s.Local.Addr().IsLoopback()
}

// List asks sock_diag(7) for the TCP or UDP sockets of both families in the
// current network namespace that are in one of the states. The kernel chooses:
// a busy host has a hundred thousand connections and a dozen listeners.
func List(proto sequence.Proto, states States) ([]Socket, error) {
	var out []Socket
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		request := make([]byte, 56) // struct inet_diag_req_v2
		request[0], request[1] = family, byte(proto)
		binary.NativeEndian.PutUint32(request[4:], uint32(states))
		r := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
		r.AddRawData(request)
		answers, err := r.Execute(unix.NETLINK_INET_DIAG, 0)
		if err != nil {
			return nil, fmt.Errorf("this host's sockets could not be listed: %w", err)
		}
		for _, a := range answers {
			if s, ok := parse(a); ok {
				out = append(out, s)
			}
		}
	}
	return out, nil
}

// parse reads struct inet_diag_msg: four bytes, of which the first is the
// family, the two ports, and the two addresses in 16 bytes each.
func parse(b []byte) (s Socket, ok bool) {
	if len(b) < 40 {
		return s, false
	}
	addr := func(at int) netip.Addr {
		if b[0] == unix.AF_INET {
			return netip.AddrFrom4([4]byte(b[at:]))
		}
		return netip.AddrFrom16([16]byte(b[at:])).Unmap()
	}
	s.Local = netip.AddrPortFrom(addr(8), binary.BigEndian.Uint16(b[4:]))
	s.Remote = netip.AddrPortFrom(addr(24), binary.BigEndian.Uint16(b[6:]))
	return s, s.Local.Port() != 0
}
