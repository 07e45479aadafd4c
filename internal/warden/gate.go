package warden

import (
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/sallyport/sallyport/internal/border"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/warden/internal/nft"
	"github.com/sallyport/sallyport/internal/warden/internal/run"
)

// firewall is what the gate needs of a firewall. The kernel's table is one, a
// test's memory another.
type firewall interface {
	Grant([]nft.Element) error
	Revoke([]nft.Element) error
	Grants() ([]nft.Element, error)
	// Holds asks for one element, by all but its TTL and By: of a service with once
	// the firewall itself ends a grant.
	Holds(nft.Element) (bool, error)
}

// gate answers the engine's requests. It takes nothing on trust: each request
// is checked against the warden's own reading of the config, so that an engine
// that strangers took over can open, for some address, what some rule opens,
// for as long as the rule says, and nothing else.
type gate struct {
	cfg        *config.Config
	generation uint32
	rules      []config.Rule
	widths     map[bool][]uint8 // lengths of masks that may be asked for, by whether they are of IPv4
	proving    bool             // some knock wants a key or a secret
	keys       []border.Keys    // as long as cfg.Knocks
	firewall   firewall
	// begin is firewall.Grant where that takes long, and opened gets what came of it;
	// nil: it does not.
	begin      func([]nft.Element) (wait func() error, err error)
	opened     chan opening
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
// itself has dropped those for ports that are no longer hidden, and changed says
// which others. Requests that were made under another generation are refused from
// here on: its numbers could mean another rule.
func (g *gate) use(cfg *config.Config, generation uint32, keys []border.Keys) {
	old := g.cfg
	g.cfg, g.generation, g.rules, g.keys = cfg, generation, cfg.Rules(), keys
	g.widths = map[bool][]uint8{true: nft.Widths(cfg, true), false: nft.Widths(cfg, false)}
	g.proving = slices.ContainsFunc(cfg.Knocks, func(k config.Knock) bool { return k.Type != "sequence" })
	g.changed(old)
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
		}
	}
	for _, h := range g.gather(elements, now) {
		g.record(g.service(h.service), h.grantKey, h.asked, now)
	}
	return len(g.grants), nil
}

// record remembers a grant, and who came in by a key.
func (g *gate) record(s *config.Service, key grantKey, a asked, now time.Time) {
	if s.CloseOnDisconnect {
		g.uses.ask(key.whole(), g.grants.end(key).until.After(now), now)
	}
	g.grants.add(key, a.by, a.until, now)
	g.entries.add(entry{key, a.by}, g.cfg.Daemon.MaxGrants)
}

// leastTTL is the shortest time that the kernel can give an element: it counts
// milliseconds, and reads none as for ever.
const leastTTL = time.Millisecond

// restore gives a table that was made anew the grants that it had, but for those that
// one connection uses up: with the table went the word whether it has.
func (g *gate) restore(now time.Time) {
	g.grants.forget(now.Add(leastTTL)) // one that is too short would fail them all
	var lost []nft.Element
	for key := range g.grants {
		for i := range g.cfg.Services {
			switch s := &g.cfg.Services[i]; {
			case s.Name != key.service:
			case s.Once:
				g.log.Warn("a grant for one connection was lost with the table, and whoever has not used it must knock again", "service", s.Name, "address", key.who())
				delete(g.grants, key)
			default:
				lost = append(lost, g.spell(key, s, g.grants.end(key), now)...)
			}
		}
	}
	lost = append(lost, g.cuts.elements(now)...)
	if err := g.firewall.Grant(lost); err != nil {
		g.log.Error("grants were lost with the table; their owners must knock again", "grants", len(g.grants), "error", err)
	}
}

// covers reports whether a service is for an element's port and destination.
func covers(s *config.Service, e nft.Element) bool {
	return (e.Cut || e.Once == s.Once) && forwardsTo(s, e.On) && config.HasPort(s.Ports, e.Proto, e.Port)
}

// forwardsTo reports whether on is one of the service's forwarded
// destinations, or, for the zero address, whether it guards this host.
func forwardsTo(s *config.Service, on netip.Addr) bool {
	if len(s.On) == 0 {
		return !on.IsValid()
	}
	return slices.Contains(s.On, on)
}

