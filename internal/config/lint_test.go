package config

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/sallyport/sallyport/internal/sequence"
)

const strong = `"7100/tcp", "12850/udp", "7800/tcp"`

func door(steps string, more ...string) string {
	return "[service.ssh]\nports = [\"22/tcp\"]\n[knock.front]\ntype = \"sequence\"\nopens = [\"ssh\"]\nsequence = [" + steps + "]\n" + strings.Join(more, "\n")
}

// spaDoor has one knock of type spa; more is of its table.
func spaDoor(more ...string) string {
	return "[service.ssh]\nports = [\"22/tcp\", \"8000-9000/udp\"]\n[knock.front]\ntype = \"spa\"\nopens = [\"ssh\"]\nkey = \"/k\"\nauthorized_keys = \"/a\"\n" + strings.Join(more, "\n")
}

// observedText is what every config with a plain sequence is told.
const observedText = "a plain sequence can be read"

func TestLint(t *testing.T) {
	tcp22 := []PortRange{{sequence.TCP, 22, 22}}
	tests := []struct {
		name  string
		text  string
		facts Facts
		want  []string // beginnings of the texts, in order
	}{
		{"nothing", "", Facts{File: "f", Mode: 0o644}, nil},
		{"strong", door(strong), Facts{File: "f", Mode: 0o600}, []string{observedText}},
		{"readable", door(strong), Facts{File: "f", Mode: 0o640}, []string{"others on this machine can read or change", observedText}},
		{"owned", door(strong), Facts{File: "f", Mode: 0o600, Owner: 1000}, []string{"f belongs to user 1000", observedText}},
		{"printed", door(`"7000/tcp", "8000/tcp", "9000/tcp"`), Facts{}, []string{"knock.front is a sequence that well-known", observedText}},
		{"printed backwards", door(`"9991/udp", "7777/tcp", "8881/udp"`), Facts{}, []string{"knock.front is a sequence that well-known", observedText}},
		{"ascending", door(`"7100/tcp", "9000/udp", "12000/tcp"`), Facts{}, []string{"knock.front is ascending", observedText}},
		{"descending", door(`"17100/tcp", "9000/udp", "2000/tcp"`), Facts{}, []string{"knock.front is descending", observedText}},
		{"short", door(`"7100/tcp", "12000/udp"`), Facts{}, []string{"knock.front is too short: 4.3e+09 guesses (32 bits)", observedText}},
		{"pings", door(`"7100/tcp", "icmp", "37/icmp"`), Facts{}, []string{"knock.front is too short: 9.7e+07 guesses", observedText}},
		{"close together", door(`"7100/tcp", "7110/tcp", "7105/tcp"`), Facts{}, []string{"knock.front has its steps close together", observedText}},
		{"listening", door(`"7100/tcp", "12850/udp", "443/tcp"`), Facts{Listening: []PortRange{{sequence.TCP, 443, 443}, {sequence.UDP, 7100, 7100}}},
			[]string{"knock.front: a program listens on the port of step 3", observedText}},
		{"large ping", door(`"7100/tcp", "12850/udp", "7800/tcp", "1401/icmp"`), Facts{}, []string{"knock.front: step 4 is a ping so large", observedText}},
		{"hidden step", door(`"7100/tcp", "12850/udp", "22/tcp", "7800/tcp"`), Facts{}, []string{"knock.front: step 3 is a hidden port of service.ssh", observedText}},
		{"close on wrong", door(strong, "close_on_wrong = true"), Facts{}, []string{"knock.front: close_on_wrong", observedText}},
		{"scan opens", door(`"7100/tcp"`, "scan_opens = true"), Facts{}, []string{"knock.front is too short: 65535 guesses (16 bits)", "knock.front: any port scan", observedText}},
		{"no knock", "[service.web]\nports = [\"443/tcp\"]", Facts{}, []string{"service.web is hidden and no knock opens it"}},
		{"closes", door(strong, "closes = [\"web\"]\n[service.web]\nports = [\"80/tcp\"]\nallow = [\"192.0.2.0/24\"]"), Facts{}, []string{"knock.front: closes lets anyone who forges", observedText}},
		{"closes what another runs", door(strong, "runs = [\"wake\"]\n[knock.off]\ntype = \"sequence\"\ncloses = [\"wake\"]\nsequence = [\"9100/tcp\", \"22850/udp\", \"9800/tcp\"]\n[action.wake]\nrun = [\"/a\"]\nundo = [\"/b\"]"), Facts{}, []string{"knock.off: closes lets anyone who forges", observedText}},
		{"closes what has no undo", door(strong, "runs = [\"on\"]\ncloses = [\"wake\"]\n[action.on]\nrun = [\"/a\"]\n[action.wake]\nrun = [\"/a\"]"), Facts{}, []string{"knock.front: closes lets", "knock.front closes action.wake, which has no undo", "action.wake is run by no knock", observedText}},
		{"an action", door(strong, "runs = [\"wake\"]\n[action.wake]\nrun = [\"/a\"]\nundo = [\"/b\"]\nundo_after = \"5s\""), Facts{}, []string{observedText}},
		{"an undo that nothing runs", door(strong, "runs = [\"wake\"]\n[action.wake]\nrun = [\"/a\"]\nundo = [\"/b\"]"), Facts{}, []string{"action.wake has an undo that nothing ever runs", observedText}},
		{"an undo that a key can ask for", spaDoor("runs = [\"wake\"]\n[action.wake]\nrun = [\"/a\"]\nundo = [\"/b\"]"), Facts{}, nil},
		{"an action that nobody runs", door(strong, "[action.wake]\nrun = [\"/a\"]"), Facts{}, []string{"action.wake is run by no knock", observedText}},
		{"close on disconnect", "[service.web]\nports = [\"443/tcp\"]\nallow = [\"192.0.2.0/24\"]\nclose_on_disconnect = true", Facts{}, nil},
		{"close on disconnect, of datagrams", "[service.web]\nports = [\"443/udp\"]\nallow = [\"2001:db8::/32\"]\nclose_on_disconnect = true", Facts{}, []string{"service.web: close_on_disconnect can't tell forged datagrams"}},
		{"once", "[service.web]\nports = [\"443/tcp\"]\nallow = [\"192.0.2.0/24\"]\nonce = true", Facts{}, nil},
		{"once, of datagrams", "[service.web]\nports = [\"443/udp\"]\nallow = [\"2001:db8::/32\"]\nonce = true", Facts{}, []string{"service.web: once can't tell a forged datagram"}},
		{"no knock, allowed 4", "[service.web]\nports = [\"443/tcp\"]\nallow = [\"192.0.2.0/24\"]", Facts{}, nil},
		{"no knock, allowed 6", "[service.web]\nports = [\"443/tcp\"]\nallow = [\"2001:db8::/32\"]", Facts{}, nil},
		{"allow everybody", "[service.web]\nports = [\"443/tcp\"]\nallow = [\"0.0.0.0/0\", \"::/0\"]", Facts{}, []string{"service.web: allow = 0.0.0.0/0", "service.web: allow = ::/0"}},
		{"passwords", door(strong), Facts{Passwords: "yes", SSHPorts: []uint16{22}, Listening: tcp22}, []string{"service.ssh guards an sshd that takes passwords", observedText}},
		{"no passwords", door(strong), Facts{Passwords: "no", SSHPorts: []uint16{22}}, []string{observedText}},
		{"not known", door(strong), Facts{SSHPorts: []uint16{22}}, []string{observedText}},
		{"other sshd", door(strong), Facts{Passwords: "yes", SSHPorts: []uint16{2222}}, []string{observedText}},
		{"spa", spaDoor(), Facts{File: "f", Mode: 0o644, Passwords: "yes", SSHPorts: []uint16{22}, Listening: tcp22}, nil},
		{"spa, writable", spaDoor(), Facts{File: "f", Mode: 0o620}, []string{"others on this machine can change what opens in f (its mode is 0620)"}},
		{"spa and a sequence, readable", spaDoor() + strings.Replace(door(strong)[strings.Index(door(strong), "[knock"):], "front", "other", 1), Facts{File: "f", Mode: 0o644},
			[]string{"others on this machine can read or change the sequences", observedText}},
		{"spa, stated", spaDoor(`address = "stated"`), Facts{}, []string{`knock.front: with address = "stated" every request must name`}},
		{"spa, observed", spaDoor(`address = "observed"`), Facts{}, nil},
		{"spa, both", spaDoor(`address = "both"`), Facts{}, nil},
		{"spa, no clock", spaDoor(`clock = "none"`), Facts{}, []string{`knock.front: with clock = "none" no request is ever too old`}},
		{"spa, port taken", spaDoor("port = 53"), Facts{Listening: []PortRange{{sequence.UDP, 53, 53}}}, []string{"knock.front: a program listens at 53/udp"}},
		{"spa, port of another protocol taken", spaDoor("port = 53"), Facts{Listening: []PortRange{{sequence.TCP, 53, 53}}}, nil},
		{"spa over tcp, port taken", spaDoor("port = 53", `transports = ["tcp"]`), Facts{Listening: []PortRange{{sequence.TCP, 53, 53}}}, []string{"knock.front: a program listens at 53/tcp"}},
		{"spa over icmp", spaDoor("port = 53", `transports = ["icmp"]`), Facts{Listening: []PortRange{{sequence.TCP, 53, 53}, {sequence.UDP, 53, 53}}}, nil},
		{"spa, hidden port", spaDoor("port = 8053"), Facts{}, []string{"knock.front: 8053/udp is also a port of a service"}},
		{"spa, everything hidden", "[daemon]\nhide = \"all\"\n" + spaDoor(), Facts{}, nil},
		{"socket", "[daemon]\nsource = \"socket\"\n" + spaDoor(), Facts{Listening: []PortRange{{sequence.UDP, 62201, 62201}}}, nil},
		{"socket, everything hidden", "[daemon]\nsource = \"socket\"\nhide = \"all\"\n" + spaDoor(), Facts{}, nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c, err := Parse("f", []byte(test.text))
			if err != nil {
				t.Fatal(err)
			}
			got := Lint(c, test.facts)
			for i, w := range got {
				if w.Advice == "" {
					t.Errorf("no advice: %q", w.Text)
				}
				if i >= len(test.want) || !strings.HasPrefix(w.Text, test.want[i]) {
					t.Errorf("warning %d: %q", i, w.Text)
				}
			}
			if len(got) < len(test.want) {
				t.Errorf("%d warnings, want %q", len(got), test.want)
			}
		})
	}
}

