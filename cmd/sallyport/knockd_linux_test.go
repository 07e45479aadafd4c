package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sallyport/sallyport/internal/testnet"
)

// ground is a world with a daemon under the name knockd, ours or the original.
type ground struct {
	*world
	dir      string // config, log and what else a test has
	ours     string
	original bool
	cmd      *exec.Cmd
	out, err testnet.Output
}

func newGround(t *testing.T) *ground {
	g := &ground{world: newWorld(t)}
	dir, err := os.MkdirTemp("", "sallyport-knockd-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	os.Chmod(dir, 0o755) // some daemons here are not root's
	g.dir, g.ours = dir, filepath.Join(dir, "knockd")
	if err := os.Symlink(testnet.Binary(t), g.ours); err != nil {
		t.Fatal(err)
	}
	return g
}

// write writes a file, in which DIR stands for the directory, and gives its path.
func (g *ground) write(name, text string) string {
	g.t.Helper()
	path := filepath.Join(g.dir, name)
	if err := os.WriteFile(path, []byte(strings.ReplaceAll(text, "DIR", g.dir)), 0o755); err != nil {
		g.t.Fatal(err)
	}
	return path
}

// start starts the daemon behind a shell command, which may prepare a mount
// namespace of its own, and does not wait. The directory of our state and sockets
// is the test's own.
func (g *ground) start(prepare string, args ...string) {
	g.t.Helper()
	program := g.ours
	if g.original {
		program = "/usr/sbin/knockd"
	}
	os.MkdirAll(filepath.Join(g.dir, "lib"), 0o755)
	os.MkdirAll(filepath.Join(g.dir, "run"), 0o755)
	script := "set -e; cd " + g.dir + "\nmount --make-rprivate /; mount -t tmpfs none /var/lib; mount -t tmpfs none /run; mkdir /var/lib/sallyport /run/sallyport\n" +
		"mount --bind lib /var/lib/sallyport; mount --bind run /run/sallyport\n" + prepare + "\nexec \"$@\""
	g.cmd = exec.Command("unshare", append([]string{"-m", "sh", "-c", script, "sh", program}, args...)...)
	g.out, g.err = testnet.Output{}, testnet.Output{}
	g.cmd.Stdout, g.cmd.Stderr = &g.out, &g.err
	if err := g.server.Start(g.cmd); err != nil {
		g.t.Fatal(err)
	}
	cmd := g.cmd
	g.t.Cleanup(func() {
		if cmd.ProcessState == nil {
			cmd.Process.Kill()
			cmd.Wait()
		}
	})
}

// eventually waits until a condition holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("it did not happen: %s", what)
		}
	}
}

// await waits until a file holds a text so many times.
func (g *ground) await(file, text string, times int) {
	g.t.Helper()
	eventually(g.t, fmt.Sprintf("%q %d times in %s; stderr: %s", text, times, file, g.err.String()), func() bool {
		got, _ := os.ReadFile(filepath.Join(g.dir, file))
		return strings.Count(string(got), text) >= times
	})
}

// ends signals the daemon and gives its status.
func (g *ground) ends(sig syscall.Signal) int {
	g.t.Helper()
	g.cmd.Process.Signal(sig)
	return g.status()
}

func (g *ground) status() int {
	g.t.Helper()
	ended := make(chan struct{})
	go func() { g.cmd.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		g.t.Fatalf("it did not end: %s", g.err.String())
	}
	return g.cmd.ProcessState.ExitCode()
}

// hit knocks with the original's client.
func (g *ground) hit(addr string, ports ...string) {
	g.t.Helper()
	g.client.Run("/usr/bin/knock", append([]string{"-d", "20", addr}, ports...)...)
}

// ourDev is a /dev with a log of the test's own.
const ourDev = `mount -t tmpfs none /dev; mknod -m 666 /dev/null c 1 3; mknod -m 666 /dev/urandom c 1 9
ln -s "$PWD/devlog" /dev/log; mount -t tmpfs none /etc/init.d; cp ssh /etc/init.d/ssh`

