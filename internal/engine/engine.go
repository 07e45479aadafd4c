// Package engine is the side that meets strangers' bytes. It has no privilege,
// no network and no files: packets come on a descriptor that it inherited, and
// all it can do about them is ask the warden over the border.
package engine

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/sallyport/sallyport/internal/border"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/control"
	"github.com/sallyport/sallyport/internal/engine/internal/knock"
	"github.com/sallyport/sallyport/internal/engine/internal/packet"
	"github.com/sallyport/sallyport/internal/engine/internal/policy"
	"github.com/sallyport/sallyport/internal/engine/internal/replay"
	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/sallyport/sallyport/internal/spa"
)

// Border is the way to the warden: one method, so that the whole engine runs
// in one process with a test on the other side.
type Border interface {
	Send(border.Message) error
}

// Engine follows knocks. One goroutine calls it.
type Engine struct {
	border Border
	log    *slog.Logger
	start  time.Time
	clock  func() time.Time    // of a capture file it is the packet's
	tell   func(control.Event) // nil: nobody listens

	follows *follows // nil: nobody's packets are explained

	generation uint32
	observe    bool
	cfg        *config.Config
	policy     *policy.Policy
	knocks     []recogniser
	journal    [2]int // descriptors; -1: none, the memory ends with the process
	memory     *replay.Memory
	host       border.HostFacts
	addrs      map[netip.Addr]struct{}
	interfaces map[int]struct{} // nil: all
	targets    map[netip.Addr]struct{}

	watch   [8]byte // token of the watch packet
	watched time.Time
	ticked  time.Time

	told     told             // lines of a log in knockd's words
	spent    map[int]spending // knocks of one-time sequences that were made
	asked    map[uint64]ask
	closable map[closable]time.Time // grants that a wrong packet ends, until when
	lastID   uint64
	counts   counts
	packet   packet.Packet
	refusals refusals
}

// recogniser is one of a type of knock that the config has.
type recogniser struct {
	knock.Recogniser
	kind string
}

// ask is a request that the warden has not answered yet.
type ask struct {
	addr    netip.Addr
	bits    uint8      // of a mask around addr; 0: none
	port    string     // the one of the service's; empty: all
	source  netip.Addr // whose packet asked; the zero Addr: an administrator
	knock   string
	service string
	key     string  // of who asked, see signer
	client  *client // nil: a knock asked
}

// event says what was asked for.
func (a *ask) event() control.Event {
	return control.Event{Addr: a.addr, Bits: a.bits, Knock: a.knock, Service: a.service, Port: a.port, Key: a.key}
}

// closable is a grant of a knock with close_on_wrong.
type closable struct {
	addr  netip.Addr
	knock string
}

// maxAsked bounds the requests that wait for an answer. The warden takes about
// 0.2 ms for each, so a queue this long is a warden that is stuck.
const maxAsked = 4096

// tick is how often the engine looks at the time when nothing arrives.
const tick = time.Second

// busy is what a request hears that found the warden's queue full.
const busy = "the warden does not keep up; try again in a moment"

// counts are the operator's numbers; each is a line of status.
type counts struct {
	packets, declined, elsewhere uint64
	knocks, asked, unanswered    uint64
	received, dropped            uint64 // by the kernel's capture, packet(7) PACKET_STATISTICS
	untimely                     uint64 // declined lines of a log that are of another time
}

// New makes an engine that knows no config yet: it ignores every packet until
// Use is called. The journal is two descriptors, or -1 and -1 for none.
func New(b Border, journal [2]int, log *slog.Logger) *Engine {
	// On a whole second, because knockd's own rules count seconds of the clock.
	clock := time.Now
	start := clock()
	start = start.Add(-time.Duration(start.Nanosecond()))
	return &Engine{
		border: b, journal: journal, log: log, start: start, clock: clock,
		asked: map[uint64]ask{}, closable: map[closable]time.Time{},
	}
}

// Tell sets who is told of events; nil tells nobody, which costs nothing.
func (e *Engine) Tell(f func(control.Event)) { e.tell = f }

