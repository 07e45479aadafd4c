package engine_test

import (
	"slices"
	"testing"

	"github.com/sallyport/sallyport/internal/border"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/sequence"
)

// lines of a list, of which the engine is given a few at once.
var listLines = [][]string{
	{"27211/tcp", "28533/udp", "27877/tcp"},
	{"21011/tcp", "22033/udp", "20877/tcp"},
	{"11011/tcp", "12033/udp", "10877/tcp"},
	{"11011/tcp", "12333/udp", "10277/tcp"}, // begins as the one before
	{"5011/tcp", "6033/udp", "4877/tcp"},
}

func withLines(c *config.Config, from, to int) {
	k := &c.Knocks[3]
	k.List, k.OneTime, k.LookAhead = "/list", true, 8
	var lines [][]sequence.Step
	for _, line := range listLines[from:to] {
		var steps []sequence.Step
		for _, text := range line {
			s, err := sequence.ParseStep(text)
			if err != nil {
				panic(err)
			}
			steps = append(steps, s)
		}
		lines = append(lines, steps)
	}
	k.SetLines(lines)
}

// A line uses up those before it, at once and until the warden gives the next ones;
// those behind it are good meanwhile.
func TestALineUsesUpThoseBeforeIt(t *testing.T) {
	bothFamilies(t, func(t *testing.T, user *sender) {
		var cfg config.Config
		e, r := actionEngine(t, user.src.Is6(), func(c *config.Config) { withLines(c, 0, 4); cfg = *c })
		try := func(when string, g uint32, line int, ahead int) {
			t.Helper()
			var want []border.Message
			if ahead >= 0 {
				want = []border.Message{&border.Spent{Generation: g, Knock: 3, Ahead: uint8(ahead)}}
			}
			user.src = user.src.Next()
			got := r.said(e, user, listLines[line]...)
			if len(got) > 1 {
				if run, is := got[1].(*border.Run); !is || run.Addr != user.src {
					t.Errorf("%s, line %d: asked %+v", when, line, got)
				}
				got = got[:1]
			}
			if d := diff(want, got); d != "" {
				t.Errorf("%s, line %d: %s", when, line, d)
			}
		}
		try("first", generation, 2, 2)
		for line := range 3 {
			try("used up", generation, line, -1)
		}
		try("behind it", generation, 3, 3)
		try("behind it, again", generation, 3, -1)

		// The next generation was made when the warden knew of line 2 alone.
		cfg.Knocks = slices.Clone(cfg.Knocks)
		withLines(&cfg, 3, 5)
		if err := e.Use(generation+1, &border.Generation{Config: cfg, Keys: make([]border.Keys, len(cfg.Knocks))}, [8]byte{1}); err != nil {
			t.Fatal(err)
		}
		try("in the next generation", generation+1, 3, -1)
		try("in the next generation", generation+1, 4, 1)
	})
}

// Who is in the middle of a line goes on when those before it have gone.
func TestALineGoesOnWhenTheListMovesOn(t *testing.T) {
	bothFamilies(t, func(t *testing.T, user *sender) {
		var cfg config.Config
		e, r := actionEngine(t, user.src.Is6(), func(c *config.Config) { withLines(c, 0, 4); cfg = *c })
		r.said(e, user, listLines[3][:2]...)
		cfg.Knocks = slices.Clone(cfg.Knocks)
		withLines(&cfg, 2, 5)
		if err := e.Use(generation+1, &border.Generation{Config: cfg, Keys: make([]border.Keys, len(cfg.Knocks))}, [8]byte{1}); err != nil {
			t.Fatal(err)
		}
		want := []border.Message{
			&border.Spent{Generation: generation + 1, Knock: 3, Ahead: 1},
			&border.Run{ID: 1, Generation: generation + 1, Rule: 5, Addr: user.src},
		}
		if d := diff(want, r.said(e, user, listLines[3][2])); d != "" {
			t.Error(d)
		}
	})
}
