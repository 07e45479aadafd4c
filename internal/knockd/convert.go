package knockd

import (
	"bytes"
	"cmp"
	"encoding/json"
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

// comment writes paragraphs as comments of at most 90 columns.
func comment(b *strings.Builder, paragraphs ...string) {
	const width = 90
	for _, text := range paragraphs {
		line := "#"
		for _, word := range strings.Fields(text) {
			word = printable(word)
			if len(line) > 1 && len(line)+1+len(word) > width {
				b.WriteString(line + "\n")
				line = "#"
			}
			line += " " + word
		}
		b.WriteString(line + "\n")
	}
}

// title begins what is said of a door, with its name unbroken.
func (d *converted) title(b *strings.Builder, rest string) {
	fmt.Fprintf(b, "# [%s], line %d%s\n", printable(d.Name), d.Line, rest)
}

// verbatim writes a line of the old file as a comment, unbroken.
func verbatim(b *strings.Builder, key, value string) {
	b.WriteString(strings.TrimRight("#   "+key+" = "+printable(value), " ") + "\n")
}

// head says where the file comes from, how to try it, and what holds for all of it.
func (c *conversion) head(b *strings.Builder) {
	comment(b, "Made by 'sallyport convert' from "+cmp.Or(c.File.Name, "a knockd.conf")+". The comments say what is different from knockd, and why.")
	kept := slices.ContainsFunc(c.doors, func(d converted) bool { return d.left == "" })
	if !kept {
		comment(b, "", "Nothing is left to open or to run: as it is, this file does nothing.")
	}
	if c.settings.Out == "" {
		comment(b, "", "To try it, write it to FILE, which only root may read (chmod 600), for it holds the sequences. Then:")
	} else {
		comment(b, "", "It holds the sequences, so keep it as it was written, for its owner alone. To try it:")
	}
	out := printable(cmp.Or(c.settings.Out, "FILE"))
	serve := "sallyport serve -c " + out + " --undo-after 60s"
	for _, line := range [][2]string{
		{"sallyport check -c " + out, "what it means, and what would be better"},
		{"stop knockd", "or both act on the same knocks"},
		{serve, "undone after 60 s, unless 'sallyport confirm' comes first"},
	} {
		fmt.Fprintf(b, "#   %-*s   %s\n", utf8.RuneCountInString(serve), line[0], line[1])
	}
	c.headGrants(b)
	c.headActions(b)
	c.options(b)
	c.daemon(b)
}

func (c *conversion) headGrants(b *strings.Builder) {
	var ports []string
	for i, s := range c.services {
		if c.opener(i) >= 0 {
			ports = append(ports, spelled(s.ports, ""))
		}
	}
	if len(ports) == 0 {
		return
	}
	list := strings.Join(ports, ", ")
	if len(list) > 1000 {
		list = list[:1000] + "…"
	}
	comment(b, "", "A table of sallyport's own hides these ports now, and the kernel ends each grant: "+list+".",
		"That table takes away and never adds. A rule of your firewall that drops one of these ports, such as a policy DROP of INPUT, still drops it after a knock: let it accept the port. 'sallyport check', as root, finds such rules and prints what to add. And once a port is hidden, no command of your own (iptables -A …) opens it.",
		"A grant is for new connections: those that are there when it ends, or is closed by a knock, go on.")
}

func (c *conversion) headActions(b *strings.Builder) {
	runs, undoes := false, false
	for _, d := range c.doors {
		if d.left == "" && d.service == config.None {
			runs = true
			undoes = undoes || len(d.command().Undo)+len(d.command().UndoIPv6) > 0
		}
	}
	if runs {
		comment(b, "", "In commands {addr} is the address that the knock came from, %IP% in knockd.conf. They run with the rights that the daemon's unit leaves them.")
	}
	if undoes {
		comment(b, "A knock from an address whose undo is still to come does not run the command again: it puts the undo off. An undo that was due while the daemon did not run is made at its start.")
	}
}

// options says what became of [options].
func (c *conversion) options(b *strings.Builder) {
	if c.UseSyslog || c.LogFile != "" || c.PidFile != "" {
		comment(b, "", "These have no counterpart. The daemon's log is its standard error, which systemd puts into the journal; it writes no pid file:")
	}
	if c.UseSyslog {
		b.WriteString("#   UseSyslog\n")
	}
	if c.LogFile != "" {
		verbatim(b, "LogFile", c.LogFile)
	}
	if c.PidFile != "" {
		verbatim(b, "PidFile", c.PidFile)
	}
	if c.settings.IPv4Only {
		comment(b, "", "knockd was told to hear IPv4 only. Here knocks are heard over both.")
	}
	if c.settings.Strict {
		comment(b, "", "knockd's own rules for wrong and repeated packets, --strict-knockd, have no counterpart in this file.")
	}
}

// daemon writes the interfaces: knockd heard one.
func (c *conversion) daemon(b *strings.Builder) {
	names := c.settings.Interfaces
	if names == nil {
		names = c.Interfaces
	}
	var good, bad []string
	for _, name := range names {
		if list := texts([]string{name}); accepted("[daemon]\ninterfaces = " + list + "\n") {
			if !slices.Contains(good, name) {
				good = append(good, name)
			}
		} else if name != "any" {
			bad = append(bad, name)
		}
	}
	b.WriteByte('\n')
	if len(bad) > 0 {
		comment(b, "Left out, as no interface on which anything is heard has such a name: "+strings.Join(bad, ", ")+".")
	}
	switch {
	case slices.Contains(names, "any"):
		comment(b, "Interface = any: knocks are heard, and ports hidden, on every interface.")
		good = nil
	case len(good) == 0:
		comment(b, "knockd heard one interface, eth0 unless -i named another. Here knocks are heard, and ports hidden, on every one; name some to limit both.")
	default:
		comment(b, "Knocks are heard on these interfaces only, and ports are hidden on these only.")
	}
	b.WriteString("[daemon]\ninterfaces = " + texts(good) + "\n")
}

// accepted asks the one who decides.
func accepted(text string) bool {
	_, err := config.Parse("", []byte(text))
	return err == nil
}

// door writes the tables of a door; as comments if it is left out.
func (c *conversion) door(i int) string {
	d := &c.doors[i]
	var b strings.Builder
	if d.left != "" {
		d.title(&b, ", is left out:")
		comment(&b, upperFirst(d.left)+".")
		d.old(&b)
		var tables strings.Builder
		c.tables(&tables, i)
		for line := range strings.Lines(tables.String()) {
			b.WriteString("# " + printable(strings.TrimSuffix(line, "\n")) + "\n")
		}
		return b.String()
	}
	if d.service == config.None {
		d.actionComments(&b)
		d.actionTable(&b)
	} else if c.opener(d.service) == i {
		d.serviceComments(&b)
		c.services[d.service].table(&b)
	}
	if b.Len() > 0 {
		b.WriteByte('\n')
	}
	d.knockComments(&b)
	c.knockTable(&b, d)
	return b.String()
}

// tables are what a left-out door would be.
func (c *conversion) tables(b *strings.Builder, i int) {
	d := &c.doors[i]
	switch {
	case d.Start == "" && (d.Start6 == nil || *d.Start6 == "") || d.OneTime == "" && d.misfitCommands() != "":
		return // there is nothing to take over but the sequence, and the reason says why
	case d.OneTime != "" && d.native.Closes:
		return // a request of type spa can close by itself
	case d.service == config.None:
		d.actionTable(b)
	case c.opener(d.service) < 0 && !d.native.Closes:
		c.services[d.service].table(b)
	}
	c.knockTable(b, d)
}

// old writes the door's commands as they were.
func (d *converted) old(b *strings.Builder) {
	for _, line := range []struct {
		key  string
		text *string
	}{{"start_command", &d.Start}, {"start_command_6", d.Start6}, {"stop_command", &d.Stop}, {"stop_command_6", d.Stop6}} {
		if line.text != nil && (*line.text != "" || strings.HasSuffix(line.key, "_6")) {
			verbatim(b, line.key, *line.text)
		}
	}
}

func upperFirst(s string) string { return strings.ToUpper(s[:1]) + s[1:] }

func (d *converted) serviceComments(b *strings.Builder) {
	start, _ := recognise(d.Start)
	comment(b, "Hidden from strangers, and opened for one address at a time.")
	switch {
	case d.Stop != "" && d.native.OpenFor == d.CmdTimeout:
		comment(b, "open_for is Cmd_Timeout. Another knock within it prolongs the grant.")
	case start.lasts == 0:
		comment(b, "knockd opened it until something closed it, or for ever. Here it ends by itself, "+spellTime(untilClosed)+" after the latest knock: a client that forgets to close it must not stay let in.")
	default:
		comment(b, "open_for is the --timeout of the command. Another knock within it prolongs the grant.")
	}
	if !start.ipv6 && d.Start6 == nil {
		comment(b, "It opens over IPv6 too. There knockd gave an IPv6 address to a command that takes none.")
	}
}

func (s *serviceTable) table(b *strings.Builder) {
	t := table{{"ports", "[" + spelled(s.ports, `"`) + "]"}, {"open_for", basicString(spellTime(s.openFor))}}
	if s.openFor > time.Hour { // the default of max_open_for
		t = append(t, pair{"max_open_for", basicString(spellTime(s.openFor))})
	}
	t.write(b, "service."+s.name)
}

// table is the keys and values of one, which are written as config.Format does.
type (
	table []pair
	pair  struct{ key, value string }
)

func (t table) write(b *strings.Builder, name string) {
	width := 0
	for _, p := range t {
		width = max(width, len(p.key))
	}
	fmt.Fprintf(b, "[%s]\n", name)
	for _, p := range t {
		fmt.Fprintf(b, "%-*s = %s\n", width, p.key, p.value)
	}
}

// spelled lists ports, each between quotes.
func spelled(ports []config.PortRange, quotes string) string {
	list := make([]string, len(ports))
	for i, p := range ports {
		list[i] = quotes + p.String() + quotes
	}
	return strings.Join(list, ", ")
}

// spellTime is 1h for 1h0m0s.
func spellTime(d time.Duration) string {
	s := d.String()
	for _, zero := range []string{"m0s", "h0m"} {
		if strings.HasSuffix(s, zero) {
			s = s[:len(s)-2]
		}
	}
	return s
}

// command is the door's commands in config's spelling and ranges.
func (d *converted) command() config.Action {
	a := d.action(d.name)
	for _, c := range []*config.Command{&a.Run, &a.RunIPv6, &a.Undo, &a.UndoIPv6} {
		*c = slices.Clone(*c) // the families may share one
		for i, word := range *c {
			(*c)[i] = strings.ReplaceAll(word, address, addrWord)
		}
	}
	if a.UndoAfter > 0 {
		a.UndoAfter = min(max(a.UndoAfter, shortestUndo), longestUndo)
	}
	return a
}

func (d *converted) actionComments(b *strings.Builder) {
	a := d.command()
	d.title(b, ", keeps its command:")
	d.old(b)
	comment(b, "It can't be a grant: "+d.native.Why+".")
	inShell := func(c config.Command) bool { return len(c) > 1 && c[0] == "/bin/sh" && c[1] == "-c" }
	if inShell(a.Run) || inShell(a.RunIPv6) || inShell(a.Undo) || inShell(a.UndoIPv6) {
		comment(b, "Where the text needs a shell it gets one, as under knockd.")
	} else {
		comment(b, "It runs without a shell, which the text does not need.")
	}
	if a.UndoAfter != 0 && a.UndoAfter != d.CmdTimeout {
		comment(b, fmt.Sprintf("Cmd_Timeout = %d is out of range here: undo_after is 1s to 720h.", d.CmdTimeout/time.Second))
	}
	if a.UndoAfter == 0 && d.Stop != "" {
		comment(b, "Its stop command never ran, as the file has it run after an empty start command only.")
	}
}

func (d *converted) actionTable(b *strings.Builder) {
	a := d.command()
	var t table
	add := func(key string, c, unless config.Command) {
		if !slices.Equal(c, unless) {
			t = append(t, pair{key, texts(c)})
		}
	}
	add("run", a.Run, nil)
	add("run_ipv6", a.RunIPv6, a.Run)
	add("undo", a.Undo, nil)
	add("undo_ipv6", a.UndoIPv6, a.Undo)
	if a.UndoAfter > 0 {
		t = append(t, pair{"undo_after", basicString(spellTime(a.UndoAfter))})
	}
	t.write(b, "action."+d.name)
}

// within is the time for the whole sequence, in config's range.
func (d *converted) within() time.Duration {
	return min(max(d.SeqTimeout, shortestWithin), longestWithin)
}

func (d *converted) knockComments(b *strings.Builder) {
	if d.service != config.None {
		d.title(b, ", without its commands:")
		d.old(b)
		if d.native.Note != "" {
			comment(b, "Note: "+d.native.Note+".")
		}
	}
	tcp := slices.ContainsFunc(d.steps, func(s sequence.Step) bool { return s.Proto == sequence.TCP })
	switch {
	case tcp && d.Flags == (sequence.Flags{}):
		comment(b, "The door had no TCPFlags: knockd took any TCP packet for a step. Here a step opens a connection, as any client does (a SYN without ACK).")
	case tcp && d.Flags == (sequence.Flags{Set: sequence.SYN}):
		comment(b, "TCPFlags = syn: a SYN is a step. One with ACK, which knockd took too, is none.")
	}
	switch {
	case d.SeqTimeout <= 0 && len(d.steps) > 1:
		comment(b, "Its Seq_Timeout left no time, so that under knockd nobody ever opened this door. within is at least 1s.")
	case d.within() != d.SeqTimeout:
		comment(b, fmt.Sprintf("Seq_Timeout = %d is out of range here: within is 1s to 10m.", d.SeqTimeout/time.Second))
	}
	switch {
	case sequence.ScanOpens(d.steps):
		comment(b, "scan_opens: any port scan makes this knock, and so does whoever tries these ports. It is allowed because knockd allowed it; 'sallyport keygen --sequence' prints a better one.")
	case len(d.steps) > 2 && sequence.OrderOf(d.steps) != sequence.Mixed:
		comment(b, fmt.Sprintf("Its ports are %s, as in a port scan. Under knockd a scan in that order could open it. Here ports between the steps are wrong steps, but people guess such orders first. 'sallyport keygen --sequence' prints a better one.", sequence.OrderOf(d.steps)))
	}
	if d.Target.IsValid() {
		comment(b, "target: the knock's packets go to this address, which need not be this host's.")
	}
}

func (c *conversion) knockTable(b *strings.Builder, d *converted) {
	key, name := "runs", d.name
	switch {
	case d.service == config.None:
	case d.native.Closes:
		key, name = "closes", c.services[d.service].name
	default:
		key, name = "opens", c.services[d.service].name
	}
	if d.OneTime != "" {
		table{
			{"type", `"spa"`}, {key, texts([]string{name})},
			{"key", `"/etc/sallyport/key"`}, {"authorized_keys", `"/etc/sallyport/authorized_keys"`},
		}.write(b, "knock."+d.name)
		return
	}
	steps := make([]string, len(d.steps))
	for i, s := range d.steps {
		steps[i] = s.String()
	}
	t := table{
		{"type", `"sequence"`}, {key, texts([]string{name})},
		{"sequence", texts(steps)}, {"within", basicString(spellTime(d.within()))},
	}
	if d.Target.IsValid() {
		t = append(t, pair{"target", basicString(d.Target.String())})
	}
	if sequence.ScanOpens(d.steps) {
		t = append(t, pair{"scan_opens", "true"})
	}
	t.write(b, "knock."+d.name)
}

// texts spells a list of TOML.
func texts(list []string) string {
	quoted := make([]string, len(list))
	for i, s := range list {
		quoted[i] = basicString(s)
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}

// basicString spells a text of TOML 1.0: JSON's strings are its basic strings, but
// for DEL, which TOML wants escaped.
func basicString(s string) string {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	_ = e.Encode(s) // a string and a Buffer never fail
	return strings.ReplaceAll(strings.TrimSuffix(b.String(), "\n"), "\x7f", `\u007f`)
}