// The excerpt of a page about knockd, with its config as it stands there. Its author
// had the original write it, and so does this test.
func TestKnockdLogOfAPage(t *testing.T) {
	want, err := os.ReadFile("testdata/knockd/page.log")
	if err != nil {
		t.Fatal(err)
	}
	config, err := os.ReadFile("testdata/knockd/page.conf")
	if err != nil {
		t.Fatal(err)
	}
	for _, daemon := range []string{"original", "strict", "ours"} {
		for _, f := range families {
			g := newGround(t)
			g.original = daemon == "original"
			args := []string{"-i", g.serverWire, "-c", "knockd.conf"}
			if daemon == "strict" {
				args = append(args, "--strict-knockd")
			}
			g.write("ssh", "#!/bin/sh\necho \"$@\" >> DIR/ran\n")
			g.write("knockd.conf", string(config))
			lines, _ := datagrams(t, filepath.Join(g.dir, "devlog"))
			g.start(ourDev, args...)
			for !strings.Contains(next(t, lines), "starting up, listening on "+g.serverWire) {
			}
			g.hit(f.server, "7000", "3000", "55000", "1500")
			g.await("ran", "start", 1)
			g.hit(f.server, "9000", "8000", "7000")
			g.await("ran", "stop", 1)
			client := map[string]string{"ipv4": "192.0.2.1", "ipv6": "2001:db8::1"}[f.name]
			var got strings.Builder
			for n := strings.Count(string(want), "\n"); n > 0; n-- {
				line := next(t, lines)
				if m := syslogLine.FindStringSubmatch(line); m != nil { // as a logger writes it down
					line = "TIME HOST knockd: " + strings.TrimSuffix(strings.ReplaceAll(m[1], client, "ADDR"), "\n")
				}
				got.WriteString(line + "\n")
			}
			if diff := cmp.Diff(string(want), got.String()); diff != "" {
				t.Errorf("%s, %s:\n%s", daemon, f.name, diff)
			}
			if status := g.ends(syscall.SIGTERM); status != 15 {
				t.Errorf("%s: status %d", daemon, status)
			}
		}
	}
}

const allMoments = `[options]
 logfile = DIR/log
[one]
 sequence = 7000
 command = echo "hi   %IP%" >> DIR/ran
[two]
 sequence = 7001,7002:udp
 seq_timeout = 2
 tcpflags = syn
 start_command = exit 3
 cmd_timeout = 1
 stop_command = /bin/echo bye  %IP%
[slow]
 sequence = 7003,7004
 seq_timeout = 1
`

// Log file and standard output are the original's, line for line.
func TestKnockdLogAsTheOriginals(t *testing.T) {
	var files, outs [2]string
	for i, original := range []bool{true, false} {
		g := newGround(t)
		g.original = original
		g.write("knockd.conf", allMoments)
		g.start("", "-i", g.serverWire, "-c", "knockd.conf", "-v")
		g.await("log", "starting up", 1)
		for n, f := range families {
			g.hit(f.server, "7003")
			time.Sleep(1100 * time.Millisecond)
			g.hit(f.server, "7000") // so that the original looks at its clock
			g.await("ran", "hi", n+1)
			g.hit(f.server, "7001", "7002:udp")
			g.await("log", "running command: /bin/echo bye", n+1)
		}
		g.cmd.Process.Signal(syscall.SIGHUP)
		g.await("log", "re-reading", 1)
		eventually(t, "the reload", func() bool { return strings.Contains(g.out.String(), "re-opening log file") })
		g.hit("192.0.2.2", "7000")
		g.await("ran", "hi", 3)
		if status := g.ends(syscall.SIGINT); status != 2 {
			t.Errorf("original %v: status %d", original, status)
		}
		if n := strings.Count(g.err.String(), "two: command returned non-zero status code (3)\n"); n != 2 {
			t.Errorf("original %v: %d times on standard error:\n%s", original, n, g.err.String())
		}
		text, _ := os.ReadFile(filepath.Join(g.dir, "log"))
		if n := strings.Count(string(text), "] two: bye "); !original && n != len(families) {
			t.Errorf("what a command wrote is in the log %d times:\n%s", n, text)
		}
		if n := strings.Count(g.out.String(), "\nbye "); n != len(families) {
			t.Errorf("original %v: what a command wrote is on standard output %d times:\n%s", original, n, g.out.String())
		}
		files[i], outs[i] = leveled(g, string(text)), leveled(g, g.out.String())
	}
	if diff := cmp.Diff(files[0], files[1]); diff != "" {
		t.Errorf("the log file differs:\n%s", diff)
	}
	if diff := cmp.Diff(outs[0], outs[1]); diff != "" {
		t.Errorf("standard output differs:\n%s", diff)
	}
}

