package config

import (
	"encoding/json"
	"errors"
	"flag"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write what Parse gives below the line of each testdata file")

var equal = []cmp.Option{
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
}

// result is what a test file has below its line: the normal form or the error.
func result(text string) string {
	c, err := Parse("sallyport.toml", []byte(text))
	if err != nil {
		return err.Error() + "\n"
	}
	return c.Format()
}

// Each file is a config, a line of ---, and the exact answer.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) < 20 {
		t.Fatalf("%d test files, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			text, want, ok := strings.Cut(string(data), "---\n")
			if !ok {
				t.Fatal("no line of ---")
			}
			got := result(text)
			if *update {
				if err := os.WriteFile(file, []byte(text+"---\n"+got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff(want, got); diff != "" && !*update {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// What must hold for every text: an accepted one comes back from its normal
// form and through JSON as an equal Config; a refused one names its lines.
func check(t *testing.T, text []byte) {
	t.Helper()
	c, err := Parse("f", text)
	if err != nil {
		checkErrors(t, text, err)
		return
	}
	form := c.Format()
	again, err := Parse("f", []byte(form))
	if err != nil {
		t.Fatalf("the normal form is refused: %v\n%s", err, form)
	}
	if diff := cmp.Diff(c, again, equal...); diff != "" {
		t.Fatalf("the normal form reads back as another config:\n%s\n%s", diff, form)
	}
	if f := again.Format(); f != form {
		t.Fatalf("the normal form has another normal form:\n%s", cmp.Diff(form, f))
	}
	data, err := json.Marshal(c)
	var crossed Config
	if err == nil {
		err = json.Unmarshal(data, &crossed)
	}
	if err != nil {
		t.Fatalf("as JSON: %v", err)
	}
	if diff := cmp.Diff(less(c), &crossed, equal...); diff != "" {
		t.Fatalf("through JSON:\n%s", diff)
	}
	for i := range c.Actions {
		for _, word := range c.Actions[i].Run {
			if len(word) > 8 && strings.Contains(string(data), word) {
				t.Fatalf("a command crosses to the engine: %q", word)
			}
		}
	}
}

// less is what the engine gets to see: of an action that it exists, and
// for how long.
func less(c *Config) *Config {
	out := *c
	out.Daemon.OpenCommand, out.Daemon.CloseCommand, out.Daemon.AdoptCommand = nil, nil, nil
	out.Actions = nil
	for _, a := range c.Actions {
		out.Actions = append(out.Actions, Action{Name: a.Name, AtStart: a.AtStart, UndoAfter: a.UndoAfter})
	}
	return &out
}

var lineForm = regexp.MustCompile(`^f:([0-9]+): [^\n]+$`)

func checkErrors(t *testing.T, text []byte, err error) {
	t.Helper()
	var errs Errors
	if !errors.As(err, &errs) || len(errs) == 0 {
		t.Fatalf("%T: %v", err, err)
	}
	last, lines := 1, 1+strings.Count(string(text), "\n")
	for _, e := range errs {
		if !lineForm.MatchString(e.Error()) || e.Line < last || e.Line > lines {
			t.Fatalf("of %d lines, after %d: %q", lines, last, e.Error())
		}
		last = e.Line
	}
}

func FuzzParse(f *testing.F) {
	seeds, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(seeds) == 0 {
		f.Fatalf("no seeds: %v", err)
	}
	for _, seed := range seeds {
		data, err := os.ReadFile(seed)
		if err != nil {
			f.Fatal(err)
		}
		text, _, _ := strings.Cut(string(data), "---\n")
		f.Add([]byte(text))
	}
	f.Fuzz(check)
}

func TestExample(t *testing.T) {
	const file = "../../doc/sallyport.toml"
	c, err := Load(file)
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	text := string(data)
	if !slices.ContainsFunc(Lint(c, Facts{}), func(w Warning) bool { return strings.Contains(w.Text, "documentation prints") }) {
		t.Error("nobody is warned who leaves the example's sequence as it is")
	}
	// The lines that show a default show the true one: with all of them in
	// force the config is the same.
	shown := regexp.MustCompile(`(?m)^#([a-z_]+ = )`).ReplaceAllString(text, "$1")
	all, err := Parse(file, []byte(shown))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(c.Format(), all.Format()); diff != "" {
		t.Errorf("a default in the example is not the default:\n%s", diff)
	}
	for _, name := range allKeys() {
		if !regexp.MustCompile(`(?m)^#?` + name + ` = `).MatchString(text) {
			t.Errorf("the example has no line for %q", name)
		}
	}
}

func allKeys() []string {
	var names []string
	for _, k := range daemonKeys {
		names = append(names, k.name)
	}
	for _, k := range serviceKeys {
		names = append(names, k.name)
	}
	for _, k := range actionKeys {
		names = append(names, k.name)
	}
	for _, k := range slices.Concat(sequenceKeys, otpKeys, encodedKeys, spaKeys) {
		names = append(names, k.name)
	}
	return names
}

// A copy of the file that is kept must be the file, byte order mark and all.
func TestLoadTextGivesTheFile(t *testing.T) {
	for _, text := range []string{"\ufeff[service.ssh]\r\nports = [\"22/tcp\"]\n", "[service.ssh]\nport = 22\n"} {
		file := filepath.Join(t.TempDir(), "sallyport.toml")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		c, got, err := LoadText(file)
		if string(got) != text || (c == nil) != (err != nil) {
			t.Errorf("%q: got %q, %v, %v", text, got, c, err)
		}
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	big := filepath.Join(dir, "big")
	if err := os.WriteFile(big, make([]byte, MaxSize+1), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		path, want string
		is         error
	}{
		{filepath.Join(dir, "none"), "can't be read: no such file or directory; write one", fs.ErrNotExist},
		{dir, "can't be read: is a directory; name the file in it", nil},
		{big, "more than 1048576 bytes", nil},
	} {
		_, err := Load(test.path)
		if err == nil {
			t.Errorf("%s: loaded", test.path)
			continue
		}
		if !strings.HasPrefix(err.Error(), test.path) || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v; want %q", test.path, err, test.want)
		}
		if test.is != nil && !errors.Is(err, test.is) {
			t.Errorf("%s: %v is not %v", test.path, err, test.is)
		}
	}
}

// A log is read by more people than the config, so no error tells a step.
func TestErrorsKeepSteps(t *testing.T) {
	const head = "[service.ssh]\nports = [\"22/tcp\"]\n[knock.a]\ntype = \"sequence\"\nopens = [\"ssh\"]\n"
	for _, tail := range []string{
		`sequence = ["41234/tcp", "41235/tpc"]`,
		`sequence = ["tcp/41234"]`,
		`sequence = ["41234"]`,
		`sequence = [41234]`,
		`sequence = 41234`,
		`sequence = "41234/tcp"`,
		`sequence = "41234/tcp", "1/tcp"`,
		`sequence = [“41234/tcp”]`,
		`sequence = ["41234/tcp:syn,ak"]`,
		`sequence = ["41234/udp:syn"]`,
		`sequence = {"a" = "41234/tcp"}`,
		`sequence = ["41234/tcp"]`,
		`sequence = ["41234/tcp", "41235/tcp"]`,
		"sequence = [\"41234/tcp\", \"17/udp\"]\n[knock.b]\ntype = \"sequence\"\nopens = [\"ssh\"]\nsequence = [\"41234/tcp\", \"17/udp\"]",
		"quiet = true\nsequence = [\"41234/tcp\", \"17/udp\"]\n[service.b]\nports = [\"41234/tcp\"]",
	} {
		_, err := Parse("f", []byte(head+tail))
		if err == nil {
			t.Errorf("%s: accepted", tail)
		} else if strings.Contains(err.Error(), "4123") {
			t.Errorf("%s: the error tells a step: %v", tail, err)
		}
	}
}

func TestSuggestPrefersTheSameBeginning(t *testing.T) {
	for word, want := range map[string]string{"kye": "key", "tpye": "type", "opnes": "opens", "prot": "port"} {
		if got := nearest(word, []string{"type", "opens", "port", "key"}); got != want {
			t.Errorf("%q: %q, want %q", word, got, want)
		}
	}
}
