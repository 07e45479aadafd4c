//go:build linux

// Package integration_test holds the promises of the program as a whole: the
// real daemon in namespaces, real packets, real tools.
package integration_test

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/sallyport/sallyport/internal/testnet"
)

// world is where a story happens: the engine in this process under a clock that
// the test turns, or the real daemon in a namespace.
type world interface {
	// send puts packets on the wire to the host; shouted ones are broadcast.
	send(t *testing.T, shouted bool, packets ...[]byte)
	// reaches reports whether the address may connect to the service, after
	// everything that was sent has had its effect.
	reaches(t *testing.T, from netip.Addr) bool
	// wait lets time pass once everything that was sent has been seen.
	wait(t *testing.T, d time.Duration)
	// gain gives the host a further address.
	gain(t *testing.T, addr netip.Addr)
}

// family is the addresses of one family. Strangers are one hop behind the
// client's end of the wire, in a prefix of their own.
type family struct {
	name      string
	host      string // of the wire's prefix
	places    map[string]string
	strangers string // prefix, /24 or /64
	forged    string // prefix that no one can answer to
}

var ipFamilies = []family{
	{"ipv4", "192.0.2.1", map[string]string{
		"": "192.0.2.1", "second": "192.0.2.9", "later": "192.0.2.10", "neighbour": "192.0.2.3",
		"all": "192.0.2.255", "group": "224.0.0.1",
	}, "198.51.100.", "203.0.113."},
	{"ipv6", "2001:db8::1", map[string]string{
		"": "2001:db8::1", "second": "2001:db8::9", "later": "2001:db8::a", "neighbour": "2001:db8::3",
		"all": "ff02::1", "group": "ff02::1",
	}, "2001:db8:c::", "2001:db8:f::"},
}

func (f family) place(name string) netip.Addr { return netip.MustParseAddr(f.places[name]) }

// stranger gives the n-th address of the client's, 1 to 254.
func (f family) stranger(n int) netip.Addr { return nth(f.strangers, n) }

func nth(prefix string, n int) netip.Addr {
	if strings.Contains(prefix, ":") {
		return netip.MustParseAddr(prefix + strconv.FormatInt(int64(n), 16))
	}
	return netip.MustParseAddr(prefix + strconv.Itoa(n))
}

// story is one sequence and what happens to those who try it.
type story struct {
	name     string
	sequence string // its steps; plain unless given
	within   string // 5s unless given
	openFor  string // 30s unless given
	keys     string // further keys of the knock's table
	// tell is what happens, word by word:
	//
	//	STEP[#ID][~FORM][>PLACE][<STRANGER]  a packet, new unless #ID was sent before
	//	LOW-HIGH/tcp                         a scan, one new packet for each port
	//	open[<STRANGER] shut[<STRANGER]      whether the service can be reached now
	//	+1.2s                                time passes
	//	gain                                 the host gets the address called later
	tell string
}

const plain = "7000/tcp 8500/udp 7800/tcp"

// strangersEach is how many addresses one story may use, counted from 1.
const strangersEach = 3

