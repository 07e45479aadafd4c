package knockd_test

import (
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/testnet"
)

const oneTimeConfig = `[once]
one_time_sequences = DIR/lines
tcpflags = syn
command = (cat DIR/lines; echo "for %IP%") >> DIR/seen
` + fence

// replay sends SYNs to the ports, the whole list twice over, with nothing in
// between: the copies are packets of their own.
func (w *world) replay(f family, ports ...uint16) {
	w.t.Helper()
	wire := w.client.Wire(w.clientWire, w.server.MAC(w.serverWire))
	var packets [][]byte
	for n, port := range slices.Concat(ports, ports) {
		src := netip.AddrPortFrom(netip.MustParseAddr(f.client), uint16(40000+n))
		dst := netip.AddrPortFrom(netip.MustParseAddr(f.server), port)
		packets = append(packets, testnet.TCP(src, dst, 2, uint32(1000*n)))
	}
	wire.Send(w.t, packets...)
}

// Each line opens once, over either family, and is marked on disk before the command
// runs; a replay does nothing, also when it comes in the same moment; a restart goes
// on at the right line, and after the last one the door is shut.
func TestOneTimeSequences(t *testing.T) {
	w := newWorld(t)
	w.write("lines", "# mine\n\n7000,8500,7800\n 7100,8600,7900\n7200,8700,8000\n7300,8800,8100\n7400,8900\n")
	d := w.serve("knockd.conf", oneTimeConfig, "-i", "WIRE")
	v4, v6 := families[0], families[1]
	used := func(f family, times int, lines string) {
		t.Helper()
		d.fence(f) // nothing is lost while the daemon turns to the next line
		lines = "# mine\n\n" + lines
		want := lines + "for " + f.client + "\n"
		w.eventually("the command saw its line marked: "+want, func() bool { return strings.HasSuffix(w.read("seen"), want) })
		if n := d.said(": once: OPEN SESAME"); n != times {
			t.Errorf("it opened %d times, want %d:\n%s", n, times, d.out)
		}
		if got := w.read("lines"); got != lines {
			t.Errorf("the file is %q, want %q", got, lines)
		}
	}
	rest := " 7100,8600,7900\n7200,8700,8000\n7300,8800,8100\n7400,8900\n"
	w.replay(v4, 7000, 8500, 7800)
	used(v4, 1, "#000,8500,7800\n"+rest)
	for _, f := range families {
		w.hit(f, "7000", "8500", "7800") // long used
		d.fence(f)
	}
	w.replay(v6, 7100, 8600, 7900)
	rest = "#7100,8600,7900\n7200,8700,8000\n7300,8800,8100\n7400,8900\n"
	used(v6, 2, "#000,8500,7800\n"+rest)

	d.ends(syscall.SIGKILL, -1)
	d = w.again("knockd.conf", "-i", "WIRE")
	for _, f := range families {
		w.hit(f, "7000", "8500", "7800")
		w.hit(f, "7100", "8600", "7900")
		w.hit(f, "7300", "8800", "8100") // not yet
		d.fence(f)
	}
	w.hit(v6, "7200", "8700", "8000")
	rest = "#7100,8600,7900\n#200,8700,8000\n7300,8800,8100\n7400,8900\n"
	used(v6, 1, "#000,8500,7800\n"+rest)

	d.ends(syscall.SIGTERM, 15)
	d = w.again("knockd.conf", "-i", "WIRE")
	w.replay(v4, 7300, 8800, 8100)
	rest = "#7100,8600,7900\n#200,8700,8000\n#300,8800,8100\n7400,8900\n"
	used(v4, 1, "#000,8500,7800\n"+rest)
	w.replay(v6, 7400, 8900)
	rest = "#7100,8600,7900\n#200,8700,8000\n#300,8800,8100\n#400,8900\n"
	used(v6, 2, "#000,8500,7800\n"+rest)
	d.await("no more sequences left in the one time sequences file for door once --> disabling the door", 1)
	for _, f := range families {
		w.hit(f, "7400", "8900")
		w.hit(f, "7300", "8800", "8100")
		d.fence(f)
	}
	if n := d.said(": once: OPEN SESAME"); n != 2 {
		t.Errorf("a door without a sequence opened:\n%s", d.out)
	}
	if n := strings.Count(w.read("seen"), "for "); n != 5 {
		t.Errorf("the command ran %d times, want 5:\n%s", n, w.read("seen"))
	}
}

// Two doors are opened in the same moment, so that the second sequence is spent
// while the daemon turns to the next line of the first: both lines are marked before
// their commands run, and a replay of either does nothing.
func TestTwoOneTimeSequencesAtOnce(t *testing.T) {
	w := newWorld(t)
	seen := func(what, a, b string) {
		t.Helper()
		for end := time.Now().Add(soon); w.read("seen.a") != a || w.read("seen.b") != b; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s: the commands saw %q and %q, want %q and %q", what, w.read("seen.a"), w.read("seen.b"), a, b)
			}
		}
	}
	for _, f := range families {
		for name, text := range map[string]string{"a": "7000,8500\n7100,8600\n", "b": "17000,18500\n17100,18600\n", "seen.a": "", "seen.b": ""} {
			w.write(name, text)
		}
		d := w.serve("knockd.conf", `[a]
one_time_sequences = DIR/a
command = cat DIR/a >> DIR/seen.a
[b]
one_time_sequences = DIR/b
command = cat DIR/b >> DIR/seen.b
`+fence, "-i", "WIRE")
		w.replay(f, 7000, 17000, 8500, 18500)
		a, b := "#000,8500\n7100,8600\n", "#7000,18500\n17100,18600\n"
		seen(f.name, a, b)
		for _, c := range []struct{ seen, first, second string }{{"seen.a", "7100", "8600"}, {"seen.b", "17100", "18600"}} {
			before := w.read(c.seen)
			w.eventually("the next line of "+c.seen, func() bool {
				w.hit(f, c.first, c.second)
				time.Sleep(20 * time.Millisecond)
				return w.read(c.seen) != before
			})
		}
		a, b = a+"#000,8500\n#100,8600\n", b+"#7000,18500\n#7100,18600\n"
		seen(f.name+", the next lines", a, b)
		w.replay(f, 7000, 17000, 8500, 18500)
		d.fence(f)
		seen(f.name+", a replay", a, b)
		d.ends(syscall.SIGTERM, 15)
	}
}