// Use turns to a generation of the config. Half-done sequences that are in both
// the old and the new config go on. An error leaves the engine as it was.
func (e *Engine) Use(generation uint32, g *border.Generation, watch [8]byte) error {
	if len(g.Keys) != len(g.Config.Knocks) {
		return errors.New("the keys are not those of the config")
	}
	if e.memory == nil {
		memory, err := replay.New(e.journal, g.Journal, e.clock())
		if err != nil {
			return fmt.Errorf("the journal of requests can't be used: %w; look at the disk of state_dir", err)
		}
		e.memory = memory
	}
	e.generation, e.observe, e.watch = generation, g.Observe, watch
	e.spent = e.stillSpent(&g.Config)
	e.told.made = make([][]budget, len(g.Config.Knocks))
	for i := range e.told.made {
		e.told.made[i] = make([]budget, 1+len(g.Keys[i].People))
	}
	e.targets = map[netip.Addr]struct{}{}
	for i := range g.Config.Knocks {
		e.targets[g.Config.Knocks[i].Target] = struct{}{}
	}
	delete(e.targets, netip.Addr{})
	e.cfg = &g.Config
	e.policy = policy.New(e.cfg)
	setting := &knock.Setting{Config: e.cfg, Keys: g.Keys, Host: &e.host, Memory: e.memory, Policy: e.policy, Clock: func() time.Time { return e.clock() }}
	e.recogniseWith(setting)
	e.event(control.Event{What: control.EventReload})
	return nil
}

// recogniseWith makes a recogniser for each type of knock in the config, out of
// the one before where there was one.
func (e *Engine) recogniseWith(setting *knock.Setting) {
	before := e.knocks
	e.knocks = nil
	for _, k := range setting.Config.Knocks {
		is := func(r recogniser) bool { return r.kind == k.Type }
		if slices.ContainsFunc(e.knocks, is) {
			continue
		}
		var old knock.Recogniser
		if i := slices.IndexFunc(before, is); i >= 0 {
			old = before[i].Recogniser
		}
		e.knocks = append(e.knocks, recogniser{knock.Types[k.Type](setting, old), k.Type})
	}
}

// Host turns to other facts of the host.
func (e *Engine) Host(facts *border.HostFacts) {
	e.host = *facts
	e.addrs = make(map[netip.Addr]struct{}, len(facts.Addrs))
	for _, a := range facts.Addrs {
		e.addrs[a] = struct{}{}
	}
	e.interfaces = nil
	if facts.Interfaces != nil {
		e.interfaces = make(map[int]struct{}, len(facts.Interfaces))
		for _, i := range facts.Interfaces {
			e.interfaces[i] = struct{}{}
		}
	}
	for _, r := range e.knocks {
		r.HostChanged()
	}
}

// now is nanoseconds on a clock that no administrator can set back.
func (e *Engine) now() int64 { return int64(e.clock().Sub(e.start)) }

// Packet takes one packet, from the first byte of its IP header on, that
// arrived on the interface with this index. It allocates nothing unless the
// packet completes a knock.
func (e *Engine) Packet(b []byte, ifindex int) {
	p := &e.packet
	packet.Decode(b, p)
	e.counts.packets++
	at := e.place(p, ifindex)
	if at == heard {
		e.recognise(p)
		return
	}
	switch at {
	case watching:
	case declined:
		e.counts.declined++
	default:
		e.counts.elsewhere++
	}
	if e.follows != nil {
		e.unheard(b, p, at)
	}
}

// Datagram takes one datagram that the kernel delivered to a socket of ours at
// this port.
func (e *Engine) Datagram(payload []byte, src netip.AddrPort, port uint16) {
	e.counts.packets++
	e.packet = packet.Packet{Src: src.Addr(), Proto: sequence.UDP, SrcPort: src.Port(), DstPort: port, Payload: payload}
	e.recognise(&e.packet)
}

func (e *Engine) recognise(p *packet.Packet) {
	if e.explained(p.Src) {
		e.aloud(p)
		return
	}
	now := e.now()
	for _, r := range e.knocks {
		out := r.Observe(p, now)
		for i := range out {
			e.outcome(&out[i])
		}
	}
}

// hears reports whether the config listens to an interface.
func (e *Engine) hears(ifindex int) bool {
	_, named := e.interfaces[ifindex]
	return named || e.interfaces == nil
}

// loopbackIndex is the number of lo in every namespace (net/flow.h,
// LOOPBACK_IFINDEX).
const loopbackIndex = 1

// itself reports whether this host talks to itself there and is to be heard. On a
// wire anybody can write a loopback address into a packet, and a packet socket
// sees it before the kernel drops it (RFC 1122, 3.2.1.3).
func (e *Engine) itself(ifindex int) bool {
	return ifindex == loopbackIndex && e.cfg != nil && e.cfg.Daemon.Loopback()
}

// targeted reports whether an address, which need not be this host's, is some
// knock's target.
func (e *Engine) targeted(dst netip.Addr) bool {
	_, is := e.targets[dst]
	return is
}

// tick tells the recognisers the time, once a second.
func (e *Engine) tick(now time.Time) {
	if now.Sub(e.ticked) < tick {
		return
	}
	e.ticked = now
	e.oweSpent()
	for _, r := range e.knocks {
		out := r.Tick(e.now())
		for i := range out {
			e.outcome(&out[i])
		}
	}
}

