// Package sockets lists the sockets of this host, and ends connections.
package sockets

import (
	"encoding/binary"
	"errors"
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
	Established States = 1 << 1  // TCP_ESTABLISHED

	// Connections are the states 1 to 12 but TIME_WAIT, which has no socket any
	// more, and those above.
	Connections States = 1<<13 - 2 - 1<<6 - Unconnected - Listening
	// Live are those of them in which something can still be said: without
	// LAST_ACK and CLOSING, where both ends have closed.
	Live States = Connections - 1<<9 - 1<<11
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
	err := each(proto, states, func(s Socket, _ []byte) { out = append(out, s) })
	return out, err
}

// each calls f for each socket with its struct inet_diag_msg.
func each(proto sequence.Proto, states States, f func(s Socket, message []byte)) error {
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		r := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
		r.AddRawData(request(family, proto, states, nil))
		answers, err := r.Execute(unix.NETLINK_INET_DIAG, 0)
		if err != nil {
			return fmt.Errorf("this host's sockets could not be listed: %w", err)
		}
		for _, a := range answers {
			if s, ok := parse(a); ok {
				f(s, a)
			}
		}
	}
	return nil
}

// The place and length of struct inet_diag_sockid in struct inet_diag_msg, in
// bytes: ports, addresses, interface and cookie.
const (
	atID   = 4
	idSize = 48
)

// request gives struct inet_diag_req_v2; id is a struct inet_diag_sockid, or nil
// for any socket.
func request(family byte, proto sequence.Proto, states States, id []byte) []byte {
	r := make([]byte, 8+idSize)
	r[0], r[1] = family, byte(proto)
	binary.NativeEndian.PutUint32(r[4:], uint32(states))
	copy(r[8:], id)
	return r
}

// Destroy ends the TCP connections of this host that match, as if their peers
// had reset them (SOCK_DESTROY), and gives how many. The cookie in a socket's id
// keeps a new one with the same addresses alive. It needs CAP_NET_ADMIN and a
// kernel with CONFIG_INET_DIAG_DESTROY; one failure stops none of the others.
func Destroy(match func(Socket) bool) (n int, err error) {
	var found [][]byte
	err = each(sequence.TCP, Connections, func(s Socket, message []byte) {
		if match(s) && len(message) >= atID+idSize {
			found = append(found, message)
		}
	})
	errs := []error{err}
	for _, message := range found {
		r := nl.NewNetlinkRequest(nl.SOCK_DESTROY, unix.NLM_F_ACK)
		r.AddRawData(request(message[0], sequence.TCP, Connections, message[atID:atID+idSize]))
		_, err := r.Execute(unix.NETLINK_INET_DIAG, 0)
		switch {
		case err == nil:
			n++
		case errors.Is(err, unix.ENOENT): // it ended by itself meanwhile
		case errors.Is(err, unix.EOPNOTSUPP):
			return n, fmt.Errorf("this kernel ends no connections (CONFIG_INET_DIAG_DESTROY is off): %w; restart the service instead", err)
		default:
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return n, fmt.Errorf("connections of this host live on: %w", err)
	}
	return n, nil
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
