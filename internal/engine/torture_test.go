//go:build linux

package engine

import (
	"encoding/binary"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/cryptotest"
	"time"

	"github.com/sallyport/sallyport/internal/authorized"
	"github.com/sallyport/sallyport/internal/border"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/sallyport/sallyport/internal/spa"
	"github.com/sallyport/sallyport/internal/testnet"
)

var (
	torture     = flag.Bool("torture", false, "torture the engine in full, for some minutes, instead of with a sample")
	tortureSeed = flag.Uint64("seed", 0, "of the torture: keys, lengths, bytes and requests; 0 takes the time")
)

// How much is sent in full, and as a sample.
const (
	allRandom, someRandom     = 10_000_000, 400_000
	allMutations, someFlipped = 1_000_000, 20_000
)

// maxStays is how much more memory an engine may hold after the torture than
// before, in bytes: its table of failures, when full, has about 200,000. One
// that grew with each failure would go past this in the sample already.
const maxStays = 320 << 10

const tortureText = `
[service.ssh]
ports = ["22/tcp"]
max_open_for = "1h"
[service.web]
ports = ["80/tcp"]
[knock.front]
type = "sequence"
opens = ["ssh"]
sequence = ["7211/tcp", "8533/udp", "7877/tcp"]
[knock.keys]
type = "spa"
opens = ["ssh", "web"]
key = "/k"
authorized_keys = "/a"
transports = ["udp", "icmp", "tcp"]
window = "10m"
`

// asked is a warden that remembers what it was asked and answers nothing.
type asked struct{ messages []border.Message }

// Send takes a message.
func (a *asked) Send(m border.Message) error {
	a.messages = append(a.messages, m)
	return nil
}

// victim is a whole engine with one SPA knock, whose key file has a key of each
// suite, and every way for a datagram to get in.
type victim struct {
	*Engine
	warden  asked
	random  *rand.Rand
	headers []header
	turn    int // of the headers
	buffer  []byte
}

// header is of a packet without payload.
type header struct {
	b      []byte
	length int // offset of the IP header's length field
	counts int // bytes of the header that the field counts
	udp    bool
}

// breach is what the torture looks for: a datagram that opened something.
type breach struct {
	how      string
	datagram []byte
	asked    border.Message
}

// Error has the datagram, because its time stamp is in no seed.
func (b *breach) Error() string { return fmt.Sprintf("%s asked %+v:\n%x", b.how, b.asked, b.datagram) }

func newVictim(t *testing.T, g *border.Generation, seed uint64) *victim {
	t.Helper()
	v := &victim{random: rand.New(rand.NewPCG(seed, 0)), buffer: make([]byte, 0, 1<<16)}
	v.Engine = New(&v.warden, noJournal, slog.New(slog.NewTextHandler(io.Discard, nil)))
	v.Host(&border.HostFacts{Addrs: benchHost})
	if err := v.Use(1, g, [8]byte{1}); err != nil {
		t.Fatal(err)
	}
	for i, host := range benchHost {
		src, dst := netip.AddrPortFrom(benchSource[i], 40000), netip.AddrPortFrom(host, spa.DefaultPort)
		length, counts := 2, 0
		if host.Is6() {
			length, counts = 4, 40 // RFC 8200, 3: the IPv6 header itself is not counted
		}
		v.headers = append(v.headers,
			header{testnet.UDP(src, dst, nil), length, counts, true},
			header{testnet.Echo(src.Addr(), dst.Addr(), 1, 1, 0), length, counts, false},
			header{testnet.TCP(src, dst, sequence.SYN, 1), length, counts, false})
	}
	return v
}

// deliver shows the engine a datagram in the next kind of packet, of which one
// is no packet but what a socket of ours received.
func (v *victim) deliver(payload []byte) {
	v.turn = (v.turn + 1) % (len(v.headers) + len(benchSource))
	if i := v.turn - len(v.headers); i >= 0 {
		v.Datagram(payload, netip.AddrPortFrom(benchSource[i], 40000), spa.DefaultPort)
		return
	}
	h := &v.headers[v.turn]
	b := append(append(v.buffer[:0], h.b...), payload...)
	binary.BigEndian.PutUint16(b[h.length:], uint16(len(b)-h.counts))
	if h.udp {
		binary.BigEndian.PutUint16(b[len(h.b)-4:], uint16(8+len(payload)))
	}
	v.Packet(b, 1)
}

