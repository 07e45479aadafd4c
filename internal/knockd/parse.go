package knockd

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/sallyport/sallyport/internal/config"
)

const (
	// maxLine is the longest line in bytes, less its newline: knockd reads into 4,096
	// bytes with fgets(3) and takes the rest of a longer line for a line of its own, so
	// that the end of a long command, or of a comment, would become a directive.
	maxLine = 4095
	// maxDoorName is what fits in knockd's door name, in bytes.
	maxDoorName = 127
	// Of a file that is no knockd.conf at all nobody reads more.
	maxFaults, maxWarnings = 100, 10000

	defaultSeqTimeout = 25 * time.Second
	defaultCmdTimeout = 10 * time.Second
)

// blanks is what isspace(3) takes in the C locale, which is knockd's.
const blanks = " \t\n\v\f\r"

// Parse reads the text of a file; the name stands in errors. Files of one-time
// sequences are read from disk. The error is a config.Errors with every fault that was
// found, sorted by line. These files are refused although knockd takes them: with a
// NUL byte, a line of more than 4,095 bytes, an Interface or a Target that can't
// exist, or more doors than config.MaxKnocks.
func Parse(name string, text []byte) (*File, error) {
	r := &reader{file: &File{Name: name}, faulty: map[*Door]bool{}}
	if fault := unreadable(text); fault != "" {
		return nil, config.Errors{{File: name, Line: 1, Text: fault}}
	}
	text, marked := bytes.CutPrefix(text, []byte("\ufeff"))
	if marked {
		r.line = 1
		r.warn("save it without one if knockd is to read it too", "the file begins with a byte order mark, which knockd takes for a directive")
		r.line = 0
	}
	for line := range bytes.Lines(text) {
		if r.line++; len(r.errs) < maxFaults {
			r.read(string(bytes.TrimSuffix(line, []byte{'\n'})))
		}
	}
	r.finish()
	if len(r.errs) > 0 {
		slices.SortStableFunc(r.errs, func(a, b config.Error) int { return cmp.Compare(a.Line, b.Line) })
		return nil, r.errs
	}
	return r.file, nil
}

// unreadable finds what concerns the whole text.
func unreadable(text []byte) string {
	switch {
	case len(text) > config.MaxSize:
		return fmt.Sprintf("the file has more than %d bytes; this can't be a knockd.conf", config.MaxSize)
	case bytes.HasPrefix(text, []byte{0xff, 0xfe}) || bytes.HasPrefix(text, []byte{0xfe, 0xff}):
		return "the file is UTF-16; save it as UTF-8"
	}
	return ""
}

// reader is the state of reading one file.
type reader struct {
	file    *File
	doors   []*Door
	faulty  map[*Door]bool // doors whose sequence is a fault already
	errs    config.Errors
	line    int
	section string // "": none yet
	door    *Door  // the latest; nil before the first
}

// fault notes what makes the file unusable. A line has at most one.
func (r *reader) fault(format string, args ...any) {
	r.errs = append(r.errs, config.Error{File: r.file.Name, Line: r.line, Text: fmt.Sprintf(format, args...)})
}

func (r *reader) warn(advice, format string, args ...any) { r.warnAt(r.line, advice, format, args...) }

func (r *reader) warnAt(line int, advice, format string, args ...any) {
	if len(r.file.Warnings) < maxWarnings {
		w := config.Warning{Text: fmt.Sprintf(format, args...), Advice: advice}
		r.file.Warnings = append(r.file.Warnings, Warning{line, w})
	}
}

// read takes one line without its newline.
func (r *reader) read(line string) {
	switch {
	case len(line) > maxLine:
		r.fault("the line has %d bytes, and knockd would cut it in two after %d; put the command into a script", len(line), maxLine)
		return
	case strings.IndexByte(line, 0) >= 0:
		r.fault("the line has a NUL byte and so is not text; restore the file from a copy")
		return
	}
	line = strings.Trim(line, blanks)
	switch {
	case line == "" || line[0] == '#':
	case line[0] == '[' && line[len(line)-1] == ']':
		r.header(line[1 : len(line)-1])
	default:
		r.directive(line)
	}
}

