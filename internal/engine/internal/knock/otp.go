package knock

import (
	"hash/maphash"
	"slices"

	"github.com/sallyport/sallyport/internal/engine/internal/packet"
	"github.com/sallyport/sallyport/internal/engine/internal/policy"
	"github.com/sallyport/sallyport/internal/engine/internal/replay"
	"github.com/sallyport/sallyport/internal/otp"
	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/sallyport/sallyport/internal/spa"
)

// passwords recognises all knocks of type "otp" at once. A packet costs no HMAC
// unless it goes to the first port of somebody's sequence.
type passwords struct {
	*Setting
	doors     []otpDoor
	sequences *attempts // at ports that follow from a secret
	codes     *attempts // at an authenticator app's code
	tries     tries
	seed      maphash.Seed
	packets   uint64
	out       []Outcome
	fates     []otpFate // of the latest packet
	counts    otpCounts
}

type otpCounts struct{ steps, lost, repeat, refused, made, wrong, blocked uint64 }

// newOTP makes the recogniser for a config and its people. Attempts of old go on
// where the knock and the person are still there and as they were.
func newOTP(setting *Setting, old Recogniser) Recogniser {
	s := &passwords{Setting: setting, seed: maphash.MakeSeed(), tries: newTries()}
	for i := range setting.Config.Knocks {
		if setting.Config.Knocks[i].Type == "otp" {
			s.doors = append(s.doors, newOTPDoor(setting, i))
		}
	}
	most, holders := 1, map[replay.Key]int32{}
	for i := range s.doors {
		most = max(most, s.doors[i].length())
		s.doors[i].count(holders)
		s.doors[i].turn(setting.Clock())
	}
	size := setting.Config.Daemon.MaxAttempts
	s.sequences, s.codes = newAttempts(size, most, len(holders)), newAttempts(size, most, 0)
	if old, ok := old.(*passwords); ok {
		s.adopt(old)
	}
	return s
}

// adopt takes over the attempts and the counted tries from before a reload.
func (s *passwords) adopt(old *passwords) {
	s.seed, s.packets, s.counts = old.seed, old.packets, old.counts // so that copies are still known
	s.sequences.evicted, s.codes.evicted = old.sequences.evicted, old.codes.evicted
	same := make([]bool, len(s.doors))
	for i := range s.doors {
		same[i] = i < len(old.doors) && s.doors[i].same(&old.doors[i])
	}
	if !slices.Contains(same, false) && len(s.doors) == len(old.doors) {
		s.tries = old.tries // whose doors have these numbers
	}
	for i := range old.doors {
		was := &old.doors[i]
		to := slices.IndexFunc(s.doors, func(d otpDoor) bool { return d.same(was) })
		if to < 0 {
			continue
		}
		s.doors[to].adopt(s.sequences, old.sequences, was, int32(i), int32(to))
		s.doors[to].adopt(s.codes, old.codes, was, int32(i), int32(to))
	}
}

// adopt copies the attempts at one knock, the newest of a queue last, and leaves out
// those of people who are not there any more.
func (d *otpDoor) adopt(to, from *attempts, was *otpDoor, old, door int32) {
	person := make([]int32, len(was.people)) // of old, where he is now; -1: nowhere
	for i := range was.people {
		person[i] = int32(slices.IndexFunc(d.people, func(p otpPerson) bool { return p.heard == was.people[i].heard }))
	}
	for q := range from.queues {
		for i := from.queues[q].oldest; i != 0; i = from.slots[i].next {
			at, a := &from.slots[i], from.what[i]
			if at.door != old {
				continue
			}
			if d.digits.Count == 0 {
				a.person = person[a.person]
			}
			if a.person < 0 {
				continue
			}
			j := to.add(at.src, door, at.until, 0)
			to.what[j] = a
			copy(to.stepsOf(j), from.stepsOf(i)[:d.length()])
			to.move(j, d.queue(&a))
		}
	}
}

