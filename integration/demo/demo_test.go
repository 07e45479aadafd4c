package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/internal/testnet"
)

// withoutNFT names, in the environment, the program that the test binary turns
// into after it has taken nftables away: the kernel as a daemon meets it where
// nf_tables was not built.
const withoutNFT = "DEMO_TEST_WITHOUT_NFT"

func TestMain(m *testing.M) {
	if program := os.Getenv(withoutNFT); program != "" {
		runtime.LockOSThread() // a seccomp filter is a thread's, and exec keeps the calling thread's
		err := denyNetfilter()
		if err == nil {
			err = syscall.Exec(program, append([]string{program}, os.Args[1:]...), os.Environ())
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(3)
	}
	os.Exit(testnet.Main(m))
}

// denyNetfilter makes socket(AF_NETLINK, …, NETLINK_NETFILTER) fail.
func denyNetfilter() error {
	const number, domain, protocol = 0, 16, 32 // offsets in struct seccomp_data, low halves
	raw, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: number, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.SYS_SOCKET, SkipTrue: 5},
		bpf.LoadAbsolute{Off: domain, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.AF_NETLINK, SkipTrue: 3},
		bpf.LoadAbsolute{Off: protocol, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.NETLINK_NETFILTER, SkipTrue: 1},
		bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(unix.EPROTONOSUPPORT)},
		bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW},
	})
	if err != nil {
		return err
	}
	code := make([]unix.SockFilter, len(raw))
	for i, in := range raw {
		code[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	prog := &unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}
	defer runtime.KeepAlive(prog)
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	return unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(prog)), 0, 0)
}

// facts are the lines of a run, in order; IPv4 first where a fact is about one.
var facts = []string{
	`network +3 namespaces, 2 wires, .* 22/tcp`,
	`before +192\.0\.2\.1: 1 of 400 ports open: 22/tcp`,
	`before +2001:db8::1: 1 of 400 ports open: 22/tcp`,
	`keygen +the server's key is made; its address has 102 characters`,
	`add +the client stored it, and the server got the client's key`,
	`serve +2 processes hide 22/tcp`,
	`scan +192\.0\.2\.1: 0 of 400 open`,
	`scan +2001:db8::1: 0 of 400 open`,
	`knock +192\.0\.2\.7 sent one signed datagram of 448 bytes`,
	`open +22/tcp lets 192\.0\.2\.7 in`,
	`greeting +27 bytes for 192\.0\.2\.7`,
	`stranger +198\.51\.100\.9 is still refused`,
	`knock +2001:db8::7 sent one signed datagram of 448 bytes`,
	`open +22/tcp lets 2001:db8::7 in`,
	`greeting +27 bytes for 2001:db8::7`,
	`stranger +2001:db8:1::9 is still refused`,
	`closed +192\.0\.2\.7 refused [1-9]\.\d\d s after it opened, by the kernel`,
	`closed +2001:db8::7 refused [1-9]\.\d\d s after it opened, by the kernel`,
	`alive +192\.0\.2\.7's connection, .* echoes 11 bytes`,
	`alive +2001:db8::7's connection, .* echoes 11 bytes`,
	`again +192\.0\.2\.7 and 198\.51\.100\.9 repeat it: nothing opens`,
	`again +2001:db8::7 and 2001:db8:1::9 repeat it: nothing opens`,
	`steps +192\.0\.2\.7 sent its 3 steps to 192\.0\.2\.1`, `open +22/tcp lets 192\.0\.2\.7 in`,
	`steps +2001:db8::7 sent its 3 steps to 2001:db8::1`, `open +22/tcp lets 2001:db8::7 in`,
	`closed +192\.0\.2\.7 refused [1-9]\.\d\d s after it opened, by the kernel`,
	`closed +2001:db8::7 refused [1-9]\.\d\d s after it opened, by the kernel`,
	`caught +198\.51\.100\.9 sent it first: nothing opens`,
	`knock +192\.0\.2\.7 sent it after all`, `open +22/tcp lets 192\.0\.2\.7 in`,
	`caught +2001:db8:1::9 sent it first: nothing opens`,
	`knock +2001:db8::7 sent it after all`, `open +22/tcp lets 2001:db8::7 in`,
	`kill -9 +the warden is killed; of 2 processes 0 run`,
	`closed +192\.0\.2\.7 refused [1-9]\.\d\d s after it opened, no daemon left`,
	`closed +2001:db8::7 refused [1-9]\.\d\d s after it opened, no daemon left`,
	`hidden +192\.0\.2\.1: 0 of 400 open`,
	`hidden +2001:db8::1: 0 of 400 open`,
	`left +0 processes, 0 files, 0 of 3 namespaces`,
}

