//go:build linux

package replay

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/dchest/siphash"
	"pgregory.net/rapid"
)

// told is a message and the rule under which it was accepted.
type told struct {
	*Heard
	Rule
}

// story has n messages of two keys accepted, clock stamps and counters, some
// ahead of the clock. It gives them in the order of the journal, each with its
// rule.
func story(t testing.TB, m *Memory, n int, now time.Time) []told {
	t.Helper()
	var all []told
	for i := range n {
		s := told{stamped(1, now.UnixNano()-int64(n-2-i), uint64(i)), minute}
		if i%3 == 2 {
			s = told{stamped(2, int64(i), uint64(i)), counting}
		}
		accept(t, m, s.Heard, s.Rule, now)
		all = append(all, s)
	}
	return all
}

// written is a machine whose current file holds n messages accepted in 2 s
// after an unclean start, and whose other file what was there before.
func written(t testing.TB, n int) (*machine, []told) {
	t.Helper()
	d := newMachine()
	m := memory(t, d.disk(), false, start)
	older := story(t, m, n, after(time.Second))
	if err := m.rewrite(start); err != nil {
		t.Fatal(err)
	}
	for i := range older {
		older[i].Stamp += int64(time.Second)
		older[i].Tag[8] = 1
		accept(t, m, older[i].Heard, older[i].Rule, after(2*time.Second))
	}
	return d, older
}

// A file cut anywhere, as by kill -9 in the middle of a write: what is before
// the cut is known, and the journal goes on.
func TestCut(t *testing.T) {
	fds, paths := memoryFiles(t)
	m, err := New(fds, true, start)
	if err != nil {
		t.Fatal(err)
	}
	all := story(t, m, 12, after(time.Second))
	current := m.journal.current
	whole, err := os.ReadFile(paths[current])
	if err != nil {
		t.Fatal(err)
	}
	first := len(whole) - len(all)*recordSize
	next := heard(3, 3*time.Second, 99)
	for cut := range len(whole) + 1 {
		if os.WriteFile(paths[current], whole[:cut], 0o600) != nil || os.Truncate(paths[1-current], 0) != nil {
			t.Fatal("the files can't be set up")
		}
		now := after(2 * time.Second)
		m, err := New(fds, true, now)
		if err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		for i, s := range all {
			want := Repeat
			switch {
			case first+(i+1)*recordSize <= cut:
			case s.NoClock:
				want = Fresh // the cut file is all there was
			case first > cut:
				want = BeforeStart
			default:
				want = Fresh
			}
			if why := m.Check(s.Heard, s.Rule, now); why != want {
				t.Fatalf("cut at %d of %d: message %d: %q, want %q", cut, len(whole), i, why, want)
			}
		}
		accept(t, m, next, minute, after(3*time.Second))
		again, err := New(fds, true, now)
		if err != nil || !equal(m, again) {
			t.Fatalf("cut at %d: a restart knows something else: %v", cut, err)
		}
	}
}

// One wrong bit anywhere: no panic, and nothing but the message of that very
// record can be good again, and that only if it is a counter or the last.
func TestFlip(t *testing.T) {
	d, all := written(t, 6)
	now := after(3 * time.Second)
	good := [2][]byte{slices.Clone(d.files[0].seen), slices.Clone(d.files[1].seen)}
	current := memory(t, d.disk(), true, now).journal.current
	for i := range good {
		for bit := range len(good[i]) * 8 {
			d.files[0].seen, d.files[1].seen = slices.Clone(good[0]), slices.Clone(good[1])
			d.files[i].seen[bit/8] ^= 1 << (bit % 8)
			m := memory(t, d.disk(), true, now)
			for n, s := range all {
				own := i == current && bit/8/recordSize == len(good[i])/recordSize-len(all)+n
				if why := m.Check(s.Heard, s.Rule, now); why == Fresh && !(own && s.NoClock) {
					t.Fatalf("file %d, bit %d of byte %d: message %d is good again", i, bit%8, bit/8, n)
				}
			}
			if again := memory(t, d.disk(), true, after(time.Hour)); !equal(m, again) {
				t.Fatalf("file %d, byte %d: what was damaged still counts at the next start", i, bit/8)
			}
		}
	}
}

// A header of another version is left alone: to begin afresh would let old
// messages in.
func TestOtherVersion(t *testing.T) {
	d, _ := written(t, 2)
	for i := range d.files {
		h := d.files[i].seen[:headerSize]
		binary.BigEndian.PutUint32(h[4:], version+1)
		binary.BigEndian.PutUint64(h[24:], siphash.Hash(0, 0, h[:24]))
		copy(h[32:], h[:32])
	}
	before := slices.Clone(d.files[0].seen)
	if m, err := begin(d.disk(), true, start); err == nil || m != nil {
		t.Error("a journal of another version was taken")
	}
	if !bytes.Equal(before, d.files[0].seen) {
		t.Error("a journal of another version was changed")
	}
}

