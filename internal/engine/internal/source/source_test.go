//go:build linux

package source_test

import (
	"encoding/binary"
	"math/rand/v2"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/internal/engine/internal/packet"
	"github.com/sallyport/sallyport/internal/engine/internal/source"
	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/sallyport/sallyport/internal/testnet"
)

// town is a host with a packet socket, without any filter, and a neighbour.
type town struct {
	host, neighbour *testnet.Namespace
	hostIf, nextIf  string
	fd, index       int
	source          *source.Source
}

var (
	hostAddrs = []string{"192.0.2.1", "2001:db8::1"}
	nextAddrs = []string{"192.0.2.7", "2001:db8::7"}
)

func newTown(t testing.TB) *town {
	t.Helper()
	w := &town{host: testnet.New(t), neighbour: testnet.New(t)}
	w.hostIf, w.nextIf = testnet.Connect(w.host, w.neighbour,
		[]string{hostAddrs[0] + "/24", hostAddrs[1] + "/64"}, []string{nextAddrs[0] + "/24", nextAddrs[1] + "/64"})
	var err error
	w.host.Do(func() {
		var link *net.Interface
		if link, err = net.InterfaceByName(w.hostIf); err != nil {
			return
		}
		w.index = link.Index
		all := binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL})
		w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(all))
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(w.fd) })
	if w.source, err = source.New(w.fd); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *town) wire(t testing.TB) *testnet.Wire {
	t.Helper()
	return w.neighbour.Wire(w.nextIf, w.host.MAC(w.hostIf))
}

