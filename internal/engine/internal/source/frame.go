//go:build linux

package source

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// Link types (tcpdump.org/linktypes), in the numbers that files have.
const (
	linkNull     = 0
	linkEthernet = 1
	linkRawBSD   = 12
	linkRawOpen  = 14
	linkRaw      = 101
	linkLoop     = 108
	linkCooked   = 113
	linkIPv4     = 228
	linkIPv6     = 229
	linkCooked2  = 276
)

// frame takes the link's header off. Only a frame to this machine counts, as far
// as the link tells: what a capture in promiscuous mode saw was for others.
func (p *Pcap) frame(i *iface, b []byte) {
	p.last.Interface = i.name
	switch i.link {
	case linkEthernet:
		if len(b) >= 14 && b[0]&1 == 0 { // the bit of multicast and broadcast
			p.last.Packet = ip(binary.BigEndian.Uint16(b[12:]), b[14:])
		}
	case linkCooked:
		if len(b) >= 16 && binary.BigEndian.Uint16(b) == unix.PACKET_HOST {
			p.last.Packet = ip(binary.BigEndian.Uint16(b[14:]), b[16:])
		}
	case linkCooked2:
		if len(b) >= 20 && b[10] == unix.PACKET_HOST {
			p.last.Packet = ip(binary.BigEndian.Uint16(b), b[20:])
		}
	case linkNull, linkLoop:
		if len(b) >= 4 {
			p.last.Packet = family([4]byte(b), b[4:])
		}
	case linkRaw, linkRawBSD, linkRawOpen, linkIPv4, linkIPv6:
		p.last.Packet = b
	default:
		p.Unread++
	}
	p.last.Loopback = loops(i.link, b, p.last.Packet)
}

// loops reports whether a frame is of Linux's lo. A cooked one says of what hardware it
// is. Of Ethernet there are no addresses on lo; but some programs take them out of any
// capture, so that the packet must be from and to one address too. The loopbacks of
// other systems have the link types of their tunnels, and tell nothing.
func loops(link uint16, b, packet []byte) bool {
	switch {
	case len(packet) == 0:
	case link == linkEthernet:
		return [12]byte(b) == [12]byte{} && toItself(packet)
	case link == linkCooked:
		return binary.BigEndian.Uint16(b[2:]) == unix.ARPHRD_LOOPBACK
	case link == linkCooked2:
		return binary.BigEndian.Uint16(b[8:]) == unix.ARPHRD_LOOPBACK
	}
	return false
}

// toItself reports whether a packet is from and to one address, or to 127.0.0.0/8.
func toItself(b []byte) bool {
	switch {
	case b[0]>>4 == 4 && len(b) >= 20:
		return b[16] == 127 || [4]byte(b[12:16]) == [4]byte(b[16:20])
	case b[0]>>4 == 6 && len(b) >= 40:
		return [16]byte(b[8:24]) == [16]byte(b[24:40])
	}
	return false
}

// maxTags is how many VLAN tags are taken off; two are in use (IEEE 802.1ad).
const maxTags = 4

// ip gives the packet behind an EtherType and VLAN tags. What the frame says must
// be what the packet says, see Source.packet.
func ip(kind uint16, b []byte) []byte {
	for range maxTags {
		if kind != unix.ETH_P_8021Q && kind != unix.ETH_P_8021AD && kind != unix.ETH_P_QINQ1 || len(b) < 4 {
			break
		}
		kind, b = binary.BigEndian.Uint16(b[2:]), b[4:]
	}
	switch {
	case len(b) == 0:
	case kind == unix.ETH_P_IP && b[0]>>4 == 4, kind == unix.ETH_P_IPV6 && b[0]>>4 == 6:
		return b
	}
	return nil
}

// family gives the packet behind the address family of a BSD loopback, in the
// byte order of the machine or, of type LOOP, of the network. The BSDs number
// IPv6 each in their own way.
func family(head [4]byte, b []byte) []byte {
	switch number := max(head[0], head[3]); {
	case len(b) == 0 || head[1] != 0 || head[2] != 0 || min(head[0], head[3]) != 0:
	case number == 2 && b[0]>>4 == 4:
		return b
	case (number == 10 || number == 24 || number == 28 || number == 30) && b[0]>>4 == 6:
		return b
	}
	return nil
}
