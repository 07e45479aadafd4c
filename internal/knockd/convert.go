package knockd

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/sequence"
)

// noRoom is why a door is left out that only its name has room for.
const noRoom = "the file is full"

// addrWord is what stands for the address in a command of a configuration of ours.
const addrWord = "{addr}"

// Limits of internal/config: within, undo_after, and the bytes of a name.
const (
	longestName                   = 32
	shortestWithin, longestWithin = time.Second, 10 * time.Minute
	shortestUndo, longestUndo     = time.Second, 30 * 24 * time.Hour
)

// Convert writes the doors as a configuration of ours, which config.Parse accepts
// whatever the doors are: one that has no place in it is a comment, with the reason.
// What firewall commands do becomes grants, other commands become actions. It holds
// the sequences, so it is as secret as the file.
func (f *File) Convert(s Settings) string {
	c := newConversion(f, s)
	blocks := c.fit()
	var b strings.Builder
	c.head(&b)
	for i, block := range blocks {
		if !c.doors[i].crowded {
			b.WriteByte('\n')
			b.WriteString(block)
		}
	}
	c.crowd(&b)
	return b.String()
}

// conversion is a file on its way to TOML.
type conversion struct {
	*File
	settings Settings
	services []serviceTable
	doors    []converted
}

// serviceTable is the ports of one or several doors.
type serviceTable struct {
	name    string
	ports   []config.PortRange
	openFor time.Duration
}

// converted is a door on its way to TOML.
type converted struct {
	*Door
	name    string // valid and unique among the knocks, services and actions
	steps   []sequence.Step
	native  Native
	service int    // index into services; config.None: it runs an action
	left    string // why it is left out; "": it is not
	crowded bool   // there is room for its name only
}

func newConversion(f *File, s Settings) *conversion {
	c := &conversion{File: f, settings: s}
	natives := f.Natives()
	given := names{map[string]bool{}, map[string]int{}}
	service := map[string]int{}
	for _, n := range natives {
		key := fmt.Sprint(n.Ports)
		if _, seen := service[key]; n.Why != "" || n.Closes || seen {
			continue
		}
		service[key] = len(c.services)
		c.services = append(c.services, serviceTable{given.unique(validName(portsName(n.Ports))), n.Ports, n.OpenFor})
	}
	for i := range f.Doors {
		d := converted{Door: &f.Doors[i], native: natives[i], service: config.None}
		d.name = given.unique(validName(d.Name))
		if d.native.Why == "" {
			d.service = service[fmt.Sprint(d.native.Ports)]
		}
		d.setSteps()
		d.left = d.misfit()
		c.doors = append(c.doors, d)
	}
	c.leaveLonger()
	return c
}

// validName gives a name the form that config wants: 1 to 32 of a-z, 0-9, _ and -.
func validName(name string) string {
	name = strings.Map(func(r rune) rune {
		switch {
		case 'A' <= r && r <= 'Z':
			return r - 'A' + 'a'
		case 'a' <= r && r <= 'z' || '0' <= r && r <= '9' || r == '_' || r == '-':
			return r
		}
		return '-'
	}, name)
	return cmp.Or(strings.Trim(name[:min(len(name), longestName)], "-"), "door")
}

// names gives each name out once.
type names struct {
	taken map[string]bool
	last  map[string]int // the number behind the latest one of a name
}

// unique gives the name, or with a number behind it. The numbers go on where they
// ended, or else a thousand doors of one name would be tried a million times.
func (n *names) unique(name string) string {
	try := name
	for i := max(2, n.last[name]+1); n.taken[try]; i++ {
		suffix := fmt.Sprintf("-%d", i)
		try = name[:min(len(name), longestName-len(suffix))] + suffix
		n.last[name] = i
	}
	n.taken[try] = true
	return try
}

// setSteps spells the steps in our way: one without flags, or with syn alone, is the
// packet that opens a connection.
func (d *converted) setSteps() {
	for _, s := range d.Steps {
		step := sequence.Step{Proto: s.Proto, Port: s.Port}
		if s.Proto == sequence.TCP {
			step.Flags = d.Flags
			if d.Flags == (sequence.Flags{}) || d.Flags == (sequence.Flags{Set: sequence.SYN}) {
				step.Flags = sequence.Opening
			}
		}
		d.steps = append(d.steps, step)
	}
}

// misfit says why a door has no place in a configuration of ours.
func (d *converted) misfit() string {
	hasPort := func(port uint16) bool {
		return slices.ContainsFunc(d.Steps, func(s Step) bool { return s.Port == port })
	}
	switch {
	case d.Start == "" && (d.Start6 == nil || *d.Start6 == ""):
		return "it has no command, and only wrote to the log. A knock here opens or runs something"
	case d.OneTime != "":
		return "a file of one-time sequences has no counterpart. A knock of type spa can't be repeated by somebody who saw it, and no file can get out of step; 'sallyport keygen --out FILE' makes its key"
	case len(d.Steps) == 0:
		return "it has no steps"
	case len(d.Steps) > sequence.MaxSteps:
		return fmt.Sprintf("it has %d steps, and a sequence has at most %d", len(d.Steps), sequence.MaxSteps)
	case hasPort(0):
		return "it has a step to port 0, which no client can reach by an ordinary connection. Ports here are 1 to 65535"
	case d.Flags.Set&d.Flags.Clear != 0:
		return "its TCPFlags want one flag both set and clear, so nobody can make this knock"
	case d.Target.IsValid() && (d.Target.IsUnspecified() || d.Target.IsMulticast() || d.Target.Is4In6() || d.Target.Zone() != ""):
		return fmt.Sprintf("its target %s is no address of one host, as packets have it", d.Target)
	case d.service == config.None:
		return d.misfitCommands()
	}
	return ""
}

