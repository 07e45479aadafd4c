//go:build linux

package main

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/control"
)

// Each reason that ends an attempt has something to try.
func TestEveryReasonHasAnAdvice(t *testing.T) {
	for why, want := range map[string]string{
		"step 1 of 3 made":        "the steps behind this one",
		"part 2 of 9; 2 are here": "the steps behind this one",
		"this is not the port that step 2 wants; the attempt ends":                                  "compare what is sent",
		"this is not the port that step 2 wants; the attempt ends; step 1 of 3 made":                "the steps behind this one",
		"too late: 6s after the first step, and within is 5s":                                       "closer together",
		"this is step 3, and step 2 is missing; the attempt ends":                                   "more apart",
		"this is step 1, and step 3 was to come; the attempt ends":                                  "in the config's order",
		"the number is that of step 2, and its protocol is not; the attempt ends":                   "by the protocol",
		"the port is that of step 2, and its flags are not; the attempt ends":                       "with the flags",
		"this is step 2, and step 1 did not come before it, or too long ago: it counts for nothing": "begin with the first step",
		"no attempt is under way, and this is not its first step":                                   "begin with the first step",
		"an attempt at another door is under way, so this begins none":                              "the other attempt is over",
		"to 192.0.2.9, which is no address of this host":                                            "--host",
		"on an interface that is not listened to":                                                   "interfaces",
		"declined: fragment":                       "no fragment counts",
		"no knock has a step there, or near there": "compare the port",
		"its length is no request's":               "sallyport knock",
		"the first gate tag is wrong: it is no request, or made with another server's address":                      "sallyport invite",
		"refused: it is sealed for a server key whose time is over":                                                 "sallyport invite",
		"refused: older than the window: stale by 3m0s":                                                             "set the clock",
		"refused: its key is not in authorized_keys: SHA256:x":                                                      "authorized_keys",
		"the knock is complete and does nothing: this sequence is good for one knock and was used":                  "the next sequence",
		"the capture has only its beginning, so nobody can say what it was; capture whole packets ('tcpdump -s 0')": "tcpdump -s 0",
		"refused: the knock or the key does not open that service":                                                  "options of the key's line",
		"the grant set is full": "max_grants",
	} {
		if got := advice(why); want == "" || !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", why, got, want)
		}
	}
}

func TestVerdict(t *testing.T) {
	at := time.Date(2026, 3, 4, 5, 6, 7, 0, time.Local)
	explain := func(packet, knock, why string) control.Event {
		return control.Event{What: control.EventExplain, Packet: packet, Knock: knock, Why: why}
	}
	for _, of := range []string{"192.0.2.7", "2001:db8::7"} {
		addr := netip.MustParseAddr(of)
		made := explain("7000/tcp SYN", "front", "step 1 of 3 made")
		for _, c := range []struct {
			name   string
			events []control.Event
			want   string
		}{
			{"nothing", nil, " did not get in: no packet of its came"},
			{"stopped", []control.Event{made}, " did not get in: front: step 1 of 3 made (7000/tcp SYN)"},
			{"noise behind", []control.Event{made, explain("443/tcp", "", "part of a connection: no knock has such a step")}, " did not get in: front: step 1 of 3 made"},
			{"a copy behind", []control.Event{made, explain("7000/tcp SYN", "front", "a copy of step 1: harmless")}, " did not get in: front: step 1 of 3 made"},
			{"noise alone", []control.Event{explain("443/tcp SYN", "", "no knock has a step there, or near there")}, " did not get in: no knock has a step there"},
			{"refused", []control.Event{made, {What: control.EventRefused, Knock: "front", Why: "the grant set is full"}}, " did not get in: front: the grant set is full"},
			{"in", []control.Event{made, {What: control.EventOpen, Knock: "front", Service: "ssh", Until: at}, made}, " got in: ssh by front until 05:06:07"},
			{"ran", []control.Event{{What: control.EventRan, Knock: "front", Service: "wake"}}, " got in: wake by front, which ran it"},
		} {
			s := &story{of: addr, none: "came"}
			for i := range c.events {
				s.hear(&c.events[i])
			}
			if got := s.verdict()[0]; !strings.HasPrefix(got, of+c.want) {
				t.Errorf("%s: %q, want %q", c.name, got, of+c.want)
			}
		}
	}
}
