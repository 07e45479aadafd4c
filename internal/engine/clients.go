//go:build linux

package engine

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/internal/border"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/control"
	"github.com/sallyport/sallyport/internal/spa"
)

const (
	// maxClients bounds the control connections; each costs a descriptor.
	maxClients = 16
	// maxFollowers leaves room for other requests: a follower stays.
	maxFollowers = 8
	// patience is how long a connection may wait with its request, or with
	// reading more of its answer. A follower may rest: a pager, Ctrl-S.
	patience = 10 * time.Second
	// maxUnsent is how much a client that does not read may leave waiting, in
	// bytes: a listing of 65,536 grants has about 10 MB.
	maxUnsent = 32 << 20
	// maxBehind is how far a follower may fall behind, in bytes; strangers cause
	// events, so he must not hand them our memory. Later events are dropped and
	// counted, about 2,000 are kept.
	maxBehind = 256 << 10
	// maxPace is how many steps and lost attempts a second followers hear of:
	// strangers cause those at the rate of their packets.
	maxPace = 1000
	// maxExplained bounds the addresses that are explained, for each packet is
	// compared with all of them.
	maxExplained = 4
)

// tooMany is the answer to a connection that there is no room for.
const tooMany = "too many connections to the daemon at once; close some 'sallyport events'"

// tooManyExplained is the answer to one address too many.
const tooManyExplained = "the daemon explains four addresses at a time already; end one of the other 'sallyport explain'"

// remedies say what a refusal means for the administrator, or what to do.
var remedies = map[string]string{
	border.Stale.String():            "the config was read again meanwhile; try again",
	border.NoSuchRule.String():       "the config was read again meanwhile; try again",
	border.WrongFamily.String():      "the service is for forwarded destinations (on), and none of them is of this address's family",
	border.TooFast.String():          "nothing was changed; try again in a moment",
	border.NoTicket.String():         "the request came later than ten seconds after its connection; try again",
	border.Full.String():             "nobody who is in was put out; close some grants, or raise max_grants",
	border.Failed.String():           "the daemon's log says why",
	border.NothingToConfirm.String(): "the daemon is not on trial (serve --undo-after), or the trial was confirmed before; what is hidden stays hidden",
}

// client is a connection of the administrator's to the control socket.
type client struct {
	fd      int
	ticket  uint32
	moved   time.Time // when it came, or last took some of its answer
	in, out []byte
	missed  uint64     // events that it will not be told of
	asked   bool       // its request is being worked on
	follows bool       // it wants events
	source  netip.Addr // whose packets it wants explained, and no other events; the zero Addr: it does not
	silent  bool       // it has shut its sending side; it may still wait for an answer
	ended   bool       // nothing more to say: close when out is sent
}

// accept takes a connection that the warden accepted and checked.
func (l *loop) accept(fd int, ticket uint32) {
	c := &client{fd: fd, ticket: ticket, moved: time.Now()}
	if len(l.clients) >= maxClients {
		c.fail(tooMany) // a new socket has room for it
		unix.Close(fd)
		return
	}
	l.clients = append(l.clients, c)
}

// say queues an answer and sends what the socket takes.
func (c *client) say(a control.Answer) {
	line, err := json.Marshal(a)
	if err != nil || len(c.out)+len(line) > maxUnsent {
		c.gone()
		return
	}
	c.send(line)
}

func (c *client) send(line []byte) {
	if len(c.out) == 0 {
		c.moved = time.Now()
	}
	c.out = append(append(c.out, line...), '\n')
	c.flush()
}

// gone gives up on a client: what it was to be told is dropped.
func (c *client) gone() { c.ended, c.out = true, nil }

// events is what poll(2) is to wait for.
func (c *client) events() int16 {
	var events int16
	if !c.silent {
		events |= unix.POLLIN
	}
	if len(c.out) > 0 {
		events |= unix.POLLOUT
	}
	return events
}

// serve acts on what poll(2) found.
func (l *loop) serve(c *client, found int16) {
	if found&unix.POLLOUT != 0 {
		c.flush()
	}
	if found&unix.POLLIN != 0 {
		l.read(c)
	} else if found&(unix.POLLHUP|unix.POLLERR|unix.POLLNVAL) != 0 {
		c.gone()
	}
}

// end is say for the last answer.
func (c *client) end(a control.Answer) {
	c.ended = true
	c.say(a)
}

// fail is the answer to a request that was refused.
func (c *client) fail(why string) {
	if remedy := remedies[why]; remedy != "" {
		why += ": " + remedy
	}
	c.end(control.Answer{Error: why})
}

