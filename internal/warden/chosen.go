//go:build linux

package warden

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/sallyport/sallyport/internal/border"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/warden/internal/capture"
)

// openChosen opens what the owner's own rules show packets through. Nothing of ours
// would pass these, so there is no watch packet; its token is random all the same,
// so that no stranger's packet passes for it.
func (w *warden) openChosen() (err error) {
	w.watch = new(watch)
	rand.Read(w.watch.token[:])
	if w.cfg.Daemon.Source == config.NFLOG {
		w.nflog, err = capture.OpenNFLOG(w.cfg.Daemon.NFLOGGroup)
		return err
	}
	w.lines, err = followLog(w.cfg.Daemon.LogFile, w.log)
	return err
}

// seen is the descriptor that packets are seen through; -1: none, or sockets.
func (w *warden) seen() int {
	switch {
	case w.lines != nil:
		return w.lines.pipe.Read
	case w.nflog >= 0:
		return w.nflog
	}
	return w.capture
}

func (w *warden) closeChosen() {
	if w.nflog >= 0 {
		closeFd(w.nflog)
	}
	if w.lines != nil {
		w.lines.close()
	}
}

// facts is what the engine must know of the host: with a log as the source also what
// lines call it and its interfaces, and what their local time is.
func (w *warden) facts() (border.HostFacts, error) {
	facts, err := hostFacts(w.cfg.Daemon.Interfaces)
	if err != nil || w.cfg.Daemon.Source != config.Log {
		return facts, err
	}
	if facts.Name, err = os.Hostname(); err != nil {
		return facts, fmt.Errorf("this host's name: %w", err)
	}
	links, err := netlink.LinkList()
	if err != nil {
		return facts, fmt.Errorf("this host's interfaces: %w", err)
	}
	facts.Zone = zones(time.Now())
	facts.Links = map[string]int{}
	for _, l := range links {
		facts.Links[l.Attrs().Name] = l.Attrs().Index
	}
	return facts, nil
}

// zones gives how many seconds local time is ahead of UTC, around now: the facts are
// looked at once a minute and a line's time may be a minute from now, so that the end
// of summer time comes between two looks.
func zones(now time.Time) (ahead [2]int) {
	_, ahead[0] = now.Add(-2 * time.Minute).Zone()
	_, ahead[1] = now.Add(2 * time.Minute).Zone()
	return ahead
}

// followed is a log that goes to the engine through a pipe.
type followed struct {
	pipe   *capture.Pipe
	file   *capture.Follower  // nil: journalctl writes into the pipe itself
	cancel context.CancelFunc // of journalctl
	ended  chan struct{}      // closed when it is not started again
}

// followLog follows the file, the kernel's buffer or the journal from now on.
func followLog(path string, log *slog.Logger) (f *followed, err error) {
	f = &followed{}
	if f.pipe, err = capture.NewPipe(path == config.LogJournal); err != nil {
		return nil, err
	}
	switch path {
	case config.LogKernel:
		f.file, err = capture.FollowKernel(f.pipe, log)
	case config.LogJournal:
		err = f.followJournal(log)
	default:
		f.file, err = capture.FollowFile(path, f.pipe, log)
	}
	if err != nil {
		f.pipe.Close()
		return nil, err
	}
	return f, nil
}

// close ends the following. The pipe goes first: a follower may wait in it.
func (f *followed) close() {
	if f.cancel != nil {
		f.cancel()
		select {
		case <-f.ended:
		case <-time.After(engineEnd): // without CAP_KILL it ends with its next line
		}
	}
	f.pipe.Close()
	if f.file != nil {
		f.file.Close()
	}
}
