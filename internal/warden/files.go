//go:build linux

package warden

import (
	"bytes"
	"encoding/binary"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// files tells when files may have changed (inotify(7)). It looks at directories,
// because editors replace a file by rename, and at those of symlinks on the way.
type files struct {
	changed chan struct{}
	places  map[string]bool // path of each file and symlink
	notify  *os.File        // nil: nothing to look at
}

func newFiles() *files { return &files{changed: make(chan struct{}, 1)} }

const fileEvents = unix.IN_CLOSE_WRITE | unix.IN_CREATE | unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO |
	unix.IN_ATTRIB | unix.IN_ONLYDIR

// follow looks at these paths and no others from now on.
func (f *files) follow(paths []string) error {
	places := map[string]bool{}
	for _, p := range paths {
		addPlaces(places, p)
	}
	if maps.Equal(places, f.places) {
		return nil
	}
	f.close()
	if len(places) == 0 {
		return nil
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return os.NewSyscallError("inotify_init1", err)
	}
	names, failed := map[string]bool{}, error(nil)
	for p := range places {
		names[filepath.Base(p)] = true
		if _, err := unix.InotifyAddWatch(fd, filepath.Dir(p), fileEvents); err != nil {
			failed = &os.PathError{Op: "inotify_add_watch", Path: filepath.Dir(p), Err: err}
		}
	}
	f.notify = os.NewFile(uintptr(fd), "inotify")
	go f.read(f.notify, names)
	if failed == nil {
		f.places = places // else the next look tries again
	}
	return failed
}

// close ends the look.
func (f *files) close() {
	if f.notify != nil {
		f.notify.Close()
	}
	f.notify, f.places = nil, nil
}

// read tells of events that concern one of the names, until the file is closed.
// Other files may be changed by strangers as often as they like.
func (f *files) read(notify *os.File, names map[string]bool) {
	b := make([]byte, 64<<10)
	for {
		n, err := notify.Read(b)
		if err != nil {
			return
		}
		if !concerns(b[:n], names) {
			continue
		}
		time.Sleep(keyPause) // what comes meanwhile waits in the queue
		select {
		case f.changed <- struct{}{}:
		default:
		}
	}
}

// concerns walks struct inotify_event: four numbers of four bytes, of which the
// second is the mask and the last the length of the name behind them.
func concerns(b []byte, names map[string]bool) bool {
	const head = unix.SizeofInotifyEvent
	for len(b) >= head {
		mask, n := binary.NativeEndian.Uint32(b[4:]), int(binary.NativeEndian.Uint32(b[12:]))
		if n > len(b)-head {
			return true
		}
		name := string(bytes.TrimRight(b[head:head+n], "\x00"))
		// Without a name it is the directory itself, or the queue that overflowed.
		if names[name] || name == "" || mask&unix.IN_Q_OVERFLOW != 0 {
			return true
		}
		b = b[head+n:]
	}
	return false
}

// maxLinks is the kernel's own bound of symlinks in one path (path_resolution(7)).
const maxLinks = 40

// addPlaces adds each symlink that a path leads through and the file at its end:
// a change of any of them changes what the path means.
func addPlaces(places map[string]bool, path string) {
	at, rest := "/", parts(path)
	for links := 0; len(rest) > 0 && links <= maxLinks; {
		next := filepath.Join(at, rest[0])
		rest = rest[1:]
		target, err := os.Readlink(next)
		switch {
		case err == nil:
			links++
			places[next] = true
			if filepath.IsAbs(target) {
				at = "/"
			}
			rest = slices.Concat(parts(target), rest)
		case len(rest) == 0:
			places[next] = true
		default:
			at = next
		}
	}
}

func parts(path string) []string {
	return slices.DeleteFunc(strings.Split(path, "/"), func(s string) bool { return s == "" || s == "." })
}
