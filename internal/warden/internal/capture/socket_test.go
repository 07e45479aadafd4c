//go:build linux

package capture

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/internal/testnet"
)

// town is a guarded host and a stranger on one wire.
type town struct {
	host, stranger     *testnet.Namespace
	hostIf, strangerIf string
}

func newTown(t *testing.T) *town {
	w := &town{host: testnet.New(t), stranger: testnet.New(t)}
	w.hostIf, w.strangerIf = testnet.Connect(w.host, w.stranger,
		[]string{"192.0.2.1/24", "2001:db8::1/64"}, []string{"192.0.2.7/24", "2001:db8::7/64"})
	return w
}

// ends are the town's addresses with ports, once for each family.
func (w *town) ends(port uint16) [][2]netip.AddrPort {
	at := func(s string, port uint16) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr(s), port) }
	return [][2]netip.AddrPort{
		{at("192.0.2.7", 40000), at("192.0.2.1", port)},
		{at("2001:db8::7", 40000), at("2001:db8::1", port)},
	}
}

// open opens a capture on the host that closes with the test.
func (w *town) open(t *testing.T, wanted Wanted) int {
	t.Helper()
	var fd int
	var err error
	w.host.Do(func() { fd, err = Open(Filter(wanted)) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// next gives the next packet as words, "4 udp 7000", or "" if none comes
// within the time.
func next(t *testing.T, fd int, wait time.Duration) string {
	t.Helper()
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	if n, err := unix.Poll(poll, int(wait.Milliseconds())); err != nil || n == 0 {
		return ""
	}
	var b [Snap]byte
	n, err := unix.Read(fd, b[:])
	if err != nil {
		t.Fatalf("reading the capture: %v", err)
	}
	return words(b[:n])
}

func words(b []byte) string {
	proto, head := b[6], 40
	if b[0]>>4 == 4 {
		proto, head = b[9], int(b[0]&0xf)*4
	}
	body := b[head:]
	switch proto {
	case 6, 17:
		return fmt.Sprintf("%d %s %d", b[0]>>4, map[byte]string{6: "tcp", 17: "udp"}[proto], binary.BigEndian.Uint16(body[2:]))
	case 1, 58:
		return fmt.Sprintf("%d echo %d", b[0]>>4, len(body)-8)
	}
	return fmt.Sprintf("%d proto %d", b[0]>>4, proto)
}

const last = 9999 // the port of the packet that a test sends last

// until collects packets until the last one of its family came.
func until(t *testing.T, fd int, end string) []string {
	t.Helper()
	var all []string
	for range 10_000 {
		switch p := next(t, fd, 5*time.Second); p {
		case "":
			t.Fatalf("%q did not arrive after %q", end, all)
		case end:
			return all
		default:
			all = append(all, p)
		}
	}
	t.Fatalf("10,000 packets and no %q", end)
	return nil
}

func TestWhatAStrangerSendsArrivesWhenWanted(t *testing.T) {
	w := newTown(t)
	fd := w.open(t, Wanted{TCP: []Range{{7000, 7010}}, TCPFlags: []Range{{7100, 7100}}, UDP: []Range{{8000, 8010}, {last, last}}, Echo: true})
	mac := w.host.MAC(w.hostIf)
	wire := w.stranger.Wire(w.strangerIf, mac)
	for i, e := range w.ends(0) {
		src, dst, family := e[0], e[1].Addr(), 4+2*i
		to := func(port uint16) netip.AddrPort { return netip.AddrPortFrom(dst, port) }
		wire.Send(t,
			testnet.TCP(src, to(7000), 0x02, 1), testnet.TCP(src, to(7010), 0xc2, 1), // the second asks for ECN
			testnet.TCP(src, to(7001), 0x12, 1), testnet.TCP(src, to(7002), 0x10, 1), // no opening
			testnet.TCP(src, to(6999), 0x02, 1), testnet.TCP(src, to(7011), 0x02, 1), // next door
			testnet.TCP(src, to(7100), 0x01, 1), testnet.TCP(src, to(7100), 0x00, 1),
			testnet.UDP(src, to(7999), nil), testnet.UDP(src, to(8000), []byte("x")), testnet.UDP(src, to(8011), nil),
			testnet.Echo(src.Addr(), dst, 1, 1, 37),
			testnet.UDP(src, to(8001), nil, testnet.Fragment(1, true)),
			testnet.UDP(src, to(last), nil))
		want := []string{"tcp 7000", "tcp 7010", "tcp 7100", "tcp 7100", "udp 8000", "echo 37"}
		for n := range want {
			want[n] = fmt.Sprintf("%d %s", family, want[n])
		}
		got := until(t, fd, fmt.Sprintf("%d udp %d", family, last))
		if !slices.Equal(got, want) {
			t.Errorf("family %d: got %q, want %q", family, got, want)
		}
	}
}

// To an SPA port comes only what can be an SPA datagram by its length; the rest
// of a flood ends in the kernel.
func TestOnlySPALengthsArrive(t *testing.T) {
	w := newTown(t)
	w.host.Run("ip", "link", "set", w.hostIf, "mtu", "9000")
	w.stranger.Run("ip", "link", "set", w.strangerIf, "mtu", "9000")
	fd := w.open(t, Wanted{SizedTCP: []Range{{7000, 7000}}, SizedUDP: []Range{{8000, 8000}}, SizedEcho: true, UDP: []Range{{last, last}}})
	wire := w.stranger.Wire(w.strangerIf, w.host.MAC(w.hostIf))
	for i, e := range w.ends(0) {
		src, dst, family := e[0], e[1].Addr(), 4+2*i
		to := func(port uint16) netip.AddrPort { return netip.AddrPortFrom(dst, port) }
		var want []string
		for _, size := range spaLengths {
			for _, off := range []int{-1, 0, 1} {
				data := make([]byte, size+off)
				wire.Send(t, testnet.UDP(src, to(8000), data), testnet.UDP(src, to(8001), data), testnet.Echo(src.Addr(), dst, 1, 1, size+off))
				for _, flags := range []byte{0x02, 0x12, 0x10} {
					wire.Send(t, withData(testnet.TCP(src, to(7000), flags, 1), 5, size+off), withData(testnet.TCP(src, to(7001), flags, 1), 5, size+off))
				}
			}
			for _, text := range []string{"udp 8000", fmt.Sprintf("echo %d", size), "tcp 7000"} {
				want = append(want, fmt.Sprintf("%d %s", family, text))
			}
		}
		wire.Send(t, testnet.UDP(src, to(last), nil))
		if got := until(t, fd, fmt.Sprintf("%d udp %d", family, last)); !slices.Equal(got, want) {
			t.Errorf("family %d: got %q, want %q", family, got, want)
		}
	}
}

// Datagrams that segmentation offload keeps together arrive as one packet,
// whole, with the length of all of them.
func TestGluedDatagramsArriveWhole(t *testing.T) {
	w := newTown(t)
	fd := w.open(t, Wanted{SizedUDP: []Range{{8000, 8000}}})
	for i, e := range w.ends(8000) {
		for _, size := range []int{448, 832, 1372} {
			var c net.Conn
			var err error
			w.stranger.Do(func() { c, err = net.Dial("udp", e[1].String()) })
			if err != nil {
				t.Fatal(err)
			}
			raw, err := c.(*net.UDPConn).SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			raw.Control(func(s uintptr) { err = unix.SetsockoptInt(int(s), unix.IPPROTO_UDP, unix.UDP_SEGMENT, size) })
			if err == nil {
				_, err = c.Write(make([]byte, 3*size))
			}
			c.Close()
			if err != nil {
				t.Fatal(err)
			}
			poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			unix.Poll(poll, 5000)
			b := make([]byte, Snap)
			n, err := unix.Read(fd, b)
			if want := []int{20, 40}[i] + 8 + 3*size; n != want {
				t.Errorf("%v, 3 parts of %d bytes: a packet of %d bytes (%v), want %d", e[1], size, n, err, want)
			}
		}
	}
}

// What is not addressed to this host, as its link layer sees it, is nobody's
// knock: broadcast, multicast, another's frame, another VLAN, another protocol.
func TestWhatIsNotForThisHostDoesNotArrive(t *testing.T) {
	w := newTown(t)
	fd := w.open(t, Wanted{UDP: []Range{{8000, 8010}, {last, last}}})
	mac := w.host.MAC(w.hostIf)
	w.host.Run("ip", "link", "set", w.hostIf, "promisc", "on")
	to := func(mac ...byte) *testnet.Wire { return w.stranger.Wire(w.strangerIf, net.HardwareAddr(mac)) }
	wire := to(mac...)
	ethertypes := []uint16{unix.ETH_P_IP, unix.ETH_P_IPV6}
	for i, e := range w.ends(8000) {
		family := 4 + 2*i
		b := testnet.UDP(e[0], e[1], nil)
		for _, other := range []*testnet.Wire{
			to(0xff, 0xff, 0xff, 0xff, 0xff, 0xff), to(0x01, 0, 0x5e, 0, 0, 1), to(0x33, 0x33, 0, 0, 0, 1), to(0x02, 0, 0, 0, 0, 0x99),
		} {
			other.Send(t, b)
		}
		tagged := func(id byte, port uint16) []byte {
			inner := testnet.UDP(e[0], netip.AddrPortFrom(e[1].Addr(), port), nil)
			return append([]byte{0x60, id, byte(ethertypes[i] >> 8), byte(ethertypes[i])}, inner...)
		}
		for _, err := range []error{
			wire.SendAs(unix.ETH_P_8021Q, tagged(5, 8001)),
			wire.SendAs(unix.ETH_P_8021Q, tagged(0, 8002)), // priority 3 and no VLAN: ours
			wire.SendAs(unix.ETH_P_LOOPBACK, b),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
		wire.Send(t, testnet.UDP(e[0], netip.AddrPortFrom(e[1].Addr(), last), nil))
		want := []string{fmt.Sprintf("%d udp 8002", family)}
		if got := until(t, fd, fmt.Sprintf("%d udp %d", family, last)); !slices.Equal(got, want) {
			t.Errorf("family %d: got %q, want %q", family, got, want)
		}
	}
}

// Nothing that this host says itself arrives, on lo or on a wire, except the
// one datagram that the warden feeds the watchdog with.
func TestOfTheHostsOwnPacketsOnlyTheWatchPacketArrives(t *testing.T) {
	w := newTown(t)
	watch := Watch{Port: 6001, Token: [8]byte{1, 2, 3, 4, 5, 6, 7, 8}}
	all := []Range{{0, 65535}}
	fd := w.open(t, Wanted{TCP: all, TCPFlags: all, UDP: all, Echo: true, Watch: watch})
	say := func(to, payload string) {
		t.Helper()
		w.host.Do(func() {
			c, err := net.Dial("udp", to)
			if err == nil {
				_, err = c.Write([]byte(payload))
				c.Close()
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	token := string(watch.Token[:])
	for _, to := range []string{"192.0.2.7:6001", "[2001:db8::7]:6001", "192.0.2.1:6001", "[2001:db8::1]:6001", "[::1]:6001", "127.0.0.1:6002", "127.0.0.2:6001"} {
		say(to, token)
	}
	for _, wrong := range []string{token + "9", token[:7], "12345678", token[:4] + "1234", "1234" + token[4:]} {
		say("127.0.0.1:6001", wrong)
	}
	w.host.Output("ping", "-c1", "-W1", "127.0.0.1")
	w.host.Output("ping", "-c1", "-W1", "::1")
	w.host.Output("nc", "-z", "-w1", "127.0.0.1", "22")
	say("127.0.0.1:6001", token)
	if got := until(t, fd, "4 udp 6001"); len(got) != 0 {
		t.Errorf("before the watch packet came %q", got)
	}
	if p := next(t, fd, 0); p != "" {
		t.Errorf("the watch packet came with %q", p)
	}
}

func TestLoHasTheSameIndexInEveryNamespace(t *testing.T) {
	for range 3 {
		testnet.New(t).Do(func() {
			if link, err := net.InterfaceByName("lo"); err != nil || link.Index != loopbackIndex {
				t.Errorf("lo is %v (%v), want index %d", link, err, loopbackIndex)
			}
		})
	}
}

// A flood while the socket opens: not one packet slips in before the filter.
func TestNoPacketComesBeforeTheFilter(t *testing.T) {
	w := newTown(t)
	wire := w.stranger.Wire(w.strangerIf, w.host.MAC(w.hostIf))
	var flood [][]byte
	for _, e := range w.ends(7000) {
		flood = append(flood, testnet.UDP(e[0], e[1], nil), testnet.TCP(e[0], e[1], 0x02, 1))
	}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				_ = wire.SendOne(flood[i%len(flood)]) // a full queue is part of a flood
			}
		}
	}()
	defer func() { close(stop); <-done }()
	filter := Filter(Wanted{UDP: []Range{{last, last}}})
	w.host.Do(func() {
		for range 100 {
			fd, err := Open(filter)
			if err != nil {
				t.Error(err)
				return
			}
			if p := next(t, fd, 0); p != "" {
				t.Errorf("%q slipped in before the filter", p)
			}
			unix.Close(fd)
		}
	})
}

// A reload widens the filter and narrows it again. What both want arrives
// throughout: not one of the packets that keep coming is lost.
func TestAttachLosesNothing(t *testing.T) {
	w := newTown(t)
	old, young := Wanted{UDP: []Range{{8000, 8000}, {last, last}}}, Wanted{UDP: []Range{{8000, 8001}, {last, last}}}
	fd := w.open(t, old)
	wire := w.stranger.Wire(w.strangerIf, w.host.MAC(w.hostIf))
	const sent = 2000
	done := make(chan error, 1)
	go func() {
		for range sent / 2 {
			for _, e := range w.ends(8000) {
				if err := wire.SendOne(testnet.UDP(e[0], e[1], nil)); err != nil {
					done <- err
					return
				}
			}
		}
		done <- nil
	}()
	filters := [][]bpf.RawInstruction{Filter(Union(old, young)), Filter(young), Filter(old)}
	swaps := 0
	for busy := true; busy; swaps++ {
		if err := Attach(fd, filters[swaps%len(filters)]); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-done:
			if busy = false; err != nil {
				t.Fatal(err)
			}
		default:
		}
	}
	wire.Send(t, testnet.UDP(w.ends(0)[0][0], w.ends(last)[0][1], nil))
	if got := until(t, fd, fmt.Sprintf("4 udp %d", last)); len(got) != sent {
		t.Errorf("%d of %d packets arrived during %d changes of the filter", len(got), sent, swaps)
	}
}

// Interfaces that come after Open, and those without a link layer, are seen
// alike; the host's own firewall has no say.
func TestEveryKindOfInterface(t *testing.T) {
	w := newTown(t)
	fd := w.open(t, Wanted{TCP: []Range{{7000, 7000}}, UDP: []Range{{8000, 8000}}, Echo: true})
	w.host.Input("table inet own { chain input { type filter hook input priority filter; policy drop; }; }", "nft", "-f", "-")
	t.Run("bridge port", func(t *testing.T) {
		guest := testnet.New(t)
		port, _ := testnet.Connect(w.host, guest, nil, []string{"198.51.100.7/24", "2001:db8:1::7/64"})
		w.host.Run("ip", "link", "add", "br0", "type", "bridge")
		w.host.Run("ip", "link", "set", port, "master", "br0")
		w.host.Address("br0", "198.51.100.1/24", "2001:db8:1::1/64")
		// Neighbour discovery is what policy drop stops: name the neighbour.
		for _, addr := range []string{"198.51.100.1", "2001:db8:1::1"} {
			guest.Run("ip", "neigh", "replace", addr, "lladdr", w.host.MAC("br0").String(), "dev", strings.Replace(port, "va", "vb", 1))
			programs(t, guest, fd, addr)
		}
	})
	t.Run("tun", func(t *testing.T) {
		tun := openTun(t, w.host, "tun7")
		w.host.Address("tun7", "203.0.113.1/24", "2001:db8:2::1/64")
		for _, e := range [][2]string{{"203.0.113.7:1", "203.0.113.1:8000"}, {"[2001:db8:2::7]:1", "[2001:db8:2::1]:8000"}} {
			b := testnet.UDP(netip.MustParseAddrPort(e[0]), netip.MustParseAddrPort(e[1]), nil)
			if _, err := tun.Write(b); err != nil {
				t.Fatal(err)
			}
			until(t, fd, words(b))
		}
	})
}

// programs knocks with what a person would use, and waits for each packet. The
// same packet may come twice: from the bridge's port and from the bridge.
func programs(t *testing.T, from *testnet.Namespace, fd int, addr string) {
	t.Helper()
	family := "4"
	if strings.Contains(addr, ":") {
		family = "6"
	}
	for want, args := range map[string][]string{
		"tcp 7000": {"nc", "-z", "-w1", addr, "7000"},
		"udp 8000": {"nc", "-u", "-q0", "-w1", addr, "8000"},
		"echo 37":  {"ping", "-c1", "-W1", "-s37", addr},
	} {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Stdin = strings.NewReader("x")
		if err := from.Start(cmd); err != nil {
			t.Fatal(err)
		}
		until(t, fd, family+" "+want)
		_ = cmd.Process.Kill() // nothing answers it: the firewall drops
		_ = cmd.Wait()
	}
}

func openTun(t *testing.T, ns *testnet.Namespace, name string) *os.File {
	t.Helper()
	var fd int
	var err error
	ns.Do(func() {
		if fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
			return
		}
		req, _ := unix.NewIfreq(name)
		req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	})
	if err != nil {
		t.Fatalf("tun: %v", err)
	}
	f := os.NewFile(uintptr(fd), name)
	t.Cleanup(func() { f.Close() })
	return f
}

func TestOpenSocketsProperties(t *testing.T) {
	w := newTown(t)
	fd := w.open(t, Wanted{})
	if size, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF); err != nil || size != 2*Buffer {
		t.Errorf("the receive buffer is %d (%v), want %d", size, err, 2*Buffer)
	}
	// The filter drops them too, but only after the kernel made a copy of each.
	if ignores, err := unix.GetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING); err != nil || ignores != 1 {
		t.Errorf("outgoing packets are not left out: %d (%v)", ignores, err)
	}
	if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK == 0 {
		t.Errorf("file flags %#x (%v): it blocks", flags, err)
	}
	if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("descriptor flags %#x (%v): it survives exec", flags, err)
	}
}

