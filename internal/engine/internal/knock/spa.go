package knock

import (
	"hash/maphash"
	"slices"
	"time"

	"github.com/sallyport/sallyport/internal/authorized"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/engine/internal/packet"
	"github.com/sallyport/sallyport/internal/engine/internal/policy"
	"github.com/sallyport/sallyport/internal/engine/internal/replay"
	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/sallyport/sallyport/internal/spa"
)

// The datagrams that are remembered by their own bytes, so that a copy costs no
// public-key operation. Those that failed have a table of their own: whoever
// makes failures by the thousand pushes out no success.
const (
	maxVerified = 1024 // about 1 KiB each
	maxFailed   = 4096
)

// authentic recognises all knocks of type "spa" at once.
type authentic struct {
	*Setting
	doors    []door
	seed     maphash.Seed
	verified *recent[verified]
	failed   *recent[struct{}]
	clock    func() time.Time
	out      [1]Outcome
	refusal  Refusal // of out
	counts   authenticCounts
}

// authenticCounts counts datagrams by where they ended.
type authenticCounts struct {
	length, gate, second, repeat, seal, key, signature, stale, refused, made uint64
}

// door is one knock of type "spa".
type door struct {
	knock      int
	cfg        *config.Knock
	keys       []spa.FileKey
	authorized map[spa.Fingerprint]int // index into the knock's Authorized
}

// verified is a datagram whose signature was good.
type verified struct {
	door   int
	opened *spa.Opened
	signed policy.Signed
	done   bool // it had what it asked for
	told   bool // that it was refused: the other copies say nothing new
}

// newSPA makes the recogniser for a config and its keys. What was verified by
// another set of keys counts no more.
func newSPA(setting *Setting, old Recogniser) Recogniser {
	s := &authentic{
		Setting: setting, seed: maphash.MakeSeed(), clock: setting.Clock,
		verified: newRecent[verified](maxVerified), failed: newRecent[struct{}](maxFailed),
	}
	if old, ok := old.(*authentic); ok {
		s.counts = old.counts
	}
	for i := range setting.Config.Knocks {
		if k := &setting.Config.Knocks[i]; k.Type == "spa" {
			keys := &setting.Keys[i]
			d := door{knock: i, cfg: k, keys: keys.Server, authorized: make(map[spa.Fingerprint]int, len(keys.Authorized))}
			for j := range keys.Authorized {
				d.authorized[keys.Authorized[j].Public.Fingerprint()] = j
			}
			s.doors = append(s.doors, d)
		}
	}
	return s
}

// Tick changes nothing: a datagram is decided when it comes.
func (s *authentic) Tick(int64) []Outcome { return nil }

// HostChanged changes nothing: a datagram says itself what it is.
func (s *authentic) HostChanged() {}

// Observe shows the recogniser one packet. Junk is gone after the length and
// one SipHash; nothing is allocated for what does not pass both gates.
func (s *authentic) Observe(p *packet.Packet, _ int64) []Outcome {
	var failed *uint64
	for i := range s.doors {
		d := &s.doors[i]
		if !d.hears(p) {
			continue
		}
		b := spa.Single(p.Payload)
		if b == nil {
			s.counts.length++
			return nil
		}
		if failed == nil {
			failed = &s.counts.gate
		}
		for j := range d.keys {
			gate := d.keys[j].Key.Gate()
			if !gate.First(b) {
				continue
			}
			if gate.Second(b) {
				return s.passed(i, &d.keys[j], b, p)
			}
			failed = &s.counts.second
		}
	}
	if failed != nil {
		*failed++
	}
	return nil
}

// hears reports whether a packet can carry a datagram to the knock.
func (d *door) hears(p *packet.Packet) bool {
	t := config.OverUDP
	switch p.Proto {
	case sequence.TCP:
		// Data in a segment that opens nothing is some connection's.
		if len(p.Payload) == 0 || p.Flags&(sequence.SYN|sequence.ACK) != sequence.SYN {
			return false
		}
		t = config.OverTCP
	case sequence.ICMP:
		t = config.OverICMP
	case sequence.UDP:
	default:
		return false // UDP-Lite has ports and a payload, too
	}
	return (t == config.OverICMP || p.DstPort == d.cfg.Port) && !p.Cut && slices.Contains(d.cfg.Transports, t)
}

// passed takes a datagram that got through both gates.
func (s *authentic) passed(i int, key *spa.FileKey, b []byte, p *packet.Packet) []Outcome {
	now, id := s.clock(), maphash.Bytes(s.seed, b)
	if _, failed := s.failed.get(id); failed {
		s.counts.repeat++
		return nil
	}
	if !key.Until.IsZero() && now.After(key.Until) {
		s.counts.key++
		s.failed.put(id, struct{}{}) // its copies say nothing new
		return s.unsigned(i, p, Refusal{Why: "it is sealed for a server key whose time is over", OldKey: true})
	}
	v, known := s.verified.get(id)
	if !known {
		var stranger spa.Fingerprint
		if v, stranger = s.verify(i, key, b); v == nil {
			s.failed.put(id, struct{}{})
			if stranger == (spa.Fingerprint{}) {
				return nil
			}
			// With a new user that is the usual mistake, so the owner is told which
			// key is missing. Only who has the server's address gets here.
			return s.unsigned(i, p, Refusal{Why: "its key is not in authorized_keys", Stranger: stranger})
		}
		v = s.verified.put(id, *v)
	}
	if v.done {
		s.counts.repeat++
		return nil
	}
	return s.decide(v, p, now)
}

