// Package policy decides what a claim is good for. It is pure: no clock, no
// packet, no side effect.
package policy

import (
	"net/netip"
	"slices"
	"time"

	"github.com/sallyport/sallyport/internal/authorized"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/secrets"
	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/sallyport/sallyport/internal/spa"
)

// Claim is what a recogniser says: who made which knock, and asks for what.
type Claim struct {
	Knock  int // index into the config's Knocks
	Source netip.Addr
	// Signed is the request of a knock of type "spa", whose signature was
	// verified; nil for others, which ask for all that they open.
	Signed *Signed
	// Asked is what a knock of type "otp" or "encoded" says; nil for others.
	Asked *Asked
}

// Asked is what somebody asks for who holds a person's secret.
type Asked struct {
	Person *secrets.Person
	Number uint16        // of the person, as the border has it
	Action spa.Action    // of a one-time password always Open: its rules say what it does
	For    time.Duration // 0: as long as the service says
	Addr   netip.Addr    // the address that is stated; the zero Addr: the one it comes from
	Bits   int           // the length of its mask; 0: that address alone
	Proto  sequence.Proto
	Port   uint16 // the one port; 0: all of the knock's services
	// Payload is for the standard input of the actions.
	Payload []byte
}

// Signed is a request and who signed it.
type Signed struct {
	spa.Request
	Key      *authorized.Key
	Number   uint16 // of the key, as the border has it
	Presence spa.Presence
}

// Grant is one request to the warden, for what a rule does.
type Grant struct {
	Number uint16 // of the rule: its index in the config's Rules
	config.Rule
	Addr netip.Addr
	Bits int           // the length of its mask; 0: that address alone
	TTL  time.Duration // of a grant; 0 for an action, and for what is taken back
	// Proto and Port are the one port of the service; 0: all of them.
	Proto sequence.Proto
	Port  uint16
}

// Why says why a claim was refused. The strings are the operator's vocabulary.
type Why string

// The reasons.
const (
	Good          Why = ""
	NotUnicast    Why = "nobody can connect from such an address"
	KeyNotNow     Why = "the key is not valid at this time"
	NotTouched    Why = "nobody touched the hardware key"
	NotVerified   Why = "the hardware key did not verify its user"
	ElsewhereOwn  Why = "it comes from another address than its sender's"
	StatesAnother Why = "it may not state another address than its own"
	StatesNone    Why = "it must state an address"
	NotFrom       Why = "the key may not be used from there"
	NoService     Why = "the knock or the key does not open that service"
	SecretNotNow  Why = "the time of the secret is over"
	NoPort        Why = "none of the services has that port"
	TooWide       Why = "the knock opens for no mask of that length"
)

// rule is one of the config's, with its number.
type rule struct {
	number uint16
	config.Rule
}

// Policy is the rules of one config.
type Policy struct {
	cfg   *config.Config
	rules [][]rule // by knock
	out   []Grant
}

// New takes the rules from a checked config.
func New(cfg *config.Config) *Policy {
	p := &Policy{cfg: cfg, rules: make([][]rule, len(cfg.Knocks))}
	for i, r := range cfg.Rules() {
		p.rules[r.Knock] = append(p.rules[r.Knock], rule{uint16(i), r})
	}
	return p
}

// Decide gives what the claim is good for, or why it is good for nothing: a
// request is granted whole or not at all. The result is valid until the next
// call.
func (p *Policy) Decide(c Claim, now time.Time) ([]Grant, Why) {
	p.out = p.out[:0]
	switch {
	case c.Source.IsLoopback() && c.Signed == nil && p.cfg.Daemon.Loopback():
		return p.itself(c)
	case !connectable(c.Source):
		return nil, NotUnicast
	case c.Signed != nil:
		return p.signed(c, now)
	case c.Asked != nil:
		return p.asking(c, now)
	}
	for _, r := range p.rules[c.Knock] {
		p.out = append(p.out, Grant{Number: r.number, Rule: r.Rule, Addr: c.Source, TTL: p.openFor(r)})
	}
	return p.out, Good
}

