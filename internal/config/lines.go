package config

import (
	"fmt"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2/unstable"
)

// lines says where each key of a file stands. Keys are dotted paths, items of
// a list are "path[0]". Decoded values don't remember their place, so the file
// is walked once more for it.
type lines struct {
	starts []int          // offset of each line's first byte
	at     map[string]int // path to line, from 1
	order  []string       // paths as they first appear
}

// findLines walks a text that is known to be TOML.
func findLines(text []byte) *lines {
	l := &lines{starts: []int{0}, at: map[string]int{}}
	for i, b := range text {
		if b == '\n' {
			l.starts = append(l.starts, i+1)
		}
	}
	var p unstable.Parser
	p.Reset(text)
	table := ""
	for p.NextExpression() {
		switch n := p.Expression(); n.Kind {
		case unstable.Table, unstable.ArrayTable:
			table = l.key("", n.Key())
		case unstable.KeyValue:
			l.pair(table, n)
		}
	}
	return l
}

func (l *lines) line(offset uint32) int {
	i, found := slices.BinarySearch(l.starts, int(offset))
	if found {
		return i + 1
	}
	return i
}

func (l *lines) put(path string, line int) {
	if _, seen := l.at[path]; !seen {
		l.at[path] = line
		l.order = append(l.order, path)
	}
}

// key puts every part of a dotted key below base and gives the whole path.
func (l *lines) key(base string, parts unstable.Iterator) string {
	for parts.Next() {
		base = join(base, string(parts.Node().Data))
		l.put(base, l.line(parts.Node().Raw.Offset))
	}
	return base
}

func (l *lines) pair(base string, n *unstable.Node) {
	path := l.key(base, n.Key())
	items := n.Value().Children()
	switch n.Value().Kind {
	case unstable.InlineTable:
		for items.Next() {
			l.pair(path, items.Node())
		}
	case unstable.Array:
		for i := 0; items.Next(); i++ {
			// Nested lists and tables have no place of their own.
			if raw := items.Node().Raw; raw.Length > 0 {
				l.put(item(path, i), l.line(raw.Offset))
			}
		}
	}
}

// find is the line of a path, or else of the nearest table around it.
func (l *lines) find(path string) int {
	for path != "" {
		if line, ok := l.at[path]; ok {
			return line
		}
		path = path[:max(strings.LastIndexAny(path, ".["), 0)]
	}
	return 1
}

// has reports whether the file names the path.
func (l *lines) has(path string) bool {
	_, ok := l.at[path]
	return ok
}

func join(base, name string) string {
	if base == "" {
		return name
	}
	return base + "." + name
}

func item(path string, i int) string { return fmt.Sprintf("%s[%d]", path, i) }
