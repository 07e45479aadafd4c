//go:build linux

package warden

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/sallyport/sallyport/internal/border"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/warden/internal/capture"
)

// tookLimit is how long the engine may take for a generation of the config.
const tookLimit = 30 * time.Second

// offer gives the engine a generation of the config and waits for its word. A
// nil error says that the engine runs on it.
func (w *warden) offer(cfg *config.Config, keys []border.Keys) error {
	w.generation++
	g := border.Generation{Config: *cfg, Observe: w.options.Observe, Keys: keys, Journal: w.whole}
	if err := w.engine.SendJSON(&border.Config{Generation: w.generation, Watch: w.watch.token}, g); err != nil {
		return fmt.Errorf("the engine takes no config: %w", err)
	}
	deadline := time.After(tookLimit)
	for {
		select {
		case m := <-w.engine.messages:
			switch m := m.(type) {
			case *border.Took:
				if m.Generation == w.generation {
					return nil
				}
			case *border.Refused:
				if m.Generation == w.generation {
					return errRefused
				}
			default:
				w.answer(m)
			}
		case <-w.engine.ended:
			return w.engine.err
		case <-deadline:
			w.engine.fail(fmt.Errorf("the engine did not take a config within %v: it is stuck", tookLimit))
			return w.engine.err
		}
	}
}

var errRefused = errors.New("the engine refused the config")

// reload reads the config again. Whatever is wrong with the new one, the old
// one runs on everywhere: the packet filter is widened first, so that no knock
// of either config is missed meanwhile, and narrowed to the one that won.
func (w *warden) reload() {
	daemon.SdNotify(false, daemon.SdNotifyReloading)
	defer daemon.SdNotify(false, daemon.SdNotifyReady)
	for list := range w.unspent {
		w.spendOwed(list)
	}
	cfg, text, err := w.options.load()
	if err == nil {
		err = w.unchangeable(cfg)
	}
	if err == nil {
		err = w.turn(cfg, text, w.options.hides())
	}
	w.followKeys(w.cfg)
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
	if cfg.Daemon.Source != w.cfg.Daemon.Source || !slices.Equal(socketPorts(cfg), socketPorts(w.cfg)) {
		return errors.New("source, and with source = \"socket\" the ports of knocks, can't change while the daemon runs; restart it for that")
	}
	if cfg.Daemon.Backend != w.cfg.Daemon.Backend {
		return errors.New("backend can't change while the daemon runs; restart it for that")
	}
	if cfg.Daemon.NFLOGGroup != w.cfg.Daemon.NFLOGGroup || cfg.Daemon.LogFile != w.cfg.Daemon.LogFile {
		return errors.New("nflog_group and log_file can't change while the daemon runs; restart it for that")
	}
	return nil
}

// turnNext turns to the config with the next one-time sequence. It does so behind
// the message that told of the spent one, never in the middle of a reload. What the
// administrator took down stays down: a knock must not shut it.
func (w *warden) turnNext() {
	for w.next != nil { // a turn can meet the next spent sequence
		cfg := w.next
		w.next = nil
		if err := w.turn(cfg, w.text, w.options.hides() && !w.takenDown()); err != nil {
			w.log.Error("the next one-time sequence is not in use: its door stays shut until the config is read again", "error", err)
		}
	}
}

func (w *warden) turn(cfg *config.Config, text []byte, hide bool) error {
	old := w.cfg
	w.followKeys(cfg)
	list, err := w.ring.load(cfg, w.options.Config, text)
	if err != nil {
		return err
	}
	if err := w.filter(capture.Union(w.wanted(old), w.wanted(cfg))); err != nil {
		return err
	}
	defer func() {
		if err := w.filter(w.wanted(w.cfg)); err != nil {
			w.log.Warn("the packet filter could not be narrowed: the engine sees more packets than it needs, and no fewer", "error", err)
		}
	}()
	w.offered = cfg
	err = w.offer(cfg, list)
	w.offered = nil
	if err != nil {
		return err
	}
	if hide {
		if err := w.hide(cfg); err != nil {
			err = errors.Join(err, w.offer(old, w.keys))
			w.gate.use(old, w.generation, w.keys)
			return err
		}
		w.warnLater(cfg)
	}
	w.tellKeys(old, cfg, list)
	w.cfg, w.text, w.keys = cfg, text, list
	w.gate.use(cfg, w.generation, list)
	w.refreshHost()
	if err := w.keep(); err != nil {
		w.log.Warn("the new config is in use, but a reboot would hide what the one before did", "error", err)
	}
	return nil
}
