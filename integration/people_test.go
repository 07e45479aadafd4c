//go:build linux

package integration_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/testnet"
)

// peopleHouse is a house whose knocks know people by their secrets, and a client
// with a home of its own. said is all that programs wrote to either output.
type peopleHouse struct {
	*house
	bin, dir, home string
	said           strings.Builder
}

func newPeopleHouse(t *testing.T) *peopleHouse {
	t.Helper()
	h := &peopleHouse{house: newHouse(t), bin: testnet.Binary(t), dir: t.TempDir(), home: t.TempDir()}
	h.listen(80)
	return h
}

// eachPeopleHouse runs f for each family side by side, in a house of its own in which
// ann has a secret.
func eachPeopleHouse(t *testing.T, f func(t *testing.T, h *peopleHouse, p path)) {
	t.Parallel()
	for _, p := range paths {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			h := newPeopleHouse(t)
			h.person("ann")
			f(t, h, p)
		})
	}
}

func (h *peopleHouse) config(knock string) string {
	return `[service.ssh]
ports = ["22/tcp"]
open_for = "20s"
max_open_for = "1h"
[service.web]
ports = ["80/tcp"]
open_for = "20s"
` + strings.ReplaceAll(knock, "SECRETS", h.file())
}

func (h *peopleHouse) file() string { return filepath.Join(h.dir, "people") }

// run runs the program at the client, with text on its standard input.
func (h *peopleHouse) run(text string, args ...string) (out, words string, err error) {
	h.t.Helper()
	cmd := exec.Command(h.bin, args...)
	var stdout, stderr strings.Builder
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(text), &stdout, &stderr
	cmd.Env = append(os.Environ(), "HOME="+h.home, "XDG_CONFIG_HOME="+h.home)
	if err := h.client.Start(cmd); err != nil {
		h.t.Fatal(err)
	}
	err = cmd.Wait()
	return stdout.String(), stderr.String(), err
}

func (h *peopleHouse) must(text string, args ...string) (out, words string) {
	h.t.Helper()
	out, words, err := h.run(text, args...)
	if err != nil {
		h.t.Fatalf("sallyport %v: %v\n%s%s\n%s", args, err, out, words, h.Log())
	}
	return out, words
}

// person makes a secret, and gives the line that invite prints for it.
func (h *peopleHouse) person(name string, args ...string) {
	h.t.Helper()
	out, words := h.must("", append([]string{"keygen", "--secret", name, "--out", h.file()}, args...)...)
	if out != "" {
		h.t.Errorf("keygen --secret prints %q", out)
	}
	h.said.WriteString(words)
}

func (h *peopleHouse) invited(name string, at path) (line string) {
	h.t.Helper()
	out, words := h.must("", "invite", "-c", h.Config(), "--person", name, "--host", at.server.String(), "--name", "home")
	h.said.WriteString(words)
	return out
}

// store adds the server under a name of its own for each family.
func (h *peopleHouse) store(name, person string, at path) {
	h.t.Helper()
	out, words := h.must(h.invited(person, at), "add", name, "-", "--host", at.server.String(), "--service", "ssh=22", "--service", "web=80", "--force")
	h.said.WriteString(out + words)
}

// secrets are the file's, and none of them may be anywhere else.
func (h *peopleHouse) noSecretSaid() {
	h.t.Helper()
	text, err := os.ReadFile(h.file())
	if err != nil {
		h.t.Fatal(err)
	}
	h.said.WriteString(h.Log())
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 1 && strings.Contains(strings.ToUpper(h.said.String()), f[1]) {
			h.t.Errorf("a secret of %s was said:\n%s", f[0], h.said.String())
		}
	}
}

// knock knocks until the port answers.
func (h *peopleHouse) knock(args ...string) {
	h.t.Helper()
	out, words := h.must("", append([]string{"knock"}, args...)...)
	h.said.WriteString(out + words)
}

