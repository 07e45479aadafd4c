//go:build linux

package warden

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/authorized"
	"github.com/sallyport/sallyport/internal/border"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/testnet"
	"github.com/sallyport/sallyport/internal/warden/internal/nft"
)

var keysConfig = strings.Replace(gateConfig, "max_grants = 16", "max_grants = 64", 1) + `
[knock.keys]
type = "spa"
opens = ["ssh", "inner", "mail"]
key = "/etc/sallyport/keys.key"
authorized_keys = "/etc/sallyport/keys"
[knock.a2345678901234567890123456789012]
type = "spa"
opens = ["ssh"]
key = "/etc/sallyport/other.key"
authorized_keys = "/etc/sallyport/other"
`

// The rules of keysConfig behind those of gateConfig.
const (
	keysSSH = sideInner + 1 + iota
	keysInner
	keysMail
	otherSSH
)

// The keys of knock.keys, by number.
const (
	plainKey = 1 + iota
	lateKey
	earlyKey
	mailKey
	fromKey
	briefKey
)

// publicLine is the authorized_keys form of the n-th key.
func publicLine(n int) string {
	seed := make([]byte, ed25519.SeedSize)
	binary.BigEndian.PutUint32(seed, uint32(n))
	public := ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey)
	blob := []byte("\x00\x00\x00\x0bssh-ed25519\x00\x00\x00\x20" + string(public))
	return fmt.Sprintf("ssh-ed25519 %s user%d", base64.StdEncoding.EncodeToString(blob), n)
}

func parseKeys(t *testing.T, lines ...string) []authorized.Key {
	t.Helper()
	list, bad := authorized.Parse([]byte(strings.Join(lines, "\n")))
	if len(bad) > 0 {
		t.Fatal(bad)
	}
	return list
}

// keyWorlds is worlds with keysConfig.
func keyWorlds(t *testing.T, test func(t *testing.T, w *gateWorld)) {
	cfg, err := config.Parse("gate.toml", []byte(keysConfig))
	if err != nil {
		t.Fatal(err)
	}
	worlds(t, func(t *testing.T, w *gateWorld) {
		switch firewall := w.firewall.(type) {
		case *nft.Table:
			if err := firewall.Apply(cfg, nft.Options{}); err != nil {
				t.Fatal(err)
			}
		case *memory:
			firewall.size = cfg.Daemon.MaxGrants
		}
		list := make([]border.Keys, len(cfg.Knocks))
		list[2].Authorized = parseKeys(t,
			publicLine(plainKey),
			`not-before="20990101Z" `+publicLine(lateKey),
			`expiry-time="20200101Z" `+publicLine(earlyKey),
			`services="mail" `+publicLine(mailKey),
			`from="192.0.2.0/28,2001:db8::/124" `+publicLine(fromKey),
			`max-time="10s" `+publicLine(briefKey))
		list[3].Authorized = parseKeys(t, publicLine(plainKey))
		w.use(cfg, 2, list)
		test(t, w)
	})
}

func (w *gateWorld) tryKey(rule, key uint16, a netip.Addr, ttl time.Duration) *border.Done {
	return w.open(&border.Open{ID: 1, Generation: 2, Rule: rule, Key: key, Addr: a, TTL: ttl}, w.now)
}

func (w *gateWorld) fingerprint(key int) string {
	f := w.keys[2].Authorized[key-1].Public.Fingerprint()
	return f.String()
}

