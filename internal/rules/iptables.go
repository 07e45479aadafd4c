package rules

import (
	"fmt"
	"slices"
	"strings"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/sequence"
)

// Chain is the name of the chain in iptables' and ip6tables' filter tables that INPUT
// jumps to, and how the names of the others begin. None is the daemon's, whose chains
// are SALLYPORT and SALLYPORT-...: with backend = "iptables" it removes those. Chains
// have at most 28 bytes (XT_EXTENSION_MAXNAMELEN less the zero), so knocks go by
// numbers there.
const Chain = "SALLYPORT_RULES"

// restore is text for iptables-restore and ip6tables-restore: chains first, rules
// behind them. A line that begins with -4 or -6 is for one of them only.
type restore struct {
	plan
	chains, rules strings.Builder
}

// IPTables gives the ruleset for both families: `iptables-restore --noflush` and
// `ip6tables-restore --noflush` load the same text, a second time too. It holds the
// config's sequences. An error says that nobody could get in.
func IPTables(cfg *config.Config) (string, error) {
	r := &restore{plan: newPlan(cfg, Iptables)}
	if err := r.usable(); err != nil {
		return "", err
	}
	for i := range r.knocks {
		r.knock(i)
	}
	r.main()
	var b strings.Builder
	r.head(&b, iptablesHead...)
	fmt.Fprintf(&b, "\n*filter\n%s%s\n# The hook, before every rule of yours. Loaded a second time it stands there twice,\n# which changes nothing: what one pass did is to the next a step sent again.\n-I INPUT 1 -j %s\nCOMMIT\n", &r.chains, &r.rules, Chain)
	return b.String(), nil
}

var iptablesHead = []string{
	"Port knocking in the kernel alone, made by sallyport rules iptables, for IPv4 and",
	"IPv6 in one text: a line that begins with -4 or -6 is for one of them.",
	"It holds your sequences: keep it where root alone can read it (chmod 600).",
	"",
	"Load both; without --noflush your own rules would be gone:",
	"             iptables-restore --noflush FILE",
	"             ip6tables-restore --noflush FILE",
	"Who got in:  grep . /proc/net/xt_recent/sallyport.open.*",
	"Undo:        iptables-save -t filter | grep -v " + Chain + " | iptables-restore",
	"             ip6tables-save -t filter | grep -v " + Chain + " | ip6tables-restore",
	"",
	"Loaded again the chains are made anew, and who got in stays in. It opens nothing",
	"that another rule of yours drops: a granted packet goes on to your own rules. Do",
	"not run the daemon on the same ports beside it.",
	"",
	"A list of the match recent has 100 addresses, of both families together, and the",
	"one not seen for the longest leaves first; more, at boot and before the first",
	"such rule: modprobe xt_recent ip_list_tot=10000, or in /etc/modprobe.d. Whoever",
	"forges many addresses can push a half-done knock out of its list; knock again. A",
	"grant is pushed out only by 100 later ones, since it takes a whole sequence. A",
	"sequence can be read on its way and repeated: it hides a service and does not",
	"protect it.",
}

func (r *restore) chain(name string) { fmt.Fprintf(&r.chains, ":%s - [0:0]\n", name) }

func (r *restore) comment(format string, args ...any) {
	fmt.Fprintf(&r.rules, "\n# "+format+"\n", args...)
}

func (r *restore) rule(chain, format string, args ...any) {
	fmt.Fprintf(&r.rules, "-A %s "+format+"\n", append([]any{chain}, args...)...)
}

// match writes a rule for each match; those for one family say so.
func (r *restore) match(chain string, matches []match, format string, args ...any) {
	for _, m := range matches {
		fmt.Fprintf(&r.rules, "%s-A %s %s "+format+"\n", append([]any{m.family, chain, m.text}, args...)...)
	}
}

type match struct{ family, text string } // family: "", "-4 " or "-6 "

func knockChain(i int, part any) string { return fmt.Sprintf("%s-K%d-%v", Chain, i+1, part) }

// The lists outlive a load, and so go by names: by number, a service that was put before
// another in the config would let in whom the other had let in.
func (r *restore) stageList(i, n int) string {
	return fmt.Sprintf("sallyport.knock.%s.%d", r.knocks[i].Name, n)
}
func (r *restore) openList(i int) string { return "sallyport.open." + r.Services[i].Name }

// knock writes the chains that follow the sequence with that index.
func (r *restore) knock(i int) {
	k := &r.knocks[i]
	last := len(k.Sequence) - 1
	r.comment("knock.%s: %d steps within %s. List sallyport.knock.%s.n: who made the first n.", k.Name, last+1, seconds(k.Within), k.Name)
	r.stand(i)
	for n := last; n >= 1; n-- {
		r.after(i, n)
	}
	if last > 0 {
		r.wrong(i)
		r.first(i)
	}
	r.begin(i)
	r.opens(i)
}

