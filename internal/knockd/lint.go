package knockd

import (
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/sallyport/sallyport/internal/sequence"
)

// freshSequence is the advice to take other ports.
const freshSequence = "take the ports that `sallyport keygen --sequence` prints"

// lint warns of doors that work and do not do what was probably wanted.
func (r *reader) lint() {
	for i := range r.file.Doors {
		r.lintDoor(&r.file.Doors[i])
	}
	r.lintUndone()
	r.lintIPv6()
	r.lintAlike()
	r.lintScans()
}

func (r *reader) lintDoor(d *Door) {
	name := "door " + quote(d.Name)
	if d.Flags == (sequence.Flags{}) && slices.ContainsFunc(d.Steps, func(s Step) bool { return s.Proto == sequence.TCP }) {
		r.warnAt(d.Line, "add TCPFlags = syn", "%s has no TCPFlags, so that every TCP segment to one of its ports counts, also those of a live connection", name)
	}
	if d.SeqTimeout <= 0 && (len(d.Steps) > 1 || d.OneTime != "") {
		r.warnAt(d.Line, "set Seq_Timeout to the seconds that a knock may take", "%s gives no time between its steps (Seq_Timeout is 0 or less), so that nothing opens it", name)
	}
	start6, stop6 := d.Start6 != nil && *d.Start6 != "", d.Stop6 != nil && *d.Stop6 != ""
	started, stopped := d.Start != "" || start6, d.Stop != "" || stop6
	switch {
	case !started && stopped:
		r.warnAt(d.Line, "add a Start_Command, or take the Stop_Command out", "%s has a Stop_Command and no Start_Command, so that neither ever runs", name)
	case !started:
		r.warnAt(d.Line, "add a Start_Command", "%s has no command, so that a knock is logged and does nothing", name)
	case stopped && d.CmdTimeout < 0:
		r.warnAt(d.Line, "set Cmd_Timeout to the seconds until the Stop_Command", "%s waits 136 years for its Stop_Command (Cmd_Timeout is below 0)", name)
	}
}

// lintUndone finds commands that open something which no command of the file takes
// back. What neither opens nor closes, such as a wake-up, needs no partner.
func (r *reader) lintUndone() {
	closed, opened := map[string]bool{}, map[int]string{}
	for i := range r.file.Doors {
		d := &r.file.Doors[i]
		if d.Stop != "" {
			continue
		}
		switch core, way := undirected(d.Start); way {
		case closes:
			closed[core] = true
		case opens:
			opened[i] = core
		}
	}
	for i, core := range opened {
		if d := &r.file.Doors[i]; !closed[core] {
			r.warnAt(d.Line, "add a Stop_Command and a Cmd_Timeout, or a door whose command takes back what this one does", "door %s has no Stop_Command, and no other door takes back what its command does, so that what it opens or starts stays so for ever", quote(d.Name))
		}
	}
}

// lintIPv6 finds commands that get an IPv6 address and can't take it. One warning
// is for the whole file, because most files have only such doors.
func (r *reader) lintIPv6() {
	for i := range r.file.Doors {
		d := &r.file.Doors[i]
		program, _, _ := strings.Cut(d.Start, " ")
		if d.Start6 == nil && path.Base(program) == "iptables" && strings.Contains(d.Start, address) {
			r.warnAt(d.Line, "add a Start_Command_6 and Stop_Command_6 with ip6tables to each such door, or leave them empty to do nothing over IPv6",
				"door %s runs iptables for knocks over IPv6 too, and it takes no IPv6 address", quote(d.Name))
			return
		}
	}
}

// way is what a command does.
type way uint8

const (
	neither way = iota
	opens
	closes
)

// ways are the words that tell, as iptables, ufw, firewall-cmd, ip and init scripts
// have them, and what stands for the word in a command and in what takes it back.
var ways = map[string]struct {
	way  way
	core string
}{
	"-A": {opens, "±"}, "--append": {opens, "±"}, "-I": {opens, "±"}, "--insert": {opens, "±"},
	"-D": {closes, "±"}, "--delete": {closes, "±"},
	"start": {opens, "±"}, "stop": {closes, "±"},
	"add": {opens, "±"}, "del": {closes, "±"},
	"allow": {opens, "allow"}, "insert": {opens, ""}, "delete": {closes, ""},
}

