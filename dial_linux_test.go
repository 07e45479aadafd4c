package sallyport_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/dns/dnsmessage"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/internal/spa"
)

// dial dials inside the client's namespace.
func (w *world) dial(ctx context.Context, d *sallyport.Dialer, network, address string) (conn net.Conn, err error) {
	w.client.Do(func() { conn, err = d.DialContext(ctx, network, address) })
	if err == nil {
		w.t.Cleanup(func() { conn.Close() })
	}
	return conn, err
}

func (w *world) port22() string { return net.JoinHostPort(w.remote.String(), "22") }

// opener opens the port as soon as the knock's last step was seen n times.
func (w *world) opener(tap *tap, last string, n int) {
	go func() { tap.await(last, n); w.open() }()
}

func TestDialOpensAPortThatDrops(t *testing.T) {
	onBothFamilies(t, func(t *testing.T, w *world) {
		w.listen("22")
		w.shut("tcp dport 22")
		tap := w.tap()
		w.opener(tap, "7800/tcp", 1)
		start := time.Now()
		conn, err := w.dial(t.Context(), &sallyport.Dialer{Knock: parse(t, "7000/tcp 8500/udp icmp 7800/tcp")}, "tcp", w.port22())
		if err != nil {
			t.Fatal(err)
		}
		// The kernel alone would repeat the first SYN after a second.
		if took := time.Since(start); took > 900*time.Millisecond {
			t.Errorf("it took %v: the tries are too slow", took)
		}
		if n := tap.count("7000/tcp"); n != 1 {
			t.Errorf("knocked %d times, want once", n)
		}
		if local := conn.LocalAddr().(*net.TCPAddr).AddrPort().Addr(); local != w.local {
			t.Errorf("the connection comes from %s, the knock from %s", local, w.local)
		}
	})
}

// The server refuses first, as a host without a listener does.
func TestDialOpensAPortThatRefuses(t *testing.T) {
	onBothFamilies(t, func(t *testing.T, w *world) {
		tap := w.tap()
		go func() { tap.await("22/tcp", 3); w.listen("22") }()
		if _, err := w.dial(t.Context(), &sallyport.Dialer{Knock: parse(t, "7000/tcp")}, "tcp", w.port22()); err != nil {
			t.Fatal(err)
		}
		if n := tap.count("22/tcp"); n > 6 {
			t.Errorf("%d tries: a refusal must not make it faster", n)
		}
	})
}

func TestDialKnocksAgain(t *testing.T) {
	onBothFamilies(t, func(t *testing.T, w *world) {
		w.listen("22")
		w.shut("tcp dport 22")
		tap := w.tap()
		w.opener(tap, "8500/udp", 2)
		start := time.Now()
		if _, err := w.dial(t.Context(), &sallyport.Dialer{Knock: parse(t, "7000/tcp 8500/udp")}, "tcp", w.port22()); err != nil {
			t.Fatal(err)
		}
		if n := tap.count("7000/tcp"); n != 2 {
			t.Errorf("knocked %d times, want twice", n)
		}
		if took := time.Since(start); took < 1275*time.Millisecond {
			t.Errorf("it knocked again too soon: all was over in %v", took)
		}
	})
}

// A server that has just started takes no one-time ports of the time step that it
// started in (they may have been used before), so the next step's are sent as soon as
// they are the ones, and at a fresh pace.
func TestDialSendsTheNextOneTimePorts(t *testing.T) {
	onBothFamilies(t, func(t *testing.T, w *world) {
		w.listen("22")
		w.shut("tcp dport 22")
		k := &sallyport.OTP{Door: "gate", Secret: []byte("0123456789abcdef0123"), Proto: sallyport.TCP, Pool: []sallyport.Span{{Low: 20000, High: 39999}}, Steps: 5, TimeStep: 5 * time.Second, Within: 5 * time.Second}
		tap := w.tap()
		begin := k.StepEnd(time.Now())
		time.Sleep(time.Until(begin))
		ports, _, err := k.Ports(begin.Add(k.TimeStep), w.local)
		if err != nil {
			t.Fatal(err)
		}
		w.opener(tap, fmt.Sprintf("%d/tcp", ports[4]), 2)
		// Windows that did not end with the step would have the first such knock after 9 s.
		if _, err := w.dial(t.Context(), &sallyport.Dialer{Knock: k, Timeout: 9 * time.Second}, "tcp", w.port22()); err != nil {
			t.Fatal(err)
		}
		if n := tap.count(fmt.Sprintf("%d/tcp", ports[0])); n != 2 {
			t.Errorf("knocked %d times with the next ports, want twice", n)
		}
	})
}