// What an earlier life of a file left at the same place is no record.
func TestStaleBytes(t *testing.T) {
	d := newMachine()
	m := memory(t, d.disk(), true, start)
	story(t, m, 9, after(time.Second))
	old := slices.Clone(d.files[m.journal.current].seen)
	for range 2 { // back to the same file
		if err := m.rewrite(start); err != nil {
			t.Fatal(err)
		}
	}
	p := &d.files[m.journal.current]
	n := m.journal.records
	copy(p.seen[headerSize:], old[headerSize:])
	seen := 0
	m.journal.load(func(r *record) bool { seen++; return true })
	if int64(seen) != n { // the other file's
		t.Errorf("%d records of %d are whole, want only the other file's", seen, n)
	}
}

// The boundary of an unclean boot must hold after a kill in the same boot, for
// which the warden says that nothing was lost.
func TestBoundarySurvives(t *testing.T) {
	_, paths := files(t)
	for i, complete := range []bool{false, true, true} {
		m, err := New(reopen(t, paths), complete, after(time.Duration(i)*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		expect(t, m, heard(1, 0, 1), minute, after(time.Second), BeforeStart)
		expect(t, m, heard(1, 1, 1), minute, after(time.Second), Fresh)
		expect(t, m, stamped(1, 1, 1), counting, after(time.Second), Fresh)
		if i == 1 {
			if err := m.rewrite(start); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// After an unclean boot the boundary lies at the newest clock stamp, and a
// client that counts from a great number does not move it for the others.
func TestBoundaryIsOfClocks(t *testing.T) {
	d := newMachine()
	m := memory(t, d.disk(), false, start)
	accept(t, m, stamped(1, 1<<62, 1), counting, start)
	accept(t, m, heard(2, 30*time.Second, 1), minute, start)
	d.reboot()
	m = memory(t, d.disk(), false, after(time.Second))
	expect(t, m, heard(3, 30*time.Second, 1), minute, after(time.Second), BeforeStart)
	expect(t, m, heard(3, 30*time.Second+1, 1), minute, after(time.Second), Fresh)
}

// A power cut: of what was not synced, any part may be lost, and nothing that
// was accepted is good again.
func TestPowerCut(t *testing.T) {
	for round := range 300 {
		d := newMachine()
		m := memory(t, d.disk(), false, start)
		now := after(time.Second)
		all := story(t, m, 1+round%150, now)
		d.reboot()
		m = memory(t, d.disk(), false, after(2*time.Second))
		for i, s := range all {
			if why := m.Check(s.Heard, s.Rule, now); why == Fresh {
				t.Fatalf("round %d: message %d of %d is good again", round, i, len(all))
			}
		}
	}
}

// A rewriting stopped at every call, and the next one too: by a kill, after
// which all that was written is seen, or by a power cut.
func TestRewritingStopped(t *testing.T) {
	const calls = 10 // more than a rewriting makes
	for first := range calls * 2 {
		for second := range calls * 2 {
			d, all := written(t, 150)
			d.random = newRandom(uint64(first*calls*2 + second))
			m := memory(t, d.disk(), true, after(3*time.Second))
			for i, stop := range []int{first, second} {
				d.calls = stop/2 + 1
				m.rewrite(start)
				power := stop%2 == 1
				if d.calls = -1; power {
					d.reboot()
				}
				m = memory(t, d.disk(), !power, after(time.Duration(4+i)*time.Second))
				for n, s := range all {
					if why := m.Check(s.Heard, s.Rule, after(4*time.Second)); why == Fresh {
						t.Fatalf("stops %d and %d: message %d is good again after stop %d", first, second, n, i)
					}
				}
			}
		}
	}
}

// The start after an unclean boot, stopped at every call, says so, and leaves
// what a later start needs.
func TestStartStopped(t *testing.T) {
	for _, power := range []bool{false, true} {
		d, all := written(t, 150)
		d.reboot()
		failed := 0
		for d.calls = 1; d.calls < 20; d.calls++ {
			calls := d.calls
			_, err := begin(d.disk(), false, after(3*time.Second))
			if err == nil {
				if d.calls = -1; power {
					d.reboot()
				}
				m := memory(t, d.disk(), !power, after(4*time.Second))
				for n, s := range all {
					if why := m.Check(s.Heard, s.Rule, after(4*time.Second)); why == Fresh {
						t.Fatalf("power cut %v, %d calls: message %d is good again", power, calls, n)
					}
				}
				break
			}
			failed++
			if power {
				d.reboot()
			}
			d.calls = calls
		}
		if failed != 8 {
			t.Errorf("power cut %v: %d starts were stopped, want one at each of 8 calls", power, failed)
		}
	}
}

// A file that is mostly superseded is rewritten into the other, and a full disk
// then is no reason to refuse anybody.
func TestLong(t *testing.T) {
	fds, paths := files(t)
	m, err := New(fds, true, start)
	if err != nil {
		t.Fatal(err)
	}
	now := after(time.Minute)
	before := m.journal.current
	for i := range slack + 6*PerKey {
		accept(t, m, heard(1, time.Duration(i+1), uint64(i)), minute, now)
	}
	size := func(i int) int64 {
		st, err := os.Stat(paths[i])
		if err != nil {
			t.Fatal(err)
		}
		return st.Size()
	}
	if m.journal.current == before || size(1-before) > (slack/4)*recordSize {
		t.Errorf("the journal was not rewritten: file %d has %d bytes", m.journal.current, size(m.journal.current))
	}
	again, err := New(reopen(t, paths), true, now)
	if err != nil || !equal(m, again) {
		t.Errorf("a restart knows something else: %v", err)
	}
}

// Each call of an acceptance, and of the rewriting that it may do, fails once.
// What was granted stays refused, and as soon as the disk works, so does the
// journal.
func TestDiskFails(t *testing.T) {
	for good := range 8 {
		d := newMachine()
		m := memory(t, d.disk(), true, start)
		now := after(time.Second)
		all := story(t, m, 5, now)
		ahead := heard(1, 2*time.Second, 50)
		d.good = good
		err := m.Accept(ahead, minute, now) // a write and a sync
		if (err != nil) != (good < 2) {
			t.Fatalf("failing at call %d: %v", good, err)
		}
		if err != nil {
			expect(t, m, ahead, minute, now, Fresh)
			accept(t, m, ahead, minute, now)
		}
		m.rewrite(now)
		d.good = -1
		last := heard(1, 3*time.Second, 51)
		accept(t, m, last, minute, now)
		all = append(all, told{ahead, minute}, told{last, minute})
		d.reboot()
		m = memory(t, d.disk(), false, now)
		for i, s := range all {
			if why := m.Check(s.Heard, s.Rule, now); why == Fresh {
				t.Errorf("failing at call %d: message %d is good again", good, i)
			}
		}
	}
}

// A kernel may throw away the pages that it failed to write. Then the file has
// lost what this boot still counts on, and only writing all afresh helps.
func TestSyncFails(t *testing.T) {
	d := newMachine()
	d.evicts = true
	m := memory(t, d.disk(), true, start)
	now := after(time.Second)
	var all []told
	for i := range PerKey {
		s := told{stamped(1, now.UnixNano()-int64(i), uint64(i)), minute}
		if m.Accept(s.Heard, s.Rule, now) == nil {
			all = append(all, s)
		}
	}
	d.good = 1
	ahead := heard(2, 2*time.Second, 1)
	if m.Accept(ahead, minute, now) == nil {
		t.Error("what could not be synced was accepted")
	}
	accept(t, m, ahead, minute, now)
	m = memory(t, d.disk(), true, now)
	for _, s := range append(all, told{ahead, minute}) {
		expect(t, m, s.Heard, s.Rule, now, Repeat)
	}
}

// The last sync of a rewriting fails, so that both files may look current. What
// is accepted next must not stand in the one that the next start empties first.
func TestTwoCurrentFiles(t *testing.T) {
	d, _ := written(t, 9)
	now := after(3 * time.Second)
	m := memory(t, d.disk(), true, now)
	d.good = 5
	if m.rewrite(now) == nil || d.good != -1 {
		t.Fatal("the last call of the rewriting did not fail")
	}
	next := stamped(2, 1<<40, 1000)
	accept(t, m, next, counting, now)
	m = memory(t, d.disk(), true, now)
	d.calls = 4
	m.rewrite(now)
	d.calls = -1
	expect(t, memory(t, d.disk(), true, now), next, counting, now, Repeat)
}

// The same, and the process dies at once. The next one sees a header that no
// sync of its own would write, and a power cut would hide all behind it.
func TestHeaderNeverSynced(t *testing.T) {
	for seed := range uint64(20) {
		d, _ := written(t, 9)
		d.random = newRandom(seed)
		now := after(3 * time.Second)
		d.good = 7 // the start makes two calls
		if memory(t, d.disk(), true, now).rewrite(now) == nil || d.good != -1 {
			t.Fatal("the last call of the rewriting did not fail")
		}
		next := stamped(2, 1<<40, 1000)
		accept(t, memory(t, d.disk(), true, now), next, counting, now)
		d.reboot()
		expect(t, memory(t, d.disk(), false, now), next, counting, now, Repeat)
	}
}

// A file at its greatest size refuses one message and is rewritten at the next.
func TestGreatestSize(t *testing.T) {
	d := newMachine()
	m := memory(t, d.disk(), true, start)
	m.journal.records = maxRecords
	now := after(time.Second)
	if err := m.Accept(heard(1, 1, 1), minute, now); !errors.Is(err, errLong) {
		t.Errorf("a record too many: %v", err)
	}
	accept(t, m, heard(1, 1, 1), minute, now)
	if m.journal.records > 3 {
		t.Errorf("the journal has %d records", m.journal.records)
	}
}

// A rewriting that fails is no reason to refuse anybody, nor to try again at
// every message.
func TestLongOnAFullDisk(t *testing.T) {
	d := newMachine()
	m := memory(t, d.disk(), true, start)
	now, tried := after(time.Minute), 0
	for i := range slack + 5*PerKey {
		d.good = 1 // the record's own write
		accept(t, m, heard(1, time.Duration(i+1), uint64(i)), minute, now)
		if d.good < 0 {
			tried++
		}
	}
	if tried != 1 {
		t.Errorf("the rewriting was tried %d times", tried)
	}
	d.good = -1
	for i := range slack {
		accept(t, m, heard(1, time.Second+time.Duration(i), uint64(1<<20+i)), minute, now)
	}
	if m.journal.records > slack {
		t.Errorf("with space again, the journal still has %d records", m.journal.records)
	}
}

// TestFaults has a disk that fails, dies and loses power wherever it likes. As
// long as the clock only rises, nothing granted may be good again.
func TestFaults(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := newMachine()
		d.random = newRandom(rapid.Uint64().Draw(t, "seed"))
		now, n := start, uint64(0)
		var granted []told
		var m *Memory
		restart := func(complete bool) {
			for range 20 {
				var err error
				if m, err = begin(d.disk(), complete, now); err == nil {
					return
				}
				switch {
				case d.calls == 0 && rapid.Bool().Draw(t, "power"):
					d.reboot()
					complete = false
				default:
					d.calls, d.good = -1, -1
				}
			}
			t.Fatal("no start works")
		}
		restart(false)
		t.Repeat(map[string]func(*rapid.T){
			"accept": func(t *rapid.T) {
				n++
				now = now.Add(time.Duration(rapid.IntRange(1, 5).Draw(t, "pause")))
				s := told{stamped(1, now.UnixNano()+rapid.Int64Range(-5, 5).Draw(t, "ahead"), n), minute}
				if rapid.Bool().Draw(t, "counting") {
					s = told{stamped(2, int64(n), n), counting}
				}
				if m.Accept(s.Heard, s.Rule, now) == nil {
					granted = append(granted, s)
				}
			},
			"rewrite": func(t *rapid.T) { m.rewrite(now) },
			"fail":    func(t *rapid.T) { d.good = rapid.IntRange(0, 6).Draw(t, "good") },
			"die":     func(t *rapid.T) { d.calls = rapid.IntRange(1, 8).Draw(t, "calls") },
			"kill":    func(t *rapid.T) { d.calls = -1; restart(true) },
			"power":   func(t *rapid.T) { d.reboot(); restart(false) },
			"": func(t *rapid.T) {
				for _, s := range granted {
					if why := m.Check(s.Heard, s.Rule, now); why == Fresh {
						t.Fatalf("stamp %d (counter %v) is good again", s.Stamp, s.NoClock)
					}
				}
			},
		})
	})
}

// FuzzNew reads anything as two journals: no panic, and what New made of it
// reads as the same.
func FuzzNew(f *testing.F) {
	d, _ := written(f, 3)
	f.Add(d.files[0].seen, d.files[1].seen, true)
	f.Add([]byte{}, []byte{}, false)
	f.Fuzz(func(t *testing.T, a, b []byte, complete bool) {
		d := newMachine()
		d.files[0].seen, d.files[1].seen = slices.Clone(a), slices.Clone(b)
		m, err := begin(d.disk(), complete, start)
		if err != nil {
			return
		}
		for range 2 {
			again, err := begin(d.disk(), true, after(time.Second))
			if err != nil || !equal(m, again) {
				t.Fatalf("read again, it is something else: %v", err)
			}
		}
		h := heard(200, 1, 1)
		if m.Check(h, minute, start) == Fresh {
			accept(t, m, h, minute, start)
			expect(t, memory(t, d.disk(), true, start), h, minute, start, Repeat)
		}
	})
}
