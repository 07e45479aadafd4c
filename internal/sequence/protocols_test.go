package sequence

import (
	"math"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestParseStepOfOtherProtocols(t *testing.T) {
	for text, want := range map[string]Step{
		"9000/sctp":     {Proto: SCTP, Port: 9000},
		"1/dccp":        {Proto: DCCP, Port: 1},
		"65535/udplite": {Proto: UDPLite, Port: 65535},
		"proto/2":       {Proto: 2},
		"proto/47":      {Proto: 47},
		"proto/50":      {Proto: 50}, // ESP
		"proto/51":      {Proto: 51}, // AH
		"proto/254":     {Proto: 254},
	} {
		got, err := ParseStep(text)
		if err != nil || got != want || got.String() != text {
			t.Errorf("ParseStep(%q) = %+v, %v, which is spelled %q; want %+v", text, got, err, got, want)
		}
		var crossed Step
		if err := crossed.UnmarshalText([]byte(text)); err != nil || crossed != want {
			t.Errorf("%q crosses as %+v, %v", text, crossed, err)
		}
	}
}

func TestParseStepRefusesOtherProtocols(t *testing.T) {
	for text, want := range map[string]string{
		"0/sctp":         "from 1 to 65535",
		"65536/dccp":     "from 1 to 65535",
		"/udplite":       "from 1 to 65535",
		"9000/SCTP":      `the protocol "SCTP"`,
		"9000/udp-lite":  `the protocol "udp-lite"`,
		"9000/47":        `the protocol "47"`,
		"9000/proto":     `the protocol "proto"`,
		"9000/sctp:syn":  "only a tcp step",
		"9000/dccp:any":  "only a tcp step",
		"proto":          "not a step",
		"proto/":         "from 1 to 254",
		"proto/gre":      "from 1 to 254",
		"proto/047":      "from 1 to 254",
		"proto/+47":      "from 1 to 254",
		"proto/47/47":    "from 1 to 254",
		"proto/256":      "from 1 to 254",
		"proto/255":      "from 1 to 254",
		"proto/303":      "from 1 to 254", // 47 in the lowest byte
		"proto/47:syn":   "only a tcp step",
		"proto/0":        "from 1 to 254",
		"proto/6":        "write it as 7000/tcp",
		"proto/17":       "write it as 7000/udp",
		"proto/33":       "write it as 7000/dccp",
		"proto/132":      "write it as 7000/sctp",
		"proto/136":      "write it as 7000/udplite",
		"proto/1":        "written as icmp",
		"proto/58":       "written as icmp",
		"proto/43":       "header of IPv6",
		"proto/44":       "header of IPv6",
		"proto/60":       "header of IPv6",
		"47/proto/47":    `the protocol "proto/47"`,
		"proto/47,99/47": "from 1 to 254",
	} {
		if got, err := ParseStep(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ParseStep(%q) = %+v, %v; want an error with %q", text, got, err, want)
		}
	}
}

// A protocol has one spelling, whichever it is.
func TestEveryProtocolHasOneSpelling(t *testing.T) {
	for n := range 256 {
		p := Proto(n)
		step := Step{Proto: p, Port: 9}
		if p.Bare() {
			step.Port = 0
		}
		if p == TCP {
			step.Flags = Opening
		}
		got, err := ParseStep(step.String())
		if can := p.Bare() || p.Ported() || p == ICMP; can != (err == nil) || can && got != step {
			t.Errorf("%d is spelled %q and read as %+v, %v", n, step, got, err)
		}
		if p.Bare() && p.Ported() {
			t.Errorf("%v is bare and has ports", p)
		}
	}
}

func TestStrengthOfOtherProtocols(t *testing.T) {
	for _, test := range []struct {
		steps string
		bits  float64
		order Order
		scan  bool
	}{
		{"9000/sctp", 16, Mixed, true},
		{"9000/sctp 9001/dccp", 32, Ascending, true},
		{"9000/sctp 8000/udplite 9500/dccp", 48, Mixed, false},
		{"7000/tcp 9000/sctp 9500/udp", 48, Ascending, false},
		{"proto/47", 0, Mixed, true},
		{"proto/50 proto/47", 0, Mixed, true},
		{"proto/50 icmp proto/47", 0, Mixed, true},
		{"proto/47 7000/tcp", 16, Mixed, false},
		{"7000/tcp proto/47 7001/tcp", 32, Ascending, false},
		{"proto/47 37/icmp", 10.52, Mixed, false},
		{"icmp 37/icmp", 10.52, Mixed, true},
	} {
		all := steps(t, test.steps)
		if got := Bits(all); math.Abs(got-test.bits) > 0.01 {
			t.Errorf("%s: %.2f bits, want %.2f", test.steps, got, test.bits)
		}
		if got := OrderOf(all); got != test.order {
			t.Errorf("%s is %v, want %v", test.steps, got, test.order)
		}
		if got := ScanOpens(all); got != test.scan {
			t.Errorf("%s: a scan opens it: %v, want %v", test.steps, got, test.scan)
		}
	}
	odds := func(text string) float64 { return ScanOdds(Sequence{Steps: steps(t, text)}, nil, 65535) }
	if with, without := odds("7000/tcp proto/47 8500/tcp"), odds("7000/tcp 8500/tcp"); with != without {
		t.Errorf("a bare protocol makes the odds of a scan of ports %v instead of %v", with, without)
	}
	if other, tcp := odds("7000/sctp 8500/dccp 7800/udplite"), odds("7000/tcp 8500/sctp 7800/udp"); math.Abs(other/tcp-1) > 1e-9 || other <= 0 {
		t.Errorf("the odds of a scan of three other protocols are %v, of three of which two are everyday %v", other, tcp)
	}
}

// knocker sends packets of one source to a matcher.
type knocker struct {
	*Matcher
	src netip.Addr
	now int64
	id  uint64
}

// both runs a test with one source of each family.
func both(t *testing.T, sequences []Sequence, test func(t *testing.T, k *knocker)) {
	for name, addr := range map[string]string{"IPv4": "198.51.100.7", "IPv6": "2001:db8:1::7"} {
		t.Run(name, func(t *testing.T) {
			test(t, &knocker{Matcher: New(sequences, []Span{{TCP, 9001, 9001}, {SCTP, 9001, 9001}}, 10), src: netip.MustParseAddr(addr), now: 1})
		})
	}
}

// send gives the verdict of a packet to a step, or 0. An ID of 0 is a new one.
func (k *knocker) send(step string, id uint64) Verdict {
	s, err := ParseStep(step)
	if err != nil {
		panic(err)
	}
	if k.id++; id == 0 {
		id = 1000 + k.id
	}
	k.now += int64(10 * time.Millisecond)
	out := k.Observe(k.src, Hit{Proto: s.Proto, Port: s.Port, Flags: s.Flags.Set, ID: id}, k.now)
	if len(out) == 0 {
		return 0
	}
	return out[len(out)-1].Verdict
}

func TestMatcherFollowsOtherProtocols(t *testing.T) {
	seq := []Sequence{{Name: "a", Steps: steps(t, "9000/sctp proto/47 9500/dccp 8500/udplite 7000/tcp"), Within: 10 * time.Second}}
	for name, test := range map[string]struct {
		before []string
		step   string
		want   Verdict
	}{
		"begins":                     {nil, "9000/sctp", Started},
		"goes on":                    {[]string{"9000/sctp"}, "proto/47", Advanced},
		"ends":                       {[]string{"9000/sctp", "proto/47", "9500/dccp", "8500/udplite"}, "7000/tcp", Completed},
		"the port in TCP":            {nil, "9000/tcp", 0},
		"another protocol":           {[]string{"9000/sctp"}, "proto/50", 0},
		"bare out of turn":           {[]string{"9000/sctp", "proto/47", "9500/dccp"}, "proto/47", 0},
		"near, SCTP":                 {[]string{"9000/sctp"}, "9100/sctp", Wrong},
		"near, DCCP":                 {[]string{"9000/sctp"}, "9100/dccp", Wrong},
		"near, UDP-Lite":             {[]string{"9000/sctp"}, "9100/udplite", Wrong},
		"near, TCP":                  {[]string{"9000/sctp"}, "9100/tcp", Wrong},
		"near, a protocol not in it": {[]string{"9000/sctp"}, "9100/udp", 0},
		"far":                        {[]string{"9000/sctp"}, "20000/sctp", 0},
		"innocent for TCP":           {[]string{"9000/sctp"}, "9001/tcp", 0},
		"only TCP and UDP are":       {[]string{"9000/sctp"}, "9001/sctp", Wrong},
		"a ping":                     {[]string{"9000/sctp"}, "icmp", 0},
	} {
		t.Run(name, func(t *testing.T) {
			both(t, seq, func(t *testing.T, k *knocker) {
				for _, step := range test.before {
					if v := k.send(step, 0); v != Started && v != Advanced {
						t.Fatalf("%s: %v", step, v)
					}
				}
				if got := k.send(test.step, 0); got != test.want {
					t.Errorf("%s: %v, want %v", test.step, got, test.want)
				}
			})
		})
	}
}

// What opens a connection is repeated for a minute; a datagram's copy comes at
// once.
func TestRepeatsOfOtherProtocols(t *testing.T) {
	for first, harmless := range map[string]bool{"9000/sctp": true, "9000/dccp": true, "9000/tcp": true, "9000/udplite": false, "9000/udp": false} {
		seq := []Sequence{{Name: "a", Steps: steps(t, first+" 9200/tcp 9210/tcp"), Within: time.Minute}}
		both(t, seq, func(t *testing.T, k *knocker) {
			k.send(first, 7)
			k.send("9200/tcp", 0)
			k.now += int64(3 * time.Second)
			if got := k.send(first, 7); (got == Repeated) != harmless {
				t.Errorf("a late repeat of %s: %v", first, got)
			}
		})
	}
}

func TestStrictWithOtherProtocols(t *testing.T) {
	seq := []Sequence{{Name: "a", Steps: steps(t, "9000/sctp proto/47"), Within: time.Minute, Strict: true}}
	for step, want := range map[string]Verdict{
		"40000/sctp": Wrong, "40000/tcp": Wrong, "40000/udp": Wrong,
		"40000/dccp": 0, "40000/udplite": 0, "proto/50": 0, "icmp": 0, "proto/47": Completed,
	} {
		both(t, seq, func(t *testing.T, k *knocker) {
			k.send("9000/sctp", 0)
			if got := k.send(step, 0); got != want {
				t.Errorf("%s: %v, want %v", step, got, want)
			}
		})
	}
	guard := seq[0].Guard()
	for _, want := range []Span{{TCP, 1, 65535}, {UDP, 1, 65535}, {SCTP, 1, 65535}, {47, 0, 0}} {
		if !slices.Contains(guard, want) {
			t.Errorf("the guard %v lacks %v", guard, want)
		}
	}
	if len(guard) != 4 {
		t.Errorf("the guard is %v", guard)
	}
}

// keygen --sequence leaves out what takes a right to send and what a router
// between may not carry.
func TestRandomHasNoOtherProtocols(t *testing.T) {
	for range 50 {
		all, err := Random(8)
		if err != nil {
			t.Fatal(err)
		}
		if slices.ContainsFunc(all, func(s Step) bool { return s.Proto != TCP && s.Proto != UDP }) {
			t.Fatalf("%v", all)
		}
	}
}

func TestObserveOfOtherProtocolsDoesNotAllocate(t *testing.T) {
	both(t, []Sequence{{Name: "a", Steps: steps(t, "9000/sctp proto/47"), Within: time.Minute}}, func(t *testing.T, k *knocker) {
		for _, h := range []Hit{{Proto: SCTP, Port: 9000}, {Proto: 47}, {Proto: SCTP, Port: 9040}, {Proto: UDPLite, Port: 9000}} {
			if n := testing.AllocsPerRun(100, func() { k.id++; h.ID = k.id; k.Observe(k.src, h, k.now) }); n != 0 {
				t.Errorf("%v: %v allocations", h, n)
			}
		}
	})
}
