package onetime

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/sallyport/sallyport/internal/sequence"
)

func file(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "list")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func steps(t *testing.T, text string) []sequence.Step {
	t.Helper()
	list, err := parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// TestSpend: a made line uses up those before it, in place.
func TestSpend(t *testing.T) {
	const text = "# mine\n7000/tcp 8500/udp\n\n #not\n 4000/tcp 300/udp\r\njunk\nicmp 37/icmp 9000/sctp\n5000/udp 6000/tcp"
	for _, test := range []struct {
		name, made, after string
		left              int
		err               error
	}{
		{"the first", "7000/tcp 8500/udp", "# mine\n#000/tcp 8500/udp\n\n #not\n 4000/tcp 300/udp\r\njunk\nicmp 37/icmp 9000/sctp\n5000/udp 6000/tcp", 3, nil},
		{"a later one", "icmp 37/icmp 9000/sctp", "# mine\n#000/tcp 8500/udp\n\n #not\n#4000/tcp 300/udp\r\njunk\n#cmp 37/icmp 9000/sctp\n5000/udp 6000/tcp", 1, nil},
		{"the last", "5000/udp 6000/tcp", "# mine\n#000/tcp 8500/udp\n\n #not\n#4000/tcp 300/udp\r\njunk\n#cmp 37/icmp 9000/sctp\n#000/udp 6000/tcp", 0, nil},
		{"none", "1/tcp", text, 4, ErrSpentElsewhere},
		{"half of one", "7000/tcp", text, 4, ErrSpentElsewhere},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := file(t, text)
			rest, err := Spend(path, steps(t, test.made))
			if !errors.Is(err, test.err) || len(rest) != test.left {
				t.Errorf("%d left, %v; want %d, %v", len(rest), err, test.left, test.err)
			}
			if got, _ := os.ReadFile(path); string(got) != test.after {
				t.Errorf("the file has\n%q, want\n%q", got, test.after)
			}
			if rest, err := Spend(path, steps(t, test.made)); !errors.Is(err, ErrSpentElsewhere) || len(rest) != test.left {
				t.Errorf("once more: %d left, %v", len(rest), err)
			}
		})
	}
}

// TestTakeAtOnce: programs that take at the same time never get the same line.
func TestTakeAtOnce(t *testing.T) {
	text, err := Random(40, 4)
	if err != nil {
		t.Fatal(err)
	}
	path := file(t, text)
	var mu sync.Mutex
	var wg sync.WaitGroup
	taken := map[string]bool{}
	for range 8 {
		wg.Go(func() {
			for range 5 {
				s, _, err := Take(path)
				mu.Lock()
				if err != nil || taken[places(s)] {
					t.Errorf("%v, %v", s, err)
				}
				taken[places(s)] = true
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if _, _, err := Take(path); !errors.Is(err, ErrUsedUp) {
		t.Errorf("of a used up list: %v", err)
	}
	if _, err := First(path); !errors.Is(err, ErrUsedUp) {
		t.Errorf("of a used up list: %v", err)
	}
}

// TestFaults are told with their line, and without what stands there.
func TestFaults(t *testing.T) {
	const tail = "\n1/tcp 400/udp\n"
	for text, want := range map[string]Fault{
		"7000/tcp 70000/tcp" + tail:                                                   {1, "step 2"},
		"7000/tcp,8500/udp" + tail:                                                    {1, "step 1"},
		"7000/tcp 1/tcp #used" + tail:                                                 {1, "step 3"},
		"\ufeff7000/tcp 8500/udp" + tail:                                              {1, "step 1"},
		"\x00" + tail:                                                                 {1, "step 1"},
		strings.Repeat("7000/tcp ", 33) + tail:                                        {1, "33 steps"},
		"7000/tcp 8500/udp\n7000/tcp" + tail:                                          {1, "all of line 2"},
		"7000/tcp 8500/udp\n# x\n7000/tcp 8500/udp" + tail:                            {3, "line 1"},
		"37/icmp 8500/udp\nicmp 8500/udp" + tail:                                      {2, "line 1"},
		"7000/tcp:any 8500/udp\n7000/tcp 8500/udp 9/tcp" + tail:                       {2, "all of line 1"},
		"#000/tcp 8500/udp\n7000/tcp  8500/udp" + tail:                                {2, "line 1 once more"},
		"#7000/tcp 8500/udp\n" + strings.Repeat("\n", 2) + "7000/tcp 8500/udp" + tail: {4, "line 1 once more"},
	} {
		good, bad := Sequences(LinesOf([]byte(text)))
		if len(bad) != 1 || bad[0].Line != want.Line || !strings.Contains(bad[0].Text, want.Text) {
			t.Errorf("%q: %v, want %v", text, bad, want)
		}
		if len(good) == 0 {
			t.Errorf("%q: the other lines are lost", text)
		}
		for _, b := range bad {
			if strings.Contains(b.Text, "8500/udp ") && !strings.Contains(b.Text, "such as") || strings.Contains(b.Text, "70000") {
				t.Errorf("%q: the fault shows a step: %s", text, b.Text)
			}
		}
	}
	if good, bad := Sequences(LinesOf([]byte("7000/tcp 8500/udp\n7000/tcp 8600/udp\n8500/udp 7000/tcp\n"))); len(good) != 3 || len(bad) != 0 {
		t.Errorf("a shared first step is none: %v", bad)
	}
}

// TestTroubles of files.
func TestTroubles(t *testing.T) {
	dir := t.TempDir()
	if _, err := Open(filepath.Join(dir, "none")); err == nil || !strings.Contains(err.Error(), "can't be opened") {
		t.Error(err)
	}
	if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), "no ordinary file") {
		t.Error(err)
	}
	if _, _, err := Take(file(t, strings.Repeat("#\n", MaxSize/2)+"#")); err == nil || !strings.Contains(err.Error(), "split it") {
		t.Error(err)
	}
	path := file(t, "7000/tcp\n")
	f, err := Open(path)
	if err != nil || f.Lock() != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, _, err := Take(path); err == nil || !strings.Contains(err.Error(), "can't be locked") {
		t.Errorf("while another has the lock: %v", err)
	}
}

func TestRandom(t *testing.T) {
	for _, test := range []struct{ n, steps int }{{1, 3}, {300, 4}, {5, sequence.MaxSteps}} {
		text, err := Random(test.n, test.steps)
		if err != nil {
			t.Fatal(err)
		}
		good, bad := Sequences(LinesOf([]byte(text)))
		if len(good) != test.n || len(bad) > 0 {
			t.Errorf("%d of %d lines, faults %v", len(good), test.n, bad)
		}
		if slices.ContainsFunc(good, func(s Sequence) bool { return len(s.Steps) != test.steps || sequence.ScanOpens(s.Steps) }) {
			t.Errorf("a line is wrong:\n%s", text)
		}
	}
	for _, test := range []struct{ n, steps int }{{0, 4}, {-1, 4}, {MaxLines + 1, 4}, {1, 2}, {1, 33}, {MaxLines, 32}} {
		if text, err := Random(test.n, test.steps); err == nil || text != "" {
			t.Errorf("%v: %v", test, err)
		}
	}
}
