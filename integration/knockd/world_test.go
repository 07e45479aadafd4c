// Package knockd_test runs the program under the names knockd and knock, on files
// as people have them, against the clients that people knock with.
package knockd_test

import (
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/testnet"
)

// soon bounds every wait for something that happens at once on an idle machine.
const soon = 30 * time.Second

func TestMain(m *testing.M) {
	flag.Set("test.parallel", "6") // not as many as processors: they mostly wait
	flag.Parse()
	os.Exit(testnet.Main(m))
}

// family is a way from the client to the server.
type family struct {
	name, client, server string
	flag                 string // for programs that assume IPv4 otherwise
}

var families = []family{
	{"IPv4", "192.0.2.1", "192.0.2.2", ""},
	{"IPv6", "2001:db8::1", "2001:db8::2", "-6"},
}

// world is a server, a client, the wire between them and a directory for files.
type world struct {
	t                      *testing.T
	server, client         *testnet.Namespace
	clientWire, serverWire string
	dir                    string
	knockd, knock          string // our program's other names
}

func newWorld(t *testing.T) *world {
	t.Helper()
	t.Parallel()
	for _, name := range []string{"/usr/sbin/knockd", "/usr/bin/knock"} {
		if _, err := os.Stat(name); err != nil {
			t.Fatalf("%s is missing; 'make test' installs it", name)
		}
	}
	w := &world{t: t, server: testnet.New(t), client: testnet.New(t)}
	w.clientWire, w.serverWire = testnet.Connect(w.client, w.server,
		[]string{"192.0.2.1/24", "2001:db8::1/64"}, []string{"192.0.2.2/24", "2001:db8::2/64"})
	dir, err := os.MkdirTemp("", "sallyport-knockd-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	os.Chmod(dir, 0o755) // one daemon here is not root's
	w.dir, w.knockd, w.knock = dir, filepath.Join(dir, "knockd"), filepath.Join(dir, "knock")
	for _, name := range []string{w.knockd, w.knock} {
		if err := os.Symlink(testnet.Binary(t), name); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

// named puts this world's names into a text.
func (w *world) named(text string) string {
	return strings.NewReplacer("DIR", w.dir, "WIRE", w.serverWire).Replace(text)
}

// write writes a file, in which DIR and WIRE stand for this world's.
func (w *world) write(name, text string) {
	w.t.Helper()
	if err := testnet.WriteProgram(filepath.Join(w.dir, name), []byte(w.named(text))); err != nil {
		w.t.Fatal(err)
	}
}

// read gives a file, "" where there is none.
func (w *world) read(name string) string {
	text, _ := os.ReadFile(filepath.Join(w.dir, name))
	return string(text)
}

// eventually polls until a condition holds.
func (w *world) eventually(what string, holds func() bool) {
	w.t.Helper()
	for end := time.Now().Add(soon); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			w.t.Fatalf("it never came to this: %s", what)
		}
	}
}

// daemon is a process that is to serve a knockd.conf.
type daemon struct {
	*exec.Cmd
	w     *world
	out   *testnet.Output // both streams
	ended chan struct{}
}

// start starts a program in the server, where our state lies in this world's
// directory. A shell command before it can change its mounts and its rights.
func (w *world) start(prepare, program string, args ...string) *daemon {
	w.t.Helper()
	os.MkdirAll(filepath.Join(w.dir, "lib"), 0o755)
	os.MkdirAll(filepath.Join(w.dir, "run"), 0o755)
	script := w.named("set -e; cd DIR\nmount --make-rprivate /; mkdir -p /var/lib/sallyport /run/sallyport\n" +
		"mount --bind lib /var/lib/sallyport; mount --bind run /run/sallyport\n" + prepare + "\nexec \"$@\"")
	argv := []string{"-m", "sh", "-c", script, "sh", program}
	for _, arg := range args {
		argv = append(argv, w.named(arg))
	}
	d := &daemon{Cmd: exec.Command("unshare", argv...), w: w, out: new(testnet.Output), ended: make(chan struct{})}
	// What a command of the original's leaves behind holds its streams open.
	d.Stdout, d.Stderr, d.WaitDelay = d.out, d.out, 100*time.Millisecond
	if err := w.server.Start(d.Cmd); err != nil {
		w.t.Fatal(err)
	}
	go func() { d.Cmd.Wait(); close(d.ended) }()
	w.t.Cleanup(func() { d.Process.Kill(); <-d.ended })
	return d
}

// serve starts ours on a config of the given name and waits until it hears knocks.
func (w *world) serve(name, config string, args ...string) *daemon {
	w.t.Helper()
	w.write(name, config)
	return w.again(name, args...)
}

// again is serve with the file as it is by now.
func (w *world) again(name string, args ...string) *daemon {
	w.t.Helper()
	d := w.start("", w.knockd, append([]string{"-c", "DIR/" + name, "-v"}, args...)...)
	d.await("listening on", 1)
	return d
}

// said counts a text in what the daemon has written.
func (d *daemon) said(text string) int { return strings.Count(d.out.String(), text) }

// await waits until the daemon has written a text so many times.
func (d *daemon) await(text string, times int) {
	d.w.t.Helper()
	for end := time.Now().Add(soon); d.said(text) < times; time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			d.w.t.Fatalf("it did not say %q %d times:\n%s", text, times, d.out)
		}
	}
}