// stage is where the demonstration runs as a program: its "machine" is a
// namespace of the test's, so that what it might leave there is seen.
type stage struct {
	t          *testing.T
	machine    *testnet.Namespace
	tmp        string
	env        []string
	out, errs  bytes.Buffer
	interrupts string // send SIGINT when this was printed; empty: never
}

func newStage(t *testing.T) *stage {
	// Not t.TempDir: a control socket's path must be short.
	tmp, err := os.MkdirTemp("", "demo-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(tmp) })
	s := &stage{t: t, machine: testnet.New(t), tmp: tmp}
	// What the demonstration orphans becomes our child, and can't hide.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	return s
}

// run plays the demonstration with a program and gives its exit status.
func (s *stage) run(program string) int {
	s.t.Helper()
	before := s.traces()
	cmd := exec.Command(binary(s.t), program)
	cmd.Env = append(append(os.Environ(), "TMPDIR="+s.tmp), s.env...)
	cmd.Stdout, cmd.Stderr = &watched{s, cmd, &s.out}, &s.errs
	if err := s.machine.Start(cmd); err != nil {
		s.t.Fatal(err)
	}
	defer time.AfterFunc(time.Minute, func() { cmd.Process.Kill() }).Stop()
	cmd.Wait()
	for end := time.Now().Add(5 * time.Second); orphans() > 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			s.t.Errorf("%d processes of the daemon are left", orphans())
			break
		}
	}
	if after := s.traces(); before != after {
		s.t.Errorf("left behind; before:\n%s\nafter:\n%s", before, after)
	}
	return cmd.ProcessState.ExitCode()
}

// orphans counts the daemons' processes among our own children that still run:
// we start none ourselves. Those of a parallel test end in a moment.
func orphans() (n int) {
	lists, _ := filepath.Glob("/proc/self/task/*/children")
	for _, list := range lists {
		pids, _ := os.ReadFile(list)
		for pid := range strings.FieldsSeq(string(pids)) {
			// "PID (name) state …", proc_pid_stat(5)
			stat, _ := os.ReadFile("/proc/" + pid + "/stat")
			if daemons.Match(stat) {
				n++
			}
		}
	}
	return n
}

var daemons = regexp.MustCompile(`\((sallyport|engine)\) [^Z]`)

// traces lists what could be left behind, besides processes.
func (s *stage) traces() string {
	files, _ := filepath.Glob(s.tmp + "/*")
	named, _ := filepath.Glob("/run/netns/*")
	return s.machine.Run("ip", "-o", "link") + s.machine.Run("ip", "-o", "addr") +
		s.machine.Run("nft", "list", "ruleset") + strings.Join(slices.Concat(files, named), "\n")
}

// watched is the demonstration's output, and presses Ctrl-C at a line of it.
type watched struct {
	*stage
	cmd *exec.Cmd
	to  *bytes.Buffer
}

func (w *watched) Write(b []byte) (int, error) {
	if w.interrupts != "" && bytes.Contains(b, []byte(w.interrupts)) {
		w.cmd.Process.Signal(os.Interrupt)
	}
	return w.to.Write(b)
}

