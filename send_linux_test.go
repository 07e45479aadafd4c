package sallyport_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/internal/spa"
)

// copyOf is one datagram as the server's kernel hands it out.
type copyOf struct {
	at      time.Time
	from    string // address and source port; of a ping address and identifier
	payload []byte
}

// hear listens for one transport's datagrams at the server.
func (w *world) hear(over sallyport.Transport) func(n int) []copyOf {
	w.t.Helper()
	network := map[sallyport.Transport]string{sallyport.OverUDP: "udp", sallyport.OverICMP: "ip4:icmp", sallyport.OverTCP: "ip4:tcp"}[over]
	if w.remote.Is6() {
		network = map[sallyport.Transport]string{sallyport.OverUDP: "udp", sallyport.OverICMP: "ip6:ipv6-icmp", sallyport.OverTCP: "ip6:tcp"}[over]
	}
	address := w.remote.String()
	if over == sallyport.OverUDP {
		address = net.JoinHostPort(address, "62201")
	}
	var conn net.PacketConn
	var err error
	w.server.Do(func() { conn, err = net.ListenPacket(network, address) })
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { conn.Close() })
	return func(n int) (copies []copyOf) {
		for len(copies) < n {
			conn.SetReadDeadline(time.Now().Add(5 * time.Second))
			b := make([]byte, 2048)
			n, from, err := conn.ReadFrom(b)
			if err != nil {
				w.t.Fatalf("after %d copies: %v", len(copies), err)
			}
			if c, ok := w.copyIn(over, b[:n], from.String()); ok {
				c.at = time.Now()
				copies = append(copies, c)
			}
		}
		return copies
	}
}

// copyIn takes the headers off.
func (w *world) copyIn(over sallyport.Transport, b []byte, from string) (copyOf, bool) {
	switch {
	case over == sallyport.OverUDP:
		return copyOf{from: from, payload: b}, true
	case over == sallyport.OverICMP:
		if b[0] != 8 && b[0] != 128 { // echo requests, RFC 792 and RFC 4443
			return copyOf{}, false
		}
		return copyOf{from: from + " " + string(b[4:6]), payload: b[8:]}, true
	case binary.BigEndian.Uint16(b[2:]) != 62201:
		return copyOf{}, false
	}
	if b[13] != 0x02 || b[12] != 5<<4 || !w.sumsUp(b) {
		w.t.Errorf("no SYN as it should be: % x", b[:20])
	}
	return copyOf{from: from + " " + string(b[:2]), payload: b[20:]}, true
}

// sumsUp checks a segment as RFC 1071 says: with its checksum the sum is all ones.
func (w *world) sumsUp(segment []byte) bool {
	b := append(append(w.local.AsSlice(), w.remote.AsSlice()...), 0, 6, byte(len(segment)>>8), byte(len(segment)))
	b = append(b, segment...)
	if len(b)%2 == 1 {
		b = append(b, 0)
	}
	sum := uint32(0)
	for ; len(b) > 0; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	return uint16(sum)+uint16(sum>>16) == 0xffff
}

var allTransports = []sallyport.Transport{sallyport.OverUDP, sallyport.OverICMP, sallyport.OverTCP}

func TestARequestIsThreeCopiesOnTheWire(t *testing.T) {
	onBothFamilies(t, func(t *testing.T, w *world) {
		for _, over := range allTransports {
			heard := w.hear(over)
			for _, s := range bothSuites {
				server, key := newServer(t, s.suite), newKey(t)
				r := sallyport.Request{Server: server.Address(), Signer: key, Over: over}
				if err := w.send(t.Context(), &r, w.remote); err != nil {
					t.Fatal(err)
				}
				copies := heard(3)
				senders := map[string]bool{}
				for _, c := range copies {
					senders[c.from] = true
					if !bytes.Equal(c.payload, copies[0].payload) {
						t.Errorf("%v: the copies differ", over)
					}
				}
				if len(senders) != 3 {
					t.Errorf("%v: sent from %v, want three flows", over, senders)
				}
				o, err := open(server, copies[0].payload, key.PublicKey())
				if err != nil || !o.Own || o.Stated()[0] != w.local {
					t.Errorf("%v %v: %+v, %v", over, s.suite, o, err)
				}
				if key.signed != 1 {
					t.Errorf("%d signatures", key.signed)
				}
			}
		}
	})
}

