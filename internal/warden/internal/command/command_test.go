//go:build linux

package command

import (
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/sallyport/sallyport/internal/warden/internal/nft"
	"github.com/sallyport/sallyport/internal/warden/internal/run"
)

// TestMain is also the spawner.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == "spawner" {
		if err := run.Spawner(); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// A grant for which there is not room for all of its ports opens none of them: the
// gate knows nothing of what a failed grant left open, and could not close it.
func TestAGrantWithoutRoomOpensNothing(t *testing.T) {
	for name, addrs := range map[string][2]string{"IPv4": {"2001:db8::7", "192.0.2.7"}, "IPv6": {"192.0.2.7", "2001:db8::7"}} {
		t.Run(name, func(t *testing.T) {
			out := filepath.Join(t.TempDir(), "out")
			log := slog.New(slog.DiscardHandler)
			runner, err := run.New(run.Options{StateDir: t.TempDir(), Needed: true, Log: log, Tell: func(run.Event) {}})
			if err != nil {
				t.Fatal(err)
			}
			defer runner.Close()
			b := &Backend{Runner: runner, Log: log}
			script := config.Command{"/bin/sh", "-c", "echo {addr} {port} >>" + out}
			b.Apply(&config.Config{
				Daemon:   config.Daemon{Backend: config.Commands, MaxGrants: 3, OpenCommand: script, CloseCommand: script},
				Services: []config.Service{{Name: "ssh", Ports: []config.PortRange{{Proto: sequence.TCP, Low: 22, High: 23}}}},
			}, nft.Options{})
			grant := func(addr string) error {
				var both []nft.Element
				for _, port := range []uint16{22, 23} {
					both = append(both, nft.Element{Addr: netip.MustParseAddr(addr), Proto: sequence.TCP, Port: port, TTL: time.Hour, By: "front"})
				}
				return b.Grant(both)
			}
			if err := grant(addrs[0]); err != nil {
				t.Fatal(err)
			}
			if err := grant(addrs[1]); !errors.Is(err, nft.ErrFull) {
				t.Errorf("the grant for which there is no room: %v", err)
			}
			if err := grant(addrs[0]); err != nil {
				t.Errorf("once more, which needs no room: %v", err)
			}
			open, _ := b.Grants()
			text, _ := os.ReadFile(out)
			if len(open) != 2 || strings.Contains(string(text), addrs[1]) {
				t.Errorf("open are %v, and the command was run with\n%s", open, text)
			}
		})
	}
}