// verify does the public-key work: one operation to open the seal, one to check
// the signature. Where only the key is not ours, it gives its fingerprint.
func (s *authentic) verify(i int, key *spa.FileKey, b []byte) (*verified, spa.Fingerprint) {
	opened, err := key.Key.Open(b)
	if err != nil {
		s.counts.seal++
		return nil, spa.Fingerprint{}
	}
	d := &s.doors[i]
	n, ok := d.authorized[opened.Key]
	if !ok {
		s.counts.key++
		return nil, opened.Key
	}
	authorized := s.key(d, n)
	presence, err := opened.Verify(&authorized.Public)
	if err != nil {
		s.counts.signature++
		return nil, spa.Fingerprint{}
	}
	return &verified{door: i, opened: opened, signed: policy.Signed{
		Request: opened.Request, Key: authorized, Number: uint16(n + 1), Presence: presence,
	}}, spa.Fingerprint{}
}

// unsigned refuses a request that nobody's signature is known of.
func (s *authentic) unsigned(i int, p *packet.Packet, why Refusal) []Outcome {
	s.refusal = why
	s.out[0] = Outcome{Verdict: Refused, Claim: policy.Claim{Knock: s.doors[i].knock, Source: p.Src}, Refusal: &s.refusal}
	return s.out[:]
}

func (s *authentic) key(d *door, n int) *authorized.Key { return &s.Keys[d.knock].Authorized[n] }

// decide asks whether an authentic request is fresh and allowed. One that is
// refused stays good: somebody else may have delivered it from a wrong address
// first, and its sender's own copy must not suffer for that.
func (s *authentic) decide(v *verified, p *packet.Packet, now time.Time) []Outcome {
	d := &s.doors[v.door]
	o := &s.out[0]
	s.refusal = Refusal{}
	*o = Outcome{Verdict: Refused, Claim: policy.Claim{Knock: d.knock, Source: p.Src, Signed: &v.signed}, Refusal: &s.refusal}
	heard := replay.Heard{Key: replay.Key(v.opened.Key), Stamp: v.signed.Stamp, Tag: replay.Tag(v.opened.Tag)}
	rule := replay.Rule{Window: d.cfg.Window, NoClock: d.cfg.Clock == config.NoClock}
	if why := s.Memory.Check(&heard, rule, now); why != replay.Fresh {
		return s.stale(v, why, now)
	}
	grants, why := s.Policy.Decide(o.Claim, now)
	if why != policy.Good {
		s.counts.refused++
		return s.refuse(v, string(why))
	}
	// Before the grant, so that no crash can lose that it was heard.
	if err := s.Memory.Accept(&heard, rule, now); err != nil {
		s.counts.refused++
		return s.refuse(v, err.Error())
	}
	v.done = true
	s.counts.made++
	o.Verdict, o.Grants = Made, grants
	return s.out[:]
}

func (s *authentic) stale(v *verified, why replay.Why, now time.Time) []Outcome {
	if why == replay.Repeat {
		v.done = true
		s.counts.repeat++
		return nil
	}
	s.counts.stale++
	switch why {
	case replay.TooOld, replay.FromTheFuture:
		s.refusal.Skew = time.Unix(0, v.signed.Stamp).Sub(now)
	case replay.BeforeStart:
		s.refusal.Boundary = s.Memory.Boundary()
	}
	return s.refuse(v, string(why))
}

// refuse says once for each datagram why its request is good for nothing.
func (s *authentic) refuse(v *verified, why string) []Outcome {
	if v.told {
		return nil
	}
	v.told = true
	s.refusal.Why = why
	return s.out[:]
}

// Count tells where datagrams ended.
func (s *authentic) Count(numbers map[string]uint64) {
	c := &s.counts
	for name, n := range map[string]uint64{
		"spa_length": c.length, "spa_gate": c.gate, "spa_second_gate": c.second, "spa_repeat": c.repeat, "spa_seal": c.seal,
		"spa_key": c.key, "spa_signature": c.signature, "spa_stale": c.stale, "spa_refused": c.refused, "spa_made": c.made,
	} {
		numbers[name] = n
	}
}

// recent is a table of at most so many entries in which the newest takes the
// place of the oldest.
type recent[V any] struct {
	index map[uint64]int
	ids   []uint64
	list  []V
	next  int
	most  int
}

func newRecent[V any](most int) *recent[V] { return &recent[V]{index: map[uint64]int{}, most: most} }

func (r *recent[V]) get(id uint64) (*V, bool) {
	i, ok := r.index[id]
	if !ok {
		return nil, false
	}
	return &r.list[i], true
}

func (r *recent[V]) put(id uint64, v V) *V {
	if len(r.list) < r.most {
		r.ids, r.list = append(r.ids, id), append(r.list, v)
		r.index[id] = len(r.list) - 1
		return &r.list[len(r.list)-1]
	}
	i := r.next
	r.next = (i + 1) % r.most
	delete(r.index, r.ids[i])
	r.ids[i], r.list[i] = id, v
	r.index[id] = i
	return &r.list[i]
}
