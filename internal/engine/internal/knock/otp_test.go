package knock

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/border"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/engine/internal/packet"
	"github.com/sallyport/sallyport/internal/engine/internal/policy"
	"github.com/sallyport/sallyport/internal/engine/internal/replay"
	"github.com/sallyport/sallyport/internal/otp"
	"github.com/sallyport/sallyport/internal/secrets"
	"github.com/sallyport/sallyport/internal/sequence"
)

const otpText = `
[daemon]
max_attempts = 64
[service.ssh]
ports = ["22/tcp"]
[service.web]
ports = ["80/tcp"]
open_for = "10s"
[knock.front]
type = "otp"
opens = ["ssh", "web"]
secrets = "/s"
leave_out = ["30000/tcp"]
[knock.phone]
type = "otp"
opens = ["web"]
secrets = "/p"
digits = 6
[knock.datagrams]
type = "otp"
opens = ["ssh"]
secrets = "/s"
pool = ["40000-49999/udp"]
any_address = true
`

// otpServer is a recogniser with two people, a clock that the test sets, and a
// journal in two files, so that it can start again.
type otpServer struct {
	*passwords
	t       testing.TB
	setting *Setting
	now     time.Time
	files   [2]*os.File
	packets uint32
}

var ann, bob = secrets.Person{Name: "ann", Secret: []byte("the secret of ann, 31 bytes long")}, secrets.Person{Name: "bob", Secret: []byte("0123456789abcdef")}

func newOTPServer(t testing.TB, people ...secrets.Person) *otpServer {
	t.Helper()
	cfg, err := config.Parse("otp.toml", []byte(otpText))
	if err != nil {
		t.Fatal(err)
	}
	s := &otpServer{t: t, now: time.Unix(1_800_000_010, 0)}
	for i := range s.files {
		if s.files[i], err = os.CreateTemp(t.TempDir(), ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.files[i].Close() })
	}
	s.setting = &Setting{Config: cfg, Host: &border.HostFacts{}, Policy: policy.New(cfg), Clock: func() time.Time { return s.now }}
	s.use(people...)
	s.now = s.now.Add(-time.Hour)
	s.start(true) // an empty journal refuses what is older than it
	s.now = s.now.Add(time.Hour)
	s.start(true)
	return s
}

func (s *otpServer) use(people ...secrets.Person) {
	s.setting.Keys = slices.Repeat([]border.Keys{{People: people}}, len(s.setting.Config.Knocks))
}

// start begins as a new process does: what was remembered is in the journal.
func (s *otpServer) start(clean bool) {
	s.t.Helper()
	memory, err := replay.New([2]int{int(s.files[0].Fd()), int(s.files[1].Fd())}, clean, s.now)
	if err != nil {
		s.t.Fatal(err)
	}
	s.setting.Memory = memory
	s.passwords = newOTP(s.setting, nil).(*passwords)
}

func (s *otpServer) reload() { s.passwords = newOTP(s.setting, s.passwords).(*passwords) }

// mono is the clock that can't be set back, here the one that can.
func (s *otpServer) mono() int64 { return s.now.UnixNano() - 1_800_000_000_000_000_000 }

// syn makes a connection attempt, each with its own number.
func (s *otpServer) syn(src netip.Addr, port uint16) *packet.Packet {
	s.packets++
	return &packet.Packet{Src: src, Proto: sequence.TCP, SrcPort: 40000, DstPort: port, Flags: sequence.SYN, Seq: s.packets}
}

func (s *otpServer) datagram(src netip.Addr, port uint16) *packet.Packet {
	p := s.syn(src, port)
	p.Proto, p.Flags = sequence.UDP, 0
	return p
}

// ports gives what a person's client would send, by a clock that is off.
func (s *otpServer) ports(knock int, who secrets.Person, src netip.Addr, off time.Duration) []uint16 {
	k := &s.setting.Config.Knocks[knock]
	if k.Digits > 0 {
		return k.OTPDigits().Ports(otp.Code(who.Secret, s.now.Add(off), k.Digits))
	}
	d := k.OTPDoor()
	return d.Ports(nil, who.Secret, d.Number(s.now.Add(off)), src)
}

// send shows packets to the ports and gives what came of them in the end.
func (s *otpServer) send(src netip.Addr, ports ...uint16) string {
	var done []string
	for _, port := range ports {
		p := s.syn(src, port)
		if port >= 40000 {
			p = s.datagram(src, port)
		}
		done = append(done, s.show(p)...)
	}
	return strings.Join(done, "; ")
}

