//go:build linux

package replay

import (
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"testing"
)

var (
	errDead = errors.New("the process is dead")
	errDisk = errors.New("the disk fails")
)

// machine is two files on a disk that can stop at any call, fail at any call,
// and lose what was never synced.
type machine struct {
	files  [2]platter
	random *rand.Rand
	// calls is how many calls that change something are left before the process
	// dies in the middle of the next; below 0, it lives.
	calls int
	// good is how many such calls are left before one fails; below 0, none does.
	good int
	// evicts is for a kernel that drops at once the pages which it failed to
	// write: even this boot then reads what is on the disk.
	evicts bool
}

// platter is one file: what processes see, and what a power cut can leave of it.
type platter struct {
	m       *machine
	seen    []byte
	durable []byte
	pending []change
}

// change is a write, or with a negative offset an emptying.
type change struct {
	off int64
	b   []byte
}

func newMachine() *machine {
	m := &machine{random: rand.New(rand.NewPCG(1, 2)), calls: -1, good: -1}
	m.files[0].m, m.files[1].m = m, m
	return m
}

func (m *machine) disk() [2]file { return [2]file{&m.files[0], &m.files[1]} }

// step says whether a call is made whole, and what it answers.
func (m *machine) step() (whole bool, err error) {
	switch m.calls {
	case -1:
	case 0:
		return false, errDead
	default:
		m.calls--
		if m.calls == 0 {
			return false, errDead
		}
	}
	switch m.good {
	case -1:
	case 0:
		m.good = -1
		return false, errDisk
	default:
		m.good--
	}
	return true, nil
}

// reboot starts the machine again after a power cut: of what was not synced,
// any part may be there.
func (m *machine) reboot() {
	m.calls, m.good = -1, -1
	for i := range m.files {
		p := &m.files[i]
		p.settle()
		p.seen = slices.Clone(p.durable)
	}
}

// settle lets some of what is pending reach the disk, and the rest never.
func (p *platter) settle() {
	for _, c := range p.pending {
		if p.m.random.IntN(2) == 0 {
			p.durable = c.apply(p.durable)
		}
	}
	p.pending = nil
}

func (c change) apply(to []byte) []byte {
	if c.off < 0 {
		return nil
	}
	if end := int(c.off) + len(c.b); len(to) < end {
		to = append(to, make([]byte, end-len(to))...)
	}
	copy(to[c.off:], c.b)
	return to
}

func (p *platter) change(c change) {
	p.seen = c.apply(p.seen)
	p.pending = append(p.pending, c)
}

func (p *platter) size() (int64, error) { return int64(len(p.seen)), nil }

func (p *platter) read(b []byte, off int64) error {
	if off+int64(len(b)) > int64(len(p.seen)) {
		return io.ErrUnexpectedEOF
	}
	copy(b, p.seen[off:])
	return nil
}

func (p *platter) write(b []byte, off int64) error {
	dead := p.m.calls == 0
	whole, err := p.m.step()
	if !whole {
		b = b[:p.m.random.IntN(len(b)+1)]
	}
	if dead || len(b) == 0 {
		return err
	}
	// A page at a time: a power cut can lose one in the middle.
	for part := range slices.Chunk(b, 4096) {
		p.change(change{off, slices.Clone(part)})
		off += int64(len(part))
	}
	return err
}

func (p *platter) empty() error {
	whole, err := p.m.step()
	if whole {
		p.change(change{off: -1})
	}
	return err
}

// sync that fails leaves pages which nobody will write any more.
func (p *platter) sync() error {
	whole, err := p.m.step()
	switch {
	case whole:
		for _, c := range p.pending {
			p.durable = c.apply(p.durable)
		}
		p.pending = nil
	case err == errDisk:
		if p.settle(); p.m.evicts {
			p.seen = slices.Clone(p.durable)
		}
	}
	return err
}

// The disk above is checked for itself, or else the tests on it could not fail.
func TestDisk(t *testing.T) {
	m := newMachine()
	p := &m.files[0]
	p.write([]byte("synced"), 0)
	p.sync()
	p.write([]byte("never"), 100)
	if m.reboot(); string(p.seen[:6]) != "synced" {
		t.Errorf("the disk lost what was synced: %q", p.seen)
	}
	p.write([]byte("lost"), 200)
	m.good = 0
	if err := p.sync(); err != errDisk || len(p.pending) != 0 {
		t.Errorf("a sync that fails leaves something for the next: %v, %d", err, len(p.pending))
	}
	m.calls = 1
	if err := p.write([]byte("torn"), 0); err != errDead {
		t.Errorf("a dead process wrote: %v", err)
	}
	before := string(p.seen)
	if err := p.write([]byte("later"), 0); err != errDead || string(p.seen) != before {
		t.Errorf("a dead process changed the file: %v", err)
	}
}
