//go:build linux

package engine

import (
	"log/slog"
	"net/netip"
	"testing"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/engine/internal/packet"
	"github.com/sallyport/sallyport/internal/engine/internal/source"
	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/sallyport/sallyport/internal/testnet"
)

// A replay hears what the daemon hears: no packet of the host's to itself, unless the
// config says so.
func TestWhatAReplayHears(t *testing.T) {
	wire, all, lo := source.Captured{Interface: "eth0"}, source.Captured{Interface: "any"}, source.Captured{Loopback: true}
	for _, c := range []struct {
		interfaces []string
		captured   source.Captured
		want       place
	}{
		{nil, source.Captured{}, heard}, {nil, wire, heard}, {nil, all, heard}, {nil, lo, fromItself}, {nil, source.Captured{Interface: "lo"}, fromItself},
		{[]string{"eth0"}, source.Captured{}, heard}, {[]string{"eth0"}, wire, heard}, {[]string{"eth0"}, all, heard}, {[]string{"eth0"}, lo, fromItself},
		{[]string{"eth1"}, wire, offInterface}, {[]string{"eth1"}, all, heard},
		{[]string{"eth1", "lo"}, wire, offInterface}, {[]string{"eth1", "lo"}, lo, heard},
	} {
		for _, host := range []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")} {
			p := &player{cfg: &config.Config{Daemon: config.Daemon{Interfaces: c.interfaces}}}
			p.host.Addrs = []netip.Addr{host}
			p.hear()
			e := New(nil, [2]int{-1, -1}, slog.Default())
			e.cfg = p.cfg
			e.Host(&p.host)
			var d packet.Packet
			packet.Decode(testnet.UDP(netip.AddrPortFrom(host.Next(), 1), netip.AddrPortFrom(host, 2), nil), &d)
			if got := e.place(&d, p.index(&c.captured)); got != c.want {
				t.Errorf("%v, interfaces %q, %+v: %v, want %v", host, c.interfaces, c.captured, got, c.want)
			}
		}
	}
}

// A knock's target need not be the host's address, so a packet to it says nothing of
// what else is to the host.
func TestNoTargetIsAssumedAsTheHost(t *testing.T) {
	steps := []sequence.Step{{Proto: sequence.UDP, Port: 7000}}
	for target, want := range map[string]bool{"": true, "192.0.2.1": false, "2001:db8::1": false} {
		k := config.Knock{Type: "sequence", Sequence: steps}
		if target != "" {
			k.Target = netip.MustParseAddr(target)
		}
		knocks := newKnockPackets(&config.Config{Knocks: []config.Knock{k}})
		for _, dst := range []string{"192.0.2.1", "2001:db8::1"} {
			if got := knocks.has(&packet.Packet{Dst: netip.MustParseAddr(dst), Proto: sequence.UDP, DstPort: 7000}); got != want {
				t.Errorf("target %q, packet to %s: %v, want %v", target, dst, got, want)
			}
		}
	}
}
