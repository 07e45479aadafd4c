package rules

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/sequence"
)

// Table is the name of the nftables table, which is not the daemon's.
const Table = "inet sallyport_rules"

// family is what differs between IPv4 and IPv6 in nftables' language.
type family struct {
	suffix       string
	source, dest string // the fields
	echo         string // matches an echo request
	address      string // the type of a set
	header       int    // bytes of the IP header and of the echo header before the payload
}

// An IPv4 header with options is longer than 20 bytes; a ping with options is no step.
var (
	ipv4     = family{".4", "ip saddr", "ip daddr", "icmp type echo-request", "ipv4_addr", 20 + 8}
	ipv6     = family{".6", "ip6 saddr", "ip6 daddr", "icmpv6 type echo-request", "ipv6_addr", 40 + 8}
	families = []family{ipv4, ipv6}
)

func (f family) has(a netip.Addr) bool { return a.Is4() == (f.suffix == ipv4.suffix) }

// ruleset is nftables text in the making.
type ruleset struct {
	strings.Builder
	plan
	auto ports // hidden, and refused behind the owner's own rules
}

// NFT gives the ruleset for nftables: `nft -f` loads it, a second time too. It holds
// the config's sequences. An error says that nobody could get in.
func NFT(cfg *config.Config) (string, error) {
	r := &ruleset{plan: newPlan(cfg, Nftables)}
	if err := r.usable(); err != nil {
		return "", err
	}
	r.head(&r.Builder, nftHead...)
	fmt.Fprintf(r, "\ntable %s\ndelete table %s\ntable %s {\n", Table, Table, Table)
	for _, f := range families {
		r.grants(f)
		for i := range r.knocks {
			if r.knocks[i].in(f) {
				r.stages(f, &r.knocks[i])
			}
		}
	}
	r.guards()
	r.hiddenSets()
	for _, f := range families {
		for i := range r.knocks {
			if r.knocks[i].in(f) {
				r.knock(f, &r.knocks[i])
			}
		}
	}
	r.watch()
	r.guard()
	r.WriteString("}\n")
	return r.String(), nil
}

var nftHead = []string{
	"Port knocking in the kernel alone, made by sallyport rules nft.",
	"It holds your sequences: keep it where root alone can read it (chmod 600).",
	"",
	"Load:        nft -f FILE",
	"Who got in:  nft list table " + Table,
	"Undo:        nft delete table " + Table,
	"",
	"Loaded again it replaces itself in one step: what was open needs a new knock,",
	"connections go on. No other table is touched. It opens nothing that another",
	"chain of yours drops. Do not run the daemon on the same ports beside it.",
	"",
	"Every set has a size and every element a time. Whoever forges many addresses",
	"can fill the set of first steps; then new knocks wait until the elements' time",
	"is over, and grants that exist go on. A datagram or ping that the network brings",
	"twice, the second time behind a later step, breaks an attempt. A sequence can be",
	"read on its way and repeated: it hides a service and does not protect it.",
}

// Rules are written with a tab, the lines of a set or chain with two.
func (r *ruleset) open(kind, name string) { fmt.Fprintf(r, "\t%s %s {\n", kind, name) }
func (r *ruleset) close()                 { r.WriteString("\t}\n\n") }

func (r *ruleset) rule(format string, args ...any) { fmt.Fprintf(r, "\t\t"+format+"\n", args...) }

func (k *knock) in(f family) bool { return !k.Target.IsValid() || f.has(k.Target) }

// The names of sets and chains have dots, which no knock's or service's name has: so
// two can't meet.
func (k *knock) name(f family, parts ...any) string {
	name := "knock." + k.Name
	for _, p := range parts {
		name += fmt.Sprint(".", p)
	}
	return name + f.suffix
}

func grantSet(f family, s *config.Service) string { return "open." + s.Name + f.suffix }

// grants are the sets of who may reach each service.
func (r *ruleset) grants(f family) {
	for i := range r.Services {
		if !r.opened(i) {
			continue
		}
		s := &r.Services[i]
		r.open("set", grantSet(f, s))
		r.rule("type %s; size %d; flags dynamic,timeout; timeout %ds", f.address, r.Daemon.MaxGrants, wholeSeconds(s.OpenFor))
		r.close()
	}
}

// stages are the sets of who made so many steps. The first one's time counts from the
// first step, and an attempt is over with it, whatever the others hold.
func (r *ruleset) stages(f family, k *knock) {
	for n := 1; n < len(k.Sequence); n++ {
		r.open("set", k.name(f, n))
		r.rule("type %s; size %d; flags dynamic,timeout; timeout %ds", f.address, r.Daemon.MaxAttempts, wholeSeconds(k.Within))
		r.close()
	}
	if k.copies() {
		r.open("set", k.name(f, "seen"))
		r.rule("typeof %s . tcp sport . tcp dport . tcp sequence; size %d; flags dynamic,timeout; timeout %ds", f.source, r.Daemon.MaxAttempts, wholeSeconds(k.Within))
		r.close()
	}
}

