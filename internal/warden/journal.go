//go:build linux

package warden

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// journal is what the engine writes accepted requests into, so that none is
// good twice. The engine can't open files: it inherits two, which it uses in
// turn. After a power cut they may lack what was written last, so a third file
// says whether they are whole: it names the boot that wrote them, and the clean
// end of the daemon, before which they are synced.
type journal struct {
	dir   string
	boot  string // this boot's id
	files []*os.File
}

// The names in the state directory, and what journalBoot ends with.
const (
	journalBoot = "journal.boot"
	starting    = "starting" // no engine has taken the journal yet
	running     = "running"
	clean       = "clean"
)

var journalFiles = [2]string{"journal.0", "journal.1"}

// openJournal opens the journal and reports whether it is whole: nothing was
// accepted that it lacks. Where a clean end or another boot said so, nothing
// says it any more when this returns: the mark is on disk before an engine runs.
func openJournal(dir string) (j *journal, whole bool, err error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, false, fmt.Errorf("the journal: this boot has no id: %w", err)
	}
	j = &journal{dir: dir, boot: strings.TrimSpace(string(boot))}
	defer func() {
		if err != nil {
			j.release()
			err = fmt.Errorf("the journal, without which a recorded request would be good twice: %w; make the state directory writable for root, or set state_dir", err)
		}
	}()
	whole = j.whole()
	for _, name := range journalFiles {
		path := filepath.Join(dir, name)
		if _, err := os.Lstat(path); err != nil {
			whole = false // somebody removed it, and what it had
		}
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
		if err != nil {
			return j, false, err
		}
		j.files = append(j.files, f)
		if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
			return j, false, fmt.Errorf("%s is no regular file", path)
		}
		if err := f.Chmod(0o600); err != nil {
			return j, false, err
		}
	}
	if whole && j.read() == j.boot+" "+running {
		return j, true, nil
	}
	return j, whole, j.mark(starting)
}

// taken says that an engine has the journal, and has written into it what it
// refuses after an unclean end. Only from then on is what this boot wrote whole:
// a daemon killed before leaves a journal that lacks that line.
func (j *journal) taken() error {
	if j == nil || j.read() == j.boot+" "+running {
		return nil
	}
	return j.mark(running)
}

func (j *journal) read() string {
	text, _ := os.ReadFile(filepath.Join(j.dir, journalBoot)) // none says nothing, like an empty one
	return strings.TrimSuffix(string(text), "\n")
}

// whole reads the mark: this boot's files are whole, as the kernel keeps what a
// killed daemon wrote; another boot's only behind a clean end.
func (j *journal) whole() bool {
	boot, end, _ := strings.Cut(j.read(), " ")
	return boot == j.boot && (end == running || end == clean) || end == clean && len(boot) == len(j.boot)
}

// mark replaces the mark. It is on disk when mark returns.
func (j *journal) mark(end string) error {
	return replace(j.dir, journalBoot, []byte(j.boot+" "+end+"\n"))
}

// close is the clean end. No engine may write any more.
func (j *journal) close() error {
	var errs []error
	for _, f := range j.files {
		errs = append(errs, f.Sync())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("the journal could not be written to disk: %w", err)
	}
	return j.mark(clean)
}

// release lets go of the files.
func (j *journal) release() {
	for _, f := range j.files {
		f.Close()
	}
}

// descriptors are for the engine; none without a journal.
func (j *journal) descriptors() []int {
	if j == nil {
		return nil
	}
	var fds []int
	for _, f := range j.files {
		// Fd() would make the descriptor block, which a regular file does anyway.
		fds = append(fds, int(f.Fd()))
	}
	return fds
}

// replace puts text in place of a file: after a crash at any moment there is
// the old one or the new one, and when it returns the new one lasts.
func replace(dir, name string, text []byte) error {
	f, err := os.CreateTemp(dir, "."+name+"-*")
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), filepath.Join(dir, name))
	}
	if err != nil {
		os.Remove(f.Name())
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
