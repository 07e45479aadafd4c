//go:build linux

package warden

import (
	"errors"
	"log/slog"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/warden/internal/command"
	"github.com/sallyport/sallyport/internal/warden/internal/iptables"
	"github.com/sallyport/sallyport/internal/warden/internal/nft"
)

// backend is what hides ports and opens them: our nftables table, our chains of
// iptables, or the owner's commands.
type backend interface {
	firewall
	Apply(*config.Config, nft.Options) error
	Stale(*config.Config) (bool, error)
	Exists() (bool, error)
	Down() error
	Close() error
}

// openBackend opens the one that a config names. That of commands can do nothing before
// it has a runner.
func openBackend(cfg *config.Config, log *slog.Logger) (backend, error) {
	switch cfg.Daemon.Backend {
	case config.Iptables:
		return opened(iptables.Open())
	case config.Commands:
		return &command.Backend{Log: log}, nil
	default:
		return opened(nft.Open())
	}
}

// placeOf is where a backend has its rules, in words. Commands are the owner's.
func placeOf(b config.Backend) string {
	if b == config.Iptables {
		return "the chains SALLYPORT of iptables and ip6tables, and their sets"
	}
	return "table inet sallyport"
}

// backWords say that a backend's rules were not as they were made.
func backWords(b config.Backend) string {
	if b == config.Iptables {
		return "the chains were removed or changed, or the rules around them; they are back with their grants"
	}
	return "the table was removed, and is back with its grants"
}

// missingHint is what to look at when a backend refuses a grant.
func missingHint(b config.Backend) string {
	switch b {
	case config.Commands:
		return "look at what open_command printed, in the lines before"
	case config.Iptables:
		return "if 'iptables -t mangle -S' or 'ip6tables -t mangle -S' names no chain SALLYPORT, send the daemon SIGHUP, which makes them again"
	}
	return "if 'nft list table inet sallyport' finds no table, send the daemon SIGHUP, which makes it again"
}

// opened keeps a nil pointer from looking like a backend.
func opened[T backend](b T, err error) (backend, error) {
	if err != nil {
		return nil, err
	}
	return b, nil
}

// leaveOthers takes away what a start with another backend left behind, once this one
// hides: nobody would open those rules any more.
func (w *warden) leaveOthers() {
	kept := w.cfg.Daemon.Backend
	var was bool
	var err error
	if kept != config.Nftables {
		was, err = downTable()
	}
	if kept != config.Iptables {
		chains, fault := downChains(false)
		was, err = was || chains, errors.Join(err, fault)
	}
	if err != nil {
		w.log.Error("rules of another backend are still there, and keep shut what a knock opens; 'sallyport down' and a start remove them", "error", err)
	} else if was {
		w.log.Info("the rules of the backend before are gone, with their grants", "backend", kept)
	}
}

// downTable removes the nftables table and reports whether there was one.
func downTable() (bool, error) {
	table, err := nft.Open()
	if errors.Is(err, nft.ErrAbsent) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer table.Close()
	there, err := table.Exists()
	if err != nil || !there {
		return false, err
	}
	return true, table.Down()
}

// downChains removes the chains of iptables and their sets, and reports whether there
// were any. A daemon that serves is told by a mark that it was meant so.
func downChains(served bool) (bool, error) {
	if !iptables.Present() {
		return false, nil
	}
	table, err := iptables.Open()
	if err != nil {
		return false, err
	}
	defer table.Close()
	if served {
		err = table.Mark()
	}
	return true, errors.Join(err, table.Down())
}
