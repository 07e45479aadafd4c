package spa

import (
	"strings"
	"testing"
	"time"
)

// FuzzKeyFile: what a key file says is read back as it was, and nothing of a
// file that is damaged gets into the message about it.
func FuzzKeyFile(f *testing.F) {
	until := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, s := range []Suite{Classic, PostQuantum} {
		current, old := newKey(f, s), newKey(f, Classic)
		f.Add(FormatKeyFile([]FileKey{{Key: current}}))
		f.Add(FormatKeyFile([]FileKey{{Key: current}, {Key: old, Until: until}}))
	}
	f.Fuzz(func(t *testing.T, text string) {
		keys, err := ParseKeyFile(text)
		if err != nil {
			quotesNothing(t, text, err)
			return
		}
		again, err := ParseKeyFile(FormatKeyFile(keys))
		if err != nil || len(again) != len(keys) || len(keys) > MaxFileKeys {
			t.Fatalf("%d keys read back as %d: %v", len(keys), len(again), err)
		}
		for i, k := range keys {
			if !again[i].Key.Equal(k.Key) || !again[i].Until.Equal(k.Until.Truncate(time.Second)) {
				t.Errorf("key %d, until %v, reads back as another, until %v", i+1, k.Until, again[i].Until)
			}
		}
	})
}

// quotesNothing fails the test if an error has a part of a file that could be
// of a secret: 16 bytes or more without a space.
func quotesNothing(t *testing.T, text string, err error) {
	t.Helper()
	for field := range strings.FieldsSeq(text) {
		if at := strings.TrimPrefix(field, keyPrefix); len(at) >= 16 && strings.Contains(err.Error(), at[:16]) {
			t.Errorf("the error quotes the file: %v", err)
		}
	}
}
