package config

import (
	"cmp"
	"path"
	"slices"
	"strings"

	"github.com/sallyport/sallyport/internal/sequence"
)

// rules are what only several keys together can break. Each says all that it
// finds; an index into Config.Services or Knocks is also the reader's.
var rules = []func(*reader, *Config){
	checkDaemon, checkServices, checkOverlaps, checkPublic, checkHide, checkActions,
	checkKnocks, checkSource, checkBackend, checkQuiet, checkBeginnings,
}

func checkDaemon(r *reader, c *Config) {
	d := &c.Daemon
	if i := repeated(d.Interfaces); i > 0 {
		r.fault(item("daemon.interfaces", i), "daemon.interfaces names %q twice; name it once", d.Interfaces[i])
	}
	if d.StateDir == d.Control {
		r.fault("daemon.control", "daemon.control and daemon.state_dir are both %q; a socket can't be a directory", d.Control)
	}
}

// repeated is the index of the first item that an earlier one equals, or 0.
func repeated[E comparable](list []E) int {
	for i, e := range list {
		if slices.Contains(list[:i], e) {
			return i
		}
	}
	return 0
}

func checkServices(r *reader, c *Config) {
	for i := range c.Services {
		s := &c.Services[i]
		path := join("service", s.Name)
		if len(s.Ports) == 0 && !r.faulty[join(path, "ports")] {
			r.fault(path, "%s has no ports; add the ports to hide, such as ports = [\"22/tcp\"]", path)
		}
		checkTimes(r, path, s)
		checkElements(r, path, s, c.Daemon.MaxGrants)
		checkOnce(r, path, s)
		if j := repeated(s.On); j > 0 {
			r.fault(item(join(path, "on"), j), "%s.on names %s twice; name it once", path, s.On[j])
		}
		for j, p := range s.Allow {
			for _, q := range s.Allow[:j] {
				if p.Overlaps(q) {
					r.fault(item(join(path, "allow"), j), "%s.allow has %s and %s, of which one holds the other; keep the wider one", path, q, p)
				}
			}
		}
	}
}

func checkTimes(r *reader, path string, s *Service) {
	if s.OpenFor <= s.MaxOpenFor || r.faulty[join(path, "open_for")] || r.faulty[join(path, "max_open_for")] {
		return
	}
	given := ""
	if !r.lines.has(join(path, "max_open_for")) {
		given = ", which holds where the file does not name one"
	}
	r.fault(join(path, "open_for"), "%s.open_for is %s, above max_open_for = %s%s; a grant could never last that long, so raise the one or lower the other",
		path, spellDuration(s.OpenFor), spellDuration(s.MaxOpenFor), given)
}

// checkElements bounds what one grant puts into the kernel's sets.
func checkElements(r *reader, path string, s *Service, room int) {
	n := CountPorts(s.Ports) * max(1, len(s.On))
	switch {
	case n > MaxPorts:
		r.fault(join(path, "ports"), "%s has %d ports (times the addresses of `on`), and each takes one element of a set for every address let in; a service can have %d", path, n, MaxPorts)
	case n > room:
		r.fault(join(path, "ports"), "%s has %d ports, and max_grants = %d holds not even one grant of them; raise max_grants", path, n, room)
	}
}

// checkOnce wants one thing that one connection can use up: a grant of two ports, or of
// two destinations, would be good for two.
func checkOnce(r *reader, path string, s *Service) {
	ports, four := CountPorts(s.Ports), 0
	for _, a := range s.On {
		if a.Is4() {
			four++
		}
	}
	switch at := join(path, "once"); {
	case !s.Once:
	case ports > 1:
		r.fault(at, "%s = true wants one port, and %s has %d, each of which would let a connection in; make a service of each", at, path, ports)
	case four > 1 || len(s.On)-four > 1:
		r.fault(at, "%s = true wants one address of each family in `on`, because each would let a connection in; make a service of each", at)
	}
}

