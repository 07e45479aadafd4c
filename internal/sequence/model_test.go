package sequence

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// model is the rules of a sequence written down a second time, slowly and
// without a bound, to compare the matcher with.
type model struct {
	seqs     []Sequence
	innocent []Step // Proto and Port only
	attempts map[modelWho]*modelAttempt
}

type modelWho struct {
	src netip.Addr
	seq int
}

type modelAttempt struct {
	first     int64 // when it began; when it was completed once it is
	made      []modelStep
	completed bool
}

type modelStep struct {
	id uint64
	at int64
}

func (m *model) observe(src netip.Addr, h Hit, now int64) []Outcome {
	var out []Outcome
	stands, spent := make([]bool, len(m.seqs)), false
	for i, s := range m.seqs {
		if s.Target.IsValid() && h.Dst != s.Target || !s.Target.IsValid() && h.Elsewhere {
			continue
		}
		who := modelWho{src, i}
		a := m.attempts[who]
		if a == nil {
			continue
		}
		copied := a.holds(s, h, now)
		verdict, still := m.rules(s, a, h, now)
		if verdict != 0 {
			out = append(out, Outcome{i, verdict, len(a.made)})
		}
		spent = spent || verdict == Completed || verdict == Repeated && copied
		if stands[i] = still; !still {
			delete(m.attempts, who)
		}
	}
	for i, s := range m.seqs {
		if s.Target.IsValid() && h.Dst != s.Target || !s.Target.IsValid() && h.Elsewhere || stands[i] || spent {
			continue
		}
		who := modelWho{src, i}
		if modelIs(s.Steps[0], h) {
			a := &modelAttempt{first: now, made: []modelStep{{h.ID, now}}}
			m.attempts[who] = a
			verdict := Started
			if len(s.Steps) == 1 {
				verdict, a.completed = Completed, true
			}
			out = append(out, Outcome{i, verdict, 1})
		}
	}
	slices.SortStableFunc(out, func(a, b Outcome) int { return cmp.Compare(a.Sequence, b.Sequence) })
	return out
}

func (m *model) rules(s Sequence, a *modelAttempt, h Hit, now int64) (v Verdict, stands bool) {
	if !modelCounts(s, h) {
		return 0, true
	}
	if m.over(s, a, now) {
		if a.completed {
			return 0, false
		}
		return Expired, false
	}
	if a.holds(s, h, now) {
		return Repeated, true
	}
	if a.completed {
		return 0, !modelIs(s.Steps[0], h)
	}
	last := len(a.made) - 1
	if modelIs(s.Steps[last+1], h) {
		a.made = append(a.made, modelStep{h.ID, now})
		if len(a.made) < len(s.Steps) {
			return Advanced, true
		}
		a.completed, a.first = true, now
		return Completed, true
	}
	if modelIs(s.Steps[last], h) {
		a.made[last] = modelStep{h.ID, now}
		if last == 0 {
			a.first = now
		}
		return Repeated, true
	}
	if m.wrong(s, h) {
		return Wrong, false
	}
	return 0, true
}

// holds reports whether this very packet made one of the steps.
func (a *modelAttempt) holds(s Sequence, h Hit, now int64) bool {
	for i, step := range a.made {
		recent := now/1e6-step.at/1e6 <= 1000 // the clock ticks in milliseconds
		if modelIs(s.Steps[i], h) && step.id == h.ID && (h.Proto == TCP || h.Proto == SCTP || h.Proto == DCCP || recent) {
			return true
		}
	}
	return false
}

func (m *model) over(s Sequence, a *modelAttempt, now int64) bool {
	if a.completed {
		return now-a.first > max(int64(s.Within), 1e9)
	}
	return s.Within <= 0 || now-a.first > int64(s.Within)
}

// expire gives what is over, in the order of byTimeout.
func (m *model) expire(now int64) []Timeout {
	var out []Timeout
	for who, a := range m.attempts {
		if !m.over(m.seqs[who.seq], a, now) {
			continue
		}
		if !a.completed {
			out = append(out, Timeout{who.src, who.seq, len(a.made)})
		}
		delete(m.attempts, who)
	}
	slices.SortFunc(out, byTimeout)
	return out
}

func byTimeout(a, b Timeout) int {
	return cmp.Or(a.Source.Compare(b.Source), cmp.Compare(a.Sequence, b.Sequence))
}

func modelIs(s Step, h Hit) bool {
	switch {
	case s.Proto != h.Proto:
		return false
	case s.Proto == ICMP:
		return s.AnySize || s.Port == h.Port
	case s.Proto == TCP:
		return s.Port == h.Port && h.Flags&s.Flags.Set == s.Flags.Set && h.Flags&s.Flags.Clear == 0
	}
	return s.Port == h.Port
}

