package config

import (
	"bytes"
	"fmt"
	"io/fs"
	"slices"

	"github.com/sallyport/sallyport/internal/sequence"
)

// Warning is something that is allowed and probably not meant. Its text names
// no step's port; its advice can hold a fresh sequence, so a daemon must not
// log it.
type Warning struct {
	Text   string `json:"text"`
	Advice string `json:"advice"`
}

// Facts is what Lint knows of the machine. A zero field is not known and warns
// of nothing.
type Facts struct {
	File      string                 // path of the configuration
	Mode      fs.FileMode            // its permissions
	Owner     int                    // its owner's user number
	Listening []PortRange            // ports with a socket that takes packets from the network
	SSHPorts  []uint16               // where sshd listens, by its own configuration
	Passwords string                 // "yes" or "no": whether sshd takes passwords; "": not known
	Fresh     func() []sequence.Step // makes a random sequence for an advice
	// NamespacesLog: rules of other network namespaces write to the kernel's log.
	NamespacesLog bool
}

// printed lists the ports of sequences that documentation prints; whoever scans
// for knocks tries these first, in both directions.
var printed = [][]uint16{
	{7000, 8000, 9000},               // knockd.conf, knockd(1)
	{12345, 54321, 24680, 13579},     // Debian's knockd.conf
	{2222, 3333, 4444},               // knockd(1)
	{8284, 4721, 18592, 42912},       // knock(1)
	{7000, 3000, 55000, 1500},        // tutorials for knockd
	{8881, 7777, 9991},               // tutorials for iptables
	{1111, 2222}, {1111, 2222, 3333}, // tutorials for iptables
	{1000, 2000, 3000},   // tutorials for iptables
	{100, 200, 300, 400}, // documentation of CSF
	{7000, 8500, 7800},   // our own documentation
}

// enoughBits is where guessing stops being an attack: 2^40 guesses of three
// packets take a year at 100,000 packets a second.
const enoughBits = 40

// wholeEcho is the largest payload in bytes that crosses any ordinary network in
// one packet: an MTU of 1,500 less both headers and room for a tunnel's. The
// rest arrives in fragments, which decline.
const wholeEcho = 1400

// likely is the probability from which on one scan counts as a way in.
const likely = 0.001

// Lint lists what a valid configuration is better without. It is pure: what it
// knows of the machine is in f.
func Lint(c *Config, f Facts) []Warning {
	l := &linter{Config: c, facts: f}
	l.file()
	for i := range c.Knocks {
		l.knock(&c.Knocks[i])
	}
	for i := range c.Services {
		l.service(i)
	}
	for i := range c.Actions {
		l.action(i)
	}
	l.source()
	l.backend()
	l.observed()
	return l.out
}

type linter struct {
	*Config
	facts Facts
	out   []Warning
}

func (l *linter) warn(advice, format string, args ...any) {
	l.out = append(l.out, Warning{Text: fmt.Sprintf(format, args...), Advice: advice})
}

// file looks at who can read the sequences, and who can change what opens.
func (l *linter) file() {
	f := l.facts
	if f.File == "" || len(l.Knocks) == 0 {
		return
	}
	switch mode := f.Mode.Perm(); {
	case l.sequences() && mode&0o077 != 0:
		l.warn("chmod 600 "+f.File, "others on this machine can read or change the sequences in %s (its mode is %04o)", f.File, mode)
	case mode&0o022 != 0: // a config with nothing but knocks of type spa holds no secret
		l.warn("chmod go-w "+f.File, "others on this machine can change what opens in %s (its mode is %04o)", f.File, mode)
	}
	if f.Owner != 0 {
		l.warn("chown root "+f.File, "%s belongs to user %d, who can change what opens", f.File, f.Owner)
	}
}

func (l *linter) sequences() bool {
	return slices.ContainsFunc(l.Knocks, func(k Knock) bool { return k.Type == "sequence" && k.List == "" })
}

