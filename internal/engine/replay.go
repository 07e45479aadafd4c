//go:build linux

package engine

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/internal/border"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/control"
	"github.com/sallyport/sallyport/internal/engine/internal/packet"
	"github.com/sallyport/sallyport/internal/engine/internal/sandbox"
	"github.com/sallyport/sallyport/internal/engine/internal/source"
	"github.com/sallyport/sallyport/internal/sequence"
)

// replayLimit is how long the other side may take to say what is to be replayed.
const replayLimit = 30 * time.Second

// replayFile confines the process, as Main does, and plays a capture on descriptor
// captureFd. Strangers wrote the file, and who replays it may be root.
func replayFile(log *slog.Logger) error {
	files := sandbox.Files{Border: borderFd, Capture: captureFd, Journal: [2]int{-1, -1}}
	if _, err := sandbox.Enter(files); err != nil {
		return fmt.Errorf("the engine will not run unconfined: %w", err)
	}
	var t task
	if err := t.receive(border.NewConn(borderFd)); err != nil {
		return fmt.Errorf("the replay did not begin: %w", err)
	}
	out := bufio.NewWriterSize(t.conn, 64<<10)
	err := t.play(out, log)
	if err != nil {
		line, _ := json.Marshal(control.Answer{Error: err.Error()})
		out.Write(append(line, '\n'))
	}
	return out.Flush()
}

// task is what is to be replayed.
type task struct {
	generation *border.Generation
	host       *border.HostFacts // no addresses: they are to be guessed
	conn       connection
	request    control.Request
}

// connection is a descriptor that is read and written by the plain calls.
type connection int

// Read makes a connection an io.Reader.
func (c connection) Read(b []byte) (int, error) {
	n, err := unix.Read(int(c), b)
	if n == 0 && err == nil {
		err = io.EOF
	}
	return max(n, 0), err
}

// Write makes a connection an io.Writer.
func (c connection) Write(b []byte) (n int, err error) {
	for n < len(b) {
		wrote, err := unix.Write(int(c), b[n:])
		if err != nil && err != unix.EINTR {
			return n, err
		}
		n += max(wrote, 0)
	}
	return n, nil
}

// receive takes the config, the host and the connection that is to hear.
func (t *task) receive(from *border.Conn) error {
	for end := time.Now().Add(replayLimit); t.generation == nil || t.host == nil || t.request.Do == ""; {
		m, fd, err := from.Receive()
		switch {
		case errors.Is(err, unix.EAGAIN) && time.Now().Before(end):
			unix.Poll([]unix.PollFd{{Fd: int32(from.Fd()), Events: unix.POLLIN}}, int(tick/time.Millisecond))
			continue
		case err != nil:
			return err
		}
		if err := t.message(m, fd); err != nil {
			return err
		}
	}
	return nil
}

func (t *task) message(m border.Message, fd int) error {
	switch m.(type) {
	case *border.Config:
		t.generation = &border.Generation{}
		return border.ReadJSON(fd, t.generation)
	case *border.Host:
		t.host = &border.HostFacts{}
		return border.ReadJSON(fd, t.host)
	case *border.Control:
		t.conn = connection(fd)
		return t.ask()
	}
	return border.ErrMessage
}

// ask reads the one request: all events, or the explanation of one source.
func (t *task) ask() error {
	line, err := bufio.NewReaderSize(io.LimitReader(t.conn, control.MaxRequest), control.MaxRequest).ReadSlice('\n')
	if err != nil {
		return err
	}
	if t.request, err = control.Parse(bytes.TrimSpace(line)); err != nil {
		return err
	}
	if !t.request.Follows() {
		return border.ErrMessage
	}
	return nil
}

// The numbers of interfaces: one that is listened to, and one that is not. That
// of lo is its own.
const (
	listened   = 2
	unlistened = 3
)

// maxAssumed bounds the addresses that are taken as the host's.
const maxAssumed = 64

