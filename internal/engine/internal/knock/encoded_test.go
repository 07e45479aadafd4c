package knock

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/border"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/encoded"
	"github.com/sallyport/sallyport/internal/engine/internal/packet"
	"github.com/sallyport/sallyport/internal/engine/internal/policy"
	"github.com/sallyport/sallyport/internal/engine/internal/replay"
	"github.com/sallyport/sallyport/internal/secrets"
	"github.com/sallyport/sallyport/internal/sequence"
)

const encodedText = `
[service.ssh]
ports = ["22/tcp"]
[service.web]
ports = ["80/tcp"]
open_for = "10s"
max_open_for = "20s"
[action.note]
run = ["/bin/note"]
[knock.ports]
type = "encoded"
opens = ["ssh", "web"]
runs = ["note"]
payload = 8
widths = ["0.0.0.0/24", "::/56"]
secrets = "/s"
[knock.datagrams]
type = "encoded"
opens = ["ssh"]
base = "20000/udp"
span = 1600
secrets = "/s"
`

// coder is a server with two encoded knocks and a clock that the test sets.
type coder struct {
	*messages
	t      testing.TB
	people []secrets.Person
	now    time.Time
	tick   int64
	cfg    *config.Config
	memory *replay.Memory
}

func newCoder(t testing.TB, more string, people int) *coder {
	t.Helper()
	cfg, err := config.Parse("knock.toml", []byte(more+encodedText))
	if err != nil {
		t.Fatal(err)
	}
	c := &coder{t: t, cfg: cfg, now: time.Unix(1_800_000_000, 0)}
	for i := range people {
		c.people = append(c.people, secrets.Person{Name: fmt.Sprint("p", i), Secret: fmt.Appendf(nil, "secret of person %d", i)})
	}
	if c.memory, err = replay.New([2]int{-1, -1}, true, c.now); err != nil {
		t.Fatal(err)
	}
	c.restart(c.memory, nil)
	return c
}

// restart makes a recogniser anew, as a start or, with an old one, a reload does.
func (c *coder) restart(memory *replay.Memory, old Recogniser) {
	keys := border.Keys{People: c.people}
	setting := &Setting{
		Config: c.cfg, Host: &border.HostFacts{}, Memory: memory, Policy: policy.New(c.cfg),
		Keys: []border.Keys{keys, keys}, Clock: func() time.Time { return c.now },
	}
	c.messages = newEncoded(setting, old).(*messages)
}

// ports gives a message's; who is a person's number, knock the config's.
func (c *coder) ports(knock, who int, m encoded.Message) []uint16 {
	c.t.Helper()
	if m.Action == 0 {
		m.Action = encoded.Open
	}
	if m.Time.IsZero() {
		m.Time = c.now
	}
	k := &c.cfg.Knocks[knock]
	ports, err := k.Shape().Encode(encoded.NewKey(c.people[who].Secret, k.Name), &m)
	if err != nil {
		c.t.Fatal(err)
	}
	return ports
}

func (c *coder) packet(knock int, src netip.Addr, port uint16) *packet.Packet {
	return &packet.Packet{Src: src, Proto: c.cfg.Knocks[knock].Base.Proto, SrcPort: 40000, DstPort: port, Flags: sequence.SYN}
}

// hear gives what all the packets together came to, but for progress.
func (c *coder) hear(knock int, src netip.Addr, ports []uint16) string {
	var said []string
	for _, port := range ports {
		c.tick += int64(time.Millisecond)
		for _, o := range c.Observe(c.packet(knock, src, port), c.tick) {
			switch o.Verdict {
			case Refused:
				said = append(said, "refused: "+o.Refusal.Why)
			case Made:
				said = append(said, c.grants(&o))
			case Lost:
				said = append(said, fmt.Sprint("lost ", o.Stage))
			case TimedOut:
				said = append(said, fmt.Sprint("timed out ", o.Stage))
			}
		}
	}
	return strings.Join(said, ", ")
}

func (c *coder) grants(o *Outcome) string {
	text := fmt.Sprint(o.Claim.Asked.Person.Name, " ", o.Claim.Asked.Action)
	for _, g := range o.Grants {
		text += fmt.Sprintf(" %s/%v/%v", c.cfg.NameOf(g.Rule), g.Addr, g.TTL)
		if g.Bits > 0 {
			text += fmt.Sprintf("/%d", g.Bits)
		}
	}
	return text
}

func shuffled(ports []uint16) []uint16 {
	out := slices.Clone(ports)
	rand.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}

