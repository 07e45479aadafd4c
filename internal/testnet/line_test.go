package testnet_test

import (
	"encoding/binary"
	"fmt"
	"math"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/testnet"
)

// lineEnds is a line with a sender at its one end and a receiver at the other.
type lineEnds struct {
	t    *testing.T
	line *testnet.Line
	from [2]net.Conn // IPv4, IPv6
	to   net.PacketConn
}

func newLineEnds(t *testing.T) *lineEnds {
	t.Helper()
	a, b := testnet.New(t), testnet.New(t)
	e := &lineEnds{t: t}
	e.line, _, _ = testnet.Lay(a, b, []string{"192.0.2.1/24", "2001:db8::1/64"}, []string{"192.0.2.2/24", "2001:db8::2/64"})
	var err error
	b.Do(func() {
		if e.to, err = net.ListenPacket("udp", ":9000"); err == nil {
			err = e.to.(*net.UDPConn).SetReadBuffer(8 << 20)
		}
	})
	for i, addr := range []string{"192.0.2.2:9000", "[2001:db8::2]:9000"} {
		if err == nil {
			a.Do(func() { e.from[i], err = net.Dial("udp", addr) })
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.to.Close(); e.from[0].Close(); e.from[1].Close() })
	return e
}

// arrived is one datagram as it came: its number, and how long it was on the way.
type arrived struct {
	number int
	took   time.Duration
}

// send sends so many numbered datagrams, the families by turns, with a pause after
// each; without one still a short one now and then, or the receiver's own queue would
// lose some. It gives those that came until a time after the last was sent, in the
// order of their coming.
func (e *lineEnds) send(n int, pause, after time.Duration) (got []arrived) {
	e.t.Helper()
	began := time.Now()
	e.to.SetReadDeadline(began.Add(time.Minute))
	go func() {
		for i := range n {
			b := binary.BigEndian.AppendUint32(nil, uint32(i))
			e.from[i%2].Write(binary.BigEndian.AppendUint64(b, uint64(time.Since(began))))
			if pause > 0 || i%16 == 0 {
				time.Sleep(max(pause, 100*time.Microsecond))
			}
		}
		e.to.SetReadDeadline(time.Now().Add(after))
	}()
	var b [16]byte
	for {
		size, _, err := e.to.ReadFrom(b[:])
		if err != nil {
			return got // the time is over
		}
		if size != 12 {
			e.t.Fatalf("a datagram of %d bytes", size)
		}
		sent := time.Duration(binary.BigEndian.Uint64(b[4:]))
		got = append(got, arrived{int(binary.BigEndian.Uint32(b[:])), time.Since(began) - sent})
	}
}

func numbers(got []arrived) (list []int) {
	for _, a := range got {
		list = append(list, a.number)
	}
	slices.Sort(list)
	return list
}

// What the tables of loss say is worth as much as the line's own loss: it is what was
// asked for, in both families, and the same again with the same seed.
func TestLineLoses(t *testing.T) {
	const n = 4000
	e := newLineEnds(t)
	for _, loss := range []float64{0, .05, .2, .5} {
		t.Run(fmt.Sprint(loss), func(t *testing.T) {
			var again []int
			for range 2 {
				e.line.Set(testnet.Flaws{Loss: loss, Seed: 7})
				before := e.line.Fates(true)
				got := numbers(e.send(n, 0, 300*time.Millisecond))
				after := e.line.Fates(true)
				if passed, lost := after.Passed-before.Passed, after.Lost-before.Lost; passed != int64(len(got)) || lost != int64(n-len(got)) {
					t.Errorf("%d of %d arrived; the line counts %d passed, %d lost", len(got), n, passed, lost)
				}
				if again != nil && !slices.Equal(again, got) {
					t.Error("the same seed lost other datagrams")
				}
				again = got
			}
			// Four standard deviations of each family's share: one run in 16,000 is
			// outside, and the seed is fixed.
			bound := 4 * math.Sqrt(loss*(1-loss)/(n/2))
			var of [2]float64
			for _, i := range again {
				of[i%2]++
			}
			for i, family := range []string{"IPv4", "IPv6"} {
				if share := 1 - of[i]/(n/2); math.Abs(share-loss) > bound {
					t.Errorf("%s: %.4f were lost, want %v ± %.4f", family, share, loss, bound)
				}
			}
		})
	}
}

// overtaken counts those that came after one that was sent later.
func overtaken(got []arrived) (n int) {
	latest := -1
	for _, a := range got {
		if a.number < latest {
			n++
		}
		latest = max(latest, a.number)
	}
	return n
}

func TestLineReordersAndDelays(t *testing.T) {
	const n = 1000
	for _, c := range []struct {
		name  string
		flaws testnet.Flaws
		// The share that is overtaken, and what a datagram takes. A busy machine adds
		// to the longest, never to the shortest.
		least, most       float64
		shortest, longest time.Duration
	}{
		{"nothing", testnet.Flaws{}, 0, 0, 0, 30 * time.Millisecond},
		// Each is 1 to 40 ms late, and the next comes after half a millisecond.
		{"a quarter is kept back", testnet.Flaws{Reorder: .25, Seed: 1}, .2, .3, 0, testnet.LongestHold + 30*time.Millisecond},
		{"all are late alike", testnet.Flaws{Delay: 50 * time.Millisecond}, 0, 0, 50 * time.Millisecond, 80 * time.Millisecond},
		{"all are late", testnet.Flaws{Delay: 50 * time.Millisecond, Jitter: 20 * time.Millisecond, Seed: 1}, .5, 1, 30 * time.Millisecond, 100 * time.Millisecond},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := newLineEnds(t)
			e.send(2, time.Millisecond, 200*time.Millisecond) // neighbours know each other now
			e.line.Set(c.flaws)
			got := e.send(n, 500*time.Microsecond, 300*time.Millisecond)
			if len(got) != n {
				t.Fatalf("%d of %d arrived", len(got), n)
			}
			if share := float64(overtaken(got)) / n; share < c.least || share > c.most {
				t.Errorf("%.3f were overtaken, want %v to %v", share, c.least, c.most)
			}
			slices.SortFunc(got, func(a, b arrived) int { return int(a.took - b.took) })
			// The longest tells more of this machine than of the line: nine of ten do not.
			if shortest, most := got[0].took, got[n*9/10].took; shortest < c.shortest || most > c.longest {
				t.Errorf("the shortest took %v, nine of ten at most %v; want %v to %v", shortest, most, c.shortest, c.longest)
			}
		})
	}
}

// A line that loses everything still lets neighbours find each other, or the first
// knock after a quiet time would be lost for another reason.
func TestLineKeepsNeighbours(t *testing.T) {
	a, b := testnet.New(t), testnet.New(t)
	line, name, _ := testnet.Lay(a, b, []string{"192.0.2.1/24", "2001:db8::1/64"}, []string{"192.0.2.2/24", "2001:db8::2/64"})
	line.Set(testnet.Flaws{Loss: 1})
	for _, addr := range []string{"192.0.2.2", "2001:db8::2"} {
		if out, err := a.Output("ping", "-c1", "-W1", addr); err == nil {
			t.Errorf("%s answers over a line that loses all:\n%s", addr, out)
		}
		if out := a.Run("ip", "neigh", "show", addr, "dev", name); !strings.Contains(out, "lladdr") {
			t.Errorf("%s has no hardware address: %s", addr, out)
		}
	}
}
