package knock

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"slices"
	"time"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/encoded"
	"github.com/sallyport/sallyport/internal/engine/internal/packet"
	"github.com/sallyport/sallyport/internal/engine/internal/policy"
	"github.com/sallyport/sallyport/internal/engine/internal/replay"
	"github.com/sallyport/sallyport/internal/secrets"
	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/sallyport/sallyport/internal/spa"
)

// messages recognises all knocks of type "encoded" at once.
type messages struct {
	*Setting
	doors   []coded // rising by protocol and first port; no two overlap
	table   *collections
	symbols [encoded.MaxSteps]uint16 // of the message being opened
	out     []Outcome
	asked   policy.Asked // of out
	refusal Refusal      // of out
	fate    partFate
	counts  messageCounts
}

type messageCounts struct {
	parts, copies, lost, unopened, repeat, stale, refused, made uint64
}

// coded is the ports of one knock of type "encoded", and who may speak through them.
type coded struct {
	knock  int
	cfg    *config.Knock
	parts  encoded.Parts
	opener *encoded.Opener
	keys   []*encoded.Key
	heard  []replay.Key
	people []secrets.Person
}

// newEncoded makes the recogniser for a config and its people. Where the shapes of
// all knocks are what they were, half-collected messages go on.
func newEncoded(setting *Setting, old Recogniser) Recogniser {
	s := &messages{Setting: setting, out: make([]Outcome, 0, 2)}
	steps := 1
	for i := range setting.Config.Knocks {
		if k := &setting.Config.Knocks[i]; k.Type == "encoded" {
			if d, err := newCoded(i, k, setting.Keys[i].People); err == nil {
				s.doors = append(s.doors, d)
				steps = max(steps, d.parts.Steps)
			}
		}
	}
	slices.SortFunc(s.doors, func(a, b coded) int { return a.order(b.cfg.Base.Proto, b.cfg.Base.Low) })
	before, _ := old.(*messages)
	if before != nil {
		s.counts = before.counts
		same := func(a, b coded) bool {
			return a.cfg.Name == b.cfg.Name && a.cfg.Base.Proto == b.cfg.Base.Proto && a.cfg.Shape() == b.cfg.Shape()
		}
		if before.Config.Daemon.MaxAttempts == setting.Config.Daemon.MaxAttempts && slices.EqualFunc(s.doors, before.doors, same) {
			s.table = before.table
			return s
		}
	}
	s.table = newCollections(setting.Config.Daemon.MaxAttempts, steps)
	if before != nil {
		s.table.evicted = before.table.evicted
	}
	return s
}

// newCoded works out the keys once: a message is tried with each of them.
func newCoded(knock int, k *config.Knock, people []secrets.Person) (coded, error) {
	shape := k.Shape()
	opener, err := encoded.NewOpener(shape)
	d := coded{knock: knock, cfg: k, opener: opener, people: people}
	if err != nil {
		return d, err // the config was checked: it can't be
	}
	d.parts = shape.Parts()
	for i := range people {
		p := &people[i]
		d.keys = append(d.keys, encoded.NewKey(p.Secret, k.Name))
		// Without the name, or else a new one would make what was heard good again.
		d.heard = append(d.heard, sha256.Sum256(fmt.Appendf(nil, "encoded %d %s %s", len(k.Name), k.Name, p.Secret)))
	}
	return d, nil
}

func (d *coded) order(proto sequence.Proto, port uint16) int {
	return cmp.Or(cmp.Compare(d.cfg.Base.Proto, proto), cmp.Compare(d.cfg.Base.Low, port))
}

