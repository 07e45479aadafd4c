//go:build linux

package capture

import (
	"encoding/binary"
	"fmt"
	"slices"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/internal/spa"
)

// Snap is how many bytes of a packet are captured: three of the longest SPA
// datagrams glued together by receive offload are 4,116, and 492 are left for
// headers, with every option and a few IPv6 extensions. The filter returns it,
// so the reader's buffers need not be larger. The receive buffer holds as many
// packets as with 2,048, because the kernel charges what a packet takes and not
// what is captured of it (measured: 10,083 SYNs, 3,641 datagrams of 1,372 bytes).
const Snap = 4608

// MaxInstructions is the longest filter that is made or taken. The kernel takes
// 4,096 (BPF_MAXINSNS) but charges the translated program to the socket, and
// while one filter takes another's place both count: before Linux 6.9
// net.core.optmem_max is 20,480 bytes, so each may have 10,240 of them, which
// is 1,270 translated instructions of 8 bytes.
const MaxInstructions = 700

// maxRanges bounds the ranges of all trees together. One takes 4 instructions
// (tree), 6 translated: 128 are 512 and 768, and leave room for the fixed part,
// 150 and some 400 because a load of packet bytes is about 8 translated.
const maxRanges = 128

// seldomRanges is how many ranges less there may be where some knock has UDP-Lite,
// SCTP, DCCP or a bare protocol: what tells these apart takes their place.
const seldomRanges = 16

// Numbers of linux/if_packet.h and net/flow.h that x/sys has no name for, or
// has under a longer one.
const (
	packetHost    = 0 // PACKET_HOST: addressed to this interface
	loopbackIndex = 1 // LOOPBACK_IFINDEX: lo has it in every namespace
	vlanID        = 0x0fff
)

// Parts of a filter. Each ends in a return, or falls to what is put behind it.
var (
	accept = []bpf.Instruction{bpf.RetConstant{Val: Snap}}
	drop   = []bpf.Instruction{bpf.RetConstant{Val: 0}}
)

// Filter makes the program that the kernel runs on every packet. It may let
// through more than w wants and never less. It passes nothing of lo but the
// watch packet, unless w wants it, and only what the interface took for itself: no broadcast, no
// multicast, nothing outgoing.
func Filter(w Wanted) []bpf.RawInstruction {
	own := drop
	switch {
	case w.Loopback: // lo is an interface as others, where the watch packet is one of UDP
		own = nil
		if w.Watch.Port != 0 {
			w.UDP = append(slices.Clone(w.UDP), Range{w.Watch.Port, w.Watch.Port})
		}
	case w.Watch.Port != 0:
		own = watched(w.Watch)
	}
	raw, err := bpf.Assemble(slices.Concat(device(own), network(w)))
	if err != nil {
		// Only a field out of range can fail, and none comes from outside.
		panic(fmt.Sprintf("capture: filter: %v", err))
	}
	return raw
}

// device looks at what the kernel knows of the packet beside its bytes, and
// falls to what follows when the packet came from a wire to this host; own decides
// about those of lo, which come once as outgoing and once to this host.
func device(own []bpf.Instruction) []bpf.Instruction {
	return slices.Concat(
		require(bpf.LoadExtension{Num: bpf.ExtType}, packetHost),
		// A tagged frame is seen on the wire and again, untagged, on its VLAN's
		// own interface. Only the second counts, or a stranger could speak for a
		// VLAN that this host is not in. VLAN 0 is a priority and no VLAN.
		[]bpf.Instruction{
			bpf.LoadExtension{Num: bpf.ExtVLANTag},
			bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: vlanID},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0, SkipTrue: 1}, drop[0],
			bpf.LoadExtension{Num: bpf.ExtProto},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.ETH_P_IP, SkipTrue: 2},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.ETH_P_IPV6, SkipTrue: 1}, drop[0],
			bpf.LoadExtension{Num: bpf.ExtInterfaceIndex},
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: loopbackIndex, SkipTrue: uint8(len(own))},
		},
		own,
	)
}

// watched passes exactly the warden's own datagram: IPv4 without options, 36
// bytes long, 127.0.0.1 to itself.
func watched(w Watch) []bpf.Instruction {
	const loopback = 127<<24 | 1
	at := func(off uint32, size int) bpf.Instruction { return bpf.LoadAbsolute{Off: off, Size: size} }
	return slices.Concat(
		require(at(0, 1), 0x45),
		require(at(2, 2), 20+8+uint32(len(w.Token))),
		require(at(9, 1), unix.IPPROTO_UDP),
		require(at(12, 4), loopback),
		require(at(16, 4), loopback),
		require(at(22, 2), uint32(w.Port)),
		require(at(28, 4), binary.BigEndian.Uint32(w.Token[:4])),
		require(at(32, 4), binary.BigEndian.Uint32(w.Token[4:])),
		accept,
	)
}

