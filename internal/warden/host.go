//go:build linux

package warden

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/internal/border"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/sallyport/sallyport/internal/warden/internal/sockets"
)

// hostFacts asks the kernel for what the engine can't: our addresses, the
// interfaces that the config names, and the ports with a listener.
func hostFacts(interfaces []string) (border.HostFacts, error) {
	var facts border.HostFacts
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return facts, fmt.Errorf("this host's addresses: %w", err)
	}
	for _, a := range addrs {
		if addr, ok := netip.AddrFromSlice(a.IP); ok {
			facts.Addrs = append(facts.Addrs, addr.Unmap())
		}
	}
	slices.SortFunc(facts.Addrs, netip.Addr.Compare)
	local, err := localRoutes()
	if err != nil {
		return facts, fmt.Errorf("this host's local routes: %w", err)
	}
	for _, p := range local { // each address of an interface has a route too
		if _, found := slices.BinarySearchFunc(facts.Addrs, p.Addr(), netip.Addr.Compare); !found || !p.IsSingleIP() {
			facts.Prefixes = append(facts.Prefixes, p)
		}
	}
	if len(interfaces) > 0 {
		facts.Interfaces = []int{} // not nil: none of them there yet means none, not all
		links, err := netlink.LinkList()
		if err != nil {
			return facts, fmt.Errorf("this host's interfaces: %w", err)
		}
		for _, l := range links {
			if slices.Contains(interfaces, l.Attrs().Name) {
				facts.Interfaces = append(facts.Interfaces, l.Attrs().Index)
			}
		}
	}
	facts.Listening, err = listening()
	return facts, err
}

// localRoutes gives what else the kernel takes for this host's own: a whole
// prefix can be local by a route alone ("ip route add local 203.0.113.0/24 dev
// lo", AnyIP). Only the local table counts, as for the firewall's "fib daddr
// type local". The kernel chooses: a router has a million other routes.
func localRoutes() ([]netip.Prefix, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	// Without it a kernel before 4.20 lists all, and the library chooses.
	_ = h.SetStrictCheck(true)
	var prefixes []netip.Prefix
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := h.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_LOCAL},
			netlink.RT_FILTER_TABLE|netlink.RT_FILTER_TYPE)
		if err != nil {
			return nil, err
		}
		for _, r := range routes {
			if p, ok := prefix(r.Dst); ok && !p.Addr().IsLoopback() && !slices.Contains(prefixes, p) {
				prefixes = append(prefixes, p)
			}
		}
	}
	return prefixes, nil
}

func prefix(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	addr, ok := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(addr, bits), ok
}

// listening gives the ports that strangers can find a listener at, of TCP and
// UDP, sorted.
func listening() ([]config.PortRange, error) {
	seen := map[config.PortRange]bool{}
	for proto, state := range map[sequence.Proto]sockets.States{sequence.TCP: sockets.Listening, sequence.UDP: sockets.Unconnected} {
		list, err := sockets.List(proto, state)
		if err != nil {
			return nil, err
		}
		for _, s := range list {
			if !s.Local.Addr().IsLoopback() {
				seen[config.PortRange{Proto: proto, Low: s.Local.Port(), High: s.Local.Port()}] = true
			}
		}
	}
	return slices.SortedFunc(maps.Keys(seen), func(a, b config.PortRange) int {
		return cmp.Or(cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.Low, b.Low))
	}), nil
}

// Looks at the host come once in hostPause: each router advertisement renews an
// address, and anybody on the wire can send those. After quiet times hostBurst
// more come at once, for a new interface is several changes and is to be heard
// on soon; hostSettle joins those that come together.
const (
	hostPause  = time.Second
	hostBurst  = 5
	hostSettle = 20 * time.Millisecond
)

// follow tells when addresses or interfaces change (rtnetlink(7)), until ctx
// ends; changes that come too fast are told once, after the last. Should the
// kernel cut us off (ENOBUFS after a burst), the look once a minute goes on.
func follow(ctx context.Context) (<-chan struct{}, error) {
	addrs, links := make(chan netlink.AddrUpdate, 64), make(chan netlink.LinkUpdate, 64)
	if err := netlink.AddrSubscribe(addrs, ctx.Done()); err != nil {
		return nil, fmt.Errorf("following this host's addresses: %w", err)
	}
	if err := netlink.LinkSubscribe(links, ctx.Done()); err != nil {
		return nil, fmt.Errorf("following this host's interfaces: %w", err)
	}
	changed := make(chan struct{}, 1)
	go func() {
		paid := time.Now()       // what was told is one change in hostPause until then
		var due <-chan time.Time // nil: nothing to tell
		for addrs != nil || links != nil {
			select {
			case _, ok := <-addrs:
				if !ok {
					addrs = nil
				}
			case _, ok := <-links:
				if !ok {
					links = nil
				}
			case now := <-due:
				due = nil
				if paid.Before(now) {
					paid = now
				}
				paid = paid.Add(hostPause)
				select {
				case changed <- struct{}{}:
				default:
				}
				continue
			}
			if due == nil {
				due = time.After(max(hostSettle, time.Until(paid)-hostBurst*hostPause))
			}
		}
	}()
	return changed, nil
}

// refreshHost tells the engine when the host is not what it was. A failure
// leaves the engine with what it knew.
func (w *warden) refreshHost() {
	w.refreshTable()
	facts, err := w.facts()
	if err != nil {
		w.log.Warn("this host could not be looked at; addresses and listening ports stay as last seen", "error", err)
		return
	}
	if reflect.DeepEqual(facts, w.host) {
		return
	}
	w.host = facts
	if err := w.sendHost(); err != nil {
		w.engine.fail(err)
	}
}

// refreshTable hides again when a guarded service has come to listen on one
// address only, or does so no more: an ACK probe must not get through to it
// (nft.Live).
func (w *warden) refreshTable() {
	if w.table == nil || w.down {
		return
	}
	stale, err := w.table.Stale(w.cfg)
	if stale {
		err = w.hide(w.cfg)
	}
	if err != nil {
		w.log.Warn("a guarded service may listen in another way now, and the table could not be brought up to date; the rules before stay in force", "error", err)
	}
}

func (w *warden) sendHost() error {
	if err := w.engine.SendJSON(&border.Host{Generation: w.generation}, w.host); err != nil {
		return fmt.Errorf("the engine takes no facts of the host: %w", err)
	}
	return nil
}
