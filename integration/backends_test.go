package integration_test

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/testnet"
)

// other is a backend beside our own table, which the other files test.
type other struct {
	name    string
	kernel  bool   // the kernel owns the clock, and hides
	words   string // that start the program, see wrapper
	prepare func(h *house) (daemon string)
}

// legacy has the tools of iptables be those that speak to the old tables.
const legacy = `unshare -m sh -c 'mount --bind /usr/sbin/xtables-legacy-multi /usr/sbin/xtables-nft-multi && exec %s "$@"' sh`

var others = []other{
	{"iptables-nft", true, "env %s", func(*house) string { return `backend = "iptables"` }},
	{"iptables-legacy", true, legacy, func(*house) string { return `backend = "iptables"` }},
	{"command", false, "env %s", ownersFirewall},
}

// ownersFirewall closes 22/tcp by rules that are not ours, and gives the commands.
func ownersFirewall(h *house) string {
	h.server.Input(`table inet owner {
	set open4 { type ipv4_addr . inet_service; }
	set open6 { type ipv6_addr . inet_service; }
	chain in {
		type filter hook input priority 0;
		iif lo accept
		ct state established,related accept
		ip saddr . tcp dport @open4 accept
		ip6 saddr . tcp dport @open6 accept
		tcp dport 22 reject with tcp reset
	}
}
`, "nft", "-f", "-")
	dir := h.t.TempDir()
	script := filepath.Join(dir, "gate")
	text := `#!/bin/sh
echo "$*" >>` + dir + `/calls
[ "$1" = list ] && { cat ` + dir + `/open 2>/dev/null; exit 0; }
set=open4; case $2 in *:*) set=open6;; esac
[ "$1" = add ] && { nft add element inet owner $set "{ $2 . $3 }"; exit; }
nft add element inet owner $set "{ $2 . $3 }" && nft delete element inet owner $set "{ $2 . $3 }"
`
	if err := testnet.WriteProgram(script, []byte(text)); err != nil {
		h.t.Fatal(err)
	}
	return fmt.Sprintf("backend = \"command\"\nopen_command = [%q, \"add\", \"{addr}\", \"{port}\", \"{proto}\", \"{seconds}\"]\n"+
		"close_command = [%[1]q, \"remove\", \"{addr}\", \"{port}\", \"{proto}\"]\nadopt_command = [%[1]q, \"list\"]", script)
}

// byOther is a house that another backend guards.
type byOther struct {
	*house
	bin, daemon string
}

func (o *other) house(t *testing.T) *byOther {
	h := newHouse(t)
	return &byOther{h, wrapper(t, o.words), o.prepare(h)}
}

func (b *byOther) config(openFor string) string {
	return "[daemon]\nstate_dir = \"DIR/state\"\ncontrol = \"DIR/control.sock\"\n" + b.daemon + "\n" + houseConfig(openFor)
}

func (b *byOther) begin(openFor string) {
	b.t.Helper()
	b.Daemon = b.server.Serve(b.bin, b.config(openFor))
}

// eachOther runs a test on every other backend.
func eachOther(t *testing.T, only func(*other) bool, body func(t *testing.T, b *byOther)) {
	t.Parallel()
	for _, o := range others {
		if only != nil && !only(&o) {
			continue
		}
		t.Run(o.name, func(t *testing.T) {
			t.Parallel()
			body(t, o.house(t))
		})
	}
}

func inKernel(o *other) bool { return o.kernel }

func TestOtherBackendsOpenForOneAddressAndATime(t *testing.T) {
	eachOther(t, nil, func(t *testing.T, b *byOther) {
		var calls []call
		if b.daemon == `backend = "iptables"` {
			for _, p := range paths { // older than the rules
				calls = append(calls, b.call(p))
			}
		}
		b.begin("3s")
		for _, c := range calls { // before the server, whose packet would tell conntrack
			c.client.SetDeadline(time.Now().Add(5 * time.Second))
			c.client.Write([]byte("ping"))
			if _, err := io.ReadFull(c.client, make([]byte, 4)); err != nil {
				t.Errorf("%s: the client of an older connection speaks first: %v", c.by.name, err)
			}
		}
		b.lives("the first start", calls...)
		b.is(false, 22, paths...)
		b.enter(paths[0])
		b.is(false, 22, paths[1])
		b.enter(paths[1])
		stranger := path{"a stranger", paths[0].client.Next().Next(), paths[0].server}
		b.client.Run("ip", "addr", "add", stranger.client.String()+"/24", "dev", "va"+strings.TrimPrefix(b.serverWire, "vb"))
		b.is(false, 22, stranger)
		for _, p := range paths {
			calls = append(calls, b.call(p))
		}
		b.await(false, 22, paths...)
		b.lives("the grant's end", calls...)
		b.reload(b.config("2s"), readAgain)
		b.lives("a reload", calls...)
		b.enter(paths...)
		b.Signal(syscall.SIGTERM)
		b.end(0, "stopped")
		b.lives("the stop", calls...)
		b.await(false, 22, paths...)
	})
}

