package knockd

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sallyport/sallyport/internal/sequence"
)

func tcp(ports ...uint16) (steps []Step) {
	for _, p := range ports {
		steps = append(steps, Step{sequence.TCP, p})
	}
	return steps
}

// TestSpend goes through files of one-time sequences to their end.
func TestSpend(t *testing.T) {
	for _, test := range []struct {
		name, text string
		steps      [][]Step // the current one, and after each knock
		after      []string
	}{
		{"as the manual wants it", " 1,2\n 3,4\n", [][]Step{tcp(1, 2), tcp(3, 4), nil}, []string{"#1,2\n 3,4\n", "#1,2\n#3,4\n"}},
		{"digits are lost", "11,2\n33", [][]Step{tcp(11, 2), tcp(33), nil}, []string{"#1,2\n33", "#1,2\n#3"}},
		// knockd compares as many bytes as there are steps, and so would mark the first line twice.
		{"alike in the first half", " 1,2,3,4\n 1,2,3,5\n 1,2,3,4:udp\n", [][]Step{tcp(1, 2, 3, 4), tcp(1, 2, 3, 5), append(tcp(1, 2, 3), Step{sequence.UDP, 4}), nil}, []string{"#1,2,3,4\n 1,2,3,5\n 1,2,3,4:udp\n", "#1,2,3,4\n#1,2,3,5\n 1,2,3,4:udp\n", "#1,2,3,4\n#1,2,3,5\n#1,2,3,4:udp\n"}},
		// Nor is a line before it marked that is no sequence, and so is no comment either.
		{"junk before", "1:x\n65536\n# 9\n\n 7\r\n", [][]Step{tcp(7), nil}, []string{"1:x\n65536\n# 9\n\n#7\r\n"}},
		{"twice the same", " 5\n 6\n 5\n", [][]Step{tcp(5), tcp(6), nil}, []string{"#5\n 6\n#5\n", "#5\n#6\n#5\n"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "list")
			if err := os.WriteFile(path, []byte(test.text), 0o600); err != nil {
				t.Fatal(err)
			}
			link := path + ".link"
			if err := os.Symlink(path, link); err != nil {
				t.Fatal(err)
			}
			f, err := Parse("knockd.conf", []byte("[a]\none_time_sequences = "+link))
			if err != nil {
				t.Fatal(err)
			}
			d := &f.Doors[0]
			for i, want := range test.steps {
				if !slices.Equal(d.Steps, want) {
					t.Fatalf("after %d knocks: %v, want %v", i, d.Steps, want)
				}
				if i == len(test.after) {
					break
				}
				if err := spend(d); err != nil {
					t.Fatal(err)
				}
				if text, _ := os.ReadFile(path); string(text) != test.after[i] {
					t.Fatalf("after %d knocks the file has %q", i+1, text)
				}
			}
			if _, err := Parse("knockd.conf", []byte("[a]\none_time_sequences = "+link)); err == nil || !strings.Contains(err.Error(), "no sequence is left") {
				t.Errorf("with nothing left: %v", err)
			}
			if steps := f.Config(Settings{}).Knocks[0]; !steps.OneTime || len(steps.Sequence) != 0 {
				t.Errorf("the disabled door is %+v", steps)
			}
		})
	}
}

// TestSpentElsewhere: of two daemons with one file a sequence counts at the first
// alone, and the other one has the next sequence then.
func TestSpentElsewhere(t *testing.T) {
	path := filepath.Join(t.TempDir(), "list")
	if err := os.WriteFile(path, []byte(" 1,2\n 3,4\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	a, b := Door{OneTime: path, Steps: tcp(1, 2)}, Door{OneTime: path, Steps: tcp(1, 2)}
	if err := spend(&a); err != nil {
		t.Fatal(err)
	}
	for _, want := range [][]Step{tcp(3, 4), nil} {
		if err := spend(&b); !errors.Is(err, ErrSpentElsewhere) || !slices.Equal(b.Steps, want) {
			t.Fatalf("the second daemon: %v, %v; want %v", b.Steps, err, want)
		}
		if text, _ := os.ReadFile(path); len(want) > 0 && string(text) != "#1,2\n 3,4\n" {
			t.Fatalf("the file has %q", text)
		}
		spend(&a)
	}
}

// TestSpendAtOnce: of two daemons that hear the same knock one alone counts it.
func TestSpendAtOnce(t *testing.T) {
	for range 100 {
		path := filepath.Join(t.TempDir(), "list")
		if err := os.WriteFile(path, []byte(" 1,2\n 3,4\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		errs := make(chan error)
		for range 2 {
			go func() { errs <- spend(&Door{OneTime: path, Steps: tcp(1, 2)}) }()
		}
		if a, b := <-errs, <-errs; (a == nil) == (b == nil) {
			t.Fatalf("%v, %v", a, b)
		}
	}
}

// spend uses the current sequence of a door up and makes the next one the current.
func spend(d *Door) error {
	next, err := d.Spend(d.sequence(d.Steps))
	d.Steps = nil
	for _, s := range next {
		d.Steps = append(d.Steps, Step{s.Proto, s.Port})
	}
	return err
}

// TestSpendTroubles: an edited file is not marked in a wrong place, one that is gone is
// an error, and one that others can write to is warned of.
func TestSpendTroubles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "list")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(" 1,2\n")
	d := Door{OneTime: path, Steps: tcp(8, 9)}
	if err := spend(&d); !errors.Is(err, ErrSpentElsewhere) || !slices.Equal(d.Steps, tcp(1, 2)) {
		t.Errorf("%v, %v", d.Steps, err)
	}
	if text, _ := os.ReadFile(path); string(text) != " 1,2\n" {
		t.Errorf("the file has %q", text)
	}
	// Somebody put a line before the current one, and knockd's comparison takes it for that.
	write(" 1,2,3,5\r\n\n 1,2,3,4\n")
	d.Steps = tcp(1, 2, 3, 4)
	if err := spend(&d); err != nil || !slices.Equal(d.Steps, tcp(1, 2, 3, 5)) {
		t.Errorf("%v, %v", d.Steps, err)
	}
	if text, _ := os.ReadFile(path); string(text) != " 1,2,3,5\r\n\n#1,2,3,4\n" {
		t.Errorf("the file has %q", text)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	conf := "[a]\nsequence=5,900,77\nOne_Time_Sequences = " + path
	if got := warnings(t, conf); !slices.ContainsFunc(got, func(w string) bool { return strings.Contains(w, "3: others on this machine can write") }) {
		t.Errorf("%q", got)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	d.Steps = tcp(1, 2)
	if err := spend(&d); err == nil {
		t.Errorf("a file that is gone gives %v", d.Steps)
	}
}

// TestOthersWrite: who can write to the file runs commands as root, which both check
// and the daemon say. A pipe's mode says nothing.
func TestOthersWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "knockd.conf")
	if err := os.WriteFile(path, []byte("[a]\nsequence = 7000,3000,55000\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for mode, want := range map[os.FileMode]bool{0o600: false, 0o644: false, 0o755: false, 0o660: true, 0o602: true, 0o666: true} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		f, err := Load(path)
		if err != nil {
			t.Fatal(err)
		}
		warned := f.Warnings[0].Line == 1 && strings.Contains(f.Warnings[0].Text, "runs commands as root")
		if f.OthersWrite != want || warned != want {
			t.Errorf("%04o: %v, warned of %v; want %v", mode, f.OthersWrite, warned, want)
		}
	}
	if othersWrite(os.ModeNamedPipe | 0o666) {
		t.Error("a pipe is taken for a file that others can write to")
	}
}