// copies reports whether steps of TCP are remembered, so that one that is sent again
// for want of an answer is harmless.
func (k *knock) copies() bool {
	return slices.ContainsFunc(k.Sequence[:len(k.Sequence)-1], func(s sequence.Step) bool { return s.Proto == sequence.TCP })
}

// guards are the sets of wrong ports, which both families share.
func (r *ruleset) guards() {
	for i := range r.knocks {
		k := &r.knocks[i]
		r.portSet("guard."+k.Name, &k.wrong)
		r.portSet("beside."+k.Name, &k.beside)
	}
}

// portSet writes a set unless it is empty.
func (r *ruleset) portSet(name string, p *ports) {
	list := spell(p)
	if list == "" {
		return
	}
	r.open("set", name)
	r.rule("type inet_proto . inet_service; flags interval")
	r.rule("elements = { %s }", list)
	r.close()
}

// spell lists ports as the elements of a set.
func spell(p *ports) string {
	var words []string
	for _, s := range p.spans() {
		words = append(words, fmt.Sprintf("%v . %s", s.Proto, span(s)))
	}
	return strings.Join(words, ", ")
}

func span(s sequence.Span) string {
	if s.Low == s.High {
		return fmt.Sprint(s.Low)
	}
	return fmt.Sprintf("%d-%d", s.Low, s.High)
}

// knock writes the chains that follow one sequence in one family. A source that has
// no attempt under way goes to begin, one with n steps made to after n.
func (r *ruleset) knock(f family, k *knock) {
	last := len(k.Sequence) - 1
	r.opens(f, k)
	for n := 1; n <= last; n++ {
		r.made(f, k, n)
	}
	r.begin(f, k)
	if last > 0 {
		r.lost(f, k)
	}
	for n := last; n >= 1; n-- {
		r.after(f, k, n)
	}
	r.source(f, k)
	r.stand(f, k)
}

// opens writes what the last step does. The stages are cleared first, so that the
// next knock begins anew and a refresh is a knock like any.
func (r *ruleset) opens(f family, k *knock) {
	r.open("chain", k.name(f, "open"))
	r.clear(f, k, 1)
	for _, s := range r.here(k.Closes) {
		r.rule("delete @%s { %s }", grantSet(f, s), f.source)
	}
	for _, s := range r.here(k.Extends) {
		r.rule("%s @%s update @%s { %s }", f.source, grantSet(f, s), grantSet(f, s), f.source)
	}
	for _, s := range r.here(k.Opens) {
		r.rule("update @%s { %s } comment \"%s opens for %s\"", grantSet(f, s), f.source, s.Name, seconds(s.OpenFor))
	}
	r.close()
}

// clear forgets the stages from n on.
func (r *ruleset) clear(f family, k *knock, n int) {
	for ; n < len(k.Sequence); n++ {
		r.rule("delete @%s { %s }", k.name(f, n), f.source)
	}
}

// made writes what a step does. Each is a rule of its own: a full set ends its rule.
func (r *ruleset) made(f family, k *knock, n int) {
	r.open("chain", k.name(f, "made", n))
	r.rule("update @%s { %s }", k.name(f, n), f.source)
	if k.Sequence[n-1].Proto == sequence.TCP {
		r.rule("update @%s { %s . tcp sport . tcp dport . tcp sequence }", k.name(f, "seen"), f.source)
	}
	r.close()
}

func (r *ruleset) begin(f family, k *knock) {
	r.open("chain", k.name(f, "begin"))
	first := "made.1"
	if len(k.Sequence) == 1 {
		first = "open"
	}
	if len(k.Sequence) > 2 {
		r.rule("# what an attempt left whose time was over")
		r.clear(f, k, 2)
	}
	r.rule("%s goto %s", k.step(f, 0), k.name(f, first))
	r.close()
}

func (r *ruleset) lost(f family, k *knock) {
	r.open("chain", k.name(f, "lost"))
	r.rule("# a wrong packet; it may be the first step of the next attempt")
	r.clear(f, k, 1)
	if k.CloseOnWrong {
		for _, s := range r.here(k.Opens) {
			r.rule("delete @%s { %s }", grantSet(f, s), f.source)
		}
	}
	r.rule("goto %s", k.name(f, "begin"))
	r.close()
}

// after writes what counts for a source that made n steps.
func (r *ruleset) after(f family, k *knock, n int) {
	r.open("chain", k.name(f, "after", n))
	next := k.name(f, "made", n+1)
	if n+1 == len(k.Sequence) {
		next = k.name(f, "open")
	}
	r.rule("%s goto %s", k.step(f, n), next)
	// Once more the step just made: it is remembered, and where it is the first one,
	// the time counts anew.
	r.rule("%s goto %s comment \"the same step again is harmless\"", k.step(f, n-1), k.name(f, "made", n))
	r.wrong(f, k)
	r.close()
}

