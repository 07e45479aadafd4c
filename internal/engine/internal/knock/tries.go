package knock

import (
	"hash/maphash"
	"net/netip"

	"github.com/sallyport/sallyport/internal/otp"
)

// tries counts wrong codes by where they came from, for one time step. It is a
// table of sets of four, in which who made the least tries makes room: whoever
// wants his own count forgotten has to fill it with forged addresses first.
type tries struct {
	seed   maphash.Seed
	number uint64 // the time step
	sets   *[1 << 14][4]try
}

type try struct {
	who   uint64
	count uint8
}

// mostTriesWide is how many wrong codes a network of IPv6 of 48 bits may send in a
// time step, where a source, of 64 bits there, may send otp.Tries. It is what a
// customer may get, and has 65,536 of the others.
const mostTriesWide = 20

func newTries() tries { return tries{seed: maphash.MakeSeed(), sets: new([1 << 14][4]try)} }

// turn forgets the counts of another time step. Each knock with digits tells it, and
// all codes have one time step: only the first of them may give new tries.
func (t *tries) turn(number uint64) {
	if t.number != number {
		t.number = number
		clear(t.sets[:])
	}
}

// at gives the count of a network at a door, making one where there is none.
func (t *tries) at(door int, src netip.Addr, bits int) *uint8 {
	network, _ := src.Prefix(bits)
	bytes := network.Addr().As16()
	var h maphash.Hash
	h.SetSeed(t.seed)
	h.WriteByte(byte(door))
	h.WriteByte(byte(door >> 8))
	h.WriteByte(byte(bits))
	h.Write(bytes[:])
	who := h.Sum64()
	set := &t.sets[who%uint64(len(t.sets))]
	least := &set[0]
	for i := range set {
		if set[i].who == who {
			return &set[i].count
		}
		if set[i].count < least.count {
			least = &set[i]
		}
	}
	*least = try{who: who}
	return &least.count
}

// over reports whether a source has no try left in this time step.
func (t *tries) over(door int, src netip.Addr) bool {
	if src.Is4() {
		return *t.at(door, src, 32) >= otp.Tries
	}
	return *t.at(door, src, 64) >= otp.Tries || *t.at(door, src, 48) >= mostTriesWide
}

// wrong counts one more.
func (t *tries) wrong(door int, src netip.Addr) {
	if src.Is4() {
		*t.at(door, src, 32) += 1
		return
	}
	*t.at(door, src, 64) += 1
	*t.at(door, src, 48) += 1
}
