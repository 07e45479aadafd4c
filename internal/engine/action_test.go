package engine_test

import (
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/border"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/encoded"
	"github.com/sallyport/sallyport/internal/engine"
	"github.com/sallyport/sallyport/internal/secrets"
	"github.com/sallyport/sallyport/internal/testnet"
)

// The rules by number: 0 opens ssh, 1 runs wake, 2 closes ssh, 3 undoes wake, 4 runs
// wake at a target, 5 runs wake for one knock.
const actionText = `
[service.ssh]
ports = ["22/tcp"]
open_for = "30s"
[action.wake]
run = ["/bin/true"]
undo = ["/bin/true"]
[knock.front]
type = "sequence"
opens = ["ssh"]
runs = ["wake"]
sequence = ["7211/tcp", "8533/udp", "7877/tcp"]
[knock.back]
type = "sequence"
closes = ["ssh", "wake"]
sequence = ["9311/tcp", "9733/udp", "9477/tcp"]
close_on_wrong = true
[knock.aside]
type = "sequence"
runs = ["wake"]
target = "TARGET"
sequence = ["17211/tcp", "18533/udp", "17877/tcp"]
[knock.once]
type = "sequence"
runs = ["wake"]
sequence = ["27211/tcp", "28533/udp", "27877/tcp"]
`

var (
	frontSteps = []string{"7211/tcp", "8533/udp", "7877/tcp"}
	backSteps  = []string{"9311/tcp", "9733/udp", "9477/tcp"}
	asideSteps = []string{"17211/tcp", "18533/udp", "17877/tcp"}
	onceSteps  = []string{"27211/tcp", "28533/udp", "27877/tcp"}
)

// targets are none of this host's addresses.
var targets = map[bool]netip.Addr{false: netip.MustParseAddr("203.0.113.9"), true: netip.MustParseAddr("2001:db8:9::9")}

// actionEngine has the config above, changed as a knockd.conf can.
func actionEngine(t *testing.T, six bool, change func(*config.Config)) (*engine.Engine, *recorder) {
	t.Helper()
	text := []byte(actionText)
	for i := range len(text) - 5 {
		if string(text[i:i+6]) == "TARGET" {
			text = append(text[:i:i], append([]byte(targets[six].String()), text[i+6:]...)...)
			break
		}
	}
	cfg, err := config.Parse("engine.toml", text)
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(cfg)
	}
	r := &recorder{}
	e := engine.New(r, [2]int{-1, -1}, slog.New(slog.NewTextHandler(io.Discard, nil)))
	e.Host(&border.HostFacts{Addrs: []netip.Addr{hosts[false], hosts[true]}})
	if err := e.Use(generation, &border.Generation{Config: *cfg, Keys: make([]border.Keys, len(cfg.Knocks))}, [8]byte{1}); err != nil {
		t.Fatal(err)
	}
	return e, r
}

func (r *recorder) said(e *engine.Engine, user *sender, steps ...string) []border.Message {
	r.asked = nil
	for _, s := range steps {
		e.Packet(user.step(s), 2)
	}
	return r.asked
}

func TestAKnockRunsAndClosesWhatItSays(t *testing.T) {
	bothFamilies(t, func(t *testing.T, user *sender) {
		e, r := actionEngine(t, user.src.Is6(), nil)
		want := []border.Message{
			&border.Open{ID: 1, Generation: generation, Rule: 0, Addr: user.src, TTL: 30e9},
			&border.Run{ID: 2, Generation: generation, Rule: 1, Do: border.Start, Addr: user.src},
		}
		if d := diff(want, r.said(e, user, frontSteps...)); d != "" {
			t.Error(d)
		}
		want = []border.Message{
			&border.Close{ID: 3, Generation: generation, Rule: 2, Service: 0, Addr: user.src},
			&border.Run{ID: 4, Generation: generation, Rule: 3, Do: border.Undo, Addr: user.src},
		}
		if d := diff(want, r.said(e, user, backSteps...)); d != "" {
			t.Error(d)
		}
		// A wrong packet ends what a knock opened, and runs nothing.
		e.Done(&border.Done{ID: 3, Result: border.Granted, Until: time.Now().Add(time.Minute)})
		if got := r.said(e, user, "9311/tcp", "9312/tcp"); len(got) != 0 {
			t.Errorf("a wrong packet asked %+v", got)
		}
	})
}

