package knock

import (
	"fmt"

	"github.com/sallyport/sallyport/internal/engine/internal/packet"
)

// Explain is Observe that says what it did.
func (s *passwords) Explain(p *packet.Packet, now int64) ([]Outcome, []Explanation) {
	var notes []Explanation
	s.notes = &notes
	out := s.Observe(p, now)
	s.notes = nil
	return out, notes
}

// note is what a packet meant. The words name no port but the packet's own.
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

// note puts one into words, where somebody looks. Who is nil where nobody can know.
func (s *passwords) note(d *otpDoor, what note, p *packet.Packet, who *otpPerson, stage int) {
	if s.notes == nil {
		return
	}
	text := fmt.Sprintf("%d/%s: %s", p.DstPort, p.Proto, s.words(d, what, p, stage))
	if who != nil {
		text += fmt.Sprintf(" (by the secret of %s)", who.Name)
	}
	*s.notes = append(*s.notes, Explanation{d.knock, text})
}

// noteOf is note for an attempt.
func (s *passwords) noteOf(a *attempt, what note, p *packet.Packet) {
	if s.notes == nil {
		return
	}
	d := &s.doors[a.door]
	var who *otpPerson
	if d.digits.Count == 0 {
		who = &d.people[a.person]
	}
	s.note(d, what, p, who, int(a.stage))
}

func (s *passwords) words(d *otpDoor, what note, p *packet.Packet, stage int) string {
	of := fmt.Sprintf("step %d of %d", stage, d.length())
	switch what {
	case noteNothing:
		return s.nothing(d)
	case noteStep:
		return of
	case noteStepBehind:
		return of + ", of the time step before: the sender's clock is behind by up to " + d.TimeStep.String() + ", or it was slow"
	case noteStepAhead:
		return of + ", of the next time step: the sender's clock is ahead by up to " + d.TimeStep.String()
	case noteCopy:
		return "a copy of a packet that made a step, which is harmless"
	case noteAgain:
		return of + " once more, which is harmless"
	case noteLost:
		return s.ended(d, p, stage)
	case noteLate:
		return fmt.Sprintf("the attempt, with %d of %d steps, was over: it took longer than within = %v", stage, d.length(), d.cfg.Within)
	case noteWrongCode:
		return fmt.Sprintf("the code is nobody's now: it was typed wrongly or is too old, a clock is off by more than %v, or the app has another secret", d.TimeStep)
	case noteUsedUp:
		return "the last step, but this password was used up before: one opens once in each time step, so wait for the next"
	case noteRefused:
		return "the last step, and refused: " + s.out[len(s.out)-1].Refusal.Why
	}
	return "the last step, and it opens"
}

// nothing says what to look at where no secret gives such a port.
func (s *passwords) nothing(d *otpDoor) string {
	if d.digits.Count > 0 {
		return "not the first pair of digits, and no code was begun"
	}
	return fmt.Sprintf("a port of the pool, and the first one of nobody's sequence now; if it was meant as one, then the clocks differ by more than %v, or the secret, the knock's name, or the pool are not the same on both sides", d.TimeStep)
}

func (s *passwords) ended(d *otpDoor, p *packet.Packet, stage int) string {
	text := fmt.Sprintf("not the next step, so the attempt is over after %d of %d; nothing is used up by that", stage, d.length())
	if d.digits.Count == 0 && stage == 1 && !d.AnyAddress {
		text += fmt.Sprintf("; the steps after the first depend on the sender's address, which is %v here: a client behind NAT must know it, or the knock say any_address = true", p.Src)
	}
	return text
}
