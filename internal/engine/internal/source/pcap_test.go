//go:build linux

package source

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/internal/testnet"
)

// capturedAt is when the packets of these tests were captured.
var capturedAt = time.Date(2026, 3, 4, 5, 6, 7, 123456789, time.UTC)

// onWire are a packet of each family.
var onWire = [][]byte{
	testnet.UDP(netip.MustParseAddrPort("192.0.2.7:1"), netip.MustParseAddrPort("192.0.2.1:2"), []byte("four")),
	testnet.UDP(netip.MustParseAddrPort("[2001:db8::7]:1"), netip.MustParseAddrPort("[2001:db8::1]:2"), []byte("six")),
}

var etherType = []uint16{0x0800, 0x86dd}

// framed puts a packet of a family behind the header of a link.
func framed(link uint16, family int) []byte {
	head := map[uint16][]byte{
		linkEthernet: append(make([]byte, 12), byte(etherType[family]>>8), byte(etherType[family])),
		linkCooked:   append(make([]byte, 14), byte(etherType[family]>>8), byte(etherType[family])),
		linkCooked2:  append([]byte{byte(etherType[family] >> 8), byte(etherType[family])}, make([]byte, 18)...),
		linkNull:     {[]byte{2, 10}[family], 0, 0, 0},
		linkLoop:     {0, 0, 0, []byte{2, 30}[family]},
	}[link]
	return slices.Concat(head, onWire[family])
}

// pcapFile writes a pcap file with a packet of each family.
func pcapFile(order binary.AppendByteOrder, nano bool, link uint16) []byte {
	magic, unit := uint32(magicMicro), 1000
	if nano {
		magic, unit = magicNano, 1
	}
	b := order.AppendUint32(nil, magic)
	b = order.AppendUint16(b, 2)
	b = order.AppendUint16(b, 4)
	b = append(b, make([]byte, 8)...)
	b = order.AppendUint32(b, 65535)
	b = order.AppendUint32(b, uint32(link))
	for family := range onWire {
		f := framed(link, family)
		b = order.AppendUint32(b, uint32(capturedAt.Unix()))
		b = order.AppendUint32(b, uint32(capturedAt.Nanosecond()/unit))
		b = order.AppendUint32(b, uint32(len(f)))
		b = order.AppendUint32(b, uint32(len(f)))
		b = append(b, f...)
	}
	return b
}

// block writes a pcapng block.
func ngBlock(order binary.AppendByteOrder, kind uint32, body []byte) []byte {
	for len(body)%4 != 0 {
		body = append(body, 0)
	}
	total := uint32(len(body) + 12)
	b := order.AppendUint32(order.AppendUint32(nil, kind), total)
	return order.AppendUint32(append(b, body...), total)
}

func ngSection(order binary.AppendByteOrder) []byte {
	body := order.AppendUint32(nil, magicOrder)
	return ngBlock(order, magicSection, append(order.AppendUint16(order.AppendUint16(body, 1), 0), bytes.Repeat([]byte{0xff}, 8)...))
}

// ngInterface describes one with a name and how it counts time.
func ngInterface(order binary.AppendByteOrder, link uint16, name string, tick byte) []byte {
	b := order.AppendUint32(order.AppendUint16(order.AppendUint16(nil, link), 0), 0)
	for code, value := range map[uint16]string{optionName: name, optionTick: string([]byte{tick})} {
		b = order.AppendUint16(order.AppendUint16(b, code), uint16(len(value)))
		b = append(b, value...)
		for len(b)%4 != 0 {
			b = append(b, 0)
		}
	}
	return ngBlock(order, blockInterface, append(b, 0, 0, 0, 0))
}

// stamp is capturedAt as an interface counts it.
func ngStamp(tick byte) uint64 {
	seconds, rest := uint64(capturedAt.Unix()), float64(capturedAt.Nanosecond())/1e9
	unit := 1.0
	for range tick & 0x7f {
		if tick&0x80 != 0 {
			unit *= 2
		} else {
			unit *= 10
		}
	}
	return seconds*uint64(unit) + uint64(rest*unit)
}

func ngPacket(order binary.AppendByteOrder, iface uint32, stamp uint64, f []byte) []byte {
	b := order.AppendUint32(nil, iface)
	b = order.AppendUint32(order.AppendUint32(b, uint32(stamp>>32)), uint32(stamp))
	b = order.AppendUint32(order.AppendUint32(b, uint32(len(f))), uint32(len(f)))
	return ngBlock(order, blockEnhanced, append(b, f...))
}

