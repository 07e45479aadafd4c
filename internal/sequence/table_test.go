package sequence

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"
	"unsafe"
)

func syn(port uint16, id uint64) Hit { return Hit{Proto: TCP, Flags: SYN, Port: port, ID: id} }

// stranger gives the nth of very many sources of one family.
func stranger(family string, n uint64) netip.Addr {
	if family == "IPv4" {
		return netip.AddrFrom4([4]byte{198, 51, byte(n >> 8), byte(n)}) // 65,536 of them
	}
	a := [16]byte{0x20, 0x01, 0x0d, 0xb8, 0xff}
	binary.BigEndian.PutUint64(a[8:], n)
	return netip.AddrFrom16(a)
}

// check walks every list of the table and fails if one does not fit the others.
func (t *table) check(tb testing.TB) {
	tb.Helper()
	listed := 0
	for level, l := range t.levels {
		prev := int32(0)
		for i := l.oldest; i != 0; i = t.slots[i].next {
			a := &t.slots[i]
			if int(a.level()) != level || a.prev != prev || a.stage == 0 {
				tb.Fatalf("slot %d: level %d in list %d, prev %d want %d", i, a.level(), level, a.prev, prev)
			}
			prev = i
			listed++
		}
		if l.newest != prev {
			tb.Fatalf("level %d ends at %d, not at %d", level, prev, l.newest)
		}
	}
	chained := 0
	for b, i := range t.buckets {
		for prev := int32(0); i != 0; prev, i = i, t.slots[i].chainNext {
			if t.bucket(&t.slots[i].src) != &t.buckets[b] || t.slots[i].chainPrev != prev {
				tb.Fatalf("slot %d is chained wrongly", i)
			}
			chained++
		}
	}
	free := 0
	for i := t.free; i != 0; i = t.slots[i].next {
		free++
	}
	if listed != t.live || chained != t.live || free+t.live != int(t.used) {
		tb.Fatalf("%d live, %d listed, %d chained, %d free of %d used", t.live, listed, chained, free, t.used)
	}
}

func TestTableStaysWhole(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	seqs := []Sequence{seq(t, "7000/tcp 8000/tcp 9000/tcp"), seq(t, "7000/tcp 8000/tcp"), seq(t, "7000/tcp 9000/tcp 7000/tcp")}
	for _, size := range []int{1, 2, 5, 40} {
		m := New(seqs, nil, size)
		ports := []uint16{7000, 8000, 9000, 7500}
		for n := range 20_000 {
			src := stranger([]string{"IPv4", "IPv6"}[n%2], rng.Uint64N(30))
			m.Observe(src, syn(ports[rng.IntN(4)], rng.Uint64N(3)), int64(n)*1e7)
			if n%50 == 0 {
				m.check(t)
			}
		}
		if m.Len() > size || m.Evicted() == 0 {
			t.Errorf("size %d: %d attempts, %d evicted", size, m.Len(), m.Evicted())
		}
	}
}

// A million forged first steps push out first steps only, and take no memory.
func TestFlood(t *testing.T) {
	bothFamilies(t, func(t *testing.T, host func(int) netip.Addr) {
		m := New([]Sequence{seq(t, "7000/tcp 8000/tcp 9000/tcp")}, nil, 65536)
		m.Observe(host(1), syn(7000, 1), 0)
		m.Observe(host(1), syn(8000, 2), 0)
		flood := func(first uint64) {
			for n := first; n < first+500_000; n++ {
				m.Observe(stranger("IPv6", n), syn(7000, n), 1e9)
			}
		}
		flood(0)
		before := heap()
		flood(500_000)
		if grown := int64(heap()) - int64(before); grown > 64<<10 {
			t.Errorf("the flood's second half took %d bytes", grown)
		}
		if m.Len() != 65536 || m.Evicted() != 1_000_000+1-65536 {
			t.Errorf("%d attempts, %d evicted", m.Len(), m.Evicted())
		}
		if out := m.Observe(host(1), syn(9000, 3), 2e9); len(out) != 1 || out[0].Verdict != Completed {
			t.Errorf("the flood pushed out a source at stage 2: %v", out)
		}
		m.check(t)
	})
}

