//go:build linux

// Package replay remembers who has been heard, so that no message is good
// twice, and keeps that memory in two inherited journal files across a restart.
// It opens nothing.
package replay

import (
	"fmt"
	"iter"
	"slices"
	"time"
)

// Key is the SHA-256 fingerprint of the signer's public key, 32 bytes.
type Key [32]byte

// Tag is of the signed message, 16 bytes: the same for every copy of it and
// for every re-sealing.
type Tag [16]byte

// Heard is what one message says of itself once its signature is verified.
type Heard struct {
	Key Key
	// Stamp is 1 or more: nanoseconds since 1970, or with Rule.NoClock any
	// counter that rises.
	Stamp int64
	Tag   Tag
}

// Rule is the knock's: how far a stamp may be from the server's clock, on
// either side, or that stamps are counters and no clock is looked at. One
// message must not be good under rules of both kinds: after a power cut, a
// stamp that only the boundary refuses could pass for a counter.
type Rule struct {
	Window  time.Duration // 0 or more; below 0 counts as 0
	NoClock bool
}

// Why says why a stamp was refused. The strings are the operator's vocabulary.
type Why string

// The reasons.
const (
	Fresh         Why = ""
	Repeat        Why = "heard before"
	TooOld        Why = "older than the window"
	FromTheFuture Why = "from the future"
	Forgotten     Why = "older than all that its key is remembered for"
	BeforeStart   Why = "from before this server remembers who was heard"
	NotRising     Why = "its counter does not rise"
	Full          Why = "too many keys are remembered"
)

const (
	// PerKey is how many messages of one key are remembered, the newest by
	// stamp: enough that two machines with one key and clocks apart by a window
	// don't shut each other out.
	PerKey = 64

	// MaxKeys bounds the memory: 16,384 keys × 64 messages × 32 bytes = 32 MiB.
	// Only a key whose signature was verified takes a place, so no stranger can
	// fill it. No key ever leaves for another: its counter would be forgotten
	// with it, and with it what makes its last message a repeat. Whoever has
	// enrolled and dropped that many keys starts with new journal files.
	MaxKeys = 16384
)

// mark is one accepted message.
type mark struct {
	stamp   int64
	tag     Tag
	counter bool // accepted under NoClock
}

// Memory is who has been heard. It is for one goroutine.
type Memory struct {
	keys     map[Key][]mark // 1 to PerKey each, rising by stamp
	count    int64          // marks of all keys
	boundary int64          // clock stamps up to here are refused
	journal  *journal       // nil: the memory ends with the process
}

// New reads the two journal files, each open for reading and writing, without
// O_APPEND, and held by nobody else; -1 twice is for no journal at all.
// complete is the warden's word that the files hold all that was accepted:
// nothing but the process can have died since they were last written. An error
// means that nothing may be granted.
//
// Not complete means that the machine may have lost what was never synced. That
// can only be clock stamps that were not ahead of the clock when they were
// accepted, so every stamp up to now is refused, and up to the newest that the
// journal shows: the clock may have been set back since. The promise stands as
// long as now is not before the moment of the last acceptance that was lost,
// that is, the clock did not go back across the reboot by more than the reboot
// took. Counters need no such boundary: each was synced before its grant, so
// that the key's greatest is on the disk, and nothing up to it is accepted.
func New(fds [2]int, complete bool, now time.Time) (*Memory, error) {
	if fds[0] < 0 && fds[1] < 0 {
		return unwritten(complete, now), nil
	}
	if err := regular(fds); err != nil {
		return nil, err
	}
	return begin([2]file{fd(fds[0]), fd(fds[1])}, complete, now)
}

// unwritten is a memory without a journal, where complete is the word that
// nobody was accepted before. It has nothing to hold counters against: after a
// restart each is good once more.
func unwritten(complete bool, now time.Time) *Memory {
	m := &Memory{keys: map[Key][]mark{}}
	if !complete {
		m.boundary = now.UnixNano()
	}
	return m
}

func begin(files [2]file, complete bool, now time.Time) (*Memory, error) {
	m := &Memory{keys: map[Key][]mark{}, journal: &journal{files: files}}
	whole, err := m.journal.load(m.recall)
	if err != nil {
		return nil, fmt.Errorf("the journal of who was heard can't be read, so nobody may be let in: %w", err)
	}
	if err := m.settle(whole && complete, now); err != nil {
		return nil, fmt.Errorf("the journal of who was heard can't be written, so nobody may be let in: %w", err)
	}
	return m, nil
}

// settle puts on the disk what must be there before anybody is let in.
func (m *Memory) settle(whole bool, now time.Time) error {
	if m.journal.generation > 0 {
		if err := m.journal.confirm(); err != nil {
			return err
		}
	}
	if whole {
		return nil
	}
	m.boundary = max(m.boundary, now.UnixNano(), m.newest())
	// The next process of this boot is told that nothing was lost, and has the
	// boundary only from here.
	if err := m.rewrite(now); err != nil {
		return err
	}
	// What was damaged is not to count against the next start; if this fails,
	// it does, and that start refuses a little more than it had to.
	m.journal.files[1-m.journal.current].empty()
	return nil
}

// Boundary is up to when clock stamps are refused; the zero time: none are.
func (m *Memory) Boundary() time.Time {
	if m.boundary == 0 {
		return time.Time{}
	}
	return time.Unix(0, m.boundary)
}

