package main

import (
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/testnet"
)

func TestMain(m *testing.M) { os.Exit(testnet.Main(m)) }

// A process whose autogroup file is empty is in the root one, as all are that an init
// started without setsid(2): there is no session to prefer, and the kernel says EINVAL.
func TestPreferSessionOfTheRootGroup(t *testing.T) {
	testnet.RequireRoot(t)
	files, _ := filepath.Glob("/proc/[0-9]*/autogroup")
	for _, f := range files {
		if group, err := os.ReadFile(f); err != nil || len(group) > 0 {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(f)))
		if err := preferSession(pid); err != nil {
			t.Error(err)
		}
		return
	}
	t.Skip("not here: no /proc/PID/autogroup is empty")
}

// The table's command works, a line without flaws costs no knock, and three copies of
// a request come through where one does not.
func TestLossTable(t *testing.T) {
	testnet.RequireRoot(t)
	b := &bench{ctx: t.Context(), program: testnet.Binary(t)}
	b.Run(func() {
		defer b.CleanUp()
		ours := b.ourWays()
		theirs := b.knockdWay("knockd", "-d", "20")
		theirs.ready()
		all := append(ours[:len(ours):len(ours)], theirs)
		const few = 20
		for i, opened := range b.tryAll(all, testnet.Flaws{}, few) {
			if opened != few {
				t.Errorf("%s: %d of %d opened the port over a line without flaws", all[i].name, opened, few)
			}
		}
		// 80 % and 99.2 % are expected: the intervals are five standard deviations from
		// each other. 120 tries take 6 s.
		const many = 120
		opened := b.tryAll(ours[4:], testnet.Flaws{Loss: .2, Seed: lossSeed}, many)
		_, once := wilson(opened[0], many)
		if three, _ := wilson(opened[1], many); three <= once {
			t.Errorf("over a line that loses 20 %%, one datagram opened %d times of %d, three copies %d times", opened[0], many, opened[1])
		}
	})
	if b.Failure != "" {
		t.Fatal(b.Failure)
	}
}

func TestWilson(t *testing.T) {
	for _, c := range []struct {
		of, n     int
		low, high float64 // by R: prop.test(of, n, correct = FALSE)
	}{
		{0, 100, 0, .036995}, {100, 100, .963005, 1}, {50, 100, .403832, .596168}, {800, 1000, .774093, .823634},
	} {
		low, high := wilson(c.of, c.n)
		if math.Abs(low-c.low) > 1e-4 || math.Abs(high-c.high) > 1e-4 {
			t.Errorf("%d of %d: %.6f to %.6f, want %.6f to %.6f", c.of, c.n, low, high, c.low, c.high)
		}
	}
}

// A grant that comes too late is none, and what stands beside an address is not one.
func TestLookoutCounts(t *testing.T) {
	began := time.Unix(1000, 0)
	l := &lookout{seen: map[netip.Addr]time.Time{}}
	l.note("elements = { 198.18.0.1 . tcp . 22 timeout 10s expires 9s,\n -A FWKNOP_INPUT -s 198.18.0.2/32 -j ACCEPT", began.Add(time.Second))
	l.note("2001:db8:1::3 198.18.0.1", began.Add(lossWithin+1))
	var tries []try
	for _, from := range []string{"198.18.0.1", "198.18.0.2", "2001:db8:1::3", "198.18.0.4"} {
		tries = append(tries, try{netip.MustParseAddr(from), began})
	}
	if got := l.count(tries); got != 2 || len(l.seen) != 3 {
		t.Errorf("%d opened in time, of %v; want 2 of 3", got, l.seen)
	}
}
