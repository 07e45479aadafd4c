package nft

import (
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/config"
)

// full makes a world whose sets of grants are full.
func full(t testing.TB, cfg *config.Config) *world {
	w := newWorld(t)
	cfg.Daemon.MaxGrants = 65536
	w.apply(cfg, Options{})
	var many []Element
	for _, p := range pairs {
		addr := p.stranger
		for range cfg.Daemon.MaxGrants {
			addr = addr.Next()
			many = append(many, tcp(addr, 22, time.Hour))
		}
	}
	w.grant(many...)
	return w
}

// TestListFull: the warden answers nobody while it lists, so a full set must
// not take it seconds. The usual small messages are what it is measured by.
func TestListFull(t *testing.T) {
	t.Parallel()
	w := full(t, guarding(config.Drop, "22/tcp"))
	start := time.Now()
	got := w.grants()
	ours := time.Since(start)
	seen := map[target]bool{}
	for _, e := range got {
		seen[e.target()] = e.TTL > 55*time.Minute && e.By == "test"
	}
	for target, whole := range seen {
		if !whole {
			t.Fatalf("%v lost its time or who asked", target)
		}
	}
	if len(seen) != 2*65536 {
		t.Errorf("%d grants are listed, want %d", len(seen), 2*65536)
	}
	start = time.Now()
	for _, f := range families {
		if _, err := w.table.conn.GetSetElements(kind{family: f}.grantSet(0)); err != nil {
			t.Fatal(err)
		}
	}
	usual := time.Since(start)
	t.Logf("%d grants listed in %v, by small messages in %v", len(got), ours, usual)
	if ours > usual/2 {
		t.Errorf("a listing took %v, and %v by small messages", ours, usual)
	}
}

// TestApplyListsOnlyIfItMust: what an ordinary reload does not need to know it
// does not ask for. A grant for a port that was never hidden shows whether
// Apply looked.
func TestApplyListsOnlyIfItMust(t *testing.T) {
	t.Parallel()
	stray := tcp(stranger4, 99, time.Hour)
	away := service(config.Drop, "22/tcp")
	on := away
	for _, p := range pairs {
		stray.Addr = p.stranger
		for name, c := range map[string]struct {
			change func(*config.Config)
			looks  bool
		}{
			"the same":           {func(*config.Config) {}, false},
			"another port":       {func(c *config.Config) { c.Services = append(c.Services, service(config.Drop, "24/tcp")) }, false},
			"another look":       {func(c *config.Config) { c.Services[0].ClosedAs = config.Reject }, false},
			"fewer ports":        {func(c *config.Config) { c.Services[0].Ports = c.Services[0].Ports[:1] }, true},
			"fewer destinations": {func(c *config.Config) { c.Services[1].On = c.Services[1].On[:1] }, true},
			"another size":       {func(c *config.Config) { c.Daemon.MaxGrants = 99 }, true},
		} {
			w := newWorld(t)
			cfg := func() *config.Config {
				on.On = append(on.On[:0:0], away4, away6)
				c := guarding(config.Drop, "22/tcp", "23/tcp")
				c.Services = append(c.Services, on)
				return c
			}
			w.apply(cfg(), Options{})
			w.grant(stray, tcp(p.stranger, 22, time.Hour))
			changed := cfg()
			c.change(changed)
			w.apply(changed, Options{})
			if looked := w.left(stray) == 0; looked != c.looks {
				t.Errorf("%s %s: the grants were looked at: %v", p.name, name, looked)
			}
			if w.left(tcp(p.stranger, 22, 0)) == 0 {
				t.Errorf("%s %s: a grant was lost", p.name, name)
			}
		}
	}
}

// BenchmarkReload measures a reload beside full sets of grants.
func BenchmarkReload(b *testing.B) {
	cfg := guarding(config.Drop, "22/tcp")
	w := full(b, cfg)
	for b.Loop() {
		w.apply(cfg, Options{})
	}
}
