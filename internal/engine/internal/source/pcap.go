//go:build linux

package source

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"time"

	"golang.org/x/sys/unix"
)

// The magic numbers that begin a file, read as big-endian (pcap-savefile(5), and
// the pcapng draft, draft-ietf-opsawg-pcapng).
const (
	magicMicro   = 0xa1b2c3d4
	magicNano    = 0xa1b23c4d
	magicSection = 0x0a0d0d0a // the same from both ends
	magicOrder   = 0x1a2b3c4d // in the section, tells its byte order
)

const (
	// maxCaptured is tcpdump's longest packet in bytes (MAXIMUM_SNAPLEN); a greater
	// length is a damaged file's, or somebody's who wants our memory.
	maxCaptured = 256 << 10
	// maxIfaces bounds the interfaces of a section, of which each is remembered.
	maxIfaces = 1024
	// maxOptions bounds what is read of an interface's description, in bytes.
	maxOptions = 64 << 10
	// maxSeconds is the latest time that nanoseconds since 1970 can say in an int64,
	// less a day.
	maxSeconds = 1<<63/1_000_000_000 - 86400
)

// ErrCut says that a capture ends in the middle of a packet, as one that was
// copied while it was written. What was read before is whole.
var ErrCut = errors.New("the file is cut: it ends in the middle of a packet, and what would follow is missing")

// damaged is the error of a file whose lengths can't be right.
func damaged(format string, args ...any) error {
	return fmt.Errorf("the file is damaged: "+format+"; what follows can't be read", args...)
}

// Pcap reads the packets of a capture file, pcap or pcapng, which a stranger may
// have made. It holds one packet and a bounded table of interfaces.
type Pcap struct {
	in     *bufio.Reader
	order  binary.ByteOrder
	next   func() error // reads up to the next packet of the format
	ifaces []iface
	now    int64 // ns of the last packet that has a time
	last   Captured
	buf    []byte
	// Unread counts packets of links that are not read.
	Unread uint64
}

// Captured is one packet of a file.
type Captured struct {
	Time time.Time // UTC
	// Packet is from its IP header on, valid until the next call. It is empty where
	// the frame holds no IP or was to another machine.
	Packet    []byte
	Interface string // its name, where the file has it; not made printable
	Loopback  bool   // a Linux host sent it to itself
}

// iface is where packets were captured.
type iface struct {
	name   string
	link   uint16
	snap   uint32
	tick   byte  // pcapng's if_tsresol
	offset int64 // seconds
}

// NewPcap reads a capture from an open descriptor, which the caller keeps. The
// error says that it is none, or that it ends before its first header does.
func NewPcap(fd int) (*Pcap, error) { return newPcap(descriptor(fd)) }

// descriptor reads with read(2) alone, which is what the sandbox leaves.
type descriptor int

// Read makes a descriptor an io.Reader.
func (d descriptor) Read(b []byte) (int, error) {
	for {
		n, err := unix.Read(int(d), b)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return 0, fmt.Errorf("reading the capture: %w", err)
		case n == 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}

func newPcap(r io.Reader) (*Pcap, error) {
	p := &Pcap{in: bufio.NewReaderSize(r, 64<<10), buf: make([]byte, maxCaptured)}
	head, err := p.in.Peek(4)
	if err != nil && err != io.EOF {
		return nil, err
	}
	if len(head) < 4 {
		return nil, errors.New("the file is empty or too short: it is no capture")
	}
	switch big, little := binary.BigEndian.Uint32(head), binary.LittleEndian.Uint32(head); {
	case big == magicSection:
		p.next = p.block
		return p, nil
	case big == magicMicro || big == magicNano:
		p.order = binary.BigEndian
	case little == magicMicro || little == magicNano:
		p.order = binary.LittleEndian
	case compressed(big):
		return nil, errors.New("the file is compressed; unpack it first, as 'zcat FILE | sallyport replay -' does with gzip's")
	default:
		return nil, errors.New("this is no capture file: it begins neither as pcap nor as pcapng; 'tcpdump -w FILE' writes one")
	}
	return p, p.classic(p.order.Uint32(head) == magicNano)
}

// compressed reports whether a file begins as those of gzip, zstd, xz or bzip2 do:
// captures are rotated and sent around that way.
func compressed(head uint32) bool {
	return head>>16 == 0x1f8b || head == 0x28b52ffd || head == 0xfd377a58 || head>>8 == 0x425a68
}

// Next gives the next packet. At the end of a whole file the error is io.EOF, of
// one that was cut ErrCut; any other says what is wrong with it.
func (p *Pcap) Next() (*Captured, error) {
	p.last = Captured{}
	if err := p.next(); err != nil {
		return nil, err
	}
	p.last.Time = time.Unix(0, p.now).UTC()
	return &p.last, nil
}

// take reads n bytes, at most maxCaptured, of something that has begun.
func (p *Pcap) take(n int) ([]byte, error) {
	b := p.buf[:n]
	_, err := io.ReadFull(p.in, b)
	return b, cut(err)
}

// cut makes an end of the file in the middle of something ErrCut.
func cut(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return ErrCut
	}
	return err
}

