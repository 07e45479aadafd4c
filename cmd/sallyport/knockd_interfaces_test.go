//go:build linux

package main

import (
	"slices"
	"testing"

	"github.com/sallyport/sallyport/internal/knockd"
)

// TestWithoutAnInterface: nothing said is every interface, and eth0 by knockd's own
// rules. The command line goes before the file, with and without them.
func TestWithoutAnInterface(t *testing.T) {
	for _, test := range []struct {
		line, file   []string
		ours, strict []string
	}{
		{nil, nil, nil, []string{"eth0"}},
		{nil, []string{"any"}, nil, nil},
		{nil, []string{"wan", "ppp0"}, []string{"wan", "ppp0"}, []string{"wan", "ppp0"}},
		{[]string{"tun0"}, []string{"wan"}, []string{"tun0"}, []string{"tun0"}},
		{[]string{"any"}, []string{"wan"}, nil, nil},
	} {
		for strict, want := range map[bool][]string{false: test.ours, true: test.strict} {
			k := knockdDoors{options: &knockdOptions{interfaces: test.line, strict: strict}}
			r, err := k.settle(&knockd.File{Name: "/etc/knockd.conf", Interfaces: test.file})
			if err != nil {
				t.Fatal(err)
			}
			if got := r.cfg.Daemon.Interfaces; !slices.Equal(got, want) {
				t.Errorf("-i %q and Interface %q, strict %v: %q, want %q", test.line, test.file, strict, got, want)
			}
		}
	}
}
