package main

import (
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/testnet"
)

// world is a client and a server on one wire, and a copy of the program that
// any user may run.
type world struct {
	t              *testing.T
	client, server *testnet.Namespace
	clientWire     string
	serverWire     string
	program        string
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, client: testnet.New(t), server: testnet.New(t)}
	w.clientWire, w.serverWire = testnet.Connect(w.client, w.server,
		[]string{"192.0.2.1/24", "2001:db8::1/64"}, []string{"192.0.2.2/24", "2001:db8::2/64"})
	for _, f := range families { // a new wire's carrier may take a second to be noticed
		w.client.Run("ping", "-c1", "-w5", f.server)
	}
	// Not t.TempDir: what is above it is for its owner alone.
	dir, err := os.MkdirTemp("", "sallyport")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	w.program = filepath.Join(dir, "sallyport")
	self, err := os.ReadFile("/proc/self/exe")
	if err == nil {
		err = testnet.WriteProgram(w.program, self)
	}
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	return w
}

const nobody = 65534

// knock runs "sallyport knock" at the client as a user without any privilege,
// and gives what it said.
func (w *world) knock(stdin string, args ...string) (words string, err error) {
	var said strings.Builder
	cmd := exec.Command(w.program, append([]string{"knock"}, args...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &said, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	if err := w.client.Start(cmd); err != nil {
		w.t.Fatal(err)
	}
	err = cmd.Wait()
	return said.String(), err
}

// counter is one number of the server's network statistics.
func (w *world) counter(file, row, name string) int {
	w.t.Helper()
	text := w.server.Run("cat", "/proc/net/"+file)
	if file == "snmp6" {
		return atoi(w.t, regexp.MustCompile(`(?m)^` + name + `\s+(\d+)`).FindStringSubmatch(text)[1])
	}
	rows := regexp.MustCompile(`(?m)^`+row+`: (.*)$`).FindAllStringSubmatch(text, 2)
	values := strings.Fields(rows[1][1])
	for i, column := range strings.Fields(rows[0][1]) {
		if column == name {
			return atoi(w.t, values[i])
		}
	}
	w.t.Fatalf("no %s in %s", name, file)
	return 0
}

func atoi(t *testing.T, s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

var families = []struct{ name, server, file, row, echoes string }{
	{"ipv4", "192.0.2.2", "snmp", "Icmp", "InEchos"},
	{"ipv6", "2001:db8::2", "snmp6", "", "Icmp6InEchos"},
}

func TestKnockAsAnyUser(t *testing.T) {
	w := newWorld(t)
	for _, f := range families {
		var udp net.PacketConn
		var tcp net.Listener
		var err error
		w.server.Do(func() {
			if udp, err = net.ListenPacket("udp", net.JoinHostPort(f.server, "8500")); err == nil {
				tcp, err = net.Listen("tcp", net.JoinHostPort(f.server, "22"))
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		defer udp.Close()
		defer tcp.Close()
		words, err := w.knock("7000/tcp\n8500/udp\n", f.server, "-", "--then", "22")
		if err != nil || !regexp.MustCompile(`^sallyport: 22/tcp at `+f.server+` is open, after [0-9.]+m?s\n$`).MatchString(words) {
			t.Errorf("%s: %v, %q", f.name, err, words)
		}
		udp.SetDeadline(time.Now().Add(5 * time.Second))
		if _, _, err := udp.ReadFrom(make([]byte, 16)); err != nil {
			t.Errorf("%s: the datagram did not arrive: %v", f.name, err)
		}
	}
}

// A host with both families gets the knock in both, unless one is asked for. The
// name stands in a hosts file of its own, in a mount namespace.
func TestKnockAtANameInBothFamilies(t *testing.T) {
	w := newWorld(t)
	hosts := filepath.Join(t.TempDir(), "hosts")
	if err := os.WriteFile(hosts, []byte("192.0.2.2 server.example\n2001:db8::2 server.example\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		args   []string
		v4, v6 int // echo requests at the server
		want   string
	}{
		{nil, 1, 1, "to (192.0.2.2 and 2001:db8::2|2001:db8::2 and 192.0.2.2)"},
		{[]string{"-4"}, 1, 0, "to 192.0.2.2"},
		{[]string{"-6"}, 0, 1, "to 2001:db8::2"},
		{[]string{"--dry-run"}, 0, 0, "to (192.0.2.2 and 2001:db8::2|2001:db8::2 and 192.0.2.2)"},
	} {
		four, six := w.counter("snmp", "Icmp", "InEchos"), w.counter("snmp6", "", "Icmp6InEchos")
		cmd := exec.Command("unshare", append([]string{"-m", "sh", "-c", `mount --bind "$0" /etc/hosts && exec "$@"`, hosts, w.program, "knock", "server.example", "icmp"}, test.args...)...)
		var said strings.Builder
		cmd.Stdout, cmd.Stderr = &said, &said
		if err := w.client.Start(cmd); err != nil {
			t.Fatal(err)
		}
		err := cmd.Wait()
		if err != nil || !regexp.MustCompile(`^sallyport: (would send|sent) 1 step `+test.want+`\n$`).MatchString(said.String()) {
			t.Errorf("%v: %v, %q", test.args, err, said.String())
		}
		four, six = w.counter("snmp", "Icmp", "InEchos")-four, w.counter("snmp6", "", "Icmp6InEchos")-six
		if four != test.v4 || six != test.v6 {
			t.Errorf("%v: %d pings over IPv4 and %d over IPv6, want %d and %d", test.args, four, six, test.v4, test.v6)
		}
	}
}

func TestPingStepsAsAnyUser(t *testing.T) {
	w := newWorld(t)
	// A new namespace allows no group; say so all the same.
	w.client.Run("sysctl", "-qw", "net.ipv4.ping_group_range=1 0")
	for _, f := range families {
		words, err := w.knock("", f.server, "icmp", "7000/tcp")
		if err == nil || !strings.Contains(words, "ping_group_range") || !strings.Contains(words, "CAP_NET_RAW") {
			t.Errorf("%s: %v, %q; want the sysctl and the capability", f.name, err, words)
		}
	}
	w.client.Run("sysctl", "-qw", "net.ipv4.ping_group_range=0 2147483647")
	for _, f := range families {
		before := w.counter(f.file, f.row, f.echoes)
		words, err := w.knock("", f.server, "icmp", "37/icmp")
		if err != nil || words != "sallyport: sent 2 steps to "+f.server+"\n" {
			t.Errorf("%s: %v, %q", f.name, err, words)
		}
		if n := w.counter(f.file, f.row, f.echoes) - before; n != 2 {
			t.Errorf("%s: the server counted %d echo requests, want 2", f.name, n)
		}
	}
}

func TestKnockGivesUp(t *testing.T) {
	w := newWorld(t)
	for _, f := range families {
		words, err := w.knock("", f.server, "7000/tcp", "--then", "22/tcp", "--timeout", "150ms")
		if exit, ok := err.(*exec.ExitError); !ok || exit.ExitCode() != 1 {
			t.Errorf("%s: %v, want exit status 1", f.name, err)
		}
		if !strings.Contains(words, "did not open within ") || !strings.Contains(words, "last try: connection refused") {
			t.Errorf("%s: it said %q", f.name, words)
		}
	}
}

// Debian's knockd is the server here, with a command for IPv4.
func TestKnockdOpensToIt(t *testing.T) {
	w := newWorld(t)
	const rule = "INPUT -s %IP% -p tcp --dport 22 -j ACCEPT"
	w.server.Run("iptables", "-A", "INPUT", "-p", "tcp", "--dport", "22", "-j", "DROP")
	dir := t.TempDir()
	config := filepath.Join(dir, "knockd.conf")
	text := "[options]\n\tlogfile = " + filepath.Join(dir, "log") + "\n[open]\n\tsequence = 7000:tcp,8500:udp,7800:tcp\n" +
		"\tseq_timeout = 5\n\ttcpflags = syn\n\tcommand = /usr/sbin/iptables -I " + rule + "\n"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	// By its path: the tests' own knockd comes first in PATH.
	knockd := exec.Command("/usr/sbin/knockd", "-c", config, "-i", w.serverWire, "-p", filepath.Join(dir, "pid"))
	knockd.Stdout, knockd.Stderr = io.Discard, io.Discard
	if err := w.server.Start(knockd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { knockd.Process.Kill(); knockd.Wait() })
	for end := time.Now().Add(5 * time.Second); strings.Count(w.server.Run("cat", "/proc/net/packet"), "\n") < 2; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("knockd does not listen")
		}
	}
	var ssh net.Listener
	var err error
	w.server.Do(func() { ssh, err = net.Listen("tcp4", "192.0.2.2:22") })
	if err != nil {
		t.Fatal(err)
	}
	defer ssh.Close()
	words, err := w.knock("", "192.0.2.2", "7000/tcp", "7800/tcp", "8500/udp", "--then", "22", "--timeout", "500ms")
	if err == nil {
		t.Errorf("a knock in the wrong order opened the port: %s", words)
	}
	words, err = w.knock("", "192.0.2.2", "7000/tcp", "8500/udp", "7800/tcp", "--then", "22", "--timeout", "8s")
	if err != nil || !strings.Contains(words, "22/tcp at 192.0.2.2 is open, after") {
		t.Errorf("%v, %q", err, words)
	}
	t.Log(words)
}