// Promise 1: keys take nothing from what holds a hijacked engine.
func TestAHijackedEngineCanOpenOnlyWhatAKeyMay(t *testing.T) {
	keyWorlds(t, func(t *testing.T, w *gateWorld) {
		outside := map[netip.Addr]netip.Addr{clients[0]: addr("192.0.2.99"), clients[1]: addr("2001:db8::99")}
		for _, a := range clients {
			for _, c := range []struct {
				name   string
				rule   uint16
				key    uint16
				addr   netip.Addr
				ttl    time.Duration
				extend bool
				want   border.Result
			}{
				{"no key", keysSSH, border.NoKey, a, time.Second, false, border.NoSuchKey},
				{"a key for a sequence", frontSSH, plainKey, a, time.Second, false, border.NoSuchKey},
				{"a number behind the last", keysSSH, briefKey + 1, a, time.Second, false, border.NoSuchKey},
				{"the last number", keysSSH, 0xffff, a, time.Second, false, border.NoSuchKey},
				{"a number of another knock's", otherSSH, plainKey + 1, a, time.Second, false, border.NoSuchKey},
				{"a rule that is not there", otherSSH + 1, plainKey, a, time.Second, false, border.NoSuchRule},
				{"before its time", keysSSH, lateKey, a, time.Second, false, border.NotAllowed},
				{"behind its time", keysSSH, earlyKey, a, time.Second, false, border.NotAllowed},
				{"another service", keysSSH, mailKey, a, time.Second, false, border.NotAllowed},
				{"another address", keysSSH, fromKey, outside[a], time.Second, false, border.NotAllowed},
				{"above max_open_for", keysSSH, plainKey, a, time.Minute + 1, false, border.TooLong},
				{"above max-time", keysSSH, briefKey, a, 10*time.Second + 1, false, border.TooLong},
				{"nothing to extend", keysSSH, plainKey, a, time.Second, true, border.NothingToExtend},
			} {
				m := &border.Open{Generation: 2, Rule: c.rule, Key: c.key, Addr: c.addr, TTL: c.ttl, Extend: c.extend}
				if got := w.open(m, w.now).Result; got != c.want {
					t.Errorf("%v, %s: %v, want %v", a, c.name, got, c.want)
				}
				if got := w.held(t, c.addr); got != "" {
					t.Errorf("%v, %s: opened %s", a, c.name, got)
				}
			}
			if got := w.close(&border.Close{Generation: 2, Rule: keysSSH, Addr: a}, w.now).Result; got != border.NoSuchKey {
				t.Errorf("%v, a close without a key: %v", a, got)
			}
			if got := w.close(&border.Close{Generation: 2, Rule: keysSSH, Key: 99, Addr: a}, w.now).Result; got != border.NoSuchKey {
				t.Errorf("%v, a close with a number that is not there: %v", a, got)
			}
		}
		if got := w.tryKey(keysInner, plainKey, clients[1], time.Second).Result; got != border.WrongFamily {
			t.Errorf("an IPv6 source for an IPv4 destination: %v", got)
		}
	})
}

func TestAKeyOpensExtendsAndClosesItsOwn(t *testing.T) {
	keyWorlds(t, func(t *testing.T, w *gateWorld) {
		for _, a := range clients {
			// Longer than open_for, which is a sequence's bound alone.
			if got := w.tryKey(keysSSH, plainKey, a, time.Minute); got.Result != border.Granted {
				t.Errorf("%v: %v", a, got.Result)
			}
			if got := w.tryKey(keysSSH, briefKey, a, 10*time.Second); got.Result != border.Granted {
				t.Errorf("%v: %v", a, got.Result)
			}
			if got, want := w.held(t, a), "22 keys "+w.fingerprint(plainKey)+" 1m0s"; got != want {
				t.Errorf("%v: held %q, want %q", a, got, want)
			}
			extend := func(key uint16) border.Result {
				return w.open(&border.Open{Generation: 2, Rule: keysSSH, Key: key, Addr: a, TTL: 5 * time.Second, Extend: true}, w.now).Result
			}
			if got := extend(briefKey); got != border.Granted {
				t.Errorf("%v: extending: %v", a, got)
			}
			if got := extend(fromKey); got != border.NothingToExtend {
				t.Errorf("%v: extending what others opened: %v", a, got)
			}
			shut := &border.Close{Generation: 2, Rule: keysSSH, Service: 0, Key: plainKey, Addr: a}
			if got := w.close(shut, w.now); got.Result != border.Closed || got.Count != 1 {
				t.Errorf("%v: close: %+v", a, got)
			}
			if got, want := w.held(t, a), "22 keys "+w.fingerprint(briefKey)+" 10s"; got != want {
				t.Errorf("%v: held %q, want %q", a, got, want)
			}
			if got := w.close(shut, w.now); got.Count != 0 {
				t.Errorf("%v: a key closed what another opened: %+v", a, got)
			}
			if got := extend(plainKey); got != border.NothingToExtend {
				t.Errorf("%v: extending what is closed: %v", a, got)
			}
			w.now = w.now.Add(11 * time.Second)
			if got := extend(briefKey); got != border.NothingToExtend {
				t.Errorf("%v: extending what has ended: %v", a, got)
			}
		}
	})
}

