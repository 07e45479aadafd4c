//go:build linux

package replay

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// start is the moment of most tests; stamps are near it.
var start = time.Unix(1_800_000_000, 0)

var (
	minute   = Rule{Window: time.Minute}
	counting = Rule{NoClock: true}
)

func after(d time.Duration) time.Time { return start.Add(d) }

// heard is message n of a key, with a stamp that far after the start.
func heard(key byte, d time.Duration, n uint64) *Heard {
	return stamped(key, start.UnixNano()+int64(d), n)
}

func stamped(key byte, stamp int64, n uint64) *Heard {
	h := &Heard{Key: Key{0: key, 31: 1}, Stamp: stamp}
	binary.BigEndian.PutUint64(h.Tag[:], n)
	h.Tag[15] = key
	return h
}

func accept(t testing.TB, m *Memory, h *Heard, r Rule, now time.Time) {
	t.Helper()
	if err := m.Accept(h, r, now); err != nil {
		t.Fatalf("stamp %d: %v", h.Stamp, err)
	}
}

func expect(t testing.TB, m *Memory, h *Heard, r Rule, now time.Time, want Why) {
	t.Helper()
	if why := m.Check(h, r, now); why != want {
		t.Errorf("key %d, stamp %d: %q, want %q", h.Key[0], h.Stamp, why, want)
	}
}