// checkOverlaps wants each port of each destination in one service: two would
// disagree how it looks closed and for how long it opens. The ports are sorted
// once, because a pair of 1,024 services is checked a million times otherwise.
func checkOverlaps(r *reader, c *Config) {
	type entry struct {
		PortRange
		service, index int
	}
	var all []entry
	for i := range c.Services {
		for j, p := range c.Services[i].Ports {
			all = append(all, entry{p, i, j})
		}
	}
	slices.SortStableFunc(all, func(a, b entry) int {
		return cmp.Or(cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.Low, b.Low))
	})
	for i, b := range all {
		for _, a := range slices.Backward(all[:i]) {
			if a.Proto != b.Proto || int(a.Low)+MaxPorts < int(b.Low) {
				break // a longer range than MaxPorts is a fault already
			}
			s, t := &c.Services[a.service], &c.Services[b.service]
			if !a.Overlaps(b.PortRange) || (a.service != b.service && disjoint(s.On, t.On)) {
				continue
			}
			path := join("service", t.Name)
			r.fault(item(join(path, "ports"), b.index), "%s has %s, which overlaps %s of service.%s (line %d); a port can be in one service only",
				path, b, a, s.Name, r.lines.find(item(join(join("service", s.Name), "ports"), a.index)))
			break
		}
	}
}

// Overlaps reports whether some port is in both ranges.
func (r PortRange) Overlaps(o PortRange) bool {
	return r.Proto == o.Proto && r.Low <= o.High && o.Low <= r.High
}

// disjoint reports whether no destination is in both lists; an empty one is
// this host, which is in no other.
func disjoint(a, b []addr) bool {
	if len(a) == 0 || len(b) == 0 {
		return len(a) != len(b)
	}
	return !slices.ContainsFunc(a, func(x addr) bool { return slices.Contains(b, x) })
}

func checkPublic(r *reader, c *Config) {
	public := c.Daemon.Public
	for i, p := range public {
		for _, q := range public[:i] {
			if p.Overlaps(q) {
				r.fault(item("daemon.public", i), "daemon.public has %s and %s, which overlap; name each port once", q, p)
			}
		}
		for _, s := range c.Services {
			for _, q := range s.Ports {
				if len(s.On) == 0 && p.Overlaps(q) {
					r.fault(item("daemon.public", i), "daemon.public has %s, and service.%s (line %d) hides %s; a port can't be both", p, s.Name, r.lines.find(join("service", s.Name)), q)
				}
			}
		}
	}
}

// checkHide refuses what would shut out everybody, its owner included.
func checkHide(r *reader, c *Config) {
	allowed := slices.ContainsFunc(c.Services, func(s Service) bool { return len(s.Allow) > 0 })
	if c.Daemon.HideAll && len(c.Knocks) == 0 && !allowed && !r.faulty["knock"] && !r.faulty["service"] {
		r.fault("daemon.hide", `daemon.hide = "all" with no way in would shut you out; add a [knock.NAME], or a service with an allow list`)
	}
}

func checkKnocks(r *reader, c *Config) {
	total := 0
	for i := range c.Knocks {
		k := &c.Knocks[i]
		path := join("knock", k.Name)
		if k.Type == "" {
			continue
		}
		total += len(k.Opens) + len(k.Runs) + len(k.Closes) + len(k.ClosesActions) + len(k.Extends)
		checkUse(r, path, c, k)
		switch k.Type {
		case "spa":
			checkSPA(r, c, i)
		case "otp":
			checkOTP(r, c, i)
		case "encoded":
			checkEncoded(r, c, i)
		default:
			checkSequence(r, path, k)
		}
	}
	if total > MaxRules {
		r.fault("knock", "the knocks open, run and close %d services and actions all told; a file can have %d such pairs", total, MaxRules)
	}
}

// checkUse looks at what a knock is good for.
func checkUse(r *reader, path string, c *Config, k *Knock) {
	if len(k.Opens)+len(k.Runs)+len(k.Closes)+len(k.ClosesActions)+len(k.Extends) == 0 &&
		!r.faulty[join(path, "opens")] && !r.faulty[join(path, "runs")] && !r.faulty[join(path, "closes")] && !r.faulty[join(path, "extends")] {
		r.fault(path, "%s opens nothing; add opens = [\"SERVICE\"], or runs = [\"ACTION\"]", path)
	}
	for _, n := range k.Closes {
		if slices.Contains(k.Opens, n) {
			r.fault(join(path, "closes"), "%s opens and closes the service %q; take it out of one of the two", path, c.Services[n].Name)
		}
	}
	for _, n := range k.Extends {
		if slices.Contains(k.Opens, n) || slices.Contains(k.Closes, n) {
			r.fault(join(path, "extends"), "%s extends the service %q and opens or closes it too; an opening extends by itself, so take it out", path, c.Services[n].Name)
		}
	}
	for _, n := range k.ClosesActions {
		if slices.Contains(k.Runs, n) {
			r.fault(join(path, "closes"), "%s runs and closes the action %q; take it out of one of the two", path, c.Actions[n].Name)
		}
	}
	for _, n := range k.ClosesActions {
		if c.Actions[n].AtStart {
			r.fault(join(path, "closes"), "%s closes the action %q, which has at_start = true and is undone when the daemon is stopped; take it out", path, c.Actions[n].Name)
		}
	}
	for i, n := range k.Runs {
		if c.Actions[n].AtStart {
			r.fault(item(join(path, "runs"), i), "%s runs the action %q, which has at_start = true and so runs when the daemon starts; make two actions of it", path, c.Actions[n].Name)
		}
	}
}

