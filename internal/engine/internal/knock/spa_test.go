package knock

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/sallyport/sallyport/internal/authorized"
	"github.com/sallyport/sallyport/internal/border"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/engine/internal/packet"
	"github.com/sallyport/sallyport/internal/engine/internal/policy"
	"github.com/sallyport/sallyport/internal/engine/internal/replay"
	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/sallyport/sallyport/internal/spa"
)

type signer struct{ ssh.Signer }

func (s signer) PublicKey() []byte { return s.Signer.PublicKey().Marshal() }

func (s signer) Sign(data []byte) ([]byte, error) {
	sig, err := s.Signer.Sign(rand.Reader, data)
	if err != nil {
		return nil, err
	}
	return ssh.Marshal(sig), nil
}

func newSigner(t testing.TB) signer {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return signer{s}
}

// server is a recogniser with one SPA knock that opens ssh and web, an old key
// in overlap, and a clock that the test sets.
type server struct {
	*authentic
	t            testing.TB
	key, old     *spa.ServerKey
	user, nobody signer
	now          time.Time
}

const text = `
[service.ssh]
ports = ["22/tcp"]
[service.web]
ports = ["80/tcp"]
open_for = "10s"
max_open_for = "20s"
[service.db]
ports = ["5432/tcp"]
[knock.keys]
type = "spa"
opens = ["ssh", "web"]
key = "/k"
authorized_keys = "/a"
transports = ["udp", "icmp", "tcp"]
`

// newServer starts one whose authorized_keys has the user's key with these
// options before it.
func newServer(t testing.TB, options, more string) *server {
	t.Helper()
	cfg, err := config.Parse("knock.toml", []byte(text+more))
	if err != nil {
		t.Fatal(err)
	}
	s := &server{t: t, user: newSigner(t), nobody: newSigner(t), now: time.Unix(1_800_000_000, 0)}
	for _, k := range []**spa.ServerKey{&s.key, &s.old} {
		if *k, err = spa.NewServerKey(spa.Classic); err != nil {
			t.Fatal(err)
		}
	}
	line := string(ssh.MarshalAuthorizedKey(s.user.Signer.PublicKey()))
	keys, faults := authorized.Parse([]byte(options + " " + line))
	if len(faults) > 0 {
		t.Fatal(faults)
	}
	memory, err := replay.New([2]int{-1, -1}, true, s.now)
	if err != nil {
		t.Fatal(err)
	}
	setting := &Setting{
		Config: cfg, Host: &border.HostFacts{}, Memory: memory, Policy: policy.New(cfg),
		Keys: []border.Keys{{Server: []spa.FileKey{{Key: s.key}, {Key: s.old, Until: s.now.Add(time.Hour)}}, Authorized: keys}},
	}
	s.authentic = newSPA(setting, nil).(*authentic)
	s.clock = func() time.Time { return s.now }
	return s
}

func (s *server) seal(to *spa.ServerKey, r spa.Request, by spa.Signer) []byte {
	s.t.Helper()
	if r.Stamp == 0 {
		r.Stamp = s.now.UnixNano()
	}
	if r.Action == 0 {
		r.Action = spa.Open
	}
	b, err := spa.Seal(to.Address(), &r, by)
	if err != nil {
		s.t.Fatal(err)
	}
	return b
}

var (
	sources = map[string]netip.Addr{"IPv4": netip.MustParseAddr("192.0.2.7"), "IPv6": netip.MustParseAddr("2001:db8::7")}
	others  = map[string]netip.Addr{"IPv4": netip.MustParseAddr("198.51.100.9"), "IPv6": netip.MustParseAddr("2001:db8:9::9")}
)

func udp(src netip.Addr, b []byte) *packet.Packet {
	return &packet.Packet{Src: src, Proto: sequence.UDP, SrcPort: 40000, DstPort: spa.DefaultPort, Payload: b}
}

// say tells an outcome in one line, as the tables below want it.
func say(out []Outcome) string {
	if len(out) == 0 {
		return ""
	}
	o := out[0]
	if o.Verdict != Made {
		return "refused: " + o.Refusal.Why
	}
	text := o.Claim.Signed.Action.String()
	for _, g := range o.Grants {
		text += fmt.Sprintf(" %d/%v/%v", g.Service, g.Addr, g.TTL)
	}
	return text
}

