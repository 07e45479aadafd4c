package sequence

import (
	"math"
)

// guessedSizes is how many payload sizes a guesser has to try for an ICMP step
// that names one: 0 to 1,472, what fits in one IPv4 packet on Ethernet.
// Fragments never make a step.
const guessedSizes = 1473

// Guesses is how many sequences there are to try for someone who knows how
// many steps there are, and each one's protocol and flags, but no port and no
// size: 65,535 for a step with a port, 1,473 for an ICMP step that names a size,
// 1 for one of any size and for a bare protocol: that no scan of ports sends one
// is no secret. A tireless guesser needs about one packet per guess
// and half the guesses. Nobody needs to guess who can read the path. No steps make
// 1, which has to be read as: there is nothing to open.
func Guesses(steps []Step) float64 {
	n := 1.0
	for _, s := range steps {
		switch {
		case s.Portless():
		case s.Proto == ICMP:
			n *= guessedSizes
		default:
			n *= lastPort
		}
	}
	return n
}

// Bits is the binary logarithm of Guesses.
func Bits(steps []Step) float64 { return math.Log2(Guesses(steps)) }

// Order is how the ports of a sequence follow each other.
type Order uint8

// The orders. Rising and falling sequences don't open to a scan, but they are
// what a person who looks at a capture guesses first.
const (
	Mixed Order = iota
	Ascending
	Descending
)

var orders = []string{"mixed", "ascending", "descending"}

// String gives the word that the operator reads.
func (o Order) String() string { return orders[o] }

// OrderOf looks at the steps with ports, or at the sizes of a sequence that
// has none of these. Fewer than two to compare are Mixed, as are equal
// neighbours.
func OrderOf(steps []Step) Order {
	numbers := portsOf(steps)
	if len(numbers) == 0 {
		numbers = sizesOf(steps)
	}
	up, down := len(numbers) > 1, len(numbers) > 1
	for i := 1; i < len(numbers); i++ {
		up = up && numbers[i] > numbers[i-1]
		down = down && numbers[i] < numbers[i-1]
	}
	switch {
	case up:
		return Ascending
	case down:
		return Descending
	}
	return Mixed
}

func portsOf(steps []Step) []uint16 {
	var ports []uint16
	for _, s := range steps {
		if s.Proto.Ported() {
			ports = append(ports, s.Port)
		}
	}
	return ports
}

func sizesOf(steps []Step) []uint16 {
	var sizes []uint16
	for _, s := range steps {
		if s.Proto == ICMP && !s.AnySize {
			sizes = append(sizes, s.Port)
		}
	}
	return sizes
}

// ScanOpens reports whether a plain scan, which may take in port 0, opens the
// sequence. Nothing opens one without steps. Otherwise: there is one step,
// or each step has the number of the one before or its neighbour's (65535 and
// 1 are neighbours), in any protocol, so that no guarded port lies between. Two
// ICMP steps are neighbours if either takes any size. Bare protocols and pings of
// any size are neighbours too: nothing is wrong between them, so that a scan of
// protocols (nmap -sO), which repeats itself where nobody answers, makes any
// order of them.
func ScanOpens(steps []Step) bool {
	for i := 1; i < len(steps); i++ {
		if !beside(steps[i-1], steps[i]) {
			return false
		}
	}
	return len(steps) > 0
}

// beside reports whether a plain scan makes two steps one after the other.
func beside(a, b Step) bool {
	switch {
	case a.Portless() && b.Portless():
		return true
	case a.Proto.Bare() || b.Proto.Bare() || (a.Proto == ICMP) != (b.Proto == ICMP):
		return false
	}
	return a.AnySize || b.AnySize || apart(a.Proto, a.Port, b.Port) <= 1
}

// ScanOdds is the probability that one scan from one address, in random order,
// opens the sequence. The scan touches ports ports (1 to 65,535) once each, in
// each protocol of the sequence.
//
// All 65,535: of everything scanned only the G ports count that are guarded or
// steps. Their order is a random permutation too, and the sequence opens if
// its k steps stand in it one behind the other, in their order: a guarded port
// between two of them resets, and a step that was passed does not come again.
// The block can begin at G-k+1 places, the other G-k ports stand in any order:
//
//	P = (G-k+1) (G-k)! / G! = 1 / (G (G-1) ... (G-k+2))
//
// Fewer: the scan is taken to hold all k steps, for otherwise it opens nothing,
// and ports-k others (times the number of protocols) drawn evenly. How many of
// them are guarded is then hypergeometric, and the result is the mean of P over
// that. It is an estimate: no real list is even. nmap's is dense below 10,000,
// where the figure is too high, and thin above, where it may be much too low,
// up to 1/k! for a list that has no guarded port but the steps.
//
// Where both simplify they err upwards: ICMP steps, bare protocols, flags and
// Within are taken to be met by luck, and the protocols to be scanned in one go,
// though few scan SCTP and UDP-Lite at all. A port that
// comes twice in the sequence makes them 0, and so do no steps. Innocent is as
// for New. Of a classic sequence only the steps count, so that P is 1/k!.
func ScanOdds(s Sequence, innocent []Span, ports int) float64 {
	own, k := ownPorts(s.Steps)
	switch {
	case len(own) < k || len(s.Steps) == 0:
		return 0
	case k < 2:
		return 1
	}
	others, protos := wrongBeside(s, innocent, own, everyPort())
	return meanOdds(k, others, protos*lastPort-k, protos*ports-k)
}

// ownPorts gives the places of the steps with ports, and how many of them there
// are; a port that comes twice is one place.
func ownPorts(steps []Step) (own map[uint32]bool, k int) {
	own = make(map[uint32]bool)
	for _, s := range steps {
		if s.Proto.Ported() {
			own[key(s.Proto, s.Port)] = true
			k++
		}
	}
	return own, k
}

func everyPort() []uint16 {
	ports := make([]uint16, 0, lastPort)
	for p := firstPort; p <= lastPort; p++ {
		ports = append(ports, uint16(p))
	}
	return ports
}

// wrongBeside counts those of the scanned ports, other than the sequence's
// own, that are wrong for it, and the protocols that they are in.
func wrongBeside(s Sequence, innocent []Span, own map[uint32]bool, scanned []uint16) (others, protos int) {
	var in innocents
	in.fill(innocent)
	r := newRule(s)
	for _, proto := range ported {
		if !r.uses(proto) {
			continue
		}
		protos++
		for _, port := range scanned {
			if r.wrong(Hit{Proto: proto, Port: port, Flags: SYN}, &in) && !own[key(proto, port)] {
				others++
			}
		}
	}
	return others, protos
}

// logOdds is the logarithm of P, with G = others + k.
func logOdds(k, others int) float64 { return logFactorial(others+1) - logFactorial(others+k) }

// meanOdds is the mean of P where drawn ports are taken out of all, of which
// others are guarded.
func meanOdds(k, others, all, drawn int) float64 {
	if drawn < 0 {
		return 0 // the scan has less ports than the sequence
	}
	sum := 0.0
	for x := max(0, drawn-(all-others)); x <= min(others, drawn); x++ {
		logP := logChoose(others, x) + logChoose(all-others, drawn-x) - logChoose(all, drawn)
		sum += math.Exp(logP + logOdds(k, x))
	}
	return sum
}

func logChoose(n, k int) float64 {
	return logFactorial(n) - logFactorial(k) - logFactorial(n-k)
}

func logFactorial(n int) float64 {
	v, _ := math.Lgamma(float64(n + 1))
	return v
}