func TestOtherBackendsRefreshAndClose(t *testing.T) {
	eachOther(t, nil, func(t *testing.T, b *byOther) {
		b.begin("2s")
		b.must("open", "ssh", paths[0].client.String(), "--for", "1m")
		b.enter(paths...) // a knock does not shorten what the administrator gave
		b.await(false, 22, paths[1])
		b.is(true, 22, paths[0])
		if g := b.grants(); len(g) != 1 || time.Until(g[0].Until) < 40*time.Second {
			t.Errorf("grants %v", g)
		}
		b.must("close", "ssh", paths[0].client.String())
		b.await(false, 22, paths...)
		b.enter(paths...)
	})
}

func TestPromise2OtherBackendsEndGrantsByThemselves(t *testing.T) {
	eachOther(t, inKernel, func(t *testing.T, b *byOther) {
		b.begin("4s")
		b.enter(paths...)
		b.Signal(syscall.SIGKILL)
		b.end(-1)
		b.is(true, 22, paths...)
		b.await(false, 22, paths...)
	})
}

func TestOtherBackendsAdoptGrants(t *testing.T) {
	eachOther(t, nil, func(t *testing.T, b *byOther) {
		b.begin("1m")
		b.enter(paths[0])
		b.must("open", "ssh", paths[1].client.String(), "--for", "2m")
		before := b.grants()
		b.Signal(syscall.SIGKILL)
		b.end(-1)
		b.Start()
		b.Await("grants from before this start go on until their time")
		b.Await("serving")
		after := b.grants()
		if len(before) != 2 || len(after) != 2 {
			t.Fatalf("before %v, after %v", before, after)
		}
		for i, want := range []string{"front", "the administrator"} {
			if a := after[i]; a.Addr != before[i].Addr || a.By != want || a.Until.Sub(before[i].Until).Abs() > 2*time.Second {
				t.Errorf("before %v, after %v, want asked by %s", before[i], a, want)
			}
		}
		b.is(true, 22, paths...)
	})
}

// saved are the host's rules and sets without what changes by itself.
func (b *byOther) saved() string {
	var out strings.Builder
	for _, tool := range []string{"iptables-save", "ip6tables-save"} {
		kind := "-nft-save"
		if strings.Contains(b.wrapped(), "legacy") {
			kind = "-legacy-save"
		}
		for line := range strings.Lines(b.server.Run("/usr/sbin/" + strings.TrimSuffix(tool, "-save") + kind)) {
			if !strings.HasPrefix(line, "#") {
				before, _, _ := strings.Cut(line, " [")
				out.WriteString(strings.TrimSpace(before) + "\n")
			}
		}
	}
	return out.String() + b.server.Run("ipset", "list", "-name")
}

func (b *byOther) wrapped() string {
	text, _ := os.ReadFile(b.bin)
	return string(text)
}

// restoreTool is the tool that the daemon would use.
func (b *byOther) tool(family string) string {
	if strings.Contains(b.wrapped(), "legacy") {
		return "/usr/sbin/" + family + "-legacy"
	}
	return "/usr/sbin/" + family + "-nft"
}

