package packet_test

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/sallyport/sallyport/internal/engine/internal/packet"
	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/sallyport/sallyport/internal/testnet"
)

// Transport headers from port 40000 to 7000, written out from the documents.
var (
	udpLite = []byte{0x9c, 0x40, 0x1b, 0x58, 0, 0, 0xab, 0xcd, 'h', 'e', 'l', 'l', 'o'}
	sctp    = []byte{0x9c, 0x40, 0x1b, 0x58, 0, 0, 0, 0, 1, 2, 3, 4,
		1, 0, 0, 20, 0xde, 0xad, 0xbe, 0xef, 0, 1, 0, 0, 0, 10, 0, 10, 0, 0, 0, 1}
	dccp = []byte{0x9c, 0x40, 0x1b, 0x58, 5, 0, 1, 2, 1, 0, 0, 0, 0, 0, 0, 9, 0xde, 0xad, 0xbe, 0xef}
)

func TestDecodeOtherProtocols(t *testing.T) {
	for _, e := range ends {
		for name, opts := range shapes(e.src.Addr().Is4()) {
			for _, test := range []struct {
				proto sequence.Proto
				in    []byte
				want  packet.Packet
			}{
				{sequence.UDPLite, udpLite, packet.Packet{SrcPort: 40000, DstPort: 7000, Payload: []byte("hello")}},
				{sequence.SCTP, sctp, packet.Packet{SrcPort: 40000, DstPort: 7000, Seq: 0xdeadbeef}},
				{sequence.SCTP, append(bytes.Clone(sctp), make([]byte, 40)...), packet.Packet{SrcPort: 40000, DstPort: 7000, Seq: 0xdeadbeef}},
				{sequence.DCCP, dccp, packet.Packet{SrcPort: 40000, DstPort: 7000, Seq: 0xdeadbeef}},
				{sequence.DCCP, append(bytes.Clone(dccp), "data"...), packet.Packet{SrcPort: 40000, DstPort: 7000, Seq: 0xdeadbeef}},
				{47, []byte("anything"), packet.Packet{Payload: []byte("anything")}},
				{47, nil, packet.Packet{}},
				{50, udpLite, packet.Packet{Payload: udpLite}},
				{51, udpLite, packet.Packet{Payload: udpLite}},
			} {
				want := test.want
				want.Proto, want.Src, want.Dst = test.proto, e.src.Addr(), e.dst.Addr()
				if e.src.Addr().Is4() && want.Seq == 0 {
					want.Seq = 99
				}
				t.Run(fmt.Sprintf("%s/%s/%v, %d bytes", e.name, name, test.proto, len(test.in)), func(t *testing.T) {
					check(t, testnet.IP(e.src.Addr(), e.dst.Addr(), uint8(test.proto), test.in, append(opts, testnet.ID(99))...), want)
				})
			}
		}
	}
}

func TestDecodeDeclinesOtherProtocols(t *testing.T) {
	with := func(b []byte, at int, to ...byte) []byte {
		b = bytes.Clone(b)
		copy(b[at:], to)
		return b
	}
	for _, e := range ends {
		for _, test := range []struct {
			name  string
			proto sequence.Proto
			in    []byte
			want  packet.Why
		}{
			{"UDP-Lite of 7 bytes", sequence.UDPLite, udpLite[:7], packet.BadLength},
			{"UDP-Lite, 7 covered", sequence.UDPLite, with(udpLite, 5, 7), packet.BadLength},
			{"UDP-Lite, 1 covered", sequence.UDPLite, with(udpLite, 5, 1), packet.BadLength},
			{"UDP-Lite, more covered than there is", sequence.UDPLite, with(udpLite, 5, 14), packet.BadLength},
			{"SCTP without a chunk", sequence.SCTP, sctp[:12], packet.BadLength},
			{"SCTP, one byte short", sequence.SCTP, sctp[:31], packet.BadLength},
			{"SCTP, DATA", sequence.SCTP, with(sctp, 12, 0), packet.NotOpening},
			{"SCTP, INIT ACK", sequence.SCTP, with(sctp, 12, 2), packet.NotOpening},
			{"SCTP, ABORT", sequence.SCTP, with(sctp, 12, 6), packet.NotOpening},
			{"SCTP, COOKIE ECHO", sequence.SCTP, with(sctp, 12, 10), packet.NotOpening},
			{"SCTP, INIT with a tag", sequence.SCTP, with(sctp, 7, 1), packet.NotOpening},
			{"SCTP, INIT behind another chunk", sequence.SCTP, append(with(sctp[:12], 0), append([]byte{11, 0, 0, 4}, sctp[12:]...)...), packet.NotOpening},
			{"SCTP, INIT of 19 bytes", sequence.SCTP, with(sctp, 15, 19), packet.BadLength},
			{"SCTP, INIT longer than the packet", sequence.SCTP, with(sctp, 15, 21), packet.BadLength},
			{"DCCP, one byte short", sequence.DCCP, dccp[:19], packet.BadLength},
			{"DCCP, Response", sequence.DCCP, with(dccp, 8, 3), packet.NotOpening},
			{"DCCP, Ack", sequence.DCCP, with(dccp, 8, 7), packet.NotOpening},
			{"DCCP, Reset", sequence.DCCP, with(dccp, 8, 0x0f), packet.NotOpening},
			{"DCCP, short numbers", sequence.DCCP, with(dccp, 8, 0), packet.NotOpening},
			{"DCCP, header of 16", sequence.DCCP, with(dccp, 4, 4), packet.BadLength},
			{"DCCP, header longer than the packet", sequence.DCCP, with(dccp, 4, 6), packet.BadLength},
		} {
			t.Run(e.name+"/"+test.name, func(t *testing.T) {
				check(t, testnet.IP(e.src.Addr(), e.dst.Addr(), uint8(test.proto), test.in), packet.Packet{Why: test.want})
			})
		}
		for _, proto := range []uint8{33, 47, 132, 136} {
			for _, in := range [][]byte{udpLite, sctp, dccp} {
				for _, f := range []testnet.Option{testnet.Fragment(0, true), testnet.Fragment(4, false)} {
					check(t, testnet.IP(e.src.Addr(), e.dst.Addr(), proto, in, f), packet.Packet{Why: packet.Fragment})
				}
			}
		}
	}
}