func (l *linter) knock(k *Knock) {
	switch k.Type {
	case "spa":
		l.spa(k)
		return
	case "otp":
		l.otp(k)
		return
	case "encoded":
		l.encoded(k)
		return
	}
	if k.List != "" {
		l.list(k)
		return
	}
	name := "knock." + k.Name
	switch {
	case isPrinted(k.Sequence):
		l.warn(l.fresh(), "%s is a sequence that well-known documentation prints, so it is tried first", name)
	case len(k.Sequence) > 2 && sequence.OrderOf(k.Sequence) != sequence.Mixed:
		l.warn(l.fresh(), "%s is %s, as a port scan is; only the ports between its steps keep a scan from opening it, and people guess such orders first", name, sequence.OrderOf(k.Sequence))
	}
	l.strength(k)
	for i, step := range k.Sequence {
		if step.Proto == sequence.ICMP {
			if !step.AnySize && step.Port > wholeEcho {
				l.warn(fmt.Sprintf("take %d bytes at most", wholeEcho), "%s: step %d is a ping so large that it arrives in fragments, which never count", name, i+1)
			}
			continue
		}
		if holds(l.facts.Listening, step) {
			l.warn("take a port where nothing listens", "%s: a program listens on the port of step %d, so its ordinary clients make that step", name, i+1)
		}
		for _, s := range l.Services {
			if len(s.On) == 0 && holds(s.Ports, step) {
				l.warn("take another port", "%s: step %d is a hidden port of service.%s; the step is seen, but trying the service now counts as knocking", name, i+1, s.Name)
			}
		}
	}
	if k.CloseOnWrong {
		l.warn("leave close_on_wrong out", "%s: close_on_wrong lets anyone who forges the address of a user end that user's grant with one packet", name)
	}
	if len(k.Closes)+len(k.ClosesActions) > 0 {
		l.warn("leave closes out: grants and actions end with their time, and who has a knock of type spa can end his own", "%s: closes lets anyone who forges the address of a user end what that user's sequence opened or ran, once the steps are known", name)
	}
	if k.ScanOpens && sequence.ScanOpens(k.Sequence) {
		l.warn("leave scan_opens out, and take a longer sequence", "%s: any port scan or plain ping opens it, as scan_opens allows", name)
	}
}

// spa looks at what the file alone says of such a knock: check reads the keys.
func (l *linter) spa(k *Knock) {
	name := "knock." + k.Name
	if k.Address == Stated {
		l.warn("leave address out to open for the address that a request comes from unless it states one", `%s: with address = "stated" every request must name the address to open for, and it may be any: whoever has a key can let others in, and a client behind NAT must find out its public address`, name)
	}
	if k.Clock == NoClock {
		l.warn("leave clock out, unless this machine starts with a wrong time", `%s: with clock = "none" no request is ever too old, so that one which was held back on its way opens whenever it arrives, as long as its key has asked for nothing since`, name)
	}
	for _, p := range k.Ports() {
		l.spaPort(name, p)
	}
}

// spaPort looks who else has a port that requests go to.
func (l *linter) spaPort(name string, p PortRange) {
	switch {
	case l.Daemon.Source == Socket: // the listener may be our own
	case slices.ContainsFunc(l.facts.Listening, p.Overlaps):
		l.warn("take a port where nothing listens", "%s: a program listens at %s; it gets the requests too, and what it answers tells that they arrive", name, p)
	case guarded(l.Config, p):
		l.warn("take another port", "%s: %s is also a port of a service; its ordinary packets are looked at as requests", name, p)
	}
}

// LineOf gives the line of a key in a configuration, such as "knock.front.key",
// or of the table that should have it. It is for what only becomes clear when
// a file that the key names is read; the text is one that Parse takes.
func LineOf(text []byte, path string) int {
	return findLines(bytes.TrimPrefix(text, []byte("\ufeff"))).find(path)
}

// strength warns of what guessing or one scan can open.
func (l *linter) strength(k *Knock) {
	s := StrengthOf(l.Config, k, l.facts.Listening)
	if s.Bits < enoughBits {
		l.warn(l.fresh(), "knock.%s is too short: %s guesses (%.0f bits) try every sequence of %d steps", k.Name, spellCount(s.Guesses), s.Bits, len(k.Sequence))
	} else if s.ScanPopular > likely {
		l.warn(l.fresh(), "knock.%s has its steps close together: a scan of 1,000 ports in random order that holds them opens it with probability %.2g", k.Name, s.ScanPopular)
	}
}

