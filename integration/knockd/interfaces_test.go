package knockd_test

import (
	"net/netip"
	"strconv"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/internal/testnet"
)

const oneDoor = "[door]\nsequence = 7000,8500,7800\ntcpflags = syn\n"

// second lays another wire and gives its name in the server.
func (w *world) second() string {
	w.t.Helper()
	_, name := testnet.Connect(w.client, w.server,
		[]string{"198.51.100.1/24", "2001:db8:5::1/64"}, []string{"198.51.100.2/24", "2001:db8:5::2/64"})
	return name
}

// others are the ways by the second wire.
var others = []family{
	{"IPv4", "198.51.100.1", "198.51.100.2", ""},
	{"IPv6", "2001:db8:5::1", "2001:db8:5::2", "-6"},
}

// However several interfaces are named, both are heard, and with one named the other
// is not. Nothing named: all, though there is no eth0.
func TestSeveralInterfaces(t *testing.T) {
	w := newWorld(t)
	b := w.second()
	for name, c := range map[string]struct {
		options string
		args    []string
		both    bool
	}{
		"list":     {"", []string{"-i", "WIRE," + b}, true},
		"repeated": {"", []string{"-i", "WIRE", "-i", b}, true},
		"any":      {"", []string{"-i", "any"}, true},
		"none":     {"", nil, true},
		"in file":  {"[options]\ninterface = WIRE," + b + "\n", nil, true},
		"any here": {"[options]\ninterface = any\n", nil, true},
		"one":      {"", []string{"-i", "WIRE"}, false},
		"over":     {"[options]\ninterface = " + b + "\n", []string{"-i", "WIRE"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := &world{t: t, server: w.server, client: w.client, serverWire: w.serverWire, dir: w.dir, knockd: w.knockd}
			d := w.serve(name+".conf", c.options+oneDoor+fence, c.args...)
			for _, f := range append(others, families...) {
				w.hit(f, "7000", "8500", "7800")
			}
			for i, f := range families {
				d.fence(f)
				d.await(opened(f, "door"), 1)
				if n := d.said(opened(others[i], "door")); n != map[bool]int{true: 1}[c.both] {
					t.Errorf("%s by the other wire: opened %d times:\n%s", f.name, n, d.out)
				}
			}
			d.ends(unix.SIGTERM, 15)
		})
	}
}

// An interface that is named before it is there, that goes away, and comes back, and
// one with new addresses, are all heard.
func TestInterfacesThatComeAndGo(t *testing.T) {
	w := newWorld(t)
	d := w.serve("knockd.conf", oneDoor+fence, "-i", "WIRE,late0")
	d.await("an interface is not there", 1)
	for round := 1; round <= 2; round++ {
		b := w.second()
		w.server.Run("ip", "link", "set", b, "down")
		w.server.Run("ip", "link", "set", b, "name", "late0")
		w.server.Run("ip", "link", "set", "late0", "up")
		w.server.Run("ip", "addr", "replace", others[1].server+"/64", "dev", "late0", "nodad") // went with "down"
		for _, f := range others {
			w.eventually("a knock by an interface that came", func() bool {
				w.hit(f, "7000", "8500", "7800")
				time.Sleep(50 * time.Millisecond)
				return d.said(opened(f, "door")) >= round
			})
		}
		w.server.Run("ip", "link", "del", "late0")
		for _, f := range families {
			w.hit(f, "7000", "8500", "7800")
			d.await(opened(f, "door"), round)
		}
	}
	for i, addr := range []string{"192.0.2.77", "2001:db8::77"} {
		f := families[i]
		w.server.Run("ip", "addr", "del", f.server+[]string{"/24", "/64"}[i], "dev", w.serverWire)
		w.server.Address(w.serverWire, addr+[]string{"/24", "/64"}[i])
		w.eventually("a knock at the new address", func() bool {
			w.hitAt(addr, "7000", "8500", "7800")
			time.Sleep(50 * time.Millisecond)
			return d.said(opened(f, "door")) >= 3
		})
	}
}

