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
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/sallyport/sallyport/internal/border"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/warden/internal/capture"
	"github.com/sallyport/sallyport/internal/warden/internal/later"
	"github.com/sallyport/sallyport/internal/warden/internal/nft"
)

// Options is what the command line of serve says.
type Options struct {
	Config    string        // path of the config file
	Observe   bool          // change nothing, tell what would be done
	UndoAfter time.Duration // more than 0: the hiding ends by itself unless confirmed
	Log       *slog.Logger
}

// ErrUndone says that a trial (UndoAfter) ended without a confirmation and that
// nothing is hidden any more.
var ErrUndone = errors.New("nobody confirmed in time: nothing is hidden any more")

// tookLimit is how long the engine may take for a generation of the config.
const tookLimit = 10 * time.Second

// warden is a running daemon. Its fields belong to the goroutine of run.
type warden struct {
	options Options
	log     *slog.Logger
	cfg     *config.Config
	text    []byte // of cfg, as it stands in the file

	table   *nft.Table // nil: observing
	gate    *gate
	engine  *link
	capture int // AF_PACKET descriptor
	watch   *watch
	control *control

	generation uint32
	host       border.HostFacts
	trialEnds  time.Time // zero: no trial, or confirmed
	down       bool      // the administrator took the table away
}

// Serve runs the daemon until ctx ends, which is a clean end, or until
// something fails. reload and the engine's requests are served in turn.
func Serve(ctx context.Context, o Options, reload <-chan os.Signal) error {
	cfg, text, err := read(o.Config)
	if err != nil {
		return errors.Join(err, stayHidden(o))
	}
	w := &warden{options: o, log: o.Log, cfg: cfg, text: text, capture: -1}
	defer w.closeAll()
	if err := w.open(); err != nil {
		return err
	}
	if err := w.begin(); err != nil {
		return err
	}
	return w.run(ctx, reload)
}

// open takes hold of everything that needs privilege, in the order of what is
// cheapest to refuse.
func (w *warden) open() error {
	if err := claim(); err != nil {
		return err
	}
	var err error
	if !w.options.Observe {
		if err = prepareState(w.cfg.Daemon.StateDir); err != nil {
			return err
		}
		if w.table, err = nft.Open(); err != nil {
			return err
		}
	}
	if w.watch, err = newWatch(); err != nil {
		return err
	}
	if w.capture, err = capture.Open(capture.Filter(w.wanted(w.cfg))); err != nil {
		return err
	}
	if w.control, err = listen(w.cfg.Daemon.Control, w.log); err != nil {
		return err
	}
	return nil
}

// begin starts the engine, gives it the config, and only then hides: a daemon
// that can't hear knocks must not shut a port.
func (w *warden) begin() error {
	w.gate = newGate(w.table, false, w.log)
	if w.options.Observe {
		w.gate = newGate(nothing{}, true, w.log)
	}
	var err error
	if w.engine, err = startEngine(w.capture, w.log); err != nil {
		return err
	}
	if w.host, err = hostFacts(w.cfg.Daemon.Interfaces); err != nil {
		return err
	}
	if err := w.sendHost(); err != nil {
		return err
	}
	if err := w.offer(w.cfg); err != nil {
		return err
	}
	w.gate.use(w.cfg, w.generation)
	if w.options.Observe {
		return nil
	}
	if w.options.UndoAfter > 0 {
		w.trialEnds = time.Now().Add(w.options.UndoAfter)
	}
	if err := w.hide(w.cfg); err != nil {
		return err
	}
	w.warnLater(w.cfg)
	kept, err := w.gate.adopt(time.Now())
	if err != nil {
		return err
	}
	if kept > 0 {
		w.log.Info("grants from before this start go on until their time", "grants", kept)
	}
	return w.keep()
}

// wanted is what the kernel must let through to the engine.
func (w *warden) wanted(cfg *config.Config) capture.Wanted {
	wanted := capture.WantedBy(cfg)
	wanted.Watch = capture.Watch{Port: w.watch.port, Token: w.watch.token}
	return wanted
}

