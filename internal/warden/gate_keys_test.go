//go:build linux

package warden

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/authorized"
	"github.com/sallyport/sallyport/internal/border"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/warden/internal/nft"
)

const keysConfig = gateConfig + `
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
		if table, ok := w.firewall.(*nft.Table); ok {
			if err := table.Apply(cfg, nft.Options{}); err != nil {
				t.Fatal(err)
			}
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

		// Connections outlive grants, and so does the memory of whose they are.
		w.now = w.now.Add(time.Hour)
		w.grants.forget(w.now)
		w.tickets.issue(3, w.now)
		if got := shut(3, true); got.Result != border.Closed || got.Count != 0 || len(cut) != 6 {
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

// A hijacked engine must not fill the memory of who came in.
func TestTheMemoryOfEntriesIsBounded(t *testing.T) {
	l := newEntries()
	at := func(i int) entry {
		return entry{grantKey{netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), "ssh"}, "keys SHA256:x"}
	}
	for i := range 1000 {
		l.add(at(i), 16)
		l.add(entry{at(i).grantKey, "front"}, 16)
	}
	l.add(at(984), 16) // the oldest comes again, and stays
	for i := range 15 {
		l.add(at(1000+i), 16)
	}
	got := l.of(" SHA256:x")
	if len(got) != 16 || l.order.Len() != 16 || len(l.at) != 16 {
		t.Fatalf("%d entries, %d, %d", len(got), l.order.Len(), len(l.at))
	}
	if !slices.Contains(got, at(984)) || !slices.Contains(got, at(1014)) || slices.Contains(got, at(999)) {
		t.Errorf("kept %v", got)
	}
}
