package doc_test

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/testnet"
)

func TestPagesAreClean(t *testing.T) {
	if _, err := exec.LookPath("mandoc"); err != nil && os.Geteuid() != 0 {
		t.Skip("needs mandoc, which only root can install")
	}
	for _, page := range pages(t) {
		if out, err := exec.Command("mandoc", "-T", "lint", "-W", "warning", page).Output(); err != nil {
			t.Errorf("%s: %v\n%s", page, err, out)
		}
	}
}

// TestHeadingsArePlain: a heading's first word can be the name of a macro, which mdoc
// then calls: In puts what follows into angle brackets.
func TestHeadingsArePlain(t *testing.T) {
	if _, err := exec.LookPath("mandoc"); err != nil && os.Geteuid() != 0 {
		t.Skip("needs mandoc, which only root can install")
	}
	for _, page := range pages(t) {
		out, err := exec.Command("mandoc", "-T", "markdown", page).Output()
		if err != nil {
			t.Errorf("%s: %v", page, err)
		}
		headings := regexp.MustCompile(`(?m)^#.*`).FindAllString(string(out), -1)
		if len(headings) < 3 {
			t.Errorf("%s: %d headings: the search for them is broken", page, len(headings))
		}
		for _, heading := range headings {
			if strings.Contains(heading, "<") || strings.Contains(heading, "&lt;") {
				t.Errorf("%s has the heading %q", page, heading)
			}
		}
	}
}

// section gives the lines under the heading of a manual page.
func section(t *testing.T, page, heading string) []string {
	t.Helper()
	_, rest, found := strings.Cut(read(t, page), "\n.Sh "+heading+"\n")
	if !found {
		t.Fatalf("%s has no section %s", page, heading)
	}
	body, _, _ := strings.Cut(rest, "\n.Sh ")
	return strings.Split(body, "\n")
}

// items gives the first words of a list's items that begin with a macro, and
// the lines of each.
func items(lines []string, macro string) map[string][]string {
	all := map[string][]string{}
	name := ""
	for _, line := range lines {
		if head, ok := strings.CutPrefix(line, ".It "+macro+" "); ok {
			name, _, _ = strings.Cut(head, " ")
		}
		if name != "" {
			all[name] = append(all[name], line)
		}
	}
	return all
}

func names[T any](m map[string]T) []string {
	var list []string
	for name := range m {
		list = append(list, name)
	}
	return sorted(list)
}

func sorted(list []string) []string {
	slices.Sort(list)
	return slices.Compact(list)
}

func same(t *testing.T, what string, documented, real []string) {
	t.Helper()
	if len(real) == 0 {
		t.Errorf("%s: the program has none: the search for them is broken", what)
	}
	if diff := cmp.Diff(documented, real); diff != "" {
		t.Errorf("%s: the manual (-) and the program (+) differ:\n%s", what, diff)
	}
}

// all gives what the pattern's groups found, sorted, without empty ones.
func all(pattern *regexp.Regexp, text string) []string {
	var list []string
	for _, m := range pattern.FindAllStringSubmatch(text, -1) {
		for _, group := range m[1:] {
			if group != "" && group != "help" && group != "h" {
				list = append(list, group)
			}
		}
	}
	return sorted(list)
}

func help(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command(testnet.Binary(t), append(args, "--help")...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", args, err, out)
	}
	return string(out)
}

var (
	helpCommand = regexp.MustCompile(`(?m)^  ([a-z]+)  +\S`)
	helpFlag    = regexp.MustCompile(`(?m)^  (?:-(\w), |    )--([a-z-]+)`)
	manualFlag  = regexp.MustCompile(`\bFl (?:-([a-z-]+)|(\w)\b)`)
)

func TestEveryCommandAndFlagHasItsEntry(t *testing.T) {
	entries := map[string][]string{}
	for _, page := range []string{"sallyport.1", "sallyport.8"} {
		for command, lines := range items(section(t, page, "COMMANDS"), "Cm") {
			entries[command] = append(entries[command], lines...)
		}
	}
	commands := all(helpCommand, help(t))
	same(t, "commands", names(entries), commands)
	var real []string
	for _, command := range commands {
		flags := all(helpFlag, help(t, command))
		real = append(real, flags...)
		var heads []string
		for _, line := range entries[command] {
			if strings.HasPrefix(line, ".It ") {
				heads = append(heads, line)
			}
		}
		if diff := cmp.Diff(all(manualFlag, strings.Join(heads, "\n")), flags); diff != "" {
			t.Errorf("flags of %s: the manual (-) and the program (+) differ:\n%s", command, diff)
		}
	}
	var everywhere []string
	for _, page := range pages(t) {
		if byName[page] == "" {
			everywhere = append(everywhere, all(manualFlag, read(t, page))...)
		}
	}
	same(t, "flags on all pages", sorted(everywhere), sorted(real))
}

