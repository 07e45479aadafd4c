// Command demo shows Sallyport's main job on this machine: the real daemon
// guards a real TCP service in a private network namespace, and a client and a
// stranger meet it from two others. It prints each fact as it happens, touches
// no firewall but its own namespace's, and leaves nothing behind. The exit
// status is 0, 1 for a step that did not happen, 2 for a wrong command line.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "demo: give one argument, the path of the sallyport program: 'make run' builds it and does that")
		os.Exit(2)
	}
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "demo: needs root, to make network namespaces (your firewall is not touched): run 'sudo make run'")
		os.Exit(1)
	}
	// A reader of ours that goes away must not end us before the clean-up, so
	// SIGPIPE is here too.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	defer stop()
	d := &demo{ctx: ctx, out: os.Stdout, program: os.Args[1], began: time.Now()}
	d.run(func() {
		defer d.cleanUp()
		d.play()
	})
	d.run(d.nothingLeft)
	if d.failure != "" {
		fmt.Fprintf(os.Stderr, "demo: %s\n", d.failure)
		os.Exit(1)
	}
	fmt.Print(realServer)
}

// realServer is what a person does next.
const realServer = `
On a real server, as root; nothing here can lock you out ('man 8 sallyport'):
  make install && systemd-sysusers && systemctl daemon-reload
  cd /etc/sallyport && cp sallyport.toml.example sallyport.toml
  sallyport keygen --sequence       # for sallyport.toml: a sequence of your own
  sallyport check                   # what the config means, and its weak spots
  sallyport serve --observe         # knock: it says what it would open
  sallyport serve --undo-after 60s  # knock, log in from elsewhere, and there:
  sallyport confirm                 # or the minute ends and nothing is hidden
  systemctl enable --now sallyport  # after Ctrl-C; from now on at boot too
`

// demo is one run. It is the testnet.TB of its own namespaces: what fails there
// fails the step that is under way.
type demo struct {
	ctx     context.Context // ends at Ctrl-C
	out     io.Writer
	program string // path of the sallyport binary
	began   time.Time

	step     string    // the one under way
	since    time.Time // its beginning, or the fact before
	failure  string    // the first; empty: none
	cleanups []func()

	world
}

// run runs f to its end, which may be FailNow: Goexit ends a goroutine with its
// deferred calls, and would leave main hanging.
func (d *demo) run(f func()) {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		f()
	}()
	<-ended
}

// begin names the step that is under way and starts its clock.
func (d *demo) begin(step string) {
	d.interrupted()
	d.step, d.since = step, time.Now()
}

// interrupted ends the run if Ctrl-C was pressed. It is called between steps
// and in every wait, where nothing is half made.
func (d *demo) interrupted() {
	if d.ctx.Err() != nil {
		d.Fatal("interrupted")
	}
}

// fact prints what happened, with the time it took.
func (d *demo) fact(format string, args ...any) {
	fmt.Fprintf(d.out, "%9s  %-8s  %s\n", took(time.Since(d.since)), d.step, fmt.Sprintf(format, args...))
	d.since = time.Now()
}

// took gives a duration in the unit that people compare: milliseconds, and
// seconds from one on.
func took(t time.Duration) string {
	if t < time.Second {
		return fmt.Sprintf("%.2f ms", t.Seconds()*1000)
	}
	return fmt.Sprintf("%.2f s", t.Seconds())
}

// await polls until done, for at most limit, and says whether it was.
func (d *demo) await(limit time.Duration, done func() bool) bool {
	for end := time.Now().Add(limit); !done(); time.Sleep(pollEvery) {
		d.interrupted()
		if time.Now().After(end) {
			return false
		}
	}
	return true
}

// pollEvery is how finely a wait is measured.
const pollEvery = time.Millisecond

func (d *demo) cleanUp() {
	for len(d.cleanups) > 0 {
		last := len(d.cleanups) - 1
		f := d.cleanups[last]
		d.cleanups = d.cleanups[:last] // first: a clean-up that fails is not begun again
		f()
	}
}

// Helper is for tests that count lines.
func (d *demo) Helper() {}

// Errorf marks the step under way as one that did not happen.
func (d *demo) Errorf(format string, args ...any) {
	switch {
	case d.failure != "":
	case d.ctx.Err() != nil:
		// What a Ctrl-C did to the programs we run is no failure of theirs.
		d.failure = fmt.Sprintf("interrupted in the step '%s'", d.step)
	default:
		d.failure = fmt.Sprintf("the step '%s' did not happen: %s", d.step, fmt.Sprintf(format, args...))
	}
}

// Fatal is Errorf and FailNow.
func (d *demo) Fatal(args ...any) { d.Fatalf("%s", fmt.Sprint(args...)) }

// Fatalf is Errorf and FailNow.
func (d *demo) Fatalf(format string, args ...any) {
	d.Errorf(format, args...)
	d.FailNow()
}

// Failed reports whether a step did not happen.
func (d *demo) Failed() bool { return d.failure != "" }

// FailNow ends the run; what was made so far is cleaned up.
func (d *demo) FailNow() { runtime.Goexit() }

// Skip is Fatal: here nothing may be left out.
func (d *demo) Skip(args ...any) { d.Fatal(args...) }

// Cleanup has f called at the end of the run, the last one first.
func (d *demo) Cleanup(f func()) { d.cleanups = append(d.cleanups, f) }
