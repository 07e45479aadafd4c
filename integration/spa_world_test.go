//go:build linux

package integration_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/testnet"
)

// The knocks of a sshWorld: one of each suite, and a sequence.
const (
	classicPort = 62201
	quantumPort = 62202
	sshSteps    = "7000/tcp 8500/udp 7800/tcp"
)

// skProvider plays a hardware key that is touched at once; it comes with Debian's
// openssh-tests.
const skProvider = "/usr/lib/openssh/regress/misc/sk-dummy/sk-dummy.so"

// sshWorld is a house with OpenSSH's sshd at 22/tcp instead of the echo, a user
// at the client with a home of his own, and somebody else on another wire.
type sshWorld struct {
	*house
	dir        string            // of the server's files
	home       string            // of the user's; his programs see it as root's
	agent      string            // the socket of his ssh-agent; empty: there is none
	addrs      map[string]string // of the server's keys, "classic" and "quantum"
	stranger   *testnet.Namespace
	clientWire string
}

// strangerPaths are the ways from the stranger to the server.
var strangerPaths = []path{
	{"IPv4", netip.MustParseAddr("198.51.100.9"), netip.MustParseAddr("198.51.100.1")},
	{"IPv6", netip.MustParseAddr("2001:db8:9::9"), netip.MustParseAddr("2001:db8:9::1")},
}

// sshSettings are what the user had in his own file before Sallyport came: a
// host key that is new each time must not ask anybody.
const sshSettings = `Host *
    StrictHostKeyChecking no
    UserKnownHostsFile /dev/null
    LogLevel ERROR
    BatchMode yes
`

// newSSHWorld makes the machines and the server's keys; neither sshd nor the
// daemon runs yet.
func newSSHWorld(t *testing.T) *sshWorld {
	t.Helper()
	w := &sshWorld{
		house: &house{t: t, server: testnet.New(t), client: testnet.New(t), visitors: make(chan net.Conn, 64)},
		dir:   t.TempDir(), home: t.TempDir(), stranger: testnet.New(t), addrs: map[string]string{},
	}
	w.clientWire, w.serverWire = testnet.Connect(w.client, w.server, []string{"192.0.2.1/24", "2001:db8::1/64"}, []string{"192.0.2.2/24", "2001:db8::2/64"})
	testnet.Connect(w.stranger, w.server, []string{"198.51.100.9/24", "2001:db8:9::9/64"}, []string{"198.51.100.1/24", "2001:db8:9::1/64"})
	answerAll(w.server)
	w.write(w.path("authorized_keys"), "")
	w.write(w.path("login_keys"), "")
	if err := os.Mkdir(filepath.Join(w.home, ".ssh"), 0o700); err != nil {
		t.Fatal(err)
	}
	w.write(filepath.Join(w.home, ".ssh/config"), sshSettings)
	for suite, args := range map[string][]string{"classic": nil, "quantum": {"--post-quantum"}} {
		out, err := exec.Command(testnet.Binary(t), append([]string{"keygen", "--out", w.path(suite + ".key")}, args...)...).Output()
		if err != nil {
			t.Fatalf("keygen: %v", err)
		}
		w.addrs[suite] = strings.TrimSpace(string(out))
	}
	return w
}

// answerAll takes the kernel's limits off its ICMP answers: else they, and not
// what is asked, decide who is answered.
func answerAll(ns *testnet.Namespace) {
	ns.Run("sysctl", "-qw", "net.ipv4.icmp_ratelimit=0", "net.ipv6.icmp.ratelimit=0",
		"net.ipv4.icmp_msgs_per_sec=100000", "net.ipv4.icmp_msgs_burst=100000")
}

func (w *sshWorld) path(name string) string { return filepath.Join(w.dir, name) }

