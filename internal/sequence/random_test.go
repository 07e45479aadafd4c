package sequence

import (
	"slices"
	"testing"
)

func TestRandom(t *testing.T) {
	low, high := 65535, 0
	for i := range 2000 {
		n := MinRandom + i%(MaxSteps-MinRandom+1)
		steps, err := Random(n)
		if err != nil || len(steps) != n {
			t.Fatalf("Random(%d): %d steps, %v", n, len(steps), err)
		}
		var ports []int
		seen := map[Proto]int{}
		for _, s := range steps {
			if back, err := ParseStep(s.String()); err != nil || back != s {
				t.Fatalf("%v does not read back: %v", s, err)
			}
			if s.Port < 1024 || s.Port > 32767 {
				t.Fatalf("%v: unfit port", s)
			}
			ports = append(ports, int(s.Port))
			low, high = min(low, int(s.Port)), max(high, int(s.Port))
			seen[s.Proto]++
		}
		if seen[TCP] == 0 || seen[UDP] == 0 {
			t.Fatalf("%v has one protocol only", steps)
		}
		sorted := slices.Sorted(slices.Values(ports))
		down := slices.Clone(sorted)
		slices.Reverse(down)
		if slices.Equal(sorted, ports) || slices.Equal(down, ports) {
			t.Fatalf("%v can be made by a scan", steps)
		}
		for i := range sorted[1:] {
			if sorted[i+1]-sorted[i] < 65 {
				t.Fatalf("%v: %d and %d are in each other's guards", steps, sorted[i], sorted[i+1])
			}
		}
	}
	// 35,000 draws of 31,744 ports: none within 100 of an end is a chance of
	// one in 10^48.
	if low > 1124 || high < 32667 {
		t.Errorf("ports from %d to %d only", low, high)
	}
	a, _ := Random(4)
	if b, _ := Random(4); slices.Equal(a, b) {
		t.Errorf("the same sequence twice: %v", a)
	}
}

func TestRandomRefuses(t *testing.T) {
	for _, n := range []int{-1, 0, 1, 2, MaxSteps + 1} {
		if steps, err := Random(n); err == nil {
			t.Errorf("Random(%d) = %v", n, steps)
		}
	}
}
