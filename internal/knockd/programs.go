package knockd

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/sequence"
)

// localChains are the chain that leads to this host alone, and those that the usual
// tools hang below it. Any other may be called for some packets only, or for what is
// forwarded.
var localChains = []string{
	"INPUT", "RH-Firewall-1-INPUT", "ufw-before-input", "ufw-user-input", "ufw6-before-input", "ufw6-user-input",
	"input_rule", "input_wan_rule",
}

func chainFault(chain string) string {
	if slices.Contains(localChains, chain) {
		return ""
	}
	return fmt.Sprintf("the chain %s is not one that just this host's own ports go through", short(chain))
}

// option is one of iptables: what it means, and whether a word follows it.
type option struct {
	means string
	takes bool
}

var iptablesOptions = map[string]option{
	"-A": {"open", true}, "--append": {"open", true}, "-I": {"open", true}, "--insert": {"open", true},
	"-D": {"close", true}, "--delete": {"close", true},
	"-s": {"source", true}, "--source": {"source", true}, "--src": {"source", true},
	"-p": {"proto", true}, "--protocol": {"proto", true}, "--proto": {"proto", true},
	"--dport": {"dport", true}, "--destination-port": {"dport", true},
	"--dports": {"multiport", true}, "--destination-ports": {"multiport", true},
	"--state": {"state", true}, "--ctstate": {"conntrack", true},
	"--comment": {"comment", true}, "--syn": {"syn", false},
	"-j": {"jump", true}, "--jump": {"jump", true}, "-t": {"table", true}, "--table": {"table", true},
	"-v": {"verbose", false}, "--verbose": {"verbose", false},
	"-w": {"wait", false}, "--wait": {"wait", false},
}

// joinable are the options that iptables 1.8.9 takes as one word with "=": those of
// matches. It reads its own wrongly then.
var joinable = map[string]bool{"dport": true, "multiport": true, "state": true, "conntrack": true, "comment": true}

func iptables4(words []string) (firewall, string) { return iptables(words, false) }
func iptables6(words []string) (firewall, string) { return iptables(words, true) }

func iptables(words []string, ipv6 bool) (firewall, string) {
	got, matches, why := iptablesWords(words)
	if why != "" {
		return firewall{}, why
	}
	chain, opens := got["open"]
	closed, closes := got["close"]
	if opens == closes {
		return firewall{}, "it does not add or delete just one rule"
	}
	mask := map[bool]string{false: "/32", true: "/128"}[ipv6]
	switch source := strings.TrimSuffix(got["source"], mask); {
	case source != address:
		return firewall{}, "its source is not just %IP%"
	case got["jump"] != "ACCEPT":
		return firewall{}, "its target is not ACCEPT"
	case got["table"] != "" && got["table"] != "filter":
		return firewall{}, more(got["table"])
	}
	rule := firewall{closes: closes, ipv4: !ipv6, ipv6: ipv6}
	proto := sequence.TCP
	if name, given := got["proto"]; !given {
		rule.note = "iptables refuses a port without -p, so that under knockd this command did nothing; it is read as TCP"
	} else if proto, given = protoOf(name); !given {
		return firewall{}, more(name)
	}
	if why := cmp.Or(chainFault(chain+closed), matchFault(got, matches, proto)); why != "" {
		return firewall{}, why
	}
	switch dport, multi := got["dport"], got["multiport"]; {
	case dport != "" && multi == "" && !strings.Contains(dport, ","):
		rule.ports, why = portList(dport, ":", proto)
	case dport == "" && multi != "":
		rule.ports, why = portList(multi, ":", proto)
	case dport != "":
		why = "iptables does not take its ports in this way"
	}
	return rule, why
}

