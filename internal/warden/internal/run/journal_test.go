//go:build linux

package run

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/testnet"
)

// killed runs a daemon that has run an action for both families, and kills it.
func (w *world) killed(a config.Action, after time.Duration) {
	w.t.Helper()
	action, err := json.Marshal(&a)
	if err != nil {
		w.t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "RUN_TEST_DAEMON="+w.dir, "ACTION="+string(action), "WORDS="+w.out, "AFTER="+after.String())
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	eventually(w.t, "the daemon's starts", func() bool { return len(w.lines()) >= 2 })
}

// Killed between start and undo: the next daemon runs what is due, once, with the
// number of the run.
func TestKilledBetween(t *testing.T) {
	w := newWorld(t)
	w.Close()
	w.killed(config.Action{Name: "a"}, 400*time.Millisecond)
	if len(w.journaled()) != 2 {
		t.Fatalf("the journal of the killed daemon: %v", w.journaled())
	}
	w.start()
	eventually(t, "undos", func() bool { return len(w.lines()) >= 4 })
	w.restart()
	w.restart()
	time.Sleep(100 * time.Millisecond)
	got := w.lines()
	slices.Sort(got)
	var want []string
	for _, l := range got {
		if rest, ok := strings.CutPrefix(l, "start "); ok {
			want = append(want, l, "undo "+rest)
		}
	}
	slices.Sort(want)
	if !slices.Equal(got, want) || len(got) != 4 {
		t.Errorf("commands wrote %q, want %q", got, want)
	}
	if len(w.journaled()) != 0 {
		t.Errorf("still to come: %v", w.journaled())
	}
}

// What was due while no daemon ran is run at once; the rest at its time.
func TestOverdue(t *testing.T) {
	w := newWorld(t)
	w.run(w.logs("late", 200*time.Millisecond), v4)
	w.run(w.logs("later", time.Hour), v6)
	eventually(t, "starts", func() bool { return len(w.lines()) == 2 })
	w.Close()
	os.Remove(w.out)
	time.Sleep(250 * time.Millisecond)
	w.start()
	w.until("undo 192.0.2.7\n")
	w.run(w.logs("later", time.Hour), v6) // its undo is still to come
	if !w.Undo(w.logs("later", time.Hour), v6, everybody, time.Now()) {
		t.Error("a restart lost an undo")
	}
	w.until("undo 192.0.2.7\nundo 2001:db8::7\n")
}

// A pending undo has the words of its start, whatever the config says by now.
func TestUndoHasTheWordsOfItsStart(t *testing.T) {
	w := newWorld(t)
	a := w.logs("a", time.Hour)
	a.Undo = append(a.Undo, "\xff\n\"$(x)")
	a.Undo[2] += `; printf '%s' "$0" >>` + w.out
	w.run(a, v4)
	w.until("start 192.0.2.7\n")
	w.restart()
	w.Undo(w.shell("a", "true", "echo wrong >>OUT", time.Second), v4, everybody, time.Now())
	w.until("start 192.0.2.7\nundo 192.0.2.7\n\xff\n\"$(x)")
}

