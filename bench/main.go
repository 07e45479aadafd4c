// Command bench measures what Sallyport promises of speed and size, beside
// Debian's knockd and fwknopd, in one run on one machine. It prints; it is no
// test. All traffic stays in network namespaces of its own. The exit status is 0 when
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

	"github.com/sallyport/sallyport/internal/testnet"
	"golang.org/x/sys/unix"
)

// wholeRun bounds the run. Each part is bounded by counts of its own, so this
// only ends what hangs.
const wholeRun = 20 * time.Minute

// part is a group of figures that -only can name.
type part struct {
	name  string
	f     func(*bench)
	asked bool // only when -only names it
}

// parts is all of them, in the order of their printing.
var parts = []part{
	{name: "open", f: (*bench).open},
	{name: "packet", f: (*bench).packet},
	{name: "memory", f: (*bench).memory},
	{name: "flood", f: (*bench).flood},
	{name: "knockd", f: (*bench).knockdPart},
	{name: "spa-gate", f: (*bench).gate},
	{name: "spa-requests", f: (*bench).requests},
	{name: "spa-open", f: (*bench).spaOpen},
	{name: "spa-flood", f: (*bench).spaFlood},
	// No figure of speed or size: 'make loss'.
	{name: "loss", f: (*bench).loss, asked: true},
}

func main() {
	only := flag.String("only", partNames(), "the parts to run, separated by commas; there is loss too")
	tries := flag.Int("tries", lossTries, "for the part loss: tries of each cell, 2 to "+strconv.Itoa(lossTries))
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
	if *tries < 2 || *tries > lossTries {
		usage("%d tries are too few or too many: it takes 2 to %d", *tries, lossTries)
	}
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "bench: needs root, to make network namespaces (your firewall is not touched): run 'sudo make bench'")
		os.Exit(1)
	}
	os.Exit(measure(flag.Arg(0), chosen, *tries))
}

func partNames() string {
	var names []string
	for _, p := range parts {
		if !p.asked {
			names = append(names, p.name)
		}
	}
	return strings.Join(names, ",")
}

// measure runs the chosen parts and gives the exit status.
func measure(program string, chosen []string, tries int) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, wholeRun)
	defer cancel()
	b := &bench{ctx: ctx, program: program, tries: tries}
	if err := prefer(); err != nil {
		fmt.Fprintln(os.Stderr, "bench: the highest priority is refused, so other programs will show in the figures:", err)
	}
	fmt.Print(machine())
	for _, p := range parts {
		if slices.Contains(chosen, p.name) && b.Failure == "" {
			b.Run(func() {
				defer b.CleanUp()
				p.f(b)
			})
		}
	}
	if b.Failure != "" {
		fmt.Fprintln(os.Stderr, "bench: "+b.Failure)
		return 1
	}
	if b.met+b.missed > 0 {
		fmt.Printf("\n%d aims met, %d missed\n", b.met, b.missed)
	}
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
// has a session of its own. Nothing is to do in a kernel without autogroups
// (ENOENT), nor for a process in the root one (EINVAL), where an init and all that it
// started without setsid(2) are.
func preferSession(pid int) error {
	err := os.WriteFile(fmt.Sprintf("/proc/%d/autogroup", pid), []byte("-20"), 0)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.EINVAL) {
		return nil
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
	testnet.Program
	ctx         context.Context // ends at Ctrl-C and when the time is over
	program     string          // path of the sallyport binary
	tries       int             // of each cell of the part loss
	met, missed int
}

// interrupted ends the run where nothing is half made.
func (b *bench) interrupted() {
	if b.ctx.Err() != nil {
		b.Fatal("interrupted, or not done after ", wholeRun)
	}
}
