//go:build linux

package engine

import (
	"net/netip"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/border"
	"github.com/sallyport/sallyport/internal/config"
)

// The warden of a replay answers by the config's rules.
func TestPretended(t *testing.T) {
	cfg, err := config.Parse("replay.toml", []byte(`
[daemon]
max_grants = 16
[service.ssh]
ports = ["22/tcp"]
max_open_for = "1h"
[service.inner]
ports = ["80/tcp"]
on = ["10.0.0.5"]
[action.wake]
run = ["/bin/true"]
run_ipv6 = ["/bin/true"]
undo = ["/bin/true"]
undo_ipv6 = ["/bin/true"]
[knock.front]
type = "sequence"
opens = ["ssh", "inner"]
runs = ["wake"]
sequence = ["7211/tcp", "8533/udp", "7877/tcp"]
`))
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(1_800_000_000, 0)
	for six, addr := range map[bool]netip.Addr{false: netip.MustParseAddr("192.0.2.7"), true: netip.MustParseAddr("2001:db8::7")} {
		w := newPretended(cfg)
		inner := border.Granted
		if six {
			inner = border.WrongFamily
		}
		for i, c := range []struct {
			m      border.Message
			result border.Result
			until  time.Duration
			count  uint32
		}{
			{&border.Open{Addr: addr, TTL: time.Minute, Extend: true}, border.NothingToExtend, 0, 0},
			{&border.Open{Addr: addr, TTL: time.Minute}, border.Granted, time.Minute, 0},
			{&border.Open{Addr: addr, TTL: time.Second}, border.Granted, time.Minute, 0}, // never shortened
			{&border.Open{Addr: addr, TTL: 2 * time.Minute, Extend: true}, border.Granted, 2 * time.Minute, 0},
			{&border.Open{Addr: addr, TTL: 2 * time.Hour}, border.TooLong, 0, 0},
			{&border.Open{Addr: addr, TTL: time.Second, Rule: 1}, inner, time.Second, 0},
			{&border.Close{Addr: addr}, border.Closed, 0, 1},
			{&border.Close{Addr: addr}, border.Closed, 0, 0},
			{&border.Run{Addr: addr, Rule: 2, Do: border.Undo}, border.NothingToUndo, 0, 0},
			{&border.Run{Addr: addr, Rule: 2, Do: border.Extend}, border.NothingToExtend, 0, 0},
			{&border.Run{Addr: addr, Rule: 2}, border.Ran, 0, 0},
			{&border.Run{Addr: addr, Rule: 2, Do: border.Extend}, border.Ran, 0, 0},
			{&border.Run{Addr: addr, Rule: 2, Do: border.Undo}, border.Undone, 0, 0},
		} {
			done := w.answer(c.m, now)
			if done.Result != c.result || done.Count != c.count || c.result == border.Granted && !done.Until.Equal(now.Add(c.until)) {
				t.Errorf("%v: request %d: %+v, want %v", addr, i, done, c.result)
			}
		}
		if w.answer(&border.Watched{}, now) != nil {
			t.Error("an answer to what asks nothing")
		}
		var last border.Result
		for range 20 {
			addr = addr.Next()
			last = w.answer(&border.Open{Addr: addr, TTL: time.Minute}, now).Result
		}
		if last != border.Full {
			t.Errorf("the 20th of 16 grants: %v", last)
		}
		if got := w.answer(&border.Open{Addr: addr, TTL: time.Minute}, now.Add(time.Hour)).Result; got != border.Granted {
			t.Errorf("when all had ended: %v", got)
		}
	}
}
