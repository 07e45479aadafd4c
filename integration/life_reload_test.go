package integration_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestAReloadKeepsGrantsHalfDoneKnocksAndConnections(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.listen(80)
	h.listen(81)
	web := "[service.web]\nports = [\"80/tcp\"]\n[knock.web]\ntype = \"sequence\"\nopens = [\"web\"]\nsequence = [\"30001/udp\", \"30777/tcp\", \"30333/udp\"]\n"
	h.serve(houseConfig("1m") + web)
	h.is(false, 80, paths...)
	h.is(true, 81, paths...)
	h.enter(paths[0])
	granted := h.grants()
	kept := h.call(paths[0])
	h.knock(paths[1], frontHalf)
	h.eventually("half a knock is known", func() bool { return strings.Contains(h.must("status", "--json"), `"steps":5`) })

	next := strings.ReplaceAll(web, "80/tcp", "81/tcp")
	h.reload(houseConfig("1m")+next, readAgain)
	h.is(true, 80, paths...) // no service names it any more
	h.is(false, 81, paths...)
	h.is(true, 22, paths[0])
	h.lives("a reload", kept)
	if after := h.grants(); len(after) != 1 || after[0].Until.Sub(granted[0].Until).Abs() > time.Second {
		t.Errorf("grants: %v, and before %v", after, granted)
	}
	h.knock(paths[1], frontRest)
	h.await(true, 22, paths[1])
	if out := h.must("status", "--json"); !strings.Contains(out, `"generation":2`) {
		t.Errorf("the engine is not told: %s", out)
	}
	for _, p := range paths {
		h.knock(p, "30001/udp 30777/tcp 30333/udp")
		h.await(true, 81, p)
	}
}

// Every refused config leaves the one before in use: in the warden, in the
// engine, in the kernel's filter and in the table.
func TestARefusedReloadChangesNothing(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.serve(houseConfig("1s"))
	table := h.table()
	good, _ := os.ReadFile(h.Config())
	lastGood := filepath.Join(h.Dir, "state", "last-good.toml")
	for _, c := range []struct {
		name, config string
		want         []string
	}{
		{"an unknown key", houseConfig("1s") + "colour = 1\n", []string{"sallyport.toml:13: unknown key"}},
		{"a step that is no port", strings.ReplaceAll(houseConfig("1s"), `"45033/tcp"`, `"45033"`), []string{"sallyport.toml:11: knock.front.sequence"}},
		{"no TOML", "[daemon]\n[service", []string{"sallyport.toml:2: this is not TOML"}},
		{"another state_dir", "[daemon]\nstate_dir = \"DIR/other\"\ncontrol = \"DIR/control.sock\"\n" + houseConfig("1s"), []string{"state_dir", "restart"}},
		{"another control", "[daemon]\nstate_dir = \"DIR/state\"\ncontrol = \"DIR/other.sock\"\n" + houseConfig("1s"), []string{"control", "restart"}},
		{"nothing to read", "", []string{"can't be read"}},
	} {
		if c.config != "" {
			h.reload(c.config, refusal)
		} else {
			before := strings.Count(h.Log(), refusal)
			os.Remove(h.Config())
			h.Signal(syscall.SIGHUP)
			h.eventually("it refuses a config that is gone", func() bool { return strings.Count(h.Log(), refusal) > before })
		}
		line := h.Log()[strings.LastIndex(h.Log(), refusal):]
		for _, want := range c.want {
			if !strings.Contains(line, want) {
				t.Errorf("%s: no %q in %s", c.name, want, line)
			}
		}
		if got := h.table(); got != table {
			t.Errorf("%s: the table is\n%s\nand was\n%s", c.name, got, table)
		}
		if kept, _ := os.ReadFile(lastGood); string(kept) != string(good) {
			t.Errorf("%s: the last good config is now\n%s", c.name, kept)
		}
	}
	h.is(false, 22, paths...)
	h.enter(paths...)
	for _, port := range frontPorts {
		if strings.Contains(h.Log(), port) {
			t.Errorf("the log names the step %s:\n%s", port, h.Log())
		}
	}
}

func TestAReloadChangesTheInterfaces(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	daemon := "[daemon]\nstate_dir = \"DIR/state\"\ncontrol = \"DIR/control.sock\"\n"
	h.serve(daemon + "interfaces = [\"none0\"]\n" + houseConfig("1m"))
	h.is(true, 22, paths...) // not guarded there
	for _, p := range paths {
		h.knock(p, frontSteps)
	}
	h.reload(daemon+"interfaces = [\""+h.serverWire+"\"]\n"+houseConfig("1m"), readAgain)
	h.is(false, 22, paths...)
	if list := h.grants(); len(list) != 0 {
		t.Errorf("knocks on another interface opened %v", list)
	}
	h.enter(paths...)
	h.reload(daemon+"interfaces = [\"none0\"]\n"+houseConfig("1m"), readAgain)
	h.is(true, 22, paths...)
}

