//go:build linux

package integration_test

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/internal/border"
	"github.com/sallyport/sallyport/internal/control"
	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/sallyport/sallyport/internal/testnet"
)

// scanned are sequences that careless programs open to a scan.
var scanned = []string{
	"7000/tcp 8000/tcp 9000/tcp",           // ascending
	"9001/tcp 8001/tcp 7001/tcp",           // descending
	"60000/tcp 65000/tcp 100/tcp",          // wrapping
	"7400/tcp 31000/tcp 12345/tcp",         // shuffled
	"7100/udp 8100/udp 9100/udp",           // ascending
	"9101/udp 8101/udp 7101/udp",           // descending
	"60001/udp 65001/udp 101/udp",          // wrapping
	"7200/tcp 8200/udp 9200/tcp",           // ascending, mixed
	"65000/udp 64000/tcp 63000/udp",        // descending, mixed
	"7300/tcp 7302/tcp 7304/tcp",           // close together
	"1025/tcp 65535/tcp 1/tcp 2/tcp",       // across the end
	"3306/tcp 5432/tcp 6379/tcp 22222/tcp", // ports that scanners like
}

// scannedConfig gives each of the sequences a service of its own.
func scannedConfig() string {
	var b strings.Builder
	for i, steps := range scanned {
		fmt.Fprintf(&b, "[service.s%d]\nports = [\"%d/tcp\"]\n", i, 40000+i)
		fmt.Fprintf(&b, "[knock.k%d]\ntype = \"sequence\"\nopens = [\"s%d\"]\nsequence = [%s]\nwithin = \"10m\"\n", i, i, quotedSteps(steps))
	}
	return b.String() + witnessConfig
}

// grants lists what is open, but for the witness.
func (w *realWorld) grants(t *testing.T) []border.Grant {
	t.Helper()
	out, err := w.daemon.Tool("grants", "--json")
	for end := time.Now().Add(soon); err != nil && strings.Contains(out, "listed too often") && time.Now().Before(end); {
		time.Sleep(20 * time.Millisecond) // a slow list makes the next one wait
		out, err = w.daemon.Tool("grants", "--json")
	}
	if err != nil {
		t.Fatalf("grants: %v\n%s", err, out)
	}
	var all []border.Grant
	for line := range strings.Lines(out) {
		var g border.Grant
		if err := json.Unmarshal([]byte(line), &g); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if g.Service != "witness" {
			all = append(all, g)
		}
	}
	return all
}

func (w *realWorld) counters(t *testing.T) map[string]uint64 {
	t.Helper()
	out, err := w.daemon.Tool("status", "--json")
	var s control.Status
	if err == nil {
		err = json.Unmarshal([]byte(out), &s)
	}
	if err != nil {
		t.Fatalf("status: %v\n%s", err, out)
	}
	return s.Counters
}

// TestBug2ScansOpenNothing: all ports, in nmap's own order and one by one, and
// down and around with both protocols.
func TestBug2ScansOpenNothing(t *testing.T) {
	eachFamily(t, func(t *testing.T, w *realWorld) {
		w.serve(t, scannedConfig())
		nothing := func(what string) {
			t.Helper()
			w.settle(t)
			if open := w.grants(t); len(open) > 0 {
				t.Errorf("%s opens %v", what, open)
			}
		}
		for _, order := range []string{"-sS", "-r"} { // without -r nmap draws an order
			args := []string{"-n", "-Pn", "-sS", order, "-p-", "-T5", "--min-rate", "30000",
				"--max-retries", "0", "--initial-rtt-timeout", "50ms", "--max-rtt-timeout", "100ms", w.f.host}
			if w.f.name == "ipv6" {
				args = append(args, "-6")
			}
			before := w.counters(t)["captured"]
			out := w.client.Run("nmap", args...)
			if seen := w.counters(t)["captured"] - before; seen < 60_000 {
				t.Errorf("of nmap's scan of all ports only %d packets arrived:\n%s", seen, out)
			}
			nothing("nmap " + order)
		}
		for i, orders := range [][]string{{"65535-1"}, {"8500-65535", "1-8499"}} {
			p := teller{f: w.f, fresh: uint32(i) << 24}
			for _, order := range orders {
				w.sweep(t, p, order, w.f.stranger(1+i))
			}
			nothing(fmt.Sprint("a sweep ", orders))
		}
		c := w.counters(t)
		t.Logf("%d packets seen, %d dropped by the capture, %d attempts lost", c["captured"], c["dropped"], c["lost"])
		// The grants were empty because nothing opened, and not because nothing can.
		for i, steps := range scanned {
			p := teller{f: w.f, fresh: uint32(i+100) << 16}
			for step := range strings.FieldsSeq(steps) {
				packets, _ := p.packets(t, step, w.f.stranger(100))
				w.send(t, false, packets...)
			}
			w.settle(t)
			if got := len(w.grants(t)); got != i+1 {
				t.Errorf("%s: the knock itself opens nothing", steps)
			}
		}
	})
}

