package doc_test

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/testnet"
)

// TestSession plays README's screens on real packets, with README's own config
// before each and a real sshd, and compares what is printed. Once more over
// IPv6.
func TestSession(t *testing.T) {
	testnet.RequireRoot(t)
	readme := markdown(t, root+"/README.md")
	sessions, configs := blocks(readme, "console"), blocks(readme, "toml")
	knocks := []string{"spa", "otp", "sequence"}
	if len(sessions) != len(knocks) || len(configs) != len(knocks) {
		t.Fatalf("README has %d screens and %d configs; this test knows one of each for %v", len(sessions), len(configs), knocks)
	}
	for i, knock := range knocks {
		// What began before a first start is refused: shorter time steps end that sooner.
		configs[i] = strings.Replace(configs[i], `"otp"`, "\"otp\"\ntime_step = \"10s\"", 1)
		t.Run(knock+" IPv4", func(t *testing.T) {
			newStage(t, configs[i], "192.0.2.1").play(sessions[i])
		})
		t.Run(knock+" IPv6", func(t *testing.T) {
			newStage(t, configs[i], "2001:db8::1").play(strings.NewReplacer("192.0.2.", "2001:db8::").Replace(sessions[i]))
		})
	}
}

func blocks(d text, language string) []string {
	var found []string
	for _, b := range d.blocks {
		if b.language == language {
			found = append(found, strings.Join(b.lines, "\n"))
		}
	}
	return found
}

// stage is the three machines of a session: a server with an sshd that the
// client's key opens, the client, and somebody else.
type stage struct {
	t     *testing.T
	dir   string
	hosts map[string]*host
	seen  map[string]string // what stands for … in a command
}

// host is a machine: a network of its own, and a mount namespace that a process
// holds, with its own files where a command writes.
type host struct {
	*testnet.Namespace
	pid int
}

// machine makes a host's files. /etc is a copy, so that each has its own
// sallyport, ssh and users.
const machine = `set -e
mount -t tmpfs tmpfs /mnt
cp -a /etc /mnt/etc
mount --bind /mnt/etc /etc
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/lib
mount -t tmpfs -o mode=700 tmpfs /root
mkdir -m 700 /root/.ssh /run/sshd
rm -rf /etc/sallyport
mkdir /etc/sallyport
cp sallyport.toml /etc/sallyport/
cp id_ed25519 id_ed25519.pub /root/.ssh/
cp id_ed25519.pub /root/.ssh/authorized_keys
echo 'sallyport:x:65527:65527:Sallyport engine:/:/usr/sbin/nologin' >>/etc/passwd
cp hosts /etc/hosts
echo 'StrictHostKeyChecking no
UserKnownHostsFile /dev/null
LogLevel ERROR' >/etc/ssh/ssh_config
echo ready
`

func newStage(t *testing.T, cfg, server string) *stage {
	s := &stage{t: t, dir: t.TempDir(), hosts: map[string]*host{}, seen: map[string]string{}}
	s.write("sallyport.toml", cfg)
	s.write("hosts", server+" home.example.net\n")
	for _, key := range []string{"id_ed25519", "hostkey"} {
		if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "you@laptop", "-f", filepath.Join(s.dir, key)).CombinedOutput(); err != nil {
			t.Fatalf("ssh-keygen: %v\n%s", err, out)
		}
	}
	for _, name := range []string{"server", "client", "other"} {
		s.hosts[name] = s.boot(name)
	}
	wires(s.hosts["server"].Namespace, s.hosts["client"].Namespace, s.hosts["other"].Namespace)
	s.background("server", "exec /usr/sbin/sshd -D -e -f /dev/null -h $PWD/hostkey -o UsePAM=no -o StrictModes=no -o PidFile=none -o SetEnv=PATH=$PATH 2>sshd.log", "sshd.log", "listening on ::")
	return s
}

func wires(server, client, other *testnet.Namespace) {
	testnet.Connect(server, client, []string{"192.0.2.1/24", "2001:db8::1/64"}, []string{"192.0.2.7/24", "2001:db8::7/64"})
	testnet.Connect(server, other, []string{"198.51.100.1/24", "2001:db8:1::1/64"}, []string{"198.51.100.9/24", "2001:db8:1::9/64"})
	other.Run("ip", "route", "add", "default", "via", "198.51.100.1")
	other.Run("ip", "-6", "route", "add", "default", "via", "2001:db8:1::1")
}

