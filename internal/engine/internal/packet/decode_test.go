package packet_test

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/sallyport/sallyport/internal/engine/internal/packet"
	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/sallyport/sallyport/internal/testnet"
)

var ap = netip.MustParseAddrPort

// ends are a client and a server of each family.
var ends = []struct {
	name     string
	src, dst netip.AddrPort
}{
	{"IPv4", ap("198.51.100.7:40000"), ap("192.0.2.1:7000")},
	{"IPv6", ap("[2001:db8:1::7]:40000"), ap("[2001:db8::1]:7000")},
}

func TestDecode(t *testing.T) {
	for _, e := range ends {
		want := packet.Packet{Src: e.src.Addr(), Dst: e.dst.Addr(), SrcPort: 40000, DstPort: 7000}
		tcp, udp, echo := want, want, want
		tcp.Proto, tcp.Seq, tcp.Flags = sequence.TCP, 0xdeadbeef, sequence.SYN
		udp.Proto, udp.Payload = sequence.UDP, []byte("hello")
		if e.src.Addr().Is4() {
			udp.Seq = 99
		}
		echo.Proto, echo.SrcPort, echo.DstPort, echo.Seq, echo.Payload = sequence.ICMP, 0, 37, 0x00120034, make([]byte, 37)
		for name, opts := range shapes(e.src.Addr().Is4()) {
			t.Run(e.name+"/"+name, func(t *testing.T) {
				check(t, testnet.TCP(e.src, e.dst, sequence.SYN, 0xdeadbeef, opts...), tcp)
				check(t, testnet.UDP(e.src, e.dst, []byte("hello"), append(opts, testnet.ID(99))...), udp)
				check(t, testnet.Echo(e.src.Addr(), e.dst.Addr(), 0x12, 0x34, 37, opts...), echo)
			})
		}
	}
}

// shapes are the headers that may stand between the IP header and the
// transport header of a packet that counts.
func shapes(is4 bool) map[string][]testnet.Option {
	if is4 {
		full := make([]byte, 40)
		for i := range full {
			full[i] = 1 // no operation
		}
		return map[string][]testnet.Option{
			"plain":            nil,
			"one option word":  {testnet.IPOptions(1, 1, 1, 0)},
			"forty of options": {testnet.IPOptions(full...)},
		}
	}
	hop, dest := testnet.Extension(0, 1), testnet.Extension(60, 4)
	return map[string][]testnet.Option{
		"plain":       nil,
		"hop-by-hop":  {hop},
		"routing":     {testnet.Routing(0)},
		"destination": {dest},
		"all kinds":   {hop, testnet.Routing(0), dest, dest},
		"eight":       {hop, dest, dest, dest, dest, dest, dest, dest},
	}
}

// check decodes a packet as it is and with what a wire adds behind it.
func check(t *testing.T, b []byte, want packet.Packet) {
	t.Helper()
	for _, in := range [][]byte{b, append(b[:len(b):len(b)], make([]byte, 18)...)} {
		var got packet.Packet
		packet.Decode(in, &got)
		if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}), cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%d bytes (-want +got):\n%s", len(in), diff)
		}
	}
}

// changed gives a copy of b with one byte set.
func changed(b []byte, at int, to byte) []byte {
	b = append([]byte(nil), b...)
	b[at] = to
	return b
}