func eachFamily(t *testing.T, f func(t *testing.T, src, other netip.Addr)) {
	for family := range sources {
		t.Run(family, func(t *testing.T) { f(t, sources[family], others[family]) })
	}
}

func TestEncodedAsks(t *testing.T) {
	eachFamily(t, func(t *testing.T, src, other netip.Addr) {
		bits := 24
		if src.Is6() {
			bits = 56
		}
		for _, test := range []struct {
			name  string
			knock int
			m     encoded.Message
			want  string
		}{
			{"all", 0, encoded.Message{}, "p1 open ssh/SRC/30s web/SRC/10s note/SRC/0s"},
			{"over udp", 1, encoded.Message{}, "p1 open ssh/SRC/30s"},
			{"for", 0, encoded.Message{For: 15 * time.Second}, "p1 open ssh/SRC/15s web/SRC/15s note/SRC/0s"},
			{"for too long", 0, encoded.Message{For: time.Minute}, "p1 open ssh/SRC/1m0s web/SRC/20s note/SRC/0s"},
			{"another address", 0, encoded.Message{Addr: other}, "p1 open ssh/OTHER/30s web/OTHER/10s note/OTHER/0s"},
			{"the source's network", 0, encoded.Message{Bits: bits}, fmt.Sprintf("p1 open ssh/NET/30s/%d web/NET/10s/%[1]d note/SRC/0s", bits)},
			{"too wide", 0, encoded.Message{Addr: other, Bits: bits - 1}, "refused: the knock opens for no mask of that length"},
			{"one port", 0, encoded.Message{Proto: sequence.TCP, Port: 80}, "p1 open web/SRC/10s"},
			{"no such port", 0, encoded.Message{Proto: sequence.UDP, Port: 80}, "refused: none of the services has that port"},
			{"close", 1, encoded.Message{Action: encoded.Close}, "p1 close ssh/SRC/30s"},
			{"extend", 1, encoded.Message{Action: encoded.Extend, For: time.Minute}, "p1 extend ssh/SRC/1m0s"},
			{"nobody's address", 1, encoded.Message{Addr: netip.MustParseAddr("224.0.0.1")}, "refused: nobody can connect from such an address"},
		} {
			c := newCoder(t, "", 3)
			want := strings.NewReplacer("SRC", src.String(), "NET", netip.PrefixFrom(src, bits).Masked().Addr().String(), "OTHER", other.String()).Replace(test.want)
			if got := c.hear(test.knock, src, c.ports(test.knock, 1, test.m)); got != want {
				t.Errorf("%s: %q, want %q", test.name, got, want)
			}
			if got := c.asked.Number; strings.HasPrefix(want, "p1") && got != 2 {
				t.Errorf("%s: person %d, want 2", test.name, got)
			}
		}
	})
}

func TestEncodedPayload(t *testing.T) {
	c := newCoder(t, "", 1)
	c.hear(0, sources["IPv4"], c.ports(0, 0, encoded.Message{Payload: []byte("a\x00$`")}))
	if got := string(c.asked.Payload); got != "a\x00$`" {
		t.Errorf("payload %q", got)
	}
}

// Parts in any order, each any number of times, open once. A part that is lost opens
// nothing, until it comes.
func TestEncodedOrderAndLoss(t *testing.T) {
	eachFamily(t, func(t *testing.T, src, _ netip.Addr) {
		c := newCoder(t, "", 2)
		for range 200 {
			c.now = c.now.Add(time.Second)
			ports := shuffled(c.ports(1, 0, encoded.Message{}))
			lost := rand.IntN(len(ports))
			var sent []uint16
			for _, p := range slices.Delete(slices.Clone(ports), lost, lost+1) {
				for range 1 + rand.IntN(3) {
					sent = append(sent, p)
				}
			}
			// Copies of a part may come at any time after it.
			sent = append(sent, shuffled(sent)...)
			if got := c.hear(1, src, sent); got != "" {
				t.Fatalf("without one part: %q", got)
			}
			again := append(shuffled(ports), shuffled(ports)...) // with --repeat
			if got, want := c.hear(1, src, again), "p0 open ssh/"+src.String()+"/30s"; got != want {
				t.Fatalf("with all parts: %q, want %q", got, want)
			}
		}
	})
}

