//go:build linux

package warden

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/border"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/sallyport/sallyport/internal/testnet"
	"github.com/sallyport/sallyport/internal/warden/internal/conntrack"
	"github.com/sallyport/sallyport/internal/warden/internal/nft"
)

const leaveConfig = `
[service.ssh]
ports = ["22/tcp", "53/udp"]
open_for = "10m"
close_on_disconnect = true
[service.web]
ports = ["80/tcp"]
open_for = "10m"
[service.inner]
ports = ["23/tcp"]
on = ["198.51.100.5", "2001:db8:5::5"]
open_for = "10m"
close_on_disconnect = true
[knock.front]
type = "sequence"
opens = ["ssh", "web", "inner"]
sequence = ["7000/tcp", "8500/udp", "7800/tcp"]
`

// leaveWorld is a warden's own side with a real table and real connections.
type leaveWorld struct {
	t              *testing.T
	server, client *testnet.Namespace
	theirs, wire   string // interfaces: the server's, the client's
	said           *testnet.Output
	do             chan func(*warden) // runs it where the warden runs
}

func newLeaveWorld(t *testing.T) *leaveWorld {
	w := &leaveWorld{t: t, server: testnet.New(t), client: testnet.New(t), said: new(testnet.Output), do: make(chan func(*warden))}
	w.theirs, w.wire = testnet.Connect(w.server, w.client, []string{"192.0.2.1/24", "2001:db8::1/64"}, nil)
	inner := testnet.New(t)
	testnet.Connect(inner, w.server, []string{"198.51.100.5/24", "2001:db8:5::5/64"}, []string{"198.51.100.1/24", "2001:db8:5::1/64"})
	w.server.Run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
	inner.Run("ip", "route", "add", "192.0.2.0/24", "via", "198.51.100.1")
	inner.Run("ip", "-6", "route", "add", "2001:db8::/64", "via", "2001:db8:5::1")
	w.listen(w.server, "22", "80")
	w.listen(inner, "23")
	ctx, stop := context.WithCancel(context.Background())
	ended, ready := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		w.server.Do(func() { w.serve(ctx, ready) })
	}()
	t.Cleanup(func() { stop(); <-ended })
	select {
	case <-ready:
	case <-ended:
		t.FailNow()
	}
	return w
}

// listen answers TCP, and UDP at port 53, until the test's end.
func (w *leaveWorld) listen(ns *testnet.Namespace, ports ...string) {
	for _, port := range ports {
		var l net.Listener
		var err error
		ns.Do(func() { l, err = net.Listen("tcp", ":"+port) })
		if err != nil {
			w.t.Fatal(err)
		}
		w.t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() { defer c.Close(); copyAll(c) }()
			}
		}()
	}
	var p net.PacketConn
	var err error
	ns.Do(func() { p, err = net.ListenPacket("udp", ":53") })
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { p.Close() })
	go func() {
		var b [16]byte
		for {
			n, from, err := p.ReadFrom(b[:])
			if err != nil {
				return
			}
			p.WriteTo(b[:n], from)
		}
	}()
}

func copyAll(c net.Conn) {
	var b [16]byte
	for {
		n, err := c.Read(b[:])
		if err != nil {
			return
		}
		c.Write(b[:n])
	}
}

// serve is the part of the daemon's loop that is tested.
func (w *leaveWorld) serve(ctx context.Context, ready chan struct{}) {
	cfg, err := config.Parse("leave.toml", []byte(leaveConfig))
	if err != nil {
		w.t.Error(err)
		return
	}
	table, err := nft.Open()
	if err != nil {
		w.t.Error(err)
		return
	}
	defer table.Close()
	log := slog.New(slog.NewTextHandler(w.said, nil))
	d := &warden{options: Options{Log: log}, log: log, cfg: cfg, table: table, gate: newGate(table, false, log)}
	d.host.Addrs = []netip.Addr{addr("192.0.2.1"), addr("2001:db8::1")}
	d.gate.use(cfg, 1, nil)
	d.followLeaving(ctx)
	if err := table.Apply(cfg, nft.Options{}); err != nil || d.leaving.events == nil {
		w.t.Error(err, w.said.String())
		return
	}
	close(ready)
	for {
		d.followLeaving(ctx)
		select {
		case <-ctx.Done():
			return
		case e, ok := <-d.leaving.events:
			d.flowed(e, ok)
		case <-d.leaving.timer():
			d.lookWhoLeft()
		case f := <-w.do:
			f(d)
		}
	}
}

// guest is somebody with an address of his own.
type guest struct {
	*leaveWorld
	name string
	addr netip.Addr
}

func (w *leaveWorld) guest(name, at string) *guest {
	bits := map[bool]string{true: "/24", false: "/64"}[addr(at).Is4()]
	w.client.Address(w.wire, at+bits)
	w.client.Output("ip", "route", "add", "198.51.100.0/24", "via", "192.0.2.1")
	w.client.Output("ip", "-6", "route", "add", "2001:db8:5::/64", "via", "2001:db8::1")
	return &guest{w, name, addr(at)}
}

