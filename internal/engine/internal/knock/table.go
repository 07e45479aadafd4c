package knock

import (
	"hash/maphash"
	"math/bits"
)

// The queues that attempts wait in to be evicted. Behind them, from proved on, each
// secret has one.
const (
	begun   int32 = 1 + iota // one packet was seen
	further                  // more were, which anybody can send who saw a knock
	proved                   // what was seen takes the secret
)

// sweepSlots is how many slots a newcomer to a full table looks at for attempts that
// expired, and tickSlots how many a second.
const (
	sweepSlots = 4
	tickSlots  = 4096
)

// place is where an attempt lies: 48 bytes. Indices count from 1, so that memory that
// nobody wrote yet means "none".
type place struct {
	src                  [16]byte // IPv4 as ::ffff:a.b.c.d
	until                int64    // expired once the clock is past it
	door                 int32
	queue                int32 // 0: the slot is free
	chainPrev, chainNext int32 // the others in this hash bucket
	prev, next           int32 // the older and the newer of the queue
}

// line is a queue through prev and next.
type line struct{ oldest, newest, length int32 }

// places is a bounded table of attempts by their source. Those who have it keep at
// the same indices what an attempt is. It is allocated at once and untouched until
// used, so that an idle daemon has none of it resident.
//
// In a full one who was heard longest ago leaves, and packets are cheap to forge. So
// a flood of first packets pushes out first packets only; those that forged further
// ones have half the table, and the same again must come between two packets of
// somebody to push him out. What a secret proves has at most half of the whole, and
// leaves for nothing that proves none: beyond the half, the person with most loses
// his oldest, so that nobody shuts others out by his own secret.
type places struct {
	seed    maphash.Seed // random, so that no one can aim at a bucket
	buckets []int32
	slots   []place // slots[0] is never used
	queues  []line
	used    int32 // slots ever used
	free    int32 // freed slots, linked through next
	hand    int32 // where the next sweep begins
	live    int32
	proven  int32 // of the live
	evicted uint64
}

// newPlaces makes a table for size attempts, 16 or more, at so many secrets.
func newPlaces(size, secrets int) places {
	return places{
		seed:    maphash.MakeSeed(),
		buckets: make([]int32, 2<<bits.Len(uint(size-1))),
		slots:   make([]place, size+1),
		queues:  make([]line, int(proved)+secrets),
	}
}

func (t *places) bucket(src *[16]byte) *int32 {
	return &t.buckets[maphash.Bytes(t.seed, src[:])&uint64(len(t.buckets)-1)]
}

// holds reports whether a slot has an attempt of a source at a door.
func (t *places) holds(i int32, src *[16]byte, door int32) bool {
	a := &t.slots[i]
	return a.queue != 0 && a.door == door && a.src == *src
}

func (t *places) full() bool { return t.free == 0 && int(t.used) == len(t.slots)-1 }

// add gives a slot to an attempt that begins.
func (t *places) add(src [16]byte, door int32, until, now int64) int32 {
	if t.full() {
		t.sweep(sweepSlots, now)
	}
	if t.full() {
		t.evict()
	}
	i := t.free
	if i != 0 {
		t.free = t.slots[i].next
	} else {
		t.used++
		i = t.used
	}
	head := t.bucket(&src)
	t.slots[i] = place{src: src, door: door, until: until, chainNext: *head}
	t.slots[*head].chainPrev = i // of slot 0 nobody reads it
	*head = i
	t.enqueue(i, begun)
	t.live++
	return i
}

// evict makes room in a full table. There is always one that proves nothing.
func (t *places) evict() {
	from := begun
	if t.queues[further].length > (t.live-t.proven)/2 {
		from = further
	}
	t.remove(t.queues[from].oldest)
	t.evicted++
}

// move makes an attempt the newest of a queue.
func (t *places) move(i, to int32) {
	if to >= proved && t.slots[i].queue < proved && int(t.proven) >= len(t.slots)/2 {
		t.remove(t.most().oldest)
		t.evicted++
	}
	t.dequeue(i)
	t.enqueue(i, to)
}

// most is the queue of whoever has most of the proved.
func (t *places) most() *line {
	most := &t.queues[proved]
	for i := range t.queues[proved:] {
		if l := &t.queues[int(proved)+i]; l.length > most.length {
			most = l
		}
	}
	return most
}

// sweep frees the expired among the next few slots.
func (t *places) sweep(slots int, now int64) {
	if t.live == 0 {
		return
	}
	for range min(slots, int(t.used)) {
		t.hand = t.hand%t.used + 1
		if a := &t.slots[t.hand]; a.queue != 0 && now > a.until {
			t.remove(t.hand)
		}
	}
}

// remove frees a slot. Its way to the next of its bucket stays, for whoever is
// looking through that.
func (t *places) remove(i int32) {
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
	*a = place{next: t.free, chainNext: a.chainNext}
	t.free = i
	t.live--
}

func (t *places) enqueue(i, to int32) {
	a, l := &t.slots[i], &t.queues[to]
	a.queue, a.prev, a.next = to, l.newest, 0
	if l.newest != 0 {
		t.slots[l.newest].next = i
	} else {
		l.oldest = i
	}
	l.newest = i
	t.count(l, to, 1)
}

func (t *places) dequeue(i int32) {
	a := &t.slots[i]
	l := &t.queues[a.queue]
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
	t.count(l, a.queue, -1)
}

func (t *places) count(l *line, queue, n int32) {
	l.length += n
	if queue >= proved {
		t.proven += n
	}
}