func memory(t testing.TB, disk [2]file, complete bool, now time.Time) *Memory {
	t.Helper()
	m, err := begin(disk, complete, now)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// fresh is a memory that refuses nothing for a boot.
func fresh(t testing.TB) *Memory {
	t.Helper()
	m, err := New([2]int{-1, -1}, true, start)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// equal compares what two memories know.
func equal(a, b *Memory) bool {
	return a.boundary == b.boundary && a.count == b.count && maps.EqualFunc(a.keys, b.keys, slices.Equal)
}

func TestCheck(t *testing.T) {
	past := time.Unix(-1<<33, 0) // before 1970: its difference to a stamp overflows int64
	for _, e := range []struct {
		name string
		h    *Heard
		rule Rule
		now  time.Time
		want Why
	}{
		{"now", heard(1, 0, 9), minute, start, Fresh},
		{"the window's old end", heard(1, -time.Minute, 9), minute, start, Fresh},
		{"just outside it", heard(1, -time.Minute-1, 9), minute, start, TooOld},
		{"the window's new end", heard(1, time.Minute, 9), minute, start, Fresh},
		{"just outside it, ahead", heard(1, time.Minute+1, 9), minute, start, FromTheFuture},
		{"no window", heard(1, 0, 9), Rule{}, start, Fresh},
		{"no window, 1 ns old", heard(1, -1, 9), Rule{}, start, TooOld},
		{"a negative window", heard(1, 1, 9), Rule{Window: -1}, start, FromTheFuture},
		{"the greatest stamp", stamped(1, math.MaxInt64, 9), minute, start, FromTheFuture},
		{"the greatest stamp before 1970", stamped(1, math.MaxInt64, 9), minute, past, FromTheFuture},
		{"the greatest window", stamped(1, 1, 9), Rule{Window: math.MaxInt64}, start, Fresh},
		{"the smallest stamp", stamped(1, 1, 9), minute, start, TooOld},
		{"zero", stamped(1, 0, 9), minute, time.Unix(0, 0), TooOld},
		{"the smallest int64", stamped(1, math.MinInt64, 9), minute, start, TooOld},
		{"a copy", heard(2, 0, 1), minute, start, Repeat},
		{"a copy, a day later", heard(2, 0, 1), minute, after(24 * time.Hour), Repeat},
		{"a copy with another stamp", heard(2, 5, 1), minute, start, Repeat},
		{"another message with the stamp", heard(2, 0, 9), minute, start, Repeat},
		{"another key with the stamp", heard(3, 0, 9), minute, start, Fresh},
		{"older than the one remembered", heard(2, -1, 9), minute, start, Fresh},
		{"a first counter", stamped(1, 1, 9), counting, start, Fresh},
		{"the greatest counter", stamped(4, math.MaxInt64, 9), counting, start, Fresh},
		{"a counter that rises", stamped(4, 8, 9), counting, start, Fresh},
		{"a counter again", stamped(4, 7, 9), counting, start, NotRising},
		{"its copy", stamped(4, 7, 1), counting, start, Repeat},
		{"a smaller counter", stamped(4, 6, 9), counting, start, NotRising},
		{"a counter of zero", stamped(1, 0, 9), counting, start, NotRising},
		{"a negative counter", stamped(1, -1, 9), counting, start, NotRising},
	} {
		m := fresh(t)
		accept(t, m, heard(2, 0, 1), minute, start)
		accept(t, m, stamped(4, 7, 1), counting, start)
		if why := m.Check(e.h, e.rule, e.now); why != e.want {
			t.Errorf("%s: %q, want %q", e.name, why, e.want)
		}
		if err := m.Accept(e.h, e.rule, e.now); (err == nil) != (e.want == Fresh) {
			t.Errorf("%s: accepting gave %v", e.name, err)
		}
	}
}

// Two machines with one key and clocks 2 s apart must both get in, for ever,
// and what the ring let go must stay refused.
func TestTwoClocks(t *testing.T) {
	m := fresh(t)
	var all []*Heard
	for i := range 40 * PerKey {
		now := after(time.Duration(i) * 100 * time.Millisecond)
		lag := time.Duration(i%2) * 2 * time.Second
		h := stamped(1, now.Add(-lag).UnixNano()+int64(i%2), uint64(i))
		accept(t, m, h, minute, now)
		for _, old := range append(all, h) {
			if why := m.Check(old, minute, now); why == Fresh {
				t.Fatalf("stamp %d is good again", old.Stamp)
			}
		}
		if all = append(all, h); len(all) > 4*PerKey {
			all = all[1:]
		}
	}
	last := all[len(all)-1]
	now := time.Unix(0, last.Stamp)
	expect(t, m, stamped(1, m.keys[last.Key][0].stamp-1, 9999), minute, now, Forgotten)
	expect(t, m, stamped(1, m.keys[last.Key][0].stamp+1, 9999), minute, now, Fresh)
}

func TestFull(t *testing.T) {
	d := newMachine()
	m := memory(t, d.disk(), true, start)
	now := after(time.Second)
	for i := range MaxKeys {
		h := heard(1, 1, 0)
		binary.BigEndian.PutUint32(h.Key[4:], uint32(i))
		accept(t, m, h, minute, now)
	}
	for _, r := range []Rule{minute, counting} {
		expect(t, m, heard(2, 1, 0), r, now, Full)
	}
	if err := m.Accept(heard(2, 1, 0), minute, now); err == nil || len(m.keys) != MaxKeys {
		t.Errorf("one key too many: %v, %d keys", err, len(m.keys))
	}
	expect(t, m, heard(2, 2*time.Minute, 0), minute, now, FromTheFuture)
	known := heard(1, 2, 1)
	expect(t, m, known, minute, start, Fresh)
	again := memory(t, d.disk(), true, start)
	if !equal(m, again) {
		t.Error("a restart forgot a key of a full memory")
	}
}

func files(t testing.TB) ([2]int, [2]string) {
	t.Helper()
	dir := t.TempDir()
	paths := [2]string{filepath.Join(dir, "heard.0"), filepath.Join(dir, "heard.1")}
	return reopen(t, paths), paths
}

// memoryFiles are real files on a disk that syncs at once.
func memoryFiles(t testing.TB) (fds [2]int, paths [2]string) {
	t.Helper()
	for i := range fds {
		n, err := unix.MemfdCreate("heard", unix.MFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(n) })
		fds[i], paths[i] = n, fmt.Sprintf("/proc/self/fd/%d", n)
	}
	return fds, paths
}

func reopen(t testing.TB, paths [2]string) [2]int {
	t.Helper()
	var fds [2]int
	for i, path := range paths {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		fds[i] = int(f.Fd())
	}
	return fds
}

func TestDescriptors(t *testing.T) {
	good, _ := files(t)
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for _, e := range []struct {
		name string
		fds  [2]int
		want string
	}{
		{"one of two", [2]int{good[0], -1}, "journal 1: descriptor -1"},
		{"a device", [2]int{int(null.Fd()), good[1]}, "is not a regular file"},
		{"one file twice", [2]int{good[0], good[0]}, "the same file"},
	} {
		if m, err := New(e.fds, true, start); err == nil || m != nil || !strings.Contains(err.Error(), e.want) {
			t.Errorf("%s: %v, want %q", e.name, err, e.want)
		}
	}
	// A descriptor that can't be written is no journal, and this says so at once.
	path := filepath.Join(t.TempDir(), "f")
	os.WriteFile(path, nil, 0o600)
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := New([2]int{good[0], int(f.Fd())}, false, start); err == nil {
		t.Error("a journal that can't be written was taken")
	}
}

// With no journal an unclean start refuses what an earlier process may have
// accepted.
func TestNoJournal(t *testing.T) {
	m, err := New([2]int{-1, -1}, false, start)
	if err != nil {
		t.Fatal(err)
	}
	expect(t, m, heard(1, 0, 1), minute, start, BeforeStart)
	accept(t, m, heard(1, 1, 1), minute, start)
	expect(t, m, heard(1, 1, 1), minute, start, Repeat)
}

// What a flood of copies costs must not include work for the collector.
func TestAllocs(t *testing.T) {
	m := memory(t, newMachine().disk(), true, start)
	for i := range PerKey {
		accept(t, m, heard(1, time.Duration(i+1), uint64(i)), minute, start)
	}
	for _, e := range []struct {
		h    *Heard
		rule Rule
	}{
		{heard(1, 3, 3), minute}, {heard(1, 1000, 1000), minute}, {heard(2, 3, 3), minute},
		{heard(1, 0, 99), minute}, {heard(1, time.Hour, 99), minute}, {stamped(1, 1, 1), counting},
	} {
		if n := testing.AllocsPerRun(100, func() { m.Check(e.h, e.rule, start) }); n != 0 {
			t.Errorf("stamp %d: %v allocations", e.h.Stamp, n)
		}
	}
	fds, _ := files(t)
	m, err := New(fds, true, start)
	if err != nil {
		t.Fatal(err)
	}
	h := heard(1, 0, 0)
	next := func() {
		h.Stamp++
		binary.BigEndian.PutUint64(h.Tag[:], uint64(h.Stamp))
		accept(t, m, h, minute, after(time.Second))
	}
	for range PerKey {
		next()
	}
	if n := testing.AllocsPerRun(100, next); n != 0 {
		t.Errorf("accepting: %v allocations", n)
	}
}

func BenchmarkCheck(b *testing.B) {
	m := fresh(b)
	for i := range PerKey {
		accept(b, m, heard(1, time.Duration(i+1), uint64(i)), minute, start)
	}
	for name, h := range map[string]*Heard{"fresh": heard(1, 1000, 1000), "repeat": heard(1, PerKey, PerKey-1)} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				m.Check(h, minute, start)
			}
		})
	}
}

func BenchmarkAccept(b *testing.B) {
	for name, now := range map[string]time.Time{"written": after(time.Hour), "synced": start} {
		b.Run(name, func(b *testing.B) {
			fds, _ := files(b)
			m, err := New(fds, true, start)
			if err != nil {
				b.Fatal(err)
			}
			wide := Rule{Window: 24 * time.Hour}
			b.ReportAllocs()
			h := heard(1, 0, 0)
			for b.Loop() {
				h.Stamp++
				binary.BigEndian.PutUint64(h.Tag[:], uint64(h.Stamp))
				accept(b, m, h, wide, now)
			}
		})
	}
}