func (w *sshWorld) write(name, text string) {
	w.t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// permit adds a line to a file of keys, once.
func (w *sshWorld) permit(name, line string) {
	w.t.Helper()
	text, err := os.ReadFile(w.path(name))
	if err != nil {
		w.t.Fatal(err)
	}
	if !strings.Contains(string(text), line) {
		w.write(w.path(name), string(text)+line)
	}
}

// startSSHD starts the real sshd, which writes all that it can into sshd.log.
func (w *sshWorld) startSSHD() {
	w.t.Helper()
	// systemd makes this directory, and sshd does not start without.
	if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
		w.t.Fatal(err)
	}
	if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", w.path("host_key")).CombinedOutput(); err != nil {
		w.t.Fatalf("ssh-keygen: %v\n%s", err, out)
	}
	// Sessions outlive sshd; ClientAliveInterval ends those that a failure cut off.
	w.write(w.path("sshd_config"), fmt.Sprintf(`HostKey %s
AuthorizedKeysFile %s
PermitRootLogin yes
PasswordAuthentication no
StrictModes no
UsePAM no
PidFile none
LogLevel DEBUG3
ClientAliveInterval 20
Subsystem sftp internal-sftp
`, w.path("host_key"), w.path("login_keys")))
	// Not -e: a session's own lines would go to the user.
	sshd := exec.Command("/usr/sbin/sshd", "-D", "-E", w.path("sshd.log"), "-f", w.path("sshd_config"))
	if err := w.server.Start(sshd); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { sshd.Process.Kill(); sshd.Wait() })
	w.eventually("sshd listens", func() bool {
		return strings.Contains(w.sshdLog(), "listening on 0.0.0.0") && strings.Contains(w.sshdLog(), "listening on ::")
	})
}

// sshdLog is what sshd has written by now.
func (w *sshWorld) sshdLog() string {
	text, _ := os.ReadFile(w.path("sshd.log")) // not there before it starts
	return string(text)
}

// calmLog waits until sshd has had nothing to write for a quarter second.
func (w *sshWorld) calmLog() string {
	last := w.sshdLog()
	for range 100 {
		time.Sleep(250 * time.Millisecond)
		now := w.sshdLog()
		if now == last {
			break
		}
		last = now
	}
	return last
}

// guard starts the daemon in front of sshd.
func (w *sshWorld) guard(openFor string) {
	w.t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "[service.ssh]\nports = [\"22/tcp\"]\nopen_for = %q\nmax_open_for = \"1h\"\n", openFor)
	for suite, port := range map[string]int{"classic": classicPort, "quantum": quantumPort} {
		fmt.Fprintf(&b, "[knock.%s]\ntype = \"spa\"\nopens = [\"ssh\"]\nport = %d\ntransports = [\"udp\", \"icmp\", \"tcp\"]\nkey = %q\nauthorized_keys = %q\n",
			suite, port, w.path(suite+".key"), w.path("authorized_keys"))
	}
	fmt.Fprintf(&b, "[knock.steps]\ntype = \"sequence\"\nopens = [\"ssh\"]\nsequence = [%s]\n", quotedSteps(sshSteps))
	w.serve(b.String())
}

// user is a program of the user's at the client. It runs for a minute at most.
func (w *sshWorld) user(words ...string) *exec.Cmd {
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	w.t.Cleanup(cancel)
	// ssh asks the system and not the environment for the home; so root's is
	// the user's, in a mount namespace that ends with the program.
	cmd := exec.CommandContext(ctx, "unshare", append([]string{"--mount", "--propagation", "private",
		"sh", "-c", `mount --bind "$0" /root && exec "$@"`, w.home}, words...)...)
	cmd.WaitDelay = 5 * time.Second
	cmd.Env = []string{"HOME=/root", "USER=root", "LC_ALL=C",
		"PATH=" + filepath.Dir(testnet.Binary(w.t)) + ":/usr/sbin:/usr/bin:/sbin:/bin"}
	if w.agent != "" {
		cmd.Env = append(cmd.Env, "SSH_AUTH_SOCK="+w.agent)
	}
	return cmd
}

// output runs a program of the user's and gives both of its streams.
func (w *sshWorld) output(words ...string) (stdout, stderr string, err error) {
	w.t.Helper()
	var out, said bytes.Buffer
	cmd := w.user(words...)
	cmd.Stdout, cmd.Stderr = &out, &said
	if err = w.client.Start(cmd); err == nil {
		err = cmd.Wait()
	}
	return out.String(), said.String(), err
}

