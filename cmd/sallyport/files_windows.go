package main

import (
	"math"
	"os"
	"syscall"

	"golang.org/x/sys/windows"
)

// syscallNotDir is what opening a file gives where its directory is a file.
const syscallNotDir = syscall.ENOTDIR

// connectionRefused is what a closed port answers. Package syscall has another
// number of that name, which no system call gives.
const connectionRefused = windows.WSAECONNREFUSED

// lock waits until nobody else has a lock on the file. It ends with the file's
// closing, also by a crash.
func lock(f *os.File) error {
	return windows.LockFileEx(windows.Handle(f.Fd()), windows.LOCKFILE_EXCLUSIVE_LOCK, 0, math.MaxUint32, math.MaxUint32, new(windows.Overlapped))
}

// keepOwner has nothing to do: a new file is its directory's owner's.
func keepOwner(*os.File, string) error { return nil }