func heap() uint64 {
	runtime.GC()
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	return s.HeapAlloc
}

func TestEvictionOrder(t *testing.T) {
	bothFamilies(t, func(t *testing.T, host func(int) netip.Addr) {
		m := New([]Sequence{seq(t, "7000/tcp 8000/tcp 9000/tcp")}, nil, 4)
		// Host 5 evicts 2, which is the oldest at the first step; host 1 went on,
		// and host 3 made its first step again.
		traffic(t, m, host, "7000/tcp<1 7000/tcp<3 7000/tcp<2 7000/tcp<4 8000/tcp<1 7000/tcp<3 7000/tcp<5")
		if got := traffic(t, m, host, "8000/tcp<2 8000/tcp<3 8000/tcp<4 8000/tcp<5 9000/tcp<1"); got != "- advanced advanced advanced completed" {
			t.Error("after one newcomer:", got)
		}
		// Nobody is at the first step now: what was completed goes first, then
		// the newcomers before it, and never one that is further.
		got := traffic(t, m, host, "7000/tcp<6 7000/tcp<7 8000/tcp<6 9000/tcp<3 9000/tcp<4 9000/tcp<5")
		if got != "started started - completed completed completed" {
			t.Error("after two more:", got)
		}
	})
}

// Attempts that were left half-done at a high stage make room again.
func TestExpiredMakeRoom(t *testing.T) {
	bothFamilies(t, func(t *testing.T, host func(int) netip.Addr) {
		const size = 64
		m := New([]Sequence{seq(t, "7000/tcp 8000/tcp 9000/tcp")}, nil, size)
		for n := range uint64(size) {
			m.Observe(stranger("IPv6", n), syn(7000, 1), 0)
			m.Observe(stranger("IPv6", n), syn(8000, 2), 0)
		}
		for n := 1; n <= size; n++ {
			m.Observe(host(n), syn(7000, 3), 6e9)
		}
		for n := 1; n <= size; n++ {
			if out := m.Observe(host(n), syn(8000, 4), 6e9); len(out) != 1 {
				t.Fatalf("newcomer %d was kept out by expired attempts", n)
			}
		}
		if m.Evicted() != 0 {
			t.Errorf("%d live attempts were evicted", m.Evicted())
		}
	})
}

func TestTableMemory(t *testing.T) {
	if size := unsafe.Sizeof(attempt{}); size != 48 {
		t.Errorf("an attempt takes %d bytes, its comment says 48", size)
	}
	m := New([]Sequence{seq(t, "7000/tcp 8000/tcp 9000/tcp 9500/tcp")}, nil, 65536)
	bytes := 48*len(m.slots) + 8*len(m.ids) + 4*len(m.times) + 4*len(m.buckets)
	if mib := float64(bytes) / (1 << 20); mib > 6.6 {
		t.Errorf("65,536 attempts of 4 steps take %.1f MiB, the comment says 6.5", mib)
	}
}

func TestAdoptIntoASmallerTable(t *testing.T) {
	s := []Sequence{seq(t, "7000/tcp 8000/tcp 9000/tcp")}
	host := families["IPv4"]
	old := New(s, nil, 8)
	traffic(t, old, host, "7000/tcp<1 7000/tcp<2 7000/tcp<3 7000/tcp<4 8000/tcp<2")
	m := New(s, nil, 3)
	m.Adopt(old)
	got := traffic(t, m, host, "9000/tcp<2 8000/tcp<3 8000/tcp<4 8000/tcp<1")
	if got != "completed advanced advanced -" {
		t.Error("want the most advanced and the newest kept:", got)
	}
}

