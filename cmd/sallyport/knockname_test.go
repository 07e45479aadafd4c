package main

import (
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestKnockNameStories runs the program under the name knock; nothing is sent.
func TestKnockNameStories(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata/knockname"})
}

func TestMilliseconds(t *testing.T) {
	for _, test := range []struct {
		text string
		want time.Duration
		says string
	}{
		{"", 0, ""}, {"0", 0, ""}, {"-0", 0, ""}, {"20", 20 * time.Millisecond, ""}, {"+20", 20 * time.Millisecond, ""},
		{" \t20", 20 * time.Millisecond, ""}, {"20ms", 20 * time.Millisecond, ""}, {"1e3", time.Millisecond, ""}, {"0x10", 0, ""},
		{"abc", 0, ""}, {"-", 0, ""}, {"--5", 0, ""}, {"=5", 0, ""}, {"2147483647", 2147483647 * time.Millisecond, ""},
		{"-1", 0, "cannot be negative"}, {" -2147483648x", 0, "cannot be negative"},
		{"2147483648", 0, "out of range"}, {"-2147483649", 0, "out of range"}, {strings.Repeat("9", 40), 0, "out of range"},
	} {
		d, err := milliseconds(test.text)
		if d != test.want || (err == nil) != (test.says == "") || err != nil && !strings.Contains(err.Error(), test.says) {
			t.Errorf("%q: %v, %v", test.text, d, err)
		}
	}
}

func TestPortNumber(t *testing.T) {
	for text, want := range map[string]uint16{
		"1": 1, "65535": 65535, "07000": 7000, "+7000": 7000, " 7000": 7000, "ssh": 22, "tftp": 69, "domain": 53, "SSH": 22, // the original wants it in small letters
		"": 0, " ": 0, "0": 0, "65536": 0, "-1": 0, "7000 ": 0, "7000x": 0, "0x10": 0, "++1": 0, "+ssh": 0, " ssh": 0,
		strings.Repeat("7", 100): 0, "a\nb": 0, strings.Repeat("a", 5000): 0,
	} {
		got, err := portNumber(text)
		if got != want || (err == nil) != (want != 0) {
			t.Errorf("%.50q: %d, %v; want %d", text, got, err, want)
		}
		if err != nil && (len(err.Error()) > 200 || strings.ContainsAny(err.Error(), "\n")) {
			t.Errorf("%.50q: said in %q", text, err)
		}
	}
}
