package secrets

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// FormatLine spells a person as a line of the file, with its line end.
func FormatLine(p Person) string {
	var options []string
	if len(p.Services) > 0 {
		options = append(options, `services="`+strings.Join(p.Services, ",")+`"`)
	}
	if !p.Expires.IsZero() {
		options = append(options, expiry(p.Expires))
	}
	return strings.TrimRight(p.Name+" "+Encode(p.Secret)+" "+strings.Join(options, ","), " ") + "\n"
}

func expiry(t time.Time) string {
	return `expiry-time="` + t.UTC().Format("20060102150405") + `Z"`
}

// Add gives the text of a file with a person more, at its end. All that is there
// stays as it is.
func Add(text []byte, p Person) ([]byte, error) {
	people, _ := Parse(text)
	for i := range people {
		if people[i].Name == p.Name {
			return nil, fmt.Errorf("line %d has a secret of %s already; to replace it add --rotate, to revoke it delete the line", people[i].Line, p.Name)
		}
	}
	return checked(append(ended(text), FormatLine(p)...), p)
}

// Rotate gives the text of a file in which a person has a fresh secret, on a line
// of its own, and the old ones end after an overlap, or when they would have ended
// before. Lines of the person whose time is over leave. Services and the person's
// own end, if p has none, are those of the last line.
func Rotate(text []byte, p Person, now time.Time, overlap time.Duration) ([]byte, error) {
	people, _ := Parse(text)
	var own []Person
	for _, old := range people {
		if old.Name == p.Name {
			own = append(own, old)
		}
	}
	if len(own) == 0 {
		return nil, fmt.Errorf("%s has no line in it; without --rotate one is added", p.Name)
	}
	last := own[len(own)-1]
	if !last.At(now) {
		return nil, fmt.Errorf("the time of %s was over at %s; delete line %d, and add %s without --rotate", p.Name, last.Expires.Format(time.RFC3339), last.Line, p.Name)
	}
	if p.Expires = last.Expires; p.Services == nil {
		p.Services = last.Services
	}
	end := now.Add(overlap).UTC().Truncate(time.Second)
	var out strings.Builder
	line := 0
	for s := range strings.Lines(string(ended(text))) {
		line++
		at := slices.IndexFunc(own, func(o Person) bool { return o.Line == line })
		if at < 0 {
			out.WriteString(s)
			continue
		}
		if until := earlier(own[at].Expires, end); until.After(now) {
			out.WriteString(FormatLine(Person{Name: p.Name, Secret: own[at].Secret, Services: own[at].Services, Expires: until}))
		}
		if line == last.Line {
			out.WriteString(FormatLine(p))
		}
	}
	return checked([]byte(out.String()), p)
}

// earlier is the end that comes first; the zero time is none.
func earlier(a, end time.Time) time.Time {
	if a.IsZero() || a.After(end) {
		return end
	}
	return a
}

// ended is a text whose last line is ended.
func ended(text []byte) []byte {
	if n := len(text); n > 0 && text[n-1] != '\n' {
		text = append(slices.Clip(text), '\n')
	}
	return text
}

// checked reads the text as the daemon will: what it would not take is not written.
func checked(text []byte, p Person) ([]byte, error) {
	people, faults := Parse(text)
	for i := range people {
		if people[i].Name == p.Name && string(people[i].Secret) == string(p.Secret) {
			return text, nil
		}
	}
	if len(faults) > 0 {
		return nil, faults[len(faults)-1]
	}
	return nil, fmt.Errorf("the file would not give %s", p.Name)
}
