//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/knockd"
	"github.com/sallyport/sallyport/internal/warden"
)

// knockdOptions are knockd's own, and ours beside them.
type knockdOptions struct {
	config         string
	pidFile        string // "": not said
	logFile        string // "": not said
	interfaces     []string
	background     bool
	debug, verbose bool
	lookup         bool
	ipv4Only       bool
	strict, native bool
	observe        bool          // serve --observe
	undoAfter      time.Duration // serve --undo-after
	args           []string      // as they were typed, under the name knockd
	version, help  bool          // the program only says something
}

// What the original does when nothing is said.
const (
	knockdConfig    = "/etc/knockd.conf"
	knockdPidFile   = "/var/run/knockd.pid"
	knockdInterface = "eth0"
)

// Letters of long options that have no short one.
const (
	strictLetter = 's' + 0x80
	nativeLetter = 'n' + 0x80
)

var knockdLong = []longOption{
	{"interface", 'i', true},
	{"daemon", 'd', false},
	{"config", 'c', true},
	{"debug", 'D', false},
	{"lookup", 'l', false},
	{"pidfile", 'p', true},
	{"logfile", 'g', true},
	{"verbose", 'v', false},
	{"only-ip-v4", '4', false},
	{"version", 'V', false},
	{"help", 'h', false},
	{"strict-knockd", strictLetter, false},
	{"native", nativeLetter, false},
}

const knockdUsage = `usage: knockd [options]
options:
  -i, --interface NAME   hear knocks on this interface only; may be repeated, or a
                         list with commas, or "any" (default: all interfaces)
  -d, --daemon           go into the background once knocks are heard
  -c, --config FILE      read this file (default ` + knockdConfig + `)
  -D, --debug            print the doors as they were read
  -l, --lookup           look names of addresses up for the log
  -p, --pidfile FILE     with -d: write the process id here (default ` + knockdPidFile + `)
  -g, --logfile FILE     append the log to this file
  -v, --verbose          print the log on standard output too
  -4, --only-ip-v4       hear no knocks over IPv6
      --native           let the kernel open and close ports where the commands are
                         known to do that
      --strict-knockd    follow the original's rules where these differ
  -V, --version          print the version
  -h, --help             print this
`

// parseKnockd reads knockd's command line. The error is glibc's text about it,
// after which only the usage is printed.
func parseKnockd(args []string) (o knockdOptions, err error) {
	found, _, err := getopt("knockd", args, "4vDdli:c:p:g:hV", knockdLong)
	o.config = knockdConfig
	for _, f := range found {
		switch f.letter {
		case 'i':
			o.interfaces = append(o.interfaces, interfaceNames(f.value)...)
		case 'd':
			o.background = true
		case 'c':
			o.config = f.value
		case 'D':
			o.debug = true
		case 'l':
			o.lookup = true
		case 'p':
			o.pidFile = f.value
		case 'g':
			o.logFile = f.value
		case 'v':
			o.verbose = true
		case '4':
			o.ipv4Only = true
		case strictLetter:
			o.strict = true
		case nativeLetter:
			o.native = true
		case 'V': // at once, whatever else is wrong behind it
			o.version = true
			return o, nil
		case 'h':
			o.help = true
			return o, nil
		}
	}
	return o, err
}

// interfaceNames splits a list with commas.
func interfaceNames(list string) (names []string) {
	for name := range strings.SplitSeq(list, ",") {
		if name = strings.TrimSpace(name); name != "" {
			names = append(names, name)
		}
	}
	return names
}

// runKnockd is the program under the name knockd. Its exit statuses are the
// original's: 0 for words only, also about a wrong option; 1 when it can't serve;
// the signal's number when it was told to end. But where the original ends with 0
// because it has lost its interface, this one ends with 1.
func runKnockd(u *ui, args []string) int {
	defer u.flush()
	o, err := parseKnockd(args)
	o.args = args
	switch {
	case err != nil:
		fmt.Fprintln(u.err, err)
		for _, odd := range typographic(args) {
			u.say("warning: %s", odd)
		}
		u.print("%s", knockdUsage)
		return exitDone
	case o.help:
		u.print("%s", knockdUsage)
		return exitDone
	case o.version:
		// Scripts compare the first two words.
		u.print("knockd 0.8 (sallyport %s)\n", versionText())
		return exitDone
	case o.background && !inBackground():
		return goBackground(u)
	}
	return o.run(u)
}

// run serves until a signal.
func (o *knockdOptions) run(u *ui) int {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	signals, ended := make(chan os.Signal, 1), make(chan syscall.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		ended <- (<-signals).(syscall.Signal)
		cancel()
	}()
	err := o.serve(ctx, u)
	if err != nil {
		u.say("%v", err)
		u.flush()
		if _, wrong := errors.AsType[fileError](err); wrong {
			u.print("%s", knockdUsage)
		}
		return exitFailed
	}
	return int(<-ended)
}

// fileError is what is wrong with a knockd.conf.
type fileError struct{ error }

// Unwrap gives the fault itself.
func (e fileError) Unwrap() error { return e.error }

