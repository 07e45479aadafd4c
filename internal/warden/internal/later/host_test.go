package later_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/testnet"
	"github.com/sallyport/sallyport/internal/warden/internal/later"
)

const grantMark = 0x10

// marking stands for our own table on a host where every source has a grant.
const marking = `table inet sallyport { chain arrive { type filter hook prerouting priority mangle; meta mark set meta mark or 0x10; }; }
`

// host is a server with the firewall under test, and a stranger beside it.
type host struct {
	t                testing.TB
	server, stranger *testnet.Namespace
	iface            string
}

var both = []string{"192.0.2.1", "2001:db8::1"}

func newHost(t testing.TB) *host {
	h := &host{t: t, server: testnet.New(t), stranger: testnet.New(t)}
	h.iface, _ = testnet.Connect(h.server, h.stranger,
		[]string{"192.0.2.1/24", "2001:db8::1/64"}, []string{"192.0.2.2/24", "2001:db8::2/64"})
	return h
}

// serve listens on ports of both families and greets.
func (h *host) serve(ports ...int) {
	h.t.Helper()
	for _, port := range ports {
		var l net.Listener
		var u net.PacketConn
		var err, uerr error
		h.server.Do(func() {
			l, err = net.Listen("tcp", fmt.Sprintf(":%d", port))
			u, uerr = net.ListenPacket("udp", fmt.Sprintf(":%d", port))
		})
		if err := errors.Join(err, uerr); err != nil {
			h.t.Fatal(err)
		}
		h.t.Cleanup(func() { l.Close(); u.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				io.WriteString(c, "welcome")
				c.Close()
			}
		}()
		go func() {
			buf := make([]byte, 64)
			for {
				_, from, err := u.ReadFrom(buf)
				if err != nil {
					return
				}
				u.WriteTo([]byte("welcome"), from)
			}
		}()
	}
}

// greeted reports whether the stranger gets the greeting at port, by addr.
func (h *host) greeted(network, addr string, port int) bool {
	var c net.Conn
	var err error
	h.stranger.Do(func() {
		c, err = net.DialTimeout(network, net.JoinHostPort(addr, fmt.Sprint(port)), 80*time.Millisecond)
	})
	if err != nil {
		return false
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(80 * time.Millisecond))
	if network == "udp" {
		c.Write([]byte("hello"))
	}
	got, _ := io.ReadAll(io.LimitReader(c, int64(len("welcome"))))
	return string(got) == "welcome"
}

// greets is greeted with more tries, for a machine that is busy.
func (h *host) greets(network, addr string, port int) bool {
	for range 20 {
		if h.greeted(network, addr, port) {
			return true
		}
	}
	return false
}

func (h *host) later(mark uint32, ports ...string) []later.Blocker {
	h.t.Helper()
	var ranges []config.PortRange
	for _, p := range ports {
		r, err := config.ParsePortRange(p)
		if err != nil {
			h.t.Fatal(err)
		}
		ranges = append(ranges, r)
	}
	var found []later.Blocker
	var err error
	h.server.Do(func() { found, err = later.Find(ranges, mark) })
	if err != nil {
		h.t.Fatal(err)
	}
	return found
}

// load puts a firewall in: nft's language, or what iptables-save prints.
func (h *host) load(v4, v6 string) {
	h.t.Helper()
	for _, f := range []struct{ text, restore string }{{v4, "iptables-restore"}, {v6, "ip6tables-restore"}} {
		switch {
		case f.text == "":
		case strings.HasPrefix(f.text, "*"):
			h.server.Input(strings.ReplaceAll(f.text, "IFACE", h.iface), f.restore, "-n")
		default:
			h.server.Input(strings.ReplaceAll(f.text, "IFACE", h.iface), "nft", "-f", "-")
		}
	}
}

func summary(found []later.Blocker) string {
	var lines []string
	for _, b := range found {
		line := fmt.Sprintf("%s %s %s: %s %s", b.Family, b.Table, b.Chain, b.Reason, b.Port)
		for _, mark := range []struct {
			is   bool
			text string
		}{{b.IPv4, " 4"}, {b.IPv6, " 6"}, {b.May, " may"}} {
			if mark.is {
				line += mark.text
			}
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "; ")
}
