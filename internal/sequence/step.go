// Package sequence holds the spelling of port sequences and the matcher that
// follows many sources through them. It imports nothing of ours, so that the
// client, the config reader and the engine agree on one spelling.
package sequence

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// MaxSteps is the longest sequence, in steps; it is knockd's limit too
// (SEQ_MAX in knockd.c).
const MaxSteps = 32

// MaxEcho is the largest ICMP echo payload in bytes: 65,535 (RFC 791 total
// length) less a 20-byte IPv4 header and the 8-byte echo header.
const MaxEcho = 65507

// Step is one packet of a sequence. The zero value is no valid step.
type Step struct {
	Proto Proto
	// Port is the destination port of a step whose protocol has ports, 1 to 65535,
	// or 0 where a knockd.conf says what is no number. For an ICMP step it is the
	// exact number of payload bytes, 0 to MaxEcho; for a bare protocol 0.
	Port uint16
	// AnySize is true for an ICMP step that takes an echo request of any size.
	AnySize bool
	// Flags is the condition of a TCP step; Opening unless the step names flags or
	// says "any".
	Flags Flags
}

// TCP flags as they stand in byte 13 of the header (RFC 9293 section 3.1).
const (
	FIN uint8 = 1 << iota
	SYN
	RST
	PSH
	ACK
	URG
)

var flagNames = []struct {
	name string
	bit  uint8
}{{"fin", FIN}, {"syn", SYN}, {"rst", RST}, {"psh", PSH}, {"ack", ACK}, {"urg", URG}}

// Flags is a condition on TCP flags: every bit of Set is set and every bit of
// Clear is clear.
type Flags struct{ Set, Clear uint8 }

// Opening is the condition of a step that names no flags: a SYN without ACK,
// RST or FIN, which is what connect(2) sends first.
var Opening = Flags{Set: SYN, Clear: ACK | RST | FIN}

// Nothing is the condition of a step that takes any TCP segment, spelled "any":
// what knockd does where a door has no TCPFlags. One connection then makes
// several such packets.
var Nothing = Flags{}

// Match reports whether the flags byte of a TCP header meets the condition.
func (f Flags) Match(b uint8) bool { return b&f.Set == f.Set && b&f.Clear == 0 }

// ParseStep reads one step: "7000/tcp", "8500/udp", "7000/tcp:syn,!ack",
// "7000/tcp:any", "9000/sctp", "9000/dccp", "9000/udplite", "icmp", "37/icmp",
// "proto/47". Its errors say what was expected.
func ParseStep(s string) (Step, error) { return parseStep(s, firstPort) }

func parseStep(s string, lowest uint64) (Step, error) {
	body, flags, named := strings.Cut(s, ":")
	number, name, numbered := strings.Cut(body, "/")
	if !numbered {
		if body == "icmp" && !named {
			return Step{Proto: ICMP, AnySize: true}, nil
		}
		return Step{}, fmt.Errorf("%q is not a step: write it as 7000/tcp, 8500/udp, icmp or 37/icmp", s)
	}
	if number == "proto" {
		return parseBare(s, name, named)
	}
	step := Step{Proto: spelled(name)}
	low, high := lowest, uint64(lastPort)
	switch step.Proto {
	case 0:
		return Step{}, fmt.Errorf("%q names the protocol %q: a step is tcp, udp, icmp, sctp, dccp or udplite, or a bare protocol as in proto/47", s, name)
	case TCP:
		step.Flags = Opening
	case ICMP:
		low, high = 0, MaxEcho
	}
	n, err := parseNumber(number)
	if err != nil || n < low || n > high {
		what := "port"
		if step.Proto == ICMP {
			what = "payload size in bytes"
		}
		return Step{}, fmt.Errorf("%q: the %s must be a number from %d to %d", s, what, low, high)
	}
	step.Port = uint16(n)
	if !named {
		return step, nil
	}
	if step.Proto != TCP {
		return Step{}, fmt.Errorf("%q: only a tcp step can name flags", s)
	}
	if step.Flags, err = parseFlags(flags); err != nil {
		return Step{}, fmt.Errorf("%q: %w", s, err)
	}
	return step, nil
}

// parseNumber takes decimal digits only: strconv alone would take "+7000" and
// "07000" too, and then one step would have several spellings.
func parseNumber(s string) (uint64, error) {
	if s == "" || strings.Trim(s, "0123456789") != "" || (len(s) > 1 && s[0] == '0') {
		return 0, errors.New("not a number")
	}
	return strconv.ParseUint(s, 10, 32)
}

func parseFlags(s string) (Flags, error) {
	if s == "any" {
		return Nothing, nil
	}
	var f Flags
	for item := range strings.SplitSeq(s, ",") {
		bit := flagBit(strings.TrimPrefix(item, "!"))
		switch {
		case bit == 0:
			return Flags{}, fmt.Errorf("%q is not a TCP flag: use fin, syn, rst, psh, ack or urg, !ack for one that must be clear, or any alone for every segment", item)
		case (f.Set|f.Clear)&bit != 0:
			return Flags{}, fmt.Errorf("the flag %q is named twice", item)
		case item[0] == '!':
			f.Clear |= bit
		default:
			f.Set |= bit
		}
	}
	return f, nil
}

func flagBit(name string) uint8 {
	for _, f := range flagNames {
		if f.name == name {
			return f.bit
		}
	}
	return 0
}

// String gives the step in the spelling that ParseStep reads back as an equal
// step.
func (s Step) String() string {
	switch {
	case s.Proto == ICMP && s.AnySize:
		return "icmp"
	case s.Proto != ICMP && !s.Proto.Ported():
		return s.Proto.String()
	}
	text := strconv.Itoa(int(s.Port)) + "/" + s.Proto.String()
	if s.Proto != TCP || s.Flags == Opening {
		return text
	}
	if s.Flags == Nothing {
		return text + ":any"
	}
	sep := ":"
	for _, f := range flagNames {
		switch {
		case s.Flags.Set&f.bit != 0:
			text += sep + f.name
		case s.Flags.Clear&f.bit != 0:
			text += sep + "!" + f.name
		default:
			continue
		}
		sep = ","
	}
	return text
}

// MarshalText is String, for encoding/json.
func (s Step) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText is ParseStep, for the decoders. It takes port 0 too, which nobody
// may write in a config of ours, but which a checked one has from a knockd.conf.
func (s *Step) UnmarshalText(text []byte) error {
	step, err := parseStep(string(text), 0)
	if err == nil {
		*s = step
	}
	return err
}
