package sequence

import (
	"net/netip"
	"slices"
	"time"
)

// copyAge is how long a datagram or an echo request that looks the same is
// taken for a copy of the first, in milliseconds. A SYN needs no such limit:
// its sequence number tells a retransmission from a new connection.
const copyAge = 1000

// Sequence is one knock as the matcher follows it.
type Sequence struct {
	Name  string
	Steps []Step // up to MaxSteps; none: it is switched off, and never made
	// Within is the longest time from the first step to the last, in
	// nanoseconds like every Duration; the config takes 1 s to 10 min. With 0 or
	// less, which a knockd.conf can say, only a sequence of one step is ever made.
	Within time.Duration
	// Strict makes any other TCP SYN or UDP datagram from the source wrong,
	// guarded or not, innocent or not, and so for SCTP, DCCP and UDP-Lite where a
	// step has that protocol.
	Strict bool
	// Classic follows knockd's own rules instead (classic.go). All sequences of a
	// matcher are classic or none is.
	Classic bool
	// Target is the one address that its packets go to; the zero Addr: any of this
	// host's.
	Target netip.Addr
}

// Hit is what the matcher needs to know of a packet to this host.
type Hit struct {
	Proto Proto
	Port  uint16 // destination port; ICMP: payload bytes of an echo request; a bare protocol: 0
	Flags uint8  // TCP: byte 13 of the header
	// Dst may stay the zero Addr where no sequence has a Target.
	Dst netip.Addr
	// Elsewhere says that Dst is none of this host's addresses: it can only be a
	// sequence's Target.
	Elsewhere bool
	// ID is equal for a packet and its copies, and differs between packets:
	// TCP: source port and sequence number; SCTP: source port and initiate tag;
	// DCCP: source port and service code; others: source port or echo identifier and
	// sequence, IP identification, a hash of the payload.
	ID uint64
}

// Verdict says what a packet did to an attempt.
type Verdict uint8

// The verdicts. Their names are what the operator reads.
const (
	Started   Verdict = iota + 1 // the first step of several was made
	Advanced                     // a further step was made
	Completed                    // the last step was made
	Repeated                     // a copy of a step, or the latest step once more: harmless
	Wrong                        // a guarded port out of turn: the attempt is lost
	Expired                      // the source came back too late, and Expire was not there before it: the attempt is lost
)

var verdicts = []string{"", "started", "advanced", "completed", "repeated", "wrong", "expired"}

// String gives the operator's word.
func (v Verdict) String() string { return verdicts[v] }

// Outcome is what a packet did to one attempt. A packet that loses an attempt
// and is the first step of the next gives two outcomes.
type Outcome struct {
	Sequence int // index into what New was given
	Verdict  Verdict
	Stage    int // steps made; for Wrong and Expired the steps that were lost
}

// Matcher follows many sources through many sequences. Progress belongs to one
// source address and one sequence: no packet changes another source's. It
// allocates nothing after New, has no lock and no clock: one goroutine calls
// it. A packet costs the same for 1 and for 1,000 sequences, and grows only
// with the attempts that its own source has under way.
type Matcher struct {
	table
	rules []rule
	first map[uint32][]int32 // rules by protocol and port of their first step
	echo  []int32            // rules that begin with an echo request of any size
	flags [256]bool          // TCP flags that some rule takes
	doors map[uint32][]aim   // by protocol and port: who has a step there; nil: not classic

	innocent innocents
	met      []uint64 // per rule: the last packet whose source has an attempt at it
	// spent is the last packet that ended a sequence under way, or copied one of its
	// steps: it begins no other. Else whoever closes with 9000, 8000, 7000 would each
	// time be at the first step of opening with 7000, 8000, 9000.
	spent  uint64
	packet uint64 // packets seen
	out    []Outcome
	over   []Timeout
}

// New makes a matcher for the sequences, each of at most MaxSteps steps. The
// innocent ports (hidden services, public ports, ports that listen) are never
// wrong, unless they are next to a step; nil means none. The table holds size
// attempts, 1 to 1,048,576.
func New(seqs []Sequence, innocent []Span, size int) *Matcher {
	m := &Matcher{
		rules: make([]rule, 0, len(seqs)),
		first: make(map[uint32][]int32),
		met:   make([]uint64, len(seqs)),
		out:   make([]Outcome, 0, 2*len(seqs)), // no packet gives more
	}
	longest := 1
	for i, s := range seqs {
		r := newRule(s)
		m.rules = append(m.rules, r)
		longest = max(longest, len(s.Steps))
		m.index(int32(i), s.Steps)
		for b := range m.flags {
			m.flags[b] = m.flags[b] || r.takes(Hit{Proto: TCP, Flags: uint8(b)})
		}
	}
	if slices.ContainsFunc(seqs, func(s Sequence) bool { return s.Classic }) {
		m.doors = doorsOf(seqs)
	}
	m.table = newTable(size, longest)
	m.Innocent(innocent)
	return m
}

