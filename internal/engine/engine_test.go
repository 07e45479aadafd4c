package engine_test

import (
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/sallyport/sallyport/internal/border"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/control"
	"github.com/sallyport/sallyport/internal/engine"
	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/sallyport/sallyport/internal/testnet"
)

const text = `
[service.ssh]
ports = ["22/tcp"]
open_for = "30s"
[service.web]
ports = ["80/tcp"]
open_for = "10s"
[knock.front]
type = "sequence"
opens = ["ssh", "web"]
sequence = ["7211/tcp", "8533/udp", "7877/tcp"]
[knock.back]
type = "sequence"
opens = ["ssh"]
sequence = ["9311/tcp", "9733/udp", "9477/tcp"]
close_on_wrong = true
`

// recorder is a warden that remembers what it was asked.
type recorder struct {
	asked  []border.Message
	err    error
	refuse func(border.Message) bool // nil: takes all
}

func (r *recorder) Send(m border.Message) error {
	if r.refuse != nil && r.refuse(m) {
		return errors.New("full")
	}
	if r.err == nil {
		r.asked = append(r.asked, m)
	}
	return r.err
}

const generation = 5

var (
	hosts = map[bool]netip.Addr{false: netip.MustParseAddr("192.0.2.1"), true: netip.MustParseAddr("2001:db8::1")}
	users = map[bool]netip.Addr{false: netip.MustParseAddr("192.0.2.7"), true: netip.MustParseAddr("2001:db8::7")}
)

func newEngine(t *testing.T, interfaces []int) (*engine.Engine, *recorder) {
	t.Helper()
	cfg, err := config.Parse("engine.toml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	r := &recorder{}
	e := engine.New(r, [2]int{-1, -1}, slog.New(slog.NewTextHandler(io.Discard, nil)))
	e.Host(&border.HostFacts{Addrs: []netip.Addr{hosts[false], hosts[true]}, Interfaces: interfaces})
	e.Use(generation, &border.Generation{Config: *cfg, Keys: make([]border.Keys, len(cfg.Knocks))}, [8]byte{1, 2, 3, 4, 5, 6, 7, 8})
	return e, r
}

// sender makes packets of one source, each from its own port.
type sender struct {
	src, dst netip.Addr
	port     uint16
}

func (s *sender) step(text string) []byte {
	step, err := sequence.ParseStep(text)
	if err != nil {
		panic(err)
	}
	s.port++
	src, dst := netip.AddrPortFrom(s.src, 40000+s.port), netip.AddrPortFrom(s.dst, step.Port)
	if step.Proto == sequence.UDP {
		return testnet.UDP(src, dst, []byte{byte(s.port)})
	}
	return testnet.TCP(src, dst, sequence.SYN, uint32(s.port))
}

// bothFamilies runs a test with an IPv4 and with an IPv6 user.
func bothFamilies(t *testing.T, test func(t *testing.T, user *sender)) {
	for six, name := range map[bool]string{false: "IPv4", true: "IPv6"} {
		t.Run(name, func(t *testing.T) { test(t, &sender{src: users[six], dst: hosts[six]}) })
	}
}

func diff(want, got any) string {
	return cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}))
}

func TestAKnockAsksForEachOfItsServices(t *testing.T) {
	bothFamilies(t, func(t *testing.T, user *sender) {
		e, r := newEngine(t, nil)
		for _, s := range []string{"7211/tcp", "8533/udp", "7877/tcp"} {
			e.Packet(user.step(s), 2)
		}
		want := []border.Message{
			&border.Open{ID: 1, Generation: generation, Rule: 0, Addr: user.src, TTL: 30e9},
			&border.Open{ID: 2, Generation: generation, Rule: 1, Addr: user.src, TTL: 10e9},
		}
		if d := diff(want, r.asked); d != "" {
			t.Error(d)
		}
	})
}

func TestCloseOnWrongEndsItsOwnGrantOnly(t *testing.T) {
	bothFamilies(t, func(t *testing.T, user *sender) {
		e, r := newEngine(t, nil)
		say := func(steps ...string) []border.Message {
			r.asked = nil
			for _, s := range steps {
				e.Packet(user.step(s), 2)
			}
			return r.asked
		}
		// A forger's wrong packets, for somebody who was not let in, ask nothing.
		if got := say("9311/tcp", "9312/tcp", "9311/tcp", "9312/tcp"); len(got) != 0 {
			t.Errorf("without a grant asked %+v", got)
		}
		for _, m := range say("9311/tcp", "9733/udp", "9477/tcp") {
			e.Done(&border.Done{ID: m.(*border.Open).ID, Result: border.Granted, Until: time.Now().Add(time.Minute)})
		}
		if got := say("7211/tcp", "7300/tcp"); len(got) != 0 {
			t.Errorf("another knock's wrong packet asked %+v", got)
		}
		want := []border.Message{&border.Close{ID: 2, Generation: generation, Rule: 2, Service: 0, Addr: user.src}}
		if d := diff(want, say("9311/tcp", "9312/tcp", "9311/tcp", "9312/tcp")); d != "" {
			t.Error(d)
		}
	})
}

