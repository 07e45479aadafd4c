// Package policy decides what a claim is good for. It is pure: no clock, no
// packet, no side effect.
package policy

import (
	"net/netip"
	"time"

	"github.com/sallyport/sallyport/internal/config"
)

// Claim is what a recogniser says: who made which knock.
type Claim struct {
	Knock int // index into the config's Knocks
	Addr  netip.Addr
}

// Grant is one request to the warden.
type Grant struct {
	Rule    uint16 // index into the config's Rules
	Service int    // index into the config's Services
	TTL     time.Duration
}

// Why says why a claim was refused. The strings are the operator's vocabulary.
type Why string

// The reasons.
const (
	Good       Why = ""
	NotUnicast Why = "the source is not a unicast address"
)

// Policy is the rules of one config.
type Policy struct {
	grants [][]Grant // by knock
}

// New takes the rules from a checked config.
func New(cfg *config.Config) *Policy {
	p := &Policy{grants: make([][]Grant, len(cfg.Knocks))}
	for i, rule := range cfg.Rules() {
		p.grants[rule.Knock] = append(p.grants[rule.Knock], Grant{
			Rule: uint16(i), Service: rule.Service, TTL: cfg.Services[rule.Service].OpenFor,
		})
	}
	return p
}

// Decide gives what the claim is good for, or why it is good for nothing. The
// caller must not change the slice.
func (p *Policy) Decide(c Claim) ([]Grant, Why) {
	// Nobody can connect from these, so only a forger sends from them.
	if a := c.Addr; !a.IsValid() || a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() || a == broadcast {
		return nil, NotUnicast
	}
	return p.grants[c.Knock], Good
}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})