// offer gives the engine a generation of the config and waits for its word. A
// nil error says that the engine runs on it.
func (w *warden) offer(cfg *config.Config) error {
	w.generation++
	g := border.Generation{Config: *cfg, Observe: w.options.Observe}
	if err := w.engine.SendJSON(&border.Config{Generation: w.generation, Watch: w.watch.token}, g); err != nil {
		return fmt.Errorf("the engine takes no config: %w", err)
	}
	deadline := time.After(tookLimit)
	for {
		select {
		case m := <-w.engine.messages:
			switch m := m.(type) {
			case *border.Took:
				return nil
			case *border.Refused:
				return errRefused
			default:
				w.answer(m)
			}
		case err := <-w.engine.ended:
			return err
		case <-deadline:
			return fmt.Errorf("the engine did not answer for %v: it is stuck", tookLimit)
		}
	}
}

var errRefused = errors.New("the engine refused the config")

// hide brings the table to a config. While a trial runs, the hiding itself
// carries the time that is left: the kernel ends it, whatever becomes of us.
func (w *warden) hide(cfg *config.Config) error {
	live, err := nft.Live(cfg)
	if err != nil {
		return err
	}
	o := nft.Options{Live: live}
	if !w.trialEnds.IsZero() {
		o.HiddenFor = max(time.Until(w.trialEnds), time.Second)
	}
	if err := w.table.Apply(cfg, o); err != nil {
		return err
	}
	w.down = false
	return nil
}

// warnLater names the chains of the host's own that would drop a port after we
// let it through.
func (w *warden) warnLater(cfg *config.Config) {
	blockers, err := Blockers(cfg)
	if err != nil {
		w.log.Warn("if a knock opens nothing, look at the host's other rules", "error", err)
	}
	for _, b := range blockers {
		w.log.Warn(b.String())
	}
}

// Blockers finds the chains of the host's own firewall that drop a guarded port
// whatever is granted. It needs CAP_NET_ADMIN and changes nothing.
func Blockers(cfg *config.Config) ([]later.Blocker, error) {
	var ports []config.PortRange
	for i := range cfg.Services {
		if len(cfg.Services[i].On) == 0 { // what is forwarded meets no input chain
			ports = append(ports, cfg.Services[i].Ports...)
		}
	}
	return later.Find(ports, cfg.Daemon.GrantMark)
}

// keep records the config as the last good one, unless it is on trial.
func (w *warden) keep() error {
	if w.options.Observe || !w.trialEnds.IsZero() {
		return nil
	}
	return keepState(w.cfg.Daemon.StateDir, w.text)
}

// run serves until the end. Everything that changes the warden happens here.
func (w *warden) run(ctx context.Context, reload <-chan os.Signal) error {
	facts, err := follow(ctx)
	if err != nil {
		return err
	}
	var removed <-chan string
	if w.table != nil {
		if removed, err = nft.Follow(ctx); err != nil {
			return err
		}
	}
	watchTick := time.NewTicker(watchInterval())
	defer watchTick.Stop()
	hostTick := time.NewTicker(time.Minute)
	defer hostTick.Stop()
	w.watch.send()
	w.ready()
	for {
		select {
		case <-ctx.Done():
			return w.stop()
		case err := <-w.engine.ended:
			return err
		case m := <-w.engine.messages:
			w.answer(m)
		case c := <-w.control.accepted:
			w.pass(c)
		case <-reload:
			w.reload()
		case <-facts:
			w.refreshHost()
		case by := <-removed:
			w.removed(by)
		case <-hostTick.C:
			w.refreshHost()
			w.gate.grants.forget(time.Now())
		case <-watchTick.C:
			w.watch.send()
		case <-w.trial():
			return w.undo()
		}
	}
}

// removed puts the table back, with its grants, unless the administrator took it
// away by 'sallyport down', which is this program too.
func (w *warden) removed(by string) {
	there, err := w.table.Exists()
	if err == nil && there {
		return
	}
	self, _ := os.ReadFile("/proc/self/comm")
	if by == strings.TrimSpace(string(self)) {
		w.down = true
		w.log.Warn("the table was taken down: nothing is hidden and knocks open nothing; send SIGHUP or restart to hide again")
		return
	}
	if err == nil {
		err = w.hide(w.cfg)
	}
	if err != nil {
		w.log.Error("the table was removed and could not be put back: nothing is hidden", "by", by, "error", err)
		return
	}
	w.gate.restore(time.Now())
	w.log.Warn("the table was removed, and is back with its grants; let whoever did it spare table inet sallyport", "by", by)
}

