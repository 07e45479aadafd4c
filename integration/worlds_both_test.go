//go:build linux

package integration_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/border"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/control"
	"github.com/sallyport/sallyport/internal/engine"
	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/sallyport/sallyport/internal/testnet"
)

// fakeWorld is the engine alone. Its warden grants whatever is asked.
type fakeWorld struct {
	f      family
	engine *engine.Engine
	facts  border.HostFacts
	warden *yesWarden
}

// yesWarden is a border whose other side grants everything at once.
type yesWarden struct {
	rules   []config.Rule
	until   map[netip.Addr]time.Time // of the service called door
	answers []*border.Done
}

func (y *yesWarden) Send(m border.Message) error {
	switch m := m.(type) {
	case *border.Open:
		until := time.Now().Add(m.TTL)
		if y.rules[m.Rule].Service == 0 {
			y.until[m.Addr] = until
		}
		y.answers = append(y.answers, &border.Done{ID: m.ID, Result: border.Granted, Until: until})
	case *border.Close:
		delete(y.until, m.Addr)
		y.answers = append(y.answers, &border.Done{ID: m.ID, Result: border.Closed})
	}
	return nil
}

// newFakeWorld belongs into a bubble of synctest: its time is fake.
func newFakeWorld(t *testing.T, f family, text string) *fakeWorld {
	t.Helper()
	cfg, err := config.Parse("story.toml", []byte(strings.ReplaceAll(text, "DIR", "/var/lib/story")))
	if err != nil {
		t.Fatal(err)
	}
	y := &yesWarden{rules: cfg.Rules(), until: map[netip.Addr]time.Time{}}
	w := &fakeWorld{f: f, warden: y, engine: engine.New(y, [2]int{-1, -1}, slog.New(slog.DiscardHandler))}
	w.facts.Addrs = []netip.Addr{f.place(""), f.place("second")}
	for _, port := range servicePorts {
		w.facts.Listening = append(w.facts.Listening, config.PortRange{Proto: sequence.TCP, Low: port, High: port})
	}
	w.engine.Host(&w.facts)
	w.engine.Use(1, &border.Generation{Config: *cfg, Keys: make([]border.Keys, len(cfg.Knocks))}, [8]byte{})
	return w
}

func (w *fakeWorld) send(_ *testing.T, shouted bool, packets ...[]byte) {
	for _, b := range packets {
		if shouted {
			continue // a broadcast frame never passes internal/engine/internal/source
		}
		w.engine.Packet(b, 1)
		for _, done := range w.warden.answers {
			w.engine.Done(done)
		}
		w.warden.answers = nil
	}
}

// reaches sends the SYN that a real connect would: the engine may see it too.
func (w *fakeWorld) reaches(t *testing.T, from netip.Addr) bool {
	syn := testnet.TCP(netip.AddrPortFrom(from, 40000), netip.AddrPortFrom(w.f.place(""), 22), sequence.SYN, 1)
	w.send(t, false, syn)
	return time.Now().Before(w.warden.until[from])
}

func (w *fakeWorld) wait(_ *testing.T, d time.Duration) { time.Sleep(d) }

func (w *fakeWorld) gain(_ *testing.T, addr netip.Addr) {
	w.facts.Addrs = append(w.facts.Addrs, addr)
	w.engine.Host(&w.facts)
}

// servicePorts listen on the host: a hidden one, the witness's, a public one.
var servicePorts = []uint16{22, 23, 443}

// witnessConfig is a knock whose one packet tells a test, once its grant is
// reported, that all packets before it have been dealt with: the engine takes
// packets, and the warden requests, in their order.
const witnessConfig = `[service.witness]
ports = ["23/tcp"]
open_for = "1s"
[knock.witness]
type = "sequence"
opens = ["witness"]
sequence = ["50000/udp"]
scan_opens = true
`

// ownRules is a firewall of the host's owner's: a program, and what it reads.
type ownRules struct {
	name, program string
	args          []string
	text          string
}

