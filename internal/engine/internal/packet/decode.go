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
	body := b[head:min(total, len(b))]
	switch b[9] {
	case 6:
		return p.tcp(body, total-head)
	case 17:
		p.Seq = uint32(binary.BigEndian.Uint16(b[4:]))
		return p.udp(body, total-head)
	case 1:
		return p.echo(body, total-head, 8)
	}
	return UnknownProto
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
	switch next {
	case 6:
		return p.tcp(body, length-skip)
	case 17:
		return p.udp(body, length-skip)
	case icmpv6:
		return p.echo(body, length-skip, 128)
	}
	return UnknownProto
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
