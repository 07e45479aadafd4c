// Package differential plays random door files and random packets to knockd 0.8
// and to Sallyport, and holds both against one model.
package differential

import (
	"bufio"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/testnet"
)

var (
	budget  = flag.Duration("budget", 0, "how long random streams are played, in place of -streams")
	streams = flag.Uint64("streams", 16, "how many are played")
	seed    = flag.Uint64("seed", 1, "of the first stream; 0: another one each time")
)

// each is the packets of one stream.
const each = 900

func TestMain(m *testing.M) {
	flag.Set("test.parallel", strconv.Itoa(grounds)) // not as many as processors: they mostly wait
	flag.Parse()
	os.Exit(testnet.Main(m))
}

// ground is a server with both daemons' names installed, and a client whose
// packets come from any address.
type ground struct {
	t              *testing.T
	server, client *testnet.Namespace
	serverWire     string
	wire           *testnet.Wire
	ours           string // our program under the name knockd
}

func newGround(t *testing.T) *ground {
	g := &ground{t: t, server: testnet.New(t), client: testnet.New(t)}
	var clientWire string
	clientWire, g.serverWire = testnet.Connect(g.client, g.server,
		[]string{"192.0.2.1/24", "2001:db8::1/64"}, []string{"192.0.2.2/24", "2001:db8::2/64", "192.0.2.3/24", "2001:db8::3/64"})
	g.wire = g.client.Wire(clientWire, g.server.MAC(g.serverWire))
	g.ours = filepath.Join(t.TempDir(), "knockd")
	if err := os.Symlink(testnet.Binary(t), g.ours); err != nil {
		t.Fatal(err)
	}
	return g
}

// start runs a knockd, theirs or ours, until the returned function ends it and
// gives what it said.
func (g *ground) start(program, config string, args ...string) (said *testnet.Output, end func()) {
	g.t.Helper()
	said = &testnet.Output{}
	cmd := exec.Command(program, append([]string{"-i", g.serverWire, "-c", config, "-v"}, args...)...)
	cmd.Stdout, cmd.Stderr = said, said
	if err := g.server.Start(cmd); err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { cmd.Process.Kill() }) // where the stream ends early
	for deadline := time.Now().Add(20 * time.Second); !strings.Contains(said.String(), "listening on"); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			cmd.Process.Kill()
			g.t.Fatalf("%s does not listen: %s", program, said)
		}
	}
	return said, func() {
		time.AfterFunc(20*time.Second, func() { cmd.Process.Kill() })
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
	}
}

// tally is how often each difference decided an event, and in how many streams.
type tally struct {
	sync.Mutex
	events  [differences]int
	opened  [3]int // by knockd, by us, by us with --strict-knockd
	streams uint64
}

// more gives the number of the next stream, unless there were enough.
func (c *tally) more(end time.Time) (n uint64, more bool) {
	c.Lock()
	defer c.Unlock()
	c.streams++
	if *budget > 0 {
		return c.streams - 1, time.Now().Before(end)
	}
	return c.streams - 1, c.streams <= *streams
}

// grounds is how many pairs of daemons run beside each other: they mostly wait.
const grounds = 4

// Random doors and streams: knockd must be the model with no difference on, we
// must be the model with all of them on, and where the two differ, one of the
// differences must have acted. A difference that never decides anything is no
// difference, or the streams don't show it.
func TestDifferential(t *testing.T) {
	testnet.RequireRoot(t)
	if _, err := exec.LookPath("knockd"); err != nil {
		t.Fatal("knockd is missing; 'make test' installs it")
	}
	first := *seed
	if first == 0 {
		first = uint64(time.Now().UnixNano())
	}
	var counts tally
	end := time.Now().Add(*budget)
	t.Run("streams", func(t *testing.T) {
		for range grounds {
			t.Run("", func(t *testing.T) {
				t.Parallel()
				g := newGround(t)
				for n, more := counts.more(end); more && !t.Failed(); n, more = counts.more(end) {
					g.stream(t, first+n, &counts)
				}
			})
		}
	})
	t.Logf("doors opened by knockd %d, by us %d, with --strict-knockd %d", counts.opened[0], counts.opened[1], counts.opened[2])
	for d, n := range counts.events {
		t.Logf("%-8v decided %6d events", difference(d), n)
		if n == 0 {
			t.Errorf("the difference %q never acted", difference(d))
		}
	}
}

