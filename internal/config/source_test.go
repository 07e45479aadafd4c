package config

import (
	"slices"
	"strings"
	"testing"
)

// The rules that check prints show what is wrong too, of both families, and neither
// lo nor what is not to this host. The integration tests load them.
func TestLintPrintsRules(t *testing.T) {
	for _, tt := range []struct {
		daemon     string
		nft, other []string
	}{
		{"source = \"nflog\"\nnflog_group = 5",
			[]string{"priority raw;", "iif lo return", "tcp dport 6936-8128 tcp flags & (fin | syn | rst | ack) == syn log group 5", "udp dport 6936-8128", "icmp type echo-request log group 5", "icmpv6 type echo-request log group 5"},
			[]string{"ip6tables -t raw -A PREROUTING ! -i lo -m addrtype --dst-type LOCAL -p tcp --syn -m multiport --dports 6936:8128 -j NFLOG --nflog-group 5", "iptables -t raw -A PREROUTING ! -i lo -m addrtype --dst-type LOCAL -p icmp "}},
		{"source = \"log\"\nlog_file = \"/var/log/kern.log\"\nlog_prefix = \"MINE \"",
			[]string{`limit rate 50/second burst 200 packets log prefix "MINE "`}, []string{"-m limit --limit 50/second --limit-burst 200 -j LOG --log-prefix 'MINE '"}},
		{"source = \"log\"\nlog_file = \"kernel\"\nlog_prefix = \"a'b\"", []string{`log prefix "KNOCK "`}, []string{"--log-prefix 'KNOCK '"}}, // nothing for a shell
	} {
		cfg, err := Parse("sallyport.toml", []byte("[daemon]\n"+tt.daemon+`
[service.ssh]
ports = ["22/tcp"]
[knock.a]
type = "sequence"
opens = ["ssh"]
sequence = ["7000/tcp", "8064/udp", "icmp"]
scan_opens = true
`))
		if err != nil {
			t.Fatal(err)
		}
		var advice []string
		for _, w := range Lint(cfg, Facts{}) {
			advice = append(advice, w.Advice)
		}
		find := func(begin string) string {
			i := slices.IndexFunc(advice, func(a string) bool { return strings.HasPrefix(a, begin) })
			if i < 0 {
				t.Fatalf("no %s in %q", begin, advice)
			}
			return advice[i]
		}
		for begin, list := range map[string][]string{"nft -f": tt.nft, "iptables ": tt.other} {
			for _, want := range list {
				if got := find(begin); !strings.Contains(got, want) {
					t.Errorf("%s lacks %q:\n%s", tt.daemon, want, got)
				}
			}
		}
		forge := slices.Contains(advice, `take log_file = "kernel", or "journal"`)
		if forge != strings.Contains(tt.daemon, "/var/log") {
			t.Errorf("%s: warned of forged lines: %v", tt.daemon, forge)
		}
	}
}
