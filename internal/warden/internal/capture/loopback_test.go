//go:build linux

package capture

import (
	"encoding/binary"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/testnet"
)

// What a host sends to itself is seen where it is wanted, once, and nowhere else.
func TestLoopbackIsSeenOnceWhereItIsWanted(t *testing.T) {
	t.Parallel()
	watch := Watch{Port: 9999, Token: [8]byte{1, 2, 3}}
	for want, w := range []Wanted{
		{UDP: []Range{{7001, 7001}}, Watch: watch},
		{UDP: []Range{{7001, 7001}}, Watch: watch, Loopback: true},
		Union(Wanted{UDP: []Range{{7001, 7001}}}, Wanted{Watch: watch, Loopback: true}),
	} {
		want = min(want, 1)
		ns := testnet.New(t)
		fd := -1
		var err error
		ns.Do(func() {
			if fd, err = Open(Filter(w)); err != nil {
				return
			}
			for _, to := range []string{"127.0.0.1:7001", "[::1]:7001", "127.0.0.1:7002", "[::1]:7002"} {
				var c net.Conn
				if c, err = net.Dial("udp", to); err != nil {
					return
				}
				c.Write([]byte("knock"))
				c.Close()
			}
			// The watch packet comes from its own port.
			own := &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: int(watch.Port)}
			var c *net.UDPConn
			if c, err = net.ListenUDP("udp4", own); err == nil {
				c.WriteTo(watch.Token[:], own)
				c.Close()
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		got := map[string]int{}
		for end := time.Now().Add(300 * time.Millisecond); time.Now().Before(end); {
			var b [Snap]byte
			n, _, err := unix.Recvfrom(fd, b[:], unix.MSG_DONTWAIT)
			if err != nil {
				time.Sleep(5 * time.Millisecond)
				continue
			}
			head, name := 20, "IPv4"
			if b[0]>>4 == 6 {
				head, name = 40, "IPv6"
			}
			if n >= head+8 && binary.BigEndian.Uint16(b[head+2:]) == watch.Port {
				name = "watch"
			}
			got[name]++
		}
		if got["IPv4"] != want || got["IPv6"] != want || got["watch"] != 1 {
			t.Errorf("loopback %v: seen %v", w.Loopback, got)
		}
	}
}

func TestWantedByKnowsLoopback(t *testing.T) {
	for name, want := range map[string]bool{"lo": true, "lo0": false, "eth0": false} {
		cfg := &config.Config{Daemon: config.Daemon{Interfaces: []string{"eth1", name}}}
		if got := WantedBy(cfg).Loopback; got != want {
			t.Errorf("%s: %v", name, got)
		}
	}
	if WantedBy(&config.Config{}).Loopback {
		t.Error("all interfaces: lo is heard")
	}
}
