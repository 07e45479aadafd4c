// Package authorized reads OpenSSH's authorized_keys file (sshd(8),
// "AUTHORIZED_KEYS FILE FORMAT") as sshd reads it, and four options of our own:
// services=, max-time=, not-before= and no-address.
//
// Where it differs from sshd it lets in less: a line whose meaning depends on
// the resolver or on a certificate, or that sshd takes only by an accident of
// the C library, is an Error here. The one thing it can't refuse is a
// permitopen= or permitlisten= for a service that the host does not know.
package authorized

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/sallyport/sallyport/internal/spa"
)

const (
	// MaxKeys is how many keys a file can have. The engine looks a key up for
	// each datagram that got through the gate, and holds all of them in memory.
	MaxKeys = 16384
	// MaxSize is how much of a file is read, in bytes: MaxKeys lines of 256
	// bytes. An RSA key of 4096 bits takes 750. Give Parse at least one byte
	// more, if the file has it, and it says where it stopped.
	MaxSize = 4 << 20
)

const (
	maxComment  = 64   // bytes
	maxList     = 1024 // items in one from= or services=; a knock walks them
	maxFaults   = 1000 // a file of another kind has a fault on each line
	maxName     = 32   // bytes in a service's name, as in the configuration
	longestTime = 720 * time.Hour
)

// Key is one line: a public key and what it may do. It crosses to the engine as
// JSON, so each field survives encoding/json.
type Key struct {
	Line            int // in the file, from 1
	Public          spa.PublicKey
	Comment         string        // printable; at most 64 bytes, the rest cut; "" if none
	Services        []string      // nil: all that the knock opens
	MaxTime         time.Duration // whole seconds, 1 s to 720 h; 0: the service's own limit
	NotBefore       time.Time     // UTC, whole seconds; zero: none
	Expires         time.Time     // UTC, whole seconds; zero: none
	NoAddress       bool          // may not state an address other than its own
	From            []Pattern     // nil: from everywhere
	NoTouchRequired bool          // a hardware key's touch is not asked for
	VerifyRequired  bool          // a hardware key must have checked a PIN or a fingerprint
}

// Pattern is one item of from=. Its prefix is never of IPv4-mapped addresses
// and has no bits set behind its length.
type Pattern struct {
	Prefix netip.Prefix
	Not    bool // written with "!": whoever matches is refused
}

// Error is one line that gives no key. Its text quotes an option's name or a
// key's type at most, because a file that was given by mistake may be secret.
type Error struct {
	Line int // from 1
	Text string
}

// Error gives "line 3: text".
func (e Error) Error() string { return fmt.Sprintf("line %d: %s", e.Line, e.Text) }

// At reports whether the key is valid at a time: NotBefore <= now < Expires.
func (k *Key) At(now time.Time) bool {
	return !now.Before(k.NotBefore) && (k.Expires.IsZero() || now.Before(k.Expires))
}

// AllowsFrom reports whether from= lets an address use the key. As in sshd a
// negated match wins wherever it stands, and negated patterns alone let in
// nobody. An IPv4-mapped address counts as IPv4; a zone is not looked at.
func (k *Key) AllowsFrom(a netip.Addr) bool {
	if k.From == nil {
		return true
	}
	a = a.Unmap().WithZone("") // a Prefix contains no address with a zone
	allowed := false
	for _, p := range k.From {
		if !p.Prefix.Contains(a) {
			continue
		}
		if p.Not {
			return false
		}
		allowed = true
	}
	return allowed
}

// Opens reports whether the key may ask for a service, by its name.
func (k *Key) Opens(service string) bool {
	return k.Services == nil || slices.Contains(k.Services, service)
}

// Parse reads a file. Each good line's key is there whatever the other lines
// are; each other line that is neither empty nor a comment gives an Error, the
// first 1,000 of them. Times without a Z are read in time.Local.
func Parse(text []byte) ([]Key, []Error) {
	f := file{first: map[spa.Fingerprint]int{}}
	for left := MaxSize; len(text) > 0; {
		line, rest, _ := bytes.Cut(text, []byte("\n"))
		if f.line++; len(line) > left {
			f.fault("the file is longer than %d bytes; this line and those behind it are not read", MaxSize)
			break
		}
		if !f.read(string(line)) {
			break
		}
		left -= len(text) - len(rest)
		text = rest
	}
	return f.keys, f.faults
}

// file is what was read so far.
type file struct {
	line   int
	keys   []Key
	faults []Error
	first  map[spa.Fingerprint]int // the line that has the key
}

func (f *file) fault(format string, args ...any) {
	switch len(f.faults) {
	case maxFaults:
		return
	case maxFaults - 1:
		format, args = "more lines from here on give no key; they are not listed", nil
	}
	f.faults = append(f.faults, Error{f.line, fmt.Sprintf(format, args...)})
}

// read reads one line; false: no more lines can be taken.
func (f *file) read(s string) bool {
	s = strings.TrimLeft(s, blanks)
	if strings.Trim(s, "\r") == "" || s[0] == '#' {
		return true
	}
	k, fault := readLine(s)
	if fault != "" {
		f.fault("%s", fault)
		return true
	}
	id := k.Public.Fingerprint()
	if first, again := f.first[id]; again {
		f.fault("same key as line %d, whose options count; this line is not used", first)
		return true
	}
	if len(f.keys) == MaxKeys {
		f.fault("the file has more than %d keys; this line and those behind it are not read", MaxKeys)
		return false
	}
	k.Line = f.line
	f.first[id] = f.line
	f.keys = append(f.keys, *k)
	return true
}
