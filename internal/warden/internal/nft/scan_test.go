package nft

import (
	"bytes"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/testnet"
	"golang.org/x/sys/unix"
)

// sniff gives the first packet that the namespace receives after provoke and
// that want takes, from its IP header on.
func sniff(t testing.TB, ns *testnet.Namespace, family uint16, provoke func(), want func([]byte) bool) []byte {
	t.Helper()
	fd := -1
	var err error
	ns.Do(func() {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(family>>8|family<<8))
	})
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 500_000})
	provoke()
	b := make([]byte, 2048)
	for range 100 {
		n, _, err := unix.Recvfrom(fd, b, 0)
		if err != nil {
			t.Fatalf("no answer was heard: %v", err)
		}
		if want(b[:n]) {
			return bytes.Clone(b[:n])
		}
	}
	t.Fatal("no answer among 100 packets")
	return nil
}

// answer gives the packet with which a port refuses a datagram or a SYN.
func answer(t *testing.T, w *world, p pair, proto string, tos int) []byte {
	t.Helper()
	etherType, protoAt, header := uint16(unix.ETH_P_IP), 9, 20
	icmp := byte(unix.IPPROTO_ICMP)
	if p.host.Is6() {
		etherType, protoAt, header, icmp = unix.ETH_P_IPV6, 6, 40, unix.IPPROTO_ICMPV6
	}
	return sniff(t, w.out, etherType, func() {
		w.out.Do(func() { knock(t, p, proto, tos) })
	}, func(b []byte) bool {
		if proto == "tcp" {
			return b[protoAt] == unix.IPPROTO_TCP && b[header+13]&0x04 != 0
		}
		// destination unreachable: type 3 (RFC 792) or 1 (RFC 4443)
		return b[protoAt] == icmp && (b[header] == 3 || b[header] == 1)
	})
}

// knock sends one SYN or datagram to port 7 from port 4444, so that each run's
// packets differ in nothing that we can hold still.
func knock(t *testing.T, p pair, proto string, tos int) {
	kind, family := unix.SOCK_STREAM, unix.AF_INET
	if proto == "udp" {
		kind = unix.SOCK_DGRAM
	}
	var from, to unix.Sockaddr
	if p.host.Is6() {
		family = unix.AF_INET6
		from, to = &unix.SockaddrInet6{Port: 4444, Addr: p.stranger.As16()}, &unix.SockaddrInet6{Port: 7, Addr: p.host.As16()}
	} else {
		from, to = &unix.SockaddrInet4{Port: 4444, Addr: p.stranger.As4()}, &unix.SockaddrInet4{Port: 7, Addr: p.host.As4()}
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Error(err)
		return
	}
	defer unix.Close(fd)
	if family == unix.AF_INET {
		unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TOS, tos)
	} else {
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_TCLASS, tos)
	}
	if err := unix.Bind(fd, from); err != nil {
		t.Error(err)
	}
	if err := unix.Connect(fd, to); err == nil && proto == "udp" {
		unix.Write(fd, []byte("x"))
	}
}

// still blanks what differs from packet to packet anyway: checksums, the IPv4
// identification, the acknowledged number, and in an unreachable the checksums
// and the identification of the datagram that it quotes.
func still(p pair, proto string, b []byte) []byte {
	b = bytes.Clone(b)
	header, spots := 40, [][2]int{}
	if p.host.Is4() {
		header, spots = 20, [][2]int{{4, 6}, {10, 12}}
	}
	if proto == "tcp" {
		spots = append(spots, [2]int{header + 8, header + 12}, [2]int{header + 16, header + 18})
	} else {
		spots = append(spots, [2]int{header + 2, header + 4})
		if quoted := header + 8; p.host.Is4() {
			spots = append(spots, [2]int{quoted + 4, quoted + 6}, [2]int{quoted + 10, quoted + 12})
		} else {
			spots = append(spots, [2]int{quoted, quoted + 4}) // the sender's flow label
		}
	}
	for _, s := range spots {
		clear(b[s[0]:s[1]])
	}
	return b
}

// TestAnswerBytes compares a hidden port's refusal with the one that the kernel
// gives for a port that is closed. What differs is known and stands in
// doc/notes/0001-closed-as-auto.md: in a RST the kernel itself repeats the
// probe's TOS or traffic class, and over IPv6 it makes up a flow label.
func TestAnswerBytes(t *testing.T) {
	t.Parallel()
	for _, p := range pairs {
		for _, proto := range []string{"tcp", "udp"} {
			for _, tos := range []int{0, 0xb8} {
				w := newWorld(t)
				w.host.Run("sysctl", "-qw", "net.ipv4.icmp_ratelimit=0", "net.ipv6.icmp.ratelimit=0")
				stopped := still(p, proto, answer(t, w, p, proto, tos))
				if proto == "tcp" && p.host.Is4() {
					stopped[1] = 0
				} else if proto == "tcp" {
					copy(stopped, []byte{0x60, 0, 0, 0})
				}
				for _, as := range []config.ClosedAs{config.Auto, config.Reject} {
					w.apply(guarding(as, "7/"+proto), Options{})
					hidden := still(p, proto, answer(t, w, p, proto, tos))
					if !bytes.Equal(hidden, stopped) {
						t.Errorf("%s %s TOS %#x %v\n%x, but of a closed port\n%x", p.name, proto, tos, as, hidden, stopped)
					}
				}
			}
		}
	}
}

