package differential

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/sallyport/sallyport/internal/sequence"
)

// A difference is one rule in which Sallyport does something else than knockd
// 0.8 with the same file. With none of them on, the model below is knockd, its
// bugs included; with all of them on, it is Sallyport.
type difference int

const (
	others  difference = iota // the end of the oldest attempt does not wipe those of everybody
	onTime                    // a timeout is noticed by itself, not at somebody's next packet
	exact                     // the time counts from moment to moment, not in whole seconds of the clock
	copies                    // a retransmission or a second packet for the step just made is harmless
	guard                     // wrong is a port around the door's own steps, whether a door has it or not
	restart                   // the packet that ends an attempt may begin the next one
	apart                     // attempts of one source at several doors know nothing of each other
	differences
)

var names = [differences]string{"others", "on time", "exact", "copies", "guard", "restart", "apart"}

func (d difference) String() string { return names[d] }

// step is one packet of a door's sequence.
type step struct {
	proto sequence.Proto
	port  uint16
}

// door is a section of a knockd.conf.
type door struct {
	name    string
	steps   []step
	timeout int // whole seconds
	flags   sequence.Flags
	target  netip.Addr // the zero Addr: any of the server's
}

// packet is one that was sent.
type packet struct {
	src, dst netip.Addr
	step
	flags uint8
	id    uint32 // equal for a packet and its copies
}

// event is what a packet, or time, did to an attempt.
type event struct {
	src  netip.Addr
	door int
	what string // "Stage 2", "OPEN SESAME", "sequence timeout (stage 1)"
}

// attempt is one source's progress at one door.
type attempt struct {
	src   netip.Addr
	door  int
	stage int
	began time.Time
	made  []made // the packets of the steps made
	done  bool   // it is complete, and kept so that copies of its steps are known
	ended time.Time
}

type made struct {
	id uint32
	at time.Time
}

// model follows packets by knockd's rules, but for the differences that are on.
type model struct {
	doors    []door
	on       [differences]bool
	attempts []*attempt
	spent    bool                         // the packet has ended an attempt, or is a copy of one that was a step
	acted    func(difference, netip.Addr) // a difference decided something else than knockd would
}

func (d *door) fits(p packet) bool { return !d.target.IsValid() || d.target == p.dst }

func (d *door) flagsMatch(p packet) bool {
	return p.proto != sequence.TCP || d.flags.Match(p.flags)
}

// hears is knockd's packet filter for one door.
func (d *door) hears(p packet) bool {
	return d.fits(p) && d.flagsMatch(p) && slices.Contains(d.steps, p.step)
}

// seen reports whether knockd's filter lets the packet through at all.
func (m *model) seen(p packet) bool {
	return slices.ContainsFunc(m.doors, func(d door) bool { return d.hears(p) })
}

// packet shows the model one packet.
func (m *model) packet(p packet, now time.Time) (events []event) {
	if !m.on[guard] && !m.seen(p) {
		return nil
	}
	if !m.on[onTime] {
		events = m.sweep(now)
	} else {
		events = m.late(now)
	}
	say := func(a *attempt, what string, args ...any) {
		events = append(events, event{a.src, a.door, fmt.Sprintf(what, args...)})
	}
	met, standing := false, map[int]bool{}
	m.spent = false
	for _, a := range slices.Clone(m.attempts) {
		if a.src != p.src || !m.doors[a.door].fits(p) {
			continue
		}
		met = met || !a.done
		if m.judge(a, p, now, say) {
			standing[a.door] = true
		}
	}
	for i := range m.doors {
		if d := &m.doors[i]; m.begins(d, i, p, met, standing) {
			a := &attempt{src: p.src, door: i, began: now}
			m.attempts = append(m.attempts, a)
			m.advance(a, p, now, say)
		}
	}
	return events
}

// begins reports whether the packet is the first step of a new attempt at a door.
func (m *model) begins(d *door, i int, p packet, met bool, standing map[int]bool) bool {
	first := d.fits(p) && d.flagsMatch(p) && len(d.steps) > 0 && d.steps[0] == p.step
	if !first || standing[i] {
		return false
	}
	if !met && !m.spent {
		return true
	}
	if m.spent && m.on[apart] {
		return false // the packet has ended an attempt, or is a copy
	}
	// Some attempt of this source was there before the packet. Was it one of this door's?
	own := slices.ContainsFunc(m.attempts, func(a *attempt) bool { return a.src == p.src && a.door == i && a.stage < 0 })
	d2 := apart
	if own {
		d2 = restart
	}
	if m.on[d2] {
		m.acted(d2, p.src)
	}
	return m.on[d2]
}

