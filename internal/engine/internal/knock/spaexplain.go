package knock

import (
	"fmt"
	"time"

	"github.com/sallyport/sallyport/internal/engine/internal/packet"
	"github.com/sallyport/sallyport/internal/spa"
)

// Explain shows the packet and says where its way ended: that is the number that
// it counted in.
func (s *authentic) Explain(p *packet.Packet, now int64) ([]Outcome, []Explanation) {
	door := s.doorOf(p)
	if door < 0 {
		return s.Observe(p, now), s.cut(p)
	}
	before := s.counts
	out := s.Observe(p, now)
	return out, []Explanation{{Knock: s.doors[door].knock, Text: s.ended(&before, out)}}
}

// doorOf gives the door whose gates a packet passes, or else the first that hears
// it; -1: none does.
func (s *authentic) doorOf(p *packet.Packet) int {
	first := -1
	for i := range s.doors {
		d := &s.doors[i]
		if !d.hears(p) {
			continue
		}
		if first < 0 {
			first = i
		}
		b := spa.Single(p.Payload)
		for j := range d.keys {
			if gate := d.keys[j].Key.Gate(); b != nil && gate.First(b) && gate.Second(b) {
				return i
			}
		}
	}
	return first
}

// cut explains a packet that only its missing end keeps from being heard.
func (s *authentic) cut(p *packet.Packet) []Explanation {
	whole := *p
	whole.Cut = false
	for i := range s.doors {
		if p.Cut && s.doors[i].hears(&whole) {
			return []Explanation{{Knock: s.doors[i].knock, Text: "the capture has only its beginning, so nobody can say what it was; capture whole packets ('tcpdump -s 0')"}}
		}
	}
	return nil
}

// ended says what was counted since before.
func (s *authentic) ended(before *authenticCounts, out []Outcome) string {
	c := &s.counts
	switch {
	case len(out) > 0 && out[0].Verdict == Refused:
		return refusalText(&s.refusal)
	case c.made > before.made:
		return "signed by an allowed key, fresh and allowed: the knock is complete"
	case c.length > before.length:
		return "its length is no request's"
	case c.gate > before.gate:
		return "the first gate tag is wrong: it is no request, or made with another server's address"
	case c.second > before.second:
		return "the first gate tag is right and the second is not: it was damaged, or somebody made it from one that he saw"
	case c.repeat > before.repeat:
		return "a copy of a request that had its answer: it says nothing new"
	case c.seal > before.seal:
		return "both gate tags are right and the seal is not: whoever made it has this server's address, and it is no request"
	case c.signature > before.signature:
		return "it names an allowed key and is not signed by it"
	}
	return "a copy of a request that was refused: it says nothing new"
}

// refusalText says why a request was refused, and by how much its time is off.
func refusalText(r *Refusal) string {
	text := "refused: " + r.Why
	switch {
	case r.Skew < 0:
		text += fmt.Sprintf(": stale by %v", (-r.Skew).Round(time.Millisecond))
	case r.Skew > 0:
		text += fmt.Sprintf(": ahead by %v", r.Skew.Round(time.Millisecond))
	case !r.Boundary.IsZero():
		text += ", up to " + r.Boundary.UTC().Format(time.RFC3339)
	case r.Stranger != (spa.Fingerprint{}):
		text += ": " + r.Stranger.String()
	}
	return text
}
