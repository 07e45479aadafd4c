//go:build linux

package integration_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/internal/control"
	"github.com/sallyport/sallyport/internal/testnet"
)

// The reasons that these tests wait for.
const (
	spadBeforeStart = "from before this server remembers who was heard"
	spadTooOld      = "older than the window"
	spadFuture      = "from the future"
	spadNotRising   = "its counter does not rise"
)

// spadFresh is a house with two users, of whom the second only shows that the
// daemon has read what came before.
func spadFresh(t *testing.T, lines string) (h *spadHouse, ann, bob user) {
	t.Helper()
	ann, bob = newUser(1), newUser(2)
	h = spadNewHouse(t, ann.line("ann"), bob.line("bob"))
	h.run(h.text("", h.door(lines)))
	return h, ann, bob
}

// spadStamped gives a request this stamp, and no address.
func spadStamped(stamp int64) func(*sallyport.Request) {
	return func(r *sallyport.Request) {
		r.Observed = true
		r.Stamp = func() (int64, error) { return stamp, nil }
	}
}

// capture is a datagram for ssh that nobody has delivered yet. It would open for
// whoever does.
func (h *spadHouse) capture(p path, u user) []byte {
	h.t.Helper()
	r := h.request(u)
	r.Observed, r.Services = true, []string{"ssh"}
	return h.seal(p, r)
}

// useless delivers a captured datagram from the user's address and from
// another, and wants it to open nothing. What it sends behind it is read behind
// it, and must open.
func (h *spadHouse) useless(when string, p spadPath, datagram []byte, behind user) {
	h.t.Helper()
	before := h.counters()["spa_repeat"]
	for _, from := range []path{p.path, p.other} {
		h.deliver(from, sallyport.OverUDP, spaPort, datagram)
		if e := h.asks(from, behind, func(r *sallyport.Request) { r.Services = []string{"web"} }); e.What != control.EventOpen {
			h.t.Errorf("%s, %s: the request behind: %s %s", when, from.name, e.What, e.Why)
		}
		if got, want := h.inside(), []string{from.client.String() + " web"}; !slices.Equal(got, want) {
			h.t.Errorf("%s, %s: inside are %q, want %q", when, from.name, got, want)
		}
		h.leaves(behind)
		h.is(false, 22, from)
	}
	if n := h.counters()["spa_repeat"] - before; n != 2 {
		h.t.Errorf("%s, %s: %d repeats were counted, want 2", when, p.name, n)
	}
}

// lateRefusal delivers a captured datagram and wants it refused with a reason.
func (h *spadHouse) lateRefusal(when string, p path, u user, datagram []byte, why string) {
	h.t.Helper()
	h.deliver(p, sallyport.OverUDP, spaPort, datagram)
	if e := h.outcome(when, u); e.What != control.EventRefused || e.Why != why {
		h.t.Errorf("%s, %s: %s %q, want %q", when, p.name, e.What, e.Why, why)
	}
	h.is(false, 22, p)
}

// lateEntry delivers a captured datagram and wants it granted.
func (h *spadHouse) lateEntry(when string, p path, u user, datagram []byte) {
	h.t.Helper()
	h.deliver(p, sallyport.OverUDP, spaPort, datagram)
	if e := h.outcome(when, u); e.What != control.EventOpen {
		h.t.Errorf("%s, %s: %s %q, want it granted", when, p.name, e.What, e.Why)
	}
	h.leaves(u)
}

// A recorded datagram is good once, whatever the daemon goes through meanwhile.
func TestSPARepeatsOpenNothing(t *testing.T) {
	t.Parallel()
	h, ann, bob := spadFresh(t, "")
	var heard [2][]byte
	for i, p := range spadPaths {
		heard[i] = h.capture(p.path, ann)
		h.lateEntry("the first time", p.path, ann, heard[i])
	}
	for _, stage := range []struct {
		name string
		do   func()
	}{
		{"at once", func() {}},
		{"after a reload", func() { h.reload(h.text("max_attempts = 1000", h.door("")), readAgain) }},
		{"after kill -9", func() { h.crash(syscall.SIGKILL, false) }},
		{"after a stop", func() { h.crash(syscall.SIGTERM, false) }},
	} {
		stage.do()
		for i, p := range spadPaths {
			h.useless(stage.name, p, heard[i], bob)
		}
	}
}