// open lets an address in, or says why not; nil: that is said later, by finish.
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
		key := wanted(m, service)
		g.log.Info("would open", "service", key.what(), "address", key.who(), "for", m.TTL, "asked by", by)
		done.Result, done.Until = border.Observed, now.Add(m.TTL)
		return done
	}
	return g.grant(done, m, service, by, now)
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
		if m.Bits != 0 || m.Port != 0 {
			return nil, "", 0, border.NotAllowed // no command says so
		}
		if int(m.Service) >= len(g.cfg.Services) {
			return nil, "", 0, border.NoSuchRule
		}
		s = &g.cfg.Services[m.Service]
		return s, admin, s.MaxOpenFor, 0
	}
	who, why := g.asker(m.Rule, m.Key)
	if why != 0 {
		return nil, "", 0, why
	}
	rule := g.rules[m.Rule]
	if rule.Service == config.None || rule.Close || rule.Extend != m.Extend && (rule.Extend || who.fixed()) {
		return nil, "", 0, border.NoSuchRule
	}
	s = &g.cfg.Services[rule.Service]
	if g.unmarked(rule.Knock) || !who.may(s.Name, m.Addr, now) || !narrows(m, s, &who) {
		return nil, "", 0, border.NotAllowed
	}
	if by = who.by; m.Extend {
		key := wanted(m, s)
		if g.usedUp(key, s, now); !g.observe {
			by = g.grants.last(key, g.whose(&who, rule), now)
		}
		if by == "" {
			return nil, "", 0, border.NothingToExtend
		}
	}
	return s, by, bound(m, &who, s, now), 0
}

// narrows reports whether the asker may name the port and the mask that a request
// has: only a knock of type "encoded" can.
func narrows(m *border.Open, s *config.Service, who *asker) bool {
	if m.Port == 0 && m.Bits == 0 {
		return true
	}
	return who.knock.Type == "encoded" && who.wide(m.Addr, m.Bits) && (m.Port == 0 || config.HasPort(s.Ports, m.Proto, m.Port))
}

// wanted is what a request asks for.
func wanted(m *border.Open, s *config.Service) grantKey {
	key := grantKey{addr: m.Addr, service: s.Name, bits: m.Bits}
	if m.Port != 0 && !onePort(s) {
		key = key.only(m.Proto, m.Port)
	}
	return key
}

// crossing is how much older than ours the engine's look at the clock may be.
const crossing = time.Second

// bound gives how long somebody may have a service at most: no grant outlives the
// key or the secret. What the engine reckoned a moment ago is shortened to that.
func bound(m *border.Open, who *asker, s *config.Service, now time.Time) time.Duration {
	longest, expires := s.MaxOpenFor, time.Time{}
	if who.fixed() {
		longest = s.OpenFor // it carries no duration, so it can't ask for another
	}
	switch {
	case who.person != nil:
		expires = who.person.Expires
	case who.key != nil:
		expires = who.key.Expires
		if who.key.MaxTime > 0 {
			longest = min(longest, who.key.MaxTime)
		}
	}
	if expires.IsZero() {
		return longest
	}
	left := expires.Sub(now)
	if m.TTL <= left+crossing {
		m.TTL = min(m.TTL, left)
	}
	return min(longest, left)
}

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

// opening is a grant whose elements are being written.
type opening struct {
	done *border.Done
	key  grantKey
	asked
	list []nft.Element
	last time.Time // the grant's end, by whoever asked
	had  bool      // who asked had it before
	err  error
}

