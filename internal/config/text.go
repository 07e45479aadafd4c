package config

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/pelletier/go-toml/v2"
)

// typographic lists what web pages and word processors make of ASCII, with
// what to write instead. A config that was copied from a web page has them.
var typographic = map[rune]string{
	'“': `"`, '”': `"`, '„': `"`, '«': `"`, '»': `"`, '″': `"`,
	'‘': `'`, '’': `'`, '′': `'`,
	'–': "-", '—': "-", '−': "-", '‑': "-", '\u2010': "-",
	'\u00a0': "a space", '\u202f': "a space", '\u200b': "nothing", '＝': "=", '，': ",",
}

// ASCIIFor says what to write instead of a typographic character: the ASCII
// character, or in words "a space" or "nothing". False for every other character.
func ASCIIFor(r rune) (string, bool) {
	ascii, odd := typographic[r]
	return ascii, odd
}

// knockdWords are lines that a knockd.conf has and no configuration of ours.
var knockdWords = regexp.MustCompile(`(?mi)^[ \t]*(seq_timeout|seq_cooldown|tcpflags|(start_|stop_)?command|cmd_timeout|one_time_sequences|usesyslog\s*$|sequence[ \t]*=[ \t]*[0-9])`)

// unreadable finds what keeps a file from being text at all.
func unreadable(text []byte) (line int, fault string) {
	at := func(i int) int { return 1 + bytes.Count(text[:i], []byte{'\n'}) }
	if bytes.HasPrefix(text, []byte{0xff, 0xfe}) || bytes.HasPrefix(text, []byte{0xfe, 0xff}) {
		return 1, "the file is UTF-16; save it as UTF-8"
	}
	if i := bytes.IndexByte(text, 0); i >= 0 {
		return at(i), "the file has a NUL byte and so is not text; restore it from a copy"
	}
	for i := 0; i < len(text); {
		r, size := utf8.DecodeRune(text[i:])
		if r == utf8.RuneError && size == 1 {
			return at(i), fmt.Sprintf("byte 0x%02x is not UTF-8; save the file as UTF-8", text[i])
		}
		i += size
	}
	return 0, ""
}

// syntax turns the TOML decoder's error into a fault.
func syntax(file string, err error) Errors {
	line, text := 1, err.Error()
	var at *toml.DecodeError
	if errors.As(err, &at) {
		line, _ = at.Position()
	}
	remedy := "texts stand in double quotes, lists in [ ]"
	if strings.Contains(text, " already ") {
		remedy = "write it once"
	}
	return Errors{{file, line, "this is not TOML: " + strings.TrimPrefix(text, "toml: ") + "; " + remedy}}
}

// explain replaces the faults of a file that has a plainer explanation than
// each of them: another program's file, or characters that only look right.
func explain(file string, text []byte, errs Errors) Errors {
	if at := knockdWords.FindIndex(text); at != nil {
		line := 1 + bytes.Count(text[:at[0]], []byte{'\n'})
		return Errors{{file, line, `this looks like a knockd.conf, and sallyport reads TOML; serve it as it is with "sallyport serve --knockd FILE", or write a config of it with "sallyport convert FILE"`}}
	}
	odd := oddLines(text)
	var out Errors
	for _, e := range errs {
		if _, replaced := odd[e.Line]; !replaced {
			out = append(out, e)
		}
	}
	for line, fault := range odd {
		out = append(out, Error{file, line, fault})
	}
	return out
}

// oddLines finds the typographic characters outside comments, one a line.
func oddLines(text []byte) map[int]string {
	odd := map[int]string{}
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		code, _, _ := strings.Cut(line, "#")
		for _, r := range code {
			if ascii, ok := typographic[r]; ok {
				odd[n] = fmt.Sprintf("%q (%U) is a typographic character, as web pages and word processors make them; write %s instead", r, r, ascii)
				break
			}
		}
	}
	return odd
}
