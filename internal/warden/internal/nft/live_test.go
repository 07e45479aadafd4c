package nft

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/config"
)

// TestLive: the connections are asked for only where a guarded port has a
// listener that strangers can tell from a connection by its bound address.
func TestLive(t *testing.T) {
	t.Parallel()
	cfg := guarding(config.Auto, "22/tcp", "25/udp")
	away := service(config.Auto, "26/tcp")
	away.On = []netip.Addr{away4, away6}
	cfg.Services = append(cfg.Services, away)
	for _, p := range pairs {
		loopback := map[bool]string{true: "127.0.0.1", false: "::1"}[p.host.Is4()]
		for _, c := range []struct {
			name, addr string
			port       uint16
			want       int // connections, or -1 for nil
		}{
			{"all addresses", "", 22, -1},
			{"loopback", loopback, 22, -1},
			{"one address", p.host.String(), 22, 1},
			{"one address, a port that is not guarded", p.host.String(), 23, -1},
			{"one address, guarded for udp", p.host.String(), 25, -1},
			{"one address, guarded elsewhere", p.host.String(), 26, -1},
		} {
			w := newWorld(t)
			server := acceptOne(t, w.host, c.addr, c.port)
			client, to, from := w.out, p.host, p.stranger
			if c.addr == loopback {
				to = netip.MustParseAddr(loopback)
				client, from = w.host, to
			}
			conn, err := server.dial(client, from, to)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			<-server.accepted
			var got []Connection
			w.host.Do(func() { got, err = Live(cfg) })
			if err != nil {
				t.Fatal(err)
			}
			remote := Connection{netip.MustParseAddrPort(conn.LocalAddr().String()), netip.AddrPortFrom(p.host, 22)}
			if (got == nil) != (c.want < 0) || got != nil && (len(got) != c.want || !slices.Contains(got, remote)) {
				t.Errorf("%s %s: %v", p.name, c.name, got)
			}
		}
	}
}

// TestLiveNone: a bound listener without connections still rules the socket
// rule out.
func TestLiveNone(t *testing.T) {
	t.Parallel()
	for _, p := range pairs {
		w := newWorld(t)
		acceptOne(t, w.host, p.host.String(), 22)
		cfg := guarding(config.Drop, "22/tcp")
		var live []Connection
		var err error
		w.host.Do(func() { live, err = Live(cfg) })
		if err != nil || live == nil || len(live) != 0 {
			t.Fatalf("%s: %v, %v", p.name, live, err)
		}
		w.apply(cfg, Options{Live: live})
		expect(t, p.name+" ACK probe", ackProbe(w, p.stranger, p.host), silent)
	}
}

// TestManyLive: a busy host has tens of thousands of connections.
func TestManyLive(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var live []Connection
	for i := range 60_000 {
		for _, p := range pairs {
			live = append(live, Connection{netip.AddrPortFrom(p.stranger, uint16(i+1)), netip.AddrPortFrom(p.host, 22)})
		}
	}
	start := time.Now()
	w.apply(guarding(config.Drop, "22/tcp"), Options{Live: live})
	t.Logf("%d connections in %v", len(live), time.Since(start))
	elements, err := w.table.conn.GetSetElements(liveSet(families[0], nil).Set)
	if err != nil || len(elements) != 60_000 {
		t.Errorf("%d elements, %v", len(elements), err)
	}
}

// BenchmarkGrant measures one grant and one refresh, as a knock makes them, in
// a set that holds 10,000 others.
func BenchmarkGrant(b *testing.B) {
	w := newWorld(b)
	cfg := guarding(config.Drop, "22/tcp")
	cfg.Daemon.MaxGrants = 65536
	w.apply(cfg, Options{})
	var many []Element
	addr := stranger4
	for range 10_000 {
		addr = addr.Next()
		many = append(many, tcp(addr, 22, time.Hour))
	}
	w.grant(many...)
	for b.Loop() {
		w.grant(tcp(stranger4, 22, time.Minute))
	}
}

// BenchmarkApply measures a reload.
func BenchmarkApply(b *testing.B) {
	w := newWorld(b)
	for b.Loop() {
		w.apply(guarding(config.Auto, "22/tcp"), Options{})
	}
}
