// Package secrets reads the file that names the people who may knock by a shared
// secret: one line each, a name, a secret and what it is good for.
package secrets

import (
	"bytes"
	"crypto/rand"
	"encoding/base32"
	"fmt"
	"strings"
	"time"

	"github.com/sallyport/sallyport/internal/authorized"
)

const (
	// MaxPeople is how many lines with a secret a file can have. A message whose
	// sender is not known is tried with each of them.
	MaxPeople = 1024
	// MaxSize is the largest file, in bytes: MaxPeople lines of 1 KiB.
	MaxSize = 1 << 20
	// MinSecret and MaxSecret bound a secret, in bytes. 16 are 128 bits; 64 are a
	// block of the hashes that take it, and longer ones would be hashed first.
	MinSecret = 16
	MaxSecret = 64
	// NewSecret is how long a fresh one is, in bytes (RFC 4226 section 4, R6): what
	// authenticator apps expect, 32 letters of base32 without padding.
	NewSecret = 20

	maxName   = 32   // bytes, as the name of a service
	maxFaults = 1000 // a file of another kind has a fault on each line
)

// Person is one line of the file. Two lines may have one name, so that an old
// secret overlaps with a new one until its Expires.
type Person struct {
	Name     string // 1 to 32 bytes, as the name of a service
	Secret   []byte // 16 to 64 bytes
	Services []string
	Expires  time.Time // the zero time: never
	Line     int       `json:"-"` // in the file, from 1
}

// At reports whether the secret is good at a time.
func (p *Person) At(t time.Time) bool { return p.Expires.IsZero() || t.Before(p.Expires) }

// Opens reports whether the secret is good for a service or action. Without a list
// it is for all that the knock opens.
func (p *Person) Opens(name string) bool {
	if len(p.Services) == 0 {
		return true
	}
	for _, s := range p.Services {
		if s == name {
			return true
		}
	}
	return false
}

// String gives the name alone: a Person that is printed by mistake keeps its
// secret.
func (p Person) String() string { return p.Name }

// GoString is String, for %#v.
func (p Person) GoString() string { return p.Name }

// New gives a fresh secret of NewSecret bytes.
func New() []byte {
	b := make([]byte, NewSecret)
	rand.Read(b) // never fails: see crypto/rand
	return b
}

var encoding = base32.StdEncoding.WithPadding(base32.NoPadding)

// Encode spells a secret in base32 (RFC 4648 section 6), without padding.
func Encode(secret []byte) string { return encoding.EncodeToString(secret) }

// Decode reads a secret in base32, in upper or lower case, padded or not. The error
// does not quote it.
func Decode(text string) ([]byte, error) {
	body := strings.TrimRight(strings.ToUpper(text), "=")
	secret, err := encoding.DecodeString(body)
	// Strict: bits behind the last byte would be a second spelling of the secret.
	if err != nil || len(text)-len(body) > 6 || Encode(secret) != body {
		return nil, fmt.Errorf("the secret is not base32 (the letters A to Z and the digits 2 to 7): copy it again")
	}
	switch {
	case len(secret) < MinSecret:
		return nil, fmt.Errorf("the secret has %d bytes, which can be guessed; %d (26 letters of base32) is the least, and 'sallyport keygen --secret' makes one of %d", len(secret), MinSecret, NewSecret)
	case len(secret) > MaxSecret:
		return nil, fmt.Errorf("the secret has %d bytes, and %d is the most; 'sallyport keygen --secret' makes one of %d", len(secret), MaxSecret, NewSecret)
	}
	return secret, nil
}

// CheckName says what is wrong with a person's name.
func CheckName(name string) error {
	if name == "" || len(name) > maxName || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789_-") != "" {
		return fmt.Errorf("a person's name has 1 to %d of a-z, 0-9, _ and -", maxName)
	}
	return nil
}

// Parse reads a file. Each good line's person is there whatever the other lines
// are; each other line that is neither empty nor a comment gives an Error, the
// first 1,000 of them, and no Error shows a secret. Times without a Z are read in
// time.Local.
func Parse(text []byte) ([]Person, []authorized.Error) {
	f := file{first: map[string]int{}}
	if len(text) > MaxSize {
		f.fault("the file is longer than %d bytes, so it is probably another file; nothing of it is used", MaxSize)
		return nil, f.faults
	}
	for line := range bytes.Lines(text) {
		f.line++
		if !f.read(strings.TrimSpace(string(line))) {
			break
		}
	}
	return f.people, f.faults
}

// file is what was read so far.
type file struct {
	line   int
	people []Person
	faults []authorized.Error
	first  map[string]int // the line that has the secret
}

func (f *file) fault(format string, args ...any) {
	switch len(f.faults) {
	case maxFaults:
		return
	case maxFaults - 1:
		format, args = "more lines from here on give nobody; they are not listed", nil
	}
	f.faults = append(f.faults, authorized.Error{Line: f.line, Text: fmt.Sprintf(format, args...)})
}

// read reads one line; false: no more lines can be taken.
func (f *file) read(s string) bool {
	if s == "" || s[0] == '#' {
		return true
	}
	p, err := readLine(s)
	if err != nil {
		f.fault("%v", err)
		return true
	}
	// With one secret for two nobody could tell which of them knocks, nor revoke one.
	if first, again := f.first[string(p.Secret)]; again {
		f.fault("it has the secret of line %d, which counts; this line is not used: make another with 'sallyport keygen --secret'", first)
		return true
	}
	if len(f.people) == MaxPeople {
		f.fault("the file has more than %d people; this line and those behind it are not read", MaxPeople)
		return false
	}
	p.Line = f.line
	f.first[string(p.Secret)] = f.line
	f.people = append(f.people, *p)
	return true
}

const blanks = " \t"

// readLine reads "NAME SECRET [OPTION,…]".
func readLine(s string) (*Person, error) {
	name, rest := word(s)
	text, rest := word(rest)
	if err := CheckName(name); err != nil {
		return nil, fmt.Errorf("write NAME SECRET on each line: %w", err)
	}
	if text == "" {
		return nil, fmt.Errorf("there is no secret behind the name: 'sallyport keygen --secret NAME --out FILE' adds a line with one")
	}
	secret, err := Decode(text)
	if err != nil {
		return nil, err
	}
	if strings.HasPrefix(rest, "#") {
		return nil, fmt.Errorf("a comment must have a line of its own")
	}
	options, rest, fault := authorized.Options(rest, "services", "expiry-time")
	switch {
	case fault != "":
		return nil, fmt.Errorf("%s", fault)
	case rest != "":
		return nil, fmt.Errorf("something stands behind the options; outside double quotes a blank ends them")
	}
	return &Person{Name: name, Secret: secret, Services: options.Services, Expires: options.Expires}, nil
}

// word cuts off the first field.
func word(s string) (first, rest string) {
	i := strings.IndexAny(s, blanks)
	if i < 0 {
		return s, ""
	}
	return s[:i], strings.TrimLeft(s[i:], blanks)
}
