package sallyport

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/internal/sequence"
)

// sendProtocol sends one packet of a protocol other than TCP, UDP and ICMP. A raw
// socket sends SCTP and DCCP too, though the kernel may know both: a connect would
// be repeated and would go on to shake hands, and most kernels have neither.
func sendProtocol(by path, proto Proto, port uint16, payload []byte) error {
	if proto == sequence.UDPLite {
		if err := sendLite(by, port, payload); !errors.Is(err, errNoLite) {
			return err
		}
	}
	fd, err := newSocket(by, syscall.SOCK_RAW, int(proto))
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EACCES) {
		return fmt.Errorf("this user may not send packets of %s: give this program CAP_NET_RAW with "+
			"setcap cap_net_raw+ep PROGRAM, or knock with a sequence of tcp, udp and icmp alone", called(proto))
	}
	if err != nil {
		return err
	}
	return sendFrom(fd, by, behindIP(by.local, netip.AddrPortFrom(by.remote, port), proto, payload), false)
}

// called is what an error says of a protocol: the number of a bare one is the
// secret of its step.
func called(proto Proto) string {
	if proto.Ported() {
		return proto.String()
	}
	return "a bare protocol"
}

var errNoLite = errors.New("this kernel has no UDP-Lite")

// sendLite sends a datagram of UDP-Lite, for which no right is needed, if the
// kernel has it: it is an option of the kernel's IPv6, and Linux is to lose it.
func sendLite(by path, port uint16, payload []byte) error {
	fd, err := newSocket(by, syscall.SOCK_DGRAM, unix.IPPROTO_UDPLITE)
	if errors.Is(err, syscall.EPROTONOSUPPORT) || errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, syscall.ESOCKTNOSUPPORT) {
		return errNoLite
	}
	if err != nil {
		return err
	}
	return sendTo(fd, by, port, payload, false)
}

// behindIP is what stands behind the IP header.
func behindIP(local netip.Addr, to netip.AddrPort, proto Proto, payload []byte) []byte {
	switch proto {
	case sequence.UDPLite:
		return datagramLite(local, to, payload)
	case sequence.SCTP:
		return initSCTP(to.Port())
	case sequence.DCCP:
		return requestDCCP(local, to)
	}
	return payload
}

// fromPort begins a header of so many bytes with a dynamic source port (RFC 6335
// section 6) and the destination port.
func fromPort(port uint16, size int) []byte {
	b := make([]byte, size)
	binary.BigEndian.PutUint16(b, 0xc000|binary.BigEndian.Uint16(random(2)))
	binary.BigEndian.PutUint16(b[2:], port)
	return b
}

// datagramLite builds a datagram whose checksum covers all of it (RFC 3828
// section 3.1). The checksum 0 is allowed to nobody there.
func datagramLite(local netip.Addr, to netip.AddrPort, payload []byte) []byte {
	b := append(fromPort(to.Port(), 8), payload...)
	sum := checksum(local, to.Addr(), sequence.UDPLite, b)
	if sum == 0 {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(b[6:], sum)
	return b
}

// initSCTP builds an INIT as RFC 9260 section 3.3.2 has it, with nothing
// optional: a random tag, which must not be 0, a window, and streams as Linux
// asks for.
func initSCTP(port uint16) []byte {
	b := fromPort(port, 32)
	b[12], b[15] = 1, 20
	copy(b[16:], random(4))
	b[16] |= 1
	binary.BigEndian.PutUint32(b[20:], 106496)
	binary.BigEndian.PutUint16(b[24:], 10)
	binary.BigEndian.PutUint16(b[26:], 65535)
	copy(b[28:], random(4))
	// CRC32c, whose lowest byte travels first (RFC 9260 appendix A).
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return b
}

// requestDCCP builds a Request for no service in particular (RFC 4340, 5.1, 5.2
// and 8.1.2), with long sequence numbers, which it must have.
func requestDCCP(local netip.Addr, to netip.AddrPort) []byte {
	b := fromPort(to.Port(), 20)
	b[4], b[8] = 5, 1
	copy(b[10:16], random(6))
	binary.BigEndian.PutUint16(b[6:], checksum(local, to.Addr(), sequence.DCCP, b))
	return b
}
