package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/keys"
	"github.com/sallyport/sallyport/internal/spa"
)

func serverKey(t *testing.T, suite spa.Suite) *spa.ServerKey {
	t.Helper()
	key, err := spa.NewServerKey(suite)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestRotated(t *testing.T) {
	now := time.Date(2027, 3, 28, 1, 30, 0, 999, time.FixedZone("here", 7200))
	hours := func(n int) time.Time { return now.Add(time.Duration(n) * time.Hour).UTC().Truncate(time.Second) }
	tests := []struct {
		name    string
		old     []time.Time // ends; the first key has none
		overlap time.Duration
		want    []time.Time // ends of the old keys that stay; nil: refused
	}{
		{"first rotation", nil, 5 * time.Hour, []time.Time{hours(5)}},
		{"an earlier end stays", []time.Time{hours(2)}, 5 * time.Hour, []time.Time{hours(5), hours(2)}},
		{"a later end comes nearer", []time.Time{hours(9)}, 5 * time.Hour, []time.Time{hours(5), hours(5)}},
		{"an expired one leaves", []time.Time{hours(-1), hours(3)}, 5 * time.Hour, []time.Time{hours(5), hours(3)}},
		{"one that ends now leaves", []time.Time{hours(0)}, 5 * time.Hour, []time.Time{hours(5)}},
		{"no overlap", []time.Time{hours(9), hours(2)}, 0, []time.Time{}},
		{"room for one more", []time.Time{hours(1), hours(2)}, 5 * time.Hour, []time.Time{hours(5), hours(1), hours(2)}},
		{"too many", []time.Time{hours(1), hours(2), hours(3)}, 5 * time.Hour, nil},
		{"too many but for an expired one", []time.Time{hours(1), hours(-2), hours(3)}, 5 * time.Hour, []time.Time{hours(5), hours(1), hours(3)}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			old := []spa.FileKey{{Key: serverKey(t, spa.Classic)}}
			for _, until := range test.old {
				old = append(old, spa.FileKey{Key: serverKey(t, spa.Classic), Until: until})
			}
			list, err := rotated(old, spa.PostQuantum, now, test.overlap)
			if test.want == nil {
				if err == nil || !strings.Contains(err.Error(), "wait until "+hours(1).Format(time.RFC3339)) {
					t.Fatalf("%d keys, %v", len(list), err)
				}
				return
			}
			if err != nil || len(list) != 1+len(test.want) {
				t.Fatalf("%d keys, %v; want %d", len(list), err, 1+len(test.want))
			}
			if !list[0].Until.IsZero() || list[0].Key.Equal(old[0].Key) || list[0].Key.Address().Suite() != spa.PostQuantum {
				t.Error("the first key is not a fresh one of the suite asked for")
			}
			for i, until := range test.want {
				if got := list[1+i].Until; !got.Equal(until) {
					t.Errorf("old key %d ends at %v, want %v", i, got, until)
				}
			}
			if read, err := spa.ParseKeyFile(spa.FormatKeyFile(list)); err != nil || len(read) != len(list) {
				t.Errorf("what is written is read as %d keys, %v", len(read), err)
			}
		})
	}
}

// Two administrators at once: of the keys whose addresses were given away none
// is lost.
func TestRotationsAtOnce(t *testing.T) {
	file := filepath.Join(t.TempDir(), "key")
	silent := func(out *strings.Builder) *ui { return &ui{out: out, err: io.Discard} }
	if err := (&keygenCmd{Out: file}).Run(silent(new(strings.Builder))); err != nil {
		t.Fatal(err)
	}
	var wait sync.WaitGroup
	given := make([]strings.Builder, 3)
	for i := range given {
		wait.Go(func() {
			for range 1000 { // until the lock is free
				if err := (&keygenCmd{Out: file, Rotate: true}).Run(silent(&given[i])); err == nil {
					return
				}
				time.Sleep(time.Millisecond)
			}
		})
	}
	wait.Wait()
	list, err := keys.Server(file)
	if err != nil || len(list) != 4 {
		t.Fatalf("%d keys, %v; want 4", len(list), err)
	}
	for i := range given {
		found := false
		for _, k := range list {
			found = found || given[i].String() == fmt.Sprintf("%v\n", k.Key.Address())
		}
		if !found {
			t.Errorf("the address that rotation %d printed has no key in the file", i)
		}
	}
	if _, err := os.Stat(file + ".new"); err == nil {
		t.Error("the lock is left behind")
	}
}

// A full disk must not leave half a key, nor take the old one away.
func TestFailedWriteLeavesNothing(t *testing.T) {
	file := filepath.Join(t.TempDir(), "key")
	next, err := beginFile(file)
	if err != nil {
		t.Fatal(err)
	}
	next.f.Close() // from here on writing fails
	if err := next.write("text"); err == nil {
		t.Fatal("written to a closed file")
	}
	next.abandon()
	if left, _ := filepath.Glob(file + "*"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