// sent is a packet with the moment before it was sent.
type sent struct {
	packet
	at time.Time
}

func (g *ground) stream(t *testing.T, seed uint64, counts *tally) {
	r := rand.New(rand.NewPCG(seed, 1))
	doors, text := drawDoors(r)
	defer func() {
		if t.Failed() {
			t.Logf("to see it again: go test ./integration/differential -seed %d -budget 1s\n%s", seed, text)
		}
	}()
	// Two of our daemons on one file would share a journal.
	config, again := filepath.Join(t.TempDir(), "knockd.conf"), filepath.Join(t.TempDir(), "knockd.conf")
	for _, path := range []string{config, again} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	theirs, endTheirs := g.start("knockd", config, "-D")
	ours, endOurs := g.start(g.ours, config)
	strict, endStrict := g.start(g.ours, again, "--strict-knockd")
	stream := g.play(t, r, doors)
	endTheirs()
	endOurs()
	endStrict()
	seen := follow(t, theirs.String())
	theirEvents := checkTheirs(t, doors, stream, seen)
	ourEvents := checkOurs(t, doors, stream, ours.String(), everyDifference)
	strictEvents := checkOurs(t, doors, stream, strict.String(), withStrict)
	counts.Lock()
	defer counts.Unlock()
	explain(t, stream, theirEvents, ourEvents, counts)
	for i, all := range [][]outcome{theirEvents, ourEvents, strictEvents} {
		counts.opened[i] += opened(all)
	}
}

// opened counts the doors that were opened.
func opened(all []outcome) (n int) {
	for _, o := range all {
		for _, e := range o.events {
			if e.what == "OPEN SESAME" {
				n++
			}
		}
	}
	return n
}

// What is on in a model of ours: everything, and what --strict-knockd leaves on.
var (
	everyDifference = [differences]bool{others: true, onTime: true, exact: true, copies: true, guard: true, restart: true, apart: true}
	withStrict      = [differences]bool{others: true, onTime: true}
)

// play sends a stream. It takes care that no moment is near the end of an attempt,
// nor of a second, because nobody could say then who is right.
func (g *ground) play(t *testing.T, r *rand.Rand, doors []door) (stream []sent) {
	p := newPlayer(r, doors)
	shadow := model{doors: doors, on: everyDifference, acted: func(difference, netip.Addr) {}}
	for range each {
		switch n := r.IntN(each); {
		case n < 3:
			time.Sleep(time.Duration(300+r.IntN(1500)) * time.Millisecond)
		case n < 30:
			time.Sleep(time.Duration(r.IntN(60)) * time.Millisecond)
		case n%8 == 0:
			time.Sleep(time.Millisecond) // neither capture may lose one
		}
		if left := time.Second - time.Duration(time.Now().Nanosecond()); left < 100*time.Millisecond {
			time.Sleep(left + 5*time.Millisecond)
		}
		now := time.Now()
		src := sources[r.IntN(len(sources))]
		if shadow.close(src, now, 150*time.Millisecond) {
			continue
		}
		packet := p.packet(src, now)
		now = time.Now()
		if err := g.wire.SendOne(packet.bytes()); err != nil {
			t.Fatal(err)
		}
		shadow.packet(packet, now)
		stream = append(stream, sent{packet, now})
	}
	// Timeouts are told within a second and a half, and nobody's is near now.
	time.Sleep(1500 * time.Millisecond)
	for shadow.close(netip.Addr{}, time.Now(), 1500*time.Millisecond) {
		time.Sleep(100 * time.Millisecond)
	}
	return stream
}

