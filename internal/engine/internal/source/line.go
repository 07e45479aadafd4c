//go:build linux

package source

import (
	"bytes"
	"encoding/binary"
	"math"
)

// Format says what stands before the kernel's own words in a line.
type Format uint8

// The formats.
const (
	Syslog  Format = iota // a file by rsyslog, of either time format: time, host, "kernel: "
	Kernel                // a record of /dev/kmsg: priority, number, time, flags
	Journal               // journalctl --output=short-unix --no-hostname: time, "kernel: "
)

// Lines says which lines count.
type Lines struct {
	Format Format
	Prefix string // how the words of the firewall's rule begin; empty: anyhow
	Host   string // the name of this host: in Syslog, lines of others are declined
	// Links are the indices of this host's interfaces by their names.
	Links map[string]int
	// Zone is how many seconds the local time of this host is ahead of UTC, shortly
	// before and shortly after now: traditional lines say no zone.
	Zone [2]int
}

const (
	// maxLine is the longest line in bytes that is looked at. The kernel's own
	// part has 1,024 at most (LOG_LINE_MAX), and with all IP and TCP options less.
	maxLine = 2048
	// maxPrefix is nftables' limit for the words before IN=, and iptables' is 29.
	maxPrefix = 127
	// maxLink is what an interface's name has at most (IFNAMSIZ less the NUL).
	maxLink = 15
	// slack is how many seconds the time of a line may differ from now. A log that is
	// edited, restored or synchronised comes again from its beginning, and an old knock
	// in it must not count as a new one.
	slack = 60
)

// Lengths of headers in bytes, without options.
const (
	ipv4Header = 20
	ipv6Header = 40
	tcpHeader  = 20
	udpHeader  = 8
	echoHeader = 8
	// maxHeaders is what a line becomes at most: IPv6 and TCP.
	maxHeaders = ipv6Header + tcpHeader
)

// parser reads the fields of one line in the order in which the kernel writes
// them (nf_log_dump_packet_common, dump_ipv4_packet, dump_ipv6_packet). That
// order is its defence: words of a rule's author, or of a program that logs, can
// hold fields too, and a line with any field twice, missing or out of place is no
// line of a firewall.
type parser struct {
	rest    []byte
	now     int64  // seconds since 1970
	other   bool   // the line is of another time than now
	packet  []byte // the headers that the line describes
	options int    // bytes of IPv4 options that the line shows
}

// read turns a line into the headers of the packet that it describes, so that it is
// judged by the same decoder as a packet from a wire. It reports whether the line is
// one of a firewall. The link is the interface's name; it and p.packet point into
// buffers of the caller's.
func (p *parser) read(line []byte, lines *Lines, room *[maxHeaders]byte) (link []byte, ok bool) {
	if len(line) > maxLine || !printable(line) {
		return nil, false
	}
	p.rest = line
	if !p.header(lines) || !p.prefix(lines.Prefix) {
		return nil, false
	}
	link, ok = p.incoming()
	return link, ok && p.hardware() && p.network(room) && p.transport() && p.tail()
}

// printable also declines the NUL with which the warden marks a torn line.
func printable(line []byte) bool {
	for _, c := range line {
		if c < ' ' || c == 0x7f {
			return false
		}
	}
	return true
}

// prefix takes the words of the rule's author, up to the first IN=. There is no
// other = in them unless the config says so: else another field hides there.
func (p *parser) prefix(required string) bool {
	if !p.word(required) {
		return false
	}
	at := bytes.Index(p.rest, []byte("IN="))
	if at < 0 || at+len(required) > maxPrefix || bytes.IndexByte(p.rest[:at], '=') >= 0 {
		return false
	}
	p.rest = p.rest[at:]
	return true
}

// word takes an exact text.
func (p *parser) word(text string) bool {
	if len(p.rest) < len(text) || string(p.rest[:len(text)]) != text {
		return false
	}
	p.rest = p.rest[len(text):]
	return true
}

// field takes "NAME=value " and gives the value. At the end of a line the space
// may be missing: some loggers strip it.
func (p *parser) field(name string) (value []byte, ok bool) {
	if !p.word(name) || !p.word("=") {
		return nil, false
	}
	value, p.rest, _ = bytes.Cut(p.rest, []byte(" "))
	return value, bytes.IndexByte(value, '=') < 0 // no field within another
}

// optional takes a field that may be missing, whatever its value.
func (p *parser) optional(name string) { p.field(name) }

