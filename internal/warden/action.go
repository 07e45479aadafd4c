//go:build linux

package warden

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/sallyport/sallyport/internal/border"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/warden/internal/command"
	"github.com/sallyport/sallyport/internal/warden/internal/run"
)

// Entry is what a log in knockd's words has of one moment.
type Entry struct {
	What    Moment
	Door    string // the knock's or the action's name in the config
	Addr    netip.Addr
	Stage   int    // Stage and TimedOut: steps made
	Command string // Running; Said: the line
	Status  int    // Failed
}

// Moment says what an Entry tells.
type Moment uint8

// The moments.
const (
	Stage    Moment = iota // a step was made
	Opened                 // it was the last one
	TimedOut               // the time was over before the last step
	Running                // a command was started
	Failed                 // it ended with another status than 0
	Due                    // the time of a stop command has come
	Said                   // a command wrote a line
)

// Knockd is what a daemon needs that serves a knockd.conf in place of a
// configuration of ours. The command has it, since it reads knockd's files and
// writes knockd's log.
type Knockd interface {
	// Load reads the file. The text is a configuration of ours that hides the same
	// ports, for a boot without the daemon; nil: nothing is hidden.
	Load() (*config.Config, []byte, error)
	// Spend marks the sequence of a knock as used, in its file, and gives the config
	// with the next one. With an error it was not marked; the config, if there is one,
	// is to be used all the same.
	Spend(cfg *config.Config, knock int) (*config.Config, error)
	// Tell is told of each moment; it may be called from several goroutines.
	Tell(Entry)
}

// Spawner is the process that starts commands; see run.Spawner.
func Spawner() error { return run.Spawner() }

// startRunner gets ready to run commands.
func (w *warden) startRunner() (err error) {
	o := run.Options{StateDir: w.cfg.Daemon.StateDir, Needed: len(w.cfg.Actions) > 0 || w.cfg.Daemon.Backend == config.Commands, Log: w.log, Tell: w.ran}
	switch {
	case w.options.Observe:
		o.StateDir = ""
	case w.cfg.Knockd.StateDir != "":
		return w.startKnockdRunner(o)
	}
	w.runner, err = run.New(o)
	return err
}

// maxShared is how many daemons can serve one knockd.conf, as one for each interface.
const maxShared = 16

// startKnockdRunner does without the state directory if it must: a bare daemon may
// have no right to make it. Of several daemons each takes the first one that is free,
// so that whichever starts again takes up what was left.
func (w *warden) startKnockdRunner(o run.Options) (err error) {
	for n := 1; n <= maxShared; n++ {
		if o.StateDir = w.cfg.Knockd.StateDir; n > 1 {
			o.StateDir = fmt.Sprintf("%s-%d", o.StateDir, n)
		}
		if err = os.MkdirAll(o.StateDir, 0o700); err != nil {
			break
		}
		if w.runner, err = run.New(o); !errors.Is(err, run.ErrInUse) {
			return err
		}
	}
	if slices.ContainsFunc(w.cfg.Actions, func(a config.Action) bool { return len(a.Undo)+len(a.UndoIPv6) > 0 }) {
		w.log.Warn("a stop command that is due after the daemon has ended will not be run, because there is no place to remember it", "error", err)
	}
	o.StateDir = ""
	w.runner, err = run.New(o)
	return err
}

// atStart runs the actions that belong to the daemon's own start.
func (w *warden) atStart() {
	for i := range w.cfg.Actions {
		if a := &w.cfg.Actions[i]; a.AtStart && !w.options.Observe {
			if err := w.runner.Run(run.Job{Action: a}, time.Now()); err != nil {
				w.log.Error("an action of the start did not run", "action", a.Name, "error", err)
			}
		}
	}
}

// ran passes on what became of an action.
func (w *warden) ran(e run.Event) {
	if k := w.options.Knockd; k != nil {
		k.Tell(Entry{What: Running + Moment(e.What), Door: e.Action, Addr: e.Addr, Command: e.Command, Status: e.Status})
		return
	}
	log := w.log.With("action", e.Action)
	if e.Addr.IsValid() {
		log = log.With("address", e.Addr)
	}
	switch port := command.Port(e.Action); {
	case e.What == run.Running && e.Undo && port != "":
		w.log.Info("close", "port", port, "address", e.Addr, "command", e.Command)
	case e.What == run.Running:
		log.Info("an action runs", "command", e.Command)
	case e.What == run.Failed:
		log.Warn("a command failed; the action did not do its work, look at the lines before", "status", e.Status)
	case e.What == run.Said:
		log.Info("a command says", "line", e.Command)
	}
}