// require drops the packet unless what load loads is want.
func require(load bpf.Instruction, want uint32) []bpf.Instruction {
	return []bpf.Instruction{load, bpf.JumpIf{Cond: bpf.JumpEqual, Val: want, SkipTrue: 1}, drop[0]}
}

// Places of the filter's scratch memory.
const (
	slotLength = 0 // bytes behind the IP header, as it says
	slotOffset = 1 // the transport header's offset, while X is needed
)

// network looks at the packet's bytes, from the IP header on: it puts the
// transport protocol into A, the transport header's offset into X and the
// length behind it into a slot, for both families alike. A load behind the
// captured end drops the packet.
func network(w Wanted) []bpf.Instruction {
	v4 := []bpf.Instruction{
		bpf.LoadAbsolute{Off: 6, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpBitsNotSet, Val: 0x3fff, SkipTrue: 1}, drop[0], // fragments decline
		bpf.LoadMemShift{Off: 0},
		bpf.LoadAbsolute{Off: 2, Size: 2},
		bpf.ALUOpX{Op: bpf.ALUOpSub},
		bpf.StoreScratch{Src: bpf.RegA, N: slotLength},
		bpf.LoadAbsolute{Off: 9, Size: 1},
	}
	v6 := []bpf.Instruction{
		bpf.LoadConstant{Dst: bpf.RegX, Val: 40},
		bpf.LoadAbsolute{Off: 4, Size: 2},
		bpf.StoreScratch{Src: bpf.RegA, N: slotLength},
		bpf.LoadAbsolute{Off: 6, Size: 1},
		// Classic BPF has no loops to walk hop-by-hop (0), routing (43) and
		// destination (60) headers: they all pass, the decoder walks them.
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0, SkipTrue: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 43, SkipTrue: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 60, SkipTrue: 1}, accept[0],
	}
	v4 = append(v4, bpf.Jump{Skip: uint32(len(v6))})
	return slices.Concat(
		[]bpf.Instruction{
			bpf.LoadAbsolute{Off: 0, Size: 1},
			bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 4},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: 6, SkipTrue: uint8(len(v4) + 2)},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: 4, SkipTrue: 1}, drop[0],
		},
		v4, v6, transport(w),
	)
}

// transport sorts by the protocol in A.
func transport(w Wanted) []bpf.Instruction {
	syn := merge(slices.Concat(w.TCP, w.TCPFlags))
	others, udp := merge(slices.Clone(w.TCPFlags)), merge(slices.Clone(w.UDP))
	sizedSYN, sizedUDP := with(syn, w.SizedTCP), with(udp, w.SizedUDP)
	lite, sctp, dccp, bare := merge(slices.Clone(w.UDPLite)), merge(slices.Clone(w.SCTP)), merge(slices.Clone(w.DCCP)), merge(slices.Clone(w.Bare))
	limit := maxRanges
	if len(lite)+len(sctp)+len(dccp)+len(bare) > 0 {
		limit -= seldomRanges
	}
	thin(limit, &syn, &others, &udp, &sizedSYN, &sizedUDP, &lite, &sctp, &dccp, &bare)
	flags := slices.Concat(
		[]bpf.Instruction{
			bpf.LoadIndirect{Off: 13, Size: 1},
			bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0x12}, // SYN and ACK
		},
		branch(bpf.JumpEqual, 0x02, bySize(dataLength, 0, sizedSYN, syn), port(others)),
	)
	return branch(bpf.JumpEqual, unix.IPPROTO_TCP, flags,
		branch(bpf.JumpEqual, unix.IPPROTO_UDP, bySize(udpLength, 8, sizedUDP, udp),
			branch(bpf.JumpEqual, unix.IPPROTO_ICMP, echo(w, 8),
				branch(bpf.JumpEqual, unix.IPPROTO_ICMPV6, echo(w, 128),
					seldom(lite, sctp, dccp, bare)))))
}

// seldom sorts by the protocol in A those that few knocks have: a filter without
// them is no longer for them.
func seldom(lite, sctp, dccp, bare []Range) []bpf.Instruction {
	rest := among(bare)
	if len(lite) > 0 {
		rest = branch(bpf.JumpEqual, unix.IPPROTO_UDPLITE, port(lite), rest)
	}
	if len(sctp) > 0 { // the type of the first chunk is 1, INIT (RFC 9260 section 3.2)
		first := slices.Concat(require(bpf.LoadIndirect{Off: 12, Size: 1}, 1), port(sctp))
		rest = branch(bpf.JumpEqual, unix.IPPROTO_SCTP, first, rest)
	}
	if len(dccp) > 0 { // type 0, Request, with long sequence numbers (RFC 4340 section 5.1)
		request := slices.Concat(
			[]bpf.Instruction{bpf.LoadIndirect{Off: 8, Size: 1}},
			[]bpf.Instruction{bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0x1f}, bpf.JumpIf{Cond: bpf.JumpEqual, Val: 1, SkipTrue: 1}, drop[0]},
			port(dccp))
		rest = branch(bpf.JumpEqual, unix.IPPROTO_DCCP, request, rest)
	}
	return rest
}

