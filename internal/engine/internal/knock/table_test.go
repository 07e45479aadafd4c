package knock

import (
	"math/rand/v2"
	"net/netip"
	"testing"
)

// TestPlacesAddUp puts in, moves and removes at random, and counts all again each
// time.
func TestPlacesAddUp(t *testing.T) {
	for family, src := range sources {
		t.Run(family, func(t *testing.T) {
			random := rand.New(rand.NewPCG(11, 12))
			tab := newPlaces(32, 5)
			for now := range int64(20_000) {
				i := random.Int32N(tab.used + 1)
				switch used := i > 0 && tab.slots[i].queue != 0; {
				case used && random.IntN(8) == 0:
					tab.remove(i)
				case used:
					tab.move(i, begun+random.Int32N(7))
					if tab.slots[i].queue == 0 {
						t.Fatal("what moved is gone")
					}
				default:
					from := forged(src, random.Uint32N(16))
					tab.add(from.As16(), random.Int32N(2), now+100, now)
				}
				tab.sweep(1, now)
				checkPlaces(t, &tab, src)
			}
			if tab.evicted == 0 {
				t.Error("the table was never full: the test tests little")
			}
		})
	}
}

func checkPlaces(t *testing.T, tab *places, src netip.Addr) {
	t.Helper()
	live, proven := int32(0), int32(0)
	for q := range tab.queues {
		n, last := int32(0), int32(0)
		for i := tab.queues[q].oldest; i != 0 && n <= 32; i = tab.slots[i].next {
			if tab.slots[i].prev != last || tab.slots[i].queue != int32(q) {
				t.Fatalf("queue %d is torn at %d", q, i)
			}
			n, last = n+1, i
		}
		if n != tab.queues[q].length || last != tab.queues[q].newest {
			t.Fatalf("queue %d has %d, and says %+v", q, n, tab.queues[q])
		}
		if live += n; int32(q) >= proved {
			proven += n
		}
	}
	found := int32(0)
	for n := range uint32(16) {
		from := forged(src, n).As16()
		for i := *tab.bucket(&from); i != 0; i = tab.slots[i].chainNext {
			if tab.slots[i].src == from {
				found++
			}
		}
	}
	if live != tab.live || proven != tab.proven || found != live || proven > 16 || live > 32 {
		t.Fatalf("%d in queues and %d in buckets, %d proved; it says %d and %d", live, found, proven, tab.live, tab.proven)
	}
}
