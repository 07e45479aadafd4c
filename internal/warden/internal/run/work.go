//go:build linux

package run

import (
	"strings"
	"time"
)

// command is one program to be run.
type command struct {
	number   uint64 // names it to the spawner
	line     line
	of       string // names its share
	words    []word
	env      []word
	input    []byte // never shown to anybody but the command
	undo     *undo  // what it leaves behind, or what it is
	undoes   bool
	share    *share
	since    time.Time // when it entered the queue
	timed    bool      // an undo whose time has come, which nobody asked for
	patient  time.Time // until when it waits for what is before it in its line
	launched time.Time
	tries    int       // how often it could not be started
	again    time.Time // it is tried again then
	began    bool      // the spawner has started it
	ended    bool
	silent   bool          // its output has ended
	over     chan struct{} // closed at its end; nil: nobody waits
	status   chan<- int    // has room for its exit status; nil: nobody waits
}

// enter puts a command at the end of its queue and of its line.
func (r *Runner) enter(c *command) {
	r.lines[c.line] = append(r.lines[c.line], c)
	r.queueOf(c).enter(c)
	r.wakeUp()
}

func (r *Runner) queueOf(c *command) *queue {
	if c.undoes {
		return &r.undos
	}
	return &r.starts
}

func (r *Runner) wakeUp() {
	select {
	case r.wake <- struct{}{}:
	default: // it is awake already
	}
}

// work does all that waits for a disk or for the spawner, so that the warden's
// loop never does.
func (r *Runner) work() {
	defer close(r.stopped)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		next := r.turn()
		timer.Stop()
		if !next.IsZero() {
			timer.Reset(time.Until(next))
		}
		select {
		case <-r.wake:
		case <-timer.C:
		case <-r.stop:
			return
		}
	}
}

// turn launches what may be launched and says when to look again at the latest;
// the zero Time: when something happens.
func (r *Runner) turn() (next time.Time) {
	now := time.Now()
	r.mu.Lock()
	r.pickDue(now)
	lacking := r.spawner == nil && r.starts.waiting+r.undos.waiting > 0
	r.mu.Unlock()
	if lacking && !now.Before(r.retry) {
		if err := r.spawn(); err != nil {
			r.o.Log.Error("commands wait, as none can be started; it is tried again in five seconds", "error", err)
			r.retry = now.Add(5 * time.Second)
		}
		now = time.Now()
	}
	r.mu.Lock()
	s := r.spawner
	var ready []*command
	if s != nil {
		ready, next = r.pick(now)
	} else if lacking {
		next = r.retry
	}
	next = sooner(next, r.nextDue())
	text, sync := r.entries(ready)
	r.mu.Unlock()
	if s != nil {
		next = sooner(next, r.slow(now))
	}
	r.keep(text, sync, now)
	if r.unsaved {
		next = sooner(next, r.resave)
	}
	for _, c := range ready {
		r.launch(s, c)
	}
	return next
}

