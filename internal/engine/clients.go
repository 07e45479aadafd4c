//go:build linux

package engine

import (
	"bytes"
	"encoding/json"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/internal/border"
	"github.com/sallyport/sallyport/internal/control"
)

const (
	// maxClients bounds the control connections; each costs a descriptor.
	maxClients = 16
	// patience is how long a connection may wait with its request.
	patience = 10 * time.Second
	// maxUnsent is how much a client that does not read may leave waiting, in
	// bytes: a listing of 65,536 grants has about 10 MB.
	maxUnsent = 32 << 20
)

// client is a connection of the administrator's to the control socket.
type client struct {
	fd      int
	ticket  uint32
	since   time.Time
	in, out []byte
	asked   bool // its request is being worked on
	follows bool // it wants events
	silent  bool // it has shut its sending side; it may still wait for an answer
	ended   bool // nothing more to say: close when out is sent
}

// accept takes a connection that the warden accepted and checked.
func (l *loop) accept(fd int, ticket uint32) {
	if len(l.clients) >= maxClients {
		unix.Close(fd)
		return
	}
	l.clients = append(l.clients, &client{fd: fd, ticket: ticket, since: time.Now()})
}

// say queues an answer and sends what the socket takes.
func (c *client) say(a control.Answer) {
	line, err := json.Marshal(a)
	if err != nil || len(c.out)+len(line) > maxUnsent {
		c.gone()
		return
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

func (c *client) fail(why string) { c.end(control.Answer{Error: why}) }

func (c *client) done(m *border.Done) {
	switch m.Result {
	case border.Granted, border.Observed, border.Closed, border.Confirmed:
		c.end(control.Answer{Done: &control.Done{Result: m.Result.String(), Until: m.Until, Count: int(m.Count)}})
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
		c.out = c.out[n:]
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
		c.follows = true
		l.follow()
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
	ttl := time.Duration(r.For)
	if ttl == 0 {
		ttl = l.engine.cfg.Services[i].OpenFor
	}
	l.engine.ask(ask{addr: r.Addr, service: r.Service, client: c}, func(id uint64) border.Message {
		return &border.Open{ID: id, Generation: l.engine.generation, Rule: border.AnyRule, Service: uint16(i), Ticket: c.ticket, Addr: r.Addr, TTL: ttl}
	})
}

func (l *loop) close(c *client, r control.Request) {
	i := border.AnyService
	if r.Service != "" {
		var ok bool
		if i, ok = l.service(c, r.Service); !ok {
			return
		}
	}
	l.engine.ask(ask{addr: r.Addr, service: r.Service, client: c}, func(id uint64) border.Message {
		return &border.Close{ID: id, Generation: l.engine.generation, Rule: border.AnyRule, Service: uint16(i), Ticket: c.ticket, Addr: r.Addr}
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

// follow has the engine tell of events as long as somebody listens.
func (l *loop) follow() {
	l.engine.Tell(nil)
	if !slices.ContainsFunc(l.clients, func(c *client) bool { return c.follows }) {
		return
	}
	l.engine.Tell(func(ev control.Event) {
		for _, c := range l.clients {
			if c.follows && !c.ended {
				c.say(control.Answer{Event: &ev})
			}
		}
	})
}

// tidy closes connections that have ended, and those that never ask.
func (l *loop) tidy() {
	before := len(l.clients)
	l.clients = slices.DeleteFunc(l.clients, func(c *client) bool {
		late := !c.asked && time.Since(c.since) > patience
		gone := late || c.ended && len(c.out) == 0
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
