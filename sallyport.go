// Package sallyport knocks: it asks a server to open a hidden port, and
// connects to it.
//
// A [Knock] is one way to ask: a [Sequence] of packets, a [Request], which is one
// encrypted datagram that an SSH key signed, or by a shared secret an [OTP], whose
// ports follow from the time, or an [Encoded] message in port numbers. A [Dialer] sends it and
// then connects; its DialContext fits wherever a net.Dialer's does, for example
// in an http.Transport. What privilege sending needs is said at [Plan.Send]:
// for most knocks none, on Linux, macOS and Windows.
package sallyport

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/sallyport/sallyport/internal/sequence"
)

// Knock is one way to ask a server for services: a Sequence, a *Request,
// an *OTP or an *Encoded.
type Knock interface {
	// Validate says what keeps the knock from being sent. It looks at nothing
	// outside: no clock, no key, no network.
	Validate() error
	// Plan gives the packets that ask once. The zero local is the address that
	// the system would use.
	Plan(local, remote netip.Addr) (*Plan, error)
}

// Proto is the protocol of a packet.
type Proto = sequence.Proto

// The protocols that have a name.
const (
	TCP     = sequence.TCP
	UDP     = sequence.UDP
	ICMP    = sequence.ICMP
	SCTP    = sequence.SCTP
	DCCP    = sequence.DCCP
	UDPLite = sequence.UDPLite
)

// Step is one packet of a sequence. Its text form, read by [ParseSequence] and
// given by String, is "7000/tcp", "8500/udp", "icmp" or "37/icmp" (a ping of
// exactly 37 payload bytes), "9000/sctp", "9000/dccp", "9000/udplite", or
// "proto/47" (any packet of IP protocol 47).
type Step = sequence.Step

// MaxSteps is the longest sequence, in steps.
const MaxSteps = sequence.MaxSteps

// DefaultDelay is the pause between two steps. Each step is a flow of its own,
// so routers with several equal paths, Wi-Fi retries and receive queues may let
// a later one overtake; they differ by a few milliseconds, seldom by more than
// ten, and a sequence in the wrong order opens nothing.
const DefaultDelay = 20 * time.Millisecond

// Sequence is a knock that anything can send: packets to a few ports in the
// right order. A value may be used by several goroutines as long as nobody
// changes it.
type Sequence struct {
	// Steps has 1 to MaxSteps steps, sent in this order.
	Steps []Step
	// Delay is the pause between two steps. Zero means DefaultDelay, a
	// negative value no pause at all.
	Delay time.Duration
}

// ParseSequence reads steps that are separated by white space, such as
// "7000/tcp 8500/udp 7800/tcp". The error says which step is wrong and why.
func ParseSequence(text string) (Sequence, error) {
	var s Sequence
	for field := range strings.FieldsSeq(text) {
		step, err := sequence.ParseStep(field)
		if err != nil {
			return Sequence{}, err
		}
		s.Steps = append(s.Steps, step)
	}
	return s, s.Validate()
}

// Validate says what keeps the sequence from being sent: no steps, more than
// MaxSteps, or a step that no ordinary socket can send.
func (s Sequence) Validate() error {
	if len(s.Steps) == 0 {
		return errors.New("the knock has no steps: name at least one, such as 7000/tcp")
	}
	if len(s.Steps) > MaxSteps {
		return fmt.Errorf("the knock has %d steps: %d is the most a server takes", len(s.Steps), MaxSteps)
	}
	for i, step := range s.Steps {
		switch step.Proto {
		case TCP:
			// connect(2) sends a SYN and no other flag that a step can name.
			if !step.Flags.Match(sequence.SYN) {
				return fmt.Errorf("step %d, %s, is no plain SYN, and that is all a connect can send: "+
					"use a step without flags, or a packet generator such as hping3", i+1, step)
			}
		case UDP, ICMP, SCTP, DCCP, UDPLite:
		default:
			if step.Proto.Bare() {
				continue
			}
			return fmt.Errorf("step %d has no protocol: read steps with ParseSequence", i+1)
		}
	}
	return nil
}

// Plan gives a packet for each step. It is good for ever.
func (s Sequence) Plan(local, remote netip.Addr) (*Plan, error) {
	if err := s.Validate(); err != nil {
		return nil, err
	}
	p, err := newPlan(local, remote)
	if err != nil {
		return nil, err
	}
	for i, step := range s.Steps {
		p.Packets = append(p.Packets, packetOf(step))
		if i > 0 {
			p.Packets[i].Wait = s.delay()
		}
	}
	return p, nil
}

// The random payloads of steps, in bytes. Random bytes rather than none or a
// constant: over IPv6 nothing else tells two equal steps from a repeat by the
// network, and an empty datagram is dropped by some middleboxes. A ping that
// leaves the size open has what ping(8) sends, so that it looks like any ping.
const (
	datagramSize = 8
	pingSize     = 56
)

func packetOf(step Step) Packet {
	switch {
	case step.Proto == UDP || step.Proto == UDPLite || step.Proto.Bare():
		return Packet{Proto: step.Proto, Port: step.Port, Size: datagramSize}
	case step.Proto == ICMP && step.AnySize:
		return Packet{Proto: ICMP, Size: pingSize}
	case step.Proto == ICMP:
		return Packet{Proto: ICMP, Size: int(step.Port)}
	}
	return Packet{Proto: step.Proto, Port: step.Port}
}

func (s Sequence) delay() time.Duration {
	if s.Delay == 0 {
		return DefaultDelay
	}
	return max(s.Delay, 0)
}
