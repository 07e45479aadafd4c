package config

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sallyport/sallyport/internal/otp"
	"github.com/sallyport/sallyport/internal/sequence"
)

// The defaults of knocks of type "otp".
const (
	otpSteps    = 5
	otpTimeStep = 30 * time.Second
)

// maxRanges is how many runs of ports a pool may have: at 12 bytes each, the line that
// users are given stays below the 4,096 bytes that clients read.
const maxRanges = 256

func otpPool() []PortRange { return []PortRange{{sequence.TCP, 20000, 39999}} }
func otpBase() PortRange   { return PortRange{sequence.TCP, 7000, 7000} }

// otpPorts gives the ports that the steps of a knock of type "otp" can have.
func (k *Knock) otpPorts() []PortRange {
	if k.Digits > 0 {
		span := k.OTPDigits().Span()
		return []PortRange{{k.Base.Proto, span.Low, span.High}}
	}
	var ports []PortRange
	for _, s := range k.OTPDoor().Pool {
		ports = append(ports, PortRange{k.Pool[0].Proto, s.Low, s.High})
	}
	return ports
}

// OTPDoor gives what the sequences of a knock of type "otp" follow from. Of one with
// digits it has the time step and the name.
func (k *Knock) OTPDoor() otp.Door {
	if k.Digits > 0 {
		return otp.Door{Name: k.Name, TimeStep: otp.CodeStep, AnyAddress: true}
	}
	return otp.Door{Name: k.Name, Pool: otp.NewPool(spansOf(k.Pool), spansOf(k.LeaveOut)), Steps: k.Steps, TimeStep: k.TimeStep, AnyAddress: k.AnyAddress}
}

// OTPDigits gives how codes go to ports; its Count is 0 where the knock takes none.
func (k *Knock) OTPDigits() otp.Digits { return otp.Digits{Base: k.Base.Low, Count: k.Digits} }

func spansOf(ranges []PortRange) []otp.Span {
	var spans []otp.Span
	for _, r := range ranges {
		spans = append(spans, otp.Span{Low: r.Low, High: r.High})
	}
	return spans
}

// checkOTP looks at a knock of type "otp".
func checkOTP(r *reader, c *Config, i int) {
	k := &c.Knocks[i]
	path := join("knock", k.Name)
	if k.Secrets == "" && !r.faulty[join(path, "secrets")] {
		r.fault(path, `%s lets nobody in; add secrets = "FILE", which 'sallyport keygen --secret NAME' writes to`, path)
	}
	for _, key := range []string{"pool", "leave_out", "steps", "time_step", "digits", "base"} {
		if r.faulty[join(path, key)] {
			return
		}
	}
	good := checkPool(r, path, k)
	if k.Digits > 0 {
		good = checkDigits(r, path, k)
	} else if k.Base != otpBase() {
		r.fault(join(path, "base"), "%s.base is where the ports of a code begin, and without digits = 6 or 8 there is none; leave it out, or add digits", path)
	}
	if good {
		checkInUse(r, c, i)
	}
}

// checkDigits reports whether the ports of the codes can be told.
func checkDigits(r *reader, path string, k *Knock) bool {
	if !slices.Equal(k.Pool, otpPool()) || len(k.LeaveOut) > 0 || k.Steps != otpSteps || k.TimeStep != otpTimeStep || k.AnyAddress {
		r.fault(join(path, "digits"), "%s.digits makes an authenticator app's code the knock, whose ports, steps and 30 s are set by it; leave out pool, leave_out, steps, time_step and any_address, or digits", path)
		return false
	}
	if err := k.OTPDigits().Check(); err != nil {
		key := "base"
		if k.Digits != 6 && k.Digits != 8 {
			key = "digits"
		}
		r.fault(join(path, key), "%s.%s: %v", path, key, err)
		return false
	}
	return true
}