// sweep sends one SYN and one datagram to each port, in order. It pauses now
// and then, so that the daemon sees them all: a scan that the capture drops in
// part is another test.
func (w *realWorld) sweep(t *testing.T, p teller, order string, from netip.Addr) {
	t.Helper()
	syns, _ := p.packets(t, order+"/tcp", from)
	datagrams, _ := p.packets(t, order+"/udp", from)
	for i := range syns {
		w.wire.Send(t, syns[i], datagrams[i])
		if i%1024 == 0 {
			w.settle(t)
		}
	}
}

// TestPromise3TheKernelAnswersAlone: what comes back to a client is the same
// packets, byte for byte, with and without the program, whatever is sent.
func TestPromise3TheKernelAnswersAlone(t *testing.T) {
	eachWorld(t, hostRules[:2], func(t *testing.T, f family, rules ownRules) {
		var answers [2][]string
		for i, serving := range []bool{false, true} {
			w := newRealWorld(t, f)
			w.host.Input(rules.text, rules.program, rules.args...)
			// Else the kernel's own limits decide who is answered.
			w.host.Run("sysctl", "-qw", "net.ipv4.icmp_ratelimit=0", "net.ipv6.icmp.ratelimit=0",
				"net.ipv4.icmp_msgs_per_sec=100000", "net.ipv4.icmp_msgs_burst=100000")
			if serving {
				w.serve(t, guardConfig("", plain, ""))
			}
			answers[i] = w.answers(t, probes(t, f))
			if serving && !w.reaches(t, f.stranger(1)) {
				t.Error("the probes have a knock in them, and it did not open")
			}
		}
		if diff := cmp.Diff(answers[0], answers[1]); diff != "" {
			t.Errorf("without (-) and with (+):\n%s", diff)
		}
		t.Logf("%d answers", len(answers[0]))
		if open := rules.text == ""; open == (len(answers[0]) < 300) {
			t.Errorf("%d answers: the probes are not what they should be", len(answers[0]))
		}
	})
}

// probes are a knock, wrong packets, every combination of flags, pings of many
// sizes, and noise. Nothing goes to the hidden port: that may differ.
func probes(t *testing.T, f family) [][]byte {
	t.Helper()
	p := teller{f: f, first: 1, fresh: 1 << 16}
	var all [][]byte
	add := func(word string, n int) {
		packets, _ := p.packets(t, word, f.stranger(n))
		all = append(all, packets...)
	}
	for word := range strings.FieldsSeq(plain + " " + plain) {
		add(word, 1)
	}
	for word := range strings.FieldsSeq("7000/tcp 7500/tcp 6950-7050/tcp 8499-8502/udp 7000/tcp~first 7000/tcp~cut 7000/tcp~options 8500/udp~options 0/icmp 37/icmp 1400/icmp 7000/tcp>second") {
		add(word, 2)
	}
	from, to := f.stranger(3), f.place("")
	for flags := range 256 {
		for _, port := range []uint16{7000, 7001} {
			all = append(all, testnet.TCP(netip.AddrPortFrom(from, uint16(1024+flags)), netip.AddrPortFrom(to, port), uint8(flags), uint32(flags)<<8))
		}
	}
	// Noise: whole datagrams and segments with some bytes turned over. The same
	// seed makes it the same in both runs.
	noise := rand.New(rand.NewPCG(7, 7))
	for i := range 400 {
		b := testnet.UDP(netip.AddrPortFrom(f.stranger(4), uint16(2000+i)), netip.AddrPortFrom(to, uint16(6936+noise.IntN(1600))), make([]byte, noise.IntN(64)), testnet.ID(uint16(i)))
		if i%2 == 0 {
			for range 1 + noise.IntN(4) {
				b[noise.IntN(len(b))] ^= byte(1 << noise.IntN(8))
			}
		}
		all = append(all, b)
	}
	return all
}

