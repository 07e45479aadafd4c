package knockd

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/sequence"
	"pgregory.net/rapid"
)

var updateConvert = flag.Bool("update-convert", false, "write testdata/convert/*.toml anew")

// TestConvertGolden holds what becomes of whole files, which a person must be able
// to read.
func TestConvertGolden(t *testing.T) {
	files, _ := filepath.Glob("testdata/convert/*.conf")
	if len(files) < 7 {
		t.Fatalf("%d files in testdata/convert", len(files))
	}
	for _, path := range files {
		t.Run(filepath.Base(path), func(t *testing.T) {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			f, err := Parse(filepath.Base(path), text)
			if err != nil {
				t.Fatal(err)
			}
			got, golden := f.Convert(Settings{}), strings.TrimSuffix(path, ".conf")+".toml"
			checkConverted(t, f, got)
			if *updateConvert {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("%s is different; got\n%s", golden, got)
			}
		})
	}
}

// fataler is a *testing.T or a *rapid.T.
type fataler interface {
	Helper()
	Fatalf(format string, args ...any)
	Errorf(format string, args ...any)
}

// checkConverted holds a result against the doors: config takes it, each knock asks
// for what its door did, and no door is lost without a word.
func checkConverted(t fataler, f *File, text string) *config.Config {
	t.Helper()
	c, err := config.Parse("converted.toml", []byte(text))
	if err != nil {
		t.Fatalf("config refuses it: %v\n%s", err, text)
	}
	for i := range f.Doors {
		if name := "[" + printable(f.Doors[i].Name) + "]"; !strings.Contains(text, name) {
			t.Errorf("door %s is not in it:\n%s", name, text)
		}
	}
	natives := f.natives()
	for i := range c.Knocks {
		k := &c.Knocks[i]
		d, index := doorOf(t, f, text, k.Name)
		checkSteps(t, d, k)
		if g, native := natives[index]; native {
			checkGrant(t, c, k, g)
		} else {
			checkAction(t, c, k, d)
		}
	}
	for i, s := range c.Services {
		if !slices.ContainsFunc(c.Knocks, func(k config.Knock) bool { return slices.Contains(k.Opens, i) }) {
			t.Errorf("service %s is hidden and nothing opens it:\n%s", s.Name, text)
		}
	}
	return c
}

// doorOf finds a knock's door by the comment above its tables, from which a person
// would find it too. Tests give each door a line of its own.
func doorOf(t fataler, f *File, text, knock string) (*Door, int) {
	t.Helper()
	before, _, _ := strings.Cut(text, "\n[knock."+knock+"]\n")
	at := strings.LastIndex(before, "], line ")
	if at < 0 {
		t.Fatalf("nothing above knock.%s names its door:\n%s", knock, text)
	}
	line := 0
	if _, err := fmt.Sscanf(before[at:], "], line %d,", &line); err != nil {
		t.Fatalf("knock.%s: %v", knock, err)
	}
	i := slices.IndexFunc(f.Doors, func(d Door) bool { return d.Line == line })
	if i < 0 {
		t.Fatalf("knock.%s is said to be of line %d, where no door is", knock, line)
	}
	return &f.Doors[i], i
}

func checkSteps(t fataler, d *Door, k *config.Knock) {
	t.Helper()
	if len(d.Steps) != len(k.Sequence) {
		t.Fatalf("knock.%s has %d steps, its door %d", k.Name, len(k.Sequence), len(d.Steps))
	}
	for i, s := range k.Sequence {
		flags := d.Flags
		if flags == (sequence.Flags{}) || flags == (sequence.Flags{Set: sequence.SYN}) {
			flags = sequence.Flags{Set: sequence.SYN, Clear: sequence.ACK | sequence.RST | sequence.FIN}
		}
		if s.Proto == sequence.UDP {
			flags = sequence.Flags{}
		}
		if want := (sequence.Step{Proto: d.Steps[i].Proto, Port: d.Steps[i].Port, Flags: flags}); s != want {
			t.Errorf("knock.%s, step %d: %+v, want %+v", k.Name, i+1, s, want)
		}
	}
	if k.Target != d.Target {
		t.Errorf("knock.%s has target %v, its door %v", k.Name, k.Target, d.Target)
	}
	if want := min(max(d.SeqTimeout, time.Second), 10*time.Minute); k.Within != want {
		t.Errorf("knock.%s within %v, want %v", k.Name, k.Within, want)
	}
}

