// Command bench measures what Sallyport promises of speed and size, beside
// Debian's knockd, in one run on one machine. It prints; it is no test. All
// traffic stays in network namespaces of its own. The exit status is 0 when
// everything was measured, whether the aims were met or not, 1 when something
// could not be measured, 2 for a wrong command line.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// wholeRun bounds the run. Each part is bounded by counts of its own, so this
// only ends what hangs.
const wholeRun = 4 * time.Minute

// part is a group of figures that -only can name.
type part struct {
	name string
	f    func(*bench)
}

// parts is all of them, in the order of their printing.
var parts = []part{
	{"open", (*bench).open},
	{"packet", (*bench).packet},
	{"memory", (*bench).memory},
	{"flood", (*bench).flood},
}

func main() {
	only := flag.String("only", "open,packet,memory,flood", "the parts to run, separated by commas")
	flag.Parse()
	chosen := strings.Split(*only, ",")
	for _, name := range chosen {
		if !slices.ContainsFunc(parts, func(p part) bool { return p.name == name }) {
			usage("there is no part %q", name)
		}
	}
	if flag.NArg() != 1 {
		usage("give one argument, the path of the sallyport program: 'make bench' builds it and does that")
	}
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "bench: needs root, to make network namespaces (your firewall is not touched): run 'sudo make bench'")
		os.Exit(1)
	}
	os.Exit(measure(flag.Arg(0), chosen))
}

// measure runs the chosen parts and gives the exit status.
func measure(program string, chosen []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, wholeRun)
	defer cancel()
	b := &bench{ctx: ctx, program: program}
	if err := prefer(); err != nil {
		fmt.Fprintln(os.Stderr, "bench: the highest priority is refused, so other programs will show in the figures:", err)
	}
	fmt.Print(machine())
	for _, p := range parts {
		if slices.Contains(chosen, p.name) && b.failure == "" {
			b.run(func() {
				defer b.cleanUp()
				p.f(b)
			})
		}
	}
	if b.failure != "" {
		fmt.Fprintln(os.Stderr, "bench: "+b.failure)
		return 1
	}
	fmt.Printf("\n%d aims met, %d missed\n", b.met, b.missed)
	return 0
}

func usage(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "bench: "+format+"\n", args...)
	os.Exit(2)
}

// prefer gives this program the highest priority of ordinary ones, and so all
// that it starts, both daemons alike: what else runs on this machine is not to
// be measured. Linux keeps a priority for each thread (setpriority(2)).
func prefer() error {
	threads, err := os.ReadDir("/proc/self/task")
	for _, t := range threads {
		id, _ := strconv.Atoi(t.Name())
		err = errors.Join(err, unix.Setpriority(unix.PRIO_PROCESS, id, -20))
	}
	return errors.Join(err, preferSession(os.Getpid()))
}

// preferSession does the same for a process's session. The kernel shares time
// out among sessions first where autogroups are on (sched(7)), and our engine
// has a session of its own.
func preferSession(pid int) error {
	err := os.WriteFile(fmt.Sprintf("/proc/%d/autogroup", pid), []byte("-20"), 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil // a kernel without
	}
	return err
}

// machine says what the figures belong to; load from elsewhere widens the tails.
func machine() string {
	var u unix.Utsname
	unix.Uname(&u)
	load, _ := os.ReadFile("/proc/loadavg")
	return fmt.Sprintf("Linux %s, %d processors, %s; load before the run: %s%s", unix.ByteSliceToString(u.Release[:]), runtime.NumCPU(), runtime.Version(), load,
		"All that is measured runs at the highest ordinary priority; what else runs still shows in p99 and capture drops.\n")
}

// bench is one run. It is the testnet.TB of its namespaces.
type bench struct {
	ctx         context.Context // ends at Ctrl-C and when the time is over
	program     string          // path of the sallyport binary
	failure     string          // the first; empty: none
	cleanups    []func()
	met, missed int
}

// run runs f to its end, which may be FailNow: Goexit ends a goroutine with its
// deferred calls, and would leave main hanging.
func (b *bench) run(f func()) {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		f()
	}()
	<-ended
}

// interrupted ends the run where nothing is half made.
func (b *bench) interrupted() {
	if b.ctx.Err() != nil {
		b.Fatal("interrupted, or not done after ", wholeRun)
	}
}

func (b *bench) cleanUp() {
	for len(b.cleanups) > 0 {
		last := len(b.cleanups) - 1
		f := b.cleanups[last]
		b.cleanups = b.cleanups[:last] // first: a clean-up that fails is not begun again
		f()
	}
}

// Helper is for tests that count lines.
func (b *bench) Helper() {}

// Errorf marks the run as failed; it goes on.
func (b *bench) Errorf(format string, args ...any) {
	if b.failure == "" {
		b.failure = fmt.Sprintf(format, args...)
	}
}

// Fatal ends the run.
func (b *bench) Fatal(args ...any) {
	b.Errorf("%s", fmt.Sprint(args...))
	b.FailNow()
}

// Fatalf ends the run.
func (b *bench) Fatalf(format string, args ...any) {
	b.Errorf(format, args...)
	b.FailNow()
}

// Failed reports whether the run failed.
func (b *bench) Failed() bool { return b.failure != "" }

// FailNow ends the goroutine of run, with its deferred calls.
func (b *bench) FailNow() { runtime.Goexit() }

// Skip is never right here: a figure that is missing is a failure.
func (b *bench) Skip(args ...any) { b.Fatal(args...) }

// Cleanup has f called when the part ends.
func (b *bench) Cleanup(f func()) { b.cleanups = append(b.cleanups, f) }