func (s *stage) write(name, text string) {
	if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// boot makes a machine and waits until its files are there.
func (s *stage) boot(name string) *host {
	h := &host{Namespace: testnet.New(s.t)}
	cmd := exec.Command("unshare", "--mount", "--uts", "--propagation", "private", "bash", "-c", machine+"hostname home.example.net\nexec sleep 600")
	cmd.Dir = s.dir
	out, err := cmd.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := h.Start(cmd); err != nil {
		s.t.Fatal(err)
	}
	h.pid = cmd.Process.Pid
	s.t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	if _, err := io.ReadFull(out, make([]byte, len("ready\n"))); err != nil {
		s.t.Fatalf("the machine %s was not made: %v", name, err)
	}
	return h
}

// shell is a command of root's on a machine.
func (s *stage) shell(h *host, command string) *exec.Cmd {
	cmd := exec.Command("nsenter", "--mount", "--uts", "--target", fmt.Sprint(h.pid), "--wd="+s.dir, "bash", "-c", command)
	path := filepath.Dir(testnet.Binary(s.t)) + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	cmd.Env = []string{"HOME=/root", "USER=root", "LC_ALL=C", "PATH=" + path}
	return cmd
}

var prompt = regexp.MustCompile(`^(\w+)[#$] (.*)$`)

// hidden is what differs each time. A document writes … for a part of it.
var hidden = map[string]*regexp.Regexp{
	"sallyport1…":      regexp.MustCompile(`sallyport1[A-Za-z0-9_-]{92}`),
	"ssh-ed25519 AAA…": regexp.MustCompile(`ssh-ed25519 AAA\S+`),
	"SHA256:…":         regexp.MustCompile(`SHA256:[A-Za-z0-9+/]{43}`),
	"TIME":             regexp.MustCompile(`\b[0-9.]+(µs|ms|s)\b`),
}

// play runs each command and compares its output with what stands below it.
func (s *stage) play(session string) {
	var command []string
	var want strings.Builder
	for line := range strings.SplitSeq(session+"\nend# ", "\n") {
		m := prompt.FindStringSubmatch(line)
		if m == nil {
			want.WriteString(line + "\n")
			continue
		}
		if command != nil {
			s.run(command[1], command[2], want.String())
		}
		command = m
		want.Reset()
	}
}

func (s *stage) run(name, command, want string) {
	for sign, value := range s.seen {
		command = strings.ReplaceAll(command, sign, value)
	}
	if daemon, background := strings.CutSuffix(command, " &"); background {
		s.background(name, "exec "+daemon, "log", "serving")
		return
	}
	var out strings.Builder
	cmd := s.shell(s.hosts[name], command)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := s.hosts[name].Start(cmd); err != nil {
		s.t.Fatal(err)
	}
	cmd.Wait() // a refused connection is a failure that the session shows
	got := out.String()
	for sign, pattern := range hidden {
		if found := pattern.FindString(got); found != "" {
			s.seen[sign] = found
		}
		got, want = pattern.ReplaceAllString(got, sign), pattern.ReplaceAllString(want, sign)
	}
	if !fits(want, got) {
		s.t.Errorf("README shows behind '%s'\n%s\nand this happened:\n%s\nlog:\n%s", command, want, got, s.read("log"))
	}
}

// fits compares line by line. A line of … alone stands for any number of lines,
// and … at the end of a line for its rest.
func fits(want, got string) bool {
	pattern := regexp.QuoteMeta(want)
	pattern = regexp.MustCompile(`(?m)^…\n`).ReplaceAllString(pattern, "(?s:.*)")
	pattern = regexp.MustCompile(`(?m) …$`).ReplaceAllString(pattern, ".*")
	return regexp.MustCompile(`\A` + pattern + `\z`).MatchString(got)
}

func (s *stage) read(name string) string {
	text, _ := os.ReadFile(filepath.Join(s.dir, name)) // nobody wrote it yet
	return string(text)
}

// background starts what runs on, and waits until its log says that it does.
func (s *stage) background(name, command, log, said string) {
	cmd := s.shell(s.hosts[name], command)
	if err := s.hosts[name].Start(cmd); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if strings.Contains(s.read(log), said) {
			return
		}
	}
	s.t.Fatalf("'%s' is not ready; its log has %q", command, s.read(log))
}
