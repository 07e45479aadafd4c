//go:build linux

package integration_test

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dchest/siphash"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/internal/spa"
	"github.com/sallyport/sallyport/internal/testnet"
)

// Each flood is of random bytes, true to the format up to one place.
const (
	spadFloodLength = iota // one byte short
	spadFloodGate
	spadFloodSecond // the first tag is right
	spadFloodSeal   // both tags are right: as an enrolled client could make them
)

var spadFloods = []struct {
	name    string
	kind    int
	rate    int    // packets a second
	counter string // of status, where they end; "": the kernel's filter has dropped them
}{
	{"wrong length", spadFloodLength, spadFast, ""},
	{"wrong gate", spadFloodGate, spadFast, "spa_gate"},
	{"wrong second gate", spadFloodSecond, spadFast, "spa_second_gate"},
	{"bad seal", spadFloodSeal, 1000, "spa_seal"},
}

const (
	// spadFast is 200 Mbit/s. Twice as much takes all of a small machine's cores,
	// half of them for the sender, and then the capture drops some: bench says.
	spadFast = 50_000 // packets a second
	// spadFloodTime bounds a flood; it ends when the requests in it were sent.
	spadFloodTime = 2 * time.Second
	// spadServed is how many requests are made in each flood, each in its
	// three copies.
	spadServed = 20
	// spadGrowth is for what is remembered of datagrams, at most 4,096 that
	// failed and 1,024 of 1 KiB that did not, and for the garbage collector. A
	// flood has many times as much in it.
	spadGrowth = 3 << 20 // bytes
)

// spadGates reads the gate keys from a server's address, which every client has.
func spadGates(t *testing.T, a *sallyport.Address) (keys [4]uint64) {
	t.Helper()
	b, err := base64.RawURLEncoding.DecodeString(strings.TrimPrefix(a.String(), "sallyport1"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range keys {
		keys[i] = binary.LittleEndian.Uint64(b[1+8*i:])
	}
	return keys
}

// spadJunk makes a flood's packets, each from a source of its own that nobody has.
func spadJunk(kind, n int, seed byte, gates [4]uint64, p path) [][]byte {
	random := rand.NewChaCha8([32]byte{byte(kind), seed})
	list := make([][]byte, n)
	for i := range list {
		b := make([]byte, spa.SmallSize)
		random.Read(b)
		if kind == spadFloodSeal {
			binary.LittleEndian.PutUint64(b[8:], siphash.Hash(gates[2], gates[3], b[16:]))
		}
		if kind >= spadFloodSecond {
			binary.LittleEndian.PutUint64(b, siphash.Hash(gates[0], gates[1], b[8:48]))
		}
		if kind == spadFloodLength {
			b = b[1:]
		}
		// RFC 2544's range, and a part of RFC 3849's.
		src := netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)})
		if p.server.Is6() {
			a := netip.MustParseAddr("2001:db8:f::").As16()
			binary.BigEndian.PutUint32(a[12:], uint32(i))
			src = netip.AddrFrom16(a)
		}
		list[i] = testnet.UDP(netip.AddrPortFrom(src, uint16(1024+i)), netip.AddrPortFrom(p.server, spaPort), b)
	}
	return list
}

// spadPour sends a flood until stop or its time is over, and gives how many packets
// it took.
func spadPour(wire *testnet.Wire, junk [][]byte, rate int, stop *atomic.Bool) (sent int) {
	began := time.Now()
	for !stop.Load() && time.Since(began) < spadFloodTime {
		time.Sleep(time.Duration(sent)*time.Second/time.Duration(rate) - time.Since(began))
		wire.SendOne(junk[sent%len(junk)]) // a full queue is the receiver's affair
		sent++
	}
	return sent
}

// spadGuest is whom the i-th request lets in.
func spadGuest(p path, i int) netip.Addr {
	a := p.server.AsSlice()
	a[len(a)-1] = byte(100 + i)
	guest, _ := netip.AddrFromSlice(a)
	return guest
}

// spadAtATime is how many requests are sent at once.
const spadAtATime = 4

