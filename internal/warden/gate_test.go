//go:build linux

package warden

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/border"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/testnet"
	"github.com/sallyport/sallyport/internal/warden/internal/nft"
)

const gateConfig = `
[daemon]
max_grants = 16
[service.ssh]
ports = ["22/tcp"]
open_for = "30s"
max_open_for = "1m"
[service.mail]
ports = ["25/tcp", "993/tcp"]
[service.inner]
ports = ["80/tcp"]
on = ["198.51.100.5"]
[knock.front]
type = "sequence"
opens = ["ssh", "mail"]
sequence = ["7000/tcp", "8500/udp", "7800/tcp"]
[knock.side]
type = "sequence"
opens = ["ssh", "inner"]
sequence = ["9100/tcp", "8500/udp", "9800/tcp"]
`

// The rules of gateConfig by number.
const (
	frontSSH = iota
	frontMail
	sideSSH
	sideInner
)

// memory is a firewall that a test can look into. The table in a namespace is
// its twin: each test of the gate runs on both.
type memory struct {
	held map[nft.Element]time.Time // keyed with TTL and By empty
	by   map[nft.Element]string
	size int
	now  func() time.Time
}

func newMemory(size int, now func() time.Time) *memory {
	return &memory{held: map[nft.Element]time.Time{}, by: map[nft.Element]string{}, size: size, now: now}
}

func bare(e nft.Element) nft.Element { e.TTL, e.By = 0, ""; return e }

func (m *memory) Grant(list []nft.Element) error {
	for e, end := range m.held {
		if !end.After(m.now()) {
			delete(m.held, e)
		}
	}
	fresh := 0
	for _, e := range list {
		if _, ok := m.held[bare(e)]; !ok {
			fresh++
		}
	}
	if len(m.held)+fresh > m.size {
		return nft.ErrFull
	}
	for _, e := range list {
		m.held[bare(e)], m.by[bare(e)] = m.now().Add(e.TTL), e.By
	}
	return nil
}

func (m *memory) Revoke(list []nft.Element) error {
	for _, e := range list {
		delete(m.held, bare(e))
	}
	return nil
}

func (m *memory) Holds(e nft.Element) (bool, error) {
	return m.held[bare(e)].After(m.now()), nil
}

func (m *memory) Grants() ([]nft.Element, error) {
	var list []nft.Element
	for e, end := range m.held {
		e.TTL, e.By = end.Sub(m.now()), m.by[e]
		list = append(list, e)
	}
	return list, nil
}

// gateWorld is a gate with a clock of its own.
type gateWorld struct {
	*gate
	now time.Time
}

// worlds runs a test against the fake firewall and against the kernel's.
func worlds(t *testing.T, test func(t *testing.T, w *gateWorld)) {
	cfg, err := config.Parse("gate.toml", []byte(gateConfig))
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	t.Run("memory", func(t *testing.T) {
		w := &gateWorld{now: time.Now()}
		w.gate = newGate(newMemory(cfg.Daemon.MaxGrants, func() time.Time { return w.now }), false, log)
		w.use(cfg, 1, nil)
		test(t, w)
	})
	t.Run("kernel", func(t *testing.T) {
		ns := testnet.New(t)
		var table *nft.Table
		ns.Do(func() { table, err = nft.Open() })
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { table.Close() })
		if err := table.Apply(cfg, nft.Options{}); err != nil {
			t.Fatal(err)
		}
		w := &gateWorld{now: time.Now()}
		w.gate = newGate(table, false, log)
		w.use(cfg, 1, nil)
		test(t, w)
	})
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

var clients = []netip.Addr{addr("192.0.2.7"), addr("2001:db8::7")}

func (w *gateWorld) try(rule uint16, a netip.Addr, ttl time.Duration) *border.Done {
	return w.open(&border.Open{ID: 1, Generation: 1, Rule: rule, Addr: a, TTL: ttl}, w.now)
}

// held lists what the firewall holds for an address, "22/tcp front ~30s".
func (w *gateWorld) held(t *testing.T, a netip.Addr) string {
	t.Helper()
	elements, err := w.firewall.Grants()
	if err != nil {
		t.Fatal(err)
	}
	ports := map[uint16]string{}
	for _, e := range elements {
		if e.Addr == a && !e.Cut {
			ports[e.Port] = fmt.Sprintf("%d %s %v", e.Port, e.By, e.TTL.Round(10*time.Second))
		}
	}
	var out []string
	for _, p := range []uint16{22, 25, 80, 993} {
		if ports[p] != "" {
			out = append(out, ports[p])
		}
	}
	return strings.Join(out, ", ")
}

