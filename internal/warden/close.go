package warden

import (
	"cmp"
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/sallyport/sallyport/internal/border"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/warden/internal/nft"
)

// close ends grants: what one knock or key asked for, or, for the administrator,
// all.
func (g *gate) close(m *border.Close, now time.Time) *border.Done {
	done := &border.Done{ID: m.ID, Result: border.Closed}
	of, why := g.closer(m, now)
	if why == 0 && !g.opens.take(now, opensPerSecond) {
		why = border.TooFast
	}
	if why != 0 {
		done.Result = why
		return done
	}
	var cut []live
	for i := range g.cfg.Services {
		if m.Service != border.AnyService && int(m.Service) != i {
			continue
		}
		closed := false
		for _, key := range g.closed(m, &g.cfg.Services[i]) {
			for _, by := range of {
				ended, err := g.end(key, &g.cfg.Services[i], by, now)
				if err != nil {
					// One failed removal must not stop the removal of those behind it.
					g.log.Error("the firewall refused to close; the grant ends by itself with its time", "service", key.what(), "address", key.who(), "error", err)
					done.Result = border.Failed
				}
				closed = closed || ended
			}
		}
		if closed {
			done.Count++
		}
		cut = append(cut, live{m.Addr, &g.cfg.Services[i]})
	}
	if m.Cut && g.cutAll(cut, done, now) && !g.observe {
		g.entries.remove(g.cameIn(cut))
	}
	return done
}

// closed lists the grants of a service that a Close is for. An administrator who shuts
// an address out wants it out: the networks that it is in are shut too. Who names a
// port or a network means that grant.
func (g *gate) closed(m *border.Close, s *config.Service) (list []grantKey) {
	if m.Port != 0 && !onePort(s) {
		return []grantKey{{addr: m.Addr, bits: m.Bits, service: s.Name, proto: m.Proto, port: m.Port}}
	}
	if m.Rule != border.AnyRule || m.Bits > 0 {
		return g.variants(grantKey{addr: m.Addr, bits: m.Bits, service: s.Name}, s)
	}
	for _, key := range g.around(m.Addr, s.Name) {
		list = append(list, g.variants(key, s)...)
	}
	return list
}

// cameIn gives who was let in where connections were cut.
func (g *gate) cameIn(cut []live) (gone []entry) {
	for e := range g.entries.at {
		if slices.ContainsFunc(cut, func(l live) bool { return l.addr == e.addr && l.service.Name == e.service }) {
			gone = append(gone, e)
		}
	}
	return gone
}

// closer says whose grants a Close may end; "" is everybody's.
func (g *gate) closer(m *border.Close, now time.Time) (of []string, why border.Result) {
	switch {
	case m.Generation != g.generation:
		return nil, border.Stale
	case m.Rule == border.AnyRule && !g.tickets.use(m.Ticket, now):
		return nil, border.NoTicket
	case m.Rule == border.AnyRule && m.Cut && (m.Bits > 0 || m.Port > 0):
		return nil, border.NotAllowed // connections are cut by address and service
	case m.Rule == border.AnyRule:
		return []string{""}, 0
	}
	who, why := g.asker(m.Rule, m.Key)
	if why != 0 {
		return nil, why
	}
	switch rule := g.rules[m.Rule]; {
	case rule.Service == config.None || rule.Extend || m.Service != uint16(rule.Service),
		who.knock.Type == "otp" && !rule.Close: // it says nothing but what its rule does
		return nil, border.NoSuchRule
	case g.unmarked(rule.Knock) || !who.wide(m.Addr, m.Bits):
		return nil, border.NotAllowed
	default:
		return g.whose(&who, rule), 0
	}
}

// closeKey ends every grant that a key asked for, by whichever knock, and if
// asked to also the connections of all who came in by it. The key need not be
// in use any more, so it is looked for in who asked.
func (g *gate) closeKey(m *border.CloseKey, now time.Time) *border.Done {
	done := &border.Done{ID: m.ID, Result: border.Closed}
	switch {
	case !g.tickets.use(m.Ticket, now):
		done.Result = border.NoTicket
		return done
	case !g.opens.take(now, opensPerSecond):
		done.Result = border.TooFast
		return done
	}
	key := m.Fingerprint.String()
	mine := g.byKey(key)
	for _, e := range mine {
		s := g.service(e.service)
		if s == nil {
			continue // it left the config, and its elements the table
		}
		was := g.grants.live(e.grantKey, e.by, now)
		ended, err := g.end(e.grantKey, s, e.by, now)
		if err != nil {
			// One failed removal must not stop the removal of those behind it.
			g.log.Error("the firewall refused to close; the grant ends by itself with its time", "service", s.Name, "address", e.addr, "error", err)
			done.Result = border.Failed
		}
		if ended && was {
			done.Count++
		}
	}
	if m.Cut {
		g.cutKey(g.alone(mine, key, done, now), done, now)
	}
	return done
}