func checkGrant(t fataler, c *config.Config, k *config.Knock, g grantOf) {
	t.Helper()
	use := k.Opens
	if g.closes {
		use = k.Closes
	}
	if len(use) != 1 || len(k.Opens)+len(k.Closes)+len(k.Runs)+len(k.ClosesActions) != 1 {
		t.Fatalf("knock.%s opens %v, closes %v, runs %v", k.Name, k.Opens, k.Closes, k.Runs)
	}
	s := &c.Services[use[0]]
	if !slices.Equal(s.Ports, g.ports) || !g.closes && s.OpenFor != g.openFor {
		t.Errorf("service.%s: %v for %v, want %v for %v", s.Name, s.Ports, s.OpenFor, g.ports, g.openFor)
	}
}

func checkAction(t fataler, c *config.Config, k *config.Knock, d *Door) {
	t.Helper()
	if len(k.Runs) != 1 || len(k.Opens)+len(k.Closes)+len(k.ClosesActions) != 0 {
		t.Fatalf("knock.%s opens %v, runs %v", k.Name, k.Opens, k.Runs)
	}
	a := &c.Actions[k.Runs[0]]
	start6, stop6 := d.Start, d.Stop
	if d.Start6 != nil {
		start6 = *d.Start6
	}
	if d.Stop6 != nil {
		stop6 = *d.Stop6
	}
	for _, side := range []struct{ addr, start, stop string }{{"192.0.2.7", d.Start, d.Stop}, {"2001:db8::7", start6, stop6}} {
		run, undo := a.Commands(netip.MustParseAddr(side.addr))
		checkArgv(t, k.Name+" run", run, side.start, side.addr)
		if side.start == "" {
			side.stop = "" // knockd stops nothing that it did not start
		}
		checkArgv(t, k.Name+" undo", undo, side.stop, side.addr)
		if len(undo) > 0 && a.UndoAfter <= 0 {
			t.Errorf("action.%s never undoes by itself", a.Name)
		}
	}
}

// checkArgv holds an argv against the text that knockd would give to its shell.
func checkArgv(t fataler, what string, argv config.Command, text, addr string) {
	t.Helper()
	text = strings.ReplaceAll(text, "%IP%", addr)
	want := strings.Fields(text)
	if len(argv) == 3 && argv[0] == "/bin/sh" && argv[1] == "-c" {
		want = []string{"/bin/sh", "-c", text}
	}
	if !slices.Equal(argv, want) {
		t.Errorf("%s: %q, want %q", what, argv, want)
	}
}

// commandTexts are put together to commands, odd ones among them.
var commandTexts = []string{
	"", "", "/sbin/iptables -A INPUT -s %IP% -p tcp --dport 22 -j ACCEPT", "/sbin/iptables -D INPUT -s %IP% -p tcp --dport 22 -j ACCEPT",
	"/sbin/ip6tables -A INPUT -s %IP% -p tcp --dport 22 -j ACCEPT", "/sbin/ip6tables -D INPUT -s %IP% -p tcp --dport 22 -j ACCEPT",
	"iptables -I INPUT -s %IP% -p tcp -m multiport --dports 80,443 -j ACCEPT", "iptables -D INPUT -s %IP% -p tcp -m multiport --dports 80,443 -j ACCEPT",
	"ufw allow from %IP% to any port 5000", "ufw delete allow from %IP% to any port 5000", "iptables -I INPUT -s %IP% -j ACCEPT",
	"/usr/local/bin/wake %IP%", "/usr/local/bin/wake %IP% && echo \"a\\tb\" 'c'", "/bin/echo {addr}", "%IP%", "/x%IP%/y", "relative/path %IP%",
	"/bin/echo \x01\x7f'é–\u2028'", "/bin/echo \xff", "/bin/echo a\x00b", "FOO=bar /bin/env", "nft add element inet f s { %IP% }",
	"firewall-cmd --timeout=2h --add-rich-rule='rule family=ipv4 source address=%IP% port port=8080 protocol=tcp accept'",
}