// Promise 1: what a wholly hijacked engine can ask for is what some rule opens.
func TestAHijackedEngineCanOpenOnlyWhatARuleOpens(t *testing.T) {
	worlds(t, func(t *testing.T, w *gateWorld) {
		for _, a := range clients {
			for name, c := range map[string]struct {
				m    border.Open
				want border.Result
			}{
				"a rule that is not there":          {border.Open{Generation: 1, Rule: 4, Addr: a, TTL: time.Second}, border.NoSuchRule},
				"longer than the service opens":     {border.Open{Generation: 1, Rule: frontSSH, Addr: a, TTL: 31 * time.Second}, border.TooLong},
				"under a config that is gone":       {border.Open{Generation: 2, Rule: frontSSH, Addr: a, TTL: time.Second}, border.Stale},
				"in an administrator's name":        {border.Open{Generation: 1, Rule: border.AnyRule, Addr: a, TTL: time.Second}, border.NoTicket},
				"with a ticket that was not issued": {border.Open{Generation: 1, Rule: border.AnyRule, Ticket: 7, Addr: a, TTL: time.Second}, border.NoTicket},
			} {
				if got := w.open(&c.m, w.now).Result; got != c.want {
					t.Errorf("%v, %s: %v, want %v", a, name, got, c.want)
				}
				if got := w.held(t, a); got != "" {
					t.Errorf("%v, %s: opened %s", a, name, got)
				}
			}
			if got := w.close(&border.Close{Generation: 1, Rule: border.AnyRule, Service: border.AnyService, Addr: a}, w.now).Result; got != border.NoTicket {
				t.Errorf("%v, a close in an administrator's name: %v", a, got)
			}
			// To look through all ports of all services is much work for one message.
			if got := w.close(&border.Close{Generation: 1, Rule: frontSSH, Service: border.AnyService, Addr: a}, w.now).Result; got != border.NoSuchRule {
				t.Errorf("%v, a close of every service by one's rule: %v", a, got)
			}
		}
		if got := w.try(sideInner, clients[1], time.Second).Result; got != border.WrongFamily {
			t.Errorf("an IPv6 source for an IPv4 destination: %v", got)
		}
	})
}

func TestOpenAndRefreshAndClose(t *testing.T) {
	worlds(t, func(t *testing.T, w *gateWorld) {
		for _, a := range clients {
			if got := w.try(frontMail, a, 30*time.Second); got.Result != border.Granted || !got.Until.Equal(w.now.Add(30*time.Second)) {
				t.Errorf("%v: %+v", a, got)
			}
			if got, want := w.held(t, a), "25 front 30s, 993 front 30s"; got != want {
				t.Errorf("%v: held %q, want %q", a, got, want)
			}
			// A refresh never shortens.
			if got := w.try(frontMail, a, time.Second); !got.Until.Equal(w.now.Add(30 * time.Second)) {
				t.Errorf("%v: a shorter refresh ends the grant at %v", a, got.Until)
			}
			if got, want := w.held(t, a), "25 front 30s, 993 front 30s"; got != want {
				t.Errorf("%v: after a shorter refresh held %q, want %q", a, got, want)
			}
			if got := w.close(&border.Close{Generation: 1, Rule: frontMail, Service: 1, Addr: a}, w.now); got.Result != border.Closed || got.Count != 1 {
				t.Errorf("%v: close: %+v", a, got)
			}
			if got := w.held(t, a); got != "" {
				t.Errorf("%v: after the close held %q", a, got)
			}
		}
	})
}

// A close ends only what its own knock opened.
func TestACloseLeavesWhatOthersAskedFor(t *testing.T) {
	worlds(t, func(t *testing.T, w *gateWorld) {
		for _, a := range clients {
			w.try(frontSSH, a, 30*time.Second)
			w.try(sideSSH, a, 10*time.Second)
			w.close(&border.Close{Generation: 1, Rule: frontSSH, Service: 0, Addr: a}, w.now)
			if got, want := w.held(t, a), "22 side 10s"; got != want {
				t.Errorf("%v: held %q, want %q", a, got, want)
			}
			if got := w.close(&border.Close{Generation: 1, Rule: frontSSH, Service: 0, Addr: a}, w.now); got.Count != 0 {
				t.Errorf("%v: a knock closed what another opened: %+v", a, got)
			}
		}
	})
}

func TestTicketsAreGoodForOneRequest(t *testing.T) {
	worlds(t, func(t *testing.T, w *gateWorld) {
		for i, a := range clients {
			ticket := uint32(i + 1)
			w.tickets.issue(ticket, w.now)
			open := &border.Open{Generation: 1, Rule: border.AnyRule, Service: 0, Ticket: ticket, Addr: a, TTL: time.Minute}
			if got := w.open(open, w.now).Result; got != border.Granted {
				t.Errorf("%v: %v", a, got)
			}
			if got, want := w.held(t, a), "22 the administrator 1m0s"; got != want {
				t.Errorf("%v: held %q, want %q", a, got, want)
			}
			if got := w.open(open, w.now).Result; got != border.NoTicket {
				t.Errorf("%v: a used ticket: %v", a, got)
			}
			w.tickets.issue(ticket, w.now)
			if got := w.open(open, w.now.Add(ticketLife+1)).Result; got != border.NoTicket {
				t.Errorf("%v: an old ticket: %v", a, got)
			}
			w.tickets.issue(ticket, w.now)
			if got := w.close(&border.Close{Generation: 1, Rule: border.AnyRule, Service: border.AnyService, Ticket: ticket, Addr: a}, w.now); got.Count != 1 {
				t.Errorf("%v: close: %+v", a, got)
			}
		}
	})
}

