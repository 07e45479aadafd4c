package knockd

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/sallyport/sallyport/internal/sequence"
)

// directive is a key and what its value sets. A later one wins unless it says
// otherwise.
type directive struct {
	name string
	read func(r *reader, value string)
}

var optionKeys = []directive{
	{"LogFile", func(r *reader, v string) { r.file.LogFile = v }},
	{"PidFile", func(r *reader, v string) { r.file.PidFile = v }},
	{"Interface", (*reader).interfaces},
}

var doorKeys = []directive{
	{"Sequence", (*reader).sequence},
	{"One_Time_Sequences", (*reader).oneTime},
	{"Seq_Timeout", func(r *reader, v string) { r.seconds("Seq_Timeout", v, &r.door.SeqTimeout) }},
	{"Timeout", func(r *reader, v string) { r.seconds("Timeout", v, &r.door.SeqTimeout) }},
	{"TCPFlags", (*reader).flags},
	{"Target", (*reader).target},
	{"Start_Command", func(r *reader, v string) { r.door.Start = v }},
	{"Command", func(r *reader, v string) { r.door.Start = v }},
	{"Start_Command_6", func(r *reader, v string) { r.door.Start6 = &v }},
	{"Command_6", func(r *reader, v string) { r.door.Start6 = &v }},
	{"Cmd_Timeout", func(r *reader, v string) { r.seconds("Cmd_Timeout", v, &r.door.CmdTimeout) }},
	{"Stop_Command", func(r *reader, v string) { r.door.Stop = v }},
	{"Stop_Command_6", func(r *reader, v string) { r.door.Stop6 = &v }},
}

func find(keys []directive, key string) func(*reader, string) {
	for _, k := range keys {
		if sameWord(k.name, key) {
			return k.read
		}
	}
	return nil
}