// An undo is on disk before its start is asked for.
func TestJournalComesFirst(t *testing.T) {
	path := filepath.Join(t.TempDir(), journalName)
	seen := make(chan []byte, 1)
	r, err := New(Options{StateDir: filepath.Dir(path), Log: slog.New(slog.DiscardHandler), Tell: func(Event) {
		text, _ := os.ReadFile(path)
		seen <- text
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	a := &config.Action{Name: "a", RunIPv6: config.Command{"/bin/true"}, UndoIPv6: config.Command{"/bin/true"}, UndoAfter: time.Hour}
	if err := r.Run(Job{Action: a, Addr: v6}, time.Now()); err != nil {
		t.Fatal(err)
	}
	text := <-seen
	if old := read(bytes.NewReader(text)); len(old.records) != 1 || old.records[0].Addr != v6 {
		t.Errorf("before the start the journal was %q", text)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("%v %v", info, err)
	}
}

func someUndo(run uint64, addr netip.Addr) *undo {
	return &undo{
		run: run, line: line{target: target{"a\x00b", addr}}, words: []word{"/bin/true", "\xff\"\n", ""},
		env: []word{"A=1"}, after: time.Minute, due: time.Unix(5, 7),
	}
}

// Cut at any byte, a journal gives each whole line and no part of another.
func TestTornJournal(t *testing.T) {
	lines := [][]byte{entry("= 9"), entryOf(someUndo(10, v4)), entryOf(someUndo(11, v6)), entry("- 10"), entryOf(someUndo(12, netip.Addr{}))}
	want := [][]uint64{nil, {10}, {10, 11}, {11}, {11, 12}}
	whole := []byte{}
	for i, l := range lines {
		for cut := range len(l) + 1 {
			old := read(bytes.NewReader(append(slices.Clone(whole), l[:cut]...)))
			expect := []uint64(nil)
			if cut == len(l) {
				expect = want[i]
			} else if i > 0 {
				expect = want[i-1]
			}
			var got []uint64
			for _, rec := range old.records {
				got = append(got, rec.Run)
			}
			if old.damage != nil || !slices.Equal(got, expect) {
				t.Errorf("line %d cut at %d: %v (%v), want %v", i, cut, got, old.damage, expect)
			}
		}
		whole = append(whole, l...)
	}
	old := read(bytes.NewReader(whole))
	u, now := old.records[0].undo(time.Unix(1, 0)), someUndo(11, v6)
	if string(entryOf(u)) != string(entryOf(now)) || old.last != 12 {
		t.Errorf("%s is read as %s", entryOf(now), entryOf(u))
	}
}

// A damaged journal is said, kept, and done as far as it can be read.
func TestDamagedJournal(t *testing.T) {
	good := entryOf(&undo{run: 3, line: line{target: target{"a", v4}}, words: []word{"/bin/true"}, after: time.Hour, due: time.Now().Add(time.Hour)})
	flip := bytes.Replace(good, []byte(`"Run":3`), []byte(`"Run":4`), 1)
	for name, bad := range map[string][]byte{
		"a byte": flip, "an unknown kind": entry("? 12"), "no number": entry("- x"), "no command": entry(`+ {"Run":3}`),
		"no JSON": entry("+ {"), "an empty line": []byte("\n"), "zeros": append(make([]byte, 512), '\n'),
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.Close()
			text := append(slices.Clone(bad), good...)
			os.WriteFile(filepath.Join(w.dir, journalName), text, 0o600)
			w.start()
			aside, _ := filepath.Glob(filepath.Join(w.dir, "*.damaged-*"))
			if len(aside) != 1 || !strings.Contains(w.log.String(), "is damaged") {
				t.Fatalf("kept %v\n%s", aside, w.log)
			}
			if kept, _ := os.ReadFile(aside[0]); string(kept) != string(text) {
				t.Errorf("kept %q", kept)
			}
			if rec := w.journaled(); len(rec) != 1 || rec[0].Run != 3 {
				t.Errorf("taken up: %v", rec)
			}
		})
	}
}

// A clock that was set back leaves an undo its whole time and no more; one that
// jumped ahead makes it due.
func TestClockJumps(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	for _, test := range []struct{ due, want time.Duration }{
		{time.Second, time.Second}, {24 * time.Hour, time.Minute}, {-time.Hour, -time.Hour}, {1 << 62, time.Minute},
	} {
		rec := record{Due: now.Add(test.due).UnixNano(), After: time.Minute}
		if got := rec.undo(now).due.Sub(now); got != test.want {
			t.Errorf("due in %v: in %v, want %v", test.due, got, test.want)
		}
	}
	if u := (&record{After: time.Minute}).undo(now); !u.due.IsZero() {
		t.Error("what never comes by itself is due")
	}
	if u := (&record{AtStart: true}).undo(now); u.due != now {
		t.Error("the undo of another daemon's start is not due")
	}
}

func TestOneDaemon(t *testing.T) {
	w := newWorld(t)
	if r, err := New(w.options()); err == nil || !strings.Contains(err.Error(), "another daemon") {
		t.Errorf("%v %v", r, err)
	}
	w.restart()
}

// With no place for the journal commands run all the same, and it is said once;
// with a place again the journal is whole.
func TestFullDisk(t *testing.T) {
	testnet.RequireRoot(t)
	if os.Getenv("OWN_MOUNTS") == "" {
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestFullDisk$", "-test.count=1")
		cmd.Env = append(os.Environ(), "OWN_MOUNTS=yes")
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	w := newWorld(t)
	w.Close()
	w.dir = t.TempDir()
	if err := unix.Mount("tmpfs", w.dir, "tmpfs", 0, "size=16k,mode=700"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close(); unix.Unmount(w.dir, unix.MNT_DETACH) })
	w.start()
	filler, err := os.Create(filepath.Join(w.dir, "filler"))
	for err == nil {
		_, err = filler.Write(make([]byte, 4096))
	}
	filler.Close()
	for i := range 40 { // more than is left in the journal's last page
		w.run(w.logs(fmt.Sprint("a", i), time.Hour), v6)
	}
	eventually(t, "starts", func() bool { return len(w.lines()) == 40 })
	if n := strings.Count(w.log.String(), "can't be written"); n != 1 {
		t.Errorf("said %d times\n%s", n, w.log)
	}
	w.journaled() // whole lines only
	os.Remove(filler.Name())
	if err := unix.Mount("", w.dir, "", unix.MS_REMOUNT, "size=1m"); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if n := len(w.journaled()); n != 40 {
		t.Errorf("%d of 40 undos survive", n)
	}
}

func TestAFullDiskIsSaidOnce(t *testing.T) {
	log := &testnet.Output{}
	r := &Runner{o: Options{Log: slog.New(slog.NewTextHandler(log, nil))}}
	for range 3 {
		r.notSaved(unix.ENOSPC, time.Now())
	}
	if n := strings.Count(log.String(), "\n"); n != 1 {
		t.Errorf("said %d times", n)
	}
}

// A state directory that is not there takes nothing but the journal away.
func TestNoStateDirectory(t *testing.T) {
	for _, dir := range []string{"", "/nonexistent/dir"} {
		w := newWorld(t)
		w.Close()
		w.dir = dir
		w.start()
		w.run(w.logs("a", 10*time.Millisecond), v4)
		w.until("start 192.0.2.7\nundo 192.0.2.7\n")
		if said := strings.Contains(w.log.String(), "will not survive"); said != (dir != "") {
			t.Errorf("%q: %s", dir, w.log)
		}
	}
}

// The journal doesn't grow with the number of knocks.
func TestJournalIsCompacted(t *testing.T) {
	dir := t.TempDir()
	j, _, err := openJournal(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer j.close()
	u := someUndo(7, v4)
	r := &Runner{o: Options{Log: slog.New(slog.DiscardHandler)}, journal: j, kept: map[uint64]*undo{7: u}}
	r.rewrite(time.Now())
	base := r.journal.size
	for range 4 * slack / base {
		r.keep(entryOf(u), false, time.Now())
		if r.journal.size > 2*slack {
			t.Fatalf("%d bytes for one undo", r.journal.size)
		}
	}
	text, err := os.ReadFile(filepath.Join(dir, journalName))
	if old := read(bytes.NewReader(text)); err != nil || len(old.records) != 1 || old.damage != nil {
		t.Errorf("%d undos are left of one: %v %v", len(old.records), old.damage, err)
	}
}

// A journal is a script: one that others can write, or that another left, is not run,
// and the error says how to mend it.
func TestJournalOfOthers(t *testing.T) {
	us := os.Geteuid()
	for name, test := range map[string]struct {
		what  string // "": the directory
		mode  os.FileMode
		owner int
		fault string // "": none
	}{
		"own":                 {"", 0o700, us, ""},
		"own, to be read":     {"", 0o755, us, ""},
		"group writes":        {"", 0o770, us, "chmod go-w"},
		"others write":        {"", 0o707, us, "chmod go-w"},
		"like /tmp":           {"", 0o777 | os.ModeSticky, us, "chmod go-w"},
		"another's":           {"", 0o755, 65534, fmt.Sprintf("chown %d ", us)},
		"journal, group":      {journalName, 0o660, us, "chmod go-w"},
		"journal, others":     {journalName, 0o606, us, "chmod go-w"},
		"journal of another":  {journalName, 0o600, 65534, fmt.Sprintf("chown %d ", us)},
		"journal, to be read": {journalName, 0o644, us, ""},
		"lock, others":        {lockName, 0o666, us, "chmod go-w"},
		"lock of another":     {lockName, 0o600, 65534, fmt.Sprintf("chown %d ", us)},
	} {
		t.Run(name, func(t *testing.T) {
			if test.owner != us {
				testnet.RequireRoot(t)
			}
			w := newWorld(t)
			w.Close()
			for _, addr := range []netip.Addr{v4, v6} {
				planted := entryOf(&undo{run: 3, line: line{target: target{"a", addr}}, words: []word{"/bin/sh", "-c", word("echo ran >>" + w.out)}, after: 1, due: time.Unix(1, 0)})
				path := filepath.Join(w.dir, journalName)
				if err := os.WriteFile(path, planted, 0o600); err != nil {
					t.Fatal(err)
				}
				path = filepath.Join(w.dir, test.what)
				if err := errors.Join(os.Chown(path, test.owner, -1), os.Chmod(path, test.mode)); err != nil {
					t.Fatal(err)
				}
				w.start()
				w.run(w.shell("b", "echo b >>OUT", "", 0), addr)
				eventually(t, "b", func() bool { return strings.Contains(w.text(), "b\n") })
				if w.Close(); test.fault == "" {
					eventually(t, "both", func() bool { return len(w.lines()) == 2 })
				} else if log := w.log.String(); w.text() != "b\n" || !strings.Contains(log, test.fault) {
					t.Errorf("commands wrote %q\n%s", w.text(), log)
				}
				os.Remove(w.out)
			}
		})
	}
}

// What is kept is bounded in bytes, an action leaves room for the others, and what a
// journal has beyond the bound is done all the same.
func TestKeptIsBounded(t *testing.T) {
	r := bare(&testnet.Output{})
	// As much as a config can have of it; & and > would be six bytes each in JSON.
	fill := func(name string) (n int) {
		a := &config.Action{Name: name, UndoAfter: time.Hour, Run: config.Command{"/bin/true"}, Undo: config.Command{"/bin/sh", "-c", strings.Repeat("&>", 200<<10)}}
		a.RunIPv6, a.UndoIPv6 = a.Run, a.Undo
		for ; ; n++ {
			err := r.Run(Job{Action: a, Addr: nth([]netip.Addr{v4, v6}[n%2], n)}, time.Now())
			if r.starts = (queue{shares: map[string]*share{}}); err != nil {
				if !errors.Is(err, ErrBusy) {
					t.Fatal(err)
				}
				return n
			}
		}
	}
	a, b := fill("a"), fill("b")
	if a < 78 || a > 82 || b < 38 || b > 41 {
		t.Errorf("of 400 KiB each there are %d, and %d of another action", a, b)
	}
	if r.allBytes > maxKept {
		t.Errorf("%d bytes are kept", r.allBytes)
	}
	size := 0
	for _, of := range r.pending {
		for _, u := range of {
			r.kept[u.run] = u
			size += len(entryOf(u))
		}
	}
	if size > maxKept {
		t.Errorf("a journal of %d bytes", size)
	}
	for _, of := range r.pending {
		for _, u := range of {
			r.strike(r.undo(u, time.Now()))
		}
	}
	if r.allBytes != 0 || r.bytes["a"] != 0 || len(r.pending) != 0 {
		t.Errorf("%d bytes and %d targets are left", r.allBytes, len(r.pending))
	}
}

func TestJournalBeyondTheBound(t *testing.T) {
	w := newWorld(t)
	w.Close()
	var text []byte
	long := word(strings.Repeat("x", 1<<20))
	for i := range maxKept>>20 + 6 {
		text = append(text, entryOf(&undo{run: uint64(i + 1), line: line{target: target{"a", nth(v6, i)}}, words: []word{"/bin/true", long}, after: time.Hour, due: time.Now().Add(time.Hour)})...)
	}
	if err := os.WriteFile(filepath.Join(w.dir, journalName), text, 0o600); err != nil {
		t.Fatal(err)
	}
	w.start()
	if n := len(w.journaled()); n != maxKept>>20+6 || w.log.String() != "" {
		t.Errorf("%d undos were taken up\n%s", n, w.log)
	}
	for _, addr := range []netip.Addr{v4, v6} {
		if err := w.Run(Job{Action: w.logs("b", time.Hour), Addr: addr}, time.Now()); !errors.Is(err, ErrBusy) {
			t.Errorf("more is kept: %v", err)
		}
	}
}
