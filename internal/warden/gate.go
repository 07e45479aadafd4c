package warden

import (
	"cmp"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/sallyport/sallyport/internal/authorized"
	"github.com/sallyport/sallyport/internal/border"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/sallyport/sallyport/internal/spa"
	"github.com/sallyport/sallyport/internal/warden/internal/nft"
	"github.com/sallyport/sallyport/internal/warden/internal/run"
)

// firewall is what the gate needs of a firewall. The kernel's table is one, a
// test's memory another.
type firewall interface {
	Grant([]nft.Element) error
	Revoke([]nft.Element) error
	Grants() ([]nft.Element, error)
}

// gate answers the engine's requests. It takes nothing on trust: each request
// is checked against the warden's own reading of the config, so that an engine
// that strangers took over can open, for some address, what some rule opens,
// for as long as the rule says, and nothing else.
type gate struct {
	cfg        *config.Config
	generation uint32
	rules      []config.Rule
	keys       []border.Keys // as long as cfg.Knocks
	firewall   firewall
	cut        func([]live) (int, error) // ends live connections, see cut.go
	runner     *run.Runner
	grants     grants
	cuts       cuts
	uses       uses
	entries    entries
	held       map[share]int // elements of each key
	countAgain time.Time     // what has ended since the count before is still in held
	tickets    tickets
	opens      rate
	spending   spending
	busy       int // actions that did not run since busyTold
	busyTold   time.Time
	marked     map[int]bool // knocks whose one-time sequence is marked as used, under this generation
	listAgain  time.Time    // a listing before then is refused
	observe    bool
	log        *slog.Logger
}

func newGate(fw firewall, observe bool, log *slog.Logger) *gate {
	return &gate{firewall: fw, grants: grants{}, cuts: cuts{}, uses: uses{}, entries: newEntries(), tickets: tickets{}, spending: spending{}, observe: observe, log: log}
}

// use turns to another generation of the config. Grants are kept: the table
// itself has dropped those for ports that are no longer hidden. Requests that
// were made under another generation are refused from here on: its numbers
// could mean another rule.
func (g *gate) use(cfg *config.Config, generation uint32, keys []border.Keys) {
	g.cfg, g.generation, g.rules, g.keys = cfg, generation, cfg.Rules(), keys
	g.marked = map[int]bool{}
	maps.DeleteFunc(g.cuts, func(e nft.Element, _ time.Time) bool { return !g.guarded(e) })
}

// adopt takes over the grants that the kernel still holds from before.
func (g *gate) adopt(now time.Time) (int, error) {
	elements, err := g.firewall.Grants()
	if err != nil {
		return 0, err
	}
	for _, e := range elements {
		if e.Cut {
			g.cuts.add(e, now)
			continue
		}
		for i := range g.cfg.Services {
			if covers(&g.cfg.Services[i], e) {
				g.record(&g.cfg.Services[i], e.Addr, asked{cmp.Or(e.By, unknown), now.Add(e.TTL)}, now)
			}
		}
	}
	return len(g.grants), nil
}

// record remembers a grant, and who came in by a key.
func (g *gate) record(s *config.Service, addr netip.Addr, a asked, now time.Time) {
	key := grantKey{addr, s.Name}
	if s.CloseOnDisconnect {
		g.uses.ask(key, g.grants.end(key).until.After(now), now)
	}
	g.grants.add(key, a.by, a.until, now)
	g.entries.add(entry{key, a.by}, g.cfg.Daemon.MaxGrants)
}

// leastTTL is the shortest time that the kernel can give an element: it counts
// milliseconds, and reads none as for ever.
const leastTTL = time.Millisecond

// restore gives a table that was made anew the grants that it had.
func (g *gate) restore(now time.Time) {
	g.grants.forget(now.Add(leastTTL)) // one that is too short would fail them all
	var lost []nft.Element
	for key := range g.grants {
		for i := range g.cfg.Services {
			if s := &g.cfg.Services[i]; s.Name == key.service {
				lost = append(lost, elements(s, key.addr, g.grants.end(key), now)...)
			}
		}
	}
	lost = append(lost, g.cuts.elements(now)...)
	if err := g.firewall.Grant(lost); err != nil {
		g.log.Error("grants were lost with the table; their owners must knock again", "grants", len(g.grants), "error", err)
	}
}

func covers(s *config.Service, e nft.Element) bool {
	return forwardsTo(s, e.On) && guards(s, e.Proto, e.Port)
}

