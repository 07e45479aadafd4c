package sallyport_test

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/internal/testnet"
)

// secondWire lays another wire to the server. The way to the server's address
// leads over it too, but the routing table prefers the first one.
func (w *world) secondWire() (clientWire string, local netip.Addr, second *tap) {
	w.t.Helper()
	clientWire, serverWire := testnet.Connect(w.client, w.server,
		[]string{"198.51.100.1/24", "2001:db8:2::1/64"}, []string{"198.51.100.2/24", "2001:db8:2::2/64"})
	for _, r := range [][]string{{"192.0.2.0/24", "198.51.100.2"}, {"2001:db8::/64", "2001:db8:2::2"}} {
		w.client.Run("ip", "route", "add", r[0], "via", r[1], "dev", clientWire, "metric", "5000")
		w.client.Run("ping", "-c1", "-w5", r[1])
	}
	local = netip.MustParseAddr("198.51.100.1")
	if w.remote.Is6() {
		local = netip.MustParseAddr("2001:db8:2::1")
	}
	there := *w
	there.serverWire = serverWire
	return clientWire, local, there.tap()
}

// steps is what one sender sent, in order.
func steps(frames []frame, from netip.Addr) (list []string) {
	for _, f := range frames {
		if f.src == from {
			list = append(list, f.step)
		}
	}
	return list
}

func TestInterfaceIsTheWayOut(t *testing.T) {
	onBothFamilies(t, func(t *testing.T, w *world) {
		w.listen("22")
		first := w.tap()
		wire, local, second := w.secondWire()
		d := &sallyport.Dialer{Knock: parse(t, "7000/tcp 8500/udp icmp 7800/tcp"), Interface: wire}
		conn, err := w.dial(t.Context(), d, "tcp", w.port22())
		if err != nil {
			t.Fatal(err)
		}
		if from := conn.LocalAddr().(*net.TCPAddr).AddrPort().Addr(); from != local {
			t.Errorf("the connection comes from %s, want %s", from, local)
		}
		second.await("22/tcp", 1)
		want := []string{"7000/tcp", "8500/udp", "56/icmp", "7800/tcp", "22/tcp"}
		if got := steps(second.seen(), local); !slices.Equal(got[:min(5, len(got))], want) {
			t.Errorf("over %s came %q, want %q", wire, got, want)
		}
		if got := first.seen(); len(got) != 0 {
			t.Errorf("over the other wire came %v", got)
		}
	})
}

// The routing table alone knows another way: the address does not choose it.
func TestInterfaceWithAnotherAddress(t *testing.T) {
	onBothFamilies(t, func(t *testing.T, w *world) {
		first := w.tap()
		wire, _, second := w.secondWire()
		d := &sallyport.Dialer{Interface: wire, Local: w.other}
		for _, p := range []sallyport.Packet{{Proto: sallyport.TCP, Port: 7000}, {Proto: sallyport.UDP, Port: 8500, Size: 3},
			{Proto: sallyport.ICMP, Size: 37}, {Proto: sallyport.TCP, Port: 7800, Payload: []byte("data")}} {
			d.Knock = fixed{p}
			var err error
			w.client.Do(func() { _, err = d.Send(t.Context(), "ip", w.remote.String()) })
			if err != nil {
				t.Errorf("%v: %v", p, err)
			}
		}
		second.await("7800/tcp", 1)
		want := []string{"7000/tcp", "8500/udp", "37/icmp", "7800/tcp"}
		if got := steps(second.seen(), w.other); !slices.Equal(got, want) {
			t.Errorf("over %s came %v, want %q", wire, second.seen(), want)
		}
		if got := first.seen(); len(got) != 0 {
			t.Errorf("over the other wire came %v", got)
		}
	})
}

// fixed is a knock of somebody else's: one packet.
type fixed struct{ packet sallyport.Packet }

func (f fixed) Validate() error { return nil }

func (f fixed) Plan(local, remote netip.Addr) (*sallyport.Plan, error) {
	return &sallyport.Plan{Local: local, Remote: remote, Packets: []sallyport.Packet{f.packet}}, nil
}

func TestInterfaceThatCannotBe(t *testing.T) {
	onBothFamilies(t, func(t *testing.T, w *world) {
		w.client.Run("ip", "link", "add", "down0", "type", "veth", "peer", "name", "down1")
		for _, test := range []struct {
			device string
			local  netip.Addr
			want   string
		}{
			{"nosuch0", netip.Addr{}, `there is no network interface "nosuch0" on this host`},
			{strings.Repeat("x", 200), netip.Addr{}, `there is no network interface "xxx`},
			{"down0", netip.Addr{}, "no route to " + w.remote.String() + " through down0: "},
			{"", netip.MustParseAddr(map[bool]string{true: "192.0.2.77", false: "2001:db8::77"}[w.remote.Is4()]), "77 is no address of this host"},
		} {
			d := &sallyport.Dialer{Knock: parse(t, "7000/tcp"), Interface: test.device, Local: test.local}
			var err error
			w.client.Do(func() { _, err = d.Send(t.Context(), "ip", w.remote.String()) })
			if err == nil || !strings.Contains(err.Error(), test.want) || len(err.Error()) > 200 {
				t.Errorf("%.10s: %v, want %q", test.device, err, test.want)
			}
		}
	})
}