func TestATargetIsTheOnlyAddressOfItsKnock(t *testing.T) {
	bothFamilies(t, func(t *testing.T, user *sender) {
		e, r := actionEngine(t, user.src.Is6(), nil)
		if got := r.said(e, user, asideSteps...); len(got) != 0 {
			t.Errorf("to this host: asked %+v", got)
		}
		user.dst = targets[user.src.Is6()]
		want := []border.Message{&border.Run{ID: 1, Generation: generation, Rule: 4, Addr: user.src}}
		if d := diff(want, r.said(e, user, asideSteps...)); d != "" {
			t.Error(d)
		}
		if got := r.said(e, user, frontSteps...); len(got) != 0 {
			t.Errorf("another knock, to the target: asked %+v", got)
		}
	})
}

func TestAOneTimeSequenceIsGoodForOneKnock(t *testing.T) {
	bothFamilies(t, func(t *testing.T, user *sender) {
		once := func(c *config.Config) { c.Knocks[3].OneTime = true }
		e, r := actionEngine(t, user.src.Is6(), once)
		want := []border.Message{
			&border.Spent{Generation: generation, Knock: 3},
			&border.Run{ID: 1, Generation: generation, Rule: 5, Addr: user.src},
		}
		if d := diff(want, r.said(e, user, onceSteps...)); d != "" {
			t.Error(d)
		}
		again := sender{src: user.src.Next(), dst: user.dst}
		if got := r.said(e, &again, onceSteps...); len(got) != 0 {
			t.Errorf("who repeats it asked %+v", got)
		}
	})
}

// Where nobody can be told that the sequence is spent, it must not count: after a
// restart it would be good again.
func TestASequenceThatCannotBeSpentDoesNothing(t *testing.T) {
	bothFamilies(t, func(t *testing.T, user *sender) {
		e, r := actionEngine(t, user.src.Is6(), func(c *config.Config) { c.Knocks[3].OneTime = true })
		r.refuse = func(m border.Message) bool { _, is := m.(*border.Spent); return is }
		if got := r.said(e, user, onceSteps...); len(got) != 0 {
			t.Errorf("the warden does not know of it, and was asked %+v", got)
		}
		r.refuse = nil
		if got := r.said(e, user, onceSteps...); len(got) != 0 {
			t.Errorf("asked %+v", got)
		}
		// The warden is told as soon as there is room, or else the door stayed shut.
		r.asked = nil
		e.Tick(time.Now())
		if d := diff([]border.Message{&border.Spent{Generation: generation, Knock: 3}}, r.asked); d != "" {
			t.Error(d)
		}
	})
}

func knockdLog(c *config.Config) { c.Knockd.Log = true }

func TestProgressIsToldWhereItIsWanted(t *testing.T) {
	bothFamilies(t, func(t *testing.T, user *sender) {
		e, r := actionEngine(t, user.src.Is6(), knockdLog)
		told := func(what border.Progress, stage uint8) *border.Told {
			return &border.Told{Generation: generation, Knock: 3, What: what, Stage: stage, Addr: user.src}
		}
		want := []border.Message{
			told(border.Stage, 1), told(border.Stage, 2), told(border.Stage, 3), told(border.Opened, 3),
			&border.Run{ID: 1, Generation: generation, Rule: 5, Addr: user.src},
		}
		if d := diff(want, r.said(e, user, onceSteps...)); d != "" {
			t.Error(d)
		}
	})
}

