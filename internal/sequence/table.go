package sequence

import (
	"hash/maphash"
	"math/bits"
)

// sweepSlots is how many slots a newcomer to a full table looks at for
// attempts that expired: after size/4 newcomers the whole table has been looked
// at, which a flood of 60,000 a second does in 0.3 s. Each slot is a cache miss.
const sweepSlots = 4

// attempt is one source's progress at one sequence: 48 bytes. Indices count
// from 1, so that memory that nobody wrote yet means "none".
type attempt struct {
	src   [16]byte // IPv4 as ::ffff:a.b.c.d
	until int64    // expired once the clock is past it
	rule  int32
	stage uint8 // steps made; 0: the slot is free
	// done marks a completed attempt. It stays until Within has passed once
	// more, or room is needed, so that late copies of its steps (a bridge's,
	// a retransmitted SYN) don't complete the sequence a second time.
	done                 bool
	chainPrev, chainNext int32 // the others in this hash bucket
	prev, next           int32 // the older and the newer at this level
}

// level is the list that an attempt waits in to be evicted: lower goes first.
func (a *attempt) level() uint8 {
	if a.done {
		return 0
	}
	return a.stage
}

// list is a queue of attempts through prev and next, the oldest first.
type list struct{ oldest, newest int32 }

// table holds attempts in fixed memory. For size attempts of sequences of up
// to n steps that is size x (48 + 12n) bytes, and 8 to 16 bytes for the
// buckets: 65,536 attempts of 4 steps take 6.5 MiB, of 32 steps 27.5 MiB. It is
// allocated at once and untouched until used, so an idle daemon has none of
// it resident.
type table struct {
	seed    maphash.Seed // random, so that no one can aim at a bucket
	buckets []int32
	slots   []attempt // slots[0] is never used
	ids     []uint64  // steps per slot: the identity of the packet that made a step
	times   []uint32  // steps per slot: when, in milliseconds modulo 2^32
	steps   int       // of the longest sequence
	levels  [MaxSteps + 1]list
	used    int32 // slots ever used
	free    int32 // freed slots, linked through next
	hand    int32 // where the next sweep begins
	live    int
	evicted uint64
}

func newTable(size, steps int) table {
	size = max(size, 1)
	return table{
		seed:    maphash.MakeSeed(),
		buckets: make([]int32, 2<<bits.Len(uint(size-1))),
		slots:   make([]attempt, size+1),
		ids:     make([]uint64, (size+1)*steps),
		times:   make([]uint32, (size+1)*steps),
		steps:   steps,
	}
}

func (t *table) bucket(src *[16]byte) *int32 {
	return &t.buckets[maphash.Bytes(t.seed, src[:])&uint64(len(t.buckets)-1)]
}

func (t *table) full() bool { return t.free == 0 && int(t.used) == len(t.slots)-1 }

// add puts in a new attempt at stage 1. In a full table it takes the place of
// expired attempts if it meets some, or else of the least advanced, the oldest
// among equals: a flood of forged first steps can only push out first steps.
func (t *table) add(src [16]byte, rule int32, now int64) int32 {
	if t.full() {
		t.sweep(now)
	}
	if t.full() {
		t.remove(t.least())
		t.evicted++
	}
	i := t.slot()
	t.slots[i] = attempt{src: src, rule: rule, stage: 1}
	t.chain(i)
	t.enqueue(i)
	t.live++
	return i
}

func (t *table) slot() int32 {
	if i := t.free; i != 0 {
		t.free = t.slots[i].next
		return i
	}
	t.used++
	return t.used
}

// least is the attempt that goes first.
func (t *table) least() int32 {
	for _, l := range t.levels {
		if l.oldest != 0 {
			return l.oldest
		}
	}
	return 0
}

// sweep frees the expired among the next few slots.
func (t *table) sweep(now int64) {
	for range sweepSlots {
		t.hand = t.hand%t.used + 1
		if a := &t.slots[t.hand]; a.stage != 0 && now > a.until {
			t.remove(t.hand)
		}
	}
}

func (t *table) remove(i int32) {
	t.unchain(i)
	t.dequeue(i)
	t.slots[i] = attempt{next: t.free}
	t.free = i
	t.live--
}

func (t *table) chain(i int32) {
	a := &t.slots[i]
	head := t.bucket(&a.src)
	a.chainPrev, a.chainNext = 0, *head
	if *head != 0 {
		t.slots[*head].chainPrev = i
	}
	*head = i
}

func (t *table) unchain(i int32) {
	a := &t.slots[i]
	if a.chainNext != 0 {
		t.slots[a.chainNext].chainPrev = a.chainPrev
	}
	if a.chainPrev != 0 {
		t.slots[a.chainPrev].chainNext = a.chainNext
	} else {
		*t.bucket(&a.src) = a.chainNext
	}
}

// enqueue makes an attempt the newest of its level.
func (t *table) enqueue(i int32) {
	a := &t.slots[i]
	l := &t.levels[a.level()]
	a.prev, a.next = l.newest, 0
	if l.newest != 0 {
		t.slots[l.newest].next = i
	} else {
		l.oldest = i
	}
	l.newest = i
}

func (t *table) dequeue(i int32) {
	a := &t.slots[i]
	l := &t.levels[a.level()]
	if a.prev != 0 {
		t.slots[a.prev].next = a.next
	} else {
		l.oldest = a.next
	}
	if a.next != 0 {
		t.slots[a.next].prev = a.prev
	} else {
		l.newest = a.prev
	}
}

// enqueueOldest makes an attempt the oldest of its level.
func (t *table) enqueueOldest(i int32) {
	a := &t.slots[i]
	l := &t.levels[a.level()]
	a.prev, a.next = 0, l.oldest
	if l.oldest != 0 {
		t.slots[l.oldest].prev = i
	} else {
		l.newest = i
	}
	l.oldest = i
}

// record notes which packet made a step, steps counted from 0.
func (t *table) record(i int32, step int, id uint64, now int64) {
	at := int(i)*t.steps + step
	t.ids[at], t.times[at] = id, milliseconds(now)
}

// recorded reports whether this very packet made the step, and how many
// milliseconds ago.
func (t *table) recorded(i int32, step int, id uint64, now int64) (same bool, age uint32) {
	at := int(i)*t.steps + step
	return t.ids[at] == id, milliseconds(now) - t.times[at]
}

// milliseconds wraps after 49 days; differences of minutes survive that.
func milliseconds(now int64) uint32 { return uint32(now / 1e6) }
