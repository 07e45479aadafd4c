//go:build linux

package run

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// A tool gets its input and two variables, and nothing that it says reaches an error
// as it is.
func TestTool(t *testing.T) {
	t.Setenv("OURS", "5c7f")
	for _, c := range []struct{ name, input, shell, want, fault string }{
		{"input", "a\nb", "cat", "a\nb", ""},
		{"input that nobody reads", strings.Repeat("x", 1<<20), "echo done", "done\n", ""},
		{"environment", "", "tr '\\0' '\\n' </proc/$$/environ; pwd", "PATH=" + defaultPath + "\nLC_ALL=C\n/\n", ""},
		{"complaint", "", "printf '\\033[2J\\nbad' >&2; exit 3", "", `sh ended with status 3 and said "\x1b[2J bad"`},
		{"a long complaint", "", "head -c 1000 /dev/zero | tr '\\0' x >&2; exit 1", "", `said "` + strings.Repeat("x", maxComplaint) + `"`},
		{"much", "", "head -c 5000000 /dev/zero", strings.Repeat("\x00", 5000000), ""},
		{"too much", "", fmt.Sprintf("head -c %d /dev/zero", maxOutput+1), "", "it said more than"},
	} {
		began := time.Now()
		out, err := Tool(c.input, "/bin/sh", "-c", c.shell)
		if out != c.want || (err == nil) != (c.fault == "") || err != nil && !strings.Contains(err.Error(), c.fault) {
			t.Errorf("%s: %d bytes, %.40q, %v", c.name, len(out), out, err)
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("%s took %v", c.name, took)
		}
	}
	if _, err := Tool("", "/nonexistent/tool"); err == nil {
		t.Error("what is not there ran")
	}
}
