package integration_test

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// anyIP are addresses that are the server's by a route alone.
var anyIP = []path{
	{"IPv4", paths[0].client, netip.MustParseAddr("203.0.113.5")},
	{"IPv6", paths[1].client, netip.MustParseAddr("2001:db8:1::5")},
}

// routeAnyIP makes the prefixes of anyIP local to the server.
func (h *house) routeAnyIP() {
	h.t.Helper()
	h.server.Run("ip", "route", "add", "local", "203.0.113.0/24", "dev", "lo")
	h.server.Run("ip", "-6", "route", "add", "local", "2001:db8:1::/64", "dev", "lo")
}

// What the kernel takes for this host is guarded, so it can be knocked at too.
func TestAddressesThatAreLocalByRoute(t *testing.T) {
	t.Parallel()
	for _, when := range []string{"before the start", "later"} {
		h := newHouse(t)
		h.client.Run("ip", "route", "add", "203.0.113.0/24", "via", paths[0].server.String())
		h.client.Run("ip", "-6", "route", "add", "2001:db8:1::/64", "via", paths[1].server.String())
		if when == "before the start" {
			h.routeAnyIP()
			h.is(true, 22, anyIP...)
			h.serve(houseConfig("1h"))
		} else {
			h.serve(houseConfig("1h"))
			h.routeAnyIP()
			h.server.Address("lo", "198.51.100.77/32") // a change that the daemon follows
		}
		h.is(false, 22, anyIP...)
		for _, p := range anyIP {
			h.eventually(when+" "+p.name+": open", func() bool { h.knock(p, frontSteps); return h.open(p, 22) })
		}
	}
}

// A guarded service that comes to listen on one address only would answer an ACK
// probe, if the table went on to ask which packets belong to a socket.
func TestAServiceRebinds(t *testing.T) {
	t.Parallel()
	for i, p := range paths {
		h := newHouse(t)
		listen := func(addr string) net.Listener {
			t.Helper()
			var l net.Listener
			// A child that another test forks holds the old listener until its exec.
			h.eventually("port 23 is free", func() (free bool) {
				h.server.Do(func() {
					var err error
					l, err = net.Listen("tcp", net.JoinHostPort(addr, "23"))
					free = err == nil
				})
				return free
			})
			return l
		}
		all := listen("")
		h.serve(strings.Replace(houseConfig("1h"), `"22/tcp"`, `"22/tcp", "23/tcp"`, 1))
		live := func() bool { return strings.Contains(h.table(), "set live4") }
		if live() {
			t.Errorf("%s: a listener on all addresses needs no list of connections", p.name)
		}
		all.Close()
		for n, addr := range []string{p.server.String(), ""} {
			l := listen(addr)
			h.server.Address("lo", fmt.Sprintf("198.51.100.%d/32", 10*i+n+1)) // the daemon looks at the host
			h.eventually(fmt.Sprintf("%s: the listener at %q is seen", p.name, addr), func() bool { return live() == (addr != "") })
			l.Close()
		}
	}
}

// Promise 2: a table without rules hides nothing, so it counts as removed.
func TestPromise2AnEmptiedTableIsNoWayIn(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.serve(houseConfig("1h"))
	granted, stranger := paths[0], paths[1]
	h.enter(granted)
	lines := func() string { // sets that are made anew stand in another order
		return strings.Join(slices.Sorted(strings.Lines(h.table())), "")
	}
	want := lines()
	for _, command := range []string{"flush table inet sallyport", "flush chain inet sallyport arrive", "flush set inet sallyport hidden_auto"} {
		h.server.Run("nft", strings.Fields(command)...)
		h.eventually("the table is whole again after "+command, func() bool { return lines() == want })
		h.is(false, 22, stranger)
		h.is(true, 22, granted)
	}
}