// again stops the daemon and starts it. Before its first clean stop it takes no time
// step that began before it did, as after a crash.
func (h *peopleHouse) again() {
	h.t.Helper()
	h.Signal(syscall.SIGTERM)
	h.Wait()
	h.Start()
	h.Await("serving")
}

const otpKnock = `[knock.people]
type = "otp"
opens = ["ssh"]
secrets = "SECRETS"
`

// freshStep waits for a step that nobody has knocked in, so that a test which
// knocks twice does so in two.
func freshStep(step time.Duration) {
	time.Sleep(time.Until(time.Now().Truncate(step).Add(step + 100*time.Millisecond)))
}

// A person's ports open a service, by the client, by any tool, and with ssh's
// ProxyCommand, and not twice.
func TestPeopleByOneTimePorts(t *testing.T) {
	eachPeopleHouse(t, func(t *testing.T, h *peopleHouse, p path) {
		h.serve(h.config(otpKnock + "time_step = \"10s\"\n"))
		h.again()
		h.store("home", "ann", p)
		if h.open(p, 22) {
			t.Fatal("22 is open before the knock")
		}
		h.knock("home", "--then", "ssh")
		freshStep(10 * time.Second)
		out, words := h.must("", "ports", "home", "--json")
		h.said.WriteString(words)
		var sheet struct {
			Ports    []uint16
			From, To string
			Seconds  int
		}
		if err := json.Unmarshal([]byte(out), &sheet); err != nil || len(sheet.Ports) != 5 || sheet.From != p.client.String() || sheet.To != p.server.String() || sheet.Seconds < 1 || sheet.Seconds > 10 {
			t.Fatalf("%v, %s", err, out)
		}
		h.must("", "close", "ssh", p.client.String(), "--control", h.Control)
		if h.open(p, 22) {
			t.Fatal("22 is open after the close")
		}
		for _, port := range sheet.Ports {
			h.client.Output("nc", "-z", "-w1", p.server.String(), fmt.Sprint(port))
			time.Sleep(20 * time.Millisecond)
		}
		h.await(true, 22, p)
		h.noSecretSaid()
	})
}

// What an authenticator app shows is enough: any program that connects can knock.
func TestPeopleByAuthenticatorApp(t *testing.T) {
	eachPeopleHouse(t, func(t *testing.T, h *peopleHouse, p path) {
		h.serve(h.config(otpKnock + "digits = 6\n"))
		h.again()
		h.store("home", "ann", p)
		h.knock("home", "--then", "ssh")
		h.noSecretSaid()
	})
}

const encodedKnock = `[knock.people]
type = "encoded"
opens = ["ssh", "web"]
secrets = "SECRETS"
widths = ["0.0.0.0/24", "::/64"]
`

// A message opens all, or one port, or closes, and somebody whose line left the
// file stays out without a restart.
func TestPeopleByEncodedMessages(t *testing.T) {
	eachPeopleHouse(t, func(t *testing.T, h *peopleHouse, p path) {
		h.person("bob", "--services", "web")
		h.serve(h.config(encodedKnock))
		h.store("home", "ann", p)
		h.store("bobs", "bob", p)
		h.knock("bobs", "web", "--wait")
		if h.open(p, 22) {
			t.Error("22 is open for bob, who may open web alone")
		}
		h.knock("home", "ssh", "--wait", "--for", "1h", "--repeat", "2")
		h.knock("home", "22", "--close")
		h.await(false, 22, p)

		text, _ := os.ReadFile(h.file())
		var rest strings.Builder
		for line := range strings.Lines(string(text)) {
			if !strings.HasPrefix(line, "ann ") {
				rest.WriteString(line)
			}
		}
		if err := os.WriteFile(h.file(), []byte(rest.String()), 0o600); err != nil {
			t.Fatal(err)
		}
		h.Await("the secrets changed")
		if _, words, err := h.run("", "knock", "home", "ssh", "--wait", "--timeout", "2s"); err == nil || !strings.Contains(words, "the secret is not in the server's file any more") {
			t.Errorf("ann was removed, and still: %v, %s", err, words)
		}
		h.noSecretSaid()
	})
}

