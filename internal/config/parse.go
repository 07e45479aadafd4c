package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/pelletier/go-toml/v2"

	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/sallyport/sallyport/internal/spa"
)

// reader collects what is wrong with one file while it is read.
type reader struct {
	file   string
	lines  *lines
	errs   Errors
	faulty map[string]bool // paths with a fault: nothing is inferred from them
}

// fault records what is wrong with the value at a path. Later rules leave a
// faulty path alone, so that one slip gives one message.
func (r *reader) fault(path, format string, args ...any) {
	r.errs = append(r.errs, Error{r.file, r.lines.find(path), fmt.Sprintf(format, args...)})
	for path != "" {
		r.faulty[path] = true
		path = path[:max(strings.LastIndexAny(path, ".["), 0)]
	}
}

// Load reads and checks a file of at most MaxSize bytes. What is wrong with the
// text is an Errors; what kept the file from being read wraps the system's
// error.
func Load(path string) (*Config, error) {
	c, _, err := LoadText(path)
	return c, err
}

// LoadText is Load that gives the file's text too, for a copy of it.
func LoadText(path string) (*Config, []byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, loadError(path, err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, MaxSize+1))
	if err != nil {
		return nil, nil, loadError(path, err)
	}
	c, err := Parse(path, text)
	return c, text, err
}

func loadError(path string, err error) error {
	return ReadError(path, err, "write one, beginning with sallyport.toml.example, or name another with -c")
}

