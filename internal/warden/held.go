package warden

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"github.com/sallyport/sallyport/internal/border"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/sallyport/sallyport/internal/warden/internal/nft"
)

// prefix gives the addresses that a grant is for.
func (k grantKey) prefix() netip.Prefix {
	if k.bits > 0 {
		return netip.PrefixFrom(k.addr, int(k.bits))
	}
	return netip.PrefixFrom(k.addr, k.addr.BitLen())
}

// who is for a log: an address, or a network.
func (k grantKey) who() any {
	if k.bits > 0 {
		return k.prefix()
	}
	return k.addr
}

// what is for a log: a service, or one port of it.
func (k grantKey) what() string {
	if k.port == 0 {
		return k.service
	}
	return k.service + " " + config.PortRange{Proto: k.proto, Low: k.port, High: k.port}.String()
}

// whole is the key for all of the service's ports, and only that for one.
func (k grantKey) whole() grantKey { k.proto, k.port = 0, 0; return k }

func (k grantKey) only(proto sequence.Proto, port uint16) grantKey {
	k.proto, k.port = proto, port
	return k
}

// beside is the other key that an element of this one's can be held open by.
func (k grantKey) beside(e nft.Element) grantKey {
	if k.port == 0 {
		return k.only(e.Proto, e.Port)
	}
	return k.whole()
}

// onePort reports whether a service has one port, so that it is all of them.
func onePort(s *config.Service) bool { return len(s.Ports) == 1 && s.Ports[0].Count() == 1 }

// variants lists what the book has for an address or network and a service, whichever
// ports were asked for.
func (g *gate) variants(at grantKey, s *config.Service) (list []grantKey) {
	add := func(k grantKey) {
		if _, ok := g.grants[k]; ok {
			list = append(list, k)
		}
	}
	if add(at.whole()); onePort(s) {
		return list
	}
	for _, r := range s.Ports {
		for port := int(r.Low); port <= int(r.High); port++ {
			add(at.only(r.Proto, uint16(port)))
		}
	}
	return list
}

// around gives the keys, of whole services, for all networks that an address is in
// and that some knock may ask for, the address itself first.
func (g *gate) around(addr netip.Addr, service string) []grantKey {
	list := []grantKey{{addr: addr, service: service}}
	for _, bits := range g.widths[addr.Is4()] {
		if p, err := addr.Prefix(int(bits)); err == nil {
			list = append(list, grantKey{addr: p.Addr(), bits: bits, service: service})
		}
	}
	return list
}

// held is one line of what the kernel holds.
type held struct {
	grantKey
	asked
}

// sameEnd is within which ends count as one: elements of one batch are listed at
// slightly different times.
const sameEnd = time.Second

// gather makes grants of the kernel's elements: one for each address and service
// that is open whole, until its first port ends, and one for each port of others or
// that lasts longer.
func (g *gate) gather(elements []nft.Element, now time.Time) (list []held) {
	at := map[grantKey]map[grantKey]asked{} // by the key of the whole service, then by that of the port
	var order []grantKey
	for _, e := range elements {
		for i := range g.cfg.Services {
			s := &g.cfg.Services[i]
			if e.Cut || !covers(s, e) {
				continue
			}
			key := grantKey{addr: e.Addr, bits: e.Bits, service: s.Name}
			if at[key] == nil {
				at[key] = map[grantKey]asked{}
				order = append(order, key)
			}
			port, a := key.only(e.Proto, e.Port), asked{cmp.Or(e.By, unknown), now.Add(e.TTL)}
			if old := at[key][port]; a.until.After(old.until) { // to several destinations
				at[key][port] = a
			}
		}
	}
	for _, key := range order {
		list = append(list, together(key, config.CountPorts(g.service(key.service).Ports), at[key])...)
	}
	return list
}

// together joins the ports of one address and service, n if all are there.
func together(key grantKey, n int, of map[grantKey]asked) (list []held) {
	var first asked
	for _, a := range of {
		if first.until.IsZero() || a.until.Before(first.until) {
			first = a
		}
	}
	if len(of) == n {
		end := first.until.Add(sameEnd)
		for port, a := range of {
			if a.until.After(end) {
				continue
			}
			if delete(of, port); a.until.After(first.until) {
				first = a
			}
		}
		list = append(list, held{key, first})
	}
	for port, a := range of {
		list = append(list, held{port, a})
	}
	slices.SortFunc(list, func(a, b held) int { return cmp.Or(cmp.Compare(a.proto, b.proto), cmp.Compare(a.port, b.port)) })
	return list
}

// usedUp forgets a grant of a service with once that a connection has used up
// meanwhile: the kernel takes it out of its set and tells nobody.
func (g *gate) usedUp(key grantKey, s *config.Service, now time.Time) {
	if _, known := g.grants[key]; !known || !s.Once || g.observe {
		return
	}
	for _, e := range elements(s, key, asked{}, now) {
		if there, err := g.firewall.Holds(e); there || err != nil {
			return
		}
	}
	delete(g.grants, key)
}

// changed forgets the grants that the table has dropped because their service got or
// lost once, or because no knock may ask for such a mask any more. The old config
// may be nil.
func (g *gate) changed(old *config.Config) {
	if old == nil {
		return
	}
	once := map[string]bool{}
	for i := range old.Services {
		once[old.Services[i].Name] = old.Services[i].Once
	}
	for key := range g.grants {
		s := g.service(key.service)
		if s != nil && s.Once != once[key.service] || key.bits > 0 && !slices.Contains(g.widths[key.addr.Is4()], key.bits) {
			delete(g.grants, key)
		}
	}
}

// line is a grant as a listing has it.
func (h held) line() border.Grant {
	return border.Grant{Addr: h.addr, Bits: h.bits, Service: h.service, Proto: h.proto, Port: h.port, By: h.by, Until: h.until}
}