var stamp = regexp.MustCompile(`(?m)^\[\d{4}-\d\d-\d\d \d\d:\d\d\] `)

// leveled puts words in place of what differs from run to run, and takes out what
// only one of the two says: ours warns in its own name, does not wait for commands, and
// logs what they write.
func leveled(g *ground, text string) string {
	text = stamp.ReplaceAllString(text, "[TIME] ")
	text = strings.NewReplacer(g.dir, "DIR", g.serverWire, "WIRE").Replace(text)
	return regexp.MustCompile(`(?m)^(\[TIME\] sallyport: .*|waiting for child processes\.\.\.|(\[TIME\] two: )?bye .*)\n`).ReplaceAllString(text, "")
}

// In the background: what starts it comes back when it serves, with its words and
// status if it can't.
func TestKnockdInTheBackground(t *testing.T) {
	g := newGround(t)
	g.write("knockd.conf", allMoments+"[options]\n pidfile = DIR/other\n")
	g.start("", "-d", "-i", g.serverWire, "-c", "knockd.conf", "-p", filepath.Join(g.dir, "pid"))
	if status := g.status(); status != 0 {
		t.Fatalf("status %d: %s", status, g.err.String())
	}
	text, err := os.ReadFile(filepath.Join(g.dir, "pid"))
	if err != nil {
		t.Fatalf("it is said to serve, and wrote no process id: %v", err)
	}
	pid := atoi(t, strings.TrimSpace(string(text)))
	t.Cleanup(func() { syscall.Kill(pid, syscall.SIGKILL) })
	proc := fmt.Sprintf("/proc/%d/", pid)
	if comm, _ := os.ReadFile(proc + "comm"); string(comm) != "knockd\n" {
		t.Errorf("its name is %q", comm)
	}
	if args, _ := os.ReadFile(proc + "cmdline"); !strings.HasPrefix(string(args), g.ours+"\x00-d\x00") {
		t.Errorf("its command line is %q", args)
	}
	for link, want := range map[string]string{"cwd": "/", "fd/0": "/dev/null", "fd/1": "/dev/null", "fd/2": "/dev/null"} {
		if got, _ := os.Readlink(proc + link); got != want {
			t.Errorf("%s is %s, want %s", link, got, want)
		}
	}
	if env, _ := os.ReadFile(proc + "environ"); !strings.Contains(string(env), "PATH=") {
		t.Errorf("its environment is %q", env)
	}
	if sid, err := getsid(pid); err != nil || sid != pid {
		t.Errorf("its session is %d (%v), its number %d", sid, err, pid)
	}
	for n, f := range families {
		g.hit(f.server, "7000")
		g.await("ran", "hi", n+1)
	}
	// A bad config on SIGHUP leaves the one before in use, and so does its repair.
	g.write("knockd.conf", "[one]\n bogus\n")
	syscall.Kill(pid, syscall.SIGHUP)
	g.await("log", "re-reading config file: knockd.conf\n\n", 1)
	g.await("log", "sallyport: error: the new config is refused and the one before stays in use", 1)
	g.hit("192.0.2.2", "7000")
	g.await("ran", "hi", 3)
	g.write("knockd.conf", strings.ReplaceAll(allMoments, "= 7000", "= 7010"))
	syscall.Kill(pid, syscall.SIGHUP)
	g.await("log", "re-reading config file: knockd.conf\n\n", 2)
	eventually(t, "the new port", func() bool {
		g.hit("2001:db8::2", "7010")
		time.Sleep(100 * time.Millisecond)
		ran, _ := os.ReadFile(filepath.Join(g.dir, "ran"))
		return strings.Count(string(ran), "hi") > 3
	})
	syscall.Kill(pid, syscall.SIGTERM)
	g.await("log", "shutting down\n", 1)
	eventually(t, "its end", func() bool { return !exists(filepath.Join(g.dir, "pid")) && !exists(proc+"exe") })
	if exists(filepath.Join(g.dir, "other")) {
		t.Error("the file's PidFile went before the command line's")
	}
}