func modelSYN(h Hit) bool {
	return h.Proto == TCP && h.Flags&SYN != 0 && h.Flags&(ACK|RST|FIN) == 0
}

// modelCounts: a SYN, or a packet with the flags that some step names.
func modelCounts(s Sequence, h Hit) bool {
	counts := h.Proto != TCP || modelSYN(h)
	for _, step := range s.Steps {
		counts = counts || step.Proto == TCP && h.Flags&step.Flags.Set == step.Flags.Set && h.Flags&step.Flags.Clear == 0
	}
	return counts
}

func (m *model) wrong(s Sequence, h Hit) bool {
	if s.Strict && (modelSYN(h) || h.Proto == UDP) {
		return true
	}
	if h.Proto == modelBare {
		return false
	}
	uses := slices.ContainsFunc(s.Steps, func(s Step) bool { return s.Proto == h.Proto })
	if s.Strict && uses && slices.Contains([]Proto{SCTP, DCCP, UDPLite}, h.Proto) {
		return true
	}
	// Port 0 is in no ring: just the port that some step has.
	zero := func(p Proto, port uint16) bool { return p != ICMP && p != modelBare && port == 0 }
	if zero(h.Proto, h.Port) {
		has := slices.ContainsFunc(s.Steps, func(s Step) bool { return zero(s.Proto, s.Port) })
		return uses && has && !slices.Contains(m.innocent, Step{Proto: h.Proto, Port: 0})
	}
	var numbers []int
	used := false
	for _, step := range s.Steps {
		if step.Proto == h.Proto && !step.AnySize {
			used = true
		}
		if zero(step.Proto, step.Port) || step.Proto == modelBare {
			continue
		}
		if (step.Proto == ICMP) == (h.Proto == ICMP) && !step.AnySize {
			numbers = append(numbers, int(step.Port))
		}
	}
	if !used || len(numbers) == 0 {
		return false
	}
	ring, port := 65535, int(h.Port)
	if h.Proto == ICMP {
		ring = 65508
	}
	guarded := slices.Min(numbers)-64 <= port && port <= slices.Max(numbers)+64
	neighbour := false
	for _, step := range s.Steps {
		if (step.Proto == ICMP) != (h.Proto == ICMP) || step.AnySize || zero(step.Proto, step.Port) || step.Proto == modelBare {
			continue
		}
		for d := -64; d <= 64; d++ {
			hit := (int(step.Port)+d-port)%ring == 0
			guarded = guarded || hit
			neighbour = neighbour || hit && (d == 1 || d == -1) && step.Proto == h.Proto
		}
	}
	innocent := slices.Contains(m.innocent, Step{Proto: h.Proto, Port: h.Port}) ||
		h.Proto == ICMP && (h.Port == 56 || h.Port == 32)
	return guarded && (!innocent || neighbour)
}

// The numbers crowd around the places where the rules change: neighbours, the
// margins of each other, both ends of the ring, ping's own sizes.
var numbers = []uint16{0, 1, 2, 30, 31, 32, 33, 55, 56, 57, 64, 65, 66, 96, 97, 120, 121, 7000, 7001, 7002, 7064, 7065,
	7066, 7130, 65471, 65472, 65507, 65534, 65535}

// modelBare is the one bare protocol of the model.
const modelBare Proto = 47

func pick[T any](rng *rand.Rand, from []T) T { return from[rng.IntN(len(from))] }

func drawStep(rng *rand.Rand) Step {
	s := Step{Proto: pick(rng, []Proto{TCP, TCP, TCP, TCP, UDP, UDP, ICMP, ICMP, SCTP, DCCP, UDPLite, modelBare}), Port: pick(rng, numbers)}
	switch s.Proto {
	case TCP:
		s.Flags = pick(rng, []Flags{Opening, Opening, Opening, {Set: FIN}, {Set: SYN, Clear: ACK}, Nothing})
	case ICMP:
		s.Port = min(s.Port, MaxEcho)
		if rng.IntN(3) == 0 {
			s.Port, s.AnySize = 0, true
		}
	case modelBare:
		s.Port = 0
	}
	return s
}

// here is this host and there another one; both can be targets.
var here, there = netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("198.51.100.7")

func drawTarget(rng *rand.Rand) netip.Addr {
	return pick(rng, []netip.Addr{{}, {}, {}, here, there})
}