// itself gives what a host's knock at itself is good for: actions, because no port
// is hidden from loopback addresses.
func (p *Policy) itself(c Claim) ([]Grant, Why) {
	for _, r := range p.rules[c.Knock] {
		if r.Service == config.None {
			p.out = append(p.out, Grant{Number: r.number, Rule: r.Rule, Addr: c.Source})
		}
	}
	if len(p.out) == 0 {
		return nil, NotUnicast
	}
	return p.out, Good
}

func (p *Policy) openFor(r rule) time.Duration {
	if r.Service == config.None || r.Close {
		return 0
	}
	return p.cfg.Services[r.Service].OpenFor
}

// connectable is false for what only a forger sends from.
func connectable(a netip.Addr) bool {
	return a.IsValid() && !a.IsUnspecified() && !a.IsMulticast() && !a.IsLoopback() && a != broadcast
}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

func (p *Policy) signed(c Claim, now time.Time) ([]Grant, Why) {
	s := c.Signed
	switch {
	case !s.Key.At(now) || !s.Key.Expires.IsZero() && s.Key.Expires.Sub(now) < time.Second:
		return nil, KeyNotNow
	case !s.Presence.Touched && !s.Key.NoTouchRequired:
		return nil, NotTouched
	case !s.Presence.Verified && s.Key.VerifyRequired:
		return nil, NotVerified
	}
	addrs, why := p.addresses(c)
	if why != Good {
		return nil, why
	}
	rules, why := p.named(c)
	if why != Good {
		return nil, why
	}
	for _, r := range rules {
		for _, a := range addrs {
			p.out = append(p.out, Grant{Number: r.number, Rule: r.Rule, Addr: a, TTL: p.ttl(r, s, now)})
		}
	}
	return p.out, Good
}

// addresses gives for whom the request is good: the addresses that it states,
// else the one that it comes from.
func (p *Policy) addresses(c Claim) ([]netip.Addr, Why) {
	s, policy := c.Signed, p.cfg.Knocks[c.Knock].Address
	stated := s.Stated()
	another := func(a netip.Addr) bool { return a != c.Source }
	nowhere := func(a netip.Addr) bool { return !connectable(a) }
	switch {
	case slices.ContainsFunc(stated, nowhere):
		return nil, NotUnicast
	case s.Own && !slices.Contains(stated, c.Source):
		return nil, ElsewhereOwn
	case len(stated) == 0 && (policy == config.Stated || policy == config.Both):
		return nil, StatesNone
	case (policy == config.Observed || policy == config.Both || s.Key.NoAddress) && slices.ContainsFunc(stated, another):
		return nil, StatesAnother
	}
	if len(stated) == 0 {
		stated = []netip.Addr{c.Source}
	}
	notFrom := func(a netip.Addr) bool { return !s.Key.AllowsFrom(a) }
	if notFrom(c.Source) || slices.ContainsFunc(stated, notFrom) {
		return nil, NotFrom
	}
	return stated, Good
}

// named gives the rules of the services and actions that the request names, or of
// all that the key may have.
func (p *Policy) named(c Claim) ([]rule, Why) {
	s, names := c.Signed, c.Signed.Services
	var rules []rule
	for _, r := range p.rules[c.Knock] {
		name := p.cfg.NameOf(r.Rule)
		if s.Key.Opens(name) && (len(names) == 0 || slices.Contains(names, name)) {
			rules = append(rules, r)
		}
	}
	if len(rules) == 0 || len(names) > 0 && len(rules) != len(names) {
		return nil, NoService
	}
	return rules, Good
}

// ttl is the time asked for, within what the service and the key allow: a
// server that never answers can't say that a little less would have done.
func (p *Policy) ttl(r rule, s *Signed, now time.Time) time.Duration {
	if r.Service == config.None {
		return 0
	}
	service := &p.cfg.Services[r.Service]
	ttl := service.OpenFor
	if s.For > 0 {
		ttl = min(s.For, service.MaxOpenFor)
	}
	if s.Key.MaxTime > 0 {
		ttl = min(ttl, s.Key.MaxTime)
	}
	// A right that ends at midnight must not let new connections in after it.
	if !s.Key.Expires.IsZero() {
		ttl = min(ttl, s.Key.Expires.Sub(now))
	}
	return ttl
}
