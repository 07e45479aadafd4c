//go:build linux

package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/knockd"
)

// knockd is check for a knockd.conf.
func (c *checkCmd) knockd(u *ui) error {
	f, err := knockd.Load(c.Knockd)
	if err != nil {
		return c.refuse(u, err)
	}
	cfg := f.Config(knockd.Settings{})
	facts := gatherFacts(c.Knockd)
	facts.Fresh = nil // its advice is spelled for a config of ours
	var result checked
	for i := range cfg.Knocks {
		if k := &cfg.Knocks[i]; len(k.Sequence) > 0 {
			result.Strength = append(result.Strength, config.StrengthOf(cfg, k, facts.Listening))
		}
	}
	result.Warnings = config.Lint(lintable(cfg), facts)
	for _, w := range f.Warnings {
		w.Text = fmt.Sprintf("%s:%d: %s", c.Knockd, w.Line, w.Text)
		result.Warnings = append(result.Warnings, w.Warning)
	}
	var blocked []config.Warning
	result.Native, blocked = nativeOffers(f)
	result.Warnings = append(result.Warnings, blocked...)
	result.Warnings = append(result.Warnings, lookAtDefaults(c.Defaults, knockdDefaults)...)
	if len(f.Doors) == 0 {
		result.Warnings = append(result.Warnings, config.Warning{
			Text:   c.Knockd + " has no door, so that no knock does anything",
			Advice: "add a section with a name for the log, such as [openSSH], and a Sequence in it; or name the knockd.conf that is meant",
		})
	}
	if c.JSON {
		if result.Config, err = cfg.Tree(); err != nil {
			return err
		}
		return u.json(result)
	}
	u.print("%s", cfg.Format())
	result.tellDoors(u, c.Knockd, cfg)
	return nil
}

// lintable is the config without scan_opens, which stands in no knockd.conf: of doors
// that a scan opens the file has a warning of its own, with the line.
func lintable(cfg *config.Config) *config.Config {
	out := *cfg
	out.Knocks = slices.Clone(cfg.Knocks)
	for i := range out.Knocks {
		out.Knocks[i].ScanOpens = false
	}
	return &out
}

// remark is a line for people: what is said of whom. The subject is the beginning of
// the line, "" where it is of no door.
type remark struct{ subject, rest, advice string }

func remarkOf(subject, text, advice string) remark {
	return remark{subject, strings.TrimPrefix(text, subject), advice}
}

// subject finds the door that a warning begins with: knock.NAME from config.Lint, and
// FILE:LINE or FILE:LINE: door "NAME" of the file's own. A name can hold anything.
func subject(text, file string, cfg *config.Config) (longest string) {
	if rest, own := strings.CutPrefix(text, file+":"); own {
		rest = strings.TrimLeft(rest, "0123456789")
		if name, named := strings.CutPrefix(rest, ": door "); named {
			quoted, _ := strconv.QuotedPrefix(name)
			rest = name[len(quoted):]
		}
		return text[:len(text)-len(rest)]
	}
	name, isKnock := strings.CutPrefix(text, "knock.")
	for i := range cfg.Knocks {
		k := cfg.Knocks[i].Name
		if rest, starts := strings.CutPrefix(name, k); isKnock && starts && strings.TrimLeft(rest, " :") != rest && len(longest) <= len("knock.")+len(k) {
			longest = "knock." + k
		}
	}
	return longest
}

// fewest is how many doors of which the same is said share a line.
const fewest = 4

// together makes one remark of those that say the same of many doors, in the place of
// the first of them. A file can have hundreds of doors, most of them alike.
func together(list []remark) (out []remark) {
	same := map[string][]remark{}
	for _, r := range list {
		if r.subject != "" {
			same[r.rest] = append(same[r.rest], r)
		}
	}
	joined := map[string]bool{}
	for _, r := range list {
		group := same[r.rest]
		if r.subject == "" || len(group) < fewest {
			out = append(out, r)
		} else if !joined[r.rest] {
			joined[r.rest] = true
			out = append(out, join(group))
		}
	}
	return out
}

// join names the first three.
func join(group []remark) remark {
	r := group[0]
	r.subject = fmt.Sprintf("%s, %s, %s and %d more", r.subject, group[1].subject, group[2].subject, len(group)-3)
	if rest, verb := strings.CutPrefix(r.rest, " "); verb {
		r.rest = ": each " + rest
	}
	if slices.ContainsFunc(group, func(o remark) bool { return o.advice != r.advice }) {
		r.advice = "for the first of them: " + r.advice
	}
	return r
}

// strengths gives doors with equally many guesses the odds of the one among them that a
// scan opens most easily, where they will share a line.
func strengths(list []config.Strength) (out []remark) {
	groups, worst := map[float64]int{}, map[float64]config.Strength{}
	for _, s := range list {
		w := worst[s.Guesses]
		w.ScanAll, w.ScanPopular = max(w.ScanAll, s.ScanAll), max(w.ScanPopular, s.ScanPopular)
		groups[s.Guesses]++
		worst[s.Guesses] = w
	}
	for _, s := range list {
		text := s.String()
		if groups[s.Guesses] >= fewest {
			s.ScanAll, s.ScanPopular = worst[s.Guesses].ScanAll, worst[s.Guesses].ScanPopular
			text = strings.Replace(s.String(), " with probability ", " with probability at most ", 1)
		}
		out = append(out, remarkOf("knock."+s.Knock, text, ""))
	}
	return out
}

