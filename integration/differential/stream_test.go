package differential

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/sallyport/sallyport/internal/testnet"
)

// The server's addresses: two of each family, so that a Target can matter.
var servers = []netip.Addr{
	netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::2"),
	netip.MustParseAddr("192.0.2.3"), netip.MustParseAddr("2001:db8::3"),
}

// The knockers: as many of each family.
var sources = func() (all []netip.Addr) {
	for i := range 3 {
		all = append(all, netip.MustParseAddr(fmt.Sprintf("192.0.2.%d", 100+i)), netip.MustParseAddr(fmt.Sprintf("2001:db8::10%d", i)))
	}
	return all
}()

// The ports are few, so that doors share steps and beginnings, and lie so that
// some are in each other's guarded range and some are not.
var pool = []uint16{1, 60, 7000, 7001, 7040, 7100, 7300, 9000, 9050, 30000, 65500, 65535}

// Flags as TCPFlags says them.
var flagWords = []struct {
	text  string
	flags sequence.Flags
}{
	{"", sequence.Flags{}},
	{"syn", sequence.Flags{Set: sequence.SYN}},
	{"syn", sequence.Flags{Set: sequence.SYN}},
	{"syn,!ack", sequence.Flags{Set: sequence.SYN, Clear: sequence.ACK}},
	{"ack,!syn", sequence.Flags{Set: sequence.ACK, Clear: sequence.SYN}},
	{"fin,psh,urg,!rst", sequence.Flags{Set: sequence.FIN | sequence.PSH | sequence.URG, Clear: sequence.RST}},
}

// Bytes 13 of a TCP header that the streams have.
var segments = []uint8{
	sequence.SYN, sequence.SYN, sequence.SYN, sequence.SYN | sequence.ACK, sequence.ACK,
	sequence.FIN | sequence.PSH | sequence.URG, sequence.RST, 0,
}

// drawDoors makes a random file: the text of the sections, and what they mean.
func drawDoors(r *rand.Rand) ([]door, string) {
	var doors []door
	var text strings.Builder
	for i := range 1 + r.IntN(6) {
		d := door{name: fmt.Sprintf("door%d", i), timeout: []int{1, 2, 3, 25}[r.IntN(4)]}
		if i > 0 && r.IntN(3) == 0 { // the beginning of another, or more than it
			d.steps = slices.Clone(doors[r.IntN(i)].steps)
			d.steps = d.steps[:1+r.IntN(len(d.steps))]
		}
		for range r.IntN(4) {
			d.steps = append(d.steps, drawStep(r))
		}
		if len(d.steps) == 0 {
			d.steps = append(d.steps, drawStep(r))
		}
		word := flagWords[r.IntN(len(flagWords))]
		d.flags = word.flags
		fmt.Fprintf(&text, "[%s]\nsequence = %s\nseq_timeout = %d\n", d.name, spell(d.steps), d.timeout)
		if word.text != "" {
			fmt.Fprintf(&text, "tcpflags = %s\n", word.text)
		}
		if r.IntN(4) == 0 {
			d.target = servers[r.IntN(len(servers))]
			fmt.Fprintf(&text, "target = %s\n", d.target)
		}
		doors = append(doors, d)
	}
	return doors, text.String()
}

func drawStep(r *rand.Rand) step {
	if r.IntN(4) == 0 {
		return step{sequence.UDP, pool[r.IntN(len(pool))]}
	}
	return step{sequence.TCP, pool[r.IntN(len(pool))]}
}

func spell(steps []step) string {
	var words []string
	for _, s := range steps {
		word := fmt.Sprint(s.port)
		if s.proto == sequence.UDP {
			word += ":udp"
		}
		words = append(words, word)
	}
	return strings.Join(words, ",")
}

// player makes a stream of packets as it goes: what somebody who knows the doors
// sends, with mistakes. Each packet but a copy has a source port of its own, by
// which it is known again.
type player struct {
	r     *rand.Rand
	doors []door
	last  map[netip.Addr]packet
	at    map[netip.Addr]time.Time
	next  map[netip.Addr][]step // what is left of the door that a source is at
	to    map[netip.Addr]int    // that door
	port  uint32
}

func newPlayer(r *rand.Rand, doors []door) *player {
	return &player{
		r: r, doors: doors, port: 1024,
		last: map[netip.Addr]packet{}, at: map[netip.Addr]time.Time{}, next: map[netip.Addr][]step{}, to: map[netip.Addr]int{},
	}
}

// packet gives the next packet of a source.
func (p *player) packet(src netip.Addr, now time.Time) packet {
	r := p.r
	out := packet{src: src, dst: p.server(src), flags: segments[r.IntN(len(segments))]}
	switch n := r.IntN(100); {
	case n < 9 && p.last[src].id != 0 && now.Sub(p.at[src]) < 300*time.Millisecond:
		return p.last[src] // a retransmission
	case n < 14 && p.last[src].id != 0: // the same port once more
		out.step, out.flags = p.last[src].step, p.last[src].flags
	case n < 22: // anything
		out.step = drawStep(r)
	case n < 26: // beside a port
		out.step = drawStep(r)
		out.port = uint16(max(1, min(65535, int(out.port)+r.IntN(131)-65)))
	default:
		p.follow(&out)
	}
	p.port++
	out.id = p.port
	p.last[src], p.at[src] = out, now
	return out
}

// follow makes the next step of the door that the source is at, and chooses
// another behind the last.
func (p *player) follow(out *packet) {
	src := out.src
	if len(p.next[src]) == 0 {
		p.to[src] = p.r.IntN(len(p.doors))
		p.next[src] = p.doors[p.to[src]].steps
	}
	d := p.doors[p.to[src]]
	out.step, p.next[src] = p.next[src][0], p.next[src][1:]
	if p.r.IntN(15) > 0 {
		out.flags = d.flags.Set
		if d.flags == (sequence.Flags{}) {
			out.flags = sequence.SYN
		}
	}
	if d.target.IsValid() && d.target.Is4() == src.Is4() {
		out.dst = d.target
	}
}

func (p *player) server(src netip.Addr) netip.Addr {
	i := 2 * p.r.IntN(2)
	if src.Is6() {
		i++
	}
	if p.r.IntN(3) > 0 {
		i %= 2
	}
	return servers[i]
}

// bytes builds the packet as it goes over the wire.
func (p packet) bytes() []byte {
	src, dst := netip.AddrPortFrom(p.src, uint16(p.id)), netip.AddrPortFrom(p.dst, p.port)
	if p.proto == sequence.UDP {
		return testnet.UDP(src, dst, []byte{0}, testnet.ID(uint16(p.id)))
	}
	return testnet.TCP(src, dst, p.flags, p.id*2654435761, testnet.ID(uint16(p.id)))
}
