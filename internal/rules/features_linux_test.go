package rules_test

import (
	"net/netip"
	"regexp"
	"strings"
	"testing"

	"github.com/sallyport/sallyport/internal/rules"
	"github.com/sallyport/sallyport/internal/testnet"
)

// everything uses each key that a ruleset knows.
const everything = `[daemon]
hide = "all"
public = ["80/tcp"]
interfaces = ["va0", "vb0"]
grant_mark = 16
[service.ssh]
ports = ["22/tcp", "60000-60010/udp"]
closed_as = "reject"
allow = ["10.0.0.0/8", "192.168.1.0/24", "fd00::/8"]
[service.web]
ports = ["8443/tcp"]
closed_as = "drop"
[knock.flags]
type = "sequence"
opens = ["ssh", "web"]
sequence = ["7000/tcp:syn,!ack", "7100/tcp:fin,psh", "icmp", "37/icmp", "8500/udp"]
strict = true
close_on_wrong = true
[knock.plain]
type = "sequence"
opens = ["web"]
sequence = ["100/icmp", "65535/tcp", "1/udp"]
quiet = true
[knock.shut]
type = "sequence"
closes = ["ssh", "web"]
sequence = ["12000/tcp", "11000/tcp", "13000/tcp"]
[knock.longer]
type = "sequence"
extends = ["ssh"]
sequence = ["14000/tcp", "17000/tcp", "15000/tcp:any"]
`

// TestEverythingLoads: what the generators write is taken by the programs, with and
// without every key, a second time too.
func TestEverythingLoads(t *testing.T) {
	for _, l := range loaders {
		t.Run(l.name, func(t *testing.T) {
			w := newWorld(t, sides[0])
			for range 2 {
				l.load(t, w, everything)
			}
		})
	}
}

// TestPingsClose drives steps that are no TCP, and a knock that closes.
func TestPingsClose(t *testing.T) {
	each(t, `[service.ssh]
ports = ["22/tcp"]
closed_as = "drop"
[knock.pings]
type = "sequence"
opens = ["ssh"]
sequence = ["100/icmp", "8500/udp", "50/icmp"]
[knock.shut]
type = "sequence"
closes = ["ssh"]
sequence = ["12000/tcp", "11000/tcp", "13000/tcp"]
quiet = true
`, func(t *testing.T, w *world) {
		from, to := netip.MustParseAddr(w.side.client), netip.MustParseAddr(w.side.server)
		ping := func(size int) { w.wire.Send(t, testnet.Echo(from, to, 1, w.fresh, size)) }
		udp := func(port uint16) {
			w.wire.Send(t, testnet.UDP(netip.AddrPortFrom(from, 30000), netip.AddrPortFrom(to, port), []byte("x")))
		}
		ping(100)
		udp(8500)
		ping(51)
		ping(50)
		w.want(t, false, "a ping of another size breaks it")
		ping(100)
		ping(56)   // what ping(8) sends by itself
		ping(1000) // the guard wraps around the ring of sizes, and this is outside
		udp(8500)
		ping(50)
		w.want(t, true, "pings and a datagram")
		w.syn(t, w.side.client, 12000, 11000, 13000)
		w.want(t, false, "closed")
	})
}

// TestStrictSpares what the user's machine sends beside a strict knock: one that names
// flags hears every segment with these, and those of a connection to somewhere else are
// no wrong step, nor is what is to everybody.
func TestStrictSpares(t *testing.T) {
	each(t, `[service.ssh]
ports = ["22/tcp"]
closed_as = "drop"
[knock.strict]
type = "sequence"
opens = ["ssh"]
sequence = ["7000/tcp:ack", "8500/udp", "7800/tcp"]
strict = true
`, func(t *testing.T, w *world) {
		from, to := netip.MustParseAddr(w.side.client), netip.MustParseAddr(w.side.server)
		datagram := func(host string, port uint16) []byte {
			return testnet.UDP(netip.AddrPortFrom(from, 500), netip.AddrPortFrom(netip.MustParseAddr(host), port), nil)
		}
		segment := func(source, port, flags int) []byte {
			return testnet.TCP(netip.AddrPortFrom(from, uint16(source)), netip.AddrPortFrom(to, uint16(port)), uint8(flags), uint32(source))
		}
		const syn, ack = 2, 16
		knock := func(source int, between ...[]byte) {
			w.wire.Send(t, segment(source, 7000, ack))
			w.wire.Send(t, between...)
			w.wire.Send(t, datagram(w.side.server, 8500), segment(source, 7800, syn))
		}
		knock(1000, datagram(w.side.server, 443))
		w.want(t, false, "any datagram breaks it")
		knock(1001, segment(600, 443, syn))
		w.want(t, false, "any SYN breaks it")
		everybody := map[string]string{"ipv4": "192.0.2.255", "ipv6": "ff02::1"}[w.side.name]
		knock(1002, segment(700, 443, ack), datagram(everybody, 5353))
		w.want(t, true, "an ACK to a port that is far from its own does not, nor a datagram to everybody on the wire")
	})
}

