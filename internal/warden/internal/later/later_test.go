package later_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/testnet"
	"github.com/sallyport/sallyport/internal/warden/internal/later"
)

// input is a chain with the usual beginning and these rules.
func input(policy string, rules ...string) string {
	return "table inet filter {\n" + sets + "chain input { type filter hook input priority filter; policy " + policy + ";\n" +
		"iifname \"lo\" accept\nct state vmap { established : accept, related : accept, invalid : drop }\n" +
		"meta l4proto { icmp, ipv6-icmp } accept\n" + strings.Join(rules, "\n") + "\n}\n}"
}

const sets = `set services { type inet_service; flags interval; elements = { 80, 1000-2000 }; }
set admins4 { type ipv4_addr; elements = { 192.0.2.77 }; }
set admins6 { type ipv6_addr; elements = { 2001:db8::77 }; }
set knocked { type inet_service; flags timeout; }
set pairs { type inet_proto . inet_service; flags interval; elements = { tcp . 20-25, udp . 53 }; }
map acts { type inet_service : verdict; flags interval; elements = { 80 : accept, 1-79 : jump low }; }
set rates { type ipv4_addr; flags dynamic; size 16; }
counter seen { }
limit quick { rate over 1000/second; }
chain low { tcp dport 22 accept; }
chain open { tcp dport { 22, 443 } accept; }
chain closed { tcp dport 22 return; accept; }
chain shut { reject with icmpx admin-prohibited; }
`

const dropped = "inet filter input: policy drop 22/tcp 4 6"

