package spa

import (
	"encoding/binary"

	"github.com/dchest/siphash"
)

// gateKeySize is two SipHash keys, in bytes.
const gateKeySize = 32

// Gate has the keys of the first 16 bytes of a datagram. It is a filter and no
// authenticator: every client of the server holds it. The first tag lies at a
// constant place over a constant length, so that a kernel program can check it.
type Gate struct{ first, second sipKey }

type sipKey struct{ k0, k1 uint64 }

func newGate(b [gateKeySize]byte) Gate {
	at := func(i int) uint64 { return binary.LittleEndian.Uint64(b[i:]) } // the order of the SipHash paper
	return Gate{sipKey{at(0), at(8)}, sipKey{at(16), at(24)}}
}

func (k sipKey) tag(b []byte) uint64 { return siphash.Hash(k.k0, k.k1, b) }

// First reports whether the first tag is right, of a datagram of 48 bytes or
// more. It allocates nothing.
func (g *Gate) First(b []byte) bool {
	return same(b, g.first.tag(b[8:8+gateSpan]))
}

// Second reports whether the second tag is right, of a datagram of 16 bytes or
// more. It allocates nothing.
func (g *Gate) Second(b []byte) bool {
	return same(b[8:], g.second.tag(b[gateSize:]))
}

// same compares a tag in constant time, so that nobody can find the right one
// byte by byte: it is one word, whose comparison takes one instruction.
func same(b []byte, tag uint64) bool { return binary.LittleEndian.Uint64(b)^tag == 0 }

// close fills in both tags.
func (g *Gate) close(b []byte) {
	binary.LittleEndian.PutUint64(b[8:], g.second.tag(b[gateSize:]))
	binary.LittleEndian.PutUint64(b, g.first.tag(b[8:8+gateSpan]))
}
