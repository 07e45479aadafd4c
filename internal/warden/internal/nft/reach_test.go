package nft

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/sallyport/sallyport/internal/testnet"
	"golang.org/x/sys/unix"
)

// expect checks one probe's answer.
func expect(t testing.TB, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %s, want %s", what, got, want)
	}
}

// TestLooks: a hidden port answers a stranger in the way that its look says, a
// grant opens it to one address, and this host's own processes never notice.
func TestLooks(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	greet(t, w.host, "", 22)
	echo(t, w.host, 53)
	for _, look := range []struct {
		as   config.ClosedAs
		want string
	}{{config.Auto, closed}, {config.Drop, silent}, {config.Reject, closed}} {
		w.apply(guarding(look.as, "22/tcp", "50-60/udp"), Options{})
		for _, p := range pairs {
			name := look.as.String() + " " + p.name
			expect(t, name+" tcp", try(w.out, p.stranger, p.host, 22), look.want)
			expect(t, name+" udp", tryUDP(w.out, p.stranger, p.host, 53), look.want)
			expect(t, name+" tcp from the host", try(w.host, p.host, p.host, 22), open)
			udp := tcp(p.stranger, 53, time.Minute)
			udp.Proto = sequence.UDP
			grants := []Element{tcp(p.stranger, 22, time.Minute), udp}
			w.grant(grants...)
			expect(t, name+" tcp granted", try(w.out, p.stranger, p.host, 22), open)
			expect(t, name+" udp granted", tryUDP(w.out, p.stranger, p.host, 53), open)
			expect(t, name+" tcp bystander", try(w.out, p.bystander, p.host, 22), look.want)
			expect(t, name+" udp bystander", tryUDP(w.out, p.bystander, p.host, 53), look.want)
			if err := w.table.Revoke(grants); err != nil {
				t.Error(err)
			}
			expect(t, name+" tcp revoked", try(w.out, p.stranger, p.host, 22), look.want)
		}
	}
}

// TestLinkLocal: the host's link-local address is the host's too.
func TestLinkLocal(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	greet(t, w.host, "", 22)
	out := w.host.Run("ip", "-6", "-o", "addr", "show", "dev", w.hostEnd, "scope", "link")
	fields := strings.Fields(out)
	if len(fields) < 4 {
		t.Fatalf("no link-local address: %q", out)
	}
	addr := netip.MustParsePrefix(fields[3]).Addr().WithZone(w.outEnd)
	probe := func() string { return try(w.out, netip.IPv6Unspecified(), addr, 22) }
	eventually(t, open, time.Second, probe)
	w.apply(guarding(config.Drop, "22/tcp"), Options{})
	expect(t, "link-local", probe(), silent)
}

// TestBroadcast: a hidden datagram service can't be reached through a broadcast
// or a group either, and nothing answers, as nothing would if it were stopped.
func TestBroadcast(t *testing.T) {
	t.Parallel()
	for _, as := range []config.ClosedAs{config.Auto, config.Drop, config.Reject} {
		w := newWorld(t)
		echo(t, w.host, 53)
		w.out.Run("sysctl", "-qw", "net.ipv4.icmp_ratelimit=0")
		targets := []struct{ from, to netip.Addr }{
			{netip.IPv4Unspecified(), netip.MustParseAddr("192.0.2.255")},
			{netip.IPv6Unspecified(), netip.MustParseAddr("ff02::1").WithZone(w.outEnd)},
		}
		for _, hide := range []bool{false, true} {
			want := "hears it"
			if hide {
				want = silent
				w.apply(guarding(as, "53/udp"), Options{})
			}
			for _, c := range targets {
				expect(t, fmt.Sprintf("%v %v", as, c.to), shout(t, w.out, c.to, 53), want)
			}
		}
	}
}

// shout sends a datagram to many and reports whether anybody echoes it.
func shout(t *testing.T, ns *testnet.Namespace, to netip.Addr, port uint16) string {
	var c net.PacketConn
	var err error
	ns.Do(func() { c, err = net.ListenPacket("udp", "") })
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.WriteTo([]byte("x"), net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, port))); err != nil {
		t.Fatal(err)
	}
	c.SetReadDeadline(time.Now().Add(quickAnswer))
	if _, _, err := c.ReadFrom(make([]byte, 8)); err != nil {
		return reading(err)
	}
	return "hears it"
}

