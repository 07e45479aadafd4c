//go:build linux

package integration_test

import (
	"fmt"
	"io"
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

// rulesMachine is a machine with something at port 22, and one that knocks.
type rulesMachine struct{ server, client *testnet.Namespace }

func newRulesMachine(t *testing.T) rulesMachine {
	m := rulesMachine{testnet.New(t), testnet.New(t)}
	testnet.Connect(m.server, m.client,
		[]string{"192.0.2.1/24", "2001:db8::1/64"}, []string{"192.0.2.2/24", "2001:db8::2/64"})
	var l net.Listener
	var err error
	m.server.Do(func() { l, err = net.Listen("tcp", ":22") })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { io.Copy(c, c); c.Close() }()
		}
	}()
	return m
}

func (m rulesMachine) want(t *testing.T, host string, open bool, when string) {
	t.Helper()
	var c net.Conn
	var err error
	m.client.Do(func() { c, err = net.DialTimeout("tcp", net.JoinHostPort(host, "22"), 500*time.Millisecond) })
	if err == nil {
		c.Close()
	}
	if (err == nil) != open {
		t.Fatalf("%s, %s: %v, want open: %v", host, when, err, open)
	}
}

// page gives doc/rules.md, whose config and commands the test below uses.
func page(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../doc/rules.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// typed gives the lines of the page's console blocks that are typed at one machine.
func typed(t *testing.T, text, heading, machine string) []string {
	t.Helper()
	_, rest, found := strings.Cut(text, "\n## "+heading+"\n")
	if !found {
		t.Fatalf("doc/rules.md has no section %q", heading)
	}
	rest, _, _ = strings.Cut(rest, "\n## ")
	var lines []string
	for _, m := range regexp.MustCompile(`(?m)^`+machine+`[#$] (.+)$`).FindAllStringSubmatch(rest, -1) {
		lines = append(lines, m[1])
	}
	if len(lines) == 0 {
		t.Fatalf("no command for %s is under %q", machine, heading)
	}
	return lines
}

// undo gives the commands behind "Undo:" in a ruleset's own comments.
func undo(t *testing.T, ruleset string) []string {
	t.Helper()
	_, rest, _ := strings.Cut(ruleset, "# Undo:")
	block, _, found := strings.Cut(rest, "\n#\n")
	if !found {
		t.Fatal("the ruleset does not say how to undo it")
	}
	var lines []string
	for line := range strings.Lines("#" + block) {
		if line = strings.TrimSpace(strings.TrimPrefix(line, "#")); strings.Contains(line, "tables-save") || strings.HasPrefix(line, "nft delete") {
			lines = append(lines, line)
		}
	}
	return lines
}

// boots gives what the page has done at boot: an include at the end of a file that begins
// with "flush ruleset", or the commands of a unit.
func boots(t *testing.T, text, heading string) (lines []string) {
	t.Helper()
	_, rest, _ := strings.Cut(text, "\n## "+heading+"\n")
	rest, _, _ = strings.Cut(rest, "\n## ")
	for _, m := range regexp.MustCompile(`(?m)^(include ".+"$)|^ExecStart=(.+)$`).FindAllStringSubmatch(rest, -1) {
		if m[1] != "" {
			m[2] = "printf '%s\n' 'flush ruleset' '" + m[1] + "' >nftables.conf; nft -f nftables.conf"
		}
		lines = append(lines, m[2])
	}
	if len(lines) == 0 {
		t.Fatalf("nothing under %q is for boot", heading)
	}
	return lines
}

// TestRulesPage does what doc/rules.md says, as it is typed there: config, ruleset, a
// knock with nmap and with the client, and the undo out of the ruleset's comments.
// Nothing of ours runs meanwhile, and the owner's own rules stay what they were.
func TestRulesPage(t *testing.T) {
	t.Parallel()
	text := page(t)
	_, config, _ := strings.Cut(text, "```toml\n")
	config, _, _ = strings.Cut(config, "```")
	for _, heading := range []string{"With nftables", "With iptables"} {
		t.Run(heading, func(t *testing.T) {
			t.Parallel()
			m := newRulesMachine(t)
			dir := t.TempDir()
			file := filepath.Join(dir, "sallyport.toml")
			if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
				t.Fatal(err)
			}
			run := func(ns *testnet.Namespace, line string) {
				t.Helper()
				line = "PATH=" + filepath.Dir(testnet.Binary(t)) + ":$PATH; cd " + dir + " && " +
					strings.NewReplacer("/etc/sallyport/", dir+"/", "example.org", "192.0.2.1").Replace(line)
				if out, err := ns.Output("sh", "-c", line); err != nil {
					t.Fatalf("%s: %v\n%s", line, err, out)
				}
			}
			owners := func() string {
				return m.server.Run("iptables-save", "-t", "filter") + m.server.Run("ip6tables-save", "-t", "filter")
			}
			for _, program := range []string{"iptables", "ip6tables"} {
				m.server.Run(program, "-A", "INPUT", "-p", "tcp", "--dport", "2222", "-j", "DROP")
			}
			before := withoutTimes(owners())
			for _, line := range typed(t, text, heading, "server") {
				run(m.server, line)
			}
			m.want(t, "192.0.2.1", false, "loaded")
			for _, line := range typed(t, text, heading, "client") {
				run(m.client, line)
			}
			m.want(t, "192.0.2.1", true, "knocked")
			m.want(t, "2001:db8::1", false, "knocked over IPv4 alone")
			for _, port := range []string{"8881", "7777", "9991"} {
				m.client.Run("nmap", "-6", "-n", "-Pn", "--max-retries", "0", "-p", port, "2001:db8::1")
			}
			m.want(t, "2001:db8::1", true, "knocked over IPv6")
			name := filepath.Join(dir, map[string]string{"With nftables": "rules.nft", "With iptables": "rules.ipt"}[heading])
			ruleset, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			if info, err := os.Stat(name); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("others can read the sequences: %v, %v", info.Mode(), err)
			}
			for _, line := range undo(t, string(ruleset)) {
				run(m.server, line)
			}
			if after := withoutTimes(owners()); after != before {
				t.Errorf("the owner's rules were\n%s\nand are\n%s", before, after)
			}
			if left := m.server.Run("nft", "list", "ruleset"); strings.Contains(strings.ToLower(left), "sallyport") {
				t.Errorf("undone, and there is still\n%s", left)
			}
			m.want(t, "192.0.2.1", true, "undone")
			for range 2 {
				for _, line := range boots(t, text, heading) {
					run(m.server, line)
				}
				m.want(t, "192.0.2.1", false, "booted")
			}
		})
	}
}