func getsid(pid int) (int, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	return strconv.Atoi(fields[3])
}

// children gives the processes that a process has started, by their command lines.
func children(t *testing.T, pid int) map[string]int {
	t.Helper()
	found := map[string]int{}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		stat, err := os.ReadFile(dir + "/stat")
		if err != nil {
			continue
		}
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		args, _ := os.ReadFile(dir + "/cmdline")
		if fields[1] == strconv.Itoa(pid) {
			name, _, _ := strings.Cut(string(args), "\x00")
			found[name] = atoi(t, filepath.Base(dir))
		}
	}
	return found
}

// A lost engine ends it with 1, so that whoever watches over it starts it again.
// The original ends with 0 when it has lost what it hears with.
func TestKnockdWithoutItsEngine(t *testing.T) {
	g := newGround(t)
	g.write("knockd.conf", allMoments)
	g.start("", "-i", g.serverWire, "-c", "knockd.conf", "-p", "DIR/pid")
	g.await("log", "starting up", 1)
	engine := children(t, g.cmd.Process.Pid)["sallyport: engine"]
	if engine == 0 {
		t.Fatal("no engine was found")
	}
	syscall.Kill(engine, syscall.SIGKILL)
	if status := g.status(); status != 1 {
		t.Errorf("status %d", status)
	}
	g.await("log", "sallyport: error: the engine was ended by killed", 1)
	if !strings.Contains(g.err.String(), "the engine was ended by killed") {
		t.Errorf("it said %q", g.err.String())
	}
}

// An interface that is not there is waited for, and any number can be named.
func TestKnockdHearsAnInterfaceThatComesLater(t *testing.T) {
	g := newGround(t)
	g.write("knockd.conf", allMoments)
	g.start("", "-i", "later0", "-i", "none0,"+g.serverWire, "-c", "knockd.conf")
	g.await("log", "starting up, listening on later0,none0,"+g.serverWire, 1)
	if n := strings.Count(g.err.String(), "an interface is not there"); n != 2 {
		t.Errorf("it warned %d times:\n%s", n, g.err.String())
	}
	g.hit("192.0.2.2", "7000")
	g.await("ran", "hi", 1)
	g.server.Run("ip", "link", "set", g.serverWire, "down")
	g.server.Run("ip", "link", "set", g.serverWire, "name", "later0")
	g.server.Run("ip", "link", "set", "later0", "up")
	eventually(t, "a knock over later0", func() bool {
		g.client.Output("/usr/bin/knock", "192.0.2.2", "7000")
		time.Sleep(100 * time.Millisecond)
		ran, _ := os.ReadFile(filepath.Join(g.dir, "ran"))
		return strings.Count(string(ran), "hi") > 1
	})
}

// Names are found by a process that has no privilege, and no line waits for them.
func TestKnockdLooksNamesUp(t *testing.T) {
	g := newGround(t)
	g.write("hosts", "192.0.2.1 client4.example\n2001:db8::1 client6.example\n")
	g.write("knockd.conf", allMoments)
	g.start("mount --bind hosts /etc/hosts", "-l", "-i", g.serverWire, "-c", "knockd.conf")
	g.await("log", "starting up", 1)
	resolver := children(t, g.cmd.Process.Pid)["sallyport: lookup"]
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", resolver))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Uid:\t65526\t65526\t65526\t65526", "Gid:\t65526\t65526\t65526\t65526", "Groups:\t \n", "CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "CapAmb:\t0000000000000000", "NoNewPrivs:\t1"} {
		if !strings.Contains(string(status), want) {
			t.Errorf("of its privilege %q is not there:\n%s", want, status)
		}
	}
	for n, f := range families {
		g.hit(f.server, "7000")
		g.await("ran", "hi", n+1)
	}
	for _, f := range families {
		eventually(t, "a name", func() bool {
			g.hit(f.server, "7003")
			time.Sleep(100 * time.Millisecond)
			log, _ := os.ReadFile(filepath.Join(g.dir, "log"))
			return strings.Contains(string(log), map[string]string{"ipv4": "192.0.2.1 (client4.example)", "ipv6": "2001:db8::1 (client6.example)"}[f.name]+": slow: Stage 1\n")
		})
	}
	syscall.Kill(resolver, syscall.SIGKILL)
	g.await("log", "names are not looked up any more", 1)
	g.hit("192.0.2.2", "7000")
	g.await("ran", "hi", 3)
}

