package integration_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/control"
	"github.com/sallyport/sallyport/internal/testnet"
)

// tcpdump captures at the server until the function that it gives is called, which
// says where the file is.
func (h *house) tcpdump(args ...string) (stop func() string) {
	h.t.Helper()
	file := filepath.Join(h.t.TempDir(), "capture")
	var said testnet.Output
	cmd := exec.Command("tcpdump", append([]string{"-Z", "root", "-n", "-U", "--immediate-mode", "-w", file}, args...)...)
	cmd.Stderr = &said
	if err := h.server.Start(cmd); err != nil {
		h.t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { cmd.Wait(); close(ended) }()
	h.t.Cleanup(func() { cmd.Process.Kill(); <-ended })
	h.eventually("tcpdump listens", func() bool { return strings.Contains(said.String(), "listening on") })
	return func() string {
		cmd.Process.Signal(syscall.SIGINT)
		<-ended
		return file
	}
}

// replay runs 'sallyport replay' and gives both streams.
func replay(t *testing.T, args ...string) (string, error) {
	t.Helper()
	out, err := exec.Command(testnet.Binary(t), append([]string{"replay"}, args...)...).CombinedOutput()
	return string(out), err
}

// gist is what two runs have in common: all of an event but its time, and how far
// its end is from that.
func gist(e *control.Event) string {
	left := time.Duration(0)
	if !e.Until.IsZero() {
		left = e.Until.Sub(e.Time).Round(time.Second)
	}
	return fmt.Sprintf("%s %v %s %s %s %d %v %s", e.What, e.Addr, e.Knock, e.Service, e.Key, e.Stage, left, e.Why)
}

// parsed gives the events of a JSON output, without those that only replay has.
func parsed(t *testing.T, out string) (list []*control.Event) {
	t.Helper()
	for line := range strings.Lines(out) {
		e := new(control.Event)
		if !strings.HasPrefix(line, "{") {
			continue // for people
		}
		if err := json.Unmarshal([]byte(line), e); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if e.What != control.EventAssumed && e.What != control.EventEnd {
			list = append(list, e)
		}
	}
	return list
}

// gists gives what packets did, in their order, and behind it what the warden
// answered: in the daemon that comes when it comes.
func gists(list []*control.Event) (all []string) {
	var answers []string
	for _, e := range list {
		if e.What == control.EventOpen {
			answers = append(answers, gist(e))
		} else {
			all = append(all, gist(e))
		}
	}
	return append(all, answers...)
}

// What replay tells of a capture is what the daemon told while it was made: by
// sequences and by spa, right and wrong, in both families.
func TestReplayTellsWhatTheDaemonTold(t *testing.T) {
	t.Parallel()
	good := newUser(1)
	h := spadNewHouse(t, good.line("good"))
	h.serve(h.text("", h.door(""), "[knock.front]\ntype = \"sequence\"\nopens = [\"ssh\"]\nsequence = [\"47011/tcp\", \"48022/udp\", \"45033/tcp\"]\n"))
	live := h.follow("events", "--json")
	h.listenToEvents() // behind the other
	captures := []func() string{h.tcpdump("-i", h.serverWire), h.tcpdump("-i", "any")}
	short := h.tcpdump("-i", h.serverWire, "-s", "96")
	for i, p := range paths {
		h.knock(p, frontSteps)
		h.knock(p, "47011/tcp 45040/tcp 47011/tcp 48022/udp")
		h.asks(p, good, nil)
		h.asks(paths[1-i], newUser(2), nil)
		h.house.server.Run(testnet.Binary(t), append([]string{"knock", p.server.String()}, strings.Fields(frontSteps)...)...) // at itself: nobody hears that
	}
	h.eventually("all is told", func() bool { return strings.Count(live(), `"refused"`) == 2 })
	want := gists(parsed(t, live()))
	if len(want) < 14 {
		t.Fatalf("the daemon told %q", want)
	}
	for i, stop := range captures {
		file, stopped := stop(), time.Now()
		for _, args := range [][]string{{}, {"--host", paths[0].server.String(), "--host", paths[1].server.String()}} {
			out, err := replay(t, append([]string{"--json", "-c", h.Config(), file}, args...)...)
			if err != nil {
				t.Fatalf("capture %d: %v\n%s", i, err, out)
			}
			list := parsed(t, out)
			for _, e := range list {
				if e.Time.After(stopped) {
					t.Errorf("capture %d: %s is of %v, behind the end of the capture", i, gist(e), e.Time)
				}
			}
			if got := gists(list); !slices.Equal(got, want) {
				t.Errorf("capture %d %q:\n got %s\nwant %s", i, args, strings.Join(got, "\n     "), strings.Join(want, "\n     "))
			}
			for _, e := range parsed(t, live()) {
				near := func(r *control.Event) bool { return gist(r) == gist(e) && r.Time.Sub(e.Time).Abs() < time.Second }
				if !slices.ContainsFunc(list, near) {
					t.Errorf("capture %d: nothing like %s at %v", i, gist(e), e.Time)
				}
			}
		}
		for _, p := range paths {
			out, err := replay(t, "-c", h.Config(), "--explain", p.client.String(), file)
			if err != nil {
				t.Fatal(err, out)
			}
			contains(t, out, "47011/tcp SYN: front: step 1 of 3 made", "48022/udp of 8 bytes: front: step 2 of 3 made", "front: open ssh for "+p.client.String(),
				"45040/tcp SYN: front: this is not the port that step 2 wants; the attempt ends", "keys: signed by an allowed key, fresh and allowed",
				"keys: refused: its key is not in authorized_keys: SHA256:", p.client.String()+" got in: ssh by front until ")
		}
	}
	out, err := replay(t, "-c", h.Config(), short())
	if err != nil {
		t.Error(err)
	}
	contains(t, out, " open address=192.0.2.1 knock=front service=ssh", "of 4 packets to knocks the file has only the beginning")
	h.asAnybody(captures[0](), "the replay is without these knocks, whose files could not be used: keys")
}

// asAnybody replays as a user without any privilege, who may not read the keys.
func (h *spadHouse) asAnybody(file, want string) {
	h.t.Helper()
	dir, err := os.MkdirTemp("", "sallyport-anybody-")
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { os.RemoveAll(dir) })
	os.Chmod(dir, 0o755)
	for from, to := range map[string]string{file: "capture", h.Config(): "config"} {
		text, err := os.ReadFile(from)
		if err != nil {
			h.t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, to), text, 0o644); err != nil {
			h.t.Fatal(err)
		}
	}
	out, err := exec.Command("setpriv", "--reuid=65533", "--regid=65533", "--clear-groups", testnet.Binary(h.t),
		"replay", "-c", filepath.Join(dir, "config"), filepath.Join(dir, "capture")).CombinedOutput()
	if exit, failed := err.(*exec.ExitError); !failed || exit.ExitCode() != 1 {
		h.t.Errorf("as anybody: %v", err)
	}
	contains(h.t, string(out), want, " open address=192.0.2.1 knock=front service=ssh", " open address=2001:db8::1 knock=front service=ssh",
		"this knock is left out of the replay")
	if strings.Contains(string(out), "walls") {
		h.t.Errorf("as anybody, of walls that only root can build: %s", out)
	}
}