func TestDialKeepsToTheLocalAddressItIsGiven(t *testing.T) {
	onBothFamilies(t, func(t *testing.T, w *world) {
		w.listen("22")
		conn, err := w.dial(t.Context(), &sallyport.Dialer{Knock: parse(t, "7000/tcp"), Local: w.other}, "tcp", w.port22())
		if err != nil {
			t.Fatal(err)
		}
		if local := conn.LocalAddr().(*net.TCPAddr).AddrPort().Addr(); local != w.other {
			t.Errorf("the connection comes from %s, want %s", local, w.other)
		}
	})
}

func TestDialGivesUp(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	for _, test := range []struct{ name, rule, want string }{
		{"drop", "tcp dport 22", "knocks sent: 1, last try: no answer"},
		{"refuse", "tcp dport 23", "knocks sent: 1, last try: connection refused"},
	} {
		w := newWorld(t)
		w.shut(test.rule)
		for _, address := range []string{"192.0.2.2:22", "[2001:db8::2]:22"} {
			d := &sallyport.Dialer{Knock: parse(t, "7000/tcp"), Timeout: 200 * time.Millisecond}
			start := time.Now()
			_, err := w.dial(t.Context(), d, "tcp", address)
			var network net.Error
			if !errors.Is(err, context.DeadlineExceeded) || !errors.As(err, &network) || !network.Timeout() {
				t.Errorf("%s %s: %v is no timeout", test.name, address, err)
			} else if !strings.Contains(err.Error(), test.want) || !strings.HasPrefix(err.Error(), address+" did not open within ") {
				t.Errorf("%s: got %v, want %q", test.name, err, test.want)
			}
			if refused := errors.Is(err, syscall.ECONNREFUSED); refused != (test.name == "refuse") {
				t.Errorf("%s %s: refused: %v", test.name, address, refused)
			}
			if took := time.Since(start); took > 5*time.Second {
				t.Errorf("%s %s: it took %v", test.name, address, took)
			}
		}
	}
}

// The end may come when a try has just begun. The one before was refused, and
// that is what helps to know.
func TestARefusalIsNotForgotten(t *testing.T) {
	w := newWorld(t)
	for _, address := range []string{"192.0.2.2:22", "[2001:db8::2]:22"} {
		for i := range 20 { // the fifth try begins 75 ms after the first
			d := &sallyport.Dialer{Knock: parse(t, "8500/udp"), Timeout: 74*time.Millisecond + time.Duration(i)*200*time.Microsecond}
			if _, err := w.dial(t.Context(), d, "tcp", address); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("%v: got %v", d.Timeout, err)
			}
		}
	}
}

func TestDialEndsWithItsContext(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	w := newWorld(t)
	w.shut("tcp dport 22")
	for _, address := range []string{"192.0.2.2:22", "[2001:db8::2]:22"} {
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan time.Time, 1)
		time.AfterFunc(100*time.Millisecond, func() { ended <- time.Now(); cancel() })
		_, err := w.dial(ctx, &sallyport.Dialer{Knock: parse(t, "7000/tcp")}, "tcp", address)
		if late := time.Since(<-ended); !errors.Is(err, context.Canceled) || late > time.Second {
			t.Errorf("%s: %v, %v after the end", address, err, late)
		}
	}
}

func TestAConnectionOutlivesTheDialersTimeout(t *testing.T) {
	onBothFamilies(t, func(t *testing.T, w *world) {
		go echo(w.listen("22"))
		conn, err := w.dial(t.Context(), &sallyport.Dialer{Knock: parse(t, "7000/tcp"), Timeout: 300 * time.Millisecond}, "tcp", w.port22())
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(400 * time.Millisecond) // past the timeout: nothing else tells that it did nothing
		if _, err := io.WriteString(conn, "hello"); err != nil {
			t.Fatal(err)
		}
		conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := io.ReadFull(conn, make([]byte, 5)); err != nil {
			t.Errorf("the connection is dead: %v", err)
		}
	})
}

// echo answers every connection: a try that ran out of time may be one, too.
func echo(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			io.Copy(conn, conn)
		}()
	}
}

// names answers DNS questions without a network: the resolver's connection is
// a pipe.
type names struct {
	addrs     []netip.Addr
	questions atomic.Int32
}

func (n *names) resolver() *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		ours, theirs := net.Pipe()
		go n.serve(ours)
		return theirs, nil
	}}
}

