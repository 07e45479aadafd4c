package knockd

import (
	"fmt"
	"os"
	"slices"

	"github.com/sallyport/sallyport/internal/onetime"
	"github.com/sallyport/sallyport/internal/sequence"
)

// line is a line of a file of one-time sequences that holds a usable one.
type line struct {
	onetime.Line
	steps []Step
}

// ErrSpentElsewhere says that a one-time sequence is no unused line of its file any
// more: another daemon that reads the same file has spent it, or somebody took it out.
var ErrSpentElsewhere = onetime.ErrSpentElsewhere

// Spend marks a sequence of a door as used, in its file, and gives the next one; none:
// there is no more, and the door is disabled. The mark is on disk when it returns: a
// # over the first byte of the line, so that a crash leaves the line either as it was
// or used. A sequence that is not there unused is ErrSpentElsewhere, together with the
// next one: the knock that it was made by must not count, or a replay at a second
// daemon with the same file would. Who reads the file at the same time waits.
//
// knockd compares half of the ports only (memcmp over as many bytes as there are
// steps), and so may mark another line; this compares all. And where several lines
// are the same, all of them are used: whoever saw one has seen the others.
func (d *Door) Spend(used []sequence.Step) (next []sequence.Step, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s: %w", quote(d.OneTime), err)
		}
	}()
	f, err := onetime.Open(d.OneTime)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := f.Lock(); err != nil {
		return nil, err
	}
	list, err := linesOf(f)
	if err != nil {
		return nil, err
	}
	var made []onetime.Line
	for _, l := range list {
		steps := d.sequence(l.steps)
		switch {
		case slices.Equal(steps, used):
			made = append(made, l.Line)
		case next == nil:
			next = steps
		}
	}
	if len(made) == 0 {
		return next, ErrSpentElsewhere
	}
	if err := f.Mark(made...); err != nil {
		return nil, err
	}
	return next, nil
}

// readLines opens for writing already when the configuration is read, as knockd does:
// a file that can't be marked would make each of its sequences good for ever.
func readLines(path string) (list []line, err error) {
	f, err := onetime.Open(path)
	if err == nil {
		defer f.Close()
		list, err = linesOf(f)
	}
	if err != nil {
		return nil, fmt.Errorf("%s %w", quote(path), err)
	}
	return list, nil
}

// linesOf lists what is left. A line that is no sequence is skipped, as knockd does.
func linesOf(f *onetime.File) ([]line, error) {
	all, err := f.Lines()
	if err != nil {
		return nil, err
	}
	var list []line
	for _, l := range all {
		// The bound is maxLine here too: knockd would read on in the middle of a longer one.
		if l.Size > maxLine || l.Used() {
			continue
		}
		if steps, _, err := parseSequence(l.Text); err == nil {
			list = append(list, line{l, steps})
		}
	}
	return list, nil
}

// writable reports whether somebody beside the owner can write to the file.
func writable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && othersWrite(info.Mode())
}
