//go:build linux

package engine

import (
	"net/netip"
	"time"

	"github.com/sallyport/sallyport/internal/border"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/sequence"
)

// pretended is the warden of a replay: it answers as the config's rules say, and
// changes nothing. What depends on the host stays out: connections, other chains,
// the outcome of commands.
type pretended struct {
	cfg   *config.Config
	rules []config.Rule
	asked []border.Message
	ends  map[opened]time.Time
}

// opened is what somebody may reach, or an action whose undo is still to come.
type opened struct {
	addr    netip.Addr
	bits    uint8
	service int // or config.None
	action  int // or config.None
	proto   sequence.Proto
	port    uint16 // 0: all of the service's
}

func newPretended(cfg *config.Config) *pretended {
	return &pretended{cfg: cfg, rules: cfg.Rules(), ends: map[opened]time.Time{}}
}

// Send takes a request. Its answer comes later, as the warden's does: the engine
// remembers what it asked only when Send has returned.
func (w *pretended) Send(m border.Message) error {
	w.asked = append(w.asked, m)
	return nil
}

// take gives the requests that wait for an answer.
func (w *pretended) take() []border.Message {
	asked := w.asked
	w.asked = nil
	return asked
}

// answer gives what the warden would have said at that time; nil: nothing.
func (w *pretended) answer(m border.Message, now time.Time) *border.Done {
	switch m := m.(type) {
	case *border.Open:
		return w.open(m, now)
	case *border.Close:
		return w.close(m, now)
	case *border.Run:
		return w.run(m, now)
	}
	return nil
}

func (w *pretended) open(m *border.Open, now time.Time) *border.Done {
	rule := w.rules[m.Rule]
	s := &w.cfg.Services[rule.Service]
	done := &border.Done{ID: m.ID}
	o := opened{m.Addr, m.Bits, rule.Service, config.None, m.Proto, m.Port}
	switch {
	case m.TTL > s.MaxOpenFor:
		done.Result = border.TooLong
	case !forwards(s, m.Addr):
		done.Result = border.WrongFamily
	case m.Extend && !w.ends[o].After(now):
		done.Result = border.NothingToExtend
	default:
		done.Result = w.grant(o, now.Add(m.TTL), now)
	}
	if done.Result == border.Granted {
		done.Until = w.ends[o]
	}
	return done
}

// forwards reports whether the service has a destination of the address's family.
func forwards(s *config.Service, addr netip.Addr) bool {
	for _, on := range s.On {
		if on.Is4() == addr.Is4() {
			return true
		}
	}
	return len(s.On) == 0
}

// grant never shortens, and never makes room by putting somebody out.
func (w *pretended) grant(o opened, until, now time.Time) border.Result {
	if _, there := w.ends[o]; !there && len(w.ends) >= w.cfg.Daemon.MaxGrants {
		w.forget(now)
		if len(w.ends) >= w.cfg.Daemon.MaxGrants {
			return border.Full
		}
	}
	if until.After(w.ends[o]) {
		w.ends[o] = until
	}
	return border.Granted
}

func (w *pretended) forget(now time.Time) {
	for o, until := range w.ends {
		if !until.After(now) {
			delete(w.ends, o)
		}
	}
}

func (w *pretended) close(m *border.Close, now time.Time) *border.Done {
	done := &border.Done{ID: m.ID, Result: border.Closed}
	for o, until := range w.ends {
		if o.addr == m.Addr && o.bits == m.Bits && o.service == int(m.Service) {
			if until.After(now) {
				done.Count++
			}
			delete(w.ends, o)
		}
	}
	return done
}

// run pretends that every command can be run. An undo stays to come until it is
// asked for, since the engine's copy of the config has no times of actions.
func (w *pretended) run(m *border.Run, now time.Time) *border.Done {
	done := &border.Done{ID: m.ID, Result: border.Ran}
	o := opened{addr: m.Addr, service: config.None, action: w.rules[m.Rule].Action}
	_, there := w.ends[o]
	switch {
	case m.Do == border.Undo && !there:
		done.Result = border.NothingToUndo
	case m.Do == border.Undo:
		delete(w.ends, o)
		done.Result = border.Undone
	case m.Do == border.Extend && !there:
		done.Result = border.NothingToExtend
	case there || len(w.ends) < w.cfg.Daemon.MaxGrants:
		w.ends[o] = now.AddDate(100, 0, 0)
	}
	return done
}