func bothFamilies(t *testing.T, test func(t *testing.T, src, other netip.Addr)) {
	for family, src := range sources {
		t.Run(family, func(t *testing.T) { test(t, src, others[family]) })
	}
}

func stated(own bool, addrs ...netip.Addr) spa.Request {
	r := spa.Request{Own: own}
	for _, a := range addrs {
		if a.Is4() {
			r.IPv4 = a
		} else {
			r.IPv6 = a
		}
	}
	return r
}

// What a request asks for, what the key and the config allow, what comes of it.
func TestWhatARequestIsGoodFor(t *testing.T) {
	bothFamilies(t, func(t *testing.T, src, other netip.Addr) {
		for _, c := range []struct {
			name, options, config string
			request               spa.Request
			want                  string
		}{
			{"all", "", "", spa.Request{}, "open 0/SRC/30s 1/SRC/10s"},
			{"one service", "", "", spa.Request{Services: []string{"web"}}, "open 1/SRC/10s"},
			{"for longer", "", "", spa.Request{For: 15 * time.Second}, "open 0/SRC/15s 1/SRC/15s"},
			{"for too long", "", "", spa.Request{For: 10 * time.Hour}, "open 0/SRC/1h0m0s 1/SRC/20s"},
			{"a key with a limit", `max-time="5s"`, "", spa.Request{For: time.Minute}, "open 0/SRC/5s 1/SRC/5s"},
			{"a key for one", `services="ssh"`, "", spa.Request{}, "open 0/SRC/30s"},
			{"not for that one", `services="ssh"`, "", spa.Request{Services: []string{"web"}}, "refused: " + string(policy.NoService)},
			{"half of it", `services="ssh"`, "", spa.Request{Services: []string{"ssh", "web"}}, "refused: " + string(policy.NoService)},
			{"not of this knock", "", "", spa.Request{Services: []string{"db"}}, "refused: " + string(policy.NoService)},
			{"close", "", "", spa.Request{Action: spa.Close, Services: []string{"ssh"}}, "close 0/SRC/30s"},
			{"extend", "", "", spa.Request{Action: spa.Extend, Services: []string{"ssh"}}, "extend 0/SRC/30s"},

			{"own address", "", "", stated(true, src), "open 0/SRC/30s 1/SRC/10s"},
			{"own address, from elsewhere", "", "", stated(true, other), "refused: " + string(policy.ElsewhereOwn)},
			{"another address", "", "", stated(false, other), "open 0/OTHER/30s 1/OTHER/10s"},
			{"both families", `services="ssh"`, "", stated(true, sources["IPv4"], sources["IPv6"]), "open 0/192.0.2.7/30s 0/2001:db8::7/30s"},
			{"another, but observed", "", `address = "observed"`, stated(false, other), "refused: " + string(policy.StatesAnother)},
			{"none, observed", `services="ssh"`, `address = "observed"`, spa.Request{}, "open 0/SRC/30s"},
			{"none, but stated", "", `address = "stated"`, spa.Request{}, "refused: " + string(policy.StatesNone)},
			{"another, stated", `services="ssh"`, `address = "stated"`, stated(false, other), "open 0/OTHER/30s"},
			{"none, but both", "", `address = "both"`, spa.Request{}, "refused: " + string(policy.StatesNone)},
			{"another, but both", "", `address = "both"`, stated(false, other), "refused: " + string(policy.StatesAnother)},
			{"the same, both", `services="ssh"`, `address = "both"`, stated(false, src), "open 0/SRC/30s"},
			{"another, by a key that may not", "no-address", "", stated(false, other), "refused: " + string(policy.StatesAnother)},
			{"its own, by a key that may not", `no-address,services="ssh"`, "", stated(true, src), "open 0/SRC/30s"},
			{"nobody's", "", "", stated(false, netip.MustParseAddr("127.0.0.1")), "refused: " + string(policy.NotUnicast)},
			{"everybody's", "", "", stated(false, netip.MustParseAddr("ff02::1")), "refused: " + string(policy.NotUnicast)},

			{"from", `from="192.0.2.0/24,2001:db8::/48",services="ssh"`, "", spa.Request{}, "open 0/SRC/30s"},
			{"not from", `from="198.51.100.0/24,2001:db8:9::/48"`, "", spa.Request{}, "refused: " + string(policy.NotFrom)},
			{"from, for another", `from="192.0.2.0/24,2001:db8::/48"`, "", stated(false, other), "refused: " + string(policy.NotFrom)},
			{"expired", `expiry-time="20200101Z"`, "", spa.Request{}, "refused: " + string(policy.KeyNotNow)},
			{"about to expire", `expiry-time="20270115080005Z",services="ssh"`, "", spa.Request{For: time.Hour}, "open 0/SRC/5s"},
			{"expired but for a moment", `expiry-time="20270115080000Z"`, "", spa.Request{}, "refused: " + string(policy.KeyNotNow)},
			{"not yet", `not-before="20400101Z"`, "", spa.Request{}, "refused: " + string(policy.KeyNotNow)},

			{"old", "", "", spa.Request{Stamp: time.Unix(1_799_999_939, 0).UnixNano()}, "refused: " + string(replay.TooOld)},
			{"from the future", "", "", spa.Request{Stamp: time.Unix(1_800_000_061, 0).UnixNano()}, "refused: " + string(replay.FromTheFuture)},
			{"at the window's edge", `services="ssh"`, "", spa.Request{Stamp: time.Unix(1_799_999_940, 0).UnixNano()}, "open 0/SRC/30s"},
			{"old, in a wider window", `services="ssh"`, `window = "5m"`, spa.Request{Stamp: time.Unix(1_799_999_800, 0).UnixNano()}, "open 0/SRC/30s"},
			{"a counter", `services="ssh"`, `clock = "none"`, spa.Request{Stamp: 7}, "open 0/SRC/30s"},
		} {
			s := newServer(t, c.options, c.config)
			got := say(s.Observe(udp(src, s.seal(s.key, c.request, s.user)), 0))
			want := string(bytes.ReplaceAll(bytes.ReplaceAll([]byte(c.want), []byte("SRC"), []byte(src.String())), []byte("OTHER"), []byte(other.String())))
			if got != want {
				t.Errorf("%s: got %q, want %q", c.name, got, want)
			}
		}
	})
}