// ReadError says why a file that holds sequences can't be read, and what to do;
// missing is what to do where it is not there.
func ReadError(path string, err error, missing string) error {
	remedy := "look at the disk"
	switch {
	case errors.Is(err, fs.ErrNotExist):
		remedy = missing
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

// Parse checks the text of a configuration. The name stands in errors; the
// error is an Errors with every fault that was found, sorted by line.
func Parse(name string, text []byte) (*Config, error) {
	if len(text) > MaxSize {
		return nil, Errors{{name, 1, fmt.Sprintf("the file has more than %d bytes; this can't be a configuration", MaxSize)}}
	}
	// Some editors begin a UTF-8 file with a byte order mark.
	text = bytes.TrimPrefix(text, []byte("\ufeff"))
	if line, fault := unreadable(text); fault != "" {
		return nil, Errors{{name, line, fault}}
	}
	var tree map[string]any
	if err := toml.Unmarshal(text, &tree); err != nil {
		return nil, explain(name, text, syntax(name, err)).sort()
	}
	r := &reader{file: name, lines: findLines(text), faulty: map[string]bool{}}
	c := r.config(tree)
	if len(r.errs) > 0 {
		return nil, explain(name, text, r.errs).sort()
	}
	return c, nil
}

func (r *reader) config(tree map[string]any) *Config {
	c := &Config{Daemon: Daemon{
		StateDir:    "/var/lib/sallyport",
		Control:     "/run/sallyport/control.sock",
		MaxAttempts: 65536,
		MaxGrants:   65536,
	}}
	for name := range tree {
		if !slices.Contains(tableNames, name) {
			r.fault(name, "unknown table or key %q; %s", name, suggest(name, tableNames))
		}
	}
	read(r, "daemon", tree["daemon"], daemonKeys, &c.Daemon)

	services, tables := r.named("service", tree["service"], MaxServices)
	for _, name := range services {
		s := Service{Name: name, OpenFor: 30 * time.Second, MaxOpenFor: time.Hour}
		read(r, join("service", name), tables[name], serviceKeys, &s)
		c.Services = append(c.Services, s)
	}
	actions, tables := r.named("action", tree["action"], MaxActions)
	for _, name := range actions {
		c.Actions = append(c.Actions, r.action(name, tables[name]))
	}
	knocks, tables := r.named("knock", tree["knock"], MaxKnocks)
	for _, name := range knocks {
		c.Knocks = append(c.Knocks, r.knock(name, tables[name], services, actions))
	}
	for _, rule := range rules {
		rule(r, c)
	}
	return c
}

var tableNames = []string{"daemon", "service", "action", "knock"}

// addressWord is what stands for an address in an action's commands.
const addressWord = "{addr}"

// action reads an [action.NAME]. What it does for IPv6 is the same as for IPv4
// unless the file says otherwise.
func (r *reader) action(name string, v any) Action {
	a := Action{Name: name, Address: addressWord}
	path := join("action", name)
	read(r, path, v, actionKeys, &a)
	table, _ := v.(map[string]any)
	if _, given := table["run_ipv6"]; !given {
		a.RunIPv6 = a.Run
	}
	if _, given := table["undo_ipv6"]; !given {
		a.UndoIPv6 = a.Undo
	}
	return a
}

// knock reads a [knock.NAME]. The keys of a type that this version does not
// have mean nothing to it, so the type comes first.
func (r *reader) knock(name string, v any, services, actions []string) Knock {
	raw := rawKnock{Knock: Knock{Name: name}}
	path := join("knock", name)
	if table, ok := v.(map[string]any); ok {
		if _, typed := table["type"]; !typed {
			r.fault(path, `%s has no type; add type = "spa" or type = "sequence"`, path)
		} else if typeKey.read(r, join(path, "type"), table["type"], &raw); raw.Type == "" {
			return raw.Knock
		}
	}
	raw.setDefaults()
	keys, typed := knockKeys[raw.Type]
	if !typed { // so that only the missing type is a fault
		keys = slices.Concat(sequenceKeys, otpKeys, encodedKeys, spaKeys)
	}
	read(r, path, v, keys, &raw)
	raw.Opens = r.names(path, "opens", "the service", raw.names, services)
	raw.Extends = r.names(path, "extends", "the service", raw.extends, services)
	raw.OneTime = raw.List != ""
	raw.Runs = r.names(path, "runs", "the action", raw.runs, actions)
	for i, index := range r.names(path, "closes", "the service or action", raw.closes, slices.Concat(services, actions)) {
		if i = index - len(services); i < 0 {
			raw.Closes = append(raw.Closes, index)
		} else {
			raw.ClosesActions = append(raw.ClosesActions, i)
		}
	}
	return raw.Knock
}

// names gives the indices of what a key of a knock's names.
func (r *reader) names(path, key, what string, given, names []string) (indices []int) {
	for i, name := range given {
		at := item(join(path, key), i)
		index := slices.Index(names, name)
		switch {
		case index < 0:
			r.fault(at, "%s %s %s %q, which this file does not have; %s", path, key, what, name, suggest(name, names))
		case slices.Contains(indices, index):
			r.fault(at, "%s %s %s %q twice; name it once", path, key, what, name)
		default:
			indices = append(indices, index)
		}
	}
	return indices
}

// setDefaults fills in what a knock of its type has unless the file says
// otherwise.
func (k *Knock) setDefaults() {
	switch k.Type {
	case "sequence":
		k.Within, k.LookAhead = 5*time.Second, DefaultLookAhead
	case "otp":
		k.Pool, k.Base = otpPool(), otpBase()
		k.Steps, k.TimeStep, k.Within = otpSteps, otpTimeStep, 10*time.Second
	case "encoded":
		k.Base, k.Span = PortRange{sequence.TCP, 40000, 40000}, 16384
		k.Window, k.Within = time.Minute, 30*time.Second
	case "spa":
		k.Port, k.Transports, k.Window = spa.DefaultPort, []Transport{OverUDP}, time.Minute
	}
}

// named gives the names of [kind.NAME] tables in the order of the file, which
// is the order of the rules' numbers.
func (r *reader) named(kind string, v any, most int) ([]string, map[string]any) {
	tables, ok := v.(map[string]any)
	if !ok && v != nil {
		r.fault(kind, "%s must be tables with a name each: [%s.NAME]", kind, kind)
	}
	var names []string
	for _, path := range r.lines.order {
		name := strings.TrimPrefix(path, kind+".")
		if _, is := tables[name]; is && name != path {
			names = append(names, name)
		}
	}
	if len(names) > most {
		r.fault(kind, "there are %d [%s.NAME] tables; a file can have %d", len(names), kind, most)
		return nil, nil
	}
	for _, name := range names {
		if fault := nameFault(name); fault != "" {
			r.fault(join(kind, name), "%s: %s", kind, fault)
		}
	}
	return names, tables
}

// read fills a checked table from a decoded one.
func read[T any](r *reader, path string, v any, keys []key[T], to *T) {
	if v == nil {
		return
	}
	table, ok := v.(map[string]any)
	if !ok {
		r.fault(path, "%s is %s; it must be a table: [%s]", path, kind(v), withName(path))
		return
	}
	names := make([]string, len(keys))
	for i, k := range keys {
		names[i] = k.name
		if v, given := table[k.name]; given {
			k.read(r, join(path, k.name), v, to)
		}
	}
	for name := range table {
		if !slices.Contains(names, name) {
			r.fault(join(path, name), "unknown key %q in [%s]; %s", name, path, elsewhere(name, names))
		}
	}
}

// withName is the header that a key without a table around it lacks: a
// [service] with keys right in it wanted to be a [service.NAME].
func withName(path string) string {
	kind, _, named := strings.Cut(path, ".")
	if named {
		return kind + ".NAME"
	}
	return path
}

// elsewhere ends the message about an unknown key: it may be another table's.
func elsewhere(name string, names []string) string {
	switch {
	case hasKey(daemonKeys, name):
		return "it belongs in [daemon]"
	case hasKey(serviceKeys, name):
		return "it belongs in a [service.NAME]"
	case hasKey(actionKeys, name):
		return "it belongs in an [action.NAME]"
	}
	var kinds []string
	for _, kind := range types {
		if hasKey(knockKeys[kind], name) {
			kinds = append(kinds, strconv.Quote(kind))
		}
	}
	asks := map[string]string{"closes": "close", "extends": "extend"}[name]
	switch {
	case len(kinds) == 0:
		return suggest(name, names)
	case !slices.Contains(names, "type"):
		return "it belongs in a [knock.NAME]"
	case asks != "": // the types without it are those whose messages say what they ask for
		return fmt.Sprintf("leave it out: a message of this type asks for that itself, by 'sallyport knock NAME --%s'", asks)
	}
	return "it belongs to a knock of type " + strings.Join(kinds, " or ")
}

func hasKey[T any](keys []key[T], name string) bool {
	return slices.ContainsFunc(keys, func(k key[T]) bool { return k.name == name })
}
