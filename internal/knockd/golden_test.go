package knockd

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files anew")

// TestGolden reads knockd.conf files as people write them. What is expected stands
// beside each: the normal form and the warnings, or the faults.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.conf")
	if err != nil || len(files) < 10 {
		t.Fatalf("%d files in testdata: %v", len(files), err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got, golden := outcome(text), strings.TrimSuffix(file, ".conf")+".ok"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil || got != string(want) {
				t.Errorf("%s (%v): got\n%s", golden, err, got)
			}
		})
	}
}

// outcome is what a golden file holds.
func outcome(text []byte) string {
	f, err := Parse("/etc/knockd.conf", text)
	if err != nil {
		return err.Error() + "\n"
	}
	var b strings.Builder
	for _, w := range f.Warnings {
		fmt.Fprintf(&b, "# %d: %s\n#    %s\n", w.Line, w.Text, w.Advice)
	}
	fmt.Fprintf(&b, "# syslog %v, log file %q, pid file %q\n\n", f.UseSyslog, f.LogFile, f.PidFile)
	b.WriteString(f.Config(Settings{}).Format())
	return b.String()
}