// Check says whether h is fresh, and changes nothing. Two requests of one key
// can't share a stamp: the second is a repeat even if its tag is another.
func (m *Memory) Check(h *Heard, r Rule, now time.Time) Why {
	marks, known := m.keys[h.Key]
	why := Fresh
	switch {
	case hasTag(marks, &h.Tag):
		return Repeat
	case r.NoClock:
		why = checkCounter(marks, h.Stamp)
	default:
		why = m.checkClock(marks, h.Stamp, r.Window, now.UnixNano())
	}
	if why == Fresh && !known && len(m.keys) >= MaxKeys {
		return Full
	}
	return why
}

// checkCounter must not look at the boundary: a counter is no time.
func checkCounter(marks []mark, stamp int64) Why {
	if stamp <= 0 || len(marks) > 0 && stamp <= marks[len(marks)-1].stamp {
		return NotRising
	}
	return Fresh
}

func (m *Memory) checkClock(marks []mark, stamp int64, window time.Duration, now int64) Why {
	_, same := search(marks, stamp)
	// The difference of two int64 always fits in an uint64, never in an int64.
	w := uint64(max(window, 0))
	switch {
	case same:
		return Repeat
	case stamp <= 0 || stamp < now && uint64(now)-uint64(stamp) > w:
		return TooOld
	case stamp > now && uint64(stamp)-uint64(now) > w:
		return FromTheFuture
	case stamp <= m.boundary:
		return BeforeStart
	case len(marks) == PerKey && stamp < marks[0].stamp:
		return Forgotten
	}
	return Fresh
}

// Accept writes h to the journal and remembers it. What a power cut may not
// lose is on the disk when it returns: counters, and stamps ahead of now, which
// no boundary covers. An error, also of an h that is not fresh, means that
// nothing may be granted; nothing was remembered then.
func (m *Memory) Accept(h *Heard, r Rule, now time.Time) error {
	if why := m.Check(h, r, now); why != Fresh {
		return fmt.Errorf("not accepted: %s", why)
	}
	if err := m.write(h, r, now); err != nil {
		return fmt.Errorf("the journal of who was heard can't be written, so nobody is let in until it can: %w", err)
	}
	m.remember(h.Key, mark{stamp: h.Stamp, tag: h.Tag, counter: r.NoClock})
	if j := m.journal; j != nil && j.long(m.count) && m.rewrite(now) != nil {
		// h is written, whatever became of the shorter copy. Not at every
		// message is another tried: that would be slow on a full disk.
		j.tryAt = j.records + slack
	}
	return nil
}

func (m *Memory) write(h *Heard, r Rule, now time.Time) error {
	if m.journal == nil {
		return nil
	}
	if m.journal.doubt {
		if err := m.rewrite(now); err != nil {
			return err
		}
	}
	line := record{kind: clock, Heard: *h}
	if r.NoClock {
		line.kind = counter
	}
	return m.journal.append(&line, r.NoClock || h.Stamp > now.UnixNano())
}

// recall takes one record of the journal; false says that there is no room.
func (m *Memory) recall(r *record) bool {
	if r.kind == boundary {
		m.boundary = max(m.boundary, r.Stamp)
		return true
	}
	if _, known := m.keys[r.Key]; !known && len(m.keys) >= MaxKeys {
		return false
	}
	m.remember(r.Key, mark{stamp: r.Stamp, tag: r.Tag, counter: r.kind == counter})
	return true
}

// remember keeps the PerKey newest by stamp, in whatever order they come: the
// two files of a journal overlap.
func (m *Memory) remember(key Key, a mark) {
	marks := m.keys[key]
	i, same := search(marks, a.stamp)
	switch {
	case same:
		return
	case len(marks) < PerKey:
		m.keys[key] = slices.Insert(marks, i, a)
		m.count++
	case i > 0:
		copy(marks, marks[1:i])
		marks[i-1] = a
	}
}

// newest is the newest clock stamp. Counters are left out: one client that
// counts from a great number would put the boundary out of everybody's reach.
func (m *Memory) newest() int64 {
	var newest int64
	for _, marks := range m.keys {
		for i := range marks {
			if !marks[i].counter {
				newest = max(newest, marks[i].stamp)
			}
		}
	}
	return newest
}

func (m *Memory) rewrite(now time.Time) error {
	return m.journal.rewrite(m.records(), now)
}

// records is all that a restart needs to know. The record goes from hand to
// hand: it is valid until the next one.
func (m *Memory) records() iter.Seq[*record] {
	return func(yield func(*record) bool) {
		r := record{kind: boundary, Heard: Heard{Stamp: m.boundary}}
		if m.boundary > 0 && !yield(&r) {
			return
		}
		for key, marks := range m.keys {
			for i := range marks {
				r = record{kind: clock, Heard: Heard{Key: key, Stamp: marks[i].stamp, Tag: marks[i].tag}}
				if marks[i].counter {
					r.kind = counter
				}
				if !yield(&r) {
					return
				}
			}
		}
	}
}

func hasTag(marks []mark, tag *Tag) bool {
	for i := range marks {
		if marks[i].tag == *tag {
			return true
		}
	}
	return false
}

// search gives the place of stamp among marks, and whether it is taken.
func search(marks []mark, stamp int64) (int, bool) {
	return slices.BinarySearchFunc(marks, stamp, func(a mark, s int64) int {
		switch {
		case a.stamp < s:
			return -1
		case a.stamp > s:
			return 1
		}
		return 0
	})
}
