// Package knockd reads knockd.conf as knockd 0.8 does, and makes of it a
// configuration of ours.
package knockd

import (
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"slices"
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

	// OthersWrite says that more users than the owner can write to the file, and so
	// have commands run. Only Load sets it.
	OthersWrite bool

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
	// Out is where Convert's text will be written, for its comments; "": not known.
	Out string
	// Native says which doors (by index) become grants of the kernel's instead of
	// commands; nil: none.
	Native map[int]bool
}

// Load reads a file of at most config.MaxSize bytes. What is wrong with the text is
// a config.Errors; what kept the file from being read wraps the system's error.
func Load(path string) (*File, error) {
	text, mode, err := readFile(path)
	if err != nil {
		return nil, loadError(path, err)
	}
	f, err := Parse(path, text)
	if err != nil {
		return nil, err
	}
	if f.OthersWrite = othersWrite(mode); f.OthersWrite {
		w := config.Warning{
			Text:   fmt.Sprintf("others on this machine can write to the file (its mode is %04o), and who can do that runs commands as root", mode.Perm()),
			Advice: "chmod go-w " + path,
		}
		f.Warnings = slices.Insert(f.Warnings, 0, Warning{1, w})
	}
	return f, nil
}

// readFile reads one byte more than Parse takes, so that Parse can tell, and gives the
// mode of the very file that it read.
func readFile(path string) ([]byte, fs.FileMode, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	text, err := io.ReadAll(io.LimitReader(f, config.MaxSize+1))
	return text, info.Mode(), err
}

// othersWrite reports whether more users than the owner can write to a file. The mode
// of a pipe says nothing of who wrote the text.
func othersWrite(mode fs.FileMode) bool { return mode.IsRegular() && mode.Perm()&0o022 != 0 }

func loadError(path string, err error) error {
	return config.ReadError(path, err, "name the knockd.conf that is meant")
}