func drawDoor(t *rapid.T, line int) Door {
	command := rapid.SampledFrom(commandTexts)
	optional := rapid.Custom(func(t *rapid.T) *string {
		if rapid.IntRange(0, 3).Draw(t, "given") > 0 {
			return nil
		}
		s := command.Draw(t, "text")
		return &s
	})
	step := rapid.Custom(func(t *rapid.T) Step {
		port := rapid.OneOf(rapid.Uint16Range(1, 3), rapid.Uint16()).Draw(t, "port")
		return Step{rapid.SampledFrom([]sequence.Proto{sequence.TCP, sequence.UDP}).Draw(t, "proto"), port}
	})
	flags := rapid.SampledFrom([]sequence.Flags{
		{}, {Set: sequence.SYN}, sequence.Opening, {Set: sequence.SYN | sequence.ACK}, {Clear: sequence.ACK},
		{Set: sequence.FIN, Clear: sequence.ACK}, {Set: sequence.SYN, Clear: sequence.SYN}, {Set: sequence.URG | sequence.PSH},
	})
	targets := []netip.Addr{{}, {}, {}}
	for _, a := range []string{"192.0.2.1", "2001:db8::1", "0.0.0.0", "224.0.0.1", "::ffff:192.0.2.1", "fe80::1%eth0", "::1"} {
		targets = append(targets, netip.MustParseAddr(a))
	}
	seconds := rapid.Custom(func(t *rapid.T) time.Duration {
		return time.Duration(rapid.SampledFrom([]int{-1, 0, 1, 5, 25, 3600, 86400, 3000000}).Draw(t, "s")) * time.Second
	})
	return Door{
		Name:    rapid.OneOf(rapid.SampledFrom([]string{"openSSH", "a", "tcp-22", "A", "-", "ü  ber", "x\ty"}), rapid.StringN(1, 40, 127)).Draw(t, "name"),
		Line:    line,
		Steps:   rapid.SliceOfN(step, 1, rapid.SampledFrom([]int{1, 3, 33}).Draw(t, "most")).Draw(t, "steps"),
		OneTime: rapid.SampledFrom([]string{"", "", "", "/etc/knockd/once"}).Draw(t, "once"), SeqTimeout: seconds.Draw(t, "timeout"),
		Flags: flags.Draw(t, "flags"), Target: rapid.SampledFrom(targets).Draw(t, "target"),
		Start: command.Draw(t, "start"), Stop: command.Draw(t, "stop"), Start6: optional.Draw(t, "start6"), Stop6: optional.Draw(t, "stop6"),
		CmdTimeout: seconds.Draw(t, "cmd"),
	}
}

// TestConvertAccepted is the promise of Convert: whatever the doors are, the result
// is a configuration, of the same knocks.
func TestConvertAccepted(t *testing.T) {
	kept, left := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		f := &File{Name: "/etc/knockd.conf", UseSyslog: rapid.Bool().Draw(t, "syslog"), LogFile: rapid.String().Draw(t, "log"), PidFile: "/p"}
		f.Interfaces = rapid.SliceOfN(rapid.SampledFrom([]string{"eth0", "lo", "any", "eth0", "ppp0", "a/b", "averylonginterfacename", "\x01"}), 0, 3).Draw(t, "interfaces")
		for i := range rapid.IntRange(0, 6).Draw(t, "doors") {
			f.Doors = append(f.Doors, drawDoor(t, i+1))
		}
		c := checkConverted(t, f, f.Convert(Settings{Strict: rapid.Bool().Draw(t, "strict")}))
		kept += len(c.Knocks)
		left += len(f.Doors) - len(c.Knocks)
	})
	if kept < 20 || left < 20 {
		t.Errorf("%d doors kept, %d left out: the test shows little", kept, left)
	}
}

// TestConvertLeavesOut names what has no place, with the reason; a door of the same
// kind that has one is kept.
func TestConvertLeavesOut(t *testing.T) {
	six := "/bin/six {addr}"
	steps := func(ports ...uint16) (out []Step) {
		for _, p := range ports {
			out = append(out, Step{sequence.TCP, p})
		}
		return out
	}
	base := Door{Name: "base", Line: 1, Steps: steps(400, 100, 900), SeqTimeout: 5 * time.Second, Start: "/bin/base"}
	for _, test := range []struct {
		name string
		with func(d *Door)
		why  string // "": it is kept
	}{
		{"another sequence", func(d *Door) {}, ""},
		{"no command", func(d *Door) { d.Start = "" }, "no command"},
		{"IPv6 only", func(d *Door) { s := "/bin/six"; d.Start, d.Start6 = "", &s }, ""},
		{"one time", func(d *Door) { d.OneTime = "/f" }, "one-time"},
		{"the same", func(d *Door) { d.Steps = base.Steps }, "(knock.base)"},
		{"longer", func(d *Door) { d.Steps = steps(400, 100, 900, 7) }, "(knock.base)"},
		{"longer, to another IPv4 target", func(d *Door) { d.Steps, d.Target = steps(400, 100, 900, 7), netip.MustParseAddr("192.0.2.1") }, "(knock.base)"},
		{"target of IPv6", func(d *Door) { d.Target = netip.MustParseAddr("2001:db8::1") }, ""},
		{"target of everybody", func(d *Door) { d.Target = netip.MustParseAddr("::") }, "target"},
		{"port 0", func(d *Door) { d.Steps = steps(500, 0, 600) }, "port 0"},
		{"flags that never are", func(d *Door) { d.Flags = sequence.Flags{Set: sequence.SYN, Clear: sequence.SYN} }, "TCPFlags"},
		{"literal {addr}", func(d *Door) { d.Start = "/bin/x {addr}" }, "{addr}"},
		{"literal {addr} for IPv6", func(d *Door) { d.Start6 = &six }, "{addr}"},
		{"program from a packet", func(d *Door) { d.Start = "/bin/%IP%" }, "name of its program"},
		{"no UTF-8", func(d *Door) { d.Stop = "/bin/x \xff" }, "UTF-8"},
		{"a closing door alone", func(d *Door) { d.Start = "iptables -D INPUT -s %IP% -p tcp --dport 22 -j ACCEPT" }, ""},
		{"more steps than there can be", func(d *Door) { d.Steps = steps(make([]uint16, 33)...) }, "33 steps"},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := Door{Name: "odd", Line: 9, Steps: steps(500, 200, 600), SeqTimeout: 5 * time.Second, Start: "/bin/odd"}
			test.with(&d)
			f := &File{Doors: []Door{base, d}}
			text := f.Convert(Settings{})
			c := checkConverted(t, f, text)
			_, said, isLeft := strings.Cut(text, "# [odd], line 9, is left out:\n")
			said, _, _ = strings.Cut(said, "\n\n")
			flat := strings.ReplaceAll(said, "\n# ", " ")
			if isLeft != (test.why != "") || !strings.Contains(flat, test.why) || len(c.Knocks) != 2-map[bool]int{true: 1}[isLeft] {
				t.Errorf("%d knocks; said %q, want %q", len(c.Knocks), said, test.why)
			}
		})
	}
}