// interfaces takes one name, as knockd does, or several with commas between. The first
// line that names any wins.
func (r *reader) interfaces(value string) {
	var names []string
	for name := range strings.SplitSeq(value, ",") {
		name = strings.Trim(name, blanks)
		switch {
		case name == "":
			continue
		case !interfaceName(name):
			r.fault("%s is no name of an interface, so that knockd could not start; write it as ip link shows it, such as eth0, or any for all", quote(name))
			return
		case name == "lo":
			r.warn("name the interface that knocks come through", "lo is this host talking to itself: nobody else's knocks come through it")
		}
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	if r.file.Interfaces == nil {
		r.file.Interfaces = names
	}
}

// interfaceName is dev_valid_name in the kernel's net/core/dev.c.
func interfaceName(s string) bool {
	const most = 15 // IFNAMSIZ less the final NUL: netdevice(7)
	return len(s) <= most && s != "." && s != ".." && !strings.ContainsAny(s, "/:"+blanks)
}

func (r *reader) sequence(value string) {
	steps, odd, err := parseSequence(value)
	if err != nil {
		r.faulty[r.door] = true
		r.fault("Sequence: %v", err)
		return
	}
	for _, what := range odd {
		r.warn("write the port as a number from 1 to 65535", "Sequence: %s", what)
	}
	r.door.Steps = steps
}

func (r *reader) oneTime(value string) {
	// A daemon may stand elsewhere when it marks the first line as used.
	path, err := filepath.Abs(value)
	var list []line
	if err == nil && value != "" {
		list, err = readLines(path)
	}
	switch {
	case value == "":
		r.fault("One_Time_Sequences names no file; write its path")
	case err != nil:
		r.fault("One_Time_Sequences: %v", err)
	case len(list) == 0:
		r.fault("One_Time_Sequences: no sequence is left in %s; write new ones into it, one a line", quote(value))
	default:
		r.door.OneTime, r.door.Steps = path, list[0].steps
		if writable(path) {
			r.warn("chmod 600 it", "others on this machine can write to %s, and so choose what opens the door", quote(value))
		}
		return
	}
	r.faulty[r.door] = true
}

// flags adds to the conditions that the door has. Of contrary ones the last holds.
func (r *reader) flags(value string) {
	for item := range strings.SplitSeq(value, ",") {
		name, not := strings.CutPrefix(item, "!")
		bit := flagBits[upper(name)]
		if bit == 0 {
			r.fault("TCPFlags: %s", unknownFlag(item))
			return
		}
		f := &r.door.Flags
		if f.Set, f.Clear = f.Set&^bit, f.Clear&^bit; not {
			f.Clear |= bit
		} else {
			f.Set |= bit
		}
	}
}

var flagBits = map[string]uint8{
	"FIN": sequence.FIN, "SYN": sequence.SYN, "RST": sequence.RST,
	"PSH": sequence.PSH, "ACK": sequence.ACK, "URG": sequence.URG,
}

func unknownFlag(item string) string {
	name := strings.TrimPrefix(strings.Trim(item, blanks), "!")
	switch {
	case strings.Trim(item, blanks) == "":
		return "a flag is missing; write fin, syn, rst, psh, ack or urg, with one comma between two"
	case flagBits[upper(strings.Trim(name, blanks))] != 0:
		return fmt.Sprintf("%s has blanks, which knockd takes for a part of the flag; write the flags without blanks", quote(item))
	}
	return fmt.Sprintf("%s is no flag; write fin, syn, rst, psh, ack or urg, or !ack for one that must be clear", quote(item))
}

// target reads an address. knockd compares texts, and so never sees a packet for
// one in another spelling, which is meant as the address all the same.
func (r *reader) target(value string) {
	addr, err := netip.ParseAddr(value)
	if err != nil || addr.Zone() != "" {
		r.fault("Target: %s is no address that a packet carries; write it as 192.0.2.5 or 2001:db8::5", quote(value))
		return
	}
	r.door.Target = addr.Unmap()
	if plain := r.door.Target.String(); plain != value {
		r.warn("write "+plain, "Target: knockd compares spellings, and would see no packet for %s", quote(value))
	}
}

// seconds reads whole seconds as atoi(3) does.
func (r *reader) seconds(key, value string, to *time.Duration) {
	n, exact := atoi(value)
	if !exact {
		r.warn("write whole seconds, as a number without a unit", "%s: %s is read as %d seconds", key, quote(value), n)
	}
	*to = time.Duration(n) * time.Second
}

// maxPort is the highest port that knockd takes.
const maxPort = 65535

// parseSequence reads the ports of a sequence. Odd is what is accepted as knockd
// does and probably meant otherwise; it and the error name no good port.
func parseSequence(text string) (steps []Step, odd []string, err error) {
	for item := range strings.SplitSeq(text, ",") {
		if len(steps) == sequence.MaxSteps {
			return nil, nil, fmt.Errorf("there are more than %d ports; leave some out", sequence.MaxSteps)
		}
		step, what, err := parseStep(item)
		if err != nil {
			return nil, nil, fmt.Errorf("step %d: %w", len(steps)+1, err)
		}
		steps = append(steps, step)
		if what != "" {
			odd = append(odd, fmt.Sprintf("step %d %s", len(steps), what))
		}
	}
	return steps, odd, nil
}

func parseStep(item string) (s Step, odd string, err error) {
	port, rest, named := strings.Cut(item, ":")
	n, exact := atoi(port)
	if n > maxPort {
		return s, "", fmt.Errorf("port %s is invalid; write a port from 1 to %d", quote(strings.Trim(port, blanks)), maxPort)
	}
	s = Step{sequence.TCP, uint16(n)}
	proto, more, excess := strings.Cut(rest, ":")
	if named {
		switch name := strings.Trim(proto, blanks); upper(name) {
		case "TCP":
		case "UDP":
			s.Proto = sequence.UDP
		case "":
			return s, "", errors.New("a protocol is missing behind the colon; write tcp or udp")
		default:
			return s, "", fmt.Errorf("%s is no protocol that knocks have; write tcp or udp", quote(name))
		}
	}
	switch {
	case s.Port == 0 && exact:
		odd = "is port 0, which hardly any client can send to"
	case s.Port == 0:
		odd = "is no number, and is read as port 0, which hardly any client can send to"
	case n < 0 || !exact && strings.Trim(port, "+-0123456789"+blanks) == "":
		odd = "is out of range, and is read as another port"
	case !exact:
		odd = "has more than its number, and the rest is ignored"
	case excess:
		odd = fmt.Sprintf("has %s behind its protocol, which is ignored", quote(":"+more))
	}
	return s, odd, nil
}

// atoi is atoi(3) of the C library with 64-bit long and 32-bit int: blanks, a sign,
// digits, and whatever follows is ignored; a number that is too large for a long is
// the largest, and the upper half is cut off. Exact says that there was nothing but
// a number, and that it is n.
func atoi(s string) (n int, exact bool) {
	s = strings.Trim(s, blanks)
	body := strings.TrimPrefix(s, "+")
	negative := strings.HasPrefix(s, "-")
	if negative {
		body = s[1:]
	}
	digits := body[:len(body)-len(strings.TrimLeft(body, "0123456789"))]
	const largest = 1<<63 - 1
	var long uint64
	limit := uint64(largest)
	if negative {
		limit++
	}
	for _, c := range []byte(digits) {
		if d := uint64(c - '0'); long > (limit-d)/10 {
			long = limit
			break
		} else {
			long = long*10 + d
		}
	}
	if negative {
		long = -long
	}
	n = int(int32(uint32(long)))
	return n, digits != "" && strings.TrimPrefix(s, "-") == digits && uint64(n) == long
}
