//go:build linux

package source_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/internal/engine/internal/source"
	"github.com/sallyport/sallyport/internal/testnet"
)

// bound gives a UDP socket of the town's host, bound to the port, that closes
// with the test.
func (w *town) bound(t testing.TB, family int, port int) int {
	t.Helper()
	w.settled(t, hostAddrs[1])
	var fd int
	var err error
	w.host.Do(func() {
		if fd, err = unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
			return
		}
		var at unix.Sockaddr = &unix.SockaddrInet4{Port: port}
		if family == unix.AF_INET6 {
			at = &unix.SockaddrInet6{Port: port}
			if err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0); err != nil {
				return
			}
		}
		if err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20); err == nil {
			err = unix.Bind(fd, at)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// settled waits for the route to an IPv6 address of the host, which the kernel
// adds a moment after the address; before that it drops what comes.
func (w *town) settled(t testing.TB, addr string) {
	t.Helper()
	for range 500 {
		if strings.Contains(w.host.Run("ip", "-6", "route", "show", "table", "local"), "local "+addr+" ") {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("%s is not the host's after five seconds", addr)
}

// drainAll drains until nothing came for a moment and gives each datagram as
// "source payload to port".
func drainAll(t *testing.T, fd int, s *source.Socket) []string {
	t.Helper()
	var all []string
	for range 100 {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if n, _ := unix.Poll(poll, 200); n == 0 {
			return all
		}
		if err := s.Drain(func(b []byte, src netip.AddrPort, port uint16) {
			all = append(all, fmt.Sprintf("%v %q to %d", src, b, port))
		}); err != nil {
			t.Fatal(err)
		}
	}
	t.Fatalf("it never ends: %q", all)
	return nil
}

// An address is the sender's own, of its own family, whatever the socket's.
func TestSocketHandsOverBothFamilies(t *testing.T) {
	w := newTown(t)
	wire := w.wire(t)
	w.host.Address(w.hostIf, "fe80::1/64")
	w.settled(t, "fe80::1")
	for _, tt := range []struct {
		name   string
		family int
		want   []string
	}{
		{"dual-stack", unix.AF_INET6, []string{
			`192.0.2.7:40000 "one" to 6000`, `[2001:db8::7]:40000 "two" to 6000`, `[fe80::7]:40000 "three" to 6000`, `192.0.2.7:40000 "" to 6000`,
		}},
		{"IPv4", unix.AF_INET, []string{`192.0.2.7:40000 "one" to 6000`, `192.0.2.7:40000 "" to 6000`}},
	} {
		fd := w.bound(t, tt.family, 6000)
		s, err := source.NewSocket(fd)
		if err != nil {
			t.Fatal(err)
		}
		to := func(src, dst, payload string) []byte {
			return testnet.UDP(netip.AddrPortFrom(netip.MustParseAddr(src), 40000), netip.AddrPortFrom(netip.MustParseAddr(dst), 6000), []byte(payload))
		}
		wire.Send(t, to(nextAddrs[0], hostAddrs[0], "one"), to(nextAddrs[1], hostAddrs[1], "two"), to("fe80::7", "fe80::1", "three"), to(nextAddrs[0], hostAddrs[0], ""))
		if got := drainAll(t, fd, s); !slices.Equal(got, tt.want) {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
		unix.Close(fd)
	}
}

func TestSocketLeavesOutWhatIsCut(t *testing.T) {
	w := newTown(t)
	w.host.Run("ip", "link", "set", w.hostIf, "mtu", "9000")
	w.neighbour.Run("ip", "link", "set", w.nextIf, "mtu", "9000")
	wire := w.wire(t)
	fd := w.bound(t, unix.AF_INET6, 6000)
	s, err := source.NewSocket(fd)
	if err != nil {
		t.Fatal(err)
	}
	for i := range hostAddrs {
		src, dst := netip.AddrPortFrom(netip.MustParseAddr(nextAddrs[i]), 1), netip.AddrPortFrom(netip.MustParseAddr(hostAddrs[i]), 6000)
		for _, size := range []int{4609, 448, 8000, 4608, 1372} {
			wire.Send(t, testnet.UDP(src, dst, make([]byte, size)))
		}
		var got []int
		for range 5 {
			unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 100)
			if err := s.Drain(func(b []byte, _ netip.AddrPort, _ uint16) { got = append(got, len(b)) }); err != nil {
				t.Fatal(err)
			}
		}
		if !slices.Equal(got, []int{448, 4608, 1372}) {
			t.Errorf("%v: datagrams of %v bytes", src, got)
		}
	}
}

func TestSocketDrainIsBoundedAndKeepsOrder(t *testing.T) {
	w := newTown(t)
	wire := w.wire(t)
	s, err := source.NewSocket(w.bound(t, unix.AF_INET6, 6000))
	if err != nil {
		t.Fatal(err)
	}
	const sent = 600
	for n := range uint16(sent) {
		i := n % 2
		wire.Send(t, testnet.UDP(netip.AddrPortFrom(netip.MustParseAddr(nextAddrs[i]), 1000+n), netip.AddrPortFrom(netip.MustParseAddr(hostAddrs[i]), 6000), nil))
	}
	next := uint16(1000)
	for calls := 0; next < 1000+sent; calls++ {
		handed := 0
		err := s.Drain(func(_ []byte, src netip.AddrPort, _ uint16) {
			handed++
			if src.Port() != next {
				t.Fatalf("port %d came where %d was next", src.Port(), next)
			}
			next++
		})
		if err != nil || handed > 256 || calls == 0 && handed != 256 || calls > 100 {
			t.Fatalf("call %d handed over %d datagrams, error %v", calls, handed, err)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestNewSocketRefuses(t *testing.T) {
	w := newTown(t)
	connected := w.bound(t, unix.AF_INET, 6001)
	w.host.Do(func() {
		if err := unix.Connect(connected, &unix.SockaddrInet4{Port: 9, Addr: [4]byte{192, 0, 2, 7}}); err != nil {
			t.Error(err)
		}
	})
	for name, tt := range map[string]struct {
		make func() (int, error)
		want string
	}{
		"none":       {func() (int, error) { return -1, nil }, "bad file descriptor"},
		"unbound":    {func() (int, error) { return unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0) }, "bound to no port"},
		"TCP":        {func() (int, error) { return unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0) }, "another protocol"},
		"Unix":       {func() (int, error) { return unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0) }, "another protocol"},
		"a packet's": {func() (int, error) { return unix.Dup(w.fd) }, "no UDP socket"},
		"connected":  {func() (int, error) { return unix.Dup(connected) }, "connected"},
	} {
		fd, err := tt.make()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := source.NewSocket(fd); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
		unix.Close(fd)
	}
}

func TestSocketDrainSaysThatTheSocketIsLost(t *testing.T) {
	w := newTown(t)
	fd := w.bound(t, unix.AF_INET6, 6000)
	s, err := source.NewSocket(fd)
	if err != nil {
		t.Fatal(err)
	}
	null, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(null)
	if err := unix.Dup3(null, fd, unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	err = s.Drain(func([]byte, netip.AddrPort, uint16) {})
	if err == nil || !strings.Contains(err.Error(), "port 6000") || !strings.Contains(err.Error(), "no longer seen") {
		t.Errorf("a lost socket gave %v", err)
	}
}

// What comes back for a packet of this host (an unreachable) is no error of the
// socket's: nobody may end the daemon by sending one.
func TestSocketOutlivesWhatStrangersSend(t *testing.T) {
	w := newTown(t)
	fd := w.bound(t, unix.AF_INET6, 6000)
	s, err := source.NewSocket(fd)
	if err != nil {
		t.Fatal(err)
	}
	wire := w.wire(t)
	for i := range hostAddrs {
		src, dst := netip.AddrPortFrom(netip.MustParseAddr(nextAddrs[i]), 1), netip.AddrPortFrom(netip.MustParseAddr(hostAddrs[i]), 6000)
		quoted := testnet.UDP(dst, src, []byte("never sent"))
		unreachable := testnet.Echo(src.Addr(), dst.Addr(), 0, 0, len(quoted))
		body := unreachable[[]int{20, 40}[i]:]
		copy(body[8:], quoted)
		body[0], body[1] = []byte{3, 1}[i], []byte{3, 4}[i] // port unreachable
		checksum(unreachable, body, i == 1)
		bad := testnet.UDP(src, dst, []byte("bad"))
		bad[len(bad)-1]++ // the checksum is wrong
		wire.Send(t, unreachable, bad, testnet.UDP(src, dst, []byte("good")))
		want := []string{fmt.Sprintf("%v %q to 6000", src, "good")}
		if got := drainAll(t, fd, s); !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// checksum writes the checksum of an ICMP message anew (RFC 792, RFC 4443).
func checksum(packet, body []byte, v6 bool) {
	body[2], body[3] = 0, 0
	sum := 0
	add := func(b []byte) {
		for i, c := range b {
			sum += int(c) << (8 * (1 - i%2))
		}
	}
	add(body)
	if v6 {
		add(packet[8:40])
		sum += 58 + len(body)
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	body[2], body[3] = ^byte(sum>>8), ^byte(sum)
}

func TestSocketDrainDoesNotAllocate(t *testing.T) {
	w := newTown(t)
	wire := w.wire(t)
	s, err := source.NewSocket(w.bound(t, unix.AF_INET6, 6000))
	if err != nil {
		t.Fatal(err)
	}
	handed := 0
	observe := func([]byte, netip.AddrPort, uint16) { handed++ }
	for i := range hostAddrs {
		src, dst := netip.AddrPortFrom(netip.MustParseAddr(nextAddrs[i]), 1), netip.AddrPortFrom(netip.MustParseAddr(hostAddrs[i]), 6000)
		const runs = 50
		for range runs + 1 {
			wire.Send(t, testnet.UDP(src, dst, make([]byte, 448)))
		}
		handed = 0
		if n := testing.AllocsPerRun(runs, func() {
			if err := s.Drain(observe); err != nil {
				t.Error(err)
			}
		}); n != 0 || handed < runs {
			t.Errorf("%v: %v allocations per Drain, %d datagrams", src, n, handed)
		}
	}
}
