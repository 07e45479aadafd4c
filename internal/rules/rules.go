// Package rules compiles the sequences of a config into rulesets that do the whole
// job in the kernel, with no process of ours, and has the clients that need nothing
// installed. It is pure: a config in, text out.
package rules

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/sequence"
)

// Kind is what a ruleset is for.
type Kind uint8

// The kinds.
const (
	Nftables Kind = iota
	Iptables
)

// plan is the part of a config that rules can do.
type plan struct {
	*config.Config
	knocks []knock
	limits []string
}

// knock is a sequence as rules follow it. Their stages are numbers: at stage n the
// first n steps were made.
type knock struct {
	*config.Knock
	wrong  ports // what breaks an attempt
	beside ports // of these, what breaks it also where a program listens
	sizes  []sequence.Span
	flags  []sequence.Flags // what its steps name, beside Opening
}

func newPlan(cfg *config.Config, kind Kind) plan {
	p := plan{Config: cfg}
	for i := range cfg.Knocks {
		k := &cfg.Knocks[i]
		if why := left(k, kind); why != "" {
			p.limit("knock.%s is left out: %s", k.Name, why)
			continue
		}
		p.knocks = append(p.knocks, p.newKnock(k))
	}
	for i := range cfg.Services {
		p.service(i, kind)
	}
	if len(cfg.Actions) > 0 {
		p.limit("actions are left out, and no knock runs one: a ruleset has no commands")
	}
	if kind == Iptables {
		p.iptables()
	}
	return p
}

func (p *plan) limit(format string, args ...any) {
	p.limits = append(p.limits, fmt.Sprintf(format, args...))
}

// left says why a ruleset can't have a knock; "": it can.
func left(k *config.Knock, kind Kind) string {
	switch {
	case k.Type != "sequence":
		return fmt.Sprintf("a ruleset can't compute, and type %q needs it", k.Type)
	case k.List != "":
		return "a ruleset can't use up a list of one-time sequences: each would open for ever"
	case len(k.Opens)+len(k.Closes)+len(k.Extends) == 0:
		return "it opens and closes no service"
	case kind == Iptables && k.Target.IsValid():
		return "iptables' INPUT sees only what is for this host, and it has a target"
	}
	for i, s := range k.Sequence {
		switch {
		case s.Port == 0 && s.Proto != sequence.ICMP:
			return fmt.Sprintf("step %d is port 0, which no rule can name", i+1)
		case s.Proto != sequence.TCP && s.Proto != sequence.UDP && s.Proto != sequence.ICMP:
			return fmt.Sprintf("step %d is neither tcp nor udp nor icmp, which are all that a ruleset follows; take one of these, or the daemon", i+1)
		case kind == Iptables && i > 0 && s == k.Sequence[i-1]:
			return fmt.Sprintf("step %d is the one before it once more, and iptables can't tell it from a packet sent again", i+1)
		}
	}
	return ""
}

// service says what a ruleset can't do of a service, and whether anybody gets in.
func (p *plan) service(i int, kind Kind) {
	s := &p.Services[i]
	name := "service." + s.Name
	if len(s.On) > 0 {
		p.limit("%s is left out and stays as public as it is: a ruleset guards this host alone, and it has on", name)
		return
	}
	if s.CloseOnDisconnect {
		p.limit("%s: close_on_disconnect is left out; a grant ends with its time", name)
	}
	if s.Once {
		p.limit("%s: once is left out; a grant lets in every connection until its time", name)
	}
	if kind == Iptables && s.ClosedAs == config.Auto {
		p.limit(`%s: closed_as = "auto" is a refusal before any rule of yours; where your own rules drop what is closed, write "drop"`, name)
	}
	if !p.opened(i) && len(s.Allow) == 0 {
		p.limit("%s is hidden and nothing here opens it, not to you either", name)
	}
}

// opened reports whether a knock of the plan opens a service of this host.
func (p *plan) opened(i int) bool {
	return len(p.Services[i].On) == 0 && slices.ContainsFunc(p.knocks, func(k knock) bool { return slices.Contains(k.Opens, i) })
}

// iptables says what its matches can't do and those of nftables can.
func (p *plan) iptables() {
	if p.Daemon.GrantMark != 0 {
		p.limit("grant_mark is left out: iptables sets marks in other tables only")
	}
	p.limit("a step that is sent again after the next one was made breaks the attempt: do not let a client wait for an answer longer than a second")
	p.limit("ports that listen count as wrong steps unless they are public or a service's")
	p.limit("container ports that are redirected before INPUT are not guarded; those of sallyport rules nft are")
}

// Limits says, a line each, what of a config a ruleset without a daemon can't do.
func Limits(cfg *config.Config, kind Kind) []string {
	p := newPlan(cfg, kind)
	if err := p.spelled(); err != nil {
		return []string{err.Error()}
	}
	if p.usable() != nil {
		return []string{"no knock of this config can be done by a ruleset"}
	}
	return p.limits
}

