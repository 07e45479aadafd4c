package otp

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var (
	secret = []byte("a secret of 32 bytes for a test.")
	addrs  = map[string]netip.Addr{"IPv4": netip.MustParseAddr("192.0.2.7"), "IPv6": netip.MustParseAddr("2001:db8::7")}
)

func door(pool ...Span) *Door {
	return &Door{Name: "front", Pool: pool, Steps: 5, TimeStep: 30 * time.Second}
}

// TestPortsAreEven: every position takes every port of the pool equally often. A
// seed that is always the same makes the test's own errors impossible: it passes
// always or never.
func TestPortsAreEven(t *testing.T) {
	pools := map[string][]Span{
		"a power of two":              {{20000, 21023}},
		"1,500 ports":                 {{20000, 21499}},
		"gaps":                        {{2000, 2299}, {3001, 3001}, {4000, 5199}},
		"half of it thrown away":      {{1, 32769}},
		"a modulo would be felt most": {{1000, 44689}}, // 43,690: 2/3 of 65,536
	}
	for name, pool := range pools {
		for family, addr := range addrs {
			t.Run(name+"/"+family, func(t *testing.T) {
				even(t, door(pool...), addr)
			})
		}
	}
}

// even counts in 64 classes of neighbouring places: a bias by a modulo favours the
// low ones by half or more, which this many samples show at once.
func even(t *testing.T, d *Door, addr netip.Addr) {
	const classes, samples = 64, 20000
	counts := make([][classes]float64, d.Steps)
	var room [MaxSteps]uint16
	var seed [32]byte
	binary.BigEndian.PutUint64(seed[:], uint64(d.size()))
	k, size := NewKey(seed[:]), d.size()
	for n := range uint64(samples) {
		for i, port := range d.Rest(d.First(room[:0], k, n), k, n, addr) {
			counts[i][d.place(port)*classes/size]++
		}
	}
	for i := range counts {
		chi := 0.0
		for c, seen := range counts[i] {
			first := (c*size + classes - 1) / classes
			last := ((c+1)*size + classes - 1) / classes
			want := samples * float64(last-first) / float64(size)
			chi += (seen - want) * (seen - want) / want
		}
		// 63 degrees of freedom: 120 is passed by chance once in 50,000 times.
		if chi > 120 {
			t.Errorf("position %d: chi-square %.0f", i, chi)
		}
	}
}

// place is where a port stands in the pool.
func (d *Door) place(port uint16) int {
	n := 0
	for _, s := range d.Pool {
		if port >= s.Low && port <= s.High {
			return n + int(port-s.Low)
		}
		n += int(s.High) - int(s.Low) + 1
	}
	return -1
}

// TestEveryPlaceIsDrawn: both ends of each span, and nothing beside the pool.
func TestEveryPlaceIsDrawn(t *testing.T) {
	d := door(Span{100, 100}, Span{200, 1221}, Span{65535, 65535})
	seen := map[uint16]bool{}
	for n := range uint64(5000) {
		for _, port := range d.Ports(nil, secret, n, addrs["IPv6"]) {
			seen[port] = true
			if d.place(port) < 0 {
				t.Fatalf("%d is not in the pool", port)
			}
		}
	}
	if len(seen) != 1024 {
		t.Errorf("%d of 1,024 ports were drawn", len(seen))
	}
}

func TestPortsAreDistinct(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		low := rapid.Uint16Range(1, 60000).Draw(t, "low")
		d := door(Span{low, low + rapid.Uint16Range(1023, 5000).Draw(t, "more")})
		d.Steps = rapid.IntRange(MinSteps, MaxSteps).Draw(t, "steps")
		before := []uint16{low, low + 1} // another's: no reason to leave them out
		n, addr := rapid.Uint64().Draw(t, "number"), addrs[rapid.SampledFrom([]string{"IPv4", "IPv6"}).Draw(t, "family")]
		all := d.Ports(slices.Clone(before), secret, n, addr)
		ports := all[2:]
		if !slices.Equal(all[:2], before) || !slices.Equal(ports, d.Ports(nil, secret, n, addr)) {
			t.Fatalf("appended to %v: %v", before, all)
		}
		sorted := slices.Sorted(slices.Values(ports))
		if len(ports) != d.Steps || len(slices.Compact(sorted)) != d.Steps {
			t.Fatalf("%d steps: %v", d.Steps, ports)
		}
	})
}

