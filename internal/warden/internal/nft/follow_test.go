package nft

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/testnet"
)

// Promise 2: hidden stays hidden. A service that flushes the ruleset takes our
// table with it, and the daemon must hear of that, and of nothing else.
func TestFollowTellsWhoRemovedTheTable(t *testing.T) {
	ns := testnet.New(t)
	table := openIn(t, ns)
	var removed <-chan string
	var err error
	ns.Do(func() { removed, err = Follow(t.Context()) })
	if err != nil {
		t.Fatal(err)
	}
	comm, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		remove func()
		want   string
	}{
		{"flush ruleset", func() { ns.Run("nft", "flush", "ruleset") }, "nft"},
		{"delete table", func() { ns.Run("nft", "delete", "table", "inet", TableName) }, "nft"},
		{"down", func() { table.Down() }, strings.TrimSpace(string(comm))},
	} {
		if err := table.Apply(guarding(config.Auto, "22/tcp"), Options{}); err != nil {
			t.Fatal(err)
		}
		// None of these removes our table.
		ns.Run("nft", "add", "table", "ip", TableName)
		ns.Run("nft", "delete", "table", "ip", TableName)
		ns.Run("nft", "flush", "chain", "inet", TableName, "known")
		c.remove()
		select {
		case got := <-removed:
			if got != c.want {
				t.Errorf("%s: removed by %q, want %q", c.name, got, c.want)
			}
		case <-time.After(5 * time.Second):
			t.Errorf("%s: nothing was told", c.name)
		}
	}
	select {
	case by := <-removed:
		t.Errorf("told once more, by %q", by)
	default:
	}
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
