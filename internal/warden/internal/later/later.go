// Package later reads the host's own firewall and finds the chains that would
// drop a guarded port after our table let it through. It changes nothing.
package later

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/internal/config"
)

// Blocker is a chain of the host's own firewall that drops a guarded port, so
// that a grant alone lets nobody in: accept ends our chain and not the others.
type Blocker struct {
	Family string // "ip", "ip6" or "inet", as nft spells it
	Table  string
	Chain  string // the base chain; rules that it jumps to belong to it
	// Reason is "policy drop", "rule drops", "rule rejects" or "iptables-legacy
	// can't be read".
	Reason string
	Port   config.PortRange // the part of a guarded range that is dropped alike
	IPv4   bool             // dropped over IPv4
	IPv6   bool             // dropped over IPv6
	// May is true where some may get through: those whose source address a rule
	// accepts, or, with iptables-legacy, anyone.
	May bool
	// Advice is the shell command that lets through what we grant.
	Advice string
}

// The reasons of a Blocker.
const (
	reasonPolicy  = "policy drop"
	reasonDrops   = "rule drops"
	reasonRejects = "rule rejects"
	reasonLegacy  = "iptables-legacy can't be read"
)

var familyNames = map[byte]string{unix.NFPROTO_IPV4: "ip", unix.NFPROTO_IPV6: "ip6", unix.NFPROTO_INET: "inet"}

// String says what happens, what it means and what to do, in one line.
func (b Blocker) String() string {
	if b.Reason == reasonLegacy {
		return fmt.Sprintf("%s, and it has a table %s %s: it may drop %s over %s whatever is granted; if it does, run: %s",
			b.Reason, b.Family, b.Table, b.Port, b.versions(), b.Advice)
	}
	who := ""
	if b.May {
		who = " from every source that it does not name"
	}
	return fmt.Sprintf("chain %s of table %s %s drops %s over %s%s (%s), whatever is granted; run: %s",
		b.Chain, b.Family, b.Table, b.Port, b.versions(), who, b.Reason, b.Advice)
}

func (b Blocker) versions() string {
	switch {
	case !b.IPv4:
		return "IPv6"
	case !b.IPv6:
		return "IPv4"
	}
	return "IPv4 and IPv6"
}

