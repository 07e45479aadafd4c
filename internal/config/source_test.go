package config

import (
	"slices"
	"strings"
	"testing"
)

// Who can make up a line is said for each kind of log, and nothing where nobody can.
func TestLintNamesForgers(t *testing.T) {
	const usb, network, program, namespace, other = "USB device", "from the network", "logger -t kernel", "nf_log_all_netns", "a stranger's words"
	for _, tt := range []struct {
		daemon     string
		namespaces bool
		want       []string
	}{
		{`log_file = "kernel"`, false, []string{usb}},
		{`log_file = "journal"`, false, []string{usb}},
		{`log_file = "/var/log/kern.log"`, false, []string{usb, other, program, network}},
		{"log_file = \"kernel\"\nlog_prefix = \"KNOCK \"", false, nil},
		{"log_file = \"journal\"\nlog_prefix = \"KNOCK \"", false, nil},
		{"log_file = \"/var/log/kern.log\"\nlog_prefix = \"KNOCK \"", false, []string{usb, program, network}},
		{"log_file = \"kernel\"\nlog_prefix = \"KNOCK \"", true, []string{namespace}},
		{"log_file = \"journal\"", true, []string{usb, namespace}},
		{"log_file = \"/var/log/kern.log\"", true, []string{usb, other, program, network, namespace}},
	} {
		cfg, err := Parse("sallyport.toml", []byte("[daemon]\nsource = \"log\"\n"+tt.daemon+"\n[service.ssh]\nports = [\"22/tcp\"]\n[knock.a]\ntype = \"sequence\"\nopens = [\"ssh\"]\nsequence = [\"7000/tcp\", \"9064/udp\", \"8000/tcp\"]\n"))
		if err != nil {
			t.Fatal(err)
		}
		var text strings.Builder
		for _, w := range Lint(cfg, Facts{NamespacesLog: tt.namespaces}) {
			text.WriteString(w.Text + "\n")
			for begin, word := range map[string]string{"nft -f": ` log prefix "KNOCK "`, "iptables": "--log-prefix 'KNOCK '"} {
				if strings.HasPrefix(w.Advice, begin) && !strings.Contains(w.Advice, word) {
					t.Errorf("%s: rules without a prefix:\n%s", tt.daemon, w.Advice)
				}
			}
		}
		for _, word := range []string{usb, network, program, namespace, other} {
			if want := slices.Contains(tt.want, word); strings.Contains(text.String(), word) != want {
				t.Errorf("%s, namespaces %v: %q is said: %v in\n%s", tt.daemon, tt.namespaces, word, !want, text.String())
			}
		}
	}
}

// What an owner's own lines or his prefix leave out is said, and rules that would not
// work are not printed.
func TestLintOfPrefixes(t *testing.T) {
	for _, tt := range []struct {
		prefix        string
		ufw, iptables bool
	}{
		{"KNOCK ", false, true},
		{"[UFW BLOCK] ", true, true},
		{"[UFW ", true, true},
		{"filter_IN_public_REJECT: ", false, true},
		{strings.Repeat("x", 29), false, true},
		{strings.Repeat("x", 30), false, false},
		{strings.Repeat("x", 127), false, false},
	} {
		cfg, err := Parse("sallyport.toml", []byte("[daemon]\nsource = \"log\"\nlog_file = \"kernel\"\nlog_prefix = \""+tt.prefix+"\"\n[service.ssh]\nports = [\"22/tcp\"]\n[knock.a]\ntype = \"sequence\"\nopens = [\"ssh\"]\nsequence = [\"7000/tcp\", \"9064/udp\", \"8000/tcp\"]\n"))
		if err != nil {
			t.Fatal(err)
		}
		var ufw, iptables, nft, log bool
		for _, w := range Lint(cfg, Facts{}) {
			log = log || strings.Contains(w.Text, "write to the kernel's log are seen")
			ufw = ufw || strings.Contains(w.Text, "three a minute")
			iptables = iptables || strings.Contains(w.Advice, "--log-prefix '"+tt.prefix+"'\nip6tables ")
			nft = nft || strings.Contains(w.Advice, "log prefix \""+tt.prefix+"\"")
			if strings.HasPrefix(w.Advice, "iptables ") && !tt.iptables {
				t.Errorf("%s: rules that iptables refuses or cuts:\n%s", tt.prefix, w.Advice)
			}
		}
		if ufw != tt.ufw || iptables != tt.iptables || !nft || !log {
			t.Errorf("%s: warned of ufw's limit: %v; rules of iptables: %v, of nftables: %v; the log is named: %v", tt.prefix, ufw, iptables, nft, log)
		}
	}
}

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
		{"source = \"log\"\nlog_file = \"kernel\"", []string{`log prefix "KNOCK "`}, []string{"--log-prefix 'KNOCK '"}}, // there is always one
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
		forge := slices.ContainsFunc(advice, func(a string) bool { return strings.HasPrefix(a, `take log_file = "kernel", or "journal"`) })
		if forge != strings.Contains(tt.daemon, "/var/log") {
			t.Errorf("%s: warned of forged lines: %v", tt.daemon, forge)
		}
	}
}

// iptables takes a shorter prefix than nftables. Its rules with a part of the one that
// lines must have would show nothing.
func TestLintPrintsNoRuleThatShowsNothing(t *testing.T) {
	for n, want := range map[int]bool{29: true, 30: false} {
		prefix := strings.Repeat("x", n)
		cfg, err := Parse("sallyport.toml", []byte("[daemon]\nsource = \"log\"\nlog_file = \"kernel\"\nlog_prefix = \""+prefix+"\"\n[service.ssh]\nports = [\"22/tcp\"]\n[knock.a]\ntype = \"sequence\"\nopens = [\"ssh\"]\nsequence = [\"7000/tcp\", \"9064/udp\", \"8000/tcp\"]\n"))
		if err != nil {
			t.Fatal(err)
		}
		printed := map[string]bool{}
		for _, w := range Lint(cfg, Facts{}) {
			begin, _, _ := strings.Cut(w.Advice, " ")
			printed[begin] = true
			if (begin == "nft" || begin == "iptables") && !strings.Contains(w.Advice, prefix) {
				t.Errorf("rules without the prefix of %d bytes:\n%s", n, w.Advice)
			}
		}
		if !printed["nft"] || printed["iptables"] != want {
			t.Errorf("a prefix of %d bytes: the rules are %v", n, printed)
		}
	}
}
