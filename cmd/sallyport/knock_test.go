package main

import (
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/sallyport/sallyport"
)

// The client is for every system; the compiler and vet are what can be asked
// about the others here.
func TestTheClientBuildsElsewhere(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: compiling the standard library for two more systems takes a while")
	}
	for _, system := range []string{"darwin", "windows"} {
		cmd := exec.Command("go", "vet", "../..", ".")
		cmd.Env = append(os.Environ(), "GOOS="+system, "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("GOOS=%s: %v\n%s", system, err, out)
		}
	}
}

// kong wants the defaults as text.
func TestDefaultsAreThePackages(t *testing.T) {
	if sallyport.DefaultDelay != 20*time.Millisecond || sallyport.DefaultTimeout != 30*time.Second {
		t.Error("change the defaults of knockCmd as well")
	}
}