// crash kills the daemon, and reboots the machine if it is to: the journal's
// mark then names a boot that is not this one.
func (h *spadHouse) crash(end syscall.Signal, reboot bool) {
	h.t.Helper()
	engine := h.enginePid()
	h.Signal(end)
	h.Wait()
	h.gone(engine)
	mark := h.path("state/journal.boot")
	if text, err := os.ReadFile(mark); err != nil {
		h.t.Fatal(err)
	} else if reboot {
		_, word, _ := strings.Cut(string(text), " ")
		if err := os.WriteFile(mark, []byte("01234567-89ab-4cde-8f01-23456789abcd "+word), 0o600); err != nil {
			h.t.Fatal(err)
		}
	}
	h.Start()
	h.Await("serving")
	h.listenToEvents()
}

// A machine that lost its power may have lost what was heard last: nothing from
// before the start is good any more. A daemon that was killed, or a clean stop,
// loses nothing, and refuses nothing for it.
func TestSPAUncleanBoot(t *testing.T) {
	t.Parallel()
	h, ann, bob := spadFresh(t, "")
	var heard, late, old, last [2][]byte
	for i, p := range spadPaths {
		heard[i], late[i], old[i] = h.capture(p.path, ann), h.capture(p.path, ann), h.capture(p.path, ann)
		h.lateEntry("the first time", p.path, ann, heard[i])
	}
	h.crash(syscall.SIGKILL, false)
	for i, p := range spadPaths {
		h.lateEntry("after kill -9", p.path, ann, late[i])
	}
	h.crash(syscall.SIGKILL, true)
	for i, p := range spadPaths {
		h.useless("after a power cut", p, heard[i], bob)
		h.lateRefusal("after a power cut", p.path, ann, old[i], spadBeforeStart)
		h.enters(p.path, ann)
		h.leaves(ann)
	}
	// The next start is told that nothing was lost, and refuses all the same.
	h.crash(syscall.SIGKILL, false)
	for i, p := range spadPaths {
		h.lateRefusal("after a power cut and kill -9", p.path, ann, old[i], spadBeforeStart)
		h.enters(p.path, ann)
		h.leaves(ann)
		last[i] = h.capture(p.path, ann)
	}
	h.crash(syscall.SIGTERM, true)
	for i, p := range spadPaths {
		h.lateEntry("after a clean stop and a boot", p.path, ann, last[i])
		h.lateRefusal("after a clean stop and a boot", p.path, ann, old[i], spadBeforeStart)
	}
}

// What is ahead of the clock is on the disk before its grant, because no
// boundary covers it.
func TestSPAStampsAheadSurviveAnUncleanBoot(t *testing.T) {
	t.Parallel()
	h, ann, bob := spadFresh(t, "")
	var heard [2][]byte
	ahead := time.Now().Add(4 * time.Second)
	for i, p := range spadPaths {
		r := h.request(ann)
		spadStamped(ahead.UnixNano() + int64(i))(r)
		heard[i] = h.seal(p.path, r)
		h.deliver(p.path, r.Over, r.Port, heard[i])
		if e := h.outcome("ahead", ann); e.What != control.EventOpen {
			t.Fatalf("%s: %s %s", p.name, e.What, e.Why)
		}
		h.outcome("ahead", ann)
		h.leaves(ann)
	}
	h.crash(syscall.SIGKILL, true)
	for _, p := range spadPaths {
		// The server knows a stamp of then, so its clock may have been set back.
		h.isRefused(p.path, ann, spadBeforeStart)
	}
	time.Sleep(time.Until(ahead.Add(50 * time.Millisecond)))
	for i, p := range spadPaths {
		h.useless("once its time has come", p, heard[i], bob)
		h.enters(p.path, ann)
		h.leaves(ann)
	}
}

