//go:build linux

package warden

import (
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/border"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/testnet"
	"github.com/sallyport/sallyport/internal/warden/internal/nft"
)

// out counts the ports that an address is kept out of.
func (w *gateWorld) out(t *testing.T, a netip.Addr) (n int) {
	t.Helper()
	list, err := w.firewall.Grants()
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		if e.Cut && e.Addr == a {
			n++
		}
	}
	return n
}

// shut is the administrator's close --cut of one service.
func (w *gateWorld) shut(g *gate, service uint16, a netip.Addr) *border.Done {
	g.tickets.issue(1, w.now)
	return g.close(&border.Close{Generation: g.generation, Rule: border.AnyRule, Service: service, Ticket: 1, Cut: true, Addr: a}, w.now)
}

func TestWhatIsCutIsKeptOutUntilItIsLetIn(t *testing.T) {
	const mail, inner = 1, 2
	worlds(t, func(t *testing.T, w *gateWorld) {
		w.cut = func(list []live) (int, error) { return 3 * len(list), nil }
		for _, a := range clients {
			w.try(frontMail, a, 30*time.Second)
			if got := w.shut(w.gate, mail, a); got.Result != border.Closed || got.Count != 1 || got.Cut != 3 {
				t.Errorf("%v: %+v", a, got)
			}
			if got := w.out(t, a); got != 2 {
				t.Errorf("%v is kept out of %d ports, want 2", a, got)
			}
			// Another service's grant changes nothing, the same service's does.
			w.try(frontSSH, a, 30*time.Second)
			if got := w.out(t, a); got != 2 {
				t.Errorf("%v: another grant left %d of 2", a, got)
			}
			if got := w.list(w.now).Grants; len(got) == 0 || got[len(got)-1].Service != "ssh" || strings.Contains(w.held(t, a), "25 ") {
				t.Errorf("%v: listed %v, held %q", a, got, w.held(t, a))
			}
		}
		// The next daemon reads what is kept out, and a table made anew gets it.
		next := newGate(w.firewall, false, w.log)
		next.use(w.cfg, 1, nil)
		next.cut = w.cut
		if n, err := next.adopt(w.now); n != 2 || err != nil {
			t.Errorf("adopted %d grants, %v", n, err)
		}
		list, err := w.firewall.Grants()
		if err == nil {
			err = w.firewall.Revoke(list)
		}
		if err != nil {
			t.Fatal(err)
		}
		next.restore(w.now)
		for _, a := range clients {
			if got, held := w.out(t, a), w.held(t, a); got != 2 || !strings.HasPrefix(held, "22 front") {
				t.Errorf("%v: of a table made anew: kept out of %d, held %q", a, got, held)
			}
			m := &border.Open{Generation: 1, Rule: frontMail, Addr: a, TTL: 30 * time.Second}
			if got := next.open(m, w.now).Result; got != border.Granted {
				t.Errorf("%v: %v", a, got)
			}
			if got := w.out(t, a); got != 0 || len(next.cuts) != 2*(len(clients)-1) && a == clients[0] {
				t.Errorf("%v: let in again, and kept out of %d; %d remembered", a, got, len(next.cuts))
			}
		}
		// A destination has a family.
		for i, a := range clients {
			if got := w.shut(next, inner, a); got.Result != border.Closed || w.out(t, a) != 1-i {
				t.Errorf("%v: %+v, kept out of %d", a, got, w.out(t, a))
			}
		}
		// What is no service's any more is forgotten, else a table that was made
		// anew would not take it.
		w.shut(next, mail, clients[1])
		less := *w.cfg
		less.Services, less.Knocks = less.Services[:inner], nil
		next.use(&less, 2, nil)
		if got := len(next.cuts); got != 2 {
			t.Errorf("%d remembered, want those of mail", got)
		}
		next.cuts.elements(w.now.Add(cutFor))
		if got := len(next.cuts); got != 0 {
			t.Errorf("%d remembered for ever", got)
		}
	})
}

// Who may come in by another's grant begins connections that outlive it.
func TestWhoMayComeInIsNotKeptOut(t *testing.T) {
	keyWorlds(t, func(t *testing.T, w *gateWorld) {
		w.cut = func(list []live) (int, error) { return len(list), nil }
		for _, a := range clients {
			w.tryKey(keysSSH, plainKey, a, 30*time.Second)
			w.tryKey(keysMail, plainKey, a, 30*time.Second)
			w.tryKey(keysSSH, fromKey, a, 20*time.Second)
		}
		w.tickets.issue(1, w.now)
		f := w.keys[2].Authorized[plainKey-1].Public.Fingerprint()
		if got := w.closeKey(&border.CloseKey{Ticket: 1, Fingerprint: f, Cut: true}, w.now); got.Result != border.Closed || got.Count != 4 || got.Cut != 2 {
			t.Errorf("%+v", got)
		}
		for _, a := range clients {
			if got := w.out(t, a); got != 2 {
				t.Errorf("%v is kept out of %d ports, want those of mail", a, got)
			}
		}
	})
}