// Promise 4: a full set refuses the newcomer; nobody who is in is put out.
func TestAFullSetRefusesAndLosesNothing(t *testing.T) {
	worlds(t, func(t *testing.T, w *gateWorld) {
		a := netip.MustParseAddr("192.0.2.100")
		var in []netip.Addr
		for range 64 {
			a = a.Next()
			got := w.try(frontSSH, a, 30*time.Second).Result
			if got == border.Full {
				break
			}
			if got != border.Granted {
				t.Fatalf("%v: %v", a, got)
			}
			in = append(in, a)
		}
		if len(in) != 16 {
			t.Errorf("%d got in before the set was full, want 16", len(in))
		}
		if got := w.held(t, a); got != "" {
			t.Errorf("the refused address holds %q", got)
		}
		for _, a := range in {
			if w.held(t, a) == "" {
				t.Errorf("%v was put out", a)
			}
			if got := w.try(frontSSH, a, 30*time.Second).Result; got != border.Granted {
				t.Errorf("%v can't refresh in a full set: %v", a, got)
			}
		}
	})
}

func TestRateIsBounded(t *testing.T) {
	var r rate
	now := time.Now()
	took := 0
	for range 10 * opensPerSecond {
		if r.take(now, opensPerSecond) {
			took++
		}
	}
	if took != opensPerSecond {
		t.Errorf("%d at once, want %d", took, opensPerSecond)
	}
	if now = now.Add(time.Second / 2); !r.take(now, opensPerSecond) {
		t.Error("nothing after half a second")
	}
}

// After a restart the kernel's grants are taken over with who asked for them.
func TestAdoptTakesOverWhatTheKernelHolds(t *testing.T) {
	worlds(t, func(t *testing.T, w *gateWorld) {
		for _, a := range clients {
			w.try(frontSSH, a, 30*time.Second)
		}
		w.try(sideInner, clients[0], 30*time.Second)
		next := newGate(w.firewall, false, w.log)
		next.use(w.cfg, 1, nil)
		if n, err := next.adopt(w.now); n != 3 || err != nil {
			t.Errorf("adopted %d, %v", n, err)
		}
		for _, a := range clients {
			if got := next.close(&border.Close{Generation: 1, Rule: sideSSH, Service: 0, Addr: a}, w.now).Count; got != 0 {
				t.Errorf("%v: another knock closed an adopted grant", a)
			}
			if got := next.close(&border.Close{Generation: 1, Rule: frontSSH, Service: 0, Addr: a}, w.now).Count; got != 1 {
				t.Errorf("%v: its own knock could not close an adopted grant", a)
			}
		}
		if got := next.list(w.now); len(got.Grants) != 1 || got.Grants[0].Service != "inner" {
			t.Errorf("left: %+v", got)
		}
	})
}

// A firewall that takes long answers later, and meanwhile nobody shortens what is being
// opened; what fails is forgotten, but for what was there before.
func TestAGrantThatTakesLong(t *testing.T) {
	worlds(t, func(t *testing.T, w *gateWorld) {
		outcome := make(chan error)
		w.opened = make(chan opening)
		w.begin = func(list []nft.Element) (func() error, error) {
			return func() error { return <-outcome }, w.firewall.Grant(list)
		}
		for _, a := range clients {
			began := func(rule uint16, ttl time.Duration) {
				t.Helper()
				if got := w.try(rule, a, ttl); got != nil {
					t.Fatalf("%v: answered %v", a, got)
				}
			}
			ends := func(err error, want border.Result) {
				t.Helper()
				outcome <- err
				if got := w.finish(<-w.opened, w.now); got.Result != want || got.Until.IsZero() == (want == border.Granted) {
					t.Errorf("%v: %v until %v, want %v", a, got.Result, got.Until, want)
				}
			}
			began(frontSSH, 30*time.Second)
			began(sideSSH, 10*time.Second)
			if got := w.held(t, a); got != "22 front 30s" {
				t.Errorf("%v: meanwhile it holds %s", a, got)
			}
			ends(nil, border.Granted)
			ends(nil, border.Granted)
			began(frontSSH, 20*time.Second)
			ends(errors.New("no"), border.Failed)
			began(frontMail, 20*time.Second)
			ends(errors.New("no"), border.Failed)
			if w.grants.end(grantKey{addr: a, service: "ssh"}).by != "front" || len(w.grants[grantKey{addr: a, service: "mail"}]) > 0 {
				t.Errorf("%v: the book has %v", a, w.grants)
			}
		}
	})
}