// One key on two machines whose clocks are 2 s apart: neither shuts the other
// out, whoever knocks first.
func TestSPATwoMachinesWithOneKey(t *testing.T) {
	t.Parallel()
	h, ann, _ := spadFresh(t, "")
	// A first start has no journal, so what is older than it is refused.
	time.Sleep(1200 * time.Millisecond)
	for _, p := range spadPaths {
		for i := range 16 {
			machine, off := p.path, time.Second
			if i%2 == 1 {
				machine, off = p.other, -time.Second
			}
			stamp := time.Now().Add(off).UnixNano()
			e := h.asks(machine, ann, func(r *sallyport.Request) { spadStamped(stamp)(r); r.Services = []string{"ssh"} })
			if e.What != control.EventOpen || e.Addr != machine.client {
				t.Errorf("%s, request %d, %v off: %s %s for %v", machine.name, i, off, e.What, e.Why, e.Addr)
			}
		}
		h.is(true, 22, p.path, p.other)
		h.leaves(ann)
	}
}

// A clock that is 2 h off: nothing opens, and the log says it with all that its
// reader needs, the first time at once, and not for each attempt anew.
func TestSPAWrongClock(t *testing.T) {
	t.Parallel()
	for i, off := range []time.Duration{2 * time.Hour, -2 * time.Hour} {
		for _, p := range spadPaths {
			t.Run(fmt.Sprint(off, " ", p.name), func(t *testing.T) {
				t.Parallel()
				h, ann, _ := spadFresh(t, "")
				for n := range 5 {
					stamp := time.Now().Add(off).UnixNano()
					e := h.asks(p.path, ann, spadStamped(stamp))
					if want := []string{spadFuture, spadTooOld}[i]; e.What != control.EventRefused || e.Why != want {
						t.Errorf("attempt %d: %s %q, want %q", n, e.What, e.Why, want)
					}
				}
				h.is(false, 22, p.path)
				told := func() (lines []string, requests int) {
					for line := range strings.Lines(h.Log()) {
						if _, n, ok := strings.Cut(line, "requests="); ok && strings.Contains(line, "its time is too far from this machine's") {
							lines, requests = append(lines, line), requests+number(t, strings.TrimSpace(n))
						}
					}
					return lines, requests
				}
				h.eventually("the log tells of all", func() bool { _, n := told(); return n == 5 })
				lines, _ := told()
				if len(lines) > 2 {
					t.Errorf("the log says it %d times", len(lines))
				}
				for _, line := range lines {
					h.tellsOfTheClock(line, p.path, ann, off)
				}
			})
		}
	}
}

// tellsOfTheClock looks for all that the reader of a line needs.
func (h *spadHouse) tellsOfTheClock(line string, p path, u user, off time.Duration) {
	h.t.Helper()
	for _, want := range []string{"address=" + p.client.String(), "knock=keys", u.fingerprint(h.t), "whose=ann"} {
		contains(h.t, line, want)
	}
	_, rest, _ := strings.Cut(line, "off_by=")
	said, err := time.ParseDuration(strings.Fields(rest + " none")[0])
	if err != nil || (said-off).Abs() > time.Minute {
		h.t.Errorf("it says off by %v, want %v: %v", said, off, err)
	}
}

