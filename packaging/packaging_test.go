// Package packaging_test installs, removes and confines the program as its
// package does.
package packaging_test

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sallyport/sallyport/internal/testnet"
)

// run makes a target of the real Makefile, with a program that is built already
// and a strict umask, which must not make the manual unreadable.
func run(t *testing.T, dest, target string, variables ...string) {
	t.Helper()
	args := []string{"-c", `umask 077 && exec make -C .. "$@"`, "sh", target, "DESTDIR=" + dest, "PROGRAM=" + testnet.Binary(t)}
	cmd := exec.Command("sh", append(args, variables...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("make %s: %v\n%s", target, err, out)
	}
}

// tree lists what is below a directory: mode and name, a line each.
func tree(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		info, err := d.Info()
		name, _ := filepath.Rel(dir, path)
		fmt.Fprintf(&b, "%v %s\n", info.Mode(), name)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestInstall(t *testing.T) {
	dest := t.TempDir()
	run(t, dest, "install")
	want, err := os.ReadFile("testdata/installed.txt")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), tree(t, dest)); diff != "" {
		t.Errorf("installed (-testdata/installed.txt +make install):\n%s", diff)
	}
	run(t, dest, "uninstall")
	for line := range strings.Lines(tree(t, dest)) {
		if !strings.HasPrefix(line, "d") || strings.Contains(line, "sallyport") {
			t.Errorf("left behind by make uninstall: %s", line)
		}
	}
}

// TestConfigIsKept: neither target touches what the administrator wrote.
func TestConfigIsKept(t *testing.T) {
	dest := t.TempDir()
	own := filepath.Join(dest, "etc/sallyport/sallyport.toml")
	if err := os.MkdirAll(filepath.Dir(own), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(own, []byte("# mine\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, dest, "install")
	run(t, dest, "uninstall")
	if got, err := os.ReadFile(own); err != nil || string(got) != "# mine\n" {
		t.Errorf("the config is now %q, %v", got, err)
	}
}

func TestPrefix(t *testing.T) {
	dest := t.TempDir()
	run(t, dest, "install", "PREFIX=/usr/local")
	for _, name := range []string{"sallyport.service", "sallyport-hide.service"} {
		unit := readUnit(t, filepath.Join(dest, "usr/local/lib/systemd/system", name))
		if start := unit["ExecStart"]; len(start) == 0 || start[0] != "/usr/local/bin/sallyport" {
			t.Errorf("%s starts %q", name, start)
		}
	}
}

// tool skips a test where a program is missing that only root can install.
func tool(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil && os.Geteuid() != 0 {
		t.Skipf("needs %s, which only root can install", name)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func TestUnitsAreValid(t *testing.T) {
	analyze := tool(t, "systemd-analyze")
	dest := t.TempDir()
	run(t, dest, "install")
	for name, exposure := range map[string]string{"sallyport.service": "35", "sallyport-hide.service": "20"} {
		path := filepath.Join(dest, "usr/lib/systemd/system", name)
		// verify looks for the program where the unit says it is.
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		local := strings.ReplaceAll(string(text), "/usr/bin/sallyport", filepath.Join(dest, "usr/bin/sallyport"))
		if err := os.WriteFile(path, []byte(local), 0o644); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(analyze, "verify", "--man=no", path).CombinedOutput()
		if err != nil || len(out) > 0 {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
		// In tenths, of 100: what systemd itself thinks of the confinement.
		out, err = exec.Command(analyze, "security", "--offline=true", "--no-pager", "--threshold="+exposure, path).CombinedOutput()
		if err != nil {
			t.Errorf("%s: its exposure is above %s: %v\n%s", name, exposure, err, out)
		}
	}
}

func TestUserIsMade(t *testing.T) {
	sysusers := tool(t, "systemd-sysusers")
	dest := t.TempDir()
	run(t, dest, "install")
	if out, err := exec.Command(sysusers, "--root="+dest, "sallyport.conf").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	passwd, err := os.ReadFile(filepath.Join(dest, "etc/passwd"))
	if err != nil {
		t.Fatal(err)
	}
	line := string(passwd)
	if !strings.HasPrefix(line, "sallyport:") || !strings.HasSuffix(line, ":/:/usr/sbin/nologin\n") {
		t.Errorf("the engine's user is %q; it must have no home and no shell", line)
	}
}
