package main

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/internal/testnet"
)

// tap sees what reaches one end of a wire.
type tap struct{ fd int }

// tap listens at the server's end of its wire.
func (w *world) tap() *tap {
	w.t.Helper()
	tap := new(tap)
	var err error
	w.server.Do(func() { tap.fd, err = packetSocket(w.serverWire) })
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { unix.Close(tap.fd) })
	return tap
}

func packetSocket(device string) (int, error) {
	link, err := net.InterfaceByName(device)
	if err != nil {
		return -1, err
	}
	all := binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL})
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Index})
	}
	return fd, err
}

// arrival is a packet as a table spells it, "tcp 7000" (one SYN, or its flags are
// told) or "udp 8500", and where it came from.
type arrival struct {
	what string
	from netip.Addr
}

// drain gives what arrived since the last time. Wires keep the order, so a short
// silence is the end.
func (tap *tap) drain() (list []arrival) {
	b := make([]byte, 2048)
	for quiet := 0; quiet < 5; {
		n, from, err := unix.Recvfrom(tap.fd, b, 0)
		if err != nil {
			quiet++
			time.Sleep(2 * time.Millisecond)
			continue
		}
		if from.(*unix.SockaddrLinklayer).Pkttype != unix.PACKET_HOST {
			continue
		}
		if a, ok := parsePacket(b[:n]); ok {
			list = append(list, a)
			quiet = 0
		}
	}
	return list
}

func parsePacket(b []byte) (a arrival, ok bool) {
	proto, head := byte(0), 40
	switch {
	case len(b) >= 28 && b[0]>>4 == 4:
		proto, head = b[9], int(b[0]&15)*4
		a.from, _ = netip.AddrFromSlice(b[12:16])
		b = b[:min(len(b), int(binary.BigEndian.Uint16(b[2:])))]
	case len(b) >= 48 && b[0]>>4 == 6:
		proto = b[6]
		a.from, _ = netip.AddrFromSlice(b[8:24])
	}
	if proto != unix.IPPROTO_TCP && proto != unix.IPPROTO_UDP {
		return a, false
	}
	port := binary.BigEndian.Uint16(b[head+2:])
	if a.what = fmt.Sprintf("udp %d", port); proto == unix.IPPROTO_TCP {
		a.what = fmt.Sprintf("tcp %d", port)
		if flags := b[head+13]; flags != 2 {
			a.what += fmt.Sprintf(" flags %#x", flags)
		}
	}
	return a, true
}

func whats(list []arrival) (words []string) {
	for _, a := range list {
		words = append(words, a.what)
	}
	return words
}

// result is what a person or a script sees of a program that ran.
type result struct {
	status   int
	out, err string
	packets  []string
}