// firewalls are hosts' own rules and what Later says of 22/tcp. Each is tried
// with a real connection over both families: what is reported does not get
// through, what is not reported does.
var firewalls = []struct {
	name, v4, v6 string
	mark         uint32
	want         string
	gets         string // families that get through where want does not decide: "", "4", "46"
}{
	{name: "none", gets: "46"},
	{name: "policy drop", v4: input("drop"), want: dropped},
	{name: "policy accept", v4: input("accept"), gets: "46"},
	{name: "port", v4: input("drop", "tcp dport 22 accept"), gets: "46"},
	{name: "another port", v4: input("drop", "tcp dport 23 accept", "udp dport 22 accept"), want: dropped},
	{name: "not this port", v4: input("drop", "tcp dport != 22 accept"), want: dropped},
	{name: "port range", v4: input("drop", "tcp dport 20-30 accept"), gets: "46"},
	{name: "below", v4: input("drop", "tcp dport < 22 accept"), want: dropped},
	{name: "above", v4: input("drop", "tcp dport > 21 accept"), gets: "46"},
	{name: "source and destination port", v4: input("drop", "tcp sport 1024-65535 tcp dport 22 accept"), gets: "46"},
	{name: "anonymous set", v4: input("drop", "tcp dport { 22, 80 } accept"), gets: "46"},
	{name: "anonymous intervals", v4: input("drop", "tcp dport { 1-21, 23-65535 } accept"), want: dropped},
	{name: "named set", v4: input("drop", "tcp dport @services accept"), want: dropped},
	{name: "not in a set", v4: input("drop", "tcp dport != @services accept"), gets: "46"},
	{name: "timeout set", v4: input("drop", "tcp dport @knocked accept")},
	{name: "concatenation", v4: input("drop", "meta l4proto . th dport @pairs accept"), gets: "46"},
	{name: "exact concatenation", v4: input("drop", "meta nfproto . tcp dport { ipv4 . 22 } accept"),
		want: "inet filter input: policy drop 22/tcp 6", gets: "4"},
	{name: "verdict map", v4: input("drop", "tcp dport vmap @acts"), gets: "46"},
	{name: "verdict map without it", v4: input("drop", "tcp dport vmap { 80 : accept, 23 : accept }"), want: dropped},
	{name: "data map", v4: input("drop", "meta mark set tcp dport map { 22 : 0x7 }", "tcp dport 22 accept"), gets: "46"},
	{name: "lo only", v4: input("drop", `iifname { "lo", "lo" } accept`, "iif lo accept"), want: dropped},
	{name: "not lo", v4: input("drop", `iifname != "lo" tcp dport 22 accept`), gets: "46"},
	{name: "interface", v4: input("drop", `iifname "IFACE" tcp dport 22 accept`), gets: "46"},
	{name: "interface map", v4: input("drop", `iifname vmap { "lo" : accept, "IFACE" : jump open }`), gets: "46"},
	{name: "lo map", v4: input("drop", `iifname vmap { "lo" : accept }`), want: dropped},
	{name: "new", v4: input("drop", "ct state new tcp dport 22 accept"), gets: "46"},
	{name: "not new", v4: input("drop", "ct state != new accept"), want: dropped},
	{name: "established only", v4: input("drop", "tcp dport 22 ct state established,related accept"), want: dropped},
	{name: "dnat only", v4: input("drop", "ct status dnat accept"), want: dropped},
	{name: "one family", v4: input("drop", "meta nfproto ipv4 tcp dport 22 accept"), want: "inet filter input: policy drop 22/tcp 6", gets: "4"},
	{name: "other family", v4: input("drop", "meta nfproto ipv6 tcp dport 22 accept"), want: "inet filter input: policy drop 22/tcp 4", gets: "6"},
	{name: "final drop", v4: input("accept", "tcp dport 443 accept", "counter drop"), want: "inet filter input: rule drops 22/tcp 4 6"},
	{name: "final reject", v4: input("accept", "reject"), want: "inet filter input: rule rejects 22/tcp 4 6"},
	{name: "logged drop", v4: input("accept", `log prefix "no: " counter drop`), want: "inet filter input: rule drops 22/tcp 4 6"},
	{name: "listed drop", v4: input("accept", "add @knocked { tcp dport timeout 1m } drop"), want: "inet filter input: rule drops 22/tcp 4 6"},
	{name: "counted drop", v4: input("accept", "counter name seen drop"), want: "inet filter input: rule drops 22/tcp 4 6"},
	{name: "named rate", v4: input("accept", "tcp dport 22 limit name quick drop"), gets: "46"},
	{name: "metered", v4: input("accept", "add @rates { ip saddr limit rate over 1000/second } drop"), gets: "46"},
	{name: "catch-all", v4: input("accept", "tcp dport vmap { 80 : accept, * : drop }"), want: "inet filter input: rule drops 22/tcp 4 6"},
	{name: "prefix of marks", v4: marking + input("drop", "meta mark & 0xffffff00 == 0 accept"), mark: grantMark, gets: "46"},
	{name: "port drop", v4: input("accept", "tcp dport 22 drop"), want: "inet filter input: rule drops 22/tcp 4 6"},
	{name: "some other drop", v4: input("accept", "tcp dport 23 drop", "udp dport 22 reject", "ip saddr @admins4 drop"), gets: "46"},
	{name: "flags", v4: input("drop", "tcp flags & (fin|syn|rst|ack) == syn tcp dport 22 accept"), gets: "46"},
	{name: "bad flags", v4: input("accept", "tcp flags & (syn|fin) == syn|fin drop", "tcp flags ! syn drop", "ip frag-off & 0x1fff != 0 drop"), gets: "46"},
	{name: "accepted fragments and answers", want: dropped,
		v4: input("drop", "tcp flags & (fin|syn|rst|ack) == ack accept", "ip frag-off & 0x1fff != 0 accept", "tcp flags & (syn|ack) == syn|ack accept")},
	{name: "concatenation of ranges", v4: input("drop", "meta l4proto . th dport { 1-17 . 80-90 } accept"), want: dropped},
	{name: "jump", v4: input("drop", "jump open"), gets: "46"},
	{name: "jump that returns", v4: input("drop", "jump closed"), want: dropped},
	{name: "goto that returns", v4: input("drop", "goto closed", "accept"), want: dropped},
	{name: "goto that rejects", v4: input("accept", "goto shut", "accept"), want: "inet filter input: rule rejects 22/tcp 4 6"},
	{name: "rate", v4: input("drop", "tcp dport 22 limit rate 100/second accept"), gets: "46"},
	{name: "rate of drops", v4: input("accept", "limit rate over 1000/second drop"), gets: "46"},
	{name: "source", v4: input("drop", "ip saddr 192.0.2.77 tcp dport 22 accept", "ip6 saddr 2001:db8::77 accept"), want: dropped + " may"},
	{name: "source prefix", v4: input("drop", "ip saddr 198.51.100.0/24 accept", "ip6 saddr 2001:db8:1::/48 accept"), want: dropped + " may"},
	{name: "source set", v4: input("drop", "ip saddr @admins4 accept", "ip6 saddr @admins6 accept"), want: dropped + " may"},
	{name: "not source set", v4: input("accept", "ip saddr != @admins4 drop"), want: "inet filter input: rule drops 22/tcp 4 may", gets: "6"},
	{name: "destination", v4: input("drop", "ip daddr 192.0.2.1 tcp dport 22 accept", "ip6 daddr 2001:db8::1 accept"), gets: "46"},
	{name: "unknown condition", v4: input("drop", "socket wildcard 0 accept")},
	{name: "mark", v4: marking + input("drop", "meta mark & 0x10 == 0x10 accept"), mark: grantMark, gets: "46"},
	{name: "mark in a set", v4: marking + input("drop", "meta mark { 0x10, 0x20 } accept"), mark: grantMark, gets: "46"},
	{name: "range of marks", v4: marking + input("drop", "meta mark 0xf-0x1f accept"), mark: grantMark, gets: "46"},
	{name: "other range of marks", v4: marking + input("drop", "meta mark 0x11-0x10000000 accept"), mark: grantMark, want: dropped},
	{name: "other mark", v4: marking + input("drop", "meta mark & 0x20 == 0x20 accept"), mark: grantMark, want: dropped},
	{name: "mark that nobody sets", v4: input("drop", "meta mark 0x10 accept"), want: dropped},
	{name: "mark that someone sets", gets: "46", v4: input("drop", "meta mark 0x40 accept") + `
		table ip mangle { chain p { type filter hook prerouting priority mangle; meta mark set 0x40; }; }
		table ip6 mangle { chain p { type filter hook prerouting priority mangle; meta mark set 0x40; }; }`},
	{name: "prerouting", want: "ip raw first: rule drops 22/tcp 4", gets: "6",
		v4: "table ip raw { chain first { type filter hook prerouting priority raw; tcp dport 22 drop; }; }"},
	{name: "prerouting before the mark", mark: grantMark, want: "ip6 raw first: policy drop 22/tcp 6", gets: "4",
		v4: "table ip6 raw { chain first { type filter hook prerouting priority raw; policy drop; icmpv6 type { 135, 136 } accept; meta mark 0x10 accept; }; }"},
	{name: "dormant", v4: "table inet filter { flags dormant; chain input { type filter hook input priority 0; policy drop; }; }", gets: "46"},
	{name: "our own table", v4: "table inet sallyport { chain input { type filter hook input priority 0; policy drop; }; }"},
	{name: "forwarding only", v4: "table inet filter { chain forward { type filter hook forward priority 0; policy drop; }; }", gets: "46"},
	{name: "redirected", gets: "46", v4: input("drop", "ct status dnat accept") + `
		table inet nat { chain pre { type nat hook prerouting priority dstnat; tcp dport 22 redirect to :443; }; }`},
	{name: "notrack", gets: "46", v4: input("drop", "ct state untracked tcp dport 22 accept") + `
		table inet raw { chain pre { type filter hook prerouting priority raw; notrack; }; }`},

	{name: "iptables policy", v4: "*filter\n:INPUT DROP [0:0]\n-A INPUT -i lo -j ACCEPT\n-A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT\nCOMMIT\n",
		want: "ip filter INPUT: policy drop 22/tcp 4", gets: "6"},
	{name: "ip6tables policy", v6: "*filter\n:INPUT DROP [0:0]\n-A INPUT -i lo -j ACCEPT\n-A INPUT -p ipv6-icmp -j ACCEPT\nCOMMIT\n",
		want: "ip6 filter INPUT: policy drop 22/tcp 6", gets: "4"},
	{name: "iptables reject", v4: "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -m state --state ESTABLISHED -j ACCEPT\n-A INPUT -p tcp -m multiport --dports 80,443,1000:2000 -j ACCEPT\n-A INPUT -j REJECT\nCOMMIT\n",
		want: "ip filter INPUT: rule rejects 22/tcp 4", gets: "6"},
	{name: "iptables accepts", gets: "46",
		v4: "*filter\n:INPUT DROP [0:0]\n-A INPUT -p tcp -m state --state NEW -m tcp --dport 22 -m comment --comment ssh -j ACCEPT\n-A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT\nCOMMIT\n",
		v6: "*filter\n:INPUT DROP [0:0]\n-A INPUT -p ipv6-icmp -j ACCEPT\n-A INPUT -p tcp -m multiport --dports 80,20:25 -j ACCEPT\nCOMMIT\n"},
	{name: "iptables types and marks", gets: "46", mark: grantMark, v4: marking,
		v6: "*filter\n:INPUT DROP [0:0]\n-A INPUT -p ipv6-icmp -j ACCEPT\n-A INPUT -m addrtype ! --dst-type LOCAL -j DROP\n-A INPUT -m mark --mark 0x10/0x10 -j ACCEPT\nCOMMIT\n"},
	{name: "iptables source", want: "ip filter INPUT: policy drop 22/tcp 4 may", gets: "6",
		v4: "*filter\n:INPUT DROP [0:0]\n-A INPUT -s 198.51.100.0/24 -j ACCEPT\n-A INPUT -i lo -j ACCEPT\nCOMMIT\n"},
	{name: "Docker", gets: "6", v4: "*nat\n:PREROUTING ACCEPT [0:0]\n:DOCKER - [0:0]\n-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER\n" +
		"-A DOCKER ! -i docker0 -p tcp --dport 22 -j DNAT --to-destination 203.0.113.7:22\nCOMMIT\n*filter\n:INPUT DROP [0:0]\nCOMMIT\n"},
	{name: "ufw", v4: ufw("", ""), v6: ufw("6", ""),
		want: "ip filter INPUT: policy drop 22/tcp 4; ip6 filter INPUT: policy drop 22/tcp 6"},
	{name: "ufw allow", v4: ufw("", "22"), v6: ufw("6", "22"), gets: "46"},
	{name: "firewalld", v4: firewalld(""), want: "inet firewalld filter_INPUT: rule rejects 22/tcp 4 6"},
	{name: "firewalld open", v4: firewalld("tcp dport 22 accept"), gets: "46"},
}