func TestAdoptKeepsTheOrderOfEviction(t *testing.T) {
	bothFamilies(t, func(t *testing.T, host func(int) netip.Addr) {
		s := []Sequence{seq(t, "7000/tcp 8000/tcp")}
		old := New(s, nil, 3)
		traffic(t, old, host, "7000/tcp<2 7000/tcp<1 7000/tcp<3")
		m := New(s, nil, 3)
		m.Adopt(old)
		m.check(t)
		if got := traffic(t, m, host, "7000/tcp<4 8000/tcp<2 8000/tcp<1 8000/tcp<3"); got != "started - completed completed" {
			t.Error("want the oldest evicted first:", got)
		}
	})
}

// doors are sequences like those that keygen gives: four ports of 16 bits, no
// two with the same first step.
func doors(n int) []Sequence {
	rng := rand.New(rand.NewPCG(3, 4))
	var all []Sequence
	for i, first := range rng.Perm(60000)[:n] {
		s := Sequence{Name: fmt.Sprint(i), Within: time.Minute}
		for _, port := range []int{1000 + first, 1 + rng.IntN(65535), 1 + rng.IntN(65535), 1 + rng.IntN(65535)} {
			s.Steps = append(s.Steps, Step{Proto: TCP, Port: uint16(port), Flags: Opening})
		}
		all = append(all, s)
	}
	return all
}

func TestNoAllocations(t *testing.T) {
	for _, classic := range []bool{false, true} {
		noAllocations(t, classic)
	}
}

func noAllocations(t *testing.T, classic bool) {
	shared := Sequence{Name: "shared", Steps: steps(t, "7000/tcp:syn 8000/tcp 9000/udp"), Within: time.Second}
	ping := Sequence{Name: "ping", Steps: steps(t, "icmp 7000/tcp"), Within: time.Second, Strict: true}
	aimed := shared
	aimed.Target = netip.MustParseAddr("203.0.113.1")
	seqs := []Sequence{shared, shared, ping, aimed}
	for i := range seqs {
		seqs[i].Classic = classic
	}
	m := New(seqs, live(443), 8)
	now, n := int64(0), uint64(0)
	hits := []Hit{{Proto: ICMP, Port: 56}, syn(7000, 1), syn(7000, 1), syn(443, 2), syn(8000, 3), {Proto: UDP, Port: 9000},
		syn(7000, 4), syn(7001, 5), {Proto: TCP, Flags: ACK, Port: 7000}}
	allocs := testing.AllocsPerRun(100, func() {
		for _, family := range []string{"IPv4", "IPv6"} {
			src := stranger(family, n%20)
			for _, h := range hits {
				now += 1e7
				m.Observe(src, h, now)
				h.Dst = aimed.Target
				m.Observe(src, h, now)
			}
			n++
		}
		m.Expire(now)
	})
	if allocs != 0 {
		t.Errorf("classic %v: %v allocations per round of packets, want 0", classic, allocs)
	}
}

// crowded is a table with attempts half-done sources, spread over the sequences.
func crowded(seqs []Sequence, attempts int) *Matcher {
	m := New(seqs, nil, 65536)
	for n := range attempts {
		m.Observe(stranger("IPv6", uint64(n)), syn(seqs[n%len(seqs)].Steps[0].Port, 1), 0)
	}
	return m
}

// All that are over at once, as after a flood: nothing is allocated the second
// time, and nothing is left.
func TestExpireOfAFullTable(t *testing.T) {
	seqs, now := doors(10), int64(0)
	m := New(seqs, nil, 65536)
	allocs := testing.AllocsPerRun(2, func() {
		for n := range 65536 {
			m.Observe(stranger("IPv6", uint64(n)), syn(seqs[n%10].Steps[0].Port, 1), now)
		}
		now += int64(time.Hour)
		if over := len(m.Expire(now)); over != 65536 || m.Len() != 0 {
			t.Errorf("%d were over, %d are left", over, m.Len())
		}
	})
	if allocs != 0 {
		t.Errorf("%v allocations, want 0", allocs)
	}
	m.check(t)
}

