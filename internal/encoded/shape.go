// Package encoded is the message that travels in port numbers: its shape, its
// seal and its text (doc/sallyport-encoded.7). It has no import of ours but the
// names of protocols, because the client and the engine share it.
package encoded

import "fmt"

const (
	// MaxPayload is the most bytes of the operator's own in one message.
	MaxPayload = 64
	// MaxSteps is the most parts of a message: the longest one at four bits each.
	MaxSteps = (overhead + fixed + 1 + MaxPayload) * 8 / minWidth

	// minWidth keeps a knock from having hundreds of steps, and maxWidth is what
	// no message needs more of: the shortest at 11 bits has 75,776 ports already.
	minWidth, maxWidth = 4, 11
	lastPort           = 65535
)

// Shape is what client and server must agree on, beside the door's name: with it
// every message has one length and every port one meaning.
type Shape struct {
	Base    uint16 // the first port, 1 or more
	Span    int    // how many ports from it on may be used
	Payload int    // bytes of the operator's own in each message, 0 to MaxPayload
}

// Size is the length of the sealed message in bytes: 50, and with a payload 51
// and its bytes.
func (s Shape) Size() int { return overhead + s.plain() }

func (s Shape) plain() int {
	if s.Payload == 0 {
		return fixed
	}
	return fixed + 1 + s.Payload
}

// Width is how many bits a part carries: the most, from 4 to 11, that the span
// has ports for; 0: it has too few.
func (s Shape) Width() int {
	for w := maxWidth; w >= minWidth; w-- {
		if s.ports(w) <= s.Span {
			return w
		}
	}
	return 0
}

// Steps is how many parts, and so packets, a message has; 0 where the shape is
// impossible.
func (s Shape) Steps() int {
	w := s.Width()
	if w == 0 {
		return 0
	}
	return s.steps(w)
}

func (s Shape) steps(width int) int { return (8*s.Size() + width - 1) / width }

func (s Shape) ports(width int) int { return s.steps(width) << width }

// Last is the last port that a message can use. What the span has beyond it stays
// free.
func (s Shape) Last() uint16 {
	return uint16(min(int(s.Base)+max(s.ports(max(s.Width(), minWidth)), 1)-1, lastPort))
}

// Least is the smallest span that such a payload fits into, in ports.
func (s Shape) Least() int { return s.ports(minWidth) }

// Check says what is wrong with a shape, and what would be right.
func (s Shape) Check() error {
	switch {
	case s.Payload < 0 || s.Payload > MaxPayload:
		return fmt.Errorf("a payload of %d bytes can't be; it has 0 to %d", s.Payload, MaxPayload)
	case s.Base == 0:
		return fmt.Errorf("the base is no port; it is 1 to %d", lastPort)
	case s.Width() == 0:
		return fmt.Errorf("a span of %d ports is too small for a message of %d bytes; it needs %d", s.Span, s.Size(), s.Least())
	case int(s.Base)+s.Span-1 > lastPort:
		return fmt.Errorf("%d ports from %d on end behind port %d; take a base of at most %d", s.Span, s.Base, lastPort, lastPort+1-s.Span)
	}
	return nil
}

// Index says which part of a message a port is, from 0 on, and what it carries.
// Not ok is a port outside, or one that no message uses.
func (s Shape) Index(port uint16) (index int, symbol uint16, ok bool) {
	p := s.Parts()
	return p.Index(port)
}

// Parts is a Shape worked out, for whoever looks at every packet.
type Parts struct {
	Steps  int
	base   int
	width  int
	unused uint16 // the bits of the last part that carry nothing
}

// Parts works the shape out, which Check must have taken.
func (s Shape) Parts() Parts {
	w := max(s.Width(), minWidth)
	p := Parts{Steps: s.steps(w), base: int(s.Base), width: w}
	p.unused = 1<<(p.Steps*w-8*s.Size()) - 1
	return p
}

// Index is Shape.Index.
func (p *Parts) Index(port uint16) (index int, symbol uint16, ok bool) {
	at := int(port) - p.base
	if at < 0 || at >= p.Steps<<p.width {
		return 0, 0, false
	}
	index, symbol = at>>p.width, uint16(at&(1<<p.width-1))
	// One message has one spelling: the last part's spare bits are zero.
	if index == p.Steps-1 && symbol&p.unused != 0 {
		return 0, 0, false
	}
	return index, symbol, true
}

// Port is the port that says that.
func (p *Parts) Port(index int, symbol uint16) uint16 {
	return uint16(p.base + index<<p.width + int(symbol))
}

// split cuts a message into symbols, the highest bits first.
func (p *Parts) split(to []uint16, message []byte) []uint16 {
	var have uint32
	bits := 0
	for _, b := range message {
		have, bits = have<<8|uint32(b), bits+8
		for bits >= p.width {
			bits -= p.width
			to = append(to, uint16(have>>bits)&(1<<p.width-1))
		}
	}
	if bits > 0 {
		to = append(to, uint16(have<<(p.width-bits))&(1<<p.width-1))
	}
	return to
}

// join is split's inverse; it fills the message.
func (p *Parts) join(message []byte, symbols []uint16) {
	var have uint32
	bits, n := 0, 0
	for _, s := range symbols {
		have, bits = have<<p.width|uint32(s), bits+p.width
		for bits >= 8 && n < len(message) {
			bits -= 8
			message[n] = byte(have >> bits)
			n++
		}
	}
}
