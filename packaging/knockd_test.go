package packaging_test

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sallyport/sallyport/internal/testnet"
)

// put writes a file below a directory, with the directories on the way.
func put(t *testing.T, dest, name, text string) string {
	t.Helper()
	path := filepath.Join(dest, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func get(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// made runs a target that may fail, and gives what it says.
func made(t *testing.T, dest, target string) (string, error) {
	t.Helper()
	out, err := exec.Command("make", "--no-print-directory", "-C", "..", target, "DESTDIR="+dest, "PROGRAM="+testnet.Binary(t)).CombinedOutput()
	return string(out), err
}

// TestInstallKnockd: the names are links to the program, only on request, and go
// again without what an administrator may have changed.
func TestInstallKnockd(t *testing.T) {
	dest := t.TempDir()
	run(t, dest, "install")
	before := tree(t, dest)
	if strings.Contains(before, "bin/knock") {
		t.Errorf("make install brings the names of another package:\n%s", before)
	}
	run(t, dest, "install-knockd")
	var added strings.Builder
	for line := range strings.Lines(tree(t, dest)) {
		if !strings.Contains(before, line) {
			added.WriteString(line)
		}
	}
	if diff := cmp.Diff(get(t, "testdata/installed-knockd.txt"), added.String()); diff != "" {
		t.Errorf("installed (-testdata/installed-knockd.txt +make install-knockd):\n%s", diff)
	}
	for _, name := range []string{"usr/sbin/knockd", "usr/bin/knock"} {
		to, err := filepath.EvalSymlinks(filepath.Join(dest, name))
		if err != nil || to != filepath.Join(dest, "usr/bin/sallyport") {
			t.Errorf("%s leads to %q, %v", name, to, err)
		}
	}
	run(t, dest, "uninstall-knockd")
	left := strings.TrimPrefix(tree(t, dest), before)
	if strings.Contains(left, "bin/knock") || strings.Contains(left, "knock.1") || strings.Contains(left, "knockd.service") {
		t.Errorf("left behind by make uninstall-knockd:\n%s", left)
	}
	for _, kept := range []string{"etc/default/knockd", "etc/init.d/knockd"} {
		get(t, filepath.Join(dest, kept))
	}
}

// TestPackagesKnockdIsKept: a program that another package owns is not replaced
// and not removed.
func TestPackagesKnockdIsKept(t *testing.T) {
	for _, name := range []string{"usr/sbin/knockd", "usr/bin/knock"} {
		dest := t.TempDir()
		theirs := put(t, dest, name, "theirs")
		out, err := made(t, dest, "install-knockd")
		if err == nil || !strings.Contains(out, "remove its package first") {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
		if out, err := made(t, dest, "uninstall-knockd"); err != nil {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
		if got := get(t, theirs); got != "theirs" {
			t.Errorf("%s is now %q", name, got)
		}
	}
}

// TestAdministratorsFilesAreKept, as they are left by a package that was removed,
// and Debian's START_KNOCKD=0, which its own unit never looked at, is told of.
func TestAdministratorsFilesAreKept(t *testing.T) {
	for text, noted := range map[string]bool{
		"START_KNOCKD=0\n": true, "START_KNOCKD=no\n": true, "START_KNOCKD=1\n": false, "START_KNOCKD=\"1\"\n": false,
		"# START_KNOCKD=0\n": false, "KNOCKD_OPTS=\"-i eth1\"\n": false,
	} {
		dest := t.TempDir()
		defaults, script := put(t, dest, "etc/default/knockd", text), put(t, dest, "etc/init.d/knockd", "mine")
		out, err := made(t, dest, "install-knockd")
		if err != nil || strings.Contains(out, "START_KNOCKD=1 there") != noted {
			t.Errorf("with %q: %v\n%s", text, err, out)
		}
		if get(t, defaults) != text || get(t, script) != "mine" {
			t.Errorf("with %q: a file of the administrator's was changed", text)
		}
	}
}

func TestKnockdUnitIsValid(t *testing.T) {
	analyze := tool(t, "systemd-analyze")
	dest := t.TempDir()
	run(t, dest, "install-knockd")
	path := filepath.Join(dest, "usr/lib/systemd/system/knockd.service")
	text := strings.ReplaceAll(get(t, path), "/usr/sbin/knockd", filepath.Join(dest, "usr/sbin/knockd"))
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(analyze, "verify", "--man=no", path).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestKnockdUnitConfinesNothing: its commands are other people's. Of all settings
// only these are known to leave a command alone.
func TestKnockdUnitConfinesNothing(t *testing.T) {
	harmless := []string{
		"Description", "Documentation", "Wants", "After", "StartLimitIntervalSec", "WantedBy",
		"Type", "NotifyAccess", "EnvironmentFile", "ExecCondition", "ExecStart", "ExecReload", "KillMode",
		"SuccessExitStatus", "Restart", "RestartSec", "WatchdogSec",
	}
	u := readUnit(t, "knockd.service")
	for name := range u {
		if !slices.Contains(harmless, name) {
			t.Errorf("knockd.service has %s=, which is not known to leave commands alone", name)
		}
	}
	for name, want := range map[string]string{
		"KillMode": "process", "SuccessExitStatus": "0 2 15", "EnvironmentFile": "-/etc/default/knockd", "ExecStart": "/usr/sbin/knockd $KNOCKD_OPTS",
	} {
		if got := strings.Join(u[name], " "); got != want {
			t.Errorf("knockd.service has %s=%s, want %s", name, got, want)
		}
	}
}

// startKnockd is what /etc/default/knockd may hold, and whether the daemon starts:
// "1 = start, anything else = don't start", and without a word it does.
var startKnockd = map[string]bool{
	"": true, "START_KNOCKD=": true, "START_KNOCKD=1": true, `START_KNOCKD="1"`: true,
	"START_KNOCKD=0": false, "START_KNOCKD=no": false, "START_KNOCKD=yes": false, "START_KNOCKD=01": false, `START_KNOCKD="1 0"`: false,
}

var condition = regexp.MustCompile(`(?m)^ExecCondition=/bin/sh -c '([^']+)'$`)

// TestUnitHeedsStartKnockd runs the unit's own condition. systemd takes a status
// of 1 to 254 for "don't start, and nothing failed", but not those of
// SuccessExitStatus=.
func TestUnitHeedsStartKnockd(t *testing.T) {
	m := condition.FindStringSubmatch(get(t, "knockd.service"))
	if m == nil {
		t.Fatal("knockd.service has no condition")
	}
	script := strings.ReplaceAll(m[1], "$$", "$")
	for line, starts := range startKnockd {
		cmd := exec.Command("sh", "-c", "unset START_KNOCKD; set -a; "+line+"\nset +a; exec sh -c '"+script+"'")
		out, _ := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); (code == 0) != starts || code != 0 && code != 1 || (len(out) > 0) == starts {
			t.Errorf("with %q the condition has status %d and says %q", line, code, out)
		}
	}
}

// script is the init script with its paths below a directory, and a program that
// goes into the background as knockd does: its name is what its process is found
// by.
func script(t *testing.T, defaults string) (path, dir string) {
	t.Helper()
	dir = t.TempDir()
	daemon := filepath.Join(dir, "knockd")
	// $$ of the inner shell is the daemon's; it says with what it was started, and
	// ends within a minute whatever becomes of the test.
	const program = "#!/bin/sh\n" +
		"[ \"$1\" = serve ] || { echo \"$@\" >>DIR/calls; setsid DIR/knockd serve \"$@\" </dev/null >/dev/null 2>&1 & sleep 0.2; exit 0; }\n" +
		"echo $$ >\"$4\"\ntrap 'echo HUP >>DIR/calls' HUP\ntrap 'rm -f \"$4\"; exit 15' TERM\n" +
		"for i in $(seq 600); do sleep 0.1; done\n"
	if err := testnet.WriteProgram(daemon, []byte(strings.ReplaceAll(program, "DIR", dir))); err != nil {
		t.Fatal(err)
	}
	put(t, dir, "default", defaults+"\n")
	text := strings.NewReplacer("/usr/sbin/knockd", daemon, "/etc/default/knockd", dir+"/default", "/var/run/knockd.pid", dir+"/pid").Replace(get(t, "knockd.init"))
	// The host's own hook would hand over to its systemd.
	text = strings.ReplaceAll(text, "/lib/lsb/init-functions", dir+"/none")
	path = filepath.Join(dir, "init")
	if err := testnet.WriteProgram(path, []byte(text)); err != nil {
		t.Fatal(err)
	}
	return path, dir
}

func service(t *testing.T, path, verb string) (string, int) {
	t.Helper()
	cmd := exec.Command(path, verb)
	out, _ := cmd.CombinedOutput()
	return string(out), cmd.ProcessState.ExitCode()
}

func TestInitScriptHeedsStartKnockd(t *testing.T) {
	tool(t, "start-stop-daemon")
	for line, starts := range startKnockd {
		t.Run(line, func(t *testing.T) {
			path, dir := script(t, line)
			t.Cleanup(func() { service(t, path, "stop") })
			out, code := service(t, path, "start")
			_, err := os.Stat(dir + "/calls")
			if started := err == nil; started != starts || code != 0 || strings.Contains(out, "not started") == starts {
				t.Errorf("started: %v, status %d\n%s", started, code, out)
			}
		})
	}
}

// TestInitScript goes through the life of a service.
func TestInitScript(t *testing.T) {
	tool(t, "start-stop-daemon")
	// Under nohup(1) a shell can't trap what was ignored when it began, signal(7).
	hangUp := make(chan os.Signal, 1)
	signal.Notify(hangUp, syscall.SIGHUP)
	t.Cleanup(func() { signal.Stop(hangUp) })
	path, dir := script(t, "START_KNOCKD=1\nKNOCKD_OPTS='-i eth1 -v'")
	t.Cleanup(func() { service(t, path, "stop") })
	for _, step := range []struct {
		verb string
		code int
		says string
	}{
		{"status", 3, "does not run"}, {"stop", 0, ""}, {"reload", 1, ""}, {"start", 0, ""}, {"start", 0, "runs already"},
		{"status", 0, "knockd runs"}, {"reload", 0, ""}, {"force-reload", 0, ""}, {"restart", 0, ""}, {"stop", 0, ""}, {"status", 3, "does not run"}, {"sing", 2, "usage:"},
	} {
		if out, code := service(t, path, step.verb); code != step.code || !strings.Contains(out, step.says) {
			t.Errorf("%s: status %d, want %d\n%s", step.verb, code, step.code, out)
		}
		time.Sleep(150 * time.Millisecond) // a shell looks at signals between its commands
	}
	call := fmt.Sprintf("-d -p %s/pid -i eth1 -v\n", dir)
	if got, want := get(t, dir+"/calls"), call+"HUP\nHUP\n"+call; got != want {
		t.Errorf("the daemon saw %q, want %q", got, want)
	}
}

// TestInitScriptSparesOthers: a process that has the number of a daemon which is
// gone, and those that knocks started, are not the daemon.
func TestInitScriptSparesOthers(t *testing.T) {
	tool(t, "start-stop-daemon")
	path, dir := script(t, "")
	other := exec.Command("sleep", "30")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { other.Process.Kill(); other.Wait() }()
	put(t, dir, "pid", fmt.Sprintln(other.Process.Pid))
	if _, code := service(t, path, "stop"); code != 0 {
		t.Errorf("stop has status %d", code)
	}
	if comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", other.Process.Pid)); err != nil || strings.Contains(string(comm), ") Z ") {
		t.Error("a process that is not the daemon was ended")
	}
}

// life plays a service's life with the real daemon, in network, mount and process
// namespaces of its own: a knock starts a command, and a restart leaves it alone.
const life = `set -e
ip link set lo up
ip link add knocked type veth peer name knocker
ip link set knocked up
unshare --net sleep 30 & other=$!
sleep 0.3
ip link set knocker netns $other
beside() { nsenter -t $other -n "$@"; }
beside ip link set knocker up
ip address add SERVER dev knocked nodad 2>/dev/null
beside ip address add CLIENT dev knocker nodad 2>/dev/null
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/lib
ln -s PROGRAM knockd
ln -s PROGRAM knock
chmod 755 init
printf 'START_KNOCKD=1\nKNOCKD_OPTS="-c %s/conf -i knocked"\n' "$PWD" >default
./init start 2>/dev/null
first=$(cat pid)
beside ./knock -d 20 HOST 7000 8000 7500
for i in $(seq 50); do [ -s started ] && break; sleep 0.1; done
./init restart 2>/dev/null
second=$(cat pid)
[ "$first" != "$second" ] && [ "$(cat /proc/$second/comm)" = knockd ] && echo the daemon is another
kill -0 $(cat started) && echo the command goes on
beside ./knock -d 20 HOST 7000 8000 7500
for i in $(seq 50); do [ $(wc -l <started) = 2 ] && break; sleep 0.1; done
[ $(wc -l <started) = 2 ] && echo it hears knocks
./init stop
[ ! -e pid ] && [ ! -e /proc/$second ] && echo the daemon is gone
kill -0 $(head -1 started) && echo the command goes on
`

// TestInitScriptLeavesCommands: what a knock started outlives a restart and a stop.
func TestInitScriptLeavesCommands(t *testing.T) {
	testnet.RequireRoot(t)
	tool(t, "start-stop-daemon")
	for _, c := range []struct{ server, client string }{{"192.0.2.1/24", "192.0.2.7/24"}, {"2001:db8::1/64", "2001:db8::7/64"}} {
		dir := t.TempDir()
		host, _, _ := strings.Cut(c.server, "/")
		put(t, dir, "conf", "[wake]\nsequence = 7000,8000,7500\ntcpflags = syn\ncommand = "+dir+"/wake\n")
		put(t, dir, "init", strings.NewReplacer("/usr/sbin/knockd", dir+"/knockd", "/etc/default/knockd", dir+"/default",
			"/var/run/knockd.pid", dir+"/pid", "/lib/lsb/init-functions", dir+"/none").Replace(get(t, "knockd.init")))
		// It holds its output, as a service does that was started without care.
		if err := testnet.WriteProgram(dir+"/wake", []byte("#!/bin/sh\nsleep 20 &\necho $! >>"+dir+"/started\n")); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("timeout", "50", "unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c",
			strings.NewReplacer("SERVER", c.server, "CLIENT", c.client, "HOST", host, "PROGRAM", testnet.Binary(t)).Replace(life))
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		const want = "the daemon is another\nthe command goes on\nit hears knocks\nthe daemon is gone\nthe command goes on\n"
		if err != nil || string(out) != want {
			t.Errorf("%s: %v\n%s", c.server, err, out)
		}
	}
}

// kept is what the example for commands leaves in force, and why.
var kept = map[string]string{
	"SystemCallErrorNumber": "nothing without a filter",
	"LimitCORE":             "a core file would hold the sequences",
}

// TestActionsExample: what the drop-in resets is what the unit sets, all of it.
func TestActionsExample(t *testing.T) {
	unit, dropin := settings(t, "sallyport.service"), settings(t, "actions.conf")
	for name := range dropin {
		if _, ok := unit[name]; !ok {
			t.Errorf("actions.conf resets %s=, which the unit doesn't set", name)
		}
	}
	confines := false
	for _, name := range order(t, "sallyport.service") {
		if confines = confines || name == "CapabilityBoundingSet"; !confines || name == "WantedBy" || name == "Also" {
			continue
		}
		if _, ok := dropin[name]; ok == (kept[name] != "") {
			t.Errorf("%s= of the unit: actions.conf must reset it, or this test say why not", name)
		}
	}
}

func settings(t *testing.T, path string) map[string]bool {
	found := map[string]bool{}
	for _, name := range order(t, path) {
		found[name] = true
	}
	return found
}

// order gives the names of a unit's settings as they stand, also of empty ones.
func order(t *testing.T, path string) (names []string) {
	t.Helper()
	for line := range strings.Lines(get(t, path)) {
		if name, _, ok := strings.Cut(line, "="); ok && !strings.HasPrefix(line, "#") {
			names = append(names, name)
		}
	}
	return names
}

// TestActionsExampleFrees asks systemd: behind the drop-in the unit is open, and
// systemd understands each line.
func TestActionsExampleFrees(t *testing.T) {
	analyze := tool(t, "systemd-analyze")
	dir := t.TempDir()
	unit := put(t, dir, "sallyport.service", strings.ReplaceAll(get(t, "sallyport.service"), "/usr/bin/sallyport", testnet.Binary(t))+"[Service]\n"+get(t, "actions.conf"))
	out, err := exec.Command(analyze, "verify", "--man=no", unit).CombinedOutput()
	if lines := strings.TrimSpace(string(out)); err != nil || lines != "" && !strings.Contains(lines, "sallyport-hide.service") {
		t.Errorf("%v\n%s", err, out)
	}
	// In tenths, of 100: an unconfined service has 96.
	if out, err := exec.Command(analyze, "security", "--offline=true", "--no-pager", "--threshold=90", unit).CombinedOutput(); err == nil {
		t.Errorf("the unit is still confined:\n%s", out)
	}
}