// player plays a capture to an engine whose clock is the packets' time.
type player struct {
	engine  *Engine
	cfg     *config.Config
	warden  *pretended
	out     *bufio.Writer
	now     time.Time
	host    border.HostFacts
	guess   bool // the host's addresses
	knocks  knockPackets
	packets uint64
	backs   uint64 // packets whose time is before that of the one before
	cut     uint64 // packets to knocks that the file has only the beginning of
}

// play plays the whole capture. Its error is for the person who gave the file.
func (t *task) play(out *bufio.Writer, log *slog.Logger) error {
	file, err := source.NewPcap(captureFd)
	if err != nil {
		return err
	}
	p := &player{cfg: &t.generation.Config, out: out, host: *t.host, guess: len(t.host.Addrs) == 0}
	p.knocks = newKnockPackets(p.cfg)
	p.hear()
	for {
		c, err := file.Next()
		if err != nil {
			return p.end(file, err, log, t)
		}
		if p.engine == nil {
			if err := p.begin(c.Time, log, t); err != nil {
				return err
			}
		}
		p.packet(c)
		if p.out.Buffered() > 0 {
			if err := p.out.Flush(); err != nil {
				return err // nobody reads any more
			}
		}
	}
}

// hear limits what is heard to the config's interfaces, whose names the capture
// may have. What the host sends itself a daemon hears only where they name lo.
func (p *player) hear() {
	p.host.Interfaces = []int{listened}
	if p.cfg.Daemon.Loopback() {
		p.host.Interfaces = append(p.host.Interfaces, loopbackIndex)
	}
}

// begin makes the engine, at the time of the first packet.
func (p *player) begin(at time.Time, log *slog.Logger, t *task) error {
	p.now = at
	p.warden = newPretended(p.cfg)
	p.engine = New(p.warden, [2]int{-1, -1}, log)
	p.engine.clock = func() time.Time { return p.now }
	p.engine.start = at.Truncate(time.Second)
	p.engine.ticked = at
	p.engine.Host(&p.host)
	if err := p.engine.Use(1, t.generation, [8]byte{}); err != nil {
		return err
	}
	if t.request.Do == control.DoExplain {
		p.engine.Explain([]netip.Addr{t.request.Addr}, func(_ netip.Addr, ev control.Event) { p.tell(ev) })
	} else {
		p.engine.Tell(p.tell)
	}
	return nil
}

func (p *player) tell(ev control.Event) {
	p.out.Write(append(eventLine(ev), '\n'))
}

// packet shows the engine one packet, at its own time.
func (p *player) packet(c *source.Captured) {
	p.packets++
	p.until(c.Time)
	if len(c.Packet) == 0 {
		return
	}
	if p.guess && len(p.host.Addrs) < maxAssumed {
		p.assume(c.Packet)
	}
	p.engine.Packet(c.Packet, p.index(c))
	if d := &p.engine.packet; d.Cut && p.knocks.has(d) {
		p.cut++
	}
	p.answers()
}

// longest is after how long of silence nothing changes any more: no attempt may
// take longer than ten minutes.
const longest = 11 * time.Minute

// until lets time pass. It never goes back: files that were put together of
// several have packets out of order.
func (p *player) until(at time.Time) {
	if at.Before(p.now) {
		p.backs++
		return
	}
	if quiet := at.Sub(p.now); quiet > longest {
		p.tick(p.now.Add(longest))
	} else {
		p.tick(at)
	}
	p.now = at
	p.engine.tick(p.now)
	p.answers()
}

// tick does what the loop does each second that nothing arrives.
func (p *player) tick(to time.Time) {
	for next := p.engine.ticked.Add(tick); next.Before(to); next = p.engine.ticked.Add(tick) {
		if next.Before(p.now) {
			next = p.now
		}
		p.now = next
		p.engine.tick(next)
		p.answers()
	}
}

// answers hands over what the warden would have said.
func (p *player) answers() {
	for _, m := range p.warden.take() {
		if done := p.warden.answer(m, p.now); done != nil {
			p.engine.Done(done)
		}
	}
}