// A text may be logged, so no text tells a step; the advice may hold a fresh
// sequence.
func TestLintKeepsSteps(t *testing.T) {
	c, err := Parse("f", []byte(door(`"41234/tcp", "41235/tcp", "41236/udp", "22/tcp"`, "close_on_wrong = true")))
	if err != nil {
		t.Fatal(err)
	}
	facts := Facts{
		Listening: []PortRange{{sequence.TCP, 41234, 41240}},
		Fresh:     func() []sequence.Step { return []sequence.Step{{Proto: sequence.UDP, Port: 5}} },
	}
	for _, w := range Lint(c, facts) {
		if strings.Contains(w.Text, "4123") {
			t.Errorf("tells a step: %s", w.Text)
		}
	}
	c.Knocks[0].Sequence = c.Knocks[0].Sequence[:2]
	got := Lint(c, facts)[0]
	if want := `take a random one: sequence = ["5/udp"]`; got.Advice != want {
		t.Errorf("%q: advice %q, want %q", got.Text, got.Advice, want)
	}
}

func TestStrength(t *testing.T) {
	c, err := Parse("f", []byte(door(strong)))
	if err != nil {
		t.Fatal(err)
	}
	s := StrengthOf(c, &c.Knocks[0], nil)
	if s.Bits < 47.9 || s.Bits > 48 || s.ScanAll <= 0 || s.ScanAll > 1e-6 || s.ScanPopular < s.ScanAll || s.ScanPopular > likely {
		t.Errorf("%+v", s)
	}
	// What listens is innocent, so fewer ports stand in a scan's way.
	if open := StrengthOf(c, &c.Knocks[0], []PortRange{{sequence.TCP, 7000, 9000}}); open.ScanAll <= s.ScanAll {
		t.Errorf("%g with 2,000 ports that listen, %g without", open.ScanAll, s.ScanAll)
	}
}

// A fault in a file that the config names stands at the line that names it.
func TestLineOf(t *testing.T) {
	text := []byte("\ufeff" + spaDoor())
	for path, want := range map[string]int{"knock.front.key": 6, "knock.front.authorized_keys": 7, "knock.front.window": 3, "knock.side": 3, "": 1} {
		if got := LineOf(text, path); got != want {
			t.Errorf("%q is at line %d, want %d", path, got, want)
		}
	}
}

func TestNearest(t *testing.T) {
	words := []string{"ssh", "web", "open_for", "max_open_for"}
	got := map[string]string{}
	for _, w := range []string{"shs", "s", "ss", "open-for", "maxopenfor", "openfor", "mail", "x", ""} {
		got[w] = nearest(w, words)
	}
	want := map[string]string{"shs": "ssh", "s": "", "ss": "ssh", "open-for": "open_for", "maxopenfor": "max_open_for", "openfor": "open_for", "mail": "", "x": "", "": ""}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
