package config

import (
	"fmt"
	"math"

	"github.com/sallyport/sallyport/internal/otp"
)

// otpStrength is the strength of a knock of type "otp" for each of its people: a
// guess is as likely to meet any of them.
func otpStrength(k *Knock) Strength {
	s := Strength{Knock: k.Name, Kind: "otp"}
	if k.Digits > 0 {
		s.Bits = k.OTPDigits().Bits()
		s.Guesses = math.Exp2(s.Bits)
		// Each scan makes a few codes by chance, and more tries are not looked at.
		s.ScanAll = otp.Tries / s.Guesses
		s.ScanPopular = s.ScanAll
		s.Digits = k.Digits
		return s
	}
	door := k.OTPDoor()
	s.Bits = door.Bits()
	s.Guesses = math.Exp2(s.Bits)
	size := CountPorts(k.Ports())
	s.ScanAll = otpScanOdds(size, k.Steps, size)
	s.ScanPopular = otpScanOdds(size, k.Steps, int(math.Ceil(float64(size)*1000/65535)))
	return s
}

// otpScanOdds is the probability that one scan in random order, which has scanned
// of the pool's ports in it, opens a knock: every other port of the pool resets, so
// that one of three sequences must stand in it unbroken.
func otpScanOdds(size, steps, scanned int) float64 {
	if scanned < steps {
		return 0
	}
	// The places where it can begin, over all sequences of that many ports.
	log := math.Log(otp.Window) + math.Log(float64(scanned-steps+1))
	for i := range steps {
		log -= math.Log(float64(size - i))
	}
	return math.Exp(log)
}

// otpString says it in one line.
func (s Strength) otpString() string {
	if s.Digits > 0 {
		return fmt.Sprintf("knock.%s: codes of %d digits, %.1f bits for each person, as three codes are good at a time; each address has %d tries in 30s, which open it with probability %.2g, and 1,000 addresses need about %s",
			s.Knock, s.Digits, s.Bits, otp.Tries, s.ScanAll, spellMinutes(s.Guesses/otp.Tries/1000/2))
	}
	return fmt.Sprintf("knock.%s: %s guesses (%.0f bits) for each person; one scan in random order opens it with probability %.2g (all ports) or about %.2g (nmap's top 1,000)",
		s.Knock, spellCount(s.Guesses), s.Bits, s.ScanAll, s.ScanPopular)
}

func spellMinutes(minutes float64) string {
	if minutes < 120 {
		return fmt.Sprintf("%.0f minutes", minutes)
	}
	return fmt.Sprintf("%.0f hours", minutes/60)
}

// otp warns of what is weak in a knock of type "otp".
func (l *linter) otp(k *Knock) {
	name := "knock." + k.Name
	if k.Digits > 0 {
		l.warn("leave digits out where the users can run a program, or use a knock of type spa",
			"%s takes codes of %d digits: somebody with many addresses can guess one, 'sallyport check' says how soon; and whoever forges a user's address can use up its tries, so that it is shut out until the next time step", name, k.Digits)
	}
	listening := overlapping(k.Ports(), l.facts.Listening)
	switch {
	case len(listening) == 0:
	case k.Digits > 0:
		l.warn("take another base", "%s: a program listens at a port of the codes, so its ordinary clients send pairs of digits", name)
	default:
		l.warn("leave_out = "+leaveOut(k, listening), "%s: a program listens at a port of the pool, so that whoever uses it while he knocks ends his own attempt", name)
	}
}
