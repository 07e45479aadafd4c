//go:build linux

package main

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/control"
)

// Each reason that ends an attempt has something to try.
func TestEveryReasonHasAnAdvice(t *testing.T) {
	for why, want := range map[string]string{
		"step 1 of 3 made":           "the steps behind this one",
		"part 2 of 9; parts here: 2": "the steps behind this one",
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
		"refused: the knock or the key does not open that service":                                                  "options of the line of that key or person",
		"the grant set is full":                            "max_grants",
		"declined: truncated":                              "tcpdump -s 0",
		"from this host itself, which is heard only where": "from another machine",
		"step 1 of 4 made (by the secret of ann)":          "the steps behind this one",
		"step 1 of 4 made, of the next time step: the sender's clock is ahead by up to 30s (by the secret of ann)":                           "the steps behind this one",
		"the attempt, with 2 of 4 steps, was over: it took longer than within = 20s (by the secret of ann)":                                  "closer together",
		"not the next step, so the attempt is over after 1 of 4; nothing is used up by that (by the secret of ann)":                          "behind NAT",
		"the last step, but this password was used up before: one opens once in each time step, so wait for the next (by the secret of ann)": "the next time step",
		"a port of the pool, and the first one of nobody's sequence now; if it was meant as one, then the clocks differ":                     "invite --person",
		"the code is nobody's now: it was typed wrongly or is too old":                                                                       "the app shows now",
		"part 50 of 50; all parts are here, and no person's secret opens the message: x; compare the secret":                                 "invite --person",
		"part 50 of 50; all parts are here, and the message was heard before: nothing happens":                                               "knock anew",
		"a copy of a request that was refused: it says nothing new":                                                                          "knock anew",
		"part 50 of 50; all parts are here, and bob asks to open: refused: none of the services has that port":                               "the line of that key or person",
		"the attempt before it has run out":                                                                  "in the config's order",
		"a copy of a request that had its answer: it says nothing new":                                       "knock anew",
		"part 50 of 50; all parts are here, and ann asks to open: refused: the time of the secret is over":   "expiry-time",
		"refused: it comes from another address than its sender's":                                           "--address observed",
		"the last step, and refused: the knock or the key does not open that service (by the secret of ann)": "the line of that key or person",
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
			{"closed", []control.Event{explain("9477/tcp SYN", "end", "step 3 of 3 made: the knock is complete"), {What: control.EventClosed, Knock: "end", Service: "ssh", Count: 1}}, " did not get in: end: the knock was made; it closes and lets nobody in"},
			{"nothing to close", []control.Event{{What: control.EventClosed, Knock: "end", Service: "ssh", Why: "nothing of this knock's own was open"}}, " did not get in: end: the knock was made; it closes and lets nobody in; nothing of this knock's own was open"},
			{"another knock behind", []control.Event{{What: control.EventClosed, Knock: "end", Service: "ssh"}, made}, " did not get in: front: step 1 of 3 made"},
			{"ran", []control.Event{{What: control.EventRan, Knock: "front", Service: "wake"}}, " got in: wake by front, which ran it"},
		} {
			s := &story{of: addr, none: "came"}
			for i := range c.events {
				c.events[i].Addr = addr
				s.hear(&c.events[i])
			}
			if got := s.verdict().String(); !strings.HasPrefix(got, of+c.want) {
				t.Errorf("%s: %q, want %q", c.name, got, of+c.want)
			}
		}
	}
}

// The reason that is told is the one which decided, and not what the packets behind it
// meant then: the rest of a broken sequence, the other copies of a request.
func TestVerdictNamesTheCause(t *testing.T) {
	const (
		idle  = "this is step 2, and step 1 did not come before it, or too long ago: it counts for nothing"
		apart = "no attempt is under way, and this is not its first step"
		gone  = "this is step 3, and step 2 is missing; the attempt ends"
		copy  = "a copy of a request that was refused: it says nothing new"
		nat   = "not the next step, so the attempt is over after 1 of 4; nothing is used up by that"
		pool  = "a port of the pool, and the first one of nobody's sequence now"
	)
	at := time.Date(2026, 3, 4, 5, 6, 7, 0, time.Local)
	for _, c := range []struct {
		name  string
		said  []string // each "knock: why", after a pause where it begins with a +
		want  string
		wants string // what to try
	}{
		{"another order", []string{"front: step 1 of 3 made", "front: " + gone, "front: " + idle}, "front: " + gone + " (p)", "more apart"},
		{"too slow", []string{"front: step 1 of 3 made", "front: too late: 6s after the first step, and within is 5s", "front: " + idle}, "front: too late: 6s after the first step, and within is 5s (p)", "closer together"},
		{"a refused request", []string{"keys: refused: older than the window: stale by 24h0m0s", "keys: " + copy, "keys: " + copy}, "keys: refused: older than the window: stale by 24h0m0s (p)", "set the clock"},
		{"behind NAT", []string{"people: step 1 of 4 made", "people: " + nat, "people: " + pool, "people: " + pool}, "people: " + nat + " (p)", "behind NAT"},
		{"a knock beside it", []string{"front: step 1 of 3 made", "web: " + apart}, "front: step 1 of 3 made (p)", "the steps behind"},
		{"one that ends in another", []string{"front: step 1 of 3 made", "front: " + gone, "shut: step 1 of 3 made", "front: " + idle, "shut: step 2 of 3 made"},
			"front: " + gone + " (p); shut: step 2 of 3 made (p)", "more apart"},
		{"nothing else", []string{"web: " + apart, "front: " + idle}, "front: " + idle + " (p)", "begin with the first step"},
		{"long ago", []string{"front: " + gone, "+front: " + idle}, "front: " + idle + " (p)", "begin with the first step"},
		{"a new attempt", []string{"front: " + gone, "front: step 1 of 3 made"}, "front: step 1 of 3 made (p)", "the steps behind"},
	} {
		for _, of := range []string{"192.0.2.7", "2001:db8::7"} {
			s := &story{of: netip.MustParseAddr(of)}
			now := at
			for _, line := range c.said {
				if line[0] == '+' {
					line, now = line[1:], now.Add(2*aftermathTime)
				}
				knock, why, _ := strings.Cut(line, ": ")
				s.hear(&control.Event{Time: now, What: control.EventExplain, Addr: s.of, Knock: knock, Packet: "p", Why: why})
			}
			if v := s.verdict(); v.In || v.Why != c.want || !strings.Contains(v.Try, c.wants) {
				t.Errorf("%s:\n got %q, %q\nwant %q, %q", c.name, v.Why, v.Try, c.want, c.wants)
			}
		}
	}
}

