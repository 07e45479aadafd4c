// Package border holds every message that crosses the line between the warden,
// which has privilege, and the engine, which has none, and the socket that
// they cross on. A message is one datagram of exactly Size bytes; bulk data
// crosses as a sealed memory file (memfd_create(2)) that a message names.
package border

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/sallyport/sallyport/internal/encoded"
	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/sallyport/sallyport/internal/spa"
)

// Size is the length of every message in bytes.
const Size = 128

// ErrMessage says that a datagram is no message: its length or kind is wrong,
// a field is out of range, or a byte behind the last field is not zero. The
// two sides are one program, so it means that one of them is not itself any
// more; whoever sees it ends.
var ErrMessage = errors.New("the border carried something that is no message")

// Message is one of the types below.
type Message interface{ fields(*wire) }

// Open asks the warden to let an address reach what a rule opens, all of it.
type Open struct {
	ID uint64 // the answer, Done, carries it
	// Generation is the config's whose rules and services the numbers below
	// are: while a reload is under way there are two.
	Generation uint32
	Rule       uint16 // index into the config's Rules; AnyRule: the administrator asks, for Service
	// Service is an index into the config's Services where Rule is AnyRule,
	// else 0.
	Service uint16
	Ticket  uint32        // of the control connection that asked; 0: a knock asked
	Key     uint16        // the signer's, see Key; NoKey: the knock has no keys, or no knock asked
	Extend  bool          // only where the same knock and key have a grant already
	Addr    netip.Addr    // never 4-in-6, no zone
	TTL     time.Duration // more than 0
	// Proto and Port are the one port that is asked for; 0 and 0: all of the
	// service's.
	Proto sequence.Proto
	Port  uint16
	// Bits is the length of the mask that is asked for, with Addr its lowest
	// address; 0: Addr alone.
	Bits uint8
}

// NoKey is in place of the number of a key: 1 more than its index in the
// Authorized or People of the rule's knock, in the generation's Keys.
const NoKey = 0

// AnyRule in a Close means whoever asked for the grant; in an Open it means
// that the administrator asks. Both need a Ticket.
const AnyRule = 0xffff

// Close asks the warden to end grants of an address: those that Rule and Key
// asked for, or with AnyRule all of them.
type Close struct {
	ID         uint64
	Generation uint32 // as in Open
	Rule       uint16
	Service    uint16 // index into the config's Services; AnyService: all of them
	Ticket     uint32
	Key        uint16 // as in Open
	Cut        bool   // live connections too; needs a Ticket
	Addr       netip.Addr
	Bits       uint8 // as in Open
	// Proto and Port are the one port whose own grant is to end; 0 and 0: all that is
	// there. Only the administrator names one.
	Proto sequence.Proto
	Port  uint16
}

// CloseKey asks the warden to end every grant that a key asked for. The key
// need not be in use any more.
type CloseKey struct {
	ID          uint64
	Ticket      uint32
	Fingerprint spa.Fingerprint
	Cut         bool // live connections too
}

// Run asks the warden for an action of a rule.
type Run struct {
	ID         uint64
	Generation uint32 // as in Open
	Rule       uint16 // of an action
	Key        uint16 // as in Open
	Do         Do
	Addr       netip.Addr
	Payload    Payload // the operator's own bytes, for the command's standard input
}

// MaxPayload is the most bytes of a payload.
const MaxPayload = encoded.MaxPayload

// Payload is up to MaxPayload bytes that a knock of type "encoded" carried. Their
// sender holds a person's secret, and their content is the command's affair.
type Payload struct {
	Length uint8
	Bytes  [MaxPayload]byte // zero behind Length
}

// Do says what is asked of an action.
type Do uint8

// What can be asked.
const (
	Start  Do = iota // run it
	Undo             // undo it now, where its undo is still to come
	Extend           // put its undo off, where that is still to come
	doEnd
)

// Told tells of progress at a knock of a knockd.conf, for a log in knockd's words.
type Told struct {
	Generation uint32
	Knock      uint16 // index into the config's Knocks
	What       Progress
	Stage      uint8 // steps made
	Addr       netip.Addr
}

// Progress is what a Told tells.
type Progress uint8

// The progress.
const (
	Stage    Progress = iota // a step was made
	Opened                   // that was the last step
	TimedOut                 // the time was over before the last step
	progressEnd
)

// Spent says that a sequence that is good for one knock was made. The engine
// takes it no more; the warden marks it as used and offers the next one.
type Spent struct {
	Generation uint32
	Knock      uint16 // index into the config's Knocks
	// Ahead is which of a list was made: 0 is the knock's Sequence, n its Ahead[n-1].
	// Those before it are used up too.
	Ahead uint8
}