func TestOnlyPacketsToThisHostOnItsInterfacesCount(t *testing.T) {
	bothFamilies(t, func(t *testing.T, user *sender) {
		for name, c := range map[string]struct {
			interfaces []int
			arrives    int
			to         netip.Addr
			want       int
		}{
			"all interfaces":            {nil, 9, user.dst, 2},
			"its interface":             {[]int{4, 9}, 9, user.dst, 2},
			"another interface":         {[]int{4}, 9, user.dst, 0},
			"no interface there yet":    {[]int{}, 9, user.dst, 0},
			"to another host's address": {nil, 9, user.dst.Next(), 0},
		} {
			e, r := newEngine(t, c.interfaces)
			s := sender{src: user.src, dst: c.to}
			for _, step := range []string{"7211/tcp", "8533/udp", "7877/tcp"} {
				e.Packet(s.step(step), c.arrives)
			}
			if len(r.asked) != c.want {
				t.Errorf("%s: asked %d times, want %d", name, len(r.asked), c.want)
			}
		}
	})
}

// A source that nobody can connect from is a forger's.
func TestOpensNothingForAddressesThatNobodyHas(t *testing.T) {
	for _, src := range []string{"0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "::", "::1", "ff02::1"} {
		s := sender{src: netip.MustParseAddr(src)}
		s.dst = hosts[s.src.Is6()]
		e, r := newEngine(t, nil)
		for _, step := range []string{"7211/tcp", "8533/udp", "7877/tcp"} {
			e.Packet(s.step(step), 2)
		}
		if len(r.asked) != 0 {
			t.Errorf("%s: asked %+v", src, r.asked)
		}
	}
}

// A warden that does not keep up costs the request, never the engine.
func TestAFullBorderIsNoEnd(t *testing.T) {
	bothFamilies(t, func(t *testing.T, user *sender) {
		e, r := newEngine(t, nil)
		knock := func() {
			for _, s := range []string{"7211/tcp", "8533/udp", "7877/tcp"} {
				e.Packet(user.step(s), 2)
			}
		}
		r.err = errors.New("full")
		for range 3 {
			knock()
		}
		r.err = nil
		knock()
		if len(r.asked) != 2 {
			t.Errorf("asked %d times after the border had room again, want 2", len(r.asked))
		}
	})
}

// Who reads events must not learn the
// knock, and neither must who reads what was refused.
func TestEventsNeverNameAStep(t *testing.T) {
	bothFamilies(t, func(t *testing.T, user *sender) {
		e, r := newEngine(t, nil)
		var told []string
		e.Tell(func(ev control.Event) {
			line, err := json.Marshal(ev)
			if err != nil {
				t.Error(err)
			}
			told = append(told, ev.What)
			for _, port := range []string{"7211", "8533", "7877", "7300"} {
				if strings.Contains(strings.ReplaceAll(string(line), ev.Time.Format("2006-01-02T15:04:05.999999999Z07:00"), ""), port) {
					t.Errorf("an event names a step: %s", line)
				}
			}
		})
		for _, s := range []string{"7211/tcp", "7300/tcp", "7211/tcp", "8533/udp", "7877/tcp"} {
			e.Packet(user.step(s), 2)
		}
		for _, m := range r.asked {
			e.Done(&border.Done{ID: m.(*border.Open).ID, Result: border.Granted})
		}
		e.Done(&border.Done{ID: 999, Result: border.Granted}) // an answer to nothing
		want := []string{"step", "lost", "step", "step", "knock", "open", "open"}
		if d := cmp.Diff(want, told); d != "" {
			t.Error(d)
		}
	})
}

// The watch packet comes back with its token, and nobody else's does.
func TestWatchPacket(t *testing.T) {
	e, r := newEngine(t, nil)
	lo := netip.MustParseAddr("127.0.0.1")
	for _, payload := range []string{"\x01\x02\x03\x04\x05\x06\x07\x08", "\x01\x02\x03\x04\x05\x06\x07\x09", ""} {
		e.Packet(testnet.UDP(netip.AddrPortFrom(lo, 5000), netip.AddrPortFrom(lo, 5000), []byte(payload)), 1)
	}
	want := []border.Message{&border.Watched{Token: [8]byte{1, 2, 3, 4, 5, 6, 7, 8}}}
	if d := diff(want, r.asked); d != "" {
		t.Error(d)
	}
}

// Practice: the hot path does not allocate.
func TestAPacketAllocatesNothing(t *testing.T) {
	bothFamilies(t, func(t *testing.T, user *sender) {
		e, _ := newEngine(t, nil)
		packets := [][]byte{user.step("7211/tcp"), user.step("8533/udp"), user.step("7300/tcp"), user.step("443/tcp"), {0x45, 0}}
		if n := testing.AllocsPerRun(1000, func() {
			for _, p := range packets {
				e.Packet(p, 2)
			}
		}); n != 0 {
			t.Errorf("%v allocations for %d packets", n, len(packets))
		}
	})
}
