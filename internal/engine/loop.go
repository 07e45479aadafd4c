//go:build linux

package engine

import (
	"errors"
	"fmt"
	"log/slog"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/internal/border"
	"github.com/sallyport/sallyport/internal/control"
	"github.com/sallyport/sallyport/internal/engine/internal/sandbox"
	"github.com/sallyport/sallyport/internal/engine/internal/source"
)

// The descriptors that the warden's start gives the engine. Behind them are
// the sockets of daemon.source = "socket".
const (
	borderFd  = 3
	captureFd = 4
	journalFd = 5 // and 6
	socketFd  = 7
)

// Files says which of its descriptors the engine has, beside the border.
type Files struct {
	Capture bool
	NFLOG   bool // in the place of Capture, as is Log
	Log     bool
	Journal bool
	Sockets int
	Replay  bool // the capture is a file, which is played to its end
}

// reportEvery bounds the lines that strangers can cause in the log.
const reportEvery = 10 * time.Second

// shortWait is what the log may wait for the packets, see loop.wait.
const shortWait = 2 * time.Millisecond

// loop is one goroutine around poll(2): packets, the border and the control
// connections take turns, so nothing needs a lock and nothing is reordered.
type loop struct {
	engine   *Engine
	border   *border.Conn
	unsent   border.Message // the newest answer to a generation, until it is sent
	source   packets        // nil: there are sockets instead
	log      *source.Log    // source, where that is a log
	observe  func(b []byte, ifindex int)
	sockets  []*source.Socket
	clients  []*client
	pace     pace      // of events that strangers cause
	explains pace      // of packets that are explained
	noticed  time.Time // when followers last heard what they missed
	proofs   []control.Proof
	polled   []unix.PollFd
	brisk    bool // the last wait was shorter than shortWait

	reported time.Time
	last     counts
	numbers  map[string]uint64 // at the last report
}

// packets are what descriptor 4 is: a packet socket, an NFLOG group or a log.
type packets interface {
	Drain(observe func(b []byte, ifindex int)) error
	Stats() (received, dropped uint32)
}

// Main confines the process and runs the engine until the warden is gone. It
// refuses to run unconfined.
func Main(log *slog.Logger, files Files) error {
	if files.Replay {
		return replayFile(log)
	}
	fds, l := sandbox.Files{Border: borderFd, Capture: -1, Journal: [2]int{-1, -1}}, &loop{reported: time.Now()}
	switch {
	case files.Capture:
		fds.Capture = captureFd
	case files.NFLOG:
		fds.NFLOG = captureFd
	case files.Log:
		fds.Log = captureFd
	}
	if files.Journal {
		fds.Journal = [2]int{journalFd, journalFd + 1}
	}
	for i := range files.Sockets {
		fds.Sockets = append(fds.Sockets, socketFd+i)
	}
	if err := l.openSources(&fds); err != nil {
		return err
	}
	report, err := sandbox.Enter(fds)
	if err != nil {
		return fmt.Errorf("the engine will not run unconfined: %w", err)
	}
	l.border = border.NewConn(borderFd)
	l.engine = New(l.border, fds.Journal, log)
	l.observe = l.engine.Packet
	if !files.Capture {
		l.observe = l.chosen
	}
	for _, p := range report {
		l.proofs = append(l.proofs, control.Proof{Part: p.Part, Proven: p.Proven, Why: p.Why})
		if !p.Proven {
			log.Warn("a part of the sandbox is absent: the engine has no privilege all the same, but one wall less", "part", p.Part, "why", p.Why)
		}
	}
	return l.run()
}

// openSources looks at what the descriptors are, which the sandbox forbids
// later.
func (l *loop) openSources(fds *sandbox.Files) (err error) {
	switch captureFd {
	case fds.Capture:
		l.source, err = source.New(captureFd)
	case fds.NFLOG:
		l.source, err = source.NewNFLOG(captureFd)
	case fds.Log:
		l.log, err = source.NewLog(captureFd)
		l.source = l.log
	}
	if err != nil {
		return err
	}
	for _, fd := range fds.Sockets {
		s, err := source.NewSocket(fd)
		if err != nil {
			return err
		}
		l.sockets = append(l.sockets, s)
	}
	return nil
}

func (l *loop) run() error {
	for {
		l.wanted()
		if err := l.wait(); err != nil && err != unix.EINTR {
			return fmt.Errorf("poll: %w", err)
		}
		// The clients' places in polled count only until one is added or closed.
		for i, c := range l.clients {
			l.serve(c, l.polled[1+i].Revents)
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
		if err := l.drain(); err != nil {
			return err
		}
		now := time.Now()
		l.engine.tick(now)
		l.tidy(now)
		l.report(now)
		l.engine.refusals.report(l.engine.log, now)
	}
}

// wait waits for what there is to do, at most a tick. While packets follow closely
// it first waits for a short time without Go's scheduler knowing, which would take
// this thread's place away and give it back with the next packet: at a thousand
// packets a second that costs more than the packets. Goroutines that write the log
// wait meanwhile, and where packets never let it come to the second wait, the
// runtime interrupts for them every 10 ms.
func (l *loop) wait() error {
	if l.brisk {
		n, err := l.waitUnseen()
		if n > 0 || err != nil {
			return err
		}
	}
	began := time.Now()
	_, err := unix.Poll(l.polled, int(tick/time.Millisecond))
	l.brisk = time.Since(began) < shortWait
	return err
}

// waitUnseen gives how much of polled is ready, after shortWait 0.
func (l *loop) waitUnseen() (int, error) {
	short := unix.NsecToTimespec(int64(shortWait)) // ppoll(2) writes into it
	// The one of package syscall, because short must not move with the stack.
	n, _, errno := syscall.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&l.polled[0])), uintptr(len(l.polled)),
		uintptr(unsafe.Pointer(&short)), 0, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// wanted is what the loop waits for: the border, the clients, the packets.
