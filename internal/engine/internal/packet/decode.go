package packet

import (
	"encoding/binary"
	"net/netip"

	"github.com/sallyport/sallyport/internal/sequence"
)

// MaxExtensions is how many IPv6 extension headers are walked. RFC 8200
// section 4.1 has a use for five before the transport header; a longer chain
// only serves to make receivers work.
const MaxExtensions = 8

// Header sizes in bytes, without options.
const (
	ipv4Header = 20
	ipv6Header = 40
	tcpHeader  = 20
	udpHeader  = 8
	echoHeader = 8
	sctpHeader = 12 // RFC 9260 section 3.1
	sctpInit   = 20 // the chunk, section 3.3.2
	dccpHeader = 20 // of a Request: 16 and the service code (RFC 4340, 5.1 and 5.2)
)

// IPv6 next-header values that are walked or declined by name.
const (
	hopByHop = 0
	routing  = 43
	fragment = 44
	icmpv6   = 58
	destOpts = 60
)

// Decode reads one packet that starts at its IP header. It overwrites all of
// p, keeps no reference to b except p.Payload, and allocates nothing. b may be
// anything: bytes behind the packet (Ethernet padding) are ignored, and a
// capture that ends early is fine as long as the transport header is in it
// (of TCP, its first 20 bytes): p.Cut then says that Payload is not all.
//
// Checksums are not verified: a virtual wire delivers packets whose checksum
// was never computed, because the network card would have done it.
func Decode(b []byte, p *Packet) {
	*p = Packet{}
	if len(b) == 0 {
		p.Why = Truncated
		return
	}
	switch b[0] >> 4 {
	case 4:
		p.Why = decode4(b, p)
	case 6:
		p.Why = decode6(b, p)
	default:
		p.Why = NotIP
	}
	if p.Why != Decoded {
		// A half-filled packet could match something by what is left in it.
		*p = Packet{Why: p.Why}
	}
}

func decode4(b []byte, p *Packet) Why {
	if len(b) < ipv4Header {
		return Truncated
	}
	head, total := int(b[0]&0xf)*4, int(binary.BigEndian.Uint16(b[2:]))
	switch {
	case head < ipv4Header || total < head:
		return BadLength
	case binary.BigEndian.Uint16(b[6:])&0x3fff != 0:
		// More-fragments or an offset. Overlapping fragments mean one thing to
		// us and another to the host (RFC 1858), so none of them counts.
		return Fragment
	case len(b) < head:
		return Truncated
	}
	p.Src, p.Dst = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
	if !possible(p) {
		return BadSource
	}
	p.Seq = uint32(binary.BigEndian.Uint16(b[4:])) // unless the transport has better
	body := b[head:min(total, len(b))]
	if b[9] == 1 {
		return p.echo(body, total-head, 8)
	}
	return p.transport(b[9], body, total-head)
}

func decode6(b []byte, p *Packet) Why {
	if len(b) < ipv6Header {
		return Truncated
	}
	length := int(binary.BigEndian.Uint16(b[4:]))
	if length == 0 && b[6] == hopByHop {
		return Jumbogram
	}
	p.Src, p.Dst = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
	switch {
	case p.Src.Is4In6() || p.Dst.Is4In6():
		return MappedAddress
	case !possible(p):
		return BadSource
	}
	next, skip, why := walk(b[6], b[ipv6Header:], length)
	if why != Decoded {
		return why
	}
	body := b[ipv6Header+skip : ipv6Header+min(length, len(b)-ipv6Header)]
	if next == icmpv6 {
		return p.echo(body, length-skip, 128)
	}
	return p.transport(next, body, length-skip)
}

// transport takes what is behind the headers of either family: ICMP is the only
// protocol that has a number for each.
func (p *Packet) transport(proto byte, b []byte, length int) Why {
	switch proto := sequence.Proto(proto); proto {
	case sequence.TCP:
		return p.tcp(b, length)
	case sequence.UDP:
		return p.udp(b, length)
	case sequence.UDPLite:
		return p.udpLite(b, length)
	case sequence.SCTP:
		return p.sctp(b, length)
	case sequence.DCCP:
		return p.dccp(b, length)
	default:
		return p.bare(proto, b, length)
	}
}

// walk steps over the extension headers in b, of which the IP header promised
// length bytes. It gives the transport protocol and its offset in b, which is
// at most min(length, len(b)).
func walk(next byte, b []byte, length int) (proto byte, skip int, why Why) {
	for range MaxExtensions + 1 {
		switch next {
		case fragment:
			// The atomic fragment too (RFC 6946): nothing sends it unasked.
			return 0, 0, Fragment
		case hopByHop, routing, destOpts:
		default:
			return next, skip, Decoded
		}
		if why := room(b[skip:], length-skip, 8); why != Decoded {
			return 0, 0, why
		}
		size := 8 + int(b[skip+1])*8
		if why := room(b[skip:], length-skip, size); why != Decoded {
			return 0, 0, why
		}
		if next == routing && b[skip+3] != 0 {
			return 0, 0, SourceRouted
		}
		next, skip = b[skip], skip+size
	}
	return 0, 0, TooManyExts
}