// withoutTimes takes out the comments of iptables-save, which have the time in them,
// and counters.
func withoutTimes(s string) string {
	return regexp.MustCompile(`(?m)^#.*\n|\[\d+:\d+\]`).ReplaceAllString(s, "")
}

// TestRulesCommand is what the command itself says and refuses.
func TestRulesCommand(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "sallyport.toml")
	config := `[service.ssh]
ports = ["22/tcp"]
close_on_disconnect = true
[knock.front]
type = "sequence"
opens = ["ssh"]
sequence = ["8881/tcp", "7777/tcp", "9991/tcp"]
[knock.keys]
type = "spa"
opens = ["ssh"]
key = "/etc/sallyport/server.key"
authorized_keys = "/etc/sallyport/authorized_keys"
`
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args   string
		code   int
		out    string // in standard output
		err    string // in standard error
		absent string // from standard output
	}{
		{"nft -c FILE", 0, "tcp dport 8881", "knock.keys is left out", ""},
		{"nft -c FILE", 0, "# - knock.keys is left out", "close_on_disconnect is left out", ""},
		{"iptables -c FILE", 0, "--dport 8881", "knock.keys is left out", ""},
		{"--shell", 0, "#!/bin/sh", "", "8881"},
		{"--powershell", 0, "param(", "", "8881"},
		{"--batch", 0, "@echo off", "", "8881"},
		{"--shell -c FILE front", 0, "STEPS='8881/tcp 7777/tcp 9991/tcp'", "as secret as they are", ""},
		{"--shell -c FILE keys", 2, "", "no sequence that stays the same", "#!"},
		{"--shell -c FILE nobody", 2, "", "has no knock.nobody", "#!"},
		{"--shell -c FILE", 2, "", "name the knock", "#!"},
		{"--shell --batch", 2, "", "", "#!"},
		{"", 2, "", "say for what", "#"},
		{"pf -c FILE", 2, "", "say for what", "#"},
	} {
		args := append([]string{"rules"}, strings.Fields(strings.ReplaceAll(c.args, "FILE", file))...)
		var out, errs strings.Builder
		cmd := exec.Command(testnet.Binary(t), args...)
		cmd.Stdout, cmd.Stderr = &out, &errs
		cmd.Run()
		if code := cmd.ProcessState.ExitCode(); code != c.code || !strings.Contains(out.String(), c.out) ||
			!strings.Contains(errs.String(), c.err) || c.absent != "" && strings.Contains(out.String(), c.absent) {
			t.Errorf("%q: exit status %d, want %+v\n%s\n%s", args, code, c, &out, &errs)
		}
	}
	only := fmt.Sprint(strings.Split(config, "[knock.front]")[0], "[knock.keys]", strings.Split(config, "[knock.keys]")[1])
	if err := os.WriteFile(file, []byte(only), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(testnet.Binary(t), "rules", "nft", "-c", file).Output(); err == nil || len(out) > 0 {
		t.Errorf("a ruleset that shuts everybody out was printed: %v\n%s", err, out)
	}
}
