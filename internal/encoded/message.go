package encoded

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/sallyport/sallyport/internal/sequence"
)

// Action is what a message asks for.
type Action uint8

// The actions, by their numbers on the wire.
const (
	Open   Action = 1 // let me reach services
	Close  Action = 2 // end what I opened
	Extend Action = 3 // keep open what I opened; open nothing that is not
)

// MaxFor is the longest time that can be asked for.
const MaxFor = 30 * 24 * time.Hour

// Message is what travels.
type Message struct {
	Action Action
	// Time is when it was made, in whole milliseconds. Of one person's messages no
	// two may share it: the second counts as a repeat.
	Time  time.Time
	For   time.Duration  // whole seconds, up to MaxFor; 0: as long as the service says
	Addr  netip.Addr     // whom to let in; the zero Addr: the address that it comes from
	Bits  int            // the length of a mask on it; 0: that address alone
	Port  uint16         // the one port; 0: all that the knock opens
	Proto sequence.Proto // of Port; 0 where that is
	// Payload is the operator's own, up to Shape.Payload bytes, of an Open alone: what
	// undoes a command reads nothing.
	Payload []byte
}

// The plaintext, all numbers big-endian:
//
//	 0  action | family << 4; the family is 0 (no address), 4 or 6
//	 1  time, milliseconds since 1970
//	 7  for, seconds
//	10  address, 16 bytes; IPv4 in the first four, the others zero
//	26  bits
//	27  protocol
//	28  port
//	30  length of the payload, and the payload, zero behind it; not with Payload 0
const (
	atKind, atTime, atFor, atAddr, atBits, atProto, atPort = 0, 1, 7, 10, 26, 27, 28

	fixed = 30
	// maxTime is the last millisecond whose nanoseconds fit in 63 bits: in the year 2262.
	maxTime = (1<<63 - 1) / 1_000_000
)

// Errors of what no message can say. Its maker is told; on a wire it declines.
var (
	errAction   = errors.New("there is no such action")
	errTime     = errors.New("the time is not between 1970 and 2262; look at this machine's clock")
	errFor      = fmt.Errorf("the time to stay open is whole seconds, up to %d days; a close has none", MaxFor/(24*time.Hour))
	errAddr     = errors.New("the address is no plain IPv4 or IPv6 address")
	errBits     = errors.New("the mask is longer than the address, or has no bit")
	errPort     = errors.New("the one port is a TCP or UDP port, 1 to 65535")
	errPayload  = errors.New("only what opens can have a payload")
	errReserved = errors.New("a byte that says nothing is not zero")
)

// check is the one rule book, for what is made and for what arrives.
func (m *Message) check(payload int) error {
	ms := m.Time.UnixMilli()
	switch {
	case m.Action < Open || m.Action > Extend:
		return errAction
	case ms < 1 || ms > maxTime:
		return errTime
	case m.For < 0 || m.For > MaxFor || m.For%time.Second != 0 || m.Action == Close && m.For != 0:
		return errFor
	case m.Addr.Is4In6() || m.Addr.Zone() != "":
		return errAddr
	case m.Bits < 0 || m.Bits >= 128 || m.Addr.Is4() && m.Bits >= 32:
		return errBits
	case (m.Proto == 0) != (m.Port == 0) || m.Proto != 0 && m.Proto != sequence.TCP && m.Proto != sequence.UDP:
		return errPort
	case m.Action != Open && len(m.Payload) > 0:
		return errPayload
	case len(m.Payload) > payload:
		return fmt.Errorf("the payload has %d bytes; the knock takes %d", len(m.Payload), payload)
	}
	return nil
}

// write fills a plaintext that is all zero.
func (m *Message) write(b []byte) {
	family := 0
	switch a := m.Addr; {
	case a.Is4():
		family = 4
	case a.Is6():
		family = 6
	}
	b[atKind] = byte(family<<4) | byte(m.Action)
	var time [8]byte
	binary.BigEndian.PutUint64(time[:], uint64(m.Time.UnixMilli()))
	copy(b[atTime:atFor], time[2:])
	seconds := uint32(m.For.Seconds())
	b[atFor] = byte(seconds >> 16)
	binary.BigEndian.PutUint16(b[atFor+1:], uint16(seconds))
	copy(b[atAddr:atBits], m.Addr.AsSlice())
	b[atBits], b[atProto] = byte(m.Bits), byte(m.Proto)
	binary.BigEndian.PutUint16(b[atPort:], m.Port)
	if len(b) > fixed {
		b[fixed] = byte(len(m.Payload))
		copy(b[fixed+1:], m.Payload)
	}
}

// read takes a plaintext apart. Its Payload is within b.
func (m *Message) read(b []byte) error {
	*m = Message{Action: Action(b[atKind] & 15), Bits: int(b[atBits]), Proto: sequence.Proto(b[atProto]), Port: binary.BigEndian.Uint16(b[atPort:])}
	ms := uint64(binary.BigEndian.Uint16(b[atTime:]))<<32 | uint64(binary.BigEndian.Uint32(b[atTime+2:]))
	if ms > maxTime {
		return errTime
	}
	m.Time = time.UnixMilli(int64(ms))
	m.For = time.Duration(uint32(b[atFor])<<16|uint32(binary.BigEndian.Uint16(b[atFor+1:]))) * time.Second
	size := 0
	switch b[atKind] >> 4 {
	case 0:
	case 4:
		size = 4
	case 6:
		size = 16
	default:
		return errAddr
	}
	m.Addr, _ = netip.AddrFromSlice(b[atAddr : atAddr+size])
	if !zero(b[atAddr+size : atBits]) {
		return errReserved
	}
	payload := len(b) - fixed - 1
	if payload > 0 {
		n := int(b[fixed])
		if n > payload || !zero(b[fixed+1+n:]) {
			return errReserved
		}
		m.Payload = b[fixed+1 : fixed+1+n : fixed+1+n]
	}
	return m.check(max(payload, 0))
}

func zero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