func TestPromise7IptablesTouchesOnlyItsOwn(t *testing.T) {
	eachOther(t, inKernel, func(t *testing.T, b *byOther) {
		for _, family := range []string{"iptables", "ip6tables"} {
			b.server.Run(b.tool(family), "-A", "INPUT", "-p", "tcp", "--dport", "23", "-j", "DROP")
			b.server.Run(b.tool(family), "-t", "mangle", "-A", "PREROUTING", "-j", "MARK", "--set-mark", "7")
			b.server.Run(b.tool(family), "-t", "nat", "-A", "PREROUTING", "-p", "tcp", "--dport", "24", "-j", "REDIRECT", "--to-ports", "25")
		}
		b.server.Run("ipset", "create", "owners", "hash:ip")
		before := b.saved()
		b.begin("1m")
		b.enter(paths[0])
		during := b.saved()
		b.reload(b.config("1m"), readAgain)
		if again := b.saved(); again != during {
			t.Errorf("a second time gave\n%s\nthe first\n%s", again, during)
		}
		b.is(true, 22, paths[0])
		b.Signal(syscall.SIGTERM)
		b.end(0)
		b.server.Run(b.bin, "down")
		if after := b.saved(); after != before {
			t.Errorf("after down:\n%s\nbefore:\n%s", after, before)
		}
		b.is(true, 22, paths...)
	})
}

func TestIptablesHidesWithoutADaemon(t *testing.T) {
	eachOther(t, inKernel, func(t *testing.T, b *byOther) {
		config := filepath.Join(t.TempDir(), "sallyport.toml")
		text := "[daemon]\n" + b.daemon + "\n" + houseConfig("30s")
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		b.server.Run(b.bin, "hide", "--state-dir", t.TempDir(), "-c", config)
		b.is(false, 22, paths...)
		b.server.Run(b.bin, "hide", "--state-dir", t.TempDir(), "-c", config)
		b.is(false, 22, paths...)
		b.server.Run(b.bin, "down")
		b.is(true, 22, paths...)
	})
}

// The kernel ends a trial though nobody is left to ask it to.
func TestPromise6AnIptablesTrialEndsByItself(t *testing.T) {
	eachOther(t, inKernel, func(t *testing.T, b *byOther) {
		b.Daemon = b.server.Serve(b.bin, b.config("30s"), "--undo-after", "5s")
		b.is(false, 22, paths...)
		b.Signal(syscall.SIGKILL)
		b.end(-1)
		b.await(true, 22, paths...)
	})
}

// What was opened is closed at the next start, whatever happened in between.
func TestACommandsCloseSurvivesAKill(t *testing.T) {
	eachOther(t, func(o *other) bool { return !o.kernel }, func(t *testing.T, b *byOther) {
		b.begin("3s")
		b.enter(paths...)
		b.Signal(syscall.SIGKILL)
		b.end(-1)
		time.Sleep(4 * time.Second)
		b.is(true, 22, paths...) // nobody closes
		b.Start()
		b.Await("serving")
		b.await(false, 22, paths...)
	})
}