// serve answers as over TCP: each message follows its length in two bytes
// (RFC 1035 section 4.2.2).
func (n *names) serve(conn net.Conn) {
	defer conn.Close()
	var length [2]byte
	if _, err := io.ReadFull(conn, length[:]); err != nil {
		return
	}
	text := make([]byte, binary.BigEndian.Uint16(length[:]))
	var m dnsmessage.Message
	if _, err := io.ReadFull(conn, text); err != nil || m.Unpack(text) != nil {
		return
	}
	n.questions.Add(1)
	m.Response, m.Additionals = true, nil
	for _, addr := range n.addrs {
		q := m.Questions[0]
		head := dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 60}
		switch {
		case q.Type == dnsmessage.TypeA && addr.Is4():
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: head, Body: &dnsmessage.AResource{A: addr.As4()}})
		case q.Type == dnsmessage.TypeAAAA && addr.Is6():
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: head, Body: &dnsmessage.AAAAResource{AAAA: addr.As16()}})
		}
	}
	if reply, err := m.AppendPack([]byte{0, 0}); err == nil {
		binary.BigEndian.PutUint16(reply, uint16(len(reply)-2))
		conn.Write(reply)
	}
}

func TestDialTriesEveryAddressOfAName(t *testing.T) {
	for _, test := range []struct{ name, network, open, want string }{
		{"only IPv4 opens", "tcp", "192.0.2.2", "192.0.2.2"},
		{"only IPv6 opens", "tcp", "2001:db8::2", "2001:db8::2"},
		{"asked for IPv4", "tcp4", "192.0.2.2", "192.0.2.2"},
		{"asked for IPv6", "tcp6", "2001:db8::2", "2001:db8::2"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.remote = netip.MustParseAddr(test.open)
			w.listen("22")
			tap := w.tap()
			// The unreachable addresses cost no time; only the first answers.
			names := &names{addrs: []netip.Addr{netip.MustParseAddr("203.0.113.9"), netip.MustParseAddr("2001:db8:ffff::9"),
				netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::2")}}
			d := &sallyport.Dialer{Knock: parse(t, "7000/tcp 8500/udp"), Resolver: names.resolver(), Timeout: 10 * time.Second}
			conn, err := w.dial(t.Context(), d, test.network, "server.example.:22")
			if err != nil {
				t.Fatal(err)
			}
			if got := conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr(); got.String() != test.want {
				t.Errorf("connected to %s, want %s", got, test.want)
			}
			for _, f := range tap.seen() {
				if test.network != "tcp" && f.src.Is4() != w.remote.Is4() {
					t.Errorf("%s was sent from %s", f.step, f.src)
				}
			}
		})
	}
}

// In each round each address gets a whole knock of its own, and the name is
// looked up no second time: the answer might be another one.
func TestDialLooksANameUpOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.shut("tcp dport 22")
	tap := w.tap()
	names := &names{addrs: []netip.Addr{netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::2")}}
	d := &sallyport.Dialer{Knock: parse(t, "7000/tcp 8500/udp"), Resolver: names.resolver(), Timeout: 4 * time.Second}
	if _, err := w.dial(t.Context(), d, "tcp", "server.example.:22"); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	var knocks []bool // by family
	for _, f := range tap.seen() {
		switch f.step {
		case "7000/tcp":
			knocks = append(knocks, f.src.Is4())
		case "8500/udp":
			if f.src.Is4() != knocks[len(knocks)-1] {
				t.Errorf("one knock went to two addresses")
			}
		}
	}
	if len(knocks) != 3 || knocks[0] == knocks[1] || knocks[0] != knocks[2] {
		t.Errorf("knocks over IPv4: %v; want the two families in turn, three in all", knocks)
	}
	if n := names.questions.Load(); n != 2 { // one A, one AAAA
		t.Errorf("%d questions were asked, want 2", n)
	}
}

// Whoever knocks without connecting can't know the family of what will connect,
// so each gets a knock, at one address of its own.
func TestSendKnocksOnceInEachFamily(t *testing.T) {
	const both = "192.0.2.2 192.0.2.9 2001:db8::2 2001:db8::9"
	for _, test := range []struct{ name, network, addrs, local, want string }{
		{"both", "ip", both, "", "192.0.2.2 2001:db8::2"},
		{"asked for IPv4", "ip4", both, "", "192.0.2.2"},
		{"asked for IPv6", "ip6", both, "", "2001:db8::2"},
		{"only IPv4", "ip", "192.0.2.2", "", "192.0.2.2"},
		{"only IPv6", "ip", "2001:db8::2", "", "2001:db8::2"},
		{"no route over IPv6", "ip", "192.0.2.2 2001:db8:ffff::2", "", "192.0.2.2"},
		{"no route over IPv4", "ip", "203.0.113.2 2001:db8::2", "", "2001:db8::2"},
		{"from IPv4", "ip", both, "192.0.2.1", "192.0.2.2"},
		{"from IPv6", "ip", both, "2001:db8::1", "2001:db8::2"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			tap := w.tap()
			names := &names{}
			for field := range strings.FieldsSeq(test.addrs) {
				names.addrs = append(names.addrs, netip.MustParseAddr(field))
			}
			key := newKey(t)
			d := &sallyport.Dialer{Knock: &sallyport.Request{Server: newServer(t, spa.Classic).Address(), Signer: key}, Resolver: names.resolver()}
			if test.local != "" {
				d.Local = netip.MustParseAddr(test.local)
			}
			var sent []netip.Addr
			var err error
			w.client.Do(func() { sent, err = d.Send(t.Context(), test.network, "server.example.") })
			slices.SortFunc(sent, netip.Addr.Compare) // the resolver's order is the system's matter
			if got := strings.Trim(fmt.Sprint(sent), "[]"); err != nil || got != test.want {
				t.Fatalf("got %s, %v; want %s", got, err, test.want)
			}
			if key.signed != len(sent) {
				t.Errorf("%d signatures for %d addresses", key.signed, len(sent))
			}
			tap.await("62201/udp", 3*len(sent))
			families := map[bool]int{}
			for _, f := range tap.seen() {
				families[f.src.Is4()]++
			}
			for _, a := range sent {
				if families[a.Is4()] != 3 {
					t.Errorf("%d copies from the family of %s, want 3", families[a.Is4()], a)
				}
			}
		})
	}
}

func TestSendSaysWhyNoAddressGotAKnock(t *testing.T) {
	w := newWorld(t)
	names := &names{addrs: []netip.Addr{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8:ffff::1")}}
	d := &sallyport.Dialer{Knock: parse(t, "7000/tcp"), Resolver: names.resolver()}
	var sent []netip.Addr
	var err error
	w.client.Do(func() { sent, err = d.Send(t.Context(), "ip", "server.example.") })
	for _, want := range []string{"no route to 203.0.113.1: network is unreachable", "no route to 2001:db8:ffff::1: network is unreachable"} {
		if err == nil || len(sent) > 0 || !strings.Contains(err.Error(), want) {
			t.Errorf("sent to %v: got %v, want %q", sent, err, want)
		}
	}
	// A key that does not sign is asked once, and the path that is too narrow for
	// one family leaves the other its knock.
	d.Knock = &sallyport.Request{Server: newServer(t, spa.Classic).Address(), Signer: &stubKey{newKey(t).PublicKey()}}
	names.addrs = []netip.Addr{netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::2")}
	w.client.Do(func() { sent, err = d.Send(t.Context(), "ip", "server.example.") })
	if err == nil || len(sent) > 0 || strings.Count(err.Error(), "it was asked to sign") != 1 {
		t.Errorf("sent to %v, %v", sent, err)
	}
	w.client.Run("ip", "link", "set", "dev", w.clientWire, "mtu", "1410") // IPv6 needs 1,420, IPv4 1,400
	d.Knock = &sallyport.Request{Server: newServer(t, spa.PostQuantum).Address(), Signer: newKey(t)}
	w.client.Do(func() { sent, err = d.Send(t.Context(), "ip", "server.example.") })
	if len(sent) != 1 || sent[0] != names.addrs[0] || err == nil || !strings.Contains(err.Error(), "could not be sent to 2001:db8::2: message too long") {
		t.Errorf("sent to %v, %v", sent, err)
	}
}

func TestDialSaysWhatIsWrongAtOnce(t *testing.T) {
	w := newWorld(t)
	for _, test := range []struct{ steps, network, address, want string }{
		{"7000/tcp", "udp", "192.0.2.2:22", "must be tcp, tcp4 or tcp6"},
		{"7000/tcp", "tcp", "192.0.2.2", "missing port"},
		{"7000/tcp", "tcp", "192.0.2.2:nosuch", "unknown port"},
		{"7000/tcp", "tcp4", "[2001:db8::2]:22", "no suitable address"},
		{"7000/tcp", "tcp6", "192.0.2.2:22", "no suitable address"},
		{"7000/tcp", "tcp", "203.0.113.1:22", "no route to 203.0.113.1: network is unreachable"},
		{"7000/tcp", "tcp", "[2001:db8:ffff::1]:22", "no route to 2001:db8:ffff::1: network is unreachable"},
		{"", "tcp", "192.0.2.2:22", "no steps"},
	} {
		knock, _ := sallyport.ParseSequence(test.steps)
		start := time.Now()
		_, err := w.dial(t.Context(), &sallyport.Dialer{Knock: knock}, test.network, test.address)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s %s: got %v, want %q", test.network, test.address, err, test.want)
		}
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("%s %s: it took %v to say so", test.network, test.address, took)
		}
	}
}
