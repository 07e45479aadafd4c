package otp

import (
	"crypto/hmac"
	"crypto/sha1"
	"encoding/binary"
	"fmt"
	"math"
	"time"
)

// CodeStep is how long a code is good: what every authenticator app takes.
const CodeStep = 30 * time.Second

// Tries is how many wrong codes one source may send in a time step before none of
// its codes counts: there are few enough codes to be guessed.
const Tries = 5

// Code is the code of a moment by RFC 6238 with SHA-1 and 30 s, as authenticator
// apps have it, in 6 or 8 digits.
func Code(secret []byte, t time.Time, digits int) string {
	return CodeAt(secret, number(t, CodeStep), digits)
}

// CodeAt is the code of a time step (RFC 4226, 5.3).
func CodeAt(secret []byte, number uint64, digits int) string {
	mac := hmac.New(sha1.New, secret)
	mac.Write(binary.BigEndian.AppendUint64(nil, number))
	sum := mac.Sum(nil)
	x := binary.BigEndian.Uint32(sum[sum[len(sum)-1]&15:]) & math.MaxInt32
	return fmt.Sprintf("%0*d", digits, uint64(x)%uint64(math.Pow10(digits)))
}

// Digits is how codes go to ports: each pair of digits to one of its own hundred.
type Digits struct {
	Base  uint16 // a multiple of 100
	Count int    // 6 or 8
}

// Steps is how many packets a code takes.
func (d Digits) Steps() int { return d.Count / 2 }

// Span is all ports that a code can go to.
func (d Digits) Span() Span { return Span{d.Base, d.Base + uint16(100*d.Steps()-1)} }

// Check says what keeps codes from going to ports.
func (d Digits) Check() error {
	switch {
	case d.Count != 6 && d.Count != 8:
		return fmt.Errorf("a code has 6 or 8 digits, not %d", d.Count)
	case d.Base == 0 || d.Base%100 != 0:
		return fmt.Errorf("the base must be a multiple of 100, so that the digits can be read in the ports; %d is not", d.Base)
	case int(d.Base)+100*d.Steps()-1 > math.MaxUint16:
		return fmt.Errorf("with the base %d the last ports would be above 65535", d.Base)
	}
	return nil
}

// Ports gives the ports of a code; nil if it is no code of this many digits.
func (d Digits) Ports(code string) []uint16 {
	if len(code) != d.Count {
		return nil
	}
	var ports []uint16
	for i := range d.Steps() {
		tens, ones := code[2*i]-'0', code[2*i+1]-'0'
		if tens > 9 || ones > 9 {
			return nil
		}
		ports = append(ports, d.Base+100*uint16(i)+10*uint16(tens)+uint16(ones))
	}
	return ports
}

// Bits is the binary logarithm of how many guesses open the door for one person:
// the codes of three time steps are good at a time.
func (d Digits) Bits() float64 { return float64(d.Count)*math.Log2(10) - math.Log2(Window) }
