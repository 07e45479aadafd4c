package config

import (
	"fmt"
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
}

// StrengthOf computes a knock's strength on a machine where these ports listen.
func StrengthOf(c *Config, k *Knock, listening []PortRange) Strength {
	innocent := Innocent(c, listening)
	seq := sequence.Sequence{Name: k.Name, Steps: k.Sequence, Within: k.Within, Strict: k.Strict}
	return Strength{
		Knock:       k.Name,
		Guesses:     sequence.Guesses(k.Sequence),
		Bits:        sequence.Bits(k.Sequence),
		ScanAll:     sequence.ScanOdds(seq, innocent, 65535),
		ScanPopular: sequence.ScanOdds(seq, innocent, 1000),
	}
}

// Innocent gives the ports that are never a wrong step, so that a user who also
// browses is not reset: hidden services, public ports, ports that
// listen, and those of knocks of other types.
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
	return fmt.Sprintf("knock.%s: %s guesses (%.0f bits); one scan in random order opens it with probability %.2g (all ports) or about %.2g (nmap's top 1,000)",
		s.Knock, spellCount(s.Guesses), s.Bits, s.ScanAll, s.ScanPopular)
}

func spellCount(n float64) string {
	if n < 1e6 {
		return fmt.Sprintf("%.0f", n)
	}
	return fmt.Sprintf("%.2g", n)
}