// byName runs the program of a path under the name knock as any user, in a mount
// namespace where the files of bound (from, to, from, to …) lie over others.
func (w *world) byName(tap *tap, path string, bound []string, args ...string) result {
	w.t.Helper()
	var out, bad strings.Builder
	cmd := exec.Command(path, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	if len(bound) > 0 {
		script := ""
		for i := 0; i < len(bound); i += 2 {
			script += "mount --bind '" + bound[i] + "' '" + bound[i+1] + "' && "
		}
		cmd = exec.Command("unshare", append([]string{"-m", "bash", "-c", script + `exec -a knock "$0" "$@"`, path}, args...)...)
	} else {
		cmd.Args[0] = "knock"
	}
	cmd.Stdout, cmd.Stderr = &out, &bad
	if err := w.client.Start(cmd); err != nil {
		w.t.Fatal(err)
	}
	timer := time.AfterFunc(20*time.Second, func() { cmd.Process.Kill() })
	cmd.Wait()
	timer.Stop()
	return result{cmd.ProcessState.ExitCode(), out.String(), bad.String(), whats(tap.drain())}
}

const original = "/usr/bin/knock"

func needOriginal(t *testing.T) {
	if _, err := os.Stat(original); err != nil {
		t.Skip("knock 0.8 is not installed here")
	}
}

// shape is a result without what may differ: the help is ours but for its first
// line, and so is the reason that stands below an error's first line.
func (r result) shape() string {
	first, _, _ := strings.Cut(r.err, "\n")
	out := r.out
	if strings.HasPrefix(out, "usage: ") || strings.HasPrefix(out, "knock 0.8") {
		out, _, _ = strings.Cut(out, "\n")
		out, _, _ = strings.Cut(out, " (sallyport")
	}
	return fmt.Sprintf("status %d\nout %s\nerr %s\npackets %q", r.status, out, first, r.packets)
}

// HOST is the server in the family under test.
var sameLines = [][]string{
	{"HOST", "7000"}, {"HOST", "7000", "8000", "9000"}, {"-v", "HOST", "7000", "8500:udp", "7800:tcp"},
	{"-v", "HOST", "7000", "7000", "7000"}, {"-v", "HOST", "8500:udp", "8500:udp"},
	{"-u", "HOST", "7000", "8000:tcp", "9000:udp", "-v"}, {"--udp", "HOST", "7000"}, {"HOST", "-vu", "7000", "--", "8000"},
	{"-v", "-d", "3", "HOST", "7000", "8000"}, {"-vd3", "HOST", "7000", "8000"}, {"--delay=3", "HOST", "7000"}, {"--del", "3", "HOST", "7000"},
	{"-v", "-d", " 4x", "HOST", "7000"}, {"-v", "-d", "abc", "HOST", "7000"}, {"-v", "-d", "", "HOST", "7000"}, {"-d", "-0", "HOST", "7000"},
	{"-d", "-5", "HOST", "7000"}, {"-d", "2", "-d", "-5", "HOST", "7000"}, {"-d", "-5", "-d", "2", "HOST", "7000"}, {"-d", "-5", "HOST"}, {"-d", "-5"},
	{"-v", "HOST", "ssh", "http", "domain:udp", "tftp:udp", "tftp", "ssh:udp"}, {"-v", "HOST", "07000", "+7001", " 7002", "65535", "1"},
	{"-v", "HOST", "7000:tcp"}, {"HOST", "nosuchservice"}, {"HOST", "7000x"}, {"HOST", "7000 "}, {"HOST", "-d", "1", "0x10"}, {"HOST", "--", "-3"},
	{"-4", "-v", "192.0.2.2", "7000"}, {"-6", "-v", "2001:db8::2", "7000"}, {"--ipv4", "192.0.2.2", "7000"}, {"--ipv6", "2001:db8::2", "7000"},
	{"-4", "2001:db8::2", "7000"}, {"-6", "192.0.2.2", "7000"},
	{"[HOST]", "7000"}, {"HOST:7000", "7000"}, {"", "7000"},
	nil, {"HOST"}, {"-"}, {"--"}, {"-h"}, {"--help"}, {"-h", "-V"}, {"-V"}, {"--version"}, {"-V", "-h"}, {"-uV"}, {"-V", "-x"}, {"--vers"},
	{"-x"}, {"-x", "-V"}, {"HOST", "7000", "-x"}, {"--zzz"}, {"--zzz=4", "HOST", "7000"}, {"--v", "HOST", "7000"}, {"--ver"}, {"--ipv"},
	{"--udp=1"}, {"--u=1"}, {"--delay"}, {"-d"}, {"-ud"}, {"-:"}, {"-W", "x"}, {"HOST", "7000", "--verb"},
}

// ours is the program under its second name, for any user.
func (w *world) ours() string {
	w.t.Helper()
	name := filepath.Join(filepath.Dir(w.program), "knock")
	if err := os.Symlink("sallyport", name); err != nil {
		w.t.Fatal(err)
	}
	return name
}

// forFamily puts an address in the place of HOST.
func forFamily(line []string, address string) []string {
	args := slices.Clone(line)
	for i := range args {
		args[i] = strings.ReplaceAll(args[i], "HOST", address)
	}
	return args
}

func TestTheNameKnockIsTheOriginal(t *testing.T) {
	needOriginal(t)
	w := newWorld(t)
	tap, ours, packets := w.tap(), w.ours(), 0
	for _, f := range families {
		for _, line := range sameLines {
			args := forFamily(line, f.server)
			theirs, got := w.byName(tap, original, nil, args...), w.byName(tap, ours, nil, args...)
			if packets += len(theirs.packets); theirs.shape() != got.shape() {
				t.Errorf("knock %q\n--- the original\n%s\n--- ours\n%s", args, theirs.shape(), got.shape())
			}
		}
	}
	if packets < 80 {
		t.Errorf("%d packets in all: the tap is deaf", packets)
	}
}

// Where we differ on purpose: what the original does there, and what we do.
var otherLines = []struct {
	line         []string
	theirs, ours int // exit statuses
	theirPackets []string
	ourPackets   []string
	says         string // ours, on standard error
}{
	// An unknown protocol is TCP all the same, but not in silence.
	{[]string{"HOST", "7000:icmp", "8500:UDP", "7800:udp:x"}, 0, 0,
		[]string{"tcp 7000", "tcp 8500", "tcp 7800"}, []string{"tcp 7000", "tcp 8500", "tcp 7800"},
		`^knock: "7000:icmp" names the protocol "icmp", which is neither tcp nor udp: it is sent as tcp\nknock: "8500:UDP" .*\nknock: "7800:udp:x" .*\n$`},
	// A wrong port is an error before anything is sent.
	{[]string{"HOST", "7000", "70000"}, 0, 1, []string{"tcp 7000", "tcp 4464"}, nil,
		`^Failed to resolve hostname 'HOST' on port 70000\nknock: "70000" is no port: give a number from 1 to 65535`},
	{[]string{"HOST", "7000", "nosuchservice"}, 1, 1, []string{"tcp 7000"}, nil,
		`^Failed to resolve hostname 'HOST' on port nosuchservice\nknock: "nosuchservice" is no service's name in /etc/services`},
	{[]string{"HOST", "0"}, 0, 1, []string{"tcp 0"}, nil, `"0" is no port`},
	{[]string{"HOST", ":udp"}, 0, 1, nil, nil, `"" is no port`},
	// Of two families the original takes the last.
	{[]string{"-4", "-6", "2001:db8::2", "7000"}, 0, 1, []string{"tcp 7000"}, nil, `^knock: -4 asks for IPv4 and -6 for IPv6: leave one out\n$`},
	// A pause out of range: what atoi(3) makes of it is 3 ms.
	{[]string{"-d", "4294967299", "HOST", "7000"}, 0, 1, []string{"tcp 7000"}, nil, `^error: delay is out of range: give 0 to 2147483647 milliseconds\n$`},
	{[]string{"-d", "99999999999999999999", "HOST", "7000"}, 1, 1, nil, nil, `^error: delay is out of range`},
	// What could not be sent is told, and fails.
	{[]string{"203.0.113.1", "7000"}, 0, 1, nil, nil, `^knock: no route to 203.0.113.1: network is unreachable\n$`},
	{[]string{"2001:db8:9::1", "7000"}, 0, 1, nil, nil, `^knock: no route to 2001:db8:9::1: network is unreachable\n$`},
	{[]string{"fe80::1", "7000"}, 0, 1, nil, nil, `^knock: fe80::1 is different on every link: add the interface, as in fe80::1%eth0\n$`},
	{[]string{"192.0.2.255", "7000"}, 0, 1, nil, nil, `^knock: hit 1 of 1 could not be sent to 192.0.2.255, and the rest was not tried: `},
	// Addresses are written out.
	{[]string{"127.1", "7000"}, 0, 1, nil, nil, `^Failed to resolve hostname '127.1' on port 7000\nknock: `},
	{[]string{"0x7f.1", "7000"}, 0, 1, nil, nil, `^Failed to resolve hostname '0x7f.1' on port 7000\nknock: `},
	{[]string{"0.0.0.0", "7000"}, 0, 1, nil, nil, `^knock: 0.0.0.0 is no address that a knock can be sent to`},
	// A service's name may be in capitals.
	{[]string{"HOST", "HTTP"}, 1, 0, nil, []string{"tcp 80"}, `^$`},
	// Options of ours.
	{[]string{"-i", "nosuch0", "HOST", "7000"}, 1, 1, nil, nil, `^knock: there is no network interface "nosuch0" on this host`},
	{[]string{"--source", "eth0", "HOST", "7000"}, 1, 1, nil, nil, `^knock: --source "eth0": give one IP address`},
	{[]string{"--source", "10.9.9.9", "192.0.2.2", "7000"}, 1, 1, nil, nil,
		`^knock: hit 1 of 1 could not be sent to 192.0.2.2, and the rest was not tried: 10.9.9.9 is no address of this host: `},
	{[]string{"--source", "192.0.2.1", "2001:db8::2", "7000"}, 1, 1, nil, nil, `^knock: --source 192.0.2.1 cannot reach 2001:db8::2`},
	{[]string{"--source", "192.0.2.1", "-6", "server.example", "7000"}, 1, 1, nil, nil, `^knock: --source 192.0.2.1 is an IPv4 address, but -6 asks for IPv6`},
}

func TestWhereTheNameKnockDiffers(t *testing.T) {
	needOriginal(t)
	w := newWorld(t)
	tap, ours := w.tap(), w.ours()
	for _, f := range families {
		for _, test := range otherLines {
			args := forFamily(test.line, f.server)
			theirs, got := w.byName(tap, original, nil, args...), w.byName(tap, ours, nil, args...)
			if theirs.status != test.theirs || !slices.Equal(theirs.packets, test.theirPackets) {
				t.Errorf("knock %q: the original's status is %d, and it sent %q", args, theirs.status, theirs.packets)
			}
			if got.status != test.ours || !slices.Equal(got.packets, test.ourPackets) {
				t.Errorf("knock %q: status %d, sent %q", args, got.status, got.packets)
			}
			if says := strings.ReplaceAll(test.says, "HOST", f.server); !regexp.MustCompile(says).MatchString(got.err) {
				t.Errorf("knock %q said %q, want %q", args, got.err, says)
			}
		}
	}
}

// turningDNS answers each question with the next of two addresses, as the name
// servers of hosts with several do.
func (w *world) turningDNS() {
	var conn net.PacketConn
	var err error
	w.client.Do(func() { conn, err = net.ListenPacket("udp", "127.0.0.1:53") })
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { conn.Close() })
	go func() {
		turn := byte(0)
		b := make([]byte, 512)
		for {
			n, from, err := conn.ReadFrom(b)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(b[:n]) != nil || len(m.Questions) != 1 {
				continue
			}
			m.Response, m.Additionals = true, nil
			if q := m.Questions[0]; q.Type == dnsmessage.TypeA {
				m.Answers = []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class},
					Body: &dnsmessage.AResource{A: [4]byte{192, 0, 2, 2 + turn%2}}}}
				turn++
			}
			if answer, err := m.Pack(); err == nil {
				conn.WriteTo(answer, from)
			}
		}
	}()
}

