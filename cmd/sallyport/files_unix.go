//go:build unix

package main

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// syscallNotDir is what opening a file gives where its directory is a file.
const syscallNotDir = syscall.ENOTDIR

// connectionRefused is what a closed port answers.
const connectionRefused = syscall.ECONNREFUSED

// lock waits until nobody else has a lock on the file. It ends with the file's
// closing, also by a crash.
func lock(f *os.File) error {
	for {
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != unix.EINTR {
			return err
		}
	}
}

// keepOwner gives f the owner of the file that it is to replace: root may be
// editing somebody's.
func keepOwner(f *os.File, file string) error {
	info, err := os.Stat(file)
	if err != nil {
		return nil // a new file is ours
	}
	old := info.Sys().(*syscall.Stat_t)
	if int(old.Uid) == os.Geteuid() && int(old.Gid) == os.Getegid() {
		return nil
	}
	return f.Chown(int(old.Uid), int(old.Gid))
}
