package sallyport

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/sallyport/sallyport/internal/encoded"
	"github.com/sallyport/sallyport/internal/secrets"
)

// EncodedDelay is the pause between two packets of an Encoded. Their order does
// not matter; without a pause a burst may overflow a queue on the way.
const EncodedDelay = 2 * time.Millisecond

// MaxRepeat is how often an Encoded can send each of its packets.
const MaxRepeat = 8

// Encoded is a knock whose message travels in the port numbers of its packets,
// encrypted and authenticated by a shared secret. Any program that can connect can
// send it.
//
// [ParseEncoded] reads the server's part from the line that its owner hands out;
// the rest says what is asked. A value may be used by several goroutines as long as
// nobody changes it.
type Encoded struct {
	Door        string // the knock's name in the server's config
	Secret      []byte // 16 to 64 bytes
	Proto       Proto  // TCP or UDP
	Base        uint16 // the first port
	Span        int    // how many ports from it on carry the message
	PayloadSize int    // how many bytes of the operator's own fit in, 0 to 64
	Within      time.Duration

	Action Action // zero: Open
	// For is how long, in whole seconds up to 30 days; 0: as long as the service
	// opens by itself.
	For time.Duration
	// Port and PortProto are the one port to ask for; 0: all that the secret opens.
	Port      uint16
	PortProto Proto
	// Addresses are whom to open for, at most one of each family; of two, the one of
	// the server's address travels. None: the local address if it is a public one,
	// else the one that the server sees.
	Addresses []netip.Addr
	// Observed leaves the local address out even if it is public.
	Observed bool
	// Mask opens for the network of that many bits around the address, if the server
	// allows that length; 0: for the address alone.
	Mask int
	// Payload goes to the command that the knock runs; at most PayloadSize bytes.
	Payload []byte
	// Repeat is how often each packet is sent, 1 to MaxRepeat, all of them in turn;
	// 0: once. One of each has to arrive.
	Repeat int
	// Delay is the pause between two packets. Zero means EncodedDelay, a negative
	// value no pause at all.
	Delay time.Duration
}

const encodedWord = "sallyport-encoded"

// ParseEncoded reads "sallyport-encoded 1" and what follows, one line of words
// NAME=VALUE, as Line gives it. The error quotes no value.
func ParseEncoded(line string) (*Encoded, error) {
	f, err := readFields(line, encodedWord, "door", "base", "span", "payload", "within", "secret")
	if err != nil {
		return nil, err
	}
	k := &Encoded{Door: f.text("door"), Secret: f.secret("secret"), Within: f.duration("within"), Span: f.number("span", 65535), PayloadSize: f.number("payload", encoded.MaxPayload)}
	k.Base, k.Proto = f.port("base")
	if err := f.end(); err != nil {
		return nil, err
	}
	return k, k.Validate()
}

// Line gives the line that ParseEncoded reads, secret and all: for a file that its
// owner alone can read. What is asked is not part of it.
func (k *Encoded) Line() string {
	return fmt.Sprintf("%s 1 door=%s base=%d/%v span=%d payload=%d within=%v secret=%s",
		encodedWord, k.Door, k.Base, k.Proto, k.Span, k.PayloadSize, k.Within, secrets.Encode(k.Secret))
}

// String says what it is, without the secret.
func (k *Encoded) String() string { return "a message in port numbers to " + k.Door }

// GoString is String: what is printed by mistake keeps the secret.
func (k *Encoded) GoString() string { return k.String() }

// Validate says what keeps the knock from being sent: a field that is out of range.
func (k *Encoded) Validate() error {
	if err := checkShared(k.Door, k.Secret, k.Proto, k.Within); err != nil {
		return err
	}
	if k.Repeat < 0 || k.Repeat > MaxRepeat {
		return fmt.Errorf("each packet can't be sent %d times: it takes 1 to %d", k.Repeat, MaxRepeat)
	}
	if k.Observed && len(k.Addresses) > 0 {
		return errors.New("the knock states an address and asks for the observed one: leave one of them out")
	}
	if err := checkAddresses(k.Addresses); err != nil {
		return err
	}
	// Encoding checks everything else.
	_, err := k.encode(netip.Addr{}, time.Unix(1, 0))
	return err
}