// close reports whether the end of an attempt of the source (the zero Addr:
// anybody's) is near now, before or after it.
func (m *model) close(src netip.Addr, now time.Time, near time.Duration) bool {
	return slices.ContainsFunc(m.attempts, func(a *attempt) bool {
		from := a.began
		if a.done {
			from = a.ended
		}
		left := from.Add(time.Duration(m.doors[a.door].timeout) * time.Second).Sub(now)
		return (!src.IsValid() || a.src == src) && a.stage > 0 && left.Abs() < near
	})
}

// heard is a packet that knockd saw, with what it said about it.
type heard struct {
	src, dst netip.AddrPort
	second   int64
	events   []string
}

var packetLine = regexp.MustCompile(`^(\d+)-(\d+)-(\d+) (\d+:\d+:\d+): (tcp|udp): (\S+):(\d+) -> (\S+):(\d+) \d+ bytes`)

// follow reads knockd's debug output: a line for each packet, and below it what
// happened. It counts months from 0.
func follow(t *testing.T, out string) (all []heard) {
	for line := range strings.Lines(out) {
		line = strings.TrimSpace(line)
		if m := packetLine.FindStringSubmatch(line); m != nil {
			month, _ := strconv.Atoi(m[2])
			at, err := time.ParseInLocation("2006-01-02 15:04:05", fmt.Sprintf("%s-%02d-%s %s", m[1], month+1, m[3], m[4]), time.Local)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, heard{src: addrPort(t, m[6], m[7]), dst: addrPort(t, m[8], m[9]), second: at.Unix()})
			continue
		}
		if len(all) > 0 && eventLine.MatchString(line) {
			last := &all[len(all)-1]
			last.events = append(last.events, line)
		}
	}
	return all
}

var eventLine = regexp.MustCompile(`^\S+: door\d+: (Stage \d+|OPEN SESAME|sequence timeout \(stage \d+\))$`)

func addrPort(t *testing.T, addr, port string) netip.AddrPort {
	ip := net.ParseIP(addr)
	a, ok := netip.AddrFromSlice(ip)
	n, err := strconv.ParseUint(port, 10, 16)
	if !ok || err != nil {
		t.Fatalf("%q:%q is no address", addr, port)
	}
	return netip.AddrPortFrom(a.Unmap(), uint16(n))
}

func (e event) String() string { return fmt.Sprintf("%v: door%d: %s", e.src, e.door, e.what) }

// outcome is what one packet did: the events, which differences acted at it, by
// source, and what its own source is at afterwards.
type outcome struct {
	events []event
	acted  map[netip.Addr][differences]bool
	state  string
}

// run shows a model the whole stream at the given times.
func run(doors []door, on [differences]bool, stream []sent, at func(int) (time.Time, bool)) (out []outcome) {
	m := model{doors: doors, on: on}
	for i, p := range stream {
		o := outcome{acted: map[netip.Addr][differences]bool{}}
		m.acted = func(d difference, src netip.Addr) {
			set := o.acted[src]
			set[d] = true
			o.acted[src] = set
		}
		if now, seen := at(i); seen {
			o.events = m.packet(p.packet, now)
		}
		o.state = m.state(p.src)
		out = append(out, o)
	}
	return out
}

// checkTheirs holds knockd against the model with no difference on: it must see
// the same packets and say the same words in the same order.
func checkTheirs(t *testing.T, doors []door, stream []sent, seen []heard) []outcome {
	filter := model{doors: doors}
	times := make([]int64, len(stream))
	n := 0
	for i, p := range stream {
		if !filter.seen(p.packet) {
			continue
		}
		if n >= len(seen) || seen[n].src.Port() != uint16(p.id) || seen[n].src.Addr() != p.src {
			t.Fatalf("knockd did not see packet %d (%+v), which its filter lets through: its capture loses packets, or the model of the filter is wrong", i, p.packet)
		}
		times[i] = seen[n].second
		n++
	}
	if n != len(seen) {
		t.Fatalf("knockd saw %d packets, its filter lets through %d", len(seen), n)
	}
	out := run(doors, [differences]bool{}, stream, func(i int) (time.Time, bool) { return time.Unix(times[i], 0), times[i] != 0 })
	n = 0
	for i := range stream {
		if times[i] == 0 {
			continue
		}
		var want []string
		for _, e := range out[i].events {
			want = append(want, e.String())
		}
		if !slices.Equal(want, seen[n].events) {
			t.Fatalf("packet %d (%+v): knockd says %q, the model %q", i, stream[i].packet, seen[n].events, want)
		}
		n++
	}
	return out
}

