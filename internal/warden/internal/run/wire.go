//go:build linux

package run

import (
	"fmt"
	"strconv"
)

// word is a word of a command, or of its environment. As text it is Go's quoting
// without the quotes, so that JSON carries any bytes: a knockd.conf need not be
// UTF-8.
type word string

// MarshalText gives printable ASCII and what else is printable.
func (w word) MarshalText() ([]byte, error) {
	q := strconv.Quote(string(w))
	return []byte(q[1 : len(q)-1]), nil
}

// UnmarshalText reads what MarshalText made.
func (w *word) UnmarshalText(text []byte) error {
	s, err := strconv.Unquote(`"` + string(text) + `"`)
	if err != nil {
		return fmt.Errorf("%q is no quoted word", text)
	}
	*w = word(s)
	return nil
}

// to turns plain words into those of the wire, and back.
func to[T, F ~string](words []F) []T {
	out := make([]T, len(words))
	for i, w := range words {
		out[i] = T(w)
	}
	return out
}

// request asks the spawner to run a command.
type request struct {
	Number uint64
	Words  []word
	Env    []word // beside the daemon's own
	Input  []byte `json:",omitempty"` // up to MaxInput; none: /dev/null
}

// report is what the spawner says.
type report struct {
	Kind   kind
	Number uint64
	Status int    `json:",omitempty"` // ended: as sh(1) has it
	Text   string `json:",omitempty"` // output: a line; ended: why it never began
	Lost   int    `json:",omitempty"` // silent: lines that were not passed on
}

type kind uint8

const (
	hello  kind = iota // the spawner is there
	began              // a command was started
	output             // it wrote a line
	ended              // its process has ended
	silent             // nobody has its output open any more
	bye                // every request was read
)