// refuses delivers what must open nothing.
func (v *victim) refuses(payload []byte, how string) error {
	if v.deliver(payload); len(v.warden.messages) > 0 {
		return &breach{how, slices.Clone(payload), v.warden.messages[0]}
	}
	return nil
}

// ordeal is one test: a server's keys, its users, and its engines, which all
// have the same to guard: one for each processor, or for the sample just one.
type ordeal struct {
	t       *testing.T
	random  *rand.Rand
	keys    map[spa.Suite]*enrolled
	users   []subject
	victims []*victim
	heap    uint64 // before, in bytes
	threads int    // goroutines before
}

func newOrdeal(t *testing.T) *ordeal {
	seed := *tortureSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d", seed)
	cryptotest.SetGlobalRandom(t, seed)
	o := &ordeal{t: t, random: rand.New(rand.NewPCG(seed, 1)), keys: map[spa.Suite]*enrolled{}, users: subjects(t)}
	cfg, err := config.Parse("torture.toml", []byte(tortureText))
	if err != nil {
		t.Fatal(err)
	}
	var file []spa.FileKey
	for _, suite := range []spa.Suite{spa.Classic, spa.PostQuantum} {
		o.keys[suite] = newEnrolled(t, suite)
		file = append(file, spa.FileKey{Key: o.keys[suite].key})
	}
	file[1].Until = time.Now().Add(time.Hour)
	var lines []byte
	for _, u := range o.users {
		lines = append(lines, u.line...)
	}
	allowed, faults := authorized.Parse(lines)
	if len(faults) > 0 {
		t.Fatal(faults)
	}
	keys := make([]border.Keys, len(cfg.Knocks))
	keys[slices.IndexFunc(cfg.Knocks, func(k config.Knock) bool { return k.Type == "spa" })] = border.Keys{Server: file, Authorized: allowed}
	engines := 1
	if *torture {
		engines = runtime.GOMAXPROCS(0)
	}
	for i := range engines {
		o.victims = append(o.victims, newVictim(t, &border.Generation{Config: *cfg, Keys: keys, Journal: true}, seed+uint64(i)))
	}
	o.heap, o.threads = heap(), runtime.NumGoroutine()
	return o
}

// each has every victim suffer, at the same time.
func (o *ordeal) each(f func(i int, v *victim) error) {
	o.t.Helper()
	failed := make([]error, len(o.victims))
	var all sync.WaitGroup
	for i, v := range o.victims {
		all.Go(func() { failed[i] = f(i, v) })
	}
	all.Wait()
	for _, err := range failed {
		if err != nil {
			o.t.Fatal(err)
		}
	}
}

// nothingStays fails the test if an engine kept something of what it was sent.
func (o *ordeal) nothingStays() {
	o.t.Helper()
	after := heap()
	o.t.Logf("%d bytes before, %d after", o.heap, after)
	if limit := o.heap + uint64(len(o.victims))*maxStays; after > limit {
		o.t.Errorf("%d bytes are held after %d before, more than %d", after, o.heap, limit)
	}
	if n := runtime.NumGoroutine(); n != o.threads {
		o.t.Errorf("%d goroutines after %d before", n, o.threads)
	}
	runtime.KeepAlive(o)
}

