//go:build linux

package integration_test

import (
	"bufio"
	"crypto/rand"
	"crypto/sha256"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// login is a way to sign a knock and a login.
type login struct{ kind, suite, where string }

var logins = []login{
	{"ed25519", "classic", "file"},
	{"ed25519", "quantum", "file"},
	{"rsa", "classic", "file"},
	{"ecdsa", "classic", "file"},
	{"ed25519", "classic", "agent"},
	{"ed25519", "quantum", "agent"},
	{"ecdsa", "classic", "agent"},
	{"ed25519-sk", "classic", "agent"},
	{"ed25519-sk", "quantum", "agent"},
}

// name is what the user calls the server that he enters so.
func (l login) name() string { return strings.Join([]string{l.where, l.kind, l.suite}, "-") }

// file is the key's, in ~/.ssh.
func (l login) file() string { return l.where + "-" + l.kind }

// TestPlainSSHGetsIn: 'ssh NAME' is all that a user types after 'sallyport add
// --ssh', with each kind of key, from a file and from ssh-agent.
func TestPlainSSHGetsIn(t *testing.T) {
	t.Parallel()
	w := newSSHWorld(t)
	ways := logins
	if _, err := os.Stat(skProvider); err != nil {
		t.Logf("no stand-in for a hardware key: install openssh-tests (%v)", err)
		ways = slices.DeleteFunc(slices.Clone(logins), func(l login) bool { return l.kind == "ed25519-sk" })
	}
	w.makeKeys(ways)
	for _, l := range ways {
		key := "/root/.ssh/" + l.file()
		if l.where == "agent" {
			key = "agent:" + w.fingerprint(l.file())
		}
		w.enrol(l.name(), l.suite, key)
	}
	w.startSSHD()
	w.guard("30s")
	agent := w.agent
	for _, p := range paths {
		for _, l := range ways {
			t.Run(p.by(l.name()), func(t *testing.T) {
				w.is(false, 22, p)
				if w.agent = agent; l.where == "file" {
					w.agent = ""
				}
				if out, said, err := w.output("ssh", p.by(l.name()), "echo inside"); err != nil || out != "inside\n" || said != "" {
					t.Errorf("%v, %q, %q\n%s", err, out, said, w.Log())
				}
				w.openedBy(t, p, w.fingerprint(l.file()))
				w.lock(p)
			})
		}
	}
}

// makeKeys makes each login's key, in a file or in the agent.
func (w *sshWorld) makeKeys(ways []login) {
	w.t.Helper()
	var made, inAgent []string
	for _, l := range ways {
		if slices.Contains(made, l.file()) {
			continue
		}
		made = append(made, l.file())
		if l.where == "agent" {
			inAgent = append(inAgent, l.file())
		}
		args := []string{"-t", l.kind}
		if l.kind == "ed25519-sk" {
			args = append(args, "-w", skProvider)
		}
		w.key(l.file(), args...)
	}
	w.startAgent(inAgent...)
}

// openedBy checks whose the one grant is.
func (w *sshWorld) openedBy(t *testing.T, p path, fingerprint string) {
	t.Helper()
	grants := w.house.grants()
	if len(grants) != 1 || grants[0].Addr != p.client {
		t.Errorf("%s: the grants are %v", p.name, grants)
	}
	if out := w.must("grants"); !strings.Contains(out, fingerprint) {
		t.Errorf("%s: not opened by %s:\n%s", p.name, fingerprint, out)
	}
}

// Without a knock, and with one by a key that the server does not know, ssh
// does not even get to speak to sshd.
func TestSSHWithoutAKnockStaysOut(t *testing.T) {
	t.Parallel()
	w := newSSHWorld(t)
	w.key("known", "-t", "ed25519")
	w.key("unknown", "-t", "ed25519") // to the knock: sshd would take it
	w.enrol("unknown", "classic", "/root/.ssh/unknown")
	w.write(w.path("authorized_keys"), "")
	w.enrol("known", "classic", "/root/.ssh/known")
	w.startSSHD()
	direct := func(p path) (string, string, error) {
		return w.output("ssh", "-i", "/root/.ssh/known", "-o", "ConnectTimeout=4", p.server.String(), "echo inside")
	}
	for _, p := range paths {
		if out, said, err := direct(p); err != nil || out != "inside\n" {
			t.Fatalf("%s: before Sallyport: %v, %q, %q", p.name, err, out, said)
		}
	}
	w.guard("30s")
	before := w.calmLog()
	for _, p := range paths {
		if out, said, err := direct(p); err == nil || !strings.Contains(said, "Connection refused") {
			t.Errorf("%s without a knock: %v, %q, %q", p.name, err, out, said)
		}
		if out, said, err := w.output("ssh", "-o", "ConnectTimeout=3", p.by("unknown"), "echo inside"); err == nil || out != "" {
			t.Errorf("%s with an unknown key: %v, %q, %q", p.name, err, out, said)
		}
	}
	if after := w.calmLog(); after != before {
		t.Errorf("sshd heard of it:\n%s", strings.TrimPrefix(after, before))
	}
	for _, p := range paths { // and the world is not just broken
		w.run("ssh", p.by("known"), "true")
	}
}

// Promise 6: a session lives on when the grant that let it in is over.
func TestASessionOutlivesItsGrant(t *testing.T) {
	t.Parallel()
	w := newSSHWorld(t)
	w.key("laptop", "-t", "ed25519")
	w.enrol("home", "classic", "/root/.ssh/laptop")
	w.startSSHD()
	w.guard("2s")
	for _, p := range paths {
		cmd := w.user("ssh", p.by("home"), "echo ready; read line; echo heard $line")
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := w.client.Start(cmd); err != nil {
			t.Fatal(err)
		}
		answers := bufio.NewReader(out)
		if line, err := answers.ReadString('\n'); line != "ready\n" {
			t.Fatalf("%s: %v, %q\n%s", p.name, err, line, w.Log())
		}
		w.eventually(p.name+": the grant is over", func() bool { return len(w.house.grants()) == 0 })
		w.is(false, 22, p)
		io.WriteString(in, "late\n")
		if line, err := answers.ReadString('\n'); line != "heard late\n" {
			t.Errorf("%s: %v, %q", p.name, err, line)
		}
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("%s: %v", p.name, err)
		}
	}
}

