//go:build linux

package integration_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/sallyport/sallyport/internal/testnet"
)

// guardConfig guards one port with one knock; daemon are further keys of the
// [daemon] table, knock of the knock's.
func guardConfig(daemon, steps, knock string) string {
	s := story{sequence: steps, keys: knock}
	return strings.Replace(s.config(), "[service.door]", daemon+"\n[service.door]", 1)
}

// knockers are programs that people have at hand. HOST is the server, FAMILY is
// 4 or 6, where a program must be told. Each has a thousand ports
// (or ping sizes) to itself, so that all can knock at once from one address.
var knockers = []struct {
	name     string
	sequence string
	only     string // family; both unless given
	commands string // of a shell
}{
	{name: "ping", sequence: "437/icmp 37/icmp 911/icmp",
		commands: "for size in 437 37 911; do ping -FAMILY -c1 -W1 -s $size HOST; done"},
	{name: "ping and nc", sequence: "11000/tcp 1300/icmp 11100/udp",
		commands: "nc -FAMILY -z -w1 HOST 11000; ping -FAMILY -c1 -W1 -s 1300 HOST; echo knock | nc -FAMILY -u -q0 -w1 HOST 11100"},
	{name: "nc", sequence: "12000/tcp 12200/tcp 12100/tcp",
		commands: "for port in 12000 12200 12100; do nc -FAMILY -z -w1 HOST $port; done"},
	{name: "hping3", sequence: "13000/tcp 13200/tcp 13100/udp", only: "ipv4",
		commands: "hping3 -S -c 1 -p 13000 HOST; hping3 -S -c 1 -p 13200 HOST; hping3 --udp -c 1 -p 13100 HOST"},
	{name: "hping3 with odd flags", sequence: "14000/tcp:fin,psh,urg 14200/tcp:rst 14100/tcp", only: "ipv4",
		commands: "hping3 -F -P -U -c 1 -p 14000 HOST; hping3 -R -c 1 -p 14200 HOST; hping3 -S -c 1 -p 14100 HOST"},
	{name: "nmap", sequence: "15000/tcp 15200/tcp 15100/tcp",
		commands: "for port in 15000 15200 15100; do nmap V6 -n -Pn --max-retries 0 -p $port HOST; done"},
	{name: "nmap that connects", sequence: "16000/tcp 16200/tcp 16100/tcp",
		commands: "for port in 16000 16200 16100; do nmap V6 -n -Pn -sT --max-retries 0 -p $port HOST; done"},
	{name: "knockd's client", sequence: "17000/tcp 17200/udp 17100/tcp",
		commands: "knock -FAMILY -d 20 HOST 17000:tcp 17200:udp 17100:tcp"},
	{name: "bash", sequence: "18000/tcp 18200/udp 18100/tcp",
		commands: "for step in tcp/HOST/18000 udp/HOST/18200 tcp/HOST/18100; do timeout 1 bash -c \"echo >/dev/$step\"; done"},
	{name: "sallyport knock", sequence: "19000/tcp 19200/udp 1100/icmp 19100/tcp",
		commands: "PROGRAM knock HOST 19000/tcp 19200/udp 1100/icmp 19100/tcp"},
	{name: "sallyport knock --then", sequence: "20000/tcp 20200/udp 20100/tcp",
		commands: "PROGRAM knock --timeout 10s --then PORT HOST 20000/tcp 20200/udp 20100/tcp"},
}

// knockersConfig gives each program a service and a knock of its own.
func knockersConfig() string {
	var b strings.Builder
	for i, k := range knockers {
		fmt.Fprintf(&b, "[service.s%d]\nports = [\"%d/tcp\"]\nclosed_as = \"reject\"\n", i, knockerPort(i))
		fmt.Fprintf(&b, "[knock.k%d]\ntype = \"sequence\"\nopens = [\"s%d\"]\nsequence = [%s]\nwithin = \"30s\"\n", i, i, quotedSteps(k.sequence))
	}
	return b.String() + witnessConfig
}

func knockerPort(i int) uint16 { return uint16(1000 + i) }

// TestRealKnockers has every program open a port, on a host that answers closed
// ports and on one that drops, where each connect repeats its SYN.
func TestRealKnockers(t *testing.T) {
	eachWorld(t, hostRules[:2], func(t *testing.T, f family, rules ownRules) {
		w := newRealWorld(t, f)
		w.host.Input(strings.Replace(rules.text, "22, 443", "1000-1100", 1), rules.program, rules.args...)
		for i := range knockers {
			greetAt(t, w.host, knockerPort(i))
		}
		w.serve(t, knockersConfig())
		done := make(chan func(), len(knockers))
		for i := range knockers {
			go func() { done <- w.tryKnocker(t, i) }()
		}
		for range knockers {
			(<-done)()
		}
	})
}