// trial fires at the end of the trial; it never fires without one.
func (w *warden) trial() <-chan time.Time {
	if w.trialEnds.IsZero() {
		return nil
	}
	return time.After(time.Until(w.trialEnds))
}

// undo takes the table away: nobody confirmed that he can still get in.
func (w *warden) undo() error {
	if err := w.table.Down(); err != nil {
		return fmt.Errorf("%w by the kernel's timeout, but the empty table could not be removed: %w; run 'sallyport down'", ErrUndone, err)
	}
	return ErrUndone
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
}

// stop is the clean end. The table stays: hidden stays hidden.
func (w *warden) stop() error {
	daemon.SdNotify(false, daemon.SdNotifyStopping)
	if !w.options.Observe {
		w.log.Info("stopped; what is hidden stays hidden and grants run out by themselves, 'sallyport down' makes the ports public again")
	}
	return nil
}

// answer serves one request of the engine's.
func (w *warden) answer(m border.Message) {
	now := time.Now()
	var err error
	switch m := m.(type) {
	case *border.Open:
		err = w.engine.Send(w.gate.open(m, now))
	case *border.Close:
		err = w.engine.Send(w.gate.close(m, now))
	case *border.Confirm:
		err = w.engine.Send(w.confirm(m, now))
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

// confirm ends the trial: the hiding becomes lasting.
func (w *warden) confirm(m *border.Confirm, now time.Time) *border.Done {
	done := &border.Done{ID: m.ID, Result: border.Confirmed}
	switch {
	case !w.gate.tickets.use(m.Ticket, now):
		done.Result = border.NoTicket
		return done
	case w.trialEnds.IsZero():
		done.Result = border.NothingToConfirm
		return done
	}
	ends := w.trialEnds
	w.trialEnds = time.Time{}
	if err := errors.Join(w.hide(w.cfg), w.keep()); err != nil {
		w.trialEnds = ends
		w.log.Error("the confirmation could not be carried out: the trial goes on", "error", err)
		done.Result = border.Failed
		return done
	}
	w.log.Info("confirmed: the hiding stays")
	return done
}

// reload reads the config again. Whatever is wrong with the new one, the old
// one runs on everywhere: the packet filter is widened first, so that no knock
// of either config is missed meanwhile, and narrowed to the one that won.
func (w *warden) reload() {
	daemon.SdNotify(false, daemon.SdNotifyReloading)
	defer daemon.SdNotify(false, daemon.SdNotifyReady)
	cfg, text, err := read(w.options.Config)
	if err == nil {
		err = w.unchangeable(cfg)
	}
	if err == nil {
		err = w.turn(cfg, text)
	}
	if err != nil {
		w.log.Error("the new config is refused and the one before stays in use", "error", err)
		return
	}
	w.log.Info("the config was read again", "services", len(cfg.Services), "knocks", len(cfg.Knocks))
}

// unchangeable names what only a new start can change.
func (w *warden) unchangeable(cfg *config.Config) error {
	if cfg.Daemon.StateDir != w.cfg.Daemon.StateDir || cfg.Daemon.Control != w.cfg.Daemon.Control {
		return errors.New("state_dir and control can't change while the daemon runs; restart it for that")
	}
	return nil
}

func (w *warden) turn(cfg *config.Config, text []byte) (err error) {
	old := w.cfg
	if err := capture.Attach(w.capture, capture.Filter(capture.Union(w.wanted(old), w.wanted(cfg)))); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, capture.Attach(w.capture, capture.Filter(w.wanted(w.cfg)))) }()
	if err := w.offer(cfg); err != nil {
		return err
	}
	if !w.options.Observe {
		if err := w.hide(cfg); err != nil {
			err = errors.Join(err, w.offer(old))
			w.gate.use(old, w.generation)
			return err
		}
		w.warnLater(cfg)
	}
	w.cfg, w.text = cfg, text
	w.gate.use(cfg, w.generation)
	w.refreshHost()
	return w.keep()
}

func (w *warden) closeAll() {
	if w.engine != nil {
		w.engine.close()
	}
	if w.control != nil {
		w.control.close()
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
}

// nothing is the firewall of an observing daemon: it holds no grants and is
// never asked to change.
type nothing struct{}

func (nothing) Grant([]nft.Element) error      { return errors.ErrUnsupported }
func (nothing) Revoke([]nft.Element) error     { return errors.ErrUnsupported }
func (nothing) Grants() ([]nft.Element, error) { return nil, nil }