// knock lets the guest in to everything.
func (g *guest) knock() {
	g.t.Helper()
	done := make(chan struct{})
	g.do <- func(d *warden) {
		defer close(done)
		for rule := range uint16(3) {
			m := &border.Open{Generation: 1, Rule: rule, Addr: g.addr, TTL: 10 * time.Minute}
			if got := d.gate.open(m, time.Now()).Result; got != border.Granted {
				g.t.Errorf("%s: %v\n%s", g.name, got, g.said.String())
			}
		}
	}
	<-done
}

// open lists the services that are open to the guest in the kernel.
func (g *guest) open() string {
	g.t.Helper()
	var names []string
	done := make(chan struct{})
	g.do <- func(d *warden) {
		defer close(done)
		elements, err := d.table.Grants()
		if err != nil {
			g.t.Error(err)
		}
		for _, e := range elements {
			if name := map[uint16]string{22: "ssh", 80: "web", 23: "inner"}[e.Port]; e.Addr == g.addr && name != "" {
				names = append(names, name)
			}
		}
	}
	<-done
	slices.Sort(names)
	return strings.Join(names, " ")
}

func (g *guest) dial(network, port string) net.Conn {
	g.t.Helper()
	to := map[bool]string{true: "192.0.2.1", false: "2001:db8::1"}[g.addr.Is4()]
	if port == "23" {
		to = map[bool]string{true: "198.51.100.5", false: "2001:db8:5::5"}[g.addr.Is4()]
	}
	d := net.Dialer{Timeout: 5 * time.Second, LocalAddr: &net.TCPAddr{IP: g.addr.AsSlice()}}
	if network == "udp" {
		d.LocalAddr = &net.UDPAddr{IP: g.addr.AsSlice()}
	}
	var c net.Conn
	var err error
	g.client.Do(func() { c, err = d.Dial(network, net.JoinHostPort(to, port)) })
	if err != nil {
		g.t.Errorf("%s: %v", g.name, err)
		runtime.Goexit()
	}
	g.t.Cleanup(func() { c.Close() })
	g.echo(c)
	return c
}

// echo shows that a connection is alive.
func (g *guest) echo(c net.Conn) {
	g.t.Helper()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	var b [4]byte
	if _, err := fmt.Fprint(c, "ping"); err != nil {
		g.t.Errorf("%s: %v", g.name, err)
	}
	if _, err := c.Read(b[:]); err != nil {
		g.t.Errorf("%s: %v", g.name, err)
	}
}

const (
	everything = "inner ssh web"
	withoutSSH = "inner web"
)

// wait waits for what is open to the guest; by then gives it that long.
func (g *guest) wait(want string, by time.Duration) {
	g.t.Helper()
	got := ""
	for end := time.Now().Add(by); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if got = g.open(); got == want {
			return
		}
	}
	g.t.Errorf("%s: open are %q, want %q\n%s", g.name, got, want, g.said.String())
}

// holds checks that nothing closes for longer than a look would take.
func (g *guest) holds(want string) {
	g.t.Helper()
	for end := time.Now().Add(grace + time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if got := g.open(); got != want {
			g.t.Errorf("%s: open are %q, want %q\n%s", g.name, got, want, g.said.String())
			return
		}
	}
}

