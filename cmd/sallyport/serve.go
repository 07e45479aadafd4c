//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/engine"
	"github.com/sallyport/sallyport/internal/warden"
)

// defaultConfig is where the config lies unless another is named.
const defaultConfig = "/etc/sallyport/sallyport.toml"

type serveCmd struct {
	Config    string        `short:"c" placeholder:"FILE" help:"The config (default /etc/sallyport/sallyport.toml)."`
	Observe   bool          `help:"Change nothing; tell what would be opened and refused."`
	UndoAfter time.Duration `placeholder:"60s" help:"Undo the hiding after this time unless 'sallyport confirm' is run: use it the first time."`

	Knockd       string   `placeholder:"FILE" help:"Serve a knockd.conf instead."`
	Native       bool     `help:"With --knockd: let the kernel open and close ports where the commands are known to do that."`
	StrictKnockd bool     `help:"With --knockd: follow knockd's own rules where these differ."`
	Interface    []string `short:"i" placeholder:"NAME" help:"With --knockd: hear knocks on this interface only; may be repeated."`
}

// Run serves until SIGTERM or SIGINT. SIGHUP reads the config again.
func (c *serveCmd) Run(u *ui) error {
	switch {
	case c.UndoAfter < 0 || c.UndoAfter > 0 && c.UndoAfter < 5*time.Second:
		return usageError{errors.New("--undo-after: give at least 5s, or you can't confirm in time")}
	case c.Observe && c.UndoAfter > 0:
		return usageError{errors.New("--observe changes nothing, so there is nothing for --undo-after to undo; leave one out")}
	case c.Knockd != "":
		return c.serveKnockd(u)
	case c.Native || c.StrictKnockd || len(c.Interface) > 0:
		return usageError{errors.New("--native, --strict-knockd and --interface go with --knockd FILE; a config of ours has keys for what they do")}
	}
	if c.Config == "" {
		c.Config = defaultConfig
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

// serveKnockd is the daemon that the name knockd has, with our exit statuses.
func (c *serveCmd) serveKnockd(u *ui) error {
	switch {
	case c.Config != "":
		return usageError{errors.New("--knockd serves a knockd.conf in place of a config of ours; leave --config or --knockd out")}
	case c.UndoAfter > 0 && !c.Native:
		return usageError{errors.New("--undo-after undoes what --native hides, and without that --knockd hides nothing; leave it out")}
	}
	o := knockdOptions{config: c.Knockd, native: c.Native, strict: c.StrictKnockd, observe: c.Observe, undoAfter: c.UndoAfter}
	for _, list := range c.Interface {
		o.interfaces = append(o.interfaces, interfaceNames(list)...)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	return configError(o.serve(ctx, u))
}

// configError makes a mistake in the config, or in the files that it names, one
// of the command line's kind.
func configError(err error) error {
	if _, config := errors.AsType[config.Errors](err); config {
		return usageError{err}
	}
	return err
}

// runEngine is the engine. Its standard error is a pipe to the warden, which reads
// each line's level from its beginning.
func runEngine(u *ui, args []string) error {
	files, err := engineFiles(args)
	if err != nil {
		return usageError{err}
	}
	// It ends with the warden and not before: init scripts send their signals to every
	// process of the program (start-stop-daemon --exec, killall).
	signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	return engine.Main(u.detach(true), files)
}

// engineFiles reads the engine's command line, which says what descriptors it has got.
func engineFiles(args []string) (files engine.Files, err error) {
	files.Capture = true
	for _, arg := range args {
		switch name, value, _ := strings.Cut(arg, "="); name {
		case "--no-capture":
			files.Capture = false
		case "--nflog":
			files.Capture, files.NFLOG = false, true
		case "--log":
			files.Capture, files.Log = false, true
		case "--journal":
			files.Journal = true
		case "--replay":
			files.Replay = true
		case "--sockets":
			files.Sockets, err = strconv.Atoi(value)
		default:
			err = fmt.Errorf("the daemon starts the engine, and not with %q", arg)
		}
		if err != nil {
			return files, err
		}
	}
	return files, nil
}

// runSpawner starts the configured commands.
func runSpawner(*ui, []string) error { return warden.Spawner() }

// detach gives a logger, and lets the daemon outlive whoever reads its standard
// error: no write waits for him, and none ends the program when he is gone (Go
// dies of SIGPIPE on that descriptor alone, see os/signal).
func (u *ui) detach(journal bool) *slog.Logger {
	signal.Ignore(syscall.SIGPIPE)
	h := &logHandler{ui: u, journal: journal}
	u.err = &logQueue{to: u.err, warning: h.beginning(slog.LevelWarn)}
	return slog.New(h)
}