// The name of a key is the longest that the kernel is to keep, and it is read
// back whole.
func TestAdoptTakesOverKeys(t *testing.T) {
	keyWorlds(t, func(t *testing.T, w *gateWorld) {
		for _, a := range clients {
			w.tryKey(otherSSH, plainKey, a, 30*time.Second)
		}
		next := newGate(w.firewall, false, w.log)
		next.use(w.cfg, 2, w.keys)
		if n, err := next.adopt(w.now); n != 2 || err != nil {
			t.Fatalf("%d grants, %v", n, err)
		}
		for _, a := range clients {
			m := &border.Open{Generation: 2, Rule: otherSSH, Key: plainKey, Addr: a, TTL: time.Minute, Extend: true}
			if got := next.open(m, w.now).Result; got != border.Granted {
				t.Errorf("%v: extending behind a restart: %v", a, got)
			}
		}
		next.tickets.issue(1, w.now)
		f := w.keys[3].Authorized[0].Public.Fingerprint()
		if got := next.closeKey(&border.CloseKey{Ticket: 1, Fingerprint: f}, w.now); got.Count != 2 {
			t.Errorf("close by key behind a restart: %+v", got)
		}
	})
}

// stubborn is a firewall that lets nobody close one port.
type stubborn struct {
	firewall
	port uint16
}

func (s stubborn) Revoke(list []nft.Element) error {
	if slices.ContainsFunc(list, func(e nft.Element) bool { return e.Port == s.port }) {
		return errors.New("no")
	}
	return s.firewall.Revoke(list)
}

func TestCloseByKey(t *testing.T) {
	keyWorlds(t, func(t *testing.T, w *gateWorld) {
		f := w.keys[2].Authorized[plainKey-1].Public.Fingerprint()
		var cut []live
		w.cut = func(list []live) (int, error) { cut = list; return len(list), nil }
		shut := func(ticket uint32, cut bool) *border.Done {
			return w.closeKey(&border.CloseKey{ID: 9, Ticket: ticket, Fingerprint: f, Cut: cut}, w.now)
		}
		fill := func() {
			for _, a := range clients {
				w.tryKey(keysSSH, plainKey, a, 30*time.Second)
				w.tryKey(otherSSH, plainKey, a, 40*time.Second)
				w.tryKey(keysMail, plainKey, a, 30*time.Second)
				w.tryKey(keysSSH, fromKey, a, 20*time.Second)
			}
		}
		fill()
		for name, ticket := range map[string]uint32{"none": 0, "one that was not issued": 5} {
			if got := shut(ticket, true).Result; got != border.NoTicket || cut != nil {
				t.Errorf("ticket: %s: %v, cut %v", name, got, cut)
			}
		}
		w.tickets.issue(1, w.now)
		if got := shut(1, false); got.Result != border.Closed || got.Count != 6 || cut != nil || got.ID != 9 {
			t.Errorf("%+v, cut %v", got, cut)
		}
		for _, a := range clients {
			if got, want := w.held(t, a), "22 keys "+w.fingerprint(fromKey)+" 20s"; got != want {
				t.Errorf("%v: held %q, want %q", a, got, want)
			}
		}
		if got := shut(1, true).Result; got != border.NoTicket {
			t.Errorf("a used ticket: %v", got)
		}

		// A failed removal stops none of the others, whatever their order is.
		fill()
		firewall := w.firewall
		w.firewall = stubborn{firewall, 993}
		w.tickets.issue(2, w.now)
		if got := shut(2, false); got.Result != border.Failed || got.Count != 4 {
			t.Errorf("with a failed removal: %+v", got)
		}
		w.firewall = firewall

		// Connections outlive grants, and so does the memory of whose they are. Those
		// of ssh are another key's too.
		w.now = w.now.Add(time.Hour)
		w.grants.forget(w.now)
		w.tickets.issue(3, w.now)
		if got := shut(3, true); got.Result != border.Closed || got.Count != 0 || len(cut) != 2 {
			t.Errorf("%+v, cut %v", got, cut)
		}
		cut = nil
		w.tickets.issue(4, w.now)
		if got := shut(4, true); got.Count != 0 || cut != nil {
			t.Errorf("the second time: %+v, cut %v", got, cut)
		}
	})
}

