package main

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/internal/secrets"
	"github.com/sallyport/sallyport/internal/testnet"
)

// lossPeople is how many people share the tries of each knock by a secret. A person's
// one-time ports are good once in a time step, and a step takes 200 tries; more people
// than that needs would make more ports of the pool somebody's first one.
const (
	lossPeople = 240
	lossStep   = 10 * time.Second // the shortest that a server takes; 30 s is the default
)

// lossSteps are what the plain sequence and knockd wait for; the other knocks have
// their ports elsewhere.
const lossSteps = "7000/tcp 8500/udp 7800/tcp"

// lossWorld is a world whose wire is a line, and how to see whom its daemon lets in.
type lossWorld struct {
	*world
	line    *testnet.Line
	granted func() (string, error) // text with the addresses as words
	forget  func()                 // ends what would slow the daemon down
}

// way is one row of the table: a client that knocks at a daemon.
type way struct {
	name string
	at   *lossWorld
	// knock sends the knock number i, and ends when its last packet is sent.
	knock  func(i int, from, to netip.Addr) error
	only4  bool
	serial bool // one knock ends before the next begins
}

func (b *bench) newLossWorld() *lossWorld {
	l := &lossWorld{forget: func() {}}
	l.world = b.newWorldOver(func(client, server *testnet.Namespace, clients, servers []string) (clientWire, serverWire string) {
		l.line, clientWire, serverWire = testnet.Lay(client, server, clients, servers)
		return clientWire, serverWire
	})
	// Its IPv6 addresses are routed to it, but on no interface.
	l.client.Run("sysctl", "-qw", "net.ipv6.ip_nonlocal_bind=1")
	return l
}

// ready knocks over the line without flaws until the daemon lets in one of each
// family. One-time ports wait for that: a daemon without a past takes none of the
// time step that it began in.
func (w *way) ready() {
	watch := w.at.watch()
	var mine []netip.Addr
	for end := time.Now().Add(2 * lossStep); time.Now().Before(end); {
		for n := range 2 {
			from := w.at.fresh(n == 1 && !w.only4)
			mine = append(mine, from)
			if err := w.knock(n, from, serverAddr(from.Is6())); err != nil {
				w.at.b.Fatal(err)
			}
		}
		time.Sleep(2 * lossLook)
		if last := mine[len(mine)-2:]; watch.has(last[0]) && watch.has(last[1]) {
			break
		}
	}
	if err := watch.end(); err != nil {
		w.at.b.Fatal(err)
	}
	if last := mine[len(mine)-2:]; !watch.has(last[0]) || !watch.has(last[1]) {
		w.at.b.Fatalf("%s opens nothing over a line without flaws", w.name)
	}
}

const lossConfig = `[knock.front]
type = "sequence"
opens = ["ssh"]
sequence = ["7000/tcp", "8500/udp", "7800/tcp"]
within = "5s"
[knock.ports]
type = "otp"
opens = ["ssh"]
secrets = "PEOPLE"
time_step = "10s"
[knock.message]
type = "encoded"
opens = ["ssh"]
secrets = "PEOPLE"
`

// ourWays starts our daemon with a knock of each type, all with their defaults.
func (b *bench) ourWays() []*way {
	w := b.newLossWorld()
	e := w.enroll()
	people, file := w.people()
	// The kernel's set stays short, but for longer than anybody looks.
	config := strings.Replace(e.config, `"30s"`, `"10s"`, 1) + strings.ReplaceAll(lossConfig, "PEOPLE", file)
	w.sallyport(config)
	w.granted = w.elements
	ways := []*way{
		w.ours("sequence, 3 steps", plain), w.ours("`otp`, 5 steps", oneTime(people)),
		w.ours("`encoded`", message(people[:lossPeople/2], 1)), w.ours("`encoded`, `--repeat 3`", message(people[lossPeople/2:], 3)),
		w.ours("SPA, one datagram", e.request(1)), w.ours("SPA, three copies (as always)", e.request(3)),
	}
	for _, way := range ways {
		way.ready()
	}
	return ways
}

// people makes a file of people's secrets.
func (w *lossWorld) people() (people [][]byte, file string) {
	var text strings.Builder
	for i := range lossPeople {
		people = append(people, secrets.New())
		text.WriteString(secrets.FormatLine(secrets.Person{Name: fmt.Sprint("p", i), Secret: people[i]}))
	}
	file = filepath.Join(w.dir(), "people")
	if err := os.WriteFile(file, []byte(text.String()), 0o600); err != nil {
		w.b.Fatal(err)
	}
	return people, file
}

// elements lists both sets of grants as the kernel has them.
func (w *lossWorld) elements() (string, error) {
	text := ""
	for _, set := range []string{"open4", "open6"} {
		out, err := w.server.Output("nft", "list", "set", "inet", "sallyport", set)
		if err != nil {
			return "", fmt.Errorf("nft: %w: %s", err, out)
		}
		text += out
	}
	return text, nil
}

// planned makes a plan as our own client does.
type planned func(i int, from, to netip.Addr) (*sallyport.Plan, error)

// ours is a way of our own client.
func (w *lossWorld) ours(name string, plan planned) *way {
	return &way{name: name, at: w, knock: func(i int, from, to netip.Addr) error {
		p, err := plan(i, from, to)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		w.client.Do(func() { err = p.Send(w.b.ctx) })
		return err
	}}
}

