package sequence

import (
	"fmt"
	"net/netip"
	"time"
)

// Meaning is what a packet would do to one sequence, and why.
type Meaning struct {
	Sequence int    // index into what New was given
	Text     string // for people; it names no port
	verdicts []Verdict
}

// Explain says what Observe would do with the same packet, and changes nothing.
// Sequences that the packet says nothing to are left out. It allocates, so it is
// for a source that somebody looks at.
func (m *Matcher) Explain(src netip.Addr, h Hit, now int64) []Meaning {
	if src.Is4In6() {
		return nil
	}
	e := explainer{m: m, h: h, now: now, attempts: m.attemptsOf(src.As16())}
	if m.doors != nil {
		return e.classic()
	}
	return e.own()
}

// attemptsOf gives the attempts of a source by their rule.
func (m *Matcher) attemptsOf(addr [16]byte) map[int32]int32 {
	found := map[int32]int32{}
	for i := *m.bucket(&addr); i != 0; i = m.slots[i].chainNext {
		if m.slots[i].src == addr {
			found[m.slots[i].rule] = i
		}
	}
	return found
}

// explainer is one packet that is looked at.
type explainer struct {
	m        *Matcher
	h        Hit
	now      int64
	attempts map[int32]int32
	out      []Meaning
}

func (e *explainer) say(r int, text string, verdicts ...Verdict) {
	if text != "" {
		e.out = append(e.out, Meaning{r, text, verdicts})
	}
}

// own is Observe's rules (follow, judge, start), in words.
func (e *explainer) own() []Meaning {
	spent := e.spent()
	for n := range e.m.rules {
		r := &e.m.rules[n]
		switch i, under := e.attempts[int32(n)]; {
		case e.h.Proto == TCP && !e.m.flags[e.h.Flags]:
		case !e.h.to(r.Target):
			if !e.h.Elsewhere && r.step(e.h) > 0 {
				e.say(n, "it is not to the one address that this knock is for (target)")
			}
		case !r.takes(e.h):
			e.flags(n, r)
		case under:
			e.attempt(n, i, spent)
		default:
			e.begin(n, "", spent)
		}
	}
	return e.out
}

// spent reports whether the packet ends one of the source's attempts well, or
// copies a step of one: then it begins no other.
func (e *explainer) spent() bool {
	for n, i := range e.attempts {
		a, r := &e.m.slots[i], &e.m.rules[n]
		switch {
		case !e.h.to(r.Target), !r.takes(e.h), e.now > a.until:
		case e.m.isCopy(i, e.h, e.now):
			return true
		case !a.done && int(a.stage) == len(r.Steps)-1 && r.Steps[a.stage].matches(e.h):
			return true
		}
	}
	return false
}

// attempt is judge in words.
func (e *explainer) attempt(n int, i int32, spent bool) {
	m, a, r := e.m, &e.m.slots[i], &e.m.rules[n]
	made, all := int(a.stage), len(r.Steps)
	switch {
	case e.now > a.until && a.done:
		e.begin(n, "", spent)
	case e.now > a.until:
		e.begin(n, e.tooLate(i), spent, Expired)
	case m.isCopy(i, e.h, e.now):
		e.say(n, fmt.Sprintf("a copy of step %d: harmless", e.copied(i)), Repeated)
	case a.done:
		e.begin(n, "", spent)
	case r.Steps[made].matches(e.h) && made+1 == all:
		e.say(n, fmt.Sprintf("step %d of %d made: the knock is complete", all, all), Completed)
	case r.Steps[made].matches(e.h):
		e.say(n, fmt.Sprintf("step %d of %d made", made+1, all), Advanced)
	case r.Steps[made-1].matches(e.h):
		e.say(n, fmt.Sprintf("step %d once more: harmless", made), Repeated)
	case r.wrong(e.h, &m.innocent):
		e.begin(n, e.other(r, made)+"; the attempt ends", spent, Wrong)
	case r.step(e.h) > 0 || r.covers(e.h.Proto, e.h.Port):
		e.say(n, e.other(r, made)+", but a port in use: harmless")
	}
}

// tooLate says when an attempt began that is over. A packet that it did not wait for
// only finds that out.
func (e *explainer) tooLate(i int32) string {
	a := &e.m.slots[i]
	if !e.awaited(i) {
		return ranOut
	}
	within := e.m.rules[a.rule].Within
	began := a.until - int64(within)
	return fmt.Sprintf("too late: %v after the first step, and within is %v", time.Duration(e.now-began).Round(100*time.Millisecond), within)
}

const ranOut = "the attempt before it has run out"

// awaited reports whether the packet is the step that an attempt waits for.
func (e *explainer) awaited(i int32) bool {
	a := &e.m.slots[i]
	steps := e.m.rules[a.rule].Steps
	return int(a.stage) < len(steps) && steps[a.stage].matches(e.h)
}

// copied is the number of the step that the packet is a copy of.
func (e *explainer) copied(i int32) int {
	a := &e.m.slots[i]
	for n, step := range e.m.rules[a.rule].Steps[:a.stage] {
		if same, _ := e.m.recorded(i, n, e.h.ID, e.now); same && step.matches(e.h) {
			return n + 1
		}
	}
	return int(a.stage)
}

