//go:build linux

package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/knockd"
	"github.com/sallyport/sallyport/internal/warden"
)

// knockdDoors is what the warden knows of a knockd.conf: it reads the file, marks
// its one-time sequences and tells of its doors in knockd's words.
type knockdDoors struct {
	options *knockdOptions
	log     *knockdLog
	slog    *slog.Logger
	names   *names // of addresses; nil: they are not looked up
	dir     string // where it was started; it leaves that
	bare    bool   // no door can be the kernel's
	fresh   bool   // open has read the file and nobody has loaded it yet

	mu     sync.Mutex
	latest []reading // the newest last
}

// reading is a file and the config that was made of it.
type reading struct {
	file *knockd.File
	cfg  *config.Config
	set  knockd.Settings
}

// open reads the file for the first time and opens the log.
func (k *knockdDoors) open() (err error) {
	if k.dir, err = os.Getwd(); err != nil {
		return fmt.Errorf("the working directory: %w", err)
	}
	k.log.loud = k.options.verbose
	file, err := k.load(k.options.config)
	if err == nil {
		k.reopen(file) // before anything is warned of
	}
	for _, odd := range typographic(k.options.args) { // perhaps why another file was read
		k.slog.Warn(odd)
	}
	if err != nil {
		return err
	}
	k.warnOfWriters(file)
	r, err := k.settle(file)
	if err != nil {
		return err
	}
	if err := k.missing(r.cfg); err != nil {
		return err
	}
	if n := len(r.file.Warnings); n > 0 {
		k.slog.Info("some lines may not be meant as they stand; 'sallyport check --knockd' lists them", "config", k.options.config, "warnings", n)
	}
	k.bare, k.fresh = !k.options.native, true
	if len(r.cfg.Services) == 0 && k.options.undoAfter > 0 {
		k.slog.Warn("nothing is on trial: no door's commands can become the kernel's, so that nothing is hidden and nothing will be undone; 'sallyport check --knockd' says why")
	}
	k.use(r)
	if k.options.background {
		if err := os.Chdir("/"); err != nil {
			return err
		}
	}
	if k.options.lookup {
		k.names = startNames(k.slog)
	}
	return nil
}

// warnOfWriters tells of a file that is a way to become root.
func (k *knockdDoors) warnOfWriters(file *knockd.File) {
	if file.OthersWrite {
		k.slog.Warn("others on this machine can write to the config, and who can do that runs commands as root; chmod go-w it", "config", file.Name)
	}
}

// typographic names the characters that web pages make of ASCII, each once. An option
// behind such a dash or quote is an operand, which knockd passes over without a word.
func typographic(args []string) (words []string) {
	told := map[rune]bool{}
	for _, arg := range args {
		for _, r := range arg {
			if ascii, odd := config.ASCIIFor(r); odd && !told[r] {
				told[r] = true
				words = append(words, fmt.Sprintf("%q (%U) in the argument %q is a typographic character, as web pages and word processors make them, and does not do what it looks like; write %s instead", r, r, arg, ascii))
			}
		}
	}
	return words
}

func absolute(dir, path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(dir, path)
}

// load reads the file.
func (k *knockdDoors) load(path string) (*knockd.File, error) {
	file, err := knockd.Load(path)
	if err != nil {
		return nil, fileError{err}
	}
	// Its state directory follows from the name, and the daemon leaves its own.
	file.Name = absolute(k.dir, k.options.config)
	k.debug(file)
	return file, nil
}

// settle makes a config of the file.
func (k *knockdDoors) settle(file *knockd.File) (_ reading, err error) {
	o := k.options
	set := knockd.Settings{Interfaces: o.interfaces, IPv4Only: o.ipv4Only, Strict: o.strict}
	if o.strict && len(set.Interfaces) == 0 && len(file.Interfaces) == 0 {
		set.Interfaces = []string{knockdInterface}
	}
	if o.native {
		if set.Native, err = k.native(file, set); err != nil {
			return reading{}, err
		}
	}
	return reading{file, file.Config(set), set}, nil
}

