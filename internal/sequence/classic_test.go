package sequence

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

func classic(t testing.TB, text string) Sequence {
	s := seq(t, text)
	s.Classic = true
	return s
}

func TestClassic(t *testing.T) {
	for _, test := range []struct {
		name  string
		doors string // one per line
		// within is in seconds; 0 stands for 5.
		within        int
		packets, want string
	}{
		{name: "in order", doors: "7000/tcp:any 8500/udp 7800/tcp:any",
			packets: "7000/tcp 8500/udp 7800/tcp", want: "started advanced completed"},
		{name: "a port of no door changes nothing", doors: "7000/tcp:any 8000/tcp:any",
			packets: "7000/tcp 7001/tcp 7000/udp 56/icmp 8000/tcp", want: "started - - - completed"},
		{name: "a scan opens what ascends", doors: "7/tcp:syn 8/tcp:syn 9/tcp:syn",
			packets: "5/tcp 6/tcp 7/tcp 8/tcp 9/tcp 10/tcp", want: "- - started advanced completed -"},
		{name: "a retransmission ends it", doors: "7000/tcp:syn 8000/tcp:syn",
			packets: "7000/tcp:syn#1 7000/tcp:syn#1 8000/tcp:syn", want: "started wrong -"},
		{name: "what ends an attempt begins none", doors: "1/tcp:syn 2/tcp:syn 3/tcp:syn",
			packets: "1/tcp:syn 1/tcp:syn 2/tcp:syn 3/tcp:syn 1/tcp:syn 2/tcp:syn 3/tcp:syn",
			want:    "started wrong - - started advanced completed"},
		{name: "the same knock again at once", doors: "1/udp 2/udp",
			packets: "1/udp#1 2/udp#2 1/udp#1 2/udp#2", want: "started completed started completed"},
		{name: "one step, each time", doors: "1/tcp:syn",
			packets: "1/tcp:syn#1 1/tcp:syn#1 1/tcp:syn#1", want: "completed completed completed"},
		{name: "the same port twice", doors: "7000/udp 7000/udp 8000/udp",
			packets: "7000/udp#1 7000/udp#1 8000/udp", want: "started advanced completed"},
		{name: "other flags mean nothing to a door", doors: "1/tcp:syn,!ack 2/tcp:syn,!ack",
			packets: "1/tcp:syn 2/tcp:ack 1/tcp:ack 2/tcp:syn,ack 2/tcp:syn", want: "started - - - completed"},
		{name: "a door without flags takes any segment", doors: "1/tcp:any 2/tcp:any",
			packets: "1/tcp:ack 2/tcp:any", want: "started completed"},
		{name: "other flags that another door takes: ignored, and yet nothing begins", doors: "1/tcp:syn 2/tcp:syn\n3/tcp:fin 4/tcp:fin",
			packets: "1/tcp:syn 3/tcp:fin 2/tcp:syn 3/tcp:fin 4/tcp:fin", want: "0:started - 0:completed 1:started 1:completed"},
		{name: "another door's port is wrong", doors: "1/tcp:syn 2/tcp:syn\n3/tcp:syn 4/tcp:syn",
			packets: "1/tcp:syn 3/tcp:syn 2/tcp:syn 3/tcp:syn 4/tcp:syn", want: "0:started 0:wrong - 1:started 1:completed"},
		{name: "a shared beginning, in the order of the file", doors: "1/udp 2/udp 3/udp\n1/udp 2/udp 4/udp",
			packets: "1/udp 2/udp 4/udp", want: "0:started+1:started 0:advanced+1:advanced 0:wrong+1:completed"},
		{name: "one is the beginning of the other", doors: "1/udp 2/udp 3/udp\n1/udp 2/udp\n1/udp",
			packets: "1/udp 2/udp 3/udp", want: "0:started+1:started+2:completed 0:advanced+1:completed 0:completed"},
		{name: "sources are apart", doors: "1/udp 2/udp",
			packets: "1/udp<1 1/udp<2 2/udp<3 1/udp<2 2/udp<2 2/udp<1", want: "started started - wrong - completed"},
		{name: "whole seconds: the last moment", doors: "1/udp 2/udp",
			packets: "1/udp@1.75 2/udp@5.99", want: "started completed"},
		{name: "whole seconds: less than Within, and yet too late", doors: "1/udp 2/udp",
			packets: "1/udp@1.75 2/udp@6.0", want: "started expired"},
		{name: "too late, and the first of the next", doors: "1/udp 2/udp",
			packets: "1/udp@1 1/udp@6 2/udp@6.5", want: "started expired+started completed"},
		{name: "too late for one door, and another begins", doors: "1/udp 2/udp\n3/udp 4/udp",
			packets: "1/udp@1 3/udp@7", want: "0:started 0:expired+1:started"},
		{name: "no time at all", doors: "1/udp 2/udp\n3/udp", within: -1,
			packets: "1/udp@1 2/udp@1 3/udp@1", want: "0:started 0:expired 1:completed"},
		{name: "port 0 is a port like others", doors: "0/udp 1/udp 65535/udp",
			packets: "0/udp 1/udp 65535/udp", want: "started advanced completed"},
		{name: "pings are no steps", doors: "icmp\n1/udp icmp",
			packets: "1/udp 56/icmp 0/icmp", want: "1:started - -"},
	} {
		t.Run(test.name, func(t *testing.T) {
			bothFamilies(t, func(t *testing.T, host func(int) netip.Addr) {
				var doors []Sequence
				for line := range strings.SplitSeq(test.doors, "\n") {
					s := classic(t, line)
					if test.within != 0 {
						s.Within = time.Duration(test.within) * time.Second
					}
					doors = append(doors, s)
				}
				// Listening ports excuse nothing here.
				if got := traffic(t, New(doors, live(3, 7000), 64), host, test.packets); got != test.want {
					t.Errorf("doors %q, packets %q\n got %s\nwant %s", test.doors, test.packets, got, test.want)
				}
			})
		})
	}
}

