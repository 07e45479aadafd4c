package config

import (
	"net/netip"
	"slices"

	"github.com/sallyport/sallyport/internal/encoded"
)

// Shape is what a client of a knock of type "encoded" must know beside its name and
// a secret.
func (k *Knock) Shape() encoded.Shape {
	return encoded.Shape{Base: k.Base.Low, Span: k.Span, Payload: k.Payload}
}

// encodedPorts gives the ports that a message of a knock of type "encoded" goes to.
func (k *Knock) encodedPorts() []PortRange {
	return []PortRange{{k.Base.Proto, k.Base.Low, k.Shape().Last()}}
}

// checkEncoded looks at a knock of type "encoded".
func checkEncoded(r *reader, c *Config, i int) {
	k := &c.Knocks[i]
	path := join("knock", k.Name)
	if k.Secrets == "" && !r.faulty[join(path, "secrets")] {
		r.fault(path, `%s lets nobody in; add secrets = "FILE", which 'sallyport keygen --secret NAME' writes to`, path)
	}
	if k.Payload > 0 && len(k.Runs) == 0 && !r.faulty[join(path, "payload")] && !r.faulty[join(path, "runs")] {
		r.fault(join(path, "payload"), `%s.payload is for the standard input of an action, and the knock has none; add runs = ["ACTION"], or leave it out`, path)
	}
	checkWidths(r, path, k)
	for _, key := range []string{"base", "span", "payload"} {
		if r.faulty[join(path, key)] {
			return
		}
	}
	if err := k.Shape().Check(); err != nil {
		r.fault(join(path, "span"), "%s.span can't be this: %v", path, err)
		return
	}
	checkEncodedPorts(r, path, c, i)
}

// checkEncodedPorts wants ports that nobody has another use for: a connection to a
// service among them would count as a part, and spoil the message of whoever tries
// the service while he knocks.
func checkEncodedPorts(r *reader, path string, c *Config, i int) {
	at := join(path, "base")
	own := c.Knocks[i].encodedPorts()[0]
	for _, s := range c.Services {
		for _, p := range s.Ports {
			if len(s.On) == 0 && p.Overlaps(own) {
				r.fault(at, "%s uses the ports %s, and service.%s has %s: trying the service would spoil a message; take another base", path, own, s.Name, p)
			}
		}
	}
	for _, p := range c.Daemon.Public {
		if p.Overlaps(own) {
			r.fault(at, "%s uses the ports %s, and daemon.public has %s: using that would spoil a message; take another base", path, own, p)
		}
	}
	for j := range c.Knocks[:i] {
		k := &c.Knocks[j]
		if k.Type != "encoded" || k.Shape().Check() != nil {
			continue
		}
		if p := k.encodedPorts()[0]; p.Overlaps(own) {
			r.fault(at, "%s uses the ports %s, and knock.%s uses %s: a part would be of both messages; take a base of %d at least", path, own, k.Name, p, int(p.High)+1)
		}
	}
}

// leastWidth is the widest mask of each family that somebody may be let ask for:
// what lies beyond holds whole providers.
func leastWidth(p netip.Prefix) int {
	if p.Addr().Is4() {
		return 8
	}
	return 32
}

func checkWidths(r *reader, path string, k *Knock) {
	at := join(path, "widths")
	if len(k.Widths) > 0 && len(k.Opens) == 0 && !r.faulty[join(path, "opens")] {
		r.fault(at, `%s is for services, and the knock opens none; add opens = ["SERVICE"], or leave it out`, at)
	}
	if r.faulty[at] {
		return
	}
	if j := repeated(k.Widths); j > 0 {
		r.fault(item(at, j), "%s names %s twice; name it once", at, k.Widths[j])
	}
	for j, p := range k.Widths {
		if least := leastWidth(p); p.Bits() < least {
			r.fault(item(at, j), "%s: %s would open for whole providers at once; take /%d at least", at, p, least)
		}
	}
}

// encoded looks at what the file alone says of such a knock.
func (l *linter) encoded(k *Knock) {
	name, own := "knock."+k.Name, k.encodedPorts()[0]
	if i := slices.IndexFunc(l.facts.Listening, own.Overlaps); i >= 0 {
		l.warn("take another base", "%s: a program listens at %s, which is among the ports %s that messages use; whoever connects to it while he knocks spoils his message", name, l.facts.Listening[i], own)
	}
	for _, n := range k.Runs {
		if a := &l.Actions[n]; k.Payload > 0 && len(a.Undo)+len(a.UndoIPv6) > 0 {
			l.warn("take the undo out, or run an action without one", "%s: a payload for action.%s is lost where the action's undo is still to come, since that only puts the undo off", name, a.Name)
		}
	}
}