// Without clocks, each counter is good once and in rising order, also after a
// power cut.
func TestSPACounters(t *testing.T) {
	t.Parallel()
	h, ann, bob := spadFresh(t, `clock = "none"`)
	for i, p := range spadPaths {
		count := func(n int64, u user) string {
			t.Helper()
			e := h.asks(p.path, u, spadStamped(100*int64(i)+n))
			h.leaves(u)
			return e.What + e.Why
		}
		try := func(n int64, u user, want string) {
			t.Helper()
			if got := count(n, u); got != want {
				t.Errorf("%s, counter %d: %s, want %s", p.name, n, got, want)
			}
		}
		const open, low = "open", "refused" + spadNotRising
		try(5, ann, open)
		try(6, ann, open)
		try(6, ann, low) // another message
		try(3, ann, low)
		try(3, bob, open) // counters are each key's own
		r := h.request(ann)
		spadStamped(100*int64(i) + 9)(r)
		r.Services = []string{"ssh"}
		heard := h.seal(p.path, r)
		h.lateEntry("the first time", p.path, ann, heard)
		for _, crash := range []struct {
			end    syscall.Signal
			reboot bool
		}{{syscall.SIGKILL, false}, {syscall.SIGTERM, false}, {syscall.SIGKILL, true}, {syscall.SIGTERM, true}} {
			h.crash(crash.end, crash.reboot)
			try(9, ann, low)
			h.deliver(p.path, sallyport.OverUDP, spaPort, heard)
			h.eventually("the repeat is counted", func() bool { return h.counters()["spa_repeat"] > 0 })
			if got := h.inside(); len(got) > 0 {
				t.Errorf("%s: inside are %q", p.name, got)
			}
		}
		try(10, ann, open)
	}
}

// A full disk: what can't be written down is not granted, the log says why, and
// with space again all goes on.
func TestSPAFullDisk(t *testing.T) {
	t.Parallel()
	ann := newUser(1)
	h := spadNewHouse(t, ann.line("ann"))
	state := h.path("state")
	if err := os.Mkdir(state, 0o700); err != nil {
		t.Fatal(err)
	}
	// A mount namespace of its own: the file system is gone with the daemon.
	script := filepath.Join(t.TempDir(), "start")
	text := "#!/bin/sh\nmount -t tmpfs -o size=256k,mode=700 small " + state + " && exec " + testnet.Binary(t) + ` "$@"` + "\n"
	if err := testnet.WriteProgram(script, []byte(text)); err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(t.TempDir(), "sallyport")
	if err := testnet.WriteProgram(bin, []byte("#!/bin/sh\nexec unshare --mount --propagation private "+script+` "$@"`+"\n")); err != nil {
		t.Fatal(err)
	}
	h.Daemon = h.house.server.Serve(bin, h.text("", h.door("")))
	h.Daemon.Await("serving")
	h.listenToEvents()
	for _, p := range spadPaths {
		h.enters(p.path, ann)
		h.leaves(ann)
	}
	disk := fmt.Sprintf("/proc/%d/root%s", h.Cmd.Process.Pid, state)
	ballast, err := os.Create(filepath.Join(disk, "ballast"))
	if err != nil {
		t.Fatal(err)
	}
	defer ballast.Close()
	for err = nil; err == nil; _, err = ballast.Write(make([]byte, 4096)) {
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	// The journal's last page takes some requests yet: 64 at most.
	refused := h.fillPage(ann)
	contains(t, refused.Why, "no space left on device")
	for _, p := range spadPaths {
		if e := h.asks(p.path, ann, nil); e.What != control.EventRefused {
			t.Errorf("%s: on a full disk: %s", p.name, e.What)
		}
		h.is(false, 22, p.path)
	}
	if got := h.inside(); len(got) > 0 {
		t.Errorf("on a full disk inside are %q", got)
	}
	h.must("status")
	contains(t, h.Await("a request by an allowed key or secret opened nothing"), "no space left on device")
	if err := os.Remove(ballast.Name()); err != nil {
		t.Fatal(err)
	}
	ballast.Close()
	for _, p := range spadPaths {
		h.enters(p.path, ann)
		h.leaves(ann)
	}
}

// fillPage knocks until the journal's page is full and gives the refusal.
func (h *spadHouse) fillPage(u user) control.Event {
	h.t.Helper()
	for range 70 {
		e := h.asks(paths[0], u, nil)
		if e.What == control.EventRefused {
			return e
		}
		h.leaves(u)
	}
	h.t.Fatal("the disk is not full after all")
	return control.Event{}
}