func (l *loop) wanted() {
	l.polled = append(l.polled[:0], unix.PollFd{Fd: borderFd, Events: l.borderEvents()})
	for _, c := range l.clients {
		l.polled = append(l.polled, unix.PollFd{Fd: int32(c.fd), Events: c.events()})
	}
	if l.source != nil {
		l.polled = append(l.polled, unix.PollFd{Fd: captureFd, Events: unix.POLLIN})
	}
	for i := range l.sockets {
		l.polled = append(l.polled, unix.PollFd{Fd: int32(socketFd + i), Events: unix.POLLIN})
	}
}

// drain reads the packets that wait.
func (l *loop) drain() error {
	for _, p := range l.polled {
		switch {
		case p.Revents == 0:
		case p.Fd == captureFd && l.source != nil:
			if err := l.source.Drain(l.observe); err != nil {
				return err
			}
		case p.Fd >= socketFd && int(p.Fd) < socketFd+len(l.sockets):
			if err := l.sockets[p.Fd-socketFd].Drain(l.engine.Datagram); err != nil {
				return err
			}
		}
	}
	return nil
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
		if err := l.engine.Use(m.Generation, &g, m.Watch); err != nil {
			l.engine.log.Error("the engine could not use the new config and goes on with the one before", "error", err)
			return l.reply(&border.Refused{Generation: m.Generation})
		}
		l.use()
		return l.reply(&border.Took{Generation: m.Generation})
	case *border.Host:
		var facts border.HostFacts
		if err := border.ReadJSON(fd, &facts); err != nil {
			return err
		}
		l.engine.Host(&facts)
		l.use()
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
		log.Warn(l.lossWords(), "dropped", n, "received", c.received-l.last.received)
	}
	if n := c.untimely - l.last.untimely; n > 0 {
		log.Warn("the log has lines of another time than now, which are no knocks: where the file was not edited or restored, the logger's clock or time zone is not this daemon's, which reads its own zone at a start", "lines", n)
	}
	if n := c.unanswered - l.last.unanswered; n > 0 {
		log.Warn("the warden did not keep up: these requests opened nothing", "requests", n)
	}
	l.last = *c
	l.reportFull()
	l.engine.told.report(log)
}

// fullTables are the tables that strangers can fill, by the counter of what makes room.
var fullTables = []struct{ counter, text string }{
	{"evicted", "the table of half-done sequences is full: the least advanced attempts make room; somebody sends first steps from many addresses"},
	{"otp_evicted", "a table of half-done one-time ports or codes is full: attempts that were heard longest ago make room; somebody sends packets to their ports from many addresses"},
	{"encoded_evicted", "the table of half-collected messages is full: those that were heard longest ago make room; somebody sends packets to their ports from many addresses"},
}

// reportFull tells of tables that were full since the last report. The counter of a type
// that a reload took out begins anew.
func (l *loop) reportFull() {
	numbers := l.engine.numbers()
	for _, t := range fullTables {
		if now, before := numbers[t.counter], l.numbers[t.counter]; now > before {
			l.engine.log.Warn(t.text, "attempts lost", now-before)
		}
	}
	l.numbers = numbers
}

func (l *loop) statistics() {
	if l.source == nil {
		return
	}
	received, dropped := l.source.Stats()
	l.engine.counts.received += uint64(received)
	l.engine.counts.dropped += uint64(dropped)
	l.declinedLines()
}

func (l *loop) status() *control.Status {
	l.statistics()
	e, numbers := l.engine, l.engine.numbers()
	attempts := int(numbers["attempts"])
	delete(numbers, "attempts")
	return &control.Status{
		Since: e.start, Generation: e.generation, Observe: e.observe,
		Services: len(e.cfg.Services), Knocks: len(e.cfg.Knocks),
		Watched: e.watched, Attempts: attempts, Sandbox: l.proofs, Counters: numbers,
	}
}

// numbers is every counter by its name in status.
func (e *Engine) numbers() map[string]uint64 {
	c := &e.counts
	numbers := map[string]uint64{
		"packets": c.packets, "declined": c.declined, "elsewhere": c.elsewhere, "knocks": c.knocks,
		"requests": c.asked, "unanswered": c.unanswered, "captured": c.received, "dropped": c.dropped,
		"steps": 0, "lost": 0, "evicted": 0, // also where no knock is a sequence
	}
	for _, r := range e.knocks {
		r.Count(numbers)
	}
	return numbers
}
