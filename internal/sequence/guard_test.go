package sequence

import (
	"math/rand/v2"
	"testing"
)

// TestInnocentSpans: setting bits by the word gives what asking about every
// port would, at the ends of words and of the numbers too.
func TestInnocentSpans(t *testing.T) {
	rng := rand.New(rand.NewPCG(13, 14))
	edges := []uint16{1, 2, 62, 63, 64, 65, 127, 128, 129, 8080, 65471, 65472, 65534, 65535}
	for range 200 {
		var spans []Span
		for range rng.IntN(4) {
			low, high := pick(rng, edges), pick(rng, edges)
			spans = append(spans, Span{pick(rng, []Proto{TCP, UDP, ICMP}), min(low, high), max(low, high)})
		}
		var in innocents
		in.fill([]Span{{TCP, 1, 65535}, {UDP, 1, 65535}}) // must leave nothing behind
		in.fill(spans)
		for _, proto := range []Proto{TCP, UDP} {
			for _, port := range everyPort() {
				want := false
				for _, s := range spans {
					want = want || s.Proto == proto && s.Low <= port && port <= s.High
				}
				if in.has(proto, port) != want {
					t.Fatalf("%v: %v %d is innocent: %v, want %v", spans, proto, port, !want, want)
				}
			}
		}
	}
}

// BenchmarkInnocent is a host with 2,000 public ports, at a reload and whenever
// a listener comes or goes: packets wait meanwhile.
func BenchmarkInnocent(b *testing.B) {
	var spans []Span
	for port := uint16(1); port <= 4000; port += 2 {
		spans = append(spans, Span{TCP, port, port})
	}
	m := New(nil, nil, 16)
	b.ReportAllocs()
	for b.Loop() {
		m.Innocent(spans)
	}
}
