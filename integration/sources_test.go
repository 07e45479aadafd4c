package integration_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	users "os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/internal/testnet"
)

// seen is one way for packets to be seen, which the same test takes.
type seen struct {
	name   string
	daemon string // its keys; DIR stands for the daemon's directory, PREFIX for the test's own
	with   string // whose rules show the packets: what check prints for it; "": nobody's
	feed   func(t *testing.T, h *house, s *seen)
}

// prefix is each test's own: the kernel's buffer is every namespace's.
var prefixes int

func sourcesUnderTest() []*seen {
	return []*seen{
		{name: "capture"},
		{name: "nflog by nftables", daemon: "source = \"nflog\"\nnflog_group = 5\n", with: "nft"},
		{name: "nflog by iptables", daemon: "source = \"nflog\"\nnflog_group = 65535\n", with: "iptables"},
		{name: "a file, nftables", daemon: "source = \"log\"\nlog_file = \"DIR/kern.log\"\nlog_prefix = \"PREFIX \"\n", with: "nft", feed: fileFeed("RSYSLOG_FileFormat")},
		{name: "a file, iptables", daemon: "source = \"log\"\nlog_file = \"DIR/kern.log\"\nlog_prefix = \"PREFIX \"\n", with: "iptables", feed: fileFeed("RSYSLOG_TraditionalFileFormat")},
		{name: "the kernel's buffer", daemon: "source = \"log\"\nlog_file = \"kernel\"\nlog_prefix = \"PREFIX \"\n", with: "nft"},
		{name: "the journal", daemon: "source = \"log\"\nlog_file = \"journal\"\nlog_prefix = \"PREFIX \"\n", with: "iptables"},
	}
}

// shownWith gives the commands that check prints for one of the firewalls.
func shownWith(t *testing.T, h *house, with string) string {
	t.Helper()
	out, err := exec.Command(testnet.Binary(t), "check", "--json", "-c", h.Config()).Output()
	if err != nil {
		t.Fatalf("check: %v\n%s", err, out)
	}
	var checked struct {
		Warnings []struct{ Text, Advice string }
	}
	if err := json.Unmarshal(out, &checked); err != nil {
		t.Fatal(err)
	}
	for _, w := range checked.Warnings {
		if strings.HasPrefix(w.Advice, with+" ") {
			return w.Advice
		}
	}
	t.Fatalf("check prints no rules for %s:\n%s", with, out)
	return ""
}

// logNamespaces has the rules of namespaces write to the kernel's log while the test
// runs.
func logNamespaces(t *testing.T) {
	t.Helper()
	const name = "/proc/sys/net/netfilter/nf_log_all_netns"
	before, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.WriteFile(name, before, 0) })
}

// kernelMessages calls f with the text of each message of the kernel's from now on
// that holds the word, until the test ends.
func kernelMessages(t *testing.T, word string, f func(message string)) {
	t.Helper()
	fd, err := syscall.Open("/dev/kmsg", syscall.O_RDONLY|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := syscall.Seek(fd, 0, 2); err != nil {
		t.Fatal(err)
	}
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		defer syscall.Close(fd)
		b := make([]byte, 8192)
		for end := time.Now().Add(3 * time.Minute); time.Now().Before(end); {
			n, err := syscall.Read(fd, b)
			if err != nil {
				select {
				case <-stop:
					return
				case <-time.After(5 * time.Millisecond):
				}
				continue
			}
			if _, message, ok := strings.Cut(string(b[:n]), ";"); ok && strings.Contains(message, word) {
				f(strings.SplitN(message, "\n", 2)[0])
			}
		}
	}()
	t.Cleanup(func() { close(stop); <-ended })
}

