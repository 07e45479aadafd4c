package authorized

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"
	"unicode"

	"github.com/google/go-cmp/cmp"
)

// Whatever a file holds: no line gets lost, what is read has one meaning, and
// what is said about it fits into a log.
func FuzzParse(f *testing.F) {
	if seeds, _ := filepath.Glob("testdata/fuzz/FuzzParse/*"); len(seeds) < 10 {
		f.Fatalf("%d seeds", len(seeds))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		keys, faults := Parse(text)
		if len(text) < MaxSize && len(faults) < maxFaults && len(keys)+len(faults) != countLines(text) {
			t.Errorf("%d lines became %d keys and %d errors", countLines(text), len(keys), len(faults))
		}
		for _, k := range keys {
			again, faults := Parse([]byte(canonical(k)))
			if len(again) != 1 {
				t.Fatalf("%q does not read back: %v", canonical(k), faults)
			}
			again[0].Line = k.Line
			if diff := cmp.Diff(k, again[0], equal...); diff != "" {
				t.Errorf("%q reads back as another key:\n%s", canonical(k), diff)
			}
		}
		for _, e := range faults {
			if strings.ContainsFunc(e.Error(), func(r rune) bool { return !unicode.IsPrint(r) }) || len(e.Text) > 300 {
				t.Errorf("an error does not fit into a log: %q", e.Error())
			}
		}
	})
}

// countLines counts the lines that should say something.
func countLines(text []byte) (n int) {
	for line := range bytes.SplitSeq(text, []byte("\n")) {
		line = bytes.TrimLeft(line, " \t")
		if len(bytes.Trim(line, "\r")) > 0 && line[0] != '#' {
			n++
		}
	}
	return n
}
