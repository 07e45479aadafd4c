//go:build linux

// Package warden is the side with privilege. It opens the sockets, starts the
// engine, applies what the engine asks for within its own reading of the
// config, and never parses a stranger's packet.
package warden

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/internal/border"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/sallyport/sallyport/internal/warden/internal/command"
	"github.com/sallyport/sallyport/internal/warden/internal/nft"
	"github.com/sallyport/sallyport/internal/warden/internal/run"
)

// Options is what the command line of serve says.
type Options struct {
	Config    string        // path of the config file
	Observe   bool          // change nothing, tell what would be done
	UndoAfter time.Duration // more than 0: the hiding ends by itself unless confirmed
	Log       *slog.Logger
	// Knockd serves a knockd.conf instead of the config file; nil: a config file
	// of ours.
	Knockd Knockd
	// Bare serves without the firewall: nothing is hidden and no grant is made, so
	// that neither CAP_NET_ADMIN nor a state directory is needed.
	Bare bool
	// Ready is called once the daemon serves, from its own goroutine; nil: nobody waits.
	Ready func()
}

// load reads the config, and the text to keep of it.
func (o *Options) load() (*config.Config, []byte, error) {
	if o.Knockd != nil {
		return o.Knockd.Load()
	}
	cfg, text, err := config.LoadText(o.Config)
	if err == nil {
		err = o.readLists(cfg, text)
	}
	return cfg, text, err
}

// hides reports whether the daemon owns the table.
func (o *Options) hides() bool { return !o.Observe && !o.Bare }

// warden is a running daemon. Its fields belong to the goroutine of run.
type warden struct {
	options Options
	log     *slog.Logger
	cfg     *config.Config
	text    []byte // of cfg, as it stands in the file

	table   backend // nil: observing
	gate    *gate
	engine  *link
	capture int       // AF_PACKET descriptor; -1: none
	sockets []int     // UDP, instead of the capture
	nflog   int       // NFLOG group, instead of the capture; -1: none
	lines   *followed // a log, instead of the capture; nil: none
	watch   *watch
	control *controlSockets
	journal *journal // nil: observing
	whole   bool     // the journal was, at the start
	ring    *keyring
	keys    []border.Keys // as long as cfg.Knocks
	files   *files

	runner     *run.Runner
	leaving    leaving
	next       *config.Config             // to turn to: a one-time sequence was spent
	unspent    map[string][]sequence.Step // lines that could not be marked, by their list
	offered    *config.Config             // while the engine has not said whether it takes it
	tells      rate                       // of lines in knockd's words
	burntTold  time.Time                  // when it was last said that one-time sequences go too fast
	removals   <-chan string              // who removed the table, see nft.Follow
	generation uint32
	host       border.HostFacts
	trialEnds  time.Time // zero: no trial, or confirmed
	down       bool      // the administrator took the table away
}

// Serve runs the daemon until ctx ends, which is a clean end, or until
// something fails. reload and the engine's requests are served in turn.
func Serve(ctx context.Context, o Options, reload <-chan os.Signal) error {
	cfg, text, err := o.load()
	if err != nil {
		return errors.Join(err, stayHidden(o))
	}
	w := &warden{options: o, log: o.Log, cfg: cfg, text: text, capture: -1, nflog: -1, ring: &keyring{log: o.Log}, files: newFiles(), unspent: map[string][]sequence.Step{}}
	defer w.closeAll()
	w.followKeys(cfg)
	if w.keys, err = w.ring.load(cfg, o.Config, text); err != nil {
		return errors.Join(err, stayHidden(o))
	}
	if err := w.open(); err != nil {
		return err
	}
	if err := w.begin(ctx); err != nil {
		return err
	}
	return w.run(ctx, reload)
}

// open takes hold of everything that needs privilege, in the order of what is
// cheapest to refuse.
func (w *warden) open() error {
	var err error
	if !w.options.Bare {
		if err = claim(w.log); err != nil {
			return err
		}
	}
	if w.options.hides() {
		// First of all, because its error says what a user without root lacks.
		if w.table, err = openBackend(w.cfg, w.log); err != nil {
			return err
		}
		if err = prepareState(w.cfg.Daemon.StateDir); err != nil {
			return err
		}
		if w.journal, w.whole, err = openJournal(w.cfg.Daemon.StateDir); err != nil {
			return err
		}
	}
	if err = w.startRunner(); err != nil {
		return err
	}
	if c, ok := w.table.(*command.Backend); ok {
		c.Runner = w.runner
	}
	if err = w.openSource(); err != nil {
		return err
	}
	return w.openControl()
}

