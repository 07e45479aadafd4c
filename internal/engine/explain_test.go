package engine_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sallyport/sallyport/internal/border"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/control"
	"github.com/sallyport/sallyport/internal/encoded"
	"github.com/sallyport/sallyport/internal/secrets"
	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/sallyport/sallyport/internal/testnet"
)

// listener keeps what was explained, a line for each event.
type listener struct{ lines []string }

func (l *listener) hear(_ netip.Addr, ev control.Event) {
	line := []string{ev.What}
	for _, part := range []string{ev.Packet, ev.Knock, ev.Service, ev.Why} {
		if part != "" {
			line = append(line, part)
		}
	}
	l.lines = append(l.lines, strings.Join(line, " | "))
}

func (l *listener) take() []string {
	lines := l.lines
	l.lines = nil
	return lines
}

func TestEveryPacketOfASourceIsExplained(t *testing.T) {
	bothFamilies(t, func(t *testing.T, user *sender) {
		e, r := newEngine(t, []int{2})
		l := &listener{}
		e.Explain([]netip.Addr{user.src}, l.hear)
		from, to := netip.AddrPortFrom(user.src, 9), netip.AddrPortFrom(user.dst, 7211)
		elsewhere := sender{src: user.src, dst: user.dst.Next()}
		stranger := sender{src: user.src.Next(), dst: user.dst}
		for _, c := range []struct {
			name   string
			packet []byte
			on     int
			want   []string
		}{
			{"a step", user.step("7211/tcp"), 2, []string{"explain | 7211/tcp SYN | front | step 1 of 3 made"}},
			{"a stranger's", stranger.step("7211/tcp"), 2, nil},
			{"a wrong one", user.step("7300/tcp"), 2, []string{"explain | 7300/tcp SYN | front | this is not the port that step 2 wants; the attempt ends"}},
			{"another host's", elsewhere.step("7211/tcp"), 2, []string{"explain | 7211/tcp SYN | to " + elsewhere.dst.String() + ", which is no address of this host"}},
			{"another interface's", user.step("7211/tcp"), 3, []string{"explain | 7211/tcp SYN | on an interface that is not listened to"}},
			{"a fragment", testnet.TCP(from, to, sequence.SYN, 1, testnet.Fragment(0, true)), 2, []string{"explain | a packet | declined: fragment"}},
			{"the same again", testnet.TCP(from, to, sequence.SYN, 1, testnet.Fragment(0, true)), 2, nil},
			{"a connection's", testnet.TCP(from, to, sequence.ACK, 1), 2, []string{"explain | 7211/tcp | part of a connection: no knock has such a step"}},
			{"more of it", testnet.TCP(from, to, sequence.ACK|sequence.PSH, 2), 2, nil},
			{"far away", user.step("22/tcp"), 2, []string{"explain | 22/tcp SYN | no knock has a step there, or near there"}},
			{"a ping", testnet.Echo(user.src, user.dst, 1, 1, 56), 2, []string{"explain | 56/icmp | no knock has a step there, or near there"}},
			{"a datagram", user.step("8533/udp"), 2, []string{"explain | 8533/udp of 1 bytes | front | this is step 2, and step 1 did not come before it, or too long ago: it counts for nothing"}},
			{"junk", []byte{0x45, 0, 0}, 2, nil},
		} {
			e.Packet(c.packet, c.on)
			if d := cmp.Diff(c.want, l.take()); d != "" {
				t.Errorf("%s: %s", c.name, d)
			}
		}
		for _, s := range []string{"7211/tcp", "8533/udp", "7877/tcp"} {
			e.Packet(user.step(s), 2)
		}
		for _, m := range r.asked {
			result := []border.Result{0, border.Granted, border.Full}[m.(*border.Open).ID]
			e.Done(&border.Done{ID: m.(*border.Open).ID, Result: result, Until: time.Now()})
		}
		want := []string{"explain | 7877/tcp SYN | front | step 3 of 3 made: the knock is complete", "knock | front", "open | front | ssh", "refused | front | web | the grant set is full"}
		if got := l.take(); !slices.Equal(got[2:], want) {
			t.Errorf("the answers: got %q, want %q", got[2:], want)
		}
		e.Explain(nil, nil)
		e.Packet(user.step("7211/tcp"), 2)
		if got := l.take(); got != nil {
			t.Errorf("behind the end: %q", got)
		}
	})
}

