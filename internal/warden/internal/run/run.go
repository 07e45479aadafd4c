//go:build linux

// Package run executes the configured commands, and the tools of the system's that a
// backend needs: beside the start of the engine and of journalctl the only code with
// privilege that starts another program. It gets argument lists, never text from a
// packet, and remembers on disk which undo is still to come.
package run

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/sallyport/sallyport/internal/config"
)

const (
	// maxRunning is the most starts at once, and the most undos.
	maxRunning = 48
	// actionRunning and actionWaiting are how many starts of one action run and how
	// many wait, and actionRunning is how many of its undos run: who can forge one
	// door's knock must not keep the other doors from opening.
	actionRunning = 8
	actionWaiting = 128
	// maxWaiting is how many starts wait of all actions: 64 shares.
	maxWaiting = 64 * actionWaiting
	// maxKept is the most bytes of undos that have not begun, where each is counted
	// as it is in the journal, and as minUndo at least. So there are at most 65,536,
	// as many as half-done sequences are remembered.
	maxKept = 64 << 20
	minUndo = 1 << 10
	// patience is how long an undo waits for its start to end, when its time has
	// come. A start that hangs must not keep a port open for ever.
	patience = 60 * time.Second
	// finishing is how long Finish waits.
	finishing = 10 * time.Second
)

// ErrBusy says that so much is still to be done for an action that nothing is added.
// Who can forge its knock can cause it as often as he likes: it is to be counted, and
// not to be logged each time.
var ErrBusy = errors.New("too much of it is still to be done")

// Options says how commands are run.
type Options struct {
	// StateDir is where the journal of undos lies; "": they are lost with the
	// process.
	StateDir string
	// Needed starts the spawner at New. Otherwise it is started with the first
	// command, when the process may have been given limits already.
	Needed bool
	Log    *slog.Logger
	// Tell is told of what happens, in the order in which it does for one command.
	// It is called from other goroutines, never after Close, and must not call the
	// Runner's Close or Finish.
	Tell func(Event)
}

// Event is something that happened to an action.
type Event struct {
	What    What
	Action  string // its name
	Addr    netip.Addr
	Command string // Running: the words, joined by spaces; Said: a line of its output, escaped
	Undo    bool   // Running: it is the undo
	Status  int    // Failed: the exit status, or 128 and the signal's number, as sh(1) has it
}

// What says what happened.
type What uint8

// What can happen.
const (
	Running What = iota // a command was started
	Failed              // it ended with another status than 0
	Due                 // the time of the undo has come
	Said                // it wrote a line
)

// Job is an action that is wanted for an address.
type Job struct {
	Action *config.Action
	Addr   netip.Addr // the zero Addr: at the daemon's start
	By     string     // who asks; "": the daemon's start
	// What the knock opens beside it, for the environment: names of services and
	// their ports, in the config's spelling.
	Services []string
	Ports    []config.PortRange
	// Share says with whose commands it takes turns, where those of one action are
	// not to wait for each other; "": with the action's.
	Share string
	// Input is what the command reads on its standard input, MaxInput bytes at most:
	// a payload that its knock carried. None: it has /dev/null, as each undo does.
	Input []byte
	// Ended gets the exit status of the command when it ends, or 128 and more where it
	// could not be started or was killed; nil: nobody waits. It must have room for one.
	// A Run that only puts an undo off sends nothing.
	Ended chan<- int
}

// MaxInput is the most bytes of a Job's Input. A pipe holds them all at once, so
// that nobody waits for a command that does not read.
const MaxInput = 64

// target is what an undo is found by.
type target struct {
	action string
	addr   netip.Addr
}

// line is what waits in a line: of two commands of one, the second waits for the
// first. With config.Action.Again each run is in a line of its own.
type line struct {
	target
	run uint64
}

// Runner runs actions. Its methods may be called from any goroutine and, but for
// Close and Finish, wait neither for a command nor for a disk.
type Runner struct {
	o       Options
	wake    chan struct{} // holds one: there is something to do
	stop    chan struct{}
	stopped chan struct{} // the worker has ended

	// The worker's alone.
	direct  bool // systemd-run was tried in vain
	retry   time.Time
	journal *journal // nil: none
	unsaved bool     // the journal lacks something
	resave  time.Time
	warned  time.Time // when it was last said that commands wait long

	mu       sync.Mutex
	closed   bool
	spawner  *child // nil: none runs
	lastRun  uint64 // the number of the latest run
	lastSent uint64 // the number of the latest command
	starts   queue
	undos    queue
	lines    map[line][]*command // launched or waiting, the first first
	known    map[uint64]*command // launched, until both its process and its output have ended
	pending  map[target][]*undo  // in no order
	bytes    map[string]int      // by action, of its undos that have not begun
	allBytes int                 // of all actions
	timers   timers
	kept     map[uint64]*undo // what the journal should hold
	late     []*undo          // their line in the journal is out of date
	gone     []uint64         // what is still to be struck off the journal
}