// The pauses outlast a burst of losses and keep offloads from joining the
// copies. A busy machine may be wrong for once, not ten times.
func TestThePausesBetweenTheCopies(t *testing.T) {
	onBothFamilies(t, func(t *testing.T, w *world) {
		r := sallyport.Request{Server: newServer(t, spa.Classic).Address(), Signer: newKey(t)}
		heard := w.hear(sallyport.OverUDP)
		var first, second time.Duration
		for range 10 {
			times := make(chan []copyOf, 1)
			go func() { times <- heard(3) }()
			start := time.Now()
			if err := w.send(t.Context(), &r, w.remote); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(start); took < 90*time.Millisecond {
				t.Fatalf("all three were sent within %v", took)
			}
			c := <-times
			first, second = c[1].at.Sub(c[0].at), c[2].at.Sub(c[1].at)
			if first > 25*time.Millisecond && first < 45*time.Millisecond && second > 55*time.Millisecond && second < 75*time.Millisecond {
				return
			}
		}
		t.Errorf("pauses of %v and %v, want 30 and 60 ms", first, second)
	})
}

// Nothing listens: each copy is answered with "port unreachable".
func TestAnUnreachablePortIsNoError(t *testing.T) {
	onBothFamilies(t, func(t *testing.T, w *world) {
		for _, over := range allTransports {
			r := sallyport.Request{Server: newServer(t, spa.Classic).Address(), Signer: newKey(t), Over: over}
			if err := w.send(t.Context(), &r, w.remote); err != nil {
				t.Errorf("%v: %v", over, err)
			}
		}
	})
}

// A server declines fragments, so what would be cut up must not count as sent.
func TestAPathThatIsTooNarrow(t *testing.T) {
	onBothFamilies(t, func(t *testing.T, w *world) {
		w.client.Run("ip", "link", "set", "dev", w.clientWire, "mtu", "1399") // 1,400 are needed over IPv4 and UDP
		for _, over := range allTransports {
			r := sallyport.Request{Server: newServer(t, spa.PostQuantum).Address(), Signer: newKey(t), Over: over}
			err := w.send(t.Context(), &r, w.remote)
			if !errors.Is(err, unix.EMSGSIZE) || !strings.Contains(err.Error(), "message too long: the path does not take its 1372 bytes in one piece") {
				t.Errorf("%v: got %v", over, err)
			}
			r.Server = newServer(t, spa.Classic).Address()
			if err := w.send(t.Context(), &r, w.remote); err != nil {
				t.Errorf("%v: a classic datagram: %v", over, err)
			}
		}
	})
}

// unprivileged runs f on a thread without CAP_NET_RAW.
func (w *world) unprivileged(f func()) {
	w.client.Do(func() { // on a thread of its own, which ends with it
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		if err := unix.Capset(&header, &none[0]); err != nil {
			w.t.Errorf("capset: %v", err)
			return
		}
		f()
	})
}

func TestSendSaysWhatPrivilegeItNeeds(t *testing.T) {
	onBothFamilies(t, func(t *testing.T, w *world) {
		for _, test := range []struct {
			over sallyport.Transport
			want string
		}{
			{sallyport.OverUDP, ""},
			{sallyport.OverICMP, "this user may not send pings: allow it with sysctl"},
			{sallyport.OverTCP, "this user may not send a SYN with data: give this program CAP_NET_RAW"},
		} {
			r := sallyport.Request{Server: newServer(t, spa.Classic).Address(), Signer: newKey(t), Over: test.over}
			plan, err := r.Plan(w.local, w.remote)
			if err != nil {
				t.Fatal(err)
			}
			w.unprivileged(func() { err = plan.Send(t.Context()) })
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("%v: got %v, want %q", test.over, err, test.want)
			}
		}
		w.client.Run("sysctl", "-w", "net.ipv4.ping_group_range=0 2147483647")
		r := sallyport.Request{Server: newServer(t, spa.PostQuantum).Address(), Signer: newKey(t), Over: sallyport.OverICMP}
		plan, err := r.Plan(w.local, w.remote)
		if err != nil {
			t.Fatal(err)
		}
		heard := w.hear(sallyport.OverICMP)
		w.unprivileged(func() { err = plan.Send(t.Context()) })
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range heard(3) {
			if len(c.payload) != spa.PostQuantumSize {
				t.Errorf("a ping of %d bytes", len(c.payload))
			}
		}
	})
}

