package config

import (
	"regexp"
	"slices"
	"strings"
	"time"
)

// maxCommandPorts is how many ports a service can have where each is a command of its
// own; each grant waits for all of them.
const maxCommandPorts = 16

// maxIPSet is the longest time that ipset takes for an element.
const maxIPSet = 2147483 * time.Second

// checkBackend refuses keys of another backend, and what the chosen one can't do.
func checkBackend(r *reader, c *Config) {
	if r.faulty["daemon.backend"] {
		return
	}
	checkBackendKeys(r, &c.Daemon)
	switch c.Daemon.Backend {
	case Iptables:
		checkIptables(r, c)
	case Commands:
		checkByCommand(r, c)
	}
}

func checkBackendKeys(r *reader, d *Daemon) {
	for _, key := range []struct {
		name   string
		words  Command
		needed bool
	}{
		{"open_command", d.OpenCommand, true}, {"close_command", d.CloseCommand, true}, {"adopt_command", d.AdoptCommand, false},
	} {
		at := join("daemon", key.name)
		switch {
		case r.faulty[at]:
		case len(key.words) > 0 && d.Backend != Commands:
			r.fault(at, `%s goes with daemon.backend = "command"; leave it out, or name that backend`, at)
		case len(key.words) == 0 && key.needed && d.Backend == Commands:
			r.fault("daemon.backend", `daemon.backend = "command" needs %s, such as ["/usr/local/sbin/%s", "{addr}", "{port}", "{proto}"]`, at, strings.TrimSuffix(key.name, "_command"))
		default:
			checkBackendCommand(r, at, key.words, key.needed)
		}
	}
}

var placeholder = regexp.MustCompile(`\{[a-z_]*\}`)

// CommandWords are what open_command and close_command can name.
var CommandWords = []string{"{addr}", "{port}", "{proto}", "{seconds}", "{on}"}

func checkBackendCommand(r *reader, at string, words Command, grant bool) {
	checkCommand(r, at, words, false)
	all := strings.Join(words, " ")
	for _, word := range placeholder.FindAllString(all, -1) {
		if !grant {
			r.fault(at, "%s names %s, and at the daemon's start there is none; leave it out", at, word)
		} else if !slices.Contains(CommandWords, word) {
			r.fault(at, "%s names %s; there are %s", at, word, quoted(CommandWords))
		}
	}
	for _, word := range []string{"{addr}", "{port}"} {
		if grant && len(words) > 0 && !strings.Contains(all, word) {
			r.fault(at, "%s does not say %s, so that it would open or close for somebody else too; add it", at, word)
		}
	}
}

// lacks refuses one key whose work a backend can't do.
func lacks(r *reader, at string, set bool, backend Backend, why string) {
	if set && !r.faulty[at] {
		r.fault(at, `%s can't be used with daemon.backend = "%s": %s; leave it out, or use "nftables"`, at, backend, why)
	}
}

// checkBoth refuses what both other backends can't do.
func checkBoth(r *reader, c *Config, b Backend, all string) {
	lacks(r, "daemon.hide", c.Daemon.HideAll, b, all)
	for i := range c.Services {
		s := &c.Services[i]
		lacks(r, join(join("service", s.Name), "once"), s.Once, b, "it does not tell a first connection from a second")
	}
	for i := range c.Knocks {
		k := &c.Knocks[i]
		lacks(r, join(join("knock", k.Name), "widths"), len(k.Widths) > 0, b, "its grants are for one address")
	}
}

func checkIptables(r *reader, c *Config) {
	b := c.Daemon.Backend
	checkBoth(r, c, b, "it hides the ports of services and leaves the others alone")
	for i := range c.Services {
		s := &c.Services[i]
		path := join("service", s.Name)
		lacks(r, join(path, "on"), len(s.On) > 0, b, "it guards this host's own ports")
		lacks(r, join(path, "max_open_for"), s.MaxOpenFor > maxIPSet, b, "ipset counts to "+maxIPSet.String())
	}
	for i, name := range c.Daemon.Interfaces {
		lacks(r, item("daemon.interfaces", i), !plainInterface(name), b, "to iptables a + at the end means all names that begin so, and a blank or a quote ends a name")
	}
}

// plainInterface reports whether a name stands for itself in iptables-restore's input.
func plainInterface(name string) bool {
	return !strings.HasSuffix(name, "+") && !strings.HasPrefix(name, "!") && !strings.HasPrefix(name, "-") && !strings.ContainsAny(name, " \t\"'\\#")
}

func checkByCommand(r *reader, c *Config) {
	b := c.Daemon.Backend
	const closed = "the ports are closed by your own firewall and not by this program"
	checkBoth(r, c, b, closed)
	lacks(r, "daemon.grant_mark", c.Daemon.GrantMark != 0, b, "your command opens, and can mark")
	for i := range c.Services {
		s := &c.Services[i]
		path := join("service", s.Name)
		lacks(r, join(path, "allow"), len(s.Allow) > 0, b, closed)
		lacks(r, join(path, "closed_as"), s.ClosedAs != Auto, b, closed)
		if n := CountPorts(s.Ports); n > maxCommandPorts {
			r.fault(join(path, "ports"), `%s has %d ports, and with daemon.backend = "command" each is a command that a knock waits for; take %d at most`, path, n, maxCommandPorts)
		}
		forwarded := len(s.On) > 0
		for name, words := range map[string]Command{"open_command": c.Daemon.OpenCommand, "close_command": c.Daemon.CloseCommand} {
			if at := join("daemon", name); forwarded && len(words) > 0 && !r.faulty[at] && !strings.Contains(strings.Join(words, " "), "{on}") {
				r.fault(at, "%s does not say {on}, and %s.on names another host; add it", at, path)
			}
		}
	}
	for i := range c.Knocks {
		k := &c.Knocks[i]
		lacks(r, join(join("knock", k.Name), "quiet"), k.Quiet, b, closed)
	}
}

// backend says what the other backends do less well.
func (l *linter) backend() {
	switch l.Daemon.Backend {
	case Commands:
		l.warn("close the ports of the services by rules of your own, and see by a scan from outside that they are", `nothing is hidden: with daemon.backend = "command" your own firewall closes the ports`)
		l.warn("have open_command end it by itself after {seconds}, or keep the daemon running", "what open_command opened ends when close_command runs: after kill -9 or a reboot that is at the daemon's next start, and not by the kernel's own clock")
	case Iptables:
		for i := range l.Services {
			if s := &l.Services[i]; s.ClosedAs == Auto {
				l.warn(`say closed_as = "drop" or "reject" there`, `service.%s: with daemon.backend = "iptables" closed_as = "auto" goes by the policy and the last rule of INPUT alone`, s.Name)
			}
		}
	}
}
