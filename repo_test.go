package sallyport_test

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/sallyport/sallyport"

// fences say which package must never reach which import, by any way, and why.
var fences = []struct{ from, to, why string }{
	{"internal/engine", module + "/internal/warden", "the engine has no privilege to share code with"},
	{"internal/engine", "os/exec", "strangers' bytes must never meet a command"},
	{"internal/engine", "net", "the engine must not be able to dial"},
	{"internal/engine", "github.com/google/nftables", "only the warden changes the firewall"},
	{"internal/warden", module + "/internal/engine", "the warden never parses a packet"},
	{"internal/warden", "os/exec", "it looks programs up in PATH; those of ours are started by package run"},
	{"internal/border", "os/exec", "the border carries messages"},
	{"internal/sequence", module + "/", "a leaf: client, config and engine share it"},
	{"internal/otp", module + "/", "a leaf: client, config and engine share it"},
	{"internal/spa", module + "/", "a leaf: client, config and engine share it"},
	{"internal/spa", "golang.org/x/crypto/ssh", "what it dials with must not be linked into the engine"},
	{"internal/authorized", "golang.org/x/crypto/ssh", "what it dials with must not be linked into the warden"},
	{"internal/engine", "golang.org/x/crypto/ssh", "the engine must not be able to dial"},
	{"internal/warden", "golang.org/x/crypto/ssh", "what it dials with must not run with privilege"},
	{".", module + "/internal/engine", "the client library must stay small"},
	{".", module + "/internal/warden", "the client library must stay small"},
	{".", module + "/internal/config", "the client library must stay small"},
}

type goPackage struct {
	ImportPath string
	Dir        string
	Deps       []string
	Imports    []string
	GoFiles    []string
	Standard   bool
}

func list(t *testing.T, args ...string) []goPackage {
	t.Helper()
	out, err := exec.Command("go", append([]string{"list", "-json"}, args...)...).Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var packages []goPackage
	for dec := json.NewDecoder(strings.NewReader(string(out))); dec.More(); {
		var p goPackage
		if err := dec.Decode(&p); err != nil {
			t.Fatal(err)
		}
		packages = append(packages, p)
	}
	return packages
}

// Promise 1 in the layout: what parses packets can't reach what has privilege.
func TestFences(t *testing.T) {
	for _, p := range list(t, "./...") {
		for _, f := range fences {
			from := strings.TrimSuffix(module+"/"+f.from, "/.")
			inside := p.ImportPath == from || f.from != "." && strings.HasPrefix(p.ImportPath, from+"/")
			if !inside {
				continue
			}
			for _, dep := range p.Deps {
				if dep == f.to || strings.HasSuffix(f.to, "/") && strings.HasPrefix(dep, f.to) {
					t.Errorf("%s reaches %s: %s", p.ImportPath, dep, f.why)
				}
			}
		}
	}
}

// The packages that alone may import what is dangerous.
func TestOnlyOnePackageEach(t *testing.T) {
	only := map[string]string{
		"github.com/google/nftables":                   module + "/internal/warden/internal/nft",
		"github.com/landlock-lsm/go-landlock/landlock": module + "/internal/engine/internal/sandbox",
		"golang.org/x/crypto/ssh":                      module,
		"golang.org/x/crypto/ssh/agent":                module,
	}
	for _, p := range list(t, "./...") {
		for dep, owner := range only {
			if slices.Contains(p.Imports, dep) && p.ImportPath != owner {
				t.Errorf("%s imports %s; only %s may", p.ImportPath, dep, owner)
			}
		}
	}
}

// What has privilege starts itself as the engine, journalctl, what a config names, and
// the tools of iptables: each in its place.
func TestFewPlacesStartPrograms(t *testing.T) {
	starts := regexp.MustCompile(`\b(StartProcess|ForkExec|Exec|Execve)\(`)
	found := map[string]bool{}
	for _, p := range list(t, "./internal/warden/...") {
		for _, name := range p.GoFiles {
			text, err := os.ReadFile(filepath.Join(p.Dir, name))
			if err != nil {
				t.Fatal(err)
			}
			if starts.Match(text) {
				found[strings.TrimPrefix(p.ImportPath, module+"/internal/warden")+"/"+name] = true
			}
		}
	}
	want := []string{"/internal/run/child.go", "/internal/run/spawner.go", "/internal/run/tool.go", "/start.go"}
	if got := slices.Sorted(maps.Keys(found)); !slices.Equal(got, want) {
		t.Errorf("programs are started in %q, want %q", got, want)
	}
}