func (s *otpServer) show(p *packet.Packet) (done []string) {
	for _, o := range s.Observe(p, s.mono()) {
		switch o.Verdict {
		case Made:
			names := ""
			for _, g := range o.Grants {
				names += " " + s.setting.Config.NameOf(g.Rule)
				if g.Addr != p.Src || g.Bits != 0 {
					s.t.Errorf("a grant for %v/%d, from %v", g.Addr, g.Bits, p.Src)
				}
			}
			if int(o.Claim.Asked.Number) < 1 || s.setting.Keys[o.Claim.Knock].People[o.Claim.Asked.Number-1].Name != o.Claim.Asked.Person.Name {
				s.t.Errorf("the number %d is not %s's", o.Claim.Asked.Number, o.Claim.Asked.Person.Name)
			}
			done = append(done, o.Claim.Asked.Person.Name+names)
		case Refused:
			if o.Refusal.Boundary.IsZero() == (o.Refusal.Why == string(replay.BeforeStart)) {
				s.t.Errorf("refused, %s: up to %v", o.Refusal.Why, o.Refusal.Boundary)
			}
			done = append(done, o.Claim.Asked.Person.Name+" refused: "+o.Refusal.Why)
		}
	}
	return done
}

func (s *otpServer) want(what, got, want string) {
	s.t.Helper()
	if got != want {
		s.t.Errorf("%s: %q, want %q", what, got, want)
	}
}

func inBothFamilies(t *testing.T, f func(t *testing.T, src, other netip.Addr)) {
	for family, src := range sources {
		t.Run(family, func(t *testing.T) { f(t, src, others[family]) })
	}
}

const (
	front = iota
	phone
	datagrams
)

var opened = [...]string{front: "ann ssh web", phone: "ann web", datagrams: "ann ssh"}

func TestPasswordOpens(t *testing.T) {
	inBothFamilies(t, func(t *testing.T, src, other netip.Addr) {
		for knock, want := range opened {
			s := newOTPServer(t, bob, ann)
			s.want("ann", s.send(src, s.ports(knock, ann, src, 0)...), want)
			s.want("again", s.send(src, s.ports(knock, ann, src, 0)...), "")
			s.want("from another address", s.send(other, s.ports(knock, ann, other, 0)...), "")
			s.now = s.now.Add(30 * time.Second)
			s.want("in the next time step", s.send(src, s.ports(knock, ann, src, 0)...), want)
			s.want("bob", s.send(src, s.ports(knock, bob, src, 0)...), strings.Replace(want, "ann", "bob", 1))
		}
	})
}

// TestBothFamiliesInOneStep: a knock at a host's two addresses opens both where the
// ports depend on who sends, and else one, for who saw the first could send the second.
func TestBothFamiliesInOneStep(t *testing.T) {
	for knock, want := range opened {
		for _, first := range []string{"IPv4", "IPv6"} {
			src, other := sources[first], sources[map[string]string{"IPv4": "IPv6", "IPv6": "IPv4"}[first]]
			s := newOTPServer(t, ann)
			s.want(first, s.send(src, s.ports(knock, ann, src, 0)...), want)
			second := ""
			if knock == front {
				second = want
			}
			s.want("the other family", s.send(other, s.ports(knock, ann, other, 0)...), second)
			s.start(true)
			s.want("again", s.send(src, s.ports(knock, ann, src, 0)...)+s.send(other, s.ports(knock, ann, other, 0)...), "")
		}
	}
}

// TestOrderMatters: no packet left out, none in another place, none between.
func TestOrderMatters(t *testing.T) {
	inBothFamilies(t, func(t *testing.T, src, _ netip.Addr) {
		for knock := range opened {
			s := newOTPServer(t, ann)
			ports := s.ports(knock, ann, src, 0)
			for i := range ports {
				s.want(fmt.Sprint("without step ", i), s.send(src, slices.Delete(slices.Clone(ports), i, i+1)...), "")
				if i > 0 {
					swapped := slices.Clone(ports)
					swapped[i], swapped[i-1] = swapped[i-1], swapped[i]
					s.want(fmt.Sprint("swapped at ", i), s.send(src, swapped...), "")
					wrong := map[int]uint16{front: 39999, phone: 7299, datagrams: 49999}[knock]
					s.want(fmt.Sprint("a wrong one before ", i), s.send(src, slices.Insert(slices.Clone(ports), i, wrong)...), "")
				}
			}
			s.send(src, ports[:len(ports)-1]...) // given up before the end
			s.want("and then right", s.send(src, ports...), opened[knock])
		}
	})
}

