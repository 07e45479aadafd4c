package sequence

import (
	"fmt"
	"slices"
	"strconv"
)

// Proto is an IP protocol number that a step can have. ICMP stands for an echo
// request of either family (ICMPv4 type 8, RFC 792; ICMPv6 type 128, RFC 4443).
type Proto uint8

// The protocols of a step that have a name, by their IANA numbers.
const (
	ICMP    Proto = 1
	TCP     Proto = 6
	UDP     Proto = 17
	DCCP    Proto = 33
	SCTP    Proto = 132
	UDPLite Proto = 136
)

// ported are the protocols whose first four bytes are two ports.
var ported = []Proto{TCP, UDP, DCCP, SCTP, UDPLite}

var protoNames = map[Proto]string{
	ICMP: "icmp", TCP: "tcp", UDP: "udp", DCCP: "dccp", SCTP: "sctp", UDPLite: "udplite",
}

// spelled gives the protocol of this name, or 0.
func spelled(name string) Proto {
	for p, own := range protoNames {
		if own == name {
			return p
		}
	}
	return 0
}

// String gives the name used in configs: "tcp", "udp", "icmp", "dccp", "sctp",
// "udplite", and of every other protocol "proto/47".
func (p Proto) String() string {
	if name, ok := protoNames[p]; ok {
		return name
	}
	return "proto/" + strconv.Itoa(int(p))
}

// Ported reports whether a step of the protocol has a port.
func (p Proto) Ported() bool { return slices.Contains(ported, p) }

// connects reports whether what opens a connection is repeated until it is
// answered: a SYN, an INIT (RFC 9260 section 5.1), a Request (RFC 4340 section
// 8.1.1).
func (p Proto) connects() bool { return p == TCP || p == SCTP || p == DCCP }

// Bare reports whether a step can have the protocol by its number alone: 1 to
// 254, less those that have a spelling of their own and those that the decoder
// of IPv6 walks over to what is behind (RFC 8200 section 4), which it therefore
// never sees as a packet's protocol: hop-by-hop options, routing, fragment and
// destination options. ESP (50) and AH (51) are taken: the decoder can't or
// doesn't look behind them, in neither family, and so sees a packet of
// each as that. The reserved number 255 is what no packet has.
func (p Proto) Bare() bool {
	switch p {
	case 0, ICMP, TCP, UDP, DCCP, SCTP, UDPLite, 255:
		return false
	case 43, 44, 58, 60: // routing, fragment, ICMPv6, destination options
		return false
	}
	return true
}

// Portless reports whether the step has neither a port nor a size: a bare
// protocol, or a ping of any size.
func (s Step) Portless() bool { return s.AnySize || s.Proto.Bare() }

// parseBare reads what is behind "proto/" in the step s. Its number may not be
// one that has another spelling, or else one step would have two.
func parseBare(s, number string, flags bool) (Step, error) {
	n, err := parseNumber(number)
	switch {
	case flags:
		return Step{}, fmt.Errorf("%q: only a tcp step can name flags", s)
	case err != nil || n < 1 || n > 254:
		return Step{}, fmt.Errorf("%q: the protocol must be a number from 1 to 254", s)
	case n == 58 || n == uint64(ICMP):
		return Step{}, fmt.Errorf("%q is written as icmp or 37/icmp, which are a ping of either family", s)
	case Proto(n).Ported():
		return Step{}, fmt.Errorf("%q has ports: write it as 7000/%s", s, Proto(n))
	case !Proto(n).Bare():
		return Step{}, fmt.Errorf("%q is a header of IPv6 that other headers follow, so no packet is of that protocol: take another number", s)
	}
	return Step{Proto: Proto(n)}, nil
}