// With CAP_NET_RAW alone, as in a container, it serves; without it says what is
// missing. Its process id can't be written, which the original lives with too.
func TestKnockdWithoutRoot(t *testing.T) {
	g := newGround(t)
	g.write("knockd.conf", strings.ReplaceAll(allMoments, "logfile = DIR/log", "pidfile = /nowhere/pid"))
	if err := os.Chmod(g.dir, 0o777); err != nil {
		t.Fatal(err)
	}
	const drop = `set -- setpriv --reuid 65533 --regid 65533 --clear-groups --bounding-set=-all,+net_raw `
	g.start(drop+`--inh-caps=-all,+net_raw --ambient-caps=-all,+net_raw "$@"`, "-i", g.serverWire, "-c", "knockd.conf", "-v", "-g", filepath.Join(g.dir, "log"))
	eventually(t, "its start: "+g.err.String(), func() bool { return strings.Contains(g.out.String(), "listening on") })
	for n, f := range families {
		g.hit(f.server, "7000")
		g.await("ran", "hi", n+1)
	}
	if status := g.ends(syscall.SIGTERM); status != 15 {
		t.Errorf("status %d: %s", status, g.err.String())
	}
	g.start(drop+`--inh-caps=-all --ambient-caps=-all "$@"`, "-i", g.serverWire, "-c", "knockd.conf")
	if status := g.status(); status != 1 || !strings.Contains(g.err.String(), "CAP_NET_RAW") {
		t.Errorf("status %d: %s", status, g.err.String())
	}
	g.start(drop+`--inh-caps=-all,+net_raw --ambient-caps=-all,+net_raw "$@"`, "-d", "-i", g.serverWire, "-c", "knockd.conf", "-g", filepath.Join(g.dir, "log"))
	if status := g.status(); status != 0 || !strings.Contains(g.err.String(), "could not create pid file /nowhere/pid: no such file or directory\n") {
		t.Errorf("status %d: %s", status, g.err.String())
	}
	g.await("log", "could not create pid file /nowhere/pid: no such file or directory\n", 1)
	g.killBackground()
}

// killBackground ends the daemon that runs our link with the test's own directory.
func (g *ground) killBackground() {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		args, _ := os.ReadFile(dir + "/cmdline")
		if strings.HasPrefix(string(args), g.ours+"\x00") {
			syscall.Kill(atoi(g.t, filepath.Base(dir)), syscall.SIGKILL)
		}
	}
}

// Each one-time sequence opens once, and the door shuts for good after the last.
func TestKnockdOneTimeSequences(t *testing.T) {
	g := newGround(t)
	g.write("once", "# mine\n7101,7102\n7103:udp,7104\n")
	g.write("knockd.conf", allMoments+"[once]\n one_time_sequences = DIR/once\n command = echo once >> DIR/ran\n")
	g.start("", "-i", g.serverWire, "-c", "knockd.conf")
	g.await("log", "starting up", 1)
	g.hit("192.0.2.2", "7101", "7102")
	g.await("ran", "once", 1)
	if text, _ := os.ReadFile(filepath.Join(g.dir, "once")); string(text) != "# mine\n#101,7102\n7103:udp,7104\n" {
		t.Errorf("the file is %q", text)
	}
	spent := func(addr string, ports ...string) {
		ran, _ := os.ReadFile(filepath.Join(g.dir, "ran"))
		g.hit(addr, ports...)
		g.hit(addr, "7000") // what comes behind it has run, so it would have too
		g.await("ran", "hi", strings.Count(string(ran), "hi")+1)
		if now, _ := os.ReadFile(filepath.Join(g.dir, "ran")); strings.Count(string(now), "once") != strings.Count(string(ran), "once") {
			t.Errorf("%v opened once more", ports)
		}
	}
	spent("2001:db8::2", "7101", "7102")
	g.hit("2001:db8::2", "7103:udp", "7104")
	g.await("ran", "once", 2)
	g.await("log", "no more sequences left in the one time sequences file for door once --> disabling the door\n\n", 1)
	spent("192.0.2.2", "7103:udp", "7104")
}

