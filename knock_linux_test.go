package sallyport_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/internal/testnet"
)

func parse(t *testing.T, text string) sallyport.Sequence {
	t.Helper()
	knock, err := sallyport.ParseSequence(text)
	if err != nil {
		t.Fatal(err)
	}
	return knock
}

// send sends inside the client's namespace, from the address that the system
// would use.
func (w *world) send(ctx context.Context, knock sallyport.Knock, remote netip.Addr) error {
	return sendIn(ctx, w.client, knock, netip.Addr{}, remote)
}

func sendIn(ctx context.Context, ns *testnet.Namespace, knock sallyport.Knock, local, remote netip.Addr) (err error) {
	ns.Do(func() {
		var plan *sallyport.Plan
		if plan, err = knock.Plan(local, remote); err == nil {
			err = plan.Send(ctx)
		}
	})
	return err
}

// The server drops every step, which is when a kernel would repeat a SYN.
func TestSendPutsOnePacketPerStepOnTheWire(t *testing.T) {
	onBothFamilies(t, func(t *testing.T, w *world) {
		w.shut("meta l4proto { tcp, udp }")
		tap := w.tap()
		want := "7000/tcp 8500/udp 37/icmp 7000/tcp 8500/udp 56/icmp 0/icmp 7800/tcp"
		if err := w.send(t.Context(), parse(t, strings.Replace(want, "56/icmp", "icmp", 1)), w.remote); err != nil {
			t.Fatal(err)
		}
		// The first repeat comes 1 s after its SYN (RFC 6298 section 2); that
		// nothing comes is no event, so this wait is a plain one.
		time.Sleep(1300 * time.Millisecond)
		var got []string
		for _, f := range tap.seen() {
			got = append(got, f.step)
			if f.src != w.local {
				t.Errorf("%s came from %s", f.step, f.src)
			}
		}
		if strings.Join(got, " ") != want {
			t.Errorf("got  %v\nwant %s", got, want)
		}
	})
}

func TestSendThroughPortsThatAnswer(t *testing.T) {
	onBothFamilies(t, func(t *testing.T, w *world) {
		live := w.listen("443")
		tap := w.tap()
		if err := w.send(t.Context(), parse(t, "443/tcp 7000/tcp 443/tcp 8501/udp"), w.remote); err != nil {
			t.Fatal(err)
		}
		tap.await("8501/udp", 1)
		if n, m := tap.count("443/tcp"), tap.count("7000/tcp"); n != 2 || m != 1 {
			t.Errorf("%d SYNs to the live port, want 2; %d to the closed one, want 1", n, m)
		}
		live.Close()
	})
}

// listen opens a TCP port at the server.
func (w *world) listen(port string) (l net.Listener) {
	w.t.Helper()
	var err error
	w.server.Do(func() { l, err = net.Listen("tcp", net.JoinHostPort(w.remote.String(), port)) })
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { l.Close() })
	return l
}

// While a knock is under way the kernel comes to prefer another source.
func TestSendKeepsItsLocalAddress(t *testing.T) {
	onBothFamilies(t, func(t *testing.T, w *world) {
		tap := w.tap()
		knock := parse(t, "7000/tcp 8501/udp 7002/tcp icmp")
		knock.Delay = 300 * time.Millisecond
		sent := make(chan error, 1)
		go func() { sent <- w.send(t.Context(), knock, w.remote) }()
		tap.await("7000/tcp", 1)
		if w.remote.Is4() {
			w.client.Run("ip", "route", "change", "192.0.2.0/24", "dev", w.clientWire, "src", w.other.String())
		} else {
			w.client.Run("ip", "addr", "change", w.other.String()+"/64", "dev", w.clientWire, "nodad", "preferred_lft", "forever")
			w.client.Run("ip", "addr", "change", w.local.String()+"/64", "dev", w.clientWire, "nodad", "preferred_lft", "0")
		}
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
		tap.await("56/icmp", 1)
		second := parse(t, "8503/udp")
		if err := w.send(t.Context(), second, w.remote); err != nil {
			t.Fatal(err)
		}
		tap.await("8503/udp", 1)
		for _, f := range tap.seen() {
			want := w.local
			if f.step == "8503/udp" {
				want = w.other // else the test shows nothing
			}
			if f.src != want {
				t.Errorf("%s came from %s, want %s", f.step, f.src, want)
			}
		}
	})
}

func TestSendUsesTheLocalAddressItIsGiven(t *testing.T) {
	onBothFamilies(t, func(t *testing.T, w *world) {
		tap := w.tap()
		knock := parse(t, "7000/tcp 8501/udp icmp")
		if err := sendIn(t.Context(), w.client, knock, w.other, w.remote); err != nil {
			t.Fatal(err)
		}
		tap.await("56/icmp", 1)
		for _, f := range tap.seen() {
			if f.src != w.other {
				t.Errorf("%s came from %s, want %s", f.step, f.src, w.other)
			}
		}
	})
}

