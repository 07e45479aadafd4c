package main

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/sallyport/sallyport/internal/testnet"
)

// The two families' ends of the server.
var (
	server4 = netip.MustParseAddr("192.0.2.2")
	server6 = netip.MustParseAddr("2001:db8::2")
)

const (
	guarded = 22 // hidden until somebody knocks
	public  = 80 // open to everybody, for the floor
)

// world is a server with a service behind two ports, and a client that owns
// 198.18.0.0/16 (RFC 2544) and 2001:db8:1::/64 whole, so that each knock comes
// from a fresh address.
type world struct {
	b              *bench
	server, client *testnet.Namespace
	clientWire     string
	serverWire     string
	to             net.HardwareAddr
	prober         *prober
	last           uint16 // the number of the latest fresh address
}

func (b *bench) newWorld() *world { return b.newWorldOver(testnet.Connect) }

// newWorldOver makes one whose wire is laid by connect.
func (b *bench) newWorldOver(connect func(client, server *testnet.Namespace, clients, servers []string) (string, string)) *world {
	w := &world{b: b, server: testnet.New(b), client: testnet.New(b)}
	w.clientWire, w.serverWire = connect(w.client, w.server,
		[]string{"192.0.2.1/24", "2001:db8::1/64"}, []string{"192.0.2.2/24", "2001:db8::2/64"})
	w.client.Run("ip", "route", "add", "local", "198.18.0.0/16", "dev", "lo")
	w.client.Run("ip", "-6", "route", "add", "local", "2001:db8:1::/64", "dev", "lo")
	// Forged sources, in 198.19.0.0/16 and 2001:db8:f::/48, lie behind the client
	// too, so that the server's answers to them go somewhere.
	w.server.Run("ip", "route", "add", "198.18.0.0/15", "via", "192.0.2.1")
	w.server.Run("ip", "-6", "route", "add", "2001:db8::/32", "via", "2001:db8::1")
	client := w.client.MAC(w.clientWire).String()
	for _, addr := range []string{"192.0.2.1", "2001:db8::1"} {
		// Resolving a neighbour is no part of what is measured.
		w.server.Run("ip", "neigh", "replace", addr, "lladdr", client, "dev", w.serverWire, "nud", "permanent")
	}
	w.to = w.server.MAC(w.serverWire)
	w.prober = b.newProber(w.client, w.client.Wire(w.clientWire, w.to))
	w.listen(guarded)
	w.listen(public)
	return w
}

func (w *world) listen(port int) {
	var l net.Listener
	var err error
	w.server.Do(func() { l, err = net.Listen("tcp", fmt.Sprintf(":%d", port)) })
	if err != nil {
		w.b.Fatal(err)
	}
	w.b.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
}

// fresh gives an address of the client's that was not used before. There are
// 65,535, far more than a part uses.
func (w *world) fresh(v6 bool) netip.Addr {
	w.last++
	if !v6 {
		return netip.AddrFrom4([4]byte{198, 18, byte(w.last >> 8), byte(w.last)})
	}
	a := netip.MustParseAddr("2001:db8:1::").As16()
	binary.BigEndian.PutUint16(a[14:], w.last)
	return netip.AddrFrom16(a)
}

func serverAddr(v6 bool) netip.Addr {
	if v6 {
		return server6
	}
	return server4
}

const sallyportConfig = `[service.ssh]
ports = ["22/tcp"]
open_for = "30s"
[knock.front]
type = "sequence"
opens = ["ssh"]
sequence = ["47011/tcp", "48022/udp", "45033/tcp"]
within = "5s"
`

// sallyport starts our daemon in the world.
func (w *world) sallyport(config string) *testnet.Daemon {
	d := w.server.Serve(w.copyProgram("sallyport"), config)
	for _, pid := range w.processes(d) {
		if err := preferSession(pid); err != nil {
			w.b.Fatal(err)
		}
	}
	return d
}

// copyProgram gives a copy of the program, under a name, that no other process has
// mapped, or Pss would share its pages with strangers.
func (w *world) copyProgram(name string) string {
	program := filepath.Join(w.dir(), name)
	text, err := os.ReadFile(w.b.program)
	if err == nil {
		err = testnet.WriteProgram(program, text)
	}
	if err != nil {
		w.b.Fatal(err)
	}
	return program
}

// dir makes a directory for this part.
func (w *world) dir() string {
	dir, err := os.MkdirTemp("", "sallyport-bench-")
	if err != nil {
		w.b.Fatal(err)
	}
	w.b.Cleanup(func() { os.RemoveAll(dir) })
	os.Chmod(dir, 0o755) // the engine runs as another user
	return dir
}

const knockdConfig = `[front]
sequence = 47011:tcp,48022:udp,45033:tcp
seq_timeout = 5
tcpflags = syn
start_command = iptables -A INPUT -s %IP% -p tcp --dport 22 -j ACCEPT
`

// knockd starts Debian's knockd on a firewall that drops what it has no rule
// for, and gives its process.
func (w *world) knockd() *os.Process {
	config := filepath.Join(w.dir(), "knockd.conf")
	if err := os.WriteFile(config, []byte(knockdConfig), 0o600); err != nil {
		w.b.Fatal(err)
	}
	w.server.Run("iptables", "-P", "INPUT", "DROP")
	cmd := exec.Command("knockd", "-c", config, "-i", w.serverWire, "-p", config+".pid")
	if err := w.server.Start(cmd); err != nil {
		w.b.Fatalf("knockd: %v; install the package knockd", err)
	}
	w.b.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	w.ready("knockd", opening)
	return cmd.Process
}

// ready knocks until the daemon that was just started opens the port. No
// command of a daemon's takes effect before its processes run.
func (w *world) ready(daemon string, k knocking) {
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
		if _, ok := w.opens(false, k, guarded); ok {
			return
		}
	}
	w.b.Fatalf("%s does not open the port", daemon)
}

// flush takes knockd's rules away: a chain that grows would slow it down.
func (w *world) flush() { w.server.Run("iptables", "-F", "INPUT") }

// opens knocks from a fresh address and gives the time until the port answers.
func (w *world) opens(v6 bool, k knocking, port uint16) (time.Duration, bool) {
	from, to := w.fresh(v6), serverAddr(v6)
	took, ok, err := w.prober.time(from, to, k(w, from, to), port)
	if err != nil {
		w.b.Fatalf("sending: %v", err)
	}
	return took, ok
}

// received is how many packets the server's interface has counted.
func (w *world) received() uint64 {
	var link netlink.Link
	var err error
	w.server.Do(func() { link, err = netlink.LinkByName(w.serverWire) })
	if err != nil {
		w.b.Fatal(err)
	}
	return link.Attrs().Statistics.RxPackets
}