// openControl opens the control sockets. A bare daemon does its work without them:
// it may have no right to make them, and several may run.
func (w *warden) openControl() (err error) {
	w.control, err = listen(w.cfg.Daemon.Control, w.log)
	if err != nil && w.options.Bare {
		w.log.Info("'sallyport status' and 'events' will not reach this daemon", "why", err)
		w.control, err = &controlSockets{}, nil
	}
	return err
}

// begin starts the engine, gives it the config, and only then hides: a daemon
// that can't hear knocks must not shut a port.
func (w *warden) begin(ctx context.Context) error {
	if w.gate = newGate(nothing{}, w.options.Observe, w.log); w.options.hides() {
		w.gate = newGate(w.table, false, w.log)
	}
	w.gate.cut, w.gate.runner = w.cut, w.runner
	if c, ok := w.table.(*command.Backend); ok {
		w.gate.begin, w.gate.opened = c.Begin, make(chan opening)
	}
	var err error
	w.engine, err = startEngine(engineFiles{capture: w.seen(), source: w.cfg.Daemon.Source, journal: w.journal.descriptors(), sockets: w.sockets, log: w.log})
	if err != nil {
		return err
	}
	if w.host, err = w.facts(); err != nil {
		return err
	}
	if err := w.sendHost(); err != nil {
		return err
	}
	if err := w.offer(w.cfg, w.keys); err != nil {
		return err
	}
	w.gate.use(w.cfg, w.generation, w.keys)
	if err := w.journal.taken(); err != nil {
		return fmt.Errorf("the journal can't be marked as taken: %w; look at the disk of state_dir", err)
	}
	if !w.options.hides() {
		return nil
	}
	// Before the table is there, so that nobody can remove it unheard.
	if _, ok := w.table.(*nft.Table); ok {
		if w.removals, err = nft.Follow(ctx); err != nil {
			return err
		}
	}
	if w.options.UndoAfter > 0 {
		if err := w.beginTrial(); err != nil {
			return err
		}
	}
	w.followLeaving(ctx)
	if err := w.hide(w.cfg); err != nil {
		return err
	}
	w.leaveOthers()
	w.warnLater(w.cfg)
	kept, err := w.gate.adopt(time.Now())
	if err != nil {
		return err
	}
	if w.leaving.events != nil {
		w.recount()
	}
	if kept > 0 {
		w.log.Info("grants from before this start go on until their time", "grants", kept)
	}
	return w.keep()
}

// run serves until the end. Everything that changes the warden happens here.
func (w *warden) run(ctx context.Context, reload <-chan os.Signal) error {
	facts, err := follow(ctx)
	if err != nil {
		return err
	}
	watchTick := time.NewTicker(watchInterval())
	defer watchTick.Stop()
	hostTick := time.NewTicker(time.Minute)
	defer hostTick.Stop()
	w.watch.send()
	w.atStart()
	w.ready()
	for {
		w.followLeaving(ctx)
		select {
		case <-ctx.Done():
			return w.stop()
		case <-w.engine.ended:
			return w.engine.err
		case m := <-w.engine.messages:
			w.answer(m)
			w.turnNext()
		case o := <-w.gate.opened:
			w.opened(o)
		case c := <-w.control.accepted:
			w.pass(c)
		case <-reload:
			w.reload()
			w.turnNext()
		case <-facts:
			w.refreshHost()
		case <-w.files.changed:
			w.refreshKeys()
			w.refreshLists()
			w.turnNext()
		case e, ok := <-w.leaving.events:
			w.flowed(e, ok)
		case <-w.leaving.timer():
			w.lookWhoLeft()
		case by, ok := <-w.removals:
			if !ok {
				w.removals = nil // the look once a minute goes on
				continue
			}
			w.removed(by)
		case <-hostTick.C:
			w.refreshHost()
			w.refreshKeys()
			w.refreshLists()
			w.turnNext()
			w.removed("")
			w.gate.grants.forget(time.Now())
			w.gate.uses.forget(w.gate.grants)
			w.followAgain()
		case <-watchTick.C:
			w.watch.send()
		case <-w.trial():
			return w.undo()
		}
	}
}

