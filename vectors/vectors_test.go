package vectors_test

import (
	"bytes"
	"context"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sallyport/sallyport/vectors"
)

func read(t testing.TB) map[string]*vectors.Vector {
	t.Helper()
	all, err := vectors.All()
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// expected gives the verdicts of one suite's vectors.
func expected(t *testing.T, prefix string) map[string]string {
	t.Helper()
	want := map[string]string{}
	for name, v := range read(t) {
		if strings.HasPrefix(name, prefix) {
			want[name] = v.Get("expect")
		}
	}
	if len(want) == 0 {
		t.Fatalf("there is no vector %s…", prefix)
	}
	return want
}

// decoder is a program that reads the vectors of one suite.
type decoder struct {
	prefix string
	args   func(t *testing.T) []string
}

var decoders = map[string]decoder{
	"decode.py":  {"classic-", python},
	"decode.mjs": {"pq-", node},
}

// python finds an interpreter that has cryptography, Debian's own first: another
// one in PATH seldom has it.
func python(t *testing.T) []string {
	for _, program := range []string{"/usr/bin/python3", "python3"} {
		if exec.Command(program, "-c", "import cryptography").Run() == nil {
			return []string{program, absolute(t, "decode.py")}
		}
	}
	missing(t, "python3 with the package python3-cryptography")
	return nil
}

// node installs the decoder's packages for this test alone, at the versions and
// with the checksums of package-lock.json.
func node(t *testing.T) []string {
	for _, program := range []string{"node", "npm"} {
		if _, err := exec.LookPath(program); err != nil {
			missing(t, program)
		}
	}
	dir := t.TempDir()
	for _, name := range []string{"decode.mjs", "package.json", "package-lock.json"} {
		copyFile(t, name, filepath.Join(dir, name))
	}
	cmd := limited(t, "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("npm could not install the decoder's packages, so nothing was checked: %v\n%s", err, out)
	}
	return []string{"node", filepath.Join(dir, "decode.mjs")}
}

func missing(t *testing.T, what string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skipf("needs %s, which only root can install", what)
	}
	t.Fatalf("there is no %s: 'make packages' installs it", what)
}

func limited(t *testing.T, args ...string) *exec.Cmd {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	return exec.CommandContext(ctx, args[0], args[1:]...)
}

func absolute(t *testing.T, path string) string {
	t.Helper()
	path, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, b, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// run gives a decoder's verdicts on the vectors in a directory.
func run(t *testing.T, args []string, dir string) (verdicts map[string]string, complaint string, err error) {
	t.Helper()
	var out, said bytes.Buffer
	cmd := limited(t, append(args, dir)...)
	cmd.Stdout, cmd.Stderr = &out, &said
	err = cmd.Run()
	verdicts = map[string]string{}
	for line := range strings.Lines(out.String()) {
		name, verdict, _ := strings.Cut(strings.TrimSpace(line), ": ")
		verdicts[name] = verdict
	}
	return verdicts, said.String(), err
}

// TestDecoders: programs in other languages that follow the manual page read
// every vector as it says. Then one answer is changed, and they must notice.
func TestDecoders(t *testing.T) {
	for name, d := range decoders {
		t.Run(name, func(t *testing.T) {
			args, want := d.args(t), expected(t, d.prefix)
			got, complaint, err := run(t, args, absolute(t, "."))
			if err != nil {
				t.Errorf("%v\n%s", err, complaint)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-vectors +decoder)\n%s", diff)
			}
			for answer, wrong := range map[string]string{"expect": "close", "tag": strings.Repeat("0", 32), "granted": "192.0.2.8"} {
				got, _, err := run(t, args, altered(t, d.prefix+"open-ed25519", answer, wrong))
				changed := maps.Clone(want)
				maps.DeleteFunc(changed, func(name, verdict string) bool { return got[name] == verdict })
				if _, noticed := changed[d.prefix+"open-ed25519"]; err == nil || !noticed || len(changed) != 1 {
					t.Errorf("with another %s: %v, and it complains about %v", answer, err, changed)
				}
			}
		})
	}
}

// altered copies the vectors with one line of one of them changed.
func altered(t *testing.T, name, line, value string) string {
	t.Helper()
	dir := t.TempDir()
	for _, v := range read(t) {
		c := *v
		if v.Name == name {
			c.Lines = append([]vectors.Line(nil), v.Lines...)
			for i := range c.Lines {
				if c.Lines[i].Name == line {
					c.Lines[i].Value = value
				}
			}
		}
		if err := os.WriteFile(filepath.Join(dir, v.Name+".txt"), []byte(c.Format()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestNamesPointToVectors: what comes first is there too, is good, and is of the
// same server.
func TestNamesPointToVectors(t *testing.T) {
	all := read(t)
	for name, v := range all {
		first := v.Get("after")
		if first == "" {
			continue
		}
		if all[first] == nil || all[first].Get("expect") != "open" || all[first].Get("server-key") != v.Get("server-key") {
			t.Errorf("%s comes after %s, which is no good vector of its server", name, first)
		}
	}
}

// TestReadmeIsWhole: each line's name and each verdict has its place there.
func TestReadmeIsWhole(t *testing.T) {
	b, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	words := append([]string(nil), vectors.Names...)
	for _, v := range read(t) {
		words = append(words, v.Get("expect"))
	}
	slices.Sort(words)
	for _, word := range slices.Compact(words) {
		if !strings.Contains(string(b), "| `"+word+"` |") {
			t.Errorf("README.md has no row for %s", word)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"nothing":        "",
		"no hex":         "about: a",
		"unknown line":   "about: a\ncolour: red\n\n",
		"no value":       "about: \n\n",
		"twice":          "about: a\nabout: b\n\n",
		"capital digits": "about: a\n\nAB\n",
		"half a byte":    "about: a\n\nabc\n",
		"short lines":    "about: a\n\nab\ncd\n",
		"no line end":    "about: a\n\nab",
		"a blank":        "about: a\n\nab \n",
		"CRLF":           "about: a\r\n\r\nab\r\n",
	} {
		if _, err := vectors.Parse(name, text); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

// FuzzParse: a vector has one spelling.
func FuzzParse(f *testing.F) {
	for _, v := range read(f) {
		f.Add(v.Format())
	}
	f.Fuzz(func(t *testing.T, text string) {
		v, err := vectors.Parse("fuzz", text)
		if err == nil && v.Format() != text {
			t.Errorf("%q reads as %q", text, v.Format())
		}
	})
}