// knockd is its section of the specification (what is seen, then the state
// machine), without the fault of its memory: lists and loops, no bound.
type knockd struct {
	doors    []Sequence
	attempts []*knockdAttempt
	late     map[string]int // what was too late, and how often
}

type knockdAttempt struct {
	src    netip.Addr
	door   int
	stage  int // -1: failed
	second int64
}

func (k *knockd) observe(src netip.Addr, h Hit, now int64) (out []Outcome) {
	if !slices.ContainsFunc(k.doors, func(d Sequence) bool { return knockdFilter(d, h) }) {
		return nil
	}
	k.sweep(now / 1e9)
	found := false
	for _, a := range k.attempts {
		d := k.doors[a.door]
		if a.src != src || !knockdTarget(d, h) {
			continue
		}
		found = true
		switch next := d.Steps[a.stage]; {
		case h.Proto == TCP && !knockdFlags(d, h):
		case next.Proto == h.Proto && next.Port == h.Port:
			out = append(out, k.stage(a, Advanced))
		default:
			out = append(out, Outcome{a.door, Wrong, a.stage})
			a.stage = -1
		}
	}
	if found {
		return out
	}
	for i, d := range k.doors {
		if len(d.Steps) == 0 || !knockdTarget(d, h) || h.Proto == TCP && !knockdFlags(d, h) {
			continue
		}
		if d.Steps[0].Proto == h.Proto && d.Steps[0].Port == h.Port {
			a := &knockdAttempt{src: src, door: i, second: now / 1e9}
			k.attempts = append(k.attempts, a)
			out = append(out, k.stage(a, Started))
		}
	}
	return out
}

func (k *knockd) stage(a *knockdAttempt, v Verdict) Outcome {
	a.stage++
	if a.stage >= len(k.doors[a.door].Steps) {
		v = Completed
	}
	return Outcome{a.door, v, a.stage}
}

func (k *knockd) sweep(second int64) {
	var kept []*knockdAttempt
	for _, a := range k.attempts {
		d := k.doors[a.door]
		switch {
		case a.stage >= len(d.Steps), a.stage < 0:
		case second-a.second >= int64(d.Within/time.Second):
			k.late[fmt.Sprint(a.src, " ", a.door, " ", a.stage)]++
		default:
			kept = append(kept, a)
		}
	}
	k.attempts = kept
}

