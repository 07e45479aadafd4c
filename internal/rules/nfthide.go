package rules

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/sallyport/sallyport/internal/config"
)

// hiddenSets writes the ports of each look, and of the quiet knocks.
func (r *ruleset) hiddenSets() {
	looks := r.hidden()
	for as := range looks {
		r.portSet(hiddenSet(config.ClosedAs(as)), &looks[as])
	}
	quiet := r.quiet()
	r.portSet("quiet", &quiet)
	r.auto = looks[config.Auto]
}

func hiddenSet(as config.ClosedAs) string { return "hidden." + as.String() }

// guard writes the chains that hide, in the order of the daemon's own table: see
// there. arrive is before every redirect, answer behind every rule of the owner's.
func (r *ruleset) guard() {
	r.open("chain", "refuse")
	r.rule("meta l4proto tcp reject with tcp reset")
	r.rule("reject")
	r.close()
	r.closed()
	r.granted()
	r.known()
	r.open("chain", "arrive")
	r.rule("type filter hook prerouting priority mangle; policy accept;")
	r.rule("jump known")
	r.rule("fib daddr type != local accept")
	r.rule("jump closed")
	r.close()
	if len(r.auto.spans()) > 0 {
		r.keep()
	}
	r.open("chain", "answer")
	r.rule("type filter hook input priority 300; policy accept;")
	r.rule("ct status dnat accept comment \"redirected by another rule: judged on arrival\"")
	r.rule("jump known")
	r.rule("jump closed comment \"broadcast and multicast\"")
	if len(r.auto.spans()) > 0 {
		r.rule("meta l4proto . th dport @%s goto refuse comment \"what your own rules accept is refused as a closed port\"", hiddenSet(config.Auto))
	}
	r.close()
}

func (r *ruleset) closed() {
	looks, quiet := r.hidden(), r.quiet()
	r.open("chain", "closed")
	if len(quiet.spans()) > 0 {
		r.rule("meta l4proto . th dport @quiet drop comment \"knock ports that give no answer\"")
	}
	if len(looks[config.Drop].spans()) > 0 {
		r.rule("meta l4proto . th dport @%s drop", hiddenSet(config.Drop))
	}
	if len(looks[config.Reject].spans()) > 0 {
		r.rule("meta l4proto . th dport @%s goto refuse", hiddenSet(config.Reject))
	}
	r.close()
}

// granted lets in whom the config or a knock lets in.
func (r *ruleset) granted() {
	r.open("chain", "granted")
	r.rule("fib daddr type unicast accept comment \"for another machine\"")
	if r.Daemon.HideAll {
		r.rule("udp sport 67 udp dport 68 accept comment \"DHCP\"")
		r.rule("udp sport 547 udp dport 546 accept comment \"DHCPv6\"")
	}
	for _, f := range families {
		for i := range r.Services {
			r.admit(f, i)
		}
	}
	r.close()
}

// admit writes who may reach one service.
func (r *ruleset) admit(f family, i int) {
	s := &r.Services[i]
	if len(s.On) > 0 {
		return
	}
	var own ports
	own.addRanges(s.Ports)
	to := fmt.Sprintf("meta l4proto . th dport { %s }", spell(&own))
	if from := prefixes(f, s.Allow); from != "" {
		r.rule("%s { %s } %s accept", f.source, from, to)
	}
	if !r.opened(i) {
		return
	}
	mark := ""
	if bits := r.Daemon.GrantMark; bits != 0 {
		mark = fmt.Sprintf(" meta mark set mark or 0x%08x", bits)
	}
	r.rule("%s @%s %s%s accept", f.source, grantSet(f, s), to, mark)
}

// prefixes lists those of one family. The config has none inside another, which a set
// of ranges would not take.
func prefixes(f family, all []netip.Prefix) string {
	var words []string
	for _, p := range all {
		if f.has(p.Addr()) {
			words = append(words, p.Masked().String())
		}
	}
	return strings.Join(words, ", ")
}

// known lets go what no stranger sent. Connections older than the table must live: on
// a host without a firewall conntrack has never seen them, and one of them may be the
// administrator's own.
func (r *ruleset) known() {
	r.open("chain", "known")
	r.rule("iif lo accept")
	if names := r.interfaces(); names != "" {
		r.rule("iifname != { %s } accept comment \"not guarded\"", names)
	}
	r.rule("ct state established,related accept")
	r.rule("tcp flags & (syn | ack) == ack socket wildcard 0 accept comment \"connections older than this table\"")
	r.rule("goto granted")
	r.close()
}

// keep binds a stranger's connection to the port that he dialled, so that no later
// redirect carries it past the chain answer.
func (r *ruleset) keep() {
	r.open("chain", "keep")
	r.rule("type nat hook prerouting priority dstnat - 1; policy accept;")
	r.rule("meta l4proto . th dport != @%s accept", hiddenSet(config.Auto))
	r.rule("jump known")
	r.rule("fib daddr type local dnat ip to ip daddr comment \"to where it was sent: no later redirect is asked\"")
	r.rule("fib daddr type local dnat ip6 to ip6 daddr comment \"to where it was sent: no later redirect is asked\"")
	r.close()
}
