//go:build linux

package run

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

const (
	journalName = "actions.journal"
	lockName    = "actions.lock"
	// maxJournal is the most bytes that are read: 65,536 undos of 16 KiB each.
	maxJournal = 1 << 30
	// slack is how many lines the journal may have beyond twice what is needed.
	slack = 4096
	// savePause is between two tries to write a journal that could not be written.
	savePause = 10 * time.Second
)

// ErrInUse says that another process has the journal.
var ErrInUse = errors.New("another daemon keeps its undos in the same state directory; stop it, or give this one a state_dir of its own")

// journal is the file of the undos that are still to come. Each line is eight hex
// digits, the CRC-32C of the rest, a blank, and
//
//   - {…}   an undo, or its new time
//   - N     the undo of run N has begun
//     = N     no run had a higher number
type journal struct {
	dir   string
	lock  *os.File
	f     *os.File
	size  int64
	lines int
}

// record is an undo in the journal.
type record struct {
	Run     uint64
	Due     int64         // nanoseconds since 1970; 0: never by itself
	After   time.Duration // from a run to its undo
	Action  word
	Addr    netip.Addr
	Words   []word
	Env     []word
	By      []word
	AtStart bool `json:",omitempty"`
	Again   bool `json:",omitempty"`
}

// found is what a journal had.
type found struct {
	records []record // the oldest run first
	last    uint64   // the highest run's number
	damage  error    // nil: none
	aside   string   // where a damaged file is now
}

// openJournal takes the directory's journal for this process and reads it. Nothing
// can be written before rewrite.
func openJournal(dir string) (*journal, *found, error) {
	lock, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, nil, err
	}
	// A lock of its own file: the journal is replaced by another.
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrInUse
		}
		return nil, nil, err
	}
	old, err := takeOver(filepath.Join(dir, journalName))
	if err != nil {
		lock.Close()
		return nil, nil, err
	}
	return &journal{dir: dir, lock: lock}, old, nil
}

// takeOver reads a journal, and moves it aside where it is damaged.
func takeOver(path string) (*found, error) {
	text, err := readRegular(path)
	if errors.Is(err, fs.ErrNotExist) {
		return &found{}, nil
	}
	old := &found{damage: err}
	if err == nil {
		old = read(text)
	}
	if old.damage != nil {
		old.aside = path + ".damaged-" + strconv.FormatInt(time.Now().UnixNano(), 10)
		if err := os.Rename(path, old.aside); err != nil {
			return nil, fmt.Errorf("%w, and it can't be moved aside: %w", old.damage, err)
		}
	}
	return old, nil
}

func readRegular(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular() || info.Size() > maxJournal:
		return nil, fmt.Errorf("%s is no regular file of at most %d bytes", path, maxJournal)
	}
	return io.ReadAll(io.LimitReader(f, maxJournal))
}

// read reads the lines. A last one without its end was torn by a crash before the
// command was started that it stands for, and so counts for nothing.
func read(text []byte) *found {
	old := &found{}
	open := map[uint64]record{}
	for n := 1; ; n++ {
		line, rest, whole := bytes.Cut(text, []byte{'\n'})
		if !whole {
			break
		}
		text = rest
		if err := old.line(line, open); err != nil && old.damage == nil {
			old.damage = fmt.Errorf("line %d: %w", n, err)
		}
	}
	for _, rec := range open {
		old.records = append(old.records, rec)
	}
	slices.SortFunc(old.records, func(a, b record) int {
		if a.Run < b.Run {
			return -1
		}
		return 1
	})
	return old
}