// hosts are the firewalls under which a scan must not tell hidden from stopped.
var hosts = []struct{ name, rules string }{
	{"open", ""},
	{"drops all but ssh", `table inet filter { chain input { type filter hook input priority filter; policy drop
		ct state established accept
		icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
		icmp type echo-request accept
		icmpv6 type echo-request accept
		tcp dport 22 accept
		udp dport 53 accept
		}
	}`},
	{"drops all", `table inet filter { chain input { type filter hook input priority filter; policy drop
		ct state established accept
		icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
		icmp type echo-request accept
		icmpv6 type echo-request accept
		}
	}`},
	{"rejects", `table inet filter { chain input { type filter hook input priority filter; policy accept
		ct state established accept
		tcp dport 22 accept
		meta l4proto { tcp, udp } reject with icmpx admin-prohibited
		}
	}`},
}

var result = regexp.MustCompile(`(?m)^(\d+/.*|Not shown.*|All .*)$`)

// scan gives the lines of nmap's answer that speak of ports, with its reasons,
// which have the TTL too.
func scan(w *world, to netip.Addr, args ...string) string {
	w.Helper()
	args = append(args, "-n", "-Pn", "-T4", "--reason", "--initial-rtt-timeout", "50ms", "--max-rtt-timeout", "100ms", "--host-timeout", "60s")
	if to.Is6() {
		args = append(args, "-6")
	}
	out, err := w.out.Output("nmap", append(args, to.String())...)
	lines := result.FindAllString(out, -1)
	if err != nil || len(lines) == 0 {
		w.Errorf("nmap said nothing about ports: %v\n%s", err, out)
	}
	return strings.Join(lines, "\n")
}

// TestScan is the promise of auto: a stranger's scan gives the same answers
// with the service hidden as with it stopped. All TCP ports once; the other
// kinds of probe, UDP and IPv6 on ports around the hidden ones.
func TestScan(t *testing.T) {
	t.Parallel()
	type probe struct {
		to   netip.Addr
		args []string
	}
	var scans []probe
	for _, p := range pairs {
		scans = append(scans, probe{p.host, []string{"-sU", "-p", "1-200", "--max-retries", "1", "--min-rate", "1000"}})
		for _, kind := range []string{"-sS", "-sF", "-sA", "-sX"} {
			scans = append(scans, probe{p.host, []string{kind, "-p", "20-24,80,8080", "--max-retries", "2"}})
		}
	}
	for _, h := range hosts {
		t.Run(h.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.host.Run("sysctl", "-qw", "net.ipv4.icmp_ratelimit=0", "net.ipv6.icmp.ratelimit=0", "net.ipv4.icmp_msgs_per_sec=100000", "net.ipv4.icmp_msgs_burst=100000")
			if h.rules != "" {
				w.host.Input(h.rules, "nft", "-f", "-")
			}
			here := slices.Clone(scans)
			switch h.name {
			case "open":
				here = append(here, probe{host4, []string{"-sS", "-p-"}}, probe{host6, []string{"-sS", "-p1-10000"}})
			case "drops all but ssh": // 65,535 silences: no second try, and no waiting between them
				here = append(here, probe{host4, []string{"-sS", "-p-", "--max-retries", "1", "--min-rate", "30000"}})
			}
			all := func() []string {
				out := make([]string, len(here))
				var wait sync.WaitGroup // nearly all of a scan is waiting for silence
				for i, s := range here {
					wait.Go(func() { out[i] = scan(w, s.to, s.args...) })
				}
				wait.Wait()
				return out
			}
			stopped := all()
			for _, port := range []uint16{22, 8080} {
				greet(t, w.host, "", port)
			}
			echo(t, w.host, 53)
			w.apply(guarding(config.Auto, "22/tcp", "8080/tcp", "53/udp", "100-110/udp"), Options{})
			for i, got := range all() {
				if diff := cmp.Diff(stopped[i], got); diff != "" {
					s := here[i]
					t.Errorf("nmap %v %v: stopped (-), hidden (+):\n%s", s.args, s.to, diff)
				}
			}
		})
	}
}