// pcapngFile has two interfaces, blocks that nobody reads, an enhanced packet of
// one family and a simple one of the other, twice: in two sections.
func pcapngFile(first, second binary.AppendByteOrder, link uint16, tick byte) (b []byte) {
	for _, order := range []binary.AppendByteOrder{first, second} {
		b = slices.Concat(b, ngSection(order), ngBlock(order, 0x0bad, []byte("unread")),
			ngInterface(order, link, "eth0", tick), ngInterface(order, link, "eth1", 9),
			ngPacket(order, 0, ngStamp(tick), framed(link, 0)),
			ngBlock(order, 5, make([]byte, 40)))
		f := framed(link, 1)
		b = append(b, ngBlock(order, blockSimple, append(order.AppendUint32(nil, uint32(len(f))), f...))...)
		b = append(b, ngPacket(order, 1, uint64(capturedAt.UnixNano()), framed(link, 1))...)
	}
	return b
}

// read gives the packets of a file as text, and the error at its end.
func read(file []byte) (list []string, err error) {
	p, err := newPcap(bytes.NewReader(file))
	if err != nil {
		return nil, err
	}
	for range 1000 {
		c, err := p.Next()
		if err != nil {
			return list, err
		}
		list = append(list, fmt.Sprint(c.Time.Format(time.RFC3339Nano), c.Interface, c.Loopback, string(c.Packet)))
	}
	return list, errors.New("it does not end")
}

var orders = map[string]binary.AppendByteOrder{"little": binary.LittleEndian, "big": binary.BigEndian}

func TestPcap(t *testing.T) {
	for name, order := range orders {
		for _, nano := range []bool{false, true} {
			for _, link := range []uint16{linkEthernet, linkCooked, linkCooked2, linkNull, linkLoop, linkRaw, linkRawBSD, linkRawOpen} {
				at := capturedAt
				if !nano {
					at = at.Truncate(time.Microsecond)
				}
				var want []string
				for _, packet := range onWire {
					want = append(want, fmt.Sprint(at.Format(time.RFC3339Nano), "", false, string(packet)))
				}
				if got, err := read(pcapFile(order, nano, link)); err != io.EOF || !slices.Equal(got, want) {
					t.Errorf("%s, nanoseconds %v, link %d: %v\n got %q\nwant %q", name, nano, link, err, got, want)
				}
			}
		}
	}
}

func TestPcapng(t *testing.T) {
	for _, c := range []struct {
		tick byte
		off  time.Duration // what it can't say
	}{{6, time.Microsecond}, {9, 100}, {3, time.Millisecond}, {0, time.Second}, {10, 100}, {0x80 | 20, 2 * time.Microsecond}, {0x80 | 30, 100}, {0x80, time.Second}} {
		for name, first := range orders {
			for _, second := range orders {
				got, err := read(pcapngFile(first, second, linkEthernet, c.tick))
				if err != io.EOF || len(got) != 6 {
					t.Fatalf("%s, tick %#x: %d packets, %v", name, c.tick, len(got), err)
				}
				for i, line := range got {
					want, iface := onWire[min(i%3, 1)], []string{"eth0", "eth0", "eth1"}[i%3]
					stamp, rest, _ := strings.Cut(line, "Z")
					at, err := time.Parse(time.RFC3339Nano, stamp+"Z")
					if off := capturedAt.Sub(at); err != nil || off < 0 || off > c.off || rest != iface+"false"+string(want) {
						t.Errorf("%s, tick %#x: packet %d is %q (%v, %v)", name, c.tick, i, line, off, err)
					}
				}
			}
		}
	}
}

// What is whole is read, whatever byte the file ends behind, and nobody is told
// that it was all.
func TestCutAtEveryByte(t *testing.T) {
	for name, file := range map[string][]byte{
		"pcap": pcapFile(binary.LittleEndian, false, linkEthernet), "big": pcapFile(binary.BigEndian, true, linkCooked),
		"pcapng": pcapngFile(binary.LittleEndian, binary.BigEndian, linkCooked2, 6),
	} {
		all, err := read(file)
		if err != io.EOF {
			t.Fatal(name, err)
		}
		whole, more := 0, 0
		for n := range file {
			got, err := read(file[:n])
			switch {
			case len(got) > len(all) || !slices.Equal(got, all[:len(got)]):
				t.Fatalf("%s, %d bytes: other packets", name, n)
			case len(got) < more:
				t.Fatalf("%s, %d bytes: fewer packets than with a byte less", name, n)
			case err == io.EOF:
				whole++
			case err == nil:
				t.Fatalf("%s, %d bytes: no error", name, n)
			case n >= 4 && err != ErrCut:
				t.Fatalf("%s, %d bytes: %v", name, n, err)
			}
			more = len(got)
		}
		// At the borders of packets and blocks alone.
		if blocks := map[string]int{"pcap": 2, "big": 2, "pcapng": 15}[name]; whole != blocks {
			t.Errorf("%s: %d beginnings count as whole, want %d", name, whole, blocks)
		}
	}
}

