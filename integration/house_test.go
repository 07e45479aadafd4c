package integration_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/internal/border"
	"github.com/sallyport/sallyport/internal/testnet"
)

// soon bounds every wait for something that happens at once on an idle machine.
const soon = 40 * time.Second

// The knock of the house. Its ports stand nowhere else, so that a test can
// search what the daemon says for them.
const (
	frontSteps = "47011/tcp 48022/udp 45033/tcp"
	frontHalf  = "47011/tcp 48022/udp"
	frontRest  = "45033/tcp"
)

// frontPorts are the numbers that no log, event or error may name.
var frontPorts = []string{"47011", "48022", "45033"}

// houseConfig guards 22/tcp with one knock, open for so long.
func houseConfig(openFor string) string {
	return `[service.ssh]
ports = ["22/tcp"]
open_for = "` + openFor + `"
max_open_for = "1h"
[knock.front]
type = "sequence"
opens = ["ssh"]
sequence = ["47011/tcp", "48022/udp", "45033/tcp"]
within = "30s"
`
}

// path is a way from the client to the server: one for each family.
type path struct {
	name           string
	client, server netip.Addr
}

var paths = []path{
	{"IPv4", netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")},
	{"IPv6", netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")},
}

// house is a server with a service at 22/tcp that says back what it hears, a
// client, the wire between them, and after serve the daemon.
type house struct {
	*testnet.Daemon
	t              *testing.T
	server, client *testnet.Namespace
	serverWire     string
	visitors       chan net.Conn // the server's ends, as they are accepted
}

// newHouse makes a house without a daemon, beside the other tests' houses.
func newHouse(t *testing.T) *house {
	t.Helper()
	h := &house{t: t, server: testnet.New(t), client: testnet.New(t), visitors: make(chan net.Conn, 64)}
	_, h.serverWire = testnet.Connect(h.client, h.server,
		[]string{"192.0.2.1/24", "2001:db8::1/64"}, []string{"192.0.2.2/24", "2001:db8::2/64"})
	h.listen(22)
	return h
}

// listen adds a service that says back what it hears.
func (h *house) listen(port int) {
	h.t.Helper()
	var l net.Listener
	var err error
	h.server.Do(func() { l, err = net.Listen("tcp", fmt.Sprintf(":%d", port)) })
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			select {
			case h.visitors <- c:
			default: // a probe that nobody asks for
			}
			go func() { io.Copy(c, c); c.Close() }()
		}
	}()
}

// Log is what the daemon has said since its last start, if there is one.
func (h *house) Log() string {
	if h.Daemon == nil {
		return ""
	}
	return h.Daemon.Log()
}

// serve starts the daemon and waits until it serves.
func (h *house) serve(config string, args ...string) {
	h.t.Helper()
	h.Daemon = h.server.Serve(testnet.Binary(h.t), config, args...)
}

// dial connects from the client to the server's port.
func (h *house) dial(p path, port int) (c net.Conn, err error) {
	h.t.Helper()
	d := net.Dialer{Timeout: 4 * time.Second, LocalAddr: &net.TCPAddr{IP: p.client.AsSlice()}}
	h.client.Do(func() { c, err = d.Dial("tcp", netip.AddrPortFrom(p.server, uint16(port)).String()) })
	return c, err
}

// open reports whether the client reaches the port now.
func (h *house) open(p path, port int) bool {
	h.t.Helper()
	c, err := h.dial(p, port)
	if err != nil {
		return false
	}
	c.Close()
	return true
}

// await waits until the port is open, or is not, by each of the paths.
func (h *house) await(want bool, port int, by ...path) {
	h.t.Helper()
	for _, p := range by {
		h.eventually(fmt.Sprintf("%s: port %d open: %v", p.name, port, want), func() bool { return h.open(p, port) == want })
	}
}

// is checks how the port is now, without waiting.
func (h *house) is(want bool, port int, by ...path) {
	h.t.Helper()
	for _, p := range by {
		if got := h.open(p, port); got != want {
			h.t.Errorf("%s: port %d open: %v, want %v", p.name, port, got, want)
		}
	}
}

// eventually polls until ok, and fails the test when it does not come.
func (h *house) eventually(what string, ok func() bool) {
	h.t.Helper()
	for end := time.Now().Add(soon); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			h.t.Fatalf("it never came to this: %s\n%s", what, h.Log())
		}
	}
}

// knock sends steps from the client.
func (h *house) knock(p path, steps string) {
	h.t.Helper()
	sequence, err := sallyport.ParseSequence(steps)
	if err != nil {
		h.t.Fatal(err)
	}
	plan, err := sequence.Plan(p.client, p.server)
	if err != nil {
		h.t.Fatal(err)
	}
	h.client.Do(func() { err = plan.Send(context.Background()) })
	if err != nil {
		h.t.Fatal(err)
	}
}

// enter knocks and waits until the port is open.
func (h *house) enter(by ...path) {
	h.t.Helper()
	for _, p := range by {
		h.knock(p, frontSteps)
		h.await(true, 22, p)
	}
}

