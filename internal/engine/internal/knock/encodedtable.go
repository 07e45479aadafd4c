package knock

import (
	"hash/maphash"
	"math/bits"
	"net/netip"
	"time"

	"github.com/sallyport/sallyport/internal/encoded"
)

// sweepSlots is how many slots a newcomer to a full table looks at for collections
// that expired, and tickSlots how many a second.
const (
	sweepSlots = 4
	tickSlots  = 4096
)

// A part of the next message can equal the last one's, one in 2^width, and then
// looks like a copy of it. So up to mostKept copies with no pause behind them are
// parts of what follows; more are a repeat of the whole message, and a pause is a
// retransmission.
const (
	mostKept = 8
	pause    = int64(time.Second)
	// copyMark is on a symbol that came again since the message had its answer.
	copyMark = 1 << 15
)

// collection is the parts of one source's message to one knock: 56 bytes and its
// symbols. Indices count from 1, so that memory that nobody wrote means "none".
type collection struct {
	src   [16]byte // IPv4 as ::ffff:a.b.c.d
	until int64    // expired once the clock is past it
	door  int32
	stage uint16 // parts that are here; 0: the slot is free
	// done marks a message that had its answer. It stays for a while, so that its
	// copies begin nothing.
	done                 bool
	copies               uint8 // marked ones; of a done one
	copied               int64 // when the latest copy came
	chainPrev, chainNext int32 // the others in this hash bucket
	prev, next           int32 // the older and the newer of the level
}

// level is the queue that it waits in to be evicted: lower goes first.
func (c *collection) level() uint16 {
	if c.done {
		return 0
	}
	return c.stage
}

// queue is linked through prev and next.
type queue struct{ oldest, newest int32 }

// collections is a table in fixed memory. With size slots for messages of n parts
// it takes size x (56 + 2n) bytes and 8 to 16 for the buckets: 65,536 slots of 50
// parts 10.8 MiB, of 230 parts, the most, 33 MiB. It is allocated at once and
// untouched until used, so that an idle daemon has none of it resident.
type collections struct {
	seed    maphash.Seed // random, so that no one can aim at a bucket
	buckets []int32
	slots   []collection // slots[0] is never used
	symbols []uint16     // of each slot, one more than the symbol; 0: not here yet
	steps   int          // of the longest message
	levels  [encoded.MaxSteps + 1]queue
	used    int32 // slots ever used
	free    int32 // freed slots, linked through next
	hand    int32 // where the next sweep begins
	live    int
	evicted uint64
}

func newCollections(size, steps int) *collections {
	size = max(size, 1)
	return &collections{
		seed:    maphash.MakeSeed(),
		buckets: make([]int32, 2<<bits.Len(uint(size-1))),
		slots:   make([]collection, size+1),
		symbols: make([]uint16, (size+1)*steps),
		steps:   steps,
	}
}

func (t *collections) bucket(src *[16]byte, door int32) *int32 {
	h := maphash.Bytes(t.seed, src[:]) + uint64(door)*0x9e3779b97f4a7c15
	return &t.buckets[h&uint64(len(t.buckets)-1)]
}

// find gives a source's slot, or 0.
func (t *collections) find(addr netip.Addr, door int32) int32 {
	src := addr.As16()
	i := *t.bucket(&src, door)
	for i != 0 && (t.slots[i].src != src || t.slots[i].door != door) {
		i = t.slots[i].chainNext
	}
	return i
}

func (t *collections) full() bool { return t.free == 0 && int(t.used) == len(t.slots)-1 }

// add gives a source an empty slot, whose first part must be set at once. In a
// full table it takes the place of an expired one if it meets one, or else of the
// least advanced, the oldest among equals: a flood of forged packets can only push
// out what is no further than the flood's own.
func (t *collections) add(addr netip.Addr, door int32, now int64) int32 {
	if t.full() {
		t.sweep(sweepSlots, now)
	}
	if t.full() {
		t.remove(t.least())
		t.evicted++
	}
	i := t.free
	if i != 0 {
		t.free = t.slots[i].next
	} else {
		t.used++
		i = t.used
	}
	t.slots[i] = collection{src: addr.As16(), door: door}
	clear(t.of(i))
	t.chain(i)
	t.enqueue(i)
	t.live++
	return i
}

