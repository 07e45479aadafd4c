package knock

import (
	"fmt"
	"hash/maphash"
	"slices"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/engine/internal/packet"
	"github.com/sallyport/sallyport/internal/engine/internal/policy"
	"github.com/sallyport/sallyport/internal/sequence"
)

// sequences recognises all knocks of type "sequence" at once: one table for
// every source, whatever the number of knocks.
type sequences struct {
	*Setting
	matcher *sequence.Matcher
	knocks  []int // index in the matcher → index in the config's Knocks
	ahead   []int // index in the matcher → which line of the knock's list, 0 without one
	seed    maphash.Seed
	out     []Outcome
	steps   uint64
	lost    uint64
}

// newSequences makes the recogniser for a config. Attempts of old whose
// sequence is still in the config go on.
func newSequences(setting *Setting, old Recogniser) Recogniser {
	s := &sequences{Setting: setting, seed: maphash.MakeSeed()}
	cfg := setting.Config
	var list []sequence.Sequence
	for i := range cfg.Knocks {
		k := &cfg.Knocks[i]
		if k.Type != "sequence" {
			continue
		}
		for n, steps := range k.Lines() {
			s.knocks, s.ahead = append(s.knocks, i), append(s.ahead, n)
			list = append(list, sequence.Sequence{Name: lineName(k, steps), Steps: steps, Within: k.Within, Strict: k.Strict, Classic: cfg.Knockd.Classic, Target: k.Target})
		}
	}
	s.matcher = sequence.New(list, config.Innocent(cfg, setting.Host.Listening), cfg.Daemon.MaxAttempts)
	if old, ok := old.(*sequences); ok {
		s.seed = old.seed // so that retransmissions are still known
		s.steps, s.lost = old.steps, old.lost
		s.matcher.Adopt(old.matcher)
	}
	return s
}

// lineName tells the lines of a list apart, also when others have gone and a line has
// another place: who is in the middle of it goes on.
func lineName(k *config.Knock, steps []sequence.Step) string {
	if k.List == "" {
		return k.Name
	}
	return fmt.Sprintf("%s %v", k.Name, steps)
}

// HostChanged looks which ports listen now.
func (s *sequences) HostChanged() {
	s.matcher.Innocent(config.Innocent(s.Config, s.Host.Listening))
}

// Observe shows the recogniser one packet.
func (s *sequences) Observe(p *packet.Packet, now int64) []Outcome {
	s.out = s.out[:0]
	for _, o := range s.matcher.Observe(p.Src, s.hit(p), now) {
		out := Outcome{Stage: o.Stage, Claim: policy.Claim{Knock: s.knocks[o.Sequence], Source: p.Src}}
		switch o.Verdict {
		case sequence.Started, sequence.Advanced:
			s.steps++
			out.Verdict = Advanced
		case sequence.Completed:
			s.steps++
			out.Verdict, out.Ahead = Made, s.ahead[o.Sequence]
		case sequence.Wrong:
			s.lost++
			out.Verdict = Lost
		case sequence.Expired:
			out.Verdict = TimedOut
		default:
			continue
		}
		s.out = append(s.out, out)
	}
	return s.out
}

func (s *sequences) hit(p *packet.Packet) sequence.Hit {
	return sequence.Hit{Proto: p.Proto, Port: p.DstPort, Flags: p.Flags, ID: identity(s.seed, p), Dst: p.Dst, Elsewhere: p.Elsewhere}
}

// Explain says first what the packet will do, and then shows it.
func (s *sequences) Explain(p *packet.Packet, now int64) ([]Outcome, []Explanation) {
	var meant []Explanation
	for _, m := range s.matcher.Explain(p.Src, s.hit(p), now) {
		e := Explanation{Knock: s.knocks[m.Sequence], Text: m.Text}
		if !slices.Contains(meant, e) { // lines of one list
			meant = append(meant, e)
		}
	}
	return s.Observe(p, now), meant
}

// Tick ends the attempts whose time is over. Somebody has to be told of each only
// where there is a log in knockd's words.
func (s *sequences) Tick(now int64) []Outcome {
	s.out = s.out[:0]
	if !s.Config.Knockd.Log {
		return s.out
	}
	for _, t := range s.matcher.Expire(now) {
		s.out = append(s.out, Outcome{Verdict: TimedOut, Stage: t.Stage, Claim: policy.Claim{Knock: s.knocks[t.Sequence], Source: t.Source}})
	}
	return s.out
}

// identity is the same for a packet and its retransmissions or copies, and
// differs, as far as the packet allows, for another packet to the same port.
func identity(seed maphash.Seed, p *packet.Packet) uint64 {
	id := uint64(p.SrcPort)<<32 | uint64(p.Seq)
	if p.Proto == sequence.TCP {
		return id
	}
	// UDP over IPv6 has no identification, so the payload must tell.
	return id ^ maphash.Bytes(seed, p.Payload)
}

// Count tells of the table: attempts under way, and those that completed or
// expired a moment ago; and of those that made room for another in a full one.
func (s *sequences) Count(numbers map[string]uint64) {
	numbers["steps"], numbers["lost"] = s.steps, s.lost
	numbers["attempts"], numbers["evicted"] = uint64(s.matcher.Len()), s.matcher.Evicted()
}