func knockdTarget(d Sequence, h Hit) bool {
	if d.Target == (netip.Addr{}) {
		return !h.Elsewhere
	}
	return h.Dst == d.Target
}

// knockdFlags: one line of the door holds for all its TCP steps. A door of UDP
// steps alone has none, as far as a Sequence can say.
func knockdFlags(d Sequence, h Hit) bool {
	for _, s := range d.Steps {
		if s.Proto == TCP {
			return h.Flags&s.Flags.Set == s.Flags.Set && h.Flags&s.Flags.Clear == 0
		}
	}
	return true
}

func knockdFilter(d Sequence, h Hit) bool {
	if !knockdTarget(d, h) {
		return false
	}
	for _, s := range d.Steps {
		if s.Proto == h.Proto && s.Port == h.Port && (h.Proto == UDP || knockdFlags(d, h)) {
			return true
		}
	}
	return false
}

func drawDoors(rng *rand.Rand) []Sequence {
	var doors []Sequence
	for i := range 1 + rng.IntN(5) {
		d := Sequence{Name: fmt.Sprint(i), Classic: true, Within: time.Duration(rng.IntN(6)-1) * time.Second, Target: drawTarget(rng)}
		flags := pick(rng, []Flags{{}, {Set: SYN}, {Set: SYN}, {Set: SYN, Clear: ACK}, {Set: FIN, Clear: SYN}, Opening})
		for range rng.IntN(6) {
			s := Step{Proto: pick(rng, []Proto{TCP, TCP, UDP}), Port: pick(rng, []uint16{0, 1, 2, 3, 7000, 7001, 65535})}
			if s.Proto == TCP {
				s.Flags = flags
			}
			d.Steps = append(d.Steps, s)
		}
		if i > 0 && rng.IntN(3) == 0 { // a shared beginning
			d.Steps = slices.Concat(doors[0].Steps[:min(2, len(doors[0].Steps))], d.Steps)
			for j := range d.Steps {
				if d.Steps[j].Proto == TCP {
					d.Steps[j].Flags = flags
				}
			}
		}
		doors = append(doors, d)
	}
	return doors
}

// TestClassicAgainstKnockd plays seeded random packets of two sources of each
// family to the matcher and to knockd's rules. What is too late both tell once,
// but at other times, so that is compared at the end.
func TestClassicAgainstKnockd(t *testing.T) {
	counts := map[string]int{}
	for seed := range uint64(3000) {
		rng := rand.New(rand.NewPCG(seed, 5))
		doors := drawDoors(rng)
		slow := knockd{doors: doors, late: map[string]int{}}
		m := New(doors, live(7001), 64)
		late := map[string]int{}
		expire := func(now int64) {
			for _, o := range m.Expire(now) {
				late[fmt.Sprint(o.Source, " ", o.Sequence, " ", o.Stage)]++
				counts["told by Expire"]++
			}
		}
		now := int64(rng.IntN(2e9))
		var cursors [4]int
		for n := range 150 {
			now += pick(rng, []int64{0, 1, 1e8, 1e8, 3e8, 1e9})
			who := rng.IntN(4)
			src := families[[]string{"IPv4", "IPv6"}[who%2]](who/2 + 1)
			h := drawDoorHit(rng, doors, &cursors[who])
			if rng.IntN(8) == 0 {
				expire(now)
			}
			want := slow.observe(src, h, now)
			var got []Outcome
			for _, o := range m.Observe(src, h, now) {
				if o.Verdict == Expired {
					late[fmt.Sprint(src, " ", o.Sequence, " ", o.Stage)]++
				} else {
					got = append(got, o)
				}
				counts[o.Verdict.String()]++
			}
			if len(want) > 1 {
				counts["several"]++
			}
			slices.SortFunc(want, func(a, b Outcome) int { return cmp.Compare(a.Sequence, b.Sequence) })
			if !slices.Equal(got, want) {
				t.Fatalf("seed %d packet %d, %v to %v %d/%v flags %#x at %d, doors %v:\n got %v\nwant %v",
					seed, n, src, h.Dst, h.Port, h.Proto, h.Flags, now, doors, got, want)
			}
		}
		expire(now + 1e12)
		slow.sweep(now/1e9 + 1000)
		if fmt.Sprint(late) != fmt.Sprint(slow.late) {
			t.Fatalf("seed %d, doors %v: too late were\n got %v\nwant %v", seed, doors, late, slow.late)
		}
		if m.Len() != 0 {
			t.Fatalf("seed %d: %d attempts are left", seed, m.Len())
		}
		m.check(t)
	}
	for _, what := range []string{"started", "advanced", "completed", "wrong", "expired", "told by Expire", "several"} {
		if counts[what] < 1000 {
			t.Errorf("only %d were %s: the rules were not put to the test", counts[what], what)
		}
	}
	t.Log(counts)
}

