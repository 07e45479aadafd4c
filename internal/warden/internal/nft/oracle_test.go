package nft

import (
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/sallyport/sallyport/internal/testnet"
)

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// oracles are the configs whose table stands in testdata, by file name.
var oracles = []struct {
	name    string
	cfg     func() *config.Config
	options Options
}{
	{"plain", func() *config.Config { return guarding(config.Auto, "22/tcp", "53/udp") }, Options{}},
	{"looks", func() *config.Config {
		cfg := guarding(config.Auto, "22/tcp", "60000-61000/udp")
		cfg.Services = append(cfg.Services, service(config.Drop, "23/tcp", "20-24/tcp"), service(config.Reject, "80/tcp", "161-162/udp"))
		return cfg
	}, Options{}},
	{"all", func() *config.Config {
		cfg := guarding(config.Drop, "22/tcp")
		cfg.Daemon.HideAll = true
		cfg.Daemon.Public = []config.PortRange{port("80/tcp"), port("443/tcp"), port("443/udp")}
		return cfg
	}, Options{}},
	{"owner", func() *config.Config {
		cfg := guarding(config.Auto, "22/tcp")
		cfg.Daemon.Interfaces = []string{"eth0", "wg0"}
		cfg.Daemon.GrantMark = 0x10
		cfg.Services[0].Allow = prefixes("192.0.2.0/24", "192.0.2.128/25", "2001:db8:1::/48")
		cfg.Services = append(cfg.Services, service(config.Auto, "25/tcp"))
		cfg.Services[1].Allow = prefixes("192.0.2.128/25", "2001:db8:1:2::/64", "203.0.113.7/32")
		return cfg
	}, Options{}},
	{"onward", func() *config.Config {
		cfg := guarding(config.Auto, "22/tcp")
		away := service(config.Auto, "80/tcp")
		away.On = addrs("198.51.100.5", "2001:db8:5::5")
		away.Allow = prefixes("192.0.2.0/24", "2001:db8:1::/48")
		quieter := service(config.Drop, "81/tcp")
		quieter.On = addrs("198.51.100.6")
		cfg.Services = append(cfg.Services, away, quieter)
		cfg.Daemon.GrantMark = 0x10
		return cfg
	}, Options{}},
	{"once", func() *config.Config {
		cfg := guardingOnce(config.Auto)
		cfg.Daemon.GrantMark = 0x10
		return cfg
	}, Options{}},
	{"wide", func() *config.Config {
		cfg := guardingOnce(config.Auto)
		cfg.Services = cfg.Services[:2]
		cfg.Services[1].Once = false
		cfg.Knocks = []config.Knock{{Widths: prefixes("0.0.0.0/16", "0.0.0.0/24", "::/56")}, {Widths: prefixes("0.0.0.0/24")}}
		return cfg
	}, Options{}},
	{"quiet", func() *config.Config {
		cfg := guarding(config.Auto, "22/tcp")
		cfg.Daemon.Public = []config.PortRange{port("443/tcp")}
		for _, q := range []bool{true, false} {
			k := config.Knock{Quiet: q, Opens: []int{0}}
			for _, s := range []string{"7000/tcp", "8500/udp", "icmp", "443/tcp", "7800/tcp"} {
				step, _ := sequence.ParseStep(s)
				k.Sequence = append(k.Sequence, step)
			}
			cfg.Knocks = append(cfg.Knocks, k)
		}
		cfg.Knocks[1].Sequence[0].Port = 9999
		return cfg
	}, Options{}},
	{"live", func() *config.Config { return guarding(config.Auto, "22/tcp") }, Options{Live: []Connection{
		{netip.MustParseAddrPort("198.51.100.9:40000"), netip.MustParseAddrPort("192.0.2.1:22")},
		{netip.MustParseAddrPort("[2001:db8:9::9]:40000"), netip.MustParseAddrPort("[2001:db8::1]:22")},
	}}},
	{"hiddenfor", func() *config.Config { return guarding(config.Auto, "22/tcp", "60000-61000/udp") }, Options{HiddenFor: time.Minute}},
}

var (
	expires  = regexp.MustCompile(` expires \w+`)
	elements = regexp.MustCompile(`elements = \{ ([^}]*) \}`)
	comma    = regexp.MustCompile(`,\s+`)
)

// blocks lists a ruleset as its sets and chains in alphabetical order, each
// set's elements too: a hash has no order, and what stays of an older table is
// listed first.
func blocks(ns *testnet.Namespace) []string {
	text := expires.ReplaceAllString(ns.Run("nft", "list", "ruleset"), "")
	text = elements.ReplaceAllStringFunc(text, func(s string) string {
		list := comma.Split(elements.FindStringSubmatch(s)[1], -1)
		slices.Sort(list)
		return "elements = { " + strings.Join(list, ", ") + " }"
	})
	out := strings.Split(strings.NewReplacer("table inet sallyport {\n", "", "\t}\n}\n", "\t}").Replace(text), "\n\n")
	slices.Sort(out)
	return out
}

// TestOracle loads each wanted table by nft's own parser and ours by netlink,
// and lets nft print both. Ours is applied over the one before, and twice.
func TestOracle(t *testing.T) {
	t.Parallel()
	theirs, ours := testnet.New(t), testnet.New(t)
	table := openIn(t, ours)
	for _, c := range oracles {
		t.Run(c.name, func(t *testing.T) {
			text, err := os.ReadFile(filepath.Join("testdata", c.name+".nft"))
			if err != nil {
				t.Fatal(err)
			}
			theirs.Input("flush ruleset\n"+string(text), "nft", "-f", "-")
			for range 2 {
				if err := table.Apply(c.cfg(), c.options); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(blocks(theirs), blocks(ours)); diff != "" {
					t.Fatalf("testdata/%s.nft (-) is not what Apply made (+):\n%s", c.name, diff)
				}
			}
		})
	}
}
