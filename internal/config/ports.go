package config

import (
	"cmp"
	"slices"

	"github.com/sallyport/sallyport/internal/sequence"
)

// HasPort reports whether one of the ranges has this port of this protocol.
func HasPort(ranges []PortRange, proto sequence.Proto, port uint16) bool {
	return slices.ContainsFunc(ranges, func(r PortRange) bool { return r.Contains(proto, port) })
}

// CountPorts is the number of ports in ranges that do not overlap.
func CountPorts(ranges []PortRange) (n int) {
	for _, r := range ranges {
		n += r.Count()
	}
	return n
}

// JoinPorts gives the same ports as disjoint ranges in order, with neighbours joined.
func JoinPorts(ranges []PortRange) []PortRange {
	sorted := slices.SortedFunc(slices.Values(ranges), func(a, b PortRange) int {
		return cmp.Or(cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.Low, b.Low))
	})
	var out []PortRange
	for _, r := range sorted {
		if n := len(out); n > 0 && out[n-1].Proto == r.Proto && int(r.Low) <= int(out[n-1].High)+1 {
			out[n-1].High = max(out[n-1].High, r.High)
			continue
		}
		out = append(out, r)
	}
	return out
}
