//go:build linux

package warden

import (
	"errors"
	"os"
	"strings"
	"time"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/warden/internal/iptables"
	"github.com/sallyport/sallyport/internal/warden/internal/later"
	"github.com/sallyport/sallyport/internal/warden/internal/nft"
)

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

// ErrNotLooked says that the owner's rules can't be told from those that a backend
// makes.
var ErrNotLooked = errors.New("the host's other rules were not looked at, because with this daemon.backend they can't be told from those that it makes: one that drops a port behind them, in INPUT, keeps it shut whatever is granted")

// Blockers finds the chains of the host's own firewall that drop a guarded port
// whatever is granted. It needs CAP_NET_ADMIN and changes nothing. With another backend
// than our table the error is ErrNotLooked.
func Blockers(cfg *config.Config) ([]later.Blocker, error) {
	if cfg.Daemon.Backend != config.Nftables {
		return nil, ErrNotLooked
	}
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
	if !w.options.hides() || !w.trialEnds.IsZero() {
		return nil
	}
	return keepState(w.cfg.Daemon.StateDir, w.text)
}

// takenDown reports whether 'sallyport down' took away what hides. Chains tell nobody of
// their end, so for these it has left a mark.
func (w *warden) takenDown() bool {
	if t, ok := w.table.(*iptables.Table); ok && !w.down && t.Marked() {
		w.down = true
		w.log.Warn("the chains were taken down: nothing is hidden and knocks open nothing; send SIGHUP or restart to hide again")
	}
	return w.down
}

// removed puts the table back, with its grants, after somebody removed or emptied
// it, unless that was 'sallyport down', which is this program too. Nobody is
// named ("") by the look once a minute.
func (w *warden) removed(by string) {
	if w.table == nil || w.takenDown() {
		return
	}
	there, err := w.table.Exists()
	if self, _ := os.ReadFile("/proc/self/comm"); by == strings.TrimSpace(string(self)) || by == "sallyport" {
		if there {
			return // 'sallyport hide', which hides no less
		}
		w.down = true
		w.log.Warn("the table was taken down: nothing is hidden and knocks open nothing; send SIGHUP or restart to hide again")
		return
	}
	if err != nil {
		w.log.Error("it can't be told whether the ports are still hidden; it is tried again within a minute", "error", err)
		return
	}
	_, chains := w.table.(*iptables.Table)
	if there && chains {
		return // each rule was looked at, and to load them takes a lock that others hold
	}
	switch err := w.hide(w.cfg); {
	case err != nil && there:
		w.log.Error("the table could not be made anew, and stays as it is; it is tried again within a minute", "by", by, "error", err)
		return
	case err != nil:
		w.log.Error("what hides the ports was removed or changed, and could not be put back: they may be open to everybody; it is tried again within a minute", "by", by, "error", err)
		return
	}
	if !there {
		w.gate.restore(time.Now())
	}
	if by != "" || !there {
		w.log.Warn(backWords(w.cfg.Daemon.Backend)+"; let whoever did it spare "+placeOf(w.cfg.Daemon.Backend), "by", by)
	}
}