func TestLater(t *testing.T) {
	for _, f := range firewalls {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			h.serve(22, 443)
			h.load(f.v4, f.v6)
			if got := summary(h.later(f.mark, "22/tcp")); got != f.want {
				t.Errorf("said %q, want %q\n%s", got, f.want, h.server.Run("nft", "list", "ruleset"))
			}
			for i, addr := range both {
				through := strings.Contains(f.gets, []string{"4", "6"}[i])
				if got := h.greeted("tcp", addr, 22); got && !through {
					t.Errorf("%s: got through", addr)
				} else if through && !got && !h.greets("tcp", addr, 22) {
					t.Errorf("%s: did not get through", addr)
				}
			}
		})
	}
}

// TestLaterRanges cuts a guarded range where the answer changes, and no finer.
func TestLaterRanges(t *testing.T) {
	for _, f := range []struct{ name, v4, ports, want string }{
		{"holes", input("drop", "tcp dport { 22, 443, 60000-61000 } accept"), "1-65535/tcp",
			"inet filter input: policy drop 1-21/tcp 4 6; inet filter input: policy drop 23-442/tcp 4 6; " +
				"inet filter input: policy drop 444-59999/tcp 4 6; inet filter input: policy drop 61001-65535/tcp 4 6"},
		{"whole", input("drop"), "1-65535/udp", "inet filter input: policy drop 1-65535/udp 4 6"},
		{"inside", input("drop", "udp dport 1000-2000 accept"), "1100-1200/udp", ""},
		{"partly", input("accept", "udp dport 1150-2000 drop"), "1100-1200/udp", "inet filter input: rule drops 1150-1200/udp 4 6"},
		{"rate", input("drop", "tcp dport 1000-1003 limit rate 1/second accept"), "1000-1004/tcp", "inet filter input: policy drop 1004/tcp 4 6"},
		{"one family", input("drop", "meta nfproto ipv6 udp dport 53 accept"), "50-53/udp",
			"inet filter input: policy drop 50-53/udp 4; inet filter input: policy drop 50-52/udp 6"},
		{"iptables", "*filter\n:INPUT DROP [0:0]\n-A INPUT -p udp -m multiport --dports 53,60000:61000 -j ACCEPT\nCOMMIT\n", "50-60500/udp",
			"ip filter INPUT: policy drop 50-52/udp 4; ip filter INPUT: policy drop 54-59999/udp 4"},
	} {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			h.load(f.v4, "")
			if got := summary(h.later(0, f.ports)); got != f.want {
				t.Errorf("said %q, want %q", got, f.want)
			}
		})
	}
}