func (l *linter) service(i int) {
	s := &l.Services[i]
	name := "service." + s.Name
	knocked, copied := false, false // copied: whoever saw a knock can make it
	for _, k := range l.Knocks {
		if slices.Contains(k.Opens, i) {
			knocked, copied = true, copied || k.Type == "sequence" && k.List == ""
		}
	}
	if !knocked && len(s.Allow) == 0 {
		l.warn("add a [knock.NAME] with opens = [\""+s.Name+"\"], or an allow list", "%s is hidden and no knock opens it, so nobody reaches it but through `sallyport open`", name)
	}
	for _, p := range s.Allow {
		if p.Bits() == 0 {
			l.warn("name the networks that need it", "%s: allow = %s hides the service from nobody of that family", name, p)
		}
	}
	if s.CloseOnDisconnect && slices.ContainsFunc(s.Ports, func(p PortRange) bool { return p.Proto == sequence.UDP }) {
		l.warn("leave close_on_disconnect to services of TCP", "%s: close_on_disconnect can't tell forged datagrams from a user's: a few of them end the grant of a user who has nothing open", name)
	}
	if s.Once && slices.ContainsFunc(s.Ports, func(p PortRange) bool { return p.Proto == sequence.UDP }) {
		l.warn("leave once to services of TCP, or let users knock again", "%s: once can't tell a forged datagram from a user's: one of them uses the grant up", name)
	}
	if l.facts.Passwords != "yes" || len(s.On) > 0 || !copied {
		return
	}
	for _, port := range l.facts.SSHPorts {
		if holds(s.Ports, sequence.Step{Proto: sequence.TCP, Port: port}) {
			l.warn("set PasswordAuthentication no and KbdInteractiveAuthentication no in sshd_config", "%s guards an sshd that takes passwords; whoever sees the knock only has a password left to guess", name)
		}
	}
}

// action looks for commands that nothing ever runs.
func (l *linter) action(i int) {
	a := &l.Actions[i]
	name := "action." + a.Name
	run, undone := a.AtStart, a.AtStart || a.UndoAfter > 0
	for _, k := range l.Knocks {
		run = run || slices.Contains(k.Runs, i)
		closes := slices.Contains(k.ClosesActions, i)
		undone = undone || closes || (k.Type == "spa" || k.Type == "encoded") && slices.Contains(k.Runs, i) // which can close too
		if closes && len(a.Undo)+len(a.UndoIPv6) == 0 {
			l.warn("give it an undo, or leave it out of closes", "knock.%s closes %s, which has no undo: nothing happens", k.Name, name)
		}
	}
	switch {
	case !run:
		l.warn("name it in a knock's runs, say at_start = true, or delete it", "%s is run by no knock", name)
	case !undone && len(a.Undo)+len(a.UndoIPv6) > 0:
		l.warn("add undo_after, or a knock that closes it", "%s has an undo that nothing ever runs", name)
	}
}

// observed says once what no plain sequence can change.
func (l *linter) observed() {
	if l.sequences() {
		l.warn("use a knock of type spa for what matters, and keep the guarded service's own keys and patches in order; a sequence hides it and does not protect it",
			"a plain sequence can be read by anyone on the path and repeated, and a packet with a user's forged address can spoil that user's attempt")
	}
}

// fresh is the advice to take another sequence, with one to take.
func (l *linter) fresh() string {
	if l.facts.Fresh == nil {
		return "take the sequence that `sallyport keygen --sequence` prints"
	}
	return "take a random one: " + sequence.ConfigLine(l.facts.Fresh())
}

func isPrinted(steps []sequence.Step) bool {
	var ports []uint16
	for _, s := range steps {
		ports = append(ports, s.Port)
	}
	back := slices.Clone(ports)
	slices.Reverse(back)
	return slices.ContainsFunc(printed, func(p []uint16) bool {
		return slices.Equal(p, ports) || slices.Equal(p, back)
	})
}
