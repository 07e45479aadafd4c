//go:build linux

package warden

import (
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/border"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/secrets"
	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/sallyport/sallyport/internal/testnet"
	"github.com/sallyport/sallyport/internal/warden/internal/nft"
	"github.com/sallyport/sallyport/internal/warden/internal/run"
)

// The rules of peopleConfig behind those of gateConfig, and two of sequences.
const (
	otpSSH = sideInner + 1 + iota
	otpClosesMail
	otpExtendsInner
	encSSH
	encMail
	encInner
	encTwice
	otherMail
	frontExtendsMail
	frontClosesInner
	encWake
	otpWake
	otpClosesWake
)

// The people of the file that knocks otp and enc share, by number.
const (
	alice   = 1 + iota
	bob     // mail alone
	carol   // until an hour from now
	dave    // no more
	mallory // a name that is a knock's too
)

// peopleConfig is gateConfig with knocks that people's secrets are for: otp and enc
// have one file, other another, in which there is another alice.
func peopleConfig(t *testing.T) *config.Config {
	t.Helper()
	text := strings.Replace(gateConfig, "max_grants = 16", "max_grants = 64", 1) + "[service.twice]\nports = [\"443/tcp\"]\nonce = true\n"
	cfg, err := config.Parse("people.toml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	cfg.Actions = []config.Action{{Name: "wake", Run: config.Command{"/bin/true"}, RunIPv6: config.Command{"/bin/true"},
		Undo: config.Command{"/bin/true"}, UndoIPv6: config.Command{"/bin/true"}, UndoAfter: time.Hour}}
	at := func(name string) int {
		return slices.IndexFunc(cfg.Services, func(s config.Service) bool { return s.Name == name })
	}
	ssh, mail, inner, twice := at("ssh"), at("mail"), at("inner"), at("twice")
	widths := []netip.Prefix{netip.MustParsePrefix("0.0.0.0/24"), netip.MustParsePrefix("::/64")}
	cfg.Knocks = append(cfg.Knocks,
		config.Knock{Name: "otp", Type: "otp", Secrets: "/people", Opens: []int{ssh}, Closes: []int{mail}, Extends: []int{inner}},
		config.Knock{Name: "enc", Type: "encoded", Secrets: "/people", Opens: []int{ssh, mail, inner, twice}, Widths: widths},
		config.Knock{Name: "other", Type: "encoded", Secrets: "/others", Opens: []int{mail}},
		config.Knock{Name: "longer", Type: "sequence", Extends: []int{mail}},
		config.Knock{Name: "shut", Type: "sequence", Closes: []int{inner}},
		config.Knock{Name: "bell", Type: "encoded", Secrets: "/people", Runs: []int{0}, Payload: 8},
		config.Knock{Name: "code", Type: "otp", Secrets: "/people", Runs: []int{0}},
		config.Knock{Name: "still", Type: "otp", Secrets: "/people", ClosesActions: []int{0}})
	return cfg
}

func people(now time.Time) []secrets.Person {
	list := []secrets.Person{{Name: "alice"}, {Name: "bob", Services: []string{"mail"}}, {Name: "carol", Expires: now.Add(20 * time.Second)},
		{Name: "dave", Expires: now.Add(-time.Second)}, {Name: "front"}}
	for i := range list {
		list[i].Secret = []byte(fmt.Sprintf("sixteen bytes %02d", i))
	}
	return list
}

// peopleWorlds is worlds with peopleConfig.
func peopleWorlds(t *testing.T, test func(t *testing.T, w *gateWorld)) {
	cfg := peopleConfig(t)
	worlds(t, func(t *testing.T, w *gateWorld) {
		switch firewall := w.firewall.(type) {
		case *nft.Table:
			if err := firewall.Apply(cfg, nft.Options{}); err != nil {
				t.Fatal(err)
			}
		case *memory:
			firewall.size = cfg.Daemon.MaxGrants
		}
		w.use(cfg, 2, peopleKeys(cfg, w.now))
		test(t, w)
	})
}