func TestDecodeDeclines(t *testing.T) {
	v4, v6 := ends[0], ends[1]
	tcp4, tcp6 := testnet.TCP(v4.src, v4.dst, 2, 1), testnet.TCP(v6.src, v6.dst, 2, 1)
	udp4, udp6 := testnet.UDP(v4.src, v4.dst, []byte("x")), testnet.UDP(v6.src, v6.dst, []byte("x"))
	echo4 := testnet.Echo(v4.src.Addr(), v4.dst.Addr(), 1, 1, 8)
	echo6 := testnet.Echo(v6.src.Addr(), v6.dst.Addr(), 1, 1, 8)
	dest := testnet.Extension(60, 1)
	from := func(src string, dst netip.AddrPort) []byte { return testnet.TCP(ap(src), dst, 2, 1) }
	tests := []struct {
		name string
		in   []byte
		want packet.Why
	}{
		{"version 5", changed(tcp4, 0, 0x55), packet.NotIP},
		{"IPv4 header length 16", changed(tcp4, 0, 0x44), packet.BadLength},
		{"IPv4 options promised, not there", changed(tcp4, 0, 0x4f), packet.BadLength},
		{"IPv4 total length 19", changed(tcp4, 3, 19), packet.BadLength},
		{"IPv4 total length 0 of a big TCP packet", changed(tcp4, 3, 0), packet.BadLength},
		{"IPv4 total length ends in the TCP header", changed(tcp4, 3, 39), packet.BadLength},
		{"IPv6 payload length ends in the TCP header", changed(tcp6, 5, 19), packet.BadLength},
		{"IPv6 payload length 0", changed(tcp6, 5, 0), packet.BadLength},
		{"IPv6 extension longer than the packet", changed(testnet.TCP(v6.src, v6.dst, 2, 1, dest), 41, 9), packet.BadLength},
		{"TCP data offset 4, IPv4", changed(tcp4, 20+12, 4<<4), packet.BadLength},
		{"TCP data offset 4, IPv6", changed(tcp6, 40+12, 4<<4), packet.BadLength},
		{"TCP data offset behind the end, IPv4", changed(tcp4, 20+12, 6<<4), packet.BadLength},
		{"TCP data offset behind the end, IPv6", changed(tcp6, 40+12, 6<<4), packet.BadLength},
		{"UDP length 7, IPv4", changed(udp4, 20+5, 7), packet.BadLength},
		{"UDP length 7, IPv6", changed(udp6, 40+5, 7), packet.BadLength},
		{"UDP length behind the end, IPv4", changed(udp4, 20+5, 10), packet.BadLength},
		{"UDP length behind the end, IPv6", changed(udp6, 40+5, 10), packet.BadLength},
		{"first fragment, IPv4", testnet.TCP(v4.src, v4.dst, 2, 1, testnet.Fragment(0, true)), packet.Fragment},
		{"first fragment, IPv6", testnet.TCP(v6.src, v6.dst, 2, 1, testnet.Fragment(0, true)), packet.Fragment},
		{"last fragment, IPv4", testnet.TCP(v4.src, v4.dst, 2, 1, testnet.Fragment(8191, false)), packet.Fragment},
		{"last fragment, IPv6", testnet.TCP(v6.src, v6.dst, 2, 1, testnet.Fragment(8191, false)), packet.Fragment},
		{"atomic fragment, IPv6", testnet.TCP(v6.src, v6.dst, 2, 1, testnet.Fragment(0, false)), packet.Fragment},
		{"fragment behind an extension", testnet.UDP(v6.src, v6.dst, nil, dest, testnet.Fragment(0, true)), packet.Fragment},
		{"jumbogram", changed(changed(testnet.TCP(v6.src, v6.dst, 2, 1, testnet.Extension(0, 1)), 5, 0), 4, 0), packet.Jumbogram},
		{"nine extensions", testnet.TCP(v6.src, v6.dst, 2, 1, dest, dest, dest, dest, dest, dest, dest, dest, dest), packet.TooManyExts},
		{"a hop to go", testnet.TCP(v6.src, v6.dst, 2, 1, testnet.Routing(1)), packet.SourceRouted},
		{"an IPv6 header in IPv4", changed(tcp4, 9, 43), packet.UnknownProto},
		{"the reserved protocol, IPv4", changed(tcp4, 9, 255), packet.UnknownProto},
		{"the reserved protocol, IPv6", changed(tcp6, 6, 255), packet.UnknownProto},
		{"ICMPv6 in IPv4", changed(echo4, 9, 58), packet.UnknownProto},
		{"ICMP in IPv6", changed(echo6, 6, 1), packet.UnknownProto},
		{"echo reply, IPv4", changed(echo4, 20, 0), packet.NotEcho},
		{"echo reply, IPv6", changed(echo6, 40, 129), packet.NotEcho},
		{"IPv6's echo type in IPv4", changed(echo4, 20, 128), packet.NotEcho},
		{"IPv4's echo type in IPv6", changed(echo6, 40, 8), packet.NotEcho},
		{"echo of another code, IPv4", changed(echo4, 21, 1), packet.NotEcho},
		{"echo of another code, IPv6", changed(echo6, 41, 1), packet.NotEcho},
		{"4-in-6 source", from("[::ffff:198.51.100.7]:1", v6.dst), packet.MappedAddress},
		{"4-in-6 destination", from("[2001:db8::7]:1", ap("[::ffff:192.0.2.1]:1")), packet.MappedAddress},
		{"from multicast, IPv4", from("224.0.0.1:1", v4.dst), packet.BadSource},
		{"from multicast, IPv6", from("[ff02::1]:1", v6.dst), packet.BadSource},
		{"from nobody, IPv4", from("0.0.0.0:1", v4.dst), packet.BadSource},
		{"from nobody, IPv6", from("[::]:1", v6.dst), packet.BadSource},
		{"from loopback, IPv4", from("127.0.0.1:1", v4.dst), packet.BadSource},
		{"from loopback, IPv6", from("[::1]:1", v6.dst), packet.BadSource},
		{"from broadcast", from("255.255.255.255:1", v4.dst), packet.BadSource},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { check(t, tt.in, packet.Packet{Why: tt.want}) })
	}
}