// iptablesWords sorts options by what they mean; none may come twice but -m.
func iptablesWords(words []string) (got map[string]string, matches []string, why string) {
	got = map[string]string{}
	for len(words) > 0 {
		name, value, joined := words[0], "", false
		if strings.HasPrefix(name, "--") {
			name, value, joined = strings.Cut(name, "=")
		}
		o, known := iptablesOptions[name]
		match := name == "-m" || name == "--match"
		_, twice := got[o.means]
		switch {
		case !known && !match || twice || joined && !joinable[o.means]:
			return nil, nil, more(words[0])
		case (o.takes || match) && !joined && len(words) == 1:
			return nil, nil, short(name) + " lacks its word"
		case (o.takes || match) && !joined:
			value, words = words[1], words[1:]
		}
		words = words[1:]
		if match {
			matches = append(matches, value)
			continue
		}
		got[o.means] = value
		// The place of a new rule, and the seconds to wait for the lock, may be left out.
		if (name == "-I" || name == "--insert" || o.means == "wait") && len(words) > 0 && isNumber(words[0]) {
			words = words[1:]
		}
	}
	return got, matches, ""
}

func isNumber(s string) bool {
	_, err := strconv.ParseUint(s, 10, 32)
	return err == nil
}

// matchFault wants matches that narrow a rule to new connections at most.
func matchFault(got map[string]string, matches []string, proto sequence.Proto) string {
	for _, m := range matches {
		if m != proto.String() && !slices.Contains([]string{"multiport", "comment", "state", "conntrack"}, m) {
			return more("-m " + m)
		}
	}
	for _, needs := range []string{"multiport", "comment", "state", "conntrack"} {
		if _, used := got[needs]; used && !slices.Contains(matches, needs) {
			return "iptables refuses it without -m " + needs
		}
	}
	if _, syn := got["syn"]; syn && proto != sequence.TCP {
		return more("--syn")
	}
	for _, states := range []string{got["state"], got["conntrack"]} {
		if states != "" && !newOnly(strings.Split(states, ",")) {
			return more(states)
		}
	}
	return ""
}

// newOnly reports whether the states hold NEW and otherwise only what our table
// lets through anyway.
func newOnly(states []string) bool {
	isNew := false
	for _, s := range states {
		s = strings.ToUpper(s)
		isNew = isNew || s == "NEW"
		if s != "NEW" && s != "ESTABLISHED" && s != "RELATED" {
			return false
		}
	}
	return isNew
}

// knockAdd reads knock_helper_ipt.sh, which Debian's knockd.conf calls knock_add.
func knockAdd(words []string) (firewall, string) {
	got := map[string]string{"-c": "INPUT", "-p": "tcp"}
	action := ""
	for len(words) > 0 {
		name := words[0]
		words = words[1:]
		if long, ok := knockAddLong[name]; ok {
			name = long
		}
		switch name {
		case "-a", "-i", "-x":
			if action != "" {
				return firewall{}, more(name)
			}
			action = name
		case "-f", "-d", "-p", "-c":
			if len(words) == 0 {
				return firewall{}, short(name) + " lacks its word"
			}
			got[name], words = words[0], words[1:]
		case "-m", "-v": // what -m takes would be joined to it, and the script evaluates that
		default:
			return firewall{}, more(name)
		}
	}
	proto, ok := protoOf(got["-p"])
	switch {
	case action == "":
		return firewall{}, "it says neither -a, -i nor -x"
	case got["-f"] != address:
		return firewall{}, "its source is not just %IP%"
	case !ok:
		return firewall{}, more(got["-p"])
	case chainFault(got["-c"]) != "":
		return firewall{}, chainFault(got["-c"])
	case strings.Contains(got["-d"], ","):
		return firewall{}, "it takes one port or one range"
	}
	ports, why := portList(got["-d"], ":", proto)
	return firewall{ports: ports, closes: action == "-x", ipv4: true}, why
}

var knockAddLong = map[string]string{
	"--append": "-a", "--insert": "-i", "--delete": "-x", "--srcaddr": "-f", "--dstport": "-d",
	"--proto": "-p", "--chain": "-c", "--comment": "-m", "--verbose": "-v",
}

