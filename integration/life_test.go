package integration_test

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/testnet"
)

func TestSIGTERMEndsCleanlyAndHiddenStaysHidden(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.await(true, 22, paths...)
	h.serve(houseConfig("3s"))
	h.is(false, 22, paths...)
	h.enter(paths...)
	engine := h.enginePid()
	h.Signal(syscall.SIGTERM)
	h.end(0, "stopped; what is hidden stays hidden", "'sallyport down'")
	h.gone(engine)
	h.is(true, 22, paths...)
	h.await(false, 22, paths...)
	if h.table() == "" {
		t.Error("the table is gone")
	}
}

// Whichever side is killed, the other ends too, and the kernel's clock goes on.
func TestPromise2AKilledDaemonLeavesNothingOpenPastItsTime(t *testing.T) {
	for _, c := range []struct {
		name   string
		victim func(*house) int
		status int
		said   string
	}{
		{"warden", func(h *house) int { return h.Cmd.Process.Pid }, -1, ""},
		{"engine", (*house).enginePid, 1, "the engine was ended by killed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			h := newHouse(t)
			h.serve(houseConfig("3s"))
			engine := h.enginePid()
			start := time.Now()
			h.enter(paths...)
			syscall.Kill(c.victim(h), syscall.SIGKILL)
			h.end(c.status, c.said)
			h.gone(engine)
			h.is(true, 22, paths...)
			h.await(false, 22, paths...)
			if d := time.Since(start); d < 2900*time.Millisecond || d > 6*time.Second {
				t.Errorf("grants of 3s ended after %v", d)
			}
		})
	}
}

func TestPromise6LiveConnectionsGoOn(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	var calls []call
	for _, p := range paths { // older than the table
		calls = append(calls, h.call(p))
	}
	h.serve(houseConfig("1s"))
	h.lives("the first start", calls...)
	for _, p := range paths {
		h.enter(p)
		calls = append(calls, h.call(p))
	}
	h.await(false, 22, paths...)
	h.lives("the grant's end", calls...)
	h.reload(houseConfig("2s"), readAgain)
	h.lives("a reload", calls...)
	h.Signal(syscall.SIGTERM)
	h.end(0)
	h.lives("the stop", calls...)
	h.Start()
	h.Await("serving")
	h.lives("the next start", calls...)
	h.Signal(syscall.SIGKILL)
	h.end(-1)
	h.lives("kill -9", calls...)
	h.Start()
	h.Await("serving")
	h.lives("the start after it", calls...)
	h.is(false, 22, paths...)
}

func TestARestartAdoptsGrants(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.serve(houseConfig("1m"))
	h.enter(paths[0])
	h.must("open", "ssh", paths[1].client.String(), "--for", "2m")
	before := h.grants()
	h.Signal(syscall.SIGKILL)
	h.end(-1)
	h.Start()
	h.Await("grants from before this start go on until their time")
	h.Await("serving")
	after := h.grants()
	if len(before) != 2 || len(after) != 2 {
		t.Fatalf("before %v, after %v", before, after)
	}
	for i, want := range []string{"front", "the administrator"} {
		b, a := before[i], after[i]
		if a.Addr != b.Addr || a.By != want || b.By != want || a.Service != "ssh" || a.Until.Sub(b.Until).Abs() > time.Second {
			t.Errorf("before %v, after %v, want asked by %s", b, a, want)
		}
	}
	h.is(true, 22, paths...)
	// A knock after the restart must not shorten what the administrator gave.
	h.enter(paths[1])
	h.eventually("the knock is logged", func() bool { return strings.Count(h.Log(), " open ") > 0 })
	if g := h.grants()[1]; g.Until.Sub(before[1].Until).Abs() > time.Second {
		t.Errorf("a knock moved the end from %v to %v", before[1].Until, g.Until)
	}
}

// rebooting is a program whose default state directory is the given one: what
// a mount can do, a test on any machine can.
func rebooting(t *testing.T, state string) string {
	return wrapper(t, `unshare -m sh -c 'mount -t tmpfs none /var/lib && mkdir /var/lib/sallyport &&
		mount --bind `+state+` /var/lib/sallyport && exec %s "$@"' sh`)
}

func TestARebootLeavesThePortsHidden(t *testing.T) {
	t.Parallel()
	state := t.TempDir()
	bin := rebooting(t, state)
	daemon := "[daemon]\nstate_dir = \"/var/lib/sallyport\"\ncontrol = \"DIR/control.sock\"\n"
	broken := daemon + "[service.ssh]\nports = [\"22/tcp\"]\nopen_for = \"soon\"\n"

	h := newHouse(t)
	h.Daemon = h.server.Serve(bin, daemon+houseConfig("1m"))
	h.enter(paths...)
	h.Signal(syscall.SIGTERM)
	h.end(0)
	h.Configure(broken)
	h.Start()
	h.end(2, "sallyport.toml:6: service.ssh.open_for", "hidden until 'sallyport down'", "last-good.toml")
	h.is(true, 22, paths...) // the grants of before
	h.server.Run("nft", "flush", "set", "inet", "sallyport", "open4")
	h.server.Run("nft", "flush", "set", "inet", "sallyport", "open6")
	h.is(false, 22, paths...)

	t.Run("serve with a broken config", func(t *testing.T) {
		h := newHouse(t)
		h.await(true, 22, paths...)
		h.Daemon = h.server.Launch(bin, broken)
		h.end(2, "sallyport.toml:6: service.ssh.open_for", "hidden until 'sallyport down'")
		h.is(false, 22, paths...)
	})
	t.Run("hide", func(t *testing.T) {
		h := newHouse(t)
		out := h.server.Run(bin, "hide", "-c", "/nonexistent")
		if !strings.Contains(out, "hidden until 'sallyport down'") {
			t.Error(out)
		}
		h.is(false, 22, paths...)
		table := h.table()
		h.server.Run(bin, "hide", "-c", "/nonexistent") // once more changes nothing
		if sorted(h.table()) != sorted(table) {
			t.Errorf("the second time gave\n%s\nthe first\n%s", h.table(), table)
		}
	})
	t.Run("a last good config that is none", func(t *testing.T) {
		spoilt := t.TempDir()
		os.WriteFile(filepath.Join(spoilt, "last-good.toml"), []byte("[service.ssh"), 0o600)
		hideFrom(t, spoilt)
	})
	t.Run("no last good config", func(t *testing.T) { hideFrom(t, t.TempDir()) })
}