// Each story is somebody's with an address of his own, in one world: the others'
// connections and grants are there while one leaves.
func TestAGrantEndsWithItsLastConnection(t *testing.T) {
	t.Parallel()
	w := newLeaveWorld(t)
	w.server.Run("sysctl", "-qw", "net.netfilter.nf_conntrack_udp_timeout=2", "net.netfilter.nf_conntrack_udp_timeout_stream=2")
	const soon, moment = 20 * time.Second, 500 * time.Millisecond
	stories := []struct {
		name string
		live func(g *guest)
	}{
		{"one connection", func(g *guest) {
			g.dial("tcp", "22").Close()
			g.wait(withoutSSH, soon)
		}},
		{"a reset", func(g *guest) {
			c := g.dial("tcp", "22").(*net.TCPConn)
			c.SetLinger(0)
			c.Close()
			g.wait(withoutSSH, soon)
		}},
		{"two connections", func(g *guest) {
			a, b := g.dial("tcp", "22"), g.dial("tcp", "22")
			a.Close()
			g.holds(everything)
			g.echo(b)
			b.Close()
			g.wait(withoutSSH, soon)
		}},
		{"never used", func(g *guest) { g.holds(everything) }},
		{"still connected", func(g *guest) {
			c := g.dial("tcp", "22")
			g.holds(everything)
			g.echo(c)
		}},
		{"half closed", func(g *guest) {
			c := g.dial("tcp", "22").(*net.TCPConn)
			c.CloseWrite() // the server's end closes then
			g.wait(withoutSSH, soon)
		}},
		{"again within a second", func(g *guest) {
			g.dial("tcp", "22").Close()
			time.Sleep(moment)
			c := g.dial("tcp", "22")
			g.holds(everything)
			g.echo(c)
		}},
		{"knocks again when he has just left", func(g *guest) {
			g.dial("tcp", "22").Close()
			time.Sleep(moment)
			g.knock()
			g.holds(everything)
		}},
		{"knocks again right before he leaves", func(g *guest) {
			c := g.dial("tcp", "22")
			time.Sleep(moment)
			g.knock()
			c.Close()
			g.holds(everything)
			g.dial("tcp", "22").Close()
			g.wait(withoutSSH, soon)
		}},
		{"knocks again and stays for a while", func(g *guest) {
			c := g.dial("tcp", "22")
			g.knock()
			time.Sleep(grace + moment)
			c.Close()
			g.wait(withoutSSH, soon)
		}},
		{"a service without the key", func(g *guest) {
			g.dial("tcp", "80").Close()
			g.holds(everything)
		}},
		{"another machine's service", func(g *guest) {
			a, b := g.dial("tcp", "23"), g.dial("tcp", "23")
			a.Close()
			g.holds(everything)
			g.echo(b)
			b.Close()
			g.wait("ssh web", soon)
		}},
		{"datagrams", func(g *guest) {
			c := g.dial("udp", "53")
			for range 8 { // the kernel is sure of a stream after two seconds
				time.Sleep(500 * time.Millisecond)
				g.echo(c)
			}
			if got := g.open(); got != everything {
				t.Errorf("%s: open are %q", g.name, got)
			}
			time.Sleep(2500 * time.Millisecond)
			g.server.Run("conntrack", "-L") // the kernel drops what is over when it is looked at, or within a minute
			g.wait(withoutSSH, soon)
		}},
	}
	var all sync.WaitGroup
	for i, s := range stories {
		for _, net := range []string{"192.0.2.%d", "2001:db8::%d"} {
			at := fmt.Sprintf(net, 10+i)
			g := w.guest(s.name+" "+at, at)
			all.Go(func() { g.knock(); s.live(g) }) // more at once than -parallel allows
		}
	}
	all.Wait()
}

// Promise 4: a packet with a forged source shortens no grant: no handshake comes
// of it, and what was never used stays.
func TestPromise4AForgedConnectionEndsNoGrant(t *testing.T) {
	t.Parallel()
	w := newLeaveWorld(t)
	wire := w.client.Wire(w.wire, w.server.MAC(w.theirs))
	for i, net := range []string{"192.0.2.7", "2001:db8::7"} {
		g := w.guest("victim", net)
		g.knock()
		src, dst := netip.AddrPortFrom(g.addr, 4000), netip.AddrPortFrom(addr([]string{"192.0.2.1", "2001:db8::1"}[i]), 22)
		for seq, flags := range []uint8{sequence.SYN, sequence.ACK, sequence.ACK | sequence.FIN, sequence.RST} {
			wire.Send(t, testnet.TCP(src, dst, flags, uint32(seq)))
		}
		g.holds(everything)
	}
}

// A daemon that starts anew, or lost news, finds out who is connected.
func TestWhoIsConnectedIsCountedAgain(t *testing.T) {
	t.Parallel()
	w := newLeaveWorld(t)
	for _, net := range []string{"192.0.2.7", "2001:db8::7"} {
		g := w.guest("guest", net)
		g.knock()
		c := g.dial("tcp", "22")
		forget := func(lost bool) {
			done := make(chan struct{})
			w.do <- func(d *warden) {
				defer close(done)
				d.gate.uses = uses{}
				if lost {
					d.flowed(conntrack.Event{Lost: true}, true)
				} else {
					less := *d.cfg
					d.cfg = &less // as a reload does
				}
			}
			<-done
		}
		forget(false)
		g.holds(everything)
		forget(true)
		g.holds(everything)
		c.Close()
		g.wait(withoutSSH, 20*time.Second)
	}
}

// The memory is no larger than that of grants, and costs nothing where no service
// has the key.
func TestUsesAreForgotten(t *testing.T) {
	now := time.Now()
	u, g := uses{}, grants{}
	for i, a := range clients {
		key := grantKey{addr: a, service: "ssh"}
		u.flow(key, conntrack.Flow{Assured: true}, now)
		if len(u) != i {
			t.Errorf("%v: who was not let in is remembered", a)
		}
		u.ask(key, false, now)
		g.add(key, "front", now.Add(time.Minute), now)
	}
	u.forget(g)
	if len(u) != len(clients) {
		t.Errorf("%d of %d are left", len(u), len(clients))
	}
	g.forget(now.Add(time.Hour))
	u.forget(g)
	if len(u) != 0 {
		t.Errorf("%d are left for ever", len(u))
	}
}