// TestOlderConnections is promise 6 at the first start: where conntrack never
// ran, connections that exist go on, whoever speaks first and whatever the
// listener is bound to.
func TestOlderConnections(t *testing.T) {
	t.Parallel()
	for _, p := range pairs {
		for _, bound := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s bound=%v", p.name, bound), func(t *testing.T) {
				w := newWorld(t)
				addr := ""
				if bound {
					addr = p.host.String()
				}
				server := acceptOne(t, w.host, addr, 22)
				var clients, servers [3]net.Conn
				for i := range clients {
					var err error
					if clients[i], err = server.dial(w.out, p.stranger, p.host); err != nil {
						t.Fatal(err)
					}
					servers[i] = <-server.accepted
				}
				cfg := guarding(config.Drop, "22/tcp")
				var live []Connection
				var err error
				w.host.Do(func() { live, err = Live(cfg) })
				if err != nil || (live != nil) != bound || bound && len(live) != 3 {
					t.Fatalf("Live: %v, %v", live, err)
				}
				w.apply(cfg, Options{Live: live})
				passes(t, "client speaks first", clients[0], servers[0])
				passes(t, "server speaks first", servers[1], clients[1])
				// The end of a connection must get through as well.
				clients[2].Close()
				servers[2].SetReadDeadline(time.Now().Add(time.Second))
				if _, err := servers[2].Read(make([]byte, 1)); err == nil || strings.Contains(err.Error(), "timeout") {
					t.Errorf("client closes first: the server reads %v", err)
				}
				expect(t, "new connection", try(w.out, p.stranger, p.host, 22), silent)
				expect(t, "ACK probe", ackProbe(w, p.stranger, p.host), silent)
			})
		}
	}
}

type oneServer struct {
	port     uint16
	accepted chan net.Conn
}

// acceptOne hands over what it accepts.
func acceptOne(t testing.TB, ns *testnet.Namespace, addr string, port uint16) oneServer {
	t.Helper()
	var l net.Listener
	var err error
	ns.Do(func() { l, err = net.Listen("tcp", net.JoinHostPort(addr, strconv.Itoa(int(port)))) })
	if err != nil {
		t.Fatal(err)
	}
	s := oneServer{port, make(chan net.Conn, 8)}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { c.Close() })
			s.accepted <- c
		}
	}()
	return s
}

func (s oneServer) dial(ns *testnet.Namespace, from, to netip.Addr) (c net.Conn, err error) {
	d := net.Dialer{Timeout: time.Second, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))}
	ns.Do(func() { c, err = d.Dial("tcp", netip.AddrPortFrom(to, s.port).String()) })
	return c, err
}

func passes(t *testing.T, what string, from, to net.Conn) {
	t.Helper()
	from.Write([]byte("ping"))
	to.SetReadDeadline(time.Now().Add(2 * time.Second))
	b := make([]byte, 4)
	if _, err := to.Read(b); err != nil || !bytes.Equal(b, []byte("ping")) {
		t.Errorf("%s: read %q, %v", what, b, err)
	}
}

// ackProbe says how port 22 answers a lone ACK, by nmap's own raw packets.
func ackProbe(w *world, from, to netip.Addr) string {
	args := []string{"-n", "-Pn", "-sA", "-p", "22", "--max-retries", "0", "--host-timeout", "5s", "-S", from.String(), "-e", w.outEnd}
	if to.Is6() {
		args = append(args, "-6")
	}
	out := w.out.Run("nmap", append(args, to.String())...)
	switch {
	case strings.Contains(out, " unfiltered "):
		return closed
	case strings.Contains(out, " filtered "):
		return silent
	}
	return out
}