// A capture may end early. Before the end of the headers that declines; after
// it the packet is whole but for its payload, and a ping keeps its true size.
func TestDecodeCutCapture(t *testing.T) {
	for _, e := range ends {
		for name, opts := range shapes(e.src.Addr().Is4()) {
			for _, b := range [][]byte{
				testnet.TCP(e.src, e.dst, 2, 1, opts...),
				withData(testnet.TCP(e.src, e.dst, 2, 1, opts...), nil, make([]byte, 9)),
				testnet.UDP(e.src, e.dst, make([]byte, 9), opts...),
				testnet.Echo(e.src.Addr(), e.dst.Addr(), 1, 1, 1400, opts...),
			} {
				cutEverywhere(t, e.name+"/"+name, b)
			}
		}
	}
}

func cutEverywhere(t *testing.T, name string, b []byte) {
	t.Helper()
	var whole packet.Packet
	packet.Decode(b, &whole)
	headers := len(b) - len(whole.Payload)
	for n := range b {
		var p packet.Packet
		packet.Decode(b[:n:n], &p)
		switch {
		case n < headers && (p.Why != packet.Truncated || p.Proto != 0):
			t.Fatalf("%s: the first %d of %d header bytes gave %v (proto %v)", name, n, headers, p.Why, p.Proto)
		case n >= headers && (p.Proto != whole.Proto || p.DstPort != whole.DstPort || len(p.Payload) != n-headers || !p.Cut):
			t.Fatalf("%s: cut to %d bytes: port or size %d, payload %d, cut %v", name, n, p.DstPort, len(p.Payload), p.Cut)
		}
	}
}

// withData gives a copy of a TCP packet without options and data with both;
// options are a multiple of 4 bytes. The checksum is no longer right.
func withData(b, options, data []byte) []byte {
	head := len(b) - 20
	b = slices.Concat(b, options, data)
	b[head+12] = byte(5+len(options)/4) << 4
	if b[0]>>4 == 4 {
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	} else {
		binary.BigEndian.PutUint16(b[4:], uint16(len(b)-40))
	}
	return b
}

