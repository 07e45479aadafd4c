package main

import (
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
)

// The aims for decoding and matching one packet.
const (
	packetNanoseconds = 150
	packetAllocs      = 0
)

// packetLine is one line of the benchmark in internal/engine: the case, its
// size, and what one packet costs.
var packetLine = regexp.MustCompile(`(?m)^BenchmarkPacket/(\S+)/(knocks=\d+/attempts=\d+)\S*\s.*\s([0-9.]+) cpu-ns/op\s.*\s(\d+) allocs/op`)

// cost is what the packets of one case take, for each size of the tables.
type cost struct {
	sizes  []string
	ns     []float64 // of each size, the least of several measurements
	allocs int       // the most
}

// packet has the engine's own benchmark run and judges what it prints.
func (b *bench) packet() {
	b.title("decode + match, for one packet", `  The engine's whole way for a packet that completes no knock, the clock read included, in processor
  time, the best of 3. stray: to no knock port. wrong, steps, copy: from a source with an attempt under
  way. flood: each packet is the first step of another source's, and evicts one from a full table.`)
	out, err := exec.CommandContext(b.ctx, "go", "test", "-run", "^$", "-bench", "^BenchmarkPacket$", "-benchtime", "50ms", "-count", "3",
		"github.com/sallyport/sallyport/internal/engine").CombinedOutput()
	names, costs := readCosts(string(out))
	if err != nil || len(names) == 0 {
		b.Fatalf("the engine's benchmark: %v\n%s", err, out)
	}
	sizes := ""
	for _, name := range names {
		c := costs[name]
		if s := strings.Join(c.sizes, ", "); s != sizes {
			sizes = s
			b.row("", "%s", sizes)
		}
		figures, worst := "", 0.0
		for _, ns := range c.ns {
			figures += fmt.Sprintf("%.0f ", ns)
			worst = max(worst, ns)
		}
		b.aim(strings.ReplaceAll(name, "/", ", "), fmt.Sprintf("%sns, %d allocs", figures, c.allocs),
			fmt.Sprintf("at most %d ns, %d", packetNanoseconds, packetAllocs), worst <= packetNanoseconds && c.allocs <= packetAllocs)
	}
}

// readCosts gives the cases in the order of the benchmark's lines.
func readCosts(out string) (names []string, costs map[string]*cost) {
	costs = map[string]*cost{}
	for _, m := range packetLine.FindAllStringSubmatch(out, -1) {
		ns, _ := strconv.ParseFloat(m[3], 64)
		allocs, _ := strconv.Atoi(m[4])
		c := costs[m[1]]
		if c == nil {
			c = &cost{}
			costs[m[1]] = c
			names = append(names, m[1])
		}
		c.add(m[2], ns, allocs)
	}
	return names, costs
}

func (c *cost) add(size string, ns float64, allocs int) {
	c.allocs = max(c.allocs, allocs)
	for i, s := range c.sizes {
		if s == size {
			c.ns[i] = min(c.ns[i], ns)
			return
		}
	}
	c.sizes, c.ns = append(c.sizes, size), append(c.ns, ns)
}
