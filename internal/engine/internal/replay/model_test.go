//go:build linux

package replay

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func newRandom(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 0)) }

// naive is the rules as the design says them, over a list of all that was ever
// accepted.
type naive struct {
	all      []told
	boundary int64
}

func (n *naive) newest(key Key) []told {
	var own []told
	for _, s := range n.all {
		if s.Key == key {
			own = append(own, s)
		}
	}
	slices.SortFunc(own, func(a, b told) int { return int(b.Stamp - a.Stamp) })
	return own[:min(len(own), PerKey)]
}

func (n *naive) check(h *Heard, r Rule, now time.Time) Why {
	own := n.newest(h.Key)
	for _, s := range own {
		if s.Tag == h.Tag {
			return Repeat
		}
	}
	if r.NoClock {
		if len(own) > 0 && h.Stamp <= own[0].Stamp {
			return NotRising
		}
		return Fresh
	}
	for _, s := range own {
		if s.Stamp == h.Stamp {
			return Repeat
		}
	}
	apart := h.Stamp - now.UnixNano()
	switch {
	case apart < -int64(r.Window):
		return TooOld
	case apart > int64(r.Window):
		return FromTheFuture
	case h.Stamp <= n.boundary:
		return BeforeStart
	case len(own) == PerKey && h.Stamp <= own[PerKey-1].Stamp:
		return Forgotten
	}
	return Fresh
}

// unclean is what a start without the warden's word does to the list.
func (n *naive) unclean(now time.Time) {
	n.boundary = max(n.boundary, now.UnixNano())
	for _, s := range n.all {
		if !s.NoClock {
			n.boundary = max(n.boundary, s.Stamp)
		}
	}
}

// TestModel has Memory and the list judge the same messages, over restarts,
// rewritings and unclean boots.
func TestModel(t *testing.T) {
	counts := map[Why]int{}
	rapid.Check(t, func(t *rapid.T) {
		d := newMachine()
		now, serial := start, uint64(0)
		list := &naive{}
		restart := func(complete bool) *Memory {
			m, err := begin(d.disk(), complete, now)
			if err != nil {
				t.Fatal(err)
			}
			if !complete {
				list.unclean(now)
			}
			return m
		}
		m := restart(false)
		try := func(h *Heard, r Rule) {
			want := list.check(h, r, now)
			got := m.Check(h, r, now)
			if counts[got]++; got != want {
				t.Fatalf("key %d, stamp %d, rule %v: %q, want %q", h.Key[0], h.Stamp, r, got, want)
			}
			if err := m.Accept(h, r, now); (err == nil) != (want == Fresh) {
				t.Fatalf("%q and accepting: %v", want, err)
			}
			if want == Fresh {
				list.all = append(list.all, told{h, r})
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"message": func(t *rapid.T) {
				serial++
				r := Rule{Window: time.Duration(rapid.IntRange(0, 300).Draw(t, "window"))}
				key := rapid.ByteRange(1, 3).Draw(t, "key")
				stamp := now.UnixNano() + rapid.Int64Range(-320, 320).Draw(t, "stamp")
				if key == 3 {
					r, stamp = counting, rapid.Int64Range(1, 1000).Draw(t, "count")
				}
				try(stamped(key, stamp, serial), r)
			},
			"burst": func(t *rapid.T) {
				key := rapid.ByteRange(1, 3).Draw(t, "key")
				for range rapid.SampledFrom([]int{1, 9, PerKey - 1, PerKey, PerKey + 9}).Draw(t, "n") {
					serial++
					now = now.Add(time.Duration(rapid.IntRange(0, 2).Draw(t, "pause")))
					try(stamped(key, now.UnixNano(), serial), Rule{Window: 300})
				}
			},
			"late": func(t *rapid.T) {
				serial++
				key := rapid.ByteRange(1, 2).Draw(t, "key")
				if own := list.newest(Key{0: key, 31: 1}); len(own) > 0 {
					oldest := own[len(own)-1].Stamp
					stamp := oldest - rapid.Int64Range(-3, 3).Draw(t, "before the oldest")
					try(stamped(key, stamp, serial), Rule{Window: 1 << 20})
				}
			},
			"copy": func(t *rapid.T) {
				if len(list.all) > 0 {
					s := rapid.SampledFrom(list.all).Draw(t, "of")
					try(s.Heard, s.Rule)
				}
			},
			"pause":   func(t *rapid.T) { now = now.Add(time.Duration(rapid.IntRange(0, 400).Draw(t, "pause"))) },
			"restart": func(t *rapid.T) { m = restart(true) },
			"unclean": func(t *rapid.T) { m = restart(false) },
			"rewrite": func(t *rapid.T) {
				if err := m.rewrite(now); err != nil {
					t.Fatal(err)
				}
			},
		})
	})
	for _, why := range []Why{Fresh, Repeat, TooOld, FromTheFuture, Forgotten, BeforeStart, NotRising} {
		if counts[why] == 0 && !testing.Short() { // which draws a fifth as many
			t.Errorf("no message was ever %q", why)
		}
	}
}