// The next message opens too, also where its first parts equal the last one's.
func TestEncodedNextMessage(t *testing.T) {
	eachFamily(t, func(t *testing.T, src, _ netip.Addr) {
		c := newCoder(t, "", 2)
		last := c.ports(1, 0, encoded.Message{})
		c.hear(1, src, last)
		alike := 0
		for i := range 300 {
			c.now = c.now.Add(time.Second)
			if i%3 == 0 { // a retransmission some time before does no harm
				c.hear(1, src, last[40:42])
				c.tick += 2 * pause
			}
			ports := shuffled(c.ports(1, i%2, encoded.Message{}))
			if slices.Contains(last, ports[0]) {
				alike++
			}
			if got := c.hear(1, src, ports); !strings.Contains(got, "open") || strings.Contains(got, "lost") {
				t.Fatalf("message %d, alike %v: %q", i, slices.Contains(last, ports[0]), got)
			}
			last = ports
		}
		if alike == 0 {
			t.Error("no first part was alike: the test tests nothing")
		}
	})
}

func TestEncodedContradiction(t *testing.T) {
	eachFamily(t, func(t *testing.T, src, other netip.Addr) {
		c := newCoder(t, "", 1)
		ports := c.ports(1, 0, encoded.Message{})
		wrong := ports[3] ^ 1
		won := "p0 open ssh/" + src.String() + "/30s"
		if got := c.hear(1, src, slices.Concat(ports[:10], []uint16{wrong}, ports[10:])); got != "lost 10" {
			t.Errorf("a forged part: %q", got)
		}
		if got := c.hear(1, src, ports); got != "lost 94" {
			t.Errorf("and the first repeat: %q", got)
		}
		if got := c.hear(1, src, ports); got != won {
			t.Errorf("and the second repeat: %q, want %q", got, won)
		}
		// Others spoil nothing.
		c.now, c.tick = c.now.Add(time.Second), c.tick+2*pause
		ports = c.ports(1, 0, encoded.Message{})
		for _, p := range ports[:99] {
			c.hear(1, src, []uint16{p})
			c.hear(1, other, []uint16{p ^ 1})
		}
		if got := c.hear(1, src, ports[99:]); got != won {
			t.Errorf("with another's parts between: %q, want %q", got, won)
		}
	})
}

func TestEncodedWrongSecret(t *testing.T) {
	eachFamily(t, func(t *testing.T, src, _ netip.Addr) {
		c := newCoder(t, "", 3)
		ports := c.ports(1, 2, encoded.Message{})
		c.people = c.people[:2] // revoked without a restart
		c.restart(c.memory, c.messages)
		if got := c.hear(1, src, ports); got != "lost 100" {
			t.Errorf("a stranger's: %q", got)
		}
		if got := c.hear(1, src, ports[1:]); got != "" {
			t.Errorf("a trial cost less than a whole message: %q", got)
		}
		// The door is part of the key, and the shape of the seal.
		other := c.cfg.Knocks[1]
		other.Name = "datagram"
		m := encoded.Message{Action: encoded.Open, Time: c.now}
		ports, _ = other.Shape().Encode(encoded.NewKey(c.people[0].Secret, other.Name), &m)
		if got := c.hear(1, src, ports); !strings.HasSuffix(got, "lost 100") {
			t.Errorf("of another door: %q", got)
		}
	})
}

func TestEncodedWindow(t *testing.T) {
	eachFamily(t, func(t *testing.T, src, _ netip.Addr) {
		for _, test := range []struct {
			off  time.Duration
			want string
		}{
			{-time.Minute, "p0 open"}, {-time.Minute - time.Millisecond, "refused: older than the window"}, {-24 * time.Hour, "refused: older than the window"},
			{time.Minute, "p0 open"}, {time.Minute + time.Millisecond, "refused: from the future"}, {24 * time.Hour, "refused: from the future"},
		} {
			c := newCoder(t, "", 1)
			got := c.hear(1, src, c.ports(1, 0, encoded.Message{Time: c.now.Add(test.off)}))
			if !strings.HasPrefix(got, test.want) {
				t.Errorf("%v off: %q, want %q", test.off, got, test.want)
			}
			if test.want != "p0 open" && c.refusal.Skew != test.off {
				t.Errorf("%v off is told as %v", test.off, c.refusal.Skew)
			}
		}
	})
}