// header begins a section. Its name is not trimmed, and only "options" in small
// letters is no door.
func (r *reader) header(name string) {
	if r.section = name; name == "options" {
		return
	}
	r.door = &Door{Line: r.line, SeqTimeout: defaultSeqTimeout, CmdTimeout: defaultCmdTimeout}
	if name == "" {
		r.fault("the section has no name; write a name for the log between the brackets, such as [openSSH]")
		r.section = "?" // what follows belongs to it, whatever its name was meant to be
		return
	}
	if strings.EqualFold(strings.Trim(name, blanks), "options") {
		r.warn("write [options] for the global section", "%s is a door, because only [options] in small letters without blanks is the global section", quote("["+name+"]"))
	}
	if len(name) > maxDoorName {
		name = name[:maxDoorName]
		r.warn("take a shorter one", "the door's name has more than %d bytes, and the rest is cut off", maxDoorName)
	}
	r.door.Name = name
	r.doors = append(r.doors, r.door)
}

// directive is one line of a section.
func (r *reader) directive(line string) {
	if r.section == "" {
		r.fault("%s stands before any section; begin a section first, [options] or one with the name of a door", quote(line))
		return
	}
	key, value, valued := strings.Cut(line, "=")
	key, value = strings.Trim(key, blanks), strings.Trim(value, blanks)
	if !valued {
		if sameWord(key, "UseSyslog") { // in any section, as knockd does
			r.file.UseSyslog = true
			return
		}
		r.fault("%s", unvalued(line))
		return
	}
	keys := doorKeys
	if r.section == "options" {
		keys = optionKeys
	}
	read := find(keys, key)
	if read == nil {
		r.fault("%s", unknown(key, r.section))
		return
	}
	r.typography(value)
	read(r, value)
}

// finish looks at what only the whole file tells.
func (r *reader) finish() {
	if n := len(r.doors); n > config.MaxKnocks {
		r.line = r.doors[config.MaxKnocks].Line
		r.fault("the file has %d doors and can have %d; leave some out, or run a second daemon with a file of its own", n, config.MaxKnocks)
	}
	for _, d := range r.doors {
		if len(d.Steps) == 0 && !r.faulty[d] && len(r.errs) < maxFaults {
			r.line = d.Line
			r.fault("door %s has no sequence; add Sequence = PORT,PORT,PORT or One_Time_Sequences = FILE", quote(d.Name))
		}
		r.file.Doors = append(r.file.Doors, *d)
	}
	if len(r.errs) == 0 {
		r.lint()
		slices.SortStableFunc(r.file.Warnings, func(a, b Warning) int { return cmp.Compare(a.Line, b.Line) })
	}
}

// typography warns of characters that web pages make of ASCII: to knockd, to a shell
// and to iptables a long dash is a letter like any other.
func (r *reader) typography(value string) {
	for i, c := range value {
		if c < utf8.RuneSelf {
			continue
		}
		if ascii, odd := config.ASCIIFor(c); odd && !strings.ContainsRune(value[:i], c) {
			if ascii == "-" && longOption(value, i, c) {
				ascii = "--"
			}
			r.warn("write "+ascii+" instead", "%q (%U) is a typographic character, as web pages and word processors make them; taken as it stands it does not do what it looks like", c, c)
		}
	}
}

// longOption reports whether the dash at i begins a word of several letters: web pages
// make one long dash of two hyphens.
func longOption(value string, i int, dash rune) bool {
	begins := i == 0 || strings.IndexByte(blanks, value[i-1]) >= 0
	rest := value[i+utf8.RuneLen(dash):]
	return begins && len(rest) > 1 && strings.IndexByte(blanks, rest[0]) < 0 && strings.IndexByte(blanks, rest[1]) < 0
}