func TestTheAdministratorCuts(t *testing.T) {
	keyWorlds(t, func(t *testing.T, w *gateWorld) {
		for _, a := range clients {
			var cut []live
			var fails error
			w.cut = func(list []live) (int, error) { cut = list; return 0, fails }
			m := &border.Close{Generation: 2, Rule: border.AnyRule, Service: 1, Cut: true, Addr: a}
			if got := w.close(m, w.now).Result; got != border.NoTicket || cut != nil {
				t.Errorf("%v, without a ticket: %v, cut %v", a, got, cut)
			}
			w.tickets.issue(1, w.now)
			m.Ticket = 1
			// There is no grant any more, but perhaps a connection.
			if got := w.close(m, w.now); got.Result != border.Closed || len(cut) != 1 || cut[0].addr != a || cut[0].service.Name != "mail" {
				t.Errorf("%v: %+v, cut %v", a, got, cut)
			}
			w.tickets.issue(1, w.now)
			fails = errors.New("no")
			if got := w.close(m, w.now).Result; got != border.Failed {
				t.Errorf("%v, when it fails: %v", a, got)
			}
		}
	})
}

// A hijacked engine must not fill the memory of who came in, and a key that
// states one address after another must not push the others out of it.
func TestTheMemoryOfEntriesIsBounded(t *testing.T) {
	for _, family := range []struct{ prefix, quiet netip.Addr }{
		{addr("10.0.0.0"), addr("192.0.2.7")}, {addr("2001:db8:1::"), addr("2001:db8::7")},
	} {
		l := newEntries()
		at := func(i int) entry {
			b := family.prefix.AsSlice()
			binary.BigEndian.PutUint16(b[len(b)-2:], uint16(i))
			a, _ := netip.AddrFromSlice(b)
			return entry{grantKey{addr: a, service: "ssh"}, "keys SHA256:loud"}
		}
		quiet := entry{grantKey{addr: family.quiet, service: "ssh"}, "keys SHA256:quiet"}
		l.add(quiet, 16)
		for i := range 1000 {
			l.add(at(i), 16)
			l.add(entry{at(i).grantKey, "front"}, 16)
		}
		l.add(at(985), 16) // the oldest comes again, and stays
		for i := range 14 {
			l.add(at(1000+i), 16)
		}
		got := l.by("SHA256:loud")
		if len(got) != 15 || len(l.at) != 16 || len(l.of) != 2 {
			t.Fatalf("%d entries, %d, of %d keys", len(got), len(l.at), len(l.of))
		}
		if !slices.Contains(got, at(985)) || !slices.Contains(got, at(1013)) || slices.Contains(got, at(999)) {
			t.Errorf("kept %v", got)
		}
		if got := l.by("SHA256:quiet"); !slices.Equal(got, []entry{quiet}) {
			t.Errorf("%v was pushed out: %v", quiet.addr, got)
		}
		l.remove(append(got, quiet, quiet))
		if len(l.at) != 0 || len(l.of) != 0 {
			t.Errorf("removed, and left: %v", l.of)
		}
	}
}

// stated gives the i-th address of a's family.
func stated(a netip.Addr, i int) netip.Addr {
	b := a.AsSlice()
	b[len(b)-2], b[len(b)-1] = b[len(b)-2]+byte(1+i>>8), byte(i)
	out, _ := netip.AddrFromSlice(b)
	return out
}

