package nft

import (
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/sallyport/sallyport/internal/config"
	"golang.org/x/sys/unix"
)

// Options are what Apply needs beside the config.
type Options struct {
	// HiddenFor, when above 0, is after how long the kernel undoes the hiding,
	// also if nobody is left to ask it to. An Apply without it makes it stay.
	HiddenFor time.Duration
	// Live are the connections to keep where the socket rule would answer a
	// probe; nil: use that rule. The function Live gives the right one.
	Live []Connection
}

// layout is the table as a config wants it.
type layout struct {
	fixed  []fixedSet
	kinds  []kind          // of grants, the cuts left out
	once   bool            // some of them are used up by a connection
	grants []*nftables.Set // whose elements Apply keeps
	chains []chain
	cover  cover
}

type chain struct {
	*nftables.Chain
	rules []rule
}

// The priorities of our base chains. mangle is before any DNAT, so that the
// number that the stranger dialled is judged, and behind conntrack (-200). One
// before dstnat (-100) is before Docker's and everybody's redirects. 300 is
// behind every filter chain that has one of the named priorities.
const (
	arrivePriority = -150
	keepPriority   = -101
	answerPriority = 300
)

// MinCuts is for how many elements with Cut each set has room at least. They
// stay for long, and a smaller max_grants must not make the kernel refuse those
// that are in.
const MinCuts = 65536

// statusDNAT is conntrack's IPS_DST_NAT: the destination was really changed,
// which a DNAT to itself does not do.
const statusDNAT = 1 << 5

func newLayout(cfg *config.Config, o Options) layout {
	l := layout{fixed: hiddenSets(cfg, o.HiddenFor)}
	l.fixed = append(l.fixed, onwardSets(cfg, o.HiddenFor)...)
	l.fixed = append(l.fixed, allowSets(cfg)...)
	if len(cfg.Daemon.Interfaces) > 0 {
		l.fixed = append(l.fixed, interfaceSet(cfg.Daemon.Interfaces))
	}
	for _, f := range families {
		if o.Live != nil {
			l.fixed = append(l.fixed, liveSet(f, o.Live))
		}
		l.grantSets(cfg, f)
	}
	l.cover = newCover(cfg)
	l.chains = l.newChains(cfg)
	return l
}

// grantSets adds the sets of one family whose elements come and go.
func (l *layout) grantSets(cfg *config.Config, f ipFamily) {
	once := false
	for _, k := range kinds(cfg, f) {
		l.kinds = append(l.kinds, k)
		l.grants = append(l.grants, k.grantSet(cfg.Daemon.MaxGrants))
		once = once || k.once
		if !k.once && k.bits == 0 {
			k.cut = true
			l.grants = append(l.grants, k.grantSet(max(cfg.Daemon.MaxGrants, MinCuts)))
		}
	}
	if once {
		l.once = true
		l.grants = append(l.grants, endsSet(f, f.half()), endsSet(f, f.flow()))
	}
}

// keeps reports whether a set that is there is one of the layout's sets of grants.
func (l layout) keeps(have *nftables.Set) bool {
	return slices.ContainsFunc(l.grants, func(want *nftables.Set) bool { return sameSet(want, have) })
}

// has reports whether the layout has a set that Apply fills by that name.
func (l layout) has(name string) bool {
	for _, s := range l.fixed {
		if s.Name == name {
			return true
		}
	}
	return false
}

// rename puts a prefix before the names of the sets that Apply fills, also
// where a rule names them.
func (l layout) rename(prefix string) {
	for _, c := range l.chains {
		for _, r := range c.rules {
			for _, e := range r.exprs {
				if lookup, ok := e.(*expr.Lookup); ok && l.has(lookup.SetName) {
					lookup.SetName = prefix + lookup.SetName
				}
			}
		}
	}
	for _, s := range l.fixed {
		s.Name = prefix + s.Name
	}
}

// newChains gives the chains, each behind those that it jumps to.
func (l layout) newChains(cfg *config.Config) []chain {
	out := []chain{{regular("refuse"), []rule{
		newRule("", protocolIs(unix.IPPROTO_TCP), resetTCP),
		newRule("", portUnreachable),
	}}}
	out = append(out, chain{regular("closed"), l.closed()})
	elsewhere := accept
	if onwards := l.onward(cfg.Daemon.GrantMark); len(onwards) > 0 {
		out = append(out, chain{regular("onward"), onwards})
		elsewhere = goTo("onward")
	}
	if l.once {
		out = append(out, chain{regular("once"), l.claims()})
	}
	return append(out,
		chain{regular("granted"), l.granted(cfg, elsewhere)},
		chain{regular("cut"), []rule{
			newRule("", jump("granted")),
			newRule("whoever speaks first", ct(expr.CtKeySTATE, alive), drop),
		}},
		chain{regular("known"), l.known()},
		chain{base("arrive", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, arrivePriority), []rule{
			newRule("", jump("known")),
			newRule("", destinationType(expr.CmpOpNeq, unix.RTN_LOCAL), accept),
			newRule("", jump("closed")),
		}},
		chain{base("keep", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, keepPriority), keep()},
		chain{base("answer", nftables.ChainTypeFilter, nftables.ChainHookInput, answerPriority), []rule{
			newRule("redirected by the owner: judged on arrival", ct(expr.CtKeySTATUS, statusDNAT), accept),
			newRule("", jump("known")),
			newRule("broadcast and multicast", jump("closed")),
			newRule("what the host's own rules accept is refused as a closed port", portIn("hidden_auto"), goTo("refuse")),
		}},
	)
}

