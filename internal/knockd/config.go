package knockd

import (
	"fmt"
	"hash/fnv"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/sequence"
)

// Config makes the configuration that serves the doors: knock i is door i. It is
// not one that a file of ours could hold: names have any character, sequences may open
// to scans or begin alike, and a step may be port 0.
func (f *File) Config(s Settings) *config.Config {
	b := builder{File: f, settings: s, grants: f.chosen(s.Native), services: map[string]int{}}
	b.config = &config.Config{
		Daemon: f.daemon(s),
		Knockd: config.Knockd{Log: true, Classic: s.Strict, IPv4Only: s.IPv4Only},
	}
	// Services first: a door may close what only a later one opens.
	for i := range f.Doors {
		if g, native := b.grants[i]; native && !g.closes {
			b.service(g)
		}
	}
	names := f.names()
	for i := range f.Doors {
		b.knock(i, names[i])
	}
	b.config.Knockd.StateDir = b.config.Daemon.StateDir
	if s.Native != nil {
		// One daemon hides: its state is where a boot looks for what to hide.
		b.config.Daemon.StateDir, b.config.Daemon.Control = "/var/lib/sallyport", "/run/sallyport/control.sock"
	}
	return b.config
}

// chosen gives the doors that are wanted as grants and can be.
func (f *File) chosen(wanted map[int]bool) map[int]grantOf {
	if len(wanted) == 0 {
		return nil
	}
	grants := f.natives()
	for i := range grants {
		if !wanted[i] {
			delete(grants, i)
		}
	}
	return grants
}

// daemon gives each file a state of its own, because knockd can be started once for
// each interface, with a file each.
func (f *File) daemon(s Settings) config.Daemon {
	path, err := filepath.Abs(f.Name)
	if err != nil { // there is no working directory
		path = f.Name
	}
	sum := fnv.New32a()
	sum.Write([]byte(path))
	d := config.Daemon{
		StateDir:    fmt.Sprintf("/var/lib/sallyport/knockd-%08x", sum.Sum32()),
		Control:     fmt.Sprintf("/run/sallyport/knockd-%08x.sock", sum.Sum32()),
		MaxAttempts: 65536,
		MaxGrants:   65536,
	}
	d.Interfaces = slices.Clone(s.Interfaces)
	if s.Interfaces == nil {
		d.Interfaces = slices.Clone(f.Interfaces)
	}
	if slices.Contains(d.Interfaces, "any") {
		d.Interfaces = nil
	}
	return d
}

// names gives each door one of its own, fit for a log and for the border: two doors
// may have the same.
func (f *File) names() []string {
	names := make([]string, len(f.Doors))
	taken := make(map[string]bool, len(f.Doors))
	count := make(map[string]int, len(f.Doors))
	for i := range f.Doors {
		name := printable(f.Doors[i].Name)
		names[i] = name
		for taken[names[i]] {
			count[name]++
			names[i] = name + "#" + strconv.Itoa(count[name]+1)
		}
		taken[names[i]] = true
	}
	return names
}

// builder is a configuration that grows.
type builder struct {
	*File
	settings Settings
	grants   map[int]grantOf
	config   *config.Config
	services map[string]int // ports to the index of their service
}

// portsName makes the name of a service of its ports: tcp-22, tcp-80-udp-53.
func portsName(ports []config.PortRange) string {
	words := make([]string, len(ports))
	for i, p := range ports {
		words[i] = p.Proto.String() + "-" + strconv.Itoa(int(p.Low))
		if p.High != p.Low {
			words[i] += "-" + strconv.Itoa(int(p.High))
		}
	}
	return strings.Join(words, "-")
}

// service adds one unless an earlier door has the same ports.
func (b *builder) service(g grantOf) {
	name := portsName(g.ports)
	if _, have := b.services[name]; have {
		return
	}
	b.services[name] = len(b.config.Services)
	b.config.Services = append(b.config.Services, config.Service{
		Name: name, Ports: g.ports, OpenFor: g.openFor, MaxOpenFor: max(g.openFor, time.Hour),
	})
}

func (b *builder) knock(i int, name string) {
	d := &b.Doors[i]
	steps := d.sequence(d.Steps)
	k := config.Knock{
		Name: name, Door: d.Name, Type: "sequence", LookAhead: config.DefaultLookAhead,
		Sequence: steps, Within: max(d.SeqTimeout, 0), ScanOpens: sequence.ScanOpens(steps),
		Target: d.Target, OneTime: d.OneTime != "",
	}
	g, native := b.grants[i]
	service, known := b.services[portsName(g.ports)]
	switch {
	case native && known && g.closes:
		k.Closes = []int{service}
	case native && known:
		k.Opens = []int{service}
	default:
		if a := d.action(name); a.Run != nil || a.RunIPv6 != nil {
			a.Again = b.settings.Strict
			k.Runs = []int{len(b.config.Actions)}
			b.config.Actions = append(b.config.Actions, a)
		}
	}
	b.config.Knocks = append(b.config.Knocks, k)
}

// sequence gives a list of steps the door's flags, those of TCP: none is any segment.
func (d *Door) sequence(list []Step) []sequence.Step {
	var steps []sequence.Step
	for _, s := range list {
		step := sequence.Step{Proto: s.Proto, Port: s.Port}
		if s.Proto == sequence.TCP {
			step.Flags = d.Flags
		}
		steps = append(steps, step)
	}
	return steps
}

// action gives the door's commands for each family. Where nothing is started, nothing
// is stopped either.
func (d *Door) action(name string) config.Action {
	a := config.Action{Name: name, Address: address}
	start6, stop6 := d.Start, d.Stop
	if d.Start6 != nil {
		start6 = *d.Start6
	}
	if d.Stop6 != nil {
		stop6 = *d.Stop6
	}
	if a.Run = commandOf(d.Start); a.Run != nil {
		a.Undo = commandOf(d.Stop)
	}
	if a.RunIPv6 = commandOf(start6); a.RunIPv6 != nil {
		a.UndoIPv6 = commandOf(stop6)
	}
	if a.Undo != nil || a.UndoIPv6 != nil {
		a.UndoAfter = d.undoAfter()
	}
	return a
}

// undoAfter is how long sleep(3) would wait, which takes its seconds without a sign: a
// timeout below 0 is 136 years. At once is a nanosecond, because 0 means never here.
func (d *Door) undoAfter() time.Duration {
	seconds := uint32(int32(d.CmdTimeout / time.Second))
	return max(time.Duration(seconds)*time.Second, 1)
}