// stories are told in every world, in both families. sallyport.toml(5) has the
// rules.
var stories = []story{
	{name: "a knock opens, for its sender alone",
		tell: "shut " + plain + " open shut<2"},
	{name: "the order counts",
		tell: "8500/udp 7000/tcp 7800/tcp 8500/udp shut"},
	{name: "each step counts",
		tell: "7000/tcp shut 8500/udp shut 7800/tcp open"},
	{name: "bug 3: another packet for the step just made is harmless",
		tell: "7000/tcp 7000/tcp 8500/udp 8500/udp 7800/tcp open"},
	{name: "bug 3: copies are harmless",
		tell: "7000/tcp#1 7000/tcp#1 8500/udp#2 8500/udp#2 7800/tcp open"},
	{name: "A A B: a copy of A is not the second step",
		sequence: "7000/tcp 7000/tcp 8000/tcp",
		tell:     "7000/tcp#1 7000/tcp#1 8000/tcp shut 7000/tcp#2 7000/tcp#3 8000/tcp open"},
	{name: "A A B over UDP",
		sequence: "7000/udp 7000/udp 8000/udp",
		tell:     "7000/udp#1 7000/udp#1 8000/udp shut 7000/udp#2 7000/udp#3 8000/udp open"},
	{name: "A B A B C",
		sequence: "7000/tcp 8000/tcp 7000/tcp 8000/tcp 9000/tcp",
		tell:     "7000/tcp 8000/tcp 9000/tcp shut 7000/tcp 8000/tcp 7000/tcp 8000/tcp shut 9000/tcp open"},
	{name: "A B A B C with every SYN sent again late",
		sequence: "7000/tcp 8000/tcp 7000/tcp 8000/tcp 9000/tcp",
		tell:     "7000/tcp#1 8000/tcp#2 7000/tcp#1 8000/tcp#2 7000/tcp#3 7000/tcp#1 8000/tcp#4 7000/tcp#3 8000/tcp#2 shut 9000/tcp open"},
	{name: "bug 3: a late copy of A after B",
		tell: "7000/tcp#1 8500/udp 7000/tcp#1 +1.1s 7000/tcp#1 7800/tcp open"},
	{name: "a bridge shows each packet twice",
		sequence: "7000/tcp 8500/udp 37/icmp",
		tell:     "7000/tcp#1 7000/tcp#1 8500/udp#2 8500/udp#2 shut 37/icmp#3 37/icmp#3 open"},
	{name: "two sources at once",
		tell: "7000/tcp<1 7000/tcp<2 8500/udp<2 8500/udp<1 7800/tcp<1 open<1 shut<2 7800/tcp<2 open<2"},
	{name: "two sources don't make one knock",
		tell: "7000/tcp<1 8500/udp<2 7800/tcp<1 shut<1 shut<2"},
	{name: "bug 1, promise 4: a wrong packet in another's name resets nobody else",
		tell: "7000/tcp<1 7500/tcp<3 8500/udp<1 7000/tcp<2 7500/tcp<3 7500/udp<2 7800/tcp<1 open<1"},
	{name: "a wrong packet resets its own source",
		tell: "7000/tcp 8500/udp 7500/tcp 7800/tcp shut " + plain + " open"},
	{name: "the same number in the other protocol is wrong",
		tell: "7000/tcp 8500/tcp 8500/udp 7800/tcp shut"},
	{name: "a wrong packet that is the first step begins anew",
		tell: "7000/tcp 8500/udp 7000/tcp 7800/tcp shut 7000/tcp 8500/udp 7000/tcp 8500/udp 7800/tcp open"},
	{name: "ports far away are no business of the knock's",
		tell: "7000/tcp 22222/tcp 8500/udp 33333/udp 56/icmp 7800/tcp open"},
	{name: "bug 2: a scan around each step",
		tell: "6990-7005/tcp 8490-8510/udp 7790-7810/tcp shut"},
	{name: "bug 2: an ascending scan",
		sequence: "7000/tcp 8000/tcp 9000/tcp",
		tell:     "6900-9100/tcp shut"},
	{name: "bug 2: a descending scan",
		sequence: "9000/tcp 8000/tcp 7000/tcp",
		tell:     "9100-6900/tcp shut"},
	{name: "bug 2: a wrapping scan",
		sequence: "8000/udp 65000/udp 100/udp",
		tell:     "7990-8100/udp 64900-65535/udp 1-200/udp shut"},
	{name: "after a scan the knock still works",
		tell: "6900-8600/tcp " + plain + " open"},
	{name: "UDP alone",
		sequence: "7000/udp 8500/udp 7800/udp",
		tell:     "7000/udp 8500/tcp 8500/udp 7800/udp open"},
	{name: "pings by their size",
		sequence: "37/icmp 911/icmp 112/icmp",
		tell:     "37/icmp 911/icmp 113/icmp 112/icmp shut 37/icmp 56/icmp 911/icmp 112/icmp open"},
	{name: "a ping of any size",
		sequence: "7000/tcp icmp 7800/tcp",
		tell:     "7000/tcp 7800/tcp shut 7000/tcp 99/icmp 7800/tcp open"},
	{name: "flags",
		sequence: "7000/tcp:fin,!ack 8000/tcp:syn,!ack 7500/tcp:psh,urg",
		tell:     "7000/tcp 8000/tcp 7500/tcp:psh,urg shut 7000/tcp:fin,!ack 8000/tcp 7500/tcp:psh shut 7000/tcp:fin 8000/tcp 7500/tcp:psh,urg open"},
	{name: "a SYN with ACK is no step",
		tell: "7000/tcp:syn,ack 8500/udp 7800/tcp shut 7000/tcp 8500/udp 7800/tcp:rst 7800/tcp:syn,ack shut 7800/tcp open"},
	{name: "one step",
		sequence: "7000/tcp", keys: "scan_opens = true",
		tell: "7001/tcp shut 7000/tcp open"},
	{name: "32 steps",
		sequence: longest,
		tell:     cutLast(longest) + " shut " + longest + " open"},
	{name: "the ends of the range",
		sequence: "65535/tcp 1/udp 65000/tcp",
		tell:     "65535/tcp 65000/tcp shut 65535/tcp 1/udp 65000/tcp open"},
	{name: "too late",
		within: "1s",
		tell:   "7000/tcp 8500/udp +1.2s 7800/tcp shut " + plain + " open"},
	{name: "strict: any other packet is wrong",
		keys: "strict = true",
		tell: "7000/tcp 22222/udp 8500/udp 7800/tcp shut 7000/tcp 8500/udp 443/tcp 7800/tcp shut " + plain + " open"},
	{name: "close_on_wrong ends the sender's grant",
		keys: "close_on_wrong = true",
		tell: plain + " open 7000/tcp<2 7500/tcp<2 open 7000/tcp 7500/tcp shut"},
	{name: "promise 4: a forged wrong packet ends no grant",
		tell: plain + " open 7000/tcp 7500/tcp 7000/tcp 8500/udp 7500/udp open"},
	{name: "a live port as a step, while its user browses",
		sequence: "7000/tcp 443/tcp 7800/tcp",
		tell:     "443/tcp 7000/tcp 443/tcp 443/tcp shut 7800/tcp open"},
	{name: "a live port is innocent out of turn",
		sequence: "443/tcp 8000/tcp 9000/tcp",
		tell:     "443/tcp 443/tcp 8000/tcp 443/tcp 9000/tcp open"},
	{name: "bug 6: a grant ends on time",
		openFor: "5s",
		tell:    plain + " open +5.3s shut"},
	{name: "a further knock makes a grant longer",
		openFor: "5s",
		tell:    plain + " open +2s " + plain + " +3.5s open +2s shut"},
	{name: "any address of the host counts",
		tell: "7000/tcp>second 8500/udp 7800/tcp>second open"},
	{name: "another machine's address does not",
		tell: "7000/tcp>neighbour 8500/udp>neighbour 7800/tcp>neighbour shut 7000/tcp 7500/tcp>neighbour 8500/udp 7800/tcp open"},
	{name: "broadcast and multicast do not",
		tell: "7000/tcp 8500/udp>all 7800/tcp shut 7000/tcp 8500/udp>group 7800/tcp shut"},
	{name: "an address that is added later counts",
		tell: "7000/tcp>later 8500/udp>later 7800/tcp>later shut gain 7000/tcp>later 8500/udp>later 7800/tcp>later open"},
	{name: "fragments do not count",
		tell: "7000/tcp~first 8500/udp 7800/tcp shut 7000/tcp 8500/udp~first 7500/tcp~last shut 7800/tcp shut 7000/tcp 7500/tcp~first 8500/udp 7800/tcp~first shut 7800/tcp open"},
	{name: "packets that end too soon do not count",
		tell: "7000/tcp~cut 8500/udp 7800/tcp shut 7000/tcp 7500/tcp~cut 8500/udp 7800/tcp open"},
	{name: "IP options and extension headers do not hide a step",
		tell: "7000/tcp~options 7500/tcp~options 8500/udp 7800/tcp shut 7000/tcp~options 8500/udp~options 7800/tcp~options open"},
	{name: "quiet ports are heard",
		keys: "quiet = true",
		tell: plain + " open"},
}

