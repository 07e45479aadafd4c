//go:build linux

package engine

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/internal/border"
	"github.com/sallyport/sallyport/internal/control"
	"github.com/sallyport/sallyport/internal/engine/internal/sandbox"
	"github.com/sallyport/sallyport/internal/engine/internal/source"
)

// The descriptors that the warden's start gives the engine.
const (
	borderFd  = 3
	captureFd = 4
)

// tick is how often the engine looks at the time when nothing arrives.
const tick = time.Second

// reportEvery bounds the lines that strangers can cause in the log.
const reportEvery = 10 * time.Second

// loop is one goroutine around poll(2): packets, the border and the control
// connections take turns, so nothing needs a lock and nothing is reordered.
type loop struct {
	engine  *Engine
	border  *border.Conn
	unsent  border.Message // the newest answer to a generation, until it is sent
	source  *source.Source
	clients []*client
	pace    pace      // of events that strangers cause
	noticed time.Time // when followers last heard what they missed
	proofs  []control.Proof
	polled  []unix.PollFd

	reported time.Time
	last     counts
	evicted  uint64
}

// Main confines the process and runs the engine until the warden is gone. It
// refuses to run unconfined.
func Main(log *slog.Logger) error {
	report, err := sandbox.Enter(sandbox.Files{Border: borderFd, Capture: captureFd})
	if err != nil {
		return fmt.Errorf("the engine will not run unconfined: %w", err)
	}
	conn := border.NewConn(borderFd)
	src, err := source.New(captureFd)
	if err != nil {
		return err
	}
	l := &loop{engine: New(conn, log), border: conn, source: src, reported: time.Now()}
	for _, p := range report {
		l.proofs = append(l.proofs, control.Proof{Part: p.Part, Proven: p.Proven, Why: p.Why})
		if !p.Proven {
			log.Warn("a part of the sandbox is absent: the engine has no privilege all the same, but one wall less", "part", p.Part, "why", p.Why)
		}
	}
	return l.run()
}

func (l *loop) run() error {
	for {
		l.polled = append(l.polled[:0],
			unix.PollFd{Fd: borderFd, Events: l.borderEvents()},
			unix.PollFd{Fd: captureFd, Events: unix.POLLIN})
		for _, c := range l.clients {
			l.polled = append(l.polled, unix.PollFd{Fd: int32(c.fd), Events: c.events()})
		}
		if _, err := unix.Poll(l.polled, int(tick/time.Millisecond)); err != nil && err != unix.EINTR {
			return fmt.Errorf("poll: %w", err)
		}
		// The clients' places in polled count only until one is added or closed.
		for i, c := range l.clients {
			l.serve(c, l.polled[2+i].Revents)
		}
		if l.polled[0].Revents&unix.POLLOUT != 0 {
			if err := l.reply(l.unsent); err != nil {
				return err
			}
		}
		if l.polled[0].Revents&^unix.POLLOUT != 0 {
			if err := l.messages(); err != nil {
				return err
			}
		}
		// Last, because a flood's requests fill the room that an answer needs.
		if l.polled[1].Revents != 0 {
			if err := l.source.Drain(l.engine.Packet); err != nil {
				return err
			}
		}
		now := time.Now()
		l.tidy(now)
		l.report(now)
	}
}

func (l *loop) borderEvents() int16 {
	if l.unsent != nil {
		return unix.POLLIN | unix.POLLOUT
	}
	return unix.POLLIN
}

// messages takes what the warden sent. The error is io.EOF when it is gone.
func (l *loop) messages() error {
	for {
		m, fd, err := l.border.Receive()
		switch {
		case errors.Is(err, unix.EAGAIN):
			return nil
		case err != nil:
			return err
		}
		if err := l.message(m, fd); err != nil {
			return err
		}
	}
}

func (l *loop) message(m border.Message, fd int) error {
	switch m := m.(type) {
	case *border.Config:
		var g border.Generation
		if err := border.ReadJSON(fd, &g); err != nil {
			l.engine.log.Error("the engine could not read the new config and goes on with the one before", "error", err)
			return l.reply(&border.Refused{Generation: m.Generation})
		}
		l.engine.Use(m.Generation, &g, m.Watch)
		return l.reply(&border.Took{Generation: m.Generation})
	case *border.Host:
		var facts border.HostFacts
		if err := border.ReadJSON(fd, &facts); err != nil {
			return err
		}
		l.engine.Host(&facts)
	case *border.Control:
		l.accept(fd, m.Ticket)
	case *border.Listing:
		var listed border.Listed
		if err := border.ReadJSON(fd, &listed); err != nil {
			return err
		}
		l.listing(m.ID, &listed)
	case *border.Done:
		l.engine.Done(m)
	default:
		return border.ErrMessage // only the engine sends the others
	}
	return nil
}

// reply answers a generation of the config. The queue may be full of requests
// that a flood caused; the warden reads on while it waits for this answer, so
// it is kept until there is room.
func (l *loop) reply(m border.Message) error {
	l.unsent = nil
	err := l.border.Send(m)
	if errors.Is(err, unix.EAGAIN) {
		l.unsent = m
		return nil
	}
	return err
}

// report logs what strangers cause, at most one line of each kind an interval.
func (l *loop) report(now time.Time) {
	if now.Sub(l.reported) < reportEvery {
		return
	}
	l.reported = now
	l.statistics()
	c, log := &l.engine.counts, l.engine.log
	if n := c.dropped - l.last.dropped; n > 0 {
		log.Warn("the capture dropped packets: knocks among them were lost and their senders must repeat them; packets to knock ports arrive faster than this machine reads them",
			"dropped", n, "received", c.received-l.last.received)
	}
	if n := c.unanswered - l.last.unanswered; n > 0 {
		log.Warn("the warden did not keep up: these requests opened nothing", "requests", n)
	}
	l.last = *c
	if l.engine.sequences == nil {
		return
	}
	if n := l.engine.sequences.Evicted() - l.evicted; n > 0 {
		log.Warn("the table of half-done sequences is full: the least advanced attempts make room; somebody sends first steps from many addresses", "attempts lost", n)
	}
	l.evicted = l.engine.sequences.Evicted()
}

func (l *loop) statistics() {
	received, dropped := l.source.Stats()
	l.engine.counts.received += uint64(received)
	l.engine.counts.dropped += uint64(dropped)
}

func (l *loop) status() *control.Status {
	l.statistics()
	e, c := l.engine, &l.engine.counts
	return &control.Status{
		Since: e.start, Generation: e.generation, Observe: e.observe,
		Services: len(e.cfg.Services), Knocks: len(e.cfg.Knocks),
		Watched: e.watched, Attempts: e.sequences.Attempts(), Sandbox: l.proofs,
		Counters: map[string]uint64{
			"packets": c.packets, "declined": c.declined, "elsewhere": c.elsewhere,
			"steps": c.steps, "lost": c.lost, "knocks": c.knocks,
			"requests": c.asked, "unanswered": c.unanswered,
			"captured": c.received, "dropped": c.dropped, "evicted": e.sequences.Evicted(),
		},
	}
}
