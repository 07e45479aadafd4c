package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"github.com/sallyport/sallyport/internal/testnet"
)

// openFor is how long a grant lasts here: long enough to see, short enough to
// wait for three times.
const openFor = 2 * time.Second

// config is the daemon's; testnet adds where it keeps its files. KEYS stands for
// the directory of this run.
var config = fmt.Sprintf(`
[service.greeting]
ports    = ["%d/tcp"]
open_for = "%v"

[knock.keys]
type            = "spa"
opens           = ["greeting"]
key             = "KEYS/server.key"
authorized_keys = "KEYS/authorized_keys"

[knock.front]
type     = "sequence"
opens    = ["greeting"]
sequence = ["7000/tcp", "8500/udp", "7800/tcp"]
`, port, openFor)

var steps = []string{"7000/tcp", "8500/udp", "7800/tcp"}

// play is the whole story, in order.
func (d *demo) play() {
	fmt.Fprintf(d.out, "A daemon, a client and a stranger, in network namespaces of their own.\n\n%9s  %-8s  %s\n", "took", "step", "what happened")
	d.build()
	for _, f := range families {
		d.scan("before", f, 1) // without this, a port that never opens would look well hidden
	}
	d.keys()
	d.serve()
	for _, f := range families {
		d.scan("scan", f, 0)
	}
	d.signed()
	d.sequence()
	d.killed()
	for _, f := range families {
		d.scan("hidden", f, 0)
	}
}

// signed shows the main job: one datagram, for one address and one time, and
// nothing for whoever repeats it.
func (d *demo) signed() {
	var grants []grant
	var caught [][]byte
	for _, f := range families {
		asked := time.Now()
		caught = append(caught, d.request(f))
		g := d.opens(f, asked)
		d.greeted(g)
		d.stranger(f)
		grants = append(grants, g)
	}
	for _, g := range grants {
		d.closes(g, "by the kernel")
	}
	for _, g := range grants {
		d.alive(g)
	}
	for i, f := range families {
		d.again(f, caught[i])
	}
}

// sequence shows the other kind of knock, for a client that has no key.
func (d *demo) sequence() {
	var grants []grant
	for _, f := range families {
		grants = append(grants, d.walk(f))
	}
	for _, g := range grants {
		d.closes(g, "by the kernel")
	}
}

// killed shows that no process of ours is needed for a port to close.
func (d *demo) killed() {
	var grants []grant
	for _, f := range families {
		grants = append(grants, d.early(f))
	}
	d.kill()
	for _, g := range grants {
		d.closes(g, "no daemon left")
	}
}

// serve starts the daemon.
func (d *demo) serve() {
	d.begin("serve")
	daemon := d.server.Launch(d.program, strings.ReplaceAll(config, "KEYS", d.dir))
	daemon.Await("serving", "observing")
	d.watch(daemon.Cmd.Process.Pid)
	if len(d.processes) != 2 {
		d.Fatalf("the daemon is %d processes, not warden and engine:\n%s", len(d.processes), daemon.Log())
	}
	d.daemon = daemon
	d.fact("%d processes hide %d/tcp; a knock opens it for %v", len(d.processes), port, openFor)
}

// scan tries ports as a stranger's scanner would, and wants so many open: the
// service's or none.
func (d *demo) scan(step string, f family, want int) {
	d.begin(step)
	var open []uint16
	refused := 0
	for p := uint16(1); p <= scanned; p++ {
		d.interrupted()
		conn, err := dial(d.far, f.server, p)
		switch {
		case err == nil:
			conn.Close()
			open = append(open, p)
		case errors.Is(err, syscall.ECONNREFUSED):
			refused++
		default:
			// Silence, where every closed port refuses, would tell a stranger
			// that something is hidden there.
			d.Fatalf("%d/tcp of %s neither opened nor refused: %v", p, f.server, err)
		}
	}
	switch {
	case len(open) != want || want == 1 && open[0] != port:
		d.Fatalf("of %d ports of %s these were open: %v; %d should have been", scanned, f.server, open, want)
	case want == 1:
		d.fact("%s: 1 of %d ports open: %d/tcp, not hidden yet", f.server, scanned, port)
	default:
		d.fact("%s: 0 of %d open, %d/tcp refuses like %d others", f.server, scanned, port, refused-1)
	}
}

// grant is a port that a knock opened.
type grant struct {
	family
	conn   net.Conn  // made while it was open
	asked  time.Time // before the knock
	opened time.Time // after the first connection
}