// Observe shows the recogniser one packet.
func (s *passwords) Observe(p *packet.Packet, now int64) []Outcome {
	s.out, s.fates = s.out[:0], s.fates[:0]
	if p.Elsewhere || p.Proto == sequence.TCP && !sequence.Opening.Match(p.Flags) {
		return nil
	}
	s.packets++
	for i := range s.doors {
		if d := &s.doors[i]; d.proto == p.Proto && d.ports.has(p.DstPort) {
			s.turn(d)
			if d.digits.Count > 0 {
				s.code(int32(i), p, now)
			} else {
				s.sequence(int32(i), p, now)
			}
		}
	}
	return s.out
}

// turn looks at the time.
func (s *passwords) turn(d *otpDoor) {
	d.turn(s.Clock())
	if d.digits.Count > 0 {
		s.tries.turn(d.number)
	}
}

// sequence takes a packet to a port of a knock's pool. One that is nobody's next
// step ends all that its source has begun there, so that no scan gets through; but
// the sequence stays good, so that no scan uses it up.
func (s *passwords) sequence(door int32, p *packet.Packet, now int64) {
	taken := s.follow(s.sequences, door, p, now)
	began := s.doors[door].first.has(p.DstPort) && s.begin(door, p, now)
	switch {
	case taken:
	case began:
		s.stray(door, p)
	default:
		s.lose(s.sequences, door, p)
	}
}

// mostStrays is how many packets of others an attempt bears that only begin a
// sequence: so many people behind one address may begin while one of them knocks.
// Without a limit, who knows many first ports, or meets them by chance where most of
// the pool is somebody's, would try every order of these in a few rounds.
const mostStrays = 2

// stray counts a packet that began something against all else of its source.
func (s *passwords) stray(door int32, p *packet.Packet) {
	t, src := s.sequences, p.Src.As16()
	for i := *t.bucket(&src); i != 0; i = t.slots[i].chainNext {
		a := &t.what[i]
		if !t.holds(i, &src, door) || a.took == s.packets {
			continue
		}
		if a.strays++; a.strays > mostStrays {
			s.wrong(t, i, p)
		}
	}
}

// code takes a packet to a port of a knock whose passwords are codes.
func (s *passwords) code(door int32, p *packet.Packet, now int64) {
	if s.follow(s.codes, door, p, now) {
		return
	}
	s.lose(s.codes, door, p)
	d := &s.doors[door]
	if d.hundred(p.DstPort) > 0 {
		return
	}
	s.first(s.codes, door, attempt{}, p, now)
}

// follow shows a packet to each attempt of its source at a knock, and reports
// whether it is a step of one, or a copy of a step.
func (s *passwords) follow(t *attempts, door int32, p *packet.Packet, now int64) (taken bool) {
	if t.live == 0 {
		return false
	}
	src, id := p.Src.As16(), identity(s.seed, p)
	for i := *t.bucket(&src); i != 0; i = t.slots[i].chainNext {
		if t.holds(i, &src, door) && s.judge(t, i, p, id, now) {
			taken = true
		}
	}
	return taken
}

// judge is the rules of one attempt, in their order.
func (s *passwords) judge(t *attempts, i int32, p *packet.Packet, id uint64, now int64) bool {
	at, a := &t.slots[i], &t.what[i]
	d, steps, stage := &s.doors[at.door], t.stepsOf(i), int(a.stage)
	switch {
	case now > at.until:
		s.late(t, i, p)
		return false
	case isCopy(steps[:stage], p, id, now):
		s.note(d, noteCopy, nil, stage)
	case d.awaits(steps, stage, p.DstPort):
		a.took = s.packets
		s.step(t, i, made{id: id, port: p.DstPort, when: milliseconds(now)}, p)
		return true
	case steps[stage-1].port == p.DstPort: // once more: its retransmissions are still to come
		steps[stage-1].id, steps[stage-1].when = id, milliseconds(now)
		if stage == 1 {
			at.until = now + int64(d.cfg.Within)
		}
		s.note(d, noteAgain, nil, stage)
	default:
		return false
	}
	a.took = s.packets
	return true
}

