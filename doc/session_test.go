package doc_test

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/testnet"
)

// TestSession plays README's first screen on real packets, with README's own
// config, and compares what is printed, times aside. Once more over IPv6.
func TestSession(t *testing.T) {
	testnet.RequireRoot(t)
	readme := markdown(t, root+"/README.md")
	session := strings.Join(firstBlock(t, readme, "console").lines, "\n")
	cfg := strings.Join(firstBlock(t, readme, "toml").lines, "\n")
	t.Run("IPv4", func(t *testing.T) { newStage(t, cfg).play(session) })
	t.Run("IPv6", func(t *testing.T) {
		newStage(t, cfg).play(strings.NewReplacer("192.0.2.", "2001:db8::").Replace(session))
	})
}

func firstBlock(t *testing.T, d text, language string) block {
	t.Helper()
	for _, b := range d.blocks {
		if b.language == language {
			return b
		}
	}
	t.Fatalf("%s has no block of %s", d.path, language)
	return block{}
}

// stage is the three machines of the session, with something to reach on port
// 22 of the server.
type stage struct {
	t     *testing.T
	dir   string
	hosts map[string]*testnet.Namespace
}

func newStage(t *testing.T, cfg string) *stage {
	s := &stage{t: t, dir: t.TempDir(), hosts: map[string]*testnet.Namespace{
		"server": testnet.New(t), "client": testnet.New(t), "other": testnet.New(t),
	}}
	server, other := s.hosts["server"], s.hosts["other"]
	testnet.Connect(server, s.hosts["client"], []string{"192.0.2.1/24", "2001:db8::1/64"}, []string{"192.0.2.7/24", "2001:db8::7/64"})
	testnet.Connect(server, other, []string{"198.51.100.1/24", "2001:db8:1::1/64"}, []string{"198.51.100.9/24", "2001:db8:1::9/64"})
	other.Run("ip", "route", "add", "default", "via", "198.51.100.1")
	other.Run("ip", "-6", "route", "add", "default", "via", "2001:db8:1::1")
	server.Do(func() {
		l, err := net.Listen("tcp", ":22")
		if err != nil {
			t.Error(err)
			return
		}
		t.Cleanup(func() { l.Close() })
	})
	s.write("sallyport.toml", cfg)
	s.write("passwd", read(t, "/etc/passwd")+"sallyport:x:65527:65527:Sallyport engine:/:/usr/sbin/nologin\n")
	return s
}

func (s *stage) write(name, text string) {
	if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// machine gives each command the files of a machine of its own: an empty state,
// and the user that the package makes.
const machine = "mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /var/lib && chmod 644 passwd && mount --bind passwd /etc/passwd && "

func (s *stage) shell(command string) *exec.Cmd {
	cmd := exec.Command("unshare", "--mount", "--propagation", "private", "bash", "-c", machine+command)
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(testnet.Binary(s.t))+":"+os.Getenv("PATH"))
	return cmd
}

var (
	prompt   = regexp.MustCompile(`^(\w+)[#$] (.*)$`)
	duration = regexp.MustCompile(`\b[0-9.]+(µs|ms|s)\b`)
)

func (s *stage) play(session string) {
	var out strings.Builder
	for line := range strings.SplitSeq(session, "\n") {
		m := prompt.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		out.WriteString(line + "\n")
		if daemon, background := strings.CutSuffix(m[2], " &"); background {
			s.background(m[1], daemon)
			continue
		}
		cmd := s.shell(m[2])
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := s.hosts[m[1]].Start(cmd); err != nil {
			s.t.Fatal(err)
		}
		cmd.Wait() // a refused connection is a failure that the session shows
	}
	got, want := duration.ReplaceAllString(out.String(), "TIME"), duration.ReplaceAllString(session+"\n", "TIME")
	if got != want {
		s.t.Errorf("README shows\n%s\nand this happened:\n%s", session, out.String())
	}
}

// background starts the daemon and waits until its log says that it serves.
func (s *stage) background(host, command string) {
	cmd := s.shell("exec " + command)
	if err := s.hosts[host].Start(cmd); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if log, err := os.ReadFile(filepath.Join(s.dir, "log")); err == nil && strings.Contains(string(log), "serving") {
			return
		}
	}
	s.t.Fatalf("the daemon of README does not serve; its log has %q", read(s.t, filepath.Join(s.dir, "log")))
}
