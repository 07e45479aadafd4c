//go:build linux

package main

import (
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/knockd"
	"github.com/sallyport/sallyport/internal/warden"
)

// filters are what people have in fail2ban and in dashboards, for knockd's lines in
// syslog and in its log file. <HOST> is fail2ban's word for an address.
var filters = []struct {
	pattern string
	found   []string // what it finds, in the order of the lines
}{
	{`knockd: <HOST>: \S+: Stage \d`, []string{"192.0.2.7", "2001:db8::7"}},
	{`^\S+ [ \d]\d [\d:]{8} \S+ knockd(?:\[\d+\])?: <HOST>: openSSH: Stage 1$`, []string{"192.0.2.7", "2001:db8::7"}},
	{`<HOST>: \S+: OPEN SESAME`, []string{"192.0.2.7", "2001:db8::7", "192.0.2.7", "2001:db8::7"}},
	{`^\[\d{4}-\d\d-\d\d \d\d:\d\d\] <HOST>: .*: sequence timeout \(stage [12]\)$`, []string{"192.0.2.7", "2001:db8::7"}},
	{`^\[[^]]*\]\s+<HOST>: (?:openSSH|closeSSH): (?:Stage \d+|OPEN SESAME)\s*$`, []string{"192.0.2.7", "192.0.2.7", "2001:db8::7", "2001:db8::7"}},
	{`knockd: (\S+): running command: .* -s [0-9a-f.:]+ `, []string{"openSSH", "openSSH"}},
	{`\] (\S+): command returned non-zero status code \(1\)$`, []string{"openSSH", "openSSH"}},
	{`: <HOST>: \S+: command timeout$`, []string{"192.0.2.7", "2001:db8::7"}},
}

// TestFiltersFind: the lines of a stage, a door that opens and the rest are what
// other programs look for.
func TestFiltersFind(t *testing.T) {
	const conf = "[openSSH]\nsequence = 7000,3000,9000\ntcpflags = syn\n" +
		"start_command = /sbin/iptables -I INPUT -s %IP% -j ACCEPT\nstop_command = /sbin/iptables -D INPUT -s %IP% -j ACCEPT\n"
	file, err := knockd.Parse("/etc/knockd.conf", []byte(conf))
	if err != nil {
		t.Fatal(err)
	}
	var out, words strings.Builder
	path := filepath.Join(t.TempDir(), "log")
	log := newKnockdLog(&ui{out: &out, err: &words})
	log.loud = true
	if err := log.open(path, false); err != nil {
		t.Fatal(err)
	}
	cfg := file.Config(knockd.Settings{})
	doors := &knockdDoors{options: &knockdOptions{}, log: log, latest: []reading{{file: file, cfg: cfg}}}
	for _, addr := range []netip.Addr{netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8::7")} {
		run, _ := cfg.Actions[0].Commands(addr)
		for _, e := range []warden.Entry{
			{What: warden.Stage, Stage: 1}, {What: warden.Opened}, {What: warden.Running, Command: strings.Join(run, " ")},
			{What: warden.Failed, Status: 1}, {What: warden.Due}, {What: warden.TimedOut, Stage: 2},
		} {
			e.Door, e.Addr = "openSSH", addr
			doors.Tell(e)
		}
	}
	log.flush()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(out.String() + words.String()) { // as a logger writes them
		lines = append(lines, time.Now().Format("Jan _2 15:04:05")+" host knockd: "+strings.TrimRight(line, "\n"))
	}
	for line := range strings.Lines(string(text)) {
		lines = append(lines, strings.TrimRight(line, "\n"))
	}
	for _, f := range filters {
		pattern := regexp.MustCompile(strings.ReplaceAll(f.pattern, "<HOST>", `((?:\d+\.){3}\d+|[0-9a-f]*:[0-9a-f:]+)`))
		var found []string
		for _, line := range lines {
			if m := pattern.FindStringSubmatch(line); m != nil {
				found = append(found, m[1])
			}
		}
		if !slices.Equal(found, f.found) {
			t.Errorf("%s finds %q, want %q, in\n%s", f.pattern, found, f.found, strings.Join(lines, "\n"))
		}
	}
}