// What was taken once is never taken again: not from elsewhere, after a reload, or
// after a restart.
func TestEncodedReplay(t *testing.T) {
	eachFamily(t, func(t *testing.T, src, other netip.Addr) {
		dir := t.TempDir()
		journal := func() (fds [2]int) {
			for i := range fds {
				f, err := os.OpenFile(filepath.Join(dir, fmt.Sprint(i)), os.O_RDWR|os.O_CREATE, 0o600)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { f.Close() })
				fds[i] = int(f.Fd())
			}
			return fds
		}
		c := newCoder(t, "", 2)
		begin := func(complete bool) {
			memory, err := replay.New(journal(), complete, c.now)
			if err != nil {
				t.Fatal(err)
			}
			c.restart(memory, nil)
		}
		begin(false)
		c.now = c.now.Add(time.Second)
		ports := c.ports(1, 1, encoded.Message{})
		if got := c.hear(1, src, ports); !strings.HasPrefix(got, "p1 open") {
			t.Fatal(got)
		}
		for _, from := range []netip.Addr{src, other} {
			if got := c.hear(1, from, shuffled(ports)); got != "" {
				t.Errorf("from %v again: %q", from, got)
			}
		}
		before := c.counts.repeat
		begin(true)
		if got := c.hear(1, src, ports); got != "" || c.counts.repeat != 1 || before != 1 {
			t.Errorf("after a restart: %q, repeats %d and %d", got, c.counts.repeat, before)
		}
		// Two of one person in one millisecond can't be told from a repeat.
		if got := c.hear(1, src, c.ports(1, 1, encoded.Message{})); got != "" {
			t.Errorf("the same time again: %q", got)
		}
		if got := c.hear(1, src, c.ports(1, 0, encoded.Message{})); !strings.HasPrefix(got, "p0 open") {
			t.Errorf("another person at the same time: %q", got)
		}
	})
}

// Two people behind one address spoil each other's message when their parts mix, and
// nothing more: the next one gets in.
func TestEncodedTwoAtOneAddress(t *testing.T) {
	eachFamily(t, func(t *testing.T, src, _ netip.Addr) {
		c := newCoder(t, "", 2)
		a, b := c.ports(1, 0, encoded.Message{}), c.ports(1, 1, encoded.Message{})
		for i := range a {
			if got := c.hear(1, src, []uint16{a[i], b[i]}); strings.Contains(got, "open") {
				t.Fatalf("mixed: %q", got)
			}
		}
		if got := c.hear(1, src, append(a, a...)); !strings.Contains(got, "p0 open") {
			t.Errorf("the first, repeated: %q", got)
		}
		c.tick += 2 * pause
		if got := c.hear(1, src, b); !strings.Contains(got, "p1 open") {
			t.Errorf("the second: %q", got)
		}
	})
}

func TestEncodedWithin(t *testing.T) {
	eachFamily(t, func(t *testing.T, src, _ netip.Addr) {
		c := newCoder(t, "", 1)
		ports := c.ports(1, 0, encoded.Message{})
		first := c.tick + int64(time.Millisecond)
		c.hear(1, src, ports[:99])
		c.tick = first + int64(30*time.Second) // and hear adds a millisecond
		if got := c.hear(1, src, ports[99:]); got != "timed out 99" {
			t.Errorf("too late: %q", got)
		}
		if got := c.hear(1, src, ports[:98]); got != "" {
			t.Errorf("a new attempt: %q", got)
		}
		if got := c.hear(1, src, ports[98:99]); !strings.HasPrefix(got, "p0 open") {
			t.Errorf("its last part: %q", got)
		}
	})
}

// Only what opens a connection is a part, and only at this host.
func TestEncodedNoParts(t *testing.T) {
	eachFamily(t, func(t *testing.T, src, _ netip.Addr) {
		c := newCoder(t, "", 1)
		ports := c.ports(0, 0, encoded.Message{})
		for name, edit := range map[string]func(p *packet.Packet){
			"ack":       func(p *packet.Packet) { p.Flags |= sequence.ACK },
			"no flag":   func(p *packet.Packet) { p.Flags = 0 },
			"rst":       func(p *packet.Packet) { p.Flags = sequence.RST },
			"elsewhere": func(p *packet.Packet) { p.Elsewhere = true },
			"icmp":      func(p *packet.Packet) { p.Proto = sequence.ICMP },
			"declined":  func(p *packet.Packet) { p.Proto = 0 },
			"below":     func(p *packet.Packet) { p.DstPort = 39999 },
			"above":     func(p *packet.Packet) { p.DstPort = uint16(c.cfg.Knocks[0].Shape().Last()) + 1 },
		} {
			for _, port := range ports {
				p := c.packet(0, src, port)
				edit(p)
				if out := c.Observe(p, 1); len(out) > 0 || c.table.live > 0 {
					t.Fatalf("%s is a part: %+v", name, out)
				}
			}
		}
	})
}

