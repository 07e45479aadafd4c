package testnet

import (
	"fmt"
	"math"
	"testing"
	"time"
)

// What a line draws is what it says it draws: shares and times within four standard
// deviations, and a frame's loss tells nothing of whether it would have been kept back.
func TestFates(t *testing.T) {
	const n = 10_000
	for _, f := range []Flaws{
		{}, {Loss: .05}, {Loss: .2, Reorder: .5}, {Reorder: .1}, {Reorder: 1},
		{Delay: 50 * time.Millisecond, Jitter: 20 * time.Millisecond},
	} {
		t.Run(fmt.Sprintf("%+v", f), func(t *testing.T) {
			f.Seed = 11
			e := &lineEnd{line: &Line{}}
			e.line.flaws.Store(&f)
			var lost, held, both int
			var waits []time.Duration
			for range n {
				wait, gone := e.fate()
				late := f.Jitter == 0 && wait > f.Delay
				lost, held, both = lost+count(gone), held+count(late), both+count(gone && late)
				if late || f.Jitter > 0 {
					waits = append(waits, wait)
				}
			}
			near(t, "lost", lost, n, f.Loss)
			near(t, "kept back", held, n, f.Reorder)
			near(t, "lost and kept back", both, n, f.Loss*f.Reorder)
			least, most := time.Millisecond, LongestHold
			if f.Jitter > 0 {
				least, most = f.Delay-f.Jitter, f.Delay+f.Jitter
			}
			even(t, waits, least, most)
		})
	}
}

func count(b bool) int {
	if b {
		return 1
	}
	return 0
}

func near(t *testing.T, what string, got, n int, share float64) {
	t.Helper()
	if bound := 4 * math.Sqrt(float64(n)*share*(1-share)); math.Abs(float64(got)-float64(n)*share) > bound {
		t.Errorf("%d of %d were %s, want a share of %v ± %.0f", got, n, what, share, bound)
	}
}

// even checks that times lie between two limits, as many in each quarter.
func even(t *testing.T, times []time.Duration, least, most time.Duration) {
	t.Helper()
	var quarters [4]int
	for _, d := range times {
		if d < least || d > most {
			t.Fatalf("%v is not between %v and %v", d, least, most)
		}
		quarters[min(4*(d-least)/(most-least), 3)]++
	}
	for i, got := range quarters {
		near(t, fmt.Sprintf("in quarter %d of %v to %v", i+1, least, most), got, len(times), .25)
	}
}