// router is a world whose host also forwards to a third machine.
func newRouter(t testing.TB) (*world, *testnet.Namespace) {
	w := newWorld(t)
	third := namespace(t)
	testnet.Connect(w.host, third, []string{"198.51.100.1/24", "2001:db8:5::1/64"}, []string{"198.51.100.5/24", "198.51.100.6/24", "2001:db8:5::5/64", "2001:db8:5::6/64"})
	w.host.Run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
	for _, ns := range []struct {
		ns        *testnet.Namespace
		via, via6 netip.Addr
	}{{w.out, host4, host6}, {third, netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("2001:db8:5::1")}} {
		ns.ns.Run("ip", "route", "add", "default", "via", ns.via.String())
		ns.ns.Run("ip", "-6", "route", "add", "default", "via", ns.via6.String())
	}
	return w, third
}

var (
	away4, away6           = netip.MustParseAddr("198.51.100.5"), netip.MustParseAddr("2001:db8:5::5")
	awayOther4, awayOther6 = netip.MustParseAddr("198.51.100.6"), netip.MustParseAddr("2001:db8:5::6")
)

// TestForwarded: what is not addressed to this host is none of our business,
// unless a service names the destination.
func TestForwarded(t *testing.T) {
	t.Parallel()
	w, third := newRouter(t)
	greet(t, third, "", 22)
	greet(t, w.host, "", 22)
	cfg := guarding(config.Drop, "22/tcp")
	cfg.Daemon.HideAll = true
	w.apply(cfg, Options{})
	for i, p := range pairs {
		away := []netip.Addr{away4, away6}[i]
		self := []netip.Addr{netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("2001:db8:5::1")}[i]
		expect(t, p.name+" forwarded client", try(w.out, p.stranger, away, 22), open)
		expect(t, p.name+" local process", try(w.host, self, away, 22), open)
		expect(t, p.name+" the host itself", try(w.out, p.stranger, p.host, 22), silent)
		expect(t, p.name+" the host's other address", try(w.out, p.stranger, self, 22), silent)
	}
	// Where the host has no route its own answer is heard, and not ours.
	for i, p := range pairs {
		nowhere := netip.MustParseAddr([]string{"203.0.113.9", "2001:db8:ffff::9"}[i])
		if err := w.table.Down(); err != nil {
			t.Fatal(err)
		}
		want := try(w.out, p.stranger, nowhere, 22)
		w.apply(guarding(config.Reject, "22/tcp"), Options{})
		expect(t, p.name+" to where no route leads", try(w.out, p.stranger, nowhere, 22), want)
	}
}

// TestOnward: a named destination is guarded and the others are not; grants and
// allowed sources for it reach it alone.
func TestOnward(t *testing.T) {
	t.Parallel()
	for _, look := range []struct {
		as   config.ClosedAs
		want string
	}{{config.Auto, closed}, {config.Drop, silent}} {
		w, third := newRouter(t)
		greet(t, third, "", 22)
		greet(t, w.host, "", 22)
		cfg := guarding(config.Drop, "22/tcp")
		s := service(look.as, "22/tcp")
		s.On = []netip.Addr{away4, away6}
		s.Allow = prefixes(bystander4.String()+"/32", bystander6.String()+"/128")
		cfg.Services = append(cfg.Services, s)
		w.apply(cfg, Options{})
		for i, p := range pairs {
			away, other := []netip.Addr{away4, away6}[i], []netip.Addr{awayOther4, awayOther6}[i]
			name := look.as.String() + " " + p.name
			expect(t, name+" named", try(w.out, p.stranger, away, 22), look.want)
			expect(t, name+" not named", try(w.out, p.stranger, other, 22), open)
			expect(t, name+" allowed", try(w.out, p.bystander, away, 22), open)
			expect(t, name+" allowed there, not here", try(w.out, p.bystander, p.host, 22), silent)
			g := tcp(p.stranger, 22, time.Minute)
			g.On = away
			w.grant(g)
			expect(t, name+" granted", try(w.out, p.stranger, away, 22), open)
			expect(t, name+" granted there, not here", try(w.out, p.stranger, p.host, 22), silent)
			w.apply(cfg, Options{})
			expect(t, name+" granted and applied", try(w.out, p.stranger, away, 22), open)
		}
	}
}

