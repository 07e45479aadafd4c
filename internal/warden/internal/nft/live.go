package nft

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TCP states as in the kernel's tcp_states.h.
const (
	stateTimeWait = 6
	stateClose    = 7
	stateListen   = 10
)

// Connection is one TCP connection of this host, by its two ends.
type Connection struct{ Remote, Local netip.AddrPort }

// Live looks at the TCP sockets of the current network namespace and gives what
// Options.Live wants. It is nil where the socket rule is safe, and that is
// everywhere but where a guarded port has a listener bound to one address: to
// the kernel's socket lookup such a listener looks like a connection, so that a
// stranger's ACK probe would be let through to it and answered. There it gives
// the connections to guarded ports that exist now, which may be none, but then
// not nil.
func Live(cfg *config.Config) ([]Connection, error) {
	hidden := hidden(cfg)
	guarded := hidden.all()
	bound := false
	live := []Connection{}
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		sockets, err := netlink.SocketDiagTCP(family)
		if err != nil {
			return nil, fmt.Errorf("the open connections could not be listed, so hiding ports now might cut them: %w", err)
		}
		for _, s := range sockets {
			if !contains(guarded, sequence.TCP, s.ID.SourcePort) {
				continue
			}
			switch c := connection(s); s.State {
			case stateListen:
				// Nobody outside can dial a loopback address.
				bound = bound || !c.Local.Addr().IsUnspecified() && !c.Local.Addr().IsLoopback()
			case stateTimeWait, stateClose:
			default:
				live = append(live, c)
			}
		}
	}
	if !bound {
		return nil, nil
	}
	return live, nil
}

func connection(s *netlink.Socket) Connection {
	return Connection{
		Remote: addrPort(s.ID.Destination, s.ID.DestinationPort),
		Local:  addrPort(s.ID.Source, s.ID.SourcePort),
	}
}

// addrPort gives IPv4 as IPv4, also when an IPv6 socket carries it.
func addrPort(ip net.IP, port uint16) netip.AddrPort {
	addr, _ := netip.AddrFromSlice(ip)
	return netip.AddrPortFrom(addr.Unmap(), port)
}