// A request may state any address. Whoever has one of his own there keeps his
// connections when the key of another who stated it ends.
func TestTheCutOfAKeyLeavesWhatOthersUse(t *testing.T) {
	keyWorlds(t, func(t *testing.T, w *gateWorld) {
		f := w.keys[2].Authorized[plainKey-1].Public.Fingerprint()
		for _, a := range clients {
			for _, c := range []struct {
				name  string
				other func() *border.Done // lets the same address in
				until time.Duration       // when the key is cut
				left  bool
			}{
				{"nobody", func() *border.Done { return nil }, 0, false},
				{"another key's grant", func() *border.Done { return w.tryKey(keysSSH, fromKey, a, time.Minute) }, 0, true},
				{"another key's past grant", func() *border.Done { return w.tryKey(keysSSH, fromKey, a, time.Second) }, time.Hour, true},
				{"a sequence's grant", func() *border.Done {
					return w.open(&border.Open{Generation: 2, Rule: frontSSH, Addr: a, TTL: 30 * time.Second}, w.now)
				}, 0, true},
				{"the administrator's grant", func() *border.Done {
					w.tickets.issue(2, w.now)
					return w.open(&border.Open{Generation: 2, Rule: border.AnyRule, Ticket: 2, Addr: a, TTL: 30 * time.Second}, w.now)
				}, 0, true},
				{"the same key's by another knock", func() *border.Done { return w.tryKey(otherSSH, plainKey, a, time.Minute) }, 0, false},
				{"another key's in another service", func() *border.Done { return w.tryKey(keysMail, mailKey, a, time.Minute) }, 0, false},
			} {
				w.entries, w.grants, w.cuts = newEntries(), grants{}, cuts{}
				before := w.out(t, a)
				if got := c.other(); got != nil && got.Result != border.Granted {
					t.Fatalf("%v, %s: %v", a, c.name, got.Result)
				}
				w.tryKey(keysSSH, plainKey, a, 30*time.Second)
				w.now = w.now.Add(c.until)
				var cut []live
				w.cut = func(list []live) (int, error) { cut = append(cut, list...); return len(list), nil }
				var said testnet.Output
				w.log = slog.New(slog.NewTextHandler(&said, nil))
				w.tickets.issue(1, w.now)
				if got := w.closeKey(&border.CloseKey{Ticket: 1, Fingerprint: f, Cut: true}, w.now).Left; got > 1 || (got == 1) != c.left {
					t.Errorf("%v, %s: says that %d were left", a, c.name, got)
				}
				if got := len(cut) == 0; got != c.left || c.left && w.out(t, a) != before {
					t.Errorf("%v, %s: cut %v, kept out of %d ports more", a, c.name, cut, w.out(t, a)-before)
				}
				if got := strings.Contains(said.String(), "addresses that others use too were left") &&
					strings.Contains(said.String(), "address="+a.String()+" \"also asked by\"="); got != c.left {
					t.Errorf("%v, %s: said\n%s", a, c.name, said.String())
				}
				if w.grants.live(grantKey{addr: a, service: "ssh"}, byKey("keys", f), w.now) {
					t.Errorf("%v, %s: its grant goes on", a, c.name)
				}
				// As the log says, the administrator can end theirs; then nothing is left to tell of.
				cut = nil
				if w.shut(w.gate, 0, a); len(cut) != 1 || len(w.entries.by(f.String())) != 0 {
					t.Errorf("%v, %s: by address: cut %v, remembered %v", a, c.name, cut, w.entries.at)
				}
				w.now = w.now.Add(time.Hour)
				w.grants.forget(w.now)
			}
		}
	})
}