// stand sends a packet on by what its source made. Only the time of the first list
// counts: it is the whole attempt's.
func (r *restore) stand(i int) {
	k := &r.knocks[i]
	head, source := knockChain(i, "IN"), knockChain(i, "AT")
	r.chain(head)
	r.chain(source)
	if k.onlyOpening() { // before the route is looked up
		r.rule(head, "-p tcp ! --syn -j RETURN")
	}
	r.rule(head, "-m addrtype ! --dst-type LOCAL -j RETURN") // broadcast and multicast
	if !k.onlyOpening() && !slices.Contains(k.flags, sequence.Nothing) {
		for _, f := range append([]sequence.Flags{sequence.Opening}, k.flags...) {
			r.rule(head, "-p tcp %s -g %s", tcpFlags(f), source)
		}
		r.rule(head, "-p tcp -j RETURN")
	}
	r.rule(head, "-g %s", source)
	if last := len(k.Sequence) - 1; last > 0 {
		r.rule(source, "-m recent --name %s ! --rcheck --seconds %d -g %s", r.stageList(i, 1), wholeSeconds(k.Within), knockChain(i, "BEGIN"))
		for n := last; n > 1; n-- {
			r.rule(source, "-m recent --name %s --rcheck -g %s", r.stageList(i, n), knockChain(i, n))
		}
		r.rule(source, "-g %s", knockChain(i, 1))
		return
	}
	r.rule(source, "-g %s", knockChain(i, "BEGIN"))
}

// after writes what counts for a source that made n steps.
func (r *restore) after(i, n int) {
	k := &r.knocks[i]
	name := knockChain(i, n)
	r.chain(name)
	if n+1 == len(k.Sequence) {
		r.match(name, k.matches(n), "-g %s", knockChain(i, "OPEN"))
	} else {
		r.match(name, k.matches(n), "-m recent --name %s --set -j RETURN", r.stageList(i, n+1))
	}
	// Once more the step just made: harmless, and the first one's time counts anew.
	again := "-j RETURN"
	if n == 1 {
		again = fmt.Sprintf("-m recent --name %s --set -j RETURN", r.stageList(i, 1))
	}
	r.match(name, k.matches(n-1), "%s", again)
	r.rule(name, "-g %s", knockChain(i, "WRONG"))
}

// wrong writes which other packets end an attempt.
func (r *restore) wrong(i int) {
	k := &r.knocks[i]
	name, lost := knockChain(i, "WRONG"), knockChain(i, "LOST")
	r.chain(name)
	r.chain(lost)
	if k.Strict {
		r.rule(name, "-p udp -g %s", lost)
		r.rule(name, "-p tcp --syn -g %s", lost)
	}
	for _, s := range k.wrong.spans() {
		r.rule(name, "-p %v --dport %s -g %s", s.Proto, portRange(s), lost)
	}
	for _, s := range k.sizes {
		r.match(name, pingMatches(s), "-g %s", lost)
	}
	r.clear(lost, i, 1)
	if k.CloseOnWrong {
		r.closes(lost, k.Opens)
	}
	r.rule(lost, "-g %s", knockChain(i, "BEGIN"))
}

func (r *restore) closes(chain string, services []int) {
	for _, s := range services {
		if r.opened(s) {
			r.rule(chain, "-m recent --name %s --remove", r.openList(s))
		}
	}
}

// clear forgets the stages from n on.
func (r *restore) clear(chain string, i, n int) {
	for ; n < len(r.knocks[i].Sequence); n++ {
		r.rule(chain, "-m recent --name %s --remove", r.stageList(i, n))
	}
}

// begin writes the first step of an attempt, and first what it does.
func (r *restore) begin(i int) {
	k := &r.knocks[i]
	name, first := knockChain(i, "BEGIN"), knockChain(i, "FIRST")
	if len(k.Sequence) == 1 {
		first = knockChain(i, "OPEN")
	}
	r.chain(name)
	r.match(name, k.matches(0), "-g %s", first)
}

func (r *restore) first(i int) {
	name := knockChain(i, "FIRST")
	r.chain(name)
	r.clear(name, i, 2)
	r.rule(name, "-m recent --name %s --set", r.stageList(i, 1))
}

// opens writes what the last step does. The stages are cleared first, so that the
// next knock begins anew and a refresh is a knock like any.
func (r *restore) opens(i int) {
	k := &r.knocks[i]
	name := knockChain(i, "OPEN")
	r.chain(name)
	r.clear(name, i, 1)
	r.closes(name, k.Closes)
	for _, s := range k.Extends {
		if r.opened(s) {
			r.rule(name, "-m recent --name %s --update --seconds %d", r.openList(s), wholeSeconds(r.Services[s].OpenFor))
		}
	}
	for _, s := range k.Opens {
		if r.opened(s) {
			r.rule(name, "-m recent --name %s --set", r.openList(s))
		}
	}
}