// cutKey ends the connections of who came in by a key and forgets them.
func (g *gate) cutKey(mine []entry, done *border.Done, now time.Time) {
	var cut []live
	for _, e := range mine {
		if s := g.service(e.service); s != nil {
			cut = append(cut, live{e.addr, s})
		}
	}
	if g.cutAll(cut, done, now) && !g.observe {
		g.entries.remove(mine)
	}
}

// alone takes out of what a key has what others have too. A request can state
// any address: with somebody else's in it, the end of one key would cut off the
// owner of another.
func (g *gate) alone(mine []entry, key string, done *border.Done, now time.Time) (own []entry) {
	also := g.others(key, now)
	told, left := map[grantKey]bool{}, map[netip.Addr]bool{}
	for _, e := range mine {
		by, shared := "", false
		for _, key := range g.around(e.addr, e.service) {
			if !shared {
				by, shared = also[key]
			}
		}
		if !shared {
			own = append(own, e)
			continue
		}
		if left[e.addr] = true; !told[e.grantKey] && len(told) < maxTold {
			g.log.Warn("connections were left, because another uses the address too", "service", e.service, "address", e.addr, "also asked by", by)
		}
		told[e.grantKey] = true
	}
	if done.Left = uint32(len(left)); done.Left > 0 {
		g.log.Warn("addresses that others use too were left; 'sallyport close SERVICE ADDR --cut' ends theirs as well", "addresses", len(left))
	}
	return own
}

// others says where somebody else than a key may come in now or came in by
// another key, and who.
func (g *gate) others(key string, now time.Time) map[grantKey]string {
	also := map[grantKey]string{}
	for e := range g.entries.at {
		if keyOf(e.by) != key {
			also[e.grantKey] = e.by
		}
	}
	for k, list := range g.grants {
		for _, a := range list {
			if keyOf(a.by) != key && a.until.After(now) {
				also[k.whole()] = a.by
			}
		}
	}
	return also
}

// byKey gives who came in by a key, whether their grants have ended or not.
func (g *gate) byKey(key string) []entry {
	mine := g.entries.by(key)
	seen := make(map[entry]bool, len(mine))
	for _, e := range mine {
		seen[e] = true
	}
	for at, list := range g.grants {
		for _, a := range list {
			if e := (entry{at, a.by}); keyOf(a.by) == key && !seen[e] {
				mine = append(mine, e)
			}
		}
	}
	return mine
}

// service gives a service of the config by its name, or nil.
func (g *gate) service(name string) *config.Service {
	i := slices.IndexFunc(g.cfg.Services, func(s config.Service) bool { return s.Name == name })
	if i < 0 {
		return nil
	}
	return &g.cfg.Services[i]
}

// cutAll ends live connections, reports whether that worked, and says in done
// what came of it. It comes behind the end of the grants, so that nobody
// connects again meanwhile.
func (g *gate) cutAll(list []live, done *border.Done, now time.Time) bool {
	if len(list) == 0 {
		return true
	}
	if g.observe {
		g.log.Info("would cut live connections", "addresses and services", len(list))
		return true
	}
	n, err := g.cut(list)
	done.Cut = uint32(n)
	if err = errors.Join(err, g.keepOut(list, now)); err != nil {
		g.log.Error("not all live connections could be cut", "cut", n, "error", err)
		done.Result = border.Failed
		return false
	}
	g.log.Info("live connections were cut", "connections", n)
	return true
}

// end takes back what by asked for, or everybody's where by is empty. Where
// somebody else asked too, the grant goes on until that time.
func (g *gate) end(key grantKey, s *config.Service, by string, now time.Time) (ended bool, err error) {
	g.usedUp(key, s, now)
	mine := false
	for _, a := range g.grants[key] {
		mine = mine || by == "" || a.by == by
	}
	if !mine {
		return false, nil
	}
	if g.observe {
		g.log.Info("would close", "service", key.what(), "address", key.who())
		return false, nil
	}
	rest := asked{}
	if by != "" {
		rest = g.grants.without(key, by)
	}
	if err := g.leaveOnly(g.spell(key, s, rest, now)); err != nil {
		return false, err
	}
	if by == "" {
		delete(g.grants, key)
	} else {
		g.grants.remove(key, by)
	}
	g.log.Info("closed", "service", key.what(), "address", key.who(), "asked by", cmp.Or(by, admin))
	return true, nil
}

// leaveOnly ends those elements that nobody holds open any more, and gives the others
// the time that they have left.
func (g *gate) leaveOnly(list []nft.Element) error {
	var stay, gone []nft.Element
	for _, e := range list {
		if e.TTL > leastTTL {
			stay = append(stay, e)
		} else {
			gone = append(gone, e)
		}
	}
	if len(gone) > 0 {
		if err := g.firewall.Revoke(gone); err != nil || len(stay) == 0 {
			return err
		}
	}
	return g.firewall.Grant(stay)
}
