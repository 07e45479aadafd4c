package sequence

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// steps reads "7000/tcp 8500/udp", and port 0 too.
func steps(t testing.TB, text string) []Step {
	t.Helper()
	var all []Step
	for _, word := range strings.Fields(text) {
		var s Step
		if err := s.UnmarshalText([]byte(word)); err != nil {
			t.Fatal(err)
		}
		all = append(all, s)
	}
	return all
}

func seq(t testing.TB, text string) Sequence {
	return Sequence{Name: text, Steps: steps(t, text), Within: 5 * time.Second}
}

// families gives each test its sources twice: host 1, 2, … of a documentation
// prefix of either family.
var families = map[string]func(host int) netip.Addr{
	"IPv4": func(host int) netip.Addr {
		return netip.AddrFrom4([4]byte{192, 0, 2, byte(host)})
	},
	"IPv6": func(host int) netip.Addr {
		return netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 15: byte(host)})
	},
}

func bothFamilies(t *testing.T, f func(t *testing.T, host func(int) netip.Addr)) {
	for name, host := range families {
		t.Run(name, func(t *testing.T) { f(t, host) })
	}
}

// traffic sends packets written as STEP[#ID][<HOST][@SECONDS]: a plain step is
// a new packet from host 1, a quarter second after the one before. It gives
// the outcomes, one word per packet: "-" for none, "+" between two.
func traffic(t testing.TB, m *Matcher, host func(int) netip.Addr, text string) string {
	t.Helper()
	now, fresh := 0.0, uint64(1000)
	var words []string
	for _, word := range strings.Fields(text) {
		now += 0.25
		from := 1
		fresh++
		id := fresh
		if body, at, ok := strings.Cut(word, "@"); ok {
			word = body
			now = number(t, at)
		}
		if body, h, ok := strings.Cut(word, "<"); ok {
			word, from = body, int(number(t, h))
		}
		if body, n, ok := strings.Cut(word, "#"); ok {
			word, id = body, uint64(number(t, n))
		}
		h := hitOf(steps(t, word)[0], id)
		words = append(words, spell(m, m.Observe(host(from), h, int64(now*1e9))))
	}
	return strings.Join(words, " ")
}