// The process that reads a stranger's capture has none of its starter's rights.
func TestPromise1ACaptureIsReadWithoutPrivilege(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	dir := t.TempDir()
	fifo, cfg := filepath.Join(dir, "fifo"), filepath.Join(dir, "config")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(cfg, []byte(houseConfig("30s")), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(testnet.Binary(t), "replay", "-c", cfg, fifo)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	f, err := os.OpenFile(fifo, os.O_WRONLY, 0) // waits for the reader; what it says never comes
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	children := fmt.Sprintf("/proc/%d/task/%[1]d/children", cmd.Process.Pid)
	engine := ""
	h.eventually("the engine is confined", func() bool {
		for _, of := range threads(cmd.Process.Pid) {
			text, _ := os.ReadFile(of)
			if fields := strings.Fields(string(text)); len(fields) > 0 {
				engine = fields[0]
			}
		}
		text, _ := os.ReadFile("/proc/" + engine + "/status")
		return engine != "" && strings.Contains(string(text), "Seccomp:\t2")
	})
	status, err := os.ReadFile("/proc/" + engine + "/status")
	if err != nil {
		t.Fatal(err, children)
	}
	contains(t, string(status), "NoNewPrivs:\t1", "CapPrm:\t0000000000000000", "CapBnd:\t0000000000000000")
	if strings.Contains(string(status), "\nUid:\t0") {
		t.Errorf("it is root:\n%s", status)
	}
	fds, err := os.ReadDir("/proc/" + engine + "/fd")
	if err != nil || len(fds) > 9 {
		t.Errorf("%d descriptors, %v", len(fds), err)
	}
}

// threads gives the files that name the children of each thread of a process.
func threads(pid int) []string {
	list, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	return list
}

func TestReplayRefuses(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.serve(houseConfig("30s"))
	stop := h.tcpdump("-i", h.serverWire, "port", "47011", "or", "port", "48022")
	h.knock(paths[0], frontHalf)
	h.knock(paths[1], frontHalf)
	time.Sleep(200 * time.Millisecond) // for tcpdump to write
	file := stop()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name string, b []byte) string {
		path := filepath.Join(h.Dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, c := range []struct {
		args   []string
		status int
		want   string
	}{
		{[]string{file}, 0, "step address=192.0.2.1 knock=front steps_made=2"},
		{[]string{file, "--explain", "192.0.2.1"}, 0, "192.0.2.1 did not get in: front: step 2 of 3 made (48022/udp of 8 bytes)\ntry: the steps behind this one"},
		{[]string{file, "--explain", "192.0.2.99"}, 0, "192.0.2.99 did not get in: no packet of its is in the capture"},
		{[]string{file, "--host", "192.0.2.99"}, 0, ""},
		{[]string{file, "--host", "192.0.2.99", "--explain", "2001:db8::1"}, 0, "which is no address of this host"},
		{[]string{write("cut", text[:len(text)-3])}, 1, "the file is cut"},
		{[]string{write("head", text[:24])}, 0, "no packet is in the capture"},
		{[]string{write("less", text[:23])}, 1, "the file is cut"},
		{[]string{write("gzip", []byte("\x1f\x8b\x08\x00\x00"))}, 1, "the file is compressed; unpack it first"},
		{[]string{write("text", []byte("a text\n"))}, 1, "this is no capture file"},
		{[]string{write("empty", nil)}, 1, "it is no capture"},
		{[]string{h.Dir}, 2, "is a directory"},
		{[]string{filepath.Join(h.Dir, "none")}, 2, "no such file"},
		{[]string{file, "--explain", "fe80::1%eth0"}, 2, "without a zone"},
		{[]string{file, "--host", "x"}, 2, "is not an address"},
	} {
		out, err := replay(t, append([]string{"-c", h.Config()}, c.args...)...)
		status := 0
		if exit, failed := err.(*exec.ExitError); failed {
			status = exit.ExitCode()
		}
		if status != c.status || !strings.Contains(out, c.want) {
			t.Errorf("%q: status %d, want %d and %q:\n%s", c.args, status, c.status, c.want, out)
		}
	}
	piped := exec.Command(testnet.Binary(t), "replay", "-c", h.Config(), "-")
	piped.Stdin = bytes.NewReader(text)
	if out, err := piped.CombinedOutput(); err != nil || !strings.Contains(string(out), "step address=192.0.2.1 knock=front steps_made=2") {
		t.Errorf("from standard input: %v\n%s", err, out)
	}
	out, err := replay(t, "-c", h.Config(), "--explain", "192.0.2.1", "--json", file)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if last := lines[len(lines)-1]; err != nil || !strings.HasPrefix(last, `{"what":"verdict","addr":"192.0.2.1","in":false,"why":"front: step 2 of 3 made (48022/udp of 8 bytes)","try":"`) {
		t.Errorf("%v: the last line is no verdict:\n%s", err, out)
	}
	if out, _ := replay(t, "-c", write("bad", []byte("[servce.ssh]\n")), file); !strings.Contains(out, "bad:1") {
		t.Errorf("a wrong config: %s", out)
	}
}

// The live explanation says the same as the replayed one, to those alone who came
// by the socket for changes, and to no more than four.
func TestExplainLive(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.serve(houseConfig("30s"))
	told := map[path]func() string{}
	for _, p := range paths {
		told[p] = h.follow("explain", p.client.String())
	}
	byJSON := h.follow("explain", "--json", "--for", "30s", paths[0].client.String())
	for _, p := range paths {
		h.eventually("it is told", func() bool {
			h.knock(p, "45033/tcp")
			return strings.Contains(told[p](), "45033/tcp SYN: front: this is step 3, and step 1 did not come before it") &&
				(p != paths[0] || byJSON() != "")
		})
		h.knock(p, "47011/tcp 45040/tcp")
		h.enter(p)
		h.eventually("it is open", func() bool { return strings.Contains(told[p](), "front: open ssh for "+p.client.String()) })
		contains(t, told[p](), "47011/tcp SYN: front: step 1 of 3 made", "45040/tcp SYN: front: this is not the port that step 2 wants; the attempt ends",
			"48022/udp of 8 bytes: front: step 2 of 3 made", "45033/tcp SYN: front: step 3 of 3 made: the knock is complete")
	}
	for i, p := range paths {
		if other := paths[1-i].client.String(); strings.Contains(told[p](), other) {
			t.Errorf("%s hears of %s:\n%s", p.client, other, told[p]())
		}
	}
	contains(t, byJSON(), `"what":"explain"`, `"packet":"47011/tcp SYN"`, `"why":"step 1 of 3 made"`, `"what":"open"`)

	c := h.connect() // by the socket for questions
	fmt.Fprintln(c, `{"do":"explain","addr":"192.0.2.1"}`)
	if got, _ := gets(c, soon); !strings.Contains(got, "explain is asked by the socket for changes") {
		t.Errorf("by the other socket: %s", got)
	}
	h.follow("explain", "192.0.2.50")
	fifth := h.follow("explain", "192.0.2.51")
	sixth := h.follow("explain", "192.0.2.52")
	const full = "the daemon explains four addresses at a time already"
	h.eventually("one too many", func() bool { return strings.Contains(fifth(), full) || strings.Contains(sixth(), full) })

	out, err := h.Tool("explain", "--for", "200ms", "192.0.2.1")
	if err == nil || !strings.Contains(out, full) {
		t.Errorf("%v: %s", err, out)
	}
	for _, args := range [][]string{{"--for", "-1s", "192.0.2.1"}, {"fe80::1%eth0"}, {"x"}, {}} {
		if out, err := h.Tool("explain", args...); err == nil || err.(*exec.ExitError).ExitCode() != 2 {
			t.Errorf("%q: %v\n%s", args, err, out)
		}
	}
}

func TestExplainNobody(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.serve(houseConfig("30s"))
	out, err := h.Tool("explain", "--for", "200ms", "2001:db8::1")
	if err != nil || !strings.Contains(out, "2001:db8::1 did not get in: no packet of its reached a knock's ports") {
		t.Errorf("%v: %s", err, out)
	}
}

// A capture can be played to the doors of a knockd.conf too.
func TestReplayToAKnockdConf(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.serve(houseConfig("30s"))
	stop := h.tcpdump("-i", h.serverWire, "port", "47011", "or", "port", "48022")
	for _, p := range paths {
		h.knock(p, frontHalf)
	}
	time.Sleep(200 * time.Millisecond) // for tcpdump to write
	file, conf := stop(), filepath.Join(t.TempDir(), "knockd.conf")
	text := "[options]\n\tUseSyslog\n[half]\n\tSequence = 47011:tcp,48022:udp\n\tSeq_Timeout = 9\n\tTCPFlags = syn\n\tStart_Command = /bin/touch " + conf + ".ran\n"
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, p := range paths {
		out, err := replay(t, "--knockd", conf, "--explain", p.client.String(), file)
		if err != nil {
			t.Fatal(err, out)
		}
		contains(t, out, "47011/tcp SYN: half: step 1 of 2 made", p.client.String()+" got in: half by half, which ran it")
	}
	if _, err := os.Stat(conf + ".ran"); err == nil {
		t.Error("a replay has run a command")
	}
	if out, err := replay(t, "--knockd", conf, "-c", h.Config(), file); err == nil || !strings.Contains(out, "leave one out") {
		t.Errorf("two configs: %v %s", err, out)
	}
}

// What serve refuses because of two knocks together is not played as if it were good.
func TestReplayLeavesOutWhatServeRefuses(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	dir := t.TempDir()
	stop := h.tcpdump("-i", h.serverWire)
	file := stop()
	write := func(name, text string) string {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return filepath.Join(dir, name)
	}
	ann := write("ann", "ann GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ\n")
	bob := write("bob", "bob GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ\n")
	knocks := func(second string) string {
		return "[service.ssh]\nports = [\"22/tcp\"]\n[knock.first]\ntype = \"otp\"\nopens = [\"ssh\"]\ndigits = 6\nsecrets = \"" + ann +
			"\"\n[knock.second]\ntype = \"otp\"\nopens = [\"ssh\"]\nsecrets = \"" + bob + "\"\n" + second
	}
	out, err := replay(t, "-c", write("codes", knocks("digits = 8\nbase = \"9000/tcp\"\n")), file)
	if err == nil {
		t.Error("a replay without one of its knocks succeeds")
	}
	contains(t, out, "this file has a secret of knock.first, and a code does not say for which knock it is", "without these knocks, whose files could not be used: second")
	if out, err := replay(t, "-c", write("sequences", knocks("")), file); err != nil {
		t.Errorf("%v: the door is part of what one-time ports follow from: %s", err, out)
	}
}
