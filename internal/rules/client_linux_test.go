package rules_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/sallyport/sallyport/internal/rules"
	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/sallyport/sallyport/internal/testnet"
)

// mixed has ports that give no answer, as a client must survive.
const mixed = `[service.ssh]
ports = ["22/tcp"]
closed_as = "drop"
open_for = "5s"
[knock.mixed]
type = "sequence"
opens = ["ssh"]
sequence = ["8881/tcp", "7777/udp", "9991/tcp"]
within = "1m"
quiet = true
`

// script writes the shell client to a file.
func script(t *testing.T, steps ...sequence.Step) string {
	t.Helper()
	text, err := rules.Shell(steps)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "knock.sh")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// only makes a PATH with nothing but a few words of POSIX and one program.
func only(t *testing.T, name, program string) string {
	t.Helper()
	dir := t.TempDir()
	for as, target := range map[string]string{"sleep": "sleep", "grep": "grep", "id": "id", name: program} {
		if err := os.Symlink(installed(t, target), filepath.Join(dir, as)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

var shells = [][]string{{"dash"}, {"bash", "--posix"}, {"busybox", "sh"}}

// TestShellClient knocks from each shell with each program as the only one there.
func TestShellClient(t *testing.T) {
	for _, tool := range []struct{ name, program string }{
		{"bash", "bash"}, {"nc", "nc.openbsd"}, {"nc", "nc.traditional"}, {"ncat", "ncat"}, {"busybox", "busybox"}, {"nmap", "nmap"},
	} {
		for _, shell := range shells {
			for _, s := range sides {
				t.Run(tool.program+"/"+shell[0]+"/"+s.name, func(t *testing.T) {
					t.Parallel() // most of it is waiting for ports that drop
					program := installed(t, shell[0])
					dir := only(t, tool.name, tool.program)
					w := newWorld(t, s)
					loadNFT(t, w, mixed)
					args := append([]string{"PATH=" + dir, program}, shell[1:]...)
					args = append(args, script(t), s.server, "8881", "7777/udp", "9991/tcp")
					out, err := w.client.Output("/usr/bin/env", args...)
					if tool.program == "nc.traditional" && s.name == "ipv6" {
						if err == nil || !strings.Contains(out, "none of bash") {
							t.Errorf("it knows no IPv6, and nothing else is there: %v\n%s", err, out)
						}
						return
					}
					if err != nil || out != "" {
						t.Fatalf("%v\n%s", err, out)
					}
					w.want(t, true, "knocked with "+tool.program)
				})
			}
		}
	}
}

// TestShellClientWithLesserBash: a build of bash without /dev/tcp says so in the user's
// language, and is passed by.
func TestShellClientWithLesserBash(t *testing.T) {
	w := newWorld(t, sides[0])
	loadNFT(t, w, mixed)
	dir := only(t, "nc", "nc.openbsd")
	lesser := "#!/bin/sh\nif [ \"$LC_ALL\" = C ]; then echo 'No such file or directory'; else echo 'Datei oder Verzeichnis nicht gefunden'; fi >&2\nexit 1\n"
	if err := testnet.WriteProgram(filepath.Join(dir, "bash"), []byte(lesser)); err != nil {
		t.Fatal(err)
	}
	w.client.Run("/usr/bin/env", "PATH="+dir, "LANG=de_DE.UTF-8", installed(t, "dash"), script(t), w.side.server, "8881", "7777/udp", "9991/tcp")
	w.want(t, true, "knocked with the program behind it")
}

// TestShellClientOnABusyMachine: a program that is slow to start is not ended before its
// packet is out.
func TestShellClientOnABusyMachine(t *testing.T) {
	t.Parallel() // it is waiting
	w := newWorld(t, sides[0])
	loadNFT(t, w, wiki)
	dir := only(t, "nc.real", "nc.openbsd")
	if err := testnet.WriteProgram(filepath.Join(dir, "nc"), []byte("#!/bin/sh\nsleep 1.5\nexec nc.real \"$@\"\n")); err != nil {
		t.Fatal(err)
	}
	w.client.Run("/usr/bin/env", "PATH="+dir, installed(t, "dash"), script(t), w.side.server, "8881", "7777", "9991")
	w.want(t, true, "knocked with a program that starts late")
}

// TestShellClientHoldsSteps: a client with a knock in it needs only the host.
func TestShellClientHoldsSteps(t *testing.T) {
	w := newWorld(t, sides[1])
	loadNFT(t, w, mixed)
	steps := parse(t, mixed).Knocks[0].Sequence
	w.client.Run("dash", script(t, steps...), w.side.server)
	w.want(t, true, "knocked")
}

// TestShellClientRefuses what is no host and no port, in every shell, before any
// packet: a word that reached a shell again would leave its mark.
func TestShellClientRefuses(t *testing.T) {
	mark := filepath.Join(t.TempDir(), "mark")
	path := script(t)
	for _, shell := range shells {
		installed(t, shell[0])
		for _, args := range [][]string{
			{}, {"192.0.2.1"}, {"", "7000"}, {"-h", "7000"}, {"--", "7000"},
			{"$(touch " + mark + ")", "7000"}, {"`touch " + mark + "`", "7000"}, {"a;touch " + mark, "7000"},
			{"a b", "7000"}, {"a\nb", "7000"}, {"[::1]", "7000"}, {"a/b", "7000"},
			{"localhost", "$(touch " + mark + ")"}, {"localhost", "7000;touch " + mark}, {"localhost", "7000", "-p"},
			{"localhost", "0"}, {"localhost", "65536"}, {"localhost", "07000"}, {"localhost", "7000/sctp"},
			{"localhost", "7000/udp/tcp"}, {"localhost", "/tcp"}, {"localhost", "65508/icmp"}, {"localhost", "7000 8000"},
			{"localhost", ""}, {"localhost", "*"}, {"localhost", "99999999999999999999"},
		} {
			cmd := exec.Command(shell[0], append(append(shell[1:len(shell):len(shell)], path), args...)...)
			out, _ := cmd.CombinedOutput()
			if code := cmd.ProcessState.ExitCode(); code != 2 || !strings.HasPrefix(string(out), "knock.sh: ") {
				t.Errorf("%v %q: exit status %d\n%s", shell, args, code, out)
			}
		}
	}
	if _, err := os.Stat(mark); err == nil {
		t.Error("an argument was run as a command")
	}
}

// TestShellClientSaysWhatIsNoName: a slip in the name looks like a knock that was sent,
// and the programs' own words are not shown.
func TestShellClientSaysWhatIsNoName(t *testing.T) {
	w := newWorld(t, sides[0])
	for _, tool := range []string{"getent", "bash", "nmap"} {
		dir := only(t, tool, tool)
		if tool == "getent" {
			if err := os.Symlink(installed(t, "nc.openbsd"), filepath.Join(dir, "nc")); err != nil {
				t.Fatal(err)
			}
		}
		for _, shell := range shells {
			args := append([]string{"PATH=" + dir, installed(t, shell[0])}, shell[1:]...)
			out, err := w.client.Output("/usr/bin/env", append(args, script(t), "nosuchhost.invalid", "7000")...)
			if exit, is := errors.AsType[*exec.ExitError](err); !is || exit.ExitCode() != 1 || !strings.HasPrefix(out, "knock.sh: the name nosuchhost.invalid can't be resolved, so nothing was sent") {
				t.Errorf("%s in %s: %v\n%s", tool, shell[0], err, out)
			}
		}
	}
}

func TestShellCheck(t *testing.T) {
	installed(t, "shellcheck")
	if out, err := exec.Command("shellcheck", "-s", "sh", script(t)).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestWindowsClientsAreWhole is what can be looked at without Windows: line ends,
// characters, pairs, labels, and that the steps stand where they belong.
func TestWindowsClientsAreWhole(t *testing.T) {
	steps := parse(t, mixed).Knocks[0].Sequence
	for name, print := range map[string]func([]sequence.Step) (string, error){"ps1": rules.PowerShell, "cmd": rules.Batch} {
		text, err := print(steps)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Count(text, "\n") != strings.Count(text, "\r\n") || strings.Count(text, "\r") != strings.Count(text, "\n") {
			t.Errorf("%s: not every line ends as on Windows", name)
		}
		if i := strings.IndexFunc(text, func(r rune) bool { return r > '~' }); i >= 0 {
			t.Errorf("%s: a character that Windows PowerShell 5 reads in another code page: %q", name, text[i:i+4])
		}
		for _, word := range []string{"8881/tcp", "7777/udp", "9991/tcp"} {
			if strings.Count(text, word) != 1 {
				t.Errorf("%s: %s is not in it once", name, word)
			}
		}
		if none, _ := print(nil); strings.Contains(none, "8881") {
			t.Errorf("%s: a client for no knock holds steps", name)
		}
	}
	text, _ := rules.PowerShell(nil)
	code := regexp.MustCompile(`(?m)#.*$|'[^'\r\n]*'`).ReplaceAllString(text, "")
	for _, pair := range []string{"()", "{}", "[]"} {
		if strings.Count(code, pair[:1]) != strings.Count(code, pair[1:]) {
			t.Errorf("ps1: %q do not pair", pair)
		}
	}
	if regexp.MustCompile(`(?i)\$host\b`).MatchString(code) {
		t.Error("ps1: $Host is PowerShell's own")
	}
	text, _ = rules.Batch(nil)
	for _, m := range regexp.MustCompile(`(?:goto|call) :?(\w+)`).FindAllStringSubmatch(text, -1) {
		if strings.Count(text, "\r\n:"+m[1]+"\r\n") != 1 {
			t.Errorf("cmd: the label %s is not there once", m[1])
		}
	}
}

// TestClientRefusesSteps that need raw packets.
func TestClientRefusesSteps(t *testing.T) {
	step, err := sequence.ParseStep("7000/tcp:ack")
	if err != nil {
		t.Fatal(err)
	}
	for _, print := range []func([]sequence.Step) (string, error){rules.Shell, rules.PowerShell, rules.Batch} {
		if _, err := print([]sequence.Step{step}); err == nil {
			t.Error("a bare ACK was taken for something that connect can send")
		}
	}
}
