package knockd

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/sallyport/sallyport/internal/config"
)

// Native says what becomes of a door where the kernel grants instead of a command.
type Native struct {
	Door    int                // index into File.Doors
	Ports   []config.PortRange // sorted; none overlaps another
	OpenFor time.Duration      // 1 s to 720 h; 0 where Closes
	Closes  bool               // it takes back what another door of the file opens
	Why     string             // why the door has to keep its commands; "": it has not
	Note    string             // what a person should know of the command; mostly ""
}

// grantOf is a Native that needs no command.
type grantOf struct {
	ports   []config.PortRange
	openFor time.Duration
	closes  bool
}

const (
	// untilClosed is how long a door opens that knockd itself never closed. The kernel
	// must have an end, or a client that forgets its close knock stays let in for ever;
	// connections made within the hour go on after it.
	untilClosed = time.Hour
	// The range of open_for in internal/config.
	shortestGrant, longestGrant = time.Second, 30 * 24 * time.Hour
)

// natives gives the doors that can be grants, by index.
func (f *File) natives() map[int]grantOf {
	out := map[int]grantOf{}
	for _, n := range f.Natives() {
		if n.Why == "" {
			out[n.Door] = grantOf{n.Ports, n.OpenFor, n.Closes}
		}
	}
	return out
}

// Natives looks at every door, in the file's order. Doors that share ports are
// grants together or not at all: once our table hides a port, no command's ACCEPT
// opens it again.
func (f *File) Natives() []Native {
	doors := make([]Native, len(f.Doors))
	for i := range f.Doors {
		doors[i] = f.Doors[i].native()
		doors[i].Door = i
	}
	groups, strange := byPorts(doors), f.concerns(doors)
	refused := make([]string, len(groups)) // of all first, so that no refusal hides another's cause
	for i, g := range groups {
		refused[i] = cmp.Or(f.disturbed(strange, doors[g[0]].Ports), f.disagree(doors, g), f.overlapped(doors, groups, i))
	}
	for i, g := range groups {
		for _, d := range g {
			doors[d].Why = refused[i]
		}
	}
	return doors
}

// byPorts groups the recognised doors that name the same ports.
func byPorts(doors []Native) [][]int {
	var groups [][]int
	at := map[string]int{}
	for i, n := range doors {
		if n.Why != "" {
			continue
		}
		key := fmt.Sprint(n.Ports)
		if _, seen := at[key]; !seen {
			at[key] = len(groups)
			groups = append(groups, nil)
		}
		groups[at[key]] = append(groups[at[key]], i)
	}
	return groups
}

// disturbed looks for a firewall command that was not understood and may be about
// the group's ports: as a command it would open or close nothing any more.
func (f *File) disturbed(strange []concern, ports []config.PortRange) string {
	for _, c := range strange {
		if c.all || slices.ContainsFunc(c.ports, func(s span) bool { return s.meets(ports) }) {
			d := &f.Doors[c.door]
			return fmt.Sprintf("door %q, line %d, has a firewall command that is not understood and may be about the same ports", printable(d.Name), d.Line)
		}
	}
	return ""
}

// disagree looks at a group by itself: a service has one time, and a close knock
// needs somebody who opens.
func (f *File) disagree(doors []Native, group []int) string {
	opener := -1
	for _, i := range group {
		switch n := doors[i]; {
		case n.Closes:
		case opener < 0:
			opener = i
		case n.OpenFor != doors[opener].OpenFor:
			return fmt.Sprintf("doors %q and %q open the same ports for different times", printable(f.Doors[opener].Name), printable(f.Doors[i].Name))
		}
	}
	if opener < 0 {
		return "no door opens the ports that it closes"
	}
	return ""
}

// overlapped looks for other groups with some of the same ports.
func (f *File) overlapped(doors []Native, groups [][]int, at int) string {
	for i, g := range groups {
		if i != at && overlap(doors[g[0]].Ports, doors[groups[at][0]].Ports) {
			return fmt.Sprintf("it shares only some of its ports with door %q, and a port is in one service", printable(f.Doors[g[0]].Name))
		}
	}
	return ""
}

func overlap(a, b []config.PortRange) bool {
	return slices.ContainsFunc(a, func(x config.PortRange) bool { return slices.ContainsFunc(b, x.Overlaps) })
}

// texts gives a door's commands as the file has them.
func (d *Door) texts() []string {
	out := []string{d.Start, d.Stop}
	for _, six := range []*string{d.Start6, d.Stop6} {
		if six != nil {
			out = append(out, *six)
		}
	}
	return out
}

