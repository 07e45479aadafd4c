package nft

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/sallyport/sallyport/internal/config"
)

// dies checks that nothing comes back any more.
func dies(t *testing.T, what string, c net.Conn) {
	t.Helper()
	c.SetDeadline(time.Now().Add(500 * time.Millisecond))
	c.Write([]byte("ping"))
	if n, err := c.Read(make([]byte, 4)); err == nil {
		t.Errorf("%s: %d bytes came back", what, n)
	}
}

// TestCut: conntrack holds what was cut for established all the time, and it is
// dead all the same: on this host, behind a named destination and behind a
// redirect. Nobody else's is, and the port looks as to every stranger.
func TestCut(t *testing.T) {
	t.Parallel()
	for _, look := range []struct {
		as   config.ClosedAs
		want string
	}{{config.Auto, closed}, {config.Drop, silent}, {config.Reject, closed}} {
		w, third := newRouter(t)
		greet(t, third, "", 22)
		greet(t, w.host, "", 22)
		w.host.Input(`table inet docker {
			chain prerouting { type nat hook prerouting priority dstnat;
				fib daddr type local tcp dport 8080 dnat ip to 198.51.100.5:22
				fib daddr type local tcp dport 8080 dnat ip6 to [2001:db8:5::5]:22
			}
		}`, "nft", "-f", "-")
		cfg := guarding(look.as, "22/tcp", "8080/tcp")
		for _, other := range []bool{false, true} {
			s := service(look.as, "22/tcp")
			s.On = []netip.Addr{away4, away6}
			if other {
				s.On = []netip.Addr{awayOther4, awayOther6}
			}
			cfg.Services = append(cfg.Services, s)
		}
		w.apply(cfg, Options{})
		for i, p := range pairs {
			name := look.as.String() + " " + p.name
			away, other := []netip.Addr{away4, away6}[i], []netip.Addr{awayOther4, awayOther6}[i]
			call := func(from, to netip.Addr, port uint16) net.Conn {
				t.Helper()
				c, err := dial(w.out, from, to, port, time.Second)
				if err != nil {
					t.Fatal(name, err)
				}
				t.Cleanup(func() { c.Close() })
				return c
			}
			let := func(from netip.Addr) []Element {
				list := []Element{tcp(from, 22, time.Hour), tcp(from, 8080, time.Hour), tcp(from, 22, time.Hour)}
				list[2].On = away
				return list
			}
			elsewhere := tcp(p.stranger, 22, time.Hour)
			elsewhere.On = other
			w.grant(append(append(let(p.stranger), let(p.bystander)...), elsewhere)...)
			mine := []net.Conn{call(p.stranger, p.host, 22), call(p.stranger, p.host, 8080), call(p.stranger, away, 22)}
			others := []net.Conn{call(p.bystander, p.host, 22), call(p.bystander, p.host, 8080), call(p.bystander, away, 22), call(p.stranger, other, 22)}

			out := let(p.stranger)
			for i := range out {
				out[i].Cut = true
			}
			w.grant(out...)
			for _, c := range mine { // a grant counts for more
				echoes(t, c)
			}
			if err := w.table.Revoke(append(let(p.stranger), elsewhere)); err != nil {
				t.Fatal(err)
			}
			w.apply(cfg, Options{})
			for i, c := range mine {
				dies(t, name+[]string{" here", " redirected", " away"}[i], c)
			}
			for _, c := range others {
				echoes(t, c)
			}
			expect(t, name+" looks", try(w.out, p.stranger, p.host, 22), look.want)
			expect(t, name+" looks away", try(w.out, p.stranger, away, 22), look.want)

			w.grant(let(p.stranger)...)
			expect(t, name+" granted anew", try(w.out, p.stranger, p.host, 22), open)
			expect(t, name+" granted anew away", try(w.out, p.stranger, away, 22), open)
			if err := w.table.Revoke(out); err != nil {
				t.Fatal(err)
			}
			again := call(p.stranger, away, 22)
			if err := w.table.Revoke(let(p.stranger)); err != nil {
				t.Fatal(err)
			}
			echoes(t, again)
		}
	}
}

// TestOlderTableCuts: a table that knows nothing of cuts gets what it lacks and
// keeps its grants, and a table that has cuts keeps those.
func TestOlderTableCuts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	cfg := guarding(config.Auto, "22/tcp")
	w.apply(cfg, Options{})
	want := w.listing()
	w.host.Input(`flush chain inet sallyport known
		flush chain inet sallyport cut
		delete chain inet sallyport cut
		delete set inet sallyport cut4
		delete set inet sallyport cut6
		add rule inet sallyport known ct state established,related accept`, "nft", "-f", "-")
	for _, p := range pairs {
		w.grant(tcp(p.stranger, 22, time.Hour))
	}
	table := openIn(t, w.host) // as a new daemon does
	if err := table.Apply(cfg, Options{}); err != nil {
		t.Fatal(err)
	}
	if got := w.grants(); len(got) != 2 {
		t.Errorf("left of two grants: %v", got)
	}
	if err := table.Revoke(w.grants()); err != nil {
		t.Fatal(err)
	}
	var cuts []Element
	for _, p := range pairs {
		for _, addr := range []netip.Addr{p.stranger, p.bystander} {
			cut := tcp(addr, 22, time.Hour)
			cut.Cut = true
			cuts = append(cuts, cut)
		}
	}
	if diff := cmp.Diff(countLines(want), countLines(w.listing())); diff != "" {
		t.Errorf("(-new +brought up to date)\n%s", diff)
	}
	w.grant(cuts...)
	less := guarding(config.Drop, "22/tcp", "23/tcp")
	less.Daemon.MaxGrants = 1 // bounds grants alone
	if err := openIn(t, w.host).Apply(less, Options{}); err != nil {
		t.Fatal(err)
	}
	if got := w.grants(); len(got) != 4 || !got[0].Cut || got[0].By != "test" || got[3].TTL < 59*time.Minute {
		t.Errorf("left of four cuts: %v", got)
	}
	if err := openIn(t, w.host).Apply(guarding(config.Drop, "23/tcp"), Options{}); err != nil {
		t.Fatal(err)
	}
	if got := w.grants(); len(got) != 0 {
		t.Errorf("cuts for a port that is not hidden any more: %v", got)
	}
}

// countLines counts the lines of a listing; sets that are made anew stand elsewhere.
func countLines(listing string) map[string]int {
	lines := map[string]int{}
	for line := range strings.Lines(listing) {
		lines[line]++
	}
	return lines
}