// What an opening SYN carries is its payload, behind any options and before
// any padding; what other segments carry is not looked at.
func TestDecodeDataOfTCP(t *testing.T) {
	options := make([]byte, 40)
	for _, e := range ends {
		for name, opts := range shapes(e.src.Addr().Is4()) {
			for _, size := range []int{0, 4, 20, 40} {
				for flags, payload := range map[uint8]string{
					sequence.SYN: "hello", 0xc0 | sequence.SYN: "hello", sequence.SYN | sequence.PSH: "hello",
					sequence.SYN | sequence.ACK: "", sequence.SYN | sequence.RST: "", sequence.SYN | sequence.FIN: "", sequence.ACK: "", 0: "",
				} {
					t.Run(fmt.Sprintf("%s/%s/%d of options/flags %#x", e.name, name, size, flags), func(t *testing.T) {
						b := withData(testnet.TCP(e.src, e.dst, flags, 5, opts...), options[:size], []byte("hello"))
						check(t, b, packet.Packet{
							Src: e.src.Addr(), Dst: e.dst.Addr(), SrcPort: 40000, DstPort: 7000,
							Proto: sequence.TCP, Seq: 5, Flags: flags, Payload: []byte(payload),
						})
					})
				}
			}
		}
	}
}

// A capture that ends among TCP's options has no data, and says so.
func TestDecodeCutInTheOptionsOfTCP(t *testing.T) {
	for _, e := range ends {
		b := withData(testnet.TCP(e.src, e.dst, sequence.SYN, 1), make([]byte, 40), []byte("hello"))
		for n := len(b) - 45; n <= len(b); n++ {
			var p packet.Packet
			packet.Decode(b[:n:n], &p)
			if want := max(0, n-(len(b)-5)); p.Proto != sequence.TCP || len(p.Payload) != want || p.Cut != (n < len(b)) {
				t.Errorf("%s: %d of %d bytes: %+v", e.name, n, len(b), p)
			}
		}
	}
}

// A datagram shorter than the IP packet around it (RFC 768 allows the rest,
// and means nothing by it) ends where UDP says.
func TestDecodeEndsWhereUDPSays(t *testing.T) {
	for _, e := range ends {
		b := testnet.UDP(e.src, e.dst, []byte("hello, stranger"))
		b[len(b)-15-8+5] = 8 + 5
		var p packet.Packet
		if packet.Decode(b, &p); string(p.Payload) != "hello" || p.Cut {
			t.Errorf("%s: payload %q, cut %v", e.name, p.Payload, p.Cut)
		}
	}
}

func TestDecodeRandomBytes(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	b := make([]byte, 200)
	for range 200_000 {
		for i := range b {
			b[i] = byte(random.Uint32())
		}
		if random.IntN(2) == 0 { // past the first check half of the time
			b[0] = []byte{0x45, 0x60}[random.IntN(2)]
		}
		invariants(t, b[:random.IntN(len(b))])
	}
}

// invariants decodes b over a used Packet and checks what every caller relies
// on.
func invariants(t *testing.T, b []byte) {
	t.Helper()
	p := packet.Packet{Proto: sequence.TCP, DstPort: 7000, Flags: 0xff, Payload: []byte("old"), Why: packet.NotIP}
	packet.Decode(b[:len(b):len(b)], &p)
	if p.Proto == 0 {
		if p.Why == packet.Decoded {
			t.Fatalf("% x: declined without a reason", b)
		}
		if diff := cmp.Diff(packet.Packet{Why: p.Why}, p, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
			t.Fatalf("% x: declined, and not empty:\n%s", b, diff)
		}
		return
	}
	switch {
	case p.Why != packet.Decoded:
		t.Fatalf("% x: decoded and %v", b, p.Why)
	case !p.Src.IsValid() || p.Src.Is4() != p.Dst.Is4() || p.Src.Is4In6() || p.Dst.Is4In6():
		t.Fatalf("% x: addresses %v and %v", b, p.Src, p.Dst)
	case p.Proto != sequence.TCP && p.Flags != 0, !p.Proto.Ported() && p.SrcPort != 0, p.Proto.Bare() && p.DstPort != 0,
		!p.Proto.Ported() && !p.Proto.Bare() && p.Proto != sequence.ICMP,
		(p.Proto == sequence.SCTP || p.Proto == sequence.DCCP) && (p.Payload != nil || p.Cut):
		t.Fatalf("% x: fields of another protocol: %+v", b, p)
	case p.Proto == sequence.ICMP && int(p.DstPort) > sequence.MaxEcho+20:
		t.Fatalf("% x: a ping of %d bytes", b, p.DstPort)
	case p.Proto == sequence.TCP && !sequence.Opening.Match(p.Flags) && (p.Payload != nil || p.Cut):
		t.Fatalf("% x: data of a segment that does not open: %+v", b, p)
	case p.Proto == sequence.ICMP && p.Cut != (len(p.Payload) < int(p.DstPort)):
		t.Fatalf("% x: a ping of %d bytes, %d captured, and cut is %v", b, p.DstPort, len(p.Payload), p.Cut)
	case len(p.Payload) > 0 && !inside(p.Payload, b):
		t.Fatalf("% x: the payload is not in the packet", b)
	}
}