// longest has 32 steps that no scan touches in this order.
var longest = func() string {
	var words []string
	for i := range sequence.MaxSteps {
		words = append(words, fmt.Sprintf("%d/%s", 10000+(i*7919)%5000, []string{"tcp", "udp"}[i%2]))
	}
	return strings.Join(words, " ")
}()

func cutLast(words string) string { return words[:strings.LastIndexByte(words, ' ')] }

// config is what both worlds serve. The witness is how a test learns that all
// it sent has been dealt with.
func (s story) config() string {
	or := func(text, otherwise string) string {
		if text == "" {
			return otherwise
		}
		return text
	}
	return fmt.Sprintf(`[daemon]
state_dir = "DIR/state"
control = "DIR/control.sock"
[service.door]
ports = ["22/tcp"]
closed_as = "reject"
open_for = %q
[knock.story]
type = "sequence"
opens = ["door"]
sequence = [%s]
within = %q
%s
`, or(s.openFor, "30s"), quotedSteps(or(s.sequence, plain)), or(s.within, "5s"), s.keys) + witnessConfig
}

func quotedSteps(steps string) string {
	return `"` + strings.Join(strings.Fields(steps), `", "`) + `"`
}

// TestPromise5EveryStoryInBothFamilies tells every story in every world. That the host's own rules drop
// the knock ports must change nothing: the capture stands before them.
func TestPromise5EveryStoryInBothFamilies(t *testing.T) {
	for _, f := range ipFamilies {
		t.Run("fake/"+f.name, func(t *testing.T) {
			for _, s := range stories {
				t.Run(s.name, func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) { s.happen(t, newFakeWorld(t, f, s.config()), f, 1) })
				})
			}
		})
	}
	eachWorld(t, hostRules, func(t *testing.T, f family, rules ownRules) {
		w := newRealWorld(t, f)
		w.host.Input(rules.text, rules.program, rules.args...)
		w.serve(t, stories[0].config())
		for i, s := range stories {
			t.Run(s.name, func(t *testing.T) {
				w.reload(t, s.config())
				s.happen(t, w, f, 1+strangersEach*i)
			})
		}
	})
}