// serve plays a server: it opens the port for the first datagram that is right.
func (w *world) serve(server *spa.ServerKey, publicKey []byte) *atomic.Int32 {
	heard, count := w.hear(sallyport.OverUDP), new(atomic.Int32)
	done := make(chan struct{})
	go func() {
		defer close(done)
		c := heard(1)[0]
		count.Add(1)
		if o, err := open(server, c.payload, publicKey); err != nil || o.Action != spa.Open || o.Stated()[0] != w.local {
			w.t.Errorf("%+v, %v", o, err)
		}
		w.open()
	}()
	w.t.Cleanup(func() { <-done })
	return count
}

func TestDialWithARequest(t *testing.T) {
	for _, loss := range []string{"", "udp dport 62201 numgen inc mod 3 == 0", "udp dport 62201 numgen inc mod 3 != 2"} {
		t.Run(loss, func(t *testing.T) {
			onBothFamilies(t, func(t *testing.T, w *world) {
				w.listen("22")
				w.shut("tcp dport 22")
				if loss != "" {
					w.server.Input("table inet loss { chain in { type filter hook prerouting priority -300; "+loss+" drop; }; }\n", "nft", "-f", "-")
				}
				server, key := newServer(t, spa.Classic), newKey(t)
				w.serve(server, key.PublicKey())
				start := time.Now()
				d := sallyport.Dialer{Knock: &sallyport.Request{Server: server.Address(), Signer: key}}
				conn, err := w.dial(t.Context(), &d, "tcp", w.port22())
				if err != nil {
					t.Fatal(err)
				}
				if local := conn.LocalAddr().(*net.TCPAddr).AddrPort().Addr(); local != w.local {
					t.Errorf("the connection comes from %s, the knock from %s", local, w.local)
				}
				if took := time.Since(start); took > 900*time.Millisecond {
					t.Errorf("it took %v", took)
				}
				if key.signed != 1 {
					t.Errorf("%d signatures", key.signed)
				}
			})
		})
	}
}

// A hardware key must not be touched for every retry.
func TestDialSignsOnceForSeveralWindows(t *testing.T) {
	onBothFamilies(t, func(t *testing.T, w *world) {
		w.shut("tcp dport 22")
		key := newKey(t)
		tap := w.tap()
		d := sallyport.Dialer{Knock: &sallyport.Request{Server: newServer(t, spa.Classic).Address(), Signer: key}, Timeout: 2 * time.Second}
		_, err := w.dial(t.Context(), &d, "tcp", w.port22())
		want := "knocks sent: 2, last try: no answer): the key may not be in the server's authorized_keys, or the clock may be wrong"
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
		tap.await("62201/udp", 6)
		if key.signed != 1 {
			t.Errorf("%d signatures for two windows", key.signed)
		}
	})
}

// shortLived is a knock whose plans are too old at once.
type shortLived struct {
	sallyport.Sequence
	plans atomic.Int32
}

func (k *shortLived) Plan(local, remote netip.Addr) (*sallyport.Plan, error) {
	k.plans.Add(1)
	p, err := k.Sequence.Plan(local, remote)
	if err == nil {
		p.Until = time.Now()
	}
	return p, err
}

func TestDialPlansAnewWhatIsTooOld(t *testing.T) {
	onBothFamilies(t, func(t *testing.T, w *world) {
		w.shut("tcp dport 22")
		knock := &shortLived{Sequence: parse(t, "7000/tcp")}
		d := sallyport.Dialer{Knock: knock, Timeout: 2 * time.Second}
		if _, err := w.dial(t.Context(), &d, "tcp", w.port22()); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		if n := knock.plans.Load(); n != 2 {
			t.Errorf("%d plans for two windows", n)
		}
	})
}

// untouched is a hardware key that nobody touches.
type untouched struct {
	*memoryKey
	end chan struct{}
}

func (k untouched) Sign([]byte) ([]byte, error) { <-k.end; return nil, errors.New("not touched") }

func TestDialDoesNotWaitForATouchForEver(t *testing.T) {
	onBothFamilies(t, func(t *testing.T, w *world) {
		key := untouched{newKey(t), make(chan struct{})}
		defer close(key.end)
		d := sallyport.Dialer{Knock: &sallyport.Request{Server: newServer(t, spa.Classic).Address(), Signer: key}, Timeout: 100 * time.Millisecond}
		start := time.Now()
		_, err := w.dial(t.Context(), &d, "tcp", w.port22())
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 5*time.Second {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
	})
}
