package config

import (
	"fmt"
	"slices"

	"github.com/sallyport/sallyport/internal/sequence"
)

// A list's file is read by who serves the config: this package reads no other file. So
// the lines of a list come in later than the rest, and are looked at here.

// Lines gives the sequences that make the knock: of a list the next ones.
func (k *Knock) Lines() [][]sequence.Step {
	if len(k.Ahead) == 0 {
		return [][]sequence.Step{k.Sequence}
	}
	return append([][]sequence.Step{k.Sequence}, k.Ahead...)
}

// SetLines has a knock with a list take the first LookAhead of its unused lines. With
// none it is never made.
func (k *Knock) SetLines(lines [][]sequence.Step) {
	k.Sequence, k.Ahead = nil, nil
	if len(lines) > 0 {
		k.Sequence = lines[0]
		k.Ahead = lines[1:min(len(lines), k.LookAhead)]
	}
}

// checkList looks at the keys of a knock with a list.
func checkList(r *reader, path string, k *Knock) {
	switch {
	case len(k.Sequence) > 0:
		r.fault(join(path, "sequence"), "%s has a sequence and a list; leave one of them out", path)
	case k.CloseOnWrong:
		r.fault(join(path, "close_on_wrong"), "%s.close_on_wrong can't be used with a list: a step of one line is a wrong one of another; leave it out", path)
	}
}

// LineFault says what is wrong with one line of the list of c.Knocks[i]; "": nothing.
// It names no port.
func (c *Config) LineFault(i int, steps []sequence.Step) string {
	k := &c.Knocks[i]
	if sequence.ScanOpens(steps) && !k.ScanOpens {
		return "it is opened by any scan of ports or protocols or by plain pings; take other steps"
	}
	for n, step := range steps {
		if fault := c.stepFault(k, step); fault != "" {
			return fmt.Sprintf("step %d %s; take another step", n+1, fault)
		}
	}
	for j := range c.Knocks {
		other := &c.Knocks[j]
		if j == i || other.List != "" || k.Target != other.Target && k.Target.IsValid() && other.Target.IsValid() {
			continue
		}
		if begins(steps, other.Sequence) || begins(other.Sequence, steps) {
			return fmt.Sprintf("it is knock.%s, or the beginning of it, or begins with it; take other steps", other.Name)
		}
	}
	return ""
}

func (c *Config) stepFault(k *Knock, step sequence.Step) string {
	switch {
	case c.Daemon.Source == Log && (step.Proto == sequence.SCTP || step.Proto == sequence.DCCP):
		return `has a port of ` + step.Proto.String() + `, which a log's lines leave out`
	case !k.Quiet || step.Proto == sequence.ICMP:
		return ""
	case holds(c.Daemon.Public, step):
		return "would be dropped by quiet = true, and daemon.public keeps it open"
	case slices.ContainsFunc(c.Services, func(s Service) bool { return len(s.On) == 0 && holds(s.Ports, step) }):
		return "would be dropped by quiet = true, and is a port of a service"
	}
	return ""
}

// list looks at the lines that are taken now. check has read them.
func (l *linter) list(k *Knock) {
	const again = "make a new list with 'sallyport keygen --otp-list N'"
	name := "knock." + k.Name
	l.warn("use a knock of type spa for what matters", "%s: who holds back the last packet of a knock on its way can make that line from another address; a line that arrived is worth nothing any more", name)
	if len(k.Sequence) == 0 {
		return // not read, or used up, which check says
	}
	s := StrengthOf(l.Config, k, l.facts.Listening)
	switch {
	case s.Bits < enoughBits:
		l.warn(again, "%s has lines that are too short, or takes too many at once: %s guesses (%.0f bits) make one of %d", name, spellCount(s.Guesses), s.Bits, s.Lines)
	case s.ScanPopular > likely:
		l.warn(again, "%s has lines with their steps close together: a scan of 1,000 ports in random order that holds them opens it with probability %.2g", name, s.ScanPopular)
	}
	for _, line := range k.Lines() {
		if slices.ContainsFunc(line, func(s sequence.Step) bool { return s.Proto.Ported() && holds(l.facts.Listening, s) }) {
			l.warn("take ports where nothing listens", "%s: a program listens on the port of a step, so its ordinary clients make that step", name)
			return
		}
	}
}
