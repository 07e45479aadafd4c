//go:build linux

package run

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/testnet"
)

// nth is one of many addresses of a family.
func nth(like netip.Addr, i int) netip.Addr {
	b := like.As16()
	b[13], b[14], b[15] = byte(i>>16), byte(i>>8), byte(i)
	return netip.AddrFrom16(b).Unmap()
}

// A door whose command stays in the foreground, and that all the world knocks at,
// keeps no other action from starting, nor its undo.
func TestOneActionStarvesNoOther(t *testing.T) {
	families(t, func(t *testing.T, addr netip.Addr) {
		w := newWorld(t)
		hang, other := w.shell("wake", "sleep 4", "", 0), w.logs("other", 50*time.Millisecond)
		began, refused := time.Now(), 0
		for i := range 1000 {
			switch err := w.Run(Job{Action: hang, Addr: nth(addr, i)}, time.Now()); {
			case errors.Is(err, ErrBusy):
				refused++
			case err != nil:
				t.Fatal(err)
			}
		}
		w.run(other, addr)
		w.until(fmt.Sprintf("start %s\nundo %[1]s\n", addr))
		if took := time.Since(began); took > 3*time.Second {
			t.Errorf("another action took %v", took)
		}
		if n := len(w.told()) - 3; n != actionRunning || refused < 1000-actionRunning-actionWaiting {
			t.Errorf("%d run at once, %d are refused", n, refused)
		}
	})
}

// The same for who asks for one action, where each has a share of it.
func TestOneShareStarvesNoOther(t *testing.T) {
	families(t, func(t *testing.T, addr netip.Addr) {
		w := newWorld(t)
		a := w.shell("open", `test "$SALLYPORT_ADDR" = `+addr.String()+` && echo in >>OUT || sleep 4`, `echo out >>OUT`, time.Hour)
		for i := range 2 * actionWaiting {
			w.Run(Job{Action: a, Addr: nth(addr, i), Share: "all the world"}, time.Now())
		}
		for i := range 2 * actionRunning {
			w.Undo(a, nth(addr, i), everybody, time.Now())
		}
		began := time.Now()
		if err := w.Run(Job{Action: a, Addr: addr, Share: "keys"}, time.Now()); err != nil {
			t.Error(err)
		}
		w.until("in\n")
		w.Undo(a, addr, everybody, time.Now())
		w.until("in\nout\n")
		if took := time.Since(began); took > 3*time.Second {
			t.Errorf("another share took %v", took)
		}
	})
}

// The same of undos, which nobody refuses.
func TestUndosOfOneActionStarveNoOther(t *testing.T) {
	families(t, func(t *testing.T, addr netip.Addr) {
		w := newWorld(t)
		hang, other := w.shell("hang", "true", "sleep 3", time.Hour), w.logs("other", time.Hour)
		for i := range 2 * maxRunning {
			w.run(hang, nth(addr, i))
		}
		w.run(other, addr)
		eventually(t, "all starts", func() bool { return len(w.told()) == 2*maxRunning+1 })
		for i := range 2 * maxRunning {
			w.Undo(hang, nth(addr, i), everybody, time.Now())
		}
		began := time.Now()
		w.Undo(other, addr, everybody, time.Now())
		w.until(fmt.Sprintf("start %s\nundo %[1]s\n", addr))
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("another action's undo took %v", took)
		}
	})
}

// bare is a runner without a spawner: nothing it takes is ever run.
func bare(log *testnet.Output) *Runner {
	return &Runner{
		o: Options{Log: slog.New(slog.NewTextHandler(log, nil))}, wake: make(chan struct{}, 1),
		starts: queue{shares: map[string]*share{}}, undos: queue{shares: map[string]*share{}},
		lines: map[line][]*command{}, known: map[uint64]*command{},
		pending: map[target][]*undo{}, bytes: map[string]int{}, kept: map[uint64]*undo{},
	}
}

