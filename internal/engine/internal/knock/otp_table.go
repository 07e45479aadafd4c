package knock

import (
	"hash/maphash"
	"math/bits"
	"net/netip"
)

// attempt is one source's progress at one password. Indices count from 1, so that
// memory that nobody wrote yet means "none".
type attempt struct {
	src    [16]byte // IPv4 as ::ffff:a.b.c.d
	until  int64    // expired once the clock is past it
	number uint64   // the time step that it is of; of a code not known before its end
	took   uint64   // the last packet that was one of its steps, or a copy
	door   int32
	person int32 // of the door's; of a code not known before its end
	stage  uint8 // steps made; 0: the slot is free
	// The others of this hash bucket, and the older and the newer of this stage.
	chainPrev, chainNext, prev, next int32
}

// made is the packet that made a step.
type made struct {
	id   uint64
	port uint16 // that the step has, whether it was made or not
	when uint32 // in milliseconds modulo 2^32
}

// attempts holds attempts in fixed memory, 80 bytes and 16 for each step. It is
// allocated at once and untouched until used, so an idle daemon has none of it
// resident.
type attempts struct {
	// proves says that a second step is made by nobody without a secret: those who
	// made it leave for no newcomer.
	proves  bool
	seed    maphash.Seed // random, so that no one can aim at a bucket
	buckets []int32
	slots   []attempt // slots[0] is never used
	steps   []made    // most for each slot
	most    int       // steps of the longest password
	oldest  [33]int32 // by stage: the queue in which they wait to be evicted
	newest  [33]int32
	used    int32 // slots ever used
	free    int32 // freed slots, linked through next
	live    int
	evicted uint64
}

func newAttempts(size, most int, proves bool) *attempts {
	return &attempts{
		proves: proves, seed: maphash.MakeSeed(), most: most,
		buckets: make([]int32, 2<<bits.Len(uint(size-1))),
		slots:   make([]attempt, size+1),
		steps:   make([]made, (size+1)*most),
	}
}

func (t *attempts) bucket(src *[16]byte) *int32 {
	return &t.buckets[maphash.Bytes(t.seed, src[:])&uint64(len(t.buckets)-1)]
}

// stepsOf gives the steps of a slot.
func (t *attempts) stepsOf(i int32) []made {
	return t.steps[int(i)*t.most : int(i+1)*t.most : int(i+1)*t.most]
}

// add puts an attempt in, and gives its slot, or 0 where there is no room for it.
// In a full table the least advanced makes room, the oldest among equals.
func (t *attempts) add(a attempt) int32 {
	if t.free == 0 && int(t.used) == len(t.slots)-1 && !t.evict(a.stage) {
		return 0
	}
	i := t.free
	if i != 0 {
		t.free = t.slots[i].next
	} else {
		t.used++
		i = t.used
	}
	t.slots[i] = a
	head := t.bucket(&a.src)
	t.slots[i].chainPrev, t.slots[i].chainNext = 0, *head
	t.slots[*head].chainPrev = i // of slot 0 nobody reads it
	*head = i
	t.enqueue(i)
	t.live++
	return i
}

// evict makes room for a newcomer at a stage.
func (t *attempts) evict(stage uint8) bool {
	for level, i := range t.oldest {
		if i == 0 {
			continue
		}
		if t.proves && level > int(stage) {
			return false
		}
		t.remove(i)
		t.evicted++
		return true
	}
	return false
}

func (t *attempts) remove(i int32) {
	a := &t.slots[i]
	if a.chainNext != 0 {
		t.slots[a.chainNext].chainPrev = a.chainPrev
	}
	if a.chainPrev != 0 {
		t.slots[a.chainPrev].chainNext = a.chainNext
	} else {
		*t.bucket(&a.src) = a.chainNext
	}
	t.dequeue(i)
	*a = attempt{next: t.free}
	t.free = i
	t.live--
}

// enqueue makes an attempt the newest of its stage.
func (t *attempts) enqueue(i int32) {
	a := &t.slots[i]
	a.prev, a.next = t.newest[a.stage], 0
	if a.prev != 0 {
		t.slots[a.prev].next = i
	} else {
		t.oldest[a.stage] = i
	}
	t.newest[a.stage] = i
}

func (t *attempts) dequeue(i int32) {
	a := &t.slots[i]
	if a.prev != 0 {
		t.slots[a.prev].next = a.next
	} else {
		t.oldest[a.stage] = a.next
	}
	if a.next != 0 {
		t.slots[a.next].prev = a.prev
	} else {
		t.newest[a.stage] = a.prev
	}
}

// expire drops the attempts whose time is over: about 0.2 ms for 65,536.
func (t *attempts) expire(now int64) {
	for i := int32(1); i <= t.used; i++ {
		if a := &t.slots[i]; a.stage != 0 && now > a.until {
			t.remove(i)
		}
	}
}

// tries counts wrong codes by where they came from, for one time step. It is a
// table of sets of four, in which who made the least tries makes room: whoever
// wants his own count forgotten has to fill it with forged addresses first.
type tries struct {
	seed maphash.Seed
	sets *[1 << 14][4]try
}

type try struct {
	who   uint64
	count uint8
}

// How many wrong codes one source may send in a time step. A network of IPv6 of
// 48 bits is what a customer may get, and has 65,536 of 64 bits.
const (
	mostTries     = 5
	mostTriesWide = 20
)

func newTries() tries { return tries{maphash.MakeSeed(), new([1 << 14][4]try)} }

func (t *tries) clear() { clear(t.sets[:]) }

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
		return *t.at(door, src, 32) >= mostTries
	}
	return *t.at(door, src, 64) >= mostTries || *t.at(door, src, 48) >= mostTriesWide
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
