package rules

import (
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/sequence"
)

const lastPort = 65535

// ports is a set of ports of TCP and UDP, 128 KiB. A generator can afford what
// makes every sum of ranges a loop over numbers.
type ports struct{ tcp, udp [lastPort + 1]bool }

// of gives the numbers of a protocol, nil for one without ports.
func (p *ports) of(proto sequence.Proto) *[lastPort + 1]bool {
	switch proto {
	case sequence.TCP:
		return &p.tcp
	case sequence.UDP:
		return &p.udp
	}
	return nil
}

func (p *ports) add(proto sequence.Proto, low, high uint16) {
	numbers := p.of(proto)
	if numbers == nil {
		return
	}
	for n := int(low); n <= int(high); n++ {
		numbers[n] = true
	}
}

func (p *ports) addRanges(ranges []config.PortRange) {
	for _, r := range ranges {
		p.add(r.Proto, r.Low, r.High)
	}
}

func portsOf(spans []sequence.Span) (p ports) {
	for _, s := range spans {
		p.add(s.Proto, s.Low, s.High)
	}
	return p
}

// addBeside adds a step's two neighbours, as far as they are in the guard. Port 0 is
// not in the ring: 65535 and 1 are neighbours.
func (p *ports) addBeside(s sequence.Step, guard *ports) {
	numbers, guarded := p.of(s.Proto), guard.of(s.Proto)
	if numbers == nil || s.Port == 0 {
		return
	}
	for _, n := range []int{(int(s.Port)+lastPort-2)%lastPort + 1, int(s.Port)%lastPort + 1} {
		numbers[n] = guarded[n]
	}
}

func (p *ports) addAll(other *ports) {
	for n := range p.tcp {
		p.tcp[n] = p.tcp[n] || other.tcp[n]
		p.udp[n] = p.udp[n] || other.udp[n]
	}
}

func (p *ports) removeAll(other *ports) {
	for n := range p.tcp {
		p.tcp[n] = p.tcp[n] && !other.tcp[n]
		p.udp[n] = p.udp[n] && !other.udp[n]
	}
}

// spans gives the set as runs in order, TCP first.
func (p *ports) spans() []sequence.Span {
	var out []sequence.Span
	for _, proto := range []sequence.Proto{sequence.TCP, sequence.UDP} {
		numbers := p.of(proto)
		for n := 0; n <= lastPort; n++ {
			if !numbers[n] {
				continue
			}
			low := n
			for n < lastPort && numbers[n+1] {
				n++
			}
			out = append(out, sequence.Span{Proto: proto, Low: uint16(low), High: uint16(n)})
		}
	}
	return out
}
