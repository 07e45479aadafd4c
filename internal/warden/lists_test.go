//go:build linux

package warden

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sallyport/sallyport/internal/border"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/sequence"
)

const listOfFour = "4001/tcp 4100/udp\n4002/tcp 4200/udp\n4003/tcp 4300/udp\n4004/tcp 4400/udp\n"

// listWarden is a warden of one knock that takes two lines at once, and what it says.
func listWarden(t *testing.T) (w *warden, list string, said *strings.Builder) {
	t.Helper()
	list = filepath.Join(t.TempDir(), "list")
	if err := os.WriteFile(list, []byte(listOfFour), 0o600); err != nil {
		t.Fatal(err)
	}
	text := []byte("[service.ssh]\nports = [\"22/tcp\"]\n[knock.front]\ntype = \"sequence\"\nopens = [\"ssh\"]\nlook_ahead = 2\nlist = \"" + list + "\"\n")
	cfg, err := config.Parse("sallyport.toml", text)
	if err == nil {
		_, err = Lists(cfg, "sallyport.toml", text, true)
	}
	if err != nil {
		t.Fatal(err)
	}
	said = &strings.Builder{}
	log := slog.New(slog.NewTextHandler(said, nil))
	w = &warden{log: log, cfg: cfg, gate: newGate(nothing{}, false, log), ring: &keyring{log: log}, unspent: map[string][]sequence.Step{}}
	w.gate.use(cfg, 1, make([]border.Keys, 1))
	return w, list, said
}

// TestLinesAreSpent: what a line was made for is done only when it was marked by this
// daemon, and the next config has the lines behind it.
func TestLinesAreSpent(t *testing.T) {
	for _, test := range []struct {
		name   string
		ahead  uint8
		before string // what happens to the file first; "-": it is gone
		marked bool
		next   string // the first line of the next config; "": none; "=": no next config
		file   string
	}{
		{"the first", 0, "", true, "4002", "#001/tcp 4100/udp\n4002/tcp 4200/udp\n4003/tcp 4300/udp\n4004/tcp 4400/udp\n"},
		{"one ahead", 1, "", true, "4003", "#001/tcp 4100/udp\n#002/tcp 4200/udp\n4003/tcp 4300/udp\n4004/tcp 4400/udp\n"},
		{"none of those that are taken", 2, "", false, "=", listOfFour},
		{"another daemon's", 0, "#" + listOfFour[1:], false, "4002", "#" + listOfFour[1:]},
		{"the last", 0, "4001/tcp 4100/udp\n", true, "", "#001/tcp 4100/udp\n"},
		{"no file", 0, "-", false, "", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			w, list, said := listWarden(t)
			switch test.before {
			case "":
			case "-":
				os.Remove(list)
			default:
				os.WriteFile(list, []byte(test.before), 0o600)
			}
			w.gate.marked[0] = test.ahead == 0 && !test.marked // by the line before, under the same generation
			if err := w.spent(&border.Spent{Generation: 1, Ahead: test.ahead}); err != nil {
				t.Fatal(err)
			}
			if w.gate.marked[0] != test.marked {
				t.Errorf("marked %v, want %v\n%s", w.gate.marked[0], test.marked, said)
			}
			if text, _ := os.ReadFile(list); string(text) != test.file {
				t.Errorf("the file has %q", text)
			}
			switch {
			case (w.next == nil) != (test.next == "="):
				t.Fatalf("the next config is %v", w.next)
			case w.next == nil:
			case len(w.next.Knocks[0].Sequence) == 0:
				if test.next != "" {
					t.Error("the next config has no line")
				}
			case !strings.HasPrefix(w.next.Knocks[0].Sequence[0].String(), test.next+"/") || test.next == "":
				t.Errorf("the next config has %v", w.next.Knocks[0].Lines())
			}
			if strings.Contains(said.String(), "4001") {
				t.Errorf("a step is in the log: %s", said)
			}
		})
	}
}

// A line that could not be marked when it was made is marked before any line of its file
// is good again.
func TestALineThatCouldNotBeMarkedIsNotGoodAgain(t *testing.T) {
	w, list, said := listWarden(t)
	w.files = newFiles()
	os.Rename(list, list+".away")
	w.spent(&border.Spent{Generation: 1, Ahead: 1})
	for range 2 {
		if w.cfg, w.next = w.next, nil; w.cfg == nil || len(w.cfg.Knocks[0].Sequence) > 0 {
			t.Fatalf("lines are good that could not be marked: %v\n%s", w.cfg, said)
		}
		w.next = w.cfg
		w.refreshLists()
	}
	os.Rename(list+".away", list)
	w.refreshLists()
	if text, _ := os.ReadFile(list); !strings.HasPrefix(string(text), "#001/tcp 4100/udp\n#002/tcp 4200/udp\n4003/tcp") {
		t.Errorf("the file has %q", text)
	}
	if got := w.next.Knocks[0].Lines(); len(got) != 2 || !strings.HasPrefix(got[0][0].String(), "4003/") {
		t.Errorf("the next config has %v", got)
	}
}

// TestListsAreSpentWithinBounds: an engine that strangers took over can't burn a list,
// nor fill a disk with lines about it.
func TestListsAreSpentWithinBounds(t *testing.T) {
	w, _, said := listWarden(t)
	for range 1000 * spendBurst {
		w.spent(&border.Spent{Generation: 1})
	}
	if n := strings.Count(said.String(), "faster than anybody knocks"); n != 1 {
		t.Errorf("it says %d times that they go too fast", n)
	}
	if err := (&warden{cfg: &config.Config{}, gate: w.gate}).spent(&border.Spent{Generation: 1}); err != border.ErrMessage {
		t.Errorf("without any list: %v", err)
	}
}
