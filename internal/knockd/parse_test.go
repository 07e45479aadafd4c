package knockd

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sallyport/sallyport/internal/config"
)

// TestRefused: what knockd takes and we don't, and what concerns a whole file.
func TestRefused(t *testing.T) {
	door := "[a]\nsequence=1\n"
	for name, test := range map[string]struct{ text, want string }{
		"long line":      {door + "command = " + strings.Repeat("x", 4096-10), "knockd.conf:3: the line has 4096 bytes"},
		"long comment":   {"# " + strings.Repeat("x", 9000) + "\n" + door, "knockd.conf:1: the line has 9002 bytes"},
		"nul":            {door + "command = /bin/true \x00", "knockd.conf:3: the line has a NUL byte"},
		"utf-16":         {"\xff\xfe[\x00a\x00]\x00", "the file is UTF-16"},
		"large":          {strings.Repeat("#\n", config.MaxSize/2+1), "more than 1048576 bytes"},
		"doors":          {strings.Repeat(door, config.MaxKnocks+1), "the file has 1025 doors and can have 1024"},
		"interface":      {"[options]\ninterface = a-name-that-is-too-long", "no name of an interface"},
		"interface path": {"[options]\ninterface = /dev/eth0", "no name of an interface"},
		"device":         {"[a]\none_time_sequences = /dev/null", "no ordinary file"},
		"directory":      {"[a]\none_time_sequences = /", "no ordinary file"},
		"escape":         {"[a]\n\x1b[31m=1", `unknown directive "\x1b[31m"`},
	} {
		f, err := Parse("knockd.conf", []byte(test.text))
		var errs config.Errors
		if f != nil || !errors.As(err, &errs) || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Parse("x", []byte(door+"command = "+strings.Repeat("x", 4095-10)+"\n")); err != nil {
		t.Errorf("a line of 4,095 bytes: %v", err)
	}
	if _, err := Parse("x", []byte(strings.Repeat(door, config.MaxKnocks))); err != nil {
		t.Errorf("%d doors: %v", config.MaxKnocks, err)
	}
	_, err := Parse("x", []byte(strings.Repeat("junk\n", 50000)))
	if n := strings.Count(err.Error(), "\n"); n != maxFaults-1 {
		t.Errorf("a file of junk has %d faults, want %d", n+1, maxFaults)
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	if _, err := Load(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	if _, err := Load(dir); err == nil {
		t.Error("a directory was read")
	}
	path := filepath.Join(dir, "knockd.conf")
	if err := os.WriteFile(path, []byte("[a]\nsequence = 1,2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if f, err := Load(path); err != nil || f.Name != path || len(f.Doors) != 1 {
		t.Errorf("%+v, %v", f, err)
	}
}

// TestNearest: slips that people make have an answer, and other words don't.
func TestNearest(t *testing.T) {
	for key, want := range map[string]string{
		"seqtimeout": "Seq_Timeout", "Seq-Timeout": "Seq_Timeout", "sequense": "Sequence", "sequnece": "Sequence", "tcp_flags": "TCPFlags", "TCPFlag": "TCPFlags",
		"startcommand": "Start_Command", "Start_Comand6": "Start_Command_6", "stop command": "Stop_Command", "commnad": "Command", "command6": "Command_6", "flags": "", "": "", "x": "",
	} {
		if got := nearest(key, doorKeys); got != want {
			t.Errorf("%q: %q, want %q", key, got, want)
		}
	}
}

func warnings(t *testing.T, text string) []string {
	t.Helper()
	f, err := Parse("knockd.conf", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	var texts []string
	for _, w := range f.Warnings {
		texts = append(texts, fmt.Sprintf("%d: %s; %s", w.Line, w.Text, w.Advice))
	}
	return texts
}

// TestLint has for each warning a file that gets it and one that hardly differs and
// does not.
func TestLint(t *testing.T) {
	const syn = "\ntcpflags=syn\ncommand=/bin/true\n"
	for _, test := range []struct{ name, with, without, want string }{
		{"no flags", "[a]\nsequence=1,900,30\ncommand=/bin/true", "[a]\nsequence=1:udp,900:udp,30:udp\ncommand=/bin/true", "no TCPFlags"},
		{"no time", "[a]\nsequence=1,900,30\nseq_timeout=0" + syn, "[a]\nsequence=1,900,30\nseq_timeout=1" + syn, "nothing opens it"},
		{"one-step no time", "[a]\nsequence=1,2\nseq_timeout=-1" + syn, "[a]\nsequence=1\nseq_timeout=-1" + syn, "nothing opens it"},
		{"stop alone", "[a]\nsequence=1,900,30\ntcpflags=syn\nstop_command=x", "[a]\nsequence=1,900,30\ntcpflags=syn\ncommand_6=y\nstop_command=x", "neither ever runs"},
		{"no command", "[a]\nsequence=1,900,30\ntcpflags=syn", "[a]\nsequence=1,900,30\ntcpflags=syn\ncommand_6=y", "has no command"},
		{"undone", "[a]\nsequence=1,900,30\ntcpflags=syn\ncommand=/sbin/iptables -I INPUT 1 -s %IP% -j ACCEPT\nstart_command_6=", "[a]\nsequence=1,900,30\ntcpflags=syn\nstart_command_6=\ncommand=/sbin/iptables -I INPUT 1 -s %IP% -j ACCEPT\n[b]\nsequence=3,700,12\ntcpflags=syn\nstart_command_6=\ncommand=/usr/sbin/iptables -D INPUT -s %IP% -j ACCEPT", "no Stop_Command"},
		{"undone ufw", "[a]\nsequence=1,900,30\ntcpflags=syn\ncommand=ufw insert 1 allow from %IP%", "[a]\nsequence=1,900,30\ntcpflags=syn\ncommand=ufw insert 1 allow from %IP%\n[b]\nsequence=3,700,12\ntcpflags=syn\ncommand=ufw delete allow from %IP%", "no Stop_Command"},
		{"undone stop", "[a]\nsequence=1,900,30\ntcpflags=syn\ncommand=systemctl start ssh", "[a]\nsequence=1,900,30\ntcpflags=syn\ncommand=systemctl start ssh\nstop_command=systemctl stop ssh", "no Stop_Command"},
		{"iptables", "[a]\nsequence=1,900,30\ntcpflags=syn\nstop_command=y\ncommand=iptables -A INPUT -s %IP%", "[a]\nsequence=1,900,30\ntcpflags=syn\nstop_command=y\ncommand=iptables -A INPUT -s %IP%\ncommand_6=", "no IPv6 address"},
		{"equal", "[a]\nsequence=1,900,30" + syn + "[b]\nsequence=1,900,30" + syn, "[a]\nsequence=1,900,30" + syn + "[b]\nsequence=1,900,30\ntcpflags=!syn\ncommand=x", "a knock opens both"},
		{"equal but for target", "[a]\nsequence=1,900,30\ntarget=::1" + syn + "[b]\nsequence=1,900,30\ntarget=::1" + syn, "[a]\nsequence=1,900,30\ntarget=::1" + syn + "[b]\nsequence=1,900,30" + syn, "a knock opens both"},
		{"beginning", "[a]\nsequence=1,900,30,4" + syn + "[b]\nsequence=1,900,30" + syn, "[a]\nsequence=1,900,30,4" + syn + "[b]\nsequence=1,900,30:udp" + syn, `5: door "b" is the beginning of door "a" (line 1)`},
		{"one step", "[a]\nsequence=9" + syn, "[a]\nsequence=9,900,30" + syn, "any port scan opens it"},
		{"neighbours", "[a]\nsequence=9,10,11" + syn, "[a]\nsequence=9,900,30" + syn, "any port scan opens it"},
		{"ascending", "[a]\nsequence=7000,8000,9000" + syn, "[a]\nsequence=7000,9000,8000" + syn, "packet 9,000 of a plain scan of the TCP ports upwards"},
		{"descending", "[a]\nsequence=9000:udp,8000:udp" + syn, "[a]\nsequence=9000:udp,8000:tcp" + syn, "packet 57,536 of a plain scan of the UDP ports downwards"},
		{"ascending for a FIN", "[a]\nsequence=70,80,90\ntcpflags=syn,!ack\ncommand=x", "[a]\nsequence=70,80,90\ntcpflags=fin\ncommand=x", "packet 90 of"},
		{"spoilt by another door", "[a]\nsequence=70,80,90" + syn + "[b]\nsequence=95,10" + syn, "[a]\nsequence=70,80,90" + syn + "[b]\nsequence=85,10" + syn, "packet 90 of"},
		{"kept from starting", "[a]\nsequence=70,80,90" + syn + "[b]\nsequence=60,10" + syn + "[c]\nsequence=65,11" + syn, "[a]\nsequence=70,80,90" + syn + "[b]\nsequence=60,10" + syn, "packet 90 of"},
		{"dash", "[a]\nsequence=1,900,30\ntcpflags=syn\ncommand=x –dport 1", "[a]\nsequence=1,900,30\ntcpflags=syn\ncommand=x –p é 1", "write -- instead"},
		{"space", "[a]\nsequence=1,900,30\ntcpflags=syn\ncommand=x\u00a0y", "[a]\nsequence=1,900,30\ntcpflags=syn\ncommand=x é\n# –", "write a space instead"},
	} {
		has := func(text string) bool {
			return slices.ContainsFunc(warnings(t, text), func(w string) bool { return strings.Contains(w, test.want) })
		}
		if !has(test.with) {
			t.Errorf("%s: no warning among %q", test.name, warnings(t, test.with))
		}
		if has(test.without) {
			t.Errorf("%s: a warning among %q", test.name, warnings(t, test.without))
		}
	}
}

// lexical is a table of what is easily read otherwise.
var lexical = []string{
	"", "\n", "#", "# x", "  # x", "[a]", "[a]\nsequence=1", "[a]\nsequence = 1", "[a]\nsequence=1\n\n",
	"sequence = 1", "usesyslog", "=", "x=y", "[]", "[", "]", "[a", "a]", "[a]]\nsequence=1", "[[a]\nsequence=1", "[a] x",
	"[a] # x\nsequence=1", "[a]=b]\nsequence=1", " [ a ] \r\n\tsequence\t=\v1\f\r\n", "[ ]\nsequence=1", "[\t]\nsequence=1",
	"[options]", "[options]\n[options]", "[Options]", "[Options]\nsequence=1", "[ options]\nsequence=1", "[OPTIONS]\nlogfile=x",
	"[options]\nUseSyslog", "[options]\nusesyslog\nUSESYSLOG", "[options]\nUseSyslog = yes", "[options]\nUseSyslog=", "[options]\nUseSyslog x",
	"[a]\nsequence=1\nUseSyslog", "[a]\nUseSyslog = 1\nsequence=1", "[options]\nsequence = 1", "[options]\nlogfile\n", "[options]\nfoo=1",
	"[options]\nLogFile=\nPidFile=", "[options]\npidfile=a\npidfile = b = c", "[a]\nsequence=1\nlogfile=x", "[a]\nsequence=1\nfoo=1", "[a]\nsequence=1\nfoo",
	"[a]\nsequence=1\n[options]\npidfile=x\n[a]\nsequence=2", "[a]\nsequence=1\n[a]\nsequence=1", "[a]\nsequence=1\n[options]\ncommand=x",
	"[a]\nsequence=", "[a]\nsequence", "[a]\nsequence=,", "[a]\nsequence=1,", "[a]\nsequence=,1", "[a]\nsequence=1,,2", "[a]\nsequence=1\nsequence=2,3",
	"[a]\nsequence=65535", "[a]\nsequence=65536", "[a]\nsequence=0", "[a]\nsequence=-1", "[a]\nsequence=-65535", "[a]\nsequence=-65536", "[a]\nsequence=-0",
	"[a]\nsequence=4294967296", "[a]\nsequence=4294967295", "[a]\nsequence=4295032832", "[a]\nsequence=2147483647", "[a]\nsequence=2147483648", "[a]\nsequence=-2147483649",
	"[a]\nsequence=9223372036854775807", "[a]\nsequence=9223372036854775808", "[a]\nsequence=-9223372036854775808", "[a]\nsequence=-9223372036854775809", "[a]\nsequence=99999999999999999999999",
	"[a]\nsequence=+5,+-5,-+5,- 5,+ 5", "[a]\nsequence=0x10,010,1e3,1.5,7000x,x7000", "[a]\nsequence= 1 , 2\t,\v3", "[a]\nsequence=1 2 3", "[a]\nsequence=１", "[a]\nsequence=\u00a01",
	"[a]\nsequence=1:tcp,2:UDP,3:Tcp", "[a]\nsequence=1: udp ,2 :tcp", "[a]\nsequence=1:", "[a]\nsequence=1: ", "[a]\nsequence=:tcp", "[a]\nsequence=:", "[a]\nsequence=1:tcp:", "[a]\nsequence=1:tcp:x",
	"[a]\nsequence=1::tcp", "[a]\nsequence=1:icmp", "[a]\nsequence=1:sctp", "[a]\nsequence=1:udplite", "[a]\nsequence=proto/47", "[a]\nsequence=1:udp udp", "[a]\nsequence=1/tcp", "[a]\nsequence=1-3", "[a]\nsequence=ssh,http",
	"[a]\nsequence=" + strings.Repeat("1,", 31) + "1", "[a]\nsequence=" + strings.Repeat("1,", 32) + "1", "[a]\nsequence=" + strings.Repeat("1,", 31) + "65536", "[a]\nsequence=" + strings.Repeat("1,", 32) + "65536",
	"[a]\nsequence=1\ntcpflags=", "[a]\nsequence=1\ntcpflags=syn", "[a]\nsequence=1\ntcpflags=SYN,!Ack,fin,Urg,PSH,rst", "[a]\nsequence=1\ntcpflags=syn, ack", "[a]\nsequence=1\ntcpflags=syn ,ack", "[a]\nsequence=1\ntcpflags=syn,",
	"[a]\nsequence=1\ntcpflags=,syn", "[a]\nsequence=1\ntcpflags=! syn", "[a]\nsequence=1\ntcpflags=!!syn", "[a]\nsequence=1\ntcpflags=!", "[a]\nsequence=1\ntcpflags=syn,!syn", "[a]\nsequence=1\ntcpflags=!syn\ntcpflags=ack\ntcpflags=syn",
	"[a]\nsequence=1\ntcpflags=ece", "[a]\nsequence=1\ntcpflags=any", "[a]\nsequence=1\ntcpflags=syn|ack", "[a]\ntcpflags=ſyn\nsequence=1", "[a]\nſequence=1",
	"[a]\nsequence=1\nseq_timeout=10s", "[a]\nsequence=1\nseq_timeout=", "[a]\nsequence=1\nSEQ_TIMEOUT=abc", "[a]\nsequence=1\ntimeout=-3", "[a]\nsequence=1\ntimeout=1\nseq_timeout=2", "[a]\nsequence=1\nseq_timeout=2\ntimeout=1",
	"[a]\nsequence=1\ncmd_timeout=0", "[a]\nsequence=1\ncmd_timeout=99999999999", "[a]\nsequence=1\ncmd_timeout=-1", "[a]\nsequence=1\ncmdtimeout=1", "[a]\nsequence=1\ncmd timeout=1", "[a]\nsequence=1\nseq_timeout : 5",
	"[a]\nsequence=1\ncommand=a = b == c", "[a]\nsequence=1\ncommand=", "[a]\nsequence=1\ncommand=x\nstart_command=y", "[a]\nsequence=1\nstart_command=y\ncommand=", "[a]\nsequence=1\ncommand_6=x\nstart_command_6=", "[a]\nsequence=1\nstop_command_6 = %IP%\nstop_command=\"q\" # no comment",
	"[a]\nsequence=1\nstop_command =   a  b   \t", "[a]\nsequence=1\ncommand = a\rb", "[a]\nsequence=1\rcommand=x", "[a]\nsequence=1\ncommand = \xff\xfe\x01\x7f", "[\xff]\nsequence=1", "[a]\nsequence=1\n;x", "[a]\nsequence=1\n;x=1", "[a]\nsequence=1\n//x",
	"[" + strings.Repeat("n", 127) + "]\nsequence=1", "[a]\nsequence=1\ntarget=192.0.2.1", "[a]\nsequence=1\ntarget=2001:db8::1\ntarget=::1",
	"[a]\nsequence=1\n" + "command=" + strings.Repeat("x", 4095-8), "[a]\nsequence=1\n" + "command=" + strings.Repeat("x", 4094-8) + "\nfoo",
	"[a]\nsequence=1\none_time_sequences=/nonexistent/file", "[a]\nsequence=1\none_time_sequences=", "[a]\nsequence=1\none_time_sequences=/",
}

// FuzzParse: no text makes it panic, whatever it takes makes a sound configuration,
// and no command has anything that the text does not have.
func FuzzParse(f *testing.F) {
	files, err := filepath.Glob("testdata/*.conf")
	if err != nil || len(files) == 0 {
		f.Fatal("no seeds", err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	for _, text := range lexical {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		file, err := Parse("knockd.conf", text)
		if err != nil {
			var errs config.Errors
			if !errors.As(err, &errs) || len(errs) == 0 {
				t.Fatalf("%T: %v", err, err)
			}
			return
		}
		for _, s := range []Settings{{}, {Strict: true}, {Native: all(len(file.Doors))}} {
			sound(t, file, file.Config(s), text)
		}
	})
}

func all(n int) map[int]bool {
	m := map[int]bool{}
	for i := range n {
		m[i] = true
	}
	return m
}

// sound checks what Config promises.
func sound(t *testing.T, f *File, c *config.Config, text []byte) {
	if len(c.Knocks) != len(f.Doors) {
		t.Fatalf("%d knocks of %d doors", len(c.Knocks), len(f.Doors))
	}
	c.Rules()
	c.Format()
	names := map[string]bool{}
	for i, k := range c.Knocks {
		if names[k.Name] || k.Door != f.Doors[i].Name || len(k.Sequence) == 0 && !k.OneTime {
			t.Fatalf("knock %d: %+v", i, k)
		}
		names[k.Name] = true
		for _, s := range slices.Concat(k.Opens, k.Closes) {
			_ = c.Services[s]
		}
		for _, a := range k.Runs {
			if c.Actions[a].Name != k.Name {
				t.Fatalf("knock %q runs %q", k.Name, c.Actions[a].Name)
			}
		}
	}
	for _, a := range c.Actions {
		for _, words := range []config.Command{a.Run, a.RunIPv6, a.Undo, a.UndoIPv6} {
			if len(words) == 3 && words[0] == "/bin/sh" && words[1] == "-c" {
				words = words[2:]
			}
			for _, w := range words {
				if !strings.Contains(string(text), w) || w == "" {
					t.Fatalf("action %q has the word %q of its own", a.Name, w)
				}
			}
		}
	}
}

// BenchmarkThousandDoors reads a file with as many doors as anyone has.
func BenchmarkThousandDoors(b *testing.B) {
	var text strings.Builder
	text.WriteString("[options]\nUseSyslog\n")
	for i := range 1000 {
		fmt.Fprintf(&text, "[door%d]\nsequence = %d,%d:udp,%d\nseq_timeout = 5\ntcpflags = syn\ncommand = /sbin/iptables -A INPUT -s %%IP%% -p tcp --dport %d -j ACCEPT\ncmd_timeout = 10\nstop_command = /sbin/iptables -D INPUT -s %%IP%% -p tcp --dport %d -j ACCEPT\n", i, 1000+i, 2000+7*i, 40000-i, i+1, i+1)
	}
	b.ReportAllocs()
	for b.Loop() {
		f, err := Parse("knockd.conf", []byte(text.String()))
		if err != nil || len(f.Config(Settings{}).Knocks) != 1000 {
			b.Fatal(err)
		}
	}
}