// hideFrom has hide work from -c, where the state directory has nothing good,
// and then from nothing at all.
func hideFrom(t *testing.T, state string) {
	h := newHouse(t)
	config := filepath.Join(t.TempDir(), "sallyport.toml")
	out, err := h.server.Output(testnet.Binary(t), "hide", "--state-dir", state, "-c", config)
	if err == nil || !strings.Contains(out, "nothing was hidden") || !strings.Contains(out, config) {
		t.Errorf("from nothing: %v, %s", err, out)
	}
	h.is(true, 22, paths...)
	os.WriteFile(config, []byte(houseConfig("30s")), 0o600)
	if out := h.server.Run(testnet.Binary(t), "hide", "--state-dir", state, "-c", config); !strings.Contains(out, config) {
		t.Error(out)
	}
	h.is(false, 22, paths...)
}

// sorted is a listing without its order: sets that are made anew come last.
func sorted(listing string) string {
	return strings.Join(slices.Sorted(strings.Lines(listing)), "")
}

func TestObserveChangesNothingAndTellsEverything(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.server.Input(`table inet theirs {
 chain in { type filter hook input priority 0
 tcp dport 9 drop; }
}`, "nft", "-f", "-")
	rules := func() string { return h.server.Run("nft", "list", "ruleset") }
	before := rules()
	h.serve(houseConfig("1m"), "--observe")
	for _, p := range paths {
		h.knock(p, frontSteps)
		h.Await("would open service=ssh address=" + p.client.String() + " for=1m0s")
		h.knock(p, "47011/tcp 45040/tcp")
		h.Await("would refuse: a wrong packet ended the attempt address=" + p.client.String())
		h.is(true, 22, p)
	}
	if out := h.must("open", "ssh", "192.0.2.9"); !strings.Contains(out, "would be granted") {
		t.Error(out)
	}
	if during := rules(); during != before {
		t.Errorf("the rules are\n%s\nand were\n%s", during, before)
	}
	h.Signal(syscall.SIGTERM)
	h.end(0)
	if after := rules(); after != before {
		t.Errorf("the rules are\n%s\nand were\n%s", after, before)
	}
	if _, err := os.Stat(filepath.Join(h.Dir, "state")); err == nil {
		t.Error("it wrote state")
	}
}

func TestDown(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	bin := testnet.Binary(t)
	if out := h.server.Run(bin, "down"); !strings.Contains(out, "nothing was hidden") {
		t.Errorf("without a table: %s", out)
	}
	h.serve(houseConfig("2s"))
	h.enter(paths...)
	if out := h.server.Run(bin, "down"); !strings.Contains(out, "every port is public again") {
		t.Errorf("with a daemon: %s", out)
	}
	h.is(true, 22, paths...)
	// A knock now can't be granted. The daemon says what to do, and lives.
	for _, p := range paths {
		h.knock(p, frontSteps)
		line := h.Await("address=" + p.client.String() + " asked_by=front error=")
		if !strings.Contains(line, "the firewall refused a grant") || !strings.Contains(line, "SIGHUP") {
			t.Errorf("it does not say what to do: %s", line)
		}
	}
	h.must("close", paths[0].client.String())
	h.reload(houseConfig("2s"), readAgain)
	h.await(false, 22, paths...)
	h.enter(paths...)
	h.Signal(syscall.SIGTERM)
	h.end(0)
	h.await(false, 22, paths...)
	h.server.Run(bin, "down")
	h.is(true, 22, paths...)
}

// A grant outlives neither a shorter open_for nor a changed clock of ours: the
// administrator's close ends it at once.
func TestCloseEndsGrantsAndNotConnections(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.serve(houseConfig("1m"))
	for _, p := range paths {
		h.enter(p)
		c := h.call(p)
		if out := h.must("close", "ssh", p.client.String()); !strings.Contains(out, "1 grants") {
			t.Error(out)
		}
		h.is(false, 22, p)
		h.lives("close", c)
	}
	if list := h.grants(); len(list) != 0 {
		t.Errorf("left: %v", list)
	}
	if out := h.must("close", netip.MustParseAddr("203.0.113.7").String()); !strings.Contains(out, "0 grants") {
		t.Error(out)
	}
}