// Compiled when they are wanted, or every process of the program would hold them.
var (
	firewallWord = sync.OnceValue(func() *regexp.Regexp {
		return regexp.MustCompile(`\b(ip6?tables|nft|ufw|firewall-cmd|ipset|knock_(add|helper_ipt))\b`)
	})
	portNumbers = sync.OnceValue(func() *regexp.Regexp {
		return regexp.MustCompile(`\b([0-9]{1,5})(?:[:-]([0-9]{1,5}))?\b`)
	})
)

// concern is what a firewall command that was not understood may be about. It errs
// towards too much: one that names no port can be about all of them.
type concern struct {
	door  int
	all   bool
	ports []span
}

type span struct{ low, high int }

func (s span) meets(ports []config.PortRange) bool {
	return slices.ContainsFunc(ports, func(p config.PortRange) bool { return s.low <= int(p.High) && int(p.Low) <= s.high })
}

// concerns reads the firewall commands of the doors that have to keep theirs.
func (f *File) concerns(doors []Native) (out []concern) {
	for i, n := range doors {
		for _, text := range f.Doors[i].texts() {
			if n.Why == "" || !firewallWord().MatchString(text) {
				continue
			}
			c := concern{door: i, all: !strings.Contains(text, "port") && !strings.Contains(text, "knock_")}
			for _, m := range portNumbers().FindAllStringSubmatch(text, -1) {
				low, _ := strconv.Atoi(m[1])
				high, _ := strconv.Atoi(cmp.Or(m[2], m[1]))
				c.ports = append(c.ports, span{low, high})
			}
			for name, port := range serviceNames {
				if strings.Contains(text, name) {
					c.ports = append(c.ports, span{int(port), int(port)})
				}
			}
			out = append(out, c)
		}
	}
	return out
}

// native looks at one door by itself.
func (d *Door) native() Native {
	switch {
	case d.Start == "" && (d.Start6 == nil || *d.Start6 == ""):
		return Native{Why: "it has no command"}
	case d.Start == "":
		return Native{Why: "start_command is empty, so that it does nothing over IPv4, and a grant holds for both families"}
	}
	start, why := recognise(d.Start)
	if why != "" {
		return Native{Why: "start_command: " + why}
	}
	n := Native{Ports: start.ports, Closes: start.closes, Note: start.note}
	n.Why = cmp.Or(d.families(start), d.ends(start))
	switch {
	case n.Why != "" || n.Closes:
	case d.Stop == "":
		n.OpenFor = cmp.Or(start.lasts, untilClosed)
	default:
		n.OpenFor = d.CmdTimeout
		if start.lasts > 0 {
			n.OpenFor = min(n.OpenFor, start.lasts)
		}
	}
	if n.Why == "" && !n.Closes && (n.OpenFor < shortestGrant || n.OpenFor > longestGrant) {
		n.Why = fmt.Sprintf("it opens for %s, and a grant lasts 1s to 720h", n.OpenFor)
	}
	return n
}

// families holds the commands of IPv6 against those of IPv4: a grant is the same
// for both.
func (d *Door) families(start firewall) string {
	if !start.ipv4 {
		return "start_command: this takes no IPv4 address, and it is run with one"
	}
	if d.Start6 != nil {
		if why := alike("start_command_6", *d.Start6, start); why != "" {
			return why
		}
	}
	if d.Stop6 == nil {
		return ""
	}
	want := start
	want.closes, want.lasts = true, 0
	if d.Stop == "" {
		return "it has stop_command_6 and no stop_command, and a grant ends alike for both families"
	}
	return alike("stop_command_6", *d.Stop6, want)
}

// alike wants the IPv6 variant of a rule.
func alike(key, text string, want firewall) string {
	if text == "" {
		return key + " is empty, so that it does less over IPv6, and a grant is the same for both families"
	}
	got, why := recognise(text)
	switch {
	case why != "":
		return key + ": " + why
	case !got.ipv6:
		return key + ": this takes no IPv6 address, and it is run with one"
	case got.closes != want.closes || got.lasts != want.lasts || !slices.Equal(got.ports, want.ports):
		return key + " does something else than the command of IPv4"
	}
	return ""
}

// ends holds the stop command against the start.
func (d *Door) ends(start firewall) string {
	switch {
	case d.Stop == "":
		return ""
	case start.closes:
		return "it closes ports and has a stop_command, and a grant can't be taken back for a while"
	}
	stop, why := recognise(d.Stop)
	switch {
	case why != "":
		return "stop_command: " + why
	case !stop.closes || !slices.Equal(stop.ports, start.ports):
		return "stop_command does not close just the ports that start_command opens"
	}
	return ""
}