// walk knocks with the real client's steps and connects.
func (d *demo) walk(f family) grant {
	d.begin("steps")
	asked := time.Now()
	d.run(d.near, append([]string{"knock", f.server.String()}, steps...)...)
	d.fact("%s sent its %d steps to %s", f.client, len(steps), f.server)
	return d.opens(f, asked)
}

// run runs the real program and gives what it said.
func (d *demo) run(at *testnet.Namespace, args ...string) string {
	out, err := at.Output(d.program, args...)
	if err != nil {
		d.Fatalf("'sallyport %s' says: %s (%v)", args[0], out, err)
	}
	return out
}

// opens connects as soon as the port is open to the client.
func (d *demo) opens(f family, asked time.Time) grant {
	d.begin("open")
	g := grant{family: f, asked: asked}
	tries := 0
	var err error
	if !d.await(tryLimit, func() bool {
		tries++
		g.conn, err = dial(d.near, f.server, port)
		return err == nil
	}) {
		d.Fatalf("%d/tcp did not open to %s in %v: %v\n%s", port, f.client, tryLimit, err, d.daemon.Log())
	}
	g.opened = time.Now()
	d.Cleanup(func() { g.conn.Close() })
	d.fact("%d/tcp lets %s in, at try %d", port, f.client, tries)
	return g
}

// greeted reads the service's greeting through the open port.
func (d *demo) greeted(g grant) {
	d.begin("greeting")
	g.conn.SetDeadline(time.Now().Add(tryLimit))
	line, err := bufio.NewReaderSize(g.conn, 16).ReadString('\n')
	if err != nil || line != greeting {
		d.Fatalf("the service said %q to %s, not %q: %v", line, g.client, greeting, err)
	}
	d.fact("%d bytes for %s: %s", len(line), g.client, strings.TrimSpace(line))
}

// stranger shows that the grant is one address's.
func (d *demo) stranger(f family) {
	d.begin("stranger")
	if err := d.refused(d.far, f); err != nil {
		d.Fatalf("%s knocked at nothing and was not refused on %d/tcp: %v", f.stranger, port, err)
	}
	d.fact("%s is still refused, at 1 try of 1", f.stranger)
}

// closes waits for the end of a grant and wants it neither early nor late. What
// is known of its life: it began between asked and opened, and ended between
// the last try that got in and the first that did not. So the verdict holds on
// a busy machine too.
func (d *demo) closes(g grant, how string) {
	d.begin("closed")
	in, out := g.opened, time.Time{}
	var err error
	ended := d.await(openFor+tryLimit, func() bool {
		start := time.Now()
		var conn net.Conn
		if conn, err = dial(d.near, g.server, port); err == nil {
			conn.Close()
			in = start
			return in.Sub(g.opened) > openFor+slack
		}
		out = time.Now()
		return true
	})
	switch {
	case !ended || in.Sub(g.opened) > openFor+slack:
		d.Fatalf("%d/tcp still let %s in %s after it opened; its time was %v", port, g.client, took(in.Sub(g.opened)), openFor)
	case !errors.Is(err, syscall.ECONNREFUSED):
		d.Fatalf("%d/tcp does not look closed to %s: %v", port, g.client, err)
	case out.Sub(g.asked) < openFor-slack:
		d.Fatalf("%d/tcp shut %s out %s after the knock began; its time was %v", port, g.client, took(out.Sub(g.asked)), openFor)
	}
	d.fact("%s refused %s after it opened, %s", g.client, took(out.Sub(g.opened)), how)
}

// slack is what the kernel's timers may be off: set timeouts end at a tick,
// every 1 to 10 ms, and their users round to milliseconds.
const slack = 100 * time.Millisecond

// alive uses the connection that was made while the port was open.
func (d *demo) alive(g grant) {
	d.begin("alive")
	const word = "still here\n"
	g.conn.SetDeadline(time.Now().Add(tryLimit))
	echo := make([]byte, len(word))
	_, err := g.conn.Write([]byte(word))
	if err == nil {
		_, err = io.ReadFull(g.conn, echo)
	}
	if err != nil || string(echo) != word {
		d.Fatalf("the connection of %s did not outlive the closing: it echoed %q: %v", g.client, echo, err)
	}
	d.fact("%s's connection, %s old, echoes %d bytes", g.client, took(time.Since(g.opened)), len(echo))
}

// family is the addresses of one IP version.
type family struct {
	name                     string // under which the client stores the server
	server, client, stranger netip.Addr
}

var families = []family{
	{"home4", netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("198.51.100.9")},
	{"home6", netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::7"), netip.MustParseAddr("2001:db8:1::9")},
}