// serve is the daemon, under either name. A nil error says that ctx ended.
func (o *knockdOptions) serve(ctx context.Context, u *ui) error {
	log := u.detach(underJournal())
	doors := &knockdDoors{options: o, log: newKnockdLog(u)}
	defer doors.log.flush()
	doors.slog = slog.New(slog.NewMultiHandler(log.Handler(), doors.log.handler()))
	if err := doors.open(); err != nil {
		return err
	}
	reload := make(chan os.Signal, 1)
	signal.Notify(reload, syscall.SIGHUP)
	var pidFile string
	err := warden.Serve(ctx, warden.Options{
		Config: o.config, Knockd: doors, Bare: doors.bare, Observe: o.observe, UndoAfter: o.undoAfter, Log: doors.slog,
		Ready: func() {
			doors.leave() // not before it hears knocks
			pidFile = doors.ready(u)
		},
	}, reload)
	removePid(pidFile)
	if err != nil {
		doors.log.record("sallyport: error: " + err.Error())
		return err
	}
	doors.log.verbose("closing...")
	doors.log.record("shutting down")
	return nil
}

// ready is called when knocks are heard. It gives the path of the file with the
// process id, if it wrote one.
func (k *knockdDoors) ready(u *ui) (pidFile string) {
	on := "any"
	if names := k.current().cfg.Daemon.Interfaces; len(names) > 0 {
		on = strings.Join(names, ",")
	}
	if k.options.background {
		path := k.pidFile()
		if err := writePid(path); err != nil {
			// It goes on, as the original does: without root it often can't be written.
			k.log.complain(fmt.Sprintf("could not create pid file %s: %v", path, errors.Unwrap(err)))
		} else {
			pidFile = path
		}
	}
	k.log.verbose("listening on " + on + "...")
	k.log.record("starting up, listening on " + on)
	if k.options.background {
		k.log.flush()
		u.flush()
		if err := leaveTerminal(); err != nil {
			k.slog.Warn("the daemon keeps the standard streams of whoever started it", "error", err)
		}
	}
	return pidFile
}

// pidFile is where the process id goes: what the command line says, else the file.
func (k *knockdDoors) pidFile() string {
	path := k.said(k.options.pidFile, k.current().file.PidFile)
	if path == "" {
		path = knockdPidFile
	}
	return filepath.Join("/", path) // as the original, which is in / by then
}

// said chooses between the command line and the file. The original lets the file
// win, by the order in which it reads them.
func (k *knockdDoors) said(line, file string) string {
	if line == "" || file != "" && k.options.strict {
		return file
	}
	return line
}

var errNoOrdinaryFile = errors.New("this is no ordinary file")

// openPid opens a pid file. Its path may lie where others can put something: a link to
// a file of root's is not followed, a named pipe is waited at for nobody, and what is
// no ordinary file is left as it is.
func openPid(path string, flags int) (*os.File, error) {
	f, err := os.OpenFile(path, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY, 0o644)
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		f.Close()
		return nil, &os.PathError{Op: "open", Path: path, Err: errNoOrdinaryFile}
	}
	return f, nil
}

func writePid(path string) error {
	f, err := openPid(path, os.O_WRONLY|os.O_CREATE)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, "%d\n", os.Getpid())
	return err
}

// removePid removes the file unless it is another daemon's by now.
func removePid(path string) {
	f, err := openPid(path, os.O_RDONLY)
	if err != nil {
		return
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxPid))
	if err == nil && strings.TrimSpace(string(text)) == strconv.Itoa(os.Getpid()) {
		os.Remove(path)
	}
}

// maxPid is more than a process id and its newline have, in bytes.
const maxPid = 32

// missing tells of interfaces that are not there. The original ends.
func (k *knockdDoors) missing(cfg *config.Config) error {
	for _, name := range cfg.Daemon.Interfaces {
		if _, err := net.InterfaceByName(name); err == nil {
			continue
		}
		if k.options.strict {
			return fmt.Errorf("could not open %s: there is no such interface; 'ip link' lists them", name)
		}
		k.slog.Warn("an interface is not there; its knocks are heard as soon as it appears, look at 'ip link' if the name is a slip", "interface", name)
	}
	return nil
}

// native says which doors the kernel serves. The others keep their commands.
func (k *knockdDoors) native(file *knockd.File, s knockd.Settings) (map[int]bool, error) {
	doors, blocked, err := nativeDoors(file, s)
	if err != nil {
		return nil, fmt.Errorf("--native: %w", err)
	}
	for _, i := range slices.Sorted(maps.Keys(blocked)) {
		k.slog.Warn("a door keeps its commands, because a rule of this host would drop what the kernel opened", "door", file.Doors[i].Name, "rule", blocked[i])
	}
	return doors, nil
}

// nativeDoors gives the doors that the kernel can serve, and for those of which a rule
// of this host would drop what it opens, the rule.
func nativeDoors(file *knockd.File, s knockd.Settings) (doors map[int]bool, blocked map[int]string, err error) {
	natives := file.Natives()
	s.Native = map[int]bool{}
	for _, n := range natives {
		if n.Why == "" {
			s.Native[n.Door] = true
		}
	}
	blocked = map[int]string{}
	if len(s.Native) == 0 {
		return s.Native, blocked, nil
	}
	blockers, err := warden.Blockers(file.Config(s))
	if err != nil {
		return s.Native, blocked, err
	}
	for _, n := range natives {
		for _, b := range blockers {
			if s.Native[n.Door] && slices.ContainsFunc(n.Ports, b.Port.Overlaps) {
				delete(s.Native, n.Door)
				blocked[n.Door] = b.String()
			}
		}
	}
	return s.Native, blocked, nil
}
