package later_test

import "strings"

// ufw is the ruleset that ufw 0.36 loads for one family ("" or "6"), with one
// port allowed or none: its chains, their order and the rules in them that can
// meet a TCP packet.
func ufw(version, allow string) string {
	rules := `*filter
:INPUT DROP [0:0]
:ufwX-before-logging-input - [0:0]
:ufwX-before-input - [0:0]
:ufwX-after-input - [0:0]
:ufwX-after-logging-input - [0:0]
:ufwX-reject-input - [0:0]
:ufwX-track-input - [0:0]
:ufwX-not-local - [0:0]
:ufwX-logging-deny - [0:0]
:ufwX-skip-to-policy-input - [0:0]
:ufwX-user-input - [0:0]
:ufwX-user-limit - [0:0]
:ufwX-user-limit-accept - [0:0]
# End required lines
-A INPUT -j ufwX-before-logging-input
-A INPUT -j ufwX-before-input
-A INPUT -j ufwX-after-input
-A INPUT -j ufwX-after-logging-input
-A INPUT -j ufwX-reject-input
-A INPUT -j ufwX-track-input
-A ufwX-before-input -i lo -j ACCEPT
-A ufwX-before-input -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ufwX-before-input -m conntrack --ctstate INVALID -j ufwX-logging-deny
-A ufwX-before-input -m conntrack --ctstate INVALID -j DROP
-A ufwX-before-input -p ICMP -j ACCEPT
-A ufwX-before-input -p udp --sport 67 --dport 68 -j ACCEPT
NOTLOCAL
-A ufwX-before-input -j ufwX-user-input
-A ufwX-after-input -p udp --dport 137 -j ufwX-skip-to-policy-input
-A ufwX-after-input -p tcp --dport 139 -j ufwX-skip-to-policy-input
-A ufwX-after-logging-input -m limit --limit 3/min --limit-burst 10 -j LOG --log-prefix "[UFW BLOCK] "
-A ufwX-logging-deny -m conntrack --ctstate INVALID -m limit --limit 3/min --limit-burst 10 -j RETURN
-A ufwX-logging-deny -m limit --limit 3/min --limit-burst 10 -j LOG --log-prefix "[UFW BLOCK] "
-A ufwX-skip-to-policy-input -j DROP
ALLOW
-A ufwX-user-limit -m limit --limit 3/min -j LOG --log-prefix "[UFW LIMIT BLOCK] "
-A ufwX-user-limit -j REJECT
-A ufwX-user-limit-accept -j ACCEPT
COMMIT
`
	notLocal := `-A ufwX-before-input -j ufwX-not-local
-A ufwX-not-local -m addrtype --dst-type LOCAL -j RETURN
-A ufwX-not-local -m addrtype --dst-type MULTICAST -j RETURN
-A ufwX-not-local -m limit --limit 3/min --limit-burst 10 -j ufwX-logging-deny
-A ufwX-not-local -j DROP
-A ufwX-before-input -p udp -d 224.0.0.251 --dport 5353 -j ACCEPT`
	icmp := "icmp"
	if version == "6" {
		notLocal = "-A ufwX-before-input -m rt --rt-type 0 -j DROP\n-A ufwX-before-input -p udp -s fe80::/10 --sport 547 -d fe80::/10 --dport 546 -j ACCEPT"
		icmp = "ipv6-icmp"
	}
	if allow != "" {
		allow = "-A ufwX-user-input -p tcp --dport " + allow + " -j ACCEPT"
	}
	rules = strings.NewReplacer("NOTLOCAL", notLocal, "ICMP", icmp, "ALLOW", allow).Replace(rules)
	return strings.ReplaceAll(rules, "ufwX-", "ufw"+version+"-")
}

// firewalld is the ruleset of firewalld 1.3 with its default zone, public, on
// one interface and one rule more in the zone's allow chain.
func firewalld(allow string) string {
	return `table inet firewalld {
	chain mangle_PREROUTING {
		type filter hook prerouting priority mangle + 10; policy accept;
		jump mangle_PREROUTING_ZONES
	}
	chain mangle_PREROUTING_ZONES {
		iifname "IFACE" goto mangle_PRE_public
		goto mangle_PRE_public
	}
	chain mangle_PRE_public { return; }
	chain nat_PREROUTING {
		type nat hook prerouting priority dstnat + 10; policy accept;
		jump nat_PREROUTING_ZONES
	}
	chain nat_PREROUTING_ZONES { goto nat_PRE_public; }
	chain nat_PRE_public { return; }
	chain filter_PREROUTING {
		type filter hook prerouting priority filter + 10; policy accept;
		icmpv6 type { nd-router-advert, nd-neighbor-solicit } accept
		meta nfproto ipv6 fib saddr . mark . iif oif missing drop
	}
	chain filter_INPUT {
		type filter hook input priority filter + 10; policy accept;
		ct state { established, related } accept
		ct status dnat accept
		iifname "lo" accept
		ct state invalid drop
		jump filter_INPUT_ZONES
		reject with icmpx admin-prohibited
	}
	chain filter_INPUT_ZONES {
		ip saddr 198.51.100.0/24 goto filter_IN_public
		iifname "IFACE" goto filter_IN_public
		goto filter_IN_public
	}
	chain filter_INPUT_POLICIES_pre { jump filter_IN_policy_allow-host-ipv6; }
	chain filter_IN_policy_allow-host-ipv6 { icmpv6 type { nd-neighbor-advert, nd-neighbor-solicit, nd-redirect, nd-router-advert } accept; }
	chain filter_IN_public {
		jump filter_INPUT_POLICIES_pre
		jump filter_IN_public_pre
		jump filter_IN_public_log
		jump filter_IN_public_deny
		jump filter_IN_public_allow
		jump filter_IN_public_post
		meta l4proto { icmp, ipv6-icmp } accept
		reject with icmpx admin-prohibited
	}
	chain filter_IN_public_pre { }
	chain filter_IN_public_log { }
	chain filter_IN_public_deny { }
	chain filter_IN_public_allow {
		ip6 daddr fe80::/64 udp dport 546 accept
		` + allow + `
	}
	chain filter_IN_public_post { }
}`
}