// heap is what is in use, once all else was collected.
func heap() uint64 {
	var m runtime.MemStats
	for range 3 { // what has a cleanup needs more than one
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// ends adds up where the datagrams of all engines ended.
func (o *ordeal) ends() map[string]uint64 {
	sum := map[string]uint64{}
	for _, v := range o.victims {
		for name, n := range v.numbers() {
			sum[name] += n
		}
	}
	o.t.Log(sum)
	return sum
}

// reached fails the test unless datagrams ended in each of these places: a
// torture that stops at the first wall says nothing about the second.
func reached(t *testing.T, ends map[string]uint64, places ...string) {
	t.Helper()
	for _, place := range places {
		if ends[place] == 0 {
			t.Errorf("nothing came as far as %s: %v", place, ends)
		}
	}
}

// Millions of datagrams of random bytes, of all lengths that matter.
func TestTortureByRandomDatagrams(t *testing.T) {
	o, n := newOrdeal(t), someRandom
	if *torture {
		n = allRandom
	}
	o.each(func(_ int, v *victim) error {
		b := make([]byte, 0, 1<<16)
		for range n/len(o.victims) + 1 {
			b = o.junk(v.random, b)
			if err := v.refuses(b, "a random datagram"); err != nil {
				return err
			}
		}
		return nil
	})
	ends := o.ends()
	reached(t, ends, "spa_length", "spa_gate", "spa_second_gate", "spa_seal")
	for _, place := range []string{"spa_key", "spa_signature", "spa_stale", "spa_refused", "spa_made"} {
		if ends[place] != 0 {
			t.Errorf("%d random datagrams came as far as %s", ends[place], place)
		}
	}
	o.nothingStays()
}

// junk makes a random datagram in b: most of a length that could be one's, or
// of copies glued together, and a few behind one gate or both.
func (o *ordeal) junk(random *rand.Rand, b []byte) []byte {
	size := spa.Sizes[random.IntN(len(spa.Sizes))]
	kind, parts, n := random.IntN(100), 1, size
	switch {
	case kind < 20:
		parts = 2 + random.IntN(spa.MaxParts+1)
	case kind < 35:
		n += random.IntN(33) - 16
	case kind < 50:
		n = random.IntN(1501)
	case kind == 50:
		n = random.IntN(60_000)
	}
	b = fill(random, b[:n])
	if key := o.keys[spa.Suite(1+random.IntN(2))]; kind == 99 && random.IntN(2) == 0 {
		key.closeGates(b)
	} else if kind > 97 {
		key.closeFirst(b)
	}
	for range parts - 1 {
		b = append(b, b[:n]...)
	}
	if parts > 1 && random.IntN(2) == 0 {
		b[random.IntN(len(b))] ^= 1
	}
	return b
}

func fill(random *rand.Rand, b []byte) []byte {
	for i := 0; i < len(b); i += 8 {
		var word [8]byte
		binary.LittleEndian.PutUint64(word[:], random.Uint64())
		copy(b[i:], word[:])
	}
	return b
}

// Every bit of valid datagrams of all sizes flipped, one at a time: as it
// travels, behind the gates, and in what is sealed. The datagram itself comes
// last and is heard, so that nothing else can have been what was refused.
func TestTortureByMutation(t *testing.T) {
	o := newOrdeal(t)
	flipped := 0
	for more := true; more; more = *torture && flipped < allMutations {
		var valid []*sample
		bits := 0
		for _, u := range o.users {
			valid = append(valid, o.sample(u))
			bits += valid[len(valid)-1].bits()
		}
		step := 1
		if !*torture {
			step = bits / someFlipped
		}
		counts := make([]int, len(o.victims))
		o.each(func(i int, v *victim) error {
			for j := i; j < len(valid); j += len(o.victims) {
				n, err := valid[j].torment(v, step)
				if counts[i] += n; err != nil {
					return err
				}
			}
			return nil
		})
		for _, n := range counts {
			flipped += n
		}
		o.heardAll(valid)
	}
	ends := o.ends()
	t.Logf("%d bits", flipped)
	reached(t, ends, "spa_gate", "spa_second_gate", "spa_seal", "spa_key", "spa_signature", "spa_made")
	if ends["spa_stale"]+ends["spa_refused"] != 0 {
		t.Errorf("the signature of a changed request was good: %v", ends)
	}
	o.nothingStays()
}

// heardAll delivers the datagrams as they were made, and answers for the
// warden what comes of them.
func (o *ordeal) heardAll(valid []*sample) {
	o.t.Helper()
	for _, v := range o.victims {
		for _, s := range valid {
			if v.deliver(s.datagram); len(v.warden.messages) == 0 {
				o.t.Fatalf("%s: the datagram itself is not heard: %v", s.name, v.numbers())
			}
			for _, m := range v.warden.messages {
				switch m := m.(type) {
				case *border.Open:
					v.Done(&border.Done{ID: m.ID, Result: border.Granted})
				case *border.Close:
					v.Done(&border.Done{ID: m.ID, Result: border.Closed})
				}
			}
			v.warden.messages = nil
		}
	}
}