// What adopt_command prints and we know nothing of gets its end.
func TestACommandSaysWhatIsOpen(t *testing.T) {
	eachOther(t, func(o *other) bool { return !o.kernel }, func(t *testing.T, b *byOther) {
		dir := filepath.Dir(strings.Split(b.daemon, `"`)[3])
		b.server.Run("nft", "add", "element", "inet", "owner", "open4", "{ "+paths[0].client.String()+" . 22 }")
		text := paths[0].client.String() + " 22/tcp 4\nnonsense\n" + paths[1].client.String() + " 99/tcp 4\n"
		if err := os.WriteFile(filepath.Join(dir, "open"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		b.begin("1m")
		if g := b.grants(); len(g) != 1 || g[0].Addr != paths[0].client {
			t.Errorf("grants %v", g)
		}
		if n := strings.Count(b.Log(), "a line of adopt_command is left out"); n != 2 {
			t.Errorf("%d lines were left out, want 2", n)
		}
		b.is(true, 22, paths[0])
		b.await(false, 22, paths...)
	})
}

func TestAFailedOpenCommandIsAFailedKnock(t *testing.T) {
	eachOther(t, func(o *other) bool { return !o.kernel }, func(t *testing.T, b *byOther) {
		b.daemon = strings.Replace(b.daemon, `, "add",`, `, "fail",`, 1) + "\n"
		script := strings.Split(b.daemon, `"`)[3]
		text, _ := os.ReadFile(script)
		text = []byte(strings.Replace(string(text), "set=open4", `[ "$1" = fail ] && exit 3; set=open4`, 1))
		if err := testnet.WriteProgram(script, text); err != nil {
			t.Fatal(err)
		}
		b.begin("1m")
		out, err := b.Tool("open", "ssh", paths[0].client.String())
		if err == nil {
			t.Errorf("open said %s", out)
		}
		b.said("open_command ended with status 3")
		b.eventually("close_command ran", func() bool {
			calls, _ := os.ReadFile(filepath.Join(filepath.Dir(script), "calls"))
			return strings.Contains(string(calls), "remove "+paths[0].client.String()+" 22 tcp")
		})
		if g := b.grants(); len(g) > 0 {
			t.Errorf("grants %v", g)
		}
	})
}

// Promise 4: whoever knows an anonymous knock and the address of somebody whose command
// is slow makes nobody else wait, nor an administrator.
func TestPromise4ASlowCommandKeepsNobodyElseWaiting(t *testing.T) {
	eachOther(t, func(o *other) bool { return !o.kernel }, func(t *testing.T, b *byOther) {
		script := strings.Split(b.daemon, `"`)[3]
		text, _ := os.ReadFile(script)
		slow := script + ".slow"
		text = []byte(strings.Replace(string(text), "set=open4", `[ "$1" = add ] && grep -qx "$2" `+slow+` && sleep 3; set=open4`, 1))
		if err := testnet.WriteProgram(script, text); err != nil {
			t.Fatal(err)
		}
		b.begin("1m")
		for i, p := range paths {
			if err := os.WriteFile(slow, []byte(p.client.String()+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			b.knock(p, frontSteps)
			b.eventually("the slow command runs", func() bool {
				calls, _ := os.ReadFile(filepath.Join(filepath.Dir(script), "calls"))
				return strings.Contains(string(calls), "add "+p.client.String()+" 22 tcp")
			})
			began := time.Now()
			b.enter(paths[1-i])
			b.must("status")
			if took := time.Since(began); took > 2500*time.Millisecond {
				t.Errorf("%s waited %v for the command of %s", paths[1-i].name, took, p.name)
			}
			b.await(true, 22, p)
			b.must("close", p.client.String())
			b.must("close", paths[1-i].client.String())
			b.await(false, 22, paths...)
		}
	})
}

// A knock opens also where the journal says that it is open: the owner's firewall may
// have forgotten that in a reload of its own, or in a reboot.
func TestACommandRunsForEachKnock(t *testing.T) {
	eachOther(t, func(o *other) bool { return !o.kernel }, func(t *testing.T, b *byOther) {
		b.begin("2s")
		for _, p := range paths {
			b.must("open", "ssh", p.client.String(), "--for", "1h")
		}
		b.server.Run("nft", "flush", "set", "inet", "owner", "open4")
		b.server.Run("nft", "flush", "set", "inet", "owner", "open6")
		b.is(false, 22, paths...)
		b.enter(paths...)
		for _, g := range b.grants() {
			if left := time.Until(g.Until); left < 50*time.Minute {
				t.Errorf("%s has %v left of an hour", g.Who(), left)
			}
		}
	})
}

// A redirect of the dialled port, as Docker's published ports are, must not carry a
// stranger past what hides it.
func TestIptablesHidesWhatIsRedirected(t *testing.T) {
	eachOther(t, inKernel, func(t *testing.T, b *byOther) {
		b.listen(81)
		for _, family := range []string{"iptables", "ip6tables"} {
			b.server.Run(b.tool(family), "-t", "nat", "-A", "PREROUTING", "-p", "tcp", "--dport", "23", "-j", "REDIRECT", "--to-ports", "81")
		}
		config := strings.Replace(b.config("1m"), `ports = ["22/tcp"]`, `ports = ["22/tcp", "23/tcp"]`, 1)
		for _, look := range []string{"auto", "drop", "reject"} {
			text := strings.Replace(config, "[service.ssh]\n", "[service.ssh]\nclosed_as = \""+look+"\"\n", 1)
			if b.Daemon == nil {
				b.await(true, 23, paths...)
				b.Daemon = b.server.Serve(b.bin, text)
			} else {
				b.reload(text, readAgain)
			}
			for _, p := range paths {
				for _, port := range []int{22, 23} {
					c, err := b.dial(p, port)
					if err == nil {
						c.Close()
						t.Errorf("%s: %s: port %d is open", look, p.name, port)
					} else if refused := strings.Contains(err.Error(), "refused"); refused != (look != "drop") {
						t.Errorf("%s: %s: port %d: %v", look, p.name, port, err)
					}
				}
			}
			b.is(true, 81, paths...) // nobody hides what is behind the redirect
		}
		b.enter(paths...)
		b.is(true, 23, paths...)
	})
}

// Where a listener is bound to one address the rule for older connections would answer
// a probe, so a set of those connections is in its place.
func TestIptablesAnswersNoProbeOfABoundListener(t *testing.T) {
	eachOther(t, inKernel, func(t *testing.T, b *byOther) {
		var err error
		var l net.Listener
		b.server.Do(func() { l, err = net.Listen("tcp", netip.AddrPortFrom(paths[0].server, 2222).String()) })
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		var calls []call
		for _, p := range paths {
			calls = append(calls, b.call(p))
		}
		text := strings.Replace(b.config("1m"), `ports = ["22/tcp"]`, "closed_as = \"drop\"\nports = [\"22/tcp\", \"2222/tcp\"]", 1)
		probe := func() string {
			out, _ := b.client.Output("hping3", "-A", "-c", "1", "-p", "2222", paths[0].server.String())
			return out
		}
		if out := probe(); !strings.Contains(out, "1 packets received") {
			t.Errorf("the probe gets no answer of an open port: %s", out)
		}
		b.Daemon = b.server.Serve(b.bin, text)
		b.lives("the first start", calls...)
		if out := probe(); !strings.Contains(out, " 0 packets received") {
			t.Errorf("a probe was answered: %s", out)
		}
	})
}

// Who is cut stays out though a server inside goes on sending.
func TestIptablesCuts(t *testing.T) {
	eachOther(t, inKernel, func(t *testing.T, b *byOther) {
		b.begin("1m")
		b.enter(paths...)
		for _, p := range paths {
			c := b.call(p)
			b.must("close", "ssh", p.client.String(), "--cut")
			b.is(false, 22, p)
			c.client.SetDeadline(time.Now().Add(3 * time.Second))
			c.client.Write([]byte("still there?"))
			if n, err := c.client.Read(make([]byte, 20)); n > 0 || err == nil {
				t.Errorf("%s: a connection that was cut goes on", p.name)
			}
		}
		for _, set := range []string{"sallyport-cut4", "sallyport-cut6"} {
			if out := b.server.Run("ipset", "list", set); !strings.Contains(out, "Number of entries: 1\n") {
				t.Error(out)
			}
		}
		b.enter(paths...) // and a knock lets him in again
	})
}

// A start with another backend takes away what the one before left.
func TestAnotherBackendTakesOver(t *testing.T) {
	eachOther(t, inKernel, func(t *testing.T, b *byOther) {
		other := b.config("1m")
		b.daemon = ""
		b.begin("1m")
		for _, text := range []string{other, b.config("1m"), other} {
			b.Signal(syscall.SIGTERM)
			b.end(0, "stopped")
			b.Configure(text)
			b.Start()
			b.Await("serving")
			if mine := text != other; mine != (b.table() != "") {
				t.Errorf("our own table is there: %v", !mine)
			}
			b.is(false, 22, paths...)
			b.enter(paths...)
		}
		b.reload(b.config("1m"), "backend can't change while the daemon runs")
	})
}

// The daemon puts back what somebody removed, and not what 'sallyport down' did.
func TestIptablesDownIsMeant(t *testing.T) {
	t.Parallel() // two minutes of waiting: no subtest, which would begin behind all other tests
	b := others[0].house(t)
	b.begin("1h")
	b.enter(paths[0])
	for _, family := range []string{"iptables", "ip6tables"} {
		b.server.Run(b.tool(family), "-t", "mangle", "-F")
		b.server.Run(b.tool(family), "-t", "filter", "-F")
	}
	b.await(true, 22, paths[1])
	for end := time.Now().Add(70 * time.Second); b.open(paths[1], 22) && time.Now().Before(end); {
		time.Sleep(time.Second)
	}
	b.is(false, 22, paths[1])
	b.is(true, 22, paths[0])
	b.server.Run(b.bin, "down")
	b.is(true, 22, paths...)
	for end := time.Now().Add(70 * time.Second); !strings.Contains(b.Log(), "the chains were taken down") && time.Now().Before(end); {
		time.Sleep(time.Second)
	}
	b.said("the chains were taken down")
	b.is(true, 22, paths...)
	if out := b.server.Run("ipset", "list", "-name"); out != "" {
		t.Errorf("sets are left: %s", out)
	}
	b.reload(b.config("1h"), readAgain)
	b.is(false, 22, paths...)
}
