//go:build linux

package engine

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
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
	ends  map[opened]holders
}

// holders is until when each of those who asked has it.
type holders map[string]time.Time

// last gives who of those has it longest; "": none has it now.
func (h holders) last(of []string, now time.Time) (by string) {
	for _, b := range of {
		if h[b].After(now) {
			by, now = b, h[b]
		}
	}
	return by
}

// end gives when the last of all who have it loses it.
func (h holders) end() (until time.Time) {
	for _, end := range h {
		if end.After(until) {
			until = end
		}
	}
	return until
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
	return &pretended{cfg: cfg, rules: cfg.Rules(), ends: map[opened]holders{}}
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

// asker says who asks by a rule, and whose grants he may end and prolong, as the
// warden's gate does: a sequence, which anybody can forge, ends and prolongs those of
// sequences alone. What a key or a person has stands under more than a knock's name.
func (w *pretended) asker(rule config.Rule, key uint16) (by string, whose []string) {
	k := &w.cfg.Knocks[rule.Knock]
	switch {
	case k.HasSecrets():
		by = fmt.Sprintf("%s %d", k.Secrets, key)
	case key != border.NoKey:
		by = fmt.Sprintf("%s %d", k.Name, key)
	case rule.Close || rule.Extend:
		for i := range w.cfg.Knocks {
			if o := &w.cfg.Knocks[i]; rule.Service == config.None || slices.Contains(o.Opens, rule.Service) {
				whose = append(whose, o.Name)
			}
		}
		return k.Name, whose
	default:
		by = k.Name
	}
	return by, []string{by}
}

func (w *pretended) open(m *border.Open, now time.Time) *border.Done {
	rule := w.rules[m.Rule]
	by, whose := w.asker(rule, m.Key)
	s := &w.cfg.Services[rule.Service]
	o := opened{addr: m.Addr, bits: m.Bits, service: rule.Service, action: config.None}
	if len(s.Ports) > 1 || s.Ports[0].Count() > 1 { // of one port that is all
		o.proto, o.port = m.Proto, m.Port
	}
	if m.Extend {
		by = w.ends[o].last(whose, now)
	}
	done := &border.Done{ID: m.ID}
	switch {
	case m.TTL > s.MaxOpenFor:
		done.Result = border.TooLong
	case !forwards(s, m.Addr):
		done.Result = border.WrongFamily
	case m.Extend && by == "":
		done.Result = border.NothingToExtend
	default:
		done.Result = w.grant(o, by, now.Add(m.TTL), now)
	}
	if done.Result == border.Granted {
		done.Until = w.ends[o].end()
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
func (w *pretended) grant(o opened, by string, until, now time.Time) border.Result {
	if w.ends[o] == nil {
		if len(w.ends) >= w.cfg.Daemon.MaxGrants {
			w.forget(now)
		}
		if len(w.ends) >= w.cfg.Daemon.MaxGrants {
			return border.Full
		}
		w.ends[o] = holders{}
	}
	if until.After(w.ends[o][by]) {
		w.ends[o][by] = until
	}
	return border.Granted
}

func (w *pretended) forget(now time.Time) {
	for o, list := range w.ends {
		if !list.end().After(now) {
			delete(w.ends, o)
		}
	}
}

// end takes away what those have, and reports whether any of it was open.
func (w *pretended) end(o opened, whose []string, now time.Time) bool {
	by := w.ends[o].last(whose, now)
	for _, b := range whose {
		delete(w.ends[o], b)
	}
	if len(w.ends[o]) == 0 {
		delete(w.ends, o)
	}
	return by != ""
}

func (w *pretended) close(m *border.Close, now time.Time) *border.Done {
	done := &border.Done{ID: m.ID, Result: border.Closed}
	_, whose := w.asker(w.rules[m.Rule], m.Key)
	for o := range w.ends {
		if o.addr == m.Addr && o.bits == m.Bits && o.service == int(m.Service) && w.end(o, whose, now) {
			done.Count = 1 // services
		}
	}
	return done
}

// run pretends that every command can be run. As with the runner, one that runs on has
// a single time for its undo, and all who asked must be content with that.
func (w *pretended) run(m *border.Run, now time.Time) *border.Done {
	done := &border.Done{ID: m.ID, Result: border.Ran}
	rule := w.rules[m.Rule]
	o := opened{addr: m.Addr, service: config.None, action: rule.Action}
	by, whose := w.asker(rule, m.Key)
	if !w.ends[o].end().After(now) {
		delete(w.ends, o) // undone by itself
	}
	holder := w.ends[o].last(whose, now)
	switch {
	case m.Do == border.Undo:
		if done.Result = border.NothingToUndo; w.end(o, whose, now) && w.ends[o] == nil {
			done.Result = border.Undone
		}
	case m.Do == border.Extend && holder == "":
		done.Result = border.NothingToExtend
	default:
		until := now.AddDate(100, 0, 0)
		if after := w.cfg.Actions[rule.Action].UndoAfter; after > 0 {
			until = now.Add(after)
		}
		w.grant(o, cmp.Or(holder, by), until, now)
		for other := range w.ends[o] {
			w.ends[o][other] = w.ends[o].end()
		}
	}
	return done
}
