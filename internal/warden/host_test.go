//go:build linux

package warden

import (
	"context"
	"fmt"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/sallyport/sallyport/internal/testnet"
)

// TestListening: what only this host can dial is no port that a stranger's
// packet would be innocent at. check says the same.
func TestListening(t *testing.T) {
	t.Parallel()
	ns := testnet.New(t)
	ns.Address("lo", "192.0.2.1/32", "2001:db8::1/128")
	ns.Do(func() {
		for i, addr := range []string{"127.0.0.1", "::1", "192.0.2.1", "2001:db8::1", "::"} {
			l, err := net.Listen("tcp", net.JoinHostPort(addr, fmt.Sprint(21+i)))
			if err != nil {
				t.Error(err)
				return
			}
			t.Cleanup(func() { l.Close() })
			p, err := net.ListenPacket("udp", net.JoinHostPort(addr, fmt.Sprint(31+i)))
			if err != nil {
				t.Error(err)
				return
			}
			t.Cleanup(func() { p.Close() })
		}
	})
	var want []config.PortRange
	for _, port := range []uint16{23, 24, 25} {
		want = append(want, config.PortRange{Proto: sequence.TCP, Low: port, High: port})
	}
	for _, port := range []uint16{33, 34, 35} {
		want = append(want, config.PortRange{Proto: sequence.UDP, Low: port, High: port})
	}
	var got []config.PortRange
	var err error
	ns.Do(func() { got, err = listening() })
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v; want %v", got, err, want)
	}
}

// At the end of summer time, and where no zone has any, a line's local time is known
// for a minute around now, though the facts are a minute old.
func TestZones(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	const hour = 3600
	for _, tt := range []struct {
		now  string
		in   *time.Location
		want [2]int
	}{
		{"2026-07-01T12:00:00Z", berlin, [2]int{2 * hour, 2 * hour}},
		{"2026-10-25T00:57:59Z", berlin, [2]int{2 * hour, 2 * hour}},
		{"2026-10-25T00:58:01Z", berlin, [2]int{2 * hour, hour}},
		{"2026-10-25T01:01:59Z", berlin, [2]int{2 * hour, hour}},
		{"2026-10-25T01:02:01Z", berlin, [2]int{hour, hour}},
		{"2026-03-29T01:00:00Z", berlin, [2]int{hour, 2 * hour}},
		{"2026-03-29T01:00:00Z", time.UTC, [2]int{}},
		{"2026-03-29T01:00:00Z", time.FixedZone("", 20700), [2]int{20700, 20700}},
	} {
		now, err := time.Parse(time.RFC3339, tt.now)
		if err != nil {
			t.Fatal(err)
		}
		if got := zones(now.In(tt.in)); got != tt.want {
			t.Errorf("%s in %v: %v, want %v", tt.now, tt.in, got, tt.want)
		}
	}
}

// TestFollowWaits: anybody on the wire can renew our addresses all the time by
// router advertisements, and each look at the host costs the packets time.
func TestFollowWaits(t *testing.T) {
	t.Parallel()
	ns := testnet.New(t)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var changed <-chan struct{}
	var err error
	ns.Do(func() { changed, err = follow(ctx) })
	if err != nil {
		t.Fatal(err)
	}
	told := 0
	hear := func(limit time.Duration) bool {
		select {
		case <-changed:
			told++
			return true
		case <-time.After(limit):
			return false
		}
	}
	start := time.Now()
	for i := range 40 {
		ns.Address("lo", fmt.Sprintf("192.0.2.%d/32", i+1), fmt.Sprintf("2001:db8::%d/128", i+1))
		if hear(10*time.Millisecond) && told == 1 && time.Since(start) > hostPause/2 {
			t.Error("the first change waited")
		}
	}
	if most := hostBurst + 2 + int(time.Since(start)/hostPause); told < 2 || told > most {
		t.Errorf("80 changes in %v were told %d times, want 2 to %d", time.Since(start), told, most)
	}
	if !hear(2*hostPause) || hear(2*hostPause) {
		t.Error("the last changes must be told, once")
	}
}
