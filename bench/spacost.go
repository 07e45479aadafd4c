package main

import (
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
)

// The aims for junk, in nanoseconds, and for a valid request, as a multiple of
// the public-key operations that it can't do without.
const (
	firstNanoseconds  = 60
	secondNanoseconds = 200
	requestRatio      = 1.25
)

// figures is a benchmark's lines: for each the least of each metric, of
// allocations the most.
type figures struct {
	names []string
	of    map[string]map[string]float64
}

var (
	benchLine  = regexp.MustCompile(`(?m)^Benchmark(\S+?)(?:-\d+)?\s+\d+\s+(.*)$`)
	metricPair = regexp.MustCompile(`([0-9.e+]+) (\S+)`)
)

// allocations is the metric that -benchmem prints.
const allocations = "allocs/op"

func readFigures(out string) *figures {
	f := &figures{of: map[string]map[string]float64{}}
	for _, line := range benchLine.FindAllStringSubmatch(out, -1) {
		name := line[1]
		if f.of[name] == nil {
			f.of[name] = map[string]float64{}
			f.names = append(f.names, name)
		}
		for _, pair := range metricPair.FindAllStringSubmatch(line[2], -1) {
			value, _ := strconv.ParseFloat(pair[1], 64)
			before, known := f.of[name][pair[2]]
			switch {
			case !known, pair[2] != allocations && value < before, pair[2] == allocations && value > before:
				f.of[name][pair[2]] = value
			}
		}
	}
	return f
}

// benchmark runs a benchmark of ours.
func (b *bench) benchmark(pattern, pkg string, args ...string) *figures {
	args = append([]string{"test", "-run", "^$", "-bench", pattern}, args...)
	out, err := exec.CommandContext(b.ctx, "go", append(args, "github.com/sallyport/sallyport/"+pkg)...).CombinedOutput()
	f := readFigures(string(out))
	if err != nil || len(f.names) == 0 {
		b.Fatalf("the benchmark %s: %v\n%s", pattern, err, out)
	}
	return f
}

// junkAims are for the recogniser alone.
var junkAims = []struct {
	where, name string
	most        float64
}{
	{"length", "wrong length", firstNanoseconds},
	{"first", "wrong first tag", firstNanoseconds},
	{"second", "wrong second tag", secondNanoseconds},
}

// gate has the benchmarks of junk run and judges what they print.
func (b *bench) gate() {
	b.title("SPA: junk, for one datagram", `  Processor time, the best of 3. The recogniser alone gets a decoded packet;
  the engine as a whole also decodes it and reads the clock. The first tag
  covers 40 bytes, the second all but 16 of a datagram's 448, 832 or 1372.`)
	f := b.benchmark("^BenchmarkJunk$", "internal/engine", "-benchtime", "50ms", "-count", "3")
	for _, a := range junkAims {
		for _, size := range []string{"448", "832", "1372"} {
			at := a.where + "/" + size
			alone := f.of["Junk/recogniser/"+at]
			v4, v6 := f.of["Junk/engine/"+at+"/IPv4"], f.of["Junk/engine/"+at+"/IPv6"]
			if alone == nil || v4 == nil || v6 == nil {
				b.Fatalf("the engine's benchmark has no figure for %s", at)
			}
			allocs := max(alone[allocations], v4[allocations], v6[allocations])
			ns := alone["cpu-ns/op"]
			b.aim(a.name+", "+size, fmt.Sprintf("%.0f ns, %.0f allocs", ns, allocs),
				fmt.Sprintf("at most %.0f ns, 0", a.most), ns <= a.most && allocs == 0)
			b.row("  the engine as a whole", "%.0f ns IPv4, %.0f ns IPv6", v4["cpu-ns/op"], v6["cpu-ns/op"])
		}
	}
}

// requests has the benchmark of valid requests run and judges what it prints.
func (b *bench) requests() {
	b.title("SPA: valid requests, for each second of a processor", `  The engine's whole way from the packet to the warden's answer, for distinct
  requests, 2,000 in a round, the best of 3 rounds; then the same with the
  journal in a real file. Bare is opening the seal and checking the signature
  with the standard library alone, in the same rounds.`)
	f := b.benchmark("^BenchmarkRequest$", "internal/engine", "-benchtime", "3x")
	for _, name := range f.names {
		m := f.of[name]
		short := strings.ReplaceAll(strings.TrimPrefix(name, "Request/"), "/", ", ")
		bare := m["bare-ns"]
		b.row(short, "bare: %.0f a second", 1e9/bare)
		for _, way := range []struct{ name, metric string }{{"  the engine", "request-ns"}, {"  with the journal", "journal-ns"}} {
			ns := m[way.metric]
			b.aim(way.name, fmt.Sprintf("%.0f a second, bare × %.2f", 1e9/ns, ns/bare),
				fmt.Sprintf("at most × %.2f", requestRatio), ns <= requestRatio*bare)
		}
	}
}
