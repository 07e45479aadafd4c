//go:build linux

package engine

import (
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/border"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/control"
	"github.com/sallyport/sallyport/internal/engine/internal/knock"
	"github.com/sallyport/sallyport/internal/engine/internal/policy"
)

// A network that was let in is told with its mask: else it looks like one address.
func TestEventOfANetwork(t *testing.T) {
	cfg, err := config.Parse("network.toml", []byte(`
[service.ssh]
ports = ["22/tcp"]
[knock.front]
type = "sequence"
opens = ["ssh"]
sequence = ["7211/tcp", "8533/udp", "7877/tcp"]
`))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/56")} {
		for _, result := range []border.Result{border.Granted, border.Full} {
			w := newPretended(cfg)
			e := New(w, [2]int{-1, -1}, slog.Default())
			e.cfg = cfg
			var last control.Event
			e.Tell(func(ev control.Event) { last = ev })
			asks, inside, outside := netip.MustParseAddr("203.0.113.9"), p.Addr().Next(), p.Addr().Prev()
			told := map[netip.Addr]int{}
			e.Explain([]netip.Addr{inside, asks, outside, asks}, func(src netip.Addr, ev control.Event) {
				if ev.What == last.What {
					told[src]++
				}
			})
			grant := policy.Grant{Rule: cfg.Rules()[0], Addr: p.Addr(), Bits: p.Bits(), TTL: time.Minute}
			e.knock(&knock.Outcome{Claim: policy.Claim{Source: asks}, Grants: []policy.Grant{grant}})
			for _, m := range w.take() {
				e.Done(&border.Done{ID: m.(*border.Open).ID, Result: result})
			}
			if last.Service != "ssh" || last.Who() != p.String() {
				t.Errorf("%v: %+v, want %v", result, last, p)
			}
			if told[asks] != 2 || told[inside] != 1 || told[outside] != 0 { // who asked hears of the knock too
				t.Errorf("%v of %v: told %v", result, p, told)
			}
		}
	}
}
