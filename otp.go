package sallyport

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/sallyport/sallyport/internal/otp"
	"github.com/sallyport/sallyport/internal/secrets"
)

// Span is an unbroken run of ports, from Low to High.
type Span = otp.Span

// OTP is a knock whose ports follow from a shared secret and the time: steps out of
// a pool of ports, or the digits of an authenticator app's code. It asks for all
// that the secret opens, for whoever sends it, and the server takes it once.
//
// [ParseOTP] reads it from the line that the server's owner hands out. A value may
// be used by several goroutines as long as nobody changes it.
type OTP struct {
	Door   string // the knock's name in the server's config
	Secret []byte // 16 to 64 bytes
	Proto  Proto  // TCP or UDP
	// Pool, Steps, TimeStep and AnyAddress are the server's. They count without
	// Digits.
	Pool       []Span
	Steps      int
	TimeStep   time.Duration // whole seconds
	AnyAddress bool          // the ports do not depend on who sends
	// Digits is 6 or 8 for the code of an authenticator app (RFC 6238), whose pairs
	// of digits are ports from Base on; 0: no code.
	Digits int
	Base   uint16
	Within time.Duration // how long the server waits for the last step
	// Code is what an app shows now, in place of the secret's own; empty: none.
	Code string
	// Addresses are those that the server sees, at most one of each family. None: the
	// local one, if nothing translates it on the way.
	Addresses []netip.Addr
	// Delay is the pause between two steps. Zero means DefaultDelay, a negative
	// value no pause at all.
	Delay time.Duration
	// Now gives the time; nil: time.Now.
	Now func() time.Time
}

const otpWord = "sallyport-otp"

// ParseOTP reads "sallyport-otp 1" and what follows, one line of words NAME=VALUE,
// as Line gives it. The error quotes no value.
func ParseOTP(line string) (*OTP, error) {
	f, err := readFields(line, otpWord, "door", "pool", "steps", "step", "any-address", "digits", "base", "within", "secret")
	if err != nil {
		return nil, err
	}
	k := &OTP{Door: f.text("door"), Secret: f.secret("secret"), Within: f.duration("within")}
	if f.has("digits") {
		k.Digits = f.number("digits", 8)
		k.Base, k.Proto = f.port("base")
	} else {
		k.Pool, k.Proto = f.pool("pool")
		k.Steps = f.number("steps", MaxSteps)
		k.TimeStep = f.duration("step")
		k.AnyAddress = f.flag("any-address")
	}
	if err := f.end(); err != nil {
		return nil, err
	}
	return k, k.Validate()
}

// Line gives the line that ParseOTP reads, secret and all: for a file that its owner
// alone can read. Code, Addresses, Delay and Now are not part of it.
func (k *OTP) Line() string {
	words := []string{otpWord, "1", "door=" + k.Door}
	if k.Digits > 0 {
		words = append(words, fmt.Sprintf("digits=%d", k.Digits), fmt.Sprintf("base=%d/%v", k.Base, k.Proto))
	} else {
		words = append(words, "pool="+spellPool(k.Pool, k.Proto), fmt.Sprintf("steps=%d", k.Steps), fmt.Sprintf("step=%v", k.TimeStep))
		if k.AnyAddress {
			words = append(words, "any-address")
		}
	}
	return strings.Join(append(words, fmt.Sprintf("within=%v", k.Within), "secret="+secrets.Encode(k.Secret)), " ")
}

// String says what it is, without the secret.
func (k *OTP) String() string { return "one-time ports of " + k.Door }

// GoString is String: what is printed by mistake keeps the secret.
func (k *OTP) GoString() string { return k.String() }

// Validate says what keeps the knock from being sent: a field that is out of range.
func (k *OTP) Validate() error {
	if err := checkShared(k.Door, k.Secret, k.Proto, k.Within); err != nil {
		return err
	}
	if k.Digits > 0 {
		return k.validateDigits()
	}
	if err := checkAddresses(k.Addresses); err != nil {
		return err
	}
	switch {
	case k.Code != "":
		return errors.New("a code is for knocks with digits: the ports of this one follow from the secret alone")
	case k.TimeStep < time.Second || k.TimeStep%time.Second != 0:
		return fmt.Errorf("the time step is %v: it takes whole seconds, as the server has them", k.TimeStep)
	}
	door := k.door()
	return door.Check()
}