// atEnd reports whether the file ends here, between two packets.
func (p *Pcap) atEnd() bool {
	_, err := p.in.Peek(1)
	return err == io.EOF
}

// classic reads the header of a pcap file: magic, version (2 and 2 bytes), zone,
// accuracy, longest packet, link type.
func (p *Pcap) classic(nano bool) error {
	head, err := p.take(24)
	if err != nil {
		return err
	}
	tick := byte(6)
	if nano {
		tick = 9
	}
	// Above the link type are bits about a checksum behind each frame.
	p.ifaces = []iface{{link: uint16(p.order.Uint32(head[20:])), tick: tick}}
	p.next = p.record
	return nil
}

// record reads a pcap packet: seconds, fraction, captured length, its length.
func (p *Pcap) record() error {
	if p.atEnd() {
		return io.EOF
	}
	head, err := p.take(16)
	if err != nil {
		return err
	}
	seconds, fraction, n := p.order.Uint32(head), p.order.Uint32(head[4:]), p.order.Uint32(head[8:])
	if n > maxCaptured {
		return damaged("a packet of %d bytes is in it, and none is longer than %d", n, maxCaptured)
	}
	unit := int64(time.Microsecond)
	if p.ifaces[0].tick == 9 {
		unit = 1
	}
	if int64(fraction)*unit >= int64(time.Second) {
		return damaged("a packet's time has %d parts of a second", fraction)
	}
	p.now = int64(seconds)*int64(time.Second) + int64(fraction)*unit
	b, err := p.take(int(n))
	if err == nil {
		p.frame(&p.ifaces[0], b)
	}
	return err
}

// The types of pcapng blocks that are read; the others are passed over.
const (
	blockInterface = 1
	blockPacket    = 2 // obsolete, and still met
	blockSimple    = 3
	blockEnhanced  = 6
)

// block reads pcapng blocks up to one with a packet. Each is its type, its length,
// a body, and its length again; a length counts all of it.
func (p *Pcap) block() error {
	for !p.atEnd() {
		head, err := p.take(8)
		if err != nil {
			return err
		}
		if binary.BigEndian.Uint32(head) == magicSection {
			if err := p.section(head); err != nil {
				return err
			}
			continue
		}
		if p.order == nil {
			return damaged("a block stands before its first section")
		}
		kind, total := p.order.Uint32(head), p.order.Uint32(head[4:])
		if total < 12 || total%4 != 0 {
			return damaged("a block of %d bytes is in it", total)
		}
		found, err := p.body(kind, int64(total)-12)
		if err != nil {
			return err
		}
		if err := p.closed(total); err != nil || found {
			return err
		}
	}
	return io.EOF
}

// section begins another one, with its own byte order and interfaces. What is in
// its header beyond that is passed over.
func (p *Pcap) section(head []byte) error {
	length := [4]byte(head[4:])
	b, err := p.take(4)
	if err != nil {
		return err
	}
	switch {
	case binary.BigEndian.Uint32(b) == magicOrder:
		p.order = binary.BigEndian
	case binary.LittleEndian.Uint32(b) == magicOrder:
		p.order = binary.LittleEndian
	default:
		return damaged("a section does not tell its byte order")
	}
	total := p.order.Uint32(length[:])
	if total < 28 || total%4 != 0 {
		return damaged("the header of a section has %d bytes", total)
	}
	p.ifaces = p.ifaces[:0]
	if err := p.skip(int64(total) - 16); err != nil {
		return err
	}
	return p.closed(total)
}

func (p *Pcap) skip(n int64) error {
	_, err := io.CopyN(io.Discard, p.in, n)
	return cut(err)
}

// closed reads the length at the end of a block.
func (p *Pcap) closed(total uint32) error {
	// Not take: the packet that was found stands in its buffer.
	var b [4]byte
	if _, err := io.ReadFull(p.in, b[:]); err != nil {
		return cut(err)
	}
	if got := p.order.Uint32(b[:]); got != total {
		return damaged("a block says that it has %d bytes and, at its end, %d", total, got)
	}
	return nil
}

// body reads n bytes of a block, and reports whether they are a packet.
func (p *Pcap) body(kind uint32, n int64) (found bool, err error) {
	switch kind {
	case blockInterface:
		return false, p.describe(n)
	case blockEnhanced, blockPacket:
		return true, p.enhanced(kind, n)
	case blockSimple:
		return true, p.simple(n)
	}
	return false, p.skip(n)
}

