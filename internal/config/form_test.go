package config

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/sallyport/sallyport/internal/sequence"
	"pgregory.net/rapid"
)

// A config that was built without the parser, so that the normal form is held
// against something that the parser did not make.
func drawConfig(t *rapid.T) *Config {
	c := &Config{Daemon: drawDaemon(t)}
	for i := range rapid.IntRange(0, 4).Draw(t, "services") {
		c.Services = append(c.Services, drawService(t, i))
	}
	for i := range rapid.IntRange(0, 3).Draw(t, "actions") {
		c.Actions = append(c.Actions, drawAction(t, i))
	}
	if len(c.Services) > 0 {
		for i := range rapid.IntRange(0, 4).Draw(t, "knocks") {
			k := drawKnock(t, i, len(c.Services))
			drawUse(t, c, &k)
			c.Knocks = append(c.Knocks, k)
		}
	}
	if !slices.ContainsFunc(c.Knocks, func(k Knock) bool {
		return k.Type == "sequence" || k.Quiet || !slices.Equal(k.Transports, []Transport{OverUDP})
	}) {
		c.Daemon.Source = Source(rapid.IntRange(0, 1).Draw(t, "source"))
	}
	c.Daemon.HideAll = len(c.Knocks) > 0 && rapid.Bool().Draw(t, "hide")
	return c
}

func drawDaemon(t *rapid.T) Daemon {
	d := Daemon{
		StateDir:    "/" + rapid.StringMatching(`[a-z "#é\\]{1,8}`).Draw(t, "state"),
		Control:     "/run/" + rapid.StringMatching(`[a-z']{1,8}`).Draw(t, "control"),
		MaxAttempts: rapid.IntRange(16, 1<<20).Draw(t, "attempts"),
		MaxGrants:   rapid.IntRange(1024, 1<<20).Draw(t, "grants"),
		GrantMark:   rapid.Uint32().Draw(t, "mark"),
	}
	for i := range rapid.IntRange(0, 3).Draw(t, "interfaces") {
		d.Interfaces = append(d.Interfaces, fmt.Sprintf("%s%d", rapid.StringMatching(`[a-z@"\\]{1,13}`).Draw(t, "interface"), i))
	}
	for i := range rapid.IntRange(0, 3).Draw(t, "public") {
		d.Public = append(d.Public, PortRange{sequence.TCP, uint16(60000 + 10*i), uint16(60000 + 10*i + i)})
	}
	return d
}

func drawService(t *rapid.T, i int) Service {
	low := uint16(1000 * (i + 1))
	most := time.Duration(rapid.Int64Range(1e9, 30*24*3600e9).Draw(t, "max_open_for"))
	s := Service{
		Name:       fmt.Sprintf("%s%d", rapid.StringMatching(`[a-z0-9_-]{1,31}`).Draw(t, "name"), i),
		Ports:      []PortRange{{sequence.UDP, low, low + uint16(rapid.IntRange(0, 300).Draw(t, "width"))}},
		ClosedAs:   ClosedAs(rapid.IntRange(0, 2).Draw(t, "closed_as")),
		MaxOpenFor: most,
		OpenFor:    time.Duration(rapid.Int64Range(1e9, int64(most)).Draw(t, "open_for")),
	}
	s.CloseOnDisconnect = rapid.Bool().Draw(t, "close_on_disconnect")
	if rapid.Bool().Draw(t, "allow") {
		s.Allow = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32")}
	}
	if rapid.Bool().Draw(t, "on") {
		s.On = []netip.Addr{netip.MustParseAddr("198.51.100.5"), netip.MustParseAddr("2001:db8::5")}
	}
	return s
}

func drawAction(t *rapid.T, i int) Action {
	word := rapid.OneOf(rapid.StringMatching(`[ -~é\t\n]{0,12}`), rapid.SampledFrom([]string{"", "{addr}", "--from={addr}", "'", "$(reboot)"}))
	a := Action{Name: fmt.Sprintf("%s-a%d", rapid.StringMatching(`[a-z0-9_-]{1,20}`).Draw(t, "action"), i), Address: addressWord}
	if a.AtStart = rapid.Bool().Draw(t, "at_start"); a.AtStart { // and so without an address
		word = rapid.StringMatching(`[a-z ]{0,8}`)
	}
	command := func(what string) Command {
		return append(Command{"/" + rapid.StringMatching(`[a-z "\\]{1,8}`).Draw(t, what)}, rapid.SliceOfN(word, 0, 3).Draw(t, what)...)
	}
	a.Run = command("run")
	a.RunIPv6 = a.Run
	switch rapid.IntRange(0, 2).Draw(t, "families") {
	case 1:
		a.RunIPv6 = command("run_ipv6")
	case 2:
		a.RunIPv6 = nil
	}
	if rapid.Bool().Draw(t, "undo") {
		a.Undo = command("undo")
		a.UndoIPv6 = command("undo_ipv6")
		if !a.AtStart {
			a.UndoAfter = time.Duration(rapid.Int64Range(0, 9).Draw(t, "undo_after")) * 1500 * time.Millisecond
		}
	}
	return a
}

// drawUse gives a knock actions to run, and what to close and a target if it is a
// sequence.
func drawUse(t *rapid.T, c *Config, k *Knock) {
	for i := range c.Actions {
		switch rapid.IntRange(0, 2).Draw(t, "use") {
		case 1:
			if !c.Actions[i].AtStart {
				k.Runs = append(k.Runs, i)
			}
		case 2:
			if k.Type == "sequence" && !c.Actions[i].AtStart {
				k.ClosesActions = append(k.ClosesActions, i)
			}
		}
	}
	if k.Type != "sequence" {
		return
	}
	for i := range c.Services {
		if !slices.Contains(k.Opens, i) && rapid.Bool().Draw(t, "closes") {
			k.Closes = append(k.Closes, i)
		}
	}
	if rapid.Bool().Draw(t, "no opens") && len(k.Closes)+len(k.ClosesActions)+len(k.Runs) > 0 {
		k.Opens = nil
	}
	k.Target = rapid.SampledFrom([]netip.Addr{{}, netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("fe80::1")}).Draw(t, "target")
}

