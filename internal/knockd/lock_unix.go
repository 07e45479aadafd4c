//go:build unix

package knockd

import (
	"os"

	"golang.org/x/sys/unix"
)

// lock waits until no other daemon is between reading a file and marking it. The lock
// ends with the descriptor.
func lock(f *os.File) error { return unix.Flock(int(f.Fd()), unix.LOCK_EX) }