// full is a firewall without room.
type full struct{ firewall }

func (full) Grant([]nft.Element) error { return nft.ErrFull }

// counting is a firewall that takes so many batches, and says how large they
// were.
type counting struct {
	firewall
	takes   int
	batches *[]int
}

func (c counting) Grant(list []nft.Element) error {
	if *c.batches = append(*c.batches, len(list)); len(*c.batches) > c.takes {
		return nft.ErrFull
	}
	return c.firewall.Grant(list)
}

// A key that came in at thousands of addresses, which it only had to state, must
// not have us build more than the kernel holds.
func TestWhatIsKeptOutIsBounded(t *testing.T) {
	cfg, err := config.Parse("gate.toml", []byte("[service.range]\nports = [\"10000-11023/tcp\"]\n"+
		"[knock.keys]\ntype = \"spa\"\nopens = [\"range\"]\nkey = \"/k\"\nauthorized_keys = \"/a\"\n"))
	if err != nil {
		t.Fatal(err)
	}
	const ports, many = 1024, 3000
	for _, a := range clients {
		worlds(t, func(t *testing.T, w *gateWorld) {
			switch firewall := w.firewall.(type) {
			case *nft.Table:
				if err := firewall.Apply(cfg, nft.Options{}); err != nil {
					t.Fatal(err)
				}
			case *memory:
				firewall.size = nft.MinCuts
			}
			var said testnet.Output
			w.log = slog.New(slog.NewTextHandler(&said, nil))
			keys := []border.Keys{{Authorized: parseKeys(t, publicLine(1))}}
			w.use(cfg, 1, keys)
			w.cut = func(list []live) (int, error) { return len(list), nil }
			f := keys[0].Authorized[0].Public.Fingerprint()
			fill := func() {
				for i := range many {
					w.entries.add(entry{grantKey{addr: stated(a, i), service: "range"}, byKey("keys", f)}, cfg.Daemon.MaxGrants)
				}
			}
			var batches []int
			kernel := w.firewall
			shut := func() *border.Done {
				batches = nil
				w.tickets.issue(1, w.now)
				return w.closeKey(&border.CloseKey{Ticket: 1, Fingerprint: f, Cut: true}, w.now)
			}

			// What the kernel did not take is not remembered, and it is not asked on.
			w.firewall = counting{kernel, 2, &batches}
			fill()
			if got := shut(); got.Result != border.Failed || len(batches) != 3 || len(w.cuts) != 2*nft.Batch {
				t.Errorf("%v: %v, %d batches, %d remembered", a, got.Result, len(batches), len(w.cuts))
			}
			if list, err := kernel.Grants(); err != nil || len(list) != len(w.cuts) {
				t.Errorf("%v: the kernel has %d, %v", a, len(list), err)
			}

			w.firewall = counting{kernel, many, &batches}
			begin := time.Now()
			got := shut()
			took := time.Since(begin)
			if got.Result != border.Failed || got.Cut != many || slices.Max(batches) > nft.Batch {
				t.Errorf("%v: %+v, batches of %v", a, got, batches)
			}
			if n := len(w.cuts); n > nft.MinCuts || n < nft.MinCuts-ports-2*nft.Batch {
				t.Errorf("%v: %d remembered", a, n)
			}
			if !strings.Contains(said.String(), "of 3000 addresses and services can come back") {
				t.Errorf("%v: said\n%s", a, said.String())
			}
			if took > 10*time.Second {
				t.Errorf("%v: nobody else was served for %v", a, took)
			}
			t.Logf("%v: %d elements in %v", a, len(w.cuts), took)
		})
	}
}

func TestACutThatIsHalfDoneSaysSo(t *testing.T) {
	worlds(t, func(t *testing.T, w *gateWorld) {
		var fails error
		w.cut = func(list []live) (int, error) { return 1, fails }
		for _, a := range clients {
			fails = errors.New("no")
			if got := w.shut(w.gate, 0, a); got.Result != border.Failed || got.Cut != 1 || w.out(t, a) != 1 {
				t.Errorf("%v, conntrack refused: %+v, kept out of %d", a, got, w.out(t, a))
			}
			fails = nil
			firewall := w.firewall
			w.firewall = full{firewall}
			if got := w.shut(w.gate, 1, a); got.Result != border.Failed || got.Cut != 1 {
				t.Errorf("%v, no room: %+v", a, got)
			}
			w.firewall = firewall
		}
		if table, ok := w.firewall.(*nft.Table); ok {
			if err := table.Down(); err != nil {
				t.Fatal(err)
			}
			for _, a := range clients {
				if got := w.shut(w.gate, 0, a); got.Result != border.Closed || got.Cut != 1 {
					t.Errorf("%v, nothing is hidden: %+v", a, got)
				}
			}
		}
	})
}
