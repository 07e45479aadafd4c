// Package knockd reads knockd.conf as knockd 0.8 does, and makes of it a
// configuration of ours.
package knockd

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"syscall"
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

	Warnings []Warning // sorted by line
}

// Warning is something that is allowed and probably not meant, at a line.
type Warning struct {
	Line int
	config.Warning
}

// Door is a section that is no [options].
type Door struct {
	Name  string // as it stands between the brackets, at most 127 bytes; two doors may have the same
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
// a config.Errors; what kept the file from being read wraps the system's error.
func Load(path string) (*File, error) {
	text, err := readFile(path)
	if err != nil {
		return nil, err
	}
	return Parse(path, text)
}

// readFile reads one byte more than Parse takes, so that Parse can tell.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, loadError(path, err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, config.MaxSize+1))
	if err != nil {
		return nil, loadError(path, err)
	}
	return text, nil
}

func loadError(path string, err error) error {
	remedy := "look at the disk"
	switch {
	case errors.Is(err, fs.ErrNotExist):
		remedy = "name the knockd.conf that is meant"
	case errors.Is(err, fs.ErrPermission):
		remedy = "a file with sequences is root's alone, so run this as root"
	case errors.Is(err, syscall.EISDIR):
		remedy = "name the file in it"
	}
	var at *fs.PathError
	if errors.As(err, &at) {
		err = at.Err
	}
	return fmt.Errorf("%s can't be read: %w; %s", path, err, remedy)
}