// happen tells the story in a world; its strangers are counted from first on.
func (s story) happen(t *testing.T, w world, f family, first int) {
	t.Helper()
	p := teller{f: f, first: first, fresh: uint32(first) << 16}
	for _, word := range strings.Fields(s.tell) {
		body, n, named := strings.Cut(word, "<")
		from := f.stranger(first)
		if named {
			from = f.stranger(first + number(t, n) - 1)
		}
		switch {
		case body == "open" || body == "shut":
			if got := w.reaches(t, from); got != (body == "open") {
				t.Fatalf("%q: at %s the service is not %s to %s", s.tell, word, body, from)
			}
		case body == "gain":
			w.gain(t, f.place("later"))
		case body[0] == '+':
			d, err := time.ParseDuration(body[1:])
			if err != nil {
				t.Fatal(err)
			}
			w.wait(t, d)
		default:
			packets, shouted := p.packets(t, body, from)
			w.send(t, shouted, packets...)
		}
	}
}

// teller makes packets out of the words of a story.
type teller struct {
	f     family
	first int
	fresh uint32 // counts packets, so that no two are alike
}

// packets reads STEP[#ID][~FORM][>PLACE] or LOW-HIGH/PROTO.
func (p *teller) packets(t *testing.T, word string, from netip.Addr) (packets [][]byte, shouted bool) {
	t.Helper()
	word, place, _ := strings.Cut(word, ">")
	word, form, _ := strings.Cut(word, "~")
	word, id, repeated := strings.Cut(word, "#")
	to := p.f.place(place)
	if ends, proto, _ := strings.Cut(word, "/"); strings.Contains(ends, "-") {
		low, high, _ := strings.Cut(ends, "-")
		a, b := number(t, low), number(t, high)
		for d, port := (b-a)/max(b-a, a-b), a; port != b+d; port += d {
			packets = append(packets, p.packet(t, strconv.Itoa(port)+"/"+proto, from, to, "", p.next()))
		}
		return packets, false
	}
	n := p.next()
	if repeated {
		n = uint32(p.first)<<16 | 0x8000 | uint32(number(t, id))
	}
	return [][]byte{p.packet(t, word, from, to, form, n)}, place == "all"
}

func (p *teller) next() uint32 { p.fresh++; return p.fresh }

// packet builds the packet that makes a step; id tells it from others.
func (p *teller) packet(t *testing.T, step string, from, to netip.Addr, form string, id uint32) []byte {
	t.Helper()
	s, err := sequence.ParseStep(step)
	if err != nil {
		t.Fatal(err)
	}
	opts := append(forms[form](from.Is4()), testnet.ID(uint16(id)))
	src, dst := netip.AddrPortFrom(from, uint16(20000+id&0x7fff)), netip.AddrPortFrom(to, s.Port)
	var b []byte
	switch s.Proto {
	case sequence.TCP:
		b = testnet.TCP(src, dst, s.Flags.Set, id, opts...)
	case sequence.UDP:
		b = testnet.UDP(src, dst, []byte(strconv.Itoa(int(id))), opts...)
	case sequence.ICMP:
		b = testnet.Echo(from, to, uint16(id>>16), uint16(id), int(s.Port), opts...)
	}
	if form == "cut" {
		b = b[:len(b)-11] // inside a TCP header
	}
	return b
}

// forms are ways to wrap a packet, by family.
var forms = map[string]func(is4 bool) []testnet.Option{
	"":    func(bool) []testnet.Option { return nil },
	"cut": func(bool) []testnet.Option { return nil },
	"options": func(is4 bool) []testnet.Option {
		if is4 {
			return []testnet.Option{testnet.IPOptions(1, 1, 1, 0)} // no-operations and the end (RFC 791)
		}
		return []testnet.Option{testnet.Extension(0, 1), testnet.Extension(60, 2)}
	},
	"first": func(bool) []testnet.Option { return []testnet.Option{testnet.Fragment(0, true)} },
	"last":  func(bool) []testnet.Option { return []testnet.Option{testnet.Fragment(3, false)} },
}

func number(t *testing.T, text string) int {
	t.Helper()
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