// guests sends the requests in their three copies, which takes 90 ms for each.
func (h *spadHouse) guests(p path, u user) {
	h.t.Helper()
	var group sync.WaitGroup
	for first := range spadAtATime {
		group.Go(func() {
			for i := first; i < spadServed; i += spadAtATime {
				r := h.request(u)
				r.Services, r.Addresses = []string{"ssh"}, []netip.Addr{spadGuest(p, i)}
				plan, err := r.Plan(p.client, p.server)
				if err != nil {
					h.t.Error(err)
					return
				}
				h.client.Do(func() { err = plan.Send(context.Background()) })
				if err != nil {
					h.t.Error(err)
				}
			}
		})
	}
	group.Wait()
}

// served counts the requests that let somebody in.
func (h *spadHouse) served(p path) (n int) {
	h.t.Helper()
	inside := h.inside()
	for i := range spadServed {
		for _, who := range inside {
			if who == spadGuest(p, i).String()+" ssh" {
				n++
			}
		}
	}
	return n
}

// Whatever a flood is made of, who knocks in it is let in, and the daemon's memory
// stays what it was.
func TestSPAFloods(t *testing.T) {
	ann := newUser(1)
	h := spadNewHouse(t, ann.line("ann"))
	h.run(h.text("", h.door("")))
	wire := h.client.Wire(h.clientWire, h.house.server.MAC(h.serverWire))
	gates := spadGates(t, h.keyHouse.server.Address())
	var pss [2]int
	var seed byte
	for round := range pss {
		for _, p := range spadPaths {
			for _, f := range spadFloods {
				seed++ // what failed once costs nothing more
				junk := spadJunk(f.kind, 2048, seed, gates, p.path)
				h.flooded(fmt.Sprintf("round %d, %s, %s", round+1, p.name, f.name), p.path, ann, wire, junk, f.rate, f.counter)
			}
		}
		pss[round] = h.pss()
	}
	t.Logf("memory after one round and two: %d and %d KiB", pss[0]>>10, pss[1]>>10)
	if pss[1] > pss[0]+spadGrowth {
		t.Errorf("the daemon's memory grew from %d to %d bytes", pss[0], pss[1])
	}
	if list := h.inside(); len(list) > 0 {
		t.Errorf("inside are %q", list)
	}
}

// flooded makes the requests in one flood and counts who got in.
func (h *spadHouse) flooded(name string, p path, u user, wire *testnet.Wire, junk [][]byte, rate int, counter string) {
	h.t.Helper()
	before := h.counters()
	var stop atomic.Bool
	ended := make(chan int, 1)
	began := time.Now()
	go func() { ended <- spadPour(wire, junk, rate, &stop) }()
	h.guests(p, u)
	took := time.Since(began)
	stop.Store(true)
	sent := <-ended
	if took > spadFloodTime {
		h.t.Errorf("%s: it was over after %v, the requests took %v", name, spadFloodTime, took)
	}
	served := 0
	for end := time.Now().Add(5 * time.Second); served < spadServed && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		served = h.served(p)
	}
	now := h.counters()
	h.t.Logf("%s: %d of %d served among %d packets a second; captured %d, dropped by the capture %d", name, served, spadServed,
		int(float64(sent)/took.Seconds()), now["captured"]-before["captured"], now["dropped"]-before["dropped"])
	if served != spadServed {
		h.t.Errorf("%s: %d of %d requests were served", name, served, spadServed)
	}
	if n := int(now["captured"] - before["captured"]); counter == "" && n > 3*spadServed+100 {
		h.t.Errorf("%s: the kernel's filter let %d packets through", name, n)
	}
	if counter != "" && now[counter]-before[counter] < uint64(min(sent, 500))/2 {
		h.t.Errorf("%s: only %d of %d packets ended as %s", name, now[counter]-before[counter], sent, counter)
	}
	h.leaves(u)
}

var spadPss = regexp.MustCompile(`(?m)^Pss:\s+(\d+) kB`)

// pss is what the daemon's two processes have in memory, in bytes (proc(5)).
func (h *spadHouse) pss() (sum int) {
	h.t.Helper()
	for _, pid := range []int{h.Cmd.Process.Pid, h.enginePid()} {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		m := spadPss.FindSubmatch(text)
		if err != nil || m == nil {
			h.t.Fatal(err)
		}
		kb, _ := strconv.Atoi(string(m[1]))
		sum += kb << 10
	}
	return sum
}
