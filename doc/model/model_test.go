// Package model_test searches the model of the SPA exchange, in its small form.
package model_test

import (
	"context"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// No replay opens anything twice, whatever crashes; and each rule of the freshness
// is needed: check fails where one can be taken out and nothing breaks.
func TestModel(t *testing.T) {
	for _, tool := range []string{"spin", "cc"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s: it searches the model", tool)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "./check", "quick")
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("check quick: %v\n%s", err, out)
	}
	// A script that stops early must not pass.
	if runs := strings.Count(string(out), " states "); runs < 45 {
		t.Errorf("%d searches, want at least 45:\n%s", runs, out)
	}
	t.Logf("%s", out)
}