// door finds whose port a packet goes to.
func (s *messages) door(p *packet.Packet) (door, index int, symbol uint16, ok bool) {
	if p.Elsewhere || p.Proto != sequence.TCP && p.Proto != sequence.UDP {
		return 0, 0, 0, false
	}
	low, high := 0, len(s.doors) // the last door that does not begin behind the port
	for low < high {
		if mid := (low + high) / 2; s.doors[mid].order(p.Proto, p.DstPort) <= 0 {
			low = mid + 1
		} else {
			high = mid
		}
	}
	if low == 0 || s.doors[low-1].cfg.Base.Proto != p.Proto {
		return 0, 0, 0, false
	}
	index, symbol, ok = s.doors[low-1].parts.Index(p.DstPort)
	return low - 1, index, symbol, ok
}

// Observe shows the recogniser one packet. Its port is a part of its source's
// message; the last part that lacks has the message opened with every person's key
// in turn. What does not open is forgotten whole, so that each such trial costs a
// stranger as many packets as a message has parts.
func (s *messages) Observe(p *packet.Packet, now int64) []Outcome {
	s.out, s.fate = s.out[:0], partFate{}
	n, index, symbol, ok := s.door(p)
	if !ok {
		return nil
	}
	f := &s.fate
	f.door, f.part = n, index+1
	if p.Proto == sequence.TCP && !sequence.Opening.Match(p.Flags) {
		f.what = partNotOpening // else the answers to our own connections would be parts
		return nil
	}
	at, fresh := s.place(p, index, symbol, now)
	if !fresh {
		f.what, f.stage = partCopied, int(s.table.what[at].stage)
		s.counts.copies++
		return nil
	}
	s.table.set(at, index, symbol)
	s.counts.parts++
	f.stage = int(s.table.what[at].stage)
	if f.stage < s.doors[n].parts.Steps {
		s.say(Advanced, p, f.stage)
		return s.out
	}
	s.complete(p, at, now)
	return s.out
}

// place gives the slot that a part belongs into; it is not fresh where the part is
// there already. A part that contradicts what is there begins a new attempt: were it
// to replace the old one, each packet of a stranger could cost a whole trial.
func (s *messages) place(p *packet.Packet, index int, symbol uint16, now int64) (at int32, fresh bool) {
	f, door := &s.fate, int32(s.fate.door)
	f.what = partTaken
	within := int64(s.doors[door].cfg.Within)
	src := p.Src.As16()
	if at = s.table.find(&src, door); at == 0 {
		return s.table.begin(src, door, now+within, now), true
	}
	c, until := &s.table.what[at], &s.table.slots[at].until
	have, filled := s.table.has(at, index)
	switch {
	case now > *until && c.done: // a copy so late is found out as a repeat
	case now > *until:
		f.late = true
		s.say(TimedOut, p, int(c.stage))
	case filled && have == symbol:
		if c.done {
			s.table.again(at, index, now)
		}
		s.table.heard(at)
		return at, false
	case !filled:
		return at, true
	case c.done:
		f.what = partBegan
		s.table.next(at, index, now)
		*until = now + within
		return at, true
	default:
		f.what, f.lost = partBegan, int(c.stage)
		s.counts.lost++
		s.say(Lost, p, f.lost)
	}
	s.table.empty(at)
	*until = now + within
	return at, true
}

// say adds an outcome.
func (s *messages) say(v Verdict, p *packet.Packet, stage int) *Outcome {
	s.out = append(s.out, Outcome{Verdict: v, Stage: stage, Claim: policy.Claim{Knock: s.doors[s.fate.door].knock, Source: p.Src}})
	return &s.out[len(s.out)-1]
}

