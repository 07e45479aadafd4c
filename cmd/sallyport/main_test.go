package main

import (
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestMain lets this test binary be the program: under its names it runs the real
// main.
func TestMain(m *testing.M) {
	testscript.Main(tests{m}, map[string]func(){"sallyport": main, "knockd": main, "knock": main})
}

// tests are followed by the removal of the program that was built for them.
type tests struct{ m *testing.M }

// TestStories runs each story of testdata. None of them needs a network.
func TestStories(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			env.Setenv("HOME", env.WorkDir)
			return os.MkdirAll(env.WorkDir, 0o755)
		},
	})
}
