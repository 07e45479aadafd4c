//go:build linux

// Package sandbox is the engine's cage, seen from inside: it gives up what the
// engine can still give up itself, and then tries everything that it gave up.
// What a stranger's packet could make of the engine must not reach further
// than the descriptors that the warden handed in.
package sandbox

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Files are the numbers of the inherited descriptors. 0 and 1 are /dev/null, 2
// is the log; no number below 3 stands for any of these.
type Files struct {
	Border  int    // the SOCK_SEQPACKET socket to the warden
	Capture int    // the packet socket, or -1 where packets come from elsewhere
	Journal [2]int // files that outlive the engine, open for writing; -1: none
	Sockets []int  // UDP sockets that are read instead of Capture
	NFLOG   int    // the netlink socket of a group that is read instead
	Log     int    // the pipe that lines of a log come through instead
}

// journals gives the journal's descriptors, of which there may be none. 0 is
// /dev/null and no journal, so that a Files that names none allows nothing.
func (f Files) journals() []int {
	return slices.DeleteFunc(f.Journal[:], func(fd int) bool { return fd <= 2 })
}

// packets gives the sockets that strangers' packets come in by.
func (f Files) packets() []int {
	var list []int
	if f.Capture > 2 {
		list = append(list, f.Capture)
	}
	if f.NFLOG > 2 {
		list = append(list, f.NFLOG)
	}
	return append(list, f.Sockets...)
}

// logs gives the pipe of a log, if there is one.
func (f Files) logs() []int {
	if f.Log <= 2 {
		return nil
	}
	return []int{f.Log}
}

// all gives every descriptor that the engine inherited.
func (f Files) all() []int {
	return slices.Concat([]int{0, 1, 2, f.Border}, f.packets(), f.logs(), f.journals())
}

// Proof is what the engine found about one part of its cage.
type Proof struct {
	Part   string // a constant, lower case
	Proven bool   // false: absent, which is worse but no reason to stop
	Why    string // a constant: what was tried and what it gave
}

// Report lists every part of both layers, in the order that they were tried.
type Report []Proof

// Enter confines the whole process for good. It must be the first thing that
// the engine does, before any goroutine or timer of its own. It returns an
// error that names the part if a part of layer A is missing: not root and no
// capability, no other descriptors, no_new_privs, landlock, seccomp. The
// engine must not read a packet then. What is missing of layer B stands in the
// report. Afterwards the process can read and write what it has, start threads
// and get memory, and nothing else: every other system call gives EPERM.
func Enter(fds Files) (Report, error) { return enter(fds, rules(fds)) }

func enter(fds Files, allow []rule) (Report, error) {
	// no_new_privs belongs to a thread; seccomp then spreads it from this one.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var report Report
	for _, part := range []struct {
		name, why string
		f         func() error
	}{
		{"no privilege", "no uid or gid is 0 and every capability set in force is empty", unprivileged},
		{"descriptors", "nothing above the given ones is open", func() error { return onlyGiven(fds) }},
	} {
		if err := part.f(); err != nil {
			return nil, fmt.Errorf("sandbox: %s: %w", part.name, err)
		}
		report = append(report, Proof{part.name, true, part.why})
	}
	report = append(report, surroundings(fds)...)
	startPoller()
	for _, part := range []struct {
		name, why string
		f         func() error
	}{
		{"limits", "no core file, no file but the journal grows, few descriptors", func() error { return limit(fds) }},
		{"no_new_privs", "the kernel says that it is on", noNewPrivs},
		{"landlock", "opening / gave EACCES", landlocked},
		{"seccomp", "every call given up was tried, on every descriptor, and gave EPERM", func() error {
			if err := install(program(allow)); err != nil {
				return err
			}
			return tryEverything(fds)
		}},
	} {
		if err := part.f(); err != nil {
			return nil, fmt.Errorf("sandbox: %s: %w", part.name, err)
		}
		report = append(report, Proof{part.name, true, part.why})
	}
	return report, nil
}

// maxJournal bounds a journal in bytes: a header of 64 and the 8,388,608 records
// of 64 that package replay reads at most. A hijacked engine can fill two such
// files and not the whole disk of the state directory.
const maxJournal = 64 + 64*8<<20

// startPoller makes the runtime create its epoll and event descriptors, which
// it does at the first timer, while it still may.
func startPoller() { time.AfterFunc(time.Hour, func() {}).Stop() }

// limit lowers what the engine may use. The limits on memory are the service
// manager's: Go reserves far more address space than it uses.
func limit(fds Files) error {
	unix.Umask(0o777)
	type resource struct {
		name string
		what int
		max  uint64
	}
	var growth uint64 // no file may grow
	if len(fds.journals()) > 0 {
		growth = maxJournal
	}
	list := []resource{
		{"RLIMIT_CORE", unix.RLIMIT_CORE, 0}, // a core file would hold every secret
		{"RLIMIT_FSIZE", unix.RLIMIT_FSIZE, growth},
		{"RLIMIT_NOFILE", unix.RLIMIT_NOFILE, 64},
	}
	if ownUser(fds) {
		// It counts the threads of every process of the uid, so it fits only an
		// own one: Go needs about ten, and two daemons may share the fallback.
		list = append(list, resource{"RLIMIT_NPROC", unix.RLIMIT_NPROC, 256})
	}
	for _, l := range list {
		if err := unix.Setrlimit(l.what, &unix.Rlimit{Cur: l.max, Max: l.max}); err != nil {
			return fmt.Errorf("%s could not be lowered: %w", l.name, err)
		}
	}
	// Not dumpable: another process of this uid cannot trace the engine or
	// read its memory (ptrace(2), prctl(2)).
	return unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
}

func noNewPrivs() error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	if on, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0); err != nil || on != 1 {
		return errors.New("the kernel says that it is off")
	}
	return nil
}