// binary builds the demonstration itself, next to the program it shows.
func binary(t *testing.T) string {
	t.Helper()
	path := filepath.Join(filepath.Dir(testnet.Binary(t)), "demo")
	build.Do(func() {
		if out, err := exec.Command("go", "build", "-o", path, ".").CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	})
	return path
}

var build sync.Once

func TestEveryFact(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	if status := s.run(testnet.Binary(t)); status != 0 {
		t.Fatalf("exit status %d\n%s%s", status, &s.out, &s.errs)
	}
	lines := strings.Split(s.out.String(), "\n")
	next := 0
	for _, line := range lines {
		if len(line) > 80 || strings.ContainsFunc(line, func(r rune) bool { return r < ' ' || r > '~' }) {
			t.Errorf("wider than 80 columns, or not plain: %q", line)
		}
		if next < len(facts) && regexp.MustCompile(`^ *[0-9.]+ m?s  `+facts[next]).MatchString(line) {
			next++
		}
	}
	if next < len(facts) {
		t.Errorf("no fact %q at its place in\n%s", facts[next], &s.out)
	}
	if s.errs.Len() > 0 {
		t.Errorf("a good run complains: %s", &s.errs)
	}
	if !strings.HasSuffix(s.out.String(), realServer) {
		t.Error("it does not end with what to type on a real server")
	}
}

// A demonstration that can't fail shows nothing: each of these programs lacks
// one thing, and the step that needs it must be named. REAL is the real program.
func TestStepsThatDoNotHappen(t *testing.T) {
	for _, test := range []struct {
		lacks, script, step, says string
	}{
		{"everything", `exit 1`, "keygen", "exit status 1"},
		{"a server's address", `[ $1 = keygen ] && exit 0; exec REAL "$@"`, "keygen", "no server's address"},
		{"a store", `[ $1 = add ] && exit 1; exec REAL "$@"`, "add", "exit status 1"},
		{"a daemon", `[ $1 = serve ] && exit 1; exec REAL "$@"`, "serve", "ended before"},
		{"hiding", `case $1 in serve) exec REAL "$@" --observe; esac; exec REAL "$@"`, "scan", "open: [22]; 0 should"},
		{"hiding IPv6", `[ $1 = serve ] && sed -i '/^open_for/a allow = ["2001:db8::/32"]' $3; exec REAL "$@"`, "scan", "of 2001:db8::1 these were open: [22]"},
		{"a look like other ports'", `[ $1 = serve ] && sed -i '/^open_for/a closed_as = "drop"' $3; exec REAL "$@"`, "scan", "neither opened nor refused"},
		{"knocking", `[ $1 = knock ] && exit 0; exec REAL "$@"`, "open", "did not open to 192.0.2.7"},
		{"knocking over IPv6", `[ "$1 $2" = "knock home6" ] && exit 0; exec REAL "$@"`, "open", "did not open to 2001:db8::7"},
		{"a working client", `[ $1 = knock ] && exit 1; exec REAL "$@"`, "knock", "exit status 1"},
		{"a grant for one alone", `[ $1 = knock ] && REAL open greeting 198.51.100.9 --control $TMPDIR/*/control.sock; exec REAL "$@"`, "stranger", "198.51.100.9 knocked at nothing"},
		{"an end of what was used", `[ $1 = status ] && REAL open greeting 192.0.2.7 --control $3 >/dev/null 2>&1; exec REAL "$@"`, "again", "after 192.0.2.7 repeated"},
		{"a key for the client", `[ $1 = serve ] && : > $(dirname $(dirname $3))/authorized_keys; exec REAL "$@"`, "open", "did not open to 192.0.2.7"},
		{"steps", `[ "$1 $2" = "knock 192.0.2.1" ] && exit 0; exec REAL "$@"`, "open", "did not open to 192.0.2.7"},
		{"an address in the datagram", `case "$*" in *--save*) set -- "$@" --address observed; esac; exec REAL "$@"`, "caught", "after 198.51.100.9 sent the datagram"},
		{"an engine that ends with its warden", `REAL "$@"`, "kill -9", "1 of 2 processes outlived"},
		{"closing in time", `[ $1 = serve ] && sed -i 's/^open_for.*/open_for = "1h"/' $3; exec REAL "$@"`, "closed", "still let 192.0.2.7 in"},
		{"staying open for its time", `[ $1 = serve ] && sed -i 's/^open_for.*/open_for = "1s"/' $3; exec REAL "$@"`, "closed", "shut 192.0.2.7 out"},
	} {
		t.Run(test.lacks, func(t *testing.T) {
			t.Parallel()
			program := filepath.Join(t.TempDir(), "sallyport")
			script := "#!/bin/sh\n" + strings.ReplaceAll(test.script, "REAL", testnet.Binary(t)) + "\n"
			if err := testnet.WriteProgram(program, []byte(script)); err != nil {
				t.Fatal(err)
			}
			newStage(t).fails(program, test.step, test.says)
		})
	}
}

