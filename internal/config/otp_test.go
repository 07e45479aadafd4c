package config

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/sallyport/sallyport/internal/sequence"
)

func otpKnock(more ...string) string {
	return "[service.ssh]\nports = [\"22/tcp\"]\n[knock.front]\ntype = \"otp\"\nopens = [\"ssh\"]\nsecrets = \"/s\"\n" + strings.Join(more, "\n")
}

// TestLeaveOutIsRight: the line that a message gives to paste ends the fault, and
// leaves out no more than what is in use.
func TestLeaveOutIsRight(t *testing.T) {
	const head = "[daemon]\npublic = [\"21000/tcp\", \"30000-30009/tcp\", \"23000/udp\"]\n[service.a]\nports = [\"25000/tcp\", \"39990-40009/tcp\"]\nallow = [\"192.0.2.0/24\"]\n"
	_, err := Parse("f", []byte(head+otpKnock("leave_out = [\"22222/tcp\", \"21001/tcp\"]")))
	if err == nil {
		t.Fatal("taken")
	}
	line := regexp.MustCompile(`leave_out = \[.*\]`).FindString(err.Error())
	if want := `leave_out = ["21000-21001/tcp", "22222/tcp", "25000/tcp", "30000-30009/tcp", "39990-39999/tcp"]`; line != want {
		t.Errorf("%s, want %s", line, want)
	}
	c, err := Parse("f", []byte(head+otpKnock(line)))
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, p := range c.Knocks[0].Ports() {
		n += p.Count()
	}
	if n != 20000-2-1-1-10-10 {
		t.Errorf("%d ports are left", n)
	}
}

// TestRangesOfAPool: the users' line has room for so many, see TestLongestLine of the
// root package.
func TestRangesOfAPool(t *testing.T) {
	for gaps, taken := range map[int]bool{maxRanges - 1: true, maxRanges: false} {
		var out []string
		for i := range gaps {
			out = append(out, fmt.Sprintf("\"%d/tcp\"", 60001+20*i))
		}
		_, err := Parse("f", []byte(otpKnock("pool = [\"50000-65535/tcp\"]\nleave_out = ["+strings.Join(out, ", ")+"]")))
		if (err == nil) != taken || err != nil && !strings.Contains(err.Error(), "257 ranges") {
			t.Errorf("%d gaps: %v", gaps, err)
		}
	}
}

// A message is logged, and who reads a log must not learn the steps of a sequence.
func TestNoStepInAFault(t *testing.T) {
	_, err := Parse("f", []byte(otpKnock("[knock.plain]\ntype = \"sequence\"\nopens = [\"ssh\"]\nsequence = [\"31234/tcp\", \"8533/udp\", \"9877/tcp\"]")))
	var errs Errors
	if !errors.As(err, &errs) || len(errs) != 1 || strings.Contains(err.Error(), "31234") || !strings.Contains(err.Error(), "knock.plain") {
		t.Errorf("%v", err)
	}
}

func TestStrengthOfOTP(t *testing.T) {
	for name, c := range map[string]struct {
		more string
		bits float64
		want string
	}{
		"default":     {"", math.Log2(19999. * 19998 * 19997 * 19996 / 3), "knock.front: 5.3e+16 guesses (56 bits) for each person; one scan in random order opens it with probability 1.9e-17 (all ports)"},
		"any address": {"any_address = true", math.Log2(20000. * 19999 * 19998 * 19997 * 19996 / 3), "(70 bits)"},
		"6 digits":    {"digits = 6", math.Log2(1e6 / 3), "codes of 6 digits, 18.3 bits for each person, as three codes are good at a time; each address has 5 tries in 30s, which open it with probability 1.5e-05, and 1,000 addresses need about 33 minutes"},
		"8 digits":    {"digits = 8", math.Log2(1e8 / 3), "25.0 bits for each person, as three codes are good at a time; each address has 5 tries in 30s, which open it with probability 1.5e-07, and 1,000 addresses need about 56 hours"},
	} {
		cfg, err := Parse("f", []byte(otpKnock(c.more)))
		if err != nil {
			t.Fatal(err)
		}
		s := StrengthOf(cfg, &cfg.Knocks[0], nil)
		if math.Abs(s.Bits-c.bits) > 1e-9 || !strings.Contains(s.String(), c.want) {
			t.Errorf("%s: %v bits, want %v\n%s", name, s.Bits, c.bits, s)
		}
	}
}

// TestScanOddsOfOTP against scans of a small pool: three sequences that are good, and
// a scan of all its ports, or of some.
func TestScanOddsOfOTP(t *testing.T) {
	const size, steps, scans = 12, 3, 300_000
	rng := rand.New(rand.NewPCG(1, 2))
	for _, scanned := range []int{size, 7} {
		opened := 0
		for range scans {
			var good [3][]int
			for i := range good {
				good[i] = rng.Perm(size)[:steps]
			}
			scan := rng.Perm(size)[:scanned]
			if slices.ContainsFunc(good[:], func(seq []int) bool {
				at := slices.Index(scan, seq[0])
				return at >= 0 && at+steps <= scanned && slices.Equal(scan[at:at+steps], seq)
			}) {
				opened++
			}
		}
		got, want := otpScanOdds(size, steps, scanned), float64(opened)/scans
		if math.Abs(got/want-1) > 0.05 {
			t.Errorf("%d of %d ports: %v, of %d scans %v opened it", scanned, size, got, scans, want)
		}
	}
}

func TestLintOTP(t *testing.T) {
	listening := []PortRange{{sequence.TCP, 20100, 20100}, {sequence.UDP, 7000, 7000}, {sequence.TCP, 7100, 7100}, {sequence.TCP, 22, 22}}
	for name, c := range map[string]struct {
		more string
		want []string
	}{
		"default":      {`leave_out = ["20100/tcp"]`, nil},
		"listening":    {`leave_out = ["30000/tcp"]`, []string{`leave_out = ["20100/tcp", "30000/tcp"]`}},
		"codes":        {"digits = 6\nbase = \"8000/tcp\"", []string{"leave digits out"}},
		"in use":       {"digits = 6", []string{"leave digits out", "take another base"}},
		"not near it":  {"digits = 6\nbase = \"7200/tcp\"", []string{"leave digits out"}},
		"the other of": {"digits = 6\nbase = \"7000/udp\"", []string{"leave digits out", "take another base"}},
	} {
		cfg, err := Parse("f", []byte(otpKnock(c.more)))
		if err != nil {
			t.Fatal(err)
		}
		warnings := Lint(cfg, Facts{Listening: listening})
		if len(warnings) != len(c.want) {
			t.Errorf("%s: %v", name, warnings)
			continue
		}
		for i, w := range warnings {
			if !strings.Contains(w.Advice, c.want[i]) {
				t.Errorf("%s: %v, want %q", name, w, c.want[i])
			}
			// What a forger can do to a user is said (promise 4).
			if strings.HasPrefix(c.want[i], "leave digits") && !strings.Contains(w.Text, "forges a user's address") {
				t.Errorf("%s: %v", name, w)
			}
		}
	}
}
