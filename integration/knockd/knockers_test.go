package knockd_test

import (
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/testnet"
)

const twoDoors = `[tcp]
sequence = 7000,8500,7800
tcpflags = syn
command  = echo "tcp %IP%" >> DIR/opened
[udp]
sequence = 7000:udp,8500:udp,7800:udp
command  = echo "udp %IP%" >> DIR/opened
`

// Lines with PORT are run for one port after the other.
var knockers = []struct {
	line string
	door string
	only string // a family, if the program has no other
}{
	{"/usr/bin/knock HOST 7000 8500 7800", "tcp", ""},
	{"/usr/bin/knock -d 20 HOST 7000 8500 7800", "tcp", ""},
	{"/usr/bin/knock -u HOST 7000 8500 7800", "udp", ""},
	{"/usr/bin/knock HOST 7000:udp 8500:udp 7800:udp", "udp", ""},
	{"KNOCK HOST 7000 8500 7800", "tcp", ""},
	{"KNOCK -u -d 5 HOST 7000 8500 7800", "udp", ""},
	{"SALLYPORT knock HOST 7000/tcp 8500/tcp 7800/tcp", "tcp", ""},
	{"SALLYPORT knock HOST 7000/udp 8500/udp 7800/udp", "udp", ""},
	{"nmap -n FLAG -Pn --max-retries 0 -p PORT HOST", "tcp", ""},
	{"nmap -n FLAG -sT -Pn --max-retries 0 -p PORT HOST", "tcp", ""},
	{"nc -z -w1 HOST PORT", "tcp", ""},
	{"hping3 -S -c 1 -p PORT HOST", "tcp", "IPv4"}, // knows no IPv6
	{"timeout 5 bash -c </dev/tcp/HOST/PORT", "tcp", ""},
}

// Whatever sends a SYN or a datagram is a knocker, for each step a program of its
// own if need be.
func TestKnockersOpenOurDoor(t *testing.T) {
	w := newWorld(t)
	for _, name := range []string{"nmap", "nc", "hping3", "bash"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Fatalf("%s is missing; 'make test' installs it", name)
		}
	}
	d := w.serve("knockd.conf", twoDoors+fence, "-i", "WIRE")
	times := map[string]int{}
	for _, f := range families {
		for _, k := range knockers {
			if k.only != "" && k.only != f.name {
				continue
			}
			w.program(f, k.line)
			times[opened(f, k.door)]++
			times[k.door+" "+f.client+"\n"]++
			d.await(opened(f, k.door), times[opened(f, k.door)])
		}
		d.fence(f)
	}
	for text, n := range times {
		if strings.HasSuffix(text, "\n") {
			w.eventually("commands of "+text, func() bool { return strings.Count(w.read("opened"), text) >= n })
			if got := strings.Count(w.read("opened"), text); got != n {
				t.Errorf("%q: the command ran %d times, want %d", text, got, n)
			}
		} else if got := d.said(text); got != n {
			t.Errorf("%q: %d times, want %d:\n%s", text, got, n, d.out)
		}
	}
}

// program runs a knocker. Its status says only whether the ports answered.
func (w *world) program(f family, line string) {
	w.t.Helper()
	line = strings.NewReplacer("HOST", f.server, "FLAG", f.flag, "KNOCK", w.knock, "SALLYPORT", testnet.Binary(w.t)).Replace(line)
	ports := []string{"7000", "8500", "7800"}
	if !strings.Contains(line, "PORT") {
		ports = ports[:1]
	}
	for _, port := range ports {
		argv := strings.Fields(strings.ReplaceAll(line, "PORT", port))
		w.client.Output("timeout", append([]string{"20"}, argv...)...)
	}
}

const dropped = `table inet theirs { chain in { type filter hook input priority 0; policy drop
 icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept; }; }`

// The host drops what comes to a closed port, so that a client's kernel sends each
// SYN again after one second, two, three: one program after the other, and each
// while the repeats of the one before still come.
func TestRetransmissionsToADroppedPortAreHarmless(t *testing.T) {
	w := newWorld(t)
	w.server.Input(dropped, "nft", "-f", "-")
	d := w.serve("knockd.conf", "[one]\nsequence=7000,8500,7800\n[two]\nsequence=17000,18500,17800\n"+fence, "-i", "WIRE")
	// knock does not wait, so its fence works under a policy of drop too.
	var all sync.WaitGroup
	for _, f := range families {
		all.Go(func() {
			for _, port := range []string{"7000", "8500", "7800"} {
				w.client.Output("nc", "-z", "-w", "3", f.server, port)
			}
		})
		all.Go(func() {
			var overlapping sync.WaitGroup
			for i, port := range []string{"17000", "18500", "17800"} {
				overlapping.Go(func() {
					time.Sleep(time.Duration(i) * 1300 * time.Millisecond)
					w.client.Output("nc", "-z", "-w", "4", f.server, port)
				})
			}
			overlapping.Wait()
		})
	}
	all.Wait()
	for _, f := range families {
		d.fence(f)
		for _, door := range []string{"one", "two"} {
			if n := d.said(opened(f, door)); n != 1 {
				t.Errorf("door %s opened %d times for %s:\n%s", door, n, f.client, d.out)
			}
		}
	}
}