// ours reports whether a packet is to this host.
func (e *Engine) ours(dst netip.Addr) bool {
	if _, ok := e.addrs[dst]; ok {
		return true
	}
	return slices.ContainsFunc(e.host.Prefixes, func(p netip.Prefix) bool { return p.Contains(dst) })
}

// watchPacket answers the warden's own packet, which shows that the capture,
// the filter, the decoder and the border work. Nobody else's packet gets past
// the filter to a loopback address, unless lo is heard too, and nobody can guess
// the token. It reports whether this was the packet.
func (e *Engine) watchPacket(p *packet.Packet) bool {
	if p.Proto != sequence.UDP || string(p.Payload) != string(e.watch[:]) {
		return false
	}
	e.watched = e.clock()
	e.send(&border.Watched{Token: e.watch})
	return true
}

// outcome acts on what a recogniser saw.
func (e *Engine) outcome(o *knock.Outcome) {
	switch o.Verdict {
	case knock.Advanced:
		e.tellOf(o, border.Stage)
		e.step(control.EventStep, o)
	case knock.Lost:
		e.step(control.EventLost, o)
	case knock.TimedOut:
		e.tellOf(o, border.TimedOut)
	case knock.Made:
		if e.spend(o) {
			e.counts.knocks++
			e.knock(o)
		} else {
			e.useless(o)
		}
	case knock.Refused:
		e.refusals.add(o, e.cfg.Knocks[o.Claim.Knock].Name)
		key := signer(&o.Claim)
		if o.Refusal.Stranger != (spa.Fingerprint{}) {
			key = o.Refusal.Stranger.String()
		}
		e.event(control.Event{What: control.EventRefused, Addr: o.Claim.Source, Knock: e.cfg.Knocks[o.Claim.Knock].Name, Key: key, Why: o.Refusal.Why})
	}
}

// step tells of progress, where somebody listens: strangers cause these at the
// rate of their packets.
func (e *Engine) step(what string, o *knock.Outcome) {
	k, src := &e.cfg.Knocks[o.Claim.Knock], o.Claim.Source
	// Of a message's 50 parts the first is told; the end says how many there were.
	if e.tell != nil && (what == control.EventLost || o.Stage == 1 || k.Type != "encoded") {
		e.tell(control.Event{Time: e.clock(), What: what, Addr: src, Knock: k.Name, Stage: o.Stage})
	}
	if what != control.EventLost {
		return
	}
	if e.observe {
		e.log.Info("would refuse: a wrong packet ended the attempt", "address", src, "knock", k.Name, "steps made", o.Stage)
	}
	if k.CloseOnWrong {
		e.closeOwn(o.Claim.Knock, src)
	}
}

// signer names whose key or secret a claim is by; empty: nobody's.
func signer(c *policy.Claim) string {
	switch {
	case c.Signed != nil:
		return c.Signed.Key.Public.Fingerprint().String()
	case c.Asked != nil:
		return c.Asked.Person.Name
	}
	return ""
}

// knock asks the warden for what a complete knock is good for.
func (e *Engine) knock(o *knock.Outcome) {
	c, grants := &o.Claim, o.Grants
	name, key := e.cfg.Knocks[c.Knock].Name, signer(c)
	e.answer(control.Event{What: control.EventKnock, Addr: c.Source, Knock: name, Key: key}, c.Source)
	if grants == nil {
		var why policy.Why
		if grants, why = e.policy.Decide(*c, e.clock()); why != policy.Good {
			e.refused(ask{addr: c.Source, source: c.Source, knock: name}, string(why))
			return
		}
	}
	for _, g := range grants {
		a := ask{addr: g.Addr, bits: uint8(g.Bits), source: c.Source, knock: name, service: e.cfg.NameOf(g.Rule), key: key}
		if g.Port != 0 && c.Asked.Action != spa.Close { // which ends all that he has there
			a.port = config.PortRange{Proto: g.Proto, Low: g.Port, High: g.Port}.String()
		}
		e.ask(a, func(id uint64) border.Message { return e.request(id, c, &g) })
	}
}

