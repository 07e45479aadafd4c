package knockd_test

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/testnet"
)

// The pair of doors at 22, and one at 2222 that its stop command closes.
const nativeConfig = `[options]
UseSyslog
[openSSH]
sequence = 7000,8000,9000
seq_timeout = 5
command = /sbin/iptables -A INPUT -s %IP% -p tcp --dport 22 -j ACCEPT
tcpflags = syn
[closeSSH]
sequence = 9000,8000,7000
seq_timeout = 5
command = /sbin/iptables -D INPUT -s %IP% -p tcp --dport 22 -j ACCEPT
tcpflags = syn
[timed]
sequence = 12000,14000,13000
start_command = /sbin/iptables -I INPUT -s %IP% -p tcp --dport 2222 -j ACCEPT
start_command_6 = /sbin/ip6tables -I INPUT -s %IP% -p tcp --dport 2222 -j ACCEPT
cmd_timeout = 3
stop_command = /sbin/iptables -D INPUT -s %IP% -p tcp --dport 2222 -j ACCEPT
stop_command_6 = /sbin/ip6tables -D INPUT -s %IP% -p tcp --dport 2222 -j ACCEPT
tcpflags = syn
`

// hidden checks that both ports are out of reach.
func (w *world) hidden(when string) {
	w.t.Helper()
	for _, f := range families {
		for _, port := range []int{22, 2222} {
			if w.reaches(f, port) {
				w.t.Errorf("%s: %d is reached %s", f.name, port, when)
			}
		}
	}
}

// opensAndCloses goes through the pair's knocks.
func (w *world) opensAndCloses() {
	w.t.Helper()
	for _, f := range families {
		w.hit(f, "7000", "8000", "9000")
		w.awaitPort(f, 22, true)
		w.hit(f, "9000", "8000", "7000")
		w.awaitPort(f, 22, false)
	}
}

// endsByTime opens 2222, which is to be closed after its three seconds.
func (w *world) endsByTime(meanwhile func()) {
	w.t.Helper()
	began := time.Now()
	for _, f := range families {
		w.hit(f, "12000", "14000", "13000")
		w.awaitPort(f, 2222, true)
	}
	meanwhile()
	for _, f := range families {
		w.awaitPort(f, 2222, false)
		if d := time.Since(began); d < 3*time.Second || d > 15*time.Second {
			w.t.Errorf("%s: it was open for %v, want 3s", f.name, d)
		}
	}
}

// On a host without rules of its own the pairs become the kernel's: hidden, opened,
// closed by a knock and by time, also with no daemon alive.
func TestNative(t *testing.T) {
	w := newWorld(t)
	w.listen(22)
	w.listen(2222)
	for _, f := range families {
		w.awaitPort(f, 22, true)
	}
	d := w.serve("knockd.conf", nativeConfig, "--native", "-i", "WIRE")
	w.hidden("after the start")
	w.opensAndCloses()
	w.endsByTime(func() { d.ends(syscall.SIGKILL, -1) })
	w.hidden("with no daemon")
	if d.said("running command") != 0 || strings.Contains(w.server.Run("iptables", "-S"), "dport") {
		t.Errorf("a command ran:\n%s", d.out)
	}
	d = w.again("knockd.conf", "--native", "-i", "WIRE")
	w.opensAndCloses()
	d.ends(syscall.SIGTERM, 15)
	w.hidden("after a clean stop")
}

// Where the host's own chain drops the port, a grant would open nothing, so the
// door keeps its command and the log names the chain.
func TestNativeBehindAPolicyOfDrop(t *testing.T) {
	w := newWorld(t)
	w.listen(22)
	w.listen(2222)
	w.server.Run("iptables", "-P", "INPUT", "DROP")
	w.server.Run("ip6tables", "-P", "INPUT", "DROP")
	w.server.Run("ip6tables", "-A", "INPUT", "-p", "icmpv6", "-j", "ACCEPT") // neighbour discovery
	d := w.serve("knockd.conf", nativeConfig, "--native", "-i", "WIRE")
	for _, door := range []string{"openSSH", "closeSSH", "timed"} {
		d.await("a door keeps its commands, because a rule of this host would drop what the kernel opened door="+door, 1)
	}
	if table := w.server.Run("nft", "list", "table", "inet", "sallyport"); strings.Contains(table, "22") {
		t.Errorf("it hides a port that it can't open: %s", table)
	}
	v4 := families[0]
	w.hit(v4, "7000", "8000", "9000")
	w.awaitPort(v4, 22, true)
	w.hit(v4, "9000", "8000", "7000")
	w.awaitPort(v4, 22, false)
	for _, f := range families {
		w.hit(f, "12000", "14000", "13000")
		w.awaitPort(f, 2222, true)
		w.awaitPort(f, 2222, false)
	}
}

// What convert writes serves the same.
func TestConvertedServesTheSame(t *testing.T) {
	w := newWorld(t)
	w.listen(22)
	w.listen(2222)
	w.write("knockd.conf", nativeConfig)
	w.server.Run(testnet.Binary(t), "convert", "--out", w.dir+"/sallyport.toml", w.dir+"/knockd.conf")
	d := w.start("", testnet.Binary(t), "serve", "-c", "DIR/sallyport.toml")
	d.await("sallyport: serving", 1)
	w.hidden("after the start")
	w.opensAndCloses()
	w.endsByTime(func() {})
	d.ends(syscall.SIGTERM, 0)
	w.hidden("after a clean stop")
}