func TestOnePackageCommentEach(t *testing.T) {
	for _, p := range list(t, "./...") {
		var with []string
		for _, name := range p.GoFiles {
			f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, parser.ParseComments|parser.PackageClauseOnly)
			if err != nil {
				t.Fatal(err)
			}
			if f.Doc != nil {
				with = append(with, name)
			}
		}
		if len(p.GoFiles) > 0 && len(with) != 1 {
			t.Errorf("%s: a package comment in %d files %v, want one", p.ImportPath, len(with), with)
		}
	}
}

// The kernel would not let two threads of a cgo program drop privilege alike,
// and a replaced dependency would hide in one line.
func TestModuleFile(t *testing.T) {
	text, err := os.ReadFile("go.mod")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(text), "replace") {
		t.Error("go.mod replaces a module")
	}
	err = filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".go") && path != "repo_test.go" {
			source, _ := os.ReadFile(path)
			if strings.Contains(string(source), "\nimport \"C\"") {
				t.Errorf("%s uses cgo", path)
			}
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// A new dependency is a line in a diff, with its reason in ARCHITECTURE.md.
func TestDependencies(t *testing.T) {
	seen := map[string]bool{}
	out, err := exec.Command("go", "list", "-deps", "-f", "{{with .Module}}{{.Path}}{{end}}", "./cmd/sallyport").Output()
	if err != nil {
		t.Fatal(err)
	}
	for path := range strings.FieldsSeq(string(out)) {
		if path != module {
			seen[path] = true
		}
	}
	want, err := os.ReadFile("deps.txt")
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(slices.Sorted(maps.Keys(seen)), "\n") + "\n"; got != string(want) {
		t.Errorf("the program is linked with\n%s\ndeps.txt has\n%s", got, want)
	}
}

// privileged is the ceiling for lines of ours that run with privilege, comments
// and blank lines left out. Raising it is a decision, not an accident.
const privileged = 11600

// ARCHITECTURE.md states the count to the nearest hundred, so that it is looked at.
func TestPrivilegedLines(t *testing.T) {
	lines := 0
	for _, p := range list(t, "./internal/warden/...") {
		for _, name := range p.GoFiles {
			lines += codeLines(t, filepath.Join(p.Dir, name))
		}
	}
	page, err := os.ReadFile("ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	stated := regexp.MustCompile(`About ([0-9,]+) lines of code run with privilege`).FindSubmatch(page)
	if stated == nil {
		t.Fatal("ARCHITECTURE.md does not say how many lines of code run with privilege")
	}
	got, err := strconv.Atoi(strings.ReplaceAll(string(stated[1]), ",", ""))
	if err != nil || got-lines > 100 || lines-got > 100 {
		t.Errorf("ARCHITECTURE.md says that about %d lines run with privilege; there are %d", got, lines)
	}
	if lines > privileged {
		t.Errorf("%d lines run with privilege, more than %d", lines, privileged)
	}
}

// codeLines counts the lines that hold a token of code.
func codeLines(t *testing.T, path string) int {
	t.Helper()
	set := token.NewFileSet()
	f, err := parser.ParseFile(set, path, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	lines := map[int]bool{}
	ast.Inspect(f, func(n ast.Node) bool {
		if n != nil {
			lines[set.Position(n.Pos()).Line] = true
			lines[set.Position(n.End()-1).Line] = true
		}
		return true
	})
	return len(lines)
}

// The tree is for everybody: nothing in it belongs to the machine it was made on.
func TestNoTextNamesAMachine(t *testing.T) {
	out, err := exec.Command("git", "ls-files").Output()
	if err != nil {
		t.Skip("not a git checkout: the archive holds what was committed")
	}
	machine := regexp.MustCompile(`/(home|work|root)/[a-z]+/|proxy\.golang|registry\.npmjs|deb\.debian`)
	for path := range strings.FieldsSeq(string(out)) {
		text, err := os.ReadFile(path)
		if err == nil && path != "repo_test.go" && machine.Match(text) {
			t.Errorf("%s names a machine's path or a registry: %s", path, machine.Find(text))
		}
	}
}

// Each promise of SECURITY.md has a test with its number that fails when it is
// broken.
func TestEachPromiseHasATest(t *testing.T) {
	named := regexp.MustCompile(`(?m)^func TestPromise([1-7])`)
	found := map[string]bool{}
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		source, err := os.ReadFile(path)
		for _, m := range named.FindAllSubmatch(source, -1) {
			found[string(m[1])] = true
		}
		return err
	})
	if err != nil || len(found) != 7 {
		t.Errorf("tests for the promises %v only (%v)", slices.Sorted(maps.Keys(found)), err)
	}
}
