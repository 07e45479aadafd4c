package config

import (
	"fmt"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// Format gives the normal form: TOML text with every default filled in, which
// Parse reads back as an equal Config. It holds the sequences, so it is as
// secret as the file.
func (c *Config) Format() string {
	var b strings.Builder
	show(&b, "daemon", daemonKeys, &c.Daemon)
	for i := range c.Services {
		b.WriteByte('\n')
		show(&b, join("service", c.Services[i].Name), serviceKeys, &c.Services[i])
	}
	for i := range c.Actions {
		b.WriteByte('\n')
		show(&b, join("action", c.Actions[i].Name), actionKeys, &c.Actions[i])
	}
	for _, k := range c.Knocks {
		raw := rawKnock{Knock: k}
		for _, s := range k.Opens {
			raw.names = append(raw.names, c.Services[s].Name)
		}
		for _, a := range k.Runs {
			raw.runs = append(raw.runs, c.Actions[a].Name)
		}
		for _, s := range k.Closes {
			raw.closes = append(raw.closes, c.Services[s].Name)
		}
		for _, s := range k.Extends {
			raw.extends = append(raw.extends, c.Services[s].Name)
		}
		for _, a := range k.ClosesActions {
			raw.closes = append(raw.closes, c.Actions[a].Name)
		}
		b.WriteByte('\n')
		show(&b, join("knock", k.Name), knockKeys[k.Type], &raw)
	}
	return b.String()
}

// Tree gives the normal form as nested tables, for programs that read JSON: the
// same keys and spellings as in the file.
func (c *Config) Tree() (map[string]any, error) {
	var tree map[string]any
	err := toml.Unmarshal([]byte(c.Format()), &tree)
	return tree, err
}

func show[T any](b *strings.Builder, path string, keys []key[T], from *T) {
	width := 0
	for _, k := range keys {
		width = max(width, len(k.name))
	}
	fmt.Fprintf(b, "[%s]\n", path)
	for _, k := range keys {
		fmt.Fprintf(b, "%-*s = %s\n", width, k.name, k.show(from))
	}
}