func peopleKeys(cfg *config.Config, now time.Time) []border.Keys {
	list := make([]border.Keys, len(cfg.Knocks))
	for i := range cfg.Knocks {
		switch cfg.Knocks[i].Secrets {
		case "/people":
			list[i].People = people(now)
		case "/others":
			list[i].People = []secrets.Person{{Name: "alice"}}
		}
	}
	return list
}

// ask makes a request in a person's name.
func (w *gateWorld) ask(rule, person uint16, a netip.Addr, ttl time.Duration, change func(*border.Open)) border.Result {
	m := &border.Open{ID: 1, Generation: 2, Rule: rule, Key: person, Addr: a, TTL: ttl}
	if change != nil {
		change(m)
	}
	return w.open(m, w.now).Result
}

func (w *gateWorld) end1(rule, person uint16, service string, a netip.Addr, bits uint8) (border.Result, uint32) {
	i := slices.IndexFunc(w.cfg.Services, func(s config.Service) bool { return s.Name == service })
	done := w.close(&border.Close{Generation: 2, Rule: rule, Key: person, Service: uint16(i), Addr: a, Bits: bits}, w.now)
	return done.Result, done.Count
}

func port(n uint16) func(*border.Open) {
	return func(m *border.Open) { m.Proto, m.Port = sequence.TCP, n }
}

func extend(m *border.Open) { m.Extend = true }

// network asks for a mask.
func network(bits uint8) func(*border.Open) {
	return func(m *border.Open) {
		p, _ := m.Addr.Prefix(int(bits))
		m.Addr, m.Bits = p.Addr(), bits
	}
}

// wideOf is the length that knock enc may be asked for.
func wideOf(a netip.Addr) uint8 {
	if a.Is4() {
		return 24
	}
	return 64
}