// The only interface is lost and comes back: the daemon is there all the time.
func TestALostInterface(t *testing.T) {
	w := newWorld(t)
	d := w.serve("knockd.conf", oneDoor, "-i", "WIRE")
	for _, f := range families {
		w.hit(f, "7000", "8500", "7800")
		d.await(opened(f, "door"), 1)
	}
	w.server.Run("ip", "link", "del", w.serverWire)
	b := w.second()
	w.server.Run("ip", "link", "set", b, "down")
	w.server.Run("ip", "link", "set", b, "name", w.serverWire)
	w.server.Run("ip", "link", "set", w.serverWire, "up")
	w.server.Run("ip", "addr", "replace", others[1].server+"/64", "dev", w.serverWire, "nodad")
	for _, f := range others {
		w.eventually("a knock by the interface that came back", func() bool {
			w.hit(f, "7000", "8500", "7800")
			time.Sleep(50 * time.Millisecond)
			return d.said(opened(f, "door")) > 0
		})
	}
	d.ends(unix.SIGTERM, 15)
}

// A door with a Target is opened at that address alone, and so is each of two doors
// with the same sequence.
func TestTarget(t *testing.T) {
	w := newWorld(t)
	w.server.Address(w.serverWire, "192.0.2.3/24", "2001:db8::3/64")
	d := w.serve("knockd.conf", "[four]\ntarget = 192.0.2.3\nsequence = 7000,8500,7800\n"+
		"[six]\ntarget = 2001:0DB8:0::3\nsequence = 7000,8500,7800\n[here]\ntarget = 192.0.2.2\nsequence = 7000,8500,7800\n"+fence, "-i", "WIRE")
	for i, f := range families {
		door, other := []string{"four", "six"}[i], []string{"six", "four"}[i]
		w.hit(f, "7000", "8500", "7800")
		d.fence(f)
		if n := d.said(opened(f, door)); n != 0 {
			t.Errorf("%s: a knock at another address opened it:\n%s", f.name, d.out)
		}
		w.hitAt([]string{"192.0.2.3", "2001:db8::3"}[i], "7000", "8500", "7800")
		d.await(opened(f, door), 1)
		d.fence(f)
		if n := d.said(opened(f, other)); n != 0 {
			t.Errorf("%s: the other family's door opened:\n%s", f.name, d.out)
		}
	}
	if n := d.said(": here: OPEN SESAME"); n != 1 {
		t.Errorf("the door of the first address opened %d times, want 1:\n%s", n, d.out)
	}
}

// tun makes a tun device in the server and gives its file: what is written there
// arrives at the device as bare IP, as from PPP or a VPN.
func (w *world) tun(name string) int {
	w.t.Helper()
	fd, err := -1, error(nil)
	w.server.Do(func() {
		if fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
			return
		}
		request, _ := unix.NewIfreq(name)
		request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TUNSETIFF, uintptr(unsafe.Pointer(request))); errno != 0 {
			err = errno
		}
	})
	if err != nil {
		w.t.Fatalf("a tun device: %v", err)
	}
	w.t.Cleanup(func() { unix.Close(fd) })
	w.server.Address(name, "203.0.113.1/24", "2001:db8:7::1/64")
	return fd
}

// Bare IP, in both families: the original hears no IPv6 there. The device comes
// after the daemon.
func TestTunDevice(t *testing.T) {
	w := newWorld(t)
	named := w.serve("named.conf", oneDoor, "-i", "tun7")
	every := w.serve("every.conf", oneDoor)
	fd := w.tun("tun7")
	for _, f := range []family{{"IPv4", "203.0.113.9", "203.0.113.1", ""}, {"IPv6", "2001:db8:7::9", "2001:db8:7::1", ""}} {
		src, dst := netip.MustParseAddr(f.client), netip.MustParseAddr(f.server)
		n := 0
		w.eventually("a knock by the tun device "+strconv.Itoa(fd), func() bool {
			for _, port := range []uint16{7000, 8500, 7800} {
				n++
				packet := testnet.TCP(netip.AddrPortFrom(src, uint16(30000+n)), netip.AddrPortFrom(dst, port), 2, uint32(n*1000))
				if _, err := unix.Write(fd, packet); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(50 * time.Millisecond)
			return named.said(opened(f, "door")) > 0 && every.said(opened(f, "door")) > 0
		})
	}
}
