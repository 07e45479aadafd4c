package knockd

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/sallyport/sallyport/internal/sequence"
)

// scan is a plain scan of all ports of one protocol, with a SYN each for TCP.
type scan struct {
	proto sequence.Proto
	down  bool // from 65535 to 1
}

var scans = []scan{{sequence.TCP, false}, {sequence.TCP, true}, {sequence.UDP, false}, {sequence.UDP, true}}

// position is which packet of the scan goes to a port, from 1.
func (s scan) position(port uint16) int {
	if s.down {
		return maxPort + 1 - int(port)
	}
	return int(port)
}

// follower is a door that a scan has begun, and how far it came.
type follower struct{ door, stage int }

// opened gives the doors that the scan opens under knockd, and by which packet. It
// plays the scan to knockd's rules, for only that tells: a packet to a port of one
// door spoils another that is half-way, and starts nothing while any is. Doors for
// one Target see only what goes there.
func (f *File) opened(s scan) map[int]int {
	var targets []netip.Addr
	for i := range f.Doors {
		if t := f.Doors[i].Target; !slices.Contains(targets, t) {
			targets = append(targets, t)
		}
		if len(targets) > maxTargets {
			return nil
		}
	}
	out := map[int]int{}
	for _, t := range targets {
		f.play(s, t, out)
	}
	return out
}

// maxTargets keeps a file with a Target for each door from taking long to read.
const maxTargets = 16

func (f *File) play(s scan, target netip.Addr, out map[int]int) {
	first, heard := f.heard(s, target)
	var following []follower
	for _, port := range heard {
		if len(following) == 0 {
			for _, door := range first[port] {
				following = append(following, follower{door: door})
			}
		}
		kept := following[:0]
		for _, a := range following {
			steps := f.Doors[a.door].Steps
			if steps[a.stage] != (Step{s.proto, port}) {
				continue
			}
			if a.stage++; a.stage == len(steps) {
				out[a.door] = s.position(port)
			} else if f.Doors[a.door].SeqTimeout > 0 {
				kept = append(kept, a)
			}
		}
		following = kept
	}
}

// heard lists the ports of the scan that knockd's filter lets through, in the scan's
// order, and which doors begin at each.
func (f *File) heard(s scan, target netip.Addr) (first map[uint16][]int, ports []uint16) {
	first = map[uint16][]int{}
	for i := range f.Doors {
		d := &f.Doors[i]
		if d.Target != target || s.proto == sequence.TCP && !d.Flags.Match(sequence.SYN) {
			continue
		}
		for _, step := range d.Steps {
			if step.Proto == s.proto && step.Port > 0 {
				ports = append(ports, step.Port)
			}
		}
		if d.Steps[0].Proto == s.proto {
			first[d.Steps[0].Port] = append(first[d.Steps[0].Port], i)
		}
	}
	slices.SortFunc(ports, func(a, b uint16) int { return cmp.Compare(s.position(a), s.position(b)) })
	return first, slices.Compact(ports)
}