// number takes a decimal field of at most limit.
func (p *parser) number(name string, limit uint64) (uint32, bool) {
	value, ok := p.field(name)
	if !ok {
		return 0, false
	}
	return decimal(value, limit)
}

func decimal(b []byte, limit uint64) (uint32, bool) {
	if len(b) == 0 || len(b) > 10 || len(b) > 1 && b[0] == '0' {
		return 0, false
	}
	var n uint64
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + uint64(c-'0')
	}
	return uint32(n), n <= limit
}

// incoming takes "IN=eth0 OUT= ": a packet with a way out is somebody else's, or
// our own.
func (p *parser) incoming() (link []byte, ok bool) {
	link, ok = p.field("IN")
	if !ok || len(link) == 0 || len(link) > maxLink {
		return nil, false
	}
	out, ok := p.field("OUT")
	if !ok || len(out) > 0 {
		return nil, false
	}
	p.optional("PHYSIN") // the port of a bridge
	return link, true
}

// hardware takes the link layer's addresses, which say nothing to us.
func (p *parser) hardware() bool {
	if _, decoded := p.field("MACSRC"); decoded {
		_, to := p.field("MACDST")
		if _, tagged := p.field("VPROTO"); tagged {
			p.optional("VID")
		}
		_, of := p.field("MACPROTO")
		return to && of
	}
	if _, ok := p.field("MAC"); ok {
		p.word(" ") // IPv6 without a link layer: two spaces
		p.optional("TUNNEL")
	}
	return true
}

// network takes the IP header's fields.
func (p *parser) network(room *[maxHeaders]byte) bool {
	src, ok1 := p.field("SRC")
	dst, ok2 := p.field("DST")
	length, ok3 := p.number("LEN", math.MaxUint16+ipv6Header)
	if !ok1 || !ok2 || !ok3 {
		return false
	}
	*room = [maxHeaders]byte{}
	if bytes.IndexByte(src, ':') >= 0 {
		p.packet = room[:ipv6Header]
		return address6(src, p.packet[8:]) && address6(dst, p.packet[24:]) && p.network6(length)
	}
	p.packet = room[:ipv4Header]
	return address4(src, p.packet[12:]) && address4(dst, p.packet[16:]) && p.network4(length)
}

func (p *parser) network4(length uint32) bool {
	_, tos := p.field("TOS")
	_, prec := p.field("PREC")
	_, ttl := p.number("TTL", math.MaxUint8)
	id, ok := p.number("ID", math.MaxUint16)
	if !tos || !prec || !ttl || !ok || length > math.MaxUint16 {
		return false
	}
	p.word("CE ")
	p.word("DF ")
	// What follows of a fragment, "MF " or "FRAG:", is no PROTO=: all of them decline.
	if p.word("OPT (") && !p.hex(&p.options) {
		return false
	}
	if p.options > 40 || int(length) < ipv4Header+p.options {
		return false
	}
	p.packet[0] = 4<<4 | ipv4Header/4
	binary.BigEndian.PutUint16(p.packet[2:], uint16(int(length)-p.options))
	binary.BigEndian.PutUint16(p.packet[4:], uint16(id))
	return true
}

func (p *parser) network6(length uint32) bool {
	_, class := p.number("TC", math.MaxUint8)
	_, hops := p.number("HOPLIMIT", math.MaxUint8)
	_, label := p.number("FLOWLBL", 1<<20-1)
	// A line that shows extension headers ("OPT (", "FRAG:") has no PROTO= here.
	if !class || !hops || !label || length < ipv6Header {
		return false
	}
	p.packet[0] = 6 << 4
	binary.BigEndian.PutUint16(p.packet[4:], uint16(length-ipv6Header))
	return true
}

// hex takes the digits of options up to ") " and counts their bytes.
func (p *parser) hex(n *int) bool {
	end := bytes.IndexByte(p.rest, ')')
	if end <= 0 || end%2 != 0 {
		return false
	}
	for _, c := range p.rest[:end] {
		if (c < '0' || c > '9') && (c < 'A' || c > 'F') {
			return false
		}
	}
	*n = end / 2
	p.rest = p.rest[end+1:]
	return p.word(" ") || len(p.rest) == 0
}

// transport takes what stands behind PROTO=.
func (p *parser) transport() bool {
	proto, ok := p.field("PROTO")
	six := p.packet[0]>>4 == 6
	switch {
	case !ok:
		return false
	case string(proto) == "TCP":
		return p.tcp()
	case string(proto) == "UDP":
		return p.udp(17)
	case string(proto) == "UDPLITE":
		return p.udp(136)
	case !six && string(proto) == "ICMP":
		return p.echo(1)
	case six && string(proto) == "ICMPv6":
		return p.echo(58)
	}
	n, ok := decimal(proto, math.MaxUint8)
	switch {
	case string(proto) == "ESP":
		n, ok = 50, true
	case string(proto) == "AH":
		n, ok = 51, true
	}
	if ok {
		p.append(byte(n), 0)
		p.optional("SPI")
	}
	return ok
}

