package knock

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"hash/maphash"
	"slices"
	"strconv"
	"time"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/engine/internal/packet"
	"github.com/sallyport/sallyport/internal/engine/internal/policy"
	"github.com/sallyport/sallyport/internal/engine/internal/replay"
	"github.com/sallyport/sallyport/internal/otp"
	"github.com/sallyport/sallyport/internal/secrets"
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
	notes     *[]Explanation // nil: nobody looks
	counts    otpCounts
}

type otpCounts struct{ steps, lost, repeat, refused, made, wrong, blocked uint64 }

// otpDoor is one knock of type "otp".
type otpDoor struct {
	otp.Door // of codes it has a name and the time step only
	digits   otp.Digits
	knock    int
	cfg      *config.Knock
	proto    sequence.Proto
	ports    *portSet // that a step can have
	people   []otpPerson
	number   uint64 // the present time step
	steps    [otp.Window]inForce
	first    *portSet // first ports of the sequences in force; of codes nil
}

// otpPerson is one line of a knock's secrets.
type otpPerson struct {
	*secrets.Person
	key   *otp.Key
	heard replay.Key
}

// inForce is what the people's secrets give for one time step.
type inForce struct {
	number uint64
	known  bool
	good   []good // sorted
}

// good is a person's first port, or code.
type good struct {
	what   uint32
	person int32
}

// portSet has a bit for each port.
type portSet [1 << 16 / 64]uint64

func (s *portSet) has(port uint16) bool { return s[port/64]>>(port%64)&1 != 0 }

func (s *portSet) add(port uint16) { s[port/64] |= 1 << (port % 64) }

// newOTP makes the recogniser for a config and its people. Attempts of old go on
// where the knock and the person are still there and as they were.
func newOTP(setting *Setting, old Recogniser) Recogniser {
	s := &passwords{Setting: setting, seed: maphash.MakeSeed(), tries: newTries()}
	for i := range setting.Config.Knocks {
		if setting.Config.Knocks[i].Type == "otp" {
			s.doors = append(s.doors, newOTPDoor(setting, i))
		}
	}
	most := 1
	for i := range s.doors {
		most = max(most, s.doors[i].length())
		s.doors[i].turn(setting.Clock())
	}
	size := setting.Config.Daemon.MaxAttempts
	s.sequences, s.codes = newAttempts(size, most, true), newAttempts(size, most, false)
	if old, ok := old.(*passwords); ok {
		s.adopt(old)
	}
	return s
}

func newOTPDoor(setting *Setting, i int) otpDoor {
	k := &setting.Config.Knocks[i]
	d := otpDoor{knock: i, cfg: k, Door: k.OTPDoor(), digits: k.OTPDigits(), proto: k.Ports()[0].Proto, ports: new(portSet), first: new(portSet)}
	for _, r := range k.Ports() {
		for port := int(r.Low); port <= int(r.High); port++ {
			d.ports.add(uint16(port))
		}
	}
	people := setting.Keys[i].People
	for j := range people {
		p := otpPerson{Person: &people[j], key: otp.NewKey(people[j].Secret)}
		// The lengths keep one person's key from being another's.
		p.heard = sha256.Sum256(fmt.Appendf(nil, "otp %d %s %d %s %s", len(k.Name), k.Name, len(p.Name), p.Name, p.Secret))
		d.people = append(d.people, p)
	}
	return d
}

// length is how many packets a password of the knock takes.
func (d *otpDoor) length() int {
	if d.digits.Count > 0 {
		return d.digits.Steps()
	}
	return d.Steps
}

// turn computes what is good at a moment, if the time step is another one than
// before. It reports whether it was.
func (d *otpDoor) turn(now time.Time) bool {
	number := d.Number(now)
	if d.steps[number%otp.Window].known && d.number == number {
		return false
	}
	d.number = number
	*d.first = portSet{}
	for n := max(number, 1) - 1; n <= number+1; n++ {
		step := &d.steps[n%otp.Window]
		if !step.known || step.number != n {
			*step = inForce{number: n, known: true, good: d.compute(n)}
		}
	}
	for i := range d.steps {
		for _, g := range d.steps[i].good {
			if d.digits.Count == 0 {
				d.first.add(uint16(g.what))
			}
		}
	}
	return true
}

