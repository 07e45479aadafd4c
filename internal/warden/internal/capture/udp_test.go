//go:build linux

package capture

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/internal/testnet"
)

// openUDP opens a UDP socket on the host that closes with the test.
func (w *town) openUDP(t *testing.T, port uint16) int {
	t.Helper()
	w.settled(t)
	var fd int
	var err error
	w.host.Do(func() { fd, err = OpenUDP(port) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// settled waits for the route to the host's IPv6 address, which the kernel adds
// a moment after the address; before that it drops what comes.
func (w *town) settled(t *testing.T) {
	t.Helper()
	for range 500 {
		if strings.Contains(w.host.Run("ip", "-6", "route", "show", "table", "local"), "local 2001:db8::1 ") {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("the host has no IPv6 address after five seconds")
}

// datagrams gives "source length" of all that waits, and of what comes within
// the time.
func datagrams(t *testing.T, fd int, wait time.Duration) []string {
	t.Helper()
	var all []string
	for range 1000 {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if n, err := unix.Poll(poll, int(wait.Milliseconds())); err != nil || n == 0 {
			return all
		}
		var b [Snap]byte
		n, from, err := unix.Recvfrom(fd, b[:], 0)
		if err == unix.EAGAIN { // a datagram that the kernel threw away after poll
			continue
		}
		var src netip.Addr
		switch from := from.(type) {
		case *unix.SockaddrInet4:
			src = netip.AddrFrom4(from.Addr)
		case *unix.SockaddrInet6:
			src = netip.AddrFrom16(from.Addr).Unmap()
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, fmt.Sprintf("%v %d", src, n))
	}
	return all
}

// Both families arrive at one socket, and of them only what has an SPA
// datagram's exact length; what was glued is taken apart.
func TestUDPSocketTakesSPALengthsOfBothFamilies(t *testing.T) {
	w := newTown(t)
	fd := w.openUDP(t, 8000)
	wire := w.stranger.Wire(w.strangerIf, w.host.MAC(w.hostIf))
	var want []string
	for _, e := range w.ends(8000) {
		for _, size := range []int{0, 447, 448, 449, 831, 832, 833, 896, 1344, 1371, 1372, 1373} {
			wire.Send(t, testnet.UDP(e[0], e[1], make([]byte, size)))
			if size == 448 || size == 832 || size == 1372 {
				want = append(want, fmt.Sprintf("%v %d", e[0].Addr(), size))
			}
		}
	}
	if got := datagrams(t, fd, 200*time.Millisecond); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// A datagram to everybody is nobody's knock, also if the addresses are right.
func TestUDPSocketTakesNothingSentToEverybody(t *testing.T) {
	w := newTown(t)
	fd := w.openUDP(t, 8000)
	everybody := w.stranger.Wire(w.strangerIf, net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	group := w.stranger.Wire(w.strangerIf, net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1})
	e := w.ends(8000)
	data := make([]byte, 448)
	everybody.Send(t, testnet.UDP(e[0][0], e[0][1], data), testnet.UDP(e[0][0], netip.MustParseAddrPort("192.0.2.255:8000"), data),
		testnet.UDP(e[1][0], e[1][1], data))
	group.Send(t, testnet.UDP(e[1][0], netip.MustParseAddrPort("[ff02::1]:8000"), data))
	if got := datagrams(t, fd, 200*time.Millisecond); len(got) != 0 {
		t.Errorf("got %q", got)
	}
}

func TestUDPSocketsProperties(t *testing.T) {
	w := newTown(t)
	w.host.Run("sysctl", "-qw", "net.ipv6.bindv6only=1")
	fd := w.openUDP(t, 8000)
	for _, want := range []struct {
		name              string
		level, opt, value int
	}{
		{"receive buffer", unix.SOL_SOCKET, unix.SO_RCVBUF, 2 * Buffer},
		{"IPv6 only", unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0},
		{"receive offload", unix.IPPROTO_UDP, unix.UDP_GRO, 0},
		{"shared address", unix.SOL_SOCKET, unix.SO_REUSEADDR, 0},
		{"shared port", unix.SOL_SOCKET, unix.SO_REUSEPORT, 0},
	} {
		if got, err := unix.GetsockoptInt(fd, want.level, want.opt); err != nil || got != want.value {
			t.Errorf("%s: %d (%v), want %d", want.name, got, err, want.value)
		}
	}
	if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK == 0 {
		t.Errorf("file flags %#x (%v): it blocks", flags, err)
	}
	if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("descriptor flags %#x (%v): it survives exec", flags, err)
	}
}

func TestOpenUDPSaysThatThePortIsTaken(t *testing.T) {
	w := newTown(t)
	w.openUDP(t, 8000)
	for network, port := range map[string]uint16{"udp4": 8001, "udp6": 8002, "ours": 8000} {
		if network != "ours" {
			w.host.Do(func() {
				if c, err := net.ListenUDP(network, &net.UDPAddr{Port: int(port)}); err != nil {
					t.Error(err)
				} else {
					t.Cleanup(func() { c.Close() })
				}
			})
		}
		var fd int
		var err error
		w.host.Do(func() { fd, err = OpenUDP(port) })
		if fd != -1 || !errors.Is(err, unix.EADDRINUSE) || !strings.Contains(err.Error(), fmt.Sprintf("port %d can't be bound", port)) {
			t.Errorf("%s has the port: descriptor %d, %v", network, fd, err)
		}
	}
}

// Each case is on a thread that ends with it.
func TestOpenUDPSaysWhatIsMissing(t *testing.T) {
	for _, tt := range []struct {
		cap  int
		port uint16
		want string
	}{
		{unix.CAP_NET_BIND_SERVICE, 53, "CAP_NET_BIND_SERVICE"},
	} {
		var fd int
		var err error
		testnet.New(t).Do(func() {
			if err = withoutCapability(tt.cap); err == nil {
				fd, err = OpenUDP(tt.port)
			}
		})
		if fd != -1 || err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("got descriptor %d and error %v, want %q", fd, err, tt.want)
		}
	}
}

// A kernel without IPv6 has no such sockets: IPv4 is then all there is.
func TestOpenUDPWithoutIPv6(t *testing.T) {
	w := newTown(t)
	var fd int
	var err error
	w.host.Do(func() {
		if err = filterThread(withoutIPv6); err == nil {
			fd, err = OpenUDP(8000)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	e := w.ends(8000)[0]
	w.stranger.Wire(w.strangerIf, w.host.MAC(w.hostIf)).Send(t, testnet.UDP(e[0], e[1], make([]byte, 448)))
	if got := datagrams(t, fd, time.Second); !slices.Equal(got, []string{"192.0.2.7 448"}) {
		t.Errorf("got %q", got)
	}
}

// withoutIPv6 makes socket(2) fail for this family alone.
var withoutIPv6 = []bpf.Instruction{
	bpf.LoadAbsolute{Off: 0, Size: 4},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.SYS_SOCKET, SkipTrue: 3},
	bpf.LoadAbsolute{Off: 16, Size: 4}, // the first argument
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.AF_INET6, SkipTrue: 1},
	bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(unix.EAFNOSUPPORT)},
	bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW},
}
