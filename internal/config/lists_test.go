package config

import (
	"math"
	"strings"
	"testing"

	"github.com/sallyport/sallyport/internal/sequence"
)

const listText = `[daemon]
public = ["9100/tcp"]
[service.ssh]
ports = ["22/tcp"]
[knock.front]
type = "sequence"
opens = ["ssh"]
list = "/list"
look_ahead = 3
quiet = true
[knock.back]
type = "sequence"
opens = ["ssh"]
sequence = ["7000/tcp", "8500/udp", "7810/tcp"]
`

func lineOf(t *testing.T, text string) (steps []sequence.Step) {
	t.Helper()
	for word := range strings.FieldsSeq(text) {
		s, err := sequence.ParseStep(word)
		if err != nil {
			t.Fatal(err)
		}
		steps = append(steps, s)
	}
	return steps
}

func TestLineFaults(t *testing.T) {
	c, err := Parse("sallyport.toml", []byte(listText))
	if err != nil {
		t.Fatal(err)
	}
	for line, want := range map[string]string{
		"6000/tcp 9500/udp 5000/tcp":          "",
		"7000/tcp 9500/udp":                   "", // a shared first step
		"6000/tcp 6001/udp":                   "any scan",
		"icmp":                                "any scan",
		"7000/tcp 8500/udp":                   "knock.back",
		"7000/tcp 8500/udp 7810/tcp 4000/tcp": "knock.back",
		"6000/tcp 9100/tcp 5000/tcp":          "step 2 would be dropped by quiet = true, and daemon.public",
		"6000/tcp 3000/udp 22/tcp":            "step 3 would be dropped by quiet = true, and is a port of a service",
	} {
		if got := c.LineFault(0, lineOf(t, line)); (got == "") != (want == "") || !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", line, got, want)
		}
	}
	c.Daemon.Source = Log
	if got := c.LineFault(0, lineOf(t, "6000/tcp 9500/sctp 5000/tcp")); !strings.Contains(got, "step 2 has a port of sctp") {
		t.Error(got)
	}
}

// TestLinesCountTogether: what is taken at once is guessed and scanned at once.
func TestLinesCountTogether(t *testing.T) {
	c, err := Parse("sallyport.toml", []byte(listText))
	if err != nil {
		t.Fatal(err)
	}
	k := &c.Knocks[0]
	var lines [][]sequence.Step
	for _, text := range []string{"6000/tcp 9500/udp 5000/tcp", "6100/tcp 9600/udp 5100/tcp", "6200/tcp 9700/udp 5200/tcp", "1/tcp"} {
		lines = append(lines, lineOf(t, text))
	}
	k.SetLines(lines[:1])
	one := StrengthOf(c, k, nil)
	k.SetLines(lines)
	all := StrengthOf(c, k, nil)
	if len(k.Lines()) != 3 || all.Lines != 3 || math.Abs(all.Guesses*3/one.Guesses-1) > 1e-9 || math.Abs(all.ScanAll/one.ScanAll-3) > 0.1 {
		t.Errorf("one line: %+v, all: %+v", one, all)
	}
	ports := k.Ports()
	for _, want := range []PortRange{{sequence.TCP, 6000, 6000}, {sequence.UDP, 9700, 9700}} {
		found := false
		for _, p := range ports {
			found = found || p == want
		}
		if !found {
			t.Errorf("%v is not among the knock's ports %v", want, ports)
		}
	}
	if k.SetLines(nil); len(k.Ports()) != 0 || StrengthOf(c, k, nil).Lines != 0 {
		t.Errorf("a used up list: %+v", StrengthOf(c, k, nil))
	}
}
