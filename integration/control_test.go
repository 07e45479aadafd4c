package integration_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/control"
	"github.com/sallyport/sallyport/internal/testnet"
)

func TestTheControlSocketIsRootsAlone(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.serve(houseConfig("30s"))
	sockets := []string{h.Control, control.ChangeSocket(h.Control)}
	for _, path := range sockets {
		if info, err := os.Stat(path); err != nil || info.Mode() != os.ModeSocket|0o600 {
			t.Fatalf("%s: %v, %v", path, info, err)
		}
	}
	asStranger := func() string {
		t.Helper()
		out, err := h.server.Output("setpriv", "--reuid=65533", "--regid=65533", "--clear-groups",
			testnet.Binary(t), "open", "--control", h.Control, "ssh", "192.0.2.1")
		if err == nil {
			t.Errorf("a stranger was heard: %s", out)
		}
		return out
	}
	os.Chmod(h.Dir, 0o755)
	contains(t, asStranger(), "may be used by root alone; try again with sudo")
	// The mode is not the only wall: the kernel says who is there.
	for _, path := range sockets {
		os.Chmod(path, 0o666)
	}
	contains(t, asStranger(), "only root and the daemon's own user may ask")
	h.Await("a connection to the control socket was refused")
	if list := h.grants(); len(list) != 0 {
		t.Errorf("a stranger opened %v", list)
	}
}

// Promise 1: who only asks gives the engine no leave to change anything, whatever
// strangers made of it.
func TestPromise1AskingGivesNoLeaveToChange(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.serve(houseConfig("30s"), "--undo-after", "1m")
	for _, request := range []string{
		`{"do":"open","service":"ssh","addr":"192.0.2.1"}`, `{"do":"open","service":"ssh","addr":"2001:db8::1"}`,
		`{"do":"close","addr":"192.0.2.1"}`, `{"do":"confirm"}`,
	} {
		c := h.connect()
		c.SetDeadline(time.Now().Add(soon))
		io.WriteString(c, request+"\n")
		if answer, err := io.ReadAll(c); err != nil || !strings.Contains(string(answer), `"error"`) {
			t.Errorf("%s: %s, %v", request, answer, err)
		}
	}
	if list := h.grants(); len(list) != 0 {
		t.Errorf("granted %v", list)
	}
	if table := h.table(); !strings.Contains(table, "tcp . 22 timeout") {
		t.Errorf("the trial was confirmed:\n%s", table)
	}
}

// connect is a raw connection to the control socket.
func (h *house) connect() net.Conn {
	h.t.Helper()
	c, err := net.Dial("unix", h.Control)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { c.Close() })
	return c
}

func TestAbuseOfTheControlSocketStopsNothing(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.serve(houseConfig("1s"))
	knockWorks := func(during string) {
		t.Helper()
		for _, p := range paths {
			before := strings.Count(h.Log(), " open ")
			h.knock(p, frontSteps)
			h.eventually("a knock opens during "+during, func() bool { return strings.Count(h.Log(), " open ") > before })
		}
	}
	for _, c := range []struct{ name, line, want string }{
		{"garbage", "\x00\xff\x16\x03\x01 nothing\n", "the request is not understood"},
		{"an unknown request", `{"do":"dance"}` + "\n", "does not know the request"},
		{"an unknown field", `{"do":"status","as":"root"}` + "\n", "the request is not understood"},
		{"no address", `{"do":"open","service":"ssh"}` + "\n", "needs an IPv4 or IPv6 address"},
	} {
		conn := h.connect()
		conn.Write([]byte(c.line))
		if got, _ := gets(conn, soon); !strings.Contains(got, c.want) {
			t.Errorf("%s: answered %q, want %q", c.name, got, c.want)
		}
		knockWorks(c.name)
	}
	long := h.connect()
	go long.Write(make([]byte, 1<<20))
	if got, err := gets(long, soon); got != "" || os.IsTimeout(err) {
		t.Errorf("a line of 1 MiB: answered %q, %v", got, err)
	}
	knockWorks("a line of 1 MiB")

	deaf := h.connect()
	deaf.Write([]byte(`{"do":"events"}` + "\n")) // and never reads
	silent := h.connect()
	silent.Write([]byte(`{"do":"sta`))
	began := time.Now()
	var crowd []net.Conn
	for range 100 {
		crowd = append(crowd, h.connect())
	}
	knockWorks("a crowd of 100, a deaf follower and half a line")
	for _, c := range crowd {
		c.Close()
	}
	h.eventually("status answers again", func() bool { _, err := h.Tool("status"); return err == nil })
	if got, err := gets(silent, soon); got != "" || os.IsTimeout(err) {
		t.Errorf("half a line: answered %q, %v", got, err)
	}
	if d := time.Since(began); d < 9*time.Second || d > 13*time.Second {
		t.Errorf("half a line was waited for %v, want 10s", d)
	}
	knockWorks("the end")
}

// Status leaves its ticket unused: asking often must not shut the
// administrator out.
func TestStatusMayBeAskedOften(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.serve(houseConfig("30s"))
	for range 200 {
		c := h.connect()
		c.Write([]byte(`{"do":"status"}` + "\n"))
		if got, err := gets(c, soon); !strings.Contains(got, `"status":{`) {
			t.Fatalf("%q, %v", got, err)
		}
		c.Close()
	}
	h.must("open", "ssh", "192.0.2.1")
}