// Who got in is told, however often it did, and what an administrator did is no knock's
// doing.
func TestVerdictOfWhoGotIn(t *testing.T) {
	at := time.Date(2026, 3, 4, 5, 6, 7, 0, time.Local)
	for of, c := range map[string]struct{ network, beside, other string }{
		"192.0.2.7": {"192.0.2.0/24", "192.0.3.0/24", "198.51.100.7"}, "2001:db8::7": {"2001:db8::/56", "2001:db8:1::/56", "2001:db8:9::7"},
	} {
		s := &story{of: netip.MustParseAddr(of)}
		open := func(addr, knock string) *control.Event {
			e := &control.Event{What: control.EventOpen, Addr: s.of, Service: "ssh", Knock: knock, Until: at}
			if p, err := netip.ParsePrefix(addr); err == nil {
				e.Addr, e.Bits = p.Addr(), uint8(p.Bits())
			} else if addr != "" {
				e.Addr = netip.MustParseAddr(addr)
			}
			return e
		}
		often := make([]*control.Event, 100)
		for i := range often {
			often[i] = open("", "front")
			often[i].Until = at.Add(time.Duration(i-99) * time.Minute)
		}
		for _, c := range []struct {
			name   string
			events []*control.Event
			want   string
		}{
			{"a hundred times", often, " got in: ssh by front until 05:06:07"},
			{"for another", []*control.Event{open(c.other, "keys")}, " did not get in: its knock was for another address: ssh for " + c.other + " by keys until 05:06:07"},
			{"for its network", []*control.Event{open(c.network, "mail")}, " got in: ssh for " + c.network + " by mail until 05:06:07"},
			{"for another network", []*control.Event{open(c.beside, "mail")}, " did not get in: its knock was for another address: ssh for " + c.beside + " by mail until 05:06:07"},
			{"by command", []*control.Event{open("", "")}, " got in: ssh by an administrator until 05:06:07"},
			{"closed by command", []*control.Event{{What: control.EventClosed, Addr: s.of, Count: 1}, {What: control.EventRefused, Addr: s.of, Why: "the grant set is full"}}, " did not get in: no packet of its came"},
		} {
			s := &story{of: s.of, none: "came"}
			for _, e := range c.events {
				s.hear(e)
			}
			if got := s.verdict().String(); got != of+c.want {
				t.Errorf("%s: %q, want %q", c.name, got, of+c.want)
			}
		}
	}
}

// Of an encoded message's parts the first and the last are printed, and where there is
// no last, how far it came.
func TestPartsBetweenAreNotListed(t *testing.T) {
	part := func(n int) *control.Event {
		return &control.Event{What: control.EventExplain, Packet: "40000/tcp SYN", Knock: "people", Why: fmt.Sprintf("part %d of 50; parts here: %d", n, n)}
	}
	again := part(3)
	again.Why = "part 3 of 50 came again: harmless, parts here: 3"
	last := part(50)
	last.Why = "part 50 of 50; all parts are here, and ann asks to open"
	for _, c := range []struct {
		name   string
		events []*control.Event
		want   []string // the end of each line
	}{
		{"whole", []*control.Event{part(1), part(2), part(3), again, part(49), last},
			[]string{"parts here: 1", "ann asks to open (4 packets before it are not listed)", "people: part 50 of 50; all parts are here, and ann asks to open (40000/tcp SYN)"}},
		{"cut off", []*control.Event{part(1), part(2), part(3)},
			[]string{"parts here: 1", "parts here: 3 (1 packet before it is not listed)", "people: part 3 of 50; parts here: 3 (40000/tcp SYN)", "try: "}},
	} {
		var out strings.Builder
		u, s := &ui{out: &out}, &story{of: netip.MustParseAddr("2001:db8::7")}
		for _, e := range c.events {
			if err := s.tell(u, e, false); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.end(u, false); err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
		if len(lines) != len(c.want) {
			t.Fatalf("%s: %d lines, want %d:\n%s", c.name, len(lines), len(c.want), out.String())
		}
		for i, want := range c.want {
			if !strings.HasSuffix(lines[i], want) && !strings.HasPrefix(lines[i], want) {
				t.Errorf("%s: line %d is %q, want %q", c.name, i+1, lines[i], want)
			}
		}
	}
}
