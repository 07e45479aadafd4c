package rules_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/sallyport/sallyport/internal/testnet"
)

var (
	worlds = flag.Uint64("worlds", 6, "how many random configs each ruleset is compared with the daemon's rules on")
	first  = flag.Uint64("first", 14, "the seed of the first")
)

// A server with a listener, doors of each kind, and this many sources of each family:
// a list of the match recent has room for 100 of both.
const (
	sources  = 40
	listener = 7050
)

// drawConfig makes up to three doors, each to a service of its own. They are near
// each other, so that a step of one is a wrong packet to the next.
func drawConfig(rng *rand.Rand, kind string) string {
	var b strings.Builder
	if rng.IntN(2) == 0 {
		b.WriteString("[daemon]\npublic = [\"7033/tcp\", \"7034/udp\"]\n")
	}
	var steps []string
	for n := range 1 + rng.IntN(3) {
		fmt.Fprintf(&b, "[service.s%d]\nports = [\"%d/tcp\", \"%d/udp\"]\nclosed_as = \"drop\"\nopen_for = \"10m\"\nallow = [\"198.51.100.0/24\"]\n", n, 7010+n, 7020+n)
		fmt.Fprintf(&b, "[knock.k%d]\ntype = \"sequence\"\nopens = [\"s%d\"]\nwithin = \"10m\"\nscan_opens = true\nstrict = %v\nsequence = [", n, n, rng.IntN(3) == 0)
		if n == 0 || rng.IntN(2) == 0 { // or else the beginning of the door before
			steps = nil
		}
		for range 1 + rng.IntN(5) {
			step := drawStep(rng)
			for kind != "nft" && len(steps) > 0 && step == steps[len(steps)-1] {
				step = drawStep(rng)
			}
			steps = append(steps, step)
		}
		fmt.Fprintf(&b, "%s]\n", strings.Join(steps, ", "))
		steps = steps[:len(steps)/2]
	}
	return b.String()
}

func drawStep(rng *rand.Rand) string {
	port := 7000 + rng.IntN(70)
	switch rng.IntN(50) {
	case 0:
		port = 65535
	case 1:
		port = 1
	}
	switch rng.IntN(12) {
	case 0:
		return `"icmp"`
	case 1, 2:
		return fmt.Sprintf(`"%d/icmp"`, []int{0, 30, 31, 33, 37, 55, 56, 100, 1400}[rng.IntN(9)])
	case 3:
		return fmt.Sprintf(`"%d/tcp:%s"`, port, []string{"any", "fin", "ack", "syn,!ack", "fin,psh,urg", "!syn,!ack", "rst"}[rng.IntN(7)])
	case 4, 5, 6:
		return fmt.Sprintf(`"%d/udp"`, port)
	}
	return fmt.Sprintf(`"%d/tcp"`, port)
}

// drawPacket is mostly what some door waits for, and else something near it.
func drawPacket(rng *rand.Rand, knocks []config.Knock, cursor []int) sequence.Hit {
	n := rng.IntN(len(knocks))
	steps := knocks[n].Sequence
	s := steps[cursor[n]%len(steps)]
	if rng.IntN(9) == 0 {
		s = steps[rng.IntN(len(steps))]
	}
	cursor[n]++
	h := sequence.Hit{Proto: s.Proto, Port: s.Port, Flags: s.Flags.Set}
	if s.AnySize {
		h.Port = uint16([]int{0, 32, 56, 84}[rng.IntN(4)])
	}
	if rng.IntN(6) > 0 {
		return h
	}
	switch cursor[n]--; rng.IntN(5) {
	case 0:
		h.Port += uint16([]int{1, -1, 2, 64, 65, -64, -65}[rng.IntN(7)])
	case 1:
		h.Port = uint16([]int{7010, 7020, 7021, 7033, 7034, listener, listener + 1, 22, 443, 65535, 1, 6936, 7133}[rng.IntN(13)])
	case 2:
		h.Proto = []sequence.Proto{sequence.TCP, sequence.UDP}[rng.IntN(2)]
		h.Flags = sequence.SYN
	case 3:
		h.Flags = []uint8{sequence.SYN | sequence.ACK, sequence.ACK, sequence.FIN, sequence.RST, sequence.SYN | sequence.URG, 0}[rng.IntN(6)]
	case 4:
		h = sequence.Hit{Proto: sequence.ICMP, Port: uint16([]int{0, 1, 32, 36, 37, 38, 56, 57, 101, 300}[rng.IntN(10)])}
	}
	if h.Proto == sequence.ICMP && h.Port > 1400 {
		h.Port = 1400
	}
	if h.Proto != sequence.ICMP && h.Port == 0 {
		h.Port = 1
	}
	return h
}

// ground is a server, and a client that sends in anybody's name. What the server
// answers is thrown away: nobody is there to take it.
type ground struct {
	server, client *testnet.Namespace
	wire           *testnet.Wire
	sent           int
}

