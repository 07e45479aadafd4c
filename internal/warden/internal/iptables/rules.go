package iptables

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/sallyport/sallyport/internal/warden/internal/nft"
)

// family is an IP version, its tools and how it refuses.
type family struct {
	number      uint8
	suffix      string
	restore     string
	save        string
	unreachable string
	halves      []string // two networks that are all addresses: a set has no /0
}

var families = []family{
	{unix.NFPROTO_IPV4, "4", "iptables-restore", "iptables-save", "icmp-port-unreachable", []string{"0.0.0.0/1", "128.0.0.0/1"}},
	{unix.NFPROTO_IPV6, "6", "ip6tables-restore", "ip6tables-save", "icmp6-port-unreachable", []string{"::/1", "8000::/1"}},
}

func (f family) open() string  { return "sallyport" + f.suffix }
func (f family) cut() string   { return "sallyport-cut" + f.suffix }
func (f family) live() string  { return "sallyport-live" + f.suffix }
func (f family) trial() string { return "sallyport-trial" + f.suffix }

// sets are the names of all sets that this package makes.
func (f family) sets() []string { return []string{f.open(), f.cut(), f.live(), f.trial()} }

const chain = "SALLYPORT"

// chains are all that this package makes, in each of its tables.
var chains = []string{chain, chain + "-GUARD", chain + "-CUT", chain + "-OPEN", chain + "-CLOSED"}

// hooks are the built-in chains that jump to ours: mangle before any DNAT, so that the
// number that the stranger dialled is judged; filter, the only table with REJECT; and
// nat, so that a redirect of the dialled port (Docker's published ports are such) does
// not carry a stranger past the filter.
var hooks = []struct{ table, builtin string }{{"mangle", "PREROUTING"}, {"filter", "INPUT"}, {"nat", "PREROUTING"}}

// layout is what a config needs in one family.
type layout struct {
	family
	cfg       *config.Config
	live      bool // the connections that are there are in a set
	trial     bool
	autoDrops bool // the host drops what is not listened at
	b         *strings.Builder
}

func (l *layout) rule(in, format string, args ...any) {
	fmt.Fprintf(l.b, "-A %s %s\n", in, fmt.Sprintf(format, args...))
}

// text gives the input of iptables-restore --noflush: of each table our chains anew,
// and the jump to them at the head of the built-in one. Each table changes in one
// moment; what drops comes first.
func (l *layout) text(host tables) string {
	l.b = &strings.Builder{}
	for _, h := range hooks {
		fmt.Fprintf(l.b, "*%s\n", h.table)
		for _, name := range chains {
			fmt.Fprintf(l.b, ":%s - [0:0]\n", name)
		}
		l.b.WriteString(host.jump(h.table, h.builtin))
		l.enter()
		l.guard(h.table)
		l.cutOff(h.table)
		l.granted()
		switch h.table {
		case "mangle":
			l.dropped()
		case "filter":
			l.dropped() // broadcast and multicast
			l.refused()
		case "nat":
			l.kept()
		}
		l.b.WriteString("COMMIT\n")
	}
	return l.b.String()
}

// enter leaves alone what this host sends to itself, interfaces that are not guarded,
// and everything once the kernel has ended a trial.
func (l *layout) enter() {
	l.rule(chain, "-i lo -j RETURN")
	if l.trial {
		l.rule(chain, "-m set ! --match-set %s src -j RETURN", l.family.trial())
	}
	if len(l.cfg.Daemon.Interfaces) == 0 {
		l.rule(chain, "-g %s-GUARD", chain)
	}
	for _, name := range l.cfg.Daemon.Interfaces {
		l.rule(chain, "-i %s -g %s-GUARD", name, chain)
	}
}

// guard lets go what no stranger sent, in the order of the nftables table. What passes
// goes back to the built-in chain: the owner's rules behind ours are still asked.
func (l *layout) guard(table string) {
	const in = chain + "-GUARD"
	if table == "filter" {
		l.rule(in, "-m conntrack --ctstate DNAT -j RETURN") // redirected by the owner: judged on arrival
	} else {
		l.rule(in, "-m addrtype ! --dst-type LOCAL -j RETURN") // on its way to others
	}
	if table != "nat" { // which sees the first packet of a connection only
		// Before conntrack: a server inside that goes on sending makes the entry anew.
		l.rule(in, "-m set --match-set %s src,dst -g %s-CUT", l.cut(), chain)
		l.rule(in, "-m conntrack --ctstate RELATED,ESTABLISHED -j RETURN")
		midStream := "-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK ACK"
		if l.live {
			l.rule(in, "%s -m set --match-set %s src,src,dst -j RETURN", midStream, l.family.live())
		} else {
			l.rule(in, "%s -m socket -j RETURN", midStream) // connections older than this table
		}
	}
	l.rule(in, "-g %s-OPEN", chain)
}