// run is output that fails the test if the program fails.
func (w *sshWorld) run(words ...string) string {
	w.t.Helper()
	out, said, err := w.output(words...)
	if err != nil {
		w.t.Fatalf("%s: %v\n%s%s\n%s", strings.Join(words, " "), err, out, said, w.Log())
	}
	return out
}

// key makes a key in the user's ~/.ssh that may log in. Its name is none that
// ssh would try by itself.
func (w *sshWorld) key(name string, args ...string) {
	w.t.Helper()
	w.run(append([]string{"ssh-keygen", "-q", "-N", "", "-C", name, "-f", "/root/.ssh/" + name}, args...)...)
	line, err := os.ReadFile(filepath.Join(w.home, ".ssh", name+".pub"))
	if err != nil {
		w.t.Fatal(err)
	}
	w.permit("login_keys", string(line))
}

// startAgent starts the user's ssh-agent and moves these of his keys into it.
func (w *sshWorld) startAgent(names ...string) {
	w.t.Helper()
	socket := filepath.Join(w.home, "agent")
	agent := exec.Command("ssh-agent", "-D", "-P", "/usr/lib/*", "-a", socket)
	agent.Env = []string{"HOME=" + w.home, "PATH=/usr/bin:/bin"}
	if err := agent.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { agent.Process.Kill(); agent.Wait() })
	w.eventually("the agent listens", func() bool { _, err := os.Stat(socket); return err == nil })
	w.agent = socket
	for _, name := range names {
		w.run("ssh-add", "-q", "-S", skProvider, "/root/.ssh/"+name)
		if err := os.Remove(filepath.Join(w.home, ".ssh", name)); err != nil {
			w.t.Fatal(err)
		}
	}
}

// fingerprint is a key's, as the agent and the daemon spell it.
func (w *sshWorld) fingerprint(name string) string {
	w.t.Helper()
	return strings.Fields(w.run("ssh-keygen", "-l", "-f", "/root/.ssh/"+name+".pub"))[1]
}

// by is what the user calls a server that he reaches by a path.
func (p path) by(name string) string { return name + "-" + strings.ToLower(p.name) }

// enrol stores the server at the client, once for each path, as its owner's
// invitation says, and does the owner's part: the line that 'add' prints goes
// into authorized_keys.
func (w *sshWorld) enrol(name, suite, key string) {
	w.t.Helper()
	port := map[string]string{"classic": fmt.Sprint(classicPort), "quantum": fmt.Sprint(quantumPort)}[suite]
	for _, p := range paths {
		line := w.run("sallyport", "add", p.by(name), w.addrs[suite], "--host", p.server.String(), "--key", key, "--port", port, "--service", "ssh=22", "--ssh")
		w.permit("authorized_keys", line)
	}
}

// lock ends what a knock opened, so that the next one has to open it.
func (w *sshWorld) lock(by ...path) {
	w.t.Helper()
	for _, p := range by {
		w.must("close", "ssh", p.client.String())
	}
	w.await(false, 22, by...)
}

// carry puts data behind a TCP segment or an echo request that has none.
func carry(b, data []byte) []byte {
	b = append(slices.Clone(b), data...)
	head, proto := 20, b[9]
	if b[0]>>4 == 6 {
		head, proto = 40, b[6]
		binary.BigEndian.PutUint16(b[4:], uint16(len(b)-head))
	} else {
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
		binary.BigEndian.PutUint16(b[10:], 0)
		binary.BigEndian.PutUint16(b[10:], checksum(0, b[:head]))
	}
	sum := map[byte]int{1: 2, 6: 16, 58: 2}[proto]
	transport := b[head:]
	binary.BigEndian.PutUint16(transport[sum:], 0)
	var pseudo uint32
	if proto != 1 { // ICMPv4 alone has no pseudo-header (RFC 792)
		pseudo = uint32(proto) + uint32(len(transport))
		transport = append(slices.Clone(b[map[int]int{20: 12, 40: 8}[head]:head]), transport...)
	}
	binary.BigEndian.PutUint16(b[head+sum:], checksum(pseudo, transport))
	return b
}

// checksum is that of RFC 1071.
func checksum(sum uint32, b []byte) uint16 {
	for i, v := range b {
		sum += uint32(v) << (8 * (1 - i%2))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
