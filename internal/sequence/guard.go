package sequence

import (
	"net/netip"
	"slices"
)

// margin is how far, in ports or bytes, the guard reaches beyond a sequence's
// own steps. A scan in any plain order comes through the margin before or
// after it meets a step, and so loses what it had made.
const margin = 64

// Numbers of a port and of an echo payload. Port 0 is not in the ring of
// ports: 65535 and 1 are neighbours, because scans that wrap skip it too. A step
// of port 0 is guarded by itself alone, and has no neighbours.
const (
	firstPort, lastPort = 1, 65535
	firstSize, lastSize = 0, MaxEcho
)

// Sizes that ping(8) sends by itself: 56 bytes on Linux, the BSDs and macOS,
// 32 bytes on Windows. A user who pings while knocking loses nothing.
const pingUnix, pingWindows = 56, 32

// Span is an unbroken run of destination ports or of echo payload sizes in
// bytes (ICMP); Low and High belong to it. Of a bare protocol it is port 0.
type Span struct {
	Proto     Proto
	Low, High uint16
}

// Guard lists what a packet filter has to let through so that the matcher sees
// every packet that could be a step of the sequence or break it. Innocent ports
// are in it. The spans of one protocol don't overlap. A sequence without steps
// has none.
func (s Sequence) Guard() []Span {
	switch {
	case len(s.Steps) == 0:
		return nil
	case s.Classic:
		return s.ownSpans()
	}
	g := guardOf(s.Steps)
	var spans []Span
	for _, proto := range ported {
		switch {
		case s.Strict && (g.uses(proto) || proto == TCP || proto == UDP):
			spans = append(spans, Span{proto, g.lowest(), lastPort})
		case g.uses(proto):
			spans = append(spans, spansOf(proto, g.ports)...)
		}
	}
	for _, proto := range g.protos {
		if proto.Bare() {
			spans = append(spans, Span{Proto: proto})
		}
	}
	for _, step := range s.Steps {
		if step.AnySize {
			return append(spans, Span{ICMP, firstSize, lastSize})
		}
	}
	return append(spans, spansOf(ICMP, g.sizes)...)
}

func spansOf(proto Proto, runs []run) []Span {
	var spans []Span
	for _, r := range runs {
		spans = append(spans, Span{proto, r.low, r.high})
	}
	return spans
}

type run struct{ low, high uint16 }

// guard is what is wrong for one sequence. All protocols share the runs of
// ports: a scan of one protocol must not pass unseen between steps of another.
// A bare protocol has nothing beside its step that could be wrong.
type guard struct {
	protos []Proto // of the steps, each once
	ports  []run   // at most three: a run, what wraps, and port 0
	sizes  []run   // likewise; empty when no ICMP step names a size
}

func guardOf(steps []Step) guard {
	var g guard
	var ports, sizes []int
	zero := false
	for _, s := range steps {
		if !slices.Contains(g.protos, s.Proto) {
			g.protos = append(g.protos, s.Proto)
		}
		switch {
		case s.Portless():
		case s.Proto == ICMP:
			sizes = append(sizes, int(s.Port))
		case s.Port < firstPort:
			zero = true
		default:
			ports = append(ports, int(s.Port))
		}
	}
	g.ports = around(ports, firstPort, lastPort)
	if zero {
		g.ports = append(g.ports, run{0, 0})
	}
	g.sizes = around(sizes, firstSize, lastSize)
	return g
}

// around gives the numbers from the least less margin to the greatest plus
// margin, on a ring that goes from first to last and on to first. That covers
// the margin around each single number too.
func around(numbers []int, first, last int) []run {
	if len(numbers) == 0 {
		return nil
	}
	low, high := numbers[0], numbers[0]
	for _, n := range numbers {
		low, high = min(low, n), max(high, n)
	}
	low, high = low-margin, high+margin
	ring := last - first + 1
	switch {
	case high-low+1 >= ring:
		return []run{{uint16(first), uint16(last)}}
	case low < first:
		return []run{{uint16(first), uint16(high)}, {uint16(low + ring), uint16(last)}}
	case high > last:
		return []run{{uint16(first), uint16(high - ring)}, {uint16(low), uint16(last)}}
	}
	return []run{{uint16(low), uint16(high)}}
}

// lowest is the lowest port that a strict sequence has to see.
func (g *guard) lowest() uint16 {
	if slices.Contains(g.ports, run{0, 0}) {
		return 0
	}
	return firstPort
}

// uses reports whether a step has the protocol, and a port or a size of it.
func (g *guard) uses(p Proto) bool {
	return slices.Contains(g.protos, p) && (p.Ported() || p == ICMP && len(g.sizes) > 0)
}

