package vectors

import (
	"embed"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

//go:embed encoded/*.txt
var encodedFiles embed.FS

// Message is one file of encoded/: ports as they arrive, and what they say.
type Message struct {
	Name  string // of the file, without ".txt"
	Lines []Line // in the order of the file
	Ports []uint16
}

// messageNames is every name that a line of such a file can have, in their order.
// The lines from "expect" on are the answer.
var messageNames = []string{
	"about", "door", "secret", "base", "span", "payload", "window", "after", "now",
	"expect", "action", "time", "for", "address", "bits", "port", "input", "tag",
}

// Get gives the value of a name; "" where it does not stand there.
func (m *Message) Get(name string) string {
	for _, l := range m.Lines {
		if l.Name == name {
			return l.Value
		}
	}
	return ""
}

// portsWide is how many ports stand on a line.
const portsWide = 10

// Format gives the file's one spelling.
func (m *Message) Format() string {
	var b strings.Builder
	for _, l := range m.Lines {
		fmt.Fprintf(&b, "%s: %s\n", l.Name, l.Value)
	}
	b.WriteByte('\n')
	for line := range slices.Chunk(m.Ports, portsWide) {
		b.WriteString(strings.Trim(fmt.Sprint(line), "[]") + "\n")
	}
	return b.String()
}

// ParseMessage reads what Format gives and nothing else. The error says what is
// wrong.
func ParseMessage(name, text string) (*Message, error) {
	head, body, _ := strings.Cut(text, "\n\n")
	m := &Message{Name: name}
	for line := range strings.SplitSeq(head, "\n") {
		key, value, _ := strings.Cut(line, ": ")
		if !slices.Contains(messageNames, key) || m.Get(key) != "" {
			return nil, fmt.Errorf("%s: %.40q is no line of a vector, or stands there twice", name, line)
		}
		m.Lines = append(m.Lines, Line{key, value})
	}
	for _, word := range strings.Fields(body) {
		port, err := strconv.ParseUint(word, 10, 16)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		m.Ports = append(m.Ports, uint16(port))
	}
	if m.Format() != text {
		return nil, fmt.Errorf("%s: another spelling than %d ports a line", name, portsWide)
	}
	return m, nil
}

// Messages reads every file of encoded/. None at all is an error.
func Messages() (map[string]*Message, error) {
	entries, err := encodedFiles.ReadDir("encoded")
	if err != nil {
		return nil, err
	}
	all := map[string]*Message{}
	for _, e := range entries {
		text, err := encodedFiles.ReadFile("encoded/" + e.Name())
		if err != nil {
			return nil, err
		}
		name := strings.TrimSuffix(e.Name(), ".txt")
		if all[name], err = ParseMessage(name, string(text)); err != nil {
			return nil, err
		}
	}
	return all, nil
}