// debug prints the doors as they were read, in the original's words.
func (k *knockdDoors) debug(file *knockd.File) {
	if !k.options.debug {
		return
	}
	for i := range file.Doors {
		d := &file.Doors[i]
		var steps []string
		for _, s := range d.Steps {
			steps = append(steps, fmt.Sprintf("%d:%s", s.Port, s.Proto))
		}
		k.log.print(fmt.Sprintf("config: new section: '%s'", d.Name))
		k.log.print(fmt.Sprintf("config: %s: sequence: %s", d.Name, strings.Join(steps, ",")))
		k.log.print(fmt.Sprintf("config: %s: seq_timeout: %d", d.Name, int(d.SeqTimeout.Seconds())))
		if d.Start != "" {
			k.log.print(fmt.Sprintf("config: %s: start_command: %s", d.Name, d.Start))
		}
		if d.Stop != "" {
			k.log.print(fmt.Sprintf("config: %s: cmd_timeout: %d", d.Name, int(d.CmdTimeout.Seconds())))
			k.log.print(fmt.Sprintf("config: %s: stop_command: %s", d.Name, d.Stop))
		}
	}
}

// use makes a reading the current one.
func (k *knockdDoors) use(r reading) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.keep(r)
}

// maxReadings is how many configs are remembered. The one in use may be an older one:
// each that is refused comes behind it.
const maxReadings = 64

func (k *knockdDoors) keep(r reading) {
	k.latest = append(k.latest, r)
	k.latest = k.latest[max(0, len(k.latest)-maxReadings):]
}

// current is the newest reading.
func (k *knockdDoors) current() reading {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.latest[len(k.latest)-1]
}

// reopen opens the log as the file and the command line say.
func (k *knockdDoors) reopen(file *knockd.File) {
	path := k.said(k.options.logFile, file.LogFile)
	if path != "" {
		path = absolute(k.dir, path)
	}
	if err := k.log.open(path, file.UseSyslog); err != nil {
		k.slog.Warn("the log file can't be opened, so the log lacks it", "error", err)
	}
}

// Load reads the file; from the second time on because of a SIGHUP.
func (k *knockdDoors) Load() (*config.Config, []byte, error) {
	if k.fresh {
		k.fresh = false
		return k.loaded(k.current())
	}
	k.log.verbose("re-reading config file: " + k.options.config)
	k.log.record("re-reading config file: " + k.options.config + "\n")
	file, err := k.load(absolute(k.dir, k.options.config))
	if err != nil {
		return nil, nil, err
	}
	r, err := k.settle(file)
	if err != nil {
		return nil, nil, err
	}
	if path := k.log.path(); path != "" {
		k.log.verbose("closing log file: " + path)
		k.log.verbose("re-opening log file: " + path)
		// The original says this while the file is closed, so only syslog has it.
		k.log.system("re-opening log file: " + path + "\n")
	}
	k.reopen(r.file)
	k.warnOfWriters(r.file)
	k.use(r)
	return k.loaded(r)
}

// mark begins the config that --native keeps for a boot, and says whose it is.
func (k *knockdDoors) mark() string {
	path := absolute(k.dir, k.options.config)
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real // it may be named in another way the next time
	}
	return fmt.Sprintf("# Hidden by knockd --native for %q; a start of it without --native ends that.\n", path)
}

// leave ends the hiding of an earlier start with --native. Its ports would stay shut,
// whatever the commands open.
func (k *knockdDoors) leave() {
	if !k.bare || k.options.observe {
		return
	}
	done, err := warden.Unhide(k.mark())
	if done {
		k.slog.Warn("the ports that an earlier start with --native hid are public again, as far as this host's own firewall lets them be")
	}
	if err != nil {
		k.slog.Error("ports are hidden by a sallyport that does not run, and what the commands open stays shut there; 'sallyport down' ends that", "error", err)
	}
}

// loaded gives a config, and the services of it for a boot without the daemon.
func (k *knockdDoors) loaded(r reading) (*config.Config, []byte, error) {
	if k.bare {
		return r.cfg, nil, nil
	}
	kept := config.Config{Daemon: r.cfg.Daemon, Services: r.cfg.Services}
	return r.cfg, []byte(k.mark() + kept.Format()), nil
}