// plain is a config in which every key that may be left out is.
const plain = `[service.ssh]
ports = ["22/tcp"]
[knock.front]
type = "sequence"
opens = ["ssh"]
sequence = ["7000/tcp", "8500/udp", "7800/tcp"]
`

// every is plain with an action, and with a knock of the other type too, whose
// files need not be there to parse it.
const every = plain + `[action.wake]
run = ["/usr/bin/wake", "{addr}"]
[knock.side]
type = "spa"
opens = ["ssh"]
key = "/etc/sallyport/key"
authorized_keys = "/etc/sallyport/authorized_keys"
[knock.password]
type = "otp"
opens = ["ssh"]
secrets = "/etc/sallyport/people"
[knock.message]
type = "encoded"
opens = ["ssh"]
secrets = "/etc/sallyport/people"
`

// TestEveryKeyHasItsEntry takes the keys and their defaults from the normal
// form. An entry says either "Required." or the default.
func TestEveryKeyHasItsEntry(t *testing.T) {
	cfg, err := config.Parse("every", []byte(every))
	if err != nil {
		t.Fatal(err)
	}
	entries := items(section(t, "sallyport.toml.5", "DESCRIPTION"), "Ic")
	var keys []string
	shown := map[string]string{} // the last value of each key
	for line := range strings.Lines(cfg.Format()) {
		key, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if !ok {
			continue
		}
		key, value = strings.TrimSpace(key), strings.TrimSpace(value)
		keys = append(keys, key)
		shown[key] = value
		text := strings.Join(entries[key], "\n") + " "
		def := ".\nDefault:\n.Li " + strings.ReplaceAll(value, `"`, `\(dq`) + " "
		switch {
		case strings.Contains(text, "\nRequired.") == strings.Contains(text, "\nDefault:"):
			t.Errorf("%s: the entry must say that the key is required, or its default", key)
		case strings.Contains(text, "\nRequired."):
			if _, err := config.Parse("every", without(key)); err == nil {
				t.Errorf("%s is not required: a config without it was taken", key)
			}
		case asOther.MatchString(text):
			if other := asOther.FindStringSubmatch(text)[1]; shown[other] != value {
				t.Errorf("%s is not %s unless given: it is %s", key, other, value)
			}
		case !strings.Contains(text, def):
			t.Errorf("%s: the default is %s; the entry has\n%s", key, value, text)
		}
	}
	same(t, "keys", names(entries), sorted(keys))
}

// asOther is a default that is another key's value.
var asOther = regexp.MustCompile(`\.\nDefault:\n\.Ic (\w+) `)

func without(key string) []byte {
	return regexp.MustCompile(`(?m)^`+key+` = .*\n`).ReplaceAll([]byte(every), nil)
}

func TestEveryCounterHasItsEntry(t *testing.T) {
	dir := t.TempDir()
	if out, err := exec.Command(testnet.Binary(t), "keygen", "--out", filepath.Join(dir, "key")).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := os.WriteFile(filepath.Join(dir, "authorized_keys"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "people"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := strings.ReplaceAll(every, "/etc/sallyport", dir)
	daemon := testnet.New(t).Serve(testnet.Binary(t), cfg)
	out, err := daemon.Tool("status", "--json")
	if err != nil {
		t.Fatal(err, out)
	}
	var status struct{ Counters map[string]uint64 }
	if err := json.Unmarshal([]byte(out), &status); err != nil {
		t.Fatal(err)
	}
	same(t, "counters", names(items(section(t, "sallyport.8", "COUNTERS"), "Ic")), names(status.Counters))
}

func TestEveryEventHasItsEntry(t *testing.T) {
	source := read(t, root+"/internal/control/control.go")
	events := all(regexp.MustCompile(`(?m)^\tEvent\w+ += "(\w+)"`), source)
	same(t, "events", names(items(section(t, "sallyport.8", "EVENTS"), "Ic")), events)
}

// TestDiagnosticsAreSaid looks for each documented line in the program's own
// texts.
func TestDiagnosticsAreSaid(t *testing.T) {
	texts := literals(t, root+"/internal", root+"/cmd")
	n := 0
	for _, line := range section(t, "sallyport.8", "DIAGNOSTICS") {
		message, ok := strings.CutPrefix(line, ".It ")
		if !ok {
			continue
		}
		n++
		if !slices.ContainsFunc(texts, func(s string) bool { return strings.HasPrefix(s, message) }) {
			t.Errorf("the program never says %q", message)
		}
	}
	if n < 10 {
		t.Errorf("only %d messages were found in the manual: the search for them is broken", n)
	}
}

// literals gives every text in the sources below the directories.
func literals(t *testing.T, dirs ...string) []string {
	t.Helper()
	var texts []string
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			ast.Inspect(file, func(n ast.Node) bool {
				if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
					if s, err := strconv.Unquote(lit.Value); err == nil {
						texts = append(texts, s)
					}
				}
				return true
			})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return texts
}