// TestWhatPortsDependOn: each input changes them, but for the address and the
// first port.
func TestWhatPortsDependOn(t *testing.T) {
	d := door(Span{20000, 39999})
	base := d.Ports(nil, secret, 7, addrs["IPv4"])
	other := *d
	other.Name = "front2"
	changed := map[string][]uint16{
		"secret": d.Ports(nil, secret[1:], 7, addrs["IPv4"]),
		"step":   d.Ports(nil, secret, 8, addrs["IPv4"]),
		"door":   other.Ports(nil, secret, 7, addrs["IPv4"]),
	}
	for what, ports := range changed {
		for i := range ports {
			if ports[i] == base[i] {
				t.Errorf("another %s: step %d is the same", what, i+1)
			}
		}
	}
	for _, addr := range []string{"192.0.2.8", "2001:db8::7", "::192.0.2.7"} {
		ports := d.Ports(nil, secret, 7, netip.MustParseAddr(addr))
		if ports[0] != base[0] || slices.Equal(ports[1:], base[1:]) || d.Tag(NewKey(secret), 7, netip.MustParseAddr(addr)) == d.Tag(NewKey(secret), 7, addrs["IPv4"]) {
			t.Errorf("from %s: %v, from %v: %v", addr, ports, addrs["IPv4"], base)
		}
	}
	d.AnyAddress = true
	if !slices.Equal(d.Ports(nil, secret, 7, addrs["IPv4"]), d.Ports(nil, secret, 7, addrs["IPv6"])) {
		t.Error("any address: the ports differ")
	}
}

func TestTimeSteps(t *testing.T) {
	d := door(Span{20000, 39999})
	for _, c := range []struct {
		at   time.Time
		want uint64
	}{
		{time.Unix(-1, 0), 0}, {time.Unix(0, 0), 0}, {time.Unix(29, 999_999_999), 0}, {time.Unix(30, 0), 1},
		{time.Unix(1_800_000_000, 0), 60_000_000}, {time.Unix(1_799_999_999, 999_999_999), 59_999_999},
	} {
		if n := d.Number(c.at); n != c.want {
			t.Errorf("%v is in step %d, want %d", c.at, n, c.want)
		}
		if start := d.Start(c.want); d.Number(start) != c.want || d.Number(start.Add(-1)) == c.want && c.want > 0 {
			t.Errorf("step %d begins at %v", c.want, start)
		}
	}
	if start := d.Start(math.MaxUint64); start.UnixNano() < 0 {
		t.Errorf("the last step begins at %v", start)
	}
}

// TestBits against a count by hand.
func TestBits(t *testing.T) {
	d := door(Span{20000, 39999})
	if want := math.Log2(19999. * 19998 * 19997 * 19996 / 3); math.Abs(d.Bits()-want) > 1e-9 {
		t.Errorf("%v bits, want %v", d.Bits(), want)
	}
	d.AnyAddress = true
	if want := math.Log2(20000. * 19999 * 19998 * 19997 * 19996 / 3); math.Abs(d.Bits()-want) > 1e-9 {
		t.Errorf("any address: %v bits, want %v", d.Bits(), want)
	}
	if got, want := (Digits{7000, 6}).Bits(), math.Log2(1e6/3); math.Abs(got-want) > 1e-9 {
		t.Errorf("6 digits: %v bits, want %v", got, want)
	}
}

func TestNewPool(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		var with, without []Span
		for range 1 + rng.IntN(4) {
			low := uint16(rng.IntN(65000))
			with = append(with, Span{low, low + uint16(rng.IntN(500))})
			low = uint16(rng.IntN(65000))
			without = append(without, Span{low, low + uint16(rng.IntN(2))})
			without = append(without, Span{with[0].Low, with[0].Low})
		}
		d := Door{Pool: NewPool(with, without)}
		last := -1
		for _, s := range d.Pool {
			if int(s.Low) <= last+1 && last >= 0 || s.High < s.Low {
				t.Fatalf("%v does not rise", d.Pool)
			}
			last = int(s.High)
		}
		has := func(list []Span, port uint16) bool {
			return slices.ContainsFunc(list, func(s Span) bool { return s.Low <= port && port <= s.High })
		}
		for port := range 1 << 16 {
			if want := port > 0 && has(with, uint16(port)) && !has(without, uint16(port)); (d.place(uint16(port)) >= 0) != want {
				t.Fatalf("port %d of %v less %v: %v", port, with, without, d.Pool)
			}
		}
	}
}

func TestDigitsPorts(t *testing.T) {
	if got := (Digits{7000, 6}).Ports("123456"); !slices.Equal(got, []uint16{7012, 7134, 7256}) {
		t.Errorf("123456: %v", got)
	}
	for _, code := range []string{"", "12345", "1234567", "12345a", "12 456", "１２"} {
		if got := (Digits{7000, 6}).Ports(code); got != nil {
			t.Errorf("%q: %v", code, got)
		}
	}
	if s := (Digits{65200, 6}).Span(); s != (Span{65200, 65499}) {
		t.Errorf("%v", s)
	}
}

func TestNothingIsAllocated(t *testing.T) {
	d, k := door(Span{20000, 39999}, Span{50000, 50100}), NewKey(secret)
	var room [MaxSteps]uint16
	n := uint64(0)
	if got := testing.AllocsPerRun(1000, func() {
		n++
		d.Rest(d.First(room[:0], k, n), k, n, addrs["IPv6"])
		d.Tag(k, n, addrs["IPv4"])
	}); got != 0 {
		t.Errorf("%v allocations", got)
	}
}

func BenchmarkSequence(b *testing.B) {
	d, k := door(Span{20000, 39999}), NewKey(secret)
	var room [MaxSteps]uint16
	for n := range b.N {
		d.Rest(d.First(room[:0], k, uint64(n)), k, uint64(n), addrs["IPv6"])
	}
}
