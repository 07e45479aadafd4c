package spa

import (
	"fmt"
	"strings"
	"time"
)

// FileKey is one key of a server's key file.
type FileKey struct {
	Key *ServerKey
	// Until ends an old key's overlap after a rotation; zero: the current key.
	Until time.Time
}

// MaxFileKeys is how many keys a key file can have: each costs the gate a look.
const MaxFileKeys = 4

const untilMark = "until="

// ParseKeyFile reads a server's key file: one key a line, the current one first
// and without an end, old ones behind it with "until=" and a time (RFC 3339).
// Empty lines and those that begin with # count for nothing. The error names
// the line and quotes none.
func ParseKeyFile(text string) ([]FileKey, error) {
	var keys []FileKey
	n := 0
	for line := range strings.Lines(text) {
		n++
		fields := strings.Fields(line)
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		k, err := parseFileKey(fields)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		if k.Until.IsZero() != (len(keys) == 0) {
			return nil, fmt.Errorf("line %d: only the first key can be, and must be, without until=", n)
		}
		for _, other := range keys {
			if other.Key.Equal(k.Key) {
				return nil, fmt.Errorf("line %d: this key stands in the file twice", n)
			}
		}
		keys = append(keys, k)
	}
	switch {
	case len(keys) == 0:
		return nil, fmt.Errorf("the file has no key in it")
	case len(keys) > MaxFileKeys:
		return nil, fmt.Errorf("the file has %d keys, more than %d; remove the oldest", len(keys), MaxFileKeys)
	}
	return keys, nil
}

func parseFileKey(fields []string) (FileKey, error) {
	k := FileKey{Key: new(ServerKey)}
	if err := k.Key.UnmarshalText([]byte(fields[0])); err != nil {
		return k, err
	}
	if len(fields) == 1 {
		return k, nil
	}
	text, ok := strings.CutPrefix(fields[1], untilMark)
	until, err := time.Parse(time.RFC3339, text)
	// A year of five digits or before the epoch would not read back.
	if year := until.UTC().Year(); !ok || err != nil || len(fields) > 2 || year < 1970 || year > 9999 {
		return k, fmt.Errorf("behind the key stands something else than %s2006-01-02T15:04:05Z", untilMark)
	}
	k.Until = until
	return k, nil
}

// FormatKeyFile gives the text that ParseKeyFile reads. It is secret.
func FormatKeyFile(keys []FileKey) string {
	var b strings.Builder
	b.WriteString("# A Sallyport server's secret key. Whoever has it can read what clients ask.\n")
	for _, k := range keys {
		text, _ := k.Key.MarshalText() // has no error to give
		b.Write(text)
		if !k.Until.IsZero() {
			b.WriteString(" " + untilMark + k.Until.UTC().Format(time.RFC3339))
		}
		b.WriteByte('\n')
	}
	return b.String()
}