// begin says whether the packet begins an attempt, behind the words about the one
// that it ended, if it did.
func (e *explainer) begin(n int, before string, spent bool, verdicts ...Verdict) {
	r := &e.m.rules[n]
	text := ""
	switch all := len(r.Steps); {
	case all == 0: // switched off
	case !r.Steps[0].matches(e.h):
		if before == "" {
			text = e.idle(r)
		}
	case spent:
		text = "another knock has taken this packet, so it begins none here"
	case all == 1:
		text, verdicts = "step 1 of 1 made: the knock is complete", append(verdicts, Completed)
	default:
		text, verdicts = fmt.Sprintf("step 1 of %d made", all), append(verdicts, Started)
	}
	if before != "" && text != "" {
		before += "; "
	}
	e.say(n, before+text, verdicts...)
}

// idle is about a packet of a source without an attempt.
func (e *explainer) idle(r *rule) string {
	switch step := r.step(e.h); {
	case step > 0:
		return fmt.Sprintf("this is step %d, and step 1 did not come before it, or too long ago: it counts for nothing", step)
	case r.covers(e.h.Proto, e.h.Port):
		return "no attempt is under way, and this is not its first step"
	}
	return ""
}

// flags is about a TCP segment to a step's port with other flags than any step of
// the knock wants.
func (e *explainer) flags(n int, r *rule) {
	for i, s := range r.Steps {
		if s.Proto == TCP && s.Port == e.h.Port {
			e.say(n, fmt.Sprintf("the port is that of step %d, and its flags are not: harmless", i+1))
			return
		}
	}
}

// step is the number of the first step that the packet could be, counted from 1;
// 0: none.
func (r *rule) step(h Hit) int {
	for i := range r.Steps {
		if r.Steps[i].matches(h) {
			return i + 1
		}
	}
	return 0
}

// other says how the packet differs from the step that an attempt awaits, as far
// as that tells what went wrong.
func (e *explainer) other(r *rule, made int) string {
	next, awaited := made+1, &r.Steps[made]
	switch step := r.step(e.h); {
	case step > next:
		return fmt.Sprintf("this is step %d, and step %d is missing", step, next)
	case step > 0:
		return fmt.Sprintf("this is step %d, and step %d was to come", step, next)
	case awaited.Port == e.h.Port && awaited.Proto != e.h.Proto:
		return fmt.Sprintf("the number is that of step %d, and its protocol is not", next)
	case awaited.Port == e.h.Port && awaited.Proto == TCP:
		return fmt.Sprintf("the port is that of step %d, and its flags are not", next)
	case e.h.Proto == ICMP:
		return fmt.Sprintf("this is not what step %d wants", next)
	}
	return fmt.Sprintf("this is not the port that step %d wants", next)
}

// classic is knockd's rules (classic.go), in words.
func (e *explainer) classic() []Meaning {
	if !e.m.visible(e.h) {
		return nil
	}
	busy := false
	for n, i := range e.attempts {
		a, r := &e.m.slots[i], &e.m.rules[n]
		busy = busy || e.now <= a.until && e.h.to(r.Target)
	}
	for n := range e.m.rules {
		if i, under := e.attempts[int32(n)]; under && e.now <= e.m.slots[i].until {
			e.door(n, i)
		} else {
			e.knockdBegin(n, i, under, busy)
		}
	}
	return e.out
}

// door is carryOn in words.
func (e *explainer) door(n int, i int32) {
	a, r := &e.m.slots[i], &e.m.rules[n]
	made, all := int(a.stage), len(r.Steps)
	switch {
	case !e.h.to(r.Target):
	case e.h.Proto == TCP && !r.door.Match(e.h.Flags):
		e.say(n, "its flags are not the door's: harmless")
	case r.Steps[made].matches(e.h) && made+1 == all:
		e.say(n, fmt.Sprintf("step %d of %d made: the knock is complete", all, all), Completed)
	case r.Steps[made].matches(e.h):
		e.say(n, fmt.Sprintf("step %d of %d made", made+1, all), Advanced)
	default:
		e.say(n, e.other(r, made)+"; the attempt ends", Wrong)
	}
}

// knockdBegin is about a door at which no attempt is under way, or one whose time
// is over.
func (e *explainer) knockdBegin(n int, i int32, under, busy bool) {
	r := &e.m.rules[n]
	before, verdicts := "", []Verdict(nil)
	if under {
		before, verdicts = ranOut, []Verdict{Expired}
		if e.awaited(i) {
			before = "too late: the time of the attempt was over"
		}
	}
	switch {
	case !e.h.to(r.Target):
		e.say(n, before, verdicts...)
	case busy && len(r.Steps) > 0 && r.Steps[0].matches(e.h):
		if before != "" {
			before += "; "
		}
		e.say(n, before+"an attempt at another door is under way, so this begins none", verdicts...)
	case e.h.Proto == ICMP: // knockd has none
	default:
		e.begin(n, before, false, verdicts...)
	}
}
