//go:build linux

package integration_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/sallyport/sallyport/internal/spa"
	"github.com/sallyport/sallyport/internal/testnet"
)

// The attack on a hidden sshd: so many connection attempts, from so many
// threads at once, half of them of each family.
const (
	attempts  = 10_000
	attackers = 100
	junk      = 4_000 // datagrams to the ports of the SPA knocks
)

// TestAHiddenSSHDHearsNothing: a stranger scans, tries to connect ten thousand
// times and sends junk to the knocks; sshd writes not one line, and the scans
// say what they say of a host on which neither sshd nor Sallyport runs.
func TestAHiddenSSHDHearsNothing(t *testing.T) {
	t.Parallel()
	w := newSSHWorld(t)
	w.listen(80) // so that the scans find something
	w.key("laptop", "-t", "ed25519")
	w.enrol("home", "classic", "/root/.ssh/laptop")
	without := w.scans(t)
	if !strings.Contains(without, "80/tcp") {
		t.Fatalf("the scans find nothing:\n%s", without)
	}
	w.startSSHD()
	w.exposed(t, without)
	w.guard("30s")
	before := w.calmLog()
	if diff := cmp.Diff(without, w.scans(t)); diff != "" {
		t.Errorf("a scan differs without (-) and with (+) sshd and Sallyport:\n%s", diff)
	}
	refused := w.attack(t)
	t.Logf("%d of %d attempts were refused", refused, attempts)
	if refused != attempts {
		t.Errorf("%d attempts were refused, not %d", refused, attempts)
	}
	if after := w.calmLog(); after != before {
		t.Errorf("sshd heard of it:\n%.2000s", strings.TrimPrefix(after, before))
	}
	if left := w.house.grants(); len(left) > 0 {
		t.Errorf("the attack opened %v", left)
	}
	for _, p := range paths { // and the world is not just broken
		if out := w.run("ssh", p.by("home"), "echo inside"); out != "inside\n" {
			t.Errorf("%s: the user reads %q", p.name, out)
		}
	}
	if w.calmLog() == before {
		t.Error("sshd says nothing of the user either: its log shows nothing")
	}
}

// exposed checks that this test sees an sshd which is not hidden.
func (w *sshWorld) exposed(t *testing.T, without string) {
	t.Helper()
	before := w.calmLog()
	if w.scans(t) == without {
		t.Fatal("the scans do not see an sshd that is not hidden")
	}
	if w.calmLog() == before {
		t.Fatal("sshd says nothing of scans though it is not hidden")
	}
}

// scans are what nmap says from the stranger's machine, but for times.
func (w *sshWorld) scans(t *testing.T) string {
	t.Helper()
	knocks := fmt.Sprintf("22,80,7000,7800,8500,%d-%d", classicPort-1, quantumPort+1)
	var all strings.Builder
	for _, p := range strangerPaths {
		for _, scan := range [][]string{
			{"-sS", "--top-ports", "1000"}, {"-sT", "--top-ports", "200"}, {"-sU", "--top-ports", "100"},
			{"-sS", "-p", knocks}, {"-sT", "-p", knocks}, {"-sU", "-p", knocks},
			// Odd flags, for a host that answers segments of no connection.
			{"-sA", "-p", knocks}, {"-sF", "-p", knocks}, {"-sW", "-p", knocks},
		} {
			args := append([]string{"-n", "-Pn", "-T4", "--reason"}, scan...)
			if p.server.Is6() {
				args = append(args, "-6")
			}
			fmt.Fprintf(&all, "%s %s\n", p.name, strings.Join(scan, " "))
			for line := range strings.Lines(w.stranger.Run("nmap", append(args, p.server.String())...)) {
				if !slices.ContainsFunc([]string{"Starting", "Host is up", "Nmap done"}, func(s string) bool { return strings.HasPrefix(line, s) }) {
					all.WriteString(line)
				}
			}
		}
	}
	return all.String()
}

// attack tries to connect, while a scan and junk come from the same machine.
// It gives how many attempts were refused.
func (w *sshWorld) attack(t *testing.T) int64 {
	t.Helper()
	var refused atomic.Int64
	var all sync.WaitGroup
	for i := range attackers {
		p := strangerPaths[i%2]
		all.Go(func() { w.stranger.Do(func() { refused.Add(connectOften(t, p, attempts/attackers)) }) })
	}
	for i, p := range strangerPaths {
		all.Go(func() { w.stranger.Do(func() { sendJunk(t, p, uint64(i)) }) })
		args := []string{"-n", "-Pn", "-sS", "-T5", "--max-retries", "0", "-p-", p.server.String()}
		if p.server.Is6() {
			args = append(args, "-6")
		}
		all.Go(func() { w.stranger.Run("nmap", args...) })
	}
	all.Wait()
	return refused.Load()
}

