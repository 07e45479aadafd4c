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
	// Proto is TCP, UDP or ICMP (an echo request of either family), or 0 for
	// everything that was declined: the reason is in Why.
	Proto   sequence.Proto
	SrcPort uint16 // TCP and UDP
	DstPort uint16 // TCP and UDP; for ICMP the number of payload bytes
	Flags   uint8  // TCP: byte 13 of the header
	Seq     uint32 // TCP: sequence number; ICMP: identifier<<16 | sequence; UDP over IPv4: the IP identification
	// Payload is what the capture has of the data behind the transport header
	// (UDP and ICMP); it points into the buffer given to Decode.
	Payload []byte
	Why     Why
}

// Why says why a packet was declined. Its String is a constant.
type Why uint8