// New starts a runner and takes up the undos of the journal: what is due runs at
// once, in its order. An error says why no command could ever be run, or that
// another daemon has the journal.
func New(o Options) (*Runner, error) {
	r := &Runner{
		o: o, wake: make(chan struct{}, 1), stop: make(chan struct{}), stopped: make(chan struct{}),
		starts: queue{shares: map[string]*share{}}, undos: queue{shares: map[string]*share{}},
		lines: map[line][]*command{}, known: map[uint64]*command{},
		pending: map[target][]*undo{}, bytes: map[string]int{}, kept: map[uint64]*undo{},
	}
	now := time.Now()
	// Milliseconds, so that a run without an undo, which no journal has, doesn't give
	// its number to a run of the next process.
	r.lastRun = uint64(now.UnixMilli())
	if o.StateDir != "" {
		if err := r.takeUp(now); err != nil {
			return nil, err
		}
	}
	if o.Needed || len(r.kept) > 0 {
		if err := r.spawn(); err != nil {
			r.journal.close()
			return nil, err
		}
	}
	go r.work()
	return r, nil
}

// takeUp reads the journal, and begins a new one that has what is still to come.
func (r *Runner) takeUp(now time.Time) error {
	j, old, err := openJournal(r.o.StateDir)
	if errors.Is(err, ErrInUse) {
		return err
	}
	if err != nil {
		r.o.Log.Error("undos will not survive the daemon's end: their journal can't be used; look at the state directory and at what is in it", "error", err)
		return nil
	}
	if old.damage != nil {
		r.o.Log.Error("the journal of undos is damaged: what could be read of it is done, and the file is kept for you to look at", "error", old.damage, "file", old.aside)
	}
	r.journal = j
	r.lastRun = max(r.lastRun, old.last)
	for _, rec := range old.records {
		u := rec.undo(now)
		u.bytes = sizeOf(u)
		r.kept[u.run] = u
		r.hold(u)
	}
	// Before the daemon's own start can ask for the same action again.
	r.pickDue(now)
	r.rewrite(now)
	return nil
}

// Run starts an action. Where its undo is still to come for the address, that is
// put off instead, unless the action wants it Again. The error says why nothing
// was started; it is ErrBusy where others can cause it.
func (r *Runner) Run(j Job, now time.Time) error {
	a, addr := j.Action, plain(j.Addr)
	words, undoWords := a.Commands(addr)
	if len(words) == 0 {
		return nil // and so there is nothing to undo
	}
	at := target{a.Name, addr}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.closed:
		return errors.New("the daemon ends")
	case len(j.Input) > MaxInput:
		return fmt.Errorf("%d bytes for its standard input are too many; it can have %d", len(j.Input), MaxInput)
	case !a.Again && len(r.pending[at]) > 0:
		r.putOff(at, j.By, a.UndoAfter, now)
		return nil
	}
	of := cmp.Or(j.Share, a.Name)
	if err := r.starts.refuses(of); err != nil {
		return err
	}
	run := r.lastRun + 1
	l := line{target: at}
	if a.Again {
		l.run = run
	}
	c := &command{line: l, of: of, words: to[word](words), env: j.env(addr, run), input: slices.Clone(j.Input), status: j.Ended, since: now, patient: now.Add(patience)}
	if len(undoWords) > 0 {
		c.undo = &undo{
			run: run, line: l, words: to[word](undoWords), env: c.env, after: a.UndoAfter,
			atStart: a.AtStart, by: []string{j.By}, start: c, place: none,
		}
		if a.UndoAfter > 0 {
			c.undo.due = now.Add(a.UndoAfter)
		}
		if c.undo.bytes = sizeOf(c.undo); !r.roomFor(c.undo) {
			return fmt.Errorf("%w: its undos that are still to come fill %d KiB, and no more are remembered; take a shorter undo_after", ErrBusy, r.bytes[a.Name]>>10)
		}
		r.hold(c.undo)
	}
	r.lastRun = run
	r.enter(c)
	return nil
}

