package packaging_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/testnet"
)

// No test machine has systemd as process 1, so these tests take what a unit
// confines one by one and put the real daemon behind it.

// unit is the settings of a unit file, each as words; lines of one name add up.
type unit map[string][]string

func readUnit(t *testing.T, path string) unit {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	u := unit{}
	for line := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(line, "="); ok && !strings.HasPrefix(line, "#") {
			u[name] = append(u[name], strings.Fields(value)...)
		}
	}
	return u
}

const config = `[service.ssh]
ports = ["22/tcp"]
[knock.front]
type = "sequence"
opens = ["ssh"]
sequence = ["7000/tcp", "8500/udp", "7800/tcp"]
`

// behind writes a program that runs one command of ours behind another program,
// and the other commands as they are.
func behind(t *testing.T, command, wall string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "sallyport")
	bin := testnet.Binary(t)
	script := fmt.Sprintf("#!/bin/sh\n[ \"$1\" = %s ] && exec %s %s \"$@\"\nexec %s \"$@\"\n", command, wall, bin, bin)
	if err := testnet.WriteProgram(path, []byte(script)); err != nil {
		t.Fatal(err)
	}
	return path
}

func bounded(caps []string) string {
	set := "-all"
	for _, c := range caps {
		set += ",+" + strings.ToLower(strings.TrimPrefix(c, "CAP_"))
	}
	return "setpriv --no-new-privs --bounding-set " + set
}

// whole reports whether a daemon with these capabilities has a whole sandbox
// around its engine and can end an engine that does not listen, or what it
// lacks.
func whole(t *testing.T, caps []string) string {
	ns := testnet.New(t)
	d := ns.Launch(behind(t, "serve", bounded(caps)), config)
	status, err := d.Tool("status", "--json")
	for end := time.Now().Add(5 * time.Second); err != nil && time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if d.Cmd.Process.Signal(syscall.Signal(0)) != nil {
			return "it does not start: " + d.Log()
		}
		status, err = d.Tool("status", "--json")
	}
	var s struct {
		Sandbox []struct {
			Part   string
			Proven bool
			Why    string
		}
	}
	if err := json.Unmarshal([]byte(status), &s); err != nil {
		return "it has no status: " + status + d.Log()
	}
	for _, p := range s.Sandbox {
		if !p.Proven {
			return p.Part + ": " + p.Why + "\n" + d.Log()
		}
	}
	return ends(t, d)
}

// ends stops the engine, so that it notices nothing, and then ends the daemon.
func ends(t *testing.T, d *testnet.Daemon) string {
	engine := child(t, d.Cmd.Process.Pid)
	syscall.Kill(engine, syscall.SIGSTOP)
	d.Signal(syscall.SIGTERM)
	d.Wait()
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", engine))
		if err != nil || strings.Contains(string(stat), ") Z ") {
			return ""
		}
	}
	syscall.Kill(engine, syscall.SIGKILL)
	return "the engine is still there after its warden's end"
}

// child is the one process that a process has started.
func child(t *testing.T, pid int) int {
	t.Helper()
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, task := range tasks {
		var child int
		if b, err := os.ReadFile(task); err == nil {
			if n, _ := fmt.Sscan(string(b), &child); n == 1 {
				return child
			}
		}
	}
	t.Fatalf("process %d has no child", pid)
	return 0
}

// TestCapabilities: the daemon has all it needs, and needs all it has.
func TestCapabilities(t *testing.T) {
	testnet.RequireRoot(t)
	caps := readUnit(t, "sallyport.service")["CapabilityBoundingSet"]
	if lacks := whole(t, caps); lacks != "" {
		t.Errorf("with the unit's capabilities: %s", lacks)
	}
	for i, c := range caps {
		t.Run("without "+c, func(t *testing.T) {
			rest := slices.Delete(slices.Clone(caps), i, i+1)
			lacks := whole(t, rest)
			if lacks == "" {
				t.Errorf("nothing is lost without %s: take it out of the unit", c)
			}
			t.Log(lacks)
		})
	}
}

