package knockd

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/sequence"
)

// firewall is what a command does, as far as a grant can do it too.
type firewall struct {
	ports      []config.PortRange // sorted; none overlaps another
	closes     bool
	ipv4, ipv6 bool          // the families whose addresses it takes
	lasts      time.Duration // its own end; 0: none
	note       string
}

// programs read the words behind each program's name.
var programs = map[string]func([]string) (firewall, string){
	"iptables": iptables4, "iptables-nft": iptables4, "iptables-legacy": iptables4,
	"ip6tables": iptables6, "ip6tables-nft": iptables6, "ip6tables-legacy": iptables6,
	"nft": nft, "ufw": ufw, "firewall-cmd": firewallCmd,
	"knock_add": knockAdd, "knock_helper_ipt.sh": knockAdd,
}

// programDirs are where the real programs are; one of the same name elsewhere may be
// somebody's own script.
var programDirs = []string{"", "/bin/", "/sbin/", "/usr/bin/", "/usr/sbin/", "/usr/local/bin/", "/usr/local/sbin/"}

// recognise reads a command that opens or closes ports for %IP% and does nothing
// else. Otherwise it says why not.
func recognise(text string) (firewall, string) {
	if !strings.Contains(text, address) {
		return firewall{}, "it has no %IP%, so it does the same for everybody"
	}
	words, why := shellWords(text)
	if why != "" {
		return firewall{}, why
	}
	words = withoutSudo(words)
	if len(words) == 0 {
		return firewall{}, "this is no command"
	}
	dir, name := path.Split(words[0])
	read, known := programs[name]
	switch {
	case name == "ipset":
		return firewall{}, aSet
	case !known || !slices.Contains(programDirs, dir):
		return firewall{}, cmp.Or(typographicWord(words[:1]), fmt.Sprintf("%s is no firewall command that is known here", short(words[0])))
	}
	rule, why := read(words[1:])
	if why == "" {
		rule.ports, why = distinct(rule.ports)
	}
	if why != "" {
		return firewall{}, cmp.Or(typographicWord(words), why)
	}
	return rule, ""
}

// typographicWord names a word that a web page has spoilt, which is then why a command
// is not understood.
func typographicWord(words []string) string {
	for _, word := range words {
		for _, r := range word {
			kind := "character"
			ascii, odd := config.ASCIIFor(r)
			switch {
			case !odd:
				continue
			case ascii == "-":
				kind = "dash"
			case ascii == `"` || ascii == "'":
				kind = "quote"
			}
			return "because of " + short(word) + " (a typographic " + kind + ")"
		}
	}
	return ""
}

const aSet = "it puts the address into a set, and which ports that opens is written elsewhere"

// withoutSudo drops what only changes who runs the command.
func withoutSudo(words []string) []string {
	if len(words) > 0 && (words[0] == "sudo" || words[0] == "/usr/bin/sudo") {
		words = words[1:]
		if len(words) > 0 && words[0] == "-n" {
			words = words[1:]
		}
	}
	return words
}

// shellWords splits a text as any POSIX shell does, quotes included. It refuses
// whatever makes the shell do more than split, and where shells differ.
func shellWords(text string) (words []string, why string) {
	var word strings.Builder
	open, quote := false, byte(0)
	for i := range len(text) {
		switch c := text[i]; {
		case c < ' ' && c != '\t' || c == 0x7f:
			return nil, "it has a control character"
		case quote == 0 && (c == ' ' || c == '\t'):
			if open {
				words, open = append(words, word.String()), false
				word.Reset()
			}
		case quote == 0 && (c == '\'' || c == '"'):
			quote, open = c, true
		case c == quote:
			quote = 0
		case quote == '"' && strings.IndexByte("$`\\", c) >= 0,
			quote == 0 && strings.IndexByte("$`\\|&;<>()*?[#~", c) >= 0:
			return nil, fmt.Sprintf("it needs a shell, for its %q", c)
		case quote == 0 && (c == '{' || c == '}') && !alone(text, i):
			return nil, "shells differ about its braces"
		default:
			open = true
			word.WriteByte(c)
		}
	}
	if quote != 0 {
		return nil, "it has a quote that nothing closes"
	}
	if open {
		words = append(words, word.String())
	}
	return words, ""
}

// alone reports whether the byte is a word by itself.
func alone(text string, i int) bool {
	return (i == 0 || strings.IndexByte(" \t", text[i-1]) >= 0) &&
		(i == len(text)-1 || strings.IndexByte(" \t", text[i+1]) >= 0)
}

// distinct sorts ports and merges those that overlap.
func distinct(ports []config.PortRange) ([]config.PortRange, string) {
	slices.SortFunc(ports, func(a, b config.PortRange) int {
		return cmp.Or(cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.Low, b.Low))
	})
	var out []config.PortRange
	count := 0
	for _, p := range ports {
		if last := len(out) - 1; last >= 0 && out[last].Proto == p.Proto && p.Low <= out[last].High {
			count += max(0, int(p.High)-int(out[last].High))
			out[last].High = max(out[last].High, p.High)
			continue
		}
		out = append(out, p)
		count += p.Count()
	}
	switch {
	case count == 0:
		return nil, "it names no port, so it opens all of them"
	case count > config.MaxPorts:
		return nil, fmt.Sprintf("it names %d ports, and a service has at most %d", count, config.MaxPorts)
	}
	return out, ""
}

// serviceNames are those of /etc/services that are a port of TCP on every system.
var serviceNames = map[string]uint16{
	"ftp": 21, "ssh": 22, "telnet": 23, "smtp": 25, "http": 80, "https": 443, "imaps": 993,
}

// portList reads ports such as "22", "22,80" or, with ":" between, "6000:6010".
func portList(text, between string, proto sequence.Proto) ([]config.PortRange, string) {
	var out []config.PortRange
	for one := range strings.SplitSeq(text, ",") {
		if n, named := serviceNames[one]; named && proto == sequence.TCP {
			out = append(out, config.PortRange{Proto: proto, Low: n, High: n})
			continue
		}
		low, high, ranged := strings.Cut(one, between)
		if !ranged {
			high = low
		}
		a, errA := strconv.ParseUint(low, 10, 16)
		b, errB := strconv.ParseUint(high, 10, 16)
		if errA != nil || errB != nil || a == 0 || b < a {
			return nil, fmt.Sprintf("%s is no port that is understood here", short(one))
		}
		out = append(out, config.PortRange{Proto: proto, Low: uint16(a), High: uint16(b)})
	}
	return out, ""
}

func protoOf(name string) (sequence.Proto, bool) {
	switch strings.ToLower(name) {
	case "tcp":
		return sequence.TCP, true
	case "udp":
		return sequence.UDP, true
	}
	return 0, false
}

// short shows a word of the file in a message.
func short(word string) string {
	word = printable(word)
	if r := []rune(word); len(r) > 40 {
		word = string(r[:40]) + "…"
	}
	return `"` + word + `"`
}

func more(word string) string {
	return short(word) + " makes it more or less than opening ports to an address"
}