// Find finds the chains of the host's own firewall that drop the first packet
// of a connection to these ports from an address that nobody knows, in the
// calling thread's network namespace. mark is what our grants set on a packet,
// 0 for none. It reads and changes nothing. Where a rule may or may not accept
// (a rate, an interface, a destination address) nothing is reported. Errors are
// netlink's.
func Find(ports []config.PortRange, mark uint32) ([]Blocker, error) {
	var found []Blocker
	err := withHostRules(func(h *hostRules) error {
		var err error
		found, err = h.blockers(ports, mark)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("the host's own firewall rules could not be read, so nobody knows whether they drop a guarded port: %w", err)
	}
	return append(found, legacy(ports, mark)...), nil
}

func (h *hostRules) blockers(ports []config.PortRange, mark uint32) ([]Blocker, error) {
	var found []Blocker
	p := stranger{}
	p.otherMarks, p.untracked = h.sideEffects()
	for _, c := range h.hooked() {
		if p.mark = mark; !c.afterUs() {
			p.mark = 0
		}
		for _, r := range ports {
			some, err := h.blocksEither(c, p, r)
			if err != nil {
				return nil, err
			}
			found = append(found, some...)
		}
	}
	return found, nil
}

// blocksEither judges both families and reports what they have in common once.
func (h *hostRules) blocksEither(c *hostChain, p stranger, r config.PortRange) ([]Blocker, error) {
	var found []Blocker
	for _, p.v6 = range []bool{false, true} {
		if !c.sees(p.v6) {
			continue
		}
		some, err := h.blocks(c, p, r)
		if err != nil {
			return nil, err
		}
		for _, b := range some {
			i := slices.IndexFunc(found, func(a Blocker) bool {
				return a.Port == b.Port && a.Reason == b.Reason && a.May == b.May
			})
			if i < 0 {
				found = append(found, b)
			} else {
				found[i].IPv6 = true
			}
		}
	}
	for i := range found {
		found[i].Advice = c.advice(found[i].Port, p.mark)
	}
	return found, nil
}

// hooked lists the base chains that a packet for this host passes. A chain at
// prerouting that comes before ours is no later one, but drops as finally.
func (h *hostRules) hooked() []*hostChain {
	var list []*hostChain
	for _, t := range h.tables {
		for _, c := range t.chains {
			if c.kind != "" && (c.hook == unix.NF_INET_LOCAL_IN || c.hook == unix.NF_INET_PRE_ROUTING) {
				list = append(list, c)
			}
		}
	}
	return list
}

func (c *hostChain) sees(v6 bool) bool {
	return c.table.family == unix.NFPROTO_INET || (c.table.family == unix.NFPROTO_IPV6) == v6
}

// afterUs reports whether the chain sees the mark of our chain at prerouting.
func (c *hostChain) afterUs() bool {
	const mangle = -150
	return c.hook == unix.NF_INET_LOCAL_IN || c.priority > mangle
}

// sideEffects looks for rules anywhere that set packet marks or keep packets
// from conntrack; what they would change is then unknown.
func (h *hostRules) sideEffects() (marks, untracked bool) {
	for _, t := range h.tables {
		for _, c := range t.chains {
			for _, e := range slices.Concat(c.rules...) {
				f := e.fields
				target := ""
				if e.name == "target" {
					target = f.text(unix.NFTA_TARGET_NAME)
				}
				sets := e.name == "meta" && f[unix.NFTA_META_SREG] != nil && f.number(unix.NFTA_META_KEY) == unix.NFT_META_MARK
				marks = marks || sets || target == "MARK" || target == "CONNMARK"
				untracked = untracked || e.name == "notrack" || target == "CT" || target == "NOTRACK"
			}
		}
	}
	return marks, untracked
}

// blocks judges a range port by port, and skips those of which the answer is
// known already.
func (h *hostRules) blocks(c *hostChain, p stranger, r config.PortRange) ([]Blocker, error) {
	var found []Blocker
	p.proto = r.Proto
	for port := int(r.Low); port <= int(r.High); port = int(p.until) + 1 {
		p.port, p.until, p.unlisted = uint16(port), r.High, false
		f, err := h.lands(c, &p)
		may := f&drops != 0 && f&^drops != 0
		if may && err == nil {
			p.unlisted = true
			f, err = h.lands(c, &p)
		}
		if err != nil {
			return nil, err
		}
		if f&^drops == 0 {
			found = join(found, c.blocker(p, f, may))
		}
	}
	return found, nil
}

// lands is the packet's fate in the chain. One that a nat chain sends elsewhere
// (a port that Docker publishes) does not reach input as it was dialled.
func (h *hostRules) lands(c *hostChain, p *stranger) (fate, error) {
	f, err := h.fate(c, p)
	if c.hook != unix.NF_INET_LOCAL_IN || f&drops == 0 {
		return f, err
	}
	for _, n := range h.hooked() {
		if err == nil && n.kind == "nat" && n.hook == unix.NF_INET_PRE_ROUTING && n.sees(p.v6) {
			var before fate
			before, err = h.fate(n, p)
			f |= before & translated
		}
	}
	return f, err
}

func (c *hostChain) blocker(p stranger, f fate, may bool) Blocker {
	b := Blocker{
		Family: familyNames[c.table.family], Table: c.table.name, Chain: c.name, Reason: reasonDrops,
		Port: config.PortRange{Proto: p.proto, Low: p.port, High: p.until}, IPv4: !p.v6, IPv6: p.v6, May: may,
	}
	switch {
	case f&byPolicy != 0:
		b.Reason = reasonPolicy
	case f&rejected != 0:
		b.Reason = reasonRejects
	}
	return b
}

// join adds a blocker, or widens the last if they meet and drop alike.
func join(found []Blocker, b Blocker) []Blocker {
	if len(found) > 0 {
		last := &found[len(found)-1]
		if last.Port.High+1 == b.Port.Low && last.Reason == b.Reason && last.May == b.May {
			last.Port.High = b.Port.High
			return found
		}
	}
	return append(found, b)
}