func (g *guard) covers(p Proto, number uint16) bool {
	if !g.uses(p) {
		return false
	}
	runs := g.ports
	if p == ICMP {
		runs = g.sizes
	}
	for _, r := range runs {
		if r.low <= number && number <= r.high {
			return true
		}
	}
	return false
}

// rule is a sequence made ready for the matcher.
type rule struct {
	Sequence
	guard
	flags []Flags // conditions that its steps name, beside Opening
	door  Flags   // the condition of its first TCP step; Nothing if it has none
}

func newRule(s Sequence) rule {
	r := rule{Sequence: s, guard: guardOf(s.Steps)}
	for _, step := range s.Steps {
		if step.Proto == TCP && step.Flags != Opening {
			r.flags = append(r.flags, step.Flags)
		}
	}
	if i := slices.IndexFunc(s.Steps, func(s Step) bool { return s.Proto == TCP }); i >= 0 {
		r.door = s.Steps[i].Flags
	}
	return r
}

// to reports whether the packet goes where the packets of a sequence with this
// target go. What is to somebody else than this host is seen by those alone that
// name him.
func (h *Hit) to(target netip.Addr) bool {
	if target.IsValid() {
		return h.Dst == target
	}
	return !h.Elsewhere
}

// takes reports whether the packet could be a step of this sequence, were its
// port another one. Everything else of a TCP connection passes unseen.
func (r *rule) takes(h Hit) bool {
	if h.Proto != TCP || Opening.Match(h.Flags) {
		return true
	}
	for _, f := range r.flags {
		if f.Match(h.Flags) {
			return true
		}
	}
	return false
}

// wrong reports whether the packet, which is not the awaited step, breaks an
// attempt at this sequence.
//
// A live service's port may be a step: while another step is awaited it is as
// innocent as any listening port. But the two neighbours of a step are never
// innocent, or else a sequence like 7000, 7002 would open to a plain scan on a
// host where 7001 listens.
func (r *rule) wrong(h Hit, in *innocents) bool {
	if r.Classic {
		return false // nothing but steps is seen (classic.go)
	}
	if r.Strict && (h.Proto == UDP || h.Proto == TCP && Opening.Match(h.Flags) || h.Proto != TCP && h.Proto.Ported() && r.uses(h.Proto)) {
		return true
	}
	return r.covers(h.Proto, h.Port) && (!in.has(h.Proto, h.Port) || r.beside(h.Proto, h.Port))
}

// beside reports whether the number is next to one of the sequence's steps.
func (r *rule) beside(p Proto, number uint16) bool {
	outside := func(n uint16) bool { return p != ICMP && n < firstPort } // of the ring
	for _, s := range r.Steps {
		if s.Proto == p && !s.Portless() && !outside(s.Port) && !outside(number) && apart(p, s.Port, number) == 1 {
			return true
		}
	}
	return false
}

// apart is the distance of two ports or sizes, the shorter way round.
func apart(p Proto, a, b uint16) int {
	ring := lastPort - firstPort + 1
	if p == ICMP {
		ring = lastSize - firstSize + 1
	}
	d := max(int(a), int(b)) - min(int(a), int(b))
	return min(d, ring-d)
}

// innocents are the ports that a user may well use while he knocks: one bit
// each, 16 KiB together. Of TCP and UDP alone: services have no other ports.
type innocents struct {
	tcp, udp [1 << 16 / 64]uint64
}

// fill sets the bits of the spans, so that the packet path never calls out. It
// runs there itself, at a reload and when listeners come and go, so it works by
// words of 64 ports: 2,000 spans take microseconds.
func (in *innocents) fill(spans []Span) {
	*in = innocents{}
	for _, s := range spans {
		switch s.Proto {
		case TCP:
			set(&in.tcp, s.Low, s.High)
		case UDP:
			set(&in.udp, s.Low, s.High)
		}
	}
}

// set sets the bits low to high, both with them.
func set(bits *[1 << 16 / 64]uint64, low, high uint16) {
	for word := int(low / 64); word <= int(high/64); word++ {
		mask := ^uint64(0)
		if word == int(low/64) {
			mask &= ^uint64(0) << (low % 64)
		}
		if word == int(high/64) {
			mask &= ^uint64(0) >> (63 - high%64)
		}
		bits[word] |= mask
	}
}

func (in *innocents) has(p Proto, number uint16) bool {
	switch p {
	case TCP:
		return in.tcp[number/64]>>(number%64)&1 != 0
	case UDP:
		return in.udp[number/64]>>(number%64)&1 != 0
	}
	return p == ICMP && (number == pingUnix || number == pingWindows)
}