// aimAt sends a packet where the sequence's go, mostly.
func aimAt(rng *rand.Rand, h *Hit, s Sequence) {
	h.Dst = s.Target
	if !h.Dst.IsValid() || rng.IntN(10) == 0 {
		h.Dst = pick(rng, []netip.Addr{here, here, here, there})
	}
	h.Elsewhere = h.Dst != here
}

func drawSequences(rng *rand.Rand) []Sequence {
	var seqs []Sequence
	for i := range 1 + rng.IntN(4) {
		s := Sequence{Name: fmt.Sprint(i), Within: time.Duration(1+rng.IntN(3)) * time.Second, Strict: rng.IntN(6) == 0, Target: drawTarget(rng)}
		if rng.IntN(10) == 0 {
			s.Within = pick(rng, []time.Duration{0, -time.Second})
		}
		for range 1 + rng.IntN(5) {
			s.Steps = append(s.Steps, drawStep(rng))
		}
		if i > 0 && rng.IntN(3) == 0 { // a shared beginning
			s.Steps = slices.Concat(seqs[0].Steps[:1], s.Steps)
		}
		seqs = append(seqs, s)
	}
	return seqs
}

// drawHit is half the time the next step of a cursor that walks along a
// sequence, so that long ways are gone; or else any step, or anything.
func drawHit(rng *rand.Rand, seqs []Sequence, cursor *int) Hit {
	s := seqs[0]
	if rng.IntN(4) == 0 {
		s = pick(rng, seqs)
	}
	step := pick(rng, s.Steps)
	switch rng.IntN(7) {
	case 0:
		step = drawStep(rng)
	case 1, 2, 3, 4:
		step = s.Steps[*cursor%len(s.Steps)]
		*cursor++
	}
	h := hitOf(step, rng.Uint64N(5))
	if step.AnySize {
		h.Port = min(pick(rng, numbers), MaxEcho)
	}
	aimAt(rng, &h, s)
	if rng.IntN(8) == 0 {
		h.Flags = pick(rng, []uint8{SYN | 0xc0, SYN | ACK, ACK, FIN, FIN | SYN, 0})
	}
	return h
}

// TestAgainstModel plays seeded random packets of two sources of each family
// to the matcher and to the model.
func TestAgainstModel(t *testing.T) {
	verdicts, expired := map[Verdict]int{}, 0
	for seed := range uint64(4000) {
		rng := rand.New(rand.NewPCG(seed, 1))
		seqs := drawSequences(rng)
		var innocent []Step
		var spans []Span
		for range rng.IntN(5) {
			innocent = append(innocent, Step{Proto: pick(rng, []Proto{TCP, UDP}), Port: pick(rng, numbers)})
			last := innocent[len(innocent)-1]
			spans = append(spans, Span{last.Proto, last.Port, last.Port})
		}
		slow := model{seqs, innocent, map[modelWho]*modelAttempt{}}
		m := New(seqs, spans, 64)
		now := int64(0)
		var cursors [4]int
		for n := range 200 {
			now += pick(rng, []int64{0, 1, 1e6, 1e8, 2e8, 3e8, 1e9, 1e9 + 1e6})
			who := rng.IntN(4)
			src := families[[]string{"IPv4", "IPv6"}[who%2]](who/2 + 1)
			h := drawHit(rng, seqs, &cursors[who])
			if rng.IntN(10) == 0 {
				want, got := slow.expire(now), slices.Clone(m.Expire(now))
				slices.SortFunc(got, byTimeout)
				if !slices.Equal(got, want) {
					t.Fatalf("seed %d packet %d: expired at %d: got %v, want %v", seed, n, now, got, want)
				}
				expired += len(want)
			}
			want := slow.observe(src, h, now)
			got := slices.Clone(m.Observe(src, h, now))
			slices.SortStableFunc(got, func(a, b Outcome) int { return cmp.Compare(a.Sequence, b.Sequence) })
			if !slices.Equal(got, want) {
				t.Fatalf("seed %d packet %d, %v to %d/%v flags %#x id %d at %d, sequences %v:\n got %v\nwant %v",
					seed, n, src, h.Port, h.Proto, h.Flags, h.ID, now, seqs, got, want)
			}
			for _, o := range want {
				verdicts[o.Verdict]++
				if o.Verdict == Completed && o.Stage >= 4 {
					verdicts[0]++
				}
			}
		}
	}
	for v := Verdict(0); v <= Expired; v++ {
		if verdicts[v] < 300 {
			t.Errorf("only %d packets were %v (none: completed after four steps): the model was not put to the test", verdicts[v], v)
		}
	}
	if expired < 300 {
		t.Errorf("Expire gave only %d", expired)
	}
	t.Log(verdicts, expired)
}
