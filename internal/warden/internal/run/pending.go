//go:build linux

package run

import (
	"net/netip"
	"slices"
	"time"
)

// Pending is an undo that is still to come.
type Pending struct {
	Action string
	Addr   netip.Addr
	Due    time.Time // the zero Time: never by itself
	By     []string  // who asked for it
}

// Pending lists the undos that are still to come of the actions that of chooses.
func (r *Runner) Pending(of func(action string) bool) (list []Pending) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for at, undos := range r.pending {
		for _, u := range undos {
			if of(at.action) {
				list = append(list, Pending{at.action, at.addr, u.due, slices.Clone(u.by)})
			}
		}
	}
	return list
}

// Move gives the undo of an action that is still to come another time, also an earlier
// one, and another asker. It reports whether there was one.
func (r *Runner) Move(action string, addr netip.Addr, by string, due time.Time) (there bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return false
	}
	for _, u := range r.pending[target{action, plain(addr)}] {
		there = true
		u.due, u.after, u.by = due, max(time.Until(due), 0), []string{by}
		r.late = append(r.late, u)
		r.timers.set(u, u.comes())
	}
	r.wakeUp()
	return there
}