// TestPasswordIsBound: what was seen from one address opens nothing for another,
// unless the knock says so.
func TestPasswordIsBound(t *testing.T) {
	inBothFamilies(t, func(t *testing.T, src, other netip.Addr) {
		s := newOTPServer(t, ann)
		s.want("front", s.send(other, s.ports(front, ann, src, 0)...), "")
		s.want("datagrams", s.send(other, s.ports(datagrams, ann, src, 0)...), opened[datagrams])
		s.want("front, from its own", s.send(src, s.ports(front, ann, src, 0)...), opened[front])
	})
}

// TestClocks: one step off works at both edges, two do not, nor does a day.
func TestClocks(t *testing.T) {
	inBothFamilies(t, func(t *testing.T, src, _ netip.Addr) {
		const step, day = 30 * time.Second, 24 * time.Hour
		for _, at := range []time.Duration{0, step - 1} { // the first and last moment of a step
			for off, works := range map[time.Duration]bool{0: true, step: true, -step: true, 2 * step: false, -2 * step: false, day: false, -day: false} {
				for knock := range opened {
					s := newOTPServer(t, ann)
					s.now = time.Unix(1_800_000_000, 0).Add(at)
					want := ""
					if works {
						want = opened[knock]
					}
					s.want(fmt.Sprintf("%s, off by %v", s.setting.Config.Knocks[knock].Name, off), s.send(src, s.ports(knock, ann, src, off)...), want)
				}
			}
		}
	})
}

// TestStepTurnsMeanwhile: what was begun in time is ended in time.
func TestStepTurnsMeanwhile(t *testing.T) {
	inBothFamilies(t, func(t *testing.T, src, _ netip.Addr) {
		s := newOTPServer(t, ann)
		s.now = time.Unix(1_800_000_029, 0)
		ports := s.ports(front, ann, src, -30*time.Second)
		s.send(src, ports[:4]...)
		s.now = s.now.Add(9 * time.Second)
		s.Tick(s.mono())
		s.want("within", s.send(src, ports[4]), opened[front])
		ports = s.ports(front, ann, src, 0)
		s.send(src, ports[:4]...)
		s.now = s.now.Add(10*time.Second + 1)
		s.want("too late", s.send(src, ports[4]), "")
	})
}

// TestCopiesAreHarmless: retransmissions, a bridge that shows each packet twice,
// and a knock that comes again whole.
func TestCopiesAreHarmless(t *testing.T) {
	inBothFamilies(t, func(t *testing.T, src, _ netip.Addr) {
		for knock := range opened {
			s := newOTPServer(t, ann)
			var sent []*packet.Packet
			var done []string
			for _, port := range s.ports(knock, ann, src, 0) {
				p := s.syn(src, port)
				if knock == datagrams {
					p = s.datagram(src, port)
				}
				sent = append(sent, p)
				for _, old := range sent { // all that went before, and it twice
					done = append(done, s.show(p)...)
					done = append(done, s.show(old)...)
				}
			}
			for _, p := range sent {
				done = append(done, s.show(p)...)
			}
			s.want(s.setting.Config.Knocks[knock].Name, strings.Join(done, "; "), opened[knock])
		}
	})
}

// TestScansOpenNothingAndBurnNothing: every port in each order, and then the user.
func TestScansOpenNothingAndBurnNothing(t *testing.T) {
	inBothFamilies(t, func(t *testing.T, src, other netip.Addr) {
		var all []uint16
		for port := 1; port <= 65535; port++ {
			all = append(all, uint16(port))
		}
		falling := slices.Clone(all)
		slices.Reverse(falling)
		random := slices.Clone(all)
		rand.New(rand.NewPCG(3, 4)).Shuffle(len(random), func(i, j int) { random[i], random[j] = random[j], random[i] })
		for name, scan := range map[string][]uint16{"ascending": all, "descending": falling, "random": random} {
			s := newOTPServer(t, ann, bob)
			for _, port := range scan {
				if done := append(s.show(s.syn(src, port)), s.show(s.datagram(src, port))...); len(done) > 0 {
					t.Fatalf("%s: %v", name, done)
				}
			}
			for knock, want := range opened {
				s.want(name+", then from elsewhere", s.send(other, s.ports(knock, ann, other, 0)...), want)
			}
			s.want(name+", then from the scan's address", s.send(src, s.ports(front, bob, src, 0)...), "bob ssh web")
		}
	})
}

// TestRepeatAfterRestart: a password is good once, also after kill -9, and after a
// power cut that may have lost the journal.
func TestRepeatAfterRestart(t *testing.T) {
	inBothFamilies(t, func(t *testing.T, src, _ netip.Addr) {
		for knock, want := range opened {
			s := newOTPServer(t, ann)
			for _, off := range []time.Duration{-30 * time.Second, 0, 30 * time.Second} {
				s.want("first", s.send(src, s.ports(knock, ann, src, off)...), want)
			}
			s.start(true)
			for _, off := range []time.Duration{-30 * time.Second, 0, 30 * time.Second} {
				s.want("after kill -9", s.send(src, s.ports(knock, ann, src, off)...), "")
			}
			s.now = s.now.Add(time.Minute)
			s.start(false)
			s.want("after a power cut", s.send(src, s.ports(knock, ann, src, 0)...), "ann refused: "+string(replay.BeforeStart))
			s.now = s.now.Add(time.Minute)
			s.want("later", s.send(src, s.ports(knock, ann, src, 0)...), want)
		}
	})
}

// TestTwoAtOnce: two people's packets between each other's, from two addresses and
// from one, and with one first port.
func TestTwoAtOnce(t *testing.T) {
	inBothFamilies(t, func(t *testing.T, src, other netip.Addr) {
		s := newOTPServer(t, ann, bob)
		for _, from := range []netip.Addr{other, src} {
			for knock, want := range opened {
				if knock == phone && from == src {
					continue // codes are told apart by nothing but their address
				}
				s.now = s.now.Add(time.Minute)
				a, b := s.ports(knock, ann, src, 0), s.ports(knock, bob, from, 0)
				got := ""
				for i := range a {
					got += s.send(src, a[i]) + s.send(from, b[i])
				}
				s.want("both", got, want+strings.Replace(want, "ann", "bob", 1))
			}
		}
	})
}

// TestSharedFirstPort follows both of two people whose sequences begin alike.
func TestSharedFirstPort(t *testing.T) {
	inBothFamilies(t, func(t *testing.T, src, _ netip.Addr) {
		s := newOTPServer(t, ann)
		d := s.setting.Config.Knocks[front].OTPDoor()
		number := d.Number(s.now)
		first := d.Ports(nil, ann.Secret, number, src)[0]
		twin := secrets.Person{Name: "twin"}
		for i := range 1_000_000 {
			twin.Secret = fmt.Appendf(nil, "a secret %07d", i)
			if d.First(nil, otp.NewKey(twin.Secret), number)[0] == first {
				break
			}
		}
		for _, who := range []secrets.Person{ann, twin} {
			s.use(ann, twin)
			s.start(true)
			s.want(who.Name, s.send(src, s.ports(front, who, src, 0)...), who.Name+" ssh web")
		}
	})
}

// TestOneSecretOfTwo: each gets what is his, though one packet completes both.
func TestOneSecretOfTwo(t *testing.T) {
	inBothFamilies(t, func(t *testing.T, src, _ netip.Addr) {
		// To HMAC a zero at the end is no other key, and to a file it is another secret.
		a, b := ann, secrets.Person{Name: "twin", Secret: append(slices.Clone(ann.Secret), 0), Services: []string{"web"}}
		a.Services = []string{"ssh"}
		s := newOTPServer(t, a, b)
		done := strings.Split(s.send(src, s.ports(front, ann, src, 0)...), "; ")
		slices.Sort(done)
		s.want("front", strings.Join(done, "; "), "ann ssh; twin web")
	})
}

// TestReload: what is half done goes on, for people who are still there.
func TestReload(t *testing.T) {
	inBothFamilies(t, func(t *testing.T, src, other netip.Addr) {
		for knock, want := range opened {
			s := newOTPServer(t, ann, bob)
			a, b := s.ports(knock, ann, src, 0), s.ports(knock, bob, other, 0)
			s.send(src, a[:2]...)
			s.send(other, b[:2]...)
			s.use(ann) // bob is revoked
			s.reload()
			s.want("bob", s.send(other, b[2:]...), "")
			s.want("ann", s.send(src, a[2:]...), want)
			s.want("bob, from the beginning", s.send(other, s.ports(knock, bob, other, 0)...), "")
			s.use(bob, ann)
			s.reload()
			s.want("ann again", s.send(src, a...), "")
			s.want("bob is back", s.send(other, b...), strings.Replace(want, "ann", "bob", 1))
		}
	})
}

// TestRename: a person's new name makes nothing good again that was used up.
func TestRename(t *testing.T) {
	inBothFamilies(t, func(t *testing.T, src, other netip.Addr) {
		for knock, want := range opened {
			s := newOTPServer(t, ann)
			s.want("ann", s.send(src, s.ports(knock, ann, src, 0)...), want)
			anna := ann
			anna.Name = "anna"
			s.use(anna)
			s.reload()
			s.want("by who saw it", s.send(other, s.ports(knock, ann, other, 0)...), "")
			s.now = s.now.Add(30 * time.Second)
			s.want("the next", s.send(src, s.ports(knock, anna, src, 0)...), strings.Replace(want, "ann", "anna", 1))
		}
	})
}

// TestBeginAnewAfterReload: a new packet to the first port is a new beginning, also
// of what began before a reload.
func TestBeginAnewAfterReload(t *testing.T) {
	inBothFamilies(t, func(t *testing.T, src, other netip.Addr) {
		for knock, want := range opened {
			for others := range 8 {
				s := newOTPServer(t, ann)
				ports := s.ports(knock, ann, src, 0)
				s.send(src, ports[:2]...)
				s.reload()
				for range others {
					s.send(other, 20001)
				}
				s.want("anew", s.send(src, ports...), want)
			}
		}
	})
}

// TestSilenceComputesNothing: of a long silence, as a capture can have, only the last
// moment counts.
func TestSilenceComputesNothing(t *testing.T) {
	inBothFamilies(t, func(t *testing.T, src, _ netip.Addr) {
		for knock, want := range opened {
			s := newOTPServer(t, ann)
			before := s.doors[knock].number
			for range 120 {
				s.now = s.now.Add(time.Second)
				s.Tick(s.mono())
			}
			if got := s.doors[knock].number; got != before {
				t.Errorf("two minutes of silence computed %d time steps", got-before)
			}
			s.want("behind it", s.send(src, s.ports(knock, ann, src, 0)...), want)
		}
	})
}

// TestRotation: two lines with one name, of which the old one ends.
func TestRotation(t *testing.T) {
	inBothFamilies(t, func(t *testing.T, src, _ netip.Addr) {
		for knock, want := range opened {
			s := newOTPServer(t)
			next, old := ann, bob
			old.Name, old.Expires = "ann", s.now.Add(time.Minute)
			s.use(old, next)
			s.start(true)
			s.want("old", s.send(src, s.ports(knock, old, src, 0)...), want)
			s.want("new", s.send(src, s.ports(knock, next, src, 0)...), want)
			s.now = s.now.Add(time.Minute)
			s.want("old, over", s.send(src, s.ports(knock, old, src, 0)...), "ann refused: "+string(policy.SecretNotNow))
			s.want("new, later", s.send(src, s.ports(knock, next, src, 0)...), want)
		}
	})
}

func TestServicesOfAPerson(t *testing.T) {
	inBothFamilies(t, func(t *testing.T, src, _ netip.Addr) {
		who := ann
		who.Services = []string{"ssh"}
		s := newOTPServer(t, who)
		s.want("front", s.send(src, s.ports(front, ann, src, 0)...), "ann ssh")
		s.want("phone", s.send(src, s.ports(phone, ann, src, 0)...), "ann refused: "+string(policy.NoService))
		s.want("phone, again", s.send(src, s.ports(phone, ann, src, 0)...), "ann refused: "+string(policy.NoService))
	})
}

// neighbours are others of one customer's network, and not of it.
var neighbours = map[string][2]netip.Addr{
	"IPv4": {sources["IPv4"], netip.MustParseAddr("192.0.2.8")},
	"IPv6": {netip.MustParseAddr("2001:db8::8"), netip.MustParseAddr("2001:db8:0:1::7")},
}

// TestGuessesAreCounted: a source has so many codes in a time step, and nobody else
// pays for it.
func TestGuessesAreCounted(t *testing.T) {
	for family, src := range sources {
		t.Run(family, func(t *testing.T) {
			same, other := neighbours[family][0], neighbours[family][1]
			for tries := range 2 * otp.Tries {
				s := newOTPServer(t, ann)
				for range tries {
					s.send(src, 7000, 7100, 7200) // none of the codes in force
				}
				want := opened[phone]
				if tries >= otp.Tries {
					want = "ann refused: " + tooManyTries
				}
				s.want(fmt.Sprintf("after %d", tries), s.send(same, s.ports(phone, ann, same, 0)...), want)
				s.now = s.now.Add(30 * time.Second)
				s.want("in the next time step", s.send(src, s.ports(phone, ann, src, 0)...), opened[phone])
				s.now = s.now.Add(30 * time.Second)
				for range tries {
					s.send(src, 7000, 7100, 7200)
				}
				s.reload()
				s.want("from elsewhere", s.send(other, s.ports(phone, ann, other, 0)...), opened[phone])
				if tries >= otp.Tries {
					s.want("after a reload", s.send(src, s.ports(phone, ann, src, -30*time.Second)...), "ann refused: "+tooManyTries)
				}
			}
		})
	}
}

// TestGuessesAtTwoKnocks: at the turn of a time step no knock gives the tries of
// another one anew.
func TestGuessesAtTwoKnocks(t *testing.T) {
	two := strings.Replace(otpText, "[knock.datagrams]", "[knock.tablet]\ntype = \"otp\"\nopens = [\"ssh\"]\nsecrets = \"/q\"\ndigits = 6\nbase = \"9000/tcp\"\n[knock.datagrams]", 1)
	cfg, err := config.Parse("otp.toml", []byte(two))
	if err != nil {
		t.Fatal(err)
	}
	inBothFamilies(t, func(t *testing.T, src, _ netip.Addr) {
		s := newOTPServer(t, ann)
		s.setting.Config = cfg
		s.use(ann)
		s.start(true)
		for range 3 {
			s.now = s.now.Add(30 * time.Second)
			for range otp.Tries {
				s.send(src, 7000, 7100, 7200)
			}
			s.send(src, 9000)
			s.want("after the last try", s.send(src, s.ports(phone, ann, src, 0)...), "ann refused: "+tooManyTries)
		}
	})
}

// TestGuessesOfAWideNetwork: who has 48 bits has 65,536 networks of 64.
func TestGuessesOfAWideNetwork(t *testing.T) {
	s := newOTPServer(t, ann)
	for i := range mostTriesWide {
		s.send(netip.MustParseAddr(fmt.Sprintf("2001:db8:0:%x::1", i)), 7000, 7100, 7200)
	}
	src := netip.MustParseAddr("2001:db8:0:ffff::1")
	s.want("the same 48 bits", s.send(src, s.ports(phone, ann, src, 0)...), "ann refused: "+tooManyTries)
	src = netip.MustParseAddr("2001:db8:1::1")
	s.want("others", s.send(src, s.ports(phone, ann, src, 0)...), opened[phone])
}

// TestFloodPushesOutNobodyProven: forged first steps fill the table, and whoever
// made a second one stays. A newcomer of the flood is not the last one either.
func TestFloodPushesOutNobodyProven(t *testing.T) {
	inBothFamilies(t, func(t *testing.T, src, other netip.Addr) {
		s := newOTPServer(t, ann)
		ports := s.ports(front, ann, src, 0)
		s.send(src, ports[:2]...)
		forged := src
		for range 10_000 {
			forged = forged.Next()
			s.send(forged, ports[0])
		}
		if s.sequences.live != 64 {
			t.Errorf("%d attempts", s.sequences.live)
		}
		s.want("the user", s.send(src, ports[2:]...), opened[front])
		if s.sequences.proven != 0 || s.sequences.live > 64 {
			t.Errorf("%d attempts, %d of them proved", s.sequences.live, s.sequences.proven)
		}
	})
}

// TestForgedKnocksShutNobodyOut: who saw a knock that is good from any address, or
// guesses codes, forges all but its last packet from more sources than the table has
// room for, and goes on with first packets. He proves nothing by that.
func TestForgedKnocksShutNobodyOut(t *testing.T) {
	inBothFamilies(t, func(t *testing.T, src, other netip.Addr) {
		for knock, seen := range map[int][]uint16{datagrams: nil, phone: {7000, 7100, 7200}} {
			s := newOTPServer(t, ann, bob)
			if knock == datagrams {
				seen = s.ports(datagrams, ann, src, 0)
				s.want("ann", s.send(src, seen...), "ann ssh")
			}
			own, from := s.ports(front, ann, src, 30*time.Second), other
			s.send(src, own[:2]...)
			for range 100 {
				from = from.Next()
				s.send(from, seen[:len(seen)-1]...)
			}
			s.want("whose knock was seen, under way", s.send(src, own[2:]...), opened[front])
			for _, into := range []int{knock, front} {
				got := ""
				for _, port := range s.ports(into, bob, src, 0) {
					for range 10 {
						from = from.Next()
						s.send(from, seen[0])
					}
					got += s.send(src, port)
				}
				s.want(s.setting.Config.Knocks[into].Name, got, strings.Replace(opened[into], "ann", "bob", 1))
			}
		}
	})
}