// room tells whether a header of size bytes fits into what the IP header
// promised and into what was captured.
func room(b []byte, length, size int) Why {
	switch {
	case length < size:
		return BadLength
	case len(b) < size:
		return Truncated
	}
	return Decoded
}

// possible keeps out sources that no host can answer to, so that a forger can't
// make grants that mean nothing: multicast, the limited broadcast, unspecified,
// and loopback unless it is lo's own packet, to loopback (RFC 1122, 3.2.1.3).
func possible(p *Packet) bool {
	if p.Src.IsLoopback() {
		return p.Dst.IsLoopback()
	}
	return !p.Src.IsMulticast() && !p.Src.IsUnspecified() && p.Src != broadcast
}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

func (p *Packet) tcp(b []byte, length int) Why {
	if why := room(b, length, tcpHeader); why != Decoded {
		return why
	}
	head := int(b[12]>>4) * 4
	if head < tcpHeader || head > length {
		return BadLength
	}
	p.ports(sequence.TCP, b)
	p.Seq, p.Flags = binary.BigEndian.Uint32(b[4:]), b[13]
	if sequence.Opening.Match(p.Flags) {
		// A SYN may carry data (RFC 9293, 3.4). What other segments carry belongs
		// to connections, which are nobody's business here.
		p.data(b, head, length)
	}
	return Decoded
}

func (p *Packet) udp(b []byte, length int) Why {
	if why := room(b, length, udpHeader); why != Decoded {
		return why
	}
	size := int(binary.BigEndian.Uint16(b[4:]))
	if size < udpHeader || size > length {
		return BadLength
	}
	p.ports(sequence.UDP, b)
	p.data(b, udpHeader, size)
	return Decoded
}

// echo takes an echo request of the given type. Its size is what the IP header
// says: a long ping arrives cut by the capture and still has its true size.
func (p *Packet) echo(b []byte, length int, request byte) Why {
	if why := room(b, length, echoHeader); why != Decoded {
		return why
	}
	if b[0] != request || b[1] != 0 {
		return NotEcho
	}
	p.Proto, p.DstPort = sequence.ICMP, uint16(length-echoHeader)
	p.Seq = binary.BigEndian.Uint32(b[4:])
	p.data(b, echoHeader, length)
	return Decoded
}

// data takes what the capture has of bytes start to end behind the transport
// header's first; end is what the headers say, at least start.
func (p *Packet) data(b []byte, start, end int) {
	have := min(end, len(b))
	p.Payload, p.Cut = b[min(start, have):have], have < end
}

func (p *Packet) ports(proto sequence.Proto, b []byte) {
	p.Proto = proto
	p.SrcPort, p.DstPort = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
}

// udpLite takes a datagram whose second half of the header says how much of it
// the checksum covers, where UDP has the length (RFC 3828 section 3.1): none of
// 1 to 7 bytes, and no more than there are.
func (p *Packet) udpLite(b []byte, length int) Why {
	if why := room(b, length, udpHeader); why != Decoded {
		return why
	}
	covered := int(binary.BigEndian.Uint16(b[4:]))
	if covered != 0 && covered < udpHeader || covered > length {
		return BadLength
	}
	p.ports(sequence.UDPLite, b)
	p.data(b, udpHeader, length)
	return Decoded
}

// sctp takes a packet that opens an association: its first chunk is an INIT, and
// its verification tag is 0, which no other packet's may be (RFC 9260, 8.5.1).
// Whatever else there is belongs to associations.
func (p *Packet) sctp(b []byte, length int) Why {
	if why := room(b, length, sctpHeader+sctpInit); why != Decoded {
		return why
	}
	if b[sctpHeader] != 1 || binary.BigEndian.Uint32(b[4:]) != 0 {
		return NotOpening
	}
	chunk := int(binary.BigEndian.Uint16(b[sctpHeader+2:]))
	if chunk < sctpInit || sctpHeader+chunk > length {
		return BadLength
	}
	p.ports(sequence.SCTP, b)
	p.Seq = binary.BigEndian.Uint32(b[sctpHeader+4:])
	return Decoded
}

// dccp takes a Request, which has the type 0 and long sequence numbers (RFC
// 4340, 5.1). Its own number does not tell a repeat, because each repeat has the
// next one (8.1.1).
func (p *Packet) dccp(b []byte, length int) Why {
	if why := room(b, length, dccpHeader); why != Decoded {
		return why
	}
	if b[8]&0x1f != 1 {
		return NotOpening
	}
	if head := int(b[4]) * 4; head < dccpHeader || head > length {
		return BadLength
	}
	p.ports(sequence.DCCP, b)
	p.Seq = binary.BigEndian.Uint32(b[16:])
	return Decoded
}

// bare takes a packet of any other protocol for what its number says.
func (p *Packet) bare(proto sequence.Proto, b []byte, length int) Why {
	if !proto.Bare() {
		return UnknownProto
	}
	p.Proto = proto
	p.data(b, 0, length)
	return Decoded
}