func drawKnock(t *rapid.T, i, services int) Knock {
	if rapid.Bool().Draw(t, "spa") {
		return drawSPA(t, i, services)
	}
	k := Knock{
		Name:         fmt.Sprintf("k%d", i),
		Type:         "sequence",
		Opens:        []int{rapid.IntRange(0, services-1).Draw(t, "opens")},
		Sequence:     []sequence.Step{{Proto: sequence.UDP, Port: uint16(30000 + i)}}, // no beginning of another
		Within:       time.Duration(rapid.Int64Range(1e9, 600e9).Draw(t, "within")),
		Strict:       rapid.Bool().Draw(t, "strict"),
		CloseOnWrong: rapid.Bool().Draw(t, "close"),
		ScanOpens:    true,
		LookAhead:    rapid.IntRange(1, 64).Draw(t, "look_ahead"),
	}
	for range rapid.IntRange(0, sequence.MaxSteps-1).Draw(t, "steps") {
		k.Sequence = append(k.Sequence, drawStep(t))
	}
	return k
}

func drawSPA(t *rapid.T, i, services int) Knock {
	all := rapid.Permutation([]Transport{OverUDP, OverICMP, OverTCP}).Draw(t, "transports")
	return Knock{
		Name:           fmt.Sprintf("k%d", i),
		Type:           "spa",
		Opens:          []int{rapid.IntRange(0, services-1).Draw(t, "opens")},
		Quiet:          rapid.Bool().Draw(t, "quiet"),
		Port:           rapid.Uint16Range(10000, 20000).Draw(t, "port"), // no service's and not public
		Transports:     all[:rapid.IntRange(1, 3).Draw(t, "number")],
		Key:            fmt.Sprintf("/%s%d", rapid.StringMatching(`[a-z "#é\\]{1,8}`).Draw(t, "key"), i),
		AuthorizedKeys: "/" + rapid.StringMatching(`[a-z "#é\\]{1,8}`).Draw(t, "authorized"),
		Address:        Address(rapid.IntRange(0, 3).Draw(t, "address")),
		Window:         time.Duration(rapid.Int64Range(1e9, 600e9).Draw(t, "window")),
		Clock:          Clock(rapid.IntRange(0, 1).Draw(t, "clock")),
	}
}

func drawStep(t *rapid.T) sequence.Step {
	port := rapid.Uint16Range(1, 65535).Draw(t, "port")
	switch rapid.IntRange(0, 6).Draw(t, "kind") {
	case 0:
		return sequence.Step{Proto: sequence.ICMP, AnySize: true}
	case 1:
		return sequence.Step{Proto: sequence.ICMP, Port: min(port, sequence.MaxEcho)}
	case 2:
		return sequence.Step{Proto: sequence.UDP, Port: port}
	case 3:
		return sequence.Step{Proto: sequence.TCP, Port: port, Flags: sequence.Opening}
	case 4:
		return sequence.Step{Proto: rapid.SampledFrom([]sequence.Proto{sequence.SCTP, sequence.DCCP, sequence.UDPLite}).Draw(t, "proto"), Port: port}
	case 5:
		return sequence.Step{Proto: rapid.SampledFrom([]sequence.Proto{2, 47, 50, 51, 254}).Draw(t, "bare")}
	}
	set := uint8(1 + rapid.IntRange(0, 62).Draw(t, "set"))
	return sequence.Step{Proto: sequence.TCP, Port: port, Flags: sequence.Flags{Set: set, Clear: ^set & 0x3f & rapid.Uint8().Draw(t, "clear")}}
}

func TestNormalForm(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		c := drawConfig(rt)
		form := c.Format()
		got, err := Parse("f", []byte(form))
		if err != nil {
			rt.Fatalf("%v\n%s", err, form)
		}
		if diff := cmp.Diff(c, got, equal...); diff != "" {
			rt.Fatalf("%s\n%s", diff, form)
		}
		check(t, []byte(form))
	})
}

// The engine numbers rules by their place in its copy.
func TestRulesOrder(t *testing.T) {
	c, err := Parse("f", []byte(`
[service.b]
ports = ["1/tcp"]
[service.a]
ports = ["2/tcp"]
[knock.z]
type = "sequence"
opens = ["a", "b"]
sequence = ["7000/tcp", "8500/udp", "7800/tcp"]
[knock.y]
type = "sequence"
opens = ["b"]
sequence = ["7001/tcp", "8500/udp", "7800/tcp"]
[knock.x]
type = "sequence"
runs = ["on"]
closes = ["off", "a", "b"]
sequence = ["7002/tcp", "8500/udp", "7800/tcp"]
[action.off]
run = ["/a"]
[action.on]
run = ["/b"]
`))
	if err != nil {
		t.Fatal(err)
	}
	want := []Rule{
		{0, 1, None, false, false}, {0, 0, None, false, false}, {1, 0, None, false, false},
		{2, None, 1, false, false}, {2, 1, None, true, false}, {2, 0, None, true, false}, {2, None, 0, true, false},
	}
	if diff := cmp.Diff(want, c.Rules()); diff != "" {
		t.Error(diff)
	}
	if got := c.NameOf(want[3]) + c.NameOf(want[4]); got != "ona" {
		t.Errorf("named %q", got)
	}
}