func drawDoorHit(rng *rand.Rand, doors []Sequence, cursor *int) Hit {
	d := doors[0]
	if rng.IntN(3) == 0 {
		d = pick(rng, doors)
	}
	h := Hit{Proto: pick(rng, []Proto{TCP, UDP, ICMP}), Port: uint16(rng.IntN(4)), Flags: SYN}
	if len(d.Steps) > 0 && rng.IntN(12) > 0 {
		h = hitOf(d.Steps[*cursor%len(d.Steps)], rng.Uint64N(3))
		*cursor++
	}
	if h.Proto == TCP && rng.IntN(6) == 0 {
		h.Flags = pick(rng, []uint8{SYN, SYN | 0xc0, SYN | ACK, ACK, FIN, 0})
	}
	aimAt(rng, &h, d)
	return h
}

// In a full table the least advanced goes, as everywhere.
func TestClassicIsBounded(t *testing.T) {
	bothFamilies(t, func(t *testing.T, host func(int) netip.Addr) {
		m := New([]Sequence{classic(t, "1/udp 2/udp 3/udp")}, nil, 2)
		got := traffic(t, m, host, "1/udp<1 2/udp<1 1/udp<2 1/udp<3 2/udp<2 2/udp<3 3/udp<1")
		if got != "started advanced started started - advanced completed" || m.Evicted() != 1 {
			t.Errorf("%s, %d evicted", got, m.Evicted())
		}
		m.check(t)
	})
}

func TestClassicGuard(t *testing.T) {
	got := classic(t, "7000/tcp:any 8000/udp 7000/tcp:any 7000/udp").Guard()
	want := []Span{{TCP, 7000, 7000}, {UDP, 8000, 8000}, {UDP, 7000, 7000}}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if odds := ScanOdds(classic(t, "7000/tcp 8000/tcp 9000/tcp"), nil, 65535); odds < 0.1666 || odds > 0.1667 {
		t.Errorf("a scan in random order opens three steps of knockd's with %v, want 1/6", odds)
	}
}

// A thousand doors with one port, as where each has another command, are one look.
func TestClassicSharedPorts(t *testing.T) {
	shared := doorsOf(slices.Repeat([]Sequence{classic(t, "7000/tcp:syn 8000/udp 7000/tcp:syn")}, 1000))
	for k, aims := range shared {
		if len(aims) != 1 {
			t.Errorf("%d looks at port %d", len(aims), k&0xffff)
		}
	}
}

// Attempts don't cross from one set of rules to the other: their times differ.
func TestClassicIsNotAdopted(t *testing.T) {
	for _, was := range []bool{true, false} {
		a, b := seq(t, "1/udp 2/udp"), seq(t, "1/udp 2/udp")
		a.Classic, b.Classic = was, !was
		old, m := New([]Sequence{a}, nil, 4), New([]Sequence{b}, nil, 4)
		traffic(t, old, families["IPv6"], "1/udp")
		if m.Adopt(old); m.Len() != 0 {
			t.Errorf("classic %v: an attempt went over to the other rules", was)
		}
		same := New([]Sequence{a}, nil, 4)
		same.Adopt(old)
		if got := traffic(t, same, families["IPv6"], "2/udp"); got != "completed" {
			t.Errorf("classic %v: an attempt was not taken over: %s", was, got)
		}
	}
}
