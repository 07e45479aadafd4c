package spa

import (
	"fmt"
	"testing"
)

// BenchmarkGate is the first tag of junk, which always covers 40 bytes.
func BenchmarkGate(b *testing.B) {
	k := newKey(b, Classic)
	for _, size := range Sizes {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			d := make([]byte, size)
			b.ReportAllocs()
			for b.Loop() {
				if k.Gate().First(d) {
					b.Fatal("open")
				}
			}
		})
	}
}

// BenchmarkBothGates is both tags of a datagram that has them right; the second
// covers all but 16 bytes.
func BenchmarkBothGates(b *testing.B) {
	k := newKey(b, Classic)
	for _, size := range Sizes {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			d := make([]byte, size)
			k.gate.close(d)
			b.ReportAllocs()
			for b.Loop() {
				if !k.Gate().First(d) || !k.Gate().Second(d) {
					b.Fatal("shut")
				}
			}
		})
	}
}

// Strangers choose how many datagrams come to the gate.
func TestTheGateAllocatesNothing(t *testing.T) {
	k := newKey(t, Classic)
	for _, size := range Sizes {
		d := make([]byte, size)
		k.gate.close(d)
		open := true
		allocs := testing.AllocsPerRun(100, func() {
			open = open && Single(d) != nil && k.Gate().First(d) && k.Gate().Second(d)
		})
		if allocs != 0 || !open {
			t.Errorf("%d bytes: %v allocations, open: %v; want none, and open", size, allocs, open)
		}
	}
}
