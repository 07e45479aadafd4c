package packet

import "net/netip"

// Source gives who a packet says that it is from, also of one that Decode
// declines; the zero Addr where not even that can be read.
func Source(b []byte) netip.Addr {
	switch {
	case len(b) >= ipv4Header && b[0]>>4 == 4:
		return netip.AddrFrom4([4]byte(b[12:16]))
	case len(b) >= ipv6Header && b[0]>>4 == 6:
		return netip.AddrFrom16([16]byte(b[8:24]))
	}
	return netip.Addr{}
}
