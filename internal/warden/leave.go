//go:build linux

package warden

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/sallyport/sallyport/internal/warden/internal/conntrack"
	"github.com/sallyport/sallyport/internal/warden/internal/sockets"
)

// grace is how long after the end of a connection it is looked whether the address
// has left: who copies a file and then logs in has nothing open for a moment. A
// knock that young is meant for the next connection, so the end of one from before
// it does not count.
const grace = 2 * time.Second

// use is what is known of who uses a grant of a service with close_on_disconnect.
type use struct {
	asked time.Time // the latest knock for it
	// used says that a connection was made since that knock, and before that one was
	// since an earlier one. It takes more than a packet with a forged source. What
	// was never used stays open until its time.
	used, before bool
	ended        time.Time // the latest end of a connection; zero: none since the last look
}

// uses has at most as many as there are grants; its keys are of whole services.
type uses map[grantKey]use

// ask notes a knock. Who knocks while he is connected still leaves with the end of
// that connection; who has just left comes back.
func (u uses) ask(key grantKey, open bool, now time.Time) {
	old := u[key]
	u[key] = use{asked: now, before: open && old.ended.IsZero() && (old.used || old.before)}
}

// due lists whom to look at now, and when to look at the next.
func (u uses) due(now time.Time) (list []grantKey, next time.Time) {
	for key, use := range u {
		if use.ended.IsZero() {
			continue
		}
		switch at := use.ended.Add(grace); {
		case !at.After(now):
			list = append(list, key)
		case next.IsZero() || at.Before(next):
			next = at
		}
	}
	return list, next
}

// forget drops what has no grant any more.
func (u uses) forget(g grants) {
	held := make(map[grantKey]bool, len(g))
	for key := range g {
		held[key.whole()] = true
	}
	for key := range u {
		if !held[key] {
			delete(u, key)
		}
	}
}

// flow takes news of a connection: that there is one, or that one has ended.
func (u uses) flow(key grantKey, f conntrack.Flow, now time.Time) {
	use, granted := u[key]
	switch {
	case !granted:
		return
	case !f.Ended:
		use.used = use.used || f.Assured
	case use.used || use.before && now.Sub(use.asked) >= grace:
		use.ended = now
	}
	u[key] = use
}

// leaving follows the connections to services with close_on_disconnect.
type leaving struct {
	cfg    *config.Config         // that is followed
	events <-chan conntrack.Event // nil: nothing to follow
	stop   context.CancelFunc
	gone   bool        // the events have ended by themselves
	lost   bool        // some events were
	look   *time.Timer // nil: nobody to look at
	again  time.Time   // no look before then
}

// timer is when to look.
func (l *leaving) timer() <-chan time.Time {
	if l.look == nil {
		return nil
	}
	return l.look.C
}

// lookAt has a look come then, unless one comes earlier.
func (l *leaving) lookAt(at time.Time) {
	if l.look != nil || at.IsZero() {
		return
	}
	if at.Before(l.again) {
		at = l.again
	}
	l.look = time.NewTimer(time.Until(at))
}

// followLeaving turns to the config that is in use. It comes before the table is
// there, because the kernel tells nothing of a connection that began when nobody
// followed.
func (w *warden) followLeaving(ctx context.Context) {
	if w.leaving.cfg == w.cfg || !w.options.hides() {
		return
	}
	cfg := w.cfg
	w.leaving.cfg, w.leaving.gone = cfg, false
	if w.leaving.stop != nil {
		w.leaving.stop()
		w.leaving.events, w.leaving.stop = nil, nil
	}
	if !slices.ContainsFunc(cfg.Services, func(s config.Service) bool { return s.CloseOnDisconnect }) {
		return
	}
	ctx, stop := context.WithCancel(ctx)
	events, err := conntrack.Follow(ctx, func(f conntrack.Flow) bool { return leavable(cfg, f.Proto, f.Port) })
	if err != nil {
		stop()
		w.log.Error("close_on_disconnect does nothing: grants stay open until their time", "error", err)
		return
	}
	w.leaving.events, w.leaving.stop = events, stop
	w.recount()
}

// leavable reports whether a service with close_on_disconnect has a port. It is
// called for every connection of the host, from another goroutine.
func leavable(cfg *config.Config, proto sequence.Proto, port uint16) bool {
	return slices.ContainsFunc(cfg.Services, func(s config.Service) bool {
		return s.CloseOnDisconnect && config.HasPort(s.Ports, proto, port)
	})
}

// flowed takes one event.
func (w *warden) flowed(e conntrack.Event, ok bool) {
	now := time.Now()
	switch {
	case !ok:
		w.log.Warn("the kernel tells no more of connections: close_on_disconnect does nothing until it is asked again, within a minute")
		w.leaving.events, w.leaving.gone = nil, true
		return
	case e.Lost:
		w.leaving.lost = true
		w.leaving.lookAt(now)
		return
	}
	for i := range w.cfg.Services {
		s := &w.cfg.Services[i]
		if s.CloseOnDisconnect && serves(s, w.local, e.Dst, e.Proto, e.Port) {
			for _, key := range w.gate.around(e.Src, s.Name) {
				w.gate.uses.flow(key, e.Flow, now)
			}
		}
	}
	if e.Ended {
		w.plan(now)
	}
}

