package nft

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/testnet"
)

// Promise 2: hidden stays hidden. A service that flushes the ruleset takes our
// table with it, or its rules, and the daemon must hear of that, of nothing
// else, and never of what it did itself.
func TestFollowTellsWhoRemovedTheTable(t *testing.T) {
	ns := testnet.New(t)
	table := openIn(t, ns)
	cfg := guarding(config.Auto, "22/tcp", "53/udp")
	var removed <-chan string
	var err error
	ns.Do(func() { removed, err = Follow(t.Context()) })
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range [][]string{
		{"flush", "ruleset"},
		{"delete", "table", "inet", TableName},
		{"flush", "table", "inet", TableName},
		{"flush", "chain", "inet", TableName, "arrive"},
		{"flush", "set", "inet", TableName, "hidden_auto"},
		{"delete", "element", "inet", TableName, "hidden_auto", "{ tcp . 22 }"},
	} {
		// None of these removes or empties our table, or else we did it.
		for _, cfg := range []*config.Config{guarding(config.Reject, "22-30/tcp"), cfg} {
			if err := table.Apply(cfg, Options{}); err != nil {
				t.Fatal(err)
			}
		}
		for _, p := range pairs {
			e := tcp(p.stranger, 22, time.Hour)
			if err := errors.Join(table.Grant([]Element{e}), table.Revoke([]Element{e}), table.Grant([]Element{e})); err != nil {
				t.Fatal(err)
			}
			set := family(p.stranger).suffix("open")
			ns.Run("nft", "delete", "element", "inet", TableName, set, "{ "+p.stranger.String()+" . tcp . 22 }")
		}
		ns.Run("nft", "add", "table", "ip", TableName)
		ns.Run("nft", "add", "chain", "ip", TableName, "arrive")
		ns.Run("nft", "delete", "table", "ip", TableName)
		ns.Run("nft", "add", "rule", "inet", TableName, "arrive", "counter")
		untold(t, strings.Join(c, " "), removed)
		ns.Run("nft", c...)
		select {
		case got := <-removed:
			if got != "nft" {
				t.Errorf("%v: by %q", c, got)
			}
		case <-time.After(5 * time.Second):
			t.Errorf("%v: nothing was told", c)
		}
	}
	if err := table.Down(); err != nil {
		t.Fatal(err)
	}
	untold(t, "Down", removed)
}

// quiet fails if something is told. Another's table marks the end of what was
// told until now.
func untold(t *testing.T, before string, removed <-chan string) {
	t.Helper()
	select {
	case by := <-removed:
		t.Errorf("before %s it was told of %q", before, by)
	case <-time.After(50 * time.Millisecond):
	}
}

// What happens when a trial ends is the kernel's own doing, not an attack.
func TestFollowIsSilentWhenATrialEnds(t *testing.T) {
	t.Parallel()
	ns := testnet.New(t)
	table := openIn(t, ns)
	var removed <-chan string
	var err error
	ns.Do(func() { removed, err = Follow(t.Context()) })
	if err != nil {
		t.Fatal(err)
	}
	if err := table.Apply(guarding(config.Auto, "22/tcp"), Options{HiddenFor: time.Second}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "ended", 5*time.Second, func() string {
		ns.Run("nft", "add", "table", "ip", "other") // its batch brings out what waits
		if strings.Contains(ns.Run("nft", "list", "set", "inet", TableName, "hidden_auto"), "22") {
			return "hidden"
		}
		return "ended"
	})
	ns.Run("nft", "add", "table", "ip", "another")
	untold(t, "the end", removed)
}

func TestFollowEnds(t *testing.T) {
	ns := testnet.New(t)
	ctx, stop := context.WithCancel(t.Context())
	var removed <-chan string
	var err error
	ns.Do(func() { removed, err = Follow(ctx) })
	if err != nil {
		t.Fatal(err)
	}
	stop()
	if _, open := <-removed; open {
		t.Error("something was told")
	}
}
