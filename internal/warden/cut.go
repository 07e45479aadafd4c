//go:build linux

package warden

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/sallyport/sallyport/internal/warden/internal/sockets"
)

// live is whose connections to what are to be cut.
type live struct {
	addr    netip.Addr
	service *config.Service
}

// cutList is the same by address: one look at all of a host's connections
// serves every one of them.
type cutList struct {
	services map[netip.Addr][]*config.Service
	local    func(netip.Addr) bool // reports whether an address is this host's
}

// cut ends live connections and gives how many: sockets of this host, and what
// conntrack knows of the others and of UDP. Who is behind the same address
// goes too, for nothing tells them apart.
//
// Without its conntrack entry a connection's next packet from outside is a
// stranger's. One from the inside first makes an entry anew where conntrack
// picks up what it has not seen begin (net.netfilter.nf_conntrack_tcp_loose),
// and for UDP always; so a forwarded connection that is busy may live on.
func (w *warden) cut(list []live) (int, error) {
	c := cutList{map[netip.Addr][]*config.Service{}, w.local}
	for _, l := range list {
		c.services[l.addr] = append(c.services[l.addr], l.service)
	}
	n, err := sockets.Destroy(c.socket)
	errs := []error{err}
	for _, family := range []netlink.InetFamily{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		flows, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, cutFlows{&c, &n})
		if err != nil {
			errs = append(errs, fmt.Errorf("conntrack entries stay (%d are gone): %w; is the kernel module nf_conntrack_netlink there?", flows, err))
		}
	}
	return n, errors.Join(errs...)
}

// local reports whether an address is this host's own.
func (w *warden) local(a netip.Addr) bool {
	return slices.Contains(w.host.Addrs, a) ||
		slices.ContainsFunc(w.host.Prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
}

// socket reports whether one of this host's sockets is to go.
func (c *cutList) socket(s sockets.Socket) bool {
	return c.has(s.Remote.Addr(), s.Local.Addr(), sequence.TCP, s.Local.Port())
}

// has reports whether what an address has with a destination is to go.
func (c *cutList) has(from, to netip.Addr, proto sequence.Proto, port uint16) bool {
	return slices.ContainsFunc(c.services[from], func(s *config.Service) bool {
		if !guards(s, proto, port) {
			return false
		}
		if len(s.On) == 0 {
			return c.local(to)
		}
		return slices.Contains(s.On, to)
	})
}

// cutFlows chooses conntrack entries and counts those that sockets.Destroy did
// not count already.
type cutFlows struct {
	*cutList
	n *int
}

// MatchConntrackFlow looks at both directions: where the inside spoke first
// after an earlier cut, the stranger's packets are the replies.
func (c cutFlows) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	proto := sequence.Proto(f.Forward.Protocol)
	begun := c.has(ip(f.Forward.SrcIP), ip(f.Forward.DstIP), proto, f.Forward.DstPort)
	answered := c.has(ip(f.Forward.DstIP), ip(f.Forward.SrcIP), proto, f.Forward.SrcPort)
	if (begun || answered) && (proto != sequence.TCP || !c.local(ip(f.Reverse.SrcIP))) {
		*c.n++
	}
	return begun || answered
}

func ip(b net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(b)
	return a.Unmap()
}
