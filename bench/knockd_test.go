package main

import (
	"encoding/binary"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/internal/knockd"
	"github.com/sallyport/sallyport/internal/sequence"
)

// Doors that share a port would be another measurement: one packet would be a step
// of several.
func TestDoorsAreDistinct(t *testing.T) {
	for _, doors := range []int{1, 10, 100, 1000} {
		ports := doorPorts(doors)
		file := filepath.Join(t.TempDir(), "knockd.conf")
		if err := os.WriteFile(file, []byte(doorsFile(ports, "start_command = true\n")), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := knockd.Load(file)
		if err != nil {
			t.Fatal(err)
		}
		seen := map[uint16]bool{}
		for _, d := range f.Doors {
			if len(d.Steps) != 3 || d.Start != "true" {
				t.Fatalf("a door with %d steps and the command %q", len(d.Steps), d.Start)
			}
			for _, s := range d.Steps {
				seen[s.Port] = true
			}
		}
		if len(f.Doors) != doors || len(seen) != 3*doors || seen[0] {
			t.Errorf("%d doors with %d ports, want %d with three each", len(f.Doors), len(seen), doors)
		}
	}
}

// A packet to another port, or a copy, costs something else than the row says.
func TestStreamIsSYNsToDoors(t *testing.T) {
	ports := doorPorts(2)
	count, sources, copies := map[bool]int{}, map[netip.Addr]bool{}, map[[8]byte]bool{}
	reached := map[uint16]bool{}
	for _, p := range new(keeper).stream(ports) {
		is6, tcp := p[0]>>4 == 6, p[20:]
		source := netip.AddrFrom4([4]byte(p[12:16]))
		if is6 {
			source, tcp = netip.AddrFrom16([16]byte(p[8:24])), p[40:]
		}
		count[is6]++
		sources[source] = true
		copies[[8]byte(append(append([]byte{source.As16()[15], byte(p[0] >> 4)}, tcp[0:2]...), tcp[4:8]...))] = true
		reached[binary.BigEndian.Uint16(tcp[2:])] = true
		if tcp[13] != sequence.SYN {
			t.Fatalf("flags %#x", tcp[13])
		}
	}
	want := map[uint16]bool{}
	for _, p := range ports {
		want[p] = true
	}
	if count[false] != portion/2 || count[true] != portion/2 || len(sources) != 2*streamSources || !maps.Equal(reached, want) || len(copies) != portion {
		t.Errorf("%v packets by family from %d sources to %v, %d different; want half each, %d, %v, all", count, len(sources), reached, len(copies), 2*streamSources, want)
	}
}

func TestInTurn(t *testing.T) {
	b, order := &bench{ctx: t.Context()}, ""
	n := 0
	got := b.inTurn(3, func(i int) (time.Duration, bool) {
		order += string(rune('a' + i))
		n++
		return time.Duration(n), i == 0 || n < 3
	})
	// The first gets figures 1, 3, 5; the second 2, and then none.
	if order != "ababa" || got != [2]time.Duration{3, 0} {
		t.Errorf("order %s, medians %v", order, got)
	}
	if got, want := cells(got[:], time.Duration.String), "         3ns           -"; got != want {
		t.Errorf("the row is %q, want %q", got, want)
	}
}

// The figure of a command is the moment of its own file, not of another's.
func TestHasName(t *testing.T) {
	event := func(name string, padded int) []byte {
		e := make([]byte, unix.SizeofInotifyEvent+padded)
		binary.NativeEndian.PutUint32(e[12:], uint32(padded))
		copy(e[unix.SizeofInotifyEvent:], name)
		return e
	}
	two := append(event("knockd-198.18.0.1", 32), event("sallyport-2001:db8:1::2", 48)...)
	for _, c := range []struct {
		events []byte
		name   string
		want   bool
	}{
		{two, "knockd-198.18.0.1", true},
		{two, "sallyport-2001:db8:1::2", true},
		{two, "sallyport-198.18.0.1", false},
		{two, "knockd-198.18.0.10", false},
		{two, "knockd-198.18.0.", false},
		{two[:len(two)-1], "sallyport-2001:db8:1::2", false},
		{two[:10], "", false},
		{nil, "", false},
	} {
		if got := hasName(c.events, c.name); got != c.want {
			t.Errorf("%q in %d bytes of events: %v", c.name, len(c.events), got)
		}
	}
}