// A flood of forged sources fills the table and no more, pushes out none that has got
// further, and costs no memory.
func TestEncodedFlood(t *testing.T) {
	eachFamily(t, func(t *testing.T, src, _ netip.Addr) {
		c := newCoder(t, "[daemon]\nmax_attempts = 1024\n", 1)
		ports := c.ports(1, 0, encoded.Message{})
		c.hear(1, src, ports[:3])
		p := c.packet(1, src, 0)
		n := uint32(0)
		flood := func() {
			n++
			p.Src, p.DstPort = forged(src, n), 20000+uint16(n)%1600
			c.Observe(p, c.tick)
		}
		for range 20000 {
			flood()
		}
		if c.table.live > 1024 || c.table.evicted < 18000 || int(c.table.used) > 1024 {
			t.Errorf("%d attempts, %d evicted, %d slots", c.table.live, c.table.evicted, c.table.used)
		}
		if allocs := testing.AllocsPerRun(1000, flood); allocs != 0 {
			t.Errorf("%v allocations a packet", allocs)
		}
		if got := c.hear(1, src, ports[3:]); !strings.HasPrefix(got, "p0 open") {
			t.Errorf("after the flood: %q", got)
		}
		// A flood that goes two parts far is gone when its time is over.
		for i := range uint32(1100) {
			from := forged(src, i)
			c.hear(1, from, []uint16{20000, 20016, 20032})
		}
		c.tick += int64(time.Minute)
		c.Tick(c.tick)
		if c.table.live != 0 {
			t.Errorf("%d attempts are left long after", c.table.live)
		}
	})
}

// Parts prove nothing, however many there are. Who forges all but the last from more
// sources than the table has room for, and goes on with one and two parts, pushes
// out nobody whose parts follow on each other.
func TestEncodedForgedPartsShutNobodyOut(t *testing.T) {
	eachFamily(t, func(t *testing.T, src, other netip.Addr) {
		c := newCoder(t, "[daemon]\nmax_attempts = 1024\n", 1)
		for _, many := range []int{2, 99} {
			seen, n := c.ports(1, 0, encoded.Message{}), uint32(0)
			flood := func(sources, parts int) {
				for range sources {
					n++
					for _, port := range seen[:parts] {
						c.Observe(c.packet(1, forged(src, n), port), c.tick)
					}
				}
			}
			flood(1100, many)
			c.now = c.now.Add(time.Second)
			got := ""
			ports := c.ports(1, 0, encoded.Message{})
			for _, port := range slices.Concat(ports[:50], ports[:50], ports[50:]) { // copies count
				flood(100, 1)
				flood(100, 2)
				got += c.hear(1, other, []uint16{port})
			}
			if !strings.HasPrefix(got, "p0 open") {
				t.Errorf("after messages of %d parts: %q", many, got)
			}
			c.tick += 2 * pause
		}
	})
}

// A person's new name makes no message good again.
func TestEncodedRename(t *testing.T) {
	eachFamily(t, func(t *testing.T, src, other netip.Addr) {
		c := newCoder(t, "", 1)
		ports := c.ports(1, 0, encoded.Message{})
		if got := c.hear(1, src, ports); !strings.HasPrefix(got, "p0 open") {
			t.Fatal(got)
		}
		c.people[0].Name = "anna"
		c.restart(c.memory, c.messages)
		if got := c.hear(1, other, ports); got != "" {
			t.Errorf("under another name: %q", got)
		}
	})
}

func forged(like netip.Addr, n uint32) netip.Addr {
	b := like.As16()
	binary.BigEndian.PutUint32(b[12:], n|0xc612_0000)
	return netip.AddrFrom16(b).Unmap()
}

// Trials that fail, copies and progress allocate nothing: strangers make them.
func TestEncodedNoAllocation(t *testing.T) {
	eachFamily(t, func(t *testing.T, src, _ netip.Addr) {
		c := newCoder(t, "", 10)
		p := c.packet(0, src, 0)
		d := &c.doors[0]
		if d.knock != 0 {
			d = &c.doors[1]
		}
		round := func() {
			for i := range d.parts.Steps {
				for range 2 {
					p.DstPort = d.parts.Port(i, 0)
					c.Observe(p, 1)
				}
			}
		}
		before := c.counts.unopened
		if n := testing.AllocsPerRun(10, round); n != 0 {
			t.Errorf("%v allocations a round", n)
		}
		if c.counts.unopened-before != 11 {
			t.Errorf("%d trials", c.counts.unopened-before)
		}
	})
}