func (t *collections) of(i int32) []uint16 { return t.symbols[int(i)*t.steps : (int(i)+1)*t.steps] }

// set adds a part that is not there yet.
func (t *collections) set(i int32, index int, symbol uint16) {
	t.of(i)[index] = symbol + 1
	t.dequeue(i)
	t.slots[i].stage++
	t.enqueue(i)
}

// has gives the part at an index, if it is there.
func (t *collections) has(i int32, index int) (symbol uint16, ok bool) {
	s := t.of(i)[index] &^ copyMark
	return s - 1, s != 0
}

// finish marks a message that had its answer.
func (t *collections) finish(i int32, until int64) {
	t.dequeue(i)
	t.slots[i].done, t.slots[i].until = true, until
	t.enqueue(i)
}

// again notes a copy of a part of a message that had its answer.
func (t *collections) again(i int32, index int, now int64) {
	c, symbols := &t.slots[i], t.of(i)
	if now-c.copied > pause {
		c.copies = 0
		for j := range symbols {
			symbols[j] &^= copyMark
		}
	}
	c.copied = now
	if symbols[index]&copyMark == 0 {
		symbols[index] |= copyMark
		c.copies++
	}
}

// next begins a slot anew with the part that contradicts a message which had its
// answer.
func (t *collections) next(i int32, index int, now int64) {
	c, symbols := &t.slots[i], t.of(i)
	keep := c.copies <= mostKept && now-c.copied <= pause && symbols[index]&copyMark == 0
	t.dequeue(i)
	c.stage, c.done, c.copies = 0, false, 0
	for j, s := range symbols {
		if symbols[j] = 0; keep && s&copyMark != 0 {
			symbols[j] = s &^ copyMark
			c.stage++
		}
	}
	t.enqueue(i)
}

// empty begins a slot anew.
func (t *collections) empty(i int32) {
	t.dequeue(i)
	t.slots[i].stage, t.slots[i].done = 0, false
	clear(t.of(i))
	t.enqueue(i)
}

func (t *collections) least() int32 {
	for _, l := range t.levels {
		if l.oldest != 0 {
			return l.oldest
		}
	}
	return 0
}

// sweep frees the expired among the next few slots.
func (t *collections) sweep(slots int, now int64) {
	for range min(slots, int(t.used)) {
		t.hand = t.hand%t.used + 1
		if c := &t.slots[t.hand]; c.stage != 0 && now > c.until {
			t.remove(t.hand)
		}
	}
}

func (t *collections) remove(i int32) {
	t.unchain(i)
	t.dequeue(i)
	t.slots[i] = collection{next: t.free}
	t.free = i
	t.live--
}

func (t *collections) chain(i int32) {
	c := &t.slots[i]
	head := t.bucket(&c.src, c.door)
	c.chainPrev, c.chainNext = 0, *head
	if *head != 0 {
		t.slots[*head].chainPrev = i
	}
	*head = i
}

func (t *collections) unchain(i int32) {
	c := &t.slots[i]
	if c.chainNext != 0 {
		t.slots[c.chainNext].chainPrev = c.chainPrev
	}
	if c.chainPrev != 0 {
		t.slots[c.chainPrev].chainNext = c.chainNext
	} else {
		*t.bucket(&c.src, c.door) = c.chainNext
	}
}

// enqueue makes a slot the newest of its level.
func (t *collections) enqueue(i int32) {
	c := &t.slots[i]
	l := &t.levels[c.level()]
	c.prev, c.next = l.newest, 0
	if l.newest != 0 {
		t.slots[l.newest].next = i
	} else {
		l.oldest = i
	}
	l.newest = i
}

func (t *collections) dequeue(i int32) {
	c := &t.slots[i]
	l := &t.levels[c.level()]
	if c.prev != 0 {
		t.slots[c.prev].next = c.next
	} else {
		l.oldest = c.next
	}
	if c.next != 0 {
		t.slots[c.next].prev = c.prev
	} else {
		l.newest = c.prev
	}
}
