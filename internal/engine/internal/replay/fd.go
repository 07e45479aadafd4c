//go:build linux

package replay

import (
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// fd is an inherited descriptor. Its calls are all that the engine's filter
// lets through on it: fstat, pread64, pwrite64, ftruncate, fdatasync.
type fd int

// regular refuses what can't be a journal: a wrong number would have records
// written to a terminal or a log.
func regular(fds [2]int) error {
	var st [2]unix.Stat_t
	for i := range fds {
		if err := unix.Fstat(fds[i], &st[i]); err != nil {
			return fmt.Errorf("journal %d: descriptor %d: %w", i, fds[i], err)
		}
		if st[i].Mode&unix.S_IFMT != unix.S_IFREG {
			return fmt.Errorf("journal %d: descriptor %d is not a regular file", i, fds[i])
		}
	}
	// Rewriting empties the other file first.
	if st[0].Dev == st[1].Dev && st[0].Ino == st[1].Ino {
		return errors.New("both journals are the same file")
	}
	return nil
}

func (f fd) size() (int64, error) {
	var st unix.Stat_t
	err := unix.Fstat(int(f), &st)
	return st.Size, err
}

func (f fd) read(b []byte, off int64) error {
	for len(b) > 0 {
		n, err := unix.Pread(int(f), b, off)
		if err != nil {
			return err
		}
		if n == 0 {
			return io.ErrUnexpectedEOF
		}
		b, off = b[n:], off+int64(n)
	}
	return nil
}

// write takes a part for a failure: the caller writes all of it again.
func (f fd) write(b []byte, off int64) error {
	n, err := unix.Pwrite(int(f), b, off)
	if err == nil && n < len(b) {
		return errShort
	}
	return err
}

func (f fd) empty() error { return unix.Ftruncate(int(f), 0) }

func (f fd) sync() error { return unix.Fdatasync(int(f)) }