func (c *client) done(m *border.Done) {
	switch m.Result {
	case border.Granted, border.Observed, border.Closed, border.Confirmed:
		c.end(control.Answer{Done: &control.Done{Result: m.Result.String(), Until: m.Until, Count: int(m.Count), Cut: int(m.Cut), Left: int(m.Left)}})
	default:
		c.fail(m.Result.String())
	}
}

func (c *client) flush() {
	for len(c.out) > 0 {
		n, err := unix.Write(c.fd, c.out)
		switch {
		case err == unix.EAGAIN:
			return
		case err != nil:
			c.gone()
			return
		}
		c.out, c.moved = c.out[n:], time.Now()
	}
}

// read takes what the client sent; a whole line is its request.
func (l *loop) read(c *client) {
	var b [control.MaxRequest]byte
	n, err := unix.Read(c.fd, b[:])
	if err == unix.EAGAIN {
		return
	}
	if n == 0 && err == nil && c.asked {
		c.silent = true
		return
	}
	if err != nil || n == 0 || len(c.in)+n > control.MaxRequest {
		c.gone()
		return
	}
	c.in = append(c.in, b[:n]...)
	line, _, whole := bytes.Cut(c.in, []byte{'\n'})
	if !whole || c.asked {
		return
	}
	c.asked = true
	r, err := control.Parse(line)
	if err != nil {
		c.fail(err.Error())
		return
	}
	l.request(c, r)
}

// request acts on what the administrator asks.
func (l *loop) request(c *client, r control.Request) {
	if l.engine.cfg == nil {
		c.fail("the daemon is still starting; try again in a moment")
		return
	}
	switch r.Do {
	case control.DoStatus:
		c.end(control.Answer{Status: l.status()})
	case control.DoEvents:
		l.admit(c)
	case control.DoExplain:
		l.explain(c, r.Addr)
	case control.DoGrants:
		l.engine.ask(ask{client: c}, func(id uint64) border.Message { return &border.List{ID: id} })
	case control.DoConfirm:
		l.engine.ask(ask{client: c}, func(id uint64) border.Message { return &border.Confirm{ID: id, Ticket: c.ticket} })
	case control.DoOpen:
		l.open(c, r)
	case control.DoClose:
		l.close(c, r)
	}
}

// service finds a service by name; it answers the client if there is none.
func (l *loop) service(c *client, name string) (int, bool) {
	for i := range l.engine.cfg.Services {
		if l.engine.cfg.Services[i].Name == name {
			return i, true
		}
	}
	c.fail("there is no service " + name + " in the config that is in use")
	return 0, false
}

func (l *loop) open(c *client, r control.Request) {
	i, ok := l.service(c, r.Service)
	if !ok {
		return
	}
	s := &l.engine.cfg.Services[i]
	ttl := time.Duration(r.For)
	if ttl == 0 {
		ttl = s.OpenFor
	}
	if ttl > s.MaxOpenFor {
		c.fail(fmt.Sprintf("%v is longer than the rule allows: max_open_for of %s is %v; ask for that at most, or raise it in the config", ttl, s.Name, s.MaxOpenFor))
		return
	}
	l.engine.ask(ask{addr: r.Addr, service: r.Service, client: c}, func(id uint64) border.Message {
		return &border.Open{ID: id, Generation: l.engine.generation, Rule: border.AnyRule, Service: uint16(i), Ticket: c.ticket, Addr: r.Addr, TTL: ttl}
	})
}

func (l *loop) close(c *client, r control.Request) {
	if r.Key != "" {
		l.closeKey(c, r)
		return
	}
	i := border.AnyService
	if r.Service != "" {
		var ok bool
		if i, ok = l.service(c, r.Service); !ok {
			return
		}
	}
	port, _ := config.ParsePortRange(r.Port) // none is 0; Check has read it
	if r.Port != "" && !slices.ContainsFunc(l.engine.cfg.Services[i].Ports, func(p config.PortRange) bool { return p.Contains(port.Proto, port.Low) }) {
		c.fail("the service " + r.Service + " has no port " + r.Port)
		return
	}
	a := ask{addr: r.Addr, bits: uint8(r.Bits), service: r.Service, port: r.Port, client: c}
	l.engine.ask(a, func(id uint64) border.Message {
		return &border.Close{
			ID: id, Generation: l.engine.generation, Rule: border.AnyRule, Service: uint16(i), Ticket: c.ticket,
			Addr: r.Addr, Bits: uint8(r.Bits), Proto: port.Proto, Port: port.Low, Cut: r.Cut,
		}
	})
}

func (l *loop) closeKey(c *client, r control.Request) {
	f, err := spa.ParseFingerprint(r.Key)
	if err != nil {
		c.fail(err.Error())
		return
	}
	l.engine.ask(ask{client: c}, func(id uint64) border.Message {
		return &border.CloseKey{ID: id, Ticket: c.ticket, Fingerprint: f, Cut: r.Cut}
	})
}