func newGround(t *testing.T) *ground {
	g := &ground{server: testnet.New(t), client: testnet.New(t)}
	serverEnd, clientEnd := testnet.Connect(g.server, g.client, []string{"10.9.0.1/16", "2001:db8::1/64"}, []string{"10.9.0.2/16", "2001:db8::2/64"})
	g.wire = g.client.Wire(clientEnd, g.server.MAC(serverEnd))
	g.server.Input(`table inet bench {
	chain arrived {
		type filter hook prerouting priority -310
		ip saddr 10.9.9.0/24 counter
		ip6 saddr 2001:db8:0:0:9::/80 counter
	}
	chain answers { type filter hook output priority -310; policy drop; }
}`, "nft", "-f", "-")
	w := &world{server: g.server}
	w.listen(t, listener)
	var datagrams net.PacketConn
	var err error
	w.server.Do(func() { datagrams, err = net.ListenPacket("udp", fmt.Sprintf(":%d", listener)) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { datagrams.Close() })
	return g
}

// send gives a packet to the server, the nth of its source.
func (g *ground) send(t *testing.T, from netip.Addr, h sequence.Hit, n int) {
	to := netip.MustParseAddr("10.9.0.1")
	if from.Is6() {
		to = netip.MustParseAddr("2001:db8::1")
	}
	src, dst := netip.AddrPortFrom(from, uint16(20000+n)), netip.AddrPortFrom(to, h.Port)
	switch h.Proto {
	case sequence.TCP:
		g.wire.Send(t, testnet.TCP(src, dst, h.Flags, uint32(n)))
	case sequence.UDP:
		g.wire.Send(t, testnet.UDP(src, dst, fmt.Append(nil, n)))
	default:
		g.wire.Send(t, testnet.Echo(from, to, 1, uint16(n), int(h.Port)))
	}
	if g.sent++; g.sent%128 == 0 { // no queue overflows
		time.Sleep(time.Millisecond)
	}
}

// settle waits until the server has seen every packet.
func (g *ground) settle(t *testing.T) {
	for range 200 {
		seen := 0
		for _, m := range regexp.MustCompile(`counter packets (\d+)`).FindAllStringSubmatch(g.server.Run("nft", "list", "chain", "inet", "bench", "arrived"), -1) {
			n, _ := strconv.Atoi(m[1])
			seen += n
		}
		if seen >= g.sent {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("packets were lost on the way")
}

// opened lists who may reach a service by a knock.
func (g *ground) opened(kind, service string) (list []string) {
	text := ""
	if kind == "nft" {
		text = g.server.Run("nft", "list", "set", "inet", "sallyport_rules", "open."+service+".4") + g.server.Run("nft", "list", "set", "inet", "sallyport_rules", "open."+service+".6")
	} else {
		text = g.server.Run("cat", "/proc/net/xt_recent/sallyport.open."+service)
	}
	for _, word := range regexp.MustCompile(`10\.9\.9\.\d+|2001:[0-9a-f:]+`).FindAllString(text, -1) {
		list = append(list, netip.MustParseAddr(word).String())
	}
	slices.Sort(list)
	return list
}

// TestDifferential plays random packets to a ruleset in the kernel and to the
// matcher of the daemon, which must let in the same sources.
func TestDifferential(t *testing.T) {
	for _, l := range loaders {
		t.Run(l.name, func(t *testing.T) {
			t.Parallel()
			in, of := 0, 0
			for seed := *first; seed < *first+*worlds; seed++ {
				rng := rand.New(rand.NewPCG(seed, 7))
				text := drawConfig(rng, l.name)
				cfg, err := config.Parse("test", []byte(text))
				if err != nil {
					continue // two doors with the same steps, or such
				}
				g := newGround(t)
				l.load(t, &world{server: g.server}, text)
				n, m := g.play(t, l.name, rng, cfg, fmt.Sprintf("seed %d\n%s", seed, text))
				in, of = in+n, of+m
			}
			t.Logf("%d of %d were let in", in, of)
		})
	}
}

func (g *ground) play(t *testing.T, kind string, rng *rand.Rand, cfg *config.Config, what string) (in, of int) {
	var listening []config.PortRange
	if kind == "nft" {
		listening = []config.PortRange{{Proto: sequence.TCP, Low: listener, High: listener}, {Proto: sequence.UDP, Low: listener, High: listener}}
	}
	var doors []sequence.Sequence
	for _, k := range cfg.Knocks {
		doors = append(doors, sequence.Sequence{Name: k.Name, Steps: k.Sequence, Within: k.Within, Strict: k.Strict})
	}
	want := make([][]string, len(cfg.Knocks))
	story := map[string]string{}
	for n := range 2 * sources {
		from := netip.AddrFrom4([4]byte{10, 9, 9, byte(n/2 + 1)})
		if n%2 == 1 {
			from = netip.MustParseAddr(fmt.Sprintf("2001:db8::9:0:0:%x", n/2+1))
		}
		// One matcher for each door: in one for all, a packet that ends an attempt begins
		// none at another door, which the rulesets can't do (doc/rules.md).
		var matchers []*sequence.Matcher
		for _, d := range doors {
			matchers = append(matchers, sequence.New([]sequence.Sequence{d}, config.Innocent(cfg, listening), 16))
		}
		cursor := make([]int, len(doors))
		for p := range 4 + rng.IntN(12) {
			h := drawPacket(rng, cfg.Knocks, cursor)
			h.ID = uint64(p)
			story[from.String()] += fmt.Sprintf(" %d/%v:%#x", h.Port, h.Proto, h.Flags)
			g.send(t, from, h, p)
			for i, m := range matchers {
				for _, o := range m.Observe(from, h, int64(p)*2e9) {
					story[from.String()] += fmt.Sprintf("(k%d %v)", i, o.Verdict)
					if o.Verdict == sequence.Completed && !slices.Contains(want[i], from.String()) {
						want[i] = append(want[i], from.String())
					}
				}
			}
		}
	}
	g.settle(t)
	for i, k := range cfg.Knocks {
		slices.Sort(want[i])
		got := g.opened(kind, cfg.Services[k.Opens[0]].Name)
		for _, a := range append(slices.Clone(want[i]), got...) {
			if slices.Contains(want[i], a) != slices.Contains(got, a) {
				t.Errorf("%s\nknock.%s lets %s in: %v, and the daemon %v; packets%s", what, k.Name, a, slices.Contains(got, a), slices.Contains(want[i], a), story[a])
			}
		}
		in, of = in+len(got), of+2*sources
	}
	return in, of
}