// trial is a first start that nobody confirms, and what happens meanwhile.
type trial struct {
	name, config string
	meanwhile    func(*house)
	status       int
	said         string // what the daemon lives to say
	*house
	began time.Time
}

const undone = "nobody confirmed in time: nothing is hidden any more"

// The trials run at the same time: each takes the five seconds that are the
// shortest.
func TestPromise6AFirstStartUndoesItself(t *testing.T) {
	t.Parallel()
	trials := []*trial{
		{name: "nobody confirms", config: houseConfig("1m"), meanwhile: func(*house) {}, status: 1, said: undone},
		{name: "kill -9", config: houseConfig("1m"), meanwhile: func(h *house) { h.Signal(syscall.SIGKILL) }, status: -1},
		{name: "kill -9 of the engine", config: houseConfig("1m"), meanwhile: func(h *house) { syscall.Kill(h.enginePid(), syscall.SIGKILL) }, status: 1},
		{name: "SIGTERM", config: houseConfig("1m"), meanwhile: func(h *house) { h.Signal(syscall.SIGTERM) }, status: 0},
		{name: "kill -9 with everything hidden", config: "[daemon]\nstate_dir = \"DIR/state\"\ncontrol = \"DIR/control.sock\"\nhide = \"all\"\n" + houseConfig("1m"),
			meanwhile: func(h *house) { h.Signal(syscall.SIGKILL) }, status: -1},
		{name: "the terminal is gone", config: houseConfig("1m"), meanwhile: func(h *house) {
			// Two seconds of the trial go by first: a reload must not give them back.
			h.eventually("the trial runs", func() bool { return trialLeft(h) < 3*time.Second })
			h.Signal(syscall.SIGHUP)
			h.Await(readAgain)
		}, status: 1, said: undone},
	}
	for _, c := range trials {
		c.house, c.began = newHouse(t), time.Now()
		c.serve(c.config, "--undo-after", "5s")
		c.is(false, 22, paths...)
		c.meanwhile(c.house)
		c.is(false, 22, paths...)
	}
	for _, c := range trials {
		t.Run(c.name, c.undone)
	}
}

func (c *trial) undone(t *testing.T) {
	c.t = t
	c.await(true, 22, paths...)
	if d := time.Since(c.began); d < 4500*time.Millisecond || d > 10*time.Second {
		t.Errorf("undone after %v, want 5s", d)
	}
	c.end(c.status, c.said)
	if table := c.table(); c.said == undone && table != "" {
		t.Errorf("left:\n%s", table)
	}
	if _, err := os.Stat(filepath.Join(c.Dir, "state", "last-good.toml")); err == nil {
		t.Error("an unconfirmed config became the last good one")
	}
}

// trialLeft is the time that the kernel still hides by itself.
func trialLeft(h *house) time.Duration {
	out := h.server.Run("nft", "list", "set", "inet", "sallyport", "hidden_auto")
	_, after, _ := strings.Cut(out, "expires ")
	left, err := time.ParseDuration(strings.TrimRight(strings.Fields(after + " x")[0], ",}"))
	if err != nil {
		h.t.Fatalf("no time in %s: %v", out, err)
	}
	return left
}

func TestConfirmEndsTheTrial(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	lastGood := func() bool {
		_, err := os.Stat(filepath.Join(h.Dir, "state", "last-good.toml"))
		return err == nil
	}
	h.serve(houseConfig("1s"), "--undo-after", "5s")
	ends := time.Now().Add(trialLeft(h))
	h.enter(paths...)
	if lastGood() {
		t.Error("the config counts as good before the confirmation")
	}
	if out := h.must("confirm"); !strings.Contains(out, "confirmed: the hiding stays") {
		t.Error(out)
	}
	if !lastGood() {
		t.Error("the confirmed config is not kept")
	}
	out, err := h.Tool("confirm")
	if err == nil || !strings.Contains(out, "nothing to confirm") {
		t.Errorf("a second confirm: %v, %s", err, out)
	}
	hidden := h.server.Run("nft", "list", "set", "inet", "sallyport", "hidden_auto")
	if strings.Contains(hidden, "expires") {
		t.Errorf("the hiding still ends by itself:\n%s", hidden)
	}
	h.eventually("the trial's time is over", func() bool { return time.Now().After(ends.Add(500 * time.Millisecond)) })
	h.await(false, 22, paths...)
	h.enter(paths...)
	h.Signal(syscall.SIGTERM)
	h.end(0)
}