// AnyService in a Close means every service.
const AnyService = 0xffff

// Confirm says that the administrator can still get in: the hiding stays.
type Confirm struct {
	ID     uint64
	Ticket uint32
}

// List asks for a Listing of what the kernel holds.
type List struct{ ID uint64 }

// Took says that the engine runs on this generation of the config.
type Took struct{ Generation uint32 }

// Refused says that the engine could not use this generation and runs on the
// one before.
type Refused struct{ Generation uint32 }

// Watched hands back the token of the watch packet: a packet went the whole way.
type Watched struct{ Token [8]byte }

// Config brings a generation of the config, as JSON in a memory file.
type Config struct {
	Generation uint32
	Watch      [8]byte // token of the watch packet
}

// Host brings the host's addresses, interfaces and listening ports, as JSON
// in a memory file.
type Host struct{ Generation uint32 }

// Control brings a connection of the administrator's, already checked. Without a
// ticket (0) it can only ask.
type Control struct{ Ticket uint32 }

// Listing answers List with the grants, as JSON in a memory file.
type Listing struct{ ID uint64 }

// Done answers Open, Close, CloseKey, Run and Confirm.
type Done struct {
	ID     uint64
	Result Result
	Until  time.Time // end of the grant, for an Open that was Granted; else zero
	Count  uint32    // grants that a Close ended
	Cut    uint32    // connections that it ended
	Left   uint32    // addresses whose connections a CloseKey left, because others use them too
}

// Result is what the warden did with a request, or why it did not.
type Result uint8

// The results. Their names are what logs and the control socket say.
const (
	Granted  Result = iota + 1
	Observed        // would have been granted: serve --observe
	Closed
	Confirmed
	Stale // its numbers are of a config that is not in use any more
	NoSuchRule
	WrongFamily // the service has forwarded destinations, none of this family
	NotUnicast  // nobody can connect from such an address
	TooLong     // the duration is above the rule's
	TooFast     // more requests a second than the warden takes
	NoTicket    // no administrator asked for this
	Full        // the grant set has no room; nothing was lost
	Failed      // the firewall refused; the warden logged why
	NothingToConfirm
	NoSuchKey       // its number is nobody's, or the rule wants one and has none
	NotAllowed      // authorized_keys does not let the key have this, now or from there
	NothingToExtend // an Extend with no grant of the same key
	Ran             // the action runs, or runs on
	Undone          // its undo runs now
	NotRun          // the action could not be run; the warden logged why
	NothingToUndo   // the action was not run for that address, or is undone already
	resultEnd
)

var results = [resultEnd]string{
	Granted: "granted", Observed: "would be granted", Closed: "closed", Confirmed: "confirmed",
	Stale: "asked under a config that is gone", NoSuchRule: "no such rule", WrongFamily: "wrong address family",
	NotUnicast: "nobody can connect from such an address", TooLong: "longer than the rule allows", TooFast: "too many requests a second",
	NoTicket: "no administrator asked", Full: "the grant set is full", Failed: "the firewall refused",
	NothingToConfirm: "nothing to confirm", NoSuchKey: "no such key", NotAllowed: "the key may not",
	NothingToExtend: "nothing to extend", Ran: "runs", Undone: "undone", NotRun: "could not be run", NothingToUndo: "nothing to undo",
}

// String gives the constant that logs and listings use.
func (r Result) String() string {
	if r == 0 || r >= resultEnd {
		return "unknown result"
	}
	return results[r]
}

// kinds numbers the messages; the index is the first byte on the wire.
var kinds = [...]func() Message{
	1:  func() Message { return new(Open) },
	2:  func() Message { return new(Close) },
	3:  func() Message { return new(Confirm) },
	4:  func() Message { return new(List) },
	5:  func() Message { return new(Took) },
	6:  func() Message { return new(Refused) },
	7:  func() Message { return new(Watched) },
	8:  func() Message { return new(Config) },
	9:  func() Message { return new(Host) },
	10: func() Message { return new(Control) },
	11: func() Message { return new(Listing) },
	12: func() Message { return new(Done) },
	13: func() Message { return new(CloseKey) },
	14: func() Message { return new(Run) },
	15: func() Message { return new(Told) },
	16: func() Message { return new(Spent) },
}

