//go:build linux

package warden

import (
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/border"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/warden/internal/run"
)

// The test binary is the spawner too.
func init() {
	if len(os.Args) == 2 && os.Args[1] == "spawner" {
		if err := Spawner(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
}

const actionConfig = `
[service.ssh]
ports = ["22/tcp"]
open_for = "30s"
[service.mail]
ports = ["25/tcp"]
[action.wake]
run = ["/bin/true", "{addr}"]
undo = ["/bin/true", "{addr}"]
undo_after = "1h"
[action.hook]
run = ["/bin/true"]
undo = ["/bin/true"]
at_start = true
[knock.front]
type = "sequence"
opens = ["ssh"]
runs = ["wake"]
sequence = ["7000/tcp", "8500/udp", "7800/tcp"]
[knock.back]
type = "sequence"
closes = ["ssh", "wake"]
sequence = ["9100/tcp", "8500/udp", "9800/tcp"]
[knock.keys]
type = "spa"
opens = ["ssh"]
runs = ["wake"]
key = "/k"
authorized_keys = "/a"
`

// The rules of actionConfig by number.
const (
	opensSSH = iota
	runsWake
	closesSSH
	closesWake
	keyOpensSSH
	keyRunsWake
)

// The keys of actionConfig by number: the second may have ssh only, the third only
// from elsewhere.
const (
	anyKey = 1 + iota
	sshKey
	awayKey
)

func actionGate(t *testing.T, change func(*config.Config)) *gateWorld {
	t.Helper()
	cfg, err := config.Parse("action.toml", []byte(actionConfig))
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(cfg)
	}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	runner, err := run.New(run.Options{Log: log, Tell: func(run.Event) {}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(runner.Close)
	w := &gateWorld{now: time.Now()}
	w.gate = newGate(newMemory(100, func() time.Time { return w.now }), false, log)
	w.runner = runner
	keys := make([]border.Keys, len(cfg.Knocks))
	keys[2].Authorized = parseKeys(t, publicLine(1), `services="ssh" `+publicLine(2), `from="203.0.113.1,2001:db8:9::1" `+publicLine(3))
	w.use(cfg, 1, keys)
	return w
}

func (w *gateWorld) run(rule, key uint16, do border.Do, a netip.Addr) border.Result {
	return w.act(&border.Run{ID: 1, Generation: 1, Rule: rule, Key: key, Do: do, Addr: a}, w.now).Result
}

func TestAnActionIsRunAndUndone(t *testing.T) {
	w := actionGate(t, nil)
	for _, a := range clients {
		for i, step := range []struct {
			rule, key uint16
			do        border.Do
			want      border.Result
		}{
			{closesWake, border.NoKey, border.Undo, border.NothingToUndo},
			{keyRunsWake, anyKey, border.Extend, border.NothingToExtend},
			{runsWake, border.NoKey, border.Start, border.Ran},
			{keyRunsWake, anyKey, border.Extend, border.NothingToExtend}, // the sequence's, not its own
			{keyRunsWake, anyKey, border.Undo, border.NothingToUndo},
			{closesWake, border.NoKey, border.Undo, border.Undone},
			{closesWake, border.NoKey, border.Undo, border.NothingToUndo},
			{keyRunsWake, anyKey, border.Start, border.Ran},
			{closesWake, border.NoKey, border.Undo, border.NothingToUndo}, // promise 4: anybody can forge it
			{keyRunsWake, anyKey, border.Extend, border.Ran},
			{keyRunsWake, anyKey, border.Undo, border.Undone},
		} {
			if got := w.run(step.rule, step.key, step.do, a); got != step.want {
				t.Errorf("%v, step %d: %v, want %v", a, i, got, step.want)
			}
		}
	}
}

// Promise 1: what a wholly hijacked engine can have run is what some knock runs.
func TestPromise1AHijackedEngineRunsOnlyWhatARuleRuns(t *testing.T) {
	w := actionGate(t, nil)
	nobodies := map[netip.Addr][]netip.Addr{
		clients[0]: {addr("127.0.0.1"), addr("0.0.0.0"), addr("224.0.0.1")},
		clients[1]: {addr("::1"), addr("::"), addr("ff02::1")},
	}
	for _, a := range clients {
		for name, c := range map[string]struct {
			m    border.Run
			want border.Result
		}{
			"a rule that is not there":      {border.Run{Rule: 6}, border.NoSuchRule},
			"in an administrator's name":    {border.Run{Rule: border.AnyRule}, border.NoSuchRule},
			"a rule that opens":             {border.Run{Rule: opensSSH}, border.NoSuchRule},
			"a rule that closes a service":  {border.Run{Rule: closesSSH, Do: border.Undo}, border.NoSuchRule},
			"a rule that undoes, to run":    {border.Run{Rule: closesWake}, border.NoSuchRule},
			"a rule that undoes, to extend": {border.Run{Rule: closesWake, Do: border.Extend}, border.NoSuchRule},
			"a rule that runs, to undo":     {border.Run{Rule: runsWake, Do: border.Undo}, border.NoSuchRule},
			"a sequence's rule, to extend":  {border.Run{Rule: runsWake, Do: border.Extend}, border.NoSuchRule},
			"a key's rule without a key":    {border.Run{Rule: keyRunsWake}, border.NoSuchKey},
			"a sequence's rule with a key":  {border.Run{Rule: runsWake, Key: anyKey}, border.NoSuchKey},
			"a key that is not there":       {border.Run{Rule: keyRunsWake, Key: 4}, border.NoSuchKey},
			"a key that may not":            {border.Run{Rule: keyRunsWake, Key: sshKey}, border.NotAllowed},
			"a key that may not from there": {border.Run{Rule: keyRunsWake, Key: awayKey}, border.NotAllowed},
			"a key's rule that opens":       {border.Run{Rule: keyOpensSSH, Key: anyKey}, border.NoSuchRule},
			"under a config that is gone":   {border.Run{Rule: runsWake}, border.Stale},
		} {
			c.m.Addr, c.m.Generation = a, 1
			if c.want == border.Stale {
				c.m.Generation = 2
			}
			if got := w.act(&c.m, w.now).Result; got != c.want {
				t.Errorf("%v, %s: %v, want %v", a, name, got, c.want)
			}
		}
		for _, nobody := range nobodies[a] {
			if got := w.run(runsWake, border.NoKey, border.Start, nobody); got != border.NotUnicast {
				t.Errorf("for %v: %v", nobody, got)
			}
		}
		// What closes or runs opens nothing, and what opens closes no other's.
		for _, rule := range []uint16{runsWake, closesSSH, closesWake, keyRunsWake} {
			key := map[bool]uint16{true: anyKey, false: border.NoKey}[rule == keyRunsWake]
			m := &border.Open{Generation: 1, Rule: rule, Key: key, Addr: a, TTL: time.Second}
			if got := w.open(m, w.now).Result; got != border.NoSuchRule || w.held(t, a) != "" {
				t.Errorf("%v: rule %d opened: %v, %q", a, rule, got, w.held(t, a))
			}
		}
	}
	w = actionGate(t, nil) // with its whole rate
	ran := 0
	for range 5 * opensPerSecond {
		if w.run(closesWake, border.NoKey, border.Undo, clients[0]) != border.TooFast {
			ran++
		}
	}
	if ran > 2*opensPerSecond {
		t.Errorf("%d requests in no time", ran)
	}
}

// Where lo is heard, this host's own knocks run actions and open nothing.
func TestLoopbackIsForActionsOnly(t *testing.T) {
	w := actionGate(t, func(c *config.Config) { c.Daemon.Interfaces = []string{"lo"} })
	for _, a := range []netip.Addr{addr("127.0.0.1"), addr("::1")} {
		if got := w.run(runsWake, border.NoKey, border.Start, a); got != border.Ran {
			t.Errorf("%v: %v", a, got)
		}
		if got := w.run(keyRunsWake, anyKey, border.Start, a); got != border.NotUnicast {
			t.Errorf("%v, by a key: %v", a, got)
		}
		if got := w.try(opensSSH, a, time.Second).Result; got != border.NotUnicast {
			t.Errorf("%v: a grant: %v", a, got)
		}
	}
}

// Promise 4: anybody can forge a sequence, so a closing one ends what sequences
// opened and never what a key did, and no other service's.
func TestPromise4AClosingSequenceEndsNoKeysGrant(t *testing.T) {
	w := actionGate(t, nil)
	shut := func(rule, service uint16, a netip.Addr) *border.Done {
		return w.close(&border.Close{Generation: 1, Rule: rule, Service: service, Addr: a}, w.now)
	}
	for _, a := range clients {
		w.try(opensSSH, a, 30*time.Second)
		w.tryKeyed(keyOpensSSH, anyKey, a, 20*time.Second)
		for name, got := range map[string]border.Result{
			"another service":    shut(closesSSH, 1, a).Result,
			"every service":      shut(closesSSH, border.AnyService, a).Result,
			"an action's rule":   shut(closesWake, 0, a).Result,
			"a rule that runs":   shut(runsWake, 0, a).Result,
			"a key's rule":       shut(keyOpensSSH, 0, a).Result,
			"a rule that is not": shut(99, 0, a).Result,
		} {
			if got != border.NoSuchRule && got != border.NoSuchKey {
				t.Errorf("%v, %s: %v", a, name, got)
			}
		}
		if got := shut(closesSSH, 0, a); got.Result != border.Closed || got.Count != 1 {
			t.Errorf("%v: %+v", a, got)
		}
		if got, want := w.held(t, a), "22 keys "+w.keys[2].Authorized[0].Public.Fingerprint().String()+" 20s"; got != want {
			t.Errorf("%v: after the close %q, want %q", a, got, want)
		}
		if got := shut(closesSSH, 0, a); got.Count != 0 || w.held(t, a) == "" {
			t.Errorf("%v: a second close: %+v, %q", a, got, w.held(t, a))
		}
		// The administrator's is not its to end either.
		w.tickets.issue(1, w.now)
		w.open(&border.Open{Generation: 1, Rule: border.AnyRule, Service: 1, Ticket: 1, Addr: a, TTL: time.Second}, w.now)
		shut(closesSSH, 0, a)
		if got := w.grants.live(grantKey{addr: a, service: "mail"}, admin, w.now); !got {
			t.Errorf("%v: the administrator's grant is gone", a)
		}
	}
}

func (w *gateWorld) tryKeyed(rule, key uint16, a netip.Addr, ttl time.Duration) *border.Done {
	return w.open(&border.Open{Generation: 1, Rule: rule, Key: key, Addr: a, TTL: ttl}, w.now)
}

// A one-time sequence does nothing before it is marked as used, nor under the next
// config: an engine that strangers took over could else use one for ever.
func TestOneTimeIsMarkedFirst(t *testing.T) {
	for _, a := range clients {
		w := actionGate(t, func(c *config.Config) { c.Knocks[0].OneTime, c.Knocks[1].OneTime = true, true })
		w.cfg.Knocks[0].Opens = []int{0}
		for _, marked := range []bool{false, true} {
			want := map[bool][3]border.Result{
				false: {border.NotAllowed, border.NotAllowed, border.NotAllowed},
				true:  {border.Granted, border.Ran, border.Closed},
			}[marked]
			if marked {
				w.marked[0], w.marked[1] = true, true
			}
			got := [3]border.Result{
				w.open(&border.Open{ID: 1, Generation: 1, Rule: opensSSH, Addr: a, TTL: time.Second}, w.now).Result,
				w.run(runsWake, border.NoKey, border.Start, a),
				w.close(&border.Close{ID: 1, Generation: 1, Rule: closesSSH, Service: 0, Addr: a}, w.now).Result,
			}
			if got != want {
				t.Errorf("%v, marked %v: %v, want %v", a, marked, got, want)
			}
		}
		w.use(w.cfg, 1, w.gate.keys)
		if got := w.run(runsWake, border.NoKey, border.Start, a); got != border.NotAllowed {
			t.Errorf("%v: the mark is good for the next config too: %v", a, got)
		}
	}
}

// Sequences of one door can't be used up all at once, and another door has its own.
func TestSpendingIsBounded(t *testing.T) {
	s, now, took := spending{}, time.Now(), 0
	for i := range 1000 {
		if s.take("a", now.Add(time.Duration(i)*100*time.Millisecond)) {
			took++
		}
	}
	if took != spendBurst+9 {
		t.Errorf("%d in 100 seconds", took)
	}
	if !s.take("b", now) {
		t.Error("another door is bounded too")
	}
}

// A close by the owner's command is a close to who reads the log, and a command of his
// config is an action.
func TestACloseByACommandIsLoggedAsOne(t *testing.T) {
	for _, addr := range []netip.Addr{netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8::7")} {
		for _, c := range []struct {
			e    run.Event
			want string
		}{
			{run.Event{Action: "open 22/tcp", Undo: true, Command: "/sbin/fw remove"}, `msg=close port=22/tcp address=` + addr.String() + ` command="/sbin/fw remove"`},
			{run.Event{Action: "open 22/tcp", Command: "/sbin/fw add"}, `msg="an action runs" action="open 22/tcp"`},
			{run.Event{Action: "wake", Undo: true, Command: "/bin/true"}, `msg="an action runs" action=wake`},
		} {
			var out strings.Builder
			w := &warden{log: slog.New(slog.NewTextHandler(&out, nil))}
			c.e.Addr = addr
			w.ran(c.e)
			if !strings.Contains(out.String(), c.want) {
				t.Errorf("%q, want %s", out.String(), c.want)
			}
		}
	}
}