func TestDatagramsDiffer(t *testing.T) {
	onBothFamilies(t, func(t *testing.T, w *world) {
		var server net.PacketConn
		var err error
		w.server.Do(func() { server, err = net.ListenPacket("udp", net.JoinHostPort(w.remote.String(), "8500")) })
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		if err := w.send(t.Context(), parse(t, "8500/udp 8500/udp"), w.remote); err != nil {
			t.Fatal(err)
		}
		server.SetDeadline(time.Now().Add(5 * time.Second))
		var got [2]string
		for i := range got {
			b := make([]byte, 2048)
			n, _, err := server.ReadFrom(b)
			if err != nil || n != 8 {
				t.Fatalf("%d bytes, want 8; %v", n, err)
			}
			got[i] = string(b[:n])
		}
		if got[0] == got[1] {
			t.Errorf("two steps with the same payload: the second looks like a repeat of the first")
		}
	})
}

func TestDelayBetweenSteps(t *testing.T) {
	onBothFamilies(t, func(t *testing.T, w *world) {
		took := func(delay time.Duration) time.Duration {
			knock := parse(t, "8500/udp 8501/udp 8502/udp")
			knock.Delay = delay
			start := time.Now()
			if err := w.send(t.Context(), knock, w.remote); err != nil {
				t.Fatal(err)
			}
			return time.Since(start)
		}
		if d := took(0); d < 2*sallyport.DefaultDelay {
			t.Errorf("by default three steps took %v, less than two delays", d)
		}
		if d := took(70 * time.Millisecond); d < 140*time.Millisecond {
			t.Errorf("three steps 70 ms apart took %v", d)
		}
		// A busy machine may be slow for once, not ten times.
		fastest := time.Hour
		for range 10 {
			fastest = min(fastest, took(-1))
		}
		if fastest > sallyport.DefaultDelay {
			t.Errorf("without a delay three steps took %v", fastest)
		}
	})
}

func TestSendEndsWithItsContext(t *testing.T) {
	onBothFamilies(t, func(t *testing.T, w *world) {
		tap := w.tap()
		ctx, cancel := context.WithCancel(t.Context())
		knock := parse(t, "8500/udp 8501/udp 8502/udp")
		knock.Delay = 5 * time.Second
		go func() { tap.await("8500/udp", 1); cancel() }()
		start := time.Now()
		err := w.send(ctx, knock, w.remote)
		if took := time.Since(start); took >= knock.Delay {
			t.Errorf("it ended only after the delay, %v", took)
		}
		if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "after 1 of 3 packets") {
			t.Errorf("got %v", err)
		}
	})
}

func TestSendOverALinkLocalAddress(t *testing.T) {
	w := newWorld(t)
	w.client.Address(w.clientWire, "fe80::1:1/64")
	w.server.Address(w.serverWire, "fe80::1:2/64")
	tap := w.tap()
	remote := netip.MustParseAddr("fe80::1:2%" + w.clientWire)
	if err := w.send(t.Context(), parse(t, "7000/tcp 8501/udp 5/icmp"), remote); err != nil {
		t.Fatal(err)
	}
	tap.await("5/icmp", 1)
	if n := len(tap.seen()); n != 3 {
		t.Errorf("%d packets, want 3: %v", n, tap.seen())
	}
}

func TestSendSaysWhatKeepsItFromSending(t *testing.T) {
	ns := testnet.New(t)
	for _, test := range []struct{ local, remote, want string }{
		{"", "203.0.113.1", "no route to 203.0.113.1: network is unreachable"},
		{"", "2001:db8:1::1", "no route to 2001:db8:1::1: network is unreachable"},
		{"192.0.2.77", "127.0.0.1", "packet 1 of 2 could not be sent to 127.0.0.1: 192.0.2.77 is no address of this host: cannot assign requested address"},
		{"2001:db8::77", "::1", "packet 1 of 2 could not be sent to ::1: 2001:db8::77 is no address of this host: cannot assign requested address"},
		{"192.0.2.77", "::1", "one is IPv4, the other IPv6"},
		{"", "0.0.0.0", "0.0.0.0 is no address"},
		{"", "::", ":: is no address"},
		{"", "fe80::1", "as in fe80::1%eth0"},
		{"", "fe80::1%nope0", `there is no interface "nope0"`},
	} {
		for _, steps := range []string{"7000/tcp 8501/udp", "8501/udp 7000/tcp", "icmp 7000/tcp"} {
			knock := parse(t, steps)
			var local netip.Addr
			if test.local != "" {
				local = netip.MustParseAddr(test.local)
			}
			err := sendIn(t.Context(), ns, knock, local, netip.MustParseAddr(test.remote))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%s to %s: got %v, want %q", steps, test.remote, err, test.want)
			} else if strings.Contains(err.Error(), "700") || strings.Contains(err.Error(), "850") {
				t.Errorf("the error names a step's port: %v", err)
			}
		}
	}
}