// hostRules are what the owner of the host has in his firewall.
var hostRules = []ownRules{
	{"open", "true", nil, ""},
	{"nft drops", "nft", []string{"-f", "-"}, `table inet filter { chain input { type filter hook input priority filter; policy drop
		iif lo accept
		ct state established accept
		icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
		tcp dport { 22, 443 } accept
		}
	}`},
	{"iptables drops", "sh", nil, `
		for command in iptables ip6tables; do
			$command -P INPUT DROP
			$command -A INPUT -i lo -j ACCEPT
			$command -A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT
			$command -A INPUT -p tcp -m multiport --dports 22,443 -j ACCEPT
		done
		ip6tables -A INPUT -p icmpv6 --icmpv6-type neighbour-solicitation -j ACCEPT
		ip6tables -A INPUT -p icmpv6 --icmpv6-type neighbour-advertisement -j ACCEPT
	`},
}

// eachWorld runs a test for every family and set of rules, all at once: worlds
// mostly wait, and the limit on parallel tests is for those that compute.
func eachWorld(t *testing.T, hosts []ownRules, test func(t *testing.T, f family, rules ownRules)) {
	t.Parallel()
	var all sync.WaitGroup
	defer all.Wait()
	for _, f := range ipFamilies {
		for _, rules := range hosts {
			all.Go(func() {
				t.Run(rules.name+"/"+f.name, func(t *testing.T) { test(t, f, rules) })
			})
		}
	}
}

// realWorld is the daemon on a host, and a client on the same wire that answers
// to every stranger's address.
type realWorld struct {
	f            family
	host, client *testnet.Namespace
	wire, shout  *testnet.Wire
	hostLink     string
	clientLink   string
	daemon       *testnet.Daemon
	granted      chan netip.Addr // addresses that the witness's service was opened to
	witness      int
}

func newRealWorld(t *testing.T, f family) *realWorld {
	t.Helper()
	w := &realWorld{f: f, host: testnet.New(t), client: testnet.New(t), granted: make(chan netip.Addr, 4096)}
	for _, ns := range []*testnet.Namespace{w.host, w.client} {
		// Else neighbours wait two seconds for each other's link-local addresses.
		ns.Run("sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0", "net.ipv6.conf.all.accept_dad=0")
	}
	w.clientLink, w.hostLink = testnet.Connect(w.client, w.host,
		[]string{"192.0.2.2/24", "2001:db8::2/64"},
		[]string{"192.0.2.1/24", "192.0.2.9/24", "2001:db8::1/64", "2001:db8::9/64"})
	w.wire = w.client.Wire(w.clientLink, w.host.MAC(w.hostLink))
	w.shout = w.client.Wire(w.clientLink, net.HardwareAddr{255, 255, 255, 255, 255, 255})
	w.client.Run("sysctl", "-qw", "net.ipv6.ip_nonlocal_bind=1")
	for _, route := range []struct{ family, strangers, via string }{
		{"-4", "198.51.100.0/24", "192.0.2.2"},
		{"-6", "2001:db8:c::/64", "2001:db8::2"},
	} {
		w.client.Run("ip", route.family, "route", "add", "local", route.strangers, "dev", "lo")
		w.host.Run("ip", route.family, "route", "add", route.strangers, "via", route.via)
	}
	// A host that looks for a neighbour keeps few packets for him.
	for _, addr := range []string{"192.0.2.2", "2001:db8::2"} {
		w.host.Run("ip", "neigh", "replace", addr, "lladdr", w.client.MAC(w.clientLink).String(), "dev", w.hostLink)
	}
	for _, port := range servicePorts {
		greetAt(t, w.host, port)
	}
	return w
}

// greetAt serves a greeting until the test ends.
func greetAt(t *testing.T, ns *testnet.Namespace, port uint16) {
	t.Helper()
	var l net.Listener
	var err error
	ns.Do(func() { l, err = net.Listen("tcp", fmt.Sprintf(":%d", port)) })
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
			c.Write([]byte("hello"))
			c.Close()
		}
	}()
}

// serve starts the daemon and follows its events.
func (w *realWorld) serve(t *testing.T, text string) {
	t.Helper()
	w.daemon = w.host.Serve(testnet.Binary(t), text)
	conn, err := net.Dial("unix", w.daemon.Control)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if _, err := conn.Write([]byte(`{"do":"events"}` + "\n")); err != nil {
		t.Fatal(err)
	}
	go w.follow(conn)
	w.settle(t)
}

