package spa

import (
	"crypto/subtle"
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

func (k sipKey) tag(b []byte) (tag [8]byte) {
	binary.LittleEndian.PutUint64(tag[:], siphash.Hash(k.k0, k.k1, b))
	return tag
}

// First reports whether the first tag is right, of a datagram of 48 bytes or
// more. It allocates nothing.
func (g *Gate) First(b []byte) bool {
	want := g.first.tag(b[8 : 8+gateSpan])
	return subtle.ConstantTimeCompare(b[:8], want[:]) == 1
}

// Second reports whether the second tag is right, of a datagram of 16 bytes or
// more. It allocates nothing.
func (g *Gate) Second(b []byte) bool {
	want := g.second.tag(b[gateSize:])
	return subtle.ConstantTimeCompare(b[8:gateSize], want[:]) == 1
}

// close fills in both tags.
func (g *Gate) close(b []byte) {
	second := g.second.tag(b[gateSize:])
	copy(b[8:], second[:])
	first := g.first.tag(b[8 : 8+gateSpan])
	copy(b, first[:])
}
