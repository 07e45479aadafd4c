package sequence

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// MinRandom is the shortest random sequence, in steps: two steps always ascend
// or descend.
const MinRandom = 3

// The ports of a random sequence. Below 1024 firewalls on the way filter, and
// services listen. From 32768 up Linux takes the ports of its own outgoing
// traffic (ip_local_port_range in ip(7)), where the answers of strangers' name
// servers arrive. What is left is 31,744 ports, with the protocol 15.95 bits a
// step.
const (
	lowRandom  = 1024
	highRandom = 32767
	// spacing keeps each step out of the guards of the others, which reach 64
	// ports to either side.
	spacing = 64
)

// Random makes a sequence of n steps, MinRandom to MaxSteps, for a knock. All
// sequences that pass fit are equally likely. It has TCP and UDP steps, so that
// no scan of one protocol makes it.
func Random(n int) ([]Step, error) {
	if n < MinRandom || n > MaxSteps {
		return nil, fmt.Errorf("a random sequence of %d steps can't be made; it must have %d to %d", n, MinRandom, MaxSteps)
	}
	// Of 32 random steps about one draw in eight is far enough apart, so the
	// loop ends soon.
	for {
		steps := make([]Step, n)
		for i := range steps {
			steps[i] = randomStep()
		}
		if fit(steps) {
			return steps, nil
		}
	}
}

func randomStep() Step {
	for {
		var b [2]byte
		rand.Read(b[:]) // never fails
		v := binary.BigEndian.Uint16(b[:])
		// The top bit chooses the protocol, the others the port; a port that is
		// too low is drawn again, because a remainder would favour some.
		step := Step{Proto: UDP, Port: v & highRandom}
		if v > highRandom {
			step.Proto, step.Flags = TCP, Opening
		}
		if step.Port >= lowRandom {
			return step
		}
	}
}

// fit reports whether the steps use both protocols, neither only ascend nor
// only descend, and are more than spacing from each other.
func fit(steps []Step) bool {
	protos := map[Proto]bool{}
	ports := make([]int, len(steps))
	for i, s := range steps {
		protos[s.Proto] = true
		ports[i] = int(s.Port)
	}
	down := slices.IsSortedFunc(ports, func(a, b int) int { return b - a })
	if len(protos) < 2 || down || slices.IsSorted(ports) {
		return false
	}
	slices.Sort(ports)
	for i := range ports[1:] {
		if ports[i+1]-ports[i] <= spacing {
			return false
		}
	}
	return true
}

// ConfigLine gives the line of a [knock.NAME] table that sets these steps.
func ConfigLine(steps []Step) string {
	quoted := make([]string, len(steps))
	for i, s := range steps {
		quoted[i] = strconv.Quote(s.String())
	}
	return "sequence = [" + strings.Join(quoted, ", ") + "]"
}