// Actions come in turn, each with its oldest first, and what waits for its line is
// passed over and keeps its place.
func TestTurns(t *testing.T) {
	r := bare(&testnet.Output{})
	now := time.Now()
	for i := range 20 {
		at := target{"a", nth(v4, i/2)} // two for each address
		r.enter(&command{line: line{target: at}, of: "a", words: []word{word(strconv.Itoa(i))}, since: now.Add(time.Duration(i)), patient: now.Add(patience)})
	}
	for i := range 3 {
		r.enter(&command{line: line{target: target{"b", nth(v6, i)}}, of: "b", words: []word{word(fmt.Sprint("b", i))}})
	}
	taken := func() (out string) {
		ready, _ := r.pick(now)
		for _, c := range ready {
			out += string(c.words[0]) + " "
		}
		return out
	}
	if got, want := taken(), "0 b0 2 b1 4 b2 6 8 10 12 14 "; got != want {
		t.Errorf("taken %q, want %q", got, want)
	}
	if got := taken(); got != "" {
		t.Errorf("over the share of the action: %q", got)
	}
	// The oldest that still waits is 1, the second of its address.
	if when := r.slow(now); when != now.Add(tardy+1) {
		t.Errorf("what waits is looked at after %v", when.Sub(now))
	}
	for _, c := range r.known {
		r.ended(c)
	}
	if got, want := taken(), "1 3 5 7 9 11 13 15 "; got != want {
		t.Errorf("then taken %q, want %q", got, want)
	}
	if r.starts.waiting != 4 || r.starts.running != actionRunning || len(r.starts.shares) != 1 {
		t.Errorf("%d wait and %d run of %d actions", r.starts.waiting, r.starts.running, len(r.starts.shares))
	}
}

func TestWaitingIsBoundedForAllActions(t *testing.T) {
	r := bare(&testnet.Output{})
	var err error
	n := 0
	for ; err == nil && n < 2*maxWaiting; n++ {
		a := &config.Action{Name: strconv.Itoa(n), Run: config.Command{"/bin/true"}, RunIPv6: config.Command{"/bin/true"}}
		err = r.Run(Job{Action: a, Addr: v6}, time.Now())
	}
	if n != maxWaiting+1 || !errors.Is(err, ErrBusy) {
		t.Errorf("after %d: %v", n, err)
	}
}

// What waits for long is said, once in ten seconds, with what it waits for.
func TestLongWaitIsSaid(t *testing.T) {
	for name, test := range map[string]struct {
		runs int // at once
		fill func(w *world)
		want string
	}{
		"its share": {actionRunning + 1, func(w *world) {
			w.run(w.shell("another", "sleep 1", "", 0), v6)
			eventually(w.t, "one that runs for longer", func() bool { return len(w.told()) == 1 })
			for i := range actionRunning + 3 {
				w.run(w.shell("door", "sleep 1 # {addr}", "", 0), nth(v4, i))
			}
		}, `action=door address=192.0.0.8 "waits for"=door command="/bin/sh -c sleep 1 # 192.0.0.`},
		"its line": {1, func(w *world) {
			for range 2 {
				w.run(w.shell("door", "sleep 1 # {addr}", "", 0), v6)
			}
		}, `action=door address=2001:db8::7 "waits for"=door command="/bin/sh -c sleep 1 # 2001:db8::7"`},
		"its start": {1, func(w *world) {
			a := w.shell("door", "sleep 1 # {addr}", "true", time.Hour)
			w.run(a, v6)
			w.Undo(a, v6, everybody, time.Now())
		}, `action=door address=2001:db8::7 "waits for"=door command="/bin/sh -c sleep 1 # 2001:db8::7"`},
		"others": {maxRunning, func(w *world) {
			for i := range maxRunning + 1 {
				w.run(w.shell(fmt.Sprint("door", i), "sleep 1", "", 0), v6)
			}
		}, `action=door48 address=2001:db8::7 "waits for"=door`},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			test.fill(w)
			eventually(t, "they are launched", func() bool {
				w.Runner.mu.Lock()
				defer w.Runner.mu.Unlock()
				return w.starts.running == test.runs
			})
			w.Runner.mu.Lock()
			// As the worker will find it.
			for _, s := range append(w.undos.turns, w.starts.turns...) {
				for _, c := range s.waiting {
					c.since = c.since.Add(-tardy)
				}
			}
			w.Runner.mu.Unlock()
			w.wakeUp()
			eventually(t, "it is said", func() bool { return strings.Contains(w.log.String(), test.want) })
			w.wakeUp()
			time.Sleep(50 * time.Millisecond)
			if n := strings.Count(w.log.String(), "waits long"); n != 1 {
				t.Errorf("said %d times", n)
			}
		})
	}
}

