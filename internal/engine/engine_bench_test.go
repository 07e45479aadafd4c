//go:build linux

package engine

import (
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/internal/border"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/sallyport/sallyport/internal/testnet"
)

// benchHost and benchSource are the two ends of every packet here, one pair
// for each family.
var (
	benchHost   = []netip.Addr{netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::2")}
	benchSource = []netip.Addr{netip.MustParseAddr("203.0.113.9"), netip.MustParseAddr("2001:db8::9")}
)

// silent is a warden that is never asked: no case below completes a knock.
type silent struct{ t testing.TB }

func (s silent) Send(m border.Message) error {
	s.t.Errorf("the engine asked for %T", m)
	return nil
}

// benchEngine is a whole engine with so many knocks, and as many attempts under
// way as a flood of that many sources leaves.
func benchEngine(t testing.TB, knocks, attempts int) *Engine {
	cfg := config.Config{Daemon: config.Daemon{MaxAttempts: 65536}, Services: []config.Service{{
		Name: "ssh", Ports: []config.PortRange{{Proto: sequence.TCP, Low: 22, High: 22}}, OpenFor: time.Minute, MaxOpenFor: time.Minute,
	}}}
	for n := range knocks {
		k := config.Knock{Name: fmt.Sprint("k", n), Type: "sequence", Opens: []int{0}, Within: time.Hour}
		for _, port := range []int{10000 + n, 30000 + 7*n, 20000 + 3*n} {
			k.Sequence = append(k.Sequence, sequence.Step{Proto: sequence.TCP, Port: uint16(port), Flags: sequence.Opening})
		}
		cfg.Knocks = append(cfg.Knocks, k)
	}
	e := New(silent{t}, noJournal, slog.New(slog.NewTextHandler(io.Discard, nil)))
	e.Use(1, &border.Generation{Config: cfg, Keys: make([]border.Keys, len(cfg.Knocks))}, [8]byte{})
	e.Host(&border.HostFacts{Addrs: benchHost})
	first := benchSYN(1, 10000)
	for n := range attempts {
		forge(first, uint64(n))
		e.Packet(first, 1)
	}
	return e
}

func benchSYN(family int, port uint16) []byte {
	return testnet.TCP(netip.AddrPortFrom(benchSource[family], port), netip.AddrPortFrom(benchHost[family], port), sequence.SYN, uint32(port))
}

// forge gives a packet the n-th source of a flood. The decoder leaves checksums
// to the kernel, so none is mended.
func forge(b []byte, n uint64) {
	if b[0]>>4 == 4 {
		binary.BigEndian.PutUint32(b[12:], 198<<24|18<<16|uint32(n)&0x1ffff)
		return
	}
	binary.BigEndian.PutUint64(b[16:], n*0x9e3779b97f4a7c15)
}

// noJournal keeps the memory of requests in the process.
var noJournal = [2]int{-1, -1}

// benchCases are packets that a stranger can send at any rate. Each is a round,
// sent over and over, whose end leaves the engine as its beginning found it.
var benchCases = []struct {
	name  string
	forge bool // each packet from another source
	ports []uint16
}{
	{name: "stray", ports: []uint16{9}},
	{name: "flood", ports: []uint16{10000}, forge: true},
	{name: "wrong", ports: []uint16{10000, 20001}},
	{name: "steps", ports: []uint16{10000, 30000, 20001}},
	{name: "copy", ports: []uint16{10000}},
}

// everyCase runs f for each case, family and size, with the packets of a round.
func everyCase(f func(name string, knocks, attempts int, forged bool, round [][]byte)) {
	for _, c := range benchCases {
		for family, ip := range []string{"IPv4", "IPv6"} {
			var round [][]byte
			for _, port := range c.ports {
				round = append(round, benchSYN(family, port))
			}
			for _, knocks := range []int{1, 1000} {
				for _, attempts := range []int{1, 65536} {
					if c.forge && attempts == 1 {
						continue // the flood itself fills the table
					}
					name := fmt.Sprintf("%s/%s/knocks=%d/attempts=%d", c.name, ip, knocks, attempts)
					f(name, knocks, attempts, c.forge, round)
				}
			}
		}
	}
}

// Packets come at the rate of strangers: garbage for the collector would be
// theirs to make.
func TestPacketAllocatesNothing(t *testing.T) {
	everyCase(func(name string, knocks, attempts int, forged bool, round [][]byte) {
		e, n := benchEngine(t, knocks, attempts), uint64(1)<<32
		allocs := testing.AllocsPerRun(100, func() {
			for _, b := range round {
				if n++; forged {
					forge(b, n)
				}
				e.Packet(b, 1)
			}
		})
		if allocs != 0 {
			t.Errorf("%s: %v allocations for a round of packets, want 0", name, allocs)
		}
	})
}

// BenchmarkPacket is decoding and matching together, for one packet. Beside the
// time that passed it reports processor time, which other programs on this
// machine disturb less.
func BenchmarkPacket(b *testing.B) {
	everyCase(func(name string, knocks, attempts int, forged bool, round [][]byte) {
		b.Run(name, func(b *testing.B) {
			e, n := benchEngine(b, knocks, attempts), uint64(1)<<32
			b.ReportAllocs()
			before := processorTime(b)
			for b.Loop() {
				p := round[n%uint64(len(round))]
				if n++; forged {
					forge(p, n)
				}
				e.Packet(p, 1)
			}
			b.ReportMetric(float64(processorTime(b)-before)/float64(b.N), "cpu-ns/op")
		})
	})
}

// processorTime is what this process has used so far, in nanoseconds.
func processorTime(b *testing.B) int64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &t); err != nil {
		b.Fatal(err)
	}
	return t.Nano()
}
