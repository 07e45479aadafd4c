package knockd

import (
	"strings"
	"testing"

	"github.com/sallyport/sallyport/internal/testnet"
)

// TestRecogniseReal runs what is recognised, in a namespace, where its program is
// installed: a command that the program refuses opened nothing under knockd, and must
// not become a grant unless a note says so.
func TestRecogniseReal(t *testing.T) {
	ns := testnet.New(t)
	ran := 0
	for _, test := range recognised {
		if !strings.Contains(test.text, "tables") && !strings.Contains(test.text, "nft ") {
			continue // ufw, firewall-cmd and knock_add would want their daemons or files
		}
		ran++
		rule, _ := recognise(test.text)
		text := strings.NewReplacer("/usr/bin/sudo -n ", "", "sudo ", "", "%IP%", "192.0.2.7").Replace(test.text)
		if rule.ipv6 {
			text = strings.ReplaceAll(text, "192.0.2.7", "2001:db8::7")
		}
		family := map[bool]string{true: "ip6", false: "ip"}[rule.ipv6]
		tables := "iptables"
		if rule.ipv6 {
			tables = "ip6tables"
		}
		if strings.Contains(text, "nft ") && !strings.Contains(text, "tables-nft") {
			ns.Input("flush ruleset\nadd table inet filter\nadd chain inet filter input\nadd table "+family+" filter\n"+
				"add chain "+family+" filter input\nadd chain "+family+" filter INPUT\n", "nft", "-f", "-")
		} else {
			ns.Run("nft", "flush", "ruleset")
			ns.Run(tables, "-N", "ufw-user-input")
		}
		before := ns.Run("nft", "list", "ruleset")
		if test.closes { // what is deleted must be there
			ns.Run("/bin/sh", "-c", strings.NewReplacer(" -D ", " -A ", "--delete", "--append").Replace(text))
		}
		out, err := ns.Output("/bin/sh", "-c", text)
		if (err != nil) != (rule.note != "") {
			t.Errorf("%s\n\t%v: %s", text, err, out)
			continue
		}
		after := ns.Run("nft", "list", "ruleset")
		if changed := normal(before) != normal(after); changed != (rule.note == "" && !test.closes) {
			t.Errorf("%s\n\tthe rules before:\n%s\nafter:\n%s", text, before, after)
		}
	}
	if ran < 25 {
		t.Errorf("only %d commands ran", ran)
	}
}

// normal leaves out blank lines and chains without rules: iptables makes its base
// chain when it first needs it.
func normal(ruleset string) string {
	var rules []string
	for line := range strings.Lines(ruleset) {
		if strings.Contains(line, " accept") || strings.Contains(line, "saddr") {
			if !strings.Contains(line, "policy") {
				rules = append(rules, strings.TrimSpace(line))
			}
		}
	}
	return strings.Join(rules, "\n")
}