// followAgain tries once a minute what the kernel has ended.
func (w *warden) followAgain() {
	if w.leaving.gone {
		w.leaving.cfg = nil
	}
}

// plan sees to the next look.
func (w *warden) plan(now time.Time) {
	list, next := w.gate.uses.due(now)
	if len(list) > 0 {
		next = now
	}
	w.leaving.lookAt(next)
}

// recount looks who is connected when news were lost, or not yet followed: who has
// used a grant and is connected no more has left.
func (w *warden) recount() {
	now := time.Now()
	for key := range w.gate.grants {
		s := w.gate.service(key.service)
		key = key.whole()
		if _, known := w.gate.uses[key]; !known && s != nil && s.CloseOnDisconnect {
			w.gate.uses[key] = use{asked: now}
		}
	}
	var all []grantKey
	for key := range w.gate.uses {
		all = append(all, key)
	}
	connected, err := w.connected(all, sockets.Established, func(f conntrack.Flow) bool { return f.Assured })
	if err != nil {
		w.log.Warn("who uses a grant can't be told: some stay open until their time", "error", err)
		return
	}
	for _, key := range all {
		use := w.gate.uses[key]
		if connected[key] {
			use.used = true
		} else if use.used || use.before {
			use.ended = now
		}
		w.gate.uses[key] = use
	}
	w.plan(now)
}

// lookWhoLeft closes the grants of those who are connected no more. All sockets
// and connections of the host are looked through, so it takes a tenth of the time
// at most.
func (w *warden) lookWhoLeft() {
	w.leaving.look = nil
	began := time.Now()
	if w.leaving.lost {
		w.leaving.lost = false
		w.recount()
	}
	list, _ := w.gate.uses.due(began)
	connected, err := w.connected(list, sockets.Live, func(conntrack.Flow) bool { return true })
	if err != nil {
		w.log.Warn("who has left can't be told: the grants stay open until their time", "error", err)
	}
	now := time.Now()
	w.leaving.again = now.Add(10 * now.Sub(began))
	for _, key := range list {
		if err == nil && !connected[key] {
			w.gate.leave(key, now)
			continue
		}
		use := w.gate.uses[key]
		use.ended = time.Time{} // the end of what goes on will be told
		w.gate.uses[key] = use
	}
	w.plan(now)
}

// connected says which addresses have connections to their services: sockets in
// those states, or else, for UDP and for what is sent on to other machines, what
// conntrack has.
func (w *warden) connected(list []grantKey, states sockets.States, counts func(conntrack.Flow) bool) (map[grantKey]bool, error) {
	wanted := map[netip.Prefix][]*config.Service{}
	for _, key := range list {
		if s := w.gate.service(key.service); s != nil {
			wanted[key.prefix()] = append(wanted[key.prefix()], s)
		}
	}
	found := map[grantKey]bool{}
	note := func(from, to netip.Addr, proto sequence.Proto, port uint16) {
		for _, key := range w.gate.around(from, "") {
			for _, s := range wanted[key.prefix()] {
				if serves(s, w.local, to, proto, port) {
					key.service = s.Name
					found[key] = true
				}
			}
		}
	}
	if len(list) == 0 {
		return found, nil
	}
	open, err := sockets.List(sequence.TCP, states)
	for _, s := range open {
		note(s.Remote.Addr(), s.Local.Addr(), sequence.TCP, s.Local.Port())
	}
	if err != nil || len(found) == len(list) {
		return found, err
	}
	err = conntrack.List(func(f conntrack.Flow) {
		if !f.Ended && counts(f) {
			note(f.Src, f.Dst, f.Proto, f.Port)
		}
	})
	return found, err
}

// serves reports whether a service is what a stranger finds at a port of a
// destination.
func serves(s *config.Service, local func(netip.Addr) bool, to netip.Addr, proto sequence.Proto, port uint16) bool {
	if !config.HasPort(s.Ports, proto, port) {
		return false
	}
	if len(s.On) == 0 {
		return local(to)
	}
	return slices.Contains(s.On, to)
}

// leave ends a grant, whoever asked for it.
func (g *gate) leave(key grantKey, now time.Time) {
	delete(g.uses, key)
	s := g.service(key.service)
	if s == nil || !s.CloseOnDisconnect {
		return
	}
	live := false
	all := g.variants(key, s)
	for _, k := range all {
		g.usedUp(k, s, now)
		live = live || g.grants.end(k).until.After(now)
	}
	if !live {
		return
	}
	if err := g.firewall.Revoke(elements(s, key, asked{}, now)); err != nil {
		g.log.Error("the firewall refused to close; the grant ends by itself with its time", "service", s.Name, "address", key.who(), "error", err)
		return
	}
	for _, k := range all {
		delete(g.grants, k)
	}
	g.log.Info("closed: its last connection ended", "service", s.Name, "address", key.who())
}