// answers sends packets and gives everything that comes back to strangers, as
// sorted hexadecimal text.
func (w *realWorld) answers(t *testing.T, packets [][]byte) []string {
	t.Helper()
	fd := -1
	w.client.Do(func() { fd, _ = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0x0300) }) // ETH_P_ALL
	if fd < 0 {
		t.Fatal("no packet socket")
	}
	defer unix.Close(fd)
	unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1)
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20)
	unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 250000})
	// The last packet asks a public port, so that its answer shows that the host
	// has come this far; no answer of interest goes to its sender.
	last := w.f.stranger(5)
	packets = append(packets, testnet.TCP(netip.AddrPortFrom(last, 5), netip.AddrPortFrom(w.f.place(""), 443), sequence.SYN, 5))
	w.wire.Send(t, packets...)
	var all []string
	var ended bool
	b, deadline := make([]byte, 1<<16), time.Now().Add(soon)
	for {
		n, _, err := unix.Recvfrom(fd, b, 0)
		switch {
		case err == unix.EINTR:
		case err != nil && ended: // and then a quarter second of silence
			slices.Sort(all)
			return all
		case err != nil && time.Now().After(deadline):
			t.Fatal("the host does not answer at a public port")
		case err == nil:
			to, text := w.answer(b[:n])
			if ended = ended || to == last; text != "" && to != last {
				all = append(all, text)
			}
		}
	}
}

// answer takes out what a kernel counts or draws by itself: the IPv4
// identification with its checksum, the IPv6 flow label. The text is empty for
// what is to no stranger.
func (w *realWorld) answer(b []byte) (to netip.Addr, text string) {
	b = slices.Clone(b)
	switch b[0] >> 4 {
	case 4:
		copy(b[4:6], []byte{0, 0})
		copy(b[10:12], []byte{0, 0})
		to = netip.AddrFrom4([4]byte(b[16:20]))
	case 6:
		copy(b[1:4], []byte{b[1] & 0xf0, 0, 0})
		to = netip.AddrFrom16([16]byte(b[24:40]))
	default: // neighbours asking for each other
		return to, ""
	}
	if !strings.HasPrefix(to.String(), w.f.strangers) {
		return to, ""
	}
	return to, hex.EncodeToString(b)
}

// The flood of TestPromise4 ends when this many packets are sent and all users
// are in, some four seconds, or at the limit.
const (
	floodPackets = 200_000
	floodLimit   = 12 * time.Second
	floodUsers   = 50
)

// TestPromise4AForgedFloodShutsNobodyOut: first steps from a great many forged
// addresses, and wrong packets in the names of the user's neighbours, fill every
// table, while users with fresh addresses knock as 'knock --then' does.
func TestPromise4AForgedFloodShutsNobodyOut(t *testing.T) {
	w := newRealWorld(t, ipFamilies[0])
	w.serve(t, guardConfig("", plain, ""))
	w.client.Run("ip", "-6", "route", "add", "local", "2001:db8:d::/64", "dev", "lo")
	w.host.Run("ip", "-6", "route", "add", "2001:db8:d::/64", "via", "2001:db8::2")
	inside := w.f.stranger(254)
	w.knockAs(t, w.wire, 254)
	if !w.reaches(t, inside) {
		t.Fatal("a knock before the flood does not open")
	}
	before := w.grants(t)

	ctx, stop := context.WithTimeout(t.Context(), floodLimit)
	defer stop()
	var sent atomic.Int64
	var flood sync.WaitGroup
	start := time.Now()
	flood.Go(func() { w.flood(ctx, &sent, inside) })
	for w.counters(t)["evicted"] == 0 && ctx.Err() == nil { // the table of attempts is not full yet
		time.Sleep(10 * time.Millisecond)
	}
	var users sync.WaitGroup
	took := make([]time.Duration, floodUsers)
	for i := range took {
		users.Go(func() { took[i] = w.user(ctx, t, i) })
	}
	users.Wait()
	for sent.Load() < floodPackets && ctx.Err() == nil {
		time.Sleep(time.Millisecond)
	}
	stop()
	flood.Wait()
	elapsed := time.Since(start)
	first := 0
	for i, d := range took {
		switch {
		case d == 0:
			t.Errorf("user %d did not get in while the flood lasted", i)
		case d < 1275*time.Millisecond: // the Dialer's first window: before its second knock
			first++
		}
	}
	slices.Sort(took)
	c := w.counters(t)
	t.Logf("%d forged packets in %v, %.0f a second; captured %d, dropped %d, evicted %d", sent.Load(), elapsed.Round(time.Millisecond),
		float64(sent.Load())/elapsed.Seconds(), c["captured"], c["dropped"], c["evicted"])
	t.Logf("%d of %d users in with their first knock; median %v, slowest %v", first, floodUsers, took[floodUsers/2], took[floodUsers-1])
	if c["evicted"] == 0 {
		t.Error("the flood never filled the table")
	}
	w.keptGrant(t, before, inside)
}