func (o *found) line(line []byte, open map[uint64]record) error {
	if len(line) < 12 {
		return errors.New("it is too short")
	}
	body := line[9:]
	if string(line[:9]) != sum(body) {
		return errors.New("its checksum is wrong")
	}
	var rec record
	var err error
	if string(body[:2]) == "+ " {
		if err = json.Unmarshal(body[2:], &rec); err == nil && len(rec.Words) == 0 {
			err = errors.New("it has no command")
		}
		if err == nil {
			open[rec.Run] = rec
		}
	} else if rec.Run, err = strconv.ParseUint(string(body[2:]), 10, 64); err == nil {
		switch string(body[:2]) {
		case "- ":
			delete(open, rec.Run)
		case "= ":
		default:
			err = errors.New("its kind is not known")
		}
	}
	o.last = max(o.last, rec.Run)
	return err
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func sum(body []byte) string { return fmt.Sprintf("%08x ", crc32.Checksum(body, castagnoli)) }

// entry makes a line.
func entry(body string) []byte { return append([]byte(sum([]byte(body))+body), '\n') }

func entryOf(u *undo) []byte {
	rec := record{
		Run: u.run, After: u.after, Action: word(u.line.action), Addr: u.line.addr,
		Words: u.words, Env: u.env, By: list(u.by), AtStart: u.atStart, Again: u.line.run != 0,
	}
	if !u.due.IsZero() {
		rec.Due = u.due.UnixNano()
	}
	text, err := json.Marshal(&rec)
	if err != nil {
		panic(err) // every field has a text
	}
	return entry("+ " + string(text))
}

// undo takes a record up. The wall clock says when it is due, since another boot
// has another monotonic one. What a clock that was set back would leave for longer
// than its whole time gets its whole time; what belongs to the daemon's start is
// due, since that daemon has ended.
func (rec *record) undo(now time.Time) *undo {
	u := &undo{
		run: rec.Run, line: line{target: target{string(rec.Action), rec.Addr}}, words: rec.Words, env: rec.Env,
		after: rec.After, atStart: rec.AtStart, by: plainList(rec.By), place: none,
	}
	if rec.Again {
		u.line.run = rec.Run
	}
	switch {
	case rec.AtStart:
		u.due = now
	case rec.Due != 0:
		left := min(time.Unix(0, rec.Due).Sub(now), max(rec.After, 0))
		u.due = now.Add(left)
	}
	return u
}

// append writes lines behind the others. Where that fails, nothing of them stays.
func (j *journal) append(text []byte, sync bool) error {
	_, err := j.f.WriteAt(text, j.size)
	if err == nil && sync {
		err = unix.Fdatasync(int(j.f.Fd()))
	}
	if err != nil {
		return errors.Join(err, j.f.Truncate(j.size))
	}
	j.size += int64(len(text))
	j.lines += bytes.Count(text, []byte{'\n'})
	return nil
}

// rewrite replaces the journal: after a crash at any moment there is the old one
// or the new one.
func (j *journal) rewrite(text []byte) error {
	f, err := os.CreateTemp(j.dir, "."+journalName+"-*")
	if err != nil {
		return err
	}
	if _, err = f.Write(text); err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = os.Rename(f.Name(), filepath.Join(j.dir, journalName))
	}
	if err != nil {
		f.Close()
		os.Remove(f.Name())
		return err
	}
	if j.f != nil {
		j.f.Close()
	}
	j.f, j.size, j.lines = f, int64(len(text)), bytes.Count(text, []byte{'\n'})
	d, err := os.Open(j.dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func (j *journal) close() {
	if j == nil {
		return
	}
	if j.f != nil {
		j.f.Close()
	}
	j.lock.Close()
}

// entries gives the lines that the journal lacks, and whether they must be on disk
// before the commands are started.
func (r *Runner) entries(ready []*command) (text []byte, sync bool) {
	for _, u := range r.late {
		if r.kept[u.run] == u {
			text = append(text, entryOf(u)...)
		}
	}
	for _, run := range r.gone {
		text = append(text, entry("- "+strconv.FormatUint(run, 10))...)
	}
	for _, c := range ready {
		if !c.undoes && c.undo != nil {
			text = append(text, entryOf(c.undo)...)
			sync = true
		}
	}
	r.late, r.gone = nil, nil
	return text, sync
}

// keep writes lines into the journal, and all of it again where a line is lacking
// or many are of no use any more.
func (r *Runner) keep(text []byte, sync bool, now time.Time) {
	switch {
	case r.journal == nil:
	case r.unsaved:
		if !now.Before(r.resave) {
			r.rewrite(now)
		}
	case len(text) > 0:
		if err := r.journal.append(text, sync); err != nil {
			r.notSaved(err, now)
			return
		}
		r.mu.Lock()
		many := r.journal.lines > slack+2*len(r.kept)
		r.mu.Unlock()
		if many {
			r.rewrite(now)
		}
	}
}

// rewrite makes a journal of what should be in it.
func (r *Runner) rewrite(now time.Time) {
	r.mu.Lock()
	text := entry("= " + strconv.FormatUint(r.lastRun, 10))
	for _, u := range r.kept {
		text = append(text, entryOf(u)...)
	}
	r.mu.Unlock()
	if err := r.journal.rewrite(text); err != nil {
		r.notSaved(err, now)
		return
	}
	if r.unsaved {
		r.o.Log.Info("undos survive the daemon's end again: the journal was written")
	}
	r.unsaved = false
}

// notSaved says it once: a full disk is full for every knock.
func (r *Runner) notSaved(err error, now time.Time) {
	if !r.unsaved {
		r.o.Log.Error("undos will not survive the daemon's end: their journal can't be written; look at the disk of the state directory", "error", err)
	}
	r.unsaved, r.resave = true, now.Add(savePause)
}
