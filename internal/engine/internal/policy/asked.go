package policy

import (
	"time"

	"github.com/sallyport/sallyport/internal/config"
)

// asking decides about a claim by a person's secret.
func (p *Policy) asking(c Claim, now time.Time) ([]Grant, Why) {
	a := c.Asked
	if !a.Person.At(now) || !a.Person.Expires.IsZero() && a.Person.Expires.Sub(now) < time.Second {
		return nil, SecretNotNow
	}
	addr := c.Source
	if a.Addr.IsValid() {
		addr = a.Addr
	}
	if !connectable(addr) {
		return nil, NotUnicast
	}
	if a.Bits > 0 && !p.cfg.Knocks[c.Knock].TakesMask(addr, a.Bits) {
		return nil, TooWide
	}
	network := addr
	if a.Bits > 0 {
		whole, _ := addr.Prefix(a.Bits)
		network = whole.Addr()
	}
	for _, r := range p.rules[c.Knock] {
		if !a.Person.Opens(p.cfg.NameOf(r.Rule)) {
			continue
		}
		// Of a knock that names one port, actions are no part.
		if a.Port != 0 && (r.Service == config.None || !config.HasPort(p.cfg.Services[r.Service].Ports, a.Proto, a.Port)) {
			continue
		}
		g := Grant{Number: r.number, Rule: r.Rule, Addr: network, Bits: a.Bits, TTL: p.askedFor(r, a, now), Proto: a.Proto, Port: a.Port}
		if r.Service == config.None {
			g.Addr, g.Bits = addr, 0
		}
		p.out = append(p.out, g)
	}
	switch {
	case len(p.out) > 0:
		return p.out, Good
	case a.Port != 0:
		return nil, NoPort
	}
	return nil, NoService
}

// askedFor is the time asked for, within what the service and the secret allow.
func (p *Policy) askedFor(r rule, a *Asked, now time.Time) time.Duration {
	if r.Service == config.None || r.Close {
		return 0
	}
	service := &p.cfg.Services[r.Service]
	ttl := service.OpenFor
	if a.For > 0 {
		ttl = min(a.For, service.MaxOpenFor)
	}
	if !a.Person.Expires.IsZero() {
		ttl = min(ttl, a.Person.Expires.Sub(now))
	}
	return ttl
}
