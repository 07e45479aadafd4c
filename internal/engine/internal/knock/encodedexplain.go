package knock

import (
	"fmt"

	"github.com/sallyport/sallyport/internal/engine/internal/packet"
	"github.com/sallyport/sallyport/internal/spa"
)

// Explain shows the packet, and puts into words what became of it.
func (s *messages) Explain(p *packet.Packet, now int64) ([]Outcome, []Explanation) {
	out := s.Observe(p, now)
	if s.fate.part == 0 {
		return out, nil
	}
	d := &s.doors[s.fate.door]
	if s.fate.what == partRefused {
		s.fate.why = refusalText(&s.refusal)
	}
	return out, []Explanation{{Knock: d.knock, Text: s.fate.text(d, s.asked.Action)}}
}

// partFate is what became of the latest packet.
type partFate struct {
	what  what
	door  int
	part  int // from 1 on
	stage int // parts that are here now
	lost  int // parts of the attempt that this packet ended
	late  bool
	who   string
	why   string
}

// what a packet was.
type what uint8

const (
	partOutside what = iota
	partNotOpening
	partCopied
	partTaken
	partBegan // anew, with this part
	partUnopened
	partRepeated
	partRefused
	partMade
)

// text says what became of a packet.
func (f *partFate) text(d *coded, action spa.Action) string {
	all := d.parts.Steps
	part := fmt.Sprintf("part %d of %d", f.part, all)
	here := fmt.Sprintf("parts here: %d", f.stage)
	if f.what >= partUnopened {
		here = "all parts are here"
	}
	switch {
	case f.what == partNotOpening:
		return part + " is only a packet that opens a connection: this one counts for nothing"
	case f.what == partCopied && f.stage == all:
		return part + " came again after its message had its answer: harmless"
	case f.what == partCopied:
		return fmt.Sprintf("%s came again: harmless, %s", part, here)
	case f.late:
		part += fmt.Sprintf(", too late for what was here: all parts must come within %v, so a new attempt begins", d.cfg.Within)
	case f.what == partBegan && f.lost > 0:
		part += fmt.Sprintf(" came twice with different content, so %d parts are forgotten: a new attempt", f.lost)
	case f.what == partBegan:
		part += " of another message than the last one: a new attempt"
	}
	return part + "; " + here + f.end(action)
}

// end says what became of a whole message.
func (f *partFate) end(action spa.Action) string {
	switch f.what {
	case partUnopened:
		return ", and no person's secret opens the message: " + f.why + "; compare the secret, and the knock's name, base, span and payload, with the client's"
	case partRepeated:
		return ", and the message was heard before: nothing happens"
	case partRefused:
		return fmt.Sprintf(", and %s asks to %s: %s", f.who, action, f.why)
	case partMade:
		return fmt.Sprintf(", and %s asks to %s", f.who, action)
	}
	return ""
}
