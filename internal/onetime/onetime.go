// Package onetime uses up files of one-time sequences: a line is good for one knock,
// and a # over its first byte says that it was used. The mark is one byte in place, so
// that a crash leaves the line either as it was or used; a file that is written anew
// could lose both.
package onetime

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

// MaxSize is the largest file, in bytes.
const MaxSize = 1 << 20

// ErrSpentElsewhere says that a one-time sequence is no unused line of its file any
// more: another daemon that reads the same file has spent it, or somebody took it out.
var ErrSpentElsewhere = errors.New("the sequence is no unused line of its file any more, so that it does not count")

// Line is a line of a file that is not empty.
type Line struct {
	Number int    // from 1
	Offset int64  // of its first byte in the file, which is the one to mark
	Size   int    // in bytes, its end included
	Text   string // without the blanks around it
}

// Used reports whether it was used, or is a comment: nobody can tell.
func (l *Line) Used() bool { return l.Text[0] == '#' }

// blanks are what isspace(3) takes.
const blanks = " \t\n\v\f\r"

// LinesOf lists the lines of a file's text.
func LinesOf(text []byte) []Line {
	var list []Line
	l := Line{}
	for raw := range bytes.Lines(text) {
		l.Number++
		l.Size, l.Text = len(raw), strings.Trim(string(raw), blanks)
		if l.Text != "" {
			list = append(list, l)
		}
		l.Offset += int64(len(raw))
	}
	return list
}

// File is an open file of sequences. Errors of its methods, and of Open, go on behind
// the file's name, which the caller has: "can't be read: …".
type File struct{ f *os.File }

// Open opens a file for marking. What is no ordinary file is not opened at all,
// because opening some devices does something.
func Open(path string) (*File, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, opening(err)
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("is no ordinary file; name a file with one sequence a line")
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, opening(err)
	}
	return &File{f}, nil
}

func opening(err error) error {
	return fmt.Errorf("can't be opened for reading and writing: %w; write one sequence a line into it, and let root write to it", cause(err))
}

// cause is the system's error without the path.
func cause(err error) error {
	if at, ok := errors.AsType[*os.PathError](err); ok {
		return at.Err
	}
	return err
}

// Close ends the lock too.
func (f *File) Close() error { return f.f.Close() }

// Lines lists what is in the file, of at most MaxSize bytes.
func (f *File) Lines() ([]Line, error) {
	text, err := io.ReadAll(io.NewSectionReader(f.f, 0, MaxSize+1))
	if err != nil {
		return nil, fmt.Errorf("can't be read: %w; look at the disk", cause(err))
	}
	if len(text) > MaxSize {
		return nil, fmt.Errorf("has more than %d bytes; split it", MaxSize)
	}
	return LinesOf(text), nil
}

// Mark marks lines as used. They are on disk when it returns; with an error some may
// be. After a crash in between those that were marked are the first ones.
func (f *File) Mark(lines ...Line) error {
	for _, l := range lines {
		if _, err := f.f.WriteAt([]byte{'#'}, l.Offset); err != nil {
			return unmarked(err)
		}
	}
	if err := f.f.Sync(); err != nil {
		return unmarked(err)
	}
	return nil
}

func unmarked(err error) error {
	return fmt.Errorf("the used sequence can't be marked: %w; it is good for one more knock until it is removed from the file", cause(err))
}

// A lock is held for a few writes. Whoever holds it longer must not keep a daemon from
// everything else.
const (
	lockLimit = 2 * time.Second
	lockPause = 5 * time.Millisecond
)

// Lock waits until no other program is between reading the file and marking it, 2 s at
// most. The lock ends with Close.
func (f *File) Lock() error {
	for end := time.Now().Add(lockLimit); ; time.Sleep(lockPause) {
		err := lock(f.f)
		if err == nil {
			return nil
		}
		if !busy(err) {
			return fmt.Errorf("can't be locked: %w", cause(err))
		}
		if time.Now().After(end) {
			return fmt.Errorf("can't be locked: another program has held its lock for %v", lockLimit)
		}
	}
}
