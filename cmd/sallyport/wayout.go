package main

import (
	"fmt"
	"net/netip"
)

// wayOut is from what address and by what interface a knock leaves.
type wayOut struct {
	Interface string `short:"i" placeholder:"NAME" help:"Knock and connect through this network interface, whatever the routing table says (Linux)."`
	Source    string `placeholder:"ADDR" help:"Knock and connect from this address, one of this computer's own."`
}

// setWay fills in where an order's knock goes and from where.
func (w *wayOut) setWay(o *order, host string, only4, only6 bool) (err error) {
	if o.host, err = checkHost(host, only4, only6); err != nil {
		return err
	}
	family := ""
	switch {
	case only4:
		family = "4"
	case only6:
		family = "6"
	}
	o.local, o.family, err = w.local(family, o.host)
	return err
}

// local reads --source, and gives the family that it leaves: "4", "6", or what
// was asked for when there is no source. The host may be an address.
func (w *wayOut) local(family, host string) (netip.Addr, string, error) {
	if w.Source == "" {
		return netip.Addr{}, family, nil
	}
	local, err := netip.ParseAddr(w.Source)
	local = local.Unmap()
	if err != nil || local.IsUnspecified() || local.IsMulticast() {
		return netip.Addr{}, "", fmt.Errorf("--source %.60q: give one IP address of this computer's own, such as 192.0.2.7", w.Source)
	}
	own := "6"
	if local.Is4() {
		own = "4"
	}
	if family != "" && family != own {
		return netip.Addr{}, "", fmt.Errorf("--source %s is an IPv%s address, but -%s asks for IPv%s: leave one out", local, own, family, family)
	}
	if to, err := netip.ParseAddr(host); err == nil && to.Unmap().Is4() != local.Is4() {
		return netip.Addr{}, "", fmt.Errorf("--source %s cannot reach %s: one is IPv4, the other IPv6", local, to)
	}
	return local, own, nil
}