// listing passes on what the kernel holds.
func (l *loop) listing(id uint64, listed *border.Listed) {
	a, ok := l.engine.asked[id]
	delete(l.engine.asked, id)
	if !ok || a.client == nil {
		return
	}
	if listed.Error != "" {
		a.client.fail(listed.Error)
		return
	}
	a.client.end(control.Answer{Grants: listed})
}

// admit makes a client a follower, if there is room.
func (l *loop) admit(c *client) {
	if l.followers() >= maxFollowers {
		c.fail(tooMany)
		return
	}
	c.follows = true
	l.follow()
}

func (l *loop) followers() (n int) {
	for _, c := range l.clients {
		if c.follows {
			n++
		}
	}
	return n
}

// explain makes a client a follower of one source. It came by the socket for
// changes: what is explained names the ports that somebody tried.
func (l *loop) explain(c *client, source netip.Addr) {
	switch {
	case c.ticket == 0:
		c.fail("explain is asked by the socket for changes; are the command and the daemon of one version?")
	case len(l.explained()) >= maxExplained:
		c.fail(tooManyExplained)
	default:
		c.source = source
		l.admit(c)
	}
}

// explained gives the sources that clients look at.
func (l *loop) explained() (sources []netip.Addr) {
	for _, c := range l.clients {
		if c.follows && c.source.IsValid() {
			sources = append(sources, c.source)
		}
	}
	return sources
}

// follow has the engine tell of events as long as somebody listens.
func (l *loop) follow() {
	sources := l.explained()
	l.engine.Explain(sources, l.tellOne)
	l.engine.Tell(nil)
	if l.followers() > len(sources) {
		l.engine.Tell(l.tell)
	}
}

// tellOne passes on what a packet of a source meant to those who look at it.
// Whoever forges that source causes these at the rate of his packets.
func (l *loop) tellOne(source netip.Addr, ev control.Event) {
	var line []byte
	if ev.What != control.EventExplain || l.explains.take(ev.Time) {
		line = eventLine(ev)
	}
	for _, c := range l.clients {
		if c.source == source {
			c.event(line)
		}
	}
}

// tell passes an event on to every follower, written once for all of them.
func (l *loop) tell(ev control.Event) {
	var line []byte
	if byStrangers := ev.What == control.EventStep || ev.What == control.EventLost; !byStrangers || l.pace.take(ev.Time) {
		line = eventLine(ev)
	}
	for _, c := range l.clients {
		if !c.source.IsValid() {
			c.event(line)
		}
	}
}

// event tells a follower, who misses what there is no line for, or no room.
func (c *client) event(line []byte) {
	switch {
	case !c.follows || c.ended:
	case line == nil || len(c.out)+len(line) >= maxBehind:
		c.missed++
	default:
		c.send(line)
	}
}

// eventLine gives an event as an answer without its newline.
func eventLine(ev control.Event) []byte {
	line, _ := json.Marshal(control.Answer{Event: &ev})
	return line
}

// pace counts what happens in a second.
type pace struct {
	second time.Time
	n      int
}

func (p *pace) take(now time.Time) bool {
	if now.Sub(p.second) >= time.Second {
		p.second, p.n = now, 0
	}
	p.n++
	return p.n <= maxPace
}

// notice tells followers how many events they missed: those that read, and at
// most once a second.
func (l *loop) notice(now time.Time) {
	if now.Sub(l.noticed) < tick {
		return
	}
	l.noticed = now
	for _, c := range l.clients {
		if c.missed > 0 && !c.ended && len(c.out) < maxBehind/2 {
			c.send(eventLine(control.Event{Time: now, What: control.EventMissed, Count: c.missed,
				Why: "events lost: more came than this connection read, or than are told in a second"}))
			c.missed = 0
		}
	}
}

// late reports whether a client keeps its place without getting on.
func (c *client) late(now time.Time) bool {
	waits := !c.asked || len(c.out) > 0 && !c.follows
	return waits && now.Sub(c.moved) > patience
}

// tidy closes connections that have ended, and those that don't get on.
func (l *loop) tidy(now time.Time) {
	l.notice(now)
	before := len(l.clients)
	l.clients = slices.DeleteFunc(l.clients, func(c *client) bool {
		gone := c.late(now) || c.ended && len(c.out) == 0
		if gone {
			l.forget(c)
			unix.Close(c.fd)
		}
		return gone
	})
	if len(l.clients) != before {
		l.follow()
	}
}

// forget makes sure that no late answer goes to a closed connection.
func (l *loop) forget(c *client) {
	for id, a := range l.engine.asked {
		if a.client == c {
			a.client = nil
			l.engine.asked[id] = a
		}
	}
}
