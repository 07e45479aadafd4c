//go:build linux

package capture

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// pipeSize is the room in bytes between who follows a log and the engine, some
// 4,000 lines; what does not fit waits in the file or in the kernel.
const pipeSize = 1 << 20

// torn ends a line of which the end is lost. No reader takes a line with a NUL.
var torn = []byte("\x00\n")

// Pipe is what lines of a log go to the engine through.
type Pipe struct {
	Read  int      // the engine's end: does not block, closes on exec
	Write *os.File // the follower's end
}

// NewPipe makes a pipe. With patient, writing to it blocks a thread, as programs
// expect of their standard output.
func NewPipe(patient bool) (*Pipe, error) {
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, fmt.Errorf("a pipe for the lines of the log: %w", err)
	}
	// Without the privilege for this much it keeps its 64 KiB.
	unix.FcntlInt(uintptr(ends[1]), unix.F_SETPIPE_SZ, pipeSize)
	if patient {
		unix.SetNonblock(ends[1], false)
	}
	return &Pipe{ends[0], os.NewFile(uintptr(ends[1]), "log")}, nil
}

// Torn says that lines are missing here, so that no line is put together from the
// halves of two.
func (p *Pipe) Torn() { p.Write.Write(torn) }

// Close closes both ends.
func (p *Pipe) Close() {
	p.Write.Close()
	unix.Close(p.Read)
}

// Follower copies what is added to a log into a pipe, unread: who writes to a log
// is not to be trusted, and what its lines mean is the engine's to find out.
type Follower struct {
	pipe  *Pipe
	log   *slog.Logger
	file  *os.File
	ended chan struct{} // closed when nothing is copied any more

	// Of a file.
	path   string
	notify *os.File // inotify(7); nil: only the slow look is left
	at     int64    // bytes of file that are copied, or passed over
	last   byte     // what was copied last; of nothing, '\n'
	newer  time.Time
	said   bool // that the file is not there
	stop   chan struct{}
}

const (
	// look is how often a file is looked at where inotify tells nothing: on some
	// network file systems it does not.
	look = time.Second
	// patience is how long a file that was moved away is read while its successor
	// is empty: syslogd goes on with the old one until it is told.
	patience = 10 * time.Second
)

// FollowKernel follows the kernel's ring buffer from now on, where no program can
// write in the kernel's name.
func FollowKernel(pipe *Pipe, log *slog.Logger) (*Follower, error) {
	const path = "/dev/kmsg"
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %w; the daemon needs CAP_SYSLOG, and under systemd ProtectKernelLogs=no", path, err)
	}
	f := &Follower{pipe: pipe, log: log, file: os.NewFile(uintptr(fd), path), ended: make(chan struct{})}
	if _, err := unix.Seek(fd, 0, unix.SEEK_END); err != nil {
		f.file.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	go f.records()
	return f, nil
}

// records copies one record a read, as /dev/kmsg gives them.
func (f *Follower) records() {
	defer close(f.ended)
	b := make([]byte, 16<<10)
	for {
		n, err := f.file.Read(b)
		switch {
		case errors.Is(err, unix.EPIPE): // overwritten before it was read
			f.pipe.Torn()
			continue
		case err != nil:
			f.lost(err)
			return
		}
		if _, err := f.pipe.Write.Write(b[:n]); err != nil {
			f.lost(err)
			return
		}
	}
}

// lost says why nothing is followed any more, unless it was closed. The closed pipe
// tells the engine.
func (f *Follower) lost(err error) {
	if !errors.Is(err, os.ErrClosed) && !errors.Is(err, unix.EPIPE) {
		f.log.Error("the log can't be followed any more", "error", err)
	}
	f.pipe.Write.Close()
}