// TestConvertTogether: a service is there only with a knock that opens it.
func TestConvertTogether(t *testing.T) {
	opens, closes := "iptables -A INPUT -s %IP% -p tcp --dport 22 -j ACCEPT", "iptables -D INPUT -s %IP% -p tcp --dport 22 -j ACCEPT"
	f := &File{Doors: []Door{
		{Name: "in", Line: 1, Steps: []Step{{sequence.TCP, 9}, {sequence.TCP, 5}}, OneTime: "/once", Start: opens},
		{Name: "out", Line: 2, Steps: []Step{{sequence.TCP, 5}, {sequence.TCP, 9}}, Start: closes},
	}}
	text := f.Convert(Settings{})
	if c := checkConverted(t, f, text); len(c.Services)+len(c.Knocks) != 0 {
		t.Errorf("%d services and %d knocks are left:\n%s", len(c.Services), len(c.Knocks), text)
	}
	if !strings.Contains(text, "Nothing is left") {
		t.Errorf("it does not say that it does nothing:\n%s", text)
	}
}

// TestConvertCrowd is about files that are larger than a configuration can be.
func TestConvertCrowd(t *testing.T) {
	for _, test := range []struct {
		name  string
		doors int
		start string
	}{{"too many", 1500, "/bin/x %IP%"}, {"too large", 900, "/bin/x %IP% " + strings.Repeat("y", 3900)}, {"grants", 1030, "ufw allow from %IP% to any port %d"}} {
		t.Run(test.name, func(t *testing.T) {
			f := &File{Name: "k"}
			for i := range test.doors {
				port := uint16(2000 + 3*i)
				f.Doors = append(f.Doors, Door{
					Name: fmt.Sprintf("door%d", i), Line: i + 1, SeqTimeout: time.Second, CmdTimeout: time.Second,
					Steps: []Step{{sequence.UDP, port}, {sequence.TCP, 9}}, Start: strings.ReplaceAll(test.start, "%d", fmt.Sprint(port)),
				})
			}
			began := time.Now()
			c := checkConverted(t, f, f.Convert(Settings{}))
			if n := len(c.Knocks); n < 100 || n >= test.doors {
				t.Errorf("%d of %d doors are kept", n, test.doors)
			}
			t.Logf("%d of %d kept, %v", len(c.Knocks), test.doors, time.Since(began))
		})
	}
}

func TestConvertNames(t *testing.T) {
	n := names{map[string]bool{}, map[string]int{}}
	for _, test := range []struct{ name, want string }{
		{"openSSH", "openssh"}, {"OpenSSH", "openssh-2"}, {"openssh-2", "openssh-2-2"}, {"OPENSSH", "openssh-3"},
		{"my door", "my-door"}, {"ñ", "door"}, {"", "door-2"}, {"--", "door-3"}, {"a_b-9", "a_b-9"},
		{strings.Repeat("x", 40), strings.Repeat("x", 32)}, {strings.Repeat("x", 127), strings.Repeat("x", 30) + "-2"},
	} {
		if got := n.unique(validName(test.name)); got != test.want {
			t.Errorf("%q: %q, want %q", test.name, got, test.want)
		}
	}
}