// ufw reads the long form of its rules; the short one has no source.
func ufw(words []string) (firewall, string) {
	rule := firewall{ipv4: true, ipv6: true}
	skip := func(word string) bool {
		if len(words) > 0 && words[0] == word {
			words = words[1:]
			return true
		}
		return false
	}
	skip("--force")
	rule.closes = skip("delete")
	if skip("insert") && (len(words) == 0 || !isNumber(words[0]) || rule.closes) {
		return firewall{}, "insert needs a place and can't be deleted"
	} else if len(words) > 0 && isNumber(words[0]) && !rule.closes {
		words = words[1:]
	} else {
		skip("prepend")
	}
	if !skip("allow") {
		return firewall{}, "it does not allow anything"
	}
	skip("in")
	got := map[string]string{}
	for ; len(words) > 1; words = words[2:] {
		name := words[0]
		_, twice := got[name]
		known := slices.Contains([]string{"proto", "from", "to", "port", "comment"}, name)
		if !known || twice || name == "port" && got["to"] == "" {
			return firewall{}, more(name)
		}
		got[name] = words[1]
	}
	switch {
	case len(words) > 0:
		return firewall{}, more(words[0])
	case got["from"] != address:
		return firewall{}, "its source is not just %IP%"
	case got["to"] != "any" || got["port"] == "":
		return firewall{}, `it does not say "to any port"`
	}
	var why string
	rule.ports, why = ufwPorts(got["port"], got["proto"])
	return rule, why
}

// ufwPorts knows that a port without proto is one of TCP and one of UDP.
func ufwPorts(port, proto string) ([]config.PortRange, string) {
	if p, ok := protoOf(proto); ok {
		return portList(port, ":", p)
	}
	if proto != "" || !isNumber(port) {
		return nil, fmt.Sprintf("port %s with proto %s is not understood here", short(port), short(proto))
	}
	tcp, why := portList(port, ":", sequence.TCP)
	udp, _ := portList(port, ":", sequence.UDP)
	return append(tcp, udp...), why
}

// nft reads a rule for one address; nft joins its words before it looks at them.
func nft(words []string) (firewall, string) {
	text := strings.NewReplacer("{", " { ", "}", " } ", ",", " , ").Replace(strings.Join(words, " "))
	words = strings.Fields(text)
	switch {
	case strings.ContainsAny(text, ";\"#"):
		return firewall{}, "it is more than one rule of plain words"
	case len(words) > 1 && words[1] == "element":
		return firewall{}, aSet
	case len(words) > 0 && words[0] == "delete":
		return firewall{}, "nft deletes a rule by its number, so that what this deletes can't be told"
	case len(words) < 2 || (words[0] != "add" && words[0] != "insert") || words[1] != "rule":
		return firewall{}, "it does not add a rule"
	}
	words = words[2:]
	family := "ip"
	if len(words) > 0 && slices.Contains([]string{"ip", "ip6", "inet"}, words[0]) {
		family, words = words[0], words[1:]
	}
	if len(words) < 2 || words[0] != "filter" || strings.ToLower(words[1]) != "input" {
		return firewall{}, "it is not of the table filter and the chain input, which alone this host's own ports surely go through"
	}
	return nftRule(family, words[2:])
}

// nftRule reads what comes behind the chain.
func nftRule(family string, words []string) (rule firewall, why string) {
	accept := false
	for len(words) > 0 && why == "" {
		w := words
		switch {
		case accept:
			why = more(w[0])
		case len(w) > 2 && (w[0] == "ip" || w[0] == "ip6") && w[1] == "saddr" && w[2] == address && !rule.ipv4 && !rule.ipv6:
			rule.ipv4, rule.ipv6 = w[0] == "ip", w[0] == "ip6"
			words = w[3:]
		case len(w) > 2 && (w[0] == "tcp" || w[0] == "udp") && w[1] == "dport" && rule.ports == nil:
			proto, _ := protoOf(w[0])
			rule.ports, words, why = nftPorts(w[2:], proto)
		case len(w) > 2 && w[0] == "ct" && w[1] == "state" && w[2] == "new":
			words = w[3:]
		case w[0] == "counter":
			words = w[1:]
		case w[0] == "accept":
			accept, words = true, w[1:]
		default:
			why = more(w[0])
		}
	}
	switch {
	case why != "":
	case !accept:
		why = "its verdict is not accept"
	case !rule.ipv4 && !rule.ipv6:
		why = "its source is not just %IP%"
	case family == "ip" && rule.ipv6 || family == "ip6" && rule.ipv4:
		why = "nft refuses it: its table is of the other family"
	}
	return rule, why
}

