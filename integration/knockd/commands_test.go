package knockd_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// The two files that must work as people have them.
const (
	initConfig = `[options]
UseSyslog

[openSSH]
sequence = 7000,3000,55000,1500
seq_timeout = 5
command = /etc/init.d/ssh start
tcpflags = syn

[closeSSH]
sequence = 9000,8000,7000
seq_timeout = 5
command = /etc/init.d/ssh stop
tcpflags = syn
`
	iptablesConfig = `[openSSH]
sequence = 7000,8000,9000
seq_timeout = 5
command = /sbin/iptables -A INPUT -s %IP% -p tcp --dport 22 -j ACCEPT
tcpflags = syn
`
)

// An init script that is root's, as on a machine where sshd is started by a knock.
func TestInitScriptConfig(t *testing.T) {
	w := newWorld(t)
	w.write("ssh", "#!/bin/sh\necho \"$1 $# $(id -u)\" >> DIR/asked\n")
	w.write("knockd.conf", initConfig)
	d := w.start("mount -t tmpfs none /etc/init.d; cp ssh /etc/init.d/ssh", w.knockd, "-c", "DIR/knockd.conf", "-v", "-i", "WIRE")
	d.await("listening on", 1)
	want := ""
	for _, f := range families {
		w.hit(f, "7000", "3000", "55000", "1500")
		want += "start 1 0\n"
		w.eventually("start", func() bool { return w.read("asked") == want })
		w.hit(f, "9000", "8000", "7000")
		want += "stop 1 0\n"
		w.eventually("stop", func() bool { return w.read("asked") == want })
	}
}

// The rule gets the knocker's address; over IPv6 the same command fails and the log
// says so, and command_6 is what helps.
func TestIptablesConfig(t *testing.T) {
	w := newWorld(t)
	d := w.serve("knockd.conf", iptablesConfig+"[six]\nsequence=6100,6300,6200\ncommand=/sbin/iptables -I INPUT -s %IP% -j ACCEPT\n"+
		"command_6 = /sbin/ip6tables -A INPUT -s %IP% -p tcp --dport 22 -j ACCEPT\n"+fence, "-i", "WIRE")
	w.hit(families[0], "7000", "8000", "9000")
	const four = "-A INPUT -s 192.0.2.1/32 -p tcp -m tcp --dport 22 -j ACCEPT"
	w.eventually("the rule", func() bool { return strings.Contains(w.server.Run("iptables", "-S", "INPUT"), four) })
	w.hit(families[1], "7000", "8000", "9000")
	d.await("openSSH: command returned non-zero status code (2)", 1)
	w.hit(families[1], "6100", "6300", "6200")
	const six = "-A INPUT -s 2001:db8::1/128 -p tcp -m tcp --dport 22 -j ACCEPT"
	w.eventually("the rule", func() bool { return strings.Contains(w.server.Run("ip6tables", "-S", "INPUT"), six) })
	if n := strings.Count(w.server.Run("iptables", "-S"), "ACCEPT"); n != 4 { // three policies
		t.Errorf("the rules are\n%s", w.server.Run("iptables", "-S"))
	}
}

// A scan of the ports in order opens the ascending sequence of knockd's, and not here
// unless knockd's own rules are asked for.
func TestAScanInOrderOpensNothing(t *testing.T) {
	w := newWorld(t)
	config := strings.Replace(iptablesConfig, "command = ", "command = true ", 1)
	ours := w.serve("ours.conf", config+fence, "-i", "WIRE")
	strict := w.serve("strict.conf", config+fence, "-i", "WIRE", "--strict-knockd")
	for _, f := range families {
		w.client.Output("nmap", strings.Fields("-n -r "+f.flag+" -Pn --max-retries 0 -T5 --min-parallelism 1 --max-parallelism 1 -p 6990-7010,7990-8010,8990-9010 "+f.server)...)
		ours.fence(f)
		strict.await(opened(f, "fence"), 1)
		if n := ours.said(opened(f, "openSSH")); n != 0 {
			t.Errorf("%s: a scan opened the door", f.name)
		}
		if n := strict.said(opened(f, "openSSH")); n != 1 {
			t.Errorf("%s: with knockd's rules it opened %d times, want 1: the scan shows nothing\n%s", f.name, n, strict.out)
		}
	}
}

func startStop(file string, timeout int) string {
	return "[door]\nsequence = 7000,8500\ntcpflags = syn\nstart_command = " + note("start", file) +
		"\ncmd_timeout = " + strconv.Itoa(timeout) + "\nstop_command = " + note("stop", file) + "\n"
}