func (m *Matcher) index(i int32, steps []Step) {
	switch {
	case len(steps) == 0:
	case steps[0].AnySize:
		m.echo = append(m.echo, i)
	default:
		k := key(steps[0].Proto, steps[0].Port)
		m.first[k] = append(m.first[k], i)
	}
}

func key(p Proto, number uint16) uint32 { return uint32(p)<<16 | uint32(number) }

// Innocent replaces the innocent ports, as when a program begins to listen.
// Attempts go on.
func (m *Matcher) Innocent(innocent []Span) { m.innocent.fill(innocent) }

// Len is the number of attempts in the table, those counted that completed or
// expired and were not cleared away yet.
func (m *Matcher) Len() int { return m.live }

// Evicted counts the attempts that made room for a newcomer in a full table.
func (m *Matcher) Evicted() uint64 { return m.evicted }

// Observe takes one packet from src, at now nanoseconds of a clock that never
// goes back, and says what it did. The outcomes are valid until the next call.
// A 4-in-6 source is declined: on the wire it is an IPv6 packet that borrows
// an IPv4 host's name (RFC 4942 section 2.2).
func (m *Matcher) Observe(src netip.Addr, h Hit, now int64) []Outcome {
	if h.Proto == TCP && !m.flags[h.Flags] || src.Is4In6() {
		return nil
	}
	m.out = m.out[:0]
	m.packet++
	addr := src.As16()
	if m.doors != nil {
		m.classic(addr, h, now)
		return m.out
	}
	if m.live > 0 {
		m.follow(addr, h, now)
	}
	if m.spent == m.packet {
		return m.out
	}
	for _, r := range m.first[key(h.Proto, h.Port)] {
		m.start(r, addr, h, now)
	}
	if h.Proto == ICMP {
		for _, r := range m.echo {
			m.start(r, addr, h, now)
		}
	}
	return m.out
}

// follow shows the packet to each attempt of its source.
func (m *Matcher) follow(addr [16]byte, h Hit, now int64) {
	for i := *m.bucket(&addr); i != 0; {
		a := &m.slots[i]
		next := a.chainNext
		if a.src == addr {
			if r := a.rule; m.judge(i, h, now) {
				m.met[r] = m.packet
			}
		}
		i = next
	}
}

// judge is the rules of a sequence, in their order. It reports whether the
// attempt still stands; if not, the packet may be the first step of the next.
func (m *Matcher) judge(i int32, h Hit, now int64) bool {
	a := &m.slots[i]
	r := &m.rules[a.rule]
	made := int(a.stage)
	switch {
	case !h.to(r.Target) || !r.takes(h):
	case now > a.until:
		m.lose(i, Expired)
		return false
	case m.isCopy(i, h, now):
		m.spent = m.packet
		m.say(a, Repeated)
	case a.done:
		if r.Steps[0].matches(h) {
			m.remove(i)
			return false
		}
	case r.Steps[made].matches(h):
		m.advance(i, h, now)
		if a.done {
			m.spent = m.packet
		}
	case r.Steps[made-1].matches(h):
		m.again(i, h, now)
	case r.wrong(h, &m.innocent):
		m.lose(i, Wrong)
		return false
	}
	return true
}

// isCopy reports whether the packet is one that already made a step of this
// attempt. One connect(2) to a port that drops repeats its SYN for a minute, so
// late copies of early steps are everyday; a bridge shows each packet twice.
func (m *Matcher) isCopy(i int32, h Hit, now int64) bool {
	a := &m.slots[i]
	for n, step := range m.rules[a.rule].Steps[:a.stage] {
		same, age := m.recorded(i, n, h.ID, now)
		if same && step.matches(h) && (h.Proto.connects() || age <= copyAge) {
			return true
		}
	}
	return false
}

func (m *Matcher) start(r int32, addr [16]byte, h Hit, now int64) {
	rule := &m.rules[r]
	if m.met[r] == m.packet || !h.to(rule.Target) || !rule.Steps[0].matches(h) {
		return
	}
	i := m.add(addr, r, now)
	m.slots[i].until = rule.deadline(now)
	m.record(i, 0, h.ID, now)
	m.settle(i, Started, now)
}

func (m *Matcher) advance(i int32, h Hit, now int64) {
	a := &m.slots[i]
	m.record(i, int(a.stage), h.ID, now)
	m.dequeue(i)
	a.stage++
	m.enqueue(i)
	m.settle(i, Advanced, now)
}

