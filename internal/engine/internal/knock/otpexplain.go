package knock

import (
	"fmt"
	"net/netip"

	"github.com/sallyport/sallyport/internal/engine/internal/packet"
)

// Explain shows the packet, and puts into words what became of it.
func (s *passwords) Explain(p *packet.Packet, now int64) ([]Outcome, []Explanation) {
	out := s.Observe(p, now)
	var all []Explanation
	for i := range s.fates {
		f := &s.fates[i]
		text := f.text(p)
		if f.who != nil {
			text += fmt.Sprintf(" (by the secret of %s)", f.who.Name)
		}
		all = append(all, Explanation{f.door.knock, text})
	}
	return out, all
}

// otpFate is what became of the latest packet at one attempt, or at a knock.
type otpFate struct {
	door  *otpDoor
	what  note
	who   *otpPerson // nil where nobody can know
	stage int
	why   string
}

// note is what a packet meant. Its words name no port.
type note uint8

const (
	noteNothing    note = iota // no first step, and nothing was begun
	noteStep                   // a step was made
	noteStepBehind             // of the time step before the present one
	noteStepAhead              // of the one after it
	noteCopy
	noteAgain
	noteLost
	noteLate
	noteWrongCode
	noteUsedUp
	noteRefused
	noteMade
)

// note keeps what a packet meant, for Explain.
func (s *passwords) note(d *otpDoor, what note, who *otpPerson, stage int) {
	s.fates = append(s.fates, otpFate{door: d, what: what, who: who, stage: stage})
}

// noteOf is note for an attempt.
func (s *passwords) noteOf(d *otpDoor, a *attempt, what note) {
	var who *otpPerson
	if d.digits.Count == 0 {
		who = &d.people[a.person]
	}
	s.note(d, what, who, int(a.stage))
}

// text says what became of a packet.
func (f *otpFate) text(p *packet.Packet) string {
	d, stage := f.door, f.stage
	of := fmt.Sprintf("step %d of %d", stage, d.length())
	switch f.what {
	case noteNothing:
		return d.nothing()
	case noteStep:
		return of + " made"
	case noteStepBehind:
		return of + " made, of the time step before: the sender's clock is behind by up to " + d.TimeStep.String() + ", or it was slow"
	case noteStepAhead:
		return of + " made, of the next time step: the sender's clock is ahead by up to " + d.TimeStep.String()
	case noteCopy:
		return "a copy of a packet that made a step, which is harmless"
	case noteAgain:
		return of + " once more, which is harmless"
	case noteLost:
		return d.ended(p.Src, stage)
	case noteLate:
		return fmt.Sprintf("the attempt, with %d of %d steps, was over: it took longer than within = %v", stage, d.length(), d.cfg.Within)
	case noteWrongCode:
		return fmt.Sprintf("the code is nobody's now: it was typed wrongly or is too old, a clock is off by more than %v, or the app has another secret", d.TimeStep)
	case noteUsedUp:
		return "the last step, but this password was used up before: one opens once in each time step, so wait for the next"
	case noteRefused:
		return "the last step, and refused: " + f.why
	}
	return "the last step, and the knock is complete"
}

// nothing says what to look at where no secret gives such a port.
func (d *otpDoor) nothing() string {
	if d.digits.Count > 0 {
		return "not the first pair of digits, and no code was begun"
	}
	return fmt.Sprintf("a port of the pool, and the first one of nobody's sequence now; if it was meant as one, then the clocks differ by more than %v, or the secret, the knock's name, or the pool are not the same on both sides", d.TimeStep)
}

func (d *otpDoor) ended(src netip.Addr, stage int) string {
	text := fmt.Sprintf("not the next step, so the attempt is over after %d of %d; nothing is used up by that", stage, d.length())
	if d.digits.Count == 0 && stage == 1 && !d.AnyAddress {
		text += fmt.Sprintf("; the steps after the first depend on the sender's address, which is %v here: a client behind NAT must know it, or the knock say any_address = true", src)
	}
	return text
}