// must is Tool that fails the test if the tool fails.
func (h *house) must(command string, args ...string) string {
	h.t.Helper()
	out, err := h.Tool(command, args...)
	if err != nil {
		h.t.Fatalf("%s %v: %v\n%s\n%s", command, args, err, out, h.Log())
	}
	return out
}

// grants is what the daemon lists.
func (h *house) grants() []border.Grant {
	h.t.Helper()
	var list []border.Grant
	var out string
	h.eventually("the grants are listed", func() bool { // a slow list makes the next one wait
		var err error
		out, err = h.Tool("grants", "--json")
		if err != nil && !strings.Contains(out, "listed too often") {
			h.t.Fatalf("grants: %v\n%s\n%s", err, out, h.Log())
		}
		return err == nil
	})
	for line := range strings.Lines(out) {
		var g border.Grant
		if err := json.Unmarshal([]byte(line), &g); err != nil {
			h.t.Fatalf("%q: %v", line, err)
		}
		list = append(list, g)
	}
	return list
}

// table is our table as nft(8) prints it, without what changes by itself; ""
// where there is none.
func (h *house) table() string {
	out, err := h.server.Output("nft", "--stateless", "list", "table", "inet", "sallyport")
	if err != nil {
		return ""
	}
	return out
}

// end waits for the daemon's end and checks its status and what it said.
func (h *house) end(status int, said ...string) {
	h.t.Helper()
	if got := h.Wait(); got != status {
		h.t.Errorf("it ended with status %d, want %d\n%s", got, status, h.Log())
	}
	h.said(said...)
}

// said checks that the daemon has said each of the texts by now.
func (h *house) said(texts ...string) {
	h.t.Helper()
	for _, text := range texts {
		if !strings.Contains(h.Log(), text) {
			h.t.Errorf("it never said %q:\n%s", text, h.Log())
		}
	}
}

// reload has the daemon read this config, and waits for what it says of it.
// Each reload of a test must give another answer: the log is not cleared.
func (h *house) reload(config, answer string) {
	h.t.Helper()
	before := strings.Count(h.Log(), answer)
	h.Configure(config)
	h.Signal(syscall.SIGHUP)
	h.eventually("it says "+answer, func() bool { return strings.Count(h.Log(), answer) > before })
}

const (
	readAgain = "the config was read again"
	refusal   = "the new config is refused and the one before stays in use"
)

// enginePid is the one child of the warden, whichever thread started it.
func (h *house) enginePid() int {
	h.t.Helper()
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", h.Cmd.Process.Pid))
	for _, name := range files {
		text, _ := os.ReadFile(name)
		for field := range strings.FieldsSeq(string(text)) {
			pid, _ := strconv.Atoi(field)
			return pid
		}
	}
	h.t.Fatal("the warden has no child")
	return 0
}

// gone waits until no such process is left.
func (h *house) gone(pid int) {
	h.t.Helper()
	h.eventually(fmt.Sprintf("process %d is gone", pid), func() bool { return syscall.Kill(pid, 0) == syscall.ESRCH })
}

// wrapper is a program that starts the daemon's binary behind other words of
// a shell, such as "env NAME=value"; %s stands for the binary.
func wrapper(t *testing.T, words string) string {
	t.Helper()
	dir := t.TempDir()
	name := filepath.Join(dir, "sallyport")
	text := "#!/bin/sh\nexec " + strings.ReplaceAll(words, "%s", testnet.Binary(t)) + ` "$@"` + "\n"
	if err := testnet.WriteProgram(name, []byte(text)); err != nil {
		t.Fatal(err)
	}
	return name
}

// call is an established connection.
type call struct {
	client, server net.Conn
	by             path
}

// call makes a connection through an open port and takes both ends.
func (h *house) call(p path) call {
	h.t.Helper()
	c, err := h.dial(p, 22)
	if err != nil {
		h.t.Fatalf("%s: %v\n%s", p.name, err, h.Log())
	}
	h.t.Cleanup(func() { c.Close() })
	for v := range h.visitors { // probes from before come first
		if v.RemoteAddr().String() == c.LocalAddr().String() {
			return call{c, v, p}
		}
	}
	panic("the house is closed")
}

// lives checks that both ends still hear each other, the server speaking first
// and the client speaking first.
func (h *house) lives(when string, calls ...call) {
	h.t.Helper()
	for _, c := range calls {
		for _, from := range []struct {
			name  string
			write net.Conn
		}{{"the server", c.server}, {"the client", c.client}} {
			var b [4]byte
			c.client.SetDeadline(time.Now().Add(5 * time.Second))
			_, err := from.write.Write([]byte("ping"))
			if err == nil {
				_, err = io.ReadFull(c.client, b[:]) // the server says back what it hears
			}
			if err != nil {
				h.t.Errorf("%s, %s speaks on a live connection after %s: %v", c.by.name, from.name, when, err)
			}
		}
	}
}
