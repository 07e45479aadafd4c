package main

import (
	"fmt"
	"math"
	"slices"
	"time"
)

// title begins a part and says how it is measured.
func (b *bench) title(name, how string) {
	fmt.Printf("\n%s\n%s\n", name, how)
}

// row prints one figure.
func (b *bench) row(name, format string, args ...any) {
	fmt.Printf("  %-32s  %s\n", name, fmt.Sprintf(format, args...))
}

// aim prints one figure beside what it should be.
func (b *bench) aim(name, figure, aim string, met bool) {
	word := "met"
	if met {
		b.met++
	} else {
		b.missed++
		word = "missed"
	}
	fmt.Printf("  %-32s  %-28s  aim %-20s  %s\n", name, figure, aim, word)
}

// quantile gives the smallest figure that a share of all does not exceed;
// figures need not be sorted, and there is at least one.
func quantile(figures []time.Duration, share float64) time.Duration {
	sorted := slices.Sorted(slices.Values(figures))
	return sorted[max(int(math.Ceil(share*float64(len(sorted))))-1, 0)]
}

// ms gives a duration in milliseconds, three digits behind the point.
func ms(d time.Duration) string { return fmt.Sprintf("%.3f ms", d.Seconds()*1000) }

// mib gives bytes in MiB.
func mib(n int) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }
