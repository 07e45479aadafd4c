package nft

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/sallyport/sallyport/internal/testnet"
)

// guardingOnce is guarding with services that one connection uses up: on this host
// 22/tcp and 53/udp, and behind it 22/tcp.
func guardingOnce(as config.ClosedAs) *config.Config {
	cfg := guarding(as, "22/tcp")
	cfg.Services = append(cfg.Services, service(as, "53/udp"), service(as, "22/tcp"), service(as, "80/tcp"))
	for i := range 3 {
		cfg.Services[i].Once = true
	}
	cfg.Services[2].On = []netip.Addr{away4, away6}
	return cfg
}

// once is a grant for one connection.
func once(e Element) Element { e.Once = true; return e }

func udp(addr netip.Addr, port uint16, ttl time.Duration) Element {
	e := tcp(addr, port, ttl)
	e.Proto = sequence.UDP
	return e
}

// looksOf are the looks of a closed port, and how a stranger finds it.
var looksOf = []struct {
	as   config.ClosedAs
	want string
}{{config.Auto, closed}, {config.Drop, silent}, {config.Reject, closed}}

// TestOnce: the first connection uses the grant up and lives on, with nobody of ours
// there, on this host and behind it; the next grant lets the next one in.
func TestOnce(t *testing.T) {
	t.Parallel()
	for _, look := range looksOf {
		w, third := newRouter(t)
		greet(t, w.host, "", 22)
		greet(t, third, "", 22)
		w.apply(guardingOnce(look.as), Options{})
		for i, p := range pairs {
			away := []netip.Addr{away4, away6}[i]
			onward := once(tcp(p.stranger, 22, time.Minute))
			onward.On = away
			for range 2 {
				name := look.as.String() + " " + p.name
				expect(t, name+" before", try(w.out, p.stranger, p.host, 22), look.want)
				w.grant(once(tcp(p.stranger, 22, time.Minute)), onward)
				for _, to := range []netip.Addr{p.host, away} {
					c, err := dial(w.out, p.stranger, to, 22, time.Second)
					if err != nil {
						t.Fatal(name, to, err)
					}
					defer c.Close()
					expect(t, name+" a second one", try(w.out, p.stranger, to, 22), look.want)
					echoes(t, c)
				}
				if got := w.grants(); len(got) != 0 {
					t.Errorf("%s: used up, and listed are %v", name, got)
				}
			}
			w.grant(once(tcp(p.stranger, 22, time.Minute)))
			expect(t, "somebody else", try(w.out, p.bystander, p.host, 22), look.want)
			expect(t, "after somebody else", try(w.out, p.stranger, p.host, 22), open)
		}
	}
}

// TestOnceUDP: the first datagram uses the grant up, and its conversation goes on.
func TestOnceUDP(t *testing.T) {
	t.Parallel()
	for _, look := range looksOf {
		w := newWorld(t)
		echo(t, w.host, 53)
		w.apply(guardingOnce(look.as), Options{})
		for _, p := range pairs {
			name := look.as.String() + " " + p.name
			expect(t, name+" before", tryUDP(w.out, p.stranger, p.host, 53), look.want)
			w.grant(once(udp(p.stranger, 53, time.Minute)))
			first := dialUDP(t, w.out, p.stranger, p.host, 53)
			echoes(t, first)
			expect(t, name+" another", tryUDP(w.out, p.stranger, p.host, 53), look.want)
			echoes(t, first)
			w.grant(once(udp(p.stranger, 53, time.Minute)))
			expect(t, name+" granted anew", tryUDP(w.out, p.stranger, p.host, 53), open)
		}
	}
}

// dialUDP gives one end of a conversation.
func dialUDP(t *testing.T, ns *testnet.Namespace, from, to netip.Addr, port uint16) net.Conn {
	t.Helper()
	var c net.Conn
	var err error
	d := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0))}
	ns.Do(func() { c, err = d.Dial("udp", netip.AddrPortFrom(to, port).String()) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// TestOnceSeveralDatagrams: what comes before the server's first answer is of the
// same conversation.
func TestOnceSeveralDatagrams(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.apply(guardingOnce(config.Drop), Options{})
	for _, p := range pairs {
		heard := make(chan struct{}, 16)
		var l net.PacketConn
		w.host.Do(func() { l, _ = net.ListenPacket("udp", netip.AddrPortFrom(p.host, 53).String()) })
		defer l.Close()
		go func() {
			for b := make([]byte, 8); ; heard <- struct{}{} {
				if _, _, err := l.ReadFrom(b); err != nil {
					return
				}
			}
		}()
		w.grant(once(udp(p.stranger, 53, time.Minute)))
		first, second := dialUDP(t, w.out, p.stranger, p.host, 53), dialUDP(t, w.out, p.stranger, p.host, 53)
		for range 3 {
			first.Write([]byte("x"))
			second.Write([]byte("x"))
			time.Sleep(50 * time.Millisecond)
		}
		if n := len(heard); n != 3 {
			t.Errorf("%s: the server heard %d datagrams, want 3", p.name, n)
		}
	}
}

// TestOnceTwoAtOnce: of connections that are begun in the same moment one comes in,
// and the server accepts one.
func TestOnceTwoAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	greet(t, w.host, "", 22)
	w.apply(guardingOnce(config.Auto), Options{})
	for i := range 60 {
		p := pairs[i%2]
		w.grant(once(tcp(p.stranger, 22, time.Minute)))
		var group sync.WaitGroup
		answers := make([]string, 4)
		for j := range answers {
			group.Go(func() { answers[j] = try(w.out, p.stranger, p.host, 22) })
		}
		group.Wait()
		if n := strings.Count(strings.Join(answers, " "), open); n != 1 {
			t.Fatalf("%s, round %d: %d of %q", p.name, i, n, answers)
		}
	}
}

// TestOnceRepeatedSYN: a SYN-ACK was lost, or the server gave none, so the SYN comes
// again, and the connection is still the first. Conntrack has seen the answer or not.
func TestOnceRepeatedSYN(t *testing.T) {
	t.Parallel()
	for _, priority := range []string{"filter", "-300"} {
		w := newWorld(t)
		greet(t, w.host, "", 22)
		w.apply(guardingOnce(config.Drop), Options{})
		w.host.Input(`table inet lossy { chain out { type filter hook output priority `+priority+`;
			tcp sport 22 tcp flags & (syn|ack) == syn|ack drop
			}
		}`, "nft", "-f", "-")
		for _, p := range pairs {
			w.grant(once(tcp(p.stranger, 22, time.Minute)))
		}
		done := make(chan error, 2)
		for _, p := range pairs {
			go func() {
				_, err := dial(w.out, p.stranger, p.host, 22, 10*time.Second)
				done <- err
			}()
		}
		time.Sleep(500 * time.Millisecond) // before the SYN is repeated
		w.host.Run("nft", "delete", "table", "inet", "lossy")
		for range pairs {
			if err := <-done; err != nil {
				t.Errorf("%s: %v", priority, err)
			}
		}
		for _, p := range pairs {
			expect(t, p.name, try(w.out, p.stranger, p.host, 22), silent)
		}
	}
}

// TestPromise4ForgedPacketsUseNoGrantUp: whoever writes another's address into his
// packets has not heard the answer, so that what he sends counts for nothing. Of
// 65,000 forged packets one guesses the server's number, so that a second look is due.
func TestPromise4ForgedPacketsUseNoGrantUp(t *testing.T) {
	t.Parallel()
	for i := range 2 * len(looksOf) {
		look := looksOf[i/2]
		w := newWorld(t)
		greet(t, w.host, "", 22)
		w.apply(guardingOnce(look.as), Options{})
		if i%2 == 1 { // an owner behind a firewall of his own gives no RST for the SYN-ACK
			w.out.Input("table inet mute { chain out { type filter hook output priority 0; tcp flags & rst == rst drop; }; }", "nft", "-f", "-")
		}
		for _, p := range pairs {
			first := w.forge(t, p, 30000)
			if !first && !w.forge(t, p, 31000) {
				t.Errorf("%v %s: forged packets used the grant up, twice", look.as, p.name)
				continue
			}
			expect(t, p.name+" the owner", try(w.out, p.stranger, p.host, 22), open)
			expect(t, p.name+" used up", try(w.out, p.stranger, p.host, 22), look.want)
		}
	}
}

// forge sends all kinds of packets in a grant's owner's name, and reports whether the
// grant is there still.
func (w *world) forge(t *testing.T, p pair, first uint16) bool {
	t.Helper()
	wire := w.out.Wire(w.outEnd, w.host.MAC(w.hostEnd))
	w.grant(once(tcp(p.stranger, 22, time.Minute)))
	for n := range uint16(24) {
		from, to := netip.AddrPortFrom(p.stranger, first+n), netip.AddrPortFrom(p.host, 22)
		for _, flags := range [][]byte{
			{flagACK, flagSYN, flagACK, flagRST | flagACK, flagFIN | flagACK, flagACK | 8},
			{flagSYN, flagACK, flagSYN, flagFIN | flagACK, flagACK, flagSYN | flagACK},
			{flagSYN, flagRST | flagACK, flagACK, flagRST, flagSYN, flagACK},
			{flagACK, flagACK, flagSYN, flagACK, flagACK, flagACK},
		}[n%4] {
			seq := uint32(1000)
			if n%8 < 4 && flags != flagSYN {
				seq++
			}
			wire.Send(t, testnet.TCP(from, to, flags, seq))
		}
	}
	return len(w.grants()) == 1
}

// TestOnceExpiresAndIsRevoked: until it is used it is a grant like another.
func TestOnceExpiresAndIsRevoked(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	greet(t, w.host, "", 22)
	cfg := guardingOnce(config.Drop)
	w.apply(cfg, Options{})
	for _, p := range pairs {
		e := once(tcp(p.stranger, 22, time.Minute))
		w.grant(e)
		w.apply(cfg, Options{}) // a reload keeps it
		if held, err := w.table.Holds(e); !held || err != nil || w.left(e) < 50*time.Second {
			t.Errorf("%s: %v, %v, %v left", p.name, held, err, w.left(e))
		}
		if err := w.table.Revoke([]Element{e}); err != nil {
			t.Error(err)
		}
		if held, err := w.table.Holds(e); held || err != nil {
			t.Errorf("%s revoked: %v, %v", p.name, held, err)
		}
		expect(t, p.name+" revoked", try(w.out, p.stranger, p.host, 22), silent)
		e.TTL = 300 * time.Millisecond
		w.grant(e)
		time.Sleep(400 * time.Millisecond)
		expect(t, p.name+" ended", try(w.out, p.stranger, p.host, 22), silent)
		w.grant(once(tcp(p.stranger, 22, time.Minute)))
	}
	// What was for one connection does not become a grant for many, nor the reverse.
	cfg.Services[0].Once = false
	w.apply(cfg, Options{})
	if got := w.grants(); len(got) != 0 {
		t.Errorf("after a reload without once: %v", got)
	}
}

// TestWide: a network's grant lets all of it in and nobody beside it, on this host
// and behind it, whatever else is granted.
func TestWide(t *testing.T) {
	t.Parallel()
	for _, oneConnection := range []bool{false, true} {
		w, third := newRouter(t)
		greet(t, w.host, "", 22)
		greet(t, third, "", 22)
		cfg := guardingOnce(config.Drop)
		for i := range cfg.Services {
			cfg.Services[i].Once = oneConnection && cfg.Services[i].Name == "s"
		}
		// 192.0.2.2 and .3 are in 192.0.2.2/31, and ::2 and ::3 in ::2/127; the host's
		// own address is in neither.
		cfg.Knocks = []config.Knock{{Widths: prefixes("0.0.0.0/31", "::/127", "0.0.0.0/8", "::/3", "::/127")}}
		w.apply(cfg, Options{})
		for i, p := range pairs {
			name := fmt.Sprintf("%s once=%v", p.name, oneConnection)
			away := []netip.Addr{away4, away6}[i]
			bits := []uint8{31, 127}[i]
			here := Element{Once: oneConnection, Bits: bits, Addr: p.stranger, Proto: sequence.TCP, Port: 22, TTL: time.Minute, By: "w"}
			there := here
			there.On = away
			beside := here
			beside.Addr, _ = netip.AddrFromSlice(p.host.AsSlice())
			if prefix, _ := beside.Addr.Prefix(int(bits)); true {
				beside.Addr = prefix.Addr() // the network of the host's own address
			}
			w.grant(beside)
			expect(t, name+" beside", try(w.out, p.stranger, p.host, 22), silent)
			w.grant(here, there)
			w.apply(cfg, Options{})
			if got := w.grants(); len(got) != 3 {
				t.Errorf("%s: listed are %v", name, got)
			}
			expect(t, name, try(w.out, p.stranger, p.host, 22), open)
			expect(t, name+" away", try(w.out, p.bystander, away, 22), open)
			want := open
			if oneConnection {
				want = silent
			}
			expect(t, name+" another", try(w.out, p.bystander, p.host, 22), want)
			expect(t, name+" another away", try(w.out, p.stranger, away, 22), want)
			if err := w.table.Revoke([]Element{here, there, beside}); err != nil {
				t.Error(err)
			}
			expect(t, name+" revoked", try(w.out, p.bystander, p.host, 22), silent)
		}
		// Without the width in the config its grants are gone.
		w.grant(Element{Once: oneConnection, Bits: 8, Addr: netip.MustParseAddr("192.0.0.0"), Proto: sequence.TCP, Port: 22, TTL: time.Minute})
		cfg.Knocks = nil
		w.apply(cfg, Options{})
		if got := w.grants(); len(got) != 0 {
			t.Errorf("without widths: %v", got)
		}
	}
}

// TestWideRefusesWhatNoPacketWouldFind: a network has one spelling.
func TestWideRefusesWhatNoPacketWouldFind(t *testing.T) {
	t.Parallel()
	for _, p := range pairs {
		for name, e := range map[string]Element{
			"not masked":     {Addr: p.bystander, Bits: 24},
			"one address":    {Addr: p.stranger, Bits: uint8(p.stranger.BitLen())},
			"too long":       {Addr: p.stranger, Bits: 200},
			"a wide cut":     {Addr: p.stranger, Bits: uint8(p.stranger.BitLen() - 1), Cut: true},
			"a cut for once": {Addr: p.stranger, Once: true, Cut: true},
		} {
			e.Proto, e.Port, e.TTL = sequence.TCP, 22, time.Minute
			if err := e.check(); err == nil {
				t.Errorf("%s %s: accepted", p.name, name)
			}
		}
	}
}

// TestKindNames: each set's name says what it is for, and no other name does.
func TestKindNames(t *testing.T) {
	seen := map[string]bool{}
	for _, f := range families {
		for _, bits := range []uint8{0, 1, 24, 127} {
			for _, k := range []kind{{}, {once: true}, {forward: true}, {once: true, forward: true}} {
				k.family, k.bits = f, bits
				if got, ok := kindOf(k.name()); !ok || got != k || seen[k.name()] {
					t.Errorf("%+v is %s is %+v, %v", k, k.name(), got, ok)
				}
				seen[k.name()] = true
			}
		}
	}
	for _, name := range []string{"open", "open5", "openon", "hidden_auto", "half4", "flow6", "allow4", "wide4", "open24_4", "wide024_4", "wide256_4", "next_open4", "cut24_6"} {
		if k, ok := kindOf(name); ok {
			t.Errorf("%s is %+v", name, k)
		}
	}
}