func guards(s *config.Service, proto sequence.Proto, port uint16) bool {
	return slices.ContainsFunc(s.Ports, func(r config.PortRange) bool { return r.Contains(proto, port) })
}

// forwardsTo reports whether on is one of the service's forwarded
// destinations, or, for the zero address, whether it guards this host.
func forwardsTo(s *config.Service, on netip.Addr) bool {
	if len(s.On) == 0 {
		return !on.IsValid()
	}
	return slices.Contains(s.On, on)
}

// open lets an address in, or says why not.
func (g *gate) open(m *border.Open, now time.Time) *border.Done {
	done := &border.Done{ID: m.ID}
	service, by, longest, why := g.rule(m, now)
	if why == 0 {
		why = g.check(m, service, longest, now)
	}
	if why != 0 {
		done.Result = why
		return done
	}
	if g.observe {
		g.log.Info("would open", "service", service.Name, "address", m.Addr, "for", m.TTL, "asked by", by)
		done.Result, done.Until = border.Observed, now.Add(m.TTL)
		return done
	}
	done.Result, done.Until = g.grant(m, service, by, now)
	return done
}

// rule gives the service that a request may open, who asks, and for how long
// at most.
func (g *gate) rule(m *border.Open, now time.Time) (s *config.Service, by string, longest time.Duration, why border.Result) {
	if m.Generation != g.generation {
		return nil, "", 0, border.Stale
	}
	if m.Rule == border.AnyRule {
		if !g.tickets.use(m.Ticket, now) {
			return nil, "", 0, border.NoTicket
		}
		if int(m.Service) >= len(g.cfg.Services) {
			return nil, "", 0, border.NoSuchRule
		}
		s = &g.cfg.Services[m.Service]
		return s, admin, s.MaxOpenFor, 0
	}
	key, by, why := g.asker(m.Rule, m.Key)
	if why != 0 {
		return nil, "", 0, why
	}
	rule := g.rules[m.Rule]
	if rule.Service == config.None || rule.Close {
		return nil, "", 0, border.NoSuchRule
	}
	if g.unmarked(rule.Knock) {
		return nil, "", 0, border.NotAllowed
	}
	s = &g.cfg.Services[rule.Service]
	switch {
	case key == nil:
		// A sequence carries no duration, so it can't ask for another than the service's.
		longest = s.OpenFor
	case !key.At(now) || !key.At(now.Add(leastTTL)) || !key.Opens(s.Name) || !key.AllowsFrom(m.Addr):
		why = border.NotAllowed
	case m.Extend && !g.grants.live(grantKey{m.Addr, s.Name}, by, now):
		why = border.NothingToExtend
	default:
		longest = bound(m, key, s, now)
	}
	return s, by, longest, why
}

// crossing is how much older than ours the engine's look at the clock may be.
const crossing = time.Second

// bound gives how long a key may have a service at most: no grant outlives the
// key. What the engine reckoned a moment ago is shortened to that.
func bound(m *border.Open, key *authorized.Key, s *config.Service, now time.Time) time.Duration {
	longest := s.MaxOpenFor
	if key.MaxTime > 0 {
		longest = min(longest, key.MaxTime)
	}
	if key.Expires.IsZero() {
		return longest
	}
	left := key.Expires.Sub(now)
	if m.TTL <= left+crossing {
		m.TTL = min(m.TTL, left)
	}
	return min(longest, left)
}

// asker gives the key that a request of a rule's names, nil where its knock has
// no keys, and how grants remember who asked.
func (g *gate) asker(rule, number uint16) (key *authorized.Key, by string, why border.Result) {
	if int(rule) >= len(g.rules) {
		return nil, "", border.NoSuchRule
	}
	i := g.rules[rule].Knock
	knock := &g.cfg.Knocks[i]
	if (knock.Type == "spa") != (number != border.NoKey) {
		return nil, "", border.NoSuchKey
	}
	if number == border.NoKey {
		return nil, knock.Name, 0
	}
	if int(number) > len(g.keys[i].Authorized) {
		return nil, "", border.NoSuchKey
	}
	key = &g.keys[i].Authorized[number-1]
	return key, byKey(knock.Name, key.Public.Fingerprint()), 0
}

// byKey is who asked where a key of a knock's did. The space keeps it apart
// from every knock's name.
func byKey(knock string, f spa.Fingerprint) string { return knock + " " + f.String() }

func (g *gate) check(m *border.Open, s *config.Service, longest time.Duration, now time.Time) border.Result {
	if m.TTL > longest {
		return border.TooLong
	}
	if !connectable(m.Addr) {
		return border.NotUnicast
	}
	if len(s.On) > 0 && len(destinations(s, m.Addr)) == 0 {
		return border.WrongFamily
	}
	if !g.opens.take(now, opensPerSecond) {
		return border.TooFast
	}
	return 0
}