// checkPool reports whether the pool gives sequences that can't be guessed.
func checkPool(r *reader, path string, k *Knock) bool {
	if len(k.Pool) == 0 {
		r.fault(join(path, "pool"), `%s.pool is empty; leave it out for ["20000-39999/tcp"]`, path)
		return false
	}
	for _, list := range []struct {
		key    string
		ranges []PortRange
	}{{"pool", k.Pool}, {"leave_out", k.LeaveOut}} {
		at := join(path, list.key)
		for j, p := range list.ranges {
			if p.Proto != k.Pool[0].Proto {
				r.fault(item(at, j), "%s has ports of both protocols; all steps of such a knock have one, so name ports of %s only", at, k.Pool[0].Proto)
				return false
			}
			for _, q := range list.ranges[:j] {
				if p.Overlaps(q) {
					r.fault(item(at, j), "%s has %s and %s, which overlap; name each port once", at, q, p)
					return false
				}
			}
		}
	}
	if k.Digits > 0 {
		return true
	}
	door := k.OTPDoor()
	if err := door.Check(); err != nil {
		at := path
		if pool := join(path, "pool"); errors.Is(err, otp.ErrPool) && r.lines.has(pool) {
			at = pool
		}
		r.fault(at, "%s: %v", at, err)
		return false
	}
	if n := len(door.Pool); n > maxRanges {
		r.fault(path, "%s: what is left of its pool is %d ranges, and the line that users are given has room for %d; leave out whole ranges, or take another pool", path, n, maxRanges)
		return false
	}
	return true
}

// checkInUse wants no port in a sequence or code that is something else's: its
// users would end their own attempts by using that, and a port that came to be in
// use later would be left out by one side only. So what is in use stands in the
// config, and with it in what the clients are given.
func checkInUse(r *reader, c *Config, i int) {
	k := &c.Knocks[i]
	path := join("knock", k.Name)
	own := k.Ports() // of a pool they take a while
	var what []string
	var ports []PortRange
	use := func(of string, list []PortRange) {
		if cut := overlapping(own, list); len(cut) > 0 {
			what, ports = append(what, of), append(ports, cut...)
		}
	}
	use("daemon.public", c.Daemon.Public)
	for _, s := range c.Services {
		if len(s.On) == 0 {
			use("service."+s.Name, s.Ports)
		}
	}
	for j := range c.Knocks {
		// Of two pools none is fixed. A sequence's steps are secret, and messages are logged.
		other := &c.Knocks[j]
		switch {
		case j == i || other.Type == "" || other.Type == "otp" && (other.Digits == 0 || k.Digits > 0 && j > i):
		case other.Type != "sequence":
			use("knock."+other.Name, other.Ports())
		case len(overlapping(own, other.Ports())) > 0:
			r.fault(path, "%s can have steps at ports that are steps of knock.%s too; leave them out of its ports, or take others", path, other.Name)
		}
	}
	switch {
	case len(ports) == 0:
	case k.Digits > 0:
		r.fault(join(path, "base"), "%s.base: the codes' ports from %s on are in use by %s; take another base", path, k.Base, strings.Join(what, ", "))
	default:
		r.fault(join(path, "pool"), "%s.pool has ports in use by %s; add leave_out = %s, and give the users the new line of 'sallyport invite'", path, strings.Join(what, ", "), leaveOut(k, ports))
	}
}

// overlapping gives what is in some range of a and in some of b.
func overlapping(a, b []PortRange) (both []PortRange) {
	for _, p := range a {
		for _, q := range b {
			if p.Overlaps(q) {
				both = append(both, PortRange{p.Proto, max(p.Low, q.Low), min(p.High, q.High)})
			}
		}
	}
	return both
}

// leaveOut spells what a knock leaves out and these ports as a list to paste.
func leaveOut(k *Knock, ports []PortRange) string {
	all := slices.Concat(k.LeaveOut, ports)
	slices.SortFunc(all, func(a, b PortRange) int { return cmp.Compare(a.Low, b.Low) })
	var words []string
	for _, s := range otp.NewPool(spansOf(all), nil) {
		words = append(words, fmt.Sprintf("%q", PortRange{k.Pool[0].Proto, s.Low, s.High}.String()))
	}
	return "[" + strings.Join(words, ", ") + "]"
}