// A message can ask for the network around its sender, of a length that the knock
// allows: everybody in it is let in, nobody beside it is, and one close ends it.
func TestPeopleByNetwork(t *testing.T) {
	eachPeopleHouse(t, func(t *testing.T, h *peopleHouse, p path) {
		h.serve(h.config(encodedKnock))
		h.store("home", "ann", p)
		bits := 64
		if p.client.Is4() {
			bits = 24
		}
		network := netip.PrefixFrom(p.client, bits).Masked()
		events := h.follow("events")
		h.eventually("somebody follows", func() bool {
			h.house.must("close", p.client.String())
			return strings.Contains(events(), " closed ")
		})
		h.knock("home", "ssh", "--mask", fmt.Sprint(network.Bits()), "--wait")
		h.eventually("the event names the network", func() bool { return strings.Contains(events(), " open address="+network.String()+" ") })
		g := h.grants()
		if len(g) != 1 || g[0].Who() != network.String() {
			t.Fatalf("grants: %+v, want one for %v", g, network)
		}
		if out, err := h.Tool("close", "ssh", "23/tcp", network.String()); err == nil || !strings.Contains(out, "the service ssh has no port 23/tcp") {
			t.Errorf("a port that it has not: %s", out)
		}
		if out := h.house.must("close", "ssh", "22/tcp", g[0].Who()); !strings.Contains(out, "1 grants of "+network.String()+" ended") {
			t.Errorf("close says %s", out)
		}
		h.await(false, 22, p)
		if _, words, err := h.run("", "knock", "home", "ssh", "--mask", "20", "--wait", "--timeout", "2s"); err == nil {
			t.Errorf("another length opened: %s", words)
		}
		h.Await("no mask of that length")
	})
}

// After a rotation the old secret works until its end, and the new one at once.
func TestPeopleRotateTheirSecrets(t *testing.T) {
	t.Parallel()
	p := paths[1]
	h := newPeopleHouse(t)
	h.person("ann")
	h.serve(h.config(encodedKnock))
	h.store("old", "ann", p)
	h.person("ann", "--rotate", "--overlap", "168h")
	h.Await("the secrets changed")
	h.store("new", "ann", p)
	for _, name := range []string{"old", "new"} {
		h.knock(name, "ssh", "--wait")
		h.knock(name, "ssh", "--close")
		h.await(false, 22, p)
	}
	h.person("ann", "--rotate", "--overlap", "0s")
	h.Await("removed=2")
	h.store("newest", "ann", p)
	if _, _, err := h.run("", "knock", "old", "ssh", "--wait", "--timeout", "2s"); err == nil {
		t.Error("a secret opens after its time")
	}
	h.knock("newest", "ssh", "--wait")
	if err := os.Chmod(h.file(), 0o644); err != nil {
		t.Fatal(err)
	}
	h.Await("nobody can knock by this knock until its file of secrets is right")
	h.knock("newest", "ssh", "--close") // is heard by nobody
	time.Sleep(time.Second)
	if !h.open(p, 22) {
		t.Error("a secret that others could read closed a service")
	}
	h.noSecretSaid()
}

// A config whose file of secrets is missing or open to others hides nothing.
func TestPeopleFilesAreRefusedAtTheStart(t *testing.T) {
	t.Parallel()
	for _, mode := range []os.FileMode{0, 0o640} {
		h := newPeopleHouse(t)
		if mode > 0 {
			h.person("ann")
			os.Chmod(h.file(), mode)
		}
		d := h.server.Launch(h.bin, h.config(otpKnock))
		if status := d.Wait(); status != 2 || !strings.Contains(d.Log(), "knock.people.secrets: ") {
			t.Errorf("mode %o: it ended with %d:\n%s", mode, status, d.Log())
		}
	}
}