func TestHostileLengths(t *testing.T) {
	little := binary.LittleEndian
	head := pcapFile(little, false, linkEthernet)[:24]
	record := func(n uint32) []byte {
		b := little.AppendUint32(little.AppendUint32(slices.Clone(head), 1), 1)
		return append(little.AppendUint32(little.AppendUint32(b, n), n), make([]byte, 100)...)
	}
	section, iface := ngSection(little), ngInterface(little, linkEthernet, "eth0", 6)
	ng := func(blocks ...[]byte) []byte { return slices.Concat(append([][]byte{section}, blocks...)...) }
	block := func(kind, total uint32, body int) []byte {
		return append(little.AppendUint32(little.AppendUint32(nil, kind), total), make([]byte, body)...)
	}
	caplen := func(n uint32) []byte {
		body := make([]byte, 40)
		little.PutUint32(body[12:], n)
		return ngBlock(little, blockEnhanced, body)
	}
	differs := ngBlock(little, 0x0bad, make([]byte, 8))
	differs[len(differs)-4]++
	for name, file := range map[string][]byte{
		"a packet of 4 GiB":              record(0xffffffff),
		"a packet of 256 KiB and one":    record(maxCaptured + 1),
		"a second of 2^32 microseconds":  append(slices.Clone(head), 1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0),
		"a block of nothing":             ng(block(7, 0, 20)),
		"a block of 11 bytes":            ng(block(7, 11, 20)),
		"a block of 13 bytes":            ng(block(7, 13, 20)),
		"two lengths":                    ng(differs),
		"a short interface":              ng(ngBlock(little, blockInterface, make([]byte, 4))),
		"no interface":                   ng(caplen(4)),
		"a packet longer than its block": ng(iface, caplen(21)),
		"a packet of 4 GiB in a block":   ng(iface, caplen(0xffffffff)),
		"a short packet's block":         ng(iface, ngBlock(little, blockEnhanced, make([]byte, 16))),
		"a short simple block":           ng(iface, ngBlock(little, blockSimple, nil)),
		"time in parts of 10^-20":        ng(ngInterface(little, linkEthernet, "e", 20)),
		"time in parts of 2^-64":         ng(ngInterface(little, linkEthernet, "e", 0x80|64)),
		"a time of year 2^50":            ng(ngInterface(little, linkEthernet, "e", 0), ngPacket(little, 0, 1<<63, nil)),
		"too many interfaces":            ng(bytes.Repeat(iface, maxIfaces+1)),
		"a section of 12 bytes":          slices.Concat(section, block(0x0a0d0d0a, 12, 0), []byte{0x4d, 0x3c, 0x2b, 0x1a}),
		"a section of no order":          append(block(0x0a0d0d0a, 28, 0), make([]byte, 20)...),
		"no section":                     block(0x0a0d0d0a, 28, 20),
	} {
		if got, err := read(file); err == nil || !strings.Contains(err.Error(), "the file is damaged: ") || len(got) != 0 {
			t.Errorf("%s: %d packets, %v", name, len(got), err)
		}
	}
	// A length that only the file's end contradicts.
	if _, err := read(ng(block(0x0bad, 0xfffffffc, 20))); err != ErrCut {
		t.Errorf("a block of 4 GiB: %v", err)
	}
	for name, text := range map[string]string{"": "too short", "abc": "too short", "GIF89a..": "this is no capture file"} {
		if _, err := read([]byte(name)); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, head := range []string{"\x1f\x8b\x08\x00", "\x28\xb5\x2f\xfd", "\xfd7zX", "BZh9"} {
		if _, err := read([]byte(head + "more")); err == nil || !strings.Contains(err.Error(), "compressed; unpack it first") {
			t.Errorf("%q: %v", head, err)
		}
	}
}

// What a frame holds that is no IP packet to this machine is no packet.
func TestFramesThatAreNotForThisHost(t *testing.T) {
	tagged := func(b []byte, tags ...uint16) []byte {
		f := make([]byte, 12)
		for _, tag := range tags {
			f = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(f, tag), 7)
		}
		return append(binary.BigEndian.AppendUint16(f, 0x0800), b...)
	}
	ether := framed(linkEthernet, 0)
	group, other, lies := slices.Clone(ether), framed(linkCooked, 0), slices.Clone(ether)
	group[0], other[1] = 1, 4 // multicast; outgoing
	lies[12], lies[13] = 0x86, 0xdd
	for name, c := range map[string]struct {
		link  uint16
		frame []byte
		taken bool
	}{
		"plain":           {linkEthernet, ether, true},
		"a tag":           {linkEthernet, tagged(onWire[0], 0x8100), true},
		"two tags":        {linkEthernet, tagged(onWire[0], 0x88a8, 0x8100), true},
		"five tags":       {linkEthernet, tagged(onWire[0], 0x8100, 0x8100, 0x8100, 0x8100, 0x8100), false},
		"half a tag":      {linkEthernet, tagged(nil, 0x8100)[:15], false},
		"to a group":      {linkEthernet, group, false},
		"another family":  {linkEthernet, lies, false},
		"short":           {linkEthernet, ether[:13], false},
		"outgoing":        {linkCooked, other, false},
		"no family":       {linkNull, append([]byte{7, 0, 0, 0}, onWire[0]...), false},
		"an unknown link": {147, ether, false},
		"empty":           {linkRaw, nil, false},
	} {
		p := &Pcap{}
		p.frame(&iface{link: c.link}, c.frame)
		if got := p.last.Packet; (len(got) > 0) != c.taken || c.taken && !bytes.Equal(got, onWire[0]) {
			t.Errorf("%s: %x", name, got)
		}
		if (p.Unread == 1) != (c.link == 147) {
			t.Errorf("%s: %d unread", name, p.Unread)
		}
	}
}

