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
	"syscall"
	"time"

	"github.com/sallyport/sallyport/internal/testnet"
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
	d.Word = d.tellStep
	d.Run(func() {
		defer d.CleanUp()
		d.play()
	})
	d.Run(d.nothingLeft)
	if d.Failure != "" {
		fmt.Fprintf(os.Stderr, "demo: %s\n", d.Failure)
		os.Exit(1)
	}
	fmt.Print(realServer)
}

// realServer is what a person does next.
const realServer = `
On a real server, as root; nothing here can lock you out ('man 8 sallyport'):
  make install && systemd-sysusers && systemctl daemon-reload
  cd /etc/sallyport && cp sallyport.toml.example sallyport.toml
  sallyport keygen --out server.key  # it says what to put into sallyport.toml
  sallyport check                    # what the config means, and its weak spots
  sallyport invite                   # what a user types; it prints their key
  sallyport serve --observe          # knock: it says what it would open
  sallyport serve --undo-after 60s   # knock, log in from elsewhere, and there:
  sallyport confirm                  # or the minute ends and nothing is hidden
  systemctl enable --now sallyport   # after Ctrl-C; from now on at boot too
`

// demo is one run. It is the testnet.TB of its own namespaces: what fails there
// fails the step that is under way.
type demo struct {
	testnet.Program
	ctx     context.Context // ends at Ctrl-C
	out     io.Writer
	program string // path of the sallyport binary
	began   time.Time

	step  string    // the one under way
	since time.Time // its beginning, or the fact before

	world
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

// tellStep says of a failure which step did not happen.
func (d *demo) tellStep(failure string) string {
	if d.ctx.Err() != nil {
		// What a Ctrl-C did to the programs we run is no failure of theirs.
		return fmt.Sprintf("interrupted in the step '%s'", d.step)
	}
	return fmt.Sprintf("the step '%s' did not happen: %s", d.step, failure)
}

// pollEvery is how finely a wait is measured.
const pollEvery = time.Millisecond
