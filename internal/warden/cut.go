//go:build linux

package warden

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/sallyport/sallyport/internal/warden/internal/nft"
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
// stranger's. One from the inside first makes an entry anew, which keepOut is
// for.
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

// cutFor is how long what was cut is kept out. A busy server gives up after 15
// to 30 minutes without an answer (net.ipv4.tcp_retries2), a resting one that
// asks whether the other end is there after 2 hours and 11 minutes
// (net.ipv4.tcp_keepalive_time); one that speaks by a clock mostly does so within
// a day. To be longer in costs nobody anything: grants come first.
const cutFor = 24 * time.Hour

// cuts remembers what is kept out and until when, by elements that have Cut and
// no TTL. It is bounded as the kernel's sets are, and what has ended is forgotten
// with the next cut.
type cuts map[nft.Element]time.Time

// add records what the kernel was asked for, or holds.
func (c cuts) add(e nft.Element, now time.Time) {
	until := now.Add(e.TTL)
	e.TTL, e.By = 0, ""
	c[e] = until
}

func (c cuts) has(e nft.Element) bool {
	e.TTL, e.By = 0, ""
	_, ok := c[e]
	return ok
}

// elements spells out what has not ended, and forgets the rest.
func (c cuts) elements(now time.Time) []nft.Element {
	var list []nft.Element
	for e, until := range c {
		if e.TTL = until.Sub(now); e.TTL < time.Second {
			e.TTL = 0
			delete(c, e)
			continue
		}
		list = append(list, e)
	}
	return list
}

// within gives what is kept out of a network's ports.
func (c cuts) within(key grantKey, granted []nft.Element) (list []nft.Element) {
	open := map[nft.Element]bool{}
	for _, e := range granted {
		open[nft.Element{On: e.On, Proto: e.Proto, Port: e.Port}] = true
	}
	for e := range c {
		if key.prefix().Contains(e.Addr) && open[nft.Element{On: e.On, Proto: e.Proto, Port: e.Port}] {
			list = append(list, e)
		}
	}
	return list
}

// keepOut has the kernel take addresses for strangers even in connections that
// a server inside keeps alive. Who may come in by somebody else's grant is left
// alone: what he begins must outlive that grant.
func (g *gate) keepOut(list []live, now time.Time) error {
	g.cuts.elements(now)
	room := max(g.cfg.Daemon.MaxGrants, nft.MinCuts) - len(g.cuts)
	missed := 0
	var out []nft.Element
	for _, l := range list {
		// A key may have come in at more addresses than any set holds.
		at := grantKey{addr: l.addr, service: l.service.Name}
		if size(l.service, at) > room+len(g.cuts) {
			missed++
			continue
		}
		fresh := 0
		more := out
		for _, e := range elements(l.service, at, asked{until: now.Add(cutFor)}, now) {
			if g.granted(e, now) {
				continue
			}
			e.Cut, e.Once = true, false
			if !g.cuts.has(e) { // else it has its place already
				fresh++
			}
			more = append(more, e)
		}
		if fresh > room {
			missed++
			continue
		}
		out, room = more, room-fresh
	}
	err := g.keepOutAll(out, now)
	if missed > 0 {
		err = errors.Join(err, fmt.Errorf("%d of %d addresses and services can come back where a server inside keeps a connection alive: there is no room to keep more out; restart those servers, or raise max_grants", missed, len(list)))
	}
	return err
}

// keepOutAll gives the kernel one batch after the other and remembers what it
// took.
func (g *gate) keepOutAll(out []nft.Element, now time.Time) error {
	for batch := range slices.Chunk(out, nft.Batch) {
		err := g.firewall.Grant(batch)
		// Without our table nothing is hidden; restore adds these to a new one.
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, e := range batch {
			g.cuts.add(e, now)
		}
	}
	return nil
}

// readmit takes out of what is kept out what a grant opens. The kernel looks at
// the grant first; but connections must live on behind its end.
func (g *gate) readmit(key grantKey, granted []nft.Element) {
	var back []nft.Element
	for _, e := range granted {
		e.Cut, e.Once, e.TTL, e.By = true, false, 0, ""
		if _, ok := g.cuts[e]; ok {
			back = append(back, e)
		}
	}
	if key.bits > 0 {
		back = g.cuts.within(key, granted)
	}
	if len(back) == 0 {
		return
	}
	if err := g.firewall.Revoke(back); err != nil {
		g.log.Error("what was cut before is open again, but its connections end with the grant", "address", back[0].Addr, "error", err)
		return
	}
	for _, e := range back {
		delete(g.cuts, e)
	}
}

// granted reports whether somebody's grant has an element's port open.
func (g *gate) granted(e nft.Element, now time.Time) bool {
	e.Cut = true // so that it is asked for the port alone
	for i := range g.cfg.Services {
		s := &g.cfg.Services[i]
		if !covers(s, e) {
			continue
		}
		for _, key := range g.around(e.Addr, s.Name) {
			g.usedUp(key, s, now)
			if g.grants.end(key).until.After(now) || g.grants.end(key.only(e.Proto, e.Port)).until.After(now) {
				return true
			}
		}
	}
	return false
}

// guarded reports whether a service of the config is for an element's port.
func (g *gate) guarded(e nft.Element) bool {
	return slices.ContainsFunc(g.cfg.Services, func(s config.Service) bool { return covers(&s, e) })
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
		return serves(s, c.local, to, proto, port)
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