// act answers a request for an action. Its command stands in the warden's own
// reading of the config; the engine says which and for what address.
func (g *gate) act(m *border.Run, now time.Time) *border.Done {
	done := &border.Done{ID: m.ID}
	rule, who, why := g.actionRule(m, now)
	if why != 0 {
		done.Result = why
		return done
	}
	by := who.by
	a := &g.cfg.Actions[rule.Action]
	if g.observe {
		g.log.Info("would run", "action", a.Name, "address", m.Addr, "asked by", by)
		done.Result = border.Observed
		return done
	}
	switch {
	case m.Do == border.Start:
		done.Result = border.Ran
		if err := g.runner.Run(g.job(rule, m, by), now); err != nil {
			g.notRun(a, m.Addr, by, err, now)
			done.Result = border.NotRun
		}
	case m.Do == border.Extend && slices.ContainsFunc(g.whose(&who, rule), func(by string) bool { return g.runner.Extend(a, m.Addr, by, now) }):
		done.Result = border.Ran
	case m.Do == border.Extend:
		done.Result = border.NothingToExtend
	case g.runner.Undo(a, m.Addr, g.askedFor(&who, rule), now):
		done.Result = border.Undone
	default:
		done.Result = border.NothingToUndo
	}
	return done
}

// busyPause is between two lines about an action that is asked for more often than it
// can be run: strangers can ask for a door of one step as often as they like.
const busyPause = 10 * time.Second

// notRun says why an action did not run.
func (g *gate) notRun(a *config.Action, addr netip.Addr, by string, err error, now time.Time) {
	if errors.Is(err, run.ErrBusy) {
		if g.busy++; now.Sub(g.busyTold) < busyPause {
			return
		}
		g.log.Error("actions did not run, because too much of them is still to be done; this is the latest", "times", g.busy, "action", a.Name, "address", addr, "asked by", by, "error", err)
		g.busy, g.busyTold = 0, now
		return
	}
	g.log.Error("an action did not run", "action", a.Name, "address", addr, "asked by", by, "error", err)
}

// actionRule gives the rule that a request names, and who asks.
func (g *gate) actionRule(m *border.Run, now time.Time) (rule config.Rule, who asker, why border.Result) {
	if m.Generation != g.generation {
		return rule, who, border.Stale
	}
	who, why = g.asker(m.Rule, m.Key)
	if why != 0 {
		return rule, who, why
	}
	rule = g.rules[m.Rule]
	switch {
	// A sequence or one-time password says nothing but what its rule does: it can't extend.
	case rule.Action == config.None, who.fixed() && (rule.Close != (m.Do == border.Undo) || m.Do == border.Extend):
		why = border.NoSuchRule
	case !who.may(g.cfg.Actions[rule.Action].Name, m.Addr, now), !carries(m, &who):
		why = border.NotAllowed
	case !connectable(m.Addr) && !(m.Addr.IsLoopback() && who.key == nil && who.person == nil && g.cfg.Daemon.Loopback()):
		why = border.NotUnicast
	case g.unmarked(rule.Knock):
		why = border.NotAllowed
	case !g.opens.take(now, opensPerSecond):
		why = border.TooFast
	}
	return rule, who, why
}

// carries reports whether a knock may bring as many bytes of the operator's own.
func carries(m *border.Run, who *asker) bool {
	return m.Payload.Length == 0 || who.knock.Type == "encoded" && int(m.Payload.Length) <= who.knock.Payload && m.Do == border.Start
}

// unmarked reports whether a knock was made by a one-time sequence that is not known
// to be marked as used.
func (g *gate) unmarked(knock int) bool {
	return g.cfg.Knocks[knock].OneTime && !g.marked[knock] && !g.observe
}

// spending bounds how fast the one-time sequences of each door are used up: an engine
// that strangers took over must not burn them all.
type spending map[string]*rate

