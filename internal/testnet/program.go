package testnet

import (
	"fmt"
	"runtime"
)

// Program is the TB of a program that makes a private network as a test does.
// The zero value is ready.
type Program struct {
	// Word puts the first failure into the program's own words; nil leaves it.
	Word     func(failure string) string
	Failure  string // the first; empty: none
	cleanups []func()
}

// Run runs f to its end, which may be FailNow: Goexit ends a goroutine with its
// deferred calls, and would leave main hanging.
func (p *Program) Run(f func()) {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		f()
	}()
	<-ended
}

// CleanUp calls what Cleanup was given, the last one first.
func (p *Program) CleanUp() {
	for len(p.cleanups) > 0 {
		last := len(p.cleanups) - 1
		f := p.cleanups[last]
		p.cleanups = p.cleanups[:last] // first: a clean-up that fails is not begun again
		f()
	}
}

// Helper is for tests that count lines.
func (p *Program) Helper() {}

// Errorf notes a failure; the run goes on.
func (p *Program) Errorf(format string, args ...any) {
	if p.Failure != "" {
		return
	}
	if p.Failure = fmt.Sprintf(format, args...); p.Word != nil {
		p.Failure = p.Word(p.Failure)
	}
}

// Fatal notes a failure and ends the run.
func (p *Program) Fatal(args ...any) { p.Fatalf("%s", fmt.Sprint(args...)) }

// Fatalf notes a failure and ends the run.
func (p *Program) Fatalf(format string, args ...any) {
	p.Errorf(format, args...)
	p.FailNow()
}

// Failed reports whether anything failed.
func (p *Program) Failed() bool { return p.Failure != "" }

// FailNow ends the run, with its deferred calls.
func (p *Program) FailNow() { runtime.Goexit() }

// Skip is Fatal: a program may leave nothing out.
func (p *Program) Skip(args ...any) { p.Fatal(args...) }

// Cleanup has f called by CleanUp.
func (p *Program) Cleanup(f func()) { p.cleanups = append(p.cleanups, f) }