func (k *OTP) validateDigits() error {
	d := otp.Digits{Base: k.Base, Count: k.Digits}
	if k.Code != "" && d.Ports(k.Code) == nil {
		return fmt.Errorf("the code must have %d digits, as the app shows them, without a space", k.Digits)
	}
	return d.Check()
}

func (k *OTP) door() otp.Door {
	return otp.Door{Name: k.Door, Pool: k.Pool, Steps: k.Steps, TimeStep: k.TimeStep, AnyAddress: k.AnyAddress}
}

// Bound reports whether the ports depend on the address that the server sees.
func (k *OTP) Bound() bool { return k.Digits == 0 && !k.AnyAddress }

// Ports gives the ports of a time in their order, for an address that the server
// sees, which counts only if Bound. They are good until the end of their time step
// and, since servers allow for clocks, about one step longer.
func (k *OTP) Ports(now time.Time, seen netip.Addr) (ports []uint16, until time.Time, err error) {
	if err := k.Validate(); err != nil {
		return nil, time.Time{}, err
	}
	if k.Digits > 0 {
		code := k.Code
		if code == "" {
			code = otp.Code(k.Secret, now, k.Digits)
		}
		d := otp.Digits{Base: k.Base, Count: k.Digits}
		return d.Ports(code), k.StepEnd(now), nil
	}
	if k.Bound() && !seen.IsValid() {
		return nil, time.Time{}, errors.New("the ports depend on the address that the server sees: say which one")
	}
	d := k.door()
	return d.Ports(nil, k.Secret, d.Number(now), seen.Unmap().WithZone("")), k.StepEnd(now), nil
}

// Step is for how long the ports stay the same: TimeStep, or 30 s with Digits.
func (k *OTP) Step() time.Duration {
	if k.Digits > 0 {
		return otp.CodeStep
	}
	return k.TimeStep
}

// StepEnd is when the time step ends that a time is in, of a knock that is valid.
// Steps count from 1970.
func (k *OTP) StepEnd(now time.Time) time.Time {
	seconds := int64(k.Step() / time.Second)
	return time.Unix((now.Unix()/seconds+1)*seconds, 0)
}

// Plan gives the steps that are good now.
func (k *OTP) Plan(local, remote netip.Addr) (*Plan, error) {
	if err := k.Validate(); err != nil {
		return nil, err
	}
	p, err := newPlan(local, remote)
	if err != nil {
		return nil, err
	}
	seen, err := k.seen(p.Local, p.Remote)
	if err != nil {
		return nil, err
	}
	ports, until, err := k.Ports(k.now(), seen)
	if err != nil {
		return nil, err
	}
	for i, port := range ports {
		packet := packetOf(Step{Proto: k.Proto, Port: port})
		if i > 0 {
			packet.Wait = Sequence{Delay: k.Delay}.delay()
		}
		p.Packets = append(p.Packets, packet)
	}
	whom := ""
	if k.Bound() {
		whom = fmt.Sprintf(", for address: %s", seen)
	}
	p.Until, p.About = until, fmt.Sprintf("%v%s, good once, until %s", k, whom, until.UTC().Format("15:04:05 UTC"))
	return p, nil
}

func (k *OTP) now() time.Time {
	if k.Now != nil {
		return k.Now()
	}
	return time.Now()
}

// TranslatedError says that an address of this host is not the one that the server
// sees, so that the ports for it would be wrong.
type TranslatedError struct{ Local, Remote netip.Addr }

// Error says what to do.
func (e *TranslatedError) Error() string {
	return fmt.Sprintf("%s is not the address that %s sees, which the ports depend on: something translates it on the way (NAT); "+
		"say the one that others see, or ask the server's owner for any_address = true", e.Local, e.Remote)
}

// seen is the address that the server sees: ours, unless it can't be. Between two
// addresses that are not public nothing need be translated.
func (k *OTP) seen(local, remote netip.Addr) (netip.Addr, error) {
	if !k.Bound() {
		return netip.Addr{}, nil
	}
	for _, a := range k.Addresses {
		if a.Unmap().Is4() == remote.Is4() {
			return a.Unmap(), nil
		}
	}
	if public(remote) && !public(local) {
		return netip.Addr{}, &TranslatedError{local, remote}
	}
	return local, nil
}