// Strangers' first steps must not use up what completed knocks are told by, nor
// cost the warden more than so many messages.
func TestWhatIsToldIsBounded(t *testing.T) {
	bothFamilies(t, func(t *testing.T, user *sender) {
		e, r := actionEngine(t, user.src.Is6(), knockdLog)
		began := time.Now()
		flood := sender{src: user.src, dst: user.dst}
		for range 5000 {
			flood.src = flood.src.Next()
			e.Packet(flood.step(onceSteps[0]), 2)
		}
		most := 1001 + int(time.Since(began).Seconds()*200)
		if n := len(r.asked); n > most || n < 1000 {
			t.Errorf("5000 first steps were told in %d messages, at most %d may be", n, most)
		}
		opened := false
		for _, m := range r.said(e, user, onceSteps...) {
			told, is := m.(*border.Told)
			opened = opened || is && told.What == border.Opened
		}
		if !opened {
			t.Error("a flood of first steps silences a knock")
		}
	})
}

func TestIPv4Only(t *testing.T) {
	bothFamilies(t, func(t *testing.T, user *sender) {
		e, r := actionEngine(t, user.src.Is6(), func(c *config.Config) { c.Knockd.IPv4Only = true })
		if got := len(r.said(e, user, onceSteps...)); got != 1 && user.src.Is4() || got != 0 && user.src.Is6() {
			t.Errorf("asked %d times", got)
		}
	})
}

// A host that knocks at itself is heard only where lo is named, only on lo itself,
// and is good for actions alone.
func TestLoopback(t *testing.T) {
	for _, at := range []string{"127.0.0.1", "::1"} {
		self := netip.MustParseAddr(at)
		for name, c := range map[string]struct {
			interfaces []string
			arrives    int
			want       int
		}{
			"lo":                     {[]string{"lo"}, 1, 1},
			"lo is not named":        {[]string{"eth0"}, 1, 0},
			"no interface is named":  {nil, 1, 0},
			"forged on a wire":       {[]string{"lo", "eth0"}, 2, 0},
			"on lo, with a wire too": {[]string{"lo", "eth0"}, 1, 1},
		} {
			e, r := actionEngine(t, self.Is6(), func(cfg *config.Config) { cfg.Daemon.Interfaces = c.interfaces })
			e.Host(&border.HostFacts{Addrs: []netip.Addr{self}, Interfaces: []int{1, 2}})
			user := &sender{src: self, dst: self}
			for _, s := range frontSteps {
				e.Packet(user.step(s), c.arrives)
			}
			if len(r.asked) != c.want {
				t.Errorf("%s, %s: asked %+v", at, name, r.asked)
			}
			if c.want == 1 {
				if d := diff([]border.Message{&border.Run{ID: 1, Generation: generation, Rule: 1, Addr: self}}, r.asked); d != "" {
					t.Error(d)
				}
			}
			// The watch packet comes through in any case, and is nobody's step.
			if r.asked = nil; self.Is4() {
				e.Packet(testnet.UDP(netip.AddrPortFrom(self, 9), netip.AddrPortFrom(self, 9), []byte{1, 0, 0, 0, 0, 0, 0, 0}), 1)
				if len(r.asked) != 1 {
					t.Errorf("%s: the watch packet is not answered", name)
				}
			}
		}
	}
}

// Practice: the hot path does not allocate.
func TestStepsOfActionsAllocateNothing(t *testing.T) {
	bothFamilies(t, func(t *testing.T, user *sender) {
		e, _ := actionEngine(t, user.src.Is6(), func(c *config.Config) { c.Daemon.Interfaces = []string{"lo"} })
		aside := sender{src: user.src, dst: targets[user.src.Is6()]}
		packets := [][]byte{user.step(onceSteps[0]), user.step(onceSteps[1]), aside.step(asideSteps[0]), user.step("443/tcp")}
		if n := testing.AllocsPerRun(1000, func() {
			for _, p := range packets {
				e.Packet(p, 2)
			}
		}); n != 0 {
			t.Errorf("%v allocations for %d packets", n, len(packets))
		}
	})
}