// Where each kind of datagram ends: nothing further than it must.
func TestWhereDatagramsEnd(t *testing.T) {
	bothFamilies(t, func(t *testing.T, src, _ netip.Addr) {
		for _, c := range []struct {
			name string
			b    func(s *server) []byte
			want string
		}{
			{"good", func(s *server) []byte { return s.seal(s.key, spa.Request{}, s.user) }, "spa_made"},
			{"to the old key", func(s *server) []byte { return s.seal(s.old, spa.Request{}, s.user) }, "spa_made"},
			{"to the old key, too late", func(s *server) []byte {
				s.now = s.now.Add(2 * time.Hour)
				return s.seal(s.old, spa.Request{}, s.user)
			}, "spa_key"},
			{"a byte short", func(s *server) []byte { b := s.seal(s.key, spa.Request{}, s.user); return b[:len(b)-1] }, "spa_length"},
			{"a byte long", func(s *server) []byte { return append(s.seal(s.key, spa.Request{}, s.user), 0) }, "spa_length"},
			{"noise", func(s *server) []byte { b := make([]byte, spa.LargeSize); rand.Read(b); return b }, "spa_gate"},
			{"to another server", func(s *server) []byte {
				k, _ := spa.NewServerKey(spa.Classic)
				return s.seal(k, spa.Request{}, s.user)
			}, "spa_gate"},
			{"behind the first gate", func(s *server) []byte {
				b := s.seal(s.key, spa.Request{}, s.user)
				b[len(b)-1] ^= 1
				return b
			}, "spa_second_gate"},
			{"glued copies", func(s *server) []byte { return bytes.Repeat(s.seal(s.key, spa.Request{}, s.user), 3) }, "spa_made"},
			{"by nobody we know", func(s *server) []byte { return s.seal(s.key, spa.Request{}, s.nobody) }, "spa_key"},
			{"by a thief of the name", func(s *server) []byte { return s.seal(s.key, spa.Request{}, thief{s.user, s.nobody}) }, "spa_key"},
		} {
			s := newServer(t, "", "")
			s.Observe(udp(src, c.b(s)), 0)
			numbers := map[string]uint64{}
			s.Count(numbers)
			for name, n := range numbers {
				if (n == 1) != (name == c.want) {
					t.Errorf("%s: %s = %d, want %s", c.name, name, n, c.want)
				}
			}
		}
	})
}

// thief signs with one key; spa.Seal itself refuses to claim another.
type thief struct{ claimed, own signer }

