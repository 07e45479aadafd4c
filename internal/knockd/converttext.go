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