// connectable is false for what nobody can connect from, so that only a mistake or
// a forger asks for it.
func connectable(a netip.Addr) bool { return a.IsGlobalUnicast() || a.IsLinkLocalUnicast() }

// destinations are the forwarded destinations of the address's family.
func destinations(s *config.Service, addr netip.Addr) []netip.Addr {
	var same []netip.Addr
	for _, on := range s.On {
		if on.Is4() == addr.Is4() {
			same = append(same, on)
		}
	}
	return same
}

// grant writes the elements. The end is the latest that anybody asked for: a
// refresh never shortens.
func (g *gate) grant(m *border.Open, s *config.Service, by string, now time.Time) (border.Result, time.Time) {
	key := grantKey{m.Addr, s.Name}
	last := g.grants.end(key)
	if until := now.Add(m.TTL); until.After(last.until) {
		last = asked{by, until}
	}
	if g.over(s, m.Addr, by, now) {
		g.log.Error("one key has its share of the grant set: this knock opened nothing, and keys that have less still can; raise max_grants, or end what it has with 'sallyport close --key'",
			"service", s.Name, "address", m.Addr, "asked by", by)
		return border.Full, time.Time{}
	}
	err := g.firewall.Grant(elements(s, m.Addr, last, now))
	switch {
	case errors.Is(err, nft.ErrFull):
		g.log.Error("the grant set is full: this knock opened nothing, those who are in stay in; raise max_grants or shorten open_for",
			"service", s.Name, "address", m.Addr, "asked by", by)
		return border.Full, time.Time{}
	case err != nil:
		g.log.Error("the firewall refused a grant: this knock opened nothing; if 'nft list table inet sallyport' finds no table, send the daemon SIGHUP, which makes it again", "service", s.Name, "address", m.Addr, "error", err)
		return border.Failed, time.Time{}
	}
	g.record(s, m.Addr, asked{by, now.Add(m.TTL)}, now)
	g.readmit(elements(s, m.Addr, last, now))
	g.log.Info("open", "service", s.Name, "address", m.Addr, "for", last.until.Sub(now).Round(time.Millisecond), "asked by", by)
	return border.Granted, last.until
}

// size is the number of elements of a grant.
func size(s *config.Service, addr netip.Addr) (n int) {
	for _, r := range s.Ports {
		n += r.Count()
	}
	if len(s.On) > 0 {
		n *= len(destinations(s, addr))
	}
	return n
}

// elements spells a grant out: one element for each port and destination.
func elements(s *config.Service, addr netip.Addr, a asked, now time.Time) []nft.Element {
	on := []netip.Addr{{}}
	if len(s.On) > 0 {
		on = destinations(s, addr)
	}
	var list []nft.Element
	for _, r := range s.Ports {
		for port := int(r.Low); port <= int(r.High); port++ {
			for _, to := range on {
				list = append(list, nft.Element{
					Addr: addr, On: to, Proto: r.Proto, Port: uint16(port), TTL: a.until.Sub(now), By: a.by,
				})
			}
		}
	}
	return list
}

// list tells what the kernel holds, one line for each address and service.
func (g *gate) list(now time.Time) border.Listed {
	if now.Before(g.listAgain) {
		return border.Listed{Error: "the grants are listed too often; try again in a moment"}
	}
	// A hijacked engine need not wait for a config.
	if g.cfg == nil {
		return border.Listed{Error: "no config is in use yet; try again in a moment"}
	}
	began := time.Now()
	elements, err := g.firewall.Grants()
	// Two full sets take a while to list, and knocks wait meanwhile: a hijacked
	// engine may have a fifth of our time by this, no more.
	if took := time.Since(began); took > 20*time.Millisecond {
		g.listAgain = now.Add(5 * took)
	}
	if err != nil {
		return border.Listed{Error: err.Error()}
	}
	var listed border.Listed
	seen := map[grantKey]bool{}
	for _, e := range elements {
		for i := range g.cfg.Services {
			key := grantKey{e.Addr, g.cfg.Services[i].Name}
			if !e.Cut && covers(&g.cfg.Services[i], e) && !seen[key] {
				seen[key] = true
				listed.Grants = append(listed.Grants, border.Grant{Addr: e.Addr, Service: key.service, By: e.By, Until: now.Add(e.TTL)})
			}
		}
	}
	return listed
}