// await drains until a packet satisfies ok, or fails after five seconds.
func (w *town) await(t *testing.T, what string, ok func(p *packet.Packet) bool) {
	t.Helper()
	var seen []packet.Packet
	found := false
	for end := time.Now().Add(5 * time.Second); !found && time.Now().Before(end); {
		poll := []unix.PollFd{{Fd: int32(w.fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(poll, 100); err != nil && err != unix.EINTR {
			t.Fatal(err)
		}
		err := w.source.Drain(func(b []byte, ifindex int) {
			var p packet.Packet
			packet.Decode(b, &p)
			p.Payload = nil
			seen = append(seen, p)
			found = found || ok(&p) && ifindex == w.index
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if !found {
		t.Fatalf("%s did not arrive on interface %d among %+v", what, w.index, seen)
	}
}

// knockers are the programs that people knock with, what each sends, and to
// which family it can speak.
var knockers = []struct {
	command string // the address follows, then the rest
	rest    string
	want    packet.Packet
	only4   bool
}{
	{"ping -c1 -W1 -s37", "", packet.Packet{Proto: sequence.ICMP, DstPort: 37}, false},
	{"ping -c1 -W1 -s0", "", packet.Packet{Proto: sequence.ICMP, DstPort: 0}, false},
	{"ping -c1 -W1 -s1400", "", packet.Packet{Proto: sequence.ICMP, DstPort: 1400}, false},
	{"nc -z -w1", "7000", packet.Packet{Proto: sequence.TCP, DstPort: 7000, Flags: sequence.SYN}, false},
	{"nc -u -q0 -w1", "8500", packet.Packet{Proto: sequence.UDP, DstPort: 8500}, false},
	{"hping3 -c 1 -S -p 7001 -s 4321", "", packet.Packet{Proto: sequence.TCP, DstPort: 7001, SrcPort: 4321, Flags: sequence.SYN}, true},
	{"hping3 -c 1 -F -P -U -p 7002", "", packet.Packet{Proto: sequence.TCP, DstPort: 7002, Flags: sequence.FIN | sequence.PSH | sequence.URG}, true},
	{"hping3 -c 1 --udp -p 8501 -d 100", "", packet.Packet{Proto: sequence.UDP, DstPort: 8501}, true},
	{"hping3 -c 1 -1 -d 222", "", packet.Packet{Proto: sequence.ICMP, DstPort: 222}, true},
}

// Every step that a person can send arrives with the right fields, and the
// host's own firewall, which drops all of it, has no say.
func TestKnocksOfRealProgramsArrive(t *testing.T) {
	for name, firewall := range map[string]func(ns *testnet.Namespace){
		"no firewall":          func(*testnet.Namespace) {},
		"nftables drops":       dropByNftables,
		"nftables drops early": dropAtPrerouting,
		"iptables drops":       dropByIptables,
	} {
		t.Run(name, func(t *testing.T) {
			w := newTown(t)
			for i, addr := range hostAddrs {
				// The neighbour can't ask for the address where the answer's
				// question is dropped: name it.
				w.neighbour.Run("ip", "neigh", "replace", addr, "lladdr", w.host.MAC(w.hostIf).String(), "dev", w.nextIf)
				if i == 0 {
					firewall(w.host)
				}
				for _, k := range knockers {
					if k.only4 && i == 1 {
						continue
					}
					w.knock(t, k.command+" "+addr+" "+k.rest, k.want, nextAddrs[i], addr)
				}
			}
		})
	}
}

func (w *town) knock(t *testing.T, command string, want packet.Packet, src, dst string) {
	t.Helper()
	args := strings.Fields(command)
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdin = strings.NewReader("x")
	if err := w.neighbour.Start(cmd); err != nil {
		t.Fatal(err)
	}
	w.await(t, command, func(p *packet.Packet) bool {
		return p.Src == netip.MustParseAddr(src) && p.Dst == netip.MustParseAddr(dst) &&
			p.Proto == want.Proto && p.DstPort == want.DstPort && p.Flags&0x3f == want.Flags &&
			(want.SrcPort == 0 || p.SrcPort == want.SrcPort) && p.Why == packet.Decoded
	})
	_ = cmd.Process.Kill() // it may wait for an answer that is dropped
	_ = cmd.Wait()
}

func dropByNftables(ns *testnet.Namespace) {
	ns.Input("table inet own {\nchain input {\ntype filter hook input priority filter; policy drop;\n}\n}\n", "nft", "-f", "-")
}

func dropAtPrerouting(ns *testnet.Namespace) {
	ns.Input("table inet own {\nchain early {\ntype filter hook prerouting priority raw; policy drop;\n}\n}\n", "nft", "-f", "-")
}

func dropByIptables(ns *testnet.Namespace) {
	ns.Run("iptables", "-P", "INPUT", "DROP")
	ns.Run("ip6tables", "-P", "INPUT", "DROP")
}

// The socket of this test has no filter at all: what is not this host's is
// left out all the same.
func TestOnlyWhatIsForThisHostIsHandedOver(t *testing.T) {
	w := newTown(t)
	w.host.Run("ip", "link", "set", w.hostIf, "promisc", "on")
	ours := w.wire(t)
	for i := range hostAddrs {
		src, dst := netip.MustParseAddr(nextAddrs[i]), netip.MustParseAddr(hostAddrs[i])
		to := func(port uint16) []byte {
			return testnet.UDP(netip.AddrPortFrom(src, 1), netip.AddrPortFrom(dst, port), nil)
		}
		for _, mac := range []net.HardwareAddr{{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, {1, 0, 0x5e, 0, 0, 1}, {2, 0, 0, 0, 0, 0x99}} {
			w.neighbour.Wire(w.nextIf, mac).Send(t, to(1000))
		}
		// The host reads an IPv6 frame as IPv6, whatever the first byte says.
		other := []uint16{unix.ETH_P_IPV6, unix.ETH_P_IP}[i]
		for _, ethertype := range []uint16{other, unix.ETH_P_LOOPBACK} {
			if err := ours.SendAs(ethertype, to(1000)); err != nil {
				t.Fatal(err)
			}
		}
		w.host.Run("ping", "-c1", "-W5", nextAddrs[i]) // outgoing
		ours.Send(t, to(2000))
		w.await(t, "the last packet", func(p *packet.Packet) bool {
			if p.DstPort == 1000 || p.Src == dst {
				t.Errorf("handed over: %+v", p)
			}
			return p.DstPort == 2000
		})
	}
}

// One Drain is bounded, so that a flood can't keep the engine from its other
// descriptors; what is left comes next, nothing is lost and nothing overtakes.
func TestDrainIsBoundedAndKeepsOrder(t *testing.T) {
	w := newTown(t)
	if err := unix.SetsockoptInt(w.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20); err != nil {
		t.Fatal(err)
	}
	wire := w.wire(t)
	const sent = 600
	for port := range uint16(sent) {
		family := port % 2
		wire.Send(t, testnet.UDP(
			netip.AddrPortFrom(netip.MustParseAddr(nextAddrs[family]), 1),
			netip.AddrPortFrom(netip.MustParseAddr(hostAddrs[family]), 20000+port), nil))
	}
	next := uint16(20000)
	for calls := 0; next < 20000+sent; calls++ {
		handed := 0
		err := w.source.Drain(func(b []byte, _ int) {
			var p packet.Packet
			handed++
			if packet.Decode(b, &p); p.Proto != sequence.UDP {
				return // the kernels' own talk
			}
			if p.DstPort != next {
				t.Fatalf("port %d came where %d was next", p.DstPort, next)
			}
			next++
		})
		// The first call finds more than it may take; a few of its 256 are the
		// kernels' own talk and not handed over.
		if err != nil || handed > 256 || calls == 0 && handed < 200 || calls > 10 {
			t.Fatalf("call %d handed over %d packets, error %v, and waits for port %d", calls, handed, err, next)
		}
	}
	if received, dropped := w.source.Stats(); received < sent || dropped != 0 {
		t.Errorf("the kernel counts %d received and %d dropped", received, dropped)
	}
}

func TestStatsCountWhatAFullBufferDropped(t *testing.T) {
	w := newTown(t)
	if err := unix.SetsockoptInt(w.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 16<<10); err != nil {
		t.Fatal(err)
	}
	w.source.Stats()
	wire := w.wire(t)
	b := testnet.UDP(netip.MustParseAddrPort("192.0.2.7:1"), netip.MustParseAddrPort("192.0.2.1:2"), nil)
	const sent = 500
	for range sent {
		wire.Send(t, b)
	}
	received, dropped := w.source.Stats()
	if received < sent || dropped < sent/2 || dropped > received {
		t.Errorf("sent %d through a small buffer: %d received, %d dropped", sent, received, dropped)
	}
	if _, again := w.source.Stats(); again != 0 {
		t.Errorf("%d are dropped again: the counters do not start over", again)
	}
}

// A packet longer than the buffers is cut, and a ping keeps its true size.
func TestLongPacketIsCut(t *testing.T) {
	w := newTown(t)
	w.host.Run("ip", "link", "set", w.hostIf, "mtu", "9000")
	w.neighbour.Run("ip", "link", "set", w.nextIf, "mtu", "9000")
	for i, addr := range hostAddrs {
		w.neighbour.Run("ping", "-c1", "-W2", "-s5000", addr)
		cut := 0
		if err := w.source.Drain(func(b []byte, _ int) {
			var p packet.Packet
			if packet.Decode(b, &p); p.Proto == sequence.ICMP && p.DstPort == 5000 && len(b) == 4608 {
				cut = len(p.Payload)
			}
		}); err != nil {
			t.Fatal(err)
		}
		if want := 4608 - 8 - []int{20, 40}[i]; cut != want {
			t.Errorf("%s: %d bytes of payload, want %d", addr, cut, want)
		}
	}
}

// Random bytes and cut packets off a wire: they decline, and the next packet
// is read as if nothing had been.
func TestRubbishFromTheWire(t *testing.T) {
	w := newTown(t)
	wire := w.wire(t)
	random := rand.New(rand.NewPCG(5, 6))
	good := [][]byte{}
	for i := range hostAddrs {
		good = append(good, testnet.TCP(netip.AddrPortFrom(netip.MustParseAddr(nextAddrs[i]), 1), netip.AddrPortFrom(netip.MustParseAddr(hostAddrs[i]), 7000), 2, 1))
	}
	count := 0
	for round := range 200 {
		for range 10 {
			b := make([]byte, 1+random.IntN(200))
			for i := range b {
				b[i] = byte(random.Uint32())
			}
			b[0] = []byte{0x45, 0x60, b[0]}[random.IntN(3)]
			wire.Send(t, b, good[0][:1+random.IntN(39)], good[1][:1+random.IntN(59)])
		}
		wire.Send(t, good[round%2])
		if err := w.source.Drain(func(b []byte, _ int) {
			var p packet.Packet
			if packet.Decode(b, &p); p.Proto == sequence.TCP && p.DstPort == 7000 {
				count++
			}
		}); err != nil {
			t.Fatal(err)
		}
	}
	if count != 200 {
		t.Errorf("%d of 200 good packets among the rubbish were read", count)
	}
}

func TestNewRefusesWhatIsNoPacketSocket(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[0])
	defer unix.Close(fds[1])
	for _, fd := range []int{fds[0], -1} {
		if _, err := source.New(fd); err == nil || !strings.Contains(err.Error(), "no packet socket") {
			t.Errorf("descriptor %d: %v", fd, err)
		}
	}
}

func TestDrainSaysThatTheSocketIsLost(t *testing.T) {
	w := newTown(t)
	null, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(null)
	if err := unix.Dup3(null, w.fd, unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	if err := w.source.Drain(func([]byte, int) {}); err == nil || !strings.Contains(err.Error(), "knocks are no longer seen") {
		t.Errorf("a lost socket gave %v", err)
	}
}

func TestDrainDoesNotAllocate(t *testing.T) {
	w := newTown(t)
	wire := w.wire(t)
	b := testnet.UDP(netip.MustParseAddrPort("192.0.2.7:1"), netip.MustParseAddrPort("192.0.2.1:2"), nil)
	handed := 0
	var p packet.Packet
	observe := func(b []byte, _ int) { packet.Decode(b, &p); handed++ }
	const runs = 50
	for range runs + 1 {
		wire.Send(t, b)
	}
	if n := testing.AllocsPerRun(runs, func() {
		if err := w.source.Drain(observe); err != nil {
			t.Error(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations per Drain", n)
	}
	if handed < runs {
		t.Errorf("only %d packets were handed over", handed)
	}
}

// BenchmarkDrain is the cost of a packet that waits, from the socket through
// the decoder. The sending is not counted.
func BenchmarkDrain(b *testing.B) {
	w := newTown(b)
	if err := unix.SetsockoptInt(w.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20); err != nil {
		b.Fatal(err)
	}
	// The RST that answers each SYN is no part of the work.
	if err := unix.SetsockoptInt(w.fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1); err != nil {
		b.Fatal(err)
	}
	wire := w.wire(b)
	in := testnet.TCP(netip.MustParseAddrPort("192.0.2.7:1"), netip.MustParseAddrPort("192.0.2.1:2"), 2, 1)
	var p packet.Packet
	handed := 0
	observe := func(b []byte, _ int) { packet.Decode(b, &p); handed++ }
	var draining time.Duration
	for b.Loop() {
		for range 256 {
			wire.Send(b, in)
		}
		start := time.Now()
		if err := w.source.Drain(observe); err != nil {
			b.Fatal(err)
		}
		draining += time.Since(start)
	}
	b.ReportMetric(float64(draining.Nanoseconds())/float64(handed), "ns/packet")
}