// begin starts an attempt for each person and time step whose first port it is.
// Of one that is under way, a new packet to its first port is a new beginning.
func (s *passwords) begin(door int32, p *packet.Packet, now int64) (taken bool) {
	d := &s.doors[door]
	for n := range d.steps {
		step := &d.steps[n]
		for _, g := range step.find(uint32(p.DstPort)) {
			a := attempt{person: g.person, number: step.number}
			if s.begun(door, a, p) {
				continue
			}
			taken = true
			i := s.first(s.sequences, door, a, p, now)
			d.expect(s.sequences.stepsOf(i), g.person, step.number, p)
		}
	}
	return taken
}

// first puts an attempt in that a packet begins.
func (s *passwords) first(t *attempts, door int32, a attempt, p *packet.Packet, now int64) int32 {
	i := t.add(p.Src.As16(), door, now+int64(s.doors[door].cfg.Within), now)
	a.took = s.packets
	t.what[i] = a
	s.step(t, i, made{id: identity(s.seed, p), port: p.DstPort, when: milliseconds(now)}, p)
	return i
}

// begun reports whether an attempt is under way that took this packet, and ends
// one that did not.
func (s *passwords) begun(door int32, a attempt, p *packet.Packet) bool {
	t, src := s.sequences, p.Src.As16()
	for i := *t.bucket(&src); i != 0; i = t.slots[i].chainNext {
		b := &t.what[i]
		if !t.holds(i, &src, door) || b.person != a.person || b.number != a.number {
			continue
		}
		if b.took == s.packets {
			return true
		}
		s.wrong(t, i, p)
		return false
	}
	return false
}

// step makes the next step of an attempt, which may be the last one.
func (s *passwords) step(t *attempts, i int32, m made, p *packet.Packet) {
	a, door := &t.what[i], t.slots[i].door
	d := &s.doors[door]
	t.stepsOf(i)[a.stage] = m
	a.stage++
	t.move(i, d.queue(a))
	s.counts.steps++
	switch {
	case int(a.stage) < d.length():
		s.advanced(t, i, p)
		return
	case d.digits.Count > 0:
		s.tried(door, d.codeOf(t.stepsOf(i)), p)
	default:
		s.complete(d, a.person, a.number, p)
	}
	// Copies that come late begin anew, and what they complete is used up.
	t.remove(i)
}

// tried takes a whole code. There are few enough of them to be guessed, so each
// source has some tries in each time step.
func (s *passwords) tried(door int32, code uint32, p *packet.Packet) {
	d := &s.doors[door]
	over, right := s.tries.over(int(door), p.Src), false
	for n := range d.steps {
		for _, g := range d.steps[n].find(code) {
			right = true
			if over {
				s.counts.blocked++
				s.refuse(d, g.person, tooManyTries, p)
				continue
			}
			s.complete(d, g.person, d.steps[n].number, p)
		}
	}
	switch {
	case right:
	case over:
		s.counts.blocked++
	default:
		s.counts.wrong++
		s.tries.wrong(int(door), p.Src)
	}
	if !right {
		s.say(Lost, d, d.length(), p)
		s.note(d, noteWrongCode, nil, d.length())
	}
}

const tooManyTries = "too many wrong codes came from there in this time step"

// complete takes a whole password that is good. It is used up by what it is
// granted, and by nothing else.
func (s *passwords) complete(d *otpDoor, person int32, number uint64, p *packet.Packet) {
	now, who := s.Clock(), &d.people[person]
	heard := replay.Heard{Key: who.heard, Stamp: d.stamp(number, p.Src), Tag: replay.Tag(d.Tag(who.key, number, p.Src))}
	// The first step was made within the window; the last one comes later.
	rule := replay.Rule{Window: (otp.Window-1)*d.TimeStep + d.cfg.Within}
	switch why := s.Memory.Check(&heard, rule, now); why {
	case replay.Fresh:
	case replay.Repeat:
		s.counts.repeat++
		s.note(d, noteUsedUp, who, d.length())
		return
	default:
		s.refuse(d, person, string(why), p)
		return
	}
	claim := d.claim(person, p)
	grants, why := s.Policy.Decide(claim, now)
	if why != policy.Good {
		s.refuse(d, person, string(why), p)
		return
	}
	// Before the grant, so that no crash can lose that it was heard.
	if err := s.Memory.Accept(&heard, rule, now); err != nil {
		s.refuse(d, person, err.Error(), p)
		return
	}
	s.counts.made++
	// The policy's list is good until its next decision, and two may be made at once.
	s.out = append(s.out, Outcome{Verdict: Made, Stage: d.length(), Claim: claim, Grants: slices.Clone(grants)})
	s.note(d, noteMade, who, d.length())
}

