package sallyport_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// goFor runs the go command for another system.
func goFor(t *testing.T, system, machine string, args ...string) {
	t.Helper()
	cmd := exec.Command("go", args...)
	cmd.Env = append(os.Environ(), "GOOS="+system, "GOARCH="+machine, "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%s: go %s: %v\n%s", system, strings.Join(args, " "), err, out)
	}
}

// The library is for every system, and the client for those that people sit at;
// the compiler and vet are what can be asked about most others here.
func TestWhatBuildsElsewhere(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: compiling the standard library for six more systems takes a while")
	}
	if runtime.GOOS != "linux" {
		t.Skip("once, on Linux, is enough")
	}
	for _, system := range []string{"darwin", "windows", "freebsd", "openbsd"} {
		goFor(t, system, "amd64", "vet", ".", "./cmd/sallyport")
	}
	goFor(t, "netbsd", "amd64", "vet", ".")
	goFor(t, "js", "wasm", "vet", ".")
}

// In a browser requests can be sealed, and Send says that it can't send them.
func TestTheLibraryRunsWithoutSockets(t *testing.T) {
	if testing.Short() || runtime.GOOS != "linux" {
		t.Skip("-short, or not Linux: it compiles the standard library once more")
	}
	if _, err := exec.LookPath("node"); err != nil {
		t.Skip("node, which runs wasm, is not here")
	}
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	exe := filepath.Join(strings.TrimSpace(string(root)), "lib", "wasm", "go_js_wasm_exec")
	goFor(t, "js", "wasm", "test", "-exec", exe, "-run", "TestWithoutSockets|Request|Stated", ".")
}