// TestLaterOldMatches has the rules that older iptables wrote, whose tcp and udp
// conditions are xt matches; a current one cannot be made to write them.
func TestLaterOldMatches(t *testing.T) {
	for _, f := range []struct {
		name, ports string
		match       expr.Any
		want        string
	}{
		{"tcp", "22/tcp", &expr.Match{Name: "tcp", Info: &xt.Tcp{SrcPorts: [2]uint16{0, 65535}, DstPorts: [2]uint16{20, 22}}}, ""},
		{"tcp other", "22/tcp", &expr.Match{Name: "tcp", Info: &xt.Tcp{SrcPorts: [2]uint16{0, 65535}, DstPorts: [2]uint16{23, 25}}}, "4"},
		{"tcp not", "22/tcp", &expr.Match{Name: "tcp", Info: &xt.Tcp{SrcPorts: [2]uint16{0, 65535}, DstPorts: [2]uint16{22, 22}, InvFlags: xt.TcpInvDestPorts}}, "4"},
		{"tcp syn", "22/tcp", &expr.Match{Name: "tcp", Info: &xt.Tcp{SrcPorts: [2]uint16{0, 65535}, DstPorts: [2]uint16{0, 65535}, FlagsMask: 0x17, FlagsCmp: 2}}, ""},
		{"tcp ack", "22/tcp", &expr.Match{Name: "tcp", Info: &xt.Tcp{SrcPorts: [2]uint16{0, 65535}, DstPorts: [2]uint16{0, 65535}, FlagsMask: 0x17, FlagsCmp: 0x10}}, "4"},
		{"mark", "22/tcp", &expr.Match{Name: "mark", Rev: 1, Info: oldMark(0x20, 0x20)}, "4"},
		{"no mark", "22/tcp", &expr.Match{Name: "mark", Rev: 1, Info: oldMark(0, 0xff)}, ""},
		{"udp", "53/udp", &expr.Match{Name: "udp", Info: &xt.Udp{SrcPorts: [2]uint16{0, 65535}, DstPorts: [2]uint16{53, 53}}}, ""},
		{"udp other", "53/udp", &expr.Match{Name: "udp", Info: &xt.Udp{SrcPorts: [2]uint16{0, 65535}, DstPorts: [2]uint16{54, 54}}}, "4"},
	} {
		for _, family := range []string{"ip", "ip6"} {
			t.Run(f.name+" "+family, func(t *testing.T) {
				t.Parallel()
				h := newHost(t)
				h.server.Do(func() { oldRule(t, family, f.ports, f.match) })
				want := ""
				if f.want != "" {
					want = fmt.Sprintf("%s filter INPUT: policy drop %s %s", family, f.ports, map[string]string{"ip": "4", "ip6": "6"}[family])
				}
				if got := summary(h.later(0, f.ports)); got != want {
					t.Errorf("said %q, want %q", got, want)
				}
			})
		}
	}
}