// main writes the chain that INPUT jumps to. Knocks are seen first, then goes what no
// stranger sent, then who was let in; the rest is hidden.
func (r *restore) main() {
	guard := Chain + "-GUARD"
	r.chain(Chain)
	r.chain(guard)
	r.comment("every packet to this host")
	r.rule(Chain, "-i lo -j RETURN")
	for _, name := range r.Daemon.Interfaces {
		r.rule(Chain, "-i %s -g %s", name, guard)
	}
	if len(r.Daemon.Interfaces) == 0 {
		r.rule(Chain, "-g %s", guard)
	}
	for i := range r.knocks {
		r.rule(guard, "-j %s", knockChain(i, "IN"))
	}
	r.rule(guard, "-m conntrack --ctstate ESTABLISHED,RELATED -j RETURN")
	// On a host without a firewall conntrack has not seen the connections that are
	// older than it, and one of them may be the administrator's own.
	r.rule(guard, "-p tcp --tcp-flags SYN,ACK ACK -m socket -j RETURN")
	if r.Daemon.HideAll {
		r.rule(guard, "-p udp --sport 67 --dport 68 -j RETURN")
		r.rule(guard, "-p udp --sport 547 --dport 546 -j RETURN")
	}
	for i := range r.Services {
		r.admit(guard, i)
	}
	r.refuse(guard)
}

// admit writes who may reach one service. RETURN and not ACCEPT: the owner's own rules
// decide on.
func (r *restore) admit(guard string, i int) {
	s := &r.Services[i]
	if len(s.On) > 0 {
		return
	}
	r.comment("service.%s", s.Name)
	var own ports
	own.addRanges(s.Ports)
	for _, span := range own.spans() {
		to := fmt.Sprintf("-p %v --dport %s", span.Proto, portRange(span))
		for _, from := range s.Allow {
			family := "-6"
			if from.Addr().Is4() {
				family = "-4"
			}
			fmt.Fprintf(&r.rules, "%s -A %s -s %s %s -j RETURN\n", family, guard, from.Masked(), to)
		}
		if r.opened(i) {
			r.rule(guard, "%s -m recent --name %s --rcheck --seconds %d -j RETURN", to, r.openList(i), wholeSeconds(s.OpenFor))
		}
	}
}

// refuse writes what is hidden. Behind a refusal is a chain of its own, since the two
// families word it differently.
func (r *restore) refuse(guard string) {
	chain := Chain + "-REFUSE"
	r.chain(chain)
	r.comment("what is hidden")
	quiet, looks := r.quiet(), r.hidden()
	drop := func(p *ports) {
		for _, s := range p.spans() {
			r.rule(guard, "-p %v --dport %s -j DROP", s.Proto, portRange(s))
		}
	}
	drop(&quiet)
	drop(&looks[config.Drop])
	for _, as := range []config.ClosedAs{config.Reject, config.Auto} {
		for _, s := range looks[as].spans() {
			r.rule(guard, "-p %v --dport %s -g %s", s.Proto, portRange(s), chain)
		}
	}
	r.rule(chain, "-p tcp -j REJECT --reject-with tcp-reset")
	fmt.Fprintf(&r.rules, "-4 -A %s -j REJECT --reject-with icmp-port-unreachable\n", chain)
	fmt.Fprintf(&r.rules, "-6 -A %s -j REJECT --reject-with icmp6-port-unreachable\n", chain)
}

func portRange(s sequence.Span) string {
	if s.Low == s.High {
		return fmt.Sprint(s.Low)
	}
	return fmt.Sprintf("%d:%d", s.Low, s.High)
}

// matches gives what matches step i.
func (k *knock) matches(i int) []match {
	s := k.Sequence[i]
	switch {
	case s.AnySize:
		return []match{{"-4 ", echo4}, {"-6 ", echo6}}
	case s.Proto == sequence.ICMP:
		return pingMatches(sequence.Span{Proto: sequence.ICMP, Low: s.Port, High: s.Port})
	case s.Proto == sequence.TCP && !k.onlyOpening() && s.Flags != sequence.Nothing:
		return []match{{"", fmt.Sprintf("-p tcp --dport %d %s", s.Port, tcpFlags(s.Flags))}}
	}
	return []match{{"", fmt.Sprintf("-p %v --dport %d", s.Proto, s.Port)}}
}

const (
	echo4 = "-p icmp --icmp-type echo-request"
	echo6 = "-p icmpv6 --icmpv6-type echo-request"
)

// pingMatches leaves out what the match length can't count to; no network carries such
// a packet whole.
func pingMatches(s sequence.Span) (out []match) {
	for _, m := range []struct {
		family
		match
	}{{ipv4, match{"-4 ", echo4}}, {ipv6, match{"-6 ", echo6}}} {
		if low, high := m.packet(s); low <= lastPort {
			out = append(out, match{m.match.family, fmt.Sprintf("%s -m length --length %d:%d", m.text, low, min(high, lastPort))})
		}
	}
	return out
}

func tcpFlags(f sequence.Flags) string {
	spell := func(bits uint8) string { return strings.ToUpper(spellFlags(bits, ",", "none")) }
	return "--tcp-flags " + spell(f.Set|f.Clear) + " " + spell(f.Set)
}
