//go:build linux

package main

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/sallyport/sallyport/internal/testnet"
)

// TestDropInIsThePackagedOne: what check prints is the file of the package, of which
// its own test says that it resets what the unit sets.
func TestDropInIsThePackagedOne(t *testing.T) {
	text, err := os.ReadFile("../../packaging/actions.conf")
	if err != nil {
		t.Fatal(err)
	}
	var lines strings.Builder
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(line, "#") {
			lines.WriteString(line)
		}
	}
	if dropIn != lines.String() || !strings.Contains(dropIn, "[Service]\n") {
		t.Errorf("packaging/actions.conf without its comments is\n%s", lines.String())
	}
	if !strings.Contains(string(text), dropInPath) {
		t.Errorf("packaging/actions.conf does not say that it belongs at %s", dropInPath)
	}
}

// TestKnockdConfUnreadable is a run by somebody who is not its owner.
func TestKnockdConfUnreadable(t *testing.T) {
	testnet.RequireRoot(t)
	dir := t.TempDir()
	private, public := filepath.Join(dir, "private"), filepath.Join(dir, "public")
	for path, mode := range map[string]os.FileMode{private: 0o600, public: 0o644} {
		if err := os.WriteFile(path, []byte("[a]\nsequence = 7000,3000,55000\ntcpflags = syn\n"), mode); err != nil {
			t.Fatal(err)
		}
	}
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	out := filepath.Join(dir, "out.toml")
	for _, test := range []struct {
		args   []string
		status int
		want   string
	}{
		{[]string{"check", "--knockd", private}, exitFailed, "sallyport: " + private + " can't be read: permission denied; a file with sequences is root's alone, so run this as root\n"},
		{[]string{"convert", private}, exitFailed, "sallyport: " + private + " can't be read: permission denied; a file with sequences is root's alone, so run this as root\n"},
		{[]string{"convert", "-o", out, public}, exitFailed, "sallyport: nothing was written: open " + out + ": permission denied; name a file in a directory that is there and that you may write to\n"},
		{[]string{"check", "--knockd", public, "--defaults", private}, exitDone, "sallyport: warning: the file of options was not looked at: open " + private + ": permission denied\n"},
	} {
		status, words := asNobody(test.args)
		if status != test.status || !strings.Contains(words, test.want) || status == exitFailed && words != test.want {
			t.Errorf("%q: status %d, words\n%swant\n%s", test.args, status, words, test.want)
		}
	}
}

// asNobody runs the program with the rights to files of a user without any.
func asNobody(args []string) (status int, words string) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	syscall.Setfsuid(65534)
	defer syscall.Setfsuid(0)
	var out, err strings.Builder
	status = run(&ui{out: &out, err: &err}, args)
	return status, err.String()
}

// TestOddOptions: every line but comments, each character once.
func TestOddOptions(t *testing.T) {
	for text, want := range map[string][]string{
		"":                            nil,
		"KNOCKD_OPTS=\"-i eth0\"\n":   nil,
		"KNOCKD_OPTS=»-i eth0″":       {"f:1: '»' (U+00BB)", "f:1: '″' (U+2033)"},
		"A=1\r\n\nB=“-i eth0“ ‘-v‘\r": {"f:3: '“' (U+201C)", "f:3: '‘' (U+2018)"},
		"# »\n \t# ″\nB=\"–i eth0\"":  {"f:3: '–' (U+2013)"},
		"B=-i\u00a0eth0":              {"f:1: '\\u00a0' (U+00A0)"},
		"B=\"\xff\" é":                nil,
	} {
		got := oddOptions("f", text)
		good := len(got) == len(want)
		for i := range min(len(got), len(want)) {
			good = good && strings.HasPrefix(got[i].Text, want[i]+" is a typographic character") && strings.HasPrefix(got[i].Advice, "write ")
		}
		if !good {
			t.Errorf("%q gives %+v, want %q", text, got, want)
		}
	}
}

// TestWhichOptionsMustBeThere: what was named, and the usual file only if it is there.
func TestWhichOptionsMustBeThere(t *testing.T) {
	dir := t.TempDir()
	none, odd := filepath.Join(dir, "none"), filepath.Join(dir, "odd")
	if err := os.WriteFile(odd, []byte("KNOCKD_OPTS=»-i eth0»\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ named, usual, want string }{
		{"", none, ""}, {none, odd, "was not looked at: open " + none}, {"", dir, "was not looked at: read " + dir},
		{"", odd, odd + ":1: "}, {odd, none, odd + ":1: "},
	} {
		var said string
		if got := lookAtDefaults(test.named, test.usual); len(got) > 0 {
			said = got[0].Text
		}
		if (said == "") != (test.want == "") || !strings.Contains(said, test.want) {
			t.Errorf("%q and %q: %q, want %q", test.named, test.usual, said, test.want)
		}
	}
}
