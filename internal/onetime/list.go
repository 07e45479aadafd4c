package onetime

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/sallyport/sallyport/internal/sequence"
)

// Sequence is an unused line in the config's spelling: steps with blanks between.
type Sequence struct {
	Line
	Steps []sequence.Step // 1 to sequence.MaxSteps
}

// Fault is what is wrong with a line. It shows nothing of the line, which is a secret.
type Fault struct {
	Line int
	Text string
}

// Sequences reads the unused lines. A line that gives none is a fault, and so is one
// that somebody may know from another line: the beginning of it, or it once more.
func Sequences(lines []Line) (good []Sequence, bad []Fault) {
	for _, l := range lines {
		if l.Used() {
			continue
		}
		steps, err := parse(l.Text)
		if err != nil {
			bad = append(bad, Fault{l.Number, err.Error()})
			continue
		}
		good = append(good, Sequence{l, steps})
	}
	bad = append(bad, repeated(lines, good)...)
	bad = append(bad, beginnings(good)...)
	slices.SortStableFunc(bad, func(a, b Fault) int { return a.Line - b.Line })
	return good, bad
}

func parse(text string) ([]sequence.Step, error) {
	words := strings.Fields(text)
	if len(words) > sequence.MaxSteps {
		return nil, fmt.Errorf("it has %d steps; a sequence can have %d", len(words), sequence.MaxSteps)
	}
	steps := make([]sequence.Step, len(words))
	for i, word := range words {
		step, err := sequence.ParseStep(word)
		if err != nil { // which would show the step
			return nil, fmt.Errorf("step %d is none; write steps such as 7000/tcp 8500/udp icmp, with blanks between, and a # before what is no sequence", i+1)
		}
		steps[i] = step
	}
	return steps, nil
}

// repeated finds unused lines that are a used one once more, as when two lists were
// joined: who saw the first can make the second. The first byte of a used one is lost.
func repeated(lines []Line, good []Sequence) (bad []Fault) {
	used := map[string]int{}
	for _, l := range lines {
		if l.Used() && len(l.Text) > 1 {
			used[joined(l.Text[1:])] = l.Number
		}
	}
	for _, s := range good {
		n := used[joined(s.Text)]
		if n == 0 {
			n = used[joined(s.Text[1:])]
		}
		if n > 0 {
			bad = append(bad, Fault{s.Number, fmt.Sprintf("it is line %d once more, which was used, but perhaps for its first digit; delete it", n)})
		}
	}
	return bad
}

func joined(text string) string { return strings.Join(strings.Fields(text), " ") }

// beginnings finds lines that another line begins with, or is: who makes the longer
// one makes the shorter one too, and who saw it can repeat that. Flags and the sizes of
// pings are left out of it, because a packet can be both.
func beginnings(good []Sequence) (bad []Fault) {
	whole := map[string]int{} // by all steps: the line
	for _, s := range good {
		key := places(s.Steps)
		if n := whole[key]; n > 0 {
			bad = append(bad, Fault{s.Number, fmt.Sprintf("it has the ports of line %d; delete one of them", n)})
			continue
		}
		whole[key] = s.Number
	}
	for _, s := range good {
		for n := 1; n < len(s.Steps); n++ {
			if short := whole[places(s.Steps[:n])]; short > 0 {
				bad = append(bad, Fault{s.Number, fmt.Sprintf("it begins with all of line %d, so that whoever makes it makes that one too; change one of them", short)})
			}
		}
	}
	return bad
}

func places(steps []sequence.Step) string {
	key := make([]byte, 0, 3*len(steps))
	for _, s := range steps {
		if s.Proto == sequence.ICMP {
			s.Port = 0
		}
		key = append(key, byte(s.Proto), byte(s.Port>>8), byte(s.Port))
	}
	return string(key)
}

// Spend marks the line with these steps as used, and the unused ones before it: they
// were lost on the way, where somebody may have read them. It gives the lines that are
// left. A line that is not there unused is ErrSpentElsewhere, together with those that
// are: the knock that it was made by must not count.
func Spend(path string, used []sequence.Step) (rest []Sequence, err error) {
	f, good, err := locked(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	made := slices.IndexFunc(good, func(s Sequence) bool { return slices.Equal(s.Steps, used) })
	if made < 0 {
		return good, ErrSpentElsewhere
	}
	if err := f.mark(good[:made+1]); err != nil {
		return nil, err
	}
	return good[made+1:], nil
}

func (f *File) mark(list []Sequence) error {
	lines := make([]Line, len(list))
	for i, s := range list {
		lines[i] = s.Line
	}
	return f.Mark(lines...)
}

// locked opens a file and reads its sequences; the lock lasts until it is closed.
func locked(path string) (*File, []Sequence, error) {
	f, err := Open(path)
	if err != nil {
		return nil, nil, err
	}
	var lines []Line
	if err = f.Lock(); err == nil {
		lines, err = f.Lines()
	}
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	good, _ := Sequences(lines)
	return f, good, nil
}

// ErrUsedUp says that no line is left.
var ErrUsedUp = errors.New("has no unused line left: make a new list with 'sallyport keygen --otp-list', and take it to both sides by a safe way")

// Take marks the first unused line as used and gives it: it is the caller's alone, and
// what becomes of it does not bring it back. left is how many there are behind it.
func Take(path string) (steps []sequence.Step, left int, err error) {
	f, good, err := locked(path)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	if len(good) == 0 {
		return nil, 0, ErrUsedUp
	}
	if err := f.mark(good[:1]); err != nil {
		return nil, 0, err
	}
	return good[0].Steps, len(good) - 1, nil
}

// First is Take without the mark, for who only wants to look.
func First(path string) ([]sequence.Step, error) {
	f, good, err := locked(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if len(good) == 0 {
		return nil, ErrUsedUp
	}
	return good[0].Steps, nil
}

// MaxLines is the longest list that Random makes.
const MaxLines = 10000

// Random makes a file of n sequences, 1 to MaxLines, of so many steps each
// (sequence.MinRandom to sequence.MaxSteps).
func Random(n, steps int) (string, error) {
	if n < 1 || n > MaxLines {
		return "", fmt.Errorf("a list of %d sequences can't be made; it must have 1 to %d", n, MaxLines)
	}
	var b strings.Builder
	b.WriteString("# Sequences that are good for one knock each; a # at the beginning says used.\n")
	for seen := map[string]bool{}; len(seen) < n; {
		s, err := sequence.Random(steps)
		if err != nil {
			return "", err
		}
		// Of equal length, only equal ones begin with each other.
		if key := places(s); !seen[key] {
			seen[key] = true
			writeLine(&b, s)
		}
	}
	if b.Len() > MaxSize {
		return "", fmt.Errorf("a list of %d sequences of %d steps has more than %d bytes; make a shorter one", n, steps, MaxSize)
	}
	return b.String(), nil
}

func writeLine(b *strings.Builder, steps []sequence.Step) {
	for i, s := range steps {
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(s.String())
	}
	b.WriteByte('\n')
}
