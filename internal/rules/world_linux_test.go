package rules_test

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/rules"
	"github.com/sallyport/sallyport/internal/testnet"
)

// wiki is the recipe of the distributions' wikis.
const wiki = `[service.ssh]
ports = ["22/tcp"]
closed_as = "drop"
open_for = "30s"
[knock.wiki]
type = "sequence"
opens = ["ssh"]
sequence = ["8881/tcp", "7777/tcp", "9991/tcp"]
within = "30s"
`

// short is the recipe with times that a test can wait for.
var short = strings.NewReplacer(`open_for = "30s"`, `open_for = "2s"`, `within = "30s"`, `within = "3s"`).Replace(wiki)

// side is one family's addresses of the world.
type side struct{ name, server, client, stranger string }

var sides = []side{
	{"ipv4", "192.0.2.1", "192.0.2.2", "192.0.2.3"},
	{"ipv6", "2001:db8::1", "2001:db8::2", "2001:db8::3"},
}

// loader makes a ruleset and loads it, as the owner would.
type loader struct {
	name string
	load func(t *testing.T, w *world, cfg string)
}

func parse(t *testing.T, text string) *config.Config {
	t.Helper()
	cfg, err := config.Parse("test", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func loadNFT(t *testing.T, w *world, cfg string) {
	t.Helper()
	text, err := rules.NFT(parse(t, cfg))
	if err != nil {
		t.Fatal(err)
	}
	w.server.Input(text, "nft", "-c", "-f", "-")
	w.server.Input(text, "nft", "-f", "-")
}

// loadIPTables loads with one of the two implementations, both families.
func loadIPTables(kind string) func(*testing.T, *world, string) {
	return func(t *testing.T, w *world, cfg string) {
		t.Helper()
		text, err := rules.IPTables(parse(t, cfg))
		if err != nil {
			t.Fatal(err)
		}
		for _, program := range []string{"iptables-" + kind + "-restore", "ip6tables-" + kind + "-restore"} {
			w.server.Input(text, program, "--test", "--noflush")
			w.server.Input(text, program, "--noflush")
		}
	}
}

var loaders = []loader{
	{"nft", loadNFT},
	{"iptables-legacy", loadIPTables("legacy")},
	{"iptables-nft", loadIPTables("nft")},
}

// world is a server with something at port 22, and a client that has a second
// address, the stranger's.
type world struct {
	side
	server, client *testnet.Namespace
	wire           *testnet.Wire
	fresh          uint16 // source ports of built packets
}

func newWorld(t *testing.T, s side) *world {
	w := &world{side: s, server: testnet.New(t), client: testnet.New(t), fresh: 20000}
	serverEnd, clientEnd := testnet.Connect(w.server, w.client,
		[]string{"192.0.2.1/24", "2001:db8::1/64"},
		[]string{"192.0.2.2/24", "192.0.2.3/24", "2001:db8::2/64", "2001:db8::3/64"})
	// So that nmap takes the other one: nothing is sent from it unless asked to.
	w.client.Run("ip", "addr", "change", "2001:db8::3/64", "dev", clientEnd, "preferred_lft", "0")
	w.wire = w.client.Wire(clientEnd, w.server.MAC(serverEnd))
	w.listen(t, 22)
	return w
}

// listen answers connections to a port with a line for each line.
func (w *world) listen(t *testing.T, port int) {
	t.Helper()
	var l net.Listener
	var err error
	w.server.Do(func() { l, err = net.Listen("tcp", fmt.Sprintf(":%d", port)) })
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
			go func() { io.Copy(c, c); c.Close() }()
		}
	}()
}

func (w *world) dial(from string, port int, patience time.Duration) (net.Conn, error) {
	var c net.Conn
	var err error
	w.client.Do(func() {
		d := net.Dialer{Timeout: patience, LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		c, err = d.Dial("tcp", net.JoinHostPort(w.side.server, fmt.Sprint(port)))
	})
	return c, err
}

// reaches reports whether an address gets through to the port at the first SYN.
func (w *world) reaches(from string, port int) bool {
	c, err := w.dial(from, port, 400*time.Millisecond)
	if err == nil {
		c.Close()
	}
	return err == nil
}

// want is reaches as the test expects it, for the client's port 22.
func (w *world) want(t *testing.T, open bool, when string) {
	t.Helper()
	if got := w.reaches(w.side.client, 22); got != open {
		t.Fatalf("%s: the client reaches the service: %v, want %v", when, got, open)
	}
}

// nmap knocks as a person does who has read the wiki.
func (w *world) nmap(ports ...string) {
	for _, port := range ports {
		args := []string{"-n", "-Pn", "--max-retries", "0", "--host-timeout", "201s", "-p", port, w.side.server}
		if strings.Contains(w.side.server, ":") {
			args = append([]string{"-6"}, args...)
		}
		w.client.Run("nmap", args...)
	}
}

var steps = []string{"8881", "7777", "9991"}

// syn sends a bare SYN from an address, each time from another source port.
func (w *world) syn(t *testing.T, from string, ports ...int) {
	t.Helper()
	for _, port := range ports {
		w.fresh++
		w.wire.Send(t, w.packet(from, w.fresh, port, uint32(w.fresh)))
	}
}

func (w *world) packet(from string, source uint16, port int, number uint32) []byte {
	src := netip.AddrPortFrom(netip.MustParseAddr(from), source)
	dst := netip.AddrPortFrom(netip.MustParseAddr(w.side.server), uint16(port))
	const syn = 2
	return testnet.TCP(src, dst, syn, number)
}

// each runs a test for every way to load and both families.
func each(t *testing.T, cfg string, f func(t *testing.T, w *world)) {
	for _, l := range loaders {
		for _, s := range sides {
			t.Run(l.name+"/"+s.name, func(t *testing.T) {
				t.Parallel() // most of it is waiting
				w := newWorld(t, s)
				l.load(t, w, cfg)
				f(t, w)
			})
		}
	}
}

// echo reports whether a live connection still carries data.
func echo(c net.Conn) error {
	if _, err := c.Write([]byte("x")); err != nil {
		return err
	}
	c.SetReadDeadline(time.Now().Add(2 * time.Second))
	_, err := io.ReadFull(c, make([]byte, 1))
	return err
}

// installed is where a program is; where 'make packages' could have installed it the
// test fails without, and elsewhere it is skipped.
func installed(t *testing.T, program string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil && os.Geteuid() != 0 {
		t.Skipf("needs %s, which only root can install", program)
	}
	if err != nil {
		t.Fatalf("there is no %s: 'make packages' installs it", program)
	}
	return path
}
