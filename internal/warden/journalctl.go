//go:build linux

package warden

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// journalArgs asks for what the kernel says from now on. The journal itself notes
// that it was the kernel, which no program's message can do (systemd.journal-fields(7),
// _TRANSPORT); facility 0 leaves out what programs write to /dev/kmsg. The time is in
// seconds since 1970, which need no zone.
var journalArgs = []string{
	"journalctl", "--follow", "--lines=0", "--quiet", "--no-pager", "--no-hostname", "--output=short-unix", "_TRANSPORT=kernel", "SYSLOG_FACILITY=0",
}

// journalGroup may read the journal.
const journalGroup = "systemd-journal"

const (
	// shortestPause is between journalctl's end and its next start; it doubles up to
	// longestPause while it ends at once.
	shortestPause = time.Second
	longestPause  = time.Minute
)

// followJournal keeps a journalctl running, which writes into the pipe itself.
func (f *followed) followJournal(log *slog.Logger) error {
	paths := []string{"/usr/bin/journalctl", "/bin/journalctl"}
	i := slices.IndexFunc(paths, func(p string) bool { return unix.Access(p, unix.X_OK) == nil })
	if i < 0 {
		return errors.New("there is no journalctl to read the journal with; give log_file the path of a log, or \"kernel\"")
	}
	ctx, cancel := context.WithCancel(context.Background())
	f.cancel, f.ended = cancel, make(chan struct{})
	go func() {
		defer close(f.ended)
		for pause := shortestPause; ctx.Err() == nil; pause = min(2*pause, longestPause) {
			began := time.Now()
			err := f.readJournal(ctx, paths[i])
			if ctx.Err() != nil {
				return
			}
			if time.Since(began) > longestPause {
				pause = shortestPause
			}
			log.Warn("the journal is not read, and is tried again; knocks made meanwhile are lost", "why", err, "in", pause)
			f.pipe.Torn()
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
		}
	}()
	return nil
}

// errNoJournal keeps journalctl from waiting for ever: it looks for journals only at its
// start, and with none to follow it says nothing.
var errNoJournal = errors.New("there is no system.journal below /var/log/journal or /run/log/journal; start systemd-journald, or give log_file the path of a log, or \"kernel\"")

// readJournal runs one journalctl until it ends or ctx does.
func (f *followed) readJournal(ctx context.Context, path string) error {
	persistent, _ := filepath.Glob("/var/log/journal/*/system.journal")
	volatile, _ := filepath.Glob("/run/log/journal/*/system.journal")
	if len(persistent)+len(volatile) == 0 {
		return errNoJournal
	}
	ended := make(chan error)
	go onSpareThread(func() {
		c := &child{what: "journalctl", ended: make(chan struct{}), pidfd: -1}
		raw, err := f.pipe.Write.SyscallConn()
		if err != nil {
			ended <- err
			return
		}
		var failed error
		if err := raw.Control(func(fd uintptr) { failed = c.startReader(path, journalArgs, fd, journalGroups()) }); err != nil || failed != nil {
			ended <- errors.Join(err, failed)
			return
		}
		stop := context.AfterFunc(ctx, c.kill)
		defer stop()
		c.reap()
		ended <- c.err
	})
	return <-ended
}

// journalGroups gives the group with which a reader of the journal needs no root;
// nil: there is none, or we can't change to it.
func journalGroups() []uint32 {
	g, err := user.LookupGroup(journalGroup)
	if err != nil || os.Geteuid() != 0 {
		return nil
	}
	gid, err := strconv.ParseUint(g.Gid, 10, 32)
	if err != nil {
		return nil
	}
	return []uint32{uint32(gid)}
}