func connectOften(t *testing.T, p path, times int) (refused int64) {
	d := net.Dialer{Timeout: 10 * time.Second}
	for range times {
		c, err := d.Dial("tcp", netip.AddrPortFrom(p.server, 22).String())
		switch {
		case err == nil:
			c.Close()
		case errors.Is(err, syscall.ECONNREFUSED):
			refused++
		default: // one that waits for nothing is failure enough
			t.Logf("%s: %v", p.name, err)
			return refused
		}
	}
	return refused
}

// sendJunk sends random bytes, most of them of a length that a knock has.
func sendJunk(t *testing.T, p path, seed uint64) {
	r := rand.NewChaCha8([32]byte{byte(seed)})
	b := make([]byte, 1372)
	for _, port := range []uint16{classicPort, quantumPort} {
		c, err := net.Dial("udp", netip.AddrPortFrom(p.server, port).String())
		if err != nil {
			t.Error(err)
			return
		}
		for i := range junk / 4 {
			r.Read(b)
			// The kernel tells of the last datagram's unreachable port.
			c.Write(b[:[]int{448, 832, 1372, int(r.Uint64() % 1373)}[i%4]])
		}
		c.Close()
	}
}

// TestPromise3AnSPAKnockIsNotAnswered: what comes back to those who knock by
// SPA, rightly and wrongly, over each transport, is the same packets, byte for
// byte, as from a host without the program. With quiet only pings are answered.
func TestPromise3AnSPAKnockIsNotAnswered(t *testing.T) {
	t.Parallel()
	for _, f := range ipFamilies {
		for _, suite := range []spa.Suite{spa.Classic, spa.PostQuantum} {
			for _, quiet := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/suite %v/quiet %v", f.name, suite, quiet), func(t *testing.T) {
					t.Parallel()
					knockersAnswers(t, f, suite, quiet)
				})
			}
		}
	}
}

func knockersAnswers(t *testing.T, f family, suite spa.Suite, quiet bool) {
	h := &keyHouse{house: &house{t: t}, dir: t.TempDir()}
	var err error
	if h.server, err = spa.NewServerKey(suite); err != nil {
		t.Fatal(err)
	}
	h.put("server.key", spa.FormatKeyFile([]spa.FileKey{{Key: h.server}}))
	h.put("authorized_keys", newUser(1).line("known"))
	// The daemon comes first: what was sealed before its first start is too old.
	w, bare := newRealWorld(t, f), newRealWorld(t, f)
	answerAll(w.host)
	answerAll(bare.host)
	w.serve(t, h.config("")+"transports = [\"udp\", \"icmp\", \"tcp\"]\n"+fmt.Sprintf("quiet = %v\n", quiet)+witnessConfig)
	probes := spaProbes(t, f, h.server.Address())
	with, without := w.answers(t, probes), bare.answers(t, probes)
	if len(without) != len(probes) {
		t.Errorf("%d probes, %d answers: the probes are not what they should be", len(probes), len(without))
	}
	if quiet {
		without = slices.DeleteFunc(without, func(answer string) bool { return !echoReply(f, answer) })
	}
	if diff := cmp.Diff(without, with); diff != "" {
		t.Errorf("without (-) and with (+):\n%s", diff)
	}
	for i, transport := range []string{"udp", "icmp", "tcp"} {
		if !w.reaches(t, f.stranger(1+i)) {
			t.Errorf("the probes have a knock over %s in them, and it did not open\n%s", transport, w.daemon.Log())
		}
	}
	if got := len(w.grants(t)); got != 3 {
		t.Errorf("%d grants, want those of the three knocks", got)
	}
}

// echoReply reports whether an answer as realWorld.answer writes it is one.
func echoReply(f family, answer string) bool {
	if f.name == "ipv4" {
		return answer[2*9:2*10] == "01" && answer[2*20:2*21] == "00"
	}
	return answer[2*6:2*7] == "3a" && answer[2*40:2*41] == "81"
}

