package sockets

import (
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/sallyport/sallyport/internal/testnet"
)

// TestList holds the listing to sockets that really are there.
func TestList(t *testing.T) {
	t.Parallel()
	ns := testnet.New(t)
	ns.Address("lo", "192.0.2.1/32", "2001:db8::1/128")
	for _, c := range []struct {
		name, listen, dial string
		oneAddress         bool
	}{
		{"IPv4", "192.0.2.1:22", "192.0.2.1:22", true},
		{"IPv6", "[2001:db8::1]:22", "[2001:db8::1]:22", true},
		{"IPv4 loopback", "127.0.0.1:23", "127.0.0.1:23", false},
		{"IPv6 loopback", "[::1]:23", "[::1]:23", false},
		{"all of IPv4", "0.0.0.0:24", "192.0.2.1:24", false},
		{"all, by IPv6", "[::]:25", "[2001:db8::1]:25", false},
		{"all, by IPv4", "[::]:26", "192.0.2.1:26", false},
	} {
		listening := netip.MustParseAddrPort(c.listen)
		family := map[bool]string{true: "4", false: "6"}[listening.Addr().Is4()]
		if c.name == "all, by IPv4" {
			family = "" // an IPv6 socket that takes IPv4 too
		}
		var client, packets net.Conn
		var err error
		ns.Do(func() {
			var l net.Listener
			if l, err = net.Listen("tcp"+family, c.listen); err == nil {
				t.Cleanup(func() { l.Close() })
				client, err = net.Dial("tcp", c.dial)
			}
			if err == nil {
				var p net.PacketConn
				if p, err = net.ListenPacket("udp"+family, c.listen); err == nil {
					t.Cleanup(func() { p.Close() })
					packets, err = net.Dial("udp", c.dial)
				}
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		defer packets.Close()
		server := Socket{netip.MustParseAddrPort(c.dial), netip.MustParseAddrPort(client.LocalAddr().String())}
		for _, q := range []struct {
			proto  sequence.Proto
			states States
			want   netip.AddrPort
			other  Socket // must not be among them
		}{
			{sequence.TCP, Listening, listening, server},
			{sequence.TCP, Connections, server.Local, Socket{Local: listening}},
			{sequence.UDP, Unconnected, listening, Socket{netip.MustParseAddrPort(packets.LocalAddr().String()), netip.MustParseAddrPort(c.dial)}},
		} {
			var got []Socket
			ns.Do(func() { got, err = List(q.proto, q.states) })
			i := slices.IndexFunc(got, func(s Socket) bool { return s.Local == q.want })
			if err != nil || i < 0 {
				t.Fatalf("%s %v %#x: %v is not among %v, %v", c.name, q.proto, q.states, q.want, got, err)
			}
			if slices.Contains(got, q.other) {
				t.Errorf("%s %v %#x: %v is among them", c.name, q.proto, q.states, q.other)
			}
			if q.states == Connections && !slices.Contains(got, server) {
				t.Errorf("%s: %v is not among %v", c.name, server, got)
			}
			if q.states != Connections && got[i].OneAddress() != c.oneAddress {
				t.Errorf("%s: one address: %v", c.name, got[i].OneAddress())
			}
		}
	}
}
