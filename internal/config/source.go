package config

import (
	"fmt"
	"slices"
	"strings"

	"github.com/sallyport/sallyport/internal/sequence"
)

// checkSource refuses keys of another source, and knocks that the source can't hear.
func checkSource(r *reader, c *Config) {
	d := &c.Daemon
	for _, key := range []struct {
		name string
		set  bool
		of   Source
	}{
		{"nflog_group", d.NFLOGGroup != 0, NFLOG},
		{"log_file", d.LogFile != "", Log},
		{"log_prefix", d.LogPrefix != "", Log},
	} {
		if path := join("daemon", key.name); key.set && d.Source != key.of && !r.faulty["daemon.source"] {
			r.fault(path, `%s goes with daemon.source = "%s"; leave it out, or name that source`, path, key.of)
		}
	}
	if d.Source == Log && d.LogFile == "" && !r.faulty["daemon.log_file"] {
		r.fault("daemon.source", `daemon.source = "log" needs daemon.log_file: the file that your firewall's lines are in, or "kernel", or "journal"`)
	}
	for i := range c.Knocks {
		switch d.Source {
		case Socket:
			checkHeardBySocket(r, c, &c.Knocks[i])
		case Log:
			checkHeardByLog(r, &c.Knocks[i])
		}
	}
}

// checkHeardBySocket refuses knocks that a plain socket can't hear.
func checkHeardBySocket(r *reader, c *Config, k *Knock) {
	path := join("knock", k.Name)
	switch {
	case k.Type == "":
	case k.Type != "spa":
		r.fault(path, `%s can't be heard with daemon.source = "socket", which hears knocks of type "spa" only`, path)
	case !slices.Equal(k.Transports, []Transport{OverUDP}) && len(k.Transports) > 0:
		r.fault(join(path, "transports"), `%s.transports can only be ["udp"] with daemon.source = "socket"`, path)
	}
	for _, p := range k.Ports() {
		if k.Type == "spa" && guarded(c, p) {
			r.fault(join(path, "port"), `%s hears at %s, which a service hides; with daemon.source = "socket" nothing would get through, so take another port`, path, p)
		}
	}
	if k.Type == "spa" && k.Quiet {
		r.fault(join(path, "quiet"), `%s.quiet would close the port that daemon.source = "socket" listens at`, path)
	}
}

// checkHeardByLog refuses knocks that need what the kernel leaves out of its lines:
// the data, and the ports of SCTP and DCCP (nf_log_dump_packet_common and what
// follows it know those of TCP, UDP and UDP-Lite).
func checkHeardByLog(r *reader, k *Knock) {
	path := join("knock", k.Name)
	if k.Type == "spa" {
		r.fault(path, `%s can't be heard with daemon.source = "log": a log's lines leave out the data of packets; take "capture" or "nflog", or a knock of another type`, path)
		return
	}
	for _, p := range k.wanted(false) {
		if p.Proto == sequence.SCTP || p.Proto == sequence.DCCP {
			r.fault(path, `%s has ports of %v, which a log's lines leave out; with daemon.source = "log" take those of tcp, udp or udplite`, path, p.Proto)
			return
		}
	}
}

// wanted gives what of the packets to this host the knock must see: of a sequence
// also what is wrong, or a scan would open it. Of ping steps and of bare protocols
// there is one range without ports.
func (k *Knock) wanted(classic bool) []PortRange {
	if k.Type != "sequence" {
		ranges := k.Ports()
		if slices.Contains(k.Transports, OverICMP) {
			ranges = append(ranges, PortRange{Proto: sequence.ICMP})
		}
		return ranges
	}
	var ranges []PortRange
	for _, steps := range k.Lines() {
		for _, s := range (sequence.Sequence{Steps: steps, Strict: k.Strict, Classic: classic}).Guard() {
			if !s.Proto.Ported() {
				s.Low, s.High = 0, 0
			}
			ranges = append(ranges, PortRange{s.Proto, s.Low, s.High})
		}
	}
	return ranges
}

// source prints the rules of the owner's that show packets to this source, in the
// words of both firewalls.
func (l *linter) source() {
	d := &l.Daemon
	if d.Source != NFLOG && d.Source != Log || len(l.Knocks) == 0 {
		return
	}
	where := fmt.Sprintf("send to NFLOG group %d", d.NFLOGGroup)
	switch {
	case d.LogFile == LogKernel, d.LogFile == LogJournal:
		where = "write to the kernel's log"
	case d.Source == Log:
		where = "write to " + d.LogFile
	}
	rules := l.shows()
	l.warn(rules.nft(d), "only packets that rules of yours %s are seen; these rules do it with nftables, before this table or another drops them, and a limit there or a rule before them loses knocks", where)
	if len(rulePrefix(d)) <= iptablesPrefix {
		l.warn(rules.iptables(d), "or these rules, with iptables and ip6tables")
	}
	if d.Source == Log {
		l.limited()
		l.forged()
	}
}

// limited says that the lines of ufw's own rules are too few: measured with ufw 0.36,
// whose limit all senders share, so that anybody's scan keeps everybody's knock out.
func (l *linter) limited() {
	if strings.HasPrefix(l.Daemon.LogPrefix, "[UFW ") {
		l.warn(`take log_prefix = "KNOCK ", and the rules that this prints then`, "below its logging level high, ufw's own rules write ten lines and then three a minute, for all senders of a family together, and at no level one of a ping that it answers: a few packets of anybody's scan keep every knock from being seen")
	}
}

