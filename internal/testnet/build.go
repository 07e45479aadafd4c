package testnet

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// Option changes a packet while it is built.
type Option func(*frame)

// frame is a packet in the making: the IP header's fields, and its body, which
// is the transport header and the data.
type frame struct {
	src, dst  netip.Addr
	proto     byte // IANA number of the transport protocol
	id        uint16
	fragment  uint16 // IPv4: flags and offset as in the header
	options   []byte // IPv4 options, a multiple of 4 bytes
	exts      []extension
	transport []byte
}

type extension struct {
	kind byte
	body []byte // from its third byte on: 6 bytes, or 6 more than a multiple of 8
}

// ID sets the IPv4 identification.
func ID(id uint16) Option { return func(f *frame) { f.id = id } }

// IPOptions adds IPv4 options: a multiple of 4 bytes, at most 40.
func IPOptions(b ...byte) Option { return func(f *frame) { f.options = b } }

// Extension adds an IPv6 extension header of the given kind (0 hop-by-hop, 43
// routing, 60 destination options), padded to words units of 8 bytes.
func Extension(kind byte, words int) Option {
	body := make([]byte, words*8-2)
	if kind != 43 {
		// One PadN option that fills the header (RFC 8200, 4.2).
		body[0], body[1] = 1, byte(len(body)-2)
	}
	return func(f *frame) { f.exts = append(f.exts, extension{kind, body}) }
}

// Routing adds an IPv6 routing header of type 4 with so many segments left.
func Routing(left byte) Option {
	return func(f *frame) { f.exts = append(f.exts, extension{43, []byte{4, left, 0, 0, 0, 0}}) }
}

// Fragment makes the packet a fragment: offset in units of 8 bytes, and
// whether more follow. An IPv6 packet gets a fragment header; with offset 0
// and no more it is an atomic fragment (RFC 6946).
func Fragment(offset uint16, more bool) Option {
	return func(f *frame) {
		if f.src.Is4() {
			f.fragment = offset
			if more {
				f.fragment |= 0x2000
			}
			return
		}
		body := make([]byte, 6)
		binary.BigEndian.PutUint16(body, offset<<3)
		if more {
			body[1] |= 1
		}
		f.exts = append(f.exts, extension{44, body})
	}
}

// TCP builds a TCP segment without data; flags is byte 13 of its header.
func TCP(src, dst netip.AddrPort, flags uint8, seq uint32, opts ...Option) []byte {
	b := ports(src, dst, 20)
	binary.BigEndian.PutUint32(b[4:], seq)
	b[12], b[13] = 5<<4, flags
	binary.BigEndian.PutUint16(b[14:], 64240) // window
	return build(src.Addr(), dst.Addr(), 6, b, 16, opts)
}

// UDP builds a datagram.
func UDP(src, dst netip.AddrPort, payload []byte, opts ...Option) []byte {
	b := append(ports(src, dst, 8), payload...)
	binary.BigEndian.PutUint16(b[4:], uint16(len(b)))
	return build(src.Addr(), dst.Addr(), 17, b, 6, opts)
}

// Echo builds an echo request of the addresses' family with size bytes of
// payload.
func Echo(src, dst netip.Addr, id, seq uint16, size int, opts ...Option) []byte {
	b := make([]byte, 8+size)
	binary.BigEndian.PutUint16(b[4:], id)
	binary.BigEndian.PutUint16(b[6:], seq)
	proto := byte(1)
	if b[0] = 8; src.Is6() {
		b[0], proto = 128, 58
	}
	return build(src, dst, proto, b, 2, opts)
}

// IP builds a packet of any protocol, with this behind the IP header as it is.
func IP(src, dst netip.Addr, proto uint8, transport []byte, opts ...Option) []byte {
	f := frame{src: src, dst: dst, proto: proto, transport: transport}
	for _, opt := range opts {
		opt(&f)
	}
	if src.Is4() {
		return f.ipv4()
	}
	return f.ipv6()
}

func ports(src, dst netip.AddrPort, size int) []byte {
	b := make([]byte, size)
	binary.BigEndian.PutUint16(b, src.Port())
	binary.BigEndian.PutUint16(b[2:], dst.Port())
	return b
}

