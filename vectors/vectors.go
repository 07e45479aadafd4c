// Package vectors holds the published test vectors of Sallyport's wire formats
// and reads them. README.md describes the files; they are made for other
// implementations as much as for this one.
package vectors

import (
	"embed"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
)

//go:embed *.txt
var files embed.FS

// Vector is one file.
type Vector struct {
	Name   string // of the file, without ".txt"
	Lines  []Line // in the order of the file
	Packet []byte // what arrives, 0 bytes or more
}

// Line is one "name: value".
type Line struct{ Name, Value string }

// Names is every name that a line can have, in the order that files have them.
// The lines from "expect" on are the answer.
var Names = []string{
	"about", "server-key", "server-address", "authorized-key", "services", "address", "window", "clock", "unclean-start", "after", "now", "from",
	"expect", "action", "stamp", "for", "ipv4", "ipv6", "own", "names", "key", "tag", "granted",
}

// repeated are the names that may stand in a file more than once.
var repeated = []string{"server-key", "authorized-key"}

// Get gives the value of a name that stands once or not at all; "" for the latter.
func (v *Vector) Get(name string) string {
	if all := v.All(name); len(all) > 0 {
		return all[0]
	}
	return ""
}

// All gives the values of a name.
func (v *Vector) All(name string) []string {
	var all []string
	for _, l := range v.Lines {
		if l.Name == name {
			all = append(all, l.Value)
		}
	}
	return all
}

// width is how many bytes stand on a line of hex.
const width = 32

// Format gives the file's one spelling.
func (v *Vector) Format() string {
	var b strings.Builder
	for _, l := range v.Lines {
		fmt.Fprintf(&b, "%s: %s\n", l.Name, l.Value)
	}
	b.WriteByte('\n')
	for part := range slices.Chunk(v.Packet, width) {
		fmt.Fprintf(&b, "%x\n", part)
	}
	return b.String()
}

// Parse reads what Format gives and nothing else. The error says what is wrong.
func Parse(name, text string) (*Vector, error) {
	head, body, found := strings.Cut(text, "\n\n")
	if !found {
		return nil, fmt.Errorf("%s: no empty line before the hex", name)
	}
	v := &Vector{Name: name}
	for line := range strings.SplitSeq(head, "\n") {
		key, value, _ := strings.Cut(line, ": ")
		switch {
		case !slices.Contains(Names, key) || value == "":
			return nil, fmt.Errorf("%s: %.40q is no line of a vector", name, line)
		case v.Get(key) != "" && !slices.Contains(repeated, key):
			return nil, fmt.Errorf("%s: %s stands there twice", name, key)
		}
		v.Lines = append(v.Lines, Line{key, value})
	}
	var err error
	if v.Packet, err = hex.DecodeString(strings.ReplaceAll(body, "\n", "")); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if v.Format() != text {
		return nil, fmt.Errorf("%s: another spelling than %d bytes of lower-case hex a line", name, width)
	}
	return v, nil
}

// All reads every file. None at all is an error, so that no test can pass for
// want of vectors.
func All() (map[string]*Vector, error) {
	entries, err := files.ReadDir(".")
	if err != nil {
		return nil, err
	}
	all := map[string]*Vector{}
	for _, e := range entries {
		text, err := files.ReadFile(e.Name())
		if err != nil {
			return nil, err
		}
		name := strings.TrimSuffix(e.Name(), ".txt")
		if all[name], err = Parse(name, string(text)); err != nil {
			return nil, err
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("there is not one vector")
	}
	return all, nil
}