// TestRedirected: a port that a later rule redirects to another machine, as
// Docker's published ports are, is guarded by the number dialled.
func TestRedirected(t *testing.T) {
	t.Parallel()
	for _, look := range []struct {
		as   config.ClosedAs
		want string
	}{{config.Auto, closed}, {config.Drop, silent}, {config.Reject, closed}} {
		w, third := newRouter(t)
		greet(t, third, "", 80)
		w.host.Input(`table inet docker {
			chain prerouting { type nat hook prerouting priority dstnat;
				fib daddr type local tcp dport { 8080, 9090 } dnat ip to 198.51.100.5:80
				fib daddr type local tcp dport { 8080, 9090 } dnat ip6 to [2001:db8:5::5]:80
			}
		}`, "nft", "-f", "-")
		w.apply(guarding(look.as, "8080/tcp", "80/tcp"), Options{})
		for _, p := range pairs {
			name := look.as.String() + " " + p.name
			expect(t, name+" guarded", try(w.out, p.stranger, p.host, 8080), look.want)
			expect(t, name+" dialled by a number that is not hidden", try(w.out, p.stranger, p.host, 9090), open)
			w.grant(tcp(p.stranger, 8080, time.Minute))
			expect(t, name+" granted", try(w.out, p.stranger, p.host, 8080), open)
			expect(t, name+" bystander", try(w.out, p.bystander, p.host, 8080), look.want)
		}
	}
}

// TestOwnersRedirect: a port that the owner redirects to a hidden one on this
// host is his to publish.
func TestOwnersRedirect(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	greet(t, w.host, "", 22)
	w.host.Input(`table inet mine { chain prerouting { type nat hook prerouting priority dstnat; tcp dport 2222 redirect to :22
		}
	}`, "nft", "-f", "-")
	for _, as := range []config.ClosedAs{config.Auto, config.Drop, config.Reject} {
		w.apply(guarding(as, "22/tcp"), Options{})
		for _, p := range pairs {
			expect(t, as.String()+" "+p.name, try(w.out, p.stranger, p.host, 2222), open)
		}
	}
}

// TestTransparentProxy: a proxy on this host that takes what clients send to
// others gets packets at our input chain that were never sent to this host.
func TestTransparentProxy(t *testing.T) {
	t.Parallel()
	w, _ := newRouter(t)
	transparent := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) {
			unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TRANSPARENT, 1)
			unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_TRANSPARENT, 1)
		})
	}}
	greetBy(t, w.host, transparent, "", 5000)
	w.host.Input(`table inet proxy { chain prerouting { type filter hook prerouting priority mangle + 10
		ip daddr 198.51.100.5 tcp dport 22 tproxy ip to :5000 meta mark set 1
		ip6 daddr 2001:db8:5::5 tcp dport 22 tproxy ip6 to :5000 meta mark set 1
		}
	}`, "nft", "-f", "-")
	for _, family := range []string{"-4", "-6"} {
		w.host.Run("ip", family, "rule", "add", "fwmark", "1", "lookup", "100")
		w.host.Run("ip", family, "route", "add", "local", "default", "dev", "lo", "table", "100")
	}
	w.apply(guarding(config.Auto, "22/tcp"), Options{})
	for i, p := range pairs {
		expect(t, p.name, try(w.out, p.stranger, []netip.Addr{away4, away6}[i], 22), open)
	}
}

// TestAllow: an allowed source is never a stranger, for its service's ports.
func TestAllow(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	greet(t, w.host, "", 22)
	greet(t, w.host, "", 25)
	cfg := guarding(config.Drop, "22/tcp")
	cfg.Services = append(cfg.Services, service(config.Drop, "25/tcp"))
	cfg.Services[0].Allow = prefixes(bystander4.String()+"/32", bystander6.String()+"/128")
	w.apply(cfg, Options{})
	for _, p := range pairs {
		expect(t, p.name+" allowed", try(w.out, p.bystander, p.host, 22), open)
		expect(t, p.name+" another service", try(w.out, p.bystander, p.host, 25), silent)
		expect(t, p.name+" stranger", try(w.out, p.stranger, p.host, 22), silent)
	}
}