func (t thief) PublicKey() []byte                { return t.own.PublicKey() }
func (t thief) Sign(data []byte) ([]byte, error) { return t.own.Sign(data) }

func TestACopyIsSilentAndFree(t *testing.T) {
	bothFamilies(t, func(t *testing.T, src, other netip.Addr) {
		s := newServer(t, "", "")
		b := s.seal(s.key, spa.Request{}, s.user)
		if got := say(s.Observe(udp(src, b), 0)); got == "" {
			t.Fatal("the first is not heard")
		}
		for _, from := range []netip.Addr{src, other} {
			if got := say(s.Observe(udp(from, b), 0)); got != "" {
				t.Errorf("a copy from %v: %s", from, got)
			}
		}
		p := udp(src, b)
		if n := testing.AllocsPerRun(100, func() { s.Observe(p, 0) }); n != 0 {
			t.Errorf("a copy costs %v allocations", n)
		}
		// The table of copies is only for speed: the memory knows too.
		s.verified = newRecent[verified](maxVerified)
		if got := say(s.Observe(p, 0)); got != "" {
			t.Errorf("a copy that fell out of the table: %s", got)
		}
	})
}

// Whoever catches a datagram and delivers it first from elsewhere must not spoil
// it for its sender.
func TestACaughtDatagramStaysGood(t *testing.T) {
	bothFamilies(t, func(t *testing.T, src, other netip.Addr) {
		s := newServer(t, `services="ssh"`, "")
		b := s.seal(s.key, stated(true, src), s.user)
		for range 3 {
			s.Observe(udp(other, b), 0)
		}
		if got, want := say(s.Observe(udp(src, b), 0)), fmt.Sprintf("open 0/%v/30s", src); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		numbers := map[string]uint64{}
		if s.Count(numbers); numbers["spa_refused"] != 3 || numbers["spa_seal"] != 0 {
			t.Errorf("got %v", numbers)
		}
	})
}

func TestARefusalIsToldOnce(t *testing.T) {
	s := newServer(t, `expiry-time="20200101Z"`, "")
	b := s.seal(s.key, spa.Request{}, s.user)
	told := 0
	for range 5 {
		told += len(s.Observe(udp(sources["IPv4"], b), 0))
	}
	if told != 1 {
		t.Errorf("told %d times", told)
	}
}

// Nothing in such a datagram is authentic, so whoever recorded it could have the
// log repeat it for ever.
func TestAnOldServerKeyIsToldOnce(t *testing.T) {
	bothFamilies(t, func(t *testing.T, src, other netip.Addr) {
		s := newServer(t, "", "")
		s.now = s.now.Add(2 * time.Hour)
		b := s.seal(s.old, spa.Request{}, s.user)
		if out := s.Observe(udp(src, b), 0); len(out) != 1 || !out[0].Refusal.OldKey {
			t.Errorf("got %+v", out)
		}
		for _, from := range []netip.Addr{src, other} {
			if out := s.Observe(udp(from, b), 0); len(out) != 0 {
				t.Errorf("told again: %+v", out)
			}
		}
	})
}

// The usual mistake with a new user: the owner learns which key is missing, once
// for each datagram, and nobody is let in.
func TestAnUnknownKeyIsNamed(t *testing.T) {
	bothFamilies(t, func(t *testing.T, src, _ netip.Addr) {
		s := newServer(t, "", "")
		b := s.seal(s.key, spa.Request{}, s.nobody)
		out := s.Observe(udp(src, b), 0)
		want := spa.Fingerprint(sha256.Sum256(s.nobody.PublicKey()))
		if len(out) != 1 || out[0].Verdict != Refused || out[0].Refusal.Stranger != want || out[0].Claim.Source != src {
			t.Errorf("got %+v", out)
		}
		if out := s.Observe(udp(src, b), 0); len(out) != 0 {
			t.Errorf("a copy is told too: %+v", out)
		}
	})
}

