package sallyport

import (
	"encoding/binary"
	"errors"
	"math/bits"
	"net/netip"
	"syscall"
)

// synSize is a TCP header without options, in bytes (RFC 9293 section 3.1).
const synSize = 20

// sendData sends one SYN with data from a random port. No connect can do that
// to a server that never gave a Fast Open cookie (RFC 7413). If a SYN-ACK comes
// back, the kernel answers it with a RST, for it knows no such connection.
func sendData(by path, port uint16, data []byte) error {
	fd, err := newSocket(by, syscall.SOCK_RAW, syscall.IPPROTO_TCP)
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EACCES) {
		return errors.New("this user may not send a SYN with data: give this program CAP_NET_RAW with " +
			"setcap cap_net_raw+ep PROGRAM, or knock over udp or icmp")
	}
	if err != nil {
		return err
	}
	return sendFrom(fd, by, syn(by.local, netip.AddrPortFrom(by.remote, port), data), true)
}

// syn builds the segment. The source port is one of the dynamic ones (RFC 6335
// section 6).
func syn(local netip.Addr, to netip.AddrPort, data []byte) []byte {
	numbers := random(6)
	b := make([]byte, synSize, synSize+len(data))
	binary.BigEndian.PutUint16(b, 0xc000|binary.BigEndian.Uint16(numbers))
	binary.BigEndian.PutUint16(b[2:], to.Port())
	copy(b[4:8], numbers[2:])
	b[12], b[13] = synSize/4<<4, 0x02
	binary.BigEndian.PutUint16(b[14:], 64240) // the window that Linux opens with on Ethernet
	b = append(b, data...)
	binary.BigEndian.PutUint16(b[16:], checksum(local, to.Addr(), TCP, b))
	return b
}

// checksum is that of RFC 9293 section 3.1, over both families' pseudo-headers:
// they differ only in zeros. DCCP and UDP-Lite have the same with their numbers
// (RFC 4340 section 9.1, RFC 3828 section 3.2).
func checksum(local, remote netip.Addr, proto Proto, segment []byte) uint16 {
	sum := uint64(len(segment)) + uint64(proto)
	for _, part := range [][]byte{local.AsSlice(), remote.AsSlice(), segment} {
		for i := 0; i+1 < len(part); i += 2 {
			sum += uint64(binary.BigEndian.Uint16(part[i:]))
		}
		if len(part)%2 == 1 {
			sum += uint64(part[len(part)-1]) << 8
		}
	}
	for bits.Len64(sum) > 16 {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
