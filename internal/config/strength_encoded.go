package config

import (
	"fmt"
	"math"
)

// encodedBits is the length of the tag that a forger has to guess.
const encodedBits = 96

// encodedStrength is the strength of a knock of type "encoded". A scan that chances
// on a port of each part has guessed once.
func encodedStrength(k *Knock) Strength {
	shape := k.Shape()
	odds := math.Exp2(-encodedBits)
	return Strength{
		Knock: k.Name, Kind: "encoded", Guesses: 1 / odds, Bits: encodedBits,
		ScanAll: odds, ScanPopular: odds, Parts: shape.Steps(), Bytes: shape.Size(),
	}
}

// encodedString says it in one line.
func (s Strength) encodedString() string {
	return fmt.Sprintf("knock.%s: a message of %d bytes in %d packets, sealed: a forger guesses one in 2^%.0f for each person, and a scan guesses once at most",
		s.Knock, s.Bytes, s.Parts, s.Bits)
}