// Ten megabytes each way: by scp to the server, and back through a pipe.
func TestTransfersArriveWhole(t *testing.T) {
	t.Parallel()
	w := newSSHWorld(t)
	w.key("laptop", "-t", "ed25519")
	w.enrol("home", "classic", "/root/.ssh/laptop")
	w.startSSHD()
	w.guard("2s")
	content := make([]byte, 10<<20)
	rand.Read(content)
	if err := os.WriteFile(filepath.Join(w.home, "content"), content, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, p := range paths {
		name, copied := p.by("home"), w.path("copied-"+p.name)
		w.is(false, 22, p)
		w.run("scp", "/root/content", name+":"+copied)
		got, err := os.ReadFile(copied)
		if err != nil || sha256.Sum256(got) != sha256.Sum256(content) {
			t.Errorf("%s: %d of %d bytes arrived by scp, %v", p.name, len(got), len(content), err)
		}
		w.lock(p)
		if back := w.run("ssh", name, "cat "+copied); sha256.Sum256([]byte(back)) != sha256.Sum256(content) {
			t.Errorf("%s: %d of %d bytes came back", p.name, len(back), len(content))
		}
		w.lock(p)
	}
}

// A stored sequence lets ssh in the same way.
func TestSSHThroughAStoredSequence(t *testing.T) {
	t.Parallel()
	w := newSSHWorld(t)
	w.key("laptop", "-t", "ed25519")
	for _, p := range paths {
		args := append([]string{"sallyport", "add", p.by("steps")}, strings.Fields(sshSteps)...)
		w.run(append(args, "--host", p.server.String(), "--ssh")...)
	}
	w.startSSHD()
	w.guard("30s")
	for _, p := range paths {
		w.is(false, 22, p)
		out := w.run("ssh", "-i", "/root/.ssh/laptop", p.by("steps"), "echo inside")
		if out != "inside\n" {
			t.Errorf("%s: %q", p.name, out)
		}
		w.lock(p)
	}
}

// TestWhatAKnockCostsSSH tells how long 'ssh NAME true' takes, and how long
// without Sallyport, beside no other test. It fails only if one does not get in.
func TestWhatAKnockCostsSSH(t *testing.T) {
	w := newSSHWorld(t)
	w.key("laptop", "-t", "ed25519")
	suites := []string{"classic", "quantum"}
	for _, suite := range suites {
		w.enrol(suite, suite, "/root/.ssh/laptop")
	}
	w.startSSHD()
	const rounds = 5
	median := func(after func(), words ...string) time.Duration {
		var took []time.Duration
		for range rounds {
			start := time.Now()
			w.run(words...)
			took = append(took, time.Since(start))
			after()
		}
		slices.Sort(took)
		return took[rounds/2].Round(time.Millisecond)
	}
	for _, p := range paths {
		t.Logf("%s: %v with the port open", p.name, median(func() {}, "ssh", "-i", "/root/.ssh/laptop", p.server.String(), "true"))
	}
	w.guard("30s")
	for _, suite := range suites {
		for _, p := range paths {
			t.Logf("%s: %v with a %s knock", p.name, median(func() { w.lock(p) }, "ssh", p.by(suite), "true"), suite)
		}
	}
}