// keptGrant checks that a grant from before the flood ends no sooner for it.
func (w *realWorld) keptGrant(t *testing.T, before []border.Grant, inside netip.Addr) {
	t.Helper()
	if !w.reaches(t, inside) {
		t.Error("packets forged in a user's name ended his grant")
	}
	for _, g := range w.grants(t) {
		// The kernel tells what is left in whole milliseconds, and later by the clock.
		if g.Addr == inside && (len(before) != 1 || g.Until.Before(before[0].Until.Add(-100*time.Millisecond))) {
			t.Errorf("packets forged in a user's name shortened his grant: %v, before %v", g, before)
		}
	}
}

// flood forges until ctx ends. inside has a grant.
func (w *realWorld) flood(ctx context.Context, sent *atomic.Int64, inside netip.Addr) {
	r := rand.New(rand.NewPCG(1, 2))
	hosts := [2]netip.Addr{ipFamilies[0].place(""), ipFamilies[1].place("")}
	far, near := netip.MustParseAddr("2001:db8:f::").As16(), netip.MustParseAddr("2001:db8:d::").As16()
	for ctx.Err() == nil {
		for i := range 256 {
			src, port := netip.AddrFrom16(far), uint16(7000)
			for j := 6; j < 16; j++ {
				far[j] = byte(r.Uint32())
			}
			switch i % 16 {
			case 1: // a neighbour of the IPv6 users: same prefix
				near[8], near[15] = 1, byte(r.Uint32())
				src = netip.AddrFrom16(near)
			case 2:
				near[8], near[15] = 1, byte(r.Uint32())
				src, port = netip.AddrFrom16(near), 7500
			case 3: // a neighbour of the IPv4 users
				src = netip.AddrFrom4([4]byte{198, 51, 100, byte(100 + r.IntN(150))})
			case 4:
				src, port = netip.AddrFrom4([4]byte{198, 51, 100, byte(100 + r.IntN(150))}), 7500
			case 5: // who is inside, once right and once wrong
				src, port = inside, uint16(7000+500*(r.IntN(2)))
			}
			dst := hosts[0]
			if src.Is6() {
				dst = hosts[1]
			}
			b := testnet.TCP(netip.AddrPortFrom(src, uint16(1024+r.IntN(60000))), netip.AddrPortFrom(dst, port), sequence.SYN, r.Uint32())
			if w.wire.SendOne(b) == nil {
				sent.Add(1)
			}
		}
	}
}

// user gets in as the program's own client does, from a fresh address, and
// tells how long it took; 0 if he did not before ctx ended.
func (w *realWorld) user(ctx context.Context, t *testing.T, i int) time.Duration {
	local, host := w.f.stranger(1+i), w.f.host
	if i%2 == 1 {
		local, host = nth("2001:db8:d::", 1+i), ipFamilies[1].host
	}
	knock, err := sallyport.ParseSequence(plain)
	if err != nil {
		t.Error(err)
		return 0
	}
	d := sallyport.Dialer{Knock: knock, Local: local, Timeout: -1}
	start := time.Now()
	w.client.Do(func() {
		c, dialErr := d.DialContext(ctx, "tcp", netip.AddrPortFrom(netip.MustParseAddr(host), 22).String())
		if err = dialErr; err == nil {
			c.Close()
		}
	})
	if err != nil {
		t.Logf("user %s: %v", local, err)
		return 0
	}
	return time.Since(start)
}
