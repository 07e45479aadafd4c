package warden

import (
	"cmp"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/sallyport/sallyport/internal/border"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/sallyport/sallyport/internal/warden/internal/nft"
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
	firewall   firewall
	grants     grants
	tickets    tickets
	opens      rate
	listAgain  time.Time // a listing before then is refused
	observe    bool
	log        *slog.Logger
}

func newGate(fw firewall, observe bool, log *slog.Logger) *gate {
	return &gate{firewall: fw, grants: grants{}, tickets: tickets{}, observe: observe, log: log}
}

// use turns to another generation of the config. Grants are kept: the table
// itself has dropped those for ports that are no longer hidden. Requests that
// were made under another generation are refused from here on: its numbers
// could mean another rule.
func (g *gate) use(cfg *config.Config, generation uint32) {
	g.cfg, g.generation, g.rules = cfg, generation, cfg.Rules()
}

// adopt takes over the grants that the kernel still holds from before.
func (g *gate) adopt(now time.Time) (int, error) {
	elements, err := g.firewall.Grants()
	if err != nil {
		return 0, err
	}
	for _, e := range elements {
		for i := range g.cfg.Services {
			if covers(&g.cfg.Services[i], e) {
				g.grants.add(grantKey{e.Addr, g.cfg.Services[i].Name}, cmp.Or(e.By, unknown), now.Add(e.TTL))
			}
		}
	}
	return len(g.grants), nil
}

// restore gives a table that was made anew the grants that it had.
func (g *gate) restore(now time.Time) {
	g.grants.forget(now)
	var lost []nft.Element
	for key := range g.grants {
		for i := range g.cfg.Services {
			if s := &g.cfg.Services[i]; s.Name == key.service {
				lost = append(lost, elements(s, key.addr, g.grants.end(key), now)...)
			}
		}
	}
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
	if int(m.Rule) >= len(g.rules) {
		return nil, "", 0, border.NoSuchRule
	}
	rule := g.rules[m.Rule]
	s = &g.cfg.Services[rule.Service]
	// A sequence carries no duration, so it can't ask for another than the service's.
	return s, g.cfg.Knocks[rule.Knock].Name, s.OpenFor, 0
}

func (g *gate) check(m *border.Open, s *config.Service, longest time.Duration, now time.Time) border.Result {
	if m.TTL > longest {
		return border.TooLong
	}
	// Nobody can connect from another kind, so only a mistake or a forger asks.
	if !m.Addr.IsGlobalUnicast() && !m.Addr.IsLinkLocalUnicast() {
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
	g.grants.add(key, by, now.Add(m.TTL))
	g.log.Info("open", "service", s.Name, "address", m.Addr, "for", last.until.Sub(now).Round(time.Millisecond), "asked by", by)
	return border.Granted, last.until
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

// close ends grants: what one knock asked for, or, for the administrator, all.
func (g *gate) close(m *border.Close, now time.Time) *border.Done {
	done := &border.Done{ID: m.ID, Result: border.Closed}
	by := ""
	switch {
	case m.Generation != g.generation:
		done.Result = border.Stale
		return done
	case m.Rule == border.AnyRule && !g.tickets.use(m.Ticket, now):
		done.Result = border.NoTicket
		return done
	case m.Rule == border.AnyRule:
	case int(m.Rule) < len(g.rules):
		by = g.cfg.Knocks[g.rules[m.Rule].Knock].Name
	default:
		done.Result = border.NoSuchRule
		return done
	}
	if !g.opens.take(now, opensPerSecond) {
		done.Result = border.TooFast
		return done
	}
	for i := range g.cfg.Services {
		if m.Service != border.AnyService && int(m.Service) != i {
			continue
		}
		ended, err := g.end(grantKey{m.Addr, g.cfg.Services[i].Name}, &g.cfg.Services[i], by, now)
		if err != nil {
			// One failed removal must not stop the removal of those behind it.
			g.log.Error("the firewall refused to close; the grant ends by itself with its time", "service", g.cfg.Services[i].Name, "address", m.Addr, "error", err)
			done.Result = border.Failed
		}
		if ended {
			done.Count++
		}
	}
	return done
}

// end takes back what by asked for, or everybody's where by is empty. Where
// somebody else asked too, the grant goes on until that time.
func (g *gate) end(key grantKey, s *config.Service, by string, now time.Time) (ended bool, err error) {
	mine := false
	for _, a := range g.grants[key] {
		mine = mine || by == "" || a.by == by
	}
	if !mine {
		return false, nil
	}
	if g.observe {
		g.log.Info("would close", "service", s.Name, "address", key.addr)
		return false, nil
	}
	rest := asked{}
	if by != "" {
		rest = g.grants.without(key, by)
	}
	if rest.until.After(now) {
		err = g.firewall.Grant(elements(s, key.addr, rest, now))
	} else {
		err = g.firewall.Revoke(elements(s, key.addr, rest, now))
	}
	if err != nil {
		return false, err
	}
	if by == "" {
		delete(g.grants, key)
	} else {
		g.grants.remove(key, by)
	}
	g.log.Info("closed", "service", s.Name, "address", key.addr, "asked by", cmp.Or(by, admin))
	return true, nil
}

// list tells what the kernel holds, one line for each address and service.
func (g *gate) list(now time.Time) border.Listed {
	if now.Before(g.listAgain) {
		return border.Listed{Error: "the grants are listed too often; try again in a moment"}
	}
	elements, err := g.firewall.Grants()
	// Two full sets take a while to list, and knocks wait meanwhile: a hijacked
	// engine may have a fifth of our time by this, no more.
	if took := time.Since(now); took > 20*time.Millisecond {
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
			if covers(&g.cfg.Services[i], e) && !seen[key] {
				seen[key] = true
				listed.Grants = append(listed.Grants, border.Grant{Addr: e.Addr, Service: key.service, By: e.By, Until: now.Add(e.TTL)})
			}
		}
	}
	return listed
}

// rate bounds how often a second the engine may ask for something: a hijacked
// engine must not keep the firewall busy.
type rate struct {
	left float64
	last time.Time
}

// opensPerSecond bounds grants and closes: each costs the kernel about 0.1 ms.
const opensPerSecond = 1000

// take gives leave for one, of so many a second and as many at once.
func (r *rate) take(now time.Time, perSecond float64) bool {
	if r.last.IsZero() {
		r.left = perSecond
	} else {
		r.left = min(perSecond, r.left+now.Sub(r.last).Seconds()*perSecond)
	}
	r.last = now
	if r.left < 1 {
		return false
	}
	r.left--
	return true
}

// tickets are the administrator's connections for changes that were passed to the
// engine and have asked for nothing yet. Each is good for one request, so that a
// hijacked engine can't ask in an administrator's name when none is there.
type tickets map[uint32]time.Time

const (
	ticketLife = 10 * time.Second
	maxTickets = 64
)

// issue records a ticket. When too many are out the oldest makes room: status
// and events leave theirs unused, and must not lock the administrator out.
func (t tickets) issue(n uint32, now time.Time) {
	oldest := n
	t[n] = now
	for n, at := range t {
		if now.Sub(at) > ticketLife {
			delete(t, n)
		} else if at.Before(t[oldest]) {
			oldest = n
		}
	}
	if len(t) > maxTickets {
		delete(t, oldest)
	}
}

// use takes a ticket back; false if there was none.
func (t tickets) use(n uint32, now time.Time) bool {
	at, ok := t[n]
	delete(t, n)
	return ok && now.Sub(at) <= ticketLife
}