// TestInterfaces: only the named interfaces are guarded, also one that appears
// after Apply.
func TestInterfaces(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	greet(t, w.host, "", 22)
	cfg := guarding(config.Drop, "22/tcp")
	cfg.Daemon.Interfaces = []string{"later0"}
	w.apply(cfg, Options{})
	for _, p := range pairs {
		expect(t, p.name+" not named", try(w.out, p.stranger, p.host, 22), open)
	}
	w.host.Run("ip", "link", "set", w.hostEnd, "down")
	w.host.Run("ip", "link", "set", w.hostEnd, "name", "later0")
	w.host.Run("ip", "link", "set", "later0", "up")
	w.host.Run("ip", "addr", "replace", host6.String()+"/64", "dev", "later0", "nodad")
	for _, p := range pairs {
		eventually(t, silent, 3*time.Second, func() string { return try(w.out, p.stranger, p.host, 22) })
		w.grant(tcp(p.stranger, 22, time.Minute))
		eventually(t, open, 3*time.Second, func() string { return try(w.out, p.stranger, p.host, 22) })
	}
}

// TestMark: we subtract and never add. On a host whose own policy drops, a
// grant opens nothing until one rule of the owner's takes the mark.
func TestMark(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	greet(t, w.host, "", 22)
	w.host.Input(`table inet filter { chain input { type filter hook input priority filter; policy drop;
		ct state established accept; icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
		}
	}`, "nft", "-f", "-")
	cfg := guarding(config.Auto, "22/tcp")
	cfg.Daemon.GrantMark = 0x10
	w.apply(cfg, Options{})
	for _, p := range pairs {
		w.grant(tcp(p.stranger, 22, time.Minute))
		expect(t, p.name+" granted", try(w.out, p.stranger, p.host, 22), silent)
	}
	w.host.Run("nft", "insert", "rule", "inet", "filter", "input", "meta", "mark", "&", "0x10", "==", "0x10", "accept")
	for _, p := range pairs {
		expect(t, p.name+" granted and marked", try(w.out, p.stranger, p.host, 22), open)
		expect(t, p.name+" stranger", try(w.out, p.bystander, p.host, 22), silent)
	}
}

// TestQuiet: a quiet knock's own ports are dropped for strangers.
func TestQuiet(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	cfg := guarding(config.Auto, "22/tcp")
	step := sequence.Step{Proto: sequence.TCP, Port: 7000, Flags: sequence.Opening}
	cfg.Knocks = []config.Knock{{Quiet: true, Sequence: []sequence.Step{step, {Proto: sequence.UDP, Port: 8500}, {Proto: sequence.ICMP, AnySize: true}}}}
	for _, p := range pairs {
		expect(t, p.name+" before", try(w.out, p.stranger, p.host, 7000), closed)
	}
	w.apply(cfg, Options{})
	for _, p := range pairs {
		expect(t, p.name+" tcp step", try(w.out, p.stranger, p.host, 7000), silent)
		expect(t, p.name+" udp step", tryUDP(w.out, p.stranger, p.host, 8500), silent)
		expect(t, p.name+" next port", try(w.out, p.stranger, p.host, 7001), closed)
	}
}

// TestHideAll: everything but the public ports, and a grant still opens one.
func TestHideAll(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, n := range []uint16{22, 80, 4000} {
		greet(t, w.host, "", n)
	}
	cfg := guarding(config.Drop, "22/tcp")
	cfg.Daemon.HideAll = true
	cfg.Daemon.Public = []config.PortRange{port("80/tcp")}
	w.apply(cfg, Options{})
	for _, p := range pairs {
		expect(t, p.name+" public", try(w.out, p.stranger, p.host, 80), open)
		expect(t, p.name+" a service", try(w.out, p.stranger, p.host, 22), silent)
		expect(t, p.name+" the rest", try(w.out, p.stranger, p.host, 4000), closed)
		w.grant(tcp(p.stranger, 22, time.Minute))
		expect(t, p.name+" granted", try(w.out, p.stranger, p.host, 22), open)
	}
	// The host must not lose its own address: lease answers match no connection.
	for i, p := range pairs {
		client, server := []uint16{68, 546}[i], []uint16{67, 547}[i]
		echo(t, w.host, client)
		expect(t, p.name+" DHCP server", tryUDPFrom(w.out, netip.AddrPortFrom(p.stranger, server), p.host, client), open)
		expect(t, p.name+" any other port", tryUDP(w.out, p.stranger, p.host, client), closed)
	}
}