// index gives the number of the interface that a packet was captured on. Where
// the file does not name it, it counts as listened to.
func (p *player) index(c *source.Captured) int {
	names := p.cfg.Daemon.Interfaces
	switch {
	case c.Loopback || c.Interface == "lo":
		return loopbackIndex
	case c.Interface == "" || c.Interface == "any" || len(names) == 0: // any: all at once
		return listened
	case !slices.Contains(names, c.Interface):
		return unlistened
	}
	return listened
}

// assume takes an address as the host's once a packet to it could be a knock's.
func (p *player) assume(b []byte) {
	var d packet.Packet
	if packet.Decode(b, &d); d.Proto == 0 || d.Dst.IsMulticast() || d.Dst.IsLoopback() || p.engine.ours(d.Dst) || !p.knocks.has(&d) {
		return
	}
	p.host.Addrs = append(p.host.Addrs, d.Dst)
	p.engine.Host(&p.host)
	p.tell(control.Event{Time: p.now, What: control.EventAssumed, Addr: d.Dst,
		Why: "packets to it are taken as to this host, because one could be a knock's; --host names the host's addresses"})
}

// knockPackets are the packets that could be some knock's. It is worked out once: the
// ports of a pool take a while, and a capture has packets to other hosts by the million.
type knockPackets struct {
	ports []config.PortRange
	steps []sequence.Step // without a port
	pings bool            // of any size
}

func newKnockPackets(cfg *config.Config) (w knockPackets) {
	for i := range cfg.Knocks {
		k := &cfg.Knocks[i]
		if k.Target.IsValid() {
			continue // which need not be the host's, and is heard as it is
		}
		w.ports = append(w.ports, k.Ports()...)
		w.pings = w.pings || slices.Contains(k.Transports, config.OverICMP)
		for _, s := range slices.Concat(k.Lines()...) {
			if !s.Proto.Ported() {
				w.steps = append(w.steps, s)
			}
		}
	}
	w.ports = config.JoinPorts(w.ports)
	return w
}

// has reports whether a packet goes to a port of some knock.
func (w *knockPackets) has(d *packet.Packet) bool {
	if d.Proto == sequence.TCP && !sequence.Opening.Match(d.Flags) {
		return false // the answers to our own connections go to any port
	}
	return config.HasPort(w.ports, d.Proto, d.DstPort) || w.pings && d.Proto == sequence.ICMP ||
		slices.ContainsFunc(w.steps, func(s sequence.Step) bool { return s.Proto == d.Proto && (s.Portless() || s.Port == d.DstPort) })
}

// end tells that the capture is over, and what was wrong with it.
func (p *player) end(file *source.Pcap, err error, log *slog.Logger, t *task) error {
	if p.engine == nil {
		// Even of a file without packets the config is tried.
		if err := p.begin(time.Unix(0, 0).UTC(), log, t); err != nil {
			return err
		}
	}
	last := p.now
	p.tick(p.now.Add(longest))
	p.tell(control.Event{Time: last, What: control.EventEnd, Count: p.packets, Why: p.flaws(file)})
	if err == io.EOF {
		return nil
	}
	return err
}

// flaws says which packets did not count, or not as they were.
func (p *player) flaws(file *source.Pcap) string {
	var all []string
	for _, f := range []struct {
		count uint64
		what  string
	}{
		{file.Unread, "%d packets were captured on links of a type that is not read: Ethernet, Linux cooked, raw IP and loopback are"},
		{p.cut, "of %d packets to knocks the file has only the beginning, so that no request among them could be read; capture whole packets ('tcpdump -s 0')"},
		{p.backs, "%d packets are older than the one before them in the file, and count as of the same time"},
	} {
		if f.count > 0 {
			all = append(all, fmt.Sprintf(f.what, f.count))
		}
	}
	return strings.Join(all, "; ")
}