// A second knock puts the stop off and starts nothing; with --strict-knockd both
// run twice.
func TestAKnockWhileOpen(t *testing.T) {
	w := newWorld(t)
	w.serve("ours.conf", startStop("ours", 2), "-i", "WIRE")
	w.serve("strict.conf", startStop("strict", 2), "-i", "WIRE", "--strict-knockd")
	for _, f := range families {
		w.hit(f, "7000", "8500")
	}
	var again [2]time.Time
	for i, f := range families {
		first := w.ran("ours", "start", f.client, 1)[0].at
		w.ran("strict", "start", f.client, 1)
		time.Sleep(time.Until(first.Add(time.Second)))
		again[i] = time.Now()
		w.hit(f, "7000", "8500")
	}
	for i, f := range families {
		stop := w.ran("ours", "stop", f.client, 1)[0].at
		if d := stop.Sub(again[i]); d < 2*time.Second || d > 10*time.Second {
			t.Errorf("%s: the stop ran %v after the second knock, want 2s", f.name, d)
		}
		w.ran("strict", "stop", f.client, 2)
		for file, want := range map[string]int{"ours": 1, "strict": 2} {
			if starts, stops := w.moments(file, "start", f.client), w.moments(file, "stop", f.client); len(starts) != want || len(stops) != want {
				t.Errorf("%s, %s: %d starts and %d stops, want %d each", f.name, file, len(starts), len(stops), want)
			}
		}
	}
}

// A stop survives: what is due when the daemon is there again runs at once, and the
// rest at its time, once.
func TestStopsSurvive(t *testing.T) {
	for _, c := range []struct {
		name   string
		how    syscall.Signal
		status int
		past   bool // it comes back after the time, as from a reboot
	}{
		{"killed", syscall.SIGKILL, -1, true},
		{"stopped", syscall.SIGTERM, 15, true},
		{"killed and back in time", syscall.SIGKILL, -1, false},
		{"stopped and back in time", syscall.SIGTERM, 15, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			d := w.serve("knockd.conf", startStop("ran", 2), "-i", "WIRE")
			due := time.Now().Add(2 * time.Second)
			for _, f := range families {
				w.hit(f, "7000", "8500")
				w.ran("ran", "start", f.client, 1)
			}
			d.ends(c.how, c.status)
			if c.past {
				time.Sleep(2100 * time.Millisecond) // the last start was before this
				if text := w.read("ran"); strings.Contains(text, "stop") {
					t.Fatalf("a stop ran without a daemon: %s", text)
				}
			}
			back := time.Now()
			d = w.again("knockd.conf", "-i", "WIRE")
			for _, f := range families {
				stop := w.ran("ran", "stop", f.client, 1)[0].at
				late := stop.Sub(back)
				if !c.past {
					late = stop.Sub(due)
				}
				if stop.Before(due) || late > 8*time.Second {
					t.Errorf("%s: the stop ran %v after its time and the daemon's start", f.name, late)
				}
			}
			d.await("door: running command: echo \"stop", 2)
			d.ends(syscall.SIGINT, 2)
			w.again("knockd.conf", "-i", "WIRE") // nothing is left to do
			w.hit(families[0], "7000", "8500")
			w.ran("ran", "start", families[0].client, 2)
			for _, f := range families {
				if n := len(w.moments("ran", "stop", f.client)); n != 1 {
					t.Errorf("%s: the stop ran %d times", f.name, n)
				}
			}
		})
	}
}

// Texts that try the substitution and the shell. OUT is a file of the door's own.
func oddCommands() []string {
	return []string{
		`echo %IP%%IP% >OUT`,
		`echo '%IP%' "%IP%" a%IP%b; echo a%IP%b\; >OUT`,
		`printf '%s|' '$(id -u)' "a  b" "$((1+1))" ` + "`echo %IP%`" + ` >OUT; echo done >>OUT`,
		`echo 'héé — “%IP%” ☃' >OUT`,
		`echo ` + strings.Repeat("0123456789", 390) + ` %IP% >OUT`,
		`echo %ip% %IP %%IP%% % IP% %Ip% IP% %I%IP%P% >OUT`,
		`IP=x; echo $IP ${IP} %IP% "$SHELLOPTS" >OUT`,
		`/bin/sh -c 'echo "$1" >OUT' sh %IP%`,
		`/usr/bin/touch OUT.%IP%`,
		"/usr/bin/touch\tOUT.%IP%.a    OUT.b,c=%IP%",
		`echo "a=b" = '=' == >OUT`,
		`echo '#x' %IP% >OUT # tail %IP% >>OUT`,
		`echo \%IP\% \\%IP%\\ >OUT`,
		"   \techo lead %IP% >OUT \t ",
		`(sleep 0.2; echo %IP% | tr 0-9a-f A-P >OUT) &`,
		`>OUT echo first; echo second %IP% >>OUT`,
		`echo ~ * ? [x] {a,b} ! ^ %IP% >OUT`,
		`false || echo either %IP% >OUT && true`,
		`exec >OUT; echo %IP%; echo $#`,
		`case %IP% in *:*) echo six;; *) echo four;; esac >OUT`,
		`[ -n "%IP%" ] && echo "%IP%" | wc -c >OUT`,
	}
}