func number(t testing.TB, text string) float64 {
	t.Helper()
	n, err := strconv.ParseFloat(text, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// hitOf is a packet that makes the step.
func hitOf(s Step, id uint64) Hit {
	h := Hit{Proto: s.Proto, Port: s.Port, ID: id}
	if s.Proto == TCP {
		h.Flags = s.Flags.Set
	}
	return h
}

func spell(m *Matcher, out []Outcome) string {
	var words []string
	for _, o := range out {
		word := o.Verdict.String()
		if len(m.rules) > 1 {
			word = fmt.Sprintf("%d:%s", o.Sequence, word)
		}
		words = append(words, word)
	}
	if len(words) == 0 {
		return "-"
	}
	return strings.Join(words, "+")
}

// live are ports of either protocol that something listens on.
func live(ports ...uint16) []Span {
	var spans []Span
	for _, p := range ports {
		spans = append(spans, Span{TCP, p, p}, Span{UDP, p, p})
	}
	return spans
}

func TestObserve(t *testing.T) {
	for _, test := range []struct {
		name      string
		sequences string // one per line
		strict    bool
		live      []uint16
		packets   string
		want      string
	}{
		{name: "in order",
			sequences: "7000/tcp 8500/udp 7800/tcp",
			packets:   "7000/tcp 8500/udp 7800/tcp",
			want:      "started advanced completed"},
		{name: "out of order",
			sequences: "7000/tcp 8500/udp 7800/tcp",
			packets:   "8500/udp 7000/tcp 7800/tcp 8500/udp",
			want:      "- started wrong -"},
		{name: "the same port in another protocol is wrong",
			sequences: "7000/tcp 8500/udp 7800/tcp",
			packets:   "7000/tcp 8500/tcp 8500/udp",
			want:      "started wrong -"},
		{name: "a protocol that the sequence does not use is not seen",
			sequences: "7000/tcp 8500/tcp",
			packets:   "7000/tcp 8400/udp 56/icmp 8500/tcp",
			want:      "started - - completed"},
		{name: "once more from the start after a wrong first step",
			sequences: "7000/tcp 8500/tcp 7800/tcp",
			packets:   "7000/tcp 8500/tcp 7000/tcp 8500/tcp 7800/tcp",
			want:      "started advanced wrong+started advanced completed"},
		{name: "one step",
			sequences: "7000/tcp",
			packets:   "7000/tcp#1 7000/tcp#1 7000/tcp#2",
			want:      "completed repeated completed"},

		{name: "A A B: another packet is the second step",
			sequences: "7000/tcp 7000/tcp 8000/tcp",
			packets:   "7000/tcp#1 7000/tcp#1 7000/tcp#2 8000/tcp",
			want:      "started repeated advanced completed"},
		{name: "A A B over UDP",
			sequences: "7000/udp 7000/udp 8000/udp",
			packets:   "7000/udp#1 7000/udp#1 7000/udp#2 8000/udp",
			want:      "started repeated advanced completed"},
		{name: "A A B over UDP: the same datagram is a new one after a second",
			sequences: "7000/udp 7000/udp 8000/udp",
			packets:   "7000/udp#1@1 7000/udp#1@2 7000/udp#1@2.1 8000/udp",
			want:      "started repeated advanced completed"},
		{name: "A B: another A is harmless",
			sequences: "7000/tcp 8000/tcp",
			packets:   "7000/tcp 7000/tcp 8000/tcp",
			want:      "started repeated completed"},
		{name: "A B B C: another B is harmless",
			sequences: "7000/tcp 8000/tcp 9000/tcp",
			packets:   "7000/tcp 8000/tcp 8000/tcp 9000/tcp",
			want:      "started advanced repeated completed"},
		{name: "A B A B C",
			sequences: "7000/tcp 8000/tcp 7000/tcp 8000/tcp 9000/tcp",
			packets:   "7000/tcp 8000/tcp 7000/tcp 8000/tcp 9000/tcp",
			want:      "started advanced advanced advanced completed"},
		{name: "A B A B C with each SYN repeated late",
			sequences: "7000/tcp 8000/tcp 7000/tcp 8000/tcp 9000/tcp",
			packets:   "7000/tcp#1 8000/tcp#2 7000/tcp#1 8000/tcp#2 7000/tcp#3 7000/tcp#1 8000/tcp#4 7000/tcp#3 8000/tcp#2 9000/tcp",
			want:      "started advanced repeated repeated advanced repeated advanced repeated repeated completed"},
		{name: "A B A B C is not A B A B A",
			sequences: "7000/tcp 8000/tcp 7000/tcp 8000/tcp 9000/tcp",
			packets:   "7000/tcp 8000/tcp 7000/tcp 8000/tcp 7000/tcp 9000/tcp",
			want:      "started advanced advanced advanced wrong+started wrong"},
		{name: "a late copy of A after B",
			sequences: "7000/tcp 8000/tcp 9000/tcp",
			packets:   "7000/tcp#1@0 8000/tcp@1 7000/tcp#1@1.1 7000/tcp#1@3 9000/tcp@4",
			want:      "started advanced repeated repeated completed"},
		{name: "a late copy of a datagram, within a second of its step and later",
			sequences: "7000/udp 8000/udp 9000/udp",
			packets:   "7000/udp#1@1 8000/udp#2@1.5 7000/udp#1@2 7000/udp#1@2.1 8000/udp#2@2.2",
			want:      "started advanced repeated wrong+started advanced"},
		{name: "a bridge's copies",
			sequences: "7000/tcp 8000/udp 37/icmp",
			packets:   "7000/tcp#1 7000/tcp#1 8000/udp#2 8000/udp#2 37/icmp#3 37/icmp#3",
			want:      "started repeated advanced repeated completed repeated"},
		{name: "a whole knock again as copies does not complete twice",
			sequences: "7000/tcp 8000/tcp",
			packets:   "7000/tcp#1 8000/tcp#2 7000/tcp#1 8000/tcp#2 7000/tcp#3 8000/tcp#4",
			want:      "started completed repeated repeated started completed"},
		{name: "a completed attempt has nothing to lose",
			sequences: "7000/tcp 8000/tcp",
			packets:   "7000/tcp 8000/tcp 7500/tcp 8000/tcp",
			want:      "started completed - -"},
		{name: "one packet number on two ports is two steps",
			sequences: "7000/tcp 8000/tcp",
			packets:   "7000/tcp#1 8000/tcp#1",
			want:      "started completed"},
		{name: "the packet for a step that was sent last is the one remembered",
			sequences: "7000/tcp 8000/tcp 9000/tcp",
			packets:   "7000/tcp#1 7000/tcp#2 8000/tcp 7000/tcp#2 9000/tcp",
			want:      "started repeated advanced repeated completed"},

		{name: "two sources interleaved",
			sequences: "7000/tcp 8000/tcp",
			packets:   "7000/tcp<1 7000/tcp<2 8000/tcp<2 8000/tcp<1",
			want:      "started started completed completed"},
		{name: "two sources do not make one knock",
			sequences: "7000/tcp 8000/tcp",
			packets:   "7000/tcp<1 8000/tcp<2 7000/tcp<1",
			want:      "started - repeated"},
		{name: "a wrong port from a third source",
			sequences: "7000/tcp 8000/tcp",
			packets:   "7000/tcp<1 7500/tcp<3 7000/tcp<3 7500/tcp<3 8000/tcp<1",
			want:      "started - started wrong completed"},

		{name: "in time, the last nanosecond",
			sequences: "7000/tcp 8000/tcp 9000/tcp",
			packets:   "7000/tcp@1 8000/tcp@3 9000/tcp@6",
			want:      "started advanced completed"},
		{name: "too late, counted from the first step",
			sequences: "7000/tcp 8000/tcp 9000/tcp",
			packets:   "7000/tcp@1 8000/tcp@5 9000/tcp@6.000001 8000/tcp@7",
			want:      "started advanced expired -"},
		{name: "too late, and the first step of the next",
			sequences: "7000/tcp 8000/tcp",
			packets:   "7000/tcp@1 7000/tcp@6.5 8000/tcp@7",
			want:      "started expired+started completed"},
		{name: "the first step once more counts anew",
			sequences: "443/tcp 8000/tcp",
			live:      []uint16{443},
			packets:   "443/tcp@1 443/tcp@5 8000/tcp@9",
			want:      "started repeated completed"},
		{name: "a retransmission does not count anew",
			sequences: "7000/tcp 8000/tcp",
			packets:   "7000/tcp#1@1 7000/tcp#1@5 8000/tcp@9",
			want:      "started repeated expired"},

		{name: "margins",
			sequences: "7000/tcp 9000/tcp",
			packets:   "7000/tcp 6935/tcp 9065/tcp 6936/tcp 7000/tcp 9064/tcp 7000/tcp 8000/tcp",
			want:      "started - - wrong started wrong started wrong"},
		{name: "margins wrap at the bottom: port 1 and 65535 are neighbours",
			sequences: "10/tcp 100/tcp",
			packets:   "10/tcp 65480/tcp 65481/tcp 10/tcp 65535/tcp 10/tcp 1/tcp 10/tcp 164/tcp 10/tcp 165/tcp",
			want:      "started - wrong started wrong started wrong started wrong started -"},
		{name: "margins wrap at the top",
			sequences: "65530/udp 65000/udp",
			packets:   "65530/udp 60/udp 59/udp 65530/udp 64936/udp 65530/udp 64935/udp",
			want:      "started - wrong started wrong started -"},
		{name: "a sequence from end to end guards everything",
			sequences: "20/tcp 65520/tcp",
			packets:   "20/tcp 30000/tcp 20/tcp 1/tcp 20/tcp 65535/tcp",
			want:      "started wrong started wrong started wrong"},
		{name: "innocent ports",
			sequences: "7000/tcp 9000/tcp",
			live:      []uint16{8080, 6998},
			packets:   "7000/tcp 8080/tcp 6998/tcp 9000/tcp",
			want:      "started - - completed"},
		{name: "next to a step no port is innocent",
			sequences: "7000/tcp 9000/tcp",
			live:      []uint16{6999, 7001},
			packets:   "7000/tcp 7001/tcp 7000/tcp 6999/tcp",
			want:      "started wrong started wrong"},
		{name: "a live service's port as the first step",
			sequences: "443/tcp 8000/tcp 9000/tcp",
			live:      []uint16{443},
			packets:   "443/tcp 443/tcp 8000/tcp 443/tcp 443/tcp 9000/tcp",
			want:      "started repeated advanced - - completed"},
		{name: "a live service's port as the second step",
			sequences: "8000/tcp 443/tcp 9000/tcp",
			live:      []uint16{443},
			packets:   "443/tcp 8000/tcp 443/tcp 443/tcp 9000/tcp",
			want:      "- started advanced repeated completed"},
		{name: "a live service's port as the last step",
			sequences: "8000/tcp 9000/tcp 443/tcp",
			live:      []uint16{443},
			packets:   "8000/tcp 443/tcp 9000/tcp 443/tcp",
			want:      "started - advanced completed"},

		{name: "replies and established traffic are not seen",
			sequences: "7000/tcp 9000/tcp",
			packets:   "7000/tcp 8000/tcp:ack 8000/tcp:syn,ack 8000/tcp:rst 8000/tcp:fin 9000/tcp:ack 9000/tcp",
			want:      "started - - - - - completed"},
		{name: "a step that names flags",
			sequences: "7000/tcp:fin,!syn 9000/tcp",
			packets:   "7000/tcp 7000/tcp:fin 8000/tcp:rst 9000/tcp:fin 7000/tcp:fin,ack 9000/tcp",
			want:      "- started - wrong started completed"},
		{name: "the port of a flags step with other flags is wrong",
			sequences: "9000/tcp 7000/tcp:fin,!syn",
			packets:   "9000/tcp 7000/tcp 9000/tcp 7000/tcp:fin",
			want:      "started wrong started completed"},

		{name: "a step that takes any segment",
			sequences: "7000/tcp:any 9000/tcp:any",
			packets:   "7000/tcp:rst 8000/tcp:any 7000/tcp:ack 9000/tcp:fin,psh,urg 7000/tcp 9000/tcp",
			want:      "started wrong started completed started completed"},
		{name: "any segment: a whole connection to each step is one knock",
			sequences: "7000/tcp:any 9000/tcp:any 8000/tcp:any",
			live:      []uint16{7000, 9000, 8000},
			packets:   "7000/tcp 7000/tcp:ack 7000/tcp:fin,ack 9000/tcp 9000/tcp:ack 7000/tcp:ack 9000/tcp:rst 8000/tcp",
			want:      "started repeated repeated advanced repeated - repeated completed"},
		{name: "any segment at one step alone",
			sequences: "7000/tcp 9000/tcp:any",
			packets:   "7000/tcp:ack 7000/tcp 9000/tcp:ack 7000/tcp 8000/tcp:rst",
			want:      "- started completed started wrong"},

		{name: "port 0 has no neighbours",
			sequences: "7000/tcp 0/tcp 8000/tcp", live: []uint16{1, 65535},
			packets: "0/tcp 7000/tcp 1/tcp 65535/tcp 64/tcp 65472/tcp 0/tcp 8000/tcp",
			want:    "- started - - - - advanced completed"},
		{name: "port 0 out of turn",
			sequences: "7000/tcp 8000/udp 0/tcp",
			packets:   "7000/tcp 0/tcp 7000/tcp 0/udp 7000/tcp 8000/udp 0/tcp",
			want:      "started wrong started wrong started advanced completed"},
		{name: "port 0 is beside no step",
			sequences: "1/tcp 65535/tcp 3/tcp",
			packets:   "1/tcp 0/tcp 65535/tcp 0/tcp 3/tcp",
			want:      "started - advanced - completed"},
		{name: "port 0 alone", sequences: "0/udp",
			packets: "1/udp 65535/udp 0/tcp 0/udp", want: "- - - completed"},

		{name: "no steps: switched off",
			sequences: "\n7000/tcp 8000/tcp",
			packets:   "0/tcp 0/icmp 7000/tcp 8000/tcp",
			want:      "- - 1:started 1:completed"},

		{name: "pings of any size",
			sequences: "icmp icmp 7000/tcp",
			packets:   "56/icmp#1 56/icmp#1 56/icmp#2 1000/icmp 7000/tcp",
			want:      "started repeated advanced repeated completed"},
		{name: "a step of any size guards no size",
			sequences: "icmp 7000/tcp 8000/tcp",
			packets:   "9/icmp 7000/tcp 40/icmp 8000/tcp",
			want:      "started advanced - completed"},
		{name: "sizes are guarded like ports",
			sequences: "200/icmp 300/icmp",
			packets:   "200/icmp 135/icmp 365/icmp 250/icmp 300/icmp 200/icmp 136/icmp 200/icmp 300/icmp",
			want:      "started - - wrong - started wrong started completed"},
		{name: "ping's own sizes are innocent",
			sequences: "37/icmp 90/icmp",
			packets:   "37/icmp 56/icmp 32/icmp 40/icmp 37/icmp 90/icmp",
			want:      "started - - wrong started completed"},
		{name: "ping's own size as a step",
			sequences: "56/icmp 90/icmp 56/icmp",
			packets:   "56/icmp@1 56/icmp@3 90/icmp@4 56/icmp@5",
			want:      "started repeated advanced completed"},
		{name: "mixed protocols",
			sequences: "7000/tcp 37/icmp 8500/udp icmp 7800/tcp",
			packets:   "7000/tcp 37/icmp 8500/udp 9/icmp 7800/tcp",
			want:      "started advanced advanced advanced completed"},

		{name: "strict: any other SYN",
			sequences: "7000/udp 9000/udp", strict: true, live: []uint16{22},
			packets: "7000/udp 22/tcp 7000/udp 1/udp 7000/udp 22/tcp:ack 56/icmp 9000/udp",
			want:    "started wrong started wrong started - - completed"},
		{name: "strict: copies are still harmless",
			sequences: "7000/tcp 8000/tcp 9000/tcp", strict: true,
			packets: "7000/tcp#1 8000/tcp 7000/tcp#1 8000/tcp 9000/tcp",
			want:    "started advanced repeated repeated completed"},

		{name: "a shared beginning",
			sequences: "7000/tcp 8000/tcp 9000/tcp\n7000/tcp 8000/tcp 8500/tcp",
			packets:   "7000/tcp 8000/tcp 8500/tcp 7000/tcp 8000/tcp 9000/tcp",
			want:      "0:started+1:started 0:advanced+1:advanced 0:wrong+1:completed 0:started+1:started 0:advanced+1:advanced 0:completed"},
		{name: "one is the beginning of the other",
			sequences: "7000/tcp 8000/tcp\n7000/tcp 8000/tcp 9000/tcp",
			packets:   "7000/tcp 8000/tcp 9000/tcp",
			want:      "0:started+1:started 0:completed+1:advanced 1:completed"},
		{name: "several at once",
			sequences: "100/tcp 200/tcp\n30000/tcp 40000/tcp",
			packets:   "100/tcp 30000/tcp 200/tcp 40000/tcp",
			want:      "0:started 1:started 0:completed 1:completed"},
	} {
		t.Run(test.name, func(t *testing.T) {
			bothFamilies(t, func(t *testing.T, host func(int) netip.Addr) {
				var seqs []Sequence
				for line := range strings.SplitSeq(test.sequences, "\n") {
					s := seq(t, line)
					s.Strict = test.strict
					seqs = append(seqs, s)
				}
				m := New(seqs, live(test.live...), 64)
				got := traffic(t, m, host, test.packets)
				if tidy(got) != test.want {
					t.Errorf("sequences %q\n got %s\nwant %s", test.sequences, got, test.want)
				}
			})
		})
	}
}

// tidy puts the outcomes of one packet into the order of their sequences: the
// order in which a source's attempts are looked at promises nothing.
func tidy(text string) string {
	words := strings.Fields(text)
	for i, word := range words {
		a, b, two := strings.Cut(word, "+")
		if two && a[0] == '1' && b[0] == '0' {
			words[i] = b + "+" + a
		}
	}
	return strings.Join(words, " ")
}

func TestStages(t *testing.T) {
	m := New([]Sequence{seq(t, "7000/tcp 8000/tcp 9000/tcp")}, nil, 16)
	want := []Outcome{{0, Started, 1}, {0, Advanced, 2}, {0, Wrong, 2}}
	for i, port := range []uint16{7000, 8000, 8001} {
		out := m.Observe(families["IPv6"](1), Hit{Proto: TCP, Flags: SYN, Port: port, ID: uint64(i)}, 0)
		if len(out) != 1 || out[0] != want[i] {
			t.Errorf("packet %d: got %v, want %v", i, out, want[i])
		}
	}
}

func TestEveryLength(t *testing.T) {
	bothFamilies(t, func(t *testing.T, host func(int) netip.Addr) {
		for n := 1; n <= MaxSteps; n++ {
			var all []Step
			for i := range n {
				proto, flags := TCP, Opening
				if i%2 == 1 {
					proto, flags = UDP, Flags{}
				}
				all = append(all, Step{Proto: proto, Port: uint16(1000 + i*7919%30000), Flags: flags})
			}
			m := New([]Sequence{{Name: "long", Steps: all, Within: time.Second}}, nil, 4)
			completed := 0
			for i, s := range all {
				h := hitOf(s, uint64(i))
				for _, o := range m.Observe(host(1), h, 0) {
					if o.Verdict == Completed {
						completed++
					}
				}
				m.Observe(host(1), hitOf(all[0], 0), 0) // the first step's copy
			}
			if completed != 1 {
				t.Errorf("%d steps: completed %d times, want once", n, completed)
			}
		}
	})
}

// A packet from ::ffff:192.0.2.1 on an IPv6 wire is no packet from 192.0.2.1.
func TestMappedSourceIsNobody(t *testing.T) {
	m := New([]Sequence{seq(t, "7000/tcp 8000/tcp")}, nil, 16)
	v4 := netip.MustParseAddr("192.0.2.1")
	mapped := netip.AddrFrom16(v4.As16())
	syn := func(port uint16) Hit { return Hit{Proto: TCP, Flags: SYN, Port: port, ID: uint64(port)} }
	m.Observe(v4, syn(7000), 0)
	if out := m.Observe(mapped, syn(7500), 0); out != nil {
		t.Errorf("a 4-in-6 source was heard: %v", out)
	}
	if out := m.Observe(v4, syn(8000), 0); len(out) != 1 || out[0].Verdict != Completed {
		t.Errorf("the IPv4 source lost its attempt: %v", out)
	}
}

func TestInnocentAtRuntime(t *testing.T) {
	bothFamilies(t, func(t *testing.T, host func(int) netip.Addr) {
		m := New([]Sequence{seq(t, "7000/tcp 9000/tcp")}, nil, 16)
		if got := traffic(t, m, host, "7000/tcp 8080/tcp 7000/tcp"); got != "started wrong started" {
			t.Fatal(got)
		}
		m.Innocent(live(8080))
		if got := traffic(t, m, host, "8080/tcp"); got != "-" {
			t.Error("a port that began to listen still resets:", got)
		}
		m.Innocent(nil)
		if got := traffic(t, m, host, "8080/tcp"); got != "wrong" {
			t.Error("a port that listens no more does not reset:", got)
		}
	})
}

func TestAdopt(t *testing.T) {
	bothFamilies(t, func(t *testing.T, host func(int) netip.Addr) {
		kept, gone := seq(t, "7000/tcp 8000/tcp 9000/tcp"), seq(t, "30000/tcp 40000/tcp")
		changed := seq(t, "20000/tcp 21000/tcp")
		changed.Name = "changed"
		old := New([]Sequence{gone, changed, kept}, nil, 16)
		traffic(t, old, host, "7000/tcp#1 8000/tcp#2 30000/tcp 20000/tcp 7000/tcp<2")

		changed.Steps = steps(t, "20000/tcp 22000/tcp")
		longer := seq(t, "100/tcp 65000/tcp 200/tcp 64000/tcp 300/tcp")
		m := New([]Sequence{kept, longer, changed}, nil, 8)
		m.Adopt(old)
		if m.Len() != 2 {
			t.Errorf("%d attempts were adopted, want 2", m.Len())
		}
		got := traffic(t, m, host, "22000/tcp 40000/tcp 7000/tcp#1 9000/tcp 8000/tcp<2")
		if got != "- - 0:repeated 0:completed 0:advanced" {
			t.Error(got)
		}
	})
}

// Packets to a target count for the sequences that name it, and for nothing else:
// they neither begin, nor carry on, nor break what belongs to this host.
func TestTarget(t *testing.T) {
	const own, alias, gateway = "own", "alias", "gateway" // this host's, also this host's, another's
	dsts := map[string]map[string]netip.Addr{
		"IPv4": {own: netip.MustParseAddr("203.0.113.1"), alias: netip.MustParseAddr("203.0.113.2"), gateway: netip.MustParseAddr("203.0.113.254")},
		"IPv6": {own: netip.MustParseAddr("2001:db8:1::1"), alias: netip.MustParseAddr("2001:db8:1::2"), gateway: netip.MustParseAddr("2001:db8:1::fe")},
	}
	for _, classic := range []bool{false, true} {
		for family, dst := range dsts {
			plain, to, away := seq(t, "1000/tcp 3000/tcp 2000/tcp"), seq(t, "1000/tcp 3000/tcp 2000/tcp"), seq(t, "1000/tcp 3000/tcp 2000/tcp")
			to.Target, away.Target = dst[alias], dst[gateway]
			m := New([]Sequence{plain, to, away}, nil, 16)
			if classic {
				plain.Classic, to.Classic, away.Classic = true, true, true
				m = New([]Sequence{plain, to, away}, nil, 16)
			}
			for i, p := range []struct {
				port uint16
				dst  string
				want string
			}{
				{1000, own, "0:started"}, {1000, gateway, "2:started"},
				{3000, gateway, "2:advanced"}, {3000, own, "0:advanced"},
				// What breaks one breaks no other.
				{1000, gateway, map[bool]string{true: "2:wrong", false: "2:wrong+2:started"}[classic]},
				{2000, own, "0:completed"},
				// An own address that a sequence names is an own address still.
				{1000, alias, "0:started+1:started"}, {3000, own, "0:advanced"},
				{2000, alias, "0:completed+1:wrong"},
			} {
				h := Hit{Proto: TCP, Flags: SYN, Port: p.port, ID: uint64(i + 1), Dst: dst[p.dst], Elsewhere: p.dst == gateway}
				if got := tidy(spell(m, m.Observe(families[family](1), h, int64(i)))); got != p.want {
					t.Errorf("%s, classic %v: packet %d to %d at %s: %s, want %s", family, classic, i, p.port, p.dst, got, p.want)
				}
			}
		}
	}
}

// A target that another config names is another door.
func TestTargetIsAdoptedWithItsSteps(t *testing.T) {
	s := seq(t, "1/udp 2/udp")
	old := New([]Sequence{s}, nil, 4)
	traffic(t, old, families["IPv4"], "1/udp")
	s.Target = netip.MustParseAddr("203.0.113.1")
	m := New([]Sequence{s}, nil, 4)
	if m.Adopt(old); m.Len() != 0 {
		t.Error("an attempt at this host became one at its target")
	}
}

func TestNoTime(t *testing.T) {
	for _, within := range []time.Duration{0, -1, -time.Hour} {
		bothFamilies(t, func(t *testing.T, host func(int) netip.Addr) {
			one, two := seq(t, "1/tcp"), seq(t, "7000/tcp 8000/tcp")
			one.Within, two.Within = within, within
			m := New([]Sequence{one, two}, nil, 16)
			// A retransmission of the only step is harmless for a second even so.
			got := traffic(t, m, host, "7000/tcp@1 8000/tcp@1 1/tcp#1@2 1/tcp#1@2 1/tcp#2@2 1/tcp#2@4")
			if want := "1:started 1:expired 0:completed 0:repeated 0:completed 0:completed"; got != want {
				t.Errorf("within %v: %s, want %s", within, got, want)
			}
			if out := m.Expire(4e9); len(out) != 0 {
				t.Errorf("within %v: over were %v", within, out)
			}
		})
	}
}

// What is over is told once, by whoever finds it first; what is complete is not
// told; what has time left stays.
func TestExpire(t *testing.T) {
	for _, classic := range []bool{false, true} {
		bothFamilies(t, func(t *testing.T, host func(int) netip.Addr) {
			a, b := seq(t, "7000/tcp 8000/tcp 9000/tcp"), seq(t, "100/udp 200/udp")
			a.Classic, b.Classic = classic, classic
			m := New([]Sequence{a, b}, nil, 16)
			traffic(t, m, host, "7000/tcp<1@1 8000/tcp<1 100/udp<2@1.5 7000/tcp<3@1.5 100/udp<4@2 200/udp<4 7000/tcp<5@4")
			if out := m.Expire(5e9); len(out) != 0 {
				t.Errorf("too soon: %v", out)
			}
			if got := traffic(t, m, host, "100/udp<2@7"); got != "1:expired+1:started" && got != "1:started+1:expired" {
				t.Errorf("host 2 came back: %s", got)
			}
			m.check(t)
			got := slices.Clone(m.Expire(7.1e9))
			slices.SortFunc(got, byTimeout)
			want := []Timeout{{host(1), 0, 2}, {host(3), 0, 1}}
			if !slices.Equal(got, want) {
				t.Errorf("classic %v: got %v, want %v", classic, got, want)
			}
			if again := m.Expire(7.1e9); len(again) != 0 {
				t.Errorf("told twice: %v", again)
			}
			m.check(t)
			if got := traffic(t, m, host, "8000/tcp<1@7.2 8000/tcp<5@7.3 200/udp<2"); got != "- 0:advanced 1:completed" {
				t.Errorf("classic %v: afterwards %s", classic, got)
			}
			// Hosts 2 and 4 were done, and only host 5 was not.
			if got := m.Expire(60e9); !slices.Equal(got, []Timeout{{host(5), 0, 2}}) || m.Len() != 0 {
				t.Errorf("classic %v: after a minute %v, and %d attempts are left", classic, got, m.Len())
			}
		})
	}
}

// A sequence without steps, as a one-time door that was used up, wants nothing
// from the packet filter and is open to nothing.
func TestNoSteps(t *testing.T) {
	for _, s := range []Sequence{{Name: "off"}, {Name: "off", Strict: true}, {Name: "off", Classic: true}} {
		if spans := s.Guard(); len(spans) != 0 {
			t.Errorf("%+v guards %v", s, spans)
		}
		if ScanOpens(s.Steps) || ScanOdds(s, nil, 1000) != 0 {
			t.Errorf("%+v: a scan opens it", s)
		}
		m := New([]Sequence{s}, nil, 4)
		for _, proto := range []Proto{0, ICMP, TCP, UDP} {
			for _, flags := range []uint8{0, SYN} {
				if out := m.Observe(families["IPv6"](1), Hit{Proto: proto, Flags: flags}, 1); len(out) != 0 {
					t.Errorf("%+v: %v", s, out)
				}
			}
		}
		m.Expire(1 << 60)
		m.Adopt(New([]Sequence{s}, nil, 4))
	}
}

func TestPortZeroIsGuardedByItself(t *testing.T) {
	for text, want := range map[string][]Span{
		"0/tcp":          {{TCP, 0, 0}},
		"0/udp 7000/udp": {{UDP, 6936, 7064}, {UDP, 0, 0}},
		"10/tcp 0/udp":   {{TCP, 1, 74}, {TCP, 65481, 65535}, {TCP, 0, 0}, {UDP, 1, 74}, {UDP, 65481, 65535}, {UDP, 0, 0}},
	} {
		if got := seq(t, text).Guard(); !slices.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", text, got, want)
		}
	}
	strict := seq(t, "0/udp 7000/udp")
	strict.Strict = true
	if got, want := strict.Guard(), []Span{{TCP, 0, 65535}, {UDP, 0, 65535}}; !slices.Equal(got, want) {
		t.Errorf("strict: got %v, want %v", got, want)
	}
}