// Spend marks the sequence of a door as used, in its file, and gives the config with
// the next one. An error says that the knock must not count, and comes with a config
// all the same: where the mark is missing, the door is disabled in it.
func (k *knockdDoors) Spend(cfg *config.Config, knock int) (*config.Config, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	i := slices.IndexFunc(k.latest, func(r reading) bool { return r.cfg == cfg })
	if i < 0 || knock >= len(k.latest[i].file.Doors) {
		return nil, errors.New("the config was read again meanwhile")
	}
	r := k.latest[i]
	door := &r.file.Doors[knock]
	steps, err := door.Spend(cfg.Knocks[knock].Sequence)
	next := *cfg
	next.Knocks = slices.Clone(cfg.Knocks)
	next.Knocks[knock].Sequence = steps
	switch {
	case err != nil && !errors.Is(err, knockd.ErrSpentElsewhere):
		k.log.complain(fmt.Sprintf("error while disabling used one time sequence for door %s --> disabling the door\n", door.Name))
	case len(steps) == 0:
		k.log.complain(fmt.Sprintf("no more sequences left in the one time sequences file for door %s --> disabling the door\n", door.Name))
	}
	r.cfg = &next
	k.keep(r)
	return &next, err
}

// Tell writes what happened at a door.
func (k *knockdDoors) Tell(e warden.Entry) {
	door, command := k.door(&e)
	who := e.Addr.String()
	if k.names != nil && e.Addr.IsValid() {
		who += k.names.of(e.Addr)
	}
	switch e.What {
	case warden.Stage:
		k.log.say(fmt.Sprintf("%s: %s: Stage %d", who, door, e.Stage))
	case warden.Opened:
		k.log.say(fmt.Sprintf("%s: %s: OPEN SESAME", who, door))
	case warden.TimedOut:
		k.log.say(fmt.Sprintf("%s: %s: sequence timeout (stage %d)\n", who, door, e.Stage))
	case warden.Running:
		k.log.say(fmt.Sprintf("%s: running command: %s\n", door, command))
	case warden.Failed:
		k.log.complain(fmt.Sprintf("%s: command returned non-zero status code (%d)", door, e.Status))
	case warden.Said:
		// The original's commands share its standard output; in the background nothing
		// has theirs.
		k.log.print(e.Command)
		k.log.record(fmt.Sprintf("%s: %s", door, e.Command))
	case warden.Due:
		k.log.say(fmt.Sprintf("%s: %s: command timeout", who, door))
	}
}

// door gives the name that the file has for the config's, and the command as it
// stands in the file: it runs as a list of words, or as the text that a shell gets.
func (k *knockdDoors) door(e *warden.Entry) (name, command string) {
	r := k.current()
	name, command = e.Door, e.Command
	i := slices.IndexFunc(r.cfg.Knocks, func(n config.Knock) bool { return n.Name == e.Door })
	if i < 0 || i >= len(r.file.Doors) {
		return name, command
	}
	d := &r.file.Doors[i]
	a := slices.IndexFunc(r.cfg.Actions, func(a config.Action) bool { return a.Name == e.Door })
	if e.What != warden.Running || a < 0 {
		return d.Name, command
	}
	run, undo := r.cfg.Actions[a].Commands(e.Addr)
	start, stop := texts(d, e.Addr)
	switch command {
	case strings.Join(run, " "):
		command = start
	case strings.Join(undo, " "):
		command = stop
	}
	return d.Name, withAddress(command, e.Addr)
}

// texts gives the commands of a door for an address, as they stand in the file.
func texts(d *knockd.Door, addr netip.Addr) (start, stop string) {
	start, stop = d.Start, d.Stop
	if addr.Is6() && d.Start6 != nil {
		start = *d.Start6
	}
	if addr.Is6() && d.Stop6 != nil {
		stop = *d.Stop6
	}
	return start, stop
}

// withAddress puts an address in as the original does.
func withAddress(command string, addr netip.Addr) string {
	return strings.ReplaceAll(command, "%IP%", addr.WithZone("").String())
}
