package iptables

import (
	"fmt"
	"slices"
	"strings"

	"github.com/sallyport/sallyport/internal/warden/internal/run"
)

// tables is what iptables-save printed: of each table its lines.
type tables map[string][]string

func (f family) read() (tables, error) {
	path, err := run.Find(f.save)
	if err != nil {
		return nil, err
	}
	text, err := run.Tool("", path)
	if err != nil {
		return nil, err
	}
	out := tables{}
	table := ""
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if name, ok := strings.CutPrefix(line, "*"); ok {
			table = name
		}
		out[table] = append(out[table], line)
	}
	return out, nil
}

// rules are those of a built-in chain, in their order.
func (t tables) rules(table, builtin string) (list []string) {
	for _, line := range t[table] {
		if rule, ok := strings.CutPrefix(line, "-A "+builtin+" "); ok {
			list = append(list, rule)
		}
	}
	return list
}

const toOurs = "-j " + chain

// jump gives what brings the jump to our chain to the head of a built-in one, where it
// is not there yet. Nobody else's rule moves.
func (t tables) jump(table, builtin string) string {
	gone := t.unjump(table, builtin)
	if list := t.rules(table, builtin); strings.Count(gone, "\n") == 1 && list[0] == toOurs {
		return ""
	}
	return gone + fmt.Sprintf("-I %s 1 %s\n", builtin, toOurs)
}

// unjump takes away every jump to our chain from a built-in one.
func (t tables) unjump(table, builtin string) (text string) {
	for _, rule := range t.rules(table, builtin) {
		if rule == toOurs {
			text += fmt.Sprintf("-D %s %s\n", builtin, toOurs)
		}
	}
	return text
}

// whole reports whether every built-in chain jumps to ours first, and ours have rules:
// those that were there when they were loaded, if that is known.
func (t tables) whole(loaded string) bool {
	for _, h := range hooks {
		if t.jump(h.table, h.builtin) != "" || len(t.rules(h.table, chain+"-GUARD")) == 0 || len(t.rules(h.table, chain)) == 0 {
			return false
		}
	}
	return loaded == "" || loaded == t.ours()
}

// ours are the rules of our chains, and what of the host's they follow.
func (t tables) ours() string {
	var b strings.Builder
	fmt.Fprintln(&b, t.dropsUnheard())
	for _, h := range hooks {
		for _, name := range chains {
			fmt.Fprintln(&b, h.table, name, t.rules(h.table, name))
		}
	}
	return b.String()
}

// dropsUnheard reports whether the host's own rules drop what nothing listens at: by
// the policy of INPUT, or by a last rule without a condition. With REJECT at the head
// of the chain a hidden port would stand out among such.
func (t tables) dropsUnheard() bool {
	list := t.rules("filter", "INPUT")
	if len(list) > 0 && list[len(list)-1] == "-j DROP" {
		return true
	}
	for _, line := range t["filter"] {
		if strings.HasPrefix(line, ":INPUT DROP ") {
			return true
		}
	}
	return false
}

// removal gives the input of iptables-restore --noflush that takes away what is ours.
func (t tables) removal() string {
	var b strings.Builder
	for _, h := range hooks {
		var names, body strings.Builder
		for _, line := range t[h.table] {
			if fields := strings.Fields(line); len(fields) > 0 && isOurs(strings.TrimPrefix(fields[0], ":")) && line[0] == ':' {
				fmt.Fprintf(&names, ":%s - [0:0]\n", fields[0][1:])
				fmt.Fprintf(&body, "-X %s\n", fields[0][1:])
			}
		}
		if names.Len() > 0 {
			fmt.Fprintf(&b, "*%s\n%s%s%sCOMMIT\n", h.table, &names, t.unjump(h.table, h.builtin), &body)
		}
	}
	return b.String()
}

func isOurs(name string) bool { return slices.Contains(chains, name) }

// load loads rules beside those that are there. It waits for the lock of others
// that change the firewall, at most 10 seconds.
func (f family) load(text string) error {
	path, err := run.Find(f.restore)
	if err != nil {
		return err
	}
	_, err = run.Tool(text, path, "--noflush", "-w", "10")
	return err
}
