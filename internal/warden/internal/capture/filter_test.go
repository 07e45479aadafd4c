//go:build linux

package capture

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/sallyport/sallyport/internal/testnet"
)

var (
	client = []netip.Addr{netip.MustParseAddr("198.51.100.7"), netip.MustParseAddr("2001:db8:1::7")}
	server = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
)

// sample is one packet, with what a filter has to know about it.
type sample struct {
	proto    byte
	port     uint16
	flags    byte
	data     int  // bytes of payload
	opens    bool // of SCTP and DCCP: what begins a connection
	extended bool // IPv6 with extension headers
	bytes    []byte
}

// wants is the plain reading of what Wanted's comments say.
func (w Wanted) wants(s sample) bool {
	in := func(r Range) bool { return r.Low <= s.port && s.port <= r.High }
	sized := slices.Contains(spaLengths, s.data)
	switch s.proto {
	case 6:
		opening := s.flags&0x02 != 0 && s.flags&0x10 == 0
		return opening && slices.ContainsFunc(w.TCP, in) || slices.ContainsFunc(w.TCPFlags, in) ||
			opening && sized && slices.ContainsFunc(w.SizedTCP, in)
	case 17:
		return slices.ContainsFunc(w.UDP, in) || sized && slices.ContainsFunc(w.SizedUDP, in)
	case 136:
		return slices.ContainsFunc(w.UDPLite, in)
	case 132:
		return s.opens && slices.ContainsFunc(w.SCTP, in)
	case 33:
		return s.opens && slices.ContainsFunc(w.DCCP, in)
	case 1:
		return w.Echo || sized && w.SizedEcho
	}
	return slices.ContainsFunc(w.Bare, func(r Range) bool { return r.Low <= uint16(s.proto) && uint16(s.proto) <= r.High })
}

// spaLengths are what one, two and three SPA datagrams have, counted here and
// not taken from the code.
var spaLengths = []int{448, 896, 1344, 832, 1664, 2496, 1372, 2744, 4116}

var payloads = rapid.OneOf(rapid.SampledFrom(spaLengths), rapid.Custom(func(t *rapid.T) int {
	return rapid.SampledFrom(spaLengths).Draw(t, "near") + rapid.IntRange(-21, 21).Draw(t, "off")
}), rapid.IntRange(0, 4200))

var ranges = rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Range {
	low := rapid.Uint16().Draw(t, "low")
	return Range{low, low + min(rapid.Uint16Range(0, 300).Draw(t, "length"), 65535-low)}
}), 0, 12) // so that no filter is thinned

// crowds are lists of more ranges than a filter keeps apart.
var crowds = rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Range {
	low := rapid.Uint16().Draw(t, "low")
	return Range{low, low}
}), 100, 600)

// numbers are those of bare protocols, as sequences want them.
var numbers = rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Range {
	n := rapid.SampledFrom([]uint16{2, 4, 46, 47, 48, 50, 51, 89, 134, 135, 254}).Draw(t, "protocol")
	return Range{n, n}
}), 0, 4)

// few are the ports of SPA knocks.
var few = rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Range {
	port := rapid.Uint16().Draw(t, "port")
	return Range{port, port}
}), 0, 4)

func drawWanted(t *rapid.T, lists *rapid.Generator[[]Range]) Wanted {
	return Wanted{
		TCP:       lists.Draw(t, "tcp"),
		TCPFlags:  lists.Draw(t, "flags"),
		UDP:       lists.Draw(t, "udp"),
		Echo:      rapid.Bool().Draw(t, "echo"),
		SizedTCP:  few.Draw(t, "sized tcp"),
		SizedUDP:  few.Draw(t, "sized udp"),
		SizedEcho: rapid.Bool().Draw(t, "sized echo"),
		UDPLite:   few.Draw(t, "udplite"),
		SCTP:      few.Draw(t, "sctp"),
		DCCP:      few.Draw(t, "dccp"),
		Bare:      numbers.Draw(t, "bare"),
	}
}

