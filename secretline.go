package sallyport

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sallyport/sallyport/internal/secrets"
)

// checkShared looks at what both kinds of knock by a secret have.
func checkShared(door string, secret []byte, proto Proto, within time.Duration) error {
	switch {
	case secrets.CheckName(door) != nil:
		return errors.New("the knock has no name as servers give them, of 1 to 32 of a-z, 0-9, _ and -")
	case len(secret) < secrets.MinSecret || len(secret) > secrets.MaxSecret:
		return fmt.Errorf("the secret has %d bytes: it takes %d to %d", len(secret), secrets.MinSecret, secrets.MaxSecret)
	case proto != TCP && proto != UDP:
		return errors.New("the knock's ports must be tcp or udp")
	case within < time.Second || within > 10*time.Minute:
		return fmt.Errorf("the server's within is %v: it takes 1s to 10m", within)
	}
	return nil
}

// fields is a line "WORD 1 NAME=VALUE …". The first mistake is kept.
type fields struct {
	word   string
	values map[string]string
	err    error
}

// maxLine bounds a line, in bytes: a pool with a few hundred gaps.
const maxLine = 4096

func readFields(line, word string, known ...string) (*fields, error) {
	words := strings.Fields(line)
	switch {
	case len(line) > maxLine:
		return nil, fmt.Errorf("this is no %s line: it has more than %d bytes", word, maxLine)
	case len(words) < 2 || words[0] != word:
		return nil, fmt.Errorf("this is no %s line: copy the whole line that the server's owner gave you", word)
	case words[1] != "1":
		return nil, fmt.Errorf("this %s line is of a later version than this program knows: update it", word)
	}
	f := &fields{word, map[string]string{}, nil}
	for i, w := range words[2:] {
		name, value, valued := strings.Cut(w, "=")
		switch _, twice := f.values[name]; {
		// Not quoted: a secret that broke off from its name would be.
		case !slices.Contains(known, name):
			return nil, fmt.Errorf("word %d of the %s line is not known here: copy the whole line again, or update this program", i+3, word)
		case twice:
			return nil, fmt.Errorf("the %s line has %s twice: copy it again", word, name)
		case valued == (name == "any-address") || valued && value == "":
			return nil, fmt.Errorf("the %s line has %s without a value, or with one that it can't have: copy it again", word, name)
		}
		f.values[name] = value
	}
	return f, nil
}

func (f *fields) has(name string) bool { _, ok := f.values[name]; return ok }

// take gives a value that must be there, once.
func (f *fields) take(name string) string {
	value, ok := f.values[name]
	if !ok && f.err == nil {
		f.err = fmt.Errorf("the %s line has no %s: copy the whole line again", f.word, name)
	}
	delete(f.values, name)
	return value
}

func (f *fields) wrong(name, form string) {
	if f.err == nil {
		f.err = fmt.Errorf("the %s line's %s is wrong: it must be %s; copy the line again", f.word, name, form)
	}
}

func (f *fields) text(name string) string { return f.take(name) }

func (f *fields) flag(name string) bool {
	_, ok := f.values[name]
	delete(f.values, name)
	return ok
}

func (f *fields) number(name string, most int) int {
	text := f.take(name)
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || int(n) > most || strconv.FormatUint(n, 10) != text {
		f.wrong(name, fmt.Sprintf("a number up to %d", most))
		return 0
	}
	return int(n)
}

func (f *fields) duration(name string) time.Duration {
	text := f.take(name)
	d, err := time.ParseDuration(text)
	if err != nil || d.String() != text {
		f.wrong(name, "a time such as 30s")
	}
	return d
}

func (f *fields) secret(name string) []byte {
	text := f.take(name)
	if f.err != nil {
		return nil
	}
	secret, err := secrets.Decode(text)
	if err != nil {
		f.err = err
	}
	return secret
}

// port reads "7000/tcp".
func (f *fields) port(name string) (uint16, Proto) {
	spans, proto := f.pool(name)
	if len(spans) != 1 || spans[0].Low != spans[0].High {
		f.wrong(name, "a port such as 7000/tcp")
		return 0, proto
	}
	return spans[0].Low, proto
}

// pool reads "20000-29999,30001-39999/tcp".
func (f *fields) pool(name string) (pool []Span, proto Proto) {
	spans, word, _ := strings.Cut(f.take(name), "/")
	const form = "ports such as 20000-39999/tcp"
	switch word {
	case "tcp":
		proto = TCP
	case "udp":
		proto = UDP
	default:
		f.wrong(name, form)
	}
	for part := range strings.SplitSeq(spans, ",") {
		low, high, run := strings.Cut(part, "-")
		if !run {
			high = low
		}
		a, errA := strconv.ParseUint(low, 10, 16)
		b, errB := strconv.ParseUint(high, 10, 16)
		span := Span{Low: uint16(a), High: uint16(b)}
		if errA != nil || errB != nil || a == 0 || b < a || spellSpan(span) != part {
			f.wrong(name, form)
			return nil, proto
		}
		pool = append(pool, span)
	}
	return pool, proto
}

func spellSpan(s Span) string {
	if s.Low == s.High {
		return strconv.Itoa(int(s.Low))
	}
	return fmt.Sprintf("%d-%d", s.Low, s.High)
}

func spellPool(pool []Span, proto Proto) string {
	var parts []string
	for _, s := range pool {
		parts = append(parts, spellSpan(s))
	}
	return strings.Join(parts, ",") + "/" + proto.String()
}

// end gives the first mistake, or what stands in the line and does not belong to
// the others.
func (f *fields) end() error {
	if f.err != nil {
		return f.err
	}
	for name := range f.values {
		return fmt.Errorf("the %s line has %s, which does not go with the rest: copy it again", f.word, name)
	}
	return nil
}