// status waits for the end and gives the exit status, -1 for a signal.
func (d *daemon) status() int {
	d.w.t.Helper()
	select {
	case <-d.ended:
	case <-time.After(soon):
		d.w.t.Fatalf("it did not end:\n%s", d.out)
	}
	return d.ProcessState.ExitCode()
}

// ends signals the daemon and checks its status.
func (d *daemon) ends(sig syscall.Signal, want int) {
	d.w.t.Helper()
	d.Process.Signal(sig)
	if got := d.status(); got != want {
		d.w.t.Errorf("status %d after %v, want %d:\n%s", got, sig, want, d.out)
	}
}

// hit knocks with the original's client.
func (w *world) hit(f family, ports ...string) { w.hitAt(f.server, ports...) }

func (w *world) hitAt(addr string, ports ...string) {
	w.t.Helper()
	w.client.Run("/usr/bin/knock", append([]string{"-d", "2", addr}, ports...)...)
}

// opened is the line that says that a door opened.
func opened(f family, door string) string { return f.client + ": " + door + ": OPEN SESAME" }

// fence is a door whose opening says that what was sent before was looked at: the
// log keeps the order of packets.
const fence = "\n[fence]\nsequence = 6000\ntcpflags = syn\n"

func (d *daemon) fence(f family) {
	d.w.t.Helper()
	n := d.said(opened(f, "fence"))
	d.w.hit(f, "6000")
	d.await(opened(f, "fence"), n+1)
}

// moment is a line of the file that commands write: a word, an address and when.
type moment struct {
	what, addr string
	at         time.Time
}

// note is a shell command that writes a moment.
func note(what, file string) string {
	return fmt.Sprintf(`echo "%s %%IP%% $(date +%%s%%N)" >> DIR/%s`, what, file)
}

// moments gives those of one word and address.
func (w *world) moments(file, what, addr string) (list []moment) {
	w.t.Helper()
	for line := range strings.Lines(w.read(file)) {
		fields := strings.Fields(line)
		if len(fields) != 3 || !strings.HasSuffix(line, "\n") {
			continue // it is being written
		}
		ns, err := strconv.ParseInt(fields[2], 10, 64)
		if err != nil {
			w.t.Fatalf("%s has the line %q", file, line)
		}
		if fields[0] == what && fields[1] == addr {
			list = append(list, moment{fields[0], fields[1], time.Unix(0, ns)})
		}
	}
	return list
}

// ran waits for so many moments.
func (w *world) ran(file, what, addr string, times int) []moment {
	w.t.Helper()
	w.eventually(fmt.Sprintf("%d times %q for %s", times, what, addr), func() bool { return len(w.moments(file, what, addr)) >= times })
	return w.moments(file, what, addr)
}

// listen lets a port of the server answer.
func (w *world) listen(port int) {
	w.t.Helper()
	var l net.Listener
	var err error
	w.server.Do(func() { l, err = net.Listen("tcp", fmt.Sprintf(":%d", port)) })
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { l.Close() })
	go func() {
		for c, err := l.Accept(); err == nil; c, err = l.Accept() {
			c.Close()
		}
	}()
}

// reaches reports whether the client can connect to a port now.
func (w *world) reaches(f family, port int) bool {
	w.t.Helper()
	var c net.Conn
	var err error
	w.client.Do(func() { c, err = net.DialTimeout("tcp", net.JoinHostPort(f.server, strconv.Itoa(port)), time.Second) })
	if err != nil {
		return false
	}
	c.Close()
	return true
}

// awaitPort waits until the client can connect, or can't.
func (w *world) awaitPort(f family, port int, want bool) {
	w.t.Helper()
	w.eventually(fmt.Sprintf("%s: port %d reached: %v", f.name, port, want), func() bool { return w.reaches(f, port) == want })
}