// A program whose file can't be opened for a while, as on a server that does not
// answer (here: another has a lease on it, fcntl(2)), keeps no other from starting.
func TestSlowExecHoldsUpNothing(t *testing.T) {
	for _, addr := range []netip.Addr{v4, v6} {
		w := newWorld(t)
		script := filepath.Join(t.TempDir(), "script")
		if err := os.WriteFile(script, []byte("#!/bin/sh\necho slow >>"+w.out+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
		// For reading only: a writer's lease ends before its write access does, and what
		// is started in between finds a busy file (ETXTBSY).
		f, err := os.Open(script)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_WRLCK); err != nil {
			t.Skip("no leases here:", err)
		}
		w.run(&config.Action{Name: "slow", Run: config.Command{script}, RunIPv6: config.Command{script}}, addr)
		eventually(t, "it begins", func() bool { return len(w.told()) == 1 })
		time.Sleep(100 * time.Millisecond)
		w.run(w.logs("other", 10*time.Millisecond), addr)
		want := fmt.Sprintf("start %s\nundo %[1]s\n", addr)
		w.until(want)
		f.Close()
		w.until(want + "slow\n")
	}
}

// What a command leaves behind is the spawner's child, and no zombie at its end.
func TestOrphansAreReaped(t *testing.T) {
	w := newWorld(t)
	w.run(w.shell("a", `P=$$ sh -c 'n=0; while [ -d /proc/$P ] && [ $n -lt 400 ]; do sleep .01; n=$((n+1)); done; cut -d" " -f1,4 /proc/$$/stat >OUT.tmp; mv OUT.tmp OUT; sleep .3' & exit 0`, "", 0), v4)
	eventually(t, "the orphan", func() bool { return w.text() != "" })
	var pid, spawner int
	fmt.Sscan(w.text(), &pid, &spawner)
	if name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", spawner)); !strings.HasPrefix(string(name), "sallyport: spawner\x00") {
		t.Fatalf("an orphan (%q) is the child of %q and not of the spawner", w.text(), name)
	}
	eventually(t, "the orphan is gone", func() bool { return errors.Is(unix.Kill(pid, 0), unix.ESRCH) })
	children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", spawner))
	if strings.TrimSpace(string(children)) != "" {
		t.Errorf("the spawner has the children %s", children)
	}
}

// The spawner has an end for each of many, also where they end at the same time.
func TestEveryEndIsReported(t *testing.T) {
	w := newWorld(t)
	for i := range 300 {
		w.run(&config.Action{Name: strconv.Itoa(i), Run: config.Command{"/bin/false"}}, v4)
	}
	eventually(t, "300 ends", func() bool { return len(w.told()) == 600 })
	for _, e := range w.told() {
		if e.What == Failed && e.Status != 1 {
			t.Errorf("%+v", e)
		}
	}
}

// An address can have as many undos as there are, when its door runs again for each
// knock; nothing is done for each pair of them.
func TestManyUndosOfOneAddress(t *testing.T) {
	families(t, func(t *testing.T, addr netip.Addr) {
		const many = maxKept / minUndo
		r := bare(&testnet.Output{})
		now := time.Now()
		for i := range many {
			at := line{target{"d", addr}, uint64(i)}
			r.hold(&undo{run: uint64(i), line: at, due: now.Add(time.Duration(i * 7919 % many)), after: 1, place: none})
		}
		began := time.Now()
		r.pickDue(now.Add(time.Hour))
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("they were picked in %v", took)
		}
		if r.undos.waiting != many || len(r.pending) != 0 {
			t.Errorf("%d of %d were picked, %d targets are left", r.undos.waiting, many, len(r.pending))
		}
		began = time.Now()
		for r.undos.waiting > 0 {
			ready, _ := r.pick(now)
			for _, c := range ready {
				r.ended(c)
			}
			clear(r.known)
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("they were taken in %v", took)
		}
	})
}
