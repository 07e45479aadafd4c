// Package packet decodes what the capture hands over: an IPv4 or IPv6 packet
// from its first header byte on. It never fails, it declines: what it does not
// understand has the zero Proto and matches nothing.
package packet

import (
	"net/netip"

	"github.com/sallyport/sallyport/internal/sequence"
)

// Packet is one decoded packet. It holds no reference to the bytes it came
// from, except Payload.
type Packet struct {
	Src, Dst netip.Addr // valid whenever Proto is not 0; never 4-in-6
	// Proto is TCP, UDP, UDP-Lite, ICMP (an echo request of either family), SCTP (an
	// INIT), DCCP (a Request), a bare protocol (sequence.Proto.Bare), or 0 for
	// everything that was declined: the reason is in Why.
	Proto   sequence.Proto
	SrcPort uint16 // of a protocol that has ports
	DstPort uint16 // the same; for ICMP the number of payload bytes
	Flags   uint8  // TCP: byte 13 of the header
	// Seq is what a repeat has too. TCP: sequence number; SCTP: initiate tag; DCCP:
	// service code; ICMP: identifier<<16 | sequence; the others over IPv4: the IP
	// identification.
	Seq uint32
	// Payload is what the capture has of the data behind the transport header,
	// as long as the headers say and without what the wire padded: of UDP, of
	// UDP-Lite, of ICMP, of a TCP segment that opens (sequence.Opening), and all of a
	// bare protocol. It points into the buffer given to Decode.
	Payload []byte
	Cut     bool // the packet has more payload than the capture
	// Elsewhere says that Dst is none of this host's addresses. Only the engine
	// knows these.
	Elsewhere bool
	Why       Why // Decoded, or why Proto is 0
}

// Why says why a packet was declined. Its String is a constant.
type Why uint8

// The reasons to decline. Decoded is the zero value: nothing was declined.
const (
	Decoded       Why = iota
	Truncated         // the capture ends inside a header
	NotIP             // the version is neither 4 nor 6
	BadLength         // a length field contradicts another
	Fragment          // any fragment, the first and the atomic one too
	Jumbogram         // IPv6 of more than 65,535 bytes (RFC 2675)
	TooManyExts       // more than MaxExtensions extension headers
	SourceRouted      // a routing header with hops to go: not at its destination
	UnknownProto      // a protocol that no step can have
	NotEcho           // ICMP, but no echo request
	NotOpening        // SCTP or DCCP, but not what opens a connection
	MappedAddress     // an IPv4 address in IPv6 clothes (RFC 4291, 2.5.5.2)
	BadSource         // an address that no host on a wire can send from
	whys              // the number of reasons
)

var whyText = [whys]string{
	Decoded:       "decoded",
	Truncated:     "truncated",
	NotIP:         "not IP",
	BadLength:     "bad length",
	Fragment:      "fragment",
	Jumbogram:     "jumbogram",
	TooManyExts:   "too many extension headers",
	SourceRouted:  "source routed",
	UnknownProto:  "unknown protocol",
	NotEcho:       "not an echo request",
	NotOpening:    "not the first packet of a connection",
	MappedAddress: "4-in-6 address",
	BadSource:     "impossible source",
}

// Whys is the number of values that Why can have, for arrays of counters.
const Whys = int(whys)

// String gives the reason in the operator's words.
func (w Why) String() string {
	if w >= whys {
		return "unknown reason"
	}
	return whyText[w]
}