// drawSample draws a packet whose port is often at the edge of a range.
func drawSample(t *rapid.T, w Wanted) sample {
	edges := []uint16{0, 1, 65535}
	for _, r := range slices.Concat(w.TCP, w.TCPFlags, w.UDP, w.SizedTCP, w.SizedUDP, w.SizedTCP, w.SizedUDP, w.UDPLite, w.SCTP, w.DCCP) {
		edges = append(edges, r.Low-1, r.Low, r.High, r.High+1)
	}
	port := rapid.OneOf(rapid.SampledFrom(edges), rapid.Uint16()).Draw(t, "port")
	family := rapid.IntRange(0, 1).Draw(t, "family")
	s := sample{
		proto: rapid.SampledFrom([]byte{6, 6, 17, 17, 1, 136, 132, 33, 46, 47, 48, 50, 51, 254}).Draw(t, "proto"),
		flags: rapid.SampledFrom([]byte{0x02, 0x02, 0x10, 0x12, 0x01, 0x00, 0xc2}).Draw(t, "tcp flags"),
		port:  port,
		data:  payloads.Draw(t, "payload"),
	}
	var opts []testnet.Option
	if family == 0 {
		opts = append(opts, testnet.IPOptions(make([]byte, 4*rapid.IntRange(0, 10).Draw(t, "option words"))...))
	} else {
		for range rapid.IntRange(0, 3).Draw(t, "extensions") {
			opts = append(opts, testnet.Extension(rapid.SampledFrom([]byte{0, 43, 60}).Draw(t, "kind"), 1))
			s.extended = true
		}
	}
	src, dst := netip.AddrPortFrom(client[family], 40000), netip.AddrPortFrom(server[family], port)
	switch s.proto {
	case 6:
		s.bytes = withData(testnet.TCP(src, dst, s.flags, 1, opts...), rapid.IntRange(0, 10).Draw(t, "TCP option words"), s.data)
	case 17:
		s.bytes = testnet.UDP(src, dst, make([]byte, s.data), opts...)
	case 1:
		s.bytes = testnet.Echo(src.Addr(), dst.Addr(), 1, 1, s.data, opts...)
	default:
		var transport []byte
		transport, s.opens = drawOther(t, s.proto, src.Port(), port)
		s.bytes = testnet.IP(src.Addr(), dst.Addr(), s.proto, transport, opts...)
	}
	return s
}

// drawOther draws the transport header of a protocol that few knocks have, and
// says whether that begins a connection.
func drawOther(t *rapid.T, proto byte, from, to uint16) (b []byte, opens bool) {
	b = make([]byte, 40)
	switch proto {
	case 132:
		b[12] = rapid.SampledFrom([]byte{1, 1, 0, 2, 6, 10, 129}).Draw(t, "chunk")
		b[15], opens = 20, b[12] == 1
	case 33:
		b[4], b[8] = 5, rapid.SampledFrom([]byte{1, 1, 0xe1, 0, 3, 5, 0x1f}).Draw(t, "DCCP type")
		opens = b[8]&0x1f == 1 // the three bits before it are reserved
	}
	binary.BigEndian.PutUint16(b, from)
	binary.BigEndian.PutUint16(b[2:], to)
	return b, opens
}

// withData puts options of so many words and so many bytes of data behind a TCP
// header. The checksum, which no filter looks at, is no longer right.
func withData(b []byte, words, data int) []byte {
	head := len(b) - 20
	b = append(b, make([]byte, 4*words+data)...)
	b[head+12] = byte(5+words)<<4 | 0x0f // the reserved bits are no length
	if b[0]>>4 == 4 {
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	} else {
		binary.BigEndian.PutUint16(b[4:], uint16(len(b)-40))
	}
	return b
}

// judge fails the test if a packet that passed should not have, or the
// reverse. Only a thinned filter and an IPv6 extension may let through more.
func judge(t *rapid.T, where string, w Wanted, s sample, passed, exact bool) {
	want := w.wants(s)
	if want && !passed {
		t.Fatalf("%s drops a wanted packet: proto %d port %d flags %#x, %d bytes of payload", where, s.proto, s.port, s.flags, s.data)
	}
	if !want && passed && exact && !s.extended {
		t.Fatalf("%s passes an unwanted packet: proto %d port %d flags %#x, %d bytes of payload", where, s.proto, s.port, s.flags, s.data)
	}
}

func filterNeverPassesLess(t *testing.T, lists *rapid.Generator[[]Range], exact bool) {
	kernel := newKernelFilter(t)
	rapid.Check(t, func(t *rapid.T) {
		w := drawWanted(t, lists)
		program := network(w)
		vm, err := bpf.NewVM(program)
		if err != nil {
			t.Fatal(err)
		}
		kernel.attach(t, program)
		for range 20 {
			s := drawSample(t, w)
			n, err := vm.Run(s.bytes)
			if err != nil {
				t.Fatal(err)
			}
			judge(t, "the virtual machine", w, s, n > 0, exact)
			judge(t, "the kernel", w, s, kernel.passes(t, s.bytes), exact)
		}
	})
}