// sooner is the earlier of two times, of which the zero Time is none.
func sooner(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// pickDue puts the undos whose time has come into the queue.
func (r *Runner) pickDue(now time.Time) {
	for len(r.timers.list) > 0 && !r.timers.list[0].when.After(now) {
		r.undo(r.timers.list[0], now).timed = true
	}
}

func (r *Runner) nextDue() time.Time {
	if len(r.timers.list) == 0 {
		return time.Time{}
	}
	return r.timers.list[0].when
}

// pick takes what may run now out of the queues, undos first.
func (r *Runner) pick(now time.Time) (ready []*command, next time.Time) {
	undos, next := r.take(&r.undos, now)
	starts, soon := r.take(&r.starts, now)
	return append(undos, starts...), sooner(next, soon)
}

// begin counts a command as running.
func (r *Runner) begin(c *command, now time.Time) {
	r.lastSent++
	c.number, c.launched = r.lastSent, now
	r.known[c.number] = c
	r.queueOf(c).count(c, 1)
	if u := c.undo; u != nil && !c.undoes {
		r.kept[u.run] = u
		if u.place == none && u.held {
			r.timers.set(u, u.comes())
		}
	}
}

// waits says whether what is before a command in its line keeps it from running:
// an undo must not overtake its start, nor the next start the undo.
func (r *Runner) waits(c *command, now time.Time) bool {
	if c.again.After(now) {
		return true
	}
	for _, before := range r.lines[c.line] {
		if before == c {
			return false
		}
		if before.launched.IsZero() || now.Before(c.patient) {
			return true
		}
	}
	return false
}

// launch hands a command to the spawner. Where that has gone the reader finds out
// and knows what to do about it.
func (r *Runner) launch(s *child, c *command) {
	e := Event{Action: c.line.action, Addr: c.line.addr}
	if c.timed {
		e.What = Due
		r.o.Tell(e)
	}
	e.What, e.Command, e.Undo = Running, strings.Join(to[string](c.words), " "), c.undoes
	r.o.Tell(e)
	s.send(&request{Number: c.number, Words: c.words, Env: c.env, Input: c.input})
}

// reports follows a spawner until it has gone.
func (r *Runner) reports(s *child) {
	defer close(s.ended)
	for {
		var m report
		if err := s.reports.Decode(&m); err != nil || m.Kind == bye {
			break
		}
		r.report(&m)
	}
	s.conn.Close()
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.closed {
		r.bereft()
	}
}

// bereft goes on without the spawner: how its commands ended nobody knows any
// more. An undo that it may not have begun is run again.
func (r *Runner) bereft() {
	r.o.Log.Error("the process that starts commands was ended from outside: what became of running commands is not known; another one is started", "running", r.starts.running+r.undos.running)
	r.spawner = nil
	for _, c := range r.known {
		if c.undoes && !c.began && !c.ended {
			c.launched = time.Time{}
			r.undos.enter(c) // its place in its line it still has
			r.undos.count(c, -1)
			continue
		}
		r.ended(c)
	}
	clear(r.known)
	r.wakeUp()
}

// report takes one report of the spawner.
func (r *Runner) report(m *report) {
	r.mu.Lock()
	c := r.known[m.Number]
	if c == nil {
		r.mu.Unlock()
		return
	}
	switch m.Kind {
	case began:
		c.began = true
		r.strike(c)
	case ended:
		if r.tryAgain(c, m) {
			break
		}
		r.strike(c)
		r.ended(c)
		if c.status != nil {
			c.status <- m.Status
			c.status = nil
		}
	case silent:
		c.silent = true
	}
	if c.ended && c.silent {
		delete(r.known, c.number)
	}
	r.mu.Unlock()
	r.say(c, m)
}

const (
	// tryPause is between two tries to start an undo, and maxTries how many there are,
	// which is an hour: without processes or descriptors to be had nothing starts, and
	// an undo that is given up leaves a port open.
	tryPause = 5 * time.Second
	maxTries = 720
)

// tryAgain puts an undo that could not be started back into its queue. Its place in its
// line it still has.
func (r *Runner) tryAgain(c *command, m *report) bool {
	if m.Text == "" || !c.undoes || c.began || c.tries >= maxTries {
		return false
	}
	delete(r.known, c.number)
	c.tries++
	c.launched, c.again = time.Time{}, time.Now().Add(tryPause)
	r.undos.enter(c)
	r.undos.count(c, -1)
	r.wakeUp()
	return true
}

// say passes a report on to people.
func (r *Runner) say(c *command, m *report) {
	log := r.o.Log.With("action", c.line.action, "address", c.line.addr)
	switch {
	case m.Kind == output:
		r.o.Tell(Event{What: Said, Action: c.line.action, Addr: c.line.addr, Command: m.Text})
	case m.Kind == silent && m.Lost > 0:
		log.Warn("a command said more than is passed on", "lines lost", m.Lost)
	case m.Kind == ended && m.Text != "" && c.undoes && c.tries < maxTries:
		if c.tries == 1 {
			log.Error("an undo could not be started, and is tried again for an hour; look at /bin/sh and at the limits of the daemon", "error", m.Text)
		}
	case m.Kind == ended && m.Status != 0:
		if m.Text != "" {
			log.Error("a command could not be started; look at /bin/sh and at the limits of the daemon", "error", m.Text)
		}
		r.o.Tell(Event{What: Failed, Action: c.line.action, Addr: c.line.addr, Status: m.Status})
	}
}

// strike takes an undo off the journal, as soon as it runs and not before: two
// times is better than never.
func (r *Runner) strike(c *command) {
	if !c.undoes || r.kept[c.undo.run] == nil {
		return
	}
	delete(r.kept, c.undo.run)
	r.addBytes(c.undo.line.action, -c.undo.bytes)
	r.gone = append(r.gone, c.undo.run)
	r.wakeUp()
}

// ended lets what waits for a command go on.
func (r *Runner) ended(c *command) {
	if c.ended {
		return
	}
	c.ended = true
	r.queueOf(c).count(c, -1)
	r.wakeUp()
	if c.over != nil {
		close(c.over)
	}
	of := r.lines[c.line]
	for i := range of {
		if of[i] == c {
			of = append(of[:i:i], of[i+1:]...)
			break
		}
	}
	if r.lines[c.line] = of; len(of) == 0 {
		delete(r.lines, c.line)
	}
	if c.undoes {
		return
	}
	if u := c.undo; u != nil && u.held && !u.due.IsZero() {
		// The journal keeps the earlier time: after a crash the undo comes sooner.
		u.due = later(u.due, time.Now().Add(u.after))
		r.timers.set(u, u.comes())
	}
}