// with gives all ranges and the sized ones beside them, which is what a packet
// of an SPA datagram's size may go to; nil if no such packet is wanted.
func with(all, sized []Range) []Range {
	if len(sized) == 0 {
		return nil
	}
	return merge(slices.Concat(all, sized))
}

// echo decides about ICMP whose type of an echo request is this.
func echo(w Wanted, request uint32) []bpf.Instruction {
	yes := accept
	switch {
	case !w.Echo && !w.SizedEcho:
		return drop
	case !w.Echo:
		yes = slices.Concat([]bpf.Instruction{bpf.LoadScratch{Dst: bpf.RegA, N: slotLength}}, ofSize(glued, 8, accept, drop))
	}
	return slices.Concat(require(bpf.LoadIndirect{Off: 0, Size: 1}, request), yes)
}

// Loads of a length into A; X is afterwards as it was.
var (
	udpLength  = []bpf.Instruction{bpf.LoadIndirect{Off: 4, Size: 2}} // header included
	dataLength = []bpf.Instruction{                                   // of TCP, without the header and its options
		bpf.StoreScratch{Src: bpf.RegX, N: slotOffset},
		bpf.LoadIndirect{Off: 12, Size: 1},
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0xf0},
		bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 2},
		bpf.TAX{},
		bpf.LoadScratch{Dst: bpf.RegA, N: slotLength},
		bpf.ALUOpX{Op: bpf.ALUOpSub},
		bpf.LoadScratch{Dst: bpf.RegX, N: slotOffset},
	}
)

// bySize decides by the destination port: what has an SPA datagram's size may
// go to sized, the rest to all. The length that load gives includes so many
// bytes of header. A flood of other lengths at an SPA port thus ends here.
func bySize(load []bpf.Instruction, header uint32, sized, all []Range) []bpf.Instruction {
	if len(sized) == 0 {
		return port(all)
	}
	return slices.Concat(load, ofSize(glued, header, port(sized), port(all)))
}

// glued are the sizes that the packet socket sees: receive offload works before
// it.
var glued = sizes(spa.MaxParts)

// ofSize runs yes if A, less so many bytes of header, is one of sizes, else no;
// both end in returns.
func ofSize(sizes []uint32, header uint32, yes, no []bpf.Instruction) []bpf.Instruction {
	var p []bpf.Instruction
	for i, size := range sizes {
		p = append(p, bpf.JumpIf{Cond: bpf.JumpEqual, Val: header + size, SkipTrue: uint8(len(sizes) - i)})
	}
	return slices.Concat(p, []bpf.Instruction{bpf.Jump{Skip: uint32(len(yes))}}, yes, no)
}

// port decides by the destination port, which all protocols that have one have
// at the same place.
func port(ranges []Range) []bpf.Instruction {
	if len(ranges) == 0 {
		return drop
	}
	return slices.Concat([]bpf.Instruction{bpf.LoadIndirect{Off: 2, Size: 2}}, among(ranges))
}

// among decides by the number in A, a port or a protocol's.
func among(ranges []Range) []bpf.Instruction {
	if len(ranges) == 0 {
		return drop
	}
	return slices.Concat(
		[]bpf.Instruction{bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: uint32(ranges[0].Low), SkipTrue: 1}, drop[0]},
		tree(ranges),
	)
}

// tree searches sorted, disjoint ranges for the number in A, which is not below
// the first of them: 3 instructions for each leaf and 1 for each node.
func tree(ranges []Range) []bpf.Instruction {
	if len(ranges) == 1 {
		return branch(bpf.JumpGreaterThan, uint32(ranges[0].High), drop, accept)
	}
	mid := len(ranges) / 2
	return branch(bpf.JumpGreaterOrEqual, uint32(ranges[mid].Low), tree(ranges[mid:]), tree(ranges[:mid]))
}

// branch runs yes if A meets the condition, else no; both end in returns. A
// conditional jump reaches 255 instructions, an unconditional one all.
func branch(cond bpf.JumpTest, val uint32, yes, no []bpf.Instruction) []bpf.Instruction {
	if len(yes) <= 255 {
		return slices.Concat([]bpf.Instruction{bpf.JumpIf{Cond: cond, Val: val, SkipFalse: uint8(len(yes))}}, yes, no)
	}
	return slices.Concat([]bpf.Instruction{
		bpf.JumpIf{Cond: cond, Val: val, SkipTrue: 1},
		bpf.Jump{Skip: uint32(len(yes))},
	}, yes, no)
}