const pair = `[openSSH]
 sequence = 7000,9000,8000
 tcpflags = syn
 command = /sbin/iptables -A INPUT -s %IP% -p tcp --dport 22 -j ACCEPT
[closeSSH]
 sequence = 9000,8000,7000
 tcpflags = syn
 command = /sbin/iptables -D INPUT -s %IP% -p tcp --dport 22 -j ACCEPT
[other]
 sequence = 7000
 command = echo "hi %IP%" >> DIR/ran
`

// With --native the kernel opens and closes, and a boot without the daemon hides
// the same ports. A door keeps its commands where the host's own rules are in the way.
func TestKnockdNative(t *testing.T) {
	g := newGround(t)
	g.write("knockd.conf", "[options]\n logfile = DIR/log\n"+pair)
	g.start("", "--native", "-i", g.serverWire, "-c", "knockd.conf")
	g.await("log", "starting up", 1)
	for n, f := range families {
		client := map[string]string{"ipv4": "192.0.2.1", "ipv6": "2001:db8::1"}[f.name]
		holds := func() bool {
			return strings.Contains(g.server.Run("nft", "list", "table", "inet", "sallyport"), client+" . tcp . 22 ")
		}
		g.hit(f.server, "7000", "9000", "8000")
		eventually(t, "the grant", holds)
		g.await("ran", "hi", n+1)
		g.hit(f.server, "9000", "8000", "7000")
		eventually(t, "its end", func() bool { return !holds() })
	}
	if text, _ := os.ReadFile(filepath.Join(g.dir, "log")); strings.Contains(string(text), "iptables") {
		t.Errorf("a command ran:\n%s", text)
	}
	if status := g.ends(syscall.SIGKILL); status != -1 {
		t.Errorf("status %d", status)
	}
	g.server.Run("nft", "delete", "table", "inet", "sallyport")
	g.server.Run(testnet.Binary(t), "hide", "--state-dir", filepath.Join(g.dir, "lib"), "-c", "none")
	if !strings.Contains(g.server.Run("nft", "list", "table", "inet", "sallyport"), "tcp . 22") {
		t.Error("without the daemon the port is not hidden")
	}
	// Nobody is locked out by a table that an earlier start left: neither where the
	// owner's own rules come to stand in the way, nor where --native is left out.
	hides := func() bool {
		out, _ := g.server.Output("nft", "list", "table", "inet", "sallyport")
		return strings.Contains(out, "tcp . 22")
	}
	g.server.Run("iptables", "-A", "INPUT", "-p", "tcp", "--dport", "22", "-j", "DROP")
	g.start("", "--native", "-i", g.serverWire, "-c", "knockd.conf")
	g.await("log", "starting up", 2)
	g.await("log", `sallyport: warning: a door keeps its commands, because a rule of this host would drop what the kernel opened door=openSSH rule="chain INPUT of table ip filter`, 1)
	if hides() {
		t.Error("it hides a port that it can't open")
	}
	g.server.Run("iptables", "-F")
	g.cmd.Process.Signal(syscall.SIGHUP)
	eventually(t, "the port is hidden again", hides)
	g.ends(syscall.SIGTERM)
	if !hides() {
		t.Error("a stop makes the port public")
	}
	g.start("", "-i", g.serverWire, "-c", "knockd.conf")
	g.await("log", "the ports that an earlier start with --native hid are public again", 1)
	if hides() {
		t.Error("the port stays hidden without --native")
	}
	if out, err := g.server.Output(testnet.Binary(t), "hide", "--state-dir", filepath.Join(g.dir, "lib"), "-c", "none"); err == nil {
		t.Errorf("the next boot would hide it: %s", out)
	}
}
