//go:build linux

package source_test

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/internal/engine/internal/packet"
	"github.com/sallyport/sallyport/internal/engine/internal/source"
	"github.com/sallyport/sallyport/internal/testnet"
)

// group is a socket that gets what the host's rules send to group 5, as the warden
// opens it.
func (w *town) group(t testing.TB) *source.NFLOG {
	t.Helper()
	var fd int
	var err error
	w.host.Do(func() {
		if fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER); err == nil {
			// Bind group 5, copy 4,608 bytes, one packet a message, with numbers.
			b := []byte("\x00\x00\x00\x00\x01\x04\x05\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x05" +
				"\x05\x00\x01\x00\x01\x00\x00\x00" + "\x0a\x00\x02\x00\x00\x00\x12\x00\x02\x00\x00\x00" +
				"\x08\x00\x05\x00\x00\x00\x00\x01" + "\x06\x00\x06\x00\x00\x01\x00\x00")
			binary.LittleEndian.PutUint32(b, uint32(len(b)))
			err = unix.Sendto(fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	s, err := source.NewNFLOG(fd)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// heard gives the packets that come within a moment: interface, family, port.
func heard(t *testing.T, w *town, s *source.NFLOG, want int) (got []string) {
	t.Helper()
	end := time.Now().Add(5 * time.Second)
	if want == 0 {
		end = time.Now().Add(200 * time.Millisecond)
	}
	for time.Now().Before(end) && (want == 0 || len(got) < want) {
		if err := s.Drain(func(b []byte, ifindex int) {
			var p packet.Packet
			packet.Decode(b, &p)
			got = append(got, fmt.Sprintf("%v %v %v %d %d", ifindex == w.index, p.Src, p.Proto, p.DstPort, len(p.Payload)))
		}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
	return got
}

// Packets on their way in count, whole, whichever table's rule sends them.
func TestNFLOGGivesPackets(t *testing.T) {
	for hook, hears := range map[string]bool{
		"type filter hook prerouting priority raw": true, "type filter hook input priority 0": true,
		"type filter hook output priority 0": false, "type filter hook postrouting priority 0": false,
	} {
		t.Run(hook, func(t *testing.T) {
			w := newTown(t)
			s := w.group(t)
			w.host.Input("table inet x { chain c { "+hook+"; meta l4proto udp log prefix \"x\" group 5; }; }", "nft", "-f", "-")
			wire := w.neighbour.Wire(w.nextIf, w.host.MAC(w.hostIf))
			var want []string
			for i := range hostAddrs {
				src, dst := netip.MustParseAddr(nextAddrs[i]), netip.MustParseAddr(hostAddrs[i])
				wire.Send(t, testnet.UDP(netip.AddrPortFrom(src, 9), netip.AddrPortFrom(dst, 7000), make([]byte, 448)))
				want = append(want, fmt.Sprintf("true %v udp 7000 448", src))
				w.host.Do(func() { // what the host sends itself
					var to unix.Sockaddr = &unix.SockaddrInet4{Port: 9, Addr: [4]byte{192, 0, 2, 7}}
					family := unix.AF_INET
					if src.Is6() {
						to, family = &unix.SockaddrInet6{Port: 9, Addr: src.As16()}, unix.AF_INET6
					}
					fd, err := unix.Socket(family, unix.SOCK_DGRAM, 0)
					if err == nil {
						unix.Sendto(fd, []byte("out"), 0, to)
						unix.Close(fd)
					}
				})
			}
			if !hears {
				want = nil
			}
			if got := heard(t, w, s, len(want)); !slices.Equal(got, want) {
				t.Errorf("got %q, want %q", got, want)
			}
		})
	}
}

// A full buffer costs packets, which are counted, and nothing else.
func TestNFLOGCountsWhatIsLost(t *testing.T) {
	w := newTown(t)
	s := w.group(t)
	w.host.Input("table inet x { chain c { type filter hook prerouting priority raw; udp dport 7000 log group 5; }; }", "nft", "-f", "-")
	wire := w.neighbour.Wire(w.nextIf, w.host.MAC(w.hostIf))
	b := testnet.UDP(netip.MustParseAddrPort(nextAddrs[0]+":9"), netip.MustParseAddrPort(hostAddrs[0]+":7000"), make([]byte, 1000))
	const sent = 1000 // the usual buffer holds 212,992 bytes
	for range sent {
		wire.Send(t, b)
	}
	time.Sleep(100 * time.Millisecond)
	first := len(heard(t, w, s, 0))
	wire.Send(t, b)
	got := first + len(heard(t, w, s, 1))
	received, dropped := s.Stats()
	if first == 0 || dropped == 0 || received != sent+1 || int(received-dropped) != got {
		t.Errorf("%d and %d dropped, of %d; %d were heard", received, dropped, sent+1, got)
	}
}

func TestNewNFLOGKnowsItsSocket(t *testing.T) {
	w := newTown(t)
	if _, err := source.NewNFLOG(w.fd); err == nil || !strings.Contains(err.Error(), "no netlink socket") {
		t.Errorf("a packet socket: %v", err)
	}
	if _, err := source.NewNFLOG(1 << 20); err == nil {
		t.Error("no descriptor passes")
	}
}

func TestNFLOGAllocatesNothing(t *testing.T) {
	w := newTown(t)
	s := w.group(t)
	w.host.Input("table inet x { chain c { type filter hook prerouting priority raw; udp dport 7000 log group 5; }; }", "nft", "-f", "-")
	wire := w.neighbour.Wire(w.nextIf, w.host.MAC(w.hostIf))
	b := testnet.UDP(netip.MustParseAddrPort(nextAddrs[0]+":9"), netip.MustParseAddrPort(hostAddrs[0]+":7000"), make([]byte, 48))
	for range 150 {
		wire.Send(t, b)
	}
	time.Sleep(50 * time.Millisecond)
	count := 0
	observe := func([]byte, int) { count++ }
	if n := testing.AllocsPerRun(1, func() { s.Drain(observe) }); n != 0 || count < 64 {
		t.Errorf("%v allocations, %d packets", n, count)
	}
}

// What the host passes on to others is no knock, although it came in by a wire.
func TestNFLOGLeavesForwardedPacketsOut(t *testing.T) {
	w := newTown(t)
	s := w.group(t)
	w.host.Run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
	w.host.Run("ip", "route", "add", "198.51.100.0/24", "via", nextAddrs[0])
	w.host.Run("ip", "-6", "route", "add", "2001:db8:9::/64", "via", nextAddrs[1])
	w.host.Input("table inet x { chain c { type filter hook forward priority 0; udp dport 7000 counter log group 5; }; }", "nft", "-f", "-")
	wire := w.neighbour.Wire(w.nextIf, w.host.MAC(w.hostIf))
	for i, to := range []string{"198.51.100.9:7000", "[2001:db8:9::9]:7000"} {
		wire.Send(t, testnet.UDP(netip.AddrPortFrom(netip.MustParseAddr(nextAddrs[i]), 9), netip.MustParseAddrPort(to), nil))
	}
	if got := heard(t, w, s, 0); len(got) > 0 {
		t.Errorf("heard %q", got)
	}
	if rules := w.host.Run("nft", "list", "ruleset"); !strings.Contains(rules, "counter packets 2 ") {
		t.Errorf("they were not passed on:\n%s", rules)
	}
}