// What is explained is what is done: the same packets give the same requests.
func TestExplainingChangesNothing(t *testing.T) {
	bothFamilies(t, func(t *testing.T, user *sender) {
		steps := strings.Fields("7211/tcp 8533/udp 7300/tcp 7211/tcp 8533/udp 7877/tcp 9311/tcp 9733/udp 9477/tcp 9312/tcp")
		quiet, one := newEngine(t, nil)
		aloud, other := newEngine(t, nil)
		aloud.Explain([]netip.Addr{user.src}, (&listener{}).hear)
		for _, s := range steps {
			b := user.step(s)
			quiet.Packet(b, 2)
			aloud.Packet(b, 2)
		}
		if d := diff(one.asked, other.asked); d != "" || len(one.asked) != 3 {
			t.Errorf("%d requests: %s", len(one.asked), d)
		}
	})
}

// Who is not looked at costs nothing more while somebody else is.
func TestExplainingAllocatesForItsSourceAlone(t *testing.T) {
	bothFamilies(t, func(t *testing.T, user *sender) {
		e, _ := newEngine(t, nil)
		e.Explain([]netip.Addr{user.src.Next()}, func(netip.Addr, control.Event) { t.Error("told") })
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

func TestASpentSequenceIsExplained(t *testing.T) {
	bothFamilies(t, func(t *testing.T, user *sender) {
		cfg, err := config.Parse("engine.toml", []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		cfg.Knocks[0].OneTime = true
		e, _ := newEngine(t, nil)
		if err := e.Use(generation, &border.Generation{Config: *cfg, Keys: make([]border.Keys, len(cfg.Knocks))}, [8]byte{}); err != nil {
			t.Fatal(err)
		}
		l := &listener{}
		e.Explain([]netip.Addr{user.src}, l.hear)
		for range 2 {
			l.take()
			for _, s := range []string{"7211/tcp", "8533/udp", "7877/tcp"} {
				e.Packet(user.step(s), 2)
			}
		}
		const want = "explain | front | the knock is complete and does nothing: this sequence is good for one knock and was used"
		if !slices.Contains(l.lines, want) {
			t.Errorf("got %q", l.lines)
		}
	})
}

// A close that ended nothing says so: the grant that stays is somebody else's.
func TestAClosingKnockSaysWhetherItEndedAnything(t *testing.T) {
	cfg, err := config.Parse("engine.toml", []byte(`
[service.web]
ports = ["80/tcp"]
allow = ["10.0.0.0/8"]
[knock.shut]
type = "sequence"
closes = ["web"]
sequence = ["7211/tcp", "8533/udp", "7877/tcp"]
`))
	if err != nil {
		t.Fatal(err)
	}
	bothFamilies(t, func(t *testing.T, user *sender) {
		e, r := newEngine(t, nil)
		if err := e.Use(generation, &border.Generation{Config: *cfg, Keys: make([]border.Keys, len(cfg.Knocks))}, [8]byte{}); err != nil {
			t.Fatal(err)
		}
		l := &listener{}
		e.Explain([]netip.Addr{user.src}, l.hear)
		for count, want := range []string{"closed | shut | web | nothing of this knock's own was open", "closed | shut | web"} {
			for _, s := range []string{"7211/tcp", "8533/udp", "7877/tcp"} {
				e.Packet(user.step(s), 2)
			}
			m := r.asked[len(r.asked)-1].(*border.Close)
			l.take()
			e.Done(&border.Done{ID: m.ID, Result: border.Closed, Count: uint32(count)})
			if got := l.take(); !slices.Equal(got, []string{want}) {
				t.Errorf("%d ended: %q, want %q", count, got, want)
			}
		}
	})
}

// Of the parts of an encoded message followers are told the first.
func TestOneEventForAMessageUnderWay(t *testing.T) {
	cfg, err := config.Parse("engine.toml", []byte(`
[service.web]
ports = ["80/tcp"]
[knock.people]
type = "encoded"
opens = ["web"]
secrets = "/etc/people"
`))
	if err != nil {
		t.Fatal(err)
	}
	bothFamilies(t, func(t *testing.T, user *sender) {
		e, _ := newEngine(t, nil)
		if err := e.Use(generation, &border.Generation{Config: *cfg, Keys: make([]border.Keys, len(cfg.Knocks))}, [8]byte{}); err != nil {
			t.Fatal(err)
		}
		var events []control.Event
		e.Tell(func(ev control.Event) { events = append(events, ev) })
		shape := cfg.Knocks[0].Shape()
		parts := shape.Parts()
		made := 0
		for port, last := 40000, -1; port < 56000 && made < 10; port++ {
			index, _, ok := parts.Index(uint16(port))
			if !ok || index == last {
				continue
			}
			last, made = index, made+1
			e.Packet(user.step(fmt.Sprintf("%d/tcp", port)), 2)
		}
		if made != 10 || len(events) != 1 || events[0].What != control.EventStep || events[0].Stage != 1 {
			t.Errorf("%d parts: %+v, want one step", made, events)
		}
	})
}

// What is told of a message's grant has its network and its port, also where it is
// refused.
func TestEventsNameTheNetworkAndThePort(t *testing.T) {
	cfg, err := config.Parse("engine.toml", []byte(`
[service.mail]
ports = ["25/tcp", "993/tcp"]
[knock.people]
type = "encoded"
opens = ["mail"]
widths = ["0.0.0.0/24", "::/64"]
secrets = "/etc/people"
`))
	if err != nil {
		t.Fatal(err)
	}
	ann := secrets.Person{Name: "ann", Secret: secrets.New()}
	bothFamilies(t, func(t *testing.T, user *sender) {
		e, r := newEngine(t, nil)
		if err := e.Use(generation, &border.Generation{Config: *cfg, Keys: []border.Keys{{People: []secrets.Person{ann}}}, Journal: true}, [8]byte{}); err != nil {
			t.Fatal(err)
		}
		var events []control.Event
		e.Tell(func(ev control.Event) { events = append(events, ev) })
		bits := map[bool]int{true: 24, false: 64}[user.src.Is4()]
		net, _ := user.src.Prefix(bits)
		for i, c := range []struct {
			message encoded.Message
			result  border.Result
			want    string
		}{
			{encoded.Message{Action: encoded.Open, Bits: bits, Proto: sequence.TCP, Port: 25}, border.Granted, "open " + net.String() + " mail 25/tcp"},
			{encoded.Message{Action: encoded.Open, Bits: bits, Proto: sequence.TCP, Port: 25}, border.Full, "refused " + net.String() + " mail 25/tcp"},
			{encoded.Message{Action: encoded.Open}, border.Granted, "open " + user.src.String() + " mail"},
			// A close ends all that the person has there.
			{encoded.Message{Action: encoded.Close, Bits: bits, Proto: sequence.TCP, Port: 25}, border.Closed, "closed " + net.String() + " mail"},
		} {
			c.message.Time = time.Now().Add(time.Duration(i+1) * 10 * time.Millisecond) // behind the engine's start, also in whole ms
			ports, err := cfg.Knocks[0].Shape().Encode(encoded.NewKey(ann.Secret, "people"), &c.message)
			if err != nil {
				t.Fatal(err)
			}
			for _, port := range ports {
				e.Packet(user.step(fmt.Sprintf("%d/tcp", port)), 2)
			}
			if len(r.asked) != i+1 {
				t.Fatalf("%d: asked %v", i, r.asked)
			}
			e.Done(&border.Done{ID: uint64(i + 1), Result: c.result, Count: 1})
			ev := events[len(events)-1]
			if got := ev.What + " " + ev.Who() + " " + ev.Which(); got != c.want {
				t.Errorf("%d: %q, want %q", i, got, c.want)
			}
		}
	})
}