// A host that knocks at itself is not heard, so a capture of lo must not be taken for
// one of a wire.
func TestLoopbackOfLinux(t *testing.T) {
	self := [][]byte{
		testnet.UDP(netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("192.0.2.1:2"), nil),
		testnet.UDP(netip.MustParseAddrPort("[2001:db8::1]:1"), netip.MustParseAddrPort("[2001:db8::1]:2"), nil),
		testnet.UDP(netip.MustParseAddrPort("127.0.0.1:1"), netip.MustParseAddrPort("127.0.0.2:2"), nil),
		testnet.UDP(netip.MustParseAddrPort("[::1]:1"), netip.MustParseAddrPort("[::1]:2"), nil),
	}
	for family, wire := range onWire {
		for name, c := range map[string]struct {
			link     uint16
			at       int // where a cooked header has the hardware's type
			hardware uint16
			packet   []byte
			want     bool
		}{
			"lo": {linkEthernet, 0, 0, self[family], true}, "lo, its own addresses": {linkEthernet, 0, 0, self[2+family], true},
			"addresses taken out": {linkEthernet, 0, 0, wire, false}, "a wire": {linkEthernet, 10, 1, self[family], false},
			"cooked, lo": {linkCooked, 2, unix.ARPHRD_LOOPBACK, wire, true}, "cooked, a wire": {linkCooked, 2, unix.ARPHRD_ETHER, self[family], false},
			"cooked 2, lo": {linkCooked2, 8, unix.ARPHRD_LOOPBACK, wire, true}, "cooked 2, a wire": {linkCooked2, 8, unix.ARPHRD_ETHER, self[family], false},
			"a tunnel, or a BSD's lo": {linkNull, 0, 0, wire, false},
		} {
			f := framed(c.link, family)
			f = append(f[:len(f)-len(wire):len(f)-len(wire)], c.packet...)
			if c.hardware != 0 {
				binary.BigEndian.PutUint16(f[c.at:], c.hardware)
			}
			p := &Pcap{}
			p.frame(&iface{link: c.link}, f)
			if p.last.Loopback != c.want || len(p.last.Packet) == 0 {
				t.Errorf("%s, IPv%c: %v, want %v (%d bytes)", name, "46"[family], p.last.Loopback, c.want, len(p.last.Packet))
			}
		}
	}
}

// A damaged file ends in an error, never in a panic, a loop or a heap of memory.
func TestDamagedFiles(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for _, file := range [][]byte{pcapFile(binary.BigEndian, true, linkNull), pcapngFile(binary.LittleEndian, binary.BigEndian, linkEthernet, 6)} {
		for range 2000 {
			b := slices.Clone(file)
			for range 1 + random.IntN(4) {
				b[random.IntN(len(b))] = byte(random.Uint32())
			}
			if _, err := read(b); err == nil || err.Error() == "it does not end" {
				t.Fatalf("%x: %v", b, err)
			}
		}
	}
}

func TestPcapOfADescriptor(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	f.Write(pcapFile(binary.LittleEndian, true, linkRaw))
	f.Seek(0, io.SeekStart)
	p, err := NewPcap(int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	for _, packet := range onWire {
		if c, err := p.Next(); err != nil || !bytes.Equal(c.Packet, packet) {
			t.Fatalf("%+v, %v", c, err)
		}
	}
	if _, err := p.Next(); err != io.EOF {
		t.Error(err)
	}
	if _, err := NewPcap(1 << 20); err == nil || !strings.Contains(err.Error(), "reading the capture") {
		t.Error(err)
	}
}