// checkActions wants commands that can be run. A name that is a service's too would
// leave open which of the two a request means.
func checkActions(r *reader, c *Config) {
	for i := range c.Actions {
		a := &c.Actions[i]
		path := join("action", a.Name)
		if slices.ContainsFunc(c.Services, func(s Service) bool { return s.Name == a.Name }) {
			r.fault(path, "%s has the name of service.%s; give one of them another, since requests name both kinds", path, a.Name)
		}
		if len(a.Run) == 0 && len(a.RunIPv6) == 0 && !r.faulty[join(path, "run")] && !r.faulty[join(path, "run_ipv6")] {
			r.fault(path, "%s runs nothing; add run = [\"/path/of/a/program\", \"%s\"]", path, addressWord)
		}
		for _, cmd := range []struct {
			key   string
			words Command
		}{{"run", a.Run}, {"run_ipv6", a.RunIPv6}, {"undo", a.Undo}, {"undo_ipv6", a.UndoIPv6}} {
			if at := join(path, cmd.key); !r.faulty[at] && r.lines.has(at) {
				checkCommand(r, at, cmd.words, a.AtStart)
			}
		}
		undo := len(a.Undo)+len(a.UndoIPv6) > 0
		switch at := join(path, "undo_after"); {
		case a.UndoAfter > 0 && !undo && !r.faulty[at]:
			r.fault(at, "%s has nothing to do after that time; add undo = [\"/path/of/a/program\"], or leave it out", at)
		case a.UndoAfter > 0 && a.AtStart && !r.faulty[at]:
			r.fault(at, "%s can't be used with at_start = true, whose undo runs when the daemon is stopped; leave it out", at)
		}
	}
}

func checkCommand(r *reader, at string, words Command, atStart bool) {
	switch {
	case len(words) == 0:
	case !path.IsAbs(words[0]):
		r.fault(at, "%s begins with %q; name the program by its absolute path, as in /usr/bin/%s: a daemon's search path is not yours", at, words[0], path.Base(words[0]))
	case len(words) > MaxWords:
		r.fault(at, "%s has %d words; a command can have %d, so put it into a script", at, len(words), MaxWords)
	case strings.Contains(words[0], addressWord):
		r.fault(at, "%s would take the program's name from a packet; name the program", at)
	case atStart && slices.ContainsFunc(words, func(w string) bool { return strings.Contains(w, addressWord) }):
		r.fault(at, "%s has %s, and at the start of the daemon there is no address; leave it out", at, addressWord)
	}
}

func checkSequence(r *reader, path string, k *Knock) {
	at := join(path, "sequence")
	switch n := len(k.Sequence); {
	case r.faulty[at] || r.faulty[join(path, "list")]:
	case k.List != "":
		checkList(r, path, k)
	case r.lines.has(join(path, "look_ahead")) && !r.lines.has(join(path, "list")):
		r.fault(join(path, "look_ahead"), "%s.look_ahead is about a list, and %s has none; leave it out, or add list = \"FILE\"", path, path)
	case n == 0:
		r.fault(path, "%s has no steps; add sequence = [\"…\", \"…\"], which keygen --sequence makes", path)
	case n > sequence.MaxSteps:
		r.fault(at, "%s has %d steps; a sequence can have %d", at, n, sequence.MaxSteps)
	case sequence.ScanOpens(k.Sequence) && !k.ScanOpens:
		r.fault(at, "%s is opened by any scan of ports or protocols or by plain pings; take other steps (keygen --sequence makes some), or say scan_opens = true if that is what you want", at)
	}
}