// tryKnocker runs one program's knock and gives what is to be checked of it, by
// the test's own goroutine.
func (w *realWorld) tryKnocker(t *testing.T, i int) (check func()) {
	k := knockers[i]
	if k.only != "" && k.only != w.f.name {
		return func() {}
	}
	number, v6 := "4", ""
	if w.f.name == "ipv6" {
		number, v6 = "6", "-6"
	}
	script := strings.NewReplacer("FAMILY", number, "V6", v6, "HOST", w.f.host,
		"PROGRAM", testnet.Binary(t), "PORT", fmt.Sprint(knockerPort(i))).Replace(k.commands)
	out, _ := w.client.Output("sh", "-c", script) // most tools fail on a closed port, and have knocked all the same
	return func() {
		t.Helper()
		w.settle(t)
		own := netip.MustParseAddr(map[string]string{"ipv4": "192.0.2.2", "ipv6": "2001:db8::2"}[w.f.name])
		if !w.connects(t, own, w.f.place(""), knockerPort(i)) {
			t.Errorf("%s opens nothing:\n%s\n%s", k.name, script, out)
		}
		if w.connects(t, w.f.stranger(1), w.f.place(""), knockerPort(i)) {
			t.Errorf("%s opens to everybody", k.name)
		}
	}
}

// knockAs sends the plain knock in a stranger's name over one wire.
func (w *realWorld) knockAs(t *testing.T, wire *testnet.Wire, n int) {
	t.Helper()
	p := teller{f: w.f, first: n, fresh: uint32(n) << 16}
	for word := range strings.FieldsSeq(plain) {
		packets, _ := p.packets(t, word, w.f.stranger(n))
		wire.Send(t, packets...)
	}
}

// eachFamily runs a test in a world of its own for each family, on a host
// without rules.
func eachFamily(t *testing.T, test func(t *testing.T, w *realWorld)) {
	eachWorld(t, hostRules[:1], func(t *testing.T, f family, _ ownRules) { test(t, newRealWorld(t, f)) })
}

// A frame that the interface sees by chance, or that goes to everybody, is not
// to this host, whatever address the packet inside has.
func TestFramesToOthersDoNotCount(t *testing.T) {
	eachFamily(t, func(t *testing.T, w *realWorld) {
		w.serve(t, guardConfig("", plain, ""))
		w.host.Run("ip", "link", "set", w.hostLink, "promisc", "on")
		stray := w.client.Wire(w.clientLink, net.HardwareAddr{2, 0, 0, 0, 0, 9})
		for n, wire := range map[int]*testnet.Wire{1: stray, 2: w.shout} {
			w.knockAs(t, wire, n)
			if w.reaches(t, w.f.stranger(n)) {
				t.Errorf("%d: a knock in frames to others opens", n)
			}
		}
		w.knockAs(t, w.wire, 3)
		if !w.reaches(t, w.f.stranger(3)) {
			t.Error("and a knock to this host does not")
		}
	})
}

// TestInterfaces: only the named interface is heard and guarded, one that comes
// later as well as one that was there.
func TestInterfaces(t *testing.T) {
	eachFamily(t, func(t *testing.T, w *realWorld) {
		w.serve(t, guardConfig(fmt.Sprintf("interfaces = [%q, \"late0\"]", w.hostLink), plain, ""))
		if w.reaches(t, w.f.stranger(1)) {
			t.Error("the named interface is not guarded")
		}
		link, late := testnet.Connect(w.client, w.host, nil, nil)
		beside := w.client.Wire(link, w.host.MAC(late))
		w.knockAs(t, beside, 1)
		if w.reaches(t, w.f.stranger(1)) {
			t.Error("a knock by an interface that is not named opens")
		}
		w.knockAs(t, w.wire, 1)
		if !w.reaches(t, w.f.stranger(1)) {
			t.Error("a knock by the named interface does not open")
		}
		w.host.Run("ip", "link", "set", late, "down")
		w.host.Run("ip", "link", "set", late, "name", "late0", "up")
		if !w.heard(t, beside, 2, time.Second) {
			t.Error("a second after it was there, knocks by a named interface do not count")
		}
	})
}

