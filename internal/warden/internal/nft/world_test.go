package nft

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/sallyport/sallyport/internal/testnet"
)

// The addresses of every test's host and of the stranger on its wire. bystander
// is a second address of the stranger's machine that is never granted anything.
var (
	host4, stranger4, bystander4 = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.3")
	host6, stranger6, bystander6 = netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2"), netip.MustParseAddr("2001:db8::3")
)

// pair is one family's addresses.
type pair struct {
	name                      string
	host, stranger, bystander netip.Addr
}

var pairs = []pair{
	{"IPv4", host4, stranger4, bystander4},
	{"IPv6", host6, stranger6, bystander6},
}

// world is a host that is guarded and a machine of strangers.
type world struct {
	testing.TB
	host, out       *testnet.Namespace
	hostEnd, outEnd string
	table           *Table
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{TB: t, host: namespace(t), out: namespace(t)}
	w.hostEnd, w.outEnd = testnet.Connect(w.host, w.out,
		[]string{host4.String() + "/24", host6.String() + "/64"},
		[]string{stranger4.String() + "/24", bystander4.String() + "/24", stranger6.String() + "/64", bystander6.String() + "/64"})
	for _, p := range pairs { // a new wire loses its first packets now and then
		eventually(t, "reached", 5*time.Second, func() string {
			if out, err := w.out.Output("ping", "-c1", "-W1", "-I", p.stranger.String(), p.host.String()); err != nil {
				return out
			}
			return "reached"
		})
	}
	w.table = openIn(t, w.host)
	return w
}

// namespace makes one whose link-local addresses are usable at once: a router
// asks for its neighbours from them, and duplicate detection takes seconds.
func namespace(t testing.TB) *testnet.Namespace {
	t.Helper()
	ns := testnet.New(t)
	ns.Run("sysctl", "-qw", "net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0")
	return ns
}

func openIn(t testing.TB, ns *testnet.Namespace) *Table {
	t.Helper()
	var table *Table
	var err error
	ns.Do(func() { table, err = Open() })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { table.Close() })
	return table
}

func (w *world) apply(cfg *config.Config, o Options) {
	w.Helper()
	if err := w.table.Apply(cfg, o); err != nil {
		w.Fatal(err)
	}
}

func (w *world) grant(elements ...Element) {
	w.Helper()
	if err := w.table.Grant(elements); err != nil {
		w.Fatal(err)
	}
}

func (w *world) listing() string {
	w.Helper()
	return w.host.Run("nft", "list", "table", "inet", "sallyport")
}

// guarding is a config that hides ports ("22/tcp") with one look.
func guarding(as config.ClosedAs, ports ...string) *config.Config {
	return &config.Config{Daemon: config.Daemon{MaxGrants: 1024}, Services: []config.Service{service(as, ports...)}}
}

func service(as config.ClosedAs, ports ...string) config.Service {
	s := config.Service{Name: "s", ClosedAs: as, OpenFor: time.Minute, MaxOpenFor: time.Hour}
	for _, p := range ports {
		s.Ports = append(s.Ports, port(p))
	}
	return s
}

func port(s string) config.PortRange {
	r, err := config.ParsePortRange(s)
	if err != nil {
		panic(err)
	}
	return r
}

func tcp(addr netip.Addr, port uint16, ttl time.Duration) Element {
	return Element{Addr: addr, Proto: sequence.TCP, Port: port, TTL: ttl, By: "test"}
}

// greet serves TCP in a namespace: it says who it is, then echoes. The listener
// takes both families when addr is "".
func greet(t testing.TB, ns *testnet.Namespace, addr string, port uint16) {
	t.Helper()
	greetBy(t, ns, net.ListenConfig{}, addr, port)
}

func greetBy(t testing.TB, ns *testnet.Namespace, how net.ListenConfig, addr string, port uint16) {
	t.Helper()
	var l net.Listener
	var err error
	ns.Do(func() { l, err = how.Listen(t.Context(), "tcp", net.JoinHostPort(addr, strconv.Itoa(int(port)))) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.WriteString(c, "hello")
				io.Copy(c, c)
			}()
		}
	}()
}

// echo serves UDP in a namespace.
func echo(t testing.TB, ns *testnet.Namespace, port uint16) {
	t.Helper()
	var c net.PacketConn
	var err error
	ns.Do(func() { c, err = net.ListenPacket("udp", net.JoinHostPort("", strconv.Itoa(int(port)))) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	go func() {
		b := make([]byte, 2048)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			c.WriteTo(b[:n], from)
		}
	}()
}

// dial connects from an address inside a namespace and reads the greeting.
func dial(ns *testnet.Namespace, from, to netip.Addr, port uint16, limit time.Duration) (net.Conn, error) {
	d := net.Dialer{Timeout: limit, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))}
	var c net.Conn
	var err error
	ns.Do(func() { c, err = d.Dial("tcp", netip.AddrPortFrom(to, port).String()) })
	if err != nil {
		return nil, err
	}
	c.SetReadDeadline(time.Now().Add(time.Second))
	b := make([]byte, 5)
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "hello" {
		c.Close()
		return nil, fmt.Errorf("no greeting: %q, %w", b, err)
	}
	return c, nil
}

// answers of a probe
const (
	open        = "open"
	closed      = "closed"
	silent      = "silent"
	quickAnswer = 200 * time.Millisecond
)

// try says how a TCP port answers one connection attempt.
func try(ns *testnet.Namespace, from, to netip.Addr, port uint16) string {
	c, err := dial(ns, from, to, port, quickAnswer)
	if err == nil {
		c.Close()
		return open
	}
	return reading(err)
}

func reading(err error) string {
	var late net.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return closed
	case errors.As(err, &late) && late.Timeout():
		return silent
	}
	return err.Error()
}

// tryUDP says how a UDP port answers one datagram.
func tryUDP(ns *testnet.Namespace, from, to netip.Addr, port uint16) string {
	return tryUDPFrom(ns, netip.AddrPortFrom(from, 0), to, port)
}

func tryUDPFrom(ns *testnet.Namespace, from netip.AddrPort, to netip.Addr, port uint16) string {
	d := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(from)}
	var c net.Conn
	var err error
	ns.Do(func() { c, err = d.Dial("udp", netip.AddrPortFrom(to, port).String()) })
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	c.Write([]byte("x"))
	c.SetReadDeadline(time.Now().Add(quickAnswer))
	if _, err := c.Read(make([]byte, 8)); err != nil {
		return reading(err)
	}
	return open
}

// echoes reports whether a connection still carries bytes both ways.
func echoes(t testing.TB, c net.Conn) {
	t.Helper()
	c.SetDeadline(time.Now().Add(2 * time.Second))
	b := make([]byte, 4)
	if _, err := c.Write([]byte("ping")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "ping" {
		t.Fatalf("the connection is dead: %q, %v", b, err)
	}
}

// eventually polls until f gives want, for at most limit.
func eventually(t testing.TB, want string, limit time.Duration, f func() string) {
	t.Helper()
	var got string
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if got = f(); got == want {
			return
		}
	}
	t.Fatalf("after %v still %q, want %q", limit, got, want)
}