func (w *warden) ready() {
	what := "serving"
	switch {
	case w.options.Observe:
		what = "observing: nothing is hidden and nothing will be opened"
	case !w.trialEnds.IsZero():
		what = "serving on trial: run 'sallyport confirm' from the far side, or the hiding undoes itself"
	}
	w.log.Info(what, "config", w.options.Config, "services", len(w.cfg.Services), "knocks", len(w.cfg.Knocks))
	daemon.SdNotify(false, daemon.SdNotifyReady)
	if w.options.Ready != nil {
		w.options.Ready()
	}
}

// stop is the clean end. The table stays: hidden stays hidden.
func (w *warden) stop() error {
	daemon.SdNotify(false, daemon.SdNotifyStopping)
	c, commands := w.table.(*command.Backend)
	if commands {
		c.Down()
	}
	w.runner.Finish()
	switch {
	case !w.options.hides():
	case commands:
		w.log.Info("stopped; what was open is closed by close_command, since nobody would do so in time")
	case w.down:
		w.log.Info("stopped; nothing is hidden")
	case !w.trialEnds.IsZero():
		w.log.Info("stopped; the kernel undoes the hiding when the trial's time is over", "left", time.Until(w.trialEnds).Round(time.Second))
	default:
		w.log.Info("stopped; what is hidden stays hidden and grants run out by themselves, 'sallyport down' makes the ports public again")
	}
	w.endJournal()
	return nil
}

// engineEnd is how long a killed engine may take to be gone.
const engineEnd = 5 * time.Second

// endJournal marks the journal as whole when nobody can write it any more.
func (w *warden) endJournal() {
	if w.journal == nil {
		return
	}
	w.engine.child.kill()
	// Without CAP_KILL it ends when the border does.
	unix.Shutdown(w.engine.Fd(), unix.SHUT_RDWR)
	err := fmt.Errorf("the engine was not gone within %v", engineEnd)
	select {
	case <-w.engine.child.ended:
		err = w.journal.close()
	case <-time.After(engineEnd):
	}
	if err != nil {
		w.log.Warn("the journal is not marked as whole: after a reboot, requests made before the next start are refused", "error", err)
	}
}

// opened answers a request whose grant took long.
func (w *warden) opened(o opening) {
	if err := w.engine.Send(w.gate.finish(o, time.Now())); err != nil {
		w.engine.fail(fmt.Errorf("the border broke: %w", err))
	}
}

// answer serves one request of the engine's.
func (w *warden) answer(m border.Message) {
	now := time.Now()
	var err error
	switch m := m.(type) {
	case *border.Open:
		if done := w.gate.open(m, now); done != nil {
			err = w.engine.Send(done)
		}
	case *border.Close:
		err = w.engine.Send(w.gate.close(m, now))
	case *border.CloseKey:
		err = w.engine.Send(w.gate.closeKey(m, now))
	case *border.Confirm:
		err = w.engine.Send(w.confirm(m, now))
	case *border.Run:
		err = w.engine.Send(w.gate.act(m, now))
	case *border.Told:
		err = w.told(m)
	case *border.Spent:
		err = w.spent(m)
	case *border.List:
		err = w.engine.SendJSON(&border.Listing{ID: m.ID}, w.gate.list(now))
	case *border.Watched:
		w.watch.returned(m)
	default:
		err = border.ErrMessage // only the warden sends the others
	}
	if err != nil {
		w.engine.fail(fmt.Errorf("the border broke: %w", err))
	}
}

func (w *warden) closeAll() {
	if w.engine != nil {
		w.engine.close()
	}
	if w.control != nil {
		w.control.close()
	}
	if w.runner != nil {
		w.runner.Close()
	}
	if w.watch != nil {
		w.watch.close()
	}
	if w.table != nil {
		w.table.Close()
	}
	if w.capture >= 0 {
		closeFd(w.capture)
	}
	for _, fd := range w.sockets {
		closeFd(fd)
	}
	w.closeChosen()
	if w.journal != nil {
		w.journal.release()
	}
	w.files.close()
}

// nothing is the firewall of an observing or bare daemon: it holds no grants and
// is never asked to change.
type nothing struct{}

// Grant is never called: the gate tells instead of granting.
func (nothing) Grant([]nft.Element) error { return errors.ErrUnsupported }

// Revoke is never called either.
func (nothing) Revoke([]nft.Element) error { return errors.ErrUnsupported }

// Holds says that nothing is there.
func (nothing) Holds(nft.Element) (bool, error) { return false, nil }

// Grants gives none.
func (nothing) Grants() ([]nft.Element, error) { return nil, nil }