// Our clients open a door of the original's.
func TestOurKnockOpensTheOriginalsDoor(t *testing.T) {
	w := newWorld(t)
	w.write("knockd.conf", twoDoors+"[mixed]\nsequence = 9000:udp,9100,9200:udp\ncommand = true\n")
	d := w.start("", "/usr/sbin/knockd", "-c", "DIR/knockd.conf", "-v", "-i", "WIRE")
	d.await("listening on", 1)
	for _, f := range families {
		for _, c := range []struct{ line, door string }{
			{"KNOCK HOST 7000 8500 7800", "tcp"},
			{"KNOCK -d 5 HOST 7000 8500 7800", "tcp"},
			{"SALLYPORT knock HOST 7000/tcp 8500/tcp 7800/tcp", "tcp"},
			{"KNOCK -u HOST 7000 8500 7800", "udp"},
			{"KNOCK HOST 9000:udp 9100:tcp 9200:udp", "mixed"},
			{"SALLYPORT knock HOST 9000/udp 9100/tcp 9200/udp", "mixed"},
		} {
			before := d.said(opened(f, c.door))
			w.program(f, c.line)
			d.await(opened(f, c.door), before+1)
		}
	}
}

// Of doors that begin alike the shorter opens at its last step and the longer goes
// on; a step of another protocol at the same port is another step.
func TestDoorsThatShareTheirBeginning(t *testing.T) {
	w := newWorld(t)
	d := w.serve("knockd.conf", `[short]
sequence = 7000,8500:udp
[long]
sequence = 7000,8500:udp,8500,7000:udp
[other]
sequence = 7000,8500,9000
[datagrams]
sequence = 18500:UDP , 17000:udp,18000 : tcp
`+fence, "-i", "WIRE")
	for _, f := range families {
		w.hit(f, "7000", "8500:udp", "8500", "7000:udp")
		d.fence(f)
		var got []string
		for line := range strings.Lines(d.out.String()) {
			if rest, ok := strings.CutPrefix(line, f.client+": "); ok && strings.Contains(rest, "OPEN") {
				got = append(got, strings.TrimSuffix(rest, ": OPEN SESAME\n"))
			}
		}
		if want := "short long fence"; strings.Join(got, " ") != want {
			t.Errorf("%s: opened %q, want %q:\n%s", f.name, got, want, d.out)
		}
		if n := d.said(f.client + ": long: Stage 3"); n != 1 {
			t.Errorf("%s: the longer door made its third step %d times:\n%s", f.name, n, d.out)
		}
	}
	for _, f := range families {
		w.hit(f, "18500:udp", "17000:udp", "18000")
		d.await(opened(f, "datagrams"), 1)
	}
	if n := d.said(": other: Stage 3"); n != 0 {
		t.Errorf("a door opened half-way through another:\n%s", d.out)
	}
}

// The last of 300 doors opens as the first one does, and only that one.
func TestThreeHundredDoors(t *testing.T) {
	w := newWorld(t)
	var text strings.Builder
	text.WriteString("[options]\nUseSyslog\n")
	for i := range 300 {
		base := 10000 + i*150
		text.WriteString("[door" + strconv.Itoa(i) + "]\nsequence = " + strconv.Itoa(base) + "," + strconv.Itoa(base+90) + ":udp," + strconv.Itoa(base+20) +
			"\ntcpflags = syn\ncommand = echo " + strconv.Itoa(i) + " %IP% >> DIR/opened\n")
	}
	d := w.serve("knockd.conf", text.String()+fence, "-i", "WIRE")
	for _, f := range families {
		for _, i := range []int{299, 0, 150} {
			base := 10000 + i*150
			w.hit(f, strconv.Itoa(base), strconv.Itoa(base+90)+":udp", strconv.Itoa(base+20))
			d.await(opened(f, "door"+strconv.Itoa(i)), 1)
			w.eventually("its command", func() bool { return strings.Contains(w.read("opened"), strconv.Itoa(i)+" "+f.client+"\n") })
		}
		d.fence(f)
	}
	if n := d.said("OPEN SESAME"); n != 8 {
		t.Errorf("%d doors opened, want 8:\n%s", n, d.out)
	}
}

// A knock from the machine itself, with -i lo.
func TestLoopback(t *testing.T) {
	w := newWorld(t)
	d := w.serve("knockd.conf", twoDoors, "-i", "lo")
	for _, addr := range []string{"127.0.0.1", "::1"} {
		f := family{client: addr}
		w.server.Run("/usr/bin/knock", addr, "7000", "8500", "7800")
		d.await(opened(f, "tcp"), 1)
		w.server.Run(w.knock, "-u", addr, "7000", "8500", "7800")
		d.await(opened(f, "udp"), 1)
		w.eventually("commands", func() bool {
			text := w.read("opened")
			return strings.Contains(text, "tcp "+addr+"\n") && strings.Contains(text, "udp "+addr+"\n")
		})
	}
	for _, f := range families { // what comes by a wire is no business of -i lo
		w.hit(f, "7000", "8500", "7800")
	}
	w.server.Run("/usr/bin/knock", "127.0.0.1", "7000", "8500", "7800")
	d.await(opened(family{client: "127.0.0.1"}, "tcp"), 2)
	if n := d.said("OPEN SESAME"); n != 5 {
		t.Errorf("%d doors opened, want 5:\n%s", n, d.out)
	}
}
