package later

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/sallyport/sallyport/internal/config"
)

// xtTables are the tables that iptables makes (iptables(8), TABLES).
var xtTables = []string{"filter", "mangle", "nat", "raw", "security"}

// xtCommands are iptables' names by the family of its tables.
var xtCommands = map[string]string{"ip": "iptables", "ip6": "ip6tables"}

// advice is the command for the tool that evidently owns the chain: a rule put
// in behind its back would be gone at its next reload. Each goes before the
// chain's own rules, so that none of them drops first.
func (c *hostChain) advice(r config.PortRange, mark uint32) string {
	family := familyNames[c.table.family]
	command := xtCommands[family]
	switch {
	case c.table.name == "firewalld":
		// firewalld has no condition on marks, and what a direct rule accepts its
		// own table still drops (firewalld.direct(5)): the port is the only form.
		return fmt.Sprintf("firewall-cmd --permanent --add-port=%s && firewall-cmd --reload", r)
	case command != "" && c.madeByUFW():
		return ufwAdvice(family, r, mark)
	case command != "" && slices.Contains(xtTables, c.table.name) && c.name == strings.ToUpper(c.name):
		return xtAdvice(command, c.table.name, c.name, r, mark)
	}
	accept := fmt.Sprintf("%s dport %s", r.Proto, spell(r, "-"))
	if mark != 0 {
		accept = fmt.Sprintf("meta mark and %#x == %#x", mark, mark)
	}
	return fmt.Sprintf("nft insert rule %s %s %s %s accept", family, c.table.name, c.name, accept)
}

// madeByUFW knows ufw by the chains that it hangs into iptables' own.
func (c *hostChain) madeByUFW() bool {
	return c.table.name == "filter" && slices.ContainsFunc(c.table.chains, func(o *hostChain) bool {
		return strings.HasPrefix(o.name, "ufw-") || strings.HasPrefix(o.name, "ufw6-")
	})
}

// ufwAdvice uses ufw's own command for a port, which serves both families. Its
// rules know no marks; a line in before.rules does (ufw-framework(8)).
func ufwAdvice(family string, r config.PortRange, mark uint32) string {
	if mark == 0 {
		return fmt.Sprintf("ufw allow %s/%s", spell(r, ":"), r.Proto)
	}
	version := map[string]string{"ip6": "6"}[family]
	return fmt.Sprintf(`sed -i '/^# End required lines/a -A ufw%s-before-input %s -j ACCEPT' /etc/ufw/before%s.rules && ufw reload`,
		version, xtMarked(mark), version)
}

func xtAdvice(command, table, chain string, r config.PortRange, mark uint32) string {
	if table != "filter" {
		command += " -t " + table
	}
	accept := fmt.Sprintf("-p %s --dport %s", r.Proto, spell(r, ":"))
	if mark != 0 {
		accept = xtMarked(mark)
	}
	return fmt.Sprintf("%s -I %s %s -j ACCEPT", command, chain, accept)
}

func xtMarked(mark uint32) string { return fmt.Sprintf("-m mark --mark %#x/%#x", mark, mark) }

// spell writes a range with the tool's separator.
func spell(r config.PortRange, separator string) string {
	if r.Low == r.High {
		return strconv.Itoa(int(r.Low))
	}
	return fmt.Sprintf("%d%s%d", r.Low, separator, r.High)
}

// legacy reports tables of the old iptables, which no netlink shows. The kernel
// lists a table there as soon as anyone asked for it, also when it is empty, so
// this is a warning and no finding.
func legacy(guarded []config.PortRange, mark uint32) []Blocker {
	var found []Blocker
	for _, family := range []string{"ip", "ip6"} {
		// The thread's directory: the process may be in another namespace.
		names, err := os.ReadFile("/proc/thread-self/net/" + family + "_tables_names")
		if err != nil || !slices.Contains(strings.Fields(string(names)), "filter") {
			continue // no such file: the old module is not loaded
		}
		for _, r := range guarded {
			found = append(found, Blocker{
				Family: family, Table: "filter", Chain: "INPUT", Reason: reasonLegacy, Port: r,
				IPv4: family == "ip", IPv6: family == "ip6", May: true,
				Advice: xtAdvice(xtCommands[family]+"-legacy", "filter", "INPUT", r, mark),
			})
		}
	}
	return found
}