// One log line for each address would be one for each that a thief states.
func TestFewOfWhatIsLeftAreTold(t *testing.T) {
	keyWorlds(t, func(t *testing.T, w *gateWorld) {
		var said testnet.Output
		w.log = slog.New(slog.NewTextHandler(&said, nil))
		f := w.keys[2].Authorized[plainKey-1].Public.Fingerprint()
		w.entries = newEntries()
		for i := range 2 * maxTold {
			e := entry{grantKey{addr: stated(clients[i%2], i), service: "ssh"}, byKey("keys", f)}
			w.entries.add(e, 1000)
			w.entries.add(entry{e.grantKey, "keys SHA256:other"}, 1000)
		}
		w.cut = func(list []live) (int, error) { t.Errorf("cut %v", list); return 0, nil }
		w.tickets.issue(1, w.now)
		w.closeKey(&border.CloseKey{Ticket: 1, Fingerprint: f, Cut: true}, w.now)
		if n := strings.Count(said.String(), "connections were left"); n != maxTold || !strings.Contains(said.String(), "addresses=40") {
			t.Errorf("%d lines:\n%s", n, said.String())
		}
	})
}

// A grant that outlives its key would let its owner begin connections behind
// the key's end.
func TestNoGrantOutlivesItsKey(t *testing.T) {
	keyWorlds(t, func(t *testing.T, w *gateWorld) {
		end := w.now.Add(20 * time.Second)
		w.keys[2].Authorized[plainKey-1].Expires = end
		for _, a := range clients {
			for _, c := range []struct {
				name string
				ttl  time.Duration
				at   time.Duration // behind now
				want border.Result
			}{
				{"far longer", time.Minute, 0, border.TooLong},
				{"a little longer", 21*time.Second + 1, 0, border.TooLong},
				{"as the engine reckoned a moment ago", 20*time.Second + 500*time.Millisecond, 0, border.Granted},
				{"later, longer", 20 * time.Second, 10 * time.Second, border.TooLong},
				{"to the end", 10 * time.Second, 10 * time.Second, border.Granted},
				{"too near for the kernel", time.Millisecond, 20*time.Second - 1, border.NotAllowed},
				{"at the end", time.Millisecond, 20 * time.Second, border.NotAllowed},
			} {
				for _, extend := range []bool{false, true} {
					m := &border.Open{Generation: 2, Rule: keysSSH, Key: plainKey, Addr: a, TTL: c.ttl, Extend: extend}
					if extend {
						w.grants.add(grantKey{addr: a, service: "ssh"}, "keys "+w.fingerprint(plainKey), w.now.Add(c.at+time.Millisecond), w.now)
					}
					got := w.open(m, w.now.Add(c.at))
					if got.Result != c.want || got.Until.After(end) {
						t.Errorf("%v, %s, extend %v: %v until %v behind the end", a, c.name, extend, got.Result, got.Until.Sub(end))
					}
					w.grants, w.opens = grants{}, rate{}
				}
			}
		}
	})
}

// Who asked long ago is no reason any more, though somebody else still is.
func TestWhoHasNothingIsForgotten(t *testing.T) {
	now := time.Now()
	for _, a := range clients {
		g := grants{}
		key := grantKey{addr: a, service: "ssh"}
		g.add(key, "front", now.Add(time.Hour), now)
		for i := range 1000 {
			at := now.Add(time.Duration(i) * time.Second)
			g.add(key, fmt.Sprintf("keys SHA256:%d", i), at.Add(2*time.Second), at)
		}
		if got := len(g[key]); got > 3 {
			t.Errorf("%v: %d who asked are remembered", a, got)
		}
		g.forget(now.Add(1001 * time.Second))
		if got := g[key]; len(got) != 1 || got[0].by != "front" {
			t.Errorf("%v: left %v", a, got)
		}
		g.forget(now.Add(time.Hour))
		if len(g) != 0 {
			t.Errorf("%v: left %v", a, g)
		}
	}
}

