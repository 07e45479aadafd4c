// Package sallyport knocks: it sends the sequence of packets that opens a
// hidden port, and connects to it.
//
// A [Knock] is the sequence. A [Dialer] sends it and then connects; its
// DialContext fits wherever a net.Dialer's does, for example in an
// http.Transport. It runs without privileges on Linux, macOS and Windows for
// TCP and UDP steps; what ICMP steps need is said at [Knock.Send].
package sallyport

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/sallyport/sallyport/internal/sequence"
)

// Step is one packet of a knock. Its text form, read by [ParseKnock] and given
// by String, is "7000/tcp", "8500/udp", "icmp" or "37/icmp" (a ping of exactly
// 37 payload bytes).
type Step = sequence.Step

// MaxSteps is the longest knock, in steps.
const MaxSteps = sequence.MaxSteps

// DefaultDelay is the pause between two steps. Each step is a flow of its own,
// so routers with several equal paths, Wi-Fi retries and receive queues may let
// a later one overtake; they differ by a few milliseconds, seldom by more than
// ten, and a knock in the wrong order opens nothing.
const DefaultDelay = 20 * time.Millisecond

// Knock is one way to ask a server for a service: a sequence of packets. A
// value may be used by several goroutines as long as nobody changes it.
type Knock struct {
	// Steps has 1 to MaxSteps steps, sent in this order.
	Steps []Step
	// Delay is the pause between two steps. Zero means DefaultDelay, a
	// negative value no pause at all.
	Delay time.Duration
	// Local is the address that every step comes from. The zero Addr means
	// the one that the system would use, chosen once for the whole knock.
	Local netip.Addr
}

// ParseKnock reads steps that are separated by white space, such as
// "7000/tcp 8500/udp 7800/tcp". The error says which step is wrong and why.
func ParseKnock(text string) (Knock, error) {
	var k Knock
	for field := range strings.FieldsSeq(text) {
		step, err := sequence.ParseStep(field)
		if err != nil {
			return Knock{}, err
		}
		k.Steps = append(k.Steps, step)
	}
	return k, k.Validate()
}

// Validate says what keeps the knock from being sent: no steps, more than
// MaxSteps, or a step that no ordinary socket can send. It looks at nothing
// outside the Knock.
func (k *Knock) Validate() error {
	if len(k.Steps) == 0 {
		return errors.New("the knock has no steps: name at least one, such as 7000/tcp")
	}
	if len(k.Steps) > MaxSteps {
		return fmt.Errorf("the knock has %d steps: %d is the most a server takes", len(k.Steps), MaxSteps)
	}
	for i, s := range k.Steps {
		switch s.Proto {
		case sequence.TCP:
			// connect(2) sends a SYN and no other flag that a step can name.
			if !s.Flags.Match(sequence.SYN) {
				return fmt.Errorf("step %d, %s, is no plain SYN, and that is all a connect can send: "+
					"use a step without flags, or a packet generator such as hping3", i+1, s)
			}
		case sequence.UDP, sequence.ICMP:
		default:
			return fmt.Errorf("step %d has no protocol: read steps with ParseKnock", i+1)
		}
	}
	return nil
}

func (k *Knock) delay() time.Duration {
	if k.Delay == 0 {
		return DefaultDelay
	}
	return k.Delay
}