// oldMark is struct xt_mark_mtinfo1, padded as the kernel wants it.
func oldMark(mark, mask uint32) *xt.Unknown {
	info := xt.Unknown(binary.NativeEndian.AppendUint32(binary.NativeEndian.AppendUint32(nil, mark), mask))
	info = append(info, make([]byte, 8)...)
	return &info
}

// oldRule makes a chain INPUT that drops what its one rule does not accept.
func oldRule(t *testing.T, family, port string, match expr.Any) {
	c, err := nftables.New()
	if err != nil {
		t.Error(err)
		return
	}
	proto, drop := byte(unix.IPPROTO_TCP), nftables.ChainPolicyDrop
	if strings.HasSuffix(port, "udp") {
		proto = unix.IPPROTO_UDP
	}
	table := c.AddTable(&nftables.Table{
		Name: "filter", Family: map[string]nftables.TableFamily{"ip": nftables.TableFamilyIPv4, "ip6": nftables.TableFamilyIPv6}[family],
	})
	chain := c.AddChain(&nftables.Chain{
		Name: "INPUT", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookInput,
		Priority: nftables.ChainPriorityFilter, Policy: &drop,
	})
	load := &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}
	c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
		load, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}}, match, &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictAccept},
	}})
	if err := c.Flush(); err != nil {
		t.Error(err)
	}
}