// append gives room for a transport header of size bytes.
func (p *parser) append(proto byte, size int) []byte {
	at, b := len(p.packet), p.packet
	if b[0]>>4 == 6 {
		b[6] = proto
	} else {
		b[9] = proto
	}
	p.packet = b[:at+size]
	return p.packet[at:]
}

func (p *parser) ports(b []byte) bool {
	from, ok1 := p.number("SPT", math.MaxUint16)
	to, ok2 := p.number("DPT", math.MaxUint16)
	binary.BigEndian.PutUint16(b, uint16(from))
	binary.BigEndian.PutUint16(b[2:], uint16(to))
	return ok1 && ok2
}

// flags are in the kernel's order; the bits are those of the header's byte 13.
var flags = [...]struct {
	word string
	bit  byte
}{{"CWR ", 128}, {"ECE ", 64}, {"URG ", 32}, {"ACK ", 16}, {"PSH ", 8}, {"RST ", 4}, {"SYN ", 2}, {"FIN ", 1}}

func (p *parser) tcp() bool {
	b := p.append(6, tcpHeader)
	if !p.ports(b) {
		return false
	}
	if seq, shown := p.number("SEQ", math.MaxUint32); shown {
		binary.BigEndian.PutUint32(b[4:], seq)
		if _, ok := p.number("ACK", math.MaxUint32); !ok {
			return false
		}
	}
	_, window := p.number("WINDOW", math.MaxUint16)
	_, reserved := p.field("RES")
	b[12] = tcpHeader / 4 << 4
	p.word("AE ") // in RES= of older kernels; SYNs of AccECN have it (RFC 9768)
	for _, f := range flags {
		if p.word(f.word) {
			b[13] |= f.bit
		}
	}
	_, urgent := p.number("URGP", math.MaxUint16)
	var options int
	return window && reserved && urgent && (!p.word("OPT (") || p.hex(&options))
}

func (p *parser) udp(proto byte) bool {
	b := p.append(proto, udpHeader)
	if !p.ports(b) {
		return false
	}
	length, ok := p.number("LEN", math.MaxUint16)
	binary.BigEndian.PutUint16(b[4:], uint16(length))
	return ok
}

func (p *parser) echo(proto byte) bool {
	b := p.append(proto, echoHeader)
	kind, ok1 := p.number("TYPE", math.MaxUint8)
	code, ok2 := p.number("CODE", math.MaxUint8)
	id, ok3 := p.number("ID", math.MaxUint16)
	seq, ok4 := p.number("SEQ", math.MaxUint16)
	b[0], b[1] = byte(kind), byte(code)
	binary.BigEndian.PutUint16(b[4:], uint16(id))
	binary.BigEndian.PutUint16(b[6:], uint16(seq))
	return ok1 && ok2 && ok3 && ok4
}

// tail takes what rules can add, and then the line is at its end.
func (p *parser) tail() bool {
	if _, shown := p.number("UID", math.MaxUint32); shown {
		if _, ok := p.number("GID", math.MaxUint32); !ok {
			return false
		}
	}
	p.optional("MARK")
	return len(p.rest) == 0
}

// address4 reads "192.0.2.1" into to.
func address4(b []byte, to []byte) bool {
	for i := range 4 {
		part, rest, more := bytes.Cut(b, []byte("."))
		n, ok := decimal(part, math.MaxUint8)
		if !ok || more != (i < 3) {
			return false
		}
		to[i], b = byte(n), rest
	}
	return true
}

// address6 reads an address as the kernel logs it (%pI6), all 32 digits, into to.
func address6(b []byte, to []byte) bool {
	if len(b) != 39 {
		return false
	}
	for i := range 16 {
		at := i*2 + i/2
		high, ok1 := hexDigit(b[at])
		low, ok2 := hexDigit(b[at+1])
		if !ok1 || !ok2 || i%2 == 1 && i < 15 && b[at+2] != ':' {
			return false
		}
		to[i] = high<<4 | low
	}
	return true
}

func hexDigit(c byte) (byte, bool) {
	switch {
	case c >= '0' && c <= '9':
		return c - '0', true
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10, true
	}
	return 0, false
}