// TestOwnSecretShutsNobodyOut: a person makes two steps from forged sources, each
// with the ports that his secret gives for it. Those of others stay, and begin.
func TestOwnSecretShutsNobodyOut(t *testing.T) {
	inBothFamilies(t, func(t *testing.T, src, other netip.Addr) {
		s := newOTPServer(t, ann, bob)
		ports, from := s.ports(front, ann, src, 0), other
		s.send(src, ports[:2]...)
		for range 200 {
			from = from.Next()
			s.send(from, s.ports(front, bob, from, 0)[:2]...)
		}
		if got := s.sequences.proven; got != 32 {
			t.Errorf("%d proved attempts, of 64", got)
		}
		s.want("who was under way", s.send(src, ports[2:]...), "ann ssh web")
		s.want("who begins", s.send(src, s.ports(front, ann, src, 30*time.Second)...), "ann ssh web")
		s.want("and bob's own", s.send(src, s.ports(front, bob, src, 0)...), "bob ssh web")
	})
}

// TestOthersFirstPortsBetween: two others may begin behind one address while somebody
// knocks. More end the attempt, or else who knows many first ports could try every
// order of them in a few rounds; and so one source has few attempts.
func TestOthersFirstPortsBetween(t *testing.T) {
	inBothFamilies(t, func(t *testing.T, src, _ netip.Addr) {
		people := []secrets.Person{ann}
		for i := range 40 {
			people = append(people, secrets.Person{Name: fmt.Sprint("p", i), Secret: fmt.Appendf(nil, "a secret %07d", i)})
		}
		for _, others := range []int{2, 3, 40} {
			for _, behind := range []int{1, 4} { // how many of ann's steps
				s := newOTPServer(t, people...)
				ports := s.ports(front, ann, src, 0)
				s.send(src, ports[:behind]...)
				for _, p := range people[1 : 1+others] {
					s.send(src, s.ports(front, p, src, 0)[0])
				}
				if got := s.sequences.live; got > 2*(mostStrays+1) {
					t.Errorf("%d attempts of one source", got)
				}
				want := ""
				if others <= 2 {
					want = opened[front]
				}
				s.want(fmt.Sprintf("%d others behind step %d", others, behind), s.send(src, ports[behind:]...), want)
			}
		}
	})
}

// TestOnlyOpeningPackets: what belongs to a connection is no step and breaks nothing.
func TestOnlyOpeningPackets(t *testing.T) {
	inBothFamilies(t, func(t *testing.T, src, _ netip.Addr) {
		s := newOTPServer(t, ann)
		ports := s.ports(front, ann, src, 0)
		s.send(src, ports[:3]...)
		for _, flags := range []uint8{sequence.ACK, sequence.SYN | sequence.ACK, sequence.RST, 0} {
			p := s.syn(src, ports[3])
			p.Flags = flags
			s.show(p)
			p.DstPort = 39999
			s.show(p)
		}
		s.show(s.datagram(src, 39999))
		s.send(src, 30000, 19999, 22) // left out, and beside the pool
		p := s.syn(src, 39999)
		p.Elsewhere = true
		s.show(p)
		s.want("the rest", s.send(src, ports[3:]...), opened[front])
	})
}

func TestNothingAllocatedByPasswords(t *testing.T) {
	people := make([]secrets.Person, 200)
	for i := range people {
		people[i] = secrets.Person{Name: fmt.Sprint("p", i), Secret: fmt.Appendf(nil, "a secret %07d", i)}
	}
	inBothFamilies(t, func(t *testing.T, src, _ netip.Addr) {
		s := newOTPServer(t, people...)
		rng, forged, p := rand.New(rand.NewPCG(5, 6)), src, s.syn(src, 1)
		flood := func() {
			forged = forged.Next()
			p.Src, p.Seq = forged, p.Seq+1
			for _, low := range []int{20000, 7000, 7100, 7200, 40000} {
				p.DstPort, p.Proto = uint16(low+rng.IntN(100)), sequence.TCP
				if low == 40000 {
					p.Proto = sequence.UDP
				}
				s.Observe(p, s.mono())
			}
		}
		for range 1000 {
			flood()
		}
		if got := testing.AllocsPerRun(5000, flood); got != 0 {
			t.Errorf("%v allocations", got)
		}
		if s.passwords.counts.steps == 0 || s.passwords.counts.wrong == 0 || s.sequences.live != 64 {
			t.Errorf("the flood met nothing: %+v", s.passwords.counts)
		}
	})
}