// complete opens a message whose parts are all here.
func (s *messages) complete(p *packet.Packet, at int32, now int64) {
	d := &s.doors[s.fate.door]
	symbols := s.symbols[:d.parts.Steps]
	for i, symbol := range s.table.of(at)[:len(symbols)] {
		symbols[i] = symbol - 1
	}
	m, who, err := d.open(symbols)
	if err != nil {
		s.counts.unopened++
		s.table.remove(at)
		s.fate.what, s.fate.why = partUnopened, err.Error()
		s.say(Lost, p, len(symbols))
		return
	}
	s.fate.who = d.people[who].Name
	s.asked = policy.Asked{
		Person: &d.people[who], Number: uint16(who + 1), Action: spa.Action(m.Action), For: m.For,
		Addr: m.Addr, Bits: m.Bits, Proto: m.Proto, Port: m.Port, Payload: m.Payload,
	}
	// Its copies have nothing more to say, whatever is decided.
	s.table.finish(at, now+int64(d.cfg.Within))
	s.decide(p, d, &replay.Heard{Key: d.heard[who], Stamp: m.Time.UnixNano(), Tag: replay.Tag(d.opener.Tag())})
}

// open tries the keys. Which of them opens a message shows in its time; only who has
// a key can see that, and of himself.
func (d *coded) open(symbols []uint16) (m *encoded.Message, who int, err error) {
	err = encoded.ErrSeal
	if !d.opener.Load(symbols) {
		return nil, 0, err
	}
	for who = range d.keys {
		if m, err = d.opener.Try(d.keys[who]); err != encoded.ErrSeal {
			return m, who, err
		}
	}
	return nil, 0, err
}

// decide asks whether an authentic message is fresh and allowed.
func (s *messages) decide(p *packet.Packet, d *coded, heard *replay.Heard) {
	now, rule := s.Clock(), replay.Rule{Window: d.cfg.Window}
	claim := policy.Claim{Knock: d.knock, Source: p.Src, Asked: &s.asked}
	s.refusal = Refusal{}
	if why := s.Memory.Check(heard, rule, now); why != replay.Fresh {
		s.stale(claim, why, heard, now)
		return
	}
	grants, why := s.Policy.Decide(claim, now)
	if why != policy.Good {
		s.counts.refused++
		s.refuse(claim, string(why))
		return
	}
	// Before the grant, so that no crash can lose that it was heard.
	if err := s.Memory.Accept(heard, rule, now); err != nil {
		s.counts.refused++
		s.refuse(claim, err.Error())
		return
	}
	s.counts.made++
	s.fate.what = partMade
	s.out = append(s.out, Outcome{Verdict: Made, Stage: d.parts.Steps, Claim: claim, Grants: grants})
}

func (s *messages) stale(claim policy.Claim, why replay.Why, heard *replay.Heard, now time.Time) {
	if why == replay.Repeat { // harmless, and anybody on the path can make it
		s.counts.repeat++
		s.fate.what = partRepeated
		return
	}
	s.counts.stale++
	switch why {
	case replay.TooOld, replay.FromTheFuture:
		s.refusal.Skew = time.Unix(0, heard.Stamp).Sub(now)
	case replay.BeforeStart:
		s.refusal.Boundary = s.Memory.Boundary()
	}
	s.refuse(claim, string(why))
}

func (s *messages) refuse(claim policy.Claim, why string) {
	s.refusal.Why = why
	s.fate.what, s.fate.why = partRefused, why
	s.out = append(s.out, Outcome{Verdict: Refused, Claim: claim, Refusal: &s.refusal})
}

// Tick frees some of what has expired.
func (s *messages) Tick(now int64) []Outcome {
	s.table.sweep(tickSlots, now)
	return nil
}

// HostChanged changes nothing: the ports are the config's.
func (s *messages) HostChanged() {}

// Count adds what it counted to status's numbers.
func (s *messages) Count(numbers map[string]uint64) {
	c := &s.counts
	for name, n := range map[string]uint64{
		"encoded_parts": c.parts, "encoded_copies": c.copies, "encoded_lost": c.lost, "encoded_unopened": c.unopened,
		"encoded_repeat": c.repeat, "encoded_stale": c.stale, "encoded_refused": c.refused, "encoded_made": c.made,
		"encoded_attempts": uint64(s.table.live), "encoded_evicted": s.table.evicted,
	} {
		numbers[name] = n
	}
}