// compute gives the first port or the code of each person in a time step.
func (d *otpDoor) compute(number uint64) []good {
	list := make([]good, 0, len(d.people))
	var port [1]uint16
	for i := range d.people {
		what := uint32(0)
		if d.digits.Count > 0 {
			code, _ := strconv.ParseUint(otp.CodeAt(d.people[i].Secret, number, d.digits.Count), 10, 32)
			what = uint32(code)
		} else if len(d.First(port[:0], d.people[i].key, number)) == 1 {
			what = uint32(port[0])
		}
		list = append(list, good{what, int32(i)})
	}
	slices.SortFunc(list, func(a, b good) int { return cmp.Compare(a.what, b.what) })
	return list
}

// find gives those whose first port or code it is.
func (step *inForce) find(what uint32) []good {
	low, _ := slices.BinarySearchFunc(step.good, what, func(g good, what uint32) int { return cmp.Compare(g.what, what) })
	high := low
	for high < len(step.good) && step.good[high].what == what {
		high++
	}
	return step.good[low:high]
}

// adopt takes over the attempts and the counted tries from before a reload.
func (s *passwords) adopt(old *passwords) {
	s.seed, s.counts = old.seed, old.counts // so that copies are still known
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

// same reports whether attempts at one knock are good for the other.
func (d *otpDoor) same(o *otpDoor) bool {
	return d.Name == o.Name && d.digits == o.digits && d.proto == o.proto && d.Steps == o.Steps &&
		d.TimeStep == o.TimeStep && d.AnyAddress == o.AnyAddress && slices.Equal(d.Pool, o.Pool)
}

// adopt copies the attempts at one knock, the newest of a stage last, and leaves
// out those of people who are not there any more.
func (d *otpDoor) adopt(to, from *attempts, was *otpDoor, old, now int32) {
	for stage := range from.oldest {
		for i := from.oldest[stage]; i != 0; i = from.slots[i].next {
			a := from.slots[i]
			if a.door != old {
				continue
			}
			a.door = now
			if d.digits.Count == 0 {
				key := was.people[a.person].heard
				a.person = int32(slices.IndexFunc(d.people, func(p otpPerson) bool { return p.heard == key }))
			}
			if a.person < 0 {
				continue
			}
			if j := to.add(a); j != 0 {
				copy(to.stepsOf(j), from.stepsOf(i)[:d.length()])
			}
		}
	}
}

// Observe shows the recogniser one packet.
func (s *passwords) Observe(p *packet.Packet, now int64) []Outcome {
	s.out = s.out[:0]
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
	if d.turn(s.Clock()) && d.digits.Count > 0 {
		s.tries.clear() // all codes have one time step
	}
}

// sequence takes a packet to a port of a knock's pool. One that is nobody's next
// step ends all that its source has begun there, so that no scan gets through; but
// the sequence stays good, so that no scan uses it up.
func (s *passwords) sequence(door int32, p *packet.Packet, now int64) {
	taken := s.follow(s.sequences, door, p, now)
	if s.doors[door].first.has(p.DstPort) {
		taken = s.begin(door, p, now) || taken
	}
	if !taken {
		s.lose(s.sequences, door, p)
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
	a := attempt{src: p.Src.As16(), door: door, stage: 1, until: now + int64(d.cfg.Within), took: s.packets}
	i := s.codes.add(a)
	s.codes.stepsOf(i)[0] = made{id: s.identity(p), port: p.DstPort, when: milliseconds(now)}
	s.advanced(s.codes, i, p)
}

// hundred is the place of a pair of digits in its code.
func (d *otpDoor) hundred(port uint16) int { return int(port-d.digits.Base) / 100 }

// identity is the same for a packet and its retransmissions or copies, as the one
// of sequences is.
func (s *passwords) identity(p *packet.Packet) uint64 {
	id := uint64(p.SrcPort)<<32 | uint64(p.Seq)
	if p.Proto == sequence.TCP {
		return id
	}
	return id ^ maphash.Bytes(s.seed, p.Payload)
}

func milliseconds(now int64) uint32 { return uint32(now / 1e6) }

// otpCopyAge is how long a datagram that looks the same is taken for a copy, in
// milliseconds. A SYN needs no such limit: its sequence number tells.
const otpCopyAge = 1000

// follow shows a packet to each attempt of its source at a knock, and reports
// whether it is a step of one, or a copy of a step.
func (s *passwords) follow(t *attempts, door int32, p *packet.Packet, now int64) (taken bool) {
	if t.live == 0 {
		return false
	}
	src, id := p.Src.As16(), s.identity(p)
	for i := *t.bucket(&src); i != 0; {
		a := &t.slots[i]
		next := a.chainNext
		if a.src == src && a.door == door && s.judge(t, i, p, id, now) {
			taken = true
		}
		i = next
	}
	return taken
}

// judge is the rules of one attempt, in their order.
func (s *passwords) judge(t *attempts, i int32, p *packet.Packet, id uint64, now int64) bool {
	a, d := &t.slots[i], &s.doors[t.slots[i].door]
	steps, stage := t.stepsOf(i), int(a.stage)
	switch {
	case now > a.until:
		s.late(t, i, p)
		return false
	case isCopy(steps[:stage], p, id, now):
		s.note(d, noteCopy, p, nil, stage)
	case d.awaits(steps, stage, p.DstPort):
		a.took = s.packets
		s.step(t, i, made{id: id, port: p.DstPort, when: milliseconds(now)}, p)
		return true
	case steps[stage-1].port == p.DstPort: // once more: its retransmissions are still to come
		steps[stage-1].id, steps[stage-1].when = id, milliseconds(now)
		if stage == 1 {
			a.until = now + int64(d.cfg.Within)
		}
		s.note(d, noteAgain, p, nil, stage)
	default:
		return false
	}
	a.took = s.packets
	return true
}

// awaits reports whether a port is the next step.
func (d *otpDoor) awaits(steps []made, stage int, port uint16) bool {
	if d.digits.Count > 0 {
		return d.hundred(port) == stage
	}
	return steps[stage].port == port
}

// isCopy reports whether the packet is one that already made a step: one
// connect(2) to a port that drops repeats its SYN for a minute, and a bridge shows
// each packet twice.
func isCopy(steps []made, p *packet.Packet, id uint64, now int64) bool {
	for _, m := range steps {
		if m.id == id && m.port == p.DstPort && (p.Proto == sequence.TCP || milliseconds(now)-m.when <= otpCopyAge) {
			return true
		}
	}
	return false
}

// begin starts an attempt for each person and time step whose first port it is.
// Of one that is under way, a new packet to its first port is a new beginning.
func (s *passwords) begin(door int32, p *packet.Packet, now int64) (taken bool) {
	d := &s.doors[door]
	for n := range d.steps {
		step := &d.steps[n]
		for _, g := range step.find(uint32(p.DstPort)) {
			a := attempt{src: p.Src.As16(), door: door, person: g.person, number: step.number, stage: 1, until: now + int64(d.cfg.Within), took: s.packets}
			if s.begun(a, p) {
				continue
			}
			i := s.sequences.add(a)
			if i == 0 {
				continue
			}
			taken = true
			steps := s.sequences.stepsOf(i)
			d.expect(steps, g.person, step.number, p)
			steps[0] = made{id: s.identity(p), port: p.DstPort, when: milliseconds(now)}
			s.advanced(s.sequences, i, p)
		}
	}
	return taken
}

// begun reports whether an attempt is under way that took this packet, and ends
// one that did not.
func (s *passwords) begun(a attempt, p *packet.Packet) bool {
	t := s.sequences
	for i := *t.bucket(&a.src); i != 0; i = t.slots[i].chainNext {
		b := &t.slots[i]
		if b.src != a.src || b.door != a.door || b.person != a.person || b.number != a.number {
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

// expect computes the ports of a sequence whose first one was met.
func (d *otpDoor) expect(steps []made, person int32, number uint64, p *packet.Packet) {
	var room [otp.MaxSteps]uint16
	ports := d.Rest(append(room[:0], p.DstPort), d.people[person].key, number, p.Src)
	for i := range steps[:d.Steps] {
		steps[i] = made{}
		if i < len(ports) {
			steps[i].port = ports[i]
		}
	}
}

// step makes the next step of an attempt, which may be the last one.
func (s *passwords) step(t *attempts, i int32, m made, p *packet.Packet) {
	a := &t.slots[i]
	d := &s.doors[a.door]
	t.stepsOf(i)[a.stage] = m
	t.dequeue(i)
	a.stage++
	t.enqueue(i)
	if int(a.stage) < d.length() {
		s.advanced(t, i, p)
		return
	}
	s.counts.steps++
	last := *a
	steps := t.stepsOf(i)
	if d.digits.Count > 0 {
		s.tried(&last, d.codeOf(steps), p)
	} else {
		s.complete(d, last.person, last.number, p)
	}
	// Copies that come late begin anew, and what they complete is used up.
	t.remove(i)
}

// codeOf puts a code's pairs of digits together.
func (d *otpDoor) codeOf(steps []made) (code uint32) {
	for i := range d.digits.Steps() {
		code = code*100 + uint32((steps[i].port-d.digits.Base)%100)
	}
	return code
}

// tried takes a whole code. There are few enough of them to be guessed, so each
// source has some tries in each time step.
func (s *passwords) tried(a *attempt, code uint32, p *packet.Packet) {
	d := &s.doors[a.door]
	over, right := s.tries.over(int(a.door), p.Src), false
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
		s.tries.wrong(int(a.door), p.Src)
	}
	if !right {
		s.say(Lost, a, p)
		s.note(d, noteWrongCode, p, nil, d.length())
	}
}

const tooManyTries = "too many wrong codes came from there in this time step"

// complete takes a whole password that is good. It is used up by what it is
// granted, and by nothing else.
func (s *passwords) complete(d *otpDoor, person int32, number uint64, p *packet.Packet) {
	now, who := s.Clock(), &d.people[person]
	heard := replay.Heard{Key: who.heard, Stamp: d.Start(number).UnixNano(), Tag: replay.Tag(d.Tag(who.key, number, p.Src))}
	// The first step was made within the window; the last one comes later.
	rule := replay.Rule{Window: (otp.Window-1)*d.TimeStep + d.cfg.Within}
	switch why := s.Memory.Check(&heard, rule, now); why {
	case replay.Fresh:
	case replay.Repeat:
		s.counts.repeat++
		s.note(d, noteUsedUp, p, who, d.length())
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
	s.note(d, noteMade, p, who, d.length())
}

func (d *otpDoor) claim(person int32, p *packet.Packet) policy.Claim {
	asked := &policy.Asked{Person: d.people[person].Person, Number: uint16(person + 1), Action: spa.Open}
	return policy.Claim{Knock: d.knock, Source: p.Src, Asked: asked}
}

func (s *passwords) refuse(d *otpDoor, person int32, why string, p *packet.Packet) {
	s.counts.refused++
	s.out = append(s.out, Outcome{Verdict: Refused, Stage: d.length(), Claim: d.claim(person, p), Refusal: &Refusal{Why: why}})
	s.note(d, noteRefused, p, &d.people[person], d.length())
}

// advanced tells of a step that was made.
func (s *passwords) advanced(t *attempts, i int32, p *packet.Packet) {
	a := &t.slots[i]
	s.counts.steps++
	s.say(Advanced, a, p)
	d := &s.doors[a.door]
	if d.digits.Count > 0 {
		s.note(d, noteStep, p, nil, int(a.stage))
		return
	}
	what := noteStep
	switch {
	case a.number < d.number:
		what = noteStepBehind
	case a.number > d.number:
		what = noteStepAhead
	}
	s.note(d, what, p, &d.people[a.person], int(a.stage))
}

func (s *passwords) say(v Verdict, a *attempt, p *packet.Packet) {
	s.out = append(s.out, Outcome{Verdict: v, Stage: int(a.stage), Claim: policy.Claim{Knock: s.doors[a.door].knock, Source: p.Src}})
}

// lose ends all that a source has begun at a knock.
func (s *passwords) lose(t *attempts, door int32, p *packet.Packet) {
	src, any := p.Src.As16(), false
	for i := *t.bucket(&src); i != 0; {
		a := &t.slots[i]
		next := a.chainNext
		if a.src == src && a.door == door {
			any = true
			s.wrong(t, i, p)
		}
		i = next
	}
	if d := &s.doors[door]; !any && (d.digits.Count == 0 || d.hundred(p.DstPort) > 0) {
		s.note(d, noteNothing, p, nil, 0)
	}
}

// wrong ends one attempt.
func (s *passwords) wrong(t *attempts, i int32, p *packet.Packet) {
	a := &t.slots[i]
	s.counts.lost++
	s.say(Lost, a, p)
	s.noteOf(a, noteLost, p)
	t.remove(i)
}

// late ends one whose time was over.
func (s *passwords) late(t *attempts, i int32, p *packet.Packet) {
	a := &t.slots[i]
	s.say(TimedOut, a, p)
	s.noteOf(a, noteLate, p)
	t.remove(i)
}

// Tick turns to the time step of the time, and forgets attempts that took too long.
func (s *passwords) Tick(now int64) []Outcome {
	for i := range s.doors {
		s.turn(&s.doors[i])
	}
	s.sequences.expire(now)
	s.codes.expire(now)
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
