//go:build linux

package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/engine"
	"github.com/sallyport/sallyport/internal/warden"
)

type serveCmd struct {
	Config    string        `short:"c" default:"/etc/sallyport/sallyport.toml" placeholder:"FILE" help:"The config (default ${default})."`
	Observe   bool          `help:"Change nothing; tell what would be opened and refused."`
	UndoAfter time.Duration `placeholder:"60s" help:"Undo the hiding after this time unless 'sallyport confirm' is run: use it the first time."`
}

// Run serves until SIGTERM or SIGINT. SIGHUP reads the config again.
func (c *serveCmd) Run(u *ui) error {
	switch {
	case c.UndoAfter < 0 || c.UndoAfter > 0 && c.UndoAfter < 5*time.Second:
		return usageError{errors.New("--undo-after: give at least 5s, or you can't confirm in time")}
	case c.Observe && c.UndoAfter > 0:
		return usageError{errors.New("--observe changes nothing, so there is nothing for --undo-after to undo; leave one out")}
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	log := u.detach(underJournal())
	reload := make(chan os.Signal, 1)
	signal.Notify(reload, syscall.SIGHUP)
	return configError(warden.Serve(ctx, warden.Options{
		Config: c.Config, Observe: c.Observe, UndoAfter: c.UndoAfter, Log: log,
	}, reload))
}

// configError makes a mistake in the config, or in the files that it names, one
// of the command line's kind.
func configError(err error) error {
	if _, config := errors.AsType[config.Errors](err); config {
		return usageError{err}
	}
	return err
}

// engineCmd is what the warden starts: nobody types it. It says which descriptors
// the engine has got.
type engineCmd struct {
	NoCapture bool `name:"no-capture"`
	Journal   bool
	Sockets   int
}

// Run is the engine. Its standard error is a pipe to the warden, which reads
// each line's level from its beginning.
func (c *engineCmd) Run(u *ui) error {
	return engine.Main(u.detach(true), engine.Files{Capture: !c.NoCapture, Journal: c.Journal, Sockets: c.Sockets})
}

// detach gives a logger, and lets the daemon outlive whoever reads its standard
// error: no write waits for him, and none ends the program when he is gone (Go
// dies of SIGPIPE on that descriptor alone, see os/signal).
func (u *ui) detach(journal bool) *slog.Logger {
	signal.Ignore(syscall.SIGPIPE)
	h := &logHandler{ui: u, journal: journal}
	u.err = &logQueue{to: u.err, warning: h.beginning(slog.LevelWarn)}
	return slog.New(h)
}