const (
	spendBurst = 10
	spendEvery = 10 * time.Second
)

func (s spending) take(door string, now time.Time) bool {
	if s[door] == nil {
		s[door] = &rate{left: spendBurst, last: now}
	}
	r := s[door]
	r.left = min(spendBurst, r.left+float64(now.Sub(r.last))/float64(spendEvery))
	r.last = now
	if r.left < 1 {
		return false
	}
	r.left--
	return true
}

// askedFor says whose runs a rule may undo; a sequence those of all sequences.
func (g *gate) askedFor(who *asker, rule config.Rule) func(string) bool {
	of := g.whose(who, rule)
	return func(other string) bool { return slices.Contains(of, other) }
}

func (g *gate) job(rule config.Rule, m *border.Run, by string) run.Job {
	j := run.Job{Action: &g.cfg.Actions[rule.Action], Addr: m.Addr, By: by, Input: m.Payload.Bytes[:m.Payload.Length]}
	for _, s := range g.cfg.Knocks[rule.Knock].Opens {
		j.Services = append(j.Services, g.cfg.Services[s].Name)
		j.Ports = append(j.Ports, g.cfg.Services[s].Ports...)
	}
	return j
}

// told passes on a step, in the words of the warden's own config. An engine that
// strangers took over must not fill a disk with lines.
func (w *warden) told(m *border.Told) error {
	if w.options.Knockd == nil {
		return border.ErrMessage
	}
	if m.Generation == w.gate.generation && int(m.Knock) < len(w.cfg.Knocks) && w.tells.take(time.Now(), tellsPerSecond) {
		w.options.Knockd.Tell(Entry{What: Stage + Moment(m.What), Door: w.cfg.Knocks[m.Knock].Name, Addr: m.Addr, Stage: int(m.Stage)})
	}
	return nil
}

// tellsPerSecond is above what an engine tells that is itself.
const tellsPerSecond = 4000

// spent marks a one-time sequence as used and turns to the next one. Only then what
// it was made for is done.
func (w *warden) spent(m *border.Spent) error {
	if w.options.Knockd == nil && !hasList(w.cfg) {
		return border.ErrMessage
	}
	// Its generation is the one in use, also while another is on offer: it may be the
	// second sequence that is spent in the same moment, and dropping it would leave a
	// used line unmarked.
	if m.Generation != w.gate.generation || int(m.Knock) >= len(w.cfg.Knocks) || !w.cfg.Knocks[m.Knock].OneTime {
		return nil
	}
	name := w.cfg.Knocks[m.Knock].Name
	switch {
	case w.options.Observe:
		return nil
	case !w.gate.spending.take(name, time.Now()):
		// At the rate of its messages it must not fill a disk either.
		if now := time.Now(); now.Sub(w.burntTold) >= spendEvery {
			w.burntTold = now
			w.log.Error("one-time sequences of a door are used up faster than anybody knocks: this one does nothing, and is good again after a restart", "door", name)
		}
		return nil
	}
	if w.cfg.Knocks[m.Knock].List != "" {
		w.spendLine(m)
		return nil
	}
	base, knock := w.newest(&w.cfg.Knocks[m.Knock])
	gone := knock < 0 // from what comes next: there is nothing to turn to
	if gone {
		base, knock = w.cfg, int(m.Knock)
	}
	cfg, err := w.options.Knockd.Spend(base, knock)
	if cfg != nil && !gone {
		w.next = cfg
	}
	if err != nil {
		w.log.Error("a one-time sequence was not marked as used, so what it was made for is not done", "door", name, "error", err)
		return nil
	}
	w.gate.marked[int(m.Knock)] = true
	return nil
}

// newest gives the config that the one with the next sequence is made from, and the
// knock's place there: one that waits or is on offer has sequences that were spent
// a moment before.
func (w *warden) newest(k *config.Knock) (*config.Config, int) {
	cfg := cmp.Or(w.next, w.offered, w.cfg)
	return cfg, slices.IndexFunc(cfg.Knocks, func(n config.Knock) bool {
		if k.List != "" { // whose lines may have moved on
			return n.List == k.List && n.Name == k.Name
		}
		return n.OneTime && n.Name == k.Name && slices.Equal(n.Sequence, k.Sequence)
	})
}