// heard knocks by a wire, again and again, until that opens.
func (w *realWorld) heard(t *testing.T, wire *testnet.Wire, n int, limit time.Duration) bool {
	t.Helper()
	for end := time.Now().Add(limit); time.Now().Before(end); {
		w.knockAs(t, wire, n)
		if w.reaches(t, w.f.stranger(n)) {
			return true
		}
	}
	return false
}

// An interface that is not named is not guarded either.
func TestAnInterfaceThatIsNotNamedIsPublic(t *testing.T) {
	eachFamily(t, func(t *testing.T, w *realWorld) {
		d := w.host.Serve(testnet.Binary(t), guardConfig(`interfaces = ["late0"]`, plain, ""))
		if !w.connects(t, w.f.stranger(1), w.f.place(""), 22) {
			t.Error("an interface that is not named is guarded")
		}
		w.host.Run("ip", "link", "set", w.hostLink, "down")
		w.host.Run("ip", "link", "set", w.hostLink, "name", "late0", "up")
		w.host.Address("late0", "192.0.2.20/24", "2001:db8::20/64") // IPv6 forgot its addresses
		to := netip.MustParseAddr(map[string]string{"ipv4": "192.0.2.20", "ipv6": "2001:db8::20"}[w.f.name])
		own := netip.MustParseAddr(map[string]string{"ipv4": "192.0.2.2", "ipv6": "2001:db8::2"}[w.f.name])
		if w.connects(t, own, to, 22) {
			t.Errorf("an interface is not guarded once it has the name\n%s", d.Log())
		}
	})
}

// TestQuiet: the knock's own ports answer strangers nothing, and everybody else
// as ever.
func TestQuiet(t *testing.T) {
	eachFamily(t, func(t *testing.T, w *realWorld) {
		dial := func(ns *testnet.Namespace, local, port uint16, to netip.Addr) error {
			d := net.Dialer{Timeout: time.Second, LocalAddr: &net.TCPAddr{Port: int(local)}}
			var err error
			ns.Do(func() {
				var c net.Conn
				if c, err = d.Dial("tcp", netip.AddrPortFrom(to, port).String()); err == nil {
					c.Close()
				}
			})
			return err
		}
		greetAt(t, w.client, 80)
		own := netip.MustParseAddr(map[string]string{"ipv4": "192.0.2.2", "ipv6": "2001:db8::2"}[w.f.name])
		for _, quiet := range []bool{false, true} {
			if quiet {
				w.reload(t, guardConfig("", plain, "quiet = true"))
			} else {
				w.serve(t, guardConfig("", plain, ""))
			}
			for _, port := range []uint16{7000, 7800} {
				err := dial(w.client, 0, port, w.f.place(""))
				if silent := !errors.Is(err, syscall.ECONNREFUSED); silent != quiet || err == nil {
					t.Errorf("quiet = %v: a stranger's connection to %d: %v", quiet, port, err)
				}
			}
			if err := dial(w.client, 0, 7400, w.f.place("")); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("quiet = %v: a stranger's connection to another closed port: %v", quiet, err)
			}
			if err := dial(w.host, 0, 7000, w.f.place("")); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("quiet = %v: the host's own connection to its port: %v", quiet, err)
			}
			if err := dial(w.host, 7000, 80, own); err != nil {
				t.Errorf("quiet = %v: the host's connection from a knock port to elsewhere: %v", quiet, err)
			}
		}
	})
}

// An IPv4 address and the IPv6 address that has it inside (RFC 4291, 2.5.5.2) are
// two sources.
func TestFamiliesDoNotMix(t *testing.T) {
	t.Parallel()
	four, six := ipFamilies[0], ipFamilies[1]
	w := newRealWorld(t, four)
	w.serve(t, guardConfig("", plain, ""))
	mapped := netip.AddrFrom16(four.stranger(1).As16())
	syn := func(src, dst netip.Addr, port uint16) []byte {
		return testnet.TCP(netip.AddrPortFrom(src, 30000+port%1000), netip.AddrPortFrom(dst, port), sequence.SYN, uint32(port))
	}
	w.wire.Send(t, syn(four.stranger(1), four.place(""), 7000))
	w.wire.Send(t, testnet.UDP(netip.AddrPortFrom(mapped, 9), netip.AddrPortFrom(six.place(""), 8500), nil))
	w.wire.Send(t, syn(four.stranger(1), four.place(""), 7800))
	if w.reaches(t, four.stranger(1)) {
		t.Error("a 4-in-6 packet made a step of an IPv4 source")
	}
}
