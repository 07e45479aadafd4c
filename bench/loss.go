package main

import (
	"fmt"
	"math"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/sallyport/sallyport/internal/testnet"
)

const (
	// lossTries is how often each way knocks under each of the line's flaws: eight
	// to ten minutes in all, and ±3.3 percentage points at the most.
	lossTries = 900
	// lossApart is the time from one try of a way to its next: what all send together
	// leaves two processors half idle, so that only the line loses packets.
	lossApart = 50 * time.Millisecond
	// lossWithin is when a port has to be open, counted from the beginning of the
	// knock: about as long as somebody waits before he knocks again.
	lossWithin = 3 * time.Second
	// lossLook is the time between two looks at what is granted.
	lossLook = 200 * time.Millisecond
	lossSeed = 2003 // the year of the first design; any other number will do
)

// lossColumn is one column of the table.
type lossColumn struct {
	name  string
	flaws testnet.Flaws
}

var lossColumns = []lossColumn{
	{name: "no flaw"},
	{"5 % loss", testnet.Flaws{Loss: .05}},
	{"10 % loss", testnet.Flaws{Loss: .1}},
	{"20 % loss", testnet.Flaws{Loss: .2}},
	{"10 % reordered", testnet.Flaws{Reorder: .1}},
	{"25 % reordered", testnet.Flaws{Reorder: .25}},
	{"50 % reordered", testnet.Flaws{Reorder: .5}},
	{"20 % loss, 50 % reordered", testnet.Flaws{Loss: .2, Reorder: .5}},
	{"50 ± 20 ms", testnet.Flaws{Delay: 50 * time.Millisecond, Jitter: 20 * time.Millisecond}},
}

// loss measures how often a knock opens the port over a line that loses, reorders
// and delays, and prints a Markdown table.
func (b *bench) loss() {
	ways := append(b.ourWays(), b.theirWays()...)
	fmt.Printf(`
Knocks that opened the port within %v, in percent, of %d for each cell; behind it the 95 %% interval (Wilson).
Half of the tries are over IPv6, but fwknop's. seed %d.

`, lossWithin, b.tries, lossSeed)
	cells := make([][]string, len(ways))
	var measured []string
	for i, column := range lossColumns {
		b.interrupted()
		column.flaws.Seed = lossSeed + uint64(i)
		before := ways[0].at.line.Fates(true)
		counts := b.tryAll(ways, column.flaws, b.tries)
		for j, opened := range counts {
			cells[j] = append(cells[j], percent(opened, b.tries))
		}
		// The table is printed at the end; of a run that is broken off this remains.
		fmt.Fprintln(os.Stderr, column.name, counts)
		measured = append(measured, lineShares(before, ways[0].at.line.Fates(true)))
	}
	header, rule := "| |", "|---|"
	for _, column := range lossColumns {
		header, rule = header+" "+column.name+" |", rule+"---|"
	}
	fmt.Println(header + "\n" + rule)
	for j, w := range ways {
		fmt.Printf("| %s | %s |\n", w.name, strings.Join(cells[j], " | "))
	}
	fmt.Printf("| the line to ours: lost, held back | %s |\n", strings.Join(measured, " | "))
}

// lineShares says what the line did to what ours were sent.
func lineShares(before, after testnet.Fates) string {
	lost, passed, held := after.Lost-before.Lost, after.Passed-before.Passed, after.Held-before.Held
	all := float64(max(lost+passed, 1))
	return fmt.Sprintf("%.1f, %.1f", 100*float64(lost)/all, 100*float64(held)/float64(max(passed, 1)))
}

// percent gives a share with its interval of 95 %, by Wilson's score, which is right
// at 0 and at 100 % too.
func percent(of, n int) string {
	low, high := wilson(of, n)
	return fmt.Sprintf("%.1f (%.1f–%.1f)", 100*float64(of)/float64(n), 100*low, 100*high)
}

func wilson(of, n int) (low, high float64) {
	const z = 1.96 // of the normal distribution, for 95 %
	p, size := float64(of)/float64(n), float64(n)
	centre := (p + z*z/(2*size)) / (1 + z*z/size)
	half := z / (1 + z*z/size) * math.Sqrt(p*(1-p)/size+z*z/(4*size*size))
	return max(centre-half, 0), min(centre+half, 1)
}