func (k *Encoded) shape() encoded.Shape {
	return encoded.Shape{Base: k.Base, Span: k.Span, Payload: k.PayloadSize}
}

// actions are an Encoded's, by a Request's.
var actions = map[Action]encoded.Action{0: encoded.Open, Open: encoded.Open, Close: encoded.Close, Extend: encoded.Extend}

func (k *Encoded) encode(stated netip.Addr, now time.Time) ([]uint16, error) {
	m := &encoded.Message{
		Action: actions[k.Action], Time: now, For: k.For, Addr: stated, Bits: k.Mask,
		Port: k.Port, Proto: k.PortProto, Payload: k.Payload,
	}
	return k.shape().Encode(encoded.NewKey(k.Secret, k.Door), m)
}

// stamps gives the messages of this process their times.
var stamps struct {
	sync.Mutex
	last int64 // in milliseconds
}

// stamp is the time of a message that is made now, and no other's: a server takes the
// second of one person and millisecond for a repeat, and the messages for a host's two
// addresses may be made in one. A clock that was set back is followed.
func stamp() time.Time {
	stamps.Lock()
	defer stamps.Unlock()
	now := time.Now().UnixMilli()
	if ahead := stamps.last - now; ahead >= 0 && ahead < 1000 {
		now = stamps.last + 1
	}
	stamps.last = now
	return time.UnixMilli(now)
}

// Plan encodes the message and gives its packets, each Repeat times.
func (k *Encoded) Plan(local, remote netip.Addr) (*Plan, error) {
	if err := k.Validate(); err != nil {
		return nil, err
	}
	p, err := newPlan(local, remote)
	if err != nil {
		return nil, err
	}
	stated := k.stated(p.Local, p.Remote)
	whose := p.Local
	if stated.IsValid() {
		whose = stated
	}
	if k.Mask >= whose.BitLen() {
		return nil, fmt.Errorf("a mask of %d bits does not fit %s: it takes 1 to %d", k.Mask, whose, whose.BitLen()-1)
	}
	ports, err := k.encode(stated, stamp())
	if err != nil {
		return nil, err
	}
	for range max(k.Repeat, 1) {
		for _, port := range ports {
			packet := packetOf(Step{Proto: k.Proto, Port: port})
			if len(p.Packets) > 0 {
				packet.Wait = k.delay()
			}
			p.Packets = append(p.Packets, packet)
		}
	}
	// Sent again, the same message mends what was lost of it; a new one would begin
	// from nothing. So it is kept for as long as the server keeps its parts.
	p.Until, p.About = time.Now().Add(min(k.Within, requestLife)), k.about(stated)
	return p, nil
}

// stated is the address that the message names; the zero Addr: none.
func (k *Encoded) stated(local, remote netip.Addr) (stated netip.Addr) {
	for _, a := range k.Addresses {
		if a = a.Unmap(); !stated.IsValid() || a.Is4() == remote.Is4() {
			stated = a
		}
	}
	if !stated.IsValid() && !k.Observed && public(local) {
		return local
	}
	return stated
}

func (k *Encoded) delay() time.Duration {
	if k.Delay == 0 {
		return EncodedDelay
	}
	return max(k.Delay, 0)
}

func (k *Encoded) about(stated netip.Addr) string {
	action := k.Action
	if action == 0 {
		action = Open
	}
	what, whom, more := "all that the secret opens", "the address that the server sees", ""
	if k.Port > 0 {
		what = fmt.Sprintf("%d/%v", k.Port, k.PortProto)
	}
	if stated.IsValid() {
		whom = stated.String()
	}
	if k.Mask > 0 {
		whom += fmt.Sprintf(", with the network of %d bits around it", k.Mask)
	}
	if k.For > 0 {
		what += fmt.Sprintf(" for %v", k.For)
	}
	if len(k.Payload) > 0 {
		more = fmt.Sprintf("\nwith %d bytes for its command", len(k.Payload))
	}
	return strings.TrimSpace(fmt.Sprintf("asks to %s: %s\nfor address: %s%s", action, what, whom, more))
}