func TestTransports(t *testing.T) {
	bothFamilies(t, func(t *testing.T, src, _ netip.Addr) {
		for _, c := range []struct {
			name       string
			transports []config.Transport
			change     func(p *packet.Packet)
			want       bool
		}{
			{"udp", []config.Transport{config.OverUDP}, func(p *packet.Packet) {}, true},
			{"udp to another port", []config.Transport{config.OverUDP}, func(p *packet.Packet) { p.DstPort++ }, false},
			{"udp, not wanted", []config.Transport{config.OverICMP, config.OverTCP}, func(p *packet.Packet) {}, false},
			{"udp, cut", []config.Transport{config.OverUDP}, func(p *packet.Packet) { p.Cut = true }, false},
			{"ping", []config.Transport{config.OverICMP}, func(p *packet.Packet) { p.Proto, p.DstPort = sequence.ICMP, uint16(len(p.Payload)) }, true},
			{"ping, not wanted", []config.Transport{config.OverUDP}, func(p *packet.Packet) { p.Proto, p.DstPort = sequence.ICMP, uint16(len(p.Payload)) }, false},
			{"SYN", []config.Transport{config.OverTCP}, func(p *packet.Packet) { p.Proto, p.Flags = sequence.TCP, sequence.SYN }, true},
			{"SYN with ACK", []config.Transport{config.OverTCP}, func(p *packet.Packet) { p.Proto, p.Flags = sequence.TCP, sequence.SYN|sequence.ACK }, false},
			{"ACK", []config.Transport{config.OverTCP}, func(p *packet.Packet) { p.Proto, p.Flags = sequence.TCP, sequence.ACK }, false},
			{"UDP-Lite", []config.Transport{config.OverUDP}, func(p *packet.Packet) { p.Proto = sequence.UDPLite }, false},
			{"SYN, not wanted", []config.Transport{config.OverUDP}, func(p *packet.Packet) { p.Proto, p.Flags = sequence.TCP, sequence.SYN }, false},
		} {
			s := newServer(t, "", "")
			s.doors[0].cfg.Transports = c.transports
			p := udp(src, s.seal(s.key, spa.Request{}, s.user))
			c.change(p)
			if got := len(s.Observe(p, 0)) > 0; got != c.want {
				t.Errorf("%s: heard %v, want %v", c.name, got, c.want)
			}
		}
	})
}

// Junk is what a flood is made of: it must not cost memory.
func TestJunkAllocatesNothing(t *testing.T) {
	s := newServer(t, "", "")
	good := s.seal(s.key, spa.Request{}, s.user)
	second := slices.Clone(good)
	second[100] ^= 1
	failed := s.seal(s.key, spa.Request{}, s.nobody)
	s.Observe(udp(sources["IPv4"], failed), 0)
	for name, b := range map[string][]byte{
		"wrong length": good[1:], "wrong gate": make([]byte, spa.SmallSize), "wrong second gate": second, "failed before": failed,
	} {
		p := udp(sources["IPv6"], b)
		if n := testing.AllocsPerRun(100, func() { s.Observe(p, 0) }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

// The tables of copies are bounded, and the newest take the place of the oldest.
func TestRecentIsBounded(t *testing.T) {
	r := newRecent[int](3)
	for i := range uint64(10) {
		r.put(i, int(i))
	}
	for i := range uint64(10) {
		v, ok := r.get(i)
		if ok != (i >= 7) || ok && *v != int(i) {
			t.Errorf("%d: %v, %v", i, v, ok)
		}
	}
	if len(r.index) != 3 || len(r.list) != 3 {
		t.Errorf("%d and %d entries", len(r.index), len(r.list))
	}
}

// Where the journal line can't be written there is no grant: after a restart
// the same request would be good again.
func TestNoJournalNoGrant(t *testing.T) {
	s := newServer(t, "", "")
	var fds [2]int
	var files [2]*os.File
	for i := range fds {
		f, err := os.Create(filepath.Join(t.TempDir(), "journal"))
		if err != nil {
			t.Fatal(err)
		}
		fds[i], files[i] = int(f.Fd()), f
	}
	memory, err := replay.New(fds, true, s.now)
	if err != nil {
		t.Fatal(err)
	}
	s.Setting.Memory = memory
	s.now = s.now.Add(time.Second) // a journal that begins now knows nothing of what was before
	if got := say(s.Observe(udp(sources["IPv4"], s.seal(s.key, spa.Request{}, s.user)), 0)); got != "open 0/192.0.2.7/30s 1/192.0.2.7/10s" {
		t.Errorf("with a journal: %s", got)
	}
	for _, f := range files {
		f.Close()
	}
	s.now = s.now.Add(time.Second)
	if out := s.Observe(udp(sources["IPv4"], s.seal(s.key, spa.Request{}, s.user)), 0); len(out) != 1 || out[0].Verdict != Refused {
		t.Errorf("without: %s", say(out))
	}
}