// fileFeed has rsyslogd write the kernel's messages to a file, in one of its two formats.
// They come by a pipe of the test's: /proc/kmsg gives each message to one reader only,
// and that may be the machine's own. The file is rotated all the while, as logrotate
// and rsyslog's package do it.
func fileFeed(template string) func(t *testing.T, h *house, s *seen) {
	return func(t *testing.T, h *house, s *seen) {
		name, dir := filepath.Join(h.Dir, "kern.log"), t.TempDir()
		kmsg, config := filepath.Join(dir, "kmsg"), filepath.Join(dir, "rsyslog.conf")
		text := fmt.Sprintf("module(load=\"imklog\" logPath=%q)\nkern.* action(type=\"omfile\" file=%q template=%q)\n", kmsg, name, template)
		if err := errors.Join(syscall.Mkfifo(kmsg, 0o600), os.WriteFile(config, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
		in, err := os.OpenFile(kmsg, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("/usr/sbin/rsyslogd", "-n", "-f", config, "-i", filepath.Join(dir, "pid"))
		if err := cmd.Start(); err != nil {
			t.Fatalf("%v: 'make packages' installs rsyslog", err)
		}
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait(); in.Close() })
		lines := 0
		kernelMessages(t, s.prefixOf(), func(message string) {
			fmt.Fprintf(in, "<4>[12345.678901] %s\n", message)
			if lines++; lines%5 == 0 {
				os.Rename(name, fmt.Sprint(name, ".", lines))
				cmd.Process.Signal(syscall.SIGHUP)
			}
		})
	}
}

func hostname(t *testing.T) string {
	t.Helper()
	name, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// startJournal has systemd's journald write a journal below dir, and gives the words
// with which a program finds it. In a mount namespace it has a /run of its own; what it
// reads of the kernel is the same for every journald.
func startJournal(t *testing.T, h *house, dir string) string {
	group, err := users.LookupGroup("systemd-journal")
	if err != nil {
		t.Fatal(err)
	}
	gid, _ := strconv.Atoi(group.Gid)
	if err := errors.Join(os.Chown(dir, 0, gid), os.Chmod(dir, 0o755|os.ModeSetgid)); err != nil { // as systemd makes it
		t.Fatal(err)
	}
	// Auditing is the whole host's: an empty Audit= leaves it as it is.
	cmd := exec.Command("unshare", "--mount", "sh", "-ec", `mount -t tmpfs tmpfs /run
mkdir -p /run/log/journal /run/systemd/journald.conf.d
mount --bind "$0" /run/log/journal
printf '[Journal]\nStorage=volatile\nAudit=\n' >/run/systemd/journald.conf.d/test.conf
exec /lib/systemd/systemd-journald`, dir)
	if err := h.server.Start(cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	file := filepath.Join(dir, contents(t, "/etc/machine-id"), "system.journal")
	h.eventually("journald writes", func() bool { _, err := os.Stat(file); return err == nil })
	return "unshare --mount sh -c 'mount --bind " + dir + " /var/log/journal && exec %s \"$@\"' sh"
}

// Where nothing writes a journal, journalctl would wait without a word.
func TestAJournalThatIsMissingIsSaid(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	bin := wrapper(t, "unshare --mount sh -c 'mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /var/log/journal && exec %s \"$@\"' sh")
	h.Daemon = h.server.Serve(bin, "[daemon]\nstate_dir = \"DIR/state\"\ncontrol = \"DIR/control.sock\"\nsource = \"log\"\nlog_file = \"journal\"\n"+houseConfig("30s"))
	h.eventually("it says that there is none", func() bool {
		return strings.Contains(h.Log(), "the journal is not read") && strings.Contains(h.Log(), "there is no system.journal")
	})
}

func contents(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

func (s *seen) prefixOf() string {
	_, after, _ := strings.Cut(s.daemon, `log_prefix = "`)
	word, _, _ := strings.Cut(after, " ")
	return word
}

// The same house, whatever shows it packets: knocks of both families open, wrong ones
// open nothing, and what is not to this host is none.
func TestSources(t *testing.T) {
	testnet.RequireRoot(t)
	logNamespaces(t)
	for _, s := range sourcesUnderTest() {
		prefixes++
		s.daemon = strings.ReplaceAll(s.daemon, "PREFIX", fmt.Sprintf("K%dN%d", os.Getpid(), prefixes))
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			s.test(t)
		})
	}
}

func (s *seen) test(t *testing.T) {
	h := newHouse(t)
	config := "[daemon]\nstate_dir = \"DIR/state\"\ncontrol = \"DIR/control.sock\"\n" + s.daemon + houseConfig("30s") + `
[service.web]
ports = ["80/tcp"]
[knock.ping]
type = "sequence"
opens = ["web"]
sequence = ["37/icmp", "57000/tcp", "137/icmp"]
within = "30s"
`
	h.listen(80)
	bin := testnet.Binary(t)
	if strings.Contains(s.daemon, `"journal"`) {
		bin = wrapper(t, startJournal(t, h, t.TempDir()))
	}
	h.Daemon = h.server.Serve(bin, config)
	if s.with != "" {
		h.server.Run("sh", "-c", shownWith(t, h, s.with))
	}
	if s.feed != nil {
		s.feed(t, h, s)
	}
	for _, p := range paths {
		h.is(false, 22, p)
		h.knock(p, "47011/tcp 45033/tcp 48022/udp") // the right steps in the wrong order
		h.knock(p, frontHalf+" 47012/tcp")          // a wrong one at the end
		h.knock(p, "45033/tcp")
		time.Sleep(300 * time.Millisecond)
		h.is(false, 22, p)
		h.enter(p)
		h.is(false, 80, p)
		h.knock(p, "37/icmp 57000/tcp 137/icmp")
		h.await(true, 80, p)
	}
	if got := len(h.grants()); got != 4 {
		t.Errorf("%d grants, want one for each family and knock", got)
	}
	h.heardItself(t, s)
}

// heardItself has the owner's rules show lo too, where any program of the server can
// write anybody's address into a packet: that is no knock.
func (h *house) heardItself(t *testing.T, s *seen) {
	if s.with != "nft" {
		return
	}
	h.server.Run("nft", "delete rule inet seen seen handle "+h.handleOf(t, "iif \"lo\" return"))
	by := path{"the server itself", paths[0].server, paths[0].server}
	sequence, err := sallyport.ParseSequence(frontSteps)
	if err != nil {
		t.Fatal(err)
	}
	plan, err := sequence.Plan(by.client, by.server)
	if err != nil {
		t.Fatal(err)
	}
	h.server.Do(func() { err = plan.Send(t.Context()) })
	if err != nil {
		t.Fatal(err)
	}
	h.knock(paths[0], "47011/tcp") // seen behind what the server sent
	time.Sleep(300 * time.Millisecond)
	if got := len(h.grants()); got != 4 {
		t.Errorf("%d grants after a knock by lo, want 4", got)
	}
}

func (h *house) handleOf(t *testing.T, rule string) string {
	t.Helper()
	for line := range strings.Lines(h.server.Run("nft", "-a", "list", "chain", "inet", "seen", "seen")) {
		if text, handle, ok := strings.Cut(strings.TrimSpace(line), " # handle "); ok && text == rule {
			return handle
		}
	}
	t.Fatalf("no rule %s", rule)
	return ""
}

// knockLines are the lines of a knock by front, as a kernel logs them and rsyslog
// writes them.
func knockLines(t *testing.T, p path, stamp string) string {
	t.Helper()
	var b strings.Builder
	for i, step := range strings.Fields(frontSteps) {
		port, proto, _ := strings.Cut(step, "/")
		fmt.Fprintf(&b, "%s %s kernel: KNOCK IN=eth0 OUT= ", stamp, hostname(t))
		if p.client.Is4() {
			fmt.Fprintf(&b, "SRC=%v DST=%v LEN=40 TOS=0x00 PREC=0x00 TTL=64 ID=%d ", p.client, p.server, i)
		} else {
			fmt.Fprintf(&b, "SRC=%s DST=%s LEN=60 TC=0 HOPLIMIT=64 FLOWLBL=0 ", p.client.StringExpanded(), p.server.StringExpanded())
		}
		if proto == "tcp" {
			fmt.Fprintf(&b, "PROTO=TCP SPT=40000 DPT=%s WINDOW=512 RES=0x00 SYN URGP=0 \n", port)
		} else {
			fmt.Fprintf(&b, "PROTO=UDP SPT=40000 DPT=%s LEN=8 \n", port)
		}
	}
	return b.String()
}

// An owner edits the log, or restores it: what was knocked yesterday opens nothing,
// of either format of time, and status counts it.
func TestAnEditedLogOpensNothing(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	name := filepath.Join(t.TempDir(), "kern.log")
	const zone = "Asia/Kathmandu" // the daemon's, so that nobody takes it for UTC
	local, err := time.LoadLocation(zone)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now().In(local)
	old := "the first line\n"
	for _, p := range paths {
		old += knockLines(t, p, now.Add(-2*time.Minute).Format(time.Stamp)) + knockLines(t, p, now.Add(-24*time.Hour).Format(time.RFC3339Nano))
	}
	if err := os.WriteFile(name, []byte(old), 0o640); err != nil {
		t.Fatal(err)
	}
	h.Daemon = h.server.Serve(wrapper(t, "env TZ="+zone+" %s"), "[daemon]\nstate_dir = \"DIR/state\"\ncontrol = \"DIR/control.sock\"\nsource = \"log\"\nlog_file = \""+name+"\"\nlog_prefix = \"KNOCK \"\n"+houseConfig("30s"))
	for i, edit := range [][]string{
		{"sed", "-i", "s/first/only/", name},
		{"cp", "--remove-destination", name + ".backup", name},
	} {
		if err := os.WriteFile(name+".backup", []byte(old), 0o640); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(edit[0], edit[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", edit, err, out)
		}
		h.eventually("the old lines were read", func() bool { return h.counters()["declined"] == uint64(12*(i+1)) })
	}
	if got := h.grants(); len(got) > 0 {
		t.Errorf("old knocks opened %v", got)
	}
	f, err := os.OpenFile(name, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for i, p := range paths { // the same knocks, of now
		layout := []string{time.Stamp, time.RFC3339Nano}[i]
		if _, err := f.WriteString(knockLines(t, p, time.Now().In(local).Format(layout))); err != nil {
			t.Fatal(err)
		}
	}
	h.await(true, 22, paths...)
	h.eventually("the old lines are told of", func() bool { return strings.Contains(h.Log(), "lines of another time than now") })
}