func TestOneAddressForTheWholeSequence(t *testing.T) {
	needOriginal(t)
	w := newWorld(t)
	w.server.Run("ip", "addr", "add", "192.0.2.3/24", "dev", w.serverWire)
	w.turningDNS()
	resolv := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(resolv, []byte("nameserver 127.0.0.1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	tap, ours := w.tap(), w.ours()
	for _, test := range []struct {
		path string
		want int // addresses
	}{{original, 2}, {ours, 1}} {
		got := w.byName(tap, test.path, []string{resolv, "/etc/resolv.conf"}, "-v", "-4", "server.example", "7000", "8000", "9000", "7500")
		hit := map[string]bool{}
		for _, m := range regexp.MustCompile(`hitting tcp (\S+):\d+\n`).FindAllStringSubmatch(got.out, -1) {
			hit[m[1]] = true
		}
		if got.status != 0 || len(got.packets) != 4 || len(hit) != test.want {
			t.Errorf("%s knocked at %d addresses, want %d: %+v", test.path, len(hit), test.want, got)
		}
	}
}

// The kernel repeats a SYN that nobody answers after 1, 2 and 4 s (RFC 6298);
// closing the socket at once is what keeps it from that, and not the end of the
// program, which pauses after each hit.
func TestATCPHitIsOneSYN(t *testing.T) {
	needOriginal(t)
	w := newWorld(t)
	w.server.Input("table inet shut { chain in { type filter hook input priority 0; tcp dport 7000 drop; }; }\n", "nft", "-f", "-")
	tap, ours := w.tap(), w.ours()
	var all sync.WaitGroup
	for _, f := range families {
		for _, path := range []string{original, ours} {
			all.Go(func() { w.byNameQuietly(path, "-d", "5000", f.server, "7000") })
		}
	}
	all.Wait()
	if got := whats(tap.drain()); !slices.Equal(got, []string{"tcp 7000", "tcp 7000", "tcp 7000", "tcp 7000"}) {
		t.Errorf("four hits were %q", got)
	}
}

// byNameQuietly leaves what arrives in the tap.
func (w *world) byNameQuietly(path string, args ...string) {
	w.t.Helper()
	if out, err := w.client.Output(path, args...); err != nil {
		w.t.Errorf("%s %q: %v %s", path, args, err, out)
	}
}

// secondWire lays another way to the server, which the routing table does not
// prefer, and gives the names of its ends.
func (w *world) secondWire() (clientWire, serverWire string) {
	w.t.Helper()
	clientWire, serverWire = testnet.Connect(w.client, w.server,
		[]string{"198.51.100.1/24", "2001:db8:2::1/64"}, []string{"198.51.100.2/24", "2001:db8:2::2/64"})
	for _, r := range [][]string{{"192.0.2.0/24", "198.51.100.2"}, {"2001:db8::/64", "2001:db8:2::2"}} {
		w.client.Run("ip", "route", "add", r[0], "via", r[1], "dev", clientWire, "metric", "5000")
		w.client.Run("ping", "-c1", "-w5", r[1])
	}
	return clientWire, serverWire
}

// knockd runs the original daemon on an interface, and gives its log so far.
func (w *world) knockd(device, doors string) (log func() string) {
	w.t.Helper()
	dir := w.t.TempDir()
	config, file := filepath.Join(dir, "knockd.conf"), filepath.Join(dir, "log")
	if err := os.WriteFile(config, []byte("[options]\n\tlogfile = "+file+"\n"+doors), 0o600); err != nil {
		w.t.Fatal(err)
	}
	cmd := exec.Command("/usr/sbin/knockd", "-c", config, "-i", device, "-p", filepath.Join(dir, "pid"))
	if err := w.server.Start(cmd); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	// Its socket is there before its filter is, so the log tells.
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if text, _ := os.ReadFile(file); strings.Contains(string(text), "starting up") {
			break
		}
		if time.Now().After(end) {
			w.t.Fatal("knockd does not listen")
		}
	}
	return func() string {
		text, err := os.ReadFile(file)
		if err != nil {
			w.t.Fatal(err)
		}
		return string(text)
	}
}

// opened waits until the log says that a door opened once more than before.
func opened(t *testing.T, log func() string, line string, before int) bool {
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if strings.Count(log(), line) > before {
			return true
		}
	}
	return false
}