func checkSPA(r *reader, c *Config, i int) {
	k := &c.Knocks[i]
	path := join("knock", k.Name)
	if k.Key == "" && !r.faulty[join(path, "key")] {
		r.fault(path, `%s has no key; make one with 'sallyport keygen --out FILE' and add key = "FILE"`, path)
	}
	if k.AuthorizedKeys == "" && !r.faulty[join(path, "authorized_keys")] {
		r.fault(path, `%s lets nobody in; add authorized_keys = "FILE", a file of SSH public keys`, path)
	}
	at := join(path, "transports")
	if len(k.Transports) == 0 && !r.faulty[at] {
		r.fault(at, `%s is empty; leave it out for ["udp"]`, at)
	}
	if j := repeated(k.Transports); j > 0 {
		r.fault(item(at, j), "%s names %q twice; name it once", at, k.Transports[j])
	}
	for _, other := range c.Knocks[:i] {
		// A datagram would be good for both, and open what the first one opens.
		if other.Type == "spa" && other.Key == k.Key && k.Key != "" {
			r.fault(join(path, "key"), "%s has the key of knock.%s; give each knock its own, or use services= in authorized_keys", path, other.Name)
		}
	}
}

// checkQuiet refuses to drop a port that another line wants otherwise.
func checkQuiet(r *reader, c *Config) {
	for _, k := range c.Knocks {
		if !k.Quiet {
			continue
		}
		at := join(join("knock", k.Name), "quiet")
		for _, p := range k.Ports() {
			if k.Type == "spa" && (slices.ContainsFunc(c.Daemon.Public, p.Overlaps) || guarded(c, p)) {
				r.fault(at, "%s = true drops %s, which daemon.public or a service has too; take another port", at, p)
			}
		}
		for i, step := range k.Sequence {
			if step.Proto == sequence.ICMP {
				continue
			}
			if holds(c.Daemon.Public, step) {
				r.fault(at, "%s = true drops step %d, which daemon.public keeps open; take another step", at, i+1)
			}
			for _, s := range c.Services {
				if len(s.On) == 0 && holds(s.Ports, step) {
					r.fault(at, "%s = true drops step %d, which is a port of service.%s and would stay shut; take another step", at, i+1, s.Name)
				}
			}
		}
	}
}

// guarded reports whether a service of this host has the port.
func guarded(c *Config, p PortRange) bool {
	return slices.ContainsFunc(c.Services, func(s Service) bool {
		return len(s.On) == 0 && slices.ContainsFunc(s.Ports, p.Overlaps)
	})
}

func holds(ports []PortRange, step sequence.Step) bool {
	return HasPort(ports, step.Proto, step.Port)
}

// checkBeginnings refuses a knock that is made whenever another one is: the
// longer one could never be asked for by itself. Equal ones are refused too. A
// merely shared beginning is fine.
func checkBeginnings(r *reader, c *Config) {
	for i := range c.Knocks {
		for j := range c.Knocks {
			a, b := &c.Knocks[i], &c.Knocks[j]
			if i == j || a.Target != b.Target && a.Target.IsValid() && b.Target.IsValid() || !begins(a.Sequence, b.Sequence) || (j < i && begins(b.Sequence, a.Sequence)) {
				continue
			}
			at, other := join("knock."+a.Name, "sequence"), join("knock."+b.Name, "sequence")
			if r.faulty[at] || r.faulty[other] {
				continue
			}
			r.fault(at, "%s (line %d) is the beginning of %s (line %d), so that whoever makes the second makes the first too; change one of them before the first one's end",
				at, r.lines.find(at), other, r.lines.find(other))
		}
	}
}

// begins reports whether every packet sequence that makes b makes a first.
func begins(a, b []sequence.Step) bool {
	if len(a) == 0 || len(a) > len(b) {
		return false
	}
	for i := range a {
		if !covers(a[i], b[i]) {
			return false
		}
	}
	return true
}

// covers reports whether every packet that is step b is step a too.
func covers(a, b sequence.Step) bool {
	if a.Proto != b.Proto {
		return false
	}
	if a.AnySize {
		return true
	}
	return !b.AnySize && a.Port == b.Port &&
		a.Flags.Set&^b.Flags.Set == 0 && a.Flags.Clear&^b.Flags.Clear == 0
}
