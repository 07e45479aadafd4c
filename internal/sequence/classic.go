package sequence

import (
	"cmp"
	"net/netip"
	"slices"
	"time"
)

// This file has the rules of knockd 0.8 (sniff and process_attempt in knockd.c),
// but for what is a fault of its memory: there one source's attempt that ended
// made it forget those of all others, and its list has no bound.
//
//   - Only a packet that could be some step of some door is seen. A scan passes
//     between the steps unseen, so an ascending sequence opens to it.
//   - While a source has any attempt under way, a packet of its can only carry on
//     or end what it has: a retransmitted SYN ends it, too.
//   - An attempt that ended is gone, and so the next packet begins anew.

// aim is what a packet to the port of a door's step has to be.
type aim struct {
	flags  Flags // of TCP
	target netip.Addr
}

// doorsOf lists the steps of all doors, equal ones once, so that looking a packet
// up costs the same for a thousand doors. Steps of ICMP, which knockd has not,
// are left out: such a sequence is never made.
func doorsOf(seqs []Sequence) map[uint32][]aim {
	doors := make(map[uint32][]aim)
	for _, s := range seqs {
		for _, step := range s.Steps {
			k, a := key(step.Proto, step.Port), aim{step.Flags, s.Target}
			if step.Proto != ICMP && !slices.Contains(doors[k], a) {
				doors[k] = append(doors[k], a)
			}
		}
	}
	return doors
}

// ownSpans is the Guard of a classic sequence: its steps, and nothing beside them.
func (s Sequence) ownSpans() []Span {
	var spans []Span
	for _, step := range s.Steps {
		if span := (Span{step.Proto, step.Port, step.Port}); !slices.Contains(spans, span) {
			spans = append(spans, span)
		}
	}
	return spans
}

// classicDeadline counts in whole seconds of the matcher's clock, as knockd does
// in those of the wall clock: a step in the second start+Within, or later, comes
// too late. So the last moment is up to a second sooner than Within.
func (s *Sequence) classicDeadline(now int64) int64 {
	const second = int64(time.Second)
	return (now/second+int64(s.Within)/second)*second - 1
}

// classic is Observe by knockd's rules. The outcomes come in knockd's order: what
// is over, and then the doors as the file has them.
func (m *Matcher) classic(addr [16]byte, h Hit, now int64) {
	if !m.visible(h) {
		return
	}
	busy := false
	for i := *m.bucket(&addr); i != 0; {
		next := m.slots[i].chainNext
		if m.slots[i].src == addr && m.carryOn(i, h, now) {
			busy = true
		}
		i = next
	}
	if !busy {
		for _, r := range m.first[key(h.Proto, h.Port)] {
			m.start(r, addr, h, now)
		}
	}
	slices.SortFunc(m.out, inOrder)
}

// visible stands for knockd's packet filter.
func (m *Matcher) visible(h Hit) bool {
	for _, a := range m.doors[key(h.Proto, h.Port)] {
		if h.to(a.target) && (h.Proto != TCP || a.flags.Match(h.Flags)) {
			return true
		}
	}
	return false
}

// carryOn shows the packet to an attempt of its source, and reports whether that
// keeps it from beginning another: it does even where it means nothing to this
// door or ends the attempt.
func (m *Matcher) carryOn(i int32, h Hit, now int64) bool {
	a := &m.slots[i]
	r := &m.rules[a.rule]
	switch {
	case now > a.until:
		m.lose(i, Expired)
		return false
	case !h.to(r.Target):
		return false
	case h.Proto == TCP && !r.door.Match(h.Flags):
	case r.Steps[a.stage].matches(h):
		m.advance(i, h, now)
	default:
		m.lose(i, Wrong)
	}
	return true
}

func inOrder(a, b Outcome) int {
	if over := a.Verdict == Expired; over != (b.Verdict == Expired) {
		if over {
			return -1
		}
		return 1
	}
	return cmp.Compare(a.Sequence, b.Sequence)
}
