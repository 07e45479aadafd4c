//go:build linux

package run

import (
	"fmt"
	"strings"
	"time"
)

// tardy is how long a command waits for its turn before that is said, and the time
// between two such lines.
const tardy = 10 * time.Second

// queue is what waits and what runs, of starts or of undos. Each action has a share
// of its own, or several, see Job.Share: one whose commands never end keeps no other
// from running.
type queue struct {
	shares  map[string]*share // by command.of; only those that have something
	turns   []*share          // those where something waits, the next one first
	waiting int
	running int
}

type share struct {
	waiting []*command // the oldest first
	running int
}

// refuses gives the reason for which a share's next start is not taken.
func (q *queue) refuses(of string) error {
	s := q.shares[of]
	if q.waiting < maxWaiting && (s == nil || len(s.waiting) < actionWaiting) {
		return nil
	}
	return fmt.Errorf("%w: too many commands wait, %d of all actions, while %d run; look at what these wait for", ErrBusy, q.waiting, q.running)
}

func (q *queue) enter(c *command) {
	s := q.shares[c.of]
	if s == nil {
		s = &share{}
		q.shares[c.of] = s
	}
	if len(s.waiting) == 0 {
		q.turns = append(q.turns, s)
	}
	c.share, s.waiting = s, append(s.waiting, c)
	q.waiting++
}

// count counts a command as running, or as running no more.
func (q *queue) count(c *command, by int) {
	q.running += by
	if c.share.running += by; c.share.running == 0 && len(c.share.waiting) == 0 {
		delete(q.shares, c.of)
	}
}

// take takes what may run now out of a queue, one command of each action in turn,
// and says when to look again.
func (r *Runner) take(q *queue, now time.Time) (ready []*command, next time.Time) {
	for idle := 0; idle < len(q.turns) && q.running < maxRunning; {
		s := q.turns[0]
		c, soon := r.first(s, now)
		next = sooner(next, soon)
		if q.turns = q.turns[1:]; len(s.waiting) > 0 {
			q.turns = append(q.turns, s)
		}
		if idle++; c != nil {
			idle = 0
			q.waiting--
			r.begin(c, now)
			ready = append(ready, c)
		}
	}
	return ready, next
}

// first takes the oldest command of a share that may run. Those before it wait for
// others in their lines, of which there are no more than starts run and wait.
func (r *Runner) first(s *share, now time.Time) (c *command, next time.Time) {
	if s.running >= actionRunning {
		return nil, next
	}
	for i, c := range s.waiting {
		if !r.waits(c, now) {
			copy(s.waiting[1:i+1], s.waiting[:i])
			s.waiting = s.waiting[1:]
			return c, next
		}
		for _, when := range []time.Time{c.patient, c.again} {
			if when.After(now) {
				next = sooner(next, when)
			}
		}
	}
	return nil, next
}

// slow says that a command has waited long, and gives the time to look again. It is
// said of one command at a time: where one waits, many do.
func (r *Runner) slow(now time.Time) (next time.Time) {
	r.mu.Lock()
	var c, before *command
	for _, s := range append(r.undos.turns[:len(r.undos.turns):len(r.undos.turns)], r.starts.turns...) {
		if c == nil || s.waiting[0].since.Before(c.since) {
			c = s.waiting[0]
		}
	}
	if c != nil {
		next, before = later(c.since, r.warned).Add(tardy), r.before(c)
	}
	r.mu.Unlock()
	if before == nil {
		return time.Time{} // it has just ended
	}
	if now.Before(next) {
		return next
	}
	r.warned = now
	r.o.Log.Warn("a command waits long for its turn; look at the one that it waits for", "action", c.line.action, "address", c.line.addr,
		"waits for", before.line.action, "command", strings.Join(to[string](before.words), " "))
	return now.Add(tardy)
}

// before gives what a command waits for: another in its line, or the one that has
// run longest in its action's share or, where that has room, of all.
func (r *Runner) before(c *command) (oldest *command) {
	if first := r.lines[c.line][0]; first != c {
		return first
	}
	full := c.share.running >= actionRunning
	for _, k := range r.known {
		same := !k.ended && k.undoes == c.undoes && (k.share == c.share || !full)
		if same && (oldest == nil || k.launched.Before(oldest.launched)) {
			oldest = k
		}
	}
	return oldest
}