func TestKernelWithoutNFTables(t *testing.T) {
	t.Parallel()
	testnet.RequireRoot(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s := newStage(t)
	s.env = []string{withoutNFT + "=" + testnet.Binary(t)}
	s.fails(self, "serve", "nftables")
}

// fails wants exit status 1 and one step named, and no claim after it.
func (s *stage) fails(program, step, says string) {
	s.t.Helper()
	if status := s.run(program); status != 1 {
		s.t.Errorf("exit status %d, want 1\n%s", status, &s.out)
	}
	if want := "demo: the step '" + step + "' did not happen: "; !strings.HasPrefix(s.errs.String(), want) || !strings.Contains(s.errs.String(), says) {
		s.t.Errorf("it says\n%s\nwant %q and %q", &s.errs, want, says)
	}
	if strings.Contains(s.out.String(), "systemctl") || strings.Contains(s.out.String(), "  left  ") {
		s.t.Errorf("it goes on as if all were well:\n%s", &s.out)
	}
}

// Ctrl-C at the first scan, with a daemon running, and in the wait for the
// closing, with grants in force.
func TestInterrupt(t *testing.T) {
	for _, at := range []string{"  serve  ", "  alive  "} {
		t.Run(strings.TrimSpace(at), func(t *testing.T) {
			t.Parallel()
			s := newStage(t)
			s.interrupts = at
			if status := s.run(testnet.Binary(t)); status != 1 || !strings.HasPrefix(s.errs.String(), "demo: interrupted") {
				t.Errorf("exit status %d, it says %q", status, &s.errs)
			}
		})
	}
}

func TestWithoutRoot(t *testing.T) {
	testnet.RequireRoot(t)
	cmd := exec.Command(binary(t), testnet.Binary(t))
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65527, Gid: 65527}}
	out, _ := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() != 1 || strings.Count(string(out), "\n") != 1 || !strings.Contains(string(out), "needs root, to make network namespaces") {
		t.Errorf("exit status %d, it says %q", cmd.ProcessState.ExitCode(), out)
	}
}

// What the last lines tell people to type must exist.
func TestRealServerCommands(t *testing.T) {
	commands := regexp.MustCompile(`(?m)^  sallyport (.*?)(  .*)?$`).FindAllStringSubmatch(realServer, -1)
	if len(commands) != 6 {
		t.Fatalf("%d commands found", len(commands))
	}
	for _, c := range commands {
		out, err := exec.Command(testnet.Binary(t), append(strings.Fields(c[1]), "--help")...).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "Usage: sallyport "+strings.Fields(c[1])[0]) {
			t.Errorf("sallyport %s: %v\n%s", c[1], err, out)
		}
	}
}