// unvalued says what is wrong with a line that has no equals sign.
func unvalued(line string) string {
	switch {
	case line[0] == '[':
		return fmt.Sprintf("%s is no section, because it does not end with ]; write the brackets and nothing behind them", quote(line))
	case noComment(line):
		return fmt.Sprintf("%s is no comment; begin a comment with #", quote(line))
	case find(optionKeys, line) != nil || find(doorKeys, line) != nil:
		return fmt.Sprintf("%s has no value; write %s = and then its value", quote(line), line)
	}
	return fmt.Sprintf("%s is no directive, because it has no equals sign; write KEY = VALUE, or begin a comment with #", quote(line))
}

// noComment reports whether a line begins as comments do elsewhere.
func noComment(line string) bool {
	return strings.HasPrefix(line, ";") || strings.HasPrefix(line, "//")
}

// unknown says what a key could have been.
func unknown(key, section string) string {
	keys, here, elsewhere := doorKeys, "a door", "[options]"
	others := optionKeys
	if section == "options" {
		keys, others, here, elsewhere = optionKeys, doorKeys, "[options]", "the section of a door"
	}
	switch {
	case noComment(key):
		return fmt.Sprintf("%s is no comment; begin a comment with #", quote(key))
	case sameWord(key, "UseSyslog"):
		return fmt.Sprintf("%s takes no value; write UseSyslog alone on the line, or remove the line to leave it off", quote(key))
	case find(others, key) != nil:
		return fmt.Sprintf("%s does not belong in %s; move it to %s", quote(key), here, elsewhere)
	}
	if meant := nearest(key, keys); meant != "" {
		return fmt.Sprintf("unknown directive %s; did you mean %s?", quote(key), meant)
	}
	names := make([]string, len(keys))
	for i, k := range keys {
		names[i] = k.name
	}
	return fmt.Sprintf("unknown directive %s; in %s there are %s", quote(key), here, strings.Join(names, ", "))
}

// nearest is the directive that a mistyped key was most likely meant to be, or "":
// the same letters with other underscores, or one edit away.
func nearest(key string, keys []directive) string {
	key = letters(key)
	for _, near := range []func(a, b string) bool{func(a, b string) bool { return a == b }, oneEdit} {
		for _, k := range keys {
			if near(letters(k.name), key) {
				return k.name
			}
		}
	}
	return ""
}

func letters(s string) string {
	return strings.Map(func(c rune) rune {
		if strings.ContainsRune("_- \t", c) {
			return -1
		}
		return c
	}, upper(s))
}

// oneEdit reports whether one letter was inserted, left out or replaced, or two
// neighbours changed places.
func oneEdit(a, b string) bool {
	for a != "" && b != "" && a[0] == b[0] {
		a, b = a[1:], b[1:]
	}
	for a != "" && b != "" && a[len(a)-1] == b[len(b)-1] {
		a, b = a[:len(a)-1], b[:len(b)-1]
	}
	swapped := len(a) == 2 && len(b) == 2 && a[0] == b[1] && a[1] == b[0]
	return swapped || len(a) <= 1 && len(b) <= 1
}

// upper is toupper(3) in the C locale. Unicode's would make a directive of letters
// that knockd does not know, such as the long s.
func upper(s string) string {
	b := []byte(s)
	for i, c := range b {
		if 'a' <= c && c <= 'z' {
			b[i] = c - 'a' + 'A'
		}
	}
	return string(b)
}

// sameWord is strings.EqualFold for ASCII alone, for the same reason.
func sameWord(a, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range len(a) {
		if lower(a[i]) != lower(b[i]) {
			return false
		}
	}
	return true
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		c += 'a' - 'A'
	}
	return c
}

// quote makes a short piece of the file fit for a message.
func quote(s string) string {
	const most = 40
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return fmt.Sprintf("%q", s)
}
