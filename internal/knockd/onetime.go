package knockd

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/sequence"
)

// line is a line of a file of one-time sequences that holds a usable one.
type line struct {
	offset int64 // of its first byte in the file
	steps  []Step
}

// ErrSpentElsewhere says that a one-time sequence is no unused line of its file any
// more: another daemon that reads the same file has spent it, or somebody took it out.
var ErrSpentElsewhere = errors.New("the sequence is no unused line of its file any more, so that it does not count")

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
	f, err := openLines(d.OneTime)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := lock(f); err != nil {
		return nil, fmt.Errorf("%s can't be locked: %w", quote(d.OneTime), err)
	}
	list, err := linesOf(f)
	if err != nil {
		return nil, err
	}
	found := false
	for _, l := range list {
		steps := d.sequence(l.steps)
		switch {
		case slices.Equal(steps, used):
			found = true
			if err := mark(f, l.offset); err != nil {
				return nil, fmt.Errorf("%s: the used sequence can't be marked: %w; it is good for one more knock until it is removed from the file", quote(d.OneTime), err)
			}
		case next == nil:
			next = steps
		}
	}
	if !found {
		return next, fmt.Errorf("%s: %w", quote(d.OneTime), ErrSpentElsewhere)
	}
	return next, nil
}

// mark writes one byte and waits for the disk.
func mark(f *os.File, offset int64) error {
	if _, err := f.WriteAt([]byte{'#'}, offset); err != nil {
		return err
	}
	return f.Sync()
}

func readLines(path string) ([]line, error) {
	f, err := openLines(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return linesOf(f)
}

// openLines opens for writing already when the configuration is read, as knockd does:
// a file that can't be marked would make each of its sequences good for ever. What is
// no ordinary file is not opened at all, because opening some devices does something.
func openLines(path string) (*os.File, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, lineError(path, err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no ordinary file; name a file with one sequence a line", quote(path))
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, lineError(path, err)
	}
	return f, nil
}

func lineError(path string, err error) error {
	var at *os.PathError
	if errors.As(err, &at) {
		err = at.Err
	}
	return fmt.Errorf("%s can't be opened for reading and writing: %w; write one sequence a line into it, and let root write to it", quote(path), err)
}

// linesOf lists what is left in a file of at most config.MaxSize bytes. A line that
// is no sequence is skipped, as knockd does.
func linesOf(f io.Reader) ([]line, error) {
	text, err := io.ReadAll(io.LimitReader(f, config.MaxSize+1))
	if err != nil {
		return nil, fmt.Errorf("the file of one-time sequences can't be read: %w; look at the disk", err)
	}
	if len(text) > config.MaxSize {
		return nil, fmt.Errorf("the file of one-time sequences has more than %d bytes; split it", config.MaxSize)
	}
	var list []line
	offset := int64(0)
	for raw := range bytes.Lines(text) {
		// The bound is maxLine here too: knockd would read on in the middle of a longer one.
		if body := strings.Trim(string(raw), blanks); len(raw) <= maxLine && body != "" && body[0] != '#' {
			if steps, _, err := parseSequence(body); err == nil {
				list = append(list, line{offset, steps})
			}
		}
		offset += int64(len(raw))
	}
	return list, nil
}

// writable reports whether somebody beside the owner can write to the file.
func writable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && othersWrite(info.Mode())
}