// lines is the listing for an address and its network, without times.
func (w *gateWorld) lines(t *testing.T, a netip.Addr) string {
	t.Helper()
	listed := w.list(w.now)
	if listed.Error != "" {
		t.Fatal(listed.Error)
	}
	w.listAgain = time.Time{}
	net, _ := a.Prefix(int(wideOf(a)))
	var out []string
	for _, g := range listed.Grants {
		if net.Contains(g.Addr) {
			out = append(out, fmt.Sprintf("%s %s by %s %v", g.Who(), g.What(), g.By, g.Until.Sub(w.now).Round(10*time.Second)))
		}
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// Promise 1: people's secrets take nothing from what holds a hijacked engine.
func TestAHijackedEngineCanOpenOnlyWhatAPersonMay(t *testing.T) {
	peopleWorlds(t, func(t *testing.T, w *gateWorld) {
		for _, a := range clients {
			otherBits := map[bool]uint8{true: 16, false: 48}[a.Is4()]
			for _, c := range []struct {
				name   string
				rule   uint16
				person uint16
				ttl    time.Duration
				change func(*border.Open)
				want   border.Result
			}{
				{"nobody", otpSSH, border.NoKey, time.Second, nil, border.NoSuchKey},
				{"nobody, encoded", encSSH, border.NoKey, time.Second, nil, border.NoSuchKey},
				{"a number behind the last", encSSH, mallory + 1, time.Second, nil, border.NoSuchKey},
				{"the last number", otpSSH, 0xffff, time.Second, nil, border.NoSuchKey},
				{"a person for a sequence", frontSSH, alice, time.Second, nil, border.NoSuchKey},
				{"another service", encSSH, bob, time.Second, nil, border.NotAllowed},
				{"behind its time", encSSH, dave, time.Second, nil, border.NotAllowed},
				{"longer than the secret", encSSH, carol, 25 * time.Second, nil, border.TooLong},
				{"longer than a password opens", otpSSH, alice, 31 * time.Second, nil, border.TooLong},
				{"above max_open_for", encSSH, alice, time.Minute + 1, nil, border.TooLong},
				{"a port of another service", encMail, alice, time.Second, port(22), border.NotAllowed},
				{"a port by a password", otpSSH, alice, time.Second, port(22), border.NotAllowed},
				{"a port by a sequence", frontSSH, border.NoKey, time.Second, port(22), border.NotAllowed},
				{"a mask by a password", otpSSH, alice, time.Second, network(wideOf(a)), border.NotAllowed},
				{"a mask by a sequence", frontSSH, border.NoKey, time.Second, network(wideOf(a)), border.NotAllowed},
				{"a wider mask", encSSH, alice, time.Second, network(otherBits), border.NotAllowed},
				{"a mask of a knock that has none", otherMail, alice, time.Second, network(wideOf(a)), border.NotAllowed},
				{"to close", otpClosesMail, alice, time.Second, nil, border.NoSuchRule},
				{"to extend as if to open", otpExtendsInner, alice, time.Second, nil, border.NoSuchRule},
				{"to extend by a rule that opens", otpSSH, alice, time.Second, extend, border.NoSuchRule},
				{"to extend by a sequence that opens", frontSSH, border.NoKey, time.Second, extend, border.NoSuchRule},
				{"nothing to extend", otpExtendsInner, alice, time.Second, extend, border.NothingToExtend},
				{"nothing to extend, encoded", encMail, alice, time.Second, extend, border.NothingToExtend},
				{"nothing to extend, by a sequence", frontExtendsMail, border.NoKey, time.Second, extend, border.NothingToExtend},
				{"a sequence that extends, to open", frontExtendsMail, border.NoKey, time.Second, nil, border.NoSuchRule},
			} {
				if got := w.ask(c.rule, c.person, a, c.ttl, c.change); got != c.want {
					t.Errorf("%v, %s: %v, want %v", a, c.name, got, c.want)
				}
				if got := w.lines(t, a); got != "" {
					t.Errorf("%v, %s: opened %s", a, c.name, got)
				}
			}
			w.tickets.issue(9, w.now)
			if got := w.open(&border.Open{Generation: 2, Rule: border.AnyRule, Ticket: 9, Addr: a, TTL: time.Second, Proto: sequence.TCP, Port: 9}, w.now).Result; got != border.NotAllowed {
				t.Errorf("%v, a port for the administrator: %v", a, got)
			}
		}
	})
}

// Who asked can't be confused with a knock, a fingerprint or the administrator.
func TestAPersonIsNobodyElse(t *testing.T) {
	peopleWorlds(t, func(t *testing.T, w *gateWorld) {
		for _, a := range clients {
			w.ask(encMail, mallory, a, time.Minute, nil)
			if got, want := w.lines(t, a), a.String()+" mail by enc person:front 1m0s"; got != want && !strings.HasPrefix(got, a.String()+" mail by enc person:front") {
				t.Errorf("listed %q", got)
			}
			if _, n := w.end1(frontMail, border.NoKey, "mail", a, 0); n != 0 {
				t.Errorf("%v: the knock of that name closed what the person opened", a)
			}
			if _, n := w.end1(encMail, alice, "mail", a, 0); n != 0 {
				t.Errorf("%v: another person closed it", a)
			}
			if _, n := w.end1(encMail, mallory, "mail", a, 0); n != 1 {
				t.Errorf("%v: its own person could not close it", a)
			}
		}
	})
}

// Each port and each mask has an end of its own: a refresh never shortens, and a close
// ends its own.
func TestPortsAndMasksHaveEndsOfTheirOwn(t *testing.T) {
	peopleWorlds(t, func(t *testing.T, w *gateWorld) {
		for _, a := range clients {
			bits := wideOf(a)
			net, _ := a.Prefix(int(bits))
			me := func(format string) string {
				list := strings.Split(strings.NewReplacer("ME", a.String(), "NET", net.String(), "alice", "enc person:alice", "bob", "enc person:bob").Replace(format), ", ")
				slices.Sort(list)
				return strings.Join(list, ", ")
			}
			for i, step := range []struct {
				do   func() border.Result
				want string // the listing behind it
			}{
				{func() border.Result { return w.ask(encMail, alice, a, 30*time.Second, port(25)) }, "ME mail 25/tcp by alice 30s"},
				{func() border.Result { return w.ask(encMail, bob, a, 10*time.Second, port(25)) }, "ME mail 25/tcp by alice 30s"},
				{func() border.Result { return w.ask(encMail, bob, a, 10*time.Second, nil) }, "ME mail 25/tcp by alice 30s, ME mail by bob 10s"},
				{func() border.Result { return w.ask(encMail, alice, a, 50*time.Second, network(bits)) },
					"ME mail 25/tcp by alice 30s, ME mail by bob 10s, NET mail by alice 50s"},
				{func() border.Result { return w.ask(encMail, alice, a, 20*time.Second, network(bits)) },
					"ME mail 25/tcp by alice 30s, ME mail by bob 10s, NET mail by alice 50s"},
				{func() border.Result {
					return w.ask(encMail, alice, a, time.Minute, func(m *border.Open) { port(25)(m); extend(m) })
				},
					"ME mail 25/tcp by alice 1m0s, ME mail by bob 10s, NET mail by alice 50s"},
				// bob's close takes back both of his, and alice's port stays.
				{func() border.Result { r, _ := w.end1(encMail, bob, "mail", a, 0); return r }, "ME mail 25/tcp by alice 1m0s, NET mail by alice 50s"},
				{func() border.Result { r, _ := w.end1(encMail, alice, "mail", net.Addr(), bits); return r }, "ME mail 25/tcp by alice 1m0s"},
				{func() border.Result { return w.ask(encMail, alice, a, 50*time.Second, network(bits)) },
					"ME mail 25/tcp by alice 1m0s, NET mail by alice 50s"},
				{func() border.Result { r, _ := w.end1(encMail, alice, "mail", a, 0); return r }, "NET mail by alice 50s"},
				// An administrator who shuts an address out shuts its networks too.
				{func() border.Result {
					w.tickets.issue(1, w.now)
					return w.close(&border.Close{Generation: 2, Rule: border.AnyRule, Service: border.AnyService, Ticket: 1, Addr: a}, w.now).Result
				}, ""},
			} {
				if got := step.do(); got != border.Granted && got != border.Closed {
					t.Errorf("%v, step %d: %v", a, i, got)
				}
				if got := w.lines(t, a); got != me(step.want) {
					t.Errorf("%v, step %d: listed\n%s, want\n%s", a, i, got, me(step.want))
				}
			}
		}
	})
}

// A restart and a table that was made anew keep ports and masks apart; but what one
// connection uses up is not brought back, for nobody knows whether it was used.
func TestPortsAndMasksSurviveARestart(t *testing.T) {
	peopleWorlds(t, func(t *testing.T, w *gateWorld) {
		for _, a := range clients {
			w.ask(encMail, alice, a, time.Minute, port(25))
			w.ask(encMail, bob, a, 30*time.Second, nil)
			w.ask(encSSH, alice, a, time.Minute, network(wideOf(a)))
			w.ask(encTwice, alice, a, time.Minute, nil)
		}
		want := w.lines(t, clients[0]) + w.lines(t, clients[1])
		if n := strings.Count(want, " by "); n != 8 {
			t.Fatalf("%d grants: %s", n, want)
		}
		next := &gateWorld{newGate(w.firewall, false, w.log), w.now}
		next.use(w.cfg, 2, w.keys)
		if n, err := next.adopt(w.now); n != 8 || err != nil {
			t.Errorf("adopted %d, %v", n, err)
		}
		if got := next.lines(t, clients[0]) + next.lines(t, clients[1]); got != want {
			t.Errorf("adopted\n%s, want\n%s", got, want)
		}
		all, _ := w.firewall.Grants()
		if err := w.firewall.Revoke(all); err != nil {
			t.Fatal(err)
		}
		next.restore(w.now)
		var left []string
		for line := range strings.SplitSeq(want, "twice") {
			left = append(left, line)
		}
		got := next.lines(t, clients[0]) + next.lines(t, clients[1])
		if strings.Contains(got, "twice") || strings.Count(got, " by ") != 6 || len(left) != 3 {
			t.Errorf("restored\n%s", got)
		}
		for _, a := range clients {
			if _, n := next.end1(encMail, alice, "mail", a, 0); n != 1 {
				t.Errorf("%v: the port could not be closed", a)
			}
			if got := next.lines(t, a); strings.Contains(got, "25/tcp") || !strings.Contains(got, "mail by enc person:bob") {
				t.Errorf("%v: left %s", a, got)
			}
		}
	})
}

// A person may end and prolong what he opened by any knock with the same file, and
// nothing of a sequence's or of a namesake's; a sequence that extends or closes has to
// do with sequences alone.
func TestPromise4WhoseGrantsMayBeTouched(t *testing.T) {
	peopleWorlds(t, func(t *testing.T, w *gateWorld) {
		for _, a := range clients {
			opens := map[string]func(){
				"a sequence": func() { w.ask(frontMail, border.NoKey, a, 10*time.Second, nil) },
				"alice":      func() { w.ask(encMail, alice, a, 10*time.Second, nil) },
				"a namesake": func() { w.ask(otherMail, alice, a, 10*time.Second, nil) },
				"bob":        func() { w.ask(encMail, bob, a, 10*time.Second, nil) },
			}
			for who, open := range opens {
				w.opens = rate{}
				open()
				if got := w.ask(frontExtendsMail, border.NoKey, a, 30*time.Second, extend); (got == border.Granted) != (who == "a sequence") {
					t.Errorf("%v: a sequence extends what %s opened: %v", a, who, got)
				}
				if got := w.ask(encMail, alice, a, 30*time.Second, extend); (got == border.Granted) != (who == "alice") {
					t.Errorf("%v: alice extends what %s opened: %v", a, who, got)
				}
				if _, n := w.end1(otpClosesMail, alice, "mail", a, 0); (n == 1) != (who == "alice") {
					t.Errorf("%v: alice's password closes what %s opened: %d", a, who, n)
				}
				w.shutAll(t)
			}
			if a.Is6() {
				continue // the service inner has an IPv4 destination
			}
			for _, c := range []struct {
				rule, person uint16
				closed       bool
			}{{sideInner, border.NoKey, true}, {encInner, alice, false}} {
				w.ask(c.rule, c.person, a, 10*time.Second, nil)
				if _, n := w.end1(frontClosesInner, border.NoKey, "inner", a, 0); (n == 1) != c.closed {
					t.Errorf("a sequence closes what rule %d opened: %d", c.rule, n)
				}
				if got := w.ask(otpExtendsInner, alice, a, 10*time.Second, extend); (got == border.Granted) == c.closed {
					t.Errorf("alice's password extends what rule %d opened: %v", c.rule, got)
				}
				w.shutAll(t)
			}
			// A one-time password says nothing but what its rule does.
			if r, _ := w.end1(otpSSH, alice, "ssh", a, 0); r != border.NoSuchRule {
				t.Errorf("a close by a rule that opens: %v", r)
			}
			if r, _ := w.end1(otpExtendsInner, alice, "inner", a, 0); r != border.NoSuchRule {
				t.Errorf("a close by a rule that extends: %v", r)
			}
		}
	})
}

// A grant that a connection has used up is nobody's any more: it is not extended, not
// given back when another closes his, and a new one lasts as long as was asked.
func TestAUsedUpGrantIsForgotten(t *testing.T) {
	peopleWorlds(t, func(t *testing.T, w *gateWorld) {
		for _, a := range clients {
			use := func() { // as the kernel does
				t.Helper()
				all, _ := w.firewall.Grants()
				if len(all) != 1 || !all[0].Once {
					t.Fatalf("held %v", all)
				}
				if err := w.firewall.Revoke(all); err != nil {
					t.Fatal(err)
				}
			}
			w.ask(encTwice, alice, a, 50*time.Second, nil)
			w.ask(encTwice, carol, a, 10*time.Second, nil)
			use()
			if _, n := w.end1(encTwice, alice, "twice", a, 0); n != 0 || w.lines(t, a) != "" {
				t.Errorf("%v: closing a used grant ended %d and left %s", a, n, w.lines(t, a))
			}
			w.ask(encTwice, alice, a, 50*time.Second, nil)
			use()
			if got := w.ask(encTwice, alice, a, 10*time.Second, extend); got != border.NothingToExtend {
				t.Errorf("%v: a used grant was extended: %v", a, got)
			}
			w.ask(encTwice, alice, a, 50*time.Second, nil)
			use()
			w.ask(encTwice, carol, a, 10*time.Second, nil)
			if got := w.lines(t, a); got != a.String()+" twice by enc person:carol 10s" {
				t.Errorf("%v: behind a used grant: %s", a, got)
			}
			// And while it is not used a refresh never shortens it.
			w.ask(encTwice, alice, a, 50*time.Second, nil)
			w.ask(encTwice, carol, a, 10*time.Second, nil)
			if got := w.lines(t, a); got != a.String()+" twice by enc person:alice 50s" {
				t.Errorf("%v: %s", a, got)
			}
			w.shutAll(t)
		}
	})
}

// A config without the width, or with once changed, drops the grants from the table;
// the book must not bring them back into sets that are not there.
func TestAReloadForgetsWhatTheTableDropped(t *testing.T) {
	peopleWorlds(t, func(t *testing.T, w *gateWorld) {
		for _, a := range clients {
			w.ask(encSSH, alice, a, time.Minute, network(wideOf(a)))
			w.ask(encTwice, alice, a, time.Minute, nil)
			w.ask(encMail, alice, a, time.Minute, nil)
		}
		cfg := peopleConfig(t)
		for i := range cfg.Knocks {
			cfg.Knocks[i].Widths = nil
		}
		for i := range cfg.Services {
			cfg.Services[i].Once = false
		}
		if table, ok := w.firewall.(*nft.Table); ok {
			if err := table.Apply(cfg, nft.Options{}); err != nil {
				t.Fatal(err)
			}
		}
		w.use(cfg, 3, w.keys)
		if len(w.grants) != 2 {
			t.Errorf("the book has %v", w.grants)
		}
		w.restore(w.now)
		for _, a := range clients {
			if got := w.grants.end(grantKey{addr: a, service: "mail"}); got.until.IsZero() {
				t.Errorf("%v: lost", a)
			}
		}
	})
}

// A person who asks for one address after another fills his own share of the set, by
// whichever knock, and a namesake in another file has one of his own.
func TestOnePersonCantFillTheSet(t *testing.T) {
	peopleWorlds(t, func(t *testing.T, w *gateWorld) {
		for _, a := range clients {
			in := 0
			for i := range w.cfg.Daemon.MaxGrants {
				rule := uint16(encSSH)
				if i%2 == 0 {
					rule = otpSSH
				}
				if w.ask(rule, alice, stated(a, i), 10*time.Second, nil) == border.Granted {
					in++
				}
			}
			if in != w.cfg.Daemon.MaxGrants/4 {
				t.Errorf("%v: one person has %d of %d", a, in, w.cfg.Daemon.MaxGrants)
			}
			if got := w.ask(encMail, bob, a, 10*time.Second, nil); got != border.Granted {
				t.Errorf("%v: another person: %v", a, got)
			}
			if got := w.ask(otherMail, alice, a, 10*time.Second, nil); got != border.Granted {
				t.Errorf("%v: a namesake: %v", a, got)
			}
			if got := w.ask(encSSH, alice, a, 10*time.Second, network(wideOf(a))); got != border.Granted {
				t.Errorf("%v: the set of networks is another: %v", a, got)
			}
			w.shutAll(t)
		}
	})
}

// Promise 4: who forges a sequence from one address after another keeps nobody out who
// has a key or a secret, nor the administrator; and where there is none of these the set
// is the sequences'.
func TestPromise4SequencesCantFillTheSet(t *testing.T) {
	peopleWorlds(t, func(t *testing.T, w *gateWorld) {
		for _, a := range clients {
			fill := func() (in int) {
				for i := range w.cfg.Daemon.MaxGrants {
					if w.ask(frontSSH, border.NoKey, stated(a, i), 10*time.Second, nil) == border.Granted {
						in++
					}
				}
				return in
			}
			if in, want := fill(), w.cfg.Daemon.MaxGrants*3/4; in != want {
				t.Errorf("%v: sequences have %d, want %d", a, in, want)
			}
			if got := w.ask(frontSSH, border.NoKey, stated(a, 0), 20*time.Second, nil); got != border.Granted {
				t.Errorf("%v: who is in prolongs: %v", a, got)
			}
			if got := w.ask(otpSSH, alice, a, 10*time.Second, nil); got != border.Granted {
				t.Errorf("%v: a person: %v", a, got)
			}
			w.tickets.issue(1, w.now)
			ssh := slices.IndexFunc(w.cfg.Services, func(s config.Service) bool { return s.Name == "ssh" })
			m := &border.Open{Generation: 2, Rule: border.AnyRule, Service: uint16(ssh), Ticket: 1, Addr: a.Next(), TTL: time.Second}
			if got := w.open(m, w.now).Result; got != border.Granted {
				t.Errorf("%v: the administrator: %v", a, got)
			}
			w.shutAll(t)
			w.proving = false
			if in := fill(); in != w.cfg.Daemon.MaxGrants {
				t.Errorf("%v: without keys sequences have %d", a, in)
			}
			w.proving = true
			w.shutAll(t)
		}
	})
}

// What people may run, and which bytes of theirs come along.
func TestPeopleRunActions(t *testing.T) {
	w := &gateWorld{now: time.Now()}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	runner, err := run.New(run.Options{Log: log, Tell: func(run.Event) {}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(runner.Close)
	cfg := peopleConfig(t)
	w.gate = newGate(newMemory(100, func() time.Time { return w.now }), false, log)
	w.runner = runner
	w.use(cfg, 2, peopleKeys(cfg, w.now))
	for _, a := range clients {
		for i, c := range []struct {
			rule, person uint16
			do           border.Do
			payload      uint8
			want         border.Result
		}{
			{encWake, border.NoKey, border.Start, 0, border.NoSuchKey},
			{encWake, bob, border.Start, 0, border.NotAllowed},
			{encWake, dave, border.Start, 0, border.NotAllowed},
			{encWake, alice, border.Start, 9, border.NotAllowed},
			{otpWake, alice, border.Start, 1, border.NotAllowed},
			{otpWake, alice, border.Extend, 0, border.NoSuchRule},
			{otpWake, alice, border.Undo, 0, border.NoSuchRule},
			{otpClosesWake, alice, border.Start, 0, border.NoSuchRule},
			{encWake, alice, border.Undo, 8, border.NotAllowed},
			{encWake, alice, border.Undo, 0, border.NothingToUndo},
			{encWake, alice, border.Start, 8, border.Ran},
			{encWake, carol, border.Extend, 0, border.NothingToExtend},
			{encWake, alice, border.Extend, 0, border.Ran},
			{otpClosesWake, alice, border.Undo, 0, border.Undone},
			{otpWake, alice, border.Start, 0, border.Ran},
			{encWake, alice, border.Extend, 0, border.Ran},
			{encWake, carol, border.Undo, 0, border.NothingToUndo},
			{otpClosesWake, carol, border.Undo, 0, border.NothingToUndo},
			{otpClosesWake, alice, border.Undo, 0, border.Undone},
		} {
			m := &border.Run{ID: 1, Generation: 2, Rule: c.rule, Key: c.person, Do: c.do, Addr: a, Payload: border.Payload{Length: c.payload}}
			if got := w.act(m, w.now).Result; got != c.want {
				t.Errorf("%v, step %d: %v, want %v", a, i, got, c.want)
			}
		}
		m := &border.Run{Addr: a, Payload: border.Payload{Length: 3, Bytes: [64]byte{'a', 'b', 'c'}}}
		if got := w.job(w.rules[encWake], m, "x").Input; string(got) != "abc" {
			t.Errorf("%v: standard input %q", a, got)
		}
	}
}

// A log and a listing name the network and the port.
func TestWhatIsOpenIsToldWhole(t *testing.T) {
	peopleWorlds(t, func(t *testing.T, w *gateWorld) {
		for _, a := range clients {
			var said testnet.Output
			w.log = slog.New(slog.NewTextHandler(&said, nil))
			w.ask(encMail, alice, a, 30*time.Second, func(m *border.Open) { network(wideOf(a))(m); port(25)(m) })
			net, _ := a.Prefix(int(wideOf(a)))
			for _, want := range []string{`service="mail 25/tcp"`, "address=" + net.String(), `"enc person:alice"`} {
				if !strings.Contains(said.String(), want) {
					t.Errorf("no %s in\n%s", want, said.String())
				}
			}
			if got, want := w.lines(t, a), net.String()+" mail 25/tcp by enc person:alice 30s"; got != want {
				t.Errorf("listed %q, want %q", got, want)
			}
			w.shutAll(t)
		}
	})
}

// Each line of the listing can be ended by its own words, and nothing else ends with it.
func TestTheAdministratorClosesOneLine(t *testing.T) {
	peopleWorlds(t, func(t *testing.T, w *gateWorld) {
		mail := slices.IndexFunc(w.cfg.Services, func(s config.Service) bool { return s.Name == "mail" })
		for _, a := range clients {
			net, _ := a.Prefix(int(wideOf(a)))
			all := []struct {
				line string
				open func(*border.Open)
				shut border.Close
			}{
				{a.String() + " mail by enc person:bob 10s", nil, border.Close{}},
				{a.String() + " mail 25/tcp by enc person:alice 30s", port(25), border.Close{Addr: a, Proto: sequence.TCP, Port: 25}},
				{net.String() + " mail 993/tcp by enc person:alice 30s", func(m *border.Open) { network(wideOf(a))(m); port(993)(m) },
					border.Close{Addr: net.Addr(), Bits: wideOf(a), Proto: sequence.TCP, Port: 993}},
			}
			var left []string
			for _, l := range all {
				who, ttl := uint16(alice), 30*time.Second
				if l.open == nil {
					who, ttl = bob, 10*time.Second
				}
				w.ask(encMail, who, a, ttl, l.open)
				left = append(left, l.line)
			}
			for _, l := range all[1:] {
				for _, cut := range []bool{true, false} {
					w.tickets.issue(1, w.now)
					m := l.shut
					m.Generation, m.Rule, m.Service, m.Ticket, m.Cut = 2, border.AnyRule, uint16(mail), 1, cut
					want := border.Closed
					if cut {
						want = border.NotAllowed
					} else {
						left = slices.DeleteFunc(left, func(line string) bool { return line == l.line })
					}
					if got := w.close(&m, w.now); got.Result != want || !cut && got.Count != 1 {
						t.Errorf("%s, cut %v: %v, %d ended", l.line, cut, got.Result, got.Count)
					}
					slices.Sort(left)
					if got := w.lines(t, a); got != strings.Join(left, ", ") {
						t.Errorf("%s, cut %v: left %s, want %v", l.line, cut, got, left)
					}
				}
			}
			w.shutAll(t)
		}
	})
}

// A network's grant that has close_on_disconnect is found by any of its addresses.
func TestAroundFindsTheNetworks(t *testing.T) {
	peopleWorlds(t, func(t *testing.T, w *gateWorld) {
		for _, a := range clients {
			got := w.around(a, "mail")
			if len(got) != 2 || got[0].addr != a || got[1].bits != wideOf(a) || !got[1].prefix().Contains(a) || got[1].addr == a {
				t.Errorf("%v: %v", a, got)
			}
		}
	})
}
