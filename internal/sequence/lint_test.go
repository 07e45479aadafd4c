package sequence

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

func TestStrength(t *testing.T) {
	for _, test := range []struct {
		steps string
		bits  float64
		order Order
		scan  bool // ScanOpens
	}{
		{"7000/tcp", 16, Mixed, true},
		{"icmp", 0, Mixed, true},
		{"icmp icmp", 0, Mixed, true},
		{"37/icmp icmp", 10.52, Mixed, true},
		{"37/icmp 38/icmp", 21.05, Ascending, true},
		{"37/icmp 39/icmp", 21.05, Ascending, false},
		{"icmp 7000/tcp", 16, Mixed, false},
		{"7000/tcp 7000/tcp", 32, Mixed, true},
		{"7000/tcp 7000/udp", 32, Mixed, true},
		{"7000/tcp 7001/tcp 7002/tcp", 48, Ascending, true},
		{"7002/tcp 7001/udp", 32, Descending, true},
		{"65535/tcp 1/tcp", 32, Descending, true},
		{"7000/tcp 8000/tcp 9000/tcp", 48, Ascending, false},
		{"7000/tcp icmp 8000/udp 9000/tcp", 48, Ascending, false},
		{"9000/tcp 8000/tcp 7000/tcp", 48, Descending, false},
		{"7000/tcp 7001/tcp 7003/tcp", 48, Ascending, false},
		{"7000/tcp 8500/udp 7800/tcp", 48, Mixed, false},
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
	if got := Guesses(steps(t, "7000/tcp 37/icmp icmp")); got != 65535*1473 {
		t.Errorf("%v guesses", got)
	}
	if long := slices.Repeat(steps(t, "7000/tcp"), MaxSteps); math.IsInf(Guesses(long), 0) {
		t.Error("the guesses of the longest sequence overflow")
	}
}

// scan shows the ports to a fresh matcher as one source's SYNs and datagrams,
// each port in TCP and UDP by the mode, and counts how often a sequence opens.
func scan(m *Matcher, src netip.Addr, ports []uint16, protos ...Proto) (opened int) {
	id := uint64(0)
	for _, port := range ports {
		for _, proto := range protos {
			id++
			for _, o := range m.Observe(src, Hit{Proto: proto, Flags: SYN, Port: port, ID: id}, 0) {
				if o.Verdict == Completed {
					opened++
				}
			}
		}
	}
	return opened
}

// Scans of all ports in a plain order open what ScanOpens says, and nothing
// else: upwards and downwards, from the ends and from any port in between
// round to it again, in TCP, in UDP, in one after the other and in turns.
func TestPlainScans(t *testing.T) {
	listening := live(22, 443, 444, 445, 7001, 7003, 8080, 65535, 1)
	for _, text := range []string{
		"7000/tcp 8000/tcp 9000/tcp", "9000/tcp 8000/tcp 7000/tcp", "7000/tcp 8500/udp 7800/tcp",
		"7000/tcp 7002/tcp", "7004/tcp 7002/tcp 7000/tcp", "65534/tcp 2/tcp", "2/tcp 65534/tcp",
		"443/tcp 445/tcp", "442/tcp 443/tcp 446/tcp", "20/tcp 23/tcp", "7000/udp 7002/tcp", "1/udp 65000/udp 2/udp",
		"60000/tcp 100/udp 200/tcp 300/udp 30000/tcp", "8079/tcp 8081/tcp 8083/tcp 8085/tcp",
	} {
		if ScanOpens(steps(t, text)) {
			t.Fatalf("%s: a scan opens it, so it shows nothing", text)
		}
		plainScans(t, text, listening, func(how string, opened int) {
			if opened != 0 {
				t.Errorf("%s: opened by a scan %s", text, how)
			}
		})
	}
	// The control: the same scans find what is step by one.
	opened := 0
	plainScans(t, "7000/tcp 7001/tcp 7002/tcp", nil, func(_ string, n int) { opened += n })
	if opened == 0 {
		t.Error("no scan opened 7000, 7001, 7002: the test is blind")
	}
}

func plainScans(t *testing.T, text string, innocent []Span, report func(string, int)) {
	up := everyPort()
	down := slices.Clone(up)
	slices.Reverse(down)
	own := steps(t, text)
	for name, ports := range map[string][]uint16{"upwards": up, "downwards": down} {
		for _, from := range []int{0, int(own[0].Port) - 1, int(own[1].Port), 5000, 40000} {
			m := New([]Sequence{seq(t, text)}, innocent, 4)
			wrapped := slices.Concat(ports[from:], ports[:from])
			host := families["IPv4"]
			if from%2 == 0 {
				host = families["IPv6"]
			}
			report(fmt.Sprint(name, " from ", wrapped[0], " in TCP, then UDP, then both"),
				scan(m, host(1), wrapped, TCP)+scan(m, host(1), wrapped, UDP)+
					scan(m, host(2), wrapped, TCP, UDP)+scan(m, host(3), wrapped, UDP, TCP))
		}
	}
}

// crowd makes every port innocent but the named ones, so that few ports are
// guarded and the probability can be measured.
func crowd(guarded ...uint16) []Span {
	var spans []Span
	next := firstPort
	for _, port := range append(slices.Sorted(slices.Values(guarded)), lastPort) {
		for _, proto := range []Proto{TCP, UDP} {
			spans = append(spans, Span{proto, uint16(next), port - 1})
		}
		next = int(port) + 1
	}
	return append(spans, Span{TCP, lastPort, lastPort}, Span{UDP, lastPort, lastPort})
}

// randomScans plays orders random orders of the places through the matcher and
// counts those that open.
func randomScans(t *testing.T, rng *rand.Rand, s Sequence, innocent []Span, places func() []Hit, orders int) int {
	m := New([]Sequence{s}, innocent, 65536)
	opened := 0
	for n := range orders {
		hits := places()
		rng.Shuffle(len(hits), func(i, j int) { hits[i], hits[j] = hits[j], hits[i] })
		src := stranger([]string{"IPv4", "IPv6"}[n%2], uint64(n))
		for i, h := range hits {
			h.ID = uint64(i)
			for _, o := range m.Observe(src, h, 0) {
				if o.Verdict == Completed {
					opened++
				}
			}
		}
	}
	return opened
}

// within fails unless count of n is what probability p gives, at five standard
// deviations: a right formula fails once in 1,700,000 seeds.
func within(t *testing.T, name string, count, n int, p float64) {
	t.Helper()
	mean, deviation := float64(n)*p, math.Sqrt(float64(n)*p*(1-p))
	if math.Abs(float64(count)-mean) > 5*deviation+0.5 {
		t.Errorf("%s: %d of %d orders opened, ScanOdds promises %.3g: %.1f ± %.1f", name, count, n, p, mean, deviation)
	}
	t.Logf("%s: %d of %d opened, %.3g expected", name, count, n, mean)
}

// guardedHits are the packets of a scan that the sequence takes notice of, and
// 500 others. The rest of a scan changes nothing (TestFullRandomScans), and
// what is left of a random order without it is a random order.
func guardedHits(s Sequence, protos ...Proto) []Hit {
	g := guardOf(s.Steps)
	var hits []Hit
	others := 0
	for _, proto := range protos {
		for _, port := range everyPort() {
			if g.covers(proto, port) || others < 500 {
				hits = append(hits, Hit{Proto: proto, Flags: SYN, Port: port})
			}
			if !g.covers(proto, port) {
				others++
			}
		}
	}
	return hits
}

// TestRandomScans measures what ScanOdds promises for a scan of all ports:
// 10,000 random orders each, through the real matcher.
func TestRandomScans(t *testing.T) {
	const orders = 10_000
	rng := rand.New(rand.NewPCG(5, 6))
	for _, test := range []struct {
		steps    string
		innocent []Span
		protos   []Proto
	}{
		{"7000/tcp 7002/tcp", nil, []Proto{TCP}},
		{"7000/tcp 7100/tcp", crowd(7050, 7051, 6990), []Proto{TCP}},
		{"7000/tcp 7100/tcp 7050/tcp", crowd(), []Proto{TCP}},
		{"7000/tcp 7002/udp", crowd(), []Proto{TCP, UDP}},
		{"443/tcp 900/tcp 446/tcp", live(443, 444), []Proto{TCP}},
		{"7000/tcp 8000/tcp 9000/tcp", nil, []Proto{TCP}},
		{"7000/tcp 7800/udp 7500/tcp", nil, []Proto{TCP, UDP}},
	} {
		s := seq(t, test.steps)
		hits := guardedHits(s, test.protos...)
		opened := randomScans(t, rng, s, test.innocent, func() []Hit { return hits }, orders)
		within(t, test.steps, opened, orders, ScanOdds(s, test.innocent, lastPort))
	}
}

// TestFullRandomScans are scans of all 65,535 ports, none left out.
func TestFullRandomScans(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	var hits []Hit
	for _, port := range everyPort() {
		hits = append(hits, syn(port, 0))
	}
	for _, test := range []struct {
		steps    string
		innocent []Span
	}{
		{"7000/tcp 8000/tcp 9000/tcp", nil},
		{"7000/tcp 20000/tcp", crowd()},
		{"65535/tcp 2/tcp", crowd()},
	} {
		s := seq(t, test.steps)
		opened := randomScans(t, rng, s, test.innocent, func() []Hit { return hits }, 200)
		within(t, test.steps, opened, 200, ScanOdds(s, test.innocent, lastPort))
	}
}

// TestRandomThousand measures what ScanOdds promises for a scan of 1,000
// ports: the sequence's own and others drawn anew for each of 10,000 orders.
func TestRandomThousand(t *testing.T) {
	const orders, ports = 10_000, 1000
	rng := rand.New(rand.NewPCG(9, 10))
	for _, text := range []string{"7000/tcp 7002/tcp", "7000/tcp 7100/tcp 7050/tcp", "7000/tcp 8000/tcp", "30000/tcp 200/tcp 60000/tcp"} {
		s := seq(t, text)
		rest := slices.DeleteFunc(everyPort(), func(p uint16) bool {
			return slices.ContainsFunc(s.Steps, func(s Step) bool { return s.Port == p })
		})
		draw := func() []Hit {
			var hits []Hit
			for _, step := range s.Steps {
				hits = append(hits, hitOf(step, 0))
			}
			for i := range ports - len(s.Steps) {
				j := i + rng.IntN(len(rest)-i)
				rest[i], rest[j] = rest[j], rest[i]
				hits = append(hits, syn(rest[i], 0))
			}
			return hits
		}
		opened := randomScans(t, rng, s, nil, draw, orders)
		within(t, text, opened, orders, ScanOdds(s, nil, ports))
	}
}

// listOdds is the probability that a scan of just the listed ports, each named once,
// opens the sequence: exact where ScanOdds has to estimate, and 0 if a step is not in
// the list.
func listOdds(s Sequence, innocent []Span, list []uint16) float64 {
	own, k := ownPorts(s.Steps)
	for place := range own {
		if !slices.Contains(list, uint16(place)) {
			return 0
		}
	}
	others, _ := wrongBeside(s, innocent, own, list)
	return math.Exp(logOdds(k, others))
}

// TestListedScans measures what the arithmetic says, on a list that is not even.
func TestListedScans(t *testing.T) {
	const orders = 10_000
	rng := rand.New(rand.NewPCG(11, 12))
	list := []uint16{22, 80, 443, 7000, 7001, 7004, 7007, 7070, 8080, 62078, 64623}
	for _, text := range []string{"7000/tcp 7004/tcp", "7004/tcp 7000/tcp 7007/tcp", "62078/tcp 64623/tcp", "80/tcp 22/tcp 443/tcp", "22/tcp 7000/tcp 7002/tcp"} {
		s := seq(t, text)
		var hits []Hit
		for _, port := range list {
			hits = append(hits, syn(port, 0))
		}
		opened := randomScans(t, rng, s, live(8080, 443), func() []Hit { return hits }, orders)
		within(t, text, opened, orders, listOdds(s, live(8080, 443), list))
	}
}

func TestScanOdds(t *testing.T) {
	strict := seq(t, "7000/tcp 8000/tcp 9000/tcp")
	strict.Strict = true
	for _, test := range []struct {
		name  string
		s     Sequence
		ports int
		want  float64
	}{
		{"one step", seq(t, "7000/tcp"), 65535, 1},
		{"131 guarded", seq(t, "7000/tcp 7002/tcp"), 65535, 1.0 / 131},
		{"2,129 guarded", seq(t, "7000/tcp 8000/tcp 9000/tcp"), 65535, 1.0 / 2129 / 2128},
		{"1,629 guarded in both protocols", seq(t, "7000/tcp 8500/udp 7800/tcp"), 65535, 1.0 / (2 * 1629) / (2*1629 - 1)},
		{"strict: all are guarded", strict, 65535, 1.0 / 65535 / 65534},
		{"an ICMP step is met by luck", seq(t, "icmp 7000/tcp 7002/tcp"), 65535, 1.0 / 131},
		{"no port comes twice", seq(t, "7000/tcp 8000/tcp 7000/tcp"), 65535, 0},
		{"only the steps are scanned", seq(t, "7000/tcp 8000/tcp 9000/tcp"), 3, 1.0 / 6},
		{"fewer ports than steps", seq(t, "7000/tcp 8000/tcp 9000/tcp"), 2, 0},
	} {
		got := ScanOdds(test.s, nil, test.ports)
		if math.Abs(got-test.want) > 1e-6*test.want {
			t.Errorf("%s: %g, want %g", test.name, got, test.want)
		}
	}
}

func TestGuard(t *testing.T) {
	strict := seq(t, "7000/udp 37/icmp")
	strict.Strict = true
	for _, test := range []struct {
		s    Sequence
		want []Span
	}{
		{seq(t, "7000/tcp 8500/udp 7800/tcp"), []Span{{TCP, 6936, 8564}, {UDP, 6936, 8564}}},
		{seq(t, "10/tcp 100/tcp"), []Span{{TCP, 1, 164}, {TCP, 65481, 65535}}},
		{seq(t, "65530/udp"), []Span{{UDP, 1, 59}, {UDP, 65466, 65535}}},
		{seq(t, "64/udp 65471/udp"), []Span{{UDP, 1, 65535}}},
		{seq(t, "65/tcp 65471/tcp"), []Span{{TCP, 1, 65535}}},
		{seq(t, "37/icmp 500/icmp"), []Span{{ICMP, 0, 564}, {ICMP, 65481, MaxEcho}}},
		{seq(t, "37/icmp icmp"), []Span{{ICMP, 0, MaxEcho}}},
		{strict, []Span{{TCP, 1, 65535}, {UDP, 1, 65535}, {ICMP, 0, 101}, {ICMP, 65481, MaxEcho}}},
	} {
		if got := test.s.Guard(); !slices.Equal(got, test.want) {
			t.Errorf("%s: %v, want %v", test.s.Name, got, test.want)
		}
	}
}