// inside reports whether part is a piece of whole's own memory.
func inside(part, whole []byte) bool {
	for i := range whole {
		if &whole[i] == &part[0] {
			return i+len(part) <= len(whole)
		}
	}
	return false
}

func FuzzDecode(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) { invariants(t, b) })
}

// A fuzz target without seeds passes and tests nothing.
func TestFuzzDecodeHasSeeds(t *testing.T) {
	seeds, err := os.ReadDir("testdata/fuzz/FuzzDecode")
	if err != nil || len(seeds) < 10 {
		t.Fatalf("%d seeds for FuzzDecode (%v): want at least 10", len(seeds), err)
	}
}

// The watch packet comes from lo and has to be read.
func TestDecodeLoopbackToLoopback(t *testing.T) {
	for _, addr := range []string{"127.0.0.1:6001", "[::1]:6001"} {
		var p packet.Packet
		packet.Decode(testnet.UDP(ap(addr), ap(addr), []byte("token")), &p)
		if p.Proto != sequence.UDP || p.DstPort != 6001 || string(p.Payload) != "token" {
			t.Errorf("%s: %+v", addr, p)
		}
	}
}

func TestDecodeNothing(t *testing.T) {
	p := packet.Packet{Proto: sequence.TCP, DstPort: 7000}
	if packet.Decode(nil, &p); p.Proto != 0 || p.DstPort != 0 || p.Why != packet.Truncated {
		t.Errorf("no bytes gave %+v", p)
	}
}

func TestWhyHasWords(t *testing.T) {
	seen := map[string]bool{}
	for w := range packet.Why(packet.Whys) {
		if s := w.String(); s == "" || seen[s] {
			t.Errorf("reason %d is %q: want a text of its own", w, s)
		}
		seen[w.String()] = true
	}
	if got := packet.Why(packet.Whys).String(); got != "unknown reason" {
		t.Errorf("a reason out of range is %q", got)
	}
}

func TestDecodeDoesNotAllocate(t *testing.T) {
	for _, e := range ends {
		for name, opts := range shapes(e.src.Addr().Is4()) {
			for _, b := range [][]byte{
				testnet.UDP(e.src, e.dst, make([]byte, 100), opts...),
				testnet.Echo(e.src.Addr(), e.dst.Addr(), 1, 1, 100, opts...),
				withData(testnet.TCP(e.src, e.dst, 2, 1, opts...), nil, make([]byte, 100)),
			} {
				var p packet.Packet
				if n := testing.AllocsPerRun(100, func() { packet.Decode(b, &p) }); n != 0 || len(p.Payload) != 100 {
					t.Errorf("%s/%s: %v allocations per packet, payload %d", e.name, name, n, len(p.Payload))
				}
			}
		}
	}
}

func BenchmarkDecode(b *testing.B) {
	for _, e := range ends {
		b.Run(e.name, func(b *testing.B) {
			in := testnet.TCP(e.src, e.dst, sequence.SYN, 1)
			var p packet.Packet
			b.ReportAllocs()
			for b.Loop() {
				packet.Decode(in, &p)
			}
		})
	}
}