// spelled refuses names of interfaces that would be read as something else: to iptables
// a + at the end means all names that begin so, and a quote ends a name in both languages.
func (p *plan) spelled() error {
	const known = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"
	for _, name := range p.Daemon.Interfaces {
		if strings.HasPrefix(name, "-") || strings.Trim(name, known) != "" {
			return fmt.Errorf("daemon.interfaces names %q, and a ruleset can only have a name of letters, digits, dots, _ and -; rename the interface, or leave interfaces empty", name)
		}
	}
	return nil
}

// usable refuses what would only shut people out.
func (p *plan) usable() error {
	if err := p.spelled(); err != nil {
		return err
	}
	for i := range p.Services {
		if p.opened(i) {
			return nil
		}
	}
	return fmt.Errorf("no knock of this config can be done by a ruleset, so that it would only shut everybody out; add a knock of type \"sequence\"\n%s", strings.Join(p.limits, "\n"))
}

func (p *plan) newKnock(k *config.Knock) knock {
	out := knock{Knock: k}
	var named []sequence.Step // a ping of any size has no neighbours
	for _, s := range k.Sequence {
		if !s.AnySize {
			named = append(named, s)
		}
		if s.Proto == sequence.TCP && s.Flags != sequence.Opening && !slices.Contains(out.flags, s.Flags) {
			out.flags = append(out.flags, s.Flags)
		}
	}
	innocent := portsOf(config.Innocent(p.Config, nil))
	guard := sequence.Sequence{Steps: named}.Guard()
	out.wrong = portsOf(guard)
	for _, s := range named {
		out.beside.addBeside(s, &out.wrong)
	}
	out.wrong.removeAll(&innocent)
	out.wrong.addAll(&out.beside)
	if k.Strict && out.onlyOpening() { // what counts at all is wrong, whatever its port
		out.wrong, out.beside = ports{}, ports{}
	}
	for _, s := range guard {
		if s.Proto == sequence.ICMP {
			out.sizes = append(out.sizes, lessPings(s, named)...)
		}
	}
	return out
}

// Sizes that ping(8) sends by itself, 56 bytes on Linux and the BSDs and 32 on
// Windows, break nothing unless they are next to a step.
var pings = []uint16{32, 56}

func lessPings(s sequence.Span, steps []sequence.Step) []sequence.Span {
	var out []sequence.Span
	for _, size := range pings {
		near := slices.ContainsFunc(steps, func(step sequence.Step) bool {
			return step.Proto == sequence.ICMP && (step.Port == size-1 || step.Port == size+1)
		})
		if near || size < s.Low || size > s.High {
			continue
		}
		if size > s.Low {
			out = append(out, sequence.Span{Proto: s.Proto, Low: s.Low, High: size - 1})
		}
		if s.Low = size + 1; size == s.High {
			return out
		}
	}
	return append(out, s)
}

// wholeSeconds spells a duration for both languages, rounded down: nothing stays
// open longer than asked.
func wholeSeconds(d time.Duration) int64 { return max(1, int64(d/time.Second)) }

// hidden gives this host's hidden ports by their looks: a port that two services
// name looks as the first one says.
func (p *plan) hidden() (looks [config.Reject + 1]ports) {
	var seen ports
	for i := range p.Services {
		s := &p.Services[i]
		if len(s.On) > 0 {
			continue
		}
		var own ports
		own.addRanges(s.Ports)
		own.removeAll(&seen)
		looks[s.ClosedAs].addAll(&own)
		seen.addAll(&own)
	}
	if p.Daemon.HideAll {
		all := ports{}
		all.addRanges([]config.PortRange{{Proto: sequence.TCP, Low: 1, High: 65535}, {Proto: sequence.UDP, Low: 1, High: 65535}})
		public := ports{}
		public.addRanges(p.Daemon.Public)
		all.removeAll(&public)
		all.removeAll(&seen)
		looks[config.Auto].addAll(&all)
	}
	return looks
}

// quiet gives the knock ports that give no answer. What the public uses stays.
func (p *plan) quiet() ports {
	var own, public ports
	for _, k := range p.knocks {
		if k.Quiet {
			own.addRanges(k.Ports())
		}
	}
	public.addRanges(p.Daemon.Public)
	own.removeAll(&public)
	return own
}

// here gives those of the services that the ruleset has grants for.
func (p *plan) here(services []int) []*config.Service {
	var out []*config.Service
	for _, i := range services {
		if p.opened(i) {
			out = append(out, &p.Services[i])
		}
	}
	return out
}

// onlyOpening reports whether every packet that can be a step of TCP is a plain SYN.
func (k *knock) onlyOpening() bool { return len(k.flags) == 0 }

// head is the comment that both languages begin with, a line each.
func (p *plan) head(b *strings.Builder, lines ...string) {
	for _, line := range lines {
		fmt.Fprintf(b, "%s\n", strings.TrimRight("# "+line, " "))
	}
	if len(p.limits) > 0 {
		b.WriteString("#\n# What this ruleset does not do:\n")
		for _, l := range p.limits {
			fmt.Fprintf(b, "# - %s\n", l)
		}
	}
}

// seconds names a span of time in a comment.
func seconds(d time.Duration) string { return (time.Duration(wholeSeconds(d)) * time.Second).String() }