// judge shows the packet to one attempt and reports whether that still stands.
func (m *model) judge(a *attempt, p packet, now time.Time, say func(*attempt, string, ...any)) bool {
	d := &m.doors[a.door]
	if m.on[guard] {
		if !d.takes(p) {
			return true
		}
	} else if !d.flagsMatch(p) {
		return true
	}
	if m.on[copies] && m.harmless(a, d, p, now) {
		m.acted(copies, p.src)
		return true
	}
	if a.done {
		if d.flagsMatch(p) && d.steps[0] == p.step {
			m.remove(a)
			return false
		}
		return true
	}
	if d.flagsMatch(p) && d.steps[a.stage] == p.step {
		m.advance(a, p, now, say)
		m.spent = m.spent || a.done
		return true
	}
	if m.on[guard] {
		wrong, knockd := d.wrong(p), d.flagsMatch(p) && m.seen(p)
		if wrong != knockd {
			m.acted(guard, p.src)
		}
		if !wrong {
			return true
		}
	}
	a.stage = -1
	return false
}

// harmless reports whether the packet repeats one that was made before.
func (m *model) harmless(a *attempt, d *door, p packet, now time.Time) bool {
	if !d.flagsMatch(p) {
		return false
	}
	for i, made := range a.made {
		if made.id == p.id && d.steps[i] == p.step && (p.proto == sequence.TCP || now.Sub(made.at) <= time.Second) {
			m.spent = true
			return true
		}
	}
	if a.done || d.steps[a.stage] == p.step || d.steps[a.stage-1] != p.step {
		return false
	}
	a.made[a.stage-1] = made{p.id, now}
	if a.stage == 1 {
		a.began = now
	}
	return true
}

func (m *model) advance(a *attempt, p packet, now time.Time, say func(*attempt, string, ...any)) {
	a.stage++
	a.made = append(a.made, made{p.id, now})
	say(a, "Stage %d", a.stage)
	if a.stage == len(m.doors[a.door].steps) {
		a.done, a.ended = true, now
		say(a, "OPEN SESAME")
	}
}

func (m *model) remove(a *attempt) {
	m.attempts = slices.DeleteFunc(m.attempts, func(b *attempt) bool { return a == b })
}

// sweep is what knockd does first at every packet that it sees.
func (m *model) sweep(now time.Time) (events []event) {
	head, kept, wiped := true, []*attempt(nil), false
	for _, a := range m.attempts {
		out := a.stage < 0 || a.done
		if !out && m.over(a, now) {
			events = append(events, event{a.src, a.door, fmt.Sprintf("sequence timeout (stage %d)", a.stage)})
			out = true
		}
		switch {
		case out && head && !m.on[others]:
			wiped = true
		case !out:
			kept = append(kept, a)
		}
		head = false
	}
	if wiped {
		for _, a := range kept {
			m.acted(others, a.src)
		}
		kept = nil
	}
	m.attempts = kept
	return events
}

// over reports whether an attempt's time is over.
func (m *model) over(a *attempt, now time.Time) bool {
	limit := m.doors[a.door].timeout
	seconds := now.Unix()-a.began.Unix() >= int64(limit)
	if !m.on[exact] {
		return seconds
	}
	if over := now.Sub(a.began) > time.Duration(limit)*time.Second; over != seconds {
		m.acted(exact, a.src)
		return over
	}
	return seconds
}

// late ends the attempts whose time was over before now.
func (m *model) late(now time.Time) (events []event) {
	var kept []*attempt
	for _, a := range m.attempts {
		switch {
		case a.stage < 0:
		case a.done && !m.on[copies]:
		case a.done:
			if now.Sub(a.ended) <= time.Duration(m.doors[a.door].timeout)*time.Second {
				kept = append(kept, a)
			}
		case m.over(a, now):
			m.acted(onTime, a.src)
			events = append(events, event{a.src, a.door, fmt.Sprintf("sequence timeout (stage %d)", a.stage)})
		default:
			kept = append(kept, a)
		}
	}
	m.attempts = kept
	return events
}

// takes reports whether a packet could be a step of the door, were its port another
// one.
func (d *door) takes(p packet) bool {
	return p.proto != sequence.TCP || sequence.Opening.Match(p.flags) ||
		slices.ContainsFunc(d.steps, func(s step) bool { return s.proto == sequence.TCP }) && d.flags.Match(p.flags)
}

// wrong reports whether the port is one of those around the door's steps: from the
// least less 64 to the greatest plus 64, on a ring without port 0.
func (d *door) wrong(p packet) bool {
	low, high, uses := 65536, 0, false
	for _, s := range d.steps {
		low, high = min(low, int(s.port)), max(high, int(s.port))
		uses = uses || s.proto == p.proto
	}
	n := int(p.port)
	in := func(n int) bool { return low-64 <= n && n <= high+64 }
	return uses && (in(n) || in(n-65535) || in(n+65535))
}
