package knockd

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/sallyport/sallyport/internal/testnet"
)

// real is the knockd that is installed, in a namespace of its own.
type real struct {
	ns   *testnet.Namespace
	dir  string
	file string
}

func newReal(t *testing.T) *real {
	t.Helper()
	if _, err := exec.LookPath("knockd"); err != nil {
		t.Fatal("knockd is not installed: it is what this test compares with")
	}
	dir := t.TempDir()
	return &real{testnet.New(t), dir, filepath.Join(dir, "knockd.conf")}
}

// reads has the real one read a text for an interface that does not exist, so that
// it ends there. What it understood is in its debug lines.
func (k *real) reads(text string) (out string, accepted bool, err error) {
	if err := os.WriteFile(k.file, []byte(text), 0o600); err != nil {
		return "", false, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var b strings.Builder
	cmd := exec.CommandContext(ctx, "knockd", "-c", k.file, "-i", "none0", "-D", "-p", k.file+".pid")
	cmd.Dir, cmd.Stdout, cmd.Stderr = k.dir, &b, &b
	if err := k.ns.Start(cmd); err != nil {
		return "", false, err
	}
	cmd.Wait() // 1 either way
	out = b.String()
	opened, refused := strings.Contains(out, "could not open none0"), strings.Contains(out, "usage: knockd")
	if opened == refused {
		return out, false, fmt.Errorf("knockd neither took nor refused\n%q\n%s", text, out)
	}
	return out, opened, nil
}

// understood makes of debug lines the doors that the real one has.
func understood(out string) *File {
	f := &File{}
	door := func() *Door { return &f.Doors[len(f.Doors)-1] }
	for line := range strings.Lines(out) {
		line, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "config: ")
		if name, is := strings.CutPrefix(line, "new section: '"); is {
			if name = strings.TrimSuffix(name, "'"); name != "options" {
				f.Doors = append(f.Doors, Door{Name: name, SeqTimeout: defaultSeqTimeout, CmdTimeout: defaultCmdTimeout})
			}
			continue
		}
		if flag, is := strings.CutPrefix(line, "tcp flag: "); ok && is {
			understoodFlag(&door().Flags, flag)
			continue
		}
		key, value, _ := strings.Cut(line, ": ")
		switch {
		case !ok:
		case line == "usesyslog":
			f.UseSyslog = true
		case key == "log file":
			f.LogFile = value
		case key == "pid file":
			f.PidFile = value
		case len(f.Doors) > 0:
			if line, is := strings.CutPrefix(line, door().Name+": "); is {
				understoodDoor(door(), line)
			}
		}
	}
	return f
}

func understoodFlag(f *sequence.Flags, flag string) {
	bit := map[string]uint8{"FIN": 1, "SYN": 2, "RST": 4, "PSH": 8, "ACK": 16, "URG": 32}[strings.TrimPrefix(flag, "!")]
	if f.Set, f.Clear = f.Set&^bit, f.Clear&^bit; flag[0] == '!' {
		f.Clear |= bit
	} else {
		f.Set |= bit
	}
}

func understoodDoor(d *Door, line string) {
	key, value, _ := strings.Cut(line, ": ")
	var n int
	fmt.Sscan(value, &n)
	switch key {
	case "sequence":
		d.Steps = nil
		for item := range strings.SplitSeq(value, ",") {
			s := Step{Proto: sequence.TCP}
			port, proto, _ := strings.Cut(item, ":")
			if fmt.Sscan(port, &s.Port); proto == "udp" {
				s.Proto = sequence.UDP
			}
			d.Steps = append(d.Steps, s)
		}
	case "seq_timeout":
		d.SeqTimeout = time.Duration(n) * time.Second
	case "cmd_timeout":
		d.CmdTimeout = time.Duration(n) * time.Second
	case "target":
		d.Target = netip.MustParseAddr(value)
	case "start_command":
		d.Start = value
	case "stop_command":
		d.Stop = value
	case "start_command_6":
		d.Start6 = &value
	case "stop_command_6":
		d.Stop6 = &value
	}
}

