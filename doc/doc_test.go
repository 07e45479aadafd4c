// Package doc_test keeps what a person reads true: the commands in README and
// the manual are commands of the program, the configs are configs, and every
// subcommand, flag, key, counter, event and log line has its entry.
package doc_test

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/sallyport/sallyport/internal/authorized"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/secrets"
	"github.com/sallyport/sallyport/internal/testnet"
)

const root = ".."

// text is a document, taken apart.
type text struct {
	path   string
	blocks []block
	spans  []string // inline code
	links  []string // to other files
}

// block is displayed code.
type block struct {
	language string // "toml", "conf" (a knockd.conf), "ini" (lines of a unit), "console", "text", or "" for commands
	lines    []string
}

var (
	span = regexp.MustCompile("`([^`]+)`")
	link = regexp.MustCompile(`\]\(([^):#]+)\)`)
)

// markdown takes a document apart: fenced blocks, indented blocks, inline code.
func markdown(t *testing.T, path string) text {
	d := text{path: path}
	var prose []string
	var fence *block
	for line := range strings.Lines(read(t, path)) {
		line = strings.TrimRight(line, "\n")
		code := strings.TrimSpace(line)
		switch language, mark := strings.CutPrefix(code, "```"); {
		case mark && fence == nil:
			fence = &block{language: language}
		case mark:
			d.blocks = append(d.blocks, *fence)
			fence = nil
		case fence != nil:
			fence.lines = append(fence.lines, code)
		case strings.HasPrefix(line, "    "):
			d.blocks = append(d.blocks, block{lines: []string{code}})
		default:
			prose = append(prose, code)
		}
	}
	all := strings.Join(prose, " ")
	for _, m := range span.FindAllStringSubmatch(all, -1) {
		d.spans = append(d.spans, m[1])
	}
	for _, m := range link.FindAllStringSubmatch(all, -1) {
		d.links = append(d.links, m[1])
	}
	return d
}

// manual takes an mdoc(7) page apart: literal displays and quoted words.
func manual(t *testing.T, path string) text {
	d := text{path: path}
	var display *block
	for line := range strings.Lines(read(t, path)) {
		line = strings.TrimRight(line, "\n")
		word, isQuote := strings.CutPrefix(line, ".Ql ")
		switch {
		case strings.HasPrefix(line, ".Bd -literal"):
			display = &block{}
		case line == ".Ed":
			display.language = displayed(path, display.lines[0])
			d.blocks = append(d.blocks, *display)
			display = nil
		case display != nil:
			display.lines = append(display.lines, line)
		case isQuote:
			d.spans = append(d.spans, strings.TrimRight(word, " .,;:"))
		}
	}
	return d
}

// displayed tells from its first line what a display of a manual page shows.
func displayed(path, first string) string {
	switch {
	case !strings.HasPrefix(first, "["):
		return ""
	case first == "[Service]":
		return "ini"
	case filepath.Base(path) == "knockd.1":
		return "conf"
	}
	return "toml"
}

// documents are all texts for people; a new one is found by itself.
func documents(t *testing.T) []text {
	var all []text
	for _, pattern := range []string{root + "/*.md", root + "/doc/*.md", root + "/doc/notes/*.md"} {
		for _, path := range glob(t, pattern) {
			all = append(all, markdown(t, path))
		}
	}
	for _, path := range pages(t) {
		all = append(all, manual(t, path))
	}
	return all
}

func pages(t *testing.T) []string { return glob(t, "*.[1-8]") }

