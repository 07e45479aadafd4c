package policy_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/engine/internal/policy"
)

// What signed requests are good for stands in package knock's tests, with real
// datagrams.
func TestASequenceOpensAllThatItSays(t *testing.T) {
	cfg, err := config.Parse("policy.toml", []byte(`
[service.ssh]
ports = ["22/tcp"]
[service.web]
ports = ["80/tcp"]
open_for = "10s"
[knock.back]
type = "sequence"
opens = ["web"]
sequence = ["7311/tcp", "8633/udp", "7977/tcp"]
[knock.front]
type = "sequence"
opens = ["web", "ssh"]
sequence = ["7211/tcp", "8533/udp", "7877/tcp"]
`))
	if err != nil {
		t.Fatal(err)
	}
	p := policy.New(cfg)
	for _, src := range []netip.Addr{netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8::7")} {
		want := []policy.Grant{{Number: 1, Rule: config.Rule{Knock: 1, Service: 1, Action: config.None}, Addr: src, TTL: 10 * time.Second}, {Number: 2, Rule: config.Rule{Knock: 1, Service: 0, Action: config.None}, Addr: src, TTL: 30 * time.Second}}
		got, why := p.Decide(policy.Claim{Knock: 1, Source: src}, time.Now())
		if d := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{})); d != "" || why != policy.Good {
			t.Errorf("%v: %s\n%s", src, why, d)
		}
	}
}

// Only a forger sends from these.
func TestNobodyConnectsFromThere(t *testing.T) {
	cfg, err := config.Parse("policy.toml", []byte("[service.ssh]\nports = [\"22/tcp\"]\n[knock.a]\ntype = \"sequence\"\nopens = [\"ssh\"]\nsequence = [\"7211/tcp\", \"8533/udp\"]\n"))
	if err != nil {
		t.Fatal(err)
	}
	for _, src := range []string{"0.0.0.0", "::", "127.0.0.1", "::1", "224.0.0.1", "ff02::1", "255.255.255.255"} {
		if got, why := policy.New(cfg).Decide(policy.Claim{Source: netip.MustParseAddr(src)}, time.Now()); why != policy.NotUnicast {
			t.Errorf("%s: %v, %q", src, got, why)
		}
	}
	if _, why := policy.New(cfg).Decide(policy.Claim{}, time.Now()); why != policy.NotUnicast {
		t.Errorf("no address: %q", why)
	}
}
