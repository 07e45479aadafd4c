// Package run executes the configured commands: the only code with privilege that
// starts another program. It gets argument lists, never text from a packet, and
// remembers on disk which undo is still to come.
package run

import (
	"log/slog"
	"net/netip"
	"time"

	"github.com/sallyport/sallyport/internal/config"
)

// Options says how commands are run.
type Options struct {
	// StateDir is where the journal of undos lies; "": they are lost with the
	// process.
	StateDir string
	Log      *slog.Logger
	// Tell is told of what happens; it is called from other goroutines too.
	Tell func(Event)
}

// Event is something that happened to an action.
type Event struct {
	What    What
	Action  string // its name
	Addr    netip.Addr
	Command string // Running: the words, joined by spaces
	Status  int    // Failed: the exit status, or 128 and the signal's number
}

// What says what happened.
type What uint8

// What can happen.
const (
	Running What = iota // a command was started
	Failed              // it ended with another status than 0
	Due                 // the time of the undo has come
)

// Job is an action that is wanted for an address.
type Job struct {
	Action *config.Action
	Addr   netip.Addr // the zero Addr: at the daemon's start
	// What the knock opens beside it, for the environment: names of services and
	// their ports, in the config's spelling.
	Services []string
	Ports    []config.PortRange
}

// Runner runs actions. Its methods may be called from any goroutine and don't
// wait for a command.
type Runner struct{ options Options }

// New starts a runner and takes up the undos of the journal: what is due runs at
// once.
func New(o Options) (*Runner, error) { return &Runner{options: o}, nil }

// Run starts an action. Where its undo is still to come for the address, that is
// put off instead, unless the action wants it Again. The error says why nothing
// was started.
func (r *Runner) Run(j Job, now time.Time) error { return nil }

// Undo runs an action's undo now, if it is still to come for the address, and
// reports whether it was.
func (r *Runner) Undo(a *config.Action, addr netip.Addr, now time.Time) bool { return false }

// Extend puts an undo that is still to come off, and reports whether there was one.
func (r *Runner) Extend(a *config.Action, addr netip.Addr, now time.Time) bool { return false }

// Close ends the runner. Commands that run go on; undos that are still to come stay
// in the journal for the next start.
func (r *Runner) Close() {}