// try is one knock from an address of its own.
type try struct {
	from  netip.Addr
	began time.Time
}

// tryAll has all ways knock so many times under the same flaws, side by side, and
// gives how many of each opened the port in time.
func (b *bench) tryAll(ways []*way, flaws testnet.Flaws, tries int) []int {
	worlds := map[*lossWorld]*lookout{}
	all := make([][]try, len(ways))
	for i, w := range ways {
		if worlds[w.at] == nil {
			of := flaws
			of.Seed += uint64(len(worlds)) << 32 // each line loses others
			w.at.line.Set(of)
			worlds[w.at] = w.at.watch()
		}
		all[i] = make([]try, tries)
		for n := range all[i] {
			all[i][n].from = w.at.fresh(n%2 == 1 && !w.only4)
		}
	}
	var group sync.WaitGroup
	var errs firstError
	for i, w := range ways {
		group.Go(func() {
			time.Sleep(time.Duration(i) * lossApart / time.Duration(len(ways))) // not all in one moment
			w.knockAll(all[i], &errs)
		})
	}
	group.Wait()
	time.Sleep(lossWithin + 2*lossLook)
	for at, l := range worlds {
		if err := l.end(); err != nil {
			b.Fatal(err)
		}
		at.forget()
	}
	if errs.err != nil {
		b.Fatal(errs.err)
	}
	if b.Failed() { // on a goroutine that could not end the run
		b.FailNow()
	}
	opened := make([]int, len(ways))
	for i, w := range ways {
		opened[i] = worlds[w.at].count(all[i])
	}
	return opened
}

// knockAll begins the tries of one way, one after the other.
func (w *way) knockAll(tries []try, errs *firstError) {
	var group sync.WaitGroup
	next := time.Now()
	for i := range tries {
		t := &tries[i]
		time.Sleep(time.Until(next))
		next = next.Add(lossApart)
		one := func() {
			t.began = time.Now()
			errs.note(w.knock(i, t.from, serverAddr(t.from.Is6())))
		}
		if w.serial {
			one()
			continue
		}
		group.Go(one)
	}
	group.Wait()
}

// firstError keeps the first of several goroutines' errors.
type firstError struct {
	mu  sync.Mutex
	err error
}

func (f *firstError) note(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		f.err = err
	}
}

// lookout looks again and again at whom a daemon lets in, past the line, so that the
// look itself suffers nothing.
type lookout struct {
	stop  chan struct{}
	ended chan error
	mu    sync.Mutex
	seen  map[netip.Addr]time.Time // when first
}

func (w *lossWorld) watch() *lookout {
	l := &lookout{stop: make(chan struct{}), ended: make(chan error, 1), seen: map[netip.Addr]time.Time{}}
	go func() { l.ended <- l.look(w) }()
	return l
}

// look ends after a last look when it is told to.
func (l *lookout) look(w *lossWorld) error {
	for last := false; ; {
		text, err := w.granted()
		l.note(text, time.Now())
		if err != nil || last {
			return err
		}
		select {
		case <-l.stop:
			last = true
		case <-time.After(lossLook):
		}
	}
}

// note takes the addresses out of what a tool printed.
func (l *lookout) note(text string, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for word := range strings.FieldsSeq(text) {
		// iptables prints networks.
		word, _, _ = strings.Cut(word, "/")
		if a, err := netip.ParseAddr(word); err == nil && l.seen[a].IsZero() {
			l.seen[a] = now
		}
	}
}

func (l *lookout) has(a netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.seen[a].IsZero()
}

func (l *lookout) end() error {
	close(l.stop)
	return <-l.ended
}

// count gives how many tries were let in in time. A look comes up to lossLook late.
func (l *lookout) count(tries []try) (opened int) {
	for _, t := range tries {
		if at := l.seen[t.from]; !at.IsZero() && at.Sub(t.began) <= lossWithin {
			opened++
		}
	}
	return opened
}