// grant writes the elements. The end is the latest that anybody asked for: a
// refresh never shortens.
func (g *gate) grant(done *border.Done, m *border.Open, s *config.Service, by string, now time.Time) *border.Done {
	key := wanted(m, s)
	g.usedUp(key, s, now)
	last := g.grants.end(key)
	if until := now.Add(m.TTL); until.After(last.until) {
		last = asked{by, until}
	}
	if g.over(s, key, by, now) {
		text := "one key or person has its share of the grant set: this knock opened nothing, and those that have less still can; raise max_grants, or end what it has with 'sallyport close'"
		if g.holder(by) == anybody {
			text = "sequences have their share of the grant set: this knock opened nothing, and keys, people and the administrator still can; raise max_grants or shorten open_for"
		}
		g.log.Error(text,
			"service", key.what(), "address", key.who(), "asked by", by)
		done.Result = border.Full
		return done
	}
	o := opening{done: done, key: key, asked: asked{by, now.Add(m.TTL)}, list: g.spell(key, s, last, now), last: last.until, had: g.grants.live(key, by, now)}
	if g.begin == nil {
		if o.err = g.firewall.Grant(o.list); o.err == nil {
			g.record(s, key, o.asked, now)
		}
		return g.finish(o, now)
	}
	wait, err := g.begin(o.list)
	if o.err = err; err != nil {
		return g.finish(o, now)
	}
	g.record(s, key, o.asked, now) // already: who asks meanwhile must not shorten it
	go func() {
		o.err = wait()
		g.opened <- o
	}()
	return nil
}

// finish says what came of a grant.
func (g *gate) finish(o opening, now time.Time) *border.Done {
	who := []any{"service", o.key.what(), "address", o.key.who(), "asked by", o.by}
	switch {
	case o.err == nil:
		g.readmit(o.key, o.list)
		g.log.Info("open", "service", o.key.what(), "address", o.key.who(), "for", o.last.Sub(now).Round(time.Millisecond), "asked by", o.by)
		o.done.Result, o.done.Until = border.Granted, o.last
		return o.done
	case errors.Is(o.err, nft.ErrFull):
		o.done.Result = border.Full
		g.log.Error("the grant set is full: this knock opened nothing, those who are in stay in; raise max_grants or shorten open_for", who...)
	case errors.Is(o.err, run.ErrBusy):
		o.done.Result = border.TooFast
		g.notRun(&config.Action{Name: "open_command"}, o.key.addr, o.by, o.err, now)
	default:
		o.done.Result = border.Failed
		g.log.Error("the firewall refused a grant: this knock opened nothing; "+missingHint(g.cfg.Daemon.Backend), append(who, "error", o.err)...)
	}
	if !o.had {
		g.grants.remove(o.key, o.by)
	}
	return o.done
}

// size is the number of elements of a grant.
func size(s *config.Service, key grantKey) int {
	n := 1
	if key.port == 0 {
		n = config.CountPorts(s.Ports)
	}
	if len(s.On) > 0 {
		n *= len(destinations(s, key.addr))
	}
	return n
}

// spell gives the elements of a grant that lasts until a's end. A port that another
// request holds open for longer keeps that one's end.
func (g *gate) spell(key grantKey, s *config.Service, a asked, now time.Time) []nft.Element {
	list := elements(s, key, a, now)
	if onePort(s) {
		return list
	}
	for i := range list {
		if other := g.grants.end(key.beside(list[i])); other.until.After(a.until) {
			list[i].TTL, list[i].By = other.until.Sub(now), other.by
		}
	}
	return list
}

// elements spells a grant out: one element for each port and destination.
func elements(s *config.Service, key grantKey, a asked, now time.Time) []nft.Element {
	on := []netip.Addr{{}}
	if len(s.On) > 0 {
		on = destinations(s, key.addr)
	}
	open := s.Ports
	if key.port != 0 {
		open = []config.PortRange{{Proto: key.proto, Low: key.port, High: key.port}}
	}
	var list []nft.Element
	for _, r := range open {
		for port := int(r.Low); port <= int(r.High); port++ {
			for _, to := range on {
				list = append(list, nft.Element{
					Once: s.Once, Bits: key.bits, Addr: key.addr, On: to, Proto: r.Proto, Port: uint16(port), TTL: a.until.Sub(now), By: a.by,
				})
			}
		}
	}
	return list
}

// list tells what the kernel holds, one line for each address and service, or port of
// it where that is not open whole.
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
	for _, h := range g.gather(elements, now) {
		line := h.line()
		line.Once = g.service(h.service).Once
		listed.Grants = append(listed.Grants, line)
	}
	return listed
}