// checkOurs holds us against the model with these differences on. Nothing says which
// packet our lines belong to, but those of one source at one door come in order.
func checkOurs(t *testing.T, doors []door, stream []sent, log string, on [differences]bool) []outcome {
	out := run(doors, on, stream, func(i int) (time.Time, bool) { return stream[i].at, true })
	want, got := map[string][]string{}, map[string][]string{}
	for _, o := range out {
		for _, e := range o.events {
			add(want, e.String())
		}
	}
	lines := bufio.NewScanner(strings.NewReader(log))
	for lines.Scan() {
		if eventLine.MatchString(lines.Text()) {
			add(got, lines.Text())
		}
	}
	for key, want := range want {
		if n := same(want, got[key]); n >= 0 {
			t.Errorf("%s: from event %d on we say %q, the model %q", key, n, got[key][min(n, len(got[key])):min(n+3, len(got[key]))], want[min(n, len(want)):min(n+3, len(want))])
		}
	}
	for key := range got {
		if _, ok := want[key]; !ok {
			t.Errorf("%s: we say %q, the model nothing", key, got[key])
		}
	}
	return out
}

func add(to map[string][]string, line string) {
	i := strings.LastIndex(line, ": ")
	to[line[:i]] = append(to[line[:i]], line[i+2:])
}

// same gives the first place where the lists differ; trailing timeouts that only
// time told of, and no packet, are left to it. -1: none.
func same(want, got []string) int {
	for i := range max(len(want), len(got)) {
		switch {
		case i >= len(want):
			if !strings.HasPrefix(got[i], "sequence timeout") || i+1 < len(got) {
				return i
			}
		case i >= len(got) || want[i] != got[i]:
			return i
		}
	}
	return -1
}

// explain wants a reason for each event at which knockd and we differ: one of the
// differences decided it, at that packet or since the source's attempts were last
// the same for both.
func explain(t *testing.T, stream []sent, theirs, ours []outcome, counts *tally) {
	since := map[netip.Addr][differences]bool{}
	for i := range stream {
		for _, o := range []outcome{theirs[i], ours[i]} {
			for src, acted := range o.acted {
				set := since[src]
				for d := range acted {
					set[d] = set[d] || acted[d]
				}
				since[src] = set
			}
		}
		for _, e := range differing(theirs[i].events, ours[i].events) {
			set, reason := since[e.src], false
			for d, acted := range set {
				if acted {
					counts.events[d]++
					reason = true
				}
			}
			if !reason {
				t.Errorf("packet %d (%+v): only one of us says %q, and no difference acted", i, stream[i].packet, e)
			}
		}
		if theirs[i].state == ours[i].state {
			delete(since, stream[i].src)
		}
	}
}

// state spells the attempts that a source has under way.
func (m *model) state(src netip.Addr) string {
	var list []string
	for _, a := range m.attempts {
		if a.src == src && a.stage > 0 && !a.done {
			list = append(list, fmt.Sprintf("%d:%d:%d ", a.door, a.stage, a.began.Unix()))
		}
	}
	slices.Sort(list)
	return strings.Join(list, "")
}

// differing gives the events that only one of the lists has.
func differing(a, b []event) (out []event) {
	for _, e := range a {
		if !slices.Contains(b, e) {
			out = append(out, e)
		}
	}
	for _, e := range b {
		if !slices.Contains(a, e) {
			out = append(out, e)
		}
	}
	return out
}
