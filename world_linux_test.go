package sallyport_test

import (
	"bufio"
	"net/netip"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/testnet"
)

// world is a client and a server on one wire. The client has a second address
// of each family, so that "one local address" can be got wrong.
type world struct {
	t                      *testing.T
	client, server         *testnet.Namespace
	clientWire, serverWire string
	remote, local, other   netip.Addr // of the family under test
}

// onBothFamilies runs test in a world of its own for IPv4 and for IPv6.
func onBothFamilies(t *testing.T, test func(t *testing.T, w *world)) {
	t.Parallel()
	for _, family := range []struct{ name, remote, local, other string }{
		{"ipv4", "192.0.2.2", "192.0.2.1", "192.0.2.11"},
		{"ipv6", "2001:db8::2", "2001:db8::1", "2001:db8::11"},
	} {
		t.Run(family.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.remote, w.local, w.other = netip.MustParseAddr(family.remote), netip.MustParseAddr(family.local), netip.MustParseAddr(family.other)
			test(t, w)
		})
	}
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, client: testnet.New(t), server: testnet.New(t)}
	// A preferred lifetime of 0 keeps the second IPv6 address from being chosen.
	w.clientWire, w.serverWire = testnet.Connect(w.client, w.server,
		[]string{"192.0.2.1/24", "192.0.2.11/24", "2001:db8::1/64"}, []string{"192.0.2.2/24", "2001:db8::2/64"})
	w.client.Run("ip", "addr", "add", "2001:db8::11/64", "dev", w.clientWire, "nodad", "preferred_lft", "0")
	// A new wire's carrier may take a second to be noticed (IPv6 waits for it).
	for _, addr := range []string{"192.0.2.2", "2001:db8::2"} {
		w.client.Run("ping", "-c1", "-w5", addr)
	}
	return w
}

// shut drops what the rule says at the server, such as "tcp dport 22".
func (w *world) shut(rule string) {
	w.server.Input("table inet shut { chain in { type filter hook input priority 0; "+rule+" drop; }; }\n", "nft", "-f", "-")
}

// open undoes shut.
func (w *world) open() { w.server.Run("nft", "delete", "table", "inet", "shut") }

// frame is one packet that reached the server.
type frame struct {
	src  netip.Addr
	step string // as a knock spells it; TCP with flags other than one SYN: "7000/tcp[R]"
}

// tap is tcpdump at the server's end of the wire.
type tap struct {
	t      *testing.T
	mu     sync.Mutex
	frames []frame
}

func (w *world) tap() *tap {
	w.t.Helper()
	cmd := exec.Command("tcpdump", "-i", w.serverWire, "-Q", "in", "-nn", "-t", "-l", "--immediate-mode",
		"tcp or udp or icmp[icmptype] == icmp-echo or (icmp6 and ip6[40] == 128)")
	out, _ := cmd.StdoutPipe()
	words, _ := cmd.StderrPipe()
	if err := w.server.Start(cmd); err != nil {
		w.t.Fatal(err)
	}
	tap := &tap{t: w.t}
	read := make(chan struct{})
	go func() {
		defer close(read)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			tap.add(lines.Text())
		}
	}()
	w.t.Cleanup(func() { cmd.Process.Kill(); <-read; cmd.Wait() })
	for lines := bufio.NewScanner(words); lines.Scan(); {
		if strings.HasPrefix(lines.Text(), "listening on") {
			return tap
		}
	}
	w.t.Fatal("tcpdump does not listen")
	return nil
}

var (
	packet = regexp.MustCompile(`^IP6? (\S+) > (\S+): (.*)$`)
	flags  = regexp.MustCompile(`^Flags \[(\S+)\]`)
	ping   = regexp.MustCompile(`^ICMP6?,? echo request.* length (\d+)$`)
)

func (tap *tap) add(line string) {
	tap.mu.Lock()
	defer tap.mu.Unlock()
	m := packet.FindStringSubmatch(line)
	if m == nil {
		tap.t.Errorf("tcpdump said %q", line)
		return
	}
	if echo := ping.FindStringSubmatch(m[3]); echo != nil {
		size, _ := strconv.Atoi(echo[1])
		tap.frames = append(tap.frames, frame{netip.MustParseAddr(m[1]), strconv.Itoa(size-8) + "/icmp"})
		return
	}
	// What tcpdump makes of a datagram's payload depends on the port.
	step, proto := m[2][strings.LastIndexByte(m[2], '.')+1:], "/udp"
	if f := flags.FindStringSubmatch(m[3]); f != nil {
		proto = "/tcp"
		if f[1] != "S" {
			proto += "[" + f[1] + "]"
		}
	}
	dot := strings.LastIndexByte(m[1], '.')
	tap.frames = append(tap.frames, frame{netip.MustParseAddr(m[1][:dot]), step + proto})
}

func (tap *tap) seen() []frame {
	tap.mu.Lock()
	defer tap.mu.Unlock()
	return append([]frame(nil), tap.frames...)
}

// count is how often a step was seen.
func (tap *tap) count(step string) int {
	n := 0
	for _, f := range tap.seen() {
		if f.step == step {
			n++
		}
	}
	return n
}

// await waits until step was seen n times.
func (tap *tap) await(step string, n int) {
	tap.t.Helper()
	await(tap.t, step, func() bool { return tap.count(step) >= n })
}

// await polls for at most 10 s.
func await(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !done(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}
