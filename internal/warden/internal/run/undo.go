//go:build linux

package run

import (
	"container/heap"
	"slices"
	"time"
)

// none is the place of an undo that no timer waits for.
const none = -1

// undo is what a start leaves behind.
type undo struct {
	run     uint64 // the number of its run
	line    line
	words   []word // as they were at the start: a changed config can't lose them
	env     []word
	after   time.Duration // 0: only when it is asked for
	due     time.Time     // the zero Time: never by itself
	atStart bool
	by      []string // who asked for it, each once: all of them must be content with its undo
	start   *command // nil: another process ran it
	bytes   int      // what it counts for in maxKept
	held    bool     // it is still to come
	index   int      // in what is pending for its target
	when    time.Time
	place   int // in the timers
}

// timers is a heap of the undos that come by themselves, the next one first.
type timers struct{ list []*undo }

// Len is for package heap; an undo knows its own place.
func (t *timers) Len() int { return len(t.list) }

// Less is for package heap.
func (t *timers) Less(i, j int) bool { return t.list[i].when.Before(t.list[j].when) }

// Swap is for package heap.
func (t *timers) Swap(i, j int) {
	t.list[i], t.list[j] = t.list[j], t.list[i]
	t.list[i].place, t.list[j].place = i, j
}

// Push is for package heap.
func (t *timers) Push(x any) {
	u := x.(*undo)
	u.place = len(t.list)
	t.list = append(t.list, u)
}

// Pop is for package heap.
func (t *timers) Pop() any {
	last := len(t.list) - 1
	u := t.list[last]
	t.list[last], t.list = nil, t.list[:last]
	u.place = none
	return u
}

// set puts an undo where its time belongs; the zero Time takes it out.
func (t *timers) set(u *undo, when time.Time) {
	u.when = when
	switch {
	case when.IsZero() && u.place != none:
		heap.Remove(t, u.place)
	case when.IsZero():
	case u.place != none:
		heap.Fix(t, u.place)
	default:
		heap.Push(t, u)
	}
}

// comes is when an undo runs by itself. Like knockd's, the time counts from the
// end of the start: a machine that takes a minute to wake is not put to sleep
// meanwhile. A start that hangs delays it by no more than the patience.
func (u *undo) comes() time.Time {
	switch {
	case u.due.IsZero():
		return time.Time{}
	case u.start == nil || u.start.ended:
		return u.due
	case u.start.launched.IsZero():
		return time.Time{} // the launch sets it
	}
	return later(u.due, u.start.launched.Add(u.after)).Add(patience)
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func sizeOf(u *undo) int { return max(minUndo, len(entryOf(u))) }

// roomFor leaves as much as an action has for the other actions: one of them alone
// gets a half of all, two a third each.
func (r *Runner) roomFor(u *undo) bool {
	return r.bytes[u.line.action]+u.bytes <= maxKept-r.allBytes
}

// hold remembers an undo that is still to come.
func (r *Runner) hold(u *undo) {
	of := r.pending[u.line.target]
	u.held, u.index = true, len(of)
	r.pending[u.line.target] = append(of, u)
	r.addBytes(u.line.action, u.bytes)
	r.timers.set(u, u.comes())
}

// addBytes keeps no more names than configs have had.
func (r *Runner) addBytes(action string, n int) {
	r.allBytes += n
	r.bytes[action] += n
}

// release takes an undo out of those that are still to come. Another takes its place, since one
// address can have tens of thousands.
func (r *Runner) release(u *undo) {
	u.held = false
	r.timers.set(u, time.Time{})
	of := r.pending[u.line.target]
	last := of[len(of)-1]
	of[u.index], last.index = last, u.index
	of[len(of)-1] = nil
	if r.pending[u.line.target] = of[:len(of)-1]; len(of) == 1 {
		delete(r.pending, u.line.target)
	}
}

// maxAskers bounds how many are remembered of one undo; the others ask in vain.
const maxAskers = 64

// ask remembers one who wants the action.
func (u *undo) ask(by string) {
	if !slices.Contains(u.by, by) && len(u.by) < maxAskers {
		u.by = append(u.by, by)
	}
}

// putOff moves what is still to come to a later time, never to an earlier one.
func (r *Runner) putOff(at target, by string, after time.Duration, now time.Time) bool {
	for _, u := range r.pending[at] {
		u.ask(by)
		r.late = append(r.late, u)
		switch {
		case u.due.IsZero():
			continue
		case after == 0:
			u.due = time.Time{}
		default:
			u.due = later(u.due, now.Add(after))
		}
		u.after = max(u.after, after)
		r.timers.set(u, u.comes())
	}
	r.wakeUp()
	return len(r.pending[at]) > 0
}

// undo puts an undo into the queue. It waits for its start until then.
func (r *Runner) undo(u *undo, patient time.Time) *command {
	r.release(u)
	of := u.line.action
	if u.start != nil {
		of = u.start.of
	}
	c := &command{line: u.line, of: of, undo: u, undoes: true, words: u.words, env: u.env, since: time.Now(), patient: patient}
	r.enter(c)
	return c
}