// A reload keeps what is half-done, unless a shape changed.
func TestEncodedReload(t *testing.T) {
	eachFamily(t, func(t *testing.T, src, _ netip.Addr) {
		c := newCoder(t, "", 1)
		ports := c.ports(1, 0, encoded.Message{})
		c.hear(1, src, ports[:50])
		c.restart(c.memory, c.messages)
		if got := c.hear(1, src, ports[50:]); !strings.HasPrefix(got, "p0 open") {
			t.Errorf("across a reload: %q", got)
		}
		old := c.messages
		changed, err := config.Parse("f", []byte(strings.Replace(encodedText, "span = 1600", "span = 1601", 1)))
		if err != nil {
			t.Fatal(err)
		}
		c.hear(1, src, []uint16{20000})
		c.cfg = changed
		c.restart(c.memory, old)
		if c.table.live != 0 {
			t.Error("parts of another shape are kept")
		}
	})
}

func TestEncodedExplains(t *testing.T) {
	eachFamily(t, func(t *testing.T, src, other netip.Addr) {
		c := newCoder(t, "", 1)
		ports := c.ports(1, 0, encoded.Message{})
		say := func(from netip.Addr, port uint16, want string) {
			t.Helper()
			c.tick++
			_, said := c.Explain(c.packet(1, from, port), c.tick)
			if len(said) != 1 || said[0].Knock != 1 || said[0].Text != want {
				t.Errorf("%+v, want %q", said, want)
			}
		}
		say(src, ports[0], "part 1 of 100; parts here: 1")
		say(src, ports[6], "part 7 of 100; parts here: 2")
		say(src, ports[6], "part 7 of 100 came again: harmless, parts here: 2")
		say(src, ports[6]^1, "part 7 of 100 came twice with different content, so 2 parts are forgotten: a new attempt; parts here: 1")
		c.tick += int64(time.Minute)
		say(src, ports[0], "part 1 of 100, too late for what was here: all parts must come within 30s, so a new attempt begins; parts here: 1")
		c.hear(1, src, ports[:99])
		say(src, ports[99], "part 100 of 100; all parts are here, and p0 asks to open")
		say(src, ports[99], "part 100 of 100 came again after its message had its answer: harmless")
		say(src, ports[99]^1, "part 100 of 100 of another message than the last one: a new attempt; parts here: 1")
		c.hear(1, other, ports[:99])
		say(other, ports[99], "part 100 of 100; all parts are here, and the message was heard before: nothing happens")
		c.now = c.now.Add(time.Second)
		late := c.ports(1, 0, encoded.Message{Time: c.now.Add(-time.Hour)})
		c.tick += int64(time.Minute)
		c.hear(1, src, late[:99])
		say(src, late[99], "part 100 of 100; all parts are here, and p0 asks to open: refused: older than the window: stale by 1h0m0s")
		c.people[0].Secret = []byte("another one, 16 bytes")
		wrong := c.ports(1, 0, encoded.Message{})
		c.tick += int64(time.Minute)
		c.hear(1, src, wrong[:99])
		say(src, wrong[99], "part 100 of 100; all parts are here, and no person's secret opens the message: the key did not seal this; compare the secret, and the knock's name, base, span and payload, with the client's")
		p := c.packet(0, src, 40000)
		p.Flags |= sequence.ACK
		if _, said := c.Explain(p, c.tick); len(said) != 1 || !strings.Contains(said[0].Text, "opens a connection") {
			t.Errorf("an answer: %+v", said)
		}
		if _, said := c.Explain(c.packet(0, src, 9), c.tick); said != nil {
			t.Errorf("a stray packet: %+v", said)
		}
	})
}

// BenchmarkEncoded is the cost of one packet of a stranger who completes messages
// that nobody sealed.
func BenchmarkEncoded(b *testing.B) {
	for _, people := range []int{1, 100, 1000} {
		b.Run(fmt.Sprint(people), func(b *testing.B) {
			c := newCoder(b, "", people)
			d := &c.doors[1]
			p := c.packet(d.knock, sources["IPv4"], 0)
			i := 0
			for b.Loop() {
				p.DstPort = d.parts.Port(i, 0)
				c.Observe(p, 1)
				i = (i + 1) % d.parts.Steps
			}
		})
	}
}
