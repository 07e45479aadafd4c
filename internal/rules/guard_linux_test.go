package rules_test

import (
	"errors"
	"fmt"
	"net"
	"syscall"
	"testing"
	"time"
)

// looks tries a port as a stranger would see it.
func (w *world) looks(from string, port int) string {
	c, err := w.dial(from, port, 400*time.Millisecond)
	switch {
	case err == nil:
		c.Close()
		return "open"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	}
	return "silent"
}

// datagram is looks for UDP: what listens there, if anything does, never answers.
func (w *world) datagram(t *testing.T, port int) string {
	t.Helper()
	var err error
	w.client.Do(func() {
		var c net.Conn
		if c, err = net.Dial("udp", net.JoinHostPort(w.side.server, fmt.Sprint(port))); err != nil {
			return
		}
		defer c.Close()
		c.Write([]byte("x"))
		c.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		_, err = c.Read(make([]byte, 1))
	})
	if errors.Is(err, syscall.ECONNREFUSED) {
		return "refused"
	}
	return "silent"
}

// TestLooks: what is hidden, how it looks, and whom it is not hidden from.
func TestLooks(t *testing.T) {
	each(t, `[daemon]
hide = "all"
public = ["80/tcp"]
[service.ssh]
ports = ["22/tcp", "500/udp"]
closed_as = "drop"
[service.web]
ports = ["8443/tcp", "501/udp"]
closed_as = "reject"
allow = ["192.0.2.3/32", "2001:db8::3/128"]
[service.db]
ports = ["5432/tcp", "502/udp"]
[knock.wiki]
type = "sequence"
opens = ["ssh", "db"]
sequence = ["8881/tcp", "7777/tcp", "9991/tcp"]
quiet = true
`, func(t *testing.T, w *world) {
		for _, port := range []int{80, 8443, 5432, 2000, 8881} {
			w.listen(t, port)
		}
		for _, c := range []struct {
			from string
			port int
			want string
		}{
			{w.side.client, 80, "open"},
			{w.side.client, 22, "silent"},
			{w.side.client, 8443, "refused"},
			{w.side.stranger, 8443, "open"},
			{w.side.stranger, 22, "silent"},
			{w.side.client, 5432, "refused"},
			{w.side.client, 2000, "refused"}, // no service's: hide = "all"
			{w.side.client, 8881, "silent"},  // a quiet step
		} {
			if got := w.looks(c.from, c.port); got != c.want {
				t.Errorf("%d/tcp from %s: %s, want %s", c.port, c.from, got, c.want)
			}
		}
		for port, want := range map[int]string{500: "silent", 501: "refused", 502: "refused", 503: "refused"} {
			if got := w.datagram(t, port); got != want {
				t.Errorf("%d/udp: %s, want %s", port, got, want)
			}
		}
		w.syn(t, w.side.client, 8881, 7777, 9991)
		for port, want := range map[int]string{22: "open", 5432: "open", 8443: "refused", 2000: "refused"} {
			if got := w.looks(w.side.client, port); got != want {
				t.Errorf("%d/tcp after the knock: %s, want %s", port, got, want)
			}
		}
		if got := w.looks(w.side.stranger, 22); got != "silent" {
			t.Errorf("22/tcp from a stranger after the client's knock: %s", got)
		}
	})
}

// TestExtends: a knock that extends prolongs what is open and opens nothing, and a wrong
// packet ends a grant where close_on_wrong says so.
func TestExtends(t *testing.T) {
	each(t, short+`close_on_wrong = true
[knock.longer]
type = "sequence"
extends = ["ssh"]
sequence = ["12000/tcp", "11000/tcp", "13000/tcp"]
`, func(t *testing.T, w *world) {
		longer := []int{12000, 11000, 13000}
		w.syn(t, w.side.client, longer...)
		w.want(t, false, "extended what is not open")
		w.syn(t, w.side.client, 8881, 7777, 9991)
		time.Sleep(1200 * time.Millisecond)
		w.syn(t, w.side.client, longer...)
		time.Sleep(1200 * time.Millisecond)
		w.want(t, true, "extended")
		time.Sleep(1200 * time.Millisecond)
		w.want(t, false, "the extension is over")
		w.syn(t, w.side.client, longer...)
		w.want(t, false, "extended what is over")
		w.syn(t, w.side.client, 8881, 7777, 9991)
		w.want(t, true, "opened again")
		w.syn(t, w.side.client, 8881, 9990)
		w.want(t, false, "closed on a wrong packet")
	})
}

// TestInterfaces: what comes in by another interface is not guarded, and knocks there
// are not heard.
func TestInterfaces(t *testing.T) {
	each(t, "[daemon]\ninterfaces = [\"elsewhere0\"]\n"+short, func(t *testing.T, w *world) {
		w.want(t, true, "an interface that is not named")
	})
}

// TestTarget: a knock that names an address is not made at another. INPUT sees none but
// the host's own, so that nftables alone has it.
func TestTarget(t *testing.T) {
	for _, s := range sides {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			for _, c := range []struct {
				target string
				open   bool
			}{{s.server, true}, {map[string]string{"ipv4": "192.0.2.77", "ipv6": "2001:db8::77"}[s.name], false}} {
				w := newWorld(t, s)
				loadNFT(t, w, wiki+"target = \""+c.target+"\"\n")
				w.syn(t, s.client, 8881, 7777, 9991)
				w.want(t, c.open, "knocked, and the target is "+c.target)
			}
		})
	}
}