func kindOf(m Message) byte {
	switch m.(type) {
	case *Open:
		return 1
	case *Close:
		return 2
	case *Confirm:
		return 3
	case *List:
		return 4
	case *Took:
		return 5
	case *Refused:
		return 6
	case *Watched:
		return 7
	case *Config:
		return 8
	case *Host:
		return 9
	case *Control:
		return 10
	case *Listing:
		return 11
	case *Done:
		return 12
	case *CloseKey:
		return 13
	case *Run:
		return 14
	case *Told:
		return 15
	case *Spent:
		return 16
	}
	panic(fmt.Sprintf("border: no kind for %T", m))
}

// Encode gives the datagram for m.
func Encode(m Message) [Size]byte {
	var b [Size]byte
	b[0] = kindOf(m)
	m.fields(&wire{rest: b[1:], writing: true})
	return b
}

// Decode reads a datagram; its only error is ErrMessage. What it accepts,
// Encode gives back byte for byte.
func Decode(b []byte) (Message, error) {
	if len(b) != Size || b[0] == 0 || int(b[0]) >= len(kinds) {
		return nil, ErrMessage
	}
	m := kinds[b[0]]()
	w := &wire{rest: b[1:]}
	m.fields(w)
	for _, c := range w.rest {
		w.bad = w.bad || c != 0
	}
	if w.bad {
		return nil, ErrMessage
	}
	return m, nil
}

func (m *Open) fields(w *wire) {
	w.u64(&m.ID)
	w.u32(&m.Generation)
	w.u16(&m.Rule)
	w.u16(&m.Service)
	w.u32(&m.Ticket)
	w.u16(&m.Key)
	w.bool(&m.Extend)
	w.addr(&m.Addr)
	w.positive(&m.TTL)
	w.u8((*uint8)(&m.Proto))
	w.u16(&m.Port)
	w.mask(&m.Bits, m.Addr)
	w.check((m.Proto == 0) == (m.Port == 0))
	w.check(m.Service == 0 || m.Rule == AnyRule)
	w.check(m.Key == NoKey && !m.Extend || m.Rule != AnyRule)
}

func (m *Close) fields(w *wire) {
	w.u64(&m.ID)
	w.u32(&m.Generation)
	w.u16(&m.Rule)
	w.u16(&m.Service)
	w.u32(&m.Ticket)
	w.u16(&m.Key)
	w.bool(&m.Cut)
	w.addr(&m.Addr)
	w.mask(&m.Bits, m.Addr)
	w.u8((*uint8)(&m.Proto))
	w.u16(&m.Port)
	w.check((m.Proto == 0) == (m.Port == 0))
	w.check(m.Port == 0 || m.Rule == AnyRule)
	w.check(m.Key == NoKey || m.Rule != AnyRule)
	w.check(!m.Cut || m.Rule == AnyRule)
}

func (m *CloseKey) fields(w *wire) {
	w.u64(&m.ID)
	w.u32(&m.Ticket)
	w.bytes(m.Fingerprint[:])
	w.bool(&m.Cut)
}

func (m *Run) fields(w *wire) {
	w.u64(&m.ID)
	w.u32(&m.Generation)
	w.u16(&m.Rule)
	w.u16(&m.Key)
	w.u8((*uint8)(&m.Do))
	w.addr(&m.Addr)
	w.payload(&m.Payload)
	w.check(m.Do < doEnd)
}

func (m *Told) fields(w *wire) {
	w.u32(&m.Generation)
	w.u16(&m.Knock)
	w.u8((*uint8)(&m.What))
	w.u8(&m.Stage)
	w.addr(&m.Addr)
	w.check(m.What < progressEnd)
}

func (m *Spent) fields(w *wire) { w.u32(&m.Generation); w.u16(&m.Knock); w.u8(&m.Ahead) }

func (m *Confirm) fields(w *wire) { w.u64(&m.ID); w.u32(&m.Ticket) }
func (m *List) fields(w *wire)    { w.u64(&m.ID) }
func (m *Took) fields(w *wire)    { w.u32(&m.Generation) }
func (m *Refused) fields(w *wire) { w.u32(&m.Generation) }
func (m *Watched) fields(w *wire) { w.bytes(m.Token[:]) }
func (m *Config) fields(w *wire)  { w.u32(&m.Generation); w.bytes(m.Watch[:]) }
func (m *Host) fields(w *wire)    { w.u32(&m.Generation) }
func (m *Control) fields(w *wire) { w.u32(&m.Ticket) }
func (m *Listing) fields(w *wire) { w.u64(&m.ID) }

func (m *Done) fields(w *wire) {
	w.u64(&m.ID)
	w.u8((*uint8)(&m.Result))
	w.time(&m.Until)
	w.u32(&m.Count)
	w.u32(&m.Cut)
	w.u32(&m.Left)
	w.check(m.Result != 0 && m.Result < resultEnd)
}
