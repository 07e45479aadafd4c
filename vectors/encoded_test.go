package vectors_test

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sallyport/sallyport/vectors"
)

// A decoder that shares no code with Sallyport agrees about every message.
func TestEncodedDecoder(t *testing.T) {
	if _, err := exec.LookPath("node"); err != nil {
		missing(t, "node")
	}
	all, err := vectors.Messages()
	if err != nil {
		t.Fatal(err)
	}
	want, got := map[string]string{}, map[string]string{}
	for name, m := range all {
		want[name] = m.Get("expect")
	}
	out, err := limited(t, "node", absolute(t, "encoded.mjs"), absolute(t, "encoded")).CombinedOutput()
	if err != nil {
		t.Errorf("%v", err)
	}
	for line := range strings.Lines(string(out)) {
		name, verdict, _ := strings.Cut(strings.TrimSpace(line), ": ")
		got[name] = verdict
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-files +decoder:\n%s", diff)
	}
}
