//go:build linux

package warden

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/sallyport/sallyport/internal/border"
	"github.com/sallyport/sallyport/internal/config"
)

// ErrUndone says that a trial (UndoAfter) ended without a confirmation and that
// nothing is hidden any more.
var ErrUndone = errors.New("nobody confirmed in time: nothing is hidden any more")

// beginTrial notes in the state directory that this config is on trial, so that
// 'sallyport hide' does not make it last: it was never confirmed.
func (w *warden) beginTrial() error {
	if w.cfg.Daemon.Backend == config.Commands {
		return errors.New("there is nothing to undo: with backend = \"command\" nothing is hidden; leave --undo-after out")
	}
	if there, err := w.table.Exists(); err == nil && there {
		w.log.Warn("a table is in force already: when the trial ends unconfirmed, that is gone too and every port is public")
	}
	w.trialEnds = time.Now().Add(w.options.UndoAfter)
	return os.WriteFile(filepath.Join(w.cfg.Daemon.StateDir, onTrial), nil, 0o600)
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

// confirm ends the trial: the hiding becomes lasting.
func (w *warden) confirm(m *border.Confirm, now time.Time) *border.Done {
	done := &border.Done{ID: m.ID, Result: border.Confirmed}
	switch {
	case !w.gate.tickets.use(m.Ticket, now):
		done.Result = border.NoTicket
		return done
	case w.trialEnds.IsZero() || w.down:
		done.Result = border.NothingToConfirm
		return done
	}
	ends := w.trialEnds
	w.trialEnds = time.Time{}
	if err := errors.Join(w.hide(w.cfg), w.keep()); err != nil {
		// What the kernel was told may be lasting already; on trial it must not be.
		w.trialEnds = ends
		if err := w.hide(w.cfg); err != nil {
			w.log.Error("the hiding could not be put back on trial; 'sallyport down' undoes it", "error", err)
		}
		w.log.Error("the confirmation could not be carried out: the trial goes on", "error", err)
		done.Result = border.Failed
		return done
	}
	w.log.Info("confirmed: the hiding stays")
	return done
}