func (d *otpDoor) claim(person int32, p *packet.Packet) policy.Claim {
	asked := &policy.Asked{Person: d.people[person].Person, Number: uint16(person + 1), Action: spa.Open}
	return policy.Claim{Knock: d.knock, Source: p.Src, Asked: asked}
}

func (s *passwords) refuse(d *otpDoor, person int32, why string, p *packet.Packet) {
	s.counts.refused++
	refusal := &Refusal{Why: why}
	if why == string(replay.BeforeStart) {
		refusal.Boundary = s.Memory.Boundary()
	}
	s.out = append(s.out, Outcome{Verdict: Refused, Stage: d.length(), Claim: d.claim(person, p), Refusal: refusal})
	s.fates = append(s.fates, otpFate{d, noteRefused, &d.people[person], d.length(), why})
}

// advanced tells of a step that was made.
func (s *passwords) advanced(t *attempts, i int32, p *packet.Packet) {
	a, d := &t.what[i], &s.doors[t.slots[i].door]
	s.say(Advanced, d, int(a.stage), p)
	if d.digits.Count > 0 {
		s.note(d, noteStep, nil, int(a.stage))
		return
	}
	what := noteStep
	switch {
	case a.number < d.number:
		what = noteStepBehind
	case a.number > d.number:
		what = noteStepAhead
	}
	s.note(d, what, &d.people[a.person], int(a.stage))
}

func (s *passwords) say(v Verdict, d *otpDoor, stage int, p *packet.Packet) {
	s.out = append(s.out, Outcome{Verdict: v, Stage: stage, Claim: policy.Claim{Knock: d.knock, Source: p.Src}})
}

// lose ends all that a source has begun at a knock.
func (s *passwords) lose(t *attempts, door int32, p *packet.Packet) {
	src, any := p.Src.As16(), false
	for i := *t.bucket(&src); i != 0; i = t.slots[i].chainNext {
		if t.holds(i, &src, door) {
			any = true
			s.wrong(t, i, p)
		}
	}
	if d := &s.doors[door]; !any && (d.digits.Count == 0 || d.hundred(p.DstPort) > 0) {
		s.note(d, noteNothing, nil, 0)
	}
}

// wrong ends one attempt.
func (s *passwords) wrong(t *attempts, i int32, p *packet.Packet) {
	s.counts.lost++
	s.end(Lost, noteLost, t, i, p)
}

// late ends one whose time was over.
func (s *passwords) late(t *attempts, i int32, p *packet.Packet) { s.end(TimedOut, noteLate, t, i, p) }

func (s *passwords) end(v Verdict, what note, t *attempts, i int32, p *packet.Packet) {
	a, d := &t.what[i], &s.doors[t.slots[i].door]
	s.say(v, d, int(a.stage), p)
	s.noteOf(d, a, what)
	t.remove(i)
}

// Tick forgets attempts that took too long. It computes nothing: a capture can have
// any silence in it, and each second of that comes here.
func (s *passwords) Tick(now int64) []Outcome {
	s.sequences.sweep(tickSlots, now)
	s.codes.sweep(tickSlots, now)
	return nil
}

// HostChanged changes nothing: the ports of a pool are those that the config says.
func (s *passwords) HostChanged() {}

// Count tells of passwords and of the tables.
func (s *passwords) Count(numbers map[string]uint64) {
	c := &s.counts
	for name, n := range map[string]uint64{
		"otp_steps": c.steps, "otp_lost": c.lost, "otp_repeat": c.repeat, "otp_refused": c.refused, "otp_made": c.made,
		"otp_wrong_codes": c.wrong, "otp_blocked": c.blocked,
		"otp_attempts": uint64(s.sequences.live + s.codes.live), "otp_evicted": s.sequences.evicted + s.codes.evicted,
	} {
		numbers[name] = n
	}
}