func (w *realWorld) follow(conn net.Conn) {
	for dec := json.NewDecoder(bufio.NewReader(conn)); ; {
		var a control.Answer
		if dec.Decode(&a) != nil {
			return
		}
		if e := a.Event; e != nil && e.What == control.EventOpen && e.Service == "witness" {
			w.granted <- e.Addr
		}
	}
}

// settle waits until all that was sent has had its effect.
func (w *realWorld) settle(t *testing.T) {
	t.Helper()
	if !w.settled(t, w.f.place(""), soon) {
		t.Fatalf("the witness of what was sent is never seen\n%s", w.daemon.Log())
	}
}

// settled sends the witness to an address of the host until it is seen; its
// source is always another one, so that no late answer is taken for this one's.
func (w *realWorld) settled(t *testing.T, to netip.Addr, limit time.Duration) bool {
	t.Helper()
	w.witness++
	from := nth(w.f.forged, 1+w.witness%250)
	for end := time.Now().Add(limit); time.Now().Before(end); {
		w.wire.Send(t, testnet.UDP(netip.AddrPortFrom(from, 9), netip.AddrPortFrom(to, 50000), nil, testnet.ID(uint16(w.witness))))
		for again := time.After(100 * time.Millisecond); again != nil; {
			select {
			case addr := <-w.granted:
				if addr == from {
					return true
				}
			case <-again:
				again = nil
			}
		}
	}
	return false
}

// reload turns the daemon to another config.
func (w *realWorld) reload(t *testing.T, text string) {
	t.Helper()
	before := strings.Count(w.daemon.Log(), readAgain)
	w.daemon.Configure(text)
	w.daemon.Signal(syscall.SIGHUP)
	for end := time.Now().Add(soon); strings.Count(w.daemon.Log(), readAgain) == before; time.Sleep(time.Millisecond) {
		if time.Now().After(end) || strings.Contains(w.daemon.Log(), refusal) {
			t.Fatalf("the config is not taken:\n%s\n%s", text, w.daemon.Log())
		}
	}
}

func (w *realWorld) send(t *testing.T, shouted bool, packets ...[]byte) {
	t.Helper()
	if shouted {
		w.shout.Send(t, packets...)
		return
	}
	w.wire.Send(t, packets...)
}

func (w *realWorld) reaches(t *testing.T, from netip.Addr) bool {
	t.Helper()
	w.settle(t)
	return w.connects(t, from, w.f.place(""), 22)
}

// connects reports whether a real connection from one address to another is
// greeted. A refusal is the only other answer that it takes.
func (w *realWorld) connects(t *testing.T, from, to netip.Addr, port uint16) bool {
	t.Helper()
	d := net.Dialer{Timeout: 5 * time.Second, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))}
	var c net.Conn
	var err error
	w.client.Do(func() { c, err = d.Dial("tcp", netip.AddrPortFrom(to, port).String()) })
	if errors.Is(err, syscall.ECONNREFUSED) {
		return false
	}
	if err != nil {
		t.Fatalf("%s is neither greeted nor refused: %v", from, err)
	}
	defer c.Close()
	var b [5]byte
	c.SetDeadline(time.Now().Add(soon))
	if _, err := c.Read(b[:]); err != nil || string(b[:]) != "hello" {
		t.Fatalf("%s is not greeted: %q, %v", from, b, err)
	}
	return true
}

func (w *realWorld) wait(t *testing.T, d time.Duration) {
	t.Helper()
	w.settle(t)
	time.Sleep(d)
}

// gain adds the address; the daemon must know it within a second, and a test may
// wait three on a busy machine.
func (w *realWorld) gain(t *testing.T, addr netip.Addr) {
	t.Helper()
	prefix := "/24"
	if addr.Is6() {
		prefix = "/64"
	}
	w.host.Address(w.hostLink, addr.String()+prefix)
	if !w.settled(t, addr, 3*time.Second) {
		t.Fatalf("three seconds after it was added, packets to %s still do not count", addr)
	}
}