// env is what a command is told. The run's number is the same for its undo.
func (j *Job) env(addr netip.Addr, run uint64) []word {
	text := ""
	if addr.IsValid() {
		text = addr.String()
	}
	ports := make([]string, len(j.Ports))
	for i, p := range j.Ports {
		ports[i] = p.String()
	}
	return to[word]([]string{
		"SALLYPORT_ADDR=" + text,
		"SALLYPORT_SERVICE=" + strings.Join(j.Services, " "),
		"SALLYPORT_PORT=" + strings.Join(ports, " "),
		"SALLYPORT_GRANT=" + strconv.FormatUint(run, 10),
	})
}

// plain is the one form of an address, so that an undo is found again.
func plain(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }

// Undo takes back what those asked for of whom of is true. Where nobody else asked
// for it, the undo runs now if it is still to come for the address; the result says
// whether one does.
func (r *Runner) Undo(a *config.Action, addr netip.Addr, of func(by string) bool, now time.Time) (undone bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return false
	}
	all := slices.Clone(r.pending[target{a.Name, plain(addr)}])
	slices.SortFunc(all, func(u, v *undo) int { return cmp.Compare(u.run, v.run) })
	for _, u := range all {
		before := len(u.by)
		u.by = slices.DeleteFunc(u.by, of)
		switch {
		case len(u.by) == 0:
			r.undo(u, now.Add(patience))
			undone = true
		case len(u.by) < before:
			r.late = append(r.late, u)
		}
	}
	r.wakeUp()
	return undone
}

// Extend puts an undo off that is still to come and that by asked for, and reports
// whether there was one.
func (r *Runner) Extend(a *config.Action, addr netip.Addr, by string, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	at := target{a.Name, plain(addr)}
	asked := func(u *undo) bool { return slices.Contains(u.by, by) }
	return !r.closed && slices.ContainsFunc(r.pending[at], asked) && r.putOff(at, by, a.UndoAfter, now)
}

// Finish runs the undos of actions that belong to the daemon's start, and waits
// for them at most 10 seconds. It is for the daemon's clean end, before Close.
func (r *Runner) Finish() {
	r.finish(func(u *undo) bool { return u.atStart }, time.After(finishing))
}

// FinishOf does the same with the actions that of chooses.
func (r *Runner) FinishOf(of func(action string) bool) {
	r.finish(func(u *undo) bool { return of(u.line.action) }, time.After(finishing))
}

func (r *Runner) finish(of func(*undo) bool, enough <-chan time.Time) {
	r.mu.Lock()
	var last []*command
	for _, u := range slices.Concat(slices.Collect(maps.Values(r.pending))...) {
		if of(u) {
			// A start that stays in the foreground ends by its undo: no patience.
			c := r.undo(u, time.Now())
			c.over = make(chan struct{})
			last = append(last, c)
		}
	}
	r.mu.Unlock()
	for _, c := range last {
		select {
		case <-c.over:
		case <-enough:
			r.unfinished(last)
			return
		}
	}
}

// unfinished tells of undos that the daemon's end does not wait for. Those that were not
// begun are in the journal still.
func (r *Runner) unfinished(last []*command) {
	r.mu.Lock()
	running, waiting := 0, 0
	for _, c := range last {
		switch {
		case c.ended:
		case c.launched.IsZero():
			waiting++
		default:
			running++
		}
	}
	r.mu.Unlock()
	log := r.o.Log.Warn
	if waiting > 0 {
		log = r.o.Log.Error
	}
	log("undos of the daemon's end take long: those that run go on by themselves, and those that wait come after its next start, at their time", "running", running, "waiting", waiting)
}

// Close ends the runner. Commands that run go on; undos that are still to come stay
// in the journal for the next start.
func (r *Runner) Close() {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return
	}
	r.closed = true
	r.mu.Unlock()
	close(r.stop)
	<-r.stopped
	r.mu.Lock()
	s := r.spawner
	r.mu.Unlock()
	if s != nil {
		s.end() // gives its last reports first: what has begun need not be done again
	}
	r.mu.Lock()
	text, sync := r.entries(nil)
	r.mu.Unlock()
	r.resave = time.Time{} // the last chance
	r.keep(text, sync, time.Now())
	r.journal.close()
}
