// Package otp derives knocks that are good for one time step from a secret: a
// sequence of ports, or the ports of an authenticator app's code. The
// derivation is specified in sallyport-otp(7), with vectors.
package otp

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"math"
	"net/netip"
	"slices"
	"time"
)

// Limits of a door and its secrets.
const (
	MinSecret, MaxSecret = 16, 64 // bytes
	MinPool              = 1024   // ports
	MinSteps, MaxSteps   = 3, 32
	MaxName              = 32 // bytes
	// MinBits is where guessing stops being an attack: 2^40 sequences of five
	// packets take two years at 100,000 packets a second.
	MinBits = 40
	// Window is how many time steps are good at a time: the present one and its
	// two neighbours.
	Window = 3
)

// ErrPool is what is wrong with a pool of fewer ports than MinPool.
var ErrPool = errors.New("the pool is too small")

// Span is an unbroken run of ports; Low and High belong to it.
type Span struct{ Low, High uint16 }

// Door is one knock of type "otp" that is a sequence: all that its sequences
// follow from besides a secret, the time and an address.
type Door struct {
	Name       string        // of the knock, 1 to 32 bytes
	Pool       []Span        // rising, and no two touch: as NewPool gives it
	Steps      int           // 3 to 32
	TimeStep   time.Duration // whole seconds, 1 s or more
	AnyAddress bool          // the ports do not depend on the sender's address
}

// NewPool gives the ports that are in some of the spans and not in leftOut, in
// the form that a Door has.
func NewPool(spans, leftOut []Span) []Span {
	var in [1 << 16]bool
	mark := func(spans []Span, value bool) {
		for _, s := range spans {
			for port := int(s.Low); port <= int(s.High); port++ {
				in[port] = value
			}
		}
	}
	mark(spans, true)
	mark(leftOut, false)
	in[0] = false // no packet of a client's goes there
	var pool []Span
	for port := range in {
		switch {
		case !in[port]:
		case in[port-1]:
			pool[len(pool)-1].High = uint16(port)
		default:
			pool = append(pool, Span{uint16(port), uint16(port)})
		}
	}
	return pool
}

// Check says what keeps a door from being safe to use.
func (d *Door) Check() error {
	last := 0
	for _, s := range d.Pool {
		if int(s.Low) <= last || s.High < s.Low {
			return errors.New("the ranges of the pool must rise without touching, from port 1 on")
		}
		last = int(s.High) + 1
	}
	switch {
	case d.Name == "" || len(d.Name) > MaxName:
		return fmt.Errorf("the name of the knock must have 1 to %d bytes", MaxName)
	case d.Steps < MinSteps || d.Steps > MaxSteps:
		return fmt.Errorf("it must have %d to %d steps", MinSteps, MaxSteps)
	case d.TimeStep < time.Second || d.TimeStep%time.Second != 0:
		return errors.New("the time step must be whole seconds")
	case d.size() < MinPool:
		return fmt.Errorf("%w: %d ports, and at least %d are needed", ErrPool, d.size(), MinPool)
	case d.Bits() < MinBits:
		return fmt.Errorf("%d steps out of %d ports are %.0f bits; they must be %d, so take more of either", d.Steps, d.size(), d.Bits(), MinBits)
	}
	return nil
}

// Number is the time step that a moment is in, counted from 1970; 0 before.
func (d *Door) Number(t time.Time) uint64 { return number(t, d.TimeStep) }

func number(t time.Time, step time.Duration) uint64 {
	return uint64(max(t.Unix(), 0)) / uint64(step/time.Second)
}

// Start is when a time step begins. Of numbers beyond the year 2262 it is the last
// moment that nanoseconds of 64 bits can tell.
func (d *Door) Start(number uint64) time.Time {
	return time.Unix(int64(min(number, math.MaxInt64/uint64(d.TimeStep))*uint64(d.TimeStep/time.Second)), 0)
}

// Ports appends the sequence of a time step for packets from an address, which
// a door with AnyAddress does not look at. The secret has 16 to 64 bytes.
func (d *Door) Ports(to []uint16, secret []byte, number uint64, addr netip.Addr) []uint16 {
	k := NewKey(secret)
	own := d.First(to[len(to):], k, number) // the ports before it are another's
	return append(to, d.Rest(own, k, number, addr)...)
}

