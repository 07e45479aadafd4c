// Package knockd reads knockd.conf as knockd 0.8 does, and makes of it a
// configuration of ours.
package knockd

import (
	"net/netip"
	"time"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/sequence"
)

// File is a knockd.conf.
type File struct {
	Name  string // its path, for messages
	Doors []Door

	// Of [options].
	UseSyslog  bool
	LogFile    string   // "": none
	PidFile    string   // "": knockd's own default
	Interfaces []string // nil: not said; Interface may name several, with commas, or "any"

	Warnings []Warning
}

// Warning is something that is allowed and probably not meant, at a line.
type Warning struct {
	Line int
	config.Warning
}

// Door is a section that is no [options].
type Door struct {
	Name  string // as it stands between the brackets; two doors may have the same
	Line  int
	Steps []Step // 1 to 32; the current one of OneTime where there is such a file
	// OneTime is the path of a file of one-time sequences; "": none.
	OneTime    string
	SeqTimeout time.Duration // whole seconds, 25 unless said; 0 or less: only one-step sequences open
	Flags      sequence.Flags
	Target     netip.Addr // the zero Addr: any of this host's
	// The commands: texts for a shell. Those of IPv6 are nil where the file has none,
	// and then IPv4's hold; empty is a command that does nothing.
	Start, Stop   string
	Start6, Stop6 *string
	CmdTimeout    time.Duration // whole seconds, 10 unless said
}

// Step is one packet: a port, 0 to 65535, of TCP or UDP.
type Step struct {
	Proto sequence.Proto
	Port  uint16
}

// Settings are the options of knockd's command line, and ours beside them, that
// change what becomes of a file.
type Settings struct {
	Interfaces []string // of the command line, which goes before the file; nil: not said
	IPv4Only   bool
	Strict     bool // knockd's own rules, where a person could depend on them
	// Native says which doors (by index) become grants of the kernel's instead of
	// commands; nil: none.
	Native map[int]bool
}

// Load reads a file of at most config.MaxSize bytes. What is wrong with the text is
// a config.Errors.
func Load(path string) (*File, error) { return nil, nil }

// Parse reads the text of a file; the name stands in errors. Files of one-time
// sequences are read from disk.
func Parse(name string, text []byte) (*File, error) { return nil, nil }

// Config makes the configuration that serves the doors: knock i is door i.
func (f *File) Config(s Settings) *config.Config { return nil }

// Spend marks the current sequence of a door as used, in its file, and gives the
// steps of the next one; none: there is no more, and the door is disabled.
func (d *Door) Spend() ([]Step, error) { return nil, nil }