// settle tells of a step that was made, and closes the attempt if it was the
// last one.
func (m *Matcher) settle(i int32, v Verdict, now int64) {
	a := &m.slots[i]
	rule := &m.rules[a.rule]
	if int(a.stage) < len(rule.Steps) {
		m.say(a, v)
		return
	}
	m.say(a, Completed)
	if rule.Classic {
		m.remove(i) // the next packet may begin anew
		return
	}
	m.dequeue(i)
	a.done, a.until = true, now+max(int64(rule.Within), copyAge*int64(time.Millisecond))
	m.enqueue(i)
}

// deadline is the last nanosecond at which a step counts for an attempt that
// begins now.
func (s *Sequence) deadline(now int64) int64 {
	switch {
	case s.Classic:
		return s.classicDeadline(now)
	case s.Within <= 0:
		return now - 1
	}
	return now + int64(s.Within)
}

// again takes another packet for the step just made in the place of the one
// before: it is the one whose retransmissions are still to come. Once more the
// first step, and the time counts anew: it may be the true beginning, as when
// a user of https browses and then knocks with 443 first.
func (m *Matcher) again(i int32, h Hit, now int64) {
	a := &m.slots[i]
	m.record(i, int(a.stage)-1, h.ID, now)
	if a.stage == 1 {
		a.until = m.rules[a.rule].deadline(now)
		m.dequeue(i)
		m.enqueue(i)
	}
	m.say(a, Repeated)
}

func (m *Matcher) lose(i int32, v Verdict) {
	if a := &m.slots[i]; !a.done {
		m.say(a, v)
	}
	m.remove(i)
}

func (m *Matcher) say(a *attempt, v Verdict) {
	m.out = append(m.out, Outcome{Sequence: int(a.rule), Verdict: v, Stage: int(a.stage)})
}

// Timeout is an attempt whose time was over before its last step.
type Timeout struct {
	Source   netip.Addr
	Sequence int
	Stage    int // steps made
}

// Expire ends the attempts whose time is over at now, and gives them, but for
// those that were complete. A full table drops what is over without telling. It
// looks at the whole table: about 0.1 ms for 65,536 attempts, and some 2 ms if all
// are over (BenchmarkExpire). It allocates only when more are over at once than
// ever before. The result is valid until the next call.
func (m *Matcher) Expire(now int64) []Timeout {
	m.over = m.over[:0]
	for i := int32(1); i <= m.used; i++ {
		a := &m.slots[i]
		if a.stage == 0 || now <= a.until {
			continue
		}
		if !a.done {
			source := netip.AddrFrom16(a.src).Unmap() // no 4-in-6 source was let in
			m.over = append(m.over, Timeout{Source: source, Sequence: int(a.rule), Stage: int(a.stage)})
		}
		m.remove(i)
	}
	return m.over
}

// Adopt takes over the attempts of the matcher before a reload, those whose
// sequence is still there with the same name, target, rules and steps, and the count
// of the evicted. They keep their deadlines. A smaller table takes the most advanced. It is meant for a
// matcher that has seen no packet yet; old may not be used again.
func (m *Matcher) Adopt(old *Matcher) {
	m.evicted += old.evicted
	rules := make(map[string]int32, len(m.rules))
	for i := range m.rules {
		rules[m.rules[i].Name] = int32(i)
	}
	for level := len(old.levels) - 1; level >= 0; level-- {
		for i := old.levels[level].newest; i != 0; i = old.slots[i].prev {
			a := &old.slots[i]
			was := &old.rules[a.rule]
			if r, ok := rules[was.Name]; ok && m.rules[r].same(&was.Sequence) && !m.full() {
				m.adopt(old, i, r)
			}
		}
	}
}

// same reports whether an attempt at one sequence is good for the other.
func (s *Sequence) same(other *Sequence) bool {
	return s.Target == other.Target && s.Classic == other.Classic && slices.Equal(s.Steps, other.Steps)
}

// adopt copies an attempt. It comes after all that are newer at its level, and
// so goes to the old end.
func (m *Matcher) adopt(old *Matcher, i, rule int32) {
	j := m.slot()
	a := &m.slots[j]
	*a = old.slots[i]
	a.rule = rule
	steps := int(a.stage)
	copy(m.ids[int(j)*m.steps:], old.ids[int(i)*old.steps:][:steps])
	copy(m.times[int(j)*m.steps:], old.times[int(i)*old.steps:][:steps])
	m.chain(j)
	m.enqueueOldest(j)
	m.live++
}

// matches reports whether the packet is this step.
func (s *Step) matches(h Hit) bool {
	return s.Proto == h.Proto && (s.Port == h.Port || s.AnySize) &&
		(s.Proto != TCP || s.Flags.Match(h.Flags))
}