// FollowFile follows a file from its present end on, by its name: through
// rotation, truncation, and from its beginning where it appears only later.
func FollowFile(path string, pipe *Pipe, log *slog.Logger) (*Follower, error) {
	f := &Follower{pipe: pipe, log: log, path: path, ended: make(chan struct{}), stop: make(chan struct{}), last: '\n'}
	switch err := f.open(); {
	case errors.Is(err, os.ErrNotExist):
		f.absent(err)
	case err != nil:
		return nil, err
	default:
		if f.at, err = f.file.Seek(0, io.SeekEnd); err != nil {
			f.file.Close()
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	if fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK); err == nil {
		f.notify = os.NewFile(uintptr(fd), "inotify")
		f.watch()
	}
	go f.lines()
	return f, nil
}

// open opens what has the name now, at its beginning. Only a regular file will do:
// a FIFO or a device of that name could keep us waiting, or do something.
func (f *Follower) open() error {
	fd, err := unix.Open(f.path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err == unix.EACCES {
		return fmt.Errorf("%s: %w; it is another user's or group's, so the daemon needs CAP_DAC_READ_SEARCH, which the systemd unit withholds: add CapabilityBoundingSet=CAP_DAC_READ_SEARCH with 'systemctl edit sallyport'", f.path, err)
	}
	if err != nil {
		return &os.PathError{Op: "open", Path: f.path, Err: err}
	}
	file := os.NewFile(uintptr(fd), f.path)
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is no regular file; log_file must name the file that the firewall's lines are in", f.path)
	}
	if err != nil {
		file.Close()
		return err
	}
	if f.file != nil {
		f.file.Close()
	}
	f.file, f.at, f.said, f.newer = file, 0, false, time.Time{}
	return nil
}

// absent says once that the file is not there.
func (f *Follower) absent(err error) {
	if !f.said {
		f.log.Warn("the log can't be opened: knocks are seen as soon as it can", "error", err)
	}
	f.said = true
}

// watch has inotify tell of changes of the file, and of names in its directory.
func (f *Follower) watch() {
	if f.notify == nil {
		return
	}
	raw, err := f.notify.SyscallConn()
	if err != nil {
		return
	}
	raw.Control(func(fd uintptr) {
		// Failing leaves the slow look. A watch that is there already is kept.
		unix.InotifyAddWatch(int(fd), filepath.Dir(f.path), unix.IN_CREATE|unix.IN_MOVED_TO)
		unix.InotifyAddWatch(int(fd), f.path, unix.IN_MODIFY)
	})
}

// lines copies until it is stopped.
func (f *Follower) lines() {
	defer close(f.ended)
	events := make([]byte, 4096)
	for {
		if err := f.copy(); err != nil {
			f.lost(err)
			return
		}
		if f.successor() {
			continue
		}
		if !f.pause(events) {
			return
		}
	}
}

// pause waits for a change, or for the time of the slow look. It reports whether to
// go on.
func (f *Follower) pause(events []byte) bool {
	if f.notify != nil {
		f.notify.SetReadDeadline(time.Now().Add(look))
		if _, err := f.notify.Read(events); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			select {
			case <-f.stop:
				return false
			default:
				return true
			}
		}
	}
	select {
	case <-f.stop:
		return false
	case <-time.After(look):
		return true
	}
}

// copy copies what the file has beyond what was copied. An error is the pipe's:
// a file that can't be read is looked at again.
func (f *Follower) copy() error {
	if f.file == nil {
		return nil
	}
	if info, err := f.file.Stat(); err == nil && info.Size() < f.at { // truncated, or copytruncate
		f.cut()
		f.at = 0
	}
	var b [32 << 10]byte
	for {
		before := min(f.at, 1) // with the byte before
		n, err := f.file.ReadAt(b[:], f.at-before)
		if added := b[before:max(int64(n), before)]; len(added) > 0 {
			if before > 0 && b[0] != f.last {
				if err := f.taint(); err != nil {
					return err
				}
			}
			f.at, f.last = f.at+int64(len(added)), added[len(added)-1]
			if _, err := f.pipe.Write.Write(added); err != nil {
				return err
			}
		}
		if err != nil {
			return nil
		}
	}
}

// taint spoils the line in hand: it begins or goes on amid another, because the file
// was so at the start or was written anew since the last look. Its rest would read as
// a line of its own, in whose words a program's user can be.
func (f *Follower) taint() error {
	_, err := f.pipe.Write.Write(torn[:1])
	return err
}

// cut marks a half line as torn: what comes next is no end of it.
func (f *Follower) cut() {
	if f.last != '\n' {
		f.pipe.Torn()
	}
	f.last = '\n'
}

// successor turns to another file of the same name, and reports whether it did. The
// old one is read on while the new one is empty, for a while.
func (f *Follower) successor() bool {
	info, err := os.Stat(f.path)
	if err != nil {
		f.newer = time.Time{}
		if f.file == nil {
			f.absent(err)
		}
		return false
	}
	if f.file != nil {
		now, err := f.file.Stat()
		if err == nil && os.SameFile(now, info) {
			return false
		}
		if f.newer.IsZero() {
			f.newer = time.Now()
			f.watch()
		}
		if info.Size() == 0 && time.Since(f.newer) < patience {
			return false
		}
		// What came between the last read and the first line of the new file.
		if f.copy() != nil {
			return false
		}
		f.cut()
	}
	if err := f.open(); err != nil {
		f.absent(err)
		return false
	}
	f.watch()
	return true
}

// Close ends the copying and waits for its end. The pipe stays the caller's, who
// closes it before where the engine may have stopped reading.
func (f *Follower) Close() {
	if f.stop != nil {
		close(f.stop)
	}
	if f.notify != nil {
		f.notify.Close()
	}
	if f.stop == nil {
		f.file.Close()
	}
	<-f.ended
	if f.stop != nil && f.file != nil {
		f.file.Close()
	}
}