func glob(t *testing.T, pattern string) []string {
	t.Helper()
	paths, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// call finds a program at the beginning of a line of code, behind a prompt, or
// where ssh(1) runs it on the other side.
var call = regexp.MustCompile(`^(?:\w*[#$] )?(?:ssh \S+ |ProxyCommand )?(sallyport|make|knockd|knock) (.+)`)

// behind is what follows a command on its line: a redirection, another command,
// a comment.
var behind = regexp.MustCompile(` (\d?[<>]|[&|]| # ).*`)

// commands gives the command lines of one program that a document shows.
func (d *text) commands(program string) [][]string {
	code := d.spans
	for _, b := range d.blocks {
		if b.language == "" || b.language == "console" {
			code = append(code, b.lines...)
		}
	}
	var found [][]string
	for _, line := range code {
		if m := call.FindStringSubmatch(strings.TrimSpace(line)); m != nil && m[1] == program {
			found = append(found, strings.Fields(behind.ReplaceAllString(m[2], "")))
		}
	}
	return found
}

// understood asks the program itself whether it takes a command line: with
// --help at the end it parses the rest and does nothing.
func understood(bin string, args []string) (string, bool) {
	out, err := exec.Command(bin, append(args[:len(args):len(args)], "--help")...).CombinedOutput()
	return string(out), err == nil && strings.HasPrefix(string(out), "Usage: sallyport "+args[0])
}

func TestCommandsAreUnderstood(t *testing.T) {
	bin := testnet.Binary(t)
	n := 0
	for _, d := range documents(t) {
		for _, args := range d.commands("sallyport") {
			n++
			if out, ok := understood(bin, args); !ok {
				t.Errorf("%s: 'sallyport %s' is no command of the program:\n%s", d.path, strings.Join(args, " "), out)
			}
		}
	}
	if n < 30 {
		t.Errorf("only %d commands were found in the documents: the search for them is broken", n)
	}
}

// TestWrongCommandsAreNot shows that the test above can fail.
func TestWrongCommandsAreNot(t *testing.T) {
	bin := testnet.Binary(t)
	for _, wrong := range []string{
		"guard", "serve --observed", "serve --undo-after soon", "serve file", "knock 192.0.2.1 7000/tcp --delay 1",
		"knock 2001:db8::1 7000/tcp --than 22", "open ssh 192.0.2.7 --fro 30s", "open ssh 2001:db8::7 --for ever",
	} {
		if out, ok := understood(bin, strings.Fields(wrong)); ok {
			t.Errorf("'sallyport %s' was taken for a command:\n%s", wrong, out)
		}
	}
}

func TestConfigsAreConfigs(t *testing.T) {
	n := 0
	for _, d := range documents(t) {
		for _, b := range d.blocks {
			switch b.language {
			case "toml":
				n++
				if _, err := config.Parse(d.path, []byte(strings.Join(b.lines, "\n"))); err != nil {
					t.Errorf("a config in %s, counted from its own first line: %v", d.path, err)
				}
			case "", "console", "go", "text", "conf", "ini":
			case "nft": // the integration test of the page loads it
			default:
				t.Errorf("%s has a block of %q: tell this test how to check it", d.path, b.language)
			}
		}
	}
	if n < 4 {
		t.Errorf("only %d configs were found in the documents: the search for them is broken", n)
	}
}

// TestKeyLinesAreLines gives each line of an authorized_keys file that a document
// shows a real key of its own.
func TestKeyLinesAreLines(t *testing.T) {
	n := 0
	for _, d := range documents(t) {
		for _, b := range d.blocks {
			for _, line := range b.lines {
				before, comment, ok := strings.Cut(line, "ssh-ed25519 AAAA… ")
				if !ok || call.MatchString(line) || strings.HasPrefix(line, "$ ") {
					continue
				}
				n++
				key := sshString("ssh-ed25519") + sshString(fmt.Sprintf("%032d", n))
				text := before + "ssh-ed25519 " + base64.StdEncoding.EncodeToString([]byte(key)) + " " + comment
				if keys, bad := authorized.Parse([]byte(text)); len(keys) != 1 || len(bad) > 0 {
					t.Errorf("%s: %q gives %d keys: %v", d.path, line, len(keys), bad)
				}
			}
		}
	}
	if n < 2 {
		t.Errorf("only %d lines of authorized_keys were found in the documents: the search for them is broken", n)
	}
}

// TestLinesOfSecretsAreLines gives each line of a file of secrets that a document shows
// the rest of its secret.
func TestLinesOfSecretsAreLines(t *testing.T) {
	n := 0
	for _, d := range documents(t) {
		for _, b := range d.blocks {
			for _, line := range b.lines {
				name, rest, ok := strings.Cut(line, " ")
				start, options, shown := strings.Cut(rest, "…")
				if !ok || !shown || secrets.CheckName(name) != nil || len(start) != 8 || strings.Trim(start, "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567") != "" {
					continue
				}
				n++
				text := name + " " + strings.Repeat(start, 4) + options
				if people, bad := secrets.Parse([]byte(text)); len(people) != 1 || len(bad) > 0 {
					t.Errorf("%s: %q gives %d people: %v", d.path, line, len(people), bad)
				}
			}
		}
	}
	if n < 2 {
		t.Errorf("only %d lines of secrets were found in the documents: the search for them is broken", n)
	}
}

// sshString is a string in SSH's wire form (RFC 4251 section 5).
func sshString(s string) string {
	return string(binary.BigEndian.AppendUint32(nil, uint32(len(s)))) + s
}

func TestMakeTargetsExist(t *testing.T) {
	for _, d := range documents(t) {
		for _, args := range d.commands("make") {
			cmd := exec.Command("make", "-n", args[0])
			cmd.Dir = root
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%s: 'make %s': %v\n%s", d.path, args[0], err, out)
			}
		}
	}
}

func TestLinksLead(t *testing.T) {
	for _, d := range documents(t) {
		for _, to := range d.links {
			if _, err := os.Stat(filepath.Join(filepath.Dir(d.path), to)); err != nil {
				t.Errorf("%s: %v", d.path, err)
			}
		}
	}
}