func TestTheOriginalDaemonOpensToTheNameKnock(t *testing.T) {
	w := newWorld(t)
	clientWire, _ := w.secondWire()
	w.client.Run("ip", "addr", "add", "192.0.2.11/24", "dev", w.clientWire)
	w.client.Run("ip", "addr", "add", "2001:db8::11/64", "dev", w.clientWire, "nodad", "preferred_lft", "0")
	w.client.Run("ip", "addr", "add", "fe80::11/64", "dev", w.clientWire, "nodad")
	w.server.Run("ip", "addr", "add", "fe80::22/64", "dev", w.serverWire, "nodad")
	ours := w.ours()
	w.byNameQuietly(ours, "fe80::22%"+w.clientWire, "9") // the neighbour is found
	log := w.knockd(w.serverWire, `
[tcp]
	sequence = 7000,8000,9000
	tcpflags = syn
[mixed]
	sequence = 7001:udp,8001:tcp,9001:udp
	tcpflags = syn
[udp]
	sequence = 7002:udp,7002:udp,9002:udp
`)
	for _, test := range []struct {
		door string
		args []string
		from map[string]string // by family; empty: the usual one
	}{
		{"tcp", []string{"HOST", "7000", "8000", "9000"}, nil},
		{"tcp", []string{"-d", "30", "HOST", "7000", "8000", "9000"}, nil},
		{"mixed", []string{"HOST", "7001:udp", "8001:tcp", "9001:udp"}, nil},
		{"udp", []string{"-u", "HOST", "7002", "7002", "9002"}, nil},
		{"mixed", []string{"--source", "SOURCE", "HOST", "7001:udp", "8001", "9001:udp"}, map[string]string{"ipv4": "192.0.2.11", "ipv6": "2001:db8::11"}},
		{"tcp", []string{"-i", w.clientWire, "HOST", "7000", "8000", "9000"}, nil},
		{"mixed", []string{"-i" + w.clientWire, "--source=SOURCE", "HOST", "7001:udp", "8001", "9001:udp"}, map[string]string{"ipv4": "192.0.2.11", "ipv6": "2001:db8::11"}},
	} {
		for _, f := range families {
			from := map[string]string{"ipv4": "192.0.2.1", "ipv6": "2001:db8::1"}[f.name]
			if test.from != nil {
				from = test.from[f.name]
			}
			w.opensAs(ours, log, test.door, from, forFamily(test.args, f.server))
		}
	}
	for _, args := range [][]string{{"fe80::22%" + w.clientWire}, {"-i", w.clientWire, "fe80::22"}, {"--source", "fe80::11", "fe80::22%" + w.clientWire}} {
		from := w.linkLocal()
		if len(args) == 3 && args[0] == "--source" {
			from = "fe80::11"
		}
		w.opensAs(ours, log, "mixed", from, append(args, "7001:udp", "8001", "9001:udp"))
	}
	// Over the other wire it does not arrive where knockd listens.
	for _, f := range families {
		before := log()
		w.byNameQuietly(ours, "-i", clientWire, f.server, "7000", "8000", "9000")
		time.Sleep(100 * time.Millisecond)
		if after := log(); after != before {
			t.Errorf("%s: -i %s, and knockd saw %q", f.name, clientWire, strings.TrimPrefix(after, before))
		}
	}
}