func TestFilterPassesWhatIsWanted(t *testing.T) { filterNeverPassesLess(t, ranges, true) }

func TestFilterOfManyRangesNeverPassesLess(t *testing.T) { filterNeverPassesLess(t, crowds, false) }

// kernelFilter runs programs in the kernel without a network: a filter on a
// Unix datagram socket sees the datagram's bytes from the first one on.
type kernelFilter struct{ in, out int }

func newKernelFilter(t *testing.T) kernelFilter {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fds[0]); unix.Close(fds[1]) })
	return kernelFilter{in: fds[0], out: fds[1]}
}

func (k kernelFilter) attach(t rapid.TB, program []bpf.Instruction) {
	raw, err := bpf.Assemble(program)
	if err == nil {
		err = Attach(k.out, raw)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (k kernelFilter) passes(t rapid.TB, b []byte) bool {
	if _, err := unix.Write(k.in, b); err != nil {
		t.Fatal(err)
	}
	var got [Snap]byte
	n, err := unix.Read(k.out, got[:])
	if err != nil && err != unix.EAGAIN {
		t.Fatal(err)
	}
	return n > 0
}

func TestFilterDropsWhatNoRuleCanMean(t *testing.T) {
	kernel := newKernelFilter(t)
	program := network(Wanted{TCP: []Range{{0, 65535}}, TCPFlags: []Range{{0, 65535}}, UDP: []Range{{0, 65535}}, Echo: true})
	kernel.attach(t, program)
	for i, src := range client {
		from, to := netip.AddrPortFrom(src, 1), netip.AddrPortFrom(server[i], 7000)
		reply := testnet.Echo(src, server[i], 1, 1, 8)
		reply[len(reply)-16] = []byte{0, 129}[i]
		for name, b := range map[string][]byte{
			"an echo reply":  reply,
			"cut in the IP":  testnet.UDP(from, to, nil)[:5],
			"version 5":      append([]byte{0x55}, testnet.UDP(from, to, nil)[1:]...),
			"a fragment":     testnet.UDP(from, to, nil, testnet.Fragment(1, false)),
			"cut in the TCP": testnet.TCP(from, to, 2, 1)[:30+20*i],
		} {
			if kernel.passes(t, b) {
				t.Errorf("%s from %v passes", name, src)
			}
		}
	}
}

// The kernel takes the filter of any number of knocks, also in the place of
// another one as large where option memory is as scarce as before Linux 6.9.
func TestFilterFitsTheKernel(t *testing.T) {
	ns := testnet.New(t)
	ns.Run("sysctl", "-qw", "net.core.optmem_max=20480")
	random := rand.New(rand.NewPCG(3, 4))
	longest := 0
	ns.Do(func() {
		fd, err := Open(Filter(Wanted{}))
		if err != nil {
			t.Error(err)
			return
		}
		defer unix.Close(fd)
		for n, knocks := 0, 1; knocks <= 1000; n, knocks = n+1, knocks+n%2*(1+knocks/10) {
			var w Wanted
			lists := []*[]Range{&w.TCP, &w.TCPFlags, &w.UDP, &w.SizedTCP, &w.SizedUDP}
			if n%2 == 1 { // each number of knocks with the other protocols too
				lists = append(lists, &w.UDPLite, &w.SCTP, &w.DCCP)
			}
			for _, list := range lists {
				for range knocks {
					low := uint16(random.IntN(65535))
					*list = append(*list, Range{low, low})
				}
			}
			for i := range n % 2 * min(knocks, 127) {
				w.Bare = append(w.Bare, Range{uint16(2 * i), uint16(2 * i)})
			}
			w.SizedEcho, w.Watch = true, Watch{Port: 7, Token: [8]byte{1}}
			filter := Filter(w)
			longest = max(longest, len(filter))
			for range 2 { // the second in the place of one as large
				if err := Attach(fd, filter); err != nil {
					t.Errorf("%d knocks: %v", knocks, err)
					return
				}
			}
		}
	})
	if longest < 4*maxRanges {
		t.Errorf("the longest filter has %d instructions: the test did not reach the limit", longest)
	}
	t.Logf("longest filter: %d instructions", longest)
}

func TestAttachRefusesWhatIsNoFilter(t *testing.T) {
	for _, n := range []int{0, MaxInstructions + 1} {
		if err := Attach(-1, make([]bpf.RawInstruction, n)); err == nil {
			t.Errorf("a filter of %d instructions was taken", n)
		}
	}
}