// cutOff has those who were cut be strangers in the connections that they have.
func (l *layout) cutOff(table string) {
	if table == "nat" {
		return // it drops nothing, and no such packet gets as far
	}
	const in = chain + "-CUT"
	l.rule(in, "-m set --match-set %s src,dst -g %s-OPEN", l.open(), chain)
	l.each(func(from, ports string) { l.rule(in, "-s %s %s -j RETURN", from, ports) })
	l.rule(in, "-m conntrack --ctstate RELATED,ESTABLISHED -j DROP")
	l.rule(in, "-g %s-CLOSED", chain)
}

// granted lets in whom the config or a grant lets in.
func (l *layout) granted() {
	const in = chain + "-OPEN"
	l.each(func(from, ports string) { l.rule(in, "-s %s %s -j RETURN", from, ports) })
	if mark := l.cfg.Daemon.GrantMark; mark != 0 {
		l.rule(in, "-m set --match-set %s src,dst -j MARK --set-mark 0x%x", l.open(), mark)
	}
	l.rule(in, "-m set --match-set %s src,dst -j RETURN", l.open())
	l.rule(in, "-g %s-CLOSED", chain)
}

// each gives the networks that services are never hidden from, of this family, and their
// ports.
func (l *layout) each(do func(from, ports string)) {
	for i := range l.cfg.Services {
		s := &l.cfg.Services[i]
		for _, from := range s.Allow {
			if from.Addr().Is4() != (l.number == unix.NFPROTO_IPV4) {
				continue
			}
			for _, ports := range matches(s.Ports) {
				do(from.Masked().String(), ports)
			}
		}
	}
}

// drops are the ports that give no answer.
func (l *layout) drops() []config.PortRange {
	hidden := nft.Hides(l.cfg)
	drops := slices.Concat(nft.Quiet(l.cfg), hidden[config.Drop])
	if l.autoDrops {
		drops = append(drops, hidden[config.Auto]...)
	}
	return drops
}

func (l *layout) dropped() {
	for _, ports := range matches(l.drops()) {
		l.rule(chain+"-CLOSED", "%s -j DROP", ports)
	}
}

// refuses are the ports that are refused by what this kernel sends.
func (l *layout) refuses() []config.PortRange {
	hidden := nft.Hides(l.cfg)
	refuses := hidden[config.Reject]
	if !l.autoDrops {
		refuses = slices.Concat(refuses, hidden[config.Auto])
	}
	return refuses
}

func (l *layout) refused() {
	for _, ports := range matches(l.refuses()) {
		with := l.unreachable
		if strings.HasPrefix(ports, "-p tcp") {
			with = "tcp-reset"
		}
		l.rule(chain+"-CLOSED", "%s -j REJECT --reject-with %s", ports, with)
	}
}

// kept ends the search for a redirect: the stranger's connection goes where it was
// sent, and is refused there.
func (l *layout) kept() {
	for _, ports := range matches(l.refuses()) {
		l.rule(chain+"-CLOSED", "%s -j ACCEPT", ports)
	}
}

// maxPorts is how many numbers one multiport match takes; a range is two.
const maxPorts = 15

// matches spells ports as the fewest matches that hold them.
func matches(ports []config.PortRange) []string {
	var out []string
	for _, proto := range []sequence.Proto{sequence.TCP, sequence.UDP} {
		var list []string
		used := 0
		flush := func() {
			if used > 0 {
				out = append(out, fmt.Sprintf("-p %v -m multiport --dports %s", proto, strings.Join(list, ",")))
			}
			list, used = nil, 0
		}
		for _, r := range ports {
			if r.Proto != proto {
				continue
			}
			word, needs := fmt.Sprint(r.Low), 1
			if r.High > r.Low {
				word, needs = fmt.Sprintf("%d:%d", r.Low, r.High), 2
			}
			if used+needs > maxPorts {
				flush()
			}
			list, used = append(list, word), used+needs
		}
		flush()
	}
	return out
}
