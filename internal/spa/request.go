package spa

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Action is what a request asks for.
type Action uint8

// The actions. The numbers are the format's.
const (
	Open   Action = 1 // let me reach services
	Close  Action = 2 // end what I opened
	Extend Action = 3 // keep open what I opened; open nothing that is not
)

var actions = [...]string{Open: "open", Close: "close", Extend: "extend"}

// String gives "open", "close" or "extend".
func (a Action) String() string {
	if a == 0 || int(a) >= len(actions) {
		return fmt.Sprintf("action %d", uint8(a))
	}
	return actions[a]
}

// Limits of a request.
const (
	// MaxFor is the longest time that a request can ask for: what a service can
	// be configured to allow.
	MaxFor = 30 * 24 * time.Hour
	// MaxName is the longest name of a service, in bytes.
	MaxName = 32
)

// Request is what a client asks for. The zero value of a field that may be left
// out asks for the server's own choice.
type Request struct {
	// Stamp is the client's time in nanoseconds since 1970, or any number that
	// rises with each request where the server has no clock; more than 0.
	Stamp  int64
	Action Action
	// For is how long, in whole seconds up to MaxFor; 0: as long as the service
	// opens by itself, and always for Close.
	For time.Duration
	// IPv4 and IPv6 are the addresses to open for. With neither, it is the
	// address that the datagram comes from, whoever delivers it.
	IPv4, IPv6 netip.Addr
	// Own says that the addresses above are the sender's: the server insists
	// that the datagram comes from one of them.
	Own bool
	// Services are names, at most what fits; none: all that the key may open.
	Services []string
}

// The places of a request's fields in the plaintext, in bytes.
const (
	atAction   = 8
	atFlags    = 9
	atFor      = 10
	atIPv4     = 14
	atIPv6     = 18
	atKey      = 34
	atServices = 66

	maxServices = 255
)

// The bits of the flags.
const (
	flagIPv4 = 1 << iota
	flagIPv6
	flagOwn
	flagsEnd
)

// ErrRequest says that a request breaks the format's rules.
var ErrRequest = errors.New("malformed request")

// Stated gives the addresses that the request names: none, one or two.
func (r *Request) Stated() []netip.Addr {
	var stated []netip.Addr
	for _, a := range []netip.Addr{r.IPv4, r.IPv6} {
		if a.IsValid() {
			stated = append(stated, a)
		}
	}
	return stated
}

// check is what both sides hold a request to. Its text is for the client.
func (r *Request) check() error {
	switch {
	case r.Stamp <= 0:
		return errors.New("the time is before 1970: set the clock")
	case r.Action == 0 || int(r.Action) >= len(actions):
		return fmt.Errorf("there is no %v", r.Action)
	case r.For < 0 || r.For > MaxFor || r.For%time.Second != 0:
		return fmt.Errorf("the time asked for must be whole seconds from 1s to %v", MaxFor)
	case r.Action == Close && r.For != 0:
		return errors.New("a close takes no duration")
	case r.IPv4.IsValid() && !r.IPv4.Is4(), r.IPv6.IsValid() && (!r.IPv6.Is6() || r.IPv6.Is4In6() || r.IPv6.Zone() != ""):
		return errors.New("a stated address is of the wrong family or has a zone")
	case r.Own && !r.IPv4.IsValid() && !r.IPv6.IsValid():
		return errors.New("no address of one's own is stated")
	case len(r.Services) > maxServices:
		return fmt.Errorf("a request has room for %d services", maxServices)
	}
	return r.checkNames()
}

func (r *Request) checkNames() error {
	for i, name := range r.Services {
		if name == "" || len(name) > MaxName || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789_-") != "" {
			return fmt.Errorf("%.40q is no name of a service: it has 1 to %d of a-z, 0-9, _ and -", name, MaxName)
		}
		if slices.Contains(r.Services[:i], name) {
			return fmt.Errorf("the service %s is named twice", name)
		}
	}
	return nil
}

// encode gives the fields' bytes: atServices and what the names need.
func (r *Request) encode(key Fingerprint) []byte {
	b := make([]byte, atServices+1, SmallSize)
	binary.BigEndian.PutUint64(b, uint64(r.Stamp))
	b[atAction] = byte(r.Action)
	binary.BigEndian.PutUint32(b[atFor:], uint32(r.For/time.Second))
	if r.IPv4.IsValid() {
		b[atFlags] |= flagIPv4
		copy(b[atIPv4:], r.IPv4.AsSlice())
	}
	if r.IPv6.IsValid() {
		b[atFlags] |= flagIPv6
		copy(b[atIPv6:], r.IPv6.AsSlice())
	}
	if r.Own {
		b[atFlags] |= flagOwn
	}
	copy(b[atKey:], key[:])
	b[atServices] = byte(len(r.Services))
	for _, name := range r.Services {
		b = append(b, byte(len(name)))
		b = append(b, name...)
	}
	return b
}

// decode reads the fields and gives the number of their bytes. What it accepts,
// encode gives back byte for byte.
func (r *Request) decode(b []byte) (key Fingerprint, n int, err error) {
	if len(b) <= atServices {
		return key, 0, ErrRequest
	}
	flags := b[atFlags]
	*r = Request{
		Stamp:  int64(binary.BigEndian.Uint64(b)),
		Action: Action(b[atAction]),
		For:    time.Duration(binary.BigEndian.Uint32(b[atFor:])) * time.Second,
		Own:    flags&flagOwn != 0,
	}
	ip4, ip6 := netip.AddrFrom4([4]byte(b[atIPv4:atIPv6])), netip.AddrFrom16([16]byte(b[atIPv6:atKey]))
	if flags&flagIPv4 != 0 {
		r.IPv4 = ip4
	} else if ip4 != netip.IPv4Unspecified() {
		return key, 0, ErrRequest
	}
	if flags&flagIPv6 != 0 {
		r.IPv6 = ip6
	} else if ip6 != netip.IPv6Unspecified() {
		return key, 0, ErrRequest
	}
	key = Fingerprint(b[atKey:atServices])
	n = atServices + 1
	for range b[atServices] {
		name, ok := take(b[n:])
		if !ok {
			return key, 0, ErrRequest
		}
		r.Services = append(r.Services, name)
		n += 1 + len(name)
	}
	if flags >= flagsEnd || r.check() != nil {
		return key, 0, ErrRequest
	}
	return key, n, nil
}

// take reads a name with its length before it.
func take(b []byte) (string, bool) {
	if len(b) == 0 || len(b) < 1+int(b[0]) {
		return "", false
	}
	return string(b[1 : 1+int(b[0])]), true
}