// An enrolled key that states one address after another fills its own share of
// the set; others come in all the same.
func TestOneKeyCantFillTheSet(t *testing.T) {
	keyWorlds(t, func(t *testing.T, w *gateWorld) {
		for _, a := range clients {
			var said testnet.Output
			w.log = slog.New(slog.NewTextHandler(&said, nil))
			in := 0
			for i := range w.cfg.Daemon.MaxGrants {
				if got := w.tryKey(keysSSH, plainKey, stated(a, i), time.Minute).Result; got == border.Granted {
					in++
				} else if got != border.Full {
					t.Fatalf("%v: %v", stated(a, i), got)
				}
			}
			if in != w.cfg.Daemon.MaxGrants/4 {
				t.Errorf("%v: one key has %d of %d", a, in, w.cfg.Daemon.MaxGrants)
			}
			if !strings.Contains(said.String(), "one key or person has its share") || !strings.Contains(said.String(), w.fingerprint(plainKey)) {
				t.Errorf("said\n%s", said.String())
			}
			if got := w.tryKey(keysSSH, plainKey, stated(a, 0), time.Minute).Result; got != border.Granted {
				t.Errorf("%v: its own can't be refreshed: %v", a, got)
			}
			if got := w.tryKey(keysSSH, fromKey, a, time.Minute).Result; got != border.Granted {
				t.Errorf("%v: another key: %v", a, got)
			}
			if got := w.tryKey(keysMail, mailKey, a, time.Minute).Result; got != border.Granted {
				t.Errorf("%v: another key for all ports of a service: %v", a, got)
			}
			// The other family has a set of its own.
			for _, other := range clients {
				if other.Is4() == a.Is4() {
					continue
				}
				if got := w.tryKey(keysSSH, plainKey, stated(other, 0), time.Minute).Result; got != border.Granted {
					t.Errorf("%v: %v in the other family", a, got)
				}
			}
			// What was closed counts no more, a second later.
			w.tickets.issue(1, w.now)
			w.closeKey(&border.CloseKey{Ticket: 1, Fingerprint: w.keys[2].Authorized[plainKey-1].Public.Fingerprint()}, w.now)
			w.now = w.now.Add(time.Second)
			if got := w.tryKey(keysSSH, plainKey, a, time.Minute).Result; got != border.Granted {
				t.Errorf("%v: when its own were closed: %v", a, got)
			}
			// A restart gives it no second share.
			for i := range w.cfg.Daemon.MaxGrants/4 - 1 {
				w.tryKey(keysSSH, plainKey, stated(a, i), time.Minute)
			}
			next := newGate(w.firewall, false, w.log)
			next.use(w.cfg, 2, w.keys)
			if _, err := next.adopt(w.now); err != nil {
				t.Fatal(err)
			}
			m := &border.Open{Generation: 2, Rule: keysSSH, Key: plainKey, Addr: stated(a, 99), TTL: time.Minute}
			if got := next.open(m, w.now).Result; got != border.Full {
				t.Errorf("%v: behind a restart: %v", a, got)
			}
			w.shutAll(t)
		}
	})
}

// shutAll empties the firewall and the memory of it.
func (w *gateWorld) shutAll(t *testing.T) {
	t.Helper()
	list, err := w.firewall.Grants()
	if err == nil {
		err = w.firewall.Revoke(list)
	}
	if err != nil {
		t.Fatal(err)
	}
	w.grants, w.entries, w.countAgain = grants{}, newEntries(), time.Time{}
}

// A hijacked engine can ask before it took a config, also of a table that is
// there from before.
func TestAListingBeforeTheFirstConfigIsRefused(t *testing.T) {
	keyWorlds(t, func(t *testing.T, w *gateWorld) {
		for _, a := range clients {
			w.tryKey(keysSSH, plainKey, a, time.Minute)
		}
		early := newGate(w.firewall, false, w.log)
		if got := early.list(w.now); got.Error == "" || len(got.Grants) != 0 {
			t.Errorf("listed %+v", got)
		}
		for _, a := range clients {
			if got := early.open(&border.Open{Addr: a, TTL: time.Second}, w.now).Result; got != border.NoSuchRule {
				t.Errorf("%v: opened: %v", a, got)
			}
			if got := early.close(&border.Close{Addr: a}, w.now).Result; got != border.NoSuchRule {
				t.Errorf("%v: closed: %v", a, got)
			}
		}
		if got := early.closeKey(&border.CloseKey{}, w.now).Result; got != border.NoTicket {
			t.Errorf("closed by key: %v", got)
		}
	})
}