func (d *converted) misfitCommands() string {
	for _, text := range d.texts() {
		c := commandOf(text)
		switch {
		case !utf8.ValidString(text) || strings.ContainsRune(text, 0):
			return "a command has bytes that are not UTF-8, which TOML can't hold"
		case strings.Contains(text, addrWord):
			return "a command has the text {addr}, in the place of which a configuration puts the address; put the command into a script"
		case len(c) > 0 && strings.Contains(c[0], address):
			return "it would take the name of its program from a packet; name the program"
		case slices.ContainsFunc(c, func(w string) bool { return len(w)+len(addrWord)*strings.Count(w, address) > config.MaxWord }):
			return fmt.Sprintf("a command is too long: a word has at most %d bytes; put it into a script", config.MaxWord)
		}
	}
	return ""
}

// leaveLonger leaves out what config refuses as made whenever another knock is. Under
// knockd both ran.
func (c *conversion) leaveLonger() {
	var order []int
	for i := range c.doors {
		if c.doors[i].left == "" {
			order = append(order, i)
		}
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(len(c.doors[a].steps), len(c.doors[b].steps)) })
	kept := order[:0:0]
	for _, i := range order {
		d := &c.doors[i]
		if len(kept) == config.MaxKnocks {
			d.left, d.crowded = noRoom, true
			continue
		}
		for _, j := range kept {
			if k := &c.doors[j]; together(k, d) {
				d.left = fmt.Sprintf("whoever makes it makes [%s] (knock.%s) first, and only one of the two can be meant. Change a step before the shorter one's end, or let knock.%s open or run both", printable(k.Name), k.name, k.name)
				break
			}
		}
		if d.left == "" {
			kept = append(kept, i)
		}
	}
}

// together reports whether one knock is always made with the other. The rule is
// checkBeginnings of internal/config.
func together(a, b *converted) bool {
	if a.Target != b.Target && a.Target.IsValid() && b.Target.IsValid() {
		return false
	}
	return begins(a.steps, b.steps) || begins(b.steps, a.steps)
}

func begins(a, b []sequence.Step) bool {
	if len(a) > len(b) {
		return false
	}
	for i, s := range a {
		t := b[i]
		if s.Proto != t.Proto || s.Port != t.Port || s.Flags.Set&^t.Flags.Set != 0 || s.Flags.Clear&^t.Flags.Clear != 0 {
			return false
		}
	}
	return true
}

// leaveClosers leaves out close knocks of services that no door opens any more: the
// service goes too, or else it would be hidden with no way in.
func (c *conversion) leaveClosers() {
	for i := range c.doors {
		d := &c.doors[i]
		if d.left == "" && d.native.Closes && d.service != config.None && c.opener(d.service) < 0 {
			d.left = "no door that opens these ports is left"
		}
	}
}

// opener is the first door that is kept and opens a service, or -1.
func (c *conversion) opener(service int) int {
	return slices.IndexFunc(c.doors, func(d converted) bool {
		return d.left == "" && d.service == service && !d.native.Closes
	})
}

// fit writes each door's tables, and marks those for which a file of config.MaxSize
// has no room. Doors that open a service go first: others close it.
func (c *conversion) fit() []string {
	blocks := make([]string, len(c.doors))
	const forHead = 64 << 10
	room := config.MaxSize - forHead
	for i := range c.doors {
		room -= len(c.nameOnly(i))
	}
	for _, openers := range []bool{true, false} {
		for i := range c.doors {
			d := &c.doors[i]
			if d.crowded || openers != (d.left == "" && d.service != config.None && !d.native.Closes) {
				continue
			}
			blocks[i] = c.door(i)
			if room -= len(blocks[i]); room < 0 {
				room += len(blocks[i])
				d.left, d.crowded = noRoom, true
			}
		}
		c.leaveClosers()
	}
	return blocks
}

func (c *conversion) nameOnly(i int) string { return "#   [" + printable(c.doors[i].Name) + "]\n" }

// crowd names the doors that there is no room for.
func (c *conversion) crowd(b *strings.Builder) {
	first := true
	for i := range c.doors {
		if !c.doors[i].crowded {
			continue
		}
		if first {
			b.WriteByte('\n')
			comment(b, fmt.Sprintf("Left out: a file has at most %d knocks and %d bytes. Divide these doors among several machines or several knockd.conf:", config.MaxKnocks, config.MaxSize))
			first = false
		}
		b.WriteString(c.nameOnly(i))
	}
}
