//go:build linux

package engine

import (
	"net/netip"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/border"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/sequence"
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
undo_after = "10m"
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
			{&border.Open{Addr: addr, TTL: time.Minute, Proto: sequence.TCP, Port: 22}, border.Granted, time.Minute, 0},
			{&border.Open{Addr: addr, TTL: 2 * time.Minute, Extend: true}, border.Granted, 2 * time.Minute, 0}, // its only port is all of it
			{&border.Close{Addr: addr}, border.Closed, 0, 1},
			{&border.Run{Addr: addr, Rule: 2, Do: border.Undo}, border.NothingToUndo, 0, 0},
			{&border.Run{Addr: addr, Rule: 2, Do: border.Extend}, border.NothingToExtend, 0, 0},
			{&border.Run{Addr: addr, Rule: 2}, border.Ran, 0, 0},
			{&border.Run{Addr: addr, Rule: 2, Do: border.Extend}, border.Ran, 0, 0},
			{&border.Run{Addr: addr, Rule: 2, Do: border.Undo}, border.Undone, 0, 0},
			{&border.Run{Addr: addr, Rule: 2, Key: 1}, border.Ran, 0, 0},
			{&border.Run{Addr: addr, Rule: 2, Key: 2}, border.Ran, 0, 0},
			{&border.Run{Addr: addr, Rule: 2, Key: 1, Do: border.Undo}, border.NothingToUndo, 0, 0}, // the other wants it still
			{&border.Run{Addr: addr, Rule: 2, Key: 2, Do: border.Undo}, border.Undone, 0, 0},
			{&border.Run{Addr: addr, Rule: 2, Key: 1}, border.Ran, 0, 0},
		} {
			done := w.answer(c.m, now)
			if done.Result != c.result || done.Count != c.count || c.result == border.Granted && !done.Until.Equal(now.Add(c.until)) {
				t.Errorf("%v: request %d: %+v, want %v", addr, i, done, c.result)
			}
		}
		if got := w.answer(&border.Run{Addr: addr, Rule: 2, Key: 1, Do: border.Undo}, now.Add(11*time.Minute)).Result; got != border.NothingToUndo {
			t.Errorf("behind undo_after: %v", got)
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

// Who closes or prolongs does so with what it may: nobody's packets end what a secret
// opened, and no person's what another has.
func TestPretendedAsksWhose(t *testing.T) {
	cfg, err := config.Parse("replay.toml", []byte(`
[service.ssh]
ports = ["22/tcp"]
[knock.people]
type = "otp"
opens = ["ssh"]
secrets = "/etc/people"
pool = ["20000-25999/tcp"]
[knock.shut]
type = "otp"
closes = ["ssh"]
secrets = "/etc/people"
pool = ["26000-29999/tcp"]
[knock.front]
type = "sequence"
opens = ["ssh"]
sequence = ["7211/tcp", "8533/udp", "7877/tcp"]
[knock.more]
type = "sequence"
extends = ["ssh"]
sequence = ["9311/tcp", "9733/udp", "9477/tcp"]
[knock.end]
type = "sequence"
closes = ["ssh"]
sequence = ["11311/tcp", "11733/udp", "11477/tcp"]
`))
	if err != nil {
		t.Fatal(err)
	}
	const people, shut, front, more, end = 0, 1, 2, 3, 4 // the numbers of their rules
	now := time.Unix(1_800_000_000, 0)
	for _, addr := range []netip.Addr{netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8::7")} {
		w := newPretended(cfg)
		open := func(rule, key uint16, extend bool) border.Message {
			return &border.Open{Addr: addr, TTL: time.Minute, Rule: rule, Key: key, Extend: extend}
		}
		shutBy := func(rule, key uint16) border.Message { return &border.Close{Addr: addr, Rule: rule, Key: key} }
		for i, c := range []struct {
			m      border.Message
			result border.Result
			count  uint32
		}{
			{open(people, 1, false), border.Granted, 0},
			{open(more, border.NoKey, true), border.NothingToExtend, 0}, // that is a person's
			{shutBy(end, border.NoKey), border.Closed, 0},
			{shutBy(shut, 2), border.Closed, 0}, // another person
			{open(front, border.NoKey, false), border.Granted, 0},
			{open(more, border.NoKey, true), border.Granted, 0},
			{shutBy(shut, 1), border.Closed, 1}, // the same person by another knock of the file
			{shutBy(shut, 1), border.Closed, 0},
			{shutBy(end, border.NoKey), border.Closed, 1},
			{open(more, border.NoKey, true), border.NothingToExtend, 0},
		} {
			if done := w.answer(c.m, now); done.Result != c.result || done.Count != c.count {
				t.Errorf("%v: request %d: %+v, want %v of %d", addr, i, done, c.result, c.count)
			}
		}
	}
}