// request is what one grant asks of the warden.
func (e *Engine) request(id uint64, c *policy.Claim, g *policy.Grant) border.Message {
	var key uint16 = border.NoKey
	closes, extends := g.Close, g.Extend
	switch {
	case c.Signed != nil:
		key, closes, extends = c.Signed.Number, c.Signed.Action == spa.Close, c.Signed.Action == spa.Extend
	case c.Asked != nil:
		key, closes, extends = c.Asked.Number, closes || c.Asked.Action == spa.Close, extends || c.Asked.Action == spa.Extend
	}
	if g.Service == config.None {
		run := &border.Run{ID: id, Generation: e.generation, Rule: g.Number, Key: key, Addr: g.Addr}
		switch {
		case closes:
			run.Do = border.Undo
		case extends:
			run.Do = border.Extend
		}
		if c.Asked != nil {
			run.Payload.Length = uint8(copy(run.Payload.Bytes[:], c.Asked.Payload))
		}
		return run
	}
	if closes {
		return &border.Close{ID: id, Generation: e.generation, Rule: g.Number, Service: uint16(g.Service), Key: key, Addr: g.Addr, Bits: uint8(g.Bits)}
	}
	return &border.Open{
		ID: id, Generation: e.generation, Rule: g.Number, Key: key, Extend: extends, Addr: g.Addr, TTL: g.TTL,
		Proto: g.Proto, Port: g.Port, Bits: uint8(g.Bits),
	}
}

// closeOwn ends what a knock opened for its own source (close_on_wrong). Only a
// source that was let in can have something to end: anybody can forge wrong
// packets, and each would else cost the warden a request.
func (e *Engine) closeOwn(k int, src netip.Addr) {
	name := e.cfg.Knocks[k].Name
	if _, ok := e.closable[closable{src, name}]; !ok {
		return
	}
	delete(e.closable, closable{src, name})
	grants, _ := e.policy.Decide(policy.Claim{Knock: k, Source: src}, e.clock())
	for _, g := range grants {
		if g.Service == config.None || g.Close || g.Extend {
			continue
		}
		a := ask{addr: src, source: src, knock: name, service: e.cfg.NameOf(g.Rule)}
		e.ask(a, func(id uint64) border.Message {
			return &border.Close{ID: id, Generation: e.generation, Rule: g.Number, Service: uint16(g.Service), Addr: src}
		})
	}
}

// remember notes a grant that a wrong packet of its source is to end. The notes
// are bounded as the grants are, and those that have ended make room.
func (e *Engine) remember(a ask, until time.Time) {
	wants := func(k config.Knock) bool { return k.Name == a.knock && k.CloseOnWrong }
	if a.client != nil || !slices.ContainsFunc(e.cfg.Knocks, wants) {
		return
	}
	if len(e.closable) >= e.cfg.Daemon.MaxGrants {
		now := e.clock()
		maps.DeleteFunc(e.closable, func(_ closable, until time.Time) bool { return until.Before(now) })
	}
	if len(e.closable) < e.cfg.Daemon.MaxGrants {
		e.closable[closable{a.addr, a.knock}] = until
	}
}

// ask sends a request and remembers it until its answer comes.
func (e *Engine) ask(a ask, message func(id uint64) border.Message) {
	if len(e.asked) >= maxAsked {
		e.counts.unanswered++
		e.refused(a, busy)
		return
	}
	e.lastID++
	if e.send(message(e.lastID)) {
		e.counts.asked++
		e.asked[e.lastID] = a
		return
	}
	e.refused(a, busy)
}

// send never waits: a warden that does not keep up costs this one message.
func (e *Engine) send(m border.Message) bool {
	if err := e.border.Send(m); err != nil {
		e.counts.unanswered++
		return false
	}
	return true
}

// Done takes the warden's answer to a request.
func (e *Engine) Done(m *border.Done) {
	a, ok := e.asked[m.ID]
	if !ok {
		return
	}
	delete(e.asked, m.ID)
	ev := a.event()
	ev.Until = m.Until
	switch m.Result {
	case border.Granted:
		ev.What = control.EventOpen
		e.remember(a, m.Until)
	case border.Closed:
		ev.What, ev.Count = control.EventClosed, uint64(m.Count)
		if m.Count == 0 && a.knock != "" && !e.observe {
			ev.Why = "nothing of this knock's own was open"
		}
	case border.Ran:
		ev.What = control.EventRan
	case border.Undone:
		ev.What = control.EventUndone
	case border.Confirmed:
		ev.What = control.EventConfirmed
	default:
		ev.What, ev.Why = control.EventRefused, m.Result.String()
	}
	e.answer(ev, a.source)
	if a.client != nil {
		a.client.done(m)
	}
}

func (e *Engine) refused(a ask, why string) {
	ev := a.event()
	ev.What, ev.Why = control.EventRefused, why
	e.answer(ev, a.source)
	if a.client != nil {
		a.client.fail(why)
	}
}

func (e *Engine) event(ev control.Event) {
	if e.tell != nil {
		ev.Time = e.clock()
		e.tell(ev)
	}
}

// answer is event for what came of a source's packets.
func (e *Engine) answer(ev control.Event, source netip.Addr) {
	e.event(ev)
	e.explainAnswer(ev, source)
}