// wrong writes which other packets end an attempt.
func (r *ruleset) wrong(f family, k *knock) {
	lost := k.name(f, "lost")
	if k.Strict {
		r.rule("meta l4proto udp goto %s", lost)
		r.rule("%s goto %s", flagsAre("==", sequence.Opening), lost)
	}
	if len(k.beside.spans()) > 0 {
		r.rule("meta l4proto . th dport @beside.%s goto %s", k.Name, lost)
	}
	r.rule("meta l4proto { tcp, udp } socket wildcard { 0, 1 } return comment \"a program listens there: whoever uses it did nothing wrong\"")
	if len(k.wrong.spans()) > 0 {
		r.rule("meta l4proto . th dport @guard.%s goto %s", k.Name, lost)
	}
	for _, s := range k.sizes {
		low, high := f.packet(s)
		r.rule("%s meta length %d-%d goto %s", f.echo, low, high, lost)
	}
}

// packet gives the bytes of the whole packets whose echo payload is in the span. Over
// IPv6 they can be more than 65,535.
func (f family) packet(s sequence.Span) (low, high int) {
	return int(s.Low) + f.header, int(s.High) + f.header
}

// step matches one step.
func (k *knock) step(f family, i int) string {
	s := k.Sequence[i]
	switch {
	case s.Proto == sequence.ICMP && s.AnySize:
		return f.echo
	case s.Proto == sequence.ICMP:
		return fmt.Sprintf("%s meta length %d", f.echo, int(s.Port)+f.header)
	case s.Proto == sequence.TCP && !k.onlyOpening() && s.Flags != sequence.Nothing:
		return fmt.Sprintf("tcp dport %d %s", s.Port, flagsAre("==", s.Flags))
	}
	return fmt.Sprintf("%v dport %d", s.Proto, s.Port)
}

var flagNames = []string{"fin", "syn", "rst", "psh", "ack", "urg"} // bits 0 to 5 of byte 13

func spellFlags(bits uint8, sep, none string) string {
	var names []string
	for i, name := range flagNames {
		if bits>>i&1 != 0 {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return none
	}
	return strings.Join(names, sep)
}

func flagsAre(op string, f sequence.Flags) string {
	return fmt.Sprintf("tcp flags & (%s) %s %s", spellFlags(f.Set|f.Clear, " | ", "0x0"), op, spellFlags(f.Set, " | ", "0x0"))
}

// stand writes where the packets of a source go, by the steps that it made.
func (r *ruleset) stand(f family, k *knock) {
	r.open("chain", k.name(f))
	if k.onlyOpening() { // before the route is looked up: it spares all other packets of a connection
		r.rule("%s return", flagsAre("!=", sequence.Opening))
	}
	if k.Target.IsValid() {
		r.rule("%s != %s return", f.dest, k.Target)
	} else {
		r.rule("fib daddr type != local return")
	}
	if !k.onlyOpening() && !slices.Contains(k.flags, sequence.Nothing) {
		for _, flags := range append([]sequence.Flags{sequence.Opening}, k.flags...) {
			r.rule("%s goto %s", flagsAre("==", flags), k.name(f, "source"))
		}
		r.rule("meta l4proto tcp return")
	}
	r.rule("goto %s", k.name(f, "source"))
	r.close()
}

// source is stand behind the flags.
func (r *ruleset) source(f family, k *knock) {
	r.open("chain", k.name(f, "source"))
	if k.copies() {
		r.rule("%s . tcp sport . tcp dport . tcp sequence @%s return comment \"a step that is sent again is harmless\"", f.source, k.name(f, "seen"))
	}
	if last := len(k.Sequence) - 1; last > 0 {
		r.rule("%s != @%s goto %s", f.source, k.name(f, 1), k.name(f, "begin"))
		for n := last; n > 1; n-- {
			r.rule("%s @%s goto %s", f.source, k.name(f, n), k.name(f, "after", n))
		}
		r.rule("goto %s", k.name(f, "after", 1))
	} else {
		r.rule("goto %s", k.name(f, "begin"))
	}
	r.close()
}

// watch writes the chain that sees every packet for knocks, before any that decides.
func (r *ruleset) watch() {
	r.open("chain", "watch")
	r.rule("type filter hook prerouting priority mangle - 1; policy accept;")
	r.rule("iif lo return")
	if names := r.interfaces(); names != "" {
		r.rule("iifname != { %s } return", names)
	}
	r.rule("meta l4proto != { tcp, udp, icmp, ipv6-icmp } return")
	r.rule("ip6 saddr ::ffff:0:0/96 return comment \"an IPv6 packet under an IPv4 host's name\"")
	for i := range r.knocks {
		for _, f := range families {
			if k := &r.knocks[i]; k.in(f) {
				r.rule("meta nfproto ipv%s jump %s", f.suffix[1:], k.name(f))
			}
		}
	}
	r.close()
}

func (r *ruleset) interfaces() string {
	var names []string
	for _, name := range r.Daemon.Interfaces {
		names = append(names, `"`+name+`"`)
	}
	return strings.Join(names, ", ")
}