// opensAs knocks and waits for knockd's line about the door.
func (w *world) opensAs(program string, log func() string, door, from string, args []string) {
	w.t.Helper()
	for i := range args {
		args[i] = strings.ReplaceAll(args[i], "SOURCE", from)
	}
	line := from + ": " + door + ": OPEN SESAME"
	before := strings.Count(log(), line)
	w.byNameQuietly(program, args...)
	if !opened(w.t, log, line, before) {
		w.t.Errorf("knock %q: no line %q in knockd's log:\n%s", args, line, log())
	}
}

// linkLocal is the address that the kernel takes for a link-local peer.
func (w *world) linkLocal() string {
	w.t.Helper()
	m := regexp.MustCompile(`src (\S+)`).FindStringSubmatch(w.client.Run("ip", "-6", "route", "get", "fe80::22", "dev", w.clientWire))
	if m == nil {
		w.t.Fatal("no way to fe80::22")
	}
	return m[1]
}

// Both commands take the way out, for the knock and for what follows it.
func TestKnockBySourceAndInterface(t *testing.T) {
	w := newWorld(t)
	clientWire, serverWire := w.secondWire()
	first := w.tap()
	w.serverWire = serverWire
	second := w.tap()
	for _, f := range families {
		for _, port := range []string{"22", "443"} {
			var l net.Listener
			var err error
			w.server.Do(func() { l, err = net.Listen("tcp", net.JoinHostPort(f.server, port)) })
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
		}
		from := map[string]string{"ipv4": "198.51.100.1", "ipv6": "2001:db8:2::1"}[f.name]
		for _, args := range [][]string{{"-i", clientWire}, {"--interface=" + clientWire, "--source", from}} {
			words, err := w.knock("", append([]string{f.server, "7000/tcp", "8500/udp", "--then", "22"}, args...)...)
			arrived := second.drain()
			for _, a := range arrived {
				if a.from.String() != from {
					t.Errorf("%q: %s came from %s", args, a.what, a.from)
				}
			}
			if got := whats(arrived); err != nil || len(got) < 3 || !slices.Equal(got[:3], []string{"tcp 7000", "udp 8500", "tcp 22"}) {
				t.Errorf("%q: %v %s, and %q came over the second wire", args, err, words, got)
			}
		}
		words, err := w.knock("", f.server, "7000/tcp", "-i", clientWire, "--dry-run", "-v")
		if want := "to " + f.server + " from " + from + " through " + clientWire + ":\n"; err != nil || !strings.Contains(words, want) {
			t.Errorf("a dry run: %v %s, want %q", err, words, want)
		}
	}
	if got := first.drain(); len(got) != 0 {
		t.Errorf("over the first wire came %v", got)
	}
}
