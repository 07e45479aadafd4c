//go:build linux

package run

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	journalName = "actions.journal"
	lockName    = "actions.lock"
	// slack is how many bytes the journal may have beyond twice what was needed when
	// it was rewritten.
	slack = 256 << 10
	// savePause is between two tries to write a journal that could not be written.
	savePause = 10 * time.Second
)

// ErrInUse says that another process has the journal.
var ErrInUse = errors.New("another daemon keeps its undos in the same state directory; stop it, or give this one a state_dir of its own")

// journal is the file of the undos that are still to come. Each line is eight hex
// digits, the CRC-32C of the rest, a blank, and one of
//
//	"+ {…}"   an undo, or its new time
//	"- N"     the undo of run N has begun
//	"= N"     no run had a higher number
type journal struct {
	dir  string
	lock *os.File
	f    *os.File
	size int64 // bytes
	base int64 // as it was rewritten
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
	// The directory first: in one of somebody else a name is worth nothing.
	d, err := openOwn(dir, os.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, nil, err
	}
	d.Close()
	lock, err := openOwn(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK)
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

// errOthers says that others can write where the journal is.
var errOthers = errors.New("others could write commands into it that this daemon would run")

// openOwn opens what only this process's user and root can write. A journal is a
// script: whoever writes it has the daemon's rights.
func openOwn(path string, flags int) (*os.File, error) {
	f, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return nil, err
	}
	var s unix.Stat_t
	err = unix.Fstat(int(f.Fd()), &s)
	us := uint32(os.Geteuid())
	if err == nil && (s.Uid != us && s.Uid != 0 || s.Mode&0o022 != 0) {
		err = fmt.Errorf("%s is user %d's with mode %04o, so that %w; look at what is in it, then chown %d %[1]s and chmod go-w %[1]s", path, s.Uid, s.Mode&0o7777, errOthers, us)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// takeOver reads a journal, and moves it aside where it is damaged.
func takeOver(path string) (*found, error) {
	old := &found{}
	f, err := openOwn(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return old, nil
	case errors.Is(err, errOthers):
		return nil, err
	case err != nil:
		old.damage = err
	default:
		old = read(f)
		f.Close()
	}
	if old.damage != nil {
		old.aside = path + ".damaged-" + strconv.FormatInt(time.Now().UnixNano(), 10)
		if err := os.Rename(path, old.aside); err != nil {
			return nil, fmt.Errorf("%w, and it can't be moved aside: %w", old.damage, err)
		}
	}
	return old, nil
}

// read reads the lines. A last one without its end was torn by a crash before the
// command was started that it stands for, and so counts for nothing.
func read(r io.Reader) *found {
	old := &found{}
	open := map[uint64]record{}
	in := bufio.NewReaderSize(r, 1<<16)
	line, end := in.ReadBytes('\n')
	for n := 1; end == nil; n++ {
		if err := old.line(line[:len(line)-1], open); err != nil && old.damage == nil {
			old.damage = fmt.Errorf("line %d: %w", n, err)
		}
		line, end = in.ReadBytes('\n')
	}
	if end != io.EOF {
		old.damage = cmp.Or(old.damage, end)
	}
	old.records = slices.SortedFunc(maps.Values(open), func(a, b record) int { return cmp.Compare(a.Run, b.Run) })
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
func entry(body string) []byte { return []byte(sum([]byte(body)) + body + "\n") }

func entryOf(u *undo) []byte {
	rec := record{
		Run: u.run, After: u.after, Action: word(u.line.action), Addr: u.line.addr,
		Words: u.words, Env: u.env, By: to[word](u.by), AtStart: u.atStart, Again: u.line.run != 0,
	}
	if !u.due.IsZero() {
		rec.Due = u.due.UnixNano()
	}
	text := bytes.NewBufferString("+ ")
	enc := json.NewEncoder(text)
	enc.SetEscapeHTML(false) // six bytes for each & and > of a shell's text
	if err := enc.Encode(&rec); err != nil {
		panic(err) // every field has a text
	}
	return entry(strings.TrimSuffix(text.String(), "\n"))
}

// undo takes a record up. The wall clock says when it is due, since another boot
// has another monotonic one. What a clock that was set back would leave for longer
// than its whole time gets its whole time; what belongs to the daemon's start is
// due, since that daemon has ended.
func (rec *record) undo(now time.Time) *undo {
	u := &undo{
		run: rec.Run, line: line{target: target{string(rec.Action), rec.Addr}}, words: rec.Words, env: rec.Env,
		after: rec.After, atStart: rec.AtStart, by: to[string](rec.By), place: none,
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
	j.f, j.size, j.base = f, int64(len(text)), int64(len(text))
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
// or it has grown to twice its size.
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
		if r.journal.size > slack+2*r.journal.base {
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