// describe reads an interface: link type, 2 bytes of nothing, longest packet,
// options.
func (p *Pcap) describe(n int64) error {
	if n < 8 {
		return damaged("an interface is described in %d bytes", n)
	}
	if len(p.ifaces) >= maxIfaces {
		return damaged("more than %d interfaces are in one section", maxIfaces)
	}
	b, err := p.take(int(min(n, maxOptions)))
	if err != nil {
		return err
	}
	i := iface{link: p.order.Uint16(b), snap: p.order.Uint32(b[4:]), tick: 6}
	p.options(&i, b[8:])
	if i.tick&0x80 == 0 && i.tick > 19 || i.tick&0x7f > 63 {
		return damaged("an interface counts time in parts that nobody can")
	}
	p.ifaces = append(p.ifaces, i)
	return p.skip(n - int64(len(b)))
}

// The options of an interface that are read.
const (
	optionEnd    = 0
	optionName   = 2
	optionTick   = 9
	optionOffset = 14
)

// maxName is what is kept of an interface's name, in bytes; Linux has 15.
const maxName = 64

// options reads code, length and a value that is padded to 4 bytes, again and
// again. What does not fit ends it: an option is never needed.
func (p *Pcap) options(i *iface, b []byte) {
	for len(b) >= 4 {
		code, n := p.order.Uint16(b), int(p.order.Uint16(b[2:]))
		b = b[4:]
		if code == optionEnd || n > len(b) {
			return
		}
		switch value := b[:n]; {
		case code == optionName && n <= maxName:
			i.name = string(value)
		case code == optionTick && n == 1:
			i.tick = value[0]
		case code == optionOffset && n == 8:
			i.offset = int64(p.order.Uint64(value))
		}
		b = b[min((n+3)&^3, len(b)):]
	}
}

// enhanced reads interface, time (high and low word), captured length, its
// length, the packet, options. The obsolete block has a number of drops in the
// upper half of the interface's field.
func (p *Pcap) enhanced(kind uint32, n int64) error {
	if n < 20 {
		return damaged("a packet's block has %d bytes", n)
	}
	head, err := p.take(20)
	if err != nil {
		return err
	}
	number := p.order.Uint32(head)
	if kind == blockPacket {
		number = uint32(p.order.Uint16(head))
	}
	if int64(number) >= int64(len(p.ifaces)) {
		return damaged("a packet is of interface %d, which is not described", number)
	}
	i := &p.ifaces[number]
	stamp := uint64(p.order.Uint32(head[4:]))<<32 | uint64(p.order.Uint32(head[8:]))
	if p.now, err = i.nanoseconds(stamp); err != nil {
		return err
	}
	return p.data(i, int64(p.order.Uint32(head[12:])), n-20)
}

// simple reads a packet's length and the packet, of the first interface. It has
// no time, so it gets that of the one before.
func (p *Pcap) simple(n int64) error {
	if n < 4 || len(p.ifaces) == 0 {
		return damaged("a simple packet's block has %d bytes, with %d interfaces", n, len(p.ifaces))
	}
	head, err := p.take(4)
	if err != nil {
		return err
	}
	i := &p.ifaces[0]
	size := min(int64(p.order.Uint32(head)), n-4)
	if i.snap > 0 {
		size = min(size, int64(i.snap))
	}
	return p.data(i, size, n-4)
}

// data reads a packet of size bytes and passes over what is left of its block.
func (p *Pcap) data(i *iface, size, left int64) error {
	if size > left || size > maxCaptured {
		return damaged("a packet of %d bytes is in a block that has room for %d", size, left)
	}
	b, err := p.take(int(size))
	if err != nil {
		return err
	}
	p.frame(i, b)
	return p.skip(left - size)
}

// nanoseconds turns an interface's count of time into nanoseconds since 1970.
func (i *iface) nanoseconds(stamp uint64) (int64, error) {
	var seconds, rest uint64 // rest is nanoseconds
	if n := uint(i.tick & 0x7f); i.tick&0x80 != 0 {
		seconds = stamp >> n
		high, low := bits.Mul64(stamp&(1<<n-1), uint64(time.Second))
		rest = high<<(64-n) | low>>n
	} else {
		unit := uint64(1)
		for range n {
			unit *= 10
		}
		seconds = stamp / unit
		high, low := bits.Mul64(stamp%unit, uint64(time.Second))
		rest, _ = bits.Div64(high, low, unit)
	}
	whole := int64(min(seconds, maxSeconds)) + min(max(i.offset, -maxSeconds), maxSeconds)
	if whole < 0 || whole >= maxSeconds {
		return 0, damaged("a packet's time is no time of this age")
	}
	return whole*int64(time.Second) + int64(rest), nil
}