// nftPorts reads one port, one range or a set of them, and gives the words behind.
func nftPorts(words []string, proto sequence.Proto) (ports []config.PortRange, rest []string, why string) {
	if words[0] != "{" {
		ports, why = portList(words[0], "-", proto)
		return ports, words[1:], why
	}
	end := slices.Index(words, "}")
	if end < 2 {
		return nil, words, "it has a set without an end"
	}
	ports, why = portList(strings.TrimSuffix(strings.Join(words[1:end], ""), ","), "-", proto)
	return ports, words[end+1:], why
}

// firewallCmd reads rich rules of the running configuration.
func firewallCmd(words []string) (rule firewall, why string) {
	rich, zone, timeout := "", "public", ""
	for len(words) > 0 {
		name, value, joined := strings.Cut(words[0], "=")
		words = words[1:]
		takes := name == "--add-rich-rule" || name == "--remove-rich-rule" || name == "--zone" || name == "--timeout"
		if takes && !joined && len(words) > 0 {
			value, words = words[0], words[1:]
		}
		switch name {
		case "--add-rich-rule", "--remove-rich-rule":
			if rich != "" {
				return rule, more(name)
			}
			rich, rule.closes = value, name == "--remove-rich-rule"
		case "--zone":
			zone = value
		case "--timeout":
			timeout = value
		case "--quiet", "-q":
		case "--permanent":
			return rule, "--permanent is for after a reload, and so changes nothing by itself"
		default:
			return rule, more(name)
		}
	}
	if zone != "public" {
		return rule, fmt.Sprintf("the zone %s limits it to some interfaces", short(zone))
	}
	if timeout != "" {
		if rule.lasts, why = firewalldTime(timeout); why != "" || rule.closes {
			return rule, cmp.Or(why, more("--timeout"))
		}
	}
	return richRule(rich, rule)
}

// firewalldTime reads seconds, or a number with s, m or h.
func firewalldTime(text string) (time.Duration, string) {
	if isNumber(text) {
		text += "s"
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < shortestGrant || d > longestGrant {
		return 0, fmt.Sprintf("the timeout %s is not understood, or no time that a grant can last", short(text))
	}
	return d, ""
}

// richRules is what of firewalld.richlanguage(5) a grant can do too. The quotes are
// off by then; of service names only those that are one port everywhere count.
var richRules = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^rule family=(ipv4|ipv6) source address=%IP%(/32|/128)? (?:port port=([0-9,-]+) protocol=(tcp|udp)|port protocol=(tcp|udp) port=([0-9,-]+)|service name=(ssh|http)) accept$`)
})

func richRule(text string, rule firewall) (firewall, string) {
	text = strings.Join(strings.Fields(strings.NewReplacer(`"`, "", `'`, "").Replace(text)), " ")
	m := richRules().FindStringSubmatch(text)
	if m == nil {
		return rule, "its rich rule does more or less than accepting ports from %IP%"
	}
	rule.ipv4, rule.ipv6 = m[1] == "ipv4", m[1] == "ipv6"
	if m[2] == "/32" && rule.ipv6 || m[2] == "/128" && rule.ipv4 {
		return rule, "its source is not just %IP%"
	}
	proto, _ := protoOf(cmp.Or(m[4], m[5], "tcp"))
	ports := cmp.Or(m[3], m[6], m[7])
	if strings.Contains(ports, ",") {
		return rule, "a rich rule has one port or one range"
	}
	var why string
	rule.ports, why = portList(ports, "-", proto)
	return rule, why
}

// printable is for comments and messages: a control character could end the line.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if strconv.IsPrint(r) && r != utf8.RuneError {
			return r
		}
		return '?'
	}, s)
}