// TestLaterLegacy has a table of the old iptables, which netlink cannot show.
func TestLaterLegacy(t *testing.T) {
	h := newHost(t)
	h.serve(22)
	h.server.Run("iptables-legacy", "-P", "INPUT", "DROP")
	want := "ip filter INPUT: iptables-legacy can't be read 22/tcp 4 may"
	found := h.later(0, "22/tcp")
	if got := summary(found); got != want {
		t.Fatalf("said %q, want %q", got, want)
	}
	if h.greeted("tcp", both[0], 22) {
		t.Error("got through a policy of drop")
	}
	h.server.Run("sh", "-c", strings.Replace(found[0].Advice, "-I INPUT", "-I INPUT 1", 1))
	if !h.greets("tcp", both[0], 22) {
		t.Errorf("%q did not help", found[0].Advice)
	}
	h.server.Run("ip6tables-legacy", "-L", "-n")
	if got := len(h.later(0, "22/tcp", "53/udp")); got != 4 {
		t.Errorf("%d warnings, want one for each family and port", got)
	}
}

func TestLaterNeedsPermission(t *testing.T) {
	testnet.RequireRoot(t)
	var err error
	testnet.New(t).Do(func() { // the thread ends with f, and its lost capability with it
		var caps [2]unix.CapUserData
		if err = unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &caps[0]); err == nil {
			_, err = later.Find(nil, 0)
		}
	})
	if !errors.Is(err, unix.EPERM) {
		t.Errorf("without capabilities: %v", err)
	}
}

func TestBlockerString(t *testing.T) {
	port := config.PortRange{Proto: 6, Low: 22, High: 22}
	for _, f := range []struct {
		b    later.Blocker
		want string
	}{
		{later.Blocker{Family: "inet", Table: "filter", Chain: "input", Reason: "policy drop", Port: port, IPv4: true, IPv6: true, Advice: "nft insert"},
			"chain input of table inet filter drops 22/tcp over IPv4 and IPv6 (policy drop), whatever is granted; run: nft insert"},
		{later.Blocker{Family: "ip6", Table: "filter", Chain: "INPUT", Reason: "rule rejects", Port: port, IPv6: true, May: true, Advice: "ip6tables"},
			"chain INPUT of table ip6 filter drops 22/tcp over IPv6 from every source that it does not name (rule rejects), whatever is granted; run: ip6tables"},
		{later.Blocker{Family: "ip", Table: "filter", Chain: "INPUT", Reason: "iptables-legacy can't be read", Port: port, IPv4: true, May: true, Advice: "iptables-legacy"},
			"iptables-legacy can't be read, and it has a table ip filter: it may drop 22/tcp over IPv4 whatever is granted; if it does, run: iptables-legacy"},
	} {
		if got := f.b.String(); got != f.want {
			t.Errorf("got  %s\nwant %s", got, f.want)
		}
	}
}