// forged says who can make up lines that count (note 0015).
func (l *linter) forged() {
	d := &l.Daemon
	file := d.LogFile != LogKernel && d.LogFile != LogJournal
	switch advice := `add log_prefix = "KNOCK " and give your rules that prefix`; {
	case d.LogPrefix != "":
	case file:
		l.warn(advice, "every line of a firewall in %s counts as a packet, also those of rules that log what they let through, and any message in which a program or the kernel repeats a stranger's words", d.LogFile)
	default:
		l.warn(advice, `with log_file = "%s" and no log_prefix every message of the kernel's that reads like a firewall's counts as a packet, also those of rules that log what they let through: who plugs in a USB device chooses a name that the kernel says, and so can knock for any address, once he knows the knock`, d.LogFile)
	}
	if file {
		l.warn(`take log_file = "kernel", or "journal"; else have the syslogd take no messages from the network, or write them elsewhere`,
			"a program on this host can write lines in the kernel's name into a file that syslogd keeps (logger -t kernel), and so can whoever sends messages to a syslogd that takes them from the network, because the host's name in a line is the sender's word, and who plugs in a USB device: a line break in its name, which the kernel says, begins a line of its own there; all these can so knock for any address, once they know the knock")
	}
	if l.facts.NamespacesLog {
		l.warn("sysctl -w net.netfilter.nf_log_all_netns=0", "the rules of every network namespace write to the kernel's log here (net.netfilter.nf_log_all_netns), and who may make a namespace, as in a container, makes up its rules, their prefix and the packets in it: he can knock for any address, once he knows the knock")
	}
}

// shown is what must be shown, each range once.
type shown struct {
	ranges []PortRange
	flags  bool // a step names flags of TCP: every segment is looked at
}

func (l *linter) shows() shown {
	var r shown
	for i := range l.Knocks {
		k := &l.Knocks[i]
		ranges := k.wanted(l.Knockd.Classic)
		for n := range ranges { // a list's lines change, and these rules should not have to
			if p := &ranges[n]; k.List != "" && p.Proto.Ported() {
				p.Low, p.High = 1, 65535
			}
		}
		r.ranges = append(r.ranges, ranges...)
		for _, s := range slices.Concat(k.Lines()...) {
			r.flags = r.flags || s.Proto == sequence.TCP && s.Flags != sequence.Opening
		}
	}
	r.ranges = JoinPorts(r.ranges)
	return r
}

// iptablesPrefix is how many bytes of a prefix iptables takes; of a longer one its lines
// would have a part, which is not log_prefix.
const iptablesPrefix = 29

// rulePrefix is what the printed rules put before their lines.
func rulePrefix(d *Daemon) string {
	if d.LogPrefix == "" {
		return "KNOCK "
	}
	return d.LogPrefix
}

// lineRate bounds what anybody who scans the ports can write to a disk: with some 250
// bytes a line it is a gigabyte a day.
const lineRate = 50

// nft gives a command that loads the rules, in a table of their own: another that
// keeps its rules in ours would lose them. Priority raw is before our table and before
// what drops.
func (r shown) nft(d *Daemon) string {
	target := fmt.Sprintf("log group %d", d.NFLOGGroup)
	if d.Source == Log {
		target = fmt.Sprintf("limit rate %d/second burst %d packets log prefix %q", lineRate, 4*lineRate, rulePrefix(d))
	}
	var b strings.Builder
	b.WriteString("nft -f - <<'.'\ntable inet seen {\n\tchain seen {\n\t\ttype filter hook prerouting priority raw;\n\t\tiif lo return\n\t\tfib daddr type != local return\n")
	for _, p := range r.ranges {
		match := fmt.Sprintf("%v dport %d-%d", p.Proto, p.Low, p.High)
		switch {
		case p.Proto == sequence.ICMP:
			fmt.Fprintf(&b, "\t\ticmp type echo-request %s\n", target)
			match = "icmpv6 type echo-request"
		case !p.Proto.Ported():
			match = fmt.Sprintf("meta l4proto %d", p.Proto)
		case p.Proto == sequence.UDPLite:
			match = fmt.Sprintf("meta l4proto 136 @th,16,16 %d-%d", p.Low, p.High) // nft 1.0 checks its own word against udp
		case p.Proto == sequence.TCP && !r.flags:
			match += " tcp flags & (fin | syn | rst | ack) == syn"
		}
		fmt.Fprintf(&b, "\t\t%s %s\n", match, target)
	}
	b.WriteString("\t}\n}\n.")
	return b.String()
}

// iptables gives the same as commands.
func (r shown) iptables(d *Daemon) string {
	target := fmt.Sprintf("-j NFLOG --nflog-group %d", d.NFLOGGroup)
	if d.Source == Log {
		target = fmt.Sprintf("-m limit --limit %d/second --limit-burst %d -j LOG --log-prefix '%s'", lineRate, 4*lineRate, rulePrefix(d))
	}
	const add = "-t raw -A PREROUTING ! -i lo -m addrtype --dst-type LOCAL"
	var lines []string
	both := func(match string) {
		for _, command := range []string{"iptables", "ip6tables"} {
			lines = append(lines, fmt.Sprintf("%s %s %s %s", command, add, match, target))
		}
	}
	for _, p := range r.ranges {
		match := fmt.Sprintf("-p %v -m multiport --dports %d:%d", p.Proto, p.Low, p.High)
		switch {
		case p.Proto == sequence.ICMP:
			lines = append(lines,
				fmt.Sprintf("iptables %s -p icmp --icmp-type echo-request %s", add, target),
				fmt.Sprintf("ip6tables %s -p icmpv6 --icmpv6-type echo-request %s", add, target))
			continue
		case !p.Proto.Ported():
			match = fmt.Sprintf("-p %d", p.Proto)
		case p.Proto == sequence.TCP && !r.flags:
			match = "-p tcp --syn" + strings.TrimPrefix(match, "-p tcp")
		}
		both(match)
	}
	return strings.Join(lines, "\n")
}
