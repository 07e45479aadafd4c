package integration_test

import (
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/border"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/engine"
	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/sallyport/sallyport/internal/testnet"
)

// asked is a border that remembers what the engine asks for, and grants it.
type asked struct {
	engine *engine.Engine
	opens  []border.Open
}

func (a *asked) Send(m border.Message) error {
	if open, ok := m.(*border.Open); ok {
		a.opens = append(a.opens, *open)
	}
	return nil
}

// answer is the warden's part, after the engine has returned.
func (a *asked) answer() {
	for _, m := range a.opens {
		a.engine.Done(&border.Done{ID: m.ID, Result: border.Granted, Until: time.Now().Add(m.TTL)})
	}
	a.opens = a.opens[:0]
}

// loneEngine is an engine in this process, for a host with both of paths.
func loneEngine(t *testing.T) (*engine.Engine, *asked) {
	t.Helper()
	cfg, err := config.Parse("sallyport.toml", []byte(houseConfig("30s")))
	if err != nil {
		t.Fatal(err)
	}
	a := &asked{}
	e := engine.New(a, [2]int{-1, -1}, slog.New(slog.DiscardHandler))
	a.engine = e
	e.Host(&border.HostFacts{Addrs: []netip.Addr{paths[0].server, paths[1].server}})
	e.Use(1, &border.Generation{Config: *cfg, Keys: make([]border.Keys, len(cfg.Knocks))}, [8]byte{1})
	return e, a
}

// knocks checks that a whole knock from an address still asks for one grant.
// from must not have been heard before.
func (a *asked) knocks(t *testing.T, from, to netip.Addr) {
	t.Helper()
	a.answer()
	for _, b := range wholeKnock(from, to) {
		a.engine.Packet(b, 1)
	}
	if len(a.opens) != 1 || a.opens[0].Addr != from || a.opens[0].TTL != 30*time.Second {
		t.Errorf("a knock from %v asks for %+v", from, a.opens)
	}
	a.answer()
}

func wholeKnock(from, to netip.Addr) [][]byte {
	at := func(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }
	return [][]byte{
		testnet.TCP(at(from, 4001), at(to, 47011), sequence.SYN, 1),
		testnet.UDP(at(from, 4002), at(to, 48022), []byte("knock")),
		testnet.TCP(at(from, 4003), at(to, 45033), sequence.SYN, 3),
	}
}

func TestTheEngineSurvivesRandomBytes(t *testing.T) {
	t.Parallel()
	e, a := loneEngine(t)
	random := rand.New(rand.NewPCG(1, 2))
	good := append(wholeKnock(paths[0].client, paths[0].server), wholeKnock(paths[1].client, paths[1].server)...)
	buffer := make([]byte, 2048)
	for range 1_000_000 {
		b := buffer[:random.IntN(128)]
		for i := range b {
			b[i] = byte(random.Uint32())
		}
		e.Packet(b, int(random.Int32()))
		// A good packet with one byte spoilt gets further into the decoder.
		b = buffer[:copy(buffer, good[random.IntN(len(good))])]
		b[random.IntN(len(b))] = byte(random.Uint32())
		e.Packet(b, 1)
		a.answer() // a spoilt source address makes some packets somebody's good step
	}
	// They made the knock more often than anybody does, and it has a bound.
	time.Sleep(50 * time.Millisecond)
	a.knocks(t, netip.MustParseAddr("198.51.100.1"), paths[0].server)
	a.knocks(t, netip.MustParseAddr("2001:db8:99:77::42"), paths[1].server)
}

func TestTheEngineDeclinesTruncatedPackets(t *testing.T) {
	t.Parallel()
	e, a := loneEngine(t)
	for _, p := range paths {
		for _, opts := range [][]testnet.Option{nil, {testnet.Fragment(0, true)}, {testnet.Extension(0, 1), testnet.Extension(60, 3), testnet.Routing(1)}} {
			if p.server.Is4() && len(opts) == 3 {
				opts = []testnet.Option{testnet.IPOptions(1, 1, 1, 0)}
			}
			syn := testnet.TCP(netip.AddrPortFrom(p.client, 4001), netip.AddrPortFrom(p.server, 47011), sequence.SYN, 1, opts...)
			for n := range syn {
				e.Packet(syn[:n], 1)
			}
		}
		// Had a truncated first step counted, these two would complete a knock.
		for _, b := range wholeKnock(p.client, p.server)[1:] {
			for n := range b {
				e.Packet(b[:n], 1)
			}
			e.Packet(b, 1)
		}
		if len(a.opens) != 0 {
			t.Errorf("%s: truncated packets opened %+v", p.name, a.opens)
		}
		a.knocks(t, p.client, p.server)
	}
}

// scanPackets is how many packets of a scan the engine is shown, and growth how
// many bytes its heap may be larger after them: less than a byte for each
// thousandth packet, where a leak of one pointer would be 80 MB.
const (
	scanPackets = 10_000_000
	growth      = 1 << 20
)

func TestTenMillionPacketsOfScanGrowNothing(t *testing.T) {
	e, a := loneEngine(t)
	scan := make([][]byte, 0, 2*4096)
	random := rand.New(rand.NewPCG(3, 4))
	for i := range 4096 {
		for _, p := range paths {
			from := netip.AddrPortFrom(p.client, 40000)
			to := netip.AddrPortFrom(p.server, 45000+uint16(i)) // all of the guarded ports
			scan = append(scan, testnet.TCP(from, to, sequence.SYN, random.Uint32()))
		}
	}
	show := func(n int) {
		for i := range n {
			b := scan[i%len(scan)]
			// A new source and sequence number each time: a new attempt, or a new
			// look-up that finds none, in a table that is full.
			seed := random.Uint64()
			from := b[12:16]
			if b[0]>>4 == 6 {
				from = b[8:24]
			}
			for j := range 4 {
				from[len(from)-4+j] = byte(seed >> (8 * j))
			}
			if i%3 == 0 { // the first step, which takes a place in the table
				b = firstStep(b, from)
			}
			e.Packet(b, 1)
		}
	}
	show(scanPackets / 10) // fills the table
	before := heap()
	start := time.Now()
	show(scanPackets)
	took := time.Since(start)
	after := heap()
	t.Logf("%d packets in %v, %d ns each with the test's own work; heap %d KiB before, %d KiB after",
		scanPackets, took.Round(time.Millisecond), took.Nanoseconds()/scanPackets, before>>10, after>>10)
	if after > before+growth {
		t.Errorf("the heap grew from %d to %d bytes", before, after)
	}
	a.knocks(t, netip.MustParseAddr("198.51.100.1"), paths[0].server)
	a.knocks(t, netip.MustParseAddr("2001:db8:99:77::42"), paths[1].server)
}

var steps = [2][]byte{
	testnet.TCP(netip.AddrPortFrom(paths[0].client, 4001), netip.AddrPortFrom(paths[0].server, 47011), sequence.SYN, 1),
	testnet.TCP(netip.AddrPortFrom(paths[1].client, 4001), netip.AddrPortFrom(paths[1].server, 47011), sequence.SYN, 1),
}

// firstStep is the knock's first step, of the packet's family, from an address.
func firstStep(b, from []byte) []byte {
	if b[0]>>4 == 6 {
		copy(steps[1][8:], from)
		return steps[1]
	}
	copy(steps[0][12:], from)
	return steps[0]
}

// heap is the number of bytes in use after everything unused is gone.
func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