// TestLaterAgainstKernel makes chains of rules at random, all with a sure
// answer, and lets the kernel judge what Later says of them.
func TestLaterAgainstKernel(t *testing.T) {
	h := newHost(t)
	h.serve(22)
	pool := []string{
		"tcp dport 22 accept", "tcp dport 22 drop", "tcp dport 23 accept", "tcp dport 20-30 reject", "tcp dport { 22, 443 } jump a",
		"tcp dport @services drop", "meta nfproto ipv4 goto a", "meta nfproto ipv6 jump b", "jump b", "ct state new jump a", "ct state established accept",
		"meta l4proto udp accept", "tcp dport vmap { 22 : jump a, 23 : drop }", "tcp dport != 22 accept", "ip6 nexthdr tcp return", "ip protocol tcp return",
		"meta l4proto . th dport @pairs jump b", `iifname "lo" accept`, `iifname != "lo" tcp dport vmap { 1-22 : goto b }`, "tcp flags syn jump b", "return",
	}
	random := rand.New(rand.NewPCG(1, 2))
	some := func(n int, from []string) string {
		var rules []string
		for range n {
			rules = append(rules, from[random.IntN(len(from))])
		}
		return strings.Join(rules, "\n")
	}
	through := 0
	for range 40 {
		leaf := []string{"accept", "drop", "reject", "return", "tcp dport 22 accept", "tcp dport 22 return", "meta nfproto ipv6 drop", "ip protocol tcp accept"}
		text := "flush ruleset\ntable inet filter {\n" + sets + "chain b {\n" + some(2, leaf) + "\n}\nchain a {\n" + some(2, append(leaf, "jump b", "goto b")) + "\n}\n" +
			"chain input { type filter hook input priority 0; policy " + some(1, []string{"accept", "drop"}) + ";\nct state established accept\nmeta l4proto ipv6-icmp accept\n" + some(4, pool) + "\n}\n}"
		h.load(text, "")
		found := h.later(0, "22/tcp")
		for i, addr := range both {
			blocked := slices.ContainsFunc(found, func(b later.Blocker) bool { return []bool{b.IPv4, b.IPv6}[i] })
			got := h.greeted("tcp", addr, 22)
			if got != !blocked && (blocked || !h.greets("tcp", addr, 22)) {
				t.Fatalf("%s: said %q, got through: %v\n%s", addr, summary(found), got, text)
			}
			if got {
				through++
			}
		}
	}
	if through < 16 || through > 64 {
		t.Errorf("%d of 80 got through: the rules are too much alike to show anything", through)
	}
}

// TestLaterWhileRulesChange has two firewalls take turns, each of which lets 22
// through: a reading with one's set and the other's rule would say that it is
// dropped.
func TestLaterWhileRulesChange(t *testing.T) {
	h := newHost(t)
	turn := func(port, not string) string {
		return "flush ruleset\ntable inet filter {\nset s { type inet_service; elements = { " + port + " }; }\n" +
			"chain input { type filter hook input priority 0; policy drop;\ntcp dport " + not + " @s accept\n}\n}"
	}
	first, second := turn("22", ""), turn("23", "!=")
	dir := t.TempDir()
	for name, text := range map[string]string{"first": first, "second": second} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	h.load(first, "")
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				h.server.Output("nft", "-f", filepath.Join(dir, "second"))
				h.server.Output("nft", "-f", filepath.Join(dir, "first"))
			}
		}
	}()
	port := []config.PortRange{{Proto: 6, Low: 22, High: 22}}
	calm := 0
	for until := time.Now().Add(time.Second); time.Now().Before(until); {
		var found []later.Blocker
		var err error
		h.server.Do(func() { found, err = later.Find(port, 0) })
		if len(found) > 0 {
			t.Errorf("said %q", summary(found))
			break
		}
		if err == nil {
			calm++
		}
	}
	close(stop)
	<-stopped
	if calm == 0 {
		t.Error("no reading succeeded")
	}
}

// BenchmarkLater reads and judges a firewall with 300 ports for a guard of all.
func BenchmarkLater(b *testing.B) {
	h := newHost(b)
	var rules []string
	for i := range 300 {
		rules = append(rules, fmt.Sprintf("tcp dport %d accept", 100*i+7))
	}
	h.load(input("drop", rules...), "")
	b.ResetTimer()
	for range b.N {
		h.later(0, "1-65535/tcp")
	}
}