func TestToolsPrintJSON(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.serve(houseConfig("30s"))
	parsed := func(into any, command string, args ...string) {
		t.Helper()
		if out := h.must(command, append([]string{"--json"}, args...)...); json.Unmarshal([]byte(out), into) != nil {
			t.Errorf("%s: %s", command, out)
		}
	}
	var status control.Status
	parsed(&status, "status")
	if status.Services != 1 || status.Knocks != 1 || status.Generation != 1 || len(status.Sandbox) < 10 {
		t.Errorf("%+v", status)
	}
	for _, p := range status.Sandbox {
		if !p.Proven {
			t.Errorf("%s is not proven: %s", p.Part, p.Why)
		}
	}
	for _, p := range paths {
		var done control.Done
		parsed(&done, "open", "ssh", p.client.String(), "--for", "1m")
		if done.Result != "granted" || time.Until(done.Until) < 50*time.Second {
			t.Errorf("open: %+v", done)
		}
		if list := h.grants(); len(list) != 1 || list[0].Addr != p.client || list[0].By != "the administrator" {
			t.Errorf("grants: %v", list)
		}
		parsed(&done, "close", p.client.String())
		if done.Result != "closed" || done.Count != 1 {
			t.Errorf("close: %+v", done)
		}
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"open", "shs", "192.0.2.1"}, "there is no service shs"},
		{[]string{"open", "ssh", "192.0.2.1", "--for", "61m"}, "longer than the rule allows"},
		{[]string{"open", "ssh", "192.0.2.300"}, "192.0.2.300"},
		{[]string{"open", "ssh", "fe80::1%eth0"}, "without a zone"},
		{[]string{"close", "shs", "192.0.2.1"}, "there is no service shs"},
	} {
		out, err := h.Tool(c.args[0], c.args[1:]...)
		if err == nil || !strings.Contains(out, c.want) {
			t.Errorf("%v: %v, %s, want %q", c.args, err, out, c.want)
		}
	}
}

// Who reads the log must not learn the knock.
func TestNothingNamesAStep(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.serve(houseConfig("1m"))
	var all strings.Builder
	follower := h.connect()
	follower.Write([]byte(`{"do":"events"}` + "\n"))
	plain := h.follow("events")
	h.eventually("both follow", func() bool {
		h.knock(paths[1], "47011/tcp 45040/tcp")
		return strings.Contains(plain(), "lost")
	})
	for _, p := range paths {
		h.enter(p)
		h.knock(p, "47011/tcp 45040/tcp") // a wrong one
	}
	h.must("close", paths[0].client.String())
	h.reload(strings.ReplaceAll(houseConfig("1m"), `"45033/tcp"`, `"4503300/tcp"`), refusal)
	h.reload(houseConfig("2m"), readAgain)
	h.Signal(syscall.SIGTERM)
	h.end(0)
	events, _ := gets(follower, soon)
	h.eventually("the follower ends", func() bool { return strings.Contains(plain(), "the daemon ended") })
	for _, out := range []string{events, plain()} {
		contains(t, out, "step", "lost", "knock", "open", "closed", "reload", paths[0].client.String(), paths[1].client.String())
		all.WriteString(out)
	}
	for line := range strings.Lines(events) {
		var a control.Answer
		if err := json.Unmarshal([]byte(line), &a); err != nil || a.Event == nil {
			t.Errorf("%q: %v", line, err)
		}
	}
	all.WriteString(h.Log())
	h.Start()
	h.Await("serving")
	h.knock(paths[0], frontHalf)
	for _, command := range []string{"status", "grants"} {
		all.WriteString(h.must(command) + h.must(command, "--json"))
	}
	for _, port := range frontPorts {
		if strings.Contains(all.String(), port) {
			t.Errorf("the step %s is named:\n%s", port, all.String())
		}
	}
}

// follow runs a tool that does not end by itself, and gives what it has said.
func (h *house) follow(command string, args ...string) func() string {
	h.t.Helper()
	out, err := os.CreateTemp(h.t.TempDir(), command)
	if err != nil {
		h.t.Fatal(err)
	}
	cmd := toolCommand(h, command, args...)
	cmd.Stdout, cmd.Stderr = out, out
	if err := h.server.Start(cmd); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return func() string {
		text, err := os.ReadFile(out.Name())
		if err != nil {
			return fmt.Sprint(err)
		}
		return string(text)
	}
}

func toolCommand(h *house, command string, args ...string) *exec.Cmd {
	return exec.Command(testnet.Binary(h.t), append([]string{command, "--control", h.Control}, args...)...)
}

// Somebody who asks with a pipe shuts his side as soon as he has asked.
func TestAHalfClosedClientGetsItsAnswer(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.serve(houseConfig("1h"))
	for range 20 {
		conn, err := net.Dial("unix", h.Control)
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(soon))
		io.WriteString(conn, `{"do":"grants"}`+"\n")
		conn.(*net.UnixConn).CloseWrite()
		if answer, err := io.ReadAll(conn); err != nil || !strings.Contains(string(answer), `"grants"`) {
			t.Errorf("got %q, %v", answer, err)
		}
		conn.Close()
	}
}
