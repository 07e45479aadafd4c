package knock

import "time"

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

// collection is the parts of one source's message to one knock.
type collection struct {
	stage uint16 // parts that are here
	// done marks a message that had its answer. It stays for a while, so that its
	// copies begin nothing.
	done   bool
	copies uint8 // marked ones; of a done one
	copied int64 // when the latest copy came
}

// collections is a table of them: 64 bytes and two for each part, so that 65,536 of
// 50 parts take 10.8 MiB, and of 230 parts, the most, 33.3 MiB. Parts prove nothing
// before the last of them: however many are here, anybody can have forged them.
type collections struct {
	places
	what    []collection
	symbols []uint16 // of each slot, one more than the symbol; 0: not here yet
	steps   int      // of the longest message
}

func newCollections(size, steps int) *collections {
	return &collections{
		places:  newPlaces(size, 0),
		what:    make([]collection, size+1),
		symbols: make([]uint16, (size+1)*steps),
		steps:   steps,
	}
}

// find gives a source's slot, or 0.
func (t *collections) find(src *[16]byte, door int32) int32 {
	i := *t.bucket(src)
	for i != 0 && !t.holds(i, src, door) {
		i = t.slots[i].chainNext
	}
	return i
}

// begin gives a source an empty slot, whose first part must be set at once.
func (t *collections) begin(src [16]byte, door int32, until, now int64) int32 {
	i := t.add(src, door, until, now)
	t.what[i] = collection{}
	clear(t.of(i))
	return i
}

func (t *collections) of(i int32) []uint16 { return t.symbols[int(i)*t.steps : (int(i)+1)*t.steps] }

// set adds a part that is not there yet.
func (t *collections) set(i int32, index int, symbol uint16) {
	t.of(i)[index] = symbol + 1
	t.what[i].stage++
	t.heard(i)
}

// heard makes a slot the one that leaves last.
func (t *collections) heard(i int32) {
	queue := further
	if t.what[i].stage == 1 {
		queue = begun
	}
	t.move(i, queue)
}

// has gives the part at an index, if it is there.
func (t *collections) has(i int32, index int) (symbol uint16, ok bool) {
	s := t.of(i)[index] &^ copyMark
	return s - 1, s != 0
}

// finish marks a message that had its answer.
func (t *collections) finish(i int32, until int64) {
	t.what[i].done, t.slots[i].until = true, until
}

// again notes a copy of a part of a message that had its answer.
func (t *collections) again(i int32, index int, now int64) {
	c, symbols := &t.what[i], t.of(i)
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
	c, symbols := &t.what[i], t.of(i)
	keep := c.copies <= mostKept && now-c.copied <= pause && symbols[index]&copyMark == 0
	c.stage, c.done, c.copies = 0, false, 0
	for j, s := range symbols {
		if symbols[j] = 0; keep && s&copyMark != 0 {
			symbols[j] = s &^ copyMark
			c.stage++
		}
	}
}

// empty begins a slot anew.
func (t *collections) empty(i int32) {
	t.what[i].stage, t.what[i].done = 0, false
	clear(t.of(i))
}