// TestExplainOTP: the words say what to look at, and no port: the packet's own stands
// before them.
func TestExplainOTP(t *testing.T) {
	inBothFamilies(t, func(t *testing.T, src, other netip.Addr) {
		s := newOTPServer(t, ann)
		ports, ahead := s.ports(front, ann, src, 0), s.ports(front, ann, src, 30*time.Second)
		code := s.ports(phone, ann, src, 0)
		foreign := s.ports(front, ann, other, 0)
		first := s.syn(src, ports[0])
		for _, step := range []struct {
			p    *packet.Packet
			want string
		}{
			{s.syn(src, 39999), "of nobody's sequence now"},
			{first, "step 1 of 5 made (by the secret of ann)"},
			{first, "a copy"},
			{s.syn(src, ports[0]), "step 1 of 5 once more"},
			{s.syn(src, foreign[1]), "over after 1 of 5; nothing is used up by that; the steps after the first depend on the sender's address, which is " + src.String()},
			{s.syn(src, ahead[0]), "step 1 of 5 made, of the next time step: the sender's clock is ahead"},
			{s.syn(src, ahead[1]), "step 2 of 5"},
			{s.syn(src, 39999), "over after 2 of 5"},
			{s.syn(src, ports[0]), "step 1 of 5"}, {s.syn(src, ports[1]), "step 2 of 5"}, {s.syn(src, ports[2]), "step 3 of 5"}, {s.syn(src, ports[3]), "step 4 of 5"},
			{s.syn(src, ports[4]), "the knock is complete (by the secret of ann)"},
			{s.syn(src, ports[0]), "step 1 of 5"}, {s.syn(src, ports[1]), "step 2 of 5"}, {s.syn(src, ports[2]), "step 3 of 5"}, {s.syn(src, ports[3]), "step 4 of 5"},
			{s.syn(src, ports[4]), "used up before"},
			{s.syn(src, code[1]), "no code was begun"},
			{s.syn(src, code[0]), "step 1 of 3"}, {s.syn(src, code[1]), "step 2 of 3"},
			{s.syn(src, code[2]), "the knock is complete"},
			{s.syn(src, 7000), "step 1 of 3"}, {s.syn(src, 7100), "step 2 of 3"},
			{s.syn(src, 7200), "the code is nobody's now"},
		} {
			_, notes := s.Explain(step.p, s.mono())
			if len(notes) != 1 || !strings.Contains(notes[0].Text, step.want) {
				t.Errorf("%d: %v, want %q", step.p.DstPort, notes, step.want)
				continue
			}
			for _, port := range slices.Concat(ports, ahead, foreign) {
				if strings.Contains(notes[0].Text, fmt.Sprint(port)) {
					t.Errorf("the port %d is told: %s", port, notes[0].Text)
				}
			}
		}
		p := s.syn(src, s.ports(front, ann, src, -30*time.Second)[0])
		if _, notes := s.Explain(p, s.mono()); len(notes) != 1 || !strings.Contains(notes[0].Text, "is behind") {
			t.Errorf("%v", notes)
		}
		s.now = s.now.Add(time.Minute)
		if _, notes := s.Explain(s.syn(src, p.DstPort), s.mono()); len(notes) != 2 || !strings.Contains(notes[0].Text, "within = 10s") || !strings.Contains(notes[1].Text, "nobody's") {
			t.Errorf("%v", notes)
		}
		if _, notes := s.Explain(s.syn(src, 22), s.mono()); notes != nil {
			t.Errorf("a packet to another port: %v", notes)
		}
	})
}

// BenchmarkOTPFlood is a packet of a flood to random ports of the pool from random
// addresses: the people's first ports are met the more often the more there are.
func BenchmarkOTPFlood(b *testing.B) {
	for _, n := range []int{1, 100, 1000} {
		for family, src := range sources {
			b.Run(fmt.Sprintf("%d/%s", n, family), func(b *testing.B) {
				people := make([]secrets.Person, n)
				for i := range people {
					people[i] = secrets.Person{Name: fmt.Sprint("p", i), Secret: fmt.Appendf(nil, "a secret %07d", i)}
				}
				s := newOTPServer(b, people...)
				s.setting.Config.Daemon.MaxAttempts = 65536
				s.start(true)
				rng, p := rand.New(rand.NewPCG(7, 8)), s.syn(src, 1)
				b.ReportAllocs()
				b.ResetTimer()
				for range b.N {
					p.Src, p.Seq, p.DstPort = p.Src.Next(), p.Seq+1, uint16(20000+rng.IntN(20000))
					s.Observe(p, s.mono())
				}
			})
		}
	}
}
