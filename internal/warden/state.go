//go:build linux

package warden

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/warden/internal/iptables"
	"github.com/sallyport/sallyport/internal/warden/internal/nft"
)

// lastGood is the name of the last config that was in use, in the state
// directory. Hide works from it when nothing else can.
const lastGood = "last-good.toml"

// onTrial marks a config that was never confirmed, in the state directory.
const onTrial = "on-trial"

// DefaultStateDir is where the state lives unless a config says otherwise.
const DefaultStateDir = "/var/lib/sallyport"

// prepareState makes sure that the state directory is there and can be
// written, before anything is hidden: after a reboot the hiding comes from it.
func prepareState(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("the state directory can't be made, so the ports would not stay hidden after a reboot: %w; make it, or set state_dir", err)
	}
	probe, err := os.CreateTemp(dir, ".probe-*")
	if err != nil {
		return fmt.Errorf("the state directory can't be written, so the ports would not stay hidden after a reboot: %w; make it writable for root, or set state_dir", err)
	}
	probe.Close()
	return os.Remove(probe.Name())
}

// keepState replaces the last good config.
func keepState(dir string, text []byte) error {
	if err := replace(dir, lastGood, text); err != nil {
		return fmt.Errorf("the last good config can't be kept: %w", err)
	}
	if err := os.Remove(filepath.Join(dir, onTrial)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the config is still marked as on trial: %w", err)
	}
	return nil
}

// Hide loads the hidden table from the last good config, or, where there is
// none, from the config file, and leaves. A boot calls it before the network is
// up. Grants that the table has are kept.
func Hide(stateDir, path string, log *slog.Logger) error {
	if serving() {
		return errors.New("a daemon serves this machine and hides what its config says; there is nothing left to hide")
	}
	from := filepath.Join(stateDir, lastGood)
	cfg, err := config.Load(from)
	if err != nil {
		if _, trial := os.Stat(filepath.Join(stateDir, onTrial)); trial == nil {
			return errors.New("nothing was hidden: the config was on trial and nobody confirmed it; run 'sallyport serve' with it")
		}
		if !errors.Is(err, fs.ErrNotExist) {
			log.Warn("the last good config is of no use, so the config file is tried", "error", err)
		}
		from = path
		cfg, err = config.Load(path)
	}
	if err != nil {
		return fmt.Errorf("nothing was hidden: %w", err)
	}
	if cfg.Daemon.Backend == config.Commands {
		log.Info("there is nothing to hide: with backend = \"command\" your own firewall closes the ports", "config", from)
		return nil
	}
	table, err := openBackend(cfg, log)
	if err != nil {
		return fmt.Errorf("nothing was hidden: %w", err)
	}
	defer table.Close()
	live, err := nft.Live(cfg)
	if err == nil {
		err = table.Apply(cfg, nft.Options{Live: live})
	}
	if err != nil {
		return fmt.Errorf("nothing was hidden: %w", err)
	}
	log.Info("hidden until 'sallyport down'; knocks open nothing before 'sallyport serve' runs", "config", from, "services", len(cfg.Services))
	return nil
}

// stayHidden is what a start with a broken config does: ports that the last
// good config hid must not come up public because of a typing mistake.
func stayHidden(o Options) error {
	if !o.hides() || o.UndoAfter > 0 {
		return nil
	}
	if _, err := os.Stat(filepath.Join(DefaultStateDir, lastGood)); err != nil {
		return nil
	}
	if serving() {
		return nil // perhaps on trial: its table is its own
	}
	return Hide(DefaultStateDir, o.Config, o.Log)
}

// Unhide removes the table, and the last good config that would bring it back at the
// next boot, if that config begins with mark, which says whose it is. Where a daemon
// serves it does nothing. The error says that ports are hidden still.
func Unhide(mark string) (bool, error) {
	if serving() {
		return false, nil
	}
	kept := filepath.Join(DefaultStateDir, lastGood)
	text, err := os.ReadFile(kept)
	if err != nil || !strings.HasPrefix(string(text), mark) {
		return false, leftHidden()
	}
	if _, err := Down(); err != nil {
		return false, err
	}
	if err := os.Remove(kept); err != nil {
		return true, fmt.Errorf("the next boot hides them again: %w", err)
	}
	return true, nil
}

// leftHidden is an error if there is a table. Who may not look is told nothing.
func leftHidden() error {
	if iptables.Present() {
		return errors.New("the chains SALLYPORT of iptables were made for another config")
	}
	table, err := nft.Open()
	if err != nil {
		return nil
	}
	defer table.Close()
	if there, err := table.Exists(); err != nil || !there {
		return nil
	}
	return errors.New("the table inet sallyport was made for another config")
}

// Down removes the table, and the chains of iptables: every port is public again, as if
// Sallyport had never been there. It reports whether there was anything.
func Down() (bool, error) {
	table, err := downTable()
	if err != nil {
		return table, err
	}
	chains, err := downChains(serving())
	return table || chains, err
}