// spaProbes are a good knock over each transport, in three copies as a client
// sends them, from the strangers 1 to 3; and from others knocks by a key that
// is not known, with a gate or a seal that is wrong, and junk.
func spaProbes(t *testing.T, f family, to *spa.Address) (probes [][]byte) {
	t.Helper()
	fresh := uint32(0)
	add := func(n, transport int, datagram []byte) {
		for range 3 {
			fresh++
			from, host := f.stranger(n), f.place("")
			source := netip.AddrPortFrom(from, uint16(20000+fresh))
			switch transport {
			case 0:
				probes = append(probes, testnet.UDP(source, netip.AddrPortFrom(host, spaPort), datagram, testnet.ID(uint16(fresh))))
			case 1:
				probes = append(probes, carry(testnet.Echo(from, host, uint16(fresh), 1, 0), datagram))
			case 2:
				probes = append(probes, carry(testnet.TCP(source, netip.AddrPortFrom(host, spaPort), sequence.SYN, fresh<<16), datagram))
			}
		}
	}
	for transport := range 3 {
		good := sealed(t, to, newUser(1))
		add(1+transport, transport, good)
		add(10, transport, sealed(t, to, newUser(2)))
		for _, at := range []int{0, 8, 16, len(good) - 1} { // the gates, the seal's key, the sealed
			bad := sealed(t, to, newUser(1))
			bad[at] ^= 1
			add(11, transport, bad)
		}
		r := rand.NewChaCha8([32]byte{})
		for _, size := range []int{0, 1, 447, 448, 449, 832, 1372} {
			b := make([]byte, size)
			r.Read(b)
			add(12, transport, b)
		}
	}
	return probes
}

// sealed is a request to open for whoever sends it.
func sealed(t *testing.T, to *spa.Address, u user) []byte {
	t.Helper()
	b, err := spa.Seal(to, &spa.Request{Stamp: time.Now().UnixNano(), Action: spa.Open}, u)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestPromise3TheWireAfterARealKnock: tcpdump at the client sees what comes
// back from the server when the real client knocks, over each transport. It is
// the same with the daemon and without.
func TestPromise3TheWireAfterARealKnock(t *testing.T) {
	t.Parallel()
	w := newSSHWorld(t)
	w.key("laptop", "-t", "ed25519")
	for _, suite := range []string{"classic", "quantum"} {
		w.enrol(suite, suite, "/root/.ssh/laptop")
	}
	without := w.wireOfKnocks(t, false)
	w.guard("30s")
	if diff := cmp.Diff(without, w.wireOfKnocks(t, true)); diff != "" {
		t.Errorf("without (-) and with (+):\n%s", diff)
	}
	t.Logf("%d answers, all of the kernel's", len(without))
}

// wireOfKnocks knocks by each suite, family and transport, and gives what tcpdump saw
// come in at the client each time.
func (w *sshWorld) wireOfKnocks(t *testing.T, opens bool) (all []string) {
	t.Helper()
	for _, suite := range []string{"classic", "quantum"} {
		for _, p := range paths {
			for _, over := range []string{"udp", "icmp", "tcp"} {
				lines := w.sniff(t, func() { w.run("sallyport", "knock", p.by(suite), "--over", over) })
				if len(lines) != 3 {
					t.Errorf("%s %s over %s: three copies, and %d answers of the kernel's: %v", suite, p.name, over, len(lines), lines)
				}
				all = append(all, lines...)
				if opens {
					w.eventually("the knock opens", func() bool { return len(w.house.grants()) == 1 })
					w.must("close", "ssh", p.client.String())
				}
			}
		}
	}
	return all
}

// drawn is what the client's kernel draws or counts by itself.
var drawn = regexp.MustCompile(`(\b(?:id|seq|ack) )\d+|(> \S+\.)\d+(: Flags)`)

// incoming leaves out neighbours that ask for each other and for groups (RFC
// 4861, RFC 3810): these come when the kernel likes.
const incoming = "(ip and not igmp) or (ip6 and ip6[6] != 0 and not (icmp6 and ip6[40] >= 130))"

// sniff gives what tcpdump at the client saw come in while f ran, and until
// nothing came for a quarter second.
func (w *sshWorld) sniff(t *testing.T, f func()) (lines []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	dump := filepath.Join(t.TempDir(), "dump")
	file, err := os.Create(dump)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	cmd := exec.CommandContext(ctx, "tcpdump", "-n", "-t", "-l", "-i", w.clientWire, "-Q", "in", "--immediate-mode", incoming)
	cmd.Stdout, cmd.Stderr = file, file
	if err := w.client.Start(cmd); err != nil {
		t.Fatal(err)
	}
	read := func() string { text, _ := os.ReadFile(dump); return string(text) }
	w.eventually("tcpdump listens", func() bool { return strings.Contains(read(), "snapshot length") })
	f()
	for last := ""; last != read(); time.Sleep(250 * time.Millisecond) {
		last = read()
	}
	cmd.Process.Signal(os.Interrupt)
	cmd.Wait()
	for line := range strings.Lines(read()) {
		if strings.HasPrefix(line, "IP") {
			lines = append(lines, drawn.ReplaceAllString(strings.TrimSpace(line), "${1}${2}N${3}"))
		}
	}
	return lines
}