// tellDoors is tell for a knockd.conf.
func (c *checked) tellDoors(u *ui, file string, cfg *config.Config) {
	found, warned := strengths(c.Strength), []remark(nil)
	for _, n := range c.Native {
		found = append(found, remarkOf("["+n.Door+"]", n.String(), ""))
	}
	for _, r := range together(found) {
		u.say("%s%s", r.subject, r.rest)
	}
	for _, w := range c.Warnings {
		warned = append(warned, remarkOf(subject(w.Text, file, cfg), w.Text, w.Advice))
	}
	for _, r := range together(warned) {
		u.say("warning: %s%s", r.subject, r.rest)
		if r.advice != "" {
			u.hint("%s", r.advice)
		}
	}
}

const (
	// knockdDefaults is where Debian's package has its options, and ours after it.
	knockdDefaults = "/etc/default/knockd"
	// maxDefaults is far more than anybody's file of options has, in bytes.
	maxDefaults = 64 << 10
)

// lookAtDefaults looks through a file of options: the named one, or if none is ("")
// the usual one, which need not be there.
func lookAtDefaults(named, usual string) []config.Warning {
	path := cmp.Or(named, usual)
	text, err := readDefaults(path)
	switch {
	case named == "" && errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return []config.Warning{{Text: "the file of options was not looked at: " + err.Error(), Advice: "name the right one with --defaults, or run check as root"}}
	}
	return oddOptions(path, text)
}

func readDefaults(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxDefaults))
	return string(text), err
}

// oddOptions names the characters that web pages make of ASCII, each once a line: a
// shell reads that file, to which such a quote is a letter, so that KNOCKD_OPTS ends at
// the first blank and what follows is taken for a command.
func oddOptions(path, text string) (warnings []config.Warning) {
	n := 0
	for line := range strings.Lines(text) {
		n++
		if strings.HasPrefix(strings.TrimSpace(line), "#") {
			continue
		}
		for i, r := range line {
			ascii, odd := config.ASCIIFor(r)
			if !odd || strings.ContainsRune(line[:i], r) {
				continue
			}
			warnings = append(warnings, config.Warning{
				Text:   fmt.Sprintf("%s:%d: %q (%U) is a typographic character, as web pages and word processors make them; to the shell that reads this file it is a letter like any other", path, n, r, r),
				Advice: fmt.Sprintf("write %s instead", ascii),
			})
		}
	}
	return warnings
}

// nativeOffer is what check says of a door that opens or closes ports by a command:
// whether the kernel could do it instead.
type nativeOffer struct {
	Door   string             `json:"door"`
	Ports  []config.PortRange `json:"ports,omitempty"`
	Closes bool               `json:"closes"`
	Native bool               `json:"native"`             // with --native it becomes a grant
	For    string             `json:"open_for,omitempty"` // how long that would be; "" where it closes
	Why    string             `json:"why,omitempty"`      // why it stays a command
	Note   string             `json:"note,omitempty"`     // what a person should know of the command
}

// String says it in one line.
func (o nativeOffer) String() string {
	text := fmt.Sprintf("[%s] runs a command that opens %s; with --native that is hidden instead, and the kernel itself opens it to who knocks and closes it after %s, whatever becomes of the daemon", o.Door, portList(o.Ports), o.For)
	switch {
	case !o.Native:
		text = fmt.Sprintf("[%s] stays a command also with --native: %s", o.Door, o.Why)
	case o.Closes:
		text = fmt.Sprintf("[%s] runs a command that closes %s; with --native it ends the kernel's grant instead", o.Door, portList(o.Ports))
	}
	if o.Note != "" {
		text += "; note: " + o.Note
	}
	return text
}

func portList(ports []config.PortRange) string {
	var words []string
	for _, p := range ports {
		words = append(words, p.String())
	}
	return strings.Join(words, ", ")
}

// nativeOffers looks which doors --native would change, and warns of the chains of
// this host's own that would drop a port whatever is granted.
func nativeOffers(f *knockd.File) (offers []nativeOffer, warnings []config.Warning) {
	doors, blocked, err := nativeDoors(f, knockd.Settings{})
	if err != nil {
		warnings = append(warnings, config.Warning{Text: err.Error(), Advice: "run this as root on the machine that the file is for"})
	}
	for _, rule := range slices.Compact(slices.Sorted(maps.Values(blocked))) {
		warnings = append(warnings, config.Warning{Text: rule})
	}
	for _, n := range f.Natives() {
		o := nativeOffer{Door: f.Doors[n.Door].Name, Ports: n.Ports, Closes: n.Closes, Native: doors[n.Door], Why: n.Why, Note: n.Note}
		switch {
		case blocked[n.Door] != "":
			o.Why = fmt.Sprintf("this host's own firewall drops %s, whatever a grant says", portList(n.Ports))
		case o.Native && !o.Closes:
			// 1h for Go's 1h0m0s.
			o.For = strings.ReplaceAll(strings.ReplaceAll(n.OpenFor.String(), "m0s", "m"), "h0m", "h")
		}
		offers = append(offers, o)
	}
	return offers, warnings
}
