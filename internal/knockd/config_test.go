package knockd

import (
	"encoding/json"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/sequence"
)

func mustParse(t *testing.T, text string) *File {
	t.Helper()
	f, err := Parse("/etc/knockd.conf", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// TestFamilies: what runs for an address of each family, and what is undone.
func TestFamilies(t *testing.T) {
	v4, v6 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	for _, test := range []struct {
		name, text               string
		run4, undo4, run6, undo6 string // the one word of each; "": none
		after                    time.Duration
		noAction                 bool
	}{
		{"both", "command=/a\nstop_command=/b", "/a", "/b", "/a", "/b", 10 * time.Second, false},
		{"own", "command=/a\nstop_command=/b\ncommand_6=/c\nstop_command_6=/d\ncmd_timeout=3", "/a", "/b", "/c", "/d", 3 * time.Second, false},
		{"nothing over 6", "command=/a\nstop_command=/b\ncommand_6=", "/a", "/b", "", "", 10 * time.Second, false},
		{"no stop over 6", "command=/a\nstop_command=/b\nstop_command_6=", "/a", "/b", "/a", "", 10 * time.Second, false},
		{"only 6", "command_6=/c\nstop_command=/b", "", "", "/c", "/b", 10 * time.Second, false},
		{"stop over 6 only", "command=/a\nstop_command_6=/d", "/a", "", "/a", "/d", 10 * time.Second, false},
		{"no stop", "command=/a\ncmd_timeout=7", "/a", "", "/a", "", 0, false},
		{"at once", "command=/a\nstop_command=/b\ncmd_timeout=0", "/a", "/b", "/a", "/b", 1, false},
		{"below 0", "command=/a\nstop_command=/b\ncmd_timeout=-1", "/a", "/b", "/a", "/b", (1<<32 - 1) * time.Second, false},
		{"stop alone", "stop_command=/b\nstop_command_6=/d", "", "", "", "", 0, true},
		{"emptied", "command=/a\ncommand=\nstop_command=/b", "", "", "", "", 0, true},
	} {
		c := mustParse(t, "[a]\nsequence=1\n"+test.text).Config(Settings{})
		if k := c.Knocks[0]; test.noAction {
			if len(c.Actions) > 0 || len(k.Runs) > 0 {
				t.Errorf("%s: %+v", test.name, c.Actions)
			}
			continue
		}
		if len(c.Actions) != 1 || !slices.Equal(c.Knocks[0].Runs, []int{0}) {
			t.Errorf("%s: %+v", test.name, c.Knocks[0])
			continue
		}
		a := &c.Actions[0]
		run4, undo4 := a.Commands(v4)
		run6, undo6 := a.Commands(v6)
		got := [4]string{one(run4), one(undo4), one(run6), one(undo6)}
		if want := [4]string{test.run4, test.undo4, test.run6, test.undo6}; got != want || a.UndoAfter != test.after {
			t.Errorf("%s: %q after %v", test.name, got, a.UndoAfter)
		}
	}
}

func one(c config.Command) string {
	if len(c) == 0 {
		return ""
	}
	return c[0]
}

func TestSettings(t *testing.T) {
	text := "[options]\ninterface = eth0, eth1\n[a]\nsequence=7000,1:udp\ncommand=/bin/x %IP%\nseq_timeout=-4\n[a]\nsequence=5\ntcpflags=syn,!ack\ntarget=2001:DB8::7\n[a#2]\nsequence=6\n[\x01]\nsequence=8\n[\x02]\nsequence=9"
	f := mustParse(t, text)
	c := f.Config(Settings{})
	if want := []string{"eth0", "eth1"}; !slices.Equal(c.Daemon.Interfaces, want) || c.Actions[0].Again || c.Knockd != (config.Knockd{Log: true, StateDir: c.Daemon.StateDir}) {
		t.Errorf("%+v %+v", c.Daemon, c.Knockd)
	}
	var names []string
	for _, k := range c.Knocks {
		names = append(names, k.Name)
	}
	if want := []string{"a", "a#2", "a#2#2", "?", "?#2"}; !slices.Equal(names, want) {
		t.Errorf("%q", names)
	}
	want := config.Knock{Name: "a#2", Door: "a", Type: "sequence", LookAhead: config.DefaultLookAhead, Within: 25 * time.Second, ScanOpens: true, Target: netip.MustParseAddr("2001:db8::7"),
		Sequence: []sequence.Step{{Proto: sequence.TCP, Port: 5, Flags: sequence.Flags{Set: sequence.SYN, Clear: sequence.ACK}}}}
	if diff := cmp.Diff(want, c.Knocks[1], cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
	if k := c.Knocks[0]; k.Within != 0 || k.ScanOpens || k.Sequence[0].Flags != (sequence.Flags{}) || c.Actions[0].Address != "%IP%" {
		t.Errorf("%+v", k)
	}
	c = f.Config(Settings{Interfaces: []string{"wan"}, IPv4Only: true, Strict: true})
	if !slices.Equal(c.Daemon.Interfaces, []string{"wan"}) || !c.Actions[0].Again || c.Knockd != (config.Knockd{Log: true, Classic: true, IPv4Only: true, StateDir: c.Daemon.StateDir}) {
		t.Errorf("%+v %+v", c.Daemon, c.Knockd)
	}
	for _, any := range []*config.Config{f.Config(Settings{Interfaces: []string{"wan", "any"}}), mustParse(t, "[options]\ninterface=any").Config(Settings{}), mustParse(t, "[a]\nsequence=1").Config(Settings{})} {
		if any.Daemon.Interfaces != nil {
			t.Errorf("%v", any.Daemon.Interfaces)
		}
	}
	other, _ := Parse("/etc/other.conf", []byte(text))
	if a, b := c.Daemon, other.Config(Settings{}).Daemon; a.StateDir == b.StateDir || a.Control == b.Control {
		t.Error("two files share a state", a, b)
	}
}

// TestCrosses: the engine reads the same knocks as JSON, port 0 and steps of any
// segment too.
func TestCrosses(t *testing.T) {
	c := mustParse(t, "[a]\nsequence=0,7000,8:udp\n[é]\nsequence=7\ntcpflags=!syn,urg\ntarget=192.0.2.9").Config(Settings{})
	text, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	var got config.Config
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	for i := range c.Knocks {
		if a, b := c.Knocks[i], got.Knocks[i]; a.Name != b.Name || !slices.Equal(a.Sequence, b.Sequence) || a.Target != b.Target {
			t.Errorf("%+v became %+v", a, b)
		}
	}
}

// TestNativeDoors: a pair becomes an opening and a closing knock of one service, a
// door that was not chosen keeps its command.
func TestNativeDoors(t *testing.T) {
	text := "[close]\nsequence=9,5,7\ntcpflags=syn\ncommand=/sbin/iptables -D INPUT -s %IP% -p tcp --dport 22 -j ACCEPT\n" +
		"[open]\nsequence=7,5,9\ntcpflags=syn\ncommand=/sbin/iptables -A INPUT -s %IP% -p tcp --dport 22 -j ACCEPT\n" +
		"[vpn]\nsequence=1:udp\ncommand=/sbin/iptables -A INPUT -s %IP% -p udp --dport 1194 -j ACCEPT\ncmd_timeout=30\nstop_command=/sbin/iptables -D INPUT -s %IP% -p udp --dport 1194 -j ACCEPT\n" +
		"[mail]\nsequence=2\ncommand=/usr/bin/mail root"
	f := mustParse(t, text)
	grants := f.natives()
	if len(grants) < 3 {
		t.Skip("the doors are not recognised yet")
	}
	c := f.Config(Settings{Native: all(len(f.Doors))})
	if len(c.Services) != 2 || c.Services[0].Name != "tcp-22" || c.Services[1].Name != "udp-1194" || c.Services[1].OpenFor != 30*time.Second || c.Services[1].MaxOpenFor != time.Hour {
		t.Fatalf("%+v", c.Services)
	}
	for i, want := range []struct{ opens, closes, runs []int }{{nil, []int{0}, nil}, {[]int{0}, nil, nil}, {[]int{1}, nil, nil}, {nil, nil, []int{0}}} {
		if k := c.Knocks[i]; !slices.Equal(k.Opens, want.opens) || !slices.Equal(k.Closes, want.closes) || !slices.Equal(k.Runs, want.runs) {
			t.Errorf("%+v", k)
		}
	}
	if c := f.Config(Settings{Native: map[int]bool{0: true, 2: true}}); len(c.Services) != 1 || len(c.Knocks[0].Runs) != 1 || len(c.Knocks[1].Runs) != 1 {
		t.Errorf("a close without its open: %+v %+v", c.Services, c.Knocks)
	}
}