// same compares one text.
func (k *real) same(text string) string {
	out, accepted, err := k.reads(text)
	if err != nil {
		return err.Error()
	}
	got, err := Parse("knockd.conf", []byte(text))
	if accepted != (err == nil) {
		return fmt.Sprintf("knockd accepts %v, Parse says %v\n%s", accepted, err, out)
	}
	if !accepted {
		return ""
	}
	want := understood(out)
	got.Name, got.Warnings, got.Interfaces = "", nil, nil
	for i := range got.Doors {
		got.Doors[i].Line, got.Doors[i].OneTime = 0, ""
	}
	return cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }))
}

// TestLikeKnockd compares what the real knockd makes of texts with what we do.
func TestLikeKnockd(t *testing.T) {
	k := newReal(t)
	for _, text := range lexical {
		if diff := k.same(text); diff != "" {
			t.Errorf("%q:\n%s", text, diff)
		}
	}
}

// TestLikeKnockdOneTime does so with files of one-time sequences.
func TestLikeKnockdOneTime(t *testing.T) {
	k := newReal(t)
	for _, text := range []string{
		"", "\n", "#1,2\n", "1,2\n3,4\n", "#1,2\n 3,4:udp\n", " # 1,2\n5\n", "65536\n7\n", "1:x\n8:UDP", "\n\n  \n9,9\r\n", "abc\n1\n",
		strings.Repeat("1,", 32) + "1\n2,3\n", "# only\n# comments", "1:tcp:x,2\n",
	} {
		list := filepath.Join(k.dir, "list")
		if err := os.WriteFile(list, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, conf := range []string{"[a]\none_time_sequences=%s", "[a]\nsequence=1,2,3\nOne_Time_Sequences = %s", "[a]\none_time_sequences=%s\nsequence = 4,5"} {
			if diff := k.same(fmt.Sprintf(conf, list)); diff != "" {
				t.Errorf("%q of %q:\n%s", conf, text, diff)
			}
		}
	}
}

// TestTargets: the filter is made when knockd listens, and a Target that it can't be
// made of ends knockd. Of what it takes some can be no packet's destination, and that we refuse.
func TestTargets(t *testing.T) {
	k := newReal(t)
	for _, test := range []struct {
		target       string
		knockd, ours bool
	}{
		{"192.0.2.1", true, true}, {"2001:db8::1", true, true}, {"2001:DB8::1", true, true}, {"::ffff:192.0.2.1", true, true},
		{"", false, false}, {"no.such.host.invalid", false, false}, {"fe80::1%lo", false, false}, {"192.0.2.256", false, false}, {"192.0.2.0/24", false, false},
		{"192.0.2", true, false}, {"192.000.2.1", true, false}, {"192.0.2.1 or tcp", true, false},
	} {
		text := "[a]\nsequence=1\ntarget=" + test.target
		if _, err := Parse("knockd.conf", []byte(text)); (err == nil) != test.ours {
			t.Errorf("Target %q: %v", test.target, err)
		}
		if got := k.listens(t, text); got != test.knockd {
			t.Errorf("Target %q: knockd listens %v, want %v", test.target, got, test.knockd)
		}
	}
}

// listens reports whether the real one comes so far as to listen on lo.
func (k *real) listens(t *testing.T, text string) bool {
	t.Helper()
	if err := os.WriteFile(k.file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(k.dir, "log")
	os.Remove(log)
	cmd := exec.Command("knockd", "-c", k.file, "-i", "lo", "-g", log)
	if err := k.ns.Start(cmd); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { cmd.Wait(); close(ended) }()
	defer func() { cmd.Process.Kill(); <-ended }()
	for range 500 {
		if text, _ := os.ReadFile(log); strings.Contains(string(text), "listening on lo") {
			return true
		}
		select {
		case <-ended:
			return false
		case <-time.After(10 * time.Millisecond):
		}
	}
	t.Fatalf("knockd neither listens nor ends: %q", text)
	return false
}

// TestLikeKnockdRandom does so with random files. Left out is what we refuse on
// purpose: NUL bytes, long lines, byte order marks, bad interfaces and targets.
func TestLikeKnockdRandom(t *testing.T) {
	k := newReal(t)
	blank := rapid.SampledFrom([]string{"", "", "", " ", "\t", " \r", "\v\f"})
	key := rapid.SampledFrom([]string{
		"sequence", "Sequence", "SEQUENCE", "seq_timeout", "timeout", "cmd_timeout", "tcpflags", "TCPFlags", "command", "start_command", "start_command_6",
		"Command_6", "stop_command", "stop_command_6", "sequence", "sequence", "command", "pidfile", "usesyslog", "sequense", "",
	})
	port := rapid.OneOf(rapid.Custom(func(t *rapid.T) string { return fmt.Sprint(rapid.IntRange(-10, 65540).Draw(t, "n")) }),
		rapid.SampledFrom([]string{"7000", "22", "1", "65535", " 80", "8080x", "x", "", "99999999999", "+3"}))
	ports := rapid.Custom(func(t *rapid.T) string {
		var b strings.Builder
		for i := range rapid.IntRange(1, 5).Draw(t, "steps") {
			if i > 0 {
				b.WriteString(",")
			}
			b.WriteString(port.Draw(t, "port") + rapid.SampledFrom([]string{"", "", "", ":udp", ":TCP", ": udp ", ":x", ":", ":tcp:1"}).Draw(t, "proto"))
		}
		return b.String()
	})
	flags := rapid.Custom(func(t *rapid.T) string {
		return strings.Join(rapid.SliceOfN(rapid.SampledFrom([]string{"syn", "!syn", "ACK", "!ack", "fin", "!RST", "psh", "urg", "", " syn", "x"}), 1, 3).Draw(t, "flags"), ",")
	})
	text := rapid.StringMatching(`[ -~é–\t\r]{0,30}`)
	value := func(t *rapid.T, key string) string {
		switch strings.ToLower(key) {
		case "sequence":
			return ports.Draw(t, "ports")
		case "tcpflags":
			return flags.Draw(t, "value")
		}
		return rapid.OneOf(port, text).Draw(t, "value")
	}
	line := rapid.Custom(func(t *rapid.T) string {
		switch rapid.IntRange(0, 9).Draw(t, "kind") {
		case 0:
			return rapid.SampledFrom([]string{"[options]", "[Options]", "[a]", "[b]", "[ a ]", "[]", "[a", "UseSyslog"}).Draw(t, "header")
		case 1:
			return rapid.SampledFrom([]string{"", "# comment", "#", " ", "[a]"}).Draw(t, "nothing")
		case 2:
			return strings.ReplaceAll(text.Draw(t, "text"), "=", "-")
		}
		k := key.Draw(t, "key")
		return k + blank.Draw(t, "blank") + "=" + blank.Draw(t, "blank") + value(t, k)
	})
	var taken, refused int
	rapid.Check(t, func(t *rapid.T) {
		var b strings.Builder
		for i := range rapid.IntRange(0, 3).Draw(t, "doors") {
			fmt.Fprintf(&b, "[door%d]\nsequence = %s\n", i, rapid.OneOf(rapid.Just("1,2,3"), ports).Draw(t, "ports"))
			for range rapid.IntRange(0, 3).Draw(t, "lines") {
				b.WriteString(blank.Draw(t, "blank") + line.Draw(t, "line") + blank.Draw(t, "blank") + "\n")
			}
		}
		if diff := k.same(b.String()); diff != "" {
			t.Fatalf("%q:\n%s", b.String(), diff)
		}
		if _, err := Parse("knockd.conf", []byte(b.String())); err == nil {
			taken++
		} else {
			refused++
		}
	})
	if taken < 10 || refused < 10 {
		t.Errorf("of the random files %d were taken and %d refused: the comparison says little", taken, refused)
	}
}