// build puts the IP header before the transport header and writes the
// checksums; sum is where the transport's stands.
func build(src, dst netip.Addr, proto byte, transport []byte, sum int, opts []Option) []byte {
	var pseudo uint32
	if proto != 1 { // ICMPv4 alone has no pseudo-header (RFC 792)
		pseudo = add(add(0, src.AsSlice()), dst.AsSlice()) + uint32(proto) + uint32(len(transport))
	}
	check := ^fold(add(pseudo, transport))
	if proto == 17 && check == 0 {
		check = 0xffff // zero would mean "no checksum" (RFC 768)
	}
	binary.BigEndian.PutUint16(transport[sum:], check)
	return IP(src, dst, proto, transport, opts...)
}

func (f *frame) ipv4() []byte {
	head := 20 + len(f.options)
	b := make([]byte, head, head+len(f.transport))
	b[0], b[8], b[9] = 4<<4|byte(head/4), 64, f.proto
	binary.BigEndian.PutUint16(b[2:], uint16(head+len(f.transport)))
	binary.BigEndian.PutUint16(b[4:], f.id)
	binary.BigEndian.PutUint16(b[6:], f.fragment)
	copy(b[12:], f.src.AsSlice())
	copy(b[16:], f.dst.AsSlice())
	copy(b[20:], f.options)
	binary.BigEndian.PutUint16(b[10:], ^fold(add(0, b)))
	return append(b, f.transport...)
}

func (f *frame) ipv6() []byte {
	b := make([]byte, 40, 40+len(f.transport))
	b[0], b[7] = 6<<4, 64
	copy(b[8:], f.src.AsSlice())
	copy(b[24:], f.dst.AsSlice())
	next := 6 // where the kind of the header that follows is written
	for _, ext := range f.exts {
		b[next] = ext.kind
		next = len(b)
		length := byte((len(ext.body)+2)/8 - 1)
		b = append(append(b, 0, length), ext.body...)
	}
	b[next] = f.proto
	b = append(b, f.transport...)
	binary.BigEndian.PutUint16(b[4:], uint16(len(b)-40))
	return b
}

// add and fold are the Internet checksum (RFC 1071), without its complement.
func add(sum uint32, b []byte) uint32 {
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	return sum
}

func fold(sum uint32) uint16 {
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// Wire sends built packets from an interface of a namespace straight to a
// neighbour, past the sender's own routing, neighbour tables and firewall.
type Wire struct {
	fd    int
	index int
	to    net.HardwareAddr
}

// Wire opens the interface for sending to the neighbour with the given
// hardware address (see MAC). It ends with the test.
func (ns *Namespace) Wire(name string, to net.HardwareAddr) *Wire {
	ns.t.Helper()
	w, err := &Wire{to: to}, error(nil)
	ns.Do(func() {
		var link *net.Interface
		if link, err = net.InterfaceByName(name); err != nil {
			return
		}
		w.index = link.Index
		// Protocol 0: this socket never receives.
		w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	})
	if err != nil {
		ns.t.Fatalf("testnet: wire %s: %v", name, err)
	}
	ns.t.Cleanup(func() { unix.Close(w.fd) })
	return w
}

// Send sends packets that start at their IP header, in order.
func (w *Wire) Send(t testing.TB, packets ...[]byte) {
	t.Helper()
	for _, b := range packets {
		if err := w.SendOne(b); err != nil {
			t.Fatalf("testnet: send %d bytes: %v", len(b), err)
		}
	}
}

// SendOne sends one packet and gives the error, for floods that count it. What
// does not begin as IPv6 is sent as IPv4.
func (w *Wire) SendOne(b []byte) error {
	if len(b) > 0 && b[0]>>4 == 6 {
		return w.SendAs(unix.ETH_P_IPV6, b)
	}
	return w.SendAs(unix.ETH_P_IP, b)
}

// SendAs sends bytes under an EtherType of the test's choice.
func (w *Wire) SendAs(ethertype uint16, b []byte) error {
	to := unix.SockaddrLinklayer{Protocol: htons(ethertype), Ifindex: w.index, Halen: uint8(len(w.to))}
	copy(to.Addr[:], w.to)
	return unix.Sendto(w.fd, b, 0, &to)
}

// htons puts a number into network byte order, as packet(7) wants its protocol.
func htons(v uint16) uint16 {
	return binary.NativeEndian.Uint16([]byte{byte(v >> 8), byte(v)})
}

// MAC gives the hardware address of an interface in the namespace.
func (ns *Namespace) MAC(name string) net.HardwareAddr {
	ns.t.Helper()
	var link *net.Interface
	var err error
	ns.Do(func() { link, err = net.InterfaceByName(name) })
	if err != nil {
		ns.t.Fatalf("testnet: %s: %v", name, err)
	}
	return link.HardwareAddr
}