func plain(_ int, from, to netip.Addr) (*sallyport.Plan, error) {
	s, err := sallyport.ParseSequence(lossSteps)
	if err != nil {
		return nil, err
	}
	return s.Plan(from, to)
}

func oneTime(people [][]byte) planned {
	var turn atomic.Uint32 // not the number of the try: each person has to wait for his next
	return func(_ int, from, to netip.Addr) (*sallyport.Plan, error) {
		k := &sallyport.OTP{
			Door: "ports", Secret: people[int(turn.Add(1))%len(people)], Proto: sallyport.TCP, Pool: []sallyport.Span{{Low: 20000, High: 39999}},
			Steps: 5, TimeStep: lossStep, Within: 10 * time.Second, Addresses: []netip.Addr{from},
		}
		return k.Plan(from, to)
	}
}

func message(people [][]byte, repeat int) planned {
	return func(i int, from, to netip.Addr) (*sallyport.Plan, error) {
		k := &sallyport.Encoded{
			Door: "message", Secret: people[i%len(people)], Proto: sallyport.TCP, Base: 40000, Span: 16384,
			Within: 10 * time.Second, Observed: true, Repeat: repeat,
		}
		return k.Plan(from, to)
	}
}

func (e *enrolled) request(copies int) planned {
	return func(_ int, from, to netip.Addr) (*sallyport.Plan, error) {
		r := &sallyport.Request{Server: e.server.Address(), Signer: e.user, Observed: true}
		p, err := r.Plan(from, to)
		if err == nil {
			p.Packets = p.Packets[:copies]
		}
		return p, err
	}
}

// theirWays starts Debian's knockd twice, for the pause that its client makes by
// itself, none, and for ours, and Debian's fwknopd.
func (b *bench) theirWays() []*way {
	ways := []*way{
		b.knockdWay("knockd, `knock` (no pause)"), b.knockdWay("knockd, `knock -d 20`", "-d", "20"),
		b.fwknopWay(),
	}
	for _, way := range ways {
		way.ready()
	}
	return ways
}

const lossKnockd = `[front]
sequence = 7000:tcp,8500:udp,7800:tcp
seq_timeout = 5
tcpflags = syn
start_command = /usr/bin/touch GRANTED/%IP%
`

// knockdWay has its door's command make a file for each address.
func (b *bench) knockdWay(name string, args ...string) *way {
	w := b.newLossWorld()
	dir := w.dir()
	k := &keeper{name: "knockd", w: w.world, binary: "knockd", dir: w.dir()}
	k.start(strings.ReplaceAll(lossKnockd, "GRANTED", dir), nil)
	w.granted = func() (string, error) {
		entries, err := os.ReadDir(dir)
		var text strings.Builder
		for _, e := range entries {
			text.WriteString(e.Name() + " ")
		}
		return text.String(), err
	}
	w.forget = func() {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			os.Remove(filepath.Join(dir, e.Name()))
		}
	}
	knock := func(_ int, from, to netip.Addr) error { return w.knockFrom(from, to, args) }
	return &way{name: name, at: w, knock: knock, serial: true}
}

// knockFrom runs knock, which can't be told where to knock from: a route tells it.
func (w *lossWorld) knockFrom(from, to netip.Addr, args []string) error {
	family := "-4"
	if to.Is6() {
		family = "-6"
	}
	args = append(append([]string{family}, args...), to.String(), "7000:tcp", "8500:udp", "7800:tcp")
	cmd := exec.Command("knock", args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	var err error
	w.client.Do(func() {
		var undo func()
		if undo, err = w.sourceRoute(from, to); err != nil {
			return
		}
		defer undo()
		err = cmd.Run()
	})
	if err != nil {
		return fmt.Errorf("knock: %w; install the package knockd\n%s", err, out.String())
	}
	return nil
}

// sourceRoute makes an address the one that this host sends from to another, in the
// namespace of the calling thread. The kernel wants it on an interface (IPv6).
func (w *lossWorld) sourceRoute(from, to netip.Addr) (undo func(), err error) {
	link, err := netlink.LinkByName(w.clientWire)
	if err != nil {
		return nil, err
	}
	addr := &netlink.Addr{IPNet: host(from), Flags: unix.IFA_F_NODAD}
	if err := netlink.AddrReplace(link, addr); err != nil {
		return nil, fmt.Errorf("adding %s: %w", from, err)
	}
	route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: host(to), Src: from.AsSlice(), Scope: netlink.SCOPE_LINK}
	if err := netlink.RouteReplace(route); err != nil {
		return nil, fmt.Errorf("a route from %s: %w", from, err)
	}
	return func() { netlink.AddrDel(link, addr) }, nil
}

// host is the network of one address.
func host(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}

// fwknopWay sends what fwknop's client makes, once, as it does.
func (b *bench) fwknopWay() *way {
	w := b.newLossWorld()
	f := w.fwknopd()
	w.granted = func() (string, error) { return w.server.Output("iptables", "-S", "FWKNOP_INPUT") }
	w.forget = f.flush
	return &way{name: "fwknop (IPv4)", at: w, only4: true, serial: true, knock: func(_ int, from, to netip.Addr) error {
		return w.prober.wire.SendOne(w.prober.datagram(from, to, f.datagram()))
	}}
}
