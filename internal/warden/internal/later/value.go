package later

import (
	"bytes"
	"encoding/binary"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/internal/sequence"
)

// truth is what is known of a condition before the packet comes.
type truth int8

const (
	no truth = iota
	maybe
	yes
)

func (t truth) not() truth { return yes - t }

func (t truth) notIf(invert bool) truth {
	if invert {
		return t.not()
	}
	return t
}

func (t truth) and(u truth) truth { return min(t, u) }

func (t truth) or(u truth) truth { return max(t, u) }

func certain(b bool) truth {
	if b {
		return yes
	}
	return no
}

// origin says where an unknown byte came from, where that tells more than
// "unknown".
type origin uint8

const (
	anywhere   origin = iota
	source            // the stranger's address
	arrivedAt         // first byte of the interface's name, which is not "lo"
	arrivedIx         // first byte of the interface's index, which is not lo's
	dialled           // upper byte of the destination port, which is known
	dialledLow        // lower byte of it
	calculated        // made from a byte of it
)

// cell is a byte of which some bits are known. Unknown bits are 0 in bits.
type cell struct {
	bits, known byte
	of          origin
}

type value []cell

func known(b ...byte) value {
	v := make(value, len(b))
	for i := range b {
		v[i] = cell{bits: b[i], known: 0xff}
	}
	return v
}

func unknown(n int, of origin) value {
	v := make(value, n)
	for i := range v {
		v[i].of = of
	}
	return v
}

// partly is a value of which the bits set in mask are known.
func partly(bits, mask []byte) value {
	v := known(bits...)
	for i := range v {
		v[i].bits, v[i].known = bits[i]&mask[i], mask[i]
	}
	return v
}

// masked makes v (v & mask) ^ xor in place. An interface's name stops being one.
func masked(v value, mask, xor []byte) {
	for i, c := range v {
		c.known |= ^mask[i]
		c.bits = (c.bits&mask[i] ^ xor[i]) & c.known
		switch c.of {
		case arrivedAt, arrivedIx:
			c.of = anywhere
		case dialled, dialledLow:
			c.of = calculated
		}
		v[i] = c
	}
}

func native32(n uint32) []byte { return binary.NativeEndian.AppendUint32(nil, n) }

// stranger is the packet that is judged: the first of a connection, from an
// address that nobody knows.
type stranger struct {
	v6    bool
	proto sequence.Proto
	port  uint16
	// until is the last port for which every comparison so far would have given
	// the same answer. So 65,535 ports cost one walk for each answer there is.
	until uint16
	// mark is the packet mark that our grants set, 0 for none. Bits outside it
	// are unknown if anyone else sets marks.
	mark       uint32
	otherMarks bool
	untracked  bool // some rule keeps packets from conntrack
	unlisted   bool // no rule that names source addresses names this one
}

// Byte positions in the IPv4, IPv6, TCP and UDP headers (RFC 791 section 3.1,
// RFC 8200 section 3, RFC 9293 section 3.1).
const (
	ipHeaders     = 40
	fragment4     = 6
	protocol4     = 9
	source4       = 12
	nextHeader6   = 6
	source6       = 8
	tcpHeader     = 20
	udpHeader     = 8
	dport         = 2
	tcpFlagsByte  = 13
	tcpFlagsKnown = 0x3f // ECN's two bits differ between senders (RFC 3168)
)

func (p *stranger) network() value {
	h := unknown(ipHeaders, anywhere)
	proto := known(byte(p.proto))
	if p.v6 {
		h[0] = cell{bits: 0x60, known: 0xf0}
		copy(h[nextHeader6:], proto)
		copy(h[source6:], unknown(16, source))
		return h
	}
	h[0] = cell{bits: 0x40, known: 0xf0}
	copy(h[fragment4:], partly([]byte{0, 0}, []byte{0xbf, 0xff}))
	copy(h[protocol4:], proto)
	copy(h[source4:], unknown(4, source))
	return h
}

func (p *stranger) transport() value {
	if p.proto != sequence.TCP {
		h := unknown(udpHeader, anywhere)
		copy(h[dport:], p.dialled())
		return h
	}
	h := unknown(tcpHeader, anywhere)
	copy(h[dport:], p.dialled())
	h[tcpFlagsByte] = cell{bits: sequence.SYN, known: tcpFlagsKnown}
	return h
}

func (p *stranger) dialled() value {
	v := known(binary.BigEndian.AppendUint16(nil, p.port)...)
	v[0].of, v[1].of = dialled, dialledLow
	return v
}

// changes notes that the answer is another one from a port on.
func (p *stranger) changes(at int) {
	if at > int(p.port) && at <= int(p.until) {
		p.until = uint16(at - 1)
	}
}