// TestLoadAnotherConfig: the match recent keeps its lists over a load, and who was let
// in to one service is let in to no other by it.
func TestLoadAnotherConfig(t *testing.T) {
	const web = `[service.web]
ports = ["8443/tcp"]
closed_as = "drop"
[knock.web]
type = "sequence"
opens = ["web"]
sequence = ["12000/tcp", "11000/tcp", "13000/tcp"]
`
	for _, l := range loaders[1:] {
		for _, s := range sides {
			t.Run(l.name+"/"+s.name, func(t *testing.T) {
				w := newWorld(t, s)
				w.listen(t, 8443)
				l.load(t, w, web)
				w.syn(t, s.client, 12000, 11000, 13000)
				l.load(t, w, wiki+web)
				if !w.reaches(s.client, 8443) {
					t.Error("the new load took back what the knock had opened")
				}
				w.want(t, false, "a knock for another service, and a new load")
			})
		}
	}
}

// TestChainsAreNotTheDaemons: with backend = "iptables" the daemon makes anew and
// removes what is called SALLYPORT or SALLYPORT-....
func TestChainsAreNotTheDaemons(t *testing.T) {
	text, err := rules.IPTables(parse(t, everything))
	if err != nil {
		t.Fatal(err)
	}
	for _, chain := range regexp.MustCompile(`(?m)^:(\S+)`).FindAllStringSubmatch(text, -1) {
		if name := chain[1]; name == "SALLYPORT" || strings.HasPrefix(name, "SALLYPORT-") || len(name) > 28 {
			t.Errorf("a chain is called %s", name)
		}
	}
}

// TestLimits: what can't be done is said, and nothing that only shuts out is written.
func TestLimits(t *testing.T) {
	for _, c := range []struct {
		name, text string
		kind       rules.Kind
		want       string
	}{
		{"nothing", wiki, rules.Nftables, ""},
		{"once", strings.Replace(wiki, "closed_as", "once = true\nclosed_as", 1), rules.Nftables, "service.ssh: once"},
		{"disconnect", strings.Replace(wiki, "closed_as", "close_on_disconnect = true\nclosed_as", 1), rules.Iptables, "close_on_disconnect"},
		{"other machines", wiki + "[service.far]\nports = [\"23/tcp\"]\non = [\"10.0.0.5\"]\n", rules.Nftables, "stays as public as it is"},
		{"no way in", wiki + "[service.far]\nports = [\"23/tcp\"]\n", rules.Nftables, "service.far is hidden and nothing here opens it"},
		{"the same step twice", wiki + "[knock.twice]\ntype = \"sequence\"\nopens = [\"ssh\"]\nsequence = [\"7000/tcp\", \"7000/tcp\", \"9000/tcp\"]\n", rules.Iptables, "knock.twice is left out"},
		{"a mark", "[daemon]\ngrant_mark = 1\n" + wiki, rules.Iptables, "grant_mark"},
	} {
		got := strings.Join(rules.Limits(parse(t, c.text), c.kind), "\n")
		if c.want == "" && got != "" || !strings.Contains(got, c.want) {
			t.Errorf("%s: want %q in\n%s", c.name, c.want, got)
		}
	}
	for _, name := range []string{"ve+", `a\"b`, "-x", "ü"} {
		cfg := parse(t, "[daemon]\ninterfaces = [\""+name+"\"]\n"+wiki)
		_, nft := rules.NFT(cfg)
		_, iptables := rules.IPTables(cfg)
		if nft == nil || iptables == nil || !strings.Contains(strings.Join(rules.Limits(cfg, rules.Nftables), ""), "rename the interface") {
			t.Errorf("the interface %s would be read as something else: %v, %v", name, nft, iptables)
		}
	}
	none := parse(t, "[service.ssh]\nports = [\"22/tcp\"]\nallow = [\"10.0.0.0/8\"]\n")
	if text, err := rules.NFT(none); err == nil || text != "" {
		t.Error("nftables rules that only shut out")
	}
	if text, err := rules.IPTables(none); err == nil || text != "" {
		t.Error("iptables rules that only shut out")
	}
}