// Every number is the same protocol in both families or none in either: a step
// that only one family could make would be a step for half of the users.
func TestDecodeSeesTheSameProtocolsInBothFamilies(t *testing.T) {
	for number := range 256 {
		proto := sequence.Proto(number)
		for _, e := range ends {
			var p packet.Packet
			packet.Decode(testnet.IP(e.src.Addr(), e.dst.Addr(), uint8(number), make([]byte, 64)), &p)
			if bare := p.Why == packet.Decoded && p.Proto == proto && p.DstPort == 0 && !proto.Ported(); bare != proto.Bare() {
				t.Errorf("%s: protocol %d is read as %v (%v), and a step can be %v: %v", e.name, number, p.Proto, p.Why, proto, proto.Bare())
			}
		}
	}
}

func TestDecodeOtherProtocolsCut(t *testing.T) {
	for _, e := range ends {
		for name, opts := range shapes(e.src.Addr().Is4()) {
			for proto, in := range map[uint8][]byte{136: udpLite, 132: sctp, 33: dccp, 47: udpLite} {
				b := testnet.IP(e.src.Addr(), e.dst.Addr(), proto, in, opts...)
				if proto == 136 || proto == 47 {
					cutEverywhere(t, e.name+"/"+name, b)
					continue
				}
				cutShort(t, b) // their headers are all there is
			}
		}
	}
}

// cutShort wants nothing of a packet whose header is not whole.
func cutShort(t *testing.T, b []byte) {
	t.Helper()
	for n := range b {
		var p packet.Packet
		if packet.Decode(b[:n:n], &p); p.Why != packet.Truncated {
			t.Fatalf("the first %d of %d header bytes gave %v (%v)", n, len(b), p.Why, p.Proto)
		}
	}
}

func TestDecodeOfOtherProtocolsDoesNotAllocate(t *testing.T) {
	for _, e := range ends {
		for proto, in := range map[uint8][]byte{136: udpLite, 132: sctp, 33: dccp, 47: udpLite} {
			b := testnet.IP(e.src.Addr(), e.dst.Addr(), proto, in)
			var p packet.Packet
			if n := testing.AllocsPerRun(100, func() { packet.Decode(b, &p) }); n != 0 || p.Proto != sequence.Proto(proto) {
				t.Errorf("%s, protocol %d: %v allocations, read as %v", e.name, proto, n, p.Proto)
			}
		}
	}
}

// The seeds of FuzzDecode have each protocol in each family.
func TestFuzzDecodeHasSeedsOfEachProtocol(t *testing.T) {
	for name, seed := range protocolSeeds() {
		path := "testdata/fuzz/FuzzDecode/" + name
		want := "go test fuzz v1\n[]byte(" + strconv.Quote(string(seed)) + ")\n"
		if got, err := os.ReadFile(path); err != nil || string(got) != want {
			t.Errorf("%s: %v; want %q", path, err, want)
		}
	}
}

func protocolSeeds() map[string][]byte {
	seeds := map[string][]byte{}
	for i, e := range ends {
		family := []string{"4", "6"}[i]
		for proto, in := range map[sequence.Proto][]byte{sequence.UDPLite: udpLite, sequence.SCTP: sctp, sequence.DCCP: dccp, 47: udpLite} {
			name := strings.ReplaceAll(proto.String(), "/", "")
			seeds[name+family] = testnet.IP(e.src.Addr(), e.dst.Addr(), uint8(proto), in)
		}
	}
	return seeds
}
