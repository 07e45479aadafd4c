package config

import (
	"fmt"
	"math"
	"slices"

	"github.com/sallyport/sallyport/internal/sequence"
)

// Strength is how hard one knock is to open for someone who does not know it
// and can't read the path.
type Strength struct {
	Knock   string  `json:"knock"`
	Guesses float64 `json:"guesses"` // sequences to try: see sequence.Guesses
	Bits    float64 `json:"bits"`    // their binary logarithm
	// ScanAll and ScanPopular are the probabilities that one scan in random
	// order opens it: of all 65,535 ports, and about, of nmap's top 1,000.
	ScanAll     float64 `json:"scan_all"`
	ScanPopular float64 `json:"scan_popular"`
	Lines       int     `json:"lines,omitempty"`  // of a list: how many are taken at once
	Kind        string  `json:"type,omitempty"`   // "otp", "encoded", or "" for a sequence
	Digits      int     `json:"digits,omitempty"` // of an authenticator app's code
	Parts       int     `json:"parts,omitempty"`  // of an encoded message: its packets
	Bytes       int     `json:"bytes,omitempty"`  // and its bytes
}

// StrengthOf computes a knock's strength on a machine where these ports listen.
func StrengthOf(c *Config, k *Knock, listening []PortRange) Strength {
	switch k.Type {
	case "otp":
		return otpStrength(k)
	case "encoded":
		return encodedStrength(k)
	}
	innocent := Innocent(c, listening)
	if k.List != "" {
		return listStrength(k, innocent)
	}
	seq := sequence.Sequence{Name: k.Name, Steps: k.Sequence, Within: k.Within, Strict: k.Strict}
	return Strength{
		Knock:       k.Name,
		Guesses:     sequence.Guesses(k.Sequence),
		Bits:        sequence.Bits(k.Sequence),
		ScanAll:     sequence.ScanOdds(seq, innocent, 65535),
		ScanPopular: sequence.ScanOdds(seq, innocent, 1000),
	}
}

// listStrength counts for all lines that are taken at once: a guess has as many
// chances, and so has a scan. The odds of a scan are at most the sum of theirs.
func listStrength(k *Knock, innocent []sequence.Span) Strength {
	s := Strength{Knock: k.Name, Guesses: 1}
	chances := 0.0
	for _, steps := range k.Lines() {
		if len(steps) == 0 {
			return s // nothing opens it
		}
		s.Lines++
		seq := sequence.Sequence{Steps: steps, Within: k.Within, Strict: k.Strict}
		chances += 1 / sequence.Guesses(steps)
		s.ScanAll += sequence.ScanOdds(seq, innocent, 65535)
		s.ScanPopular += sequence.ScanOdds(seq, innocent, 1000)
	}
	s.Guesses = max(1, 1/chances)
	s.Bits = math.Log2(s.Guesses)
	s.ScanAll, s.ScanPopular = min(1, s.ScanAll), min(1, s.ScanPopular)
	return s
}

// Innocent gives the ports that are never a wrong step, so that a user who also
// browses is not reset: hidden services, public ports, ports that listen, and those
// of knocks of type "spa". The ports of otp and encoded are none: there are thousands,
// among which a scan would meet the steps without a wrong one between.
func Innocent(c *Config, listening []PortRange) []sequence.Span {
	ranges := slices.Concat(c.Daemon.Public, listening)
	for i := range c.Services {
		ranges = append(ranges, c.Services[i].Ports...)
	}
	for i := range c.Knocks {
		if c.Knocks[i].Type == "spa" {
			ranges = append(ranges, c.Knocks[i].Ports()...)
		}
	}
	spans := make([]sequence.Span, 0, len(ranges))
	for _, r := range ranges {
		spans = append(spans, sequence.Span{Proto: r.Proto, Low: r.Low, High: r.High})
	}
	return spans
}

// String says it in one line.
func (s Strength) String() string {
	switch s.Kind {
	case "otp":
		return s.otpString()
	case "encoded":
		return s.encodedString()
	}
	of := ""
	if s.Lines > 0 {
		of = fmt.Sprintf(" for any of the %d lines that are taken at once", s.Lines)
	}
	return fmt.Sprintf("knock.%s: %s guesses (%.0f bits)%s; one scan in random order opens it with probability %.2g (all ports) or about %.2g (nmap's top 1,000)",
		s.Knock, spellCount(s.Guesses), s.Bits, of, s.ScanAll, s.ScanPopular)
}

func spellCount(n float64) string {
	if n < 1e6 {
		return fmt.Sprintf("%.0f", n)
	}
	return fmt.Sprintf("%.2g", n)
}