// A door that a flood of forged packets opens as often as it likes must not take from
// the others what all of them share (promise 4).
func TestOneKnockLeavesRoomForTheOthers(t *testing.T) {
	bothFamilies(t, func(t *testing.T, user *sender) {
		e, r := actionEngine(t, user.src.Is6(), func(c *config.Config) { c.Knocks[3].Sequence = c.Knocks[3].Sequence[:1] })
		began := time.Now()
		flood := sender{src: user.src, dst: user.dst}
		for range 5000 {
			flood.src = flood.src.Next()
			e.Packet(flood.step(onceSteps[0]), 2)
			e.Done(&border.Done{ID: uint64(len(r.asked)), Result: border.Ran})
		}
		most := 1001 + int(time.Since(began).Seconds()*200)
		if n := len(r.asked); n > most || n < 1000 {
			t.Errorf("one door asked %d times, at most %d are its own", n, most)
		}
		if got := r.said(e, user, frontSteps...); len(got) != 2 {
			t.Errorf("another door asked %+v", got)
		}
	})
}

// Whoever makes one message after the other by his secret leaves room for those who
// knock at the same door.
func TestOnePersonLeavesRoomForTheOthers(t *testing.T) {
	cfg, err := config.Parse("engine.toml", []byte("[service.web]\nports = [\"80/tcp\"]\n[knock.people]\ntype = \"encoded\"\nopens = [\"web\"]\nsecrets = \"/p\"\n"))
	if err != nil {
		t.Fatal(err)
	}
	people := []secrets.Person{{Name: "ann", Secret: []byte("the secret of ann")}, {Name: "bob", Secret: []byte("the secret of bob")}}
	bothFamilies(t, func(t *testing.T, user *sender) {
		e, r := newEngine(t, nil)
		if err := e.Use(generation, &border.Generation{Config: *cfg, Keys: []border.Keys{{People: people}}}, [8]byte{}); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		knock := func(s *sender, secret []byte, at time.Time) {
			ports, err := cfg.Knocks[0].Shape().Encode(encoded.NewKey(secret, "people"), &encoded.Message{Action: encoded.Open, Time: at})
			if err != nil {
				t.Fatal(err)
			}
			for _, port := range ports {
				e.Packet(s.step(fmt.Sprintf("%d/tcp", port)), 2)
			}
		}
		flood := sender{src: user.src, dst: user.dst}
		for i := range 2000 {
			flood.src = flood.src.Next()
			knock(&flood, people[1].Secret, began.Add(time.Duration(i+1)*time.Millisecond))
		}
		n := len(r.asked)
		if most := 1001 + int(time.Since(began).Seconds()*200); n > most || n < 1000 {
			t.Errorf("one person asked %d times, at most %d are his", n, most)
		}
		if knock(user, people[0].Secret, began.Add(time.Millisecond)); len(r.asked) != n+1 {
			t.Errorf("another person asked %d times, want once", len(r.asked)-n)
		}
	})
}

// The warden may need a moment to mark a line: until then the sequence stays spent,
// also under another generation of the config.
func TestSpentStaysSpentUnderAnotherConfig(t *testing.T) {
	bothFamilies(t, func(t *testing.T, user *sender) {
		var cfg config.Config
		e, r := actionEngine(t, user.src.Is6(), func(c *config.Config) { c.Knocks[3].OneTime = true; cfg = *c })
		if got := r.said(e, user, onceSteps...); len(got) != 2 {
			t.Fatalf("asked %+v", got)
		}
		use := func(g uint32) {
			t.Helper()
			if err := e.Use(g, &border.Generation{Config: cfg, Keys: make([]border.Keys, len(cfg.Knocks))}, [8]byte{1}); err != nil {
				t.Fatal(err)
			}
		}
		use(generation + 1)
		again := sender{src: user.src.Next(), dst: user.dst}
		if got := r.said(e, &again, onceSteps...); len(got) != 0 {
			t.Errorf("who repeats it asked %+v", got)
		}
		cfg.Knocks = slices.Clone(cfg.Knocks)
		cfg.Knocks[3].Sequence = cfg.Knocks[3].Sequence[:2]
		use(generation + 2)
		next := sender{src: again.src.Next(), dst: user.dst}
		if got := r.said(e, &next, onceSteps[:2]...); len(got) != 2 {
			t.Errorf("the next sequence asked %+v", got)
		}
	})
}