// compares notes what a comparison of v's byte i with bound means for the ports
// above: bound may begin or end what answers alike.
func (p *stranger) compares(v value, i int, bound []byte) {
	switch {
	case v[i].of == dialled && i+1 < min(len(v), len(bound)) && v[i+1].of == dialledLow:
		at := int(binary.BigEndian.Uint16(bound[i:]))
		p.changes(at)
		p.changes(at + 1)
	case v[i].of == dialledLow && i > 0 && v[i-1].of == dialled: // done with its upper byte
	case v[i].of >= dialled: // half a port, or calculated: the next may be anything
		p.until = p.port
	}
}

func (p *stranger) packetMark() value {
	if p.otherMarks {
		return partly(native32(p.mark), native32(p.mark))
	}
	return known(native32(p.mark)...)
}

// meta is what a meta expression loads (nft(8), META EXPRESSIONS).
func (p *stranger) meta(key uint32) value {
	family, ethertype := byte(unix.NFPROTO_IPV4), uint16(unix.ETH_P_IP)
	if p.v6 {
		family, ethertype = unix.NFPROTO_IPV6, unix.ETH_P_IPV6
	}
	switch key {
	case unix.NFT_META_NFPROTO:
		return known(family)
	case unix.NFT_META_PROTOCOL:
		return known(binary.BigEndian.AppendUint16(nil, ethertype)...)
	case unix.NFT_META_L4PROTO:
		return known(byte(p.proto))
	case unix.NFT_META_PKTTYPE:
		return known(unix.PACKET_HOST)
	case unix.NFT_META_MARK:
		return p.packetMark()
	case unix.NFT_META_IIFNAME:
		v := unknown(unix.IFNAMSIZ, anywhere)
		v[0].of = arrivedAt
		return v
	case unix.NFT_META_IIF:
		v := unknown(4, anywhere)
		v[0].of = arrivedIx
		return v
	}
	return unknown(registerSize, anywhere)
}

// Bits of conntrack's state and status as nft and iptables see them (enum
// ip_conntrack_status in nf_conntrack_common.h).
const (
	ctStateNew    = 8
	ctStatusDNAT  = 0x20
	ctStatusOlder = 0x17 // expected, seen reply, assured, source NAT
	ctOriginal    = 0    // the direction of a first packet
	routeLocal    = unix.RTN_LOCAL
)

// conntrack is what a ct expression loads for the first packet of a connection.
func (p *stranger) conntrack(key uint32) value {
	switch {
	case p.untracked:
		return unknown(registerSize, anywhere)
	case key == unix.NFT_CT_STATE:
		return known(native32(ctStateNew)...)
	case key == unix.NFT_CT_STATUS:
		return partly(native32(0), native32(ctStatusOlder|ctStatusDNAT))
	case key == unix.NFT_CT_DIRECTION:
		return known(ctOriginal)
	}
	return unknown(registerSize, anywhere)
}

// equal compares the value's first bytes with data.
func (p *stranger) equal(v value, data []byte) truth {
	var loose value
	for i := range min(len(v), len(data)) {
		c := v[i]
		p.compares(v, i, data)
		switch {
		case (c.bits^data[i])&c.known != 0,
			c.of == arrivedAt && bytes.HasPrefix(data[i:], []byte("lo\x00")),
			c.of == arrivedIx && bytes.HasPrefix(data[i:], native32(1)):
			return no
		case c.known != 0xff:
			loose = append(loose, c)
		}
	}
	return p.unsure(loose)
}

// within compares the value with an inclusive range of big-endian numbers.
func (p *stranger) within(v value, low, high []byte) truth {
	if bytes.Equal(low, high) {
		return p.equal(v, low)
	}
	least, most := make([]byte, len(low)), make([]byte, len(low))
	var loose value
	for i := range min(len(v), len(low)) {
		p.compares(v, i, low)
		p.compares(v, i, high)
		least[i], most[i] = v[i].bits, v[i].bits|^v[i].known
		if v[i].known != 0xff {
			loose = append(loose, v[i])
		}
	}
	switch {
	case bytes.Compare(least, low) >= 0 && bytes.Compare(most, high) <= 0:
		return yes
	case bytes.Compare(most, low) < 0 || bytes.Compare(least, high) > 0:
		return no
	}
	return p.unsure(loose)
}

// unsure is the answer of a comparison that came down to these unknown bytes.
func (p *stranger) unsure(loose value) truth {
	switch {
	case len(loose) == 0:
		return yes
	case p.unlisted && slices.ContainsFunc(loose, func(c cell) bool { return c.of == source }):
		return no
	}
	return maybe
}
