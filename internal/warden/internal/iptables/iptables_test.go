package iptables

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/sallyport/sallyport/internal/testnet"
	"github.com/sallyport/sallyport/internal/warden/internal/nft"
)

func TestMain(m *testing.M) { os.Exit(testnet.Main(m)) }

func parsed(t *testing.T, text string) *config.Config {
	t.Helper()
	cfg, err := config.Parse("sallyport.toml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

const knocked = `
[knock.front]
type = "sequence"
opens = ["ssh"]
sequence = ["47011/tcp", "48022/udp", "45033/tcp"]
`

const ssh = "[daemon]\nbackend = \"iptables\"\nmax_grants = 16\n[service.ssh]\nports = [\"22/tcp\", \"100-110/udp\"]\n" + knocked

// inside runs f with a table in a namespace of its own.
func inside(t *testing.T, f func(ns *testnet.Namespace, table *Table)) {
	ns := testnet.New(t)
	ns.Do(func() {
		table, err := Open()
		if err != nil {
			t.Error(err)
			return
		}
		defer table.Close()
		f(ns, table)
	})
}

var clients = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}

func grant(addr netip.Addr, ttl time.Duration, by string) nft.Element {
	return nft.Element{Addr: addr, Proto: sequence.TCP, Port: 22, TTL: ttl, By: by}
}

func TestGrantsComeBackAsTheyWere(t *testing.T) {
	inside(t, func(_ *testnet.Namespace, table *Table) {
		if err := table.Apply(parsed(t, ssh), nft.Options{}); err != nil {
			t.Error(err)
			return
		}
		for _, addr := range clients {
			for _, e := range []nft.Element{
				grant(addr, 90*time.Second, "front"),
				{Addr: addr, Proto: sequence.UDP, Port: 107, TTL: 1500 * time.Millisecond, By: `keys SHA256:"\x`},
				{Cut: true, Addr: addr, Proto: sequence.TCP, Port: 22, TTL: time.Hour},
			} {
				if err := table.Grant([]nft.Element{e}); err != nil {
					t.Error(err)
				}
				held, err := table.Holds(e)
				if !held || err != nil {
					t.Errorf("%v is not held: %v", e, err)
				}
				list, err := table.Grants()
				i := slices.IndexFunc(list, func(g nft.Element) bool {
					return g.Addr == e.Addr && g.Cut == e.Cut && g.Proto == e.Proto && g.Port == e.Port && g.By == e.By
				})
				if err != nil || i < 0 || list[i].TTL < e.TTL-time.Second || list[i].TTL > e.TTL+time.Second {
					t.Errorf("%v is listed as %v, %v", e, list, err)
				}
				if err := table.Revoke([]nft.Element{e, e}); err != nil {
					t.Error(err)
				}
				if held, _ := table.Holds(e); held {
					t.Errorf("%v is held after its end", e)
				}
			}
		}
	})
}

// A full set refuses, keeps who is in, prolongs who is in, and takes nobody's place.
func TestPromise4AFullSetEvictsNobody(t *testing.T) {
	inside(t, func(_ *testnet.Namespace, table *Table) {
		if err := table.Apply(parsed(t, ssh), nft.Options{}); err != nil {
			t.Error(err)
			return
		}
		for _, first := range clients {
			addr := first
			for range 16 {
				addr = addr.Next()
				if err := table.Grant([]nft.Element{grant(addr, time.Minute, "front")}); err != nil {
					t.Errorf("%v: %v", addr, err)
				}
			}
			two := []nft.Element{grant(first, time.Minute, "front"), {Addr: first, Proto: sequence.UDP, Port: 100, TTL: time.Minute}}
			if err := table.Grant(two); !errors.Is(err, nft.ErrFull) {
				t.Errorf("the 17th was answered with %v", err)
			}
			if err := table.Grant([]nft.Element{grant(addr, time.Hour, "keys")}); err != nil {
				t.Errorf("who is in was not prolonged: %v", err)
			}
			if err := table.Revoke([]nft.Element{grant(addr, time.Hour, "keys")}); err != nil {
				t.Error(err)
			}
			// One of the two would fit now; all or none.
			if err := table.Grant(two); !errors.Is(err, nft.ErrFull) {
				t.Errorf("two for one place were answered with %v", err)
			}
			if held, _ := table.Holds(two[0]); held {
				t.Error("half of a refused grant is open")
			}
		}
		if list, _ := table.Grants(); len(list) != 30 {
			t.Errorf("%d grants are left, want 30", len(list))
		}
	})
}

// A reload keeps grants of what is still hidden, also into a set of another size.
func TestApplyKeepsGrants(t *testing.T) {
	inside(t, func(_ *testnet.Namespace, table *Table) {
		if err := table.Apply(parsed(t, ssh), nft.Options{}); err != nil {
			t.Error(err)
			return
		}
		for _, addr := range clients {
			err := table.Grant([]nft.Element{grant(addr, time.Minute, "front"), {Addr: addr, Proto: sequence.UDP, Port: 107, TTL: time.Minute}})
			if err != nil {
				t.Error(err)
			}
		}
		for _, size := range []string{"16", "32"} {
			text := strings.Replace(strings.Replace(ssh, `, "100-110/udp"`, "", 1), "max_grants = 16", "max_grants = "+size, 1)
			if err := table.Apply(parsed(t, text), nft.Options{}); err != nil {
				t.Error(err)
			}
			list, err := table.Grants()
			if len(list) != 2 || list[0].Port != 22 || list[0].By != "front" || list[0].TTL < 50*time.Second {
				t.Errorf("max_grants %s: %v, %v", size, list, err)
			}
		}
	})
}

func TestNoGrantIsForEver(t *testing.T) {
	for _, c := range []struct {
		ttl  time.Duration
		want uint32
	}{
		{time.Millisecond, 1}, {time.Second, 1}, {time.Second + 1, 2}, {30 * time.Second, 30}, {1 << 62, maxSeconds},
	} {
		if got := seconds(c.ttl); got != c.want {
			t.Errorf("%v is %d s, want %d", c.ttl, got, c.want)
		}
	}
	for _, addr := range clients {
		for _, e := range []nft.Element{
			grant(addr, 0, ""), grant(addr, -time.Second, ""), grant(netip.Addr{}, time.Minute, ""), grant(addr, time.Minute, strings.Repeat("x", 129)),
			{Addr: addr, Proto: sequence.ICMP, Port: 1, TTL: time.Minute}, {Addr: addr, Proto: sequence.TCP, TTL: time.Minute},
			{Addr: addr, Proto: sequence.TCP, Port: 1, TTL: time.Minute, Once: true}, {Addr: addr, Proto: sequence.TCP, Port: 1, TTL: time.Minute, Bits: 24},
			{Addr: addr, On: addr, Proto: sequence.TCP, Port: 1, TTL: time.Minute},
		} {
			if check(e) == nil {
				t.Errorf("%+v is taken", e)
			}
		}
	}
}

// The jump comes first again after somebody put a rule before it, and nobody else's
// rule moves.
func TestOurJumpIsFirst(t *testing.T) {
	inside(t, func(ns *testnet.Namespace, table *Table) {
		cfg := parsed(t, ssh)
		for range 2 {
			if err := table.Apply(cfg, nft.Options{}); err != nil {
				t.Error(err)
				return
			}
			for _, tool := range []string{"iptables", "ip6tables"} {
				ns.Run(tool, "-I", "INPUT", "-p", "tcp", "-j", "ACCEPT")
			}
			if whole, err := table.Exists(); whole || err != nil {
				t.Errorf("with a rule before ours: %v, %v", whole, err)
			}
		}
		if err := table.Apply(cfg, nft.Options{}); err != nil {
			t.Error(err)
		}
		if whole, err := table.Exists(); !whole || err != nil {
			t.Errorf("after Apply: %v, %v", whole, err)
		}
		want := "-P INPUT ACCEPT\n-A INPUT -j SALLYPORT\n-A INPUT -p tcp -j ACCEPT\n-A INPUT -p tcp -j ACCEPT\n"
		for _, tool := range []string{"iptables", "ip6tables"} {
			if got := ns.Run(tool, "-S", "INPUT"); got != want {
				t.Errorf("%s:\n%s", tool, got)
			}
		}
		for _, args := range []string{"iptables -F", "ip6tables -t filter -F SALLYPORT-CLOSED", "iptables -t nat -D SALLYPORT 1", "ip6tables -P INPUT DROP"} {
			words := strings.Fields(args)
			ns.Run(words[0], words[1:]...)
			if whole, err := table.Exists(); whole || err != nil {
				t.Errorf("after %s: %v, %v", args, whole, err)
			}
			if err := table.Apply(cfg, nft.Options{}); err != nil {
				t.Error(err)
			}
			if whole, err := table.Exists(); !whole || err != nil {
				t.Errorf("made anew after %s: %v, %v", args, whole, err)
			}
		}
		if err := table.Down(); err != nil {
			t.Error(err)
		}
		if Present() {
			t.Error("something is left after Down")
		}
	})
}

// Promise 7: a chain of the owner's whose name only begins as ours is his.
func TestPromise7ChainsNamedLikeOurs(t *testing.T) {
	inside(t, func(ns *testnet.Namespace, table *Table) {
		tools := []string{"iptables", "ip6tables"}
		list := func(tool string) string {
			return ns.Run(tool, "-S", "SALLYPORT-MINE") + ns.Run(tool, "-S", "SALLYPORTS")
		}
		want := map[string]string{}
		for _, tool := range tools {
			for _, name := range []string{"SALLYPORT-MINE", "SALLYPORTS"} {
				ns.Run(tool, "-N", name)
				ns.Run(tool, "-A", name, "-p", "tcp", "-j", "RETURN")
			}
			want[tool] = list(tool)
		}
		for _, f := range []func() error{func() error { return table.Apply(parsed(t, ssh), nft.Options{}) }, table.Down} {
			if err := f(); err != nil {
				t.Error(err)
			}
			for _, tool := range tools {
				if got, _ := ns.Output(tool, "-S", "SALLYPORT-MINE"); !strings.HasPrefix(want[tool], got) || got == "" {
					t.Errorf("%s has\n%s", tool, got)
				} else if got := list(tool); got != want[tool] {
					t.Errorf("%s has\n%s, had\n%s", tool, got, want[tool])
				}
			}
		}
	})
}

// Who has rules in the other kind of tables is told why ports stay hidden, and the other
// family is taken down all the same.
func TestDownNamesTheOtherKindOfTables(t *testing.T) {
	inside(t, func(ns *testnet.Namespace, table *Table) {
		if err := table.Apply(parsed(t, ssh), nft.Options{}); err != nil {
			t.Error(err)
		}
		rule := []string{"INPUT", "-m", "set", "--match-set", "sallyport4", "src,dst", "-j", "RETURN"}
		ns.Run("iptables-legacy", append([]string{"-A"}, rule...)...)
		if err := table.Down(); err == nil || !strings.Contains(err.Error(), "iptables has two kinds of tables") {
			t.Errorf("it says %v", err)
		}
		if out := ns.Run("ip6tables-save"); strings.Contains(out, chain) {
			t.Errorf("ip6tables has\n%s", out)
		}
		ns.Run("iptables-legacy", append([]string{"-D"}, rule...)...)
		if err := table.Down(); err != nil || Present() {
			t.Errorf("then: %v", err)
		}
	})
}

func TestPortsArePackedIntoMatches(t *testing.T) {
	var many []config.PortRange
	for i := range 20 {
		many = append(many, config.PortRange{Proto: sequence.TCP, Low: uint16(100 + 2*i), High: uint16(100 + 2*i)})
	}
	got := matches(append(many, config.PortRange{Proto: sequence.UDP, Low: 5, High: 9}))
	if len(got) != 3 || strings.Count(got[0], ",") != maxPorts-1 || got[2] != "-p udp -m multiport --dports 5:9" {
		t.Errorf("%q", got)
	}
}

// What the host's own rules say decides how a port with "auto" looks.
func TestAutoFollowsTheHost(t *testing.T) {
	for _, c := range []struct {
		rules []string
		want  bool
	}{
		{nil, false},
		{[]string{"-P INPUT DROP"}, true},
		{[]string{"-A INPUT -p tcp -j DROP"}, false},
		{[]string{"-A INPUT -i lo -j ACCEPT", "-A INPUT -j DROP"}, true},
	} {
		t.Run(fmt.Sprint(c.rules), func(t *testing.T) {
			inside(t, func(ns *testnet.Namespace, table *Table) {
				for _, f := range families {
					tool := strings.TrimSuffix(f.restore, "-restore")
					for _, rule := range c.rules {
						ns.Run(tool, strings.Fields(rule)...)
					}
					if err := table.Apply(parsed(t, ssh), nft.Options{}); err != nil {
						t.Error(err)
						return
					}
					out := ns.Run(tool, "-t", "mangle", "-S", chain+"-CLOSED")
					if got := strings.Contains(out, "--dports 22 -j DROP"); got != c.want {
						t.Errorf("%s: dropped %v, want %v:\n%s", tool, got, c.want, out)
					}
				}
			})
		})
	}
}

// A mark that a daemon did not live to see would have the next one take its own rules
// for taken down.
func TestApplyTakesTheMarkAway(t *testing.T) {
	inside(t, func(_ *testnet.Namespace, table *Table) {
		if err := errors.Join(table.Apply(parsed(t, ssh), nft.Options{}), table.Mark(), table.Down(), table.Apply(parsed(t, ssh), nft.Options{})); err != nil {
			t.Error(err)
		}
		if table.Marked() {
			t.Error("the rules that were made since count as taken down")
		}
	})
}
