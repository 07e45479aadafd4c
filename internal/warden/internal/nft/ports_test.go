package nft

import (
	"net/netip"
	"reflect"
	"testing"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/sequence"
	"pgregory.net/rapid"
)

// port set of a test, the slow and plain way
type bits map[config.PortRange]bool

func plainly(ranges []config.PortRange) bits {
	out := bits{}
	for _, r := range ranges {
		for p := int(r.Low); p <= int(r.High); p++ {
			out[config.PortRange{Proto: r.Proto, Low: uint16(p), High: uint16(p)}] = true
		}
	}
	return out
}

// drawRanges draws ranges at both ends of the numbers, where arithmetic on 16
// bits would wrap.
func drawRanges(t *rapid.T, label string) []config.PortRange {
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) config.PortRange {
		base := rapid.SampledFrom([]int{1, 65515}).Draw(t, "base")
		low := base + rapid.IntRange(0, 20).Draw(t, "low")
		high := min(65535, low+rapid.IntRange(0, 20).Draw(t, "more"))
		return config.PortRange{
			Proto: rapid.SampledFrom([]sequence.Proto{sequence.TCP, sequence.UDP}).Draw(t, "proto"),
			Low:   uint16(low), High: uint16(high),
		}
	}), 0, 6).Draw(t, label)
}

// TestRanges: union and subtract give the right ports, and runs that neither
// touch nor overlap, which the kernel would refuse.
func TestRanges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := drawRanges(t, "a"), drawRanges(t, "b")
		both, less := plainly(append(append([]config.PortRange{}, a...), b...)), plainly(a)
		for r := range plainly(b) {
			delete(less, r)
		}
		check := func(what string, got []config.PortRange, want bits) {
			if !reflect.DeepEqual(plainly(got), want) {
				t.Fatalf("%s: %v", what, got)
			}
			for i := 1; i < len(got); i++ {
				if got[i-1].Proto == got[i].Proto && int(got[i-1].High)+1 >= int(got[i].Low) || got[i-1].Proto > got[i].Proto {
					t.Fatalf("%s: %v and %v touch or are out of order", what, got[i-1], got[i])
				}
			}
		}
		check("union", config.JoinPorts(append(append([]config.PortRange{}, a...), b...)), both)
		check("subtract", subtract(a, b), less)
	})
}

// TestAllowedNeverOverlaps: nested prefixes of several services give elements
// that don't overlap and reach what each service allows.
func TestAllowedNeverOverlaps(t *testing.T) {
	pool := prefixes("192.0.2.0/24", "192.0.2.0/25", "192.0.2.0/32", "0.0.0.0/0", "2001:db8::/32", "2001:db8::/64", "2001:db8::/128", "::/0")
	rapid.Check(t, func(t *rapid.T) {
		cfg := &config.Config{}
		for range rapid.IntRange(1, 4).Draw(t, "services") {
			cfg.Services = append(cfg.Services, config.Service{
				Ports: drawRanges(t, "ports"),
				Allow: rapid.SliceOf(rapid.SampledFrom(pool)).Draw(t, "allow"),
			})
		}
		got := allowed(cfg)
		for _, from := range []string{"192.0.2.0", "192.0.2.1", "192.0.2.200", "203.0.113.1", "2001:db8::", "2001:db8::1", "2001:db8:1::", "3fff::"} {
			addr := netip.MustParseAddr(from)
			hits := map[config.PortRange]int{}
			for r, ports := range got {
				if r.from.Contains(addr) {
					for p := range plainly(ports) {
						hits[p]++
					}
				}
			}
			want := bits{}
			for _, s := range cfg.Services {
				for _, prefix := range s.Allow {
					if prefix.Contains(addr) {
						for p := range plainly(s.Ports) {
							want[p] = true
						}
					}
				}
			}
			for p, n := range hits {
				if n != 1 || !want[p] {
					t.Fatalf("%v reaches %v by %d elements, want %v", addr, p, n, want[p])
				}
			}
			if len(hits) != len(want) {
				t.Fatalf("%v reaches %d ports, want %d", addr, len(hits), len(want))
			}
		}
	})
}
