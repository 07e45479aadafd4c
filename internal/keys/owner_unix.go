//go:build unix

package keys

import (
	"io/fs"
	"os"
	"syscall"
)

// ownerOf gives the number of the user that a file belongs to.
func ownerOf(info fs.FileInfo) (uid int, known bool) {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, false
	}
	return int(stat.Uid), true
}

// SameOwner gives an open file the user and group of another one.
func SameOwner(f *os.File, as fs.FileInfo) error {
	now, err := f.Stat()
	if err != nil {
		return err
	}
	want, have := as.Sys().(*syscall.Stat_t), now.Sys().(*syscall.Stat_t)
	if want.Uid == have.Uid && want.Gid == have.Gid {
		return nil // not everybody may change even nothing
	}
	return f.Chown(int(want.Uid), int(want.Gid))
}