func TestHideNeedsNoMore(t *testing.T) {
	ns := testnet.New(t)
	u := readUnit(t, "sallyport-hide.service")
	file := filepath.Join(t.TempDir(), "sallyport.toml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	calls := filepath.Join(t.TempDir(), "calls")
	bin := behind(t, "hide", bounded(u["CapabilityBoundingSet"])+" strace -f -o "+calls)
	ns.Run(bin, "hide", "-c", file, "--state-dir", t.TempDir())
	if rules := ns.Run("nft", "list", "table", "inet", "sallyport"); !strings.Contains(rules, "tcp . 22") {
		t.Errorf("nothing is hidden:\n%s", rules)
	}
	u.allows(t, calls)
}

// TestSystemCalls watches a whole life of the daemon: what it was seen to do is
// what the unit allows.
func TestSystemCalls(t *testing.T) {
	ns := testnet.New(t)
	calls := filepath.Join(t.TempDir(), "calls")
	// -D: the daemon keeps the number that signals go to.
	d := ns.Serve(behind(t, "serve", "strace -D -f -o "+calls), config)
	for _, args := range [][]string{{"open", "ssh", "192.0.2.7"}, {"open", "ssh", "2001:db8::7"}, {"grants"}, {"close", "2001:db8::7"}, {"status"}} {
		if out, err := d.Tool(args[0], args[1:]...); err != nil {
			t.Fatal(out)
		}
	}
	d.Signal(syscall.SIGHUP)
	d.Await("the config was read again")
	d.Signal(syscall.SIGTERM)
	d.Wait()
	readUnit(t, "sallyport.service").allows(t, calls)
}

var (
	called = regexp.MustCompile(`(?m)^\d+ +(\w+)\((.*)= \d`)
	family = regexp.MustCompile(`\b(?:AF_\w+)`)
	space  = regexp.MustCompile(`\bCLONE_NEW(\w+)`)
)

// allows checks every system call that succeeded. Those that failed include all
// that the engine tries in vain, on purpose.
func (u unit) allows(t *testing.T, calls string) {
	t.Helper()
	allowed := filter(t, u["SystemCallFilter"])
	seen := map[string]bool{}
	for _, m := range called.FindAllStringSubmatch(trace(t, calls), -1) {
		name, args := m[1], m[2]
		if seen[name] = true; !allowed[name] {
			t.Errorf("the daemon calls %s, which SystemCallFilter denies", name)
			allowed[name] = true // said once
		}
		switch name {
		case "socket", "socketpair":
			if f := family.FindString(args); !slices.Contains(u["RestrictAddressFamilies"], f) {
				t.Errorf("the daemon opens %s, which RestrictAddressFamilies denies", f)
			}
		case "unshare":
			for _, s := range space.FindAllStringSubmatch(args, -1) {
				if kind := strings.Replace(strings.ToLower(s[1]), "ns", "mnt", 1); !slices.Contains(u["RestrictNamespaces"], kind) {
					t.Errorf("the daemon makes a namespace %q, which RestrictNamespaces denies", kind)
				}
			}
		}
	}
	if !seen["execve"] || !seen["sendto"] {
		t.Errorf("the trace does not show a daemon's life; it has only %d different calls", len(seen))
	}
}

// trace waits until strace has written the end of the last process.
func trace(t *testing.T, path string) string {
	t.Helper()
	exits := regexp.MustCompile(`(?m)^(\d+) +\+\+\+ `)
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		text, _ := os.ReadFile(path)
		first, _, _ := strings.Cut(string(text), " ")
		for _, m := range exits.FindAllStringSubmatch(string(text), -1) {
			if m[1] == first {
				return joined(string(text))
			}
		}
	}
	t.Fatalf("strace did not see the end of the daemon")
	return ""
}

// joined puts calls that strace shows in two parts on one line.
func joined(text string) string {
	var b strings.Builder
	begun := map[string]string{}
	for line := range strings.Lines(text) {
		pid, call, _ := strings.Cut(line, " ")
		if head, unfinished := strings.CutSuffix(call, "<unfinished ...>\n"); unfinished {
			begun[pid] = head
			continue
		}
		if _, tail, resumed := strings.Cut(call, " resumed>"); resumed {
			call = begun[pid] + tail
		}
		b.WriteString(pid + " " + call)
	}
	return b.String()
}

// filter spells the groups of a SystemCallFilter out.
func filter(t *testing.T, words []string) map[string]bool {
	t.Helper()
	analyze := tool(t, "systemd-analyze")
	allowed := map[string]bool{}
	words = append(slices.Clone(words), "@default") // systemd.exec(5): always there
	for len(words) > 0 {
		word := words[0]
		words = words[1:]
		if !strings.HasPrefix(word, "@") {
			allowed[word] = true
			continue
		}
		out, err := exec.Command(analyze, "syscall-filter", "--no-pager", word).Output()
		if err != nil {
			t.Fatalf("%s: %v", word, err)
		}
		for line := range strings.Lines(string(out)) {
			if inner := strings.TrimSpace(line); inner != word && !strings.HasPrefix(inner, "#") && inner != "" {
				words = append(words, inner)
			}
		}
	}
	return allowed
}