// undirected gives a command without the word that says whether it opens or closes,
// which is the first of its kind: ufw delete allow closes. A rule's number goes too,
// because an insert has one where its delete has none.
func undirected(command string) (core string, w way) {
	var words []string
	for i, word := range strings.Fields(command) {
		told, tells := ways[word]
		switch {
		case i == 0:
			word = path.Base(word)
		case tells && w == neither:
			w, word = told.way, told.core
		case tells && told.core != "±":
			word = told.core
		case len(words) < 4 && ruleNumber(word):
			word = ""
		}
		if word != "" {
			words = append(words, word)
		}
	}
	return strings.Join(words, " "), w
}

func ruleNumber(word string) bool {
	n, err := strconv.Atoi(word)
	return err == nil && 0 < n && n < 1000
}

// lintAlike finds knocks that make two doors. knockd opens both: the shorter at its
// last step, while the longer goes on.
func (r *reader) lintAlike() {
	doors := r.file.Doors
	whole := map[string][]int{}
	for i := range doors {
		key := doors[i].prefix(len(doors[i].Steps))
		whole[key] = append(whole[key], i)
	}
	for i := range doors {
		for n := 1; n <= len(doors[i].Steps); n++ {
			r.lintBeginning(i, n, whole[doors[i].prefix(n)])
		}
	}
}

// lintBeginning warns of the first door that the first n steps of door i make.
func (r *reader) lintBeginning(i, n int, others []int) {
	d := &r.file.Doors[i]
	for _, j := range others {
		other := &r.file.Doors[j]
		if j == i && n == len(d.Steps) {
			return // an equal door that comes later has its own warning
		}
		if contrary(d.Flags, other.Flags) {
			continue
		}
		if n == len(d.Steps) {
			r.warnAt(d.Line, "take other ports for one of them", "door %s has the sequence of door %s (line %d), so that a knock opens both", quote(d.Name), quote(other.Name), other.Line)
		} else {
			r.warnAt(other.Line, "take other ports for one of them", "door %s is the beginning of door %s (line %d): it opens at its last step, and the longer one goes on", quote(other.Name), quote(d.Name), d.Line)
		}
		return
	}
}

// prefix is the first n steps and the Target as a key.
func (d *Door) prefix(n int) string {
	key := make([]byte, 16, 16+3*n)
	copy(key, d.Target.AsSlice())
	for _, s := range d.Steps[:n] {
		key = append(key, byte(s.Proto), byte(s.Port>>8), byte(s.Port))
	}
	return string(key)
}

// contrary reports whether no segment meets both conditions.
func contrary(a, b sequence.Flags) bool { return a.Set&b.Clear|a.Clear&b.Set != 0 }

// lintScans warns of doors that a port scan opens, under knockd or here too. The place
// in the scan tells a step, so it stands in the advice, which is never logged.
func (r *reader) lintScans() {
	doors := r.file.Doors
	warned := make([]bool, len(doors))
	for i := range doors {
		if d := &doors[i]; sequence.ScanOpens(d.sequence(d.Steps)) {
			warned[i] = true
			r.warnAt(d.Line, freshSequence+", unless a scan may open it", "door %s has one step, or steps with no port between them, so that any port scan opens it", quote(d.Name))
		}
	}
	for _, s := range scans {
		for i, packet := range r.file.opened(s) {
			if warned[i] {
				continue
			}
			warned[i] = true
			r.warnAt(doors[i].Line,
				"under knockd packet "+thousands(packet)+" of "+s.String()+" opens it; not here, unless --strict-knockd is given, because the ports between its steps count as wrong; "+freshSequence,
				"door %s is %s, as a port scan is", quote(doors[i].Name), sequence.OrderOf(doors[i].sequence(doors[i].Steps)))
		}
	}
}

// String says which ports in which order, for a warning.
func (s scan) String() string {
	order := "upwards from 1"
	if s.down {
		order = "downwards from 65535"
	}
	return "a plain scan of the " + strings.ToUpper(s.proto.String()) + " ports " + order
}

// thousands spells 9000 as 9,000.
func thousands(n int) string {
	text := strconv.Itoa(n)
	if len(text) > 3 {
		text = text[:len(text)-3] + "," + text[len(text)-3:]
	}
	return text
}