// What is missing is said, with the way to give it. Each case is the kernel's
// own refusal, on a thread that ends with it.
func TestOpenSaysWhatIsMissing(t *testing.T) {
	for _, tt := range []struct {
		name    string
		prepare func() error
		want    string
	}{
		{"no CAP_NET_RAW", func() error { return withoutCapability(unix.CAP_NET_RAW) }, "CAP_NET_RAW"},
		{"no AF_PACKET", func() error { return withoutSockets(unix.EAFNOSUPPORT) }, "no AF_PACKET: load the module af_packet"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var fd int
			var err error
			testnet.New(t).Do(func() {
				if err = tt.prepare(); err == nil {
					fd, err = Open(Filter(Wanted{}))
				}
			})
			if err == nil || fd != -1 || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got descriptor %d and error %v, want %q", fd, err, tt.want)
			}
		})
	}
}

// A container has CAP_NET_RAW and seldom CAP_NET_ADMIN: the buffer is then smaller.
func TestOpenWithoutTheRightToALargeBuffer(t *testing.T) {
	for name, open := range map[string]func() (int, error){
		"packet": func() (int, error) { return Open(Filter(Wanted{})) },
		"udp":    func() (int, error) { return OpenUDP(8000) },
	} {
		fd := -1
		var err error
		testnet.New(t).Do(func() {
			if err = withoutCapability(unix.CAP_NET_ADMIN); err == nil {
				fd, err = open()
			}
		})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		size, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF)
		if unix.Close(fd); err != nil || size == 0 || size > 2*Buffer {
			t.Errorf("%s: the receive buffer is %d (%v)", name, size, err)
		}
	}
}

func withoutCapability(cap int) error {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&head, &data[0]); err != nil {
		return err
	}
	data[cap/32].Effective &^= 1 << (cap % 32)
	return unix.Capset(&head, &data[0])
}

// withoutSockets makes socket(2) fail on this thread as it does on a kernel
// built without packet sockets.
func withoutSockets(errno unix.Errno) error {
	return filterThread([]bpf.Instruction{
		bpf.LoadAbsolute{Off: 0, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.SYS_SOCKET, SkipTrue: 1},
		bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(errno)},
		bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW},
	})
}

// filterThread puts a seccomp filter on this thread.
func filterThread(p []bpf.Instruction) error {
	raw, err := bpf.Assemble(p)
	if err != nil {
		return err
	}
	code := make([]unix.SockFilter, len(raw))
	for i, in := range raw {
		code[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	prog := &unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}
	defer runtime.KeepAlive(prog)
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	return unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(prog)), 0, 0)
}
