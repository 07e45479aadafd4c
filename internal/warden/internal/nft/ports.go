package nft

import (
	"net/netip"
	"slices"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/sequence"
)

// everything is what hide = "all" starts from. Port 0 can't be listened on.
var everything = []config.PortRange{
	{Proto: sequence.TCP, Low: 1, High: 65535},
	{Proto: sequence.UDP, Low: 1, High: 65535},
}

// subtract gives the ports of a that are not in b, joined: the kernel refuses
// elements that overlap (EEXIST).
func subtract(a, b []config.PortRange) []config.PortRange {
	var out []config.PortRange
	cuts := config.JoinPorts(b)
	for _, r := range config.JoinPorts(a) {
		low := int(r.Low)
		for _, cut := range cuts {
			if cut.Proto != r.Proto || int(cut.High) < low || cut.Low > r.High {
				continue
			}
			if int(cut.Low) > low {
				out = append(out, config.PortRange{Proto: r.Proto, Low: uint16(low), High: cut.Low - 1})
			}
			low = int(cut.High) + 1
		}
		if low <= int(r.High) {
			out = append(out, config.PortRange{Proto: r.Proto, Low: uint16(low), High: r.High})
		}
	}
	return out
}

// looks are the hidden ports of one destination, by how they look when closed.
type looks [config.Reject + 1][]config.PortRange

// all gives the hidden ports of every look.
func (l *looks) all() []config.PortRange { return slices.Concat(l[:]...) }

// add hides ports that no earlier service hides: the first one in the config
// says how a port looks, since a set may name it once.
func (l *looks) add(ports []config.PortRange, as config.ClosedAs) {
	l[as] = config.JoinPorts(append(l[as], subtract(ports, l.all())...))
}

// Hides gives this host's own hidden ports by how they look, so that every backend
// hides the same. Index it by a config.ClosedAs; the ranges of each are disjoint, in
// order, and no port is in two.
func Hides(cfg *config.Config) [config.Reject + 1][]config.PortRange { return hidden(cfg) }

// hidden gives this host's own hidden ports.
func hidden(cfg *config.Config) looks {
	var l looks
	for _, s := range cfg.Services {
		if len(s.On) == 0 {
			l.add(s.Ports, s.ClosedAs)
		}
	}
	if cfg.Daemon.HideAll {
		l.add(subtract(everything, append(listens(cfg), cfg.Daemon.Public...)), config.Auto)
	}
	return l
}

// listens gives the ports that the daemon itself listens at, which nobody would
// get through to if they were hidden.
func listens(cfg *config.Config) []config.PortRange {
	var ports []config.PortRange
	for _, k := range cfg.Knocks {
		if cfg.Daemon.Source == config.Socket {
			ports = append(ports, k.Ports()...)
		}
	}
	return ports
}

// forwarded gives the hidden ports of each forwarded destination that a service
// names. What would answer there is another machine, whose way to say no we
// can't know, so auto is a reject.
func forwarded(cfg *config.Config) map[netip.Addr]*looks {
	out := map[netip.Addr]*looks{}
	for _, s := range cfg.Services {
		as := s.ClosedAs
		if as == config.Auto {
			as = config.Reject
		}
		for _, addr := range s.On {
			if out[addr] == nil {
				out[addr] = new(looks)
			}
			out[addr].add(s.Ports, as)
		}
	}
	return out
}

// cover is the hidden ports of each destination, those of services with once apart.
type cover map[covered][]config.PortRange

// covered is a destination, the zero Addr being this host.
type covered struct {
	on   netip.Addr
	once bool
}

func newCover(cfg *config.Config) cover {
	here := hidden(cfg)
	c := cover{{}: here.all()}
	for on, there := range forwarded(cfg) {
		c[covered{on: on}] = there.all()
	}
	for i := range cfg.Services {
		if s := &cfg.Services[i]; s.Once {
			c.split(s)
		}
	}
	return c
}

// split sets a service's ports apart.
func (c cover) split(s *config.Service) {
	on := s.On
	if len(on) == 0 {
		on = []netip.Addr{{}}
	}
	for _, addr := range on {
		rest, once := covered{addr, false}, covered{addr, true}
		c[rest], c[once] = subtract(c[rest], s.Ports), append(c[once], s.Ports...)
	}
}

// has reports whether a grant for t opens something. One from before a service got
// or lost once does not: it lies in a set that closes would not find it in.
func (c cover) has(t target) bool {
	return config.HasPort(c[covered{t.on, t.once}], t.proto, t.port) || t.cut && config.HasPort(c[covered{t.on, true}], t.proto, t.port)
}

// inside reports whether wider hides all that c hides.
func (c cover) inside(wider cover) bool {
	for on, ports := range c {
		if len(subtract(ports, wider[on])) > 0 {
			return false
		}
	}
	return true
}

// Quiet gives the ports of the knocks that are dropped so that even the closed
// port's own answer is not heard. A port that the public uses stays.
func Quiet(cfg *config.Config) []config.PortRange {
	var ports []config.PortRange
	for _, k := range cfg.Knocks {
		if k.Quiet {
			ports = append(ports, k.Ports()...)
		}
	}
	return subtract(ports, cfg.Daemon.Public)
}

// reach is a source that is never a stranger, and the forwarded destination
// that it may reach, or the zero Addr for this host.
type reach struct {
	from netip.Prefix
	on   netip.Addr
}

// allowed gives the ports that each source may always reach. Prefixes can only
// nest, never cross, so to take away from each what a wider one already has
// leaves elements that don't overlap.
func allowed(cfg *config.Config) map[reach][]config.PortRange {
	all := map[reach][]config.PortRange{}
	for _, s := range cfg.Services {
		on := s.On
		if len(on) == 0 {
			on = []netip.Addr{{}}
		}
		for _, prefix := range s.Allow {
			for _, addr := range on {
				if addr.IsValid() && addr.Is4() != prefix.Addr().Is4() {
					continue
				}
				r := reach{prefix.Masked(), addr}
				all[r] = append(all[r], s.Ports...)
			}
		}
	}
	out := map[reach][]config.PortRange{}
	for r, ports := range all {
		for wider, has := range all {
			if wider.on == r.on && wider.from.Bits() < r.from.Bits() && wider.from.Contains(r.from.Addr()) {
				ports = subtract(ports, has)
			}
		}
		if ports = config.JoinPorts(ports); len(ports) > 0 {
			out[r] = ports
		}
	}
	return out
}