// Both daemons hear the same knocks, and the same text must do the same to the byte.
// Some lines end with CR LF, and the file has no final newline.
func TestHostileCommandsAreTheOriginals(t *testing.T) {
	w := newWorld(t)
	commands := oddCommands()
	for _, who := range []string{"theirs", "ours"} {
		var text strings.Builder
		text.WriteString("[options]\r\n  UseSyslog\r\n\r\n")
		for i, command := range commands {
			end := []string{"\n", "\r\n"}[i%2]
			fmt.Fprintf(&text, "[door%d]%s sequence = %d%stcpflags=syn%s command = %s%s", i, end, 7000+200*i, end, end,
				strings.ReplaceAll(command, "OUT", fmt.Sprintf("DIR/%s/%02d", who, i)), end)
		}
		w.write(who+".conf", strings.TrimRight(text.String(), "\r\n"))
		if err := os.Mkdir(filepath.Join(w.dir, who), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// Ours runs commands in / in the foreground too.
	w.start("cd /", "/usr/sbin/knockd", "-c", "DIR/theirs.conf", "-v", "-i", "WIRE").await("listening on", 1)
	d := w.again("ours.conf", "-i", "WIRE")
	for _, f := range families {
		for i := range commands {
			w.hit(f, strconv.Itoa(7000+200*i))
			d.await(opened(f, fmt.Sprintf("door%d", i)), 1)
		}
		var theirs, ours map[string]string
		for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			if theirs, ours = w.files("theirs"), w.files("ours"); len(theirs) >= len(commands) && cmp.Equal(theirs, ours) {
				break
			}
		}
		if diff := cmp.Diff(theirs, ours); diff != "" || len(theirs) < len(commands) {
			t.Errorf("%s: %d files of %d commands; theirs and ours differ:\n%s", f.name, len(theirs), len(commands), diff)
		}
		for _, who := range []string{"theirs", "ours"} { // but for what has its own name for each address
			os.RemoveAll(filepath.Join(w.dir, who))
			os.Mkdir(filepath.Join(w.dir, who), 0o755)
		}
	}
}

// files gives what commands have written below a directory, without its name.
func (w *world) files(dir string) map[string]string {
	w.t.Helper()
	all := map[string]string{}
	names, _ := filepath.Glob(filepath.Join(w.dir, dir, "*"))
	for _, name := range names {
		text, _ := os.ReadFile(name)
		all[filepath.Base(name)] = strings.ReplaceAll(string(text), "/"+dir+"/", "/")
	}
	return all
}

// What is no text is an error with its line, and nothing runs.
func TestFilesThatAreNoText(t *testing.T) {
	w := newWorld(t)
	for name, c := range map[string]struct{ text, says string }{
		"nul":       {"[a]\nsequence=7000\ncommand=touch DIR/hit\x00ed\n", "knockd.conf:3: the line has a NUL byte"},
		"long":      {"[a]\nsequence=7000\ncommand=touch " + strings.Repeat("x", 4096) + "\n", "knockd.conf:3: "},
		"no end":    {"[a]\nsequence=7000\ncommand", "knockd.conf:3: "},
		"no header": {"\r\nsequence=7000", "knockd.conf:2: "},
		"empty":     {"[a]\ncommand = touch DIR/hit", "knockd.conf:1: door \"a\" has no sequence"},
	} {
		w.write("knockd.conf", c.text)
		d := w.start("", w.knockd, "-c", "DIR/knockd.conf", "-v", "-i", "WIRE")
		if status := d.status(); status != 1 || !strings.Contains(d.out.String(), c.says) || !strings.Contains(d.out.String(), "usage: knockd") {
			t.Errorf("%s: status %d and\n%s", name, status, d.out)
		}
	}
}

// A service that a knock started writes to its output for ever and outlives every
// end of the daemon.
func TestAServiceOutlivesTheDaemon(t *testing.T) {
	w := newWorld(t)
	w.write("service", `#!/bin/sh
( i=0; while [ $((i=i+1)) -lt 4000 ]; do echo beat; echo complaint >&2; echo x >> DIR/beats.$1; sleep 0.02; done ) &
echo $! > DIR/pid.$1
`)
	d := w.serve("knockd.conf", "[wake]\nsequence = 7000\ncommand = DIR/service %IP%\n", "-i", "WIRE")
	for _, f := range families {
		w.hit(f, "7000")
		w.eventually("the service", func() bool {
			return len(w.read("beats."+f.client)) > 0 && strings.HasSuffix(w.read("pid."+f.client), "\n")
		})
		pid, err := strconv.Atoi(strings.TrimSpace(w.read("pid." + f.client)))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { syscall.Kill(pid, syscall.SIGKILL) })
	}
	for _, c := range []struct {
		how    syscall.Signal
		status int
	}{{syscall.SIGTERM, 15}, {syscall.SIGKILL, -1}, {syscall.SIGINT, 2}} {
		d.ends(c.how, c.status)
		w.beats(fmt.Sprintf("the daemon's end by %v", c.how))
		d = w.again("knockd.conf", "-i", "WIRE")
		w.beats("the next start")
	}
}

// beats checks that the services go on: what they wrote into a pipe that nobody
// reads would have ended them by now.
func (w *world) beats(after string) {
	w.t.Helper()
	for _, f := range families {
		before := len(w.read("beats." + f.client))
		w.eventually("the service of "+f.client+" goes on after "+after, func() bool { return len(w.read("beats."+f.client)) > before+20 })
	}
}
