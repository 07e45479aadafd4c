//go:build linux

package warden

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/internal/border"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/sequence"
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

// listening gives the ports with a listener, of TCP and UDP, sorted.
func listening() ([]config.PortRange, error) {
	seen := map[config.PortRange]bool{}
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		for proto, state := range map[sequence.Proto]uint{sequence.TCP: netlink.TCP_LISTEN, sequence.UDP: netlink.TCP_CLOSE} {
			ports, err := boundPorts(family, proto, state)
			if err != nil {
				return nil, fmt.Errorf("this host's listening ports: %w", err)
			}
			for _, p := range ports {
				seen[config.PortRange{Proto: proto, Low: p, High: p}] = true
			}
		}
	}
	return slices.SortedFunc(maps.Keys(seen), func(a, b config.PortRange) int {
		return cmp.Or(cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.Low, b.Low))
	}), nil
}

// boundPorts asks sock_diag(7) for the local ports of the sockets in one state.
// The kernel filters: a busy host has a hundred thousand connections and a
// dozen listeners. An unconnected UDP socket is in TCP_CLOSE.
func boundPorts(family byte, proto sequence.Proto, state uint) ([]uint16, error) {
	request := make([]byte, 56) // struct inet_diag_req_v2
	request[0], request[1] = family, byte(proto)
	binary.NativeEndian.PutUint32(request[4:], 1<<state)
	r := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
	r.AddRawData(request)
	answers, err := r.Execute(unix.NETLINK_INET_DIAG, 0)
	if err != nil {
		return nil, err
	}
	var ports []uint16
	for _, a := range answers {
		if len(a) < 6 { // struct inet_diag_msg: the source port stands at byte 4
			continue
		}
		if port := binary.BigEndian.Uint16(a[4:]); port != 0 {
			ports = append(ports, port)
		}
	}
	return ports, nil
}

// follow tells when addresses or interfaces change (rtnetlink(7)), until ctx
// ends. Changes that come together are told once. Should the kernel cut us off
// (ENOBUFS after a burst), the look once a minute goes on.
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
			}
			select {
			case changed <- struct{}{}:
			default:
			}
		}
	}()
	return changed, nil
}

// refreshHost tells the engine when the host is not what it was. A failure
// leaves the engine with what it knew.
func (w *warden) refreshHost() {
	facts, err := hostFacts(w.cfg.Daemon.Interfaces)
	if err != nil {
		w.log.Warn("this host could not be looked at; addresses and listening ports stay as last seen", "error", err)
		return
	}
	if slices.Equal(facts.Addrs, w.host.Addrs) && slices.Equal(facts.Interfaces, w.host.Interfaces) && slices.Equal(facts.Listening, w.host.Listening) {
		return
	}
	listeners := guardedListeners(w.cfg, w.host.Listening)
	w.host = facts
	if err := w.sendHost(); err != nil {
		w.engine.fail(err)
		return
	}
	// A guarded service that came up after us may listen on one address only,
	// and then an ACK probe must not get through to it (nft.Live).
	if w.table != nil && !w.down && !slices.Equal(listeners, guardedListeners(w.cfg, facts.Listening)) {
		if err := w.hide(w.cfg); err != nil {
			w.log.Warn("a guarded service came or went, and the table could not be brought up to date; the rules before stay in force", "error", err)
		}
	}
}

// guardedListeners are those of the listening ports that a service guards.
func guardedListeners(cfg *config.Config, listening []config.PortRange) []config.PortRange {
	var guarded []config.PortRange
	for _, l := range listening {
		for i := range cfg.Services {
			if guards(&cfg.Services[i], l.Proto, l.Low) {
				guarded = append(guarded, l)
			}
		}
	}
	return guarded
}

func (w *warden) sendHost() error {
	if err := w.engine.SendJSON(&border.Host{Generation: w.generation}, w.host); err != nil {
		return fmt.Errorf("the engine takes no facts of the host: %w", err)
	}
	return nil
}