// BenchmarkExpire is the look at the whole table, once a second, with nothing over
// and with a full table of what is over (refilling it is not counted).
func BenchmarkExpire(b *testing.B) {
	for _, attempts := range []int{1, 65536} {
		b.Run(fmt.Sprintf("none/attempts=%d", attempts), func(b *testing.B) {
			m := crowded(doors(10), attempts)
			b.ReportAllocs()
			for b.Loop() {
				m.Expire(1)
			}
		})
	}
	b.Run("all/attempts=65536", func(b *testing.B) {
		seqs, now := doors(10), int64(0)
		m := New(seqs, nil, 65536)
		for range b.N {
			b.StopTimer()
			for n := range uint64(65536) {
				m.Observe(stranger("IPv6", n), syn(seqs[n%10].Steps[0].Port, 1), now)
			}
			now += int64(time.Hour)
			b.StartTimer()
			m.Expire(now)
		}
	})
}

// BenchmarkDoors and BenchmarkHalfOpen show that a packet costs the same whatever
// there are of either: one of a stranger's scan, one of somebody who knocks, and a
// first step time and again.
func BenchmarkDoors(b *testing.B) {
	for _, n := range []int{1, 10, 100, 1000} {
		benchmarkPackets(b, fmt.Sprintf("doors=%d", n), n, 1000)
	}
}

// BenchmarkHalfOpen: see BenchmarkDoors.
func BenchmarkHalfOpen(b *testing.B) {
	for _, n := range []int{1, 256, 4096, 65535} {
		benchmarkPackets(b, fmt.Sprintf("attempts=%d", n), 100, n)
	}
}

func benchmarkPackets(b *testing.B, name string, sequences, attempts int) {
	for _, mode := range []string{"ours", "classic"} {
		seqs := doors(sequences)
		for i := range seqs {
			seqs[i].Classic = mode == "classic"
		}
		m := crowded(seqs, attempts)
		own, src := seqs[len(seqs)/2].Steps, netip.MustParseAddr("203.0.113.9")
		run := func(what string, port func(n uint64) uint16) {
			b.Run(mode+"/"+what+"/"+name, func(b *testing.B) {
				b.ReportAllocs()
				for n := uint64(0); b.Loop(); n++ {
					m.Observe(src, syn(port(n), n), 0)
				}
			})
		}
		run("scan", func(n uint64) uint16 { return uint16(n%900 + 1) })
		run("knock", func(n uint64) uint16 { return own[n%4].Port })
		run("first", func(n uint64) uint16 { return own[0].Port })
	}
}

// BenchmarkObserve is one packet of a stranger's scan, and one of a source that
// knocks, with few and many sequences and attempts.
func BenchmarkObserve(b *testing.B) {
	for _, sequences := range []int{1, 1000} {
		for _, attempts := range []int{1, 65536} {
			seqs := doors(sequences)
			m := New(seqs, nil, 65536)
			for n := range attempts {
				m.Observe(stranger("IPv6", uint64(n)), syn(seqs[n%sequences].Steps[0].Port, 1), 0)
			}
			name := fmt.Sprintf("sequences=%d/attempts=%d", sequences, attempts)
			b.Run("scan/"+name, func(b *testing.B) {
				src, n := netip.MustParseAddr("203.0.113.9"), uint16(0)
				for b.Loop() {
					n++
					m.Observe(src, syn(n%900+1, uint64(n)), 0)
				}
			})
			b.Run("flood/"+name, func(b *testing.B) {
				sources := make([]netip.Addr, 1<<17)
				for n := range sources {
					sources[n] = stranger("IPv6", uint64(n)<<20)
				}
				n := 0
				for b.Loop() {
					n++
					m.Observe(sources[n%len(sources)], syn(seqs[n%sequences].Steps[0].Port, uint64(n)), 0)
				}
			})
			b.Run("knock/"+name, func(b *testing.B) {
				src, n := netip.MustParseAddr("203.0.113.9"), 0
				own := seqs[slices.IndexFunc(seqs, func(s Sequence) bool { return len(s.Steps) == 4 })].Steps
				for b.Loop() {
					n++
					m.Observe(src, syn(own[n%4].Port, uint64(n)), 0)
				}
			})
		}
	}
}
