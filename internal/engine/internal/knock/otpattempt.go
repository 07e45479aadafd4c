package knock

import (
	"github.com/sallyport/sallyport/internal/engine/internal/packet"
	"github.com/sallyport/sallyport/internal/sequence"
)

// attempt is one source's progress at one password.
type attempt struct {
	number uint64 // the time step that it is of; of a code not known before its end
	took   uint64 // the last packet that was one of its steps, or a copy
	person int32  // of the door's; of a code not known before its end
	stage  uint8  // steps made
	strays uint8  // packets of its source that began something else meanwhile
}

// made is the packet that made a step.
type made struct {
	id   uint64
	port uint16 // that the step has, whether it was made or not
	when uint32 // in milliseconds modulo 2^32
}

// attempts is a table of them: 72 bytes, and 16 for each step.
type attempts struct {
	places
	what  []attempt
	steps []made // most for each slot
	most  int    // steps of the longest password
}

func newAttempts(size, most, secrets int) *attempts {
	return &attempts{
		places: newPlaces(size, secrets), most: most,
		what:  make([]attempt, size+1),
		steps: make([]made, (size+1)*most),
	}
}

// stepsOf gives the steps of a slot.
func (t *attempts) stepsOf(i int32) []made {
	return t.steps[int(i)*t.most : int(i+1)*t.most : int(i+1)*t.most]
}

// otpCopyAge is how long a datagram that looks the same is taken for a copy, in
// milliseconds. A SYN needs no such limit: its sequence number tells.
const otpCopyAge = 1000

// isCopy reports whether the packet is one that already made a step: one
// connect(2) to a port that drops repeats its SYN for a minute, and a bridge shows
// each packet twice.
func isCopy(steps []made, p *packet.Packet, id uint64, now int64) bool {
	for _, m := range steps {
		if m.id == id && m.port == p.DstPort && (p.Proto == sequence.TCP || milliseconds(now)-m.when <= otpCopyAge) {
			return true
		}
	}
	return false
}

func milliseconds(now int64) uint32 { return uint32(now / 1e6) }