// alive are conntrack's states of a connection that goes on.
const alive = expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED

// known lets go what no stranger sent. Its order is by how often a rule
// decides, save that what was cut must not be saved by conntrack: a server that
// goes on sending makes the entry anew (net.netfilter.nf_conntrack_tcp_loose, and
// UDP has no beginning), and the stranger's packets are then its replies.
func (l layout) known() []rule {
	rules := []rule{newRule("", throughLo(), accept)}
	if l.has("interfaces") {
		rules = append(rules, newRule("not guarded", outside("interfaces", inName), accept))
	}
	for _, s := range l.grants {
		switch k, ok := kindOf(s.Name); {
		case !ok || !k.cut:
		case k.forward:
			rules = append(rules, newRule("", k.family.is(), within(s.Name, k.within()...), goTo("cut")))
		default: // it speaks of this host, and a packet to others has such a port too
			rules = append(rules, newRule("", k.family.is(), within(s.Name, k.within()...), destinationType(expr.CmpOpEq, unix.RTN_LOCAL), goTo("cut")))
		}
	}
	rules = append(rules, l.unclaimed()...)
	rules = append(rules, newRule("", ct(expr.CtKeySTATE, alive), accept))
	rules = append(rules, l.live()...)
	return append(rules, newRule("", goTo("granted")))
}

// granted lets in whom the config or a grant lets in. A forwarded packet must
// be gone before the sets of ports, which speak of this host.
func (l layout) granted(cfg *config.Config, elsewhere []expr.Any) []rule {
	rules := []rule{newRule("forwarded", destinationType(expr.CmpOpEq, unix.RTN_UNICAST), elsewhere)}
	if cfg.Daemon.HideAll {
		rules = append(rules, leases()...)
	}
	for _, f := range families {
		if l.has(f.suffix("allow")) {
			rules = append(rules, newRule("", f.is(), within(f.suffix("allow"), f.source(), protocol, dstPort), accept))
		}
	}
	for _, k := range l.kinds {
		if !k.forward {
			rules = append(rules, k.letIn(cfg.Daemon.GrantMark)...)
		}
	}
	return rules
}

// live saves connections that conntrack never saw begin. On a host without a
// firewall it starts to look when our table comes, and without this the
// administrator's own session would die of it.
func (l layout) live() []rule {
	if !l.has("live4") {
		return []rule{newRule("connections older than this table", midStream(), hasSocket(), accept)}
	}
	var rules []rule
	for _, f := range families {
		rules = append(rules, newRule("connections older than this table",
			midStream(), f.is(), within(f.suffix("live"), f.source(), srcPort, f.destination(), dstPort), accept))
	}
	return rules
}

// leases keeps the host on its network when everything is hidden: the answers
// to its own DHCP questions, which went to a group and so match no connection
// (RFC 2131 section 4.1, RFC 8415 section 7.2).
func leases() []rule {
	return []rule{
		newRule("DHCP", protocolIs(unix.IPPROTO_UDP), portIs(srcPort, 67), portIs(dstPort, 68), accept),
		newRule("DHCPv6", protocolIs(unix.IPPROTO_UDP), portIs(srcPort, 547), portIs(dstPort, 546), accept),
	}
}

// onward decides for packets to other machines, and lets go all that no service
// names. It is empty when no service names any.
func (l layout) onward(mark uint32) []rule {
	var rules []rule
	for _, f := range families {
		var closed []rule
		if name := onwardSet(f, config.Drop); l.has(name) {
			closed = append(closed, newRule("", f.is(), within(name, f.destination(), protocol, dstPort), drop))
		}
		if name := onwardSet(f, config.Reject); l.has(name) {
			closed = append(closed, newRule("", f.is(), within(name, f.destination(), protocol, dstPort), goTo("refuse")))
		}
		if len(closed) == 0 {
			continue
		}
		if name := f.suffix("allowon"); l.has(name) {
			rules = append(rules, newRule("", f.is(), within(name, f.source(), f.destination(), protocol, dstPort), accept))
		}
		for _, k := range l.kinds {
			if k.forward && k.family == f {
				rules = append(rules, k.letIn(mark)...)
			}
		}
		rules = append(rules, closed...)
	}
	if len(rules) > 0 {
		rules = append(rules, newRule("", accept))
	}
	return rules
}

// closed decides for every look but auto.
func (l layout) closed() []rule {
	var rules []rule
	if l.has("quiet") {
		rules = append(rules, newRule("knock ports that give no answer", portIn("quiet"), drop))
	}
	return append(rules,
		newRule("", portIn("hidden_drop"), drop),
		newRule("", portIn("hidden_reject"), goTo("refuse")))
}

// keep binds a stranger's connection to this host, where the chain answer waits
// for it behind the host's own input rules. Else a redirect of the dialled port
// (Docker's published ports are such) would carry it past them.
func keep() []rule {
	rules := []rule{
		newRule("", portNotIn("hidden_auto"), accept),
		newRule("", jump("known")),
	}
	for _, f := range families {
		rules = append(rules, newRule("to where it was sent: no later redirect is asked",
			destinationType(expr.CmpOpEq, unix.RTN_LOCAL), f.is(), f.keepDestination()))
	}
	return rules
}

func regular(name string) *nftables.Chain { return &nftables.Chain{Table: inet(), Name: name} }

func base(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority nftables.ChainPriority) *nftables.Chain {
	policy := nftables.ChainPolicyAccept
	return &nftables.Chain{Table: inet(), Name: name, Type: kind, Hooknum: hook, Priority: &priority, Policy: &policy}
}