// Bits is the binary logarithm of how many guesses open the door for one person,
// to somebody who knows its pool. A third of all is taken off, because the
// sequences of three time steps are good at a time; and the first port is not
// counted where the others depend on the address, because whoever saw the same
// person knock from elsewhere knows it.
func (d *Door) Bits() float64 {
	bits, from := -math.Log2(Window), 1
	if d.AnyAddress {
		from = 0
	}
	for i := from; i < d.Steps; i++ {
		bits += math.Log2(float64(max(d.size()-i, 1)))
	}
	return bits
}

// size is how many ports the pool has.
func (d *Door) size() int {
	n := 0
	for _, s := range d.Pool {
		n += int(s.High) - int(s.Low) + 1
	}
	return n
}

// at is the port at a place of the pool, counted from 0.
func (d *Door) at(place int) uint16 {
	for _, s := range d.Pool {
		if n := int(s.High) - int(s.Low) + 1; place >= n {
			place -= n
			continue
		}
		return s.Low + uint16(place)
	}
	return 0
}

// What a block of the derivation is for.
const (
	forFirst = 1 // the first port, which no address is part of
	forRest  = 2 // the other ports
	forTag   = 3 // the name under which a sequence is remembered as used up
)

// version is the first byte of every message.
const version = 1

// Key is a secret made ready: what it computes, but for the first time, allocates
// nothing. It is for one goroutine.
type Key struct {
	mac     hash.Hash
	message [1 + 1 + MaxName + 8 + 1 + 16 + 1 + 1]byte
	block   [sha256.Size]byte
}

// NewKey takes a secret of 16 to 64 bytes.
func NewKey(secret []byte) *Key {
	return &Key{mac: hmac.New(sha256.New, secret)}
}

// blockOf computes one block: the HMAC of every input, each at its own length,
// so that no two inputs have one encoding.
func (k *Key) blockOf(d *Door, number uint64, addr netip.Addr, what, counter byte) {
	name := d.Name[:min(len(d.Name), MaxName)]
	b := append(k.message[:0], version, byte(len(name)))
	b = append(b, name...)
	b = binary.BigEndian.AppendUint64(b, number)
	b = appendAddr(b, addr)
	b = append(b, what, counter)
	k.mac.Reset()
	k.mac.Write(b)
	k.mac.Sum(k.block[:0])
}

// appendAddr appends a family and 16 bytes; for the zero Addr 17 zeros.
func appendAddr(b []byte, addr netip.Addr) []byte {
	var bytes [16]byte
	family := byte(0)
	switch addr = addr.Unmap(); {
	case addr.Is4():
		four := addr.As4()
		copy(bytes[:], four[:])
		family = 4
	case addr.Is6():
		bytes, family = addr.As16(), 6
	}
	return append(append(b, family), bytes[:]...)
}

// bound is the address that a door's sequences depend on.
func (d *Door) bound(addr netip.Addr) netip.Addr {
	if d.AnyAddress {
		return netip.Addr{}
	}
	return addr
}

// First appends the first port of a time step's sequences, from whatever
// address: a server knows it before any packet has come.
func (d *Door) First(to []uint16, k *Key, number uint64) []uint16 {
	return d.draw(to, 1, k, number, netip.Addr{}, forFirst)
}

// Rest appends the other ports to the first one.
func (d *Door) Rest(first []uint16, k *Key, number uint64, addr netip.Addr) []uint16 {
	return d.draw(first, d.Steps-1, k, number, d.bound(addr), forRest)
}

// draw appends n ports that are not among them yet, each with the same
// probability: a number that would favour the low ports is thrown away, and so is
// one whose port was drawn before. A pool that Check takes runs through 256 blocks
// with a probability below 2^-1000; then ports are missing, and nothing matches.
func (d *Door) draw(to []uint16, n int, k *Key, number uint64, addr netip.Addr, what byte) []uint16 {
	size := d.size()
	if size < d.Steps {
		return to
	}
	fair := 1 << 16 / size * size
	for counter := 0; n > 0 && counter < 256; counter++ {
		k.blockOf(d, number, addr, what, byte(counter))
		for i := 0; n > 0 && i < len(k.block); i += 2 {
			x := int(binary.BigEndian.Uint16(k.block[i:]))
			if x >= fair {
				continue
			}
			if port := d.at(x % size); !slices.Contains(to, port) {
				to = append(to, port)
				n--
			}
		}
	}
	return to
}

// Tag is of one sequence, 16 bytes: the same for all its copies.
func (d *Door) Tag(k *Key, number uint64, addr netip.Addr) (tag [16]byte) {
	k.blockOf(d, number, d.bound(addr), forTag, 0)
	copy(tag[:], k.block[:])
	return tag
}
