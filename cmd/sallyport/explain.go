//go:build linux

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/signal"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/sallyport/sallyport/internal/control"
)

type explainCmd struct {
	socketFlag `embed:""`
	Addr       address       `arg:"" help:"The address whose packets are explained."`
	For        time.Duration `placeholder:"1m" help:"For how long; until interrupted unless given."`
}

// Run explains packets as they come, and says at the end how it went.
func (c *explainCmd) Run(u *ui) error {
	if c.For < 0 {
		return usageError{errors.New("--for: the duration must be more than 0, as 1m")}
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if c.For > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.For)
		defer cancel()
	}
	r := control.Request{Do: control.DoExplain, Addr: c.Addr.Addr}
	conn, err := c.connect(r)
	if err != nil {
		return err
	}
	defer conn.Close()
	context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Now()) })
	s := &story{of: c.Addr.Addr, none: "reached a knock's ports or their neighbours, which is all that the daemon sees", look: "'tcpdump host " + c.Addr.String() +
		"' here shows whether anything comes: if not, something on the way drops it, or it comes from another address, perhaps of the other family (IPv4, IPv6); " +
		"with source = \"log\" or \"nflog\" look whether the firewall's own rules log the knock's ports, log_prefix is the one that they write, and the lines carry this host's name"}
	err = answers(conn, r, func(a control.Answer) error { return s.tell(u, a.Event, c.JSON) })
	switch {
	case ctx.Err() != nil:
		err = nil
	case !s.any: // nothing was looked at, or not until the end
		return err
	}
	return errors.Join(err, s.end(u, c.JSON))
}

// moment is how the times of packets are printed.
const moment = "2006-01-02 15:04:05.000"

// story is what became of one source's packets.
type story struct {
	of   netip.Addr
	none string // what is said where no packet came
	look string // and what to try then
	any  bool
	in   bool // it got in itself
	got  []gained
	// reasons are why it did not get in: of each knock the latest, the knock first
	// that was begun first. None: it did since.
	reasons []*control.Event
	made    *control.Event // the latest knock that let nobody in because it ends something
	rest    int            // parts of a message that were not printed
	part    *control.Event // the last of these
}

// gained is what a source's knock let in, as "ssh by front", and until when the last
// time.
type gained struct{ what, until string }

// tell prints one event.
func (s *story) tell(u *ui, e *control.Event, json bool) error {
	s.hear(e)
	switch {
	case json:
		return u.json(e)
	case e.What == control.EventKnock && e.Key == "":
		return nil // the explanation has said it
	case e.What == control.EventExplain && between().MatchString(e.Why):
		s.rest, s.part = s.rest+1, e
		return nil
	}
	s.print(u, e)
	return nil
}

// print prints an event, and how many were left out before it.
func (s *story) print(u *ui, e *control.Event) {
	left := ""
	switch {
	case s.rest == 1:
		left = " (1 packet before it is not listed)"
	case s.rest > 1:
		left = fmt.Sprintf(" (%d packets before it are not listed)", s.rest)
	}
	s.rest = 0
	u.print("%s %s%s\n", e.Time.Local().Format(moment), sentence(e), left)
}

// between is a part of an encoded message that is neither its first nor its last: there
// are 48 of them and more.
var between = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^part \d+ of \d+(; parts here: ([2-9]|\d\d+)$| came again.*: harmless)`)
})

// sentence is an event in words.
func sentence(e *control.Event) string {
	var words []string
	for _, w := range []string{e.Packet, e.Knock} {
		if w != "" {
			words = append(words, w)
		}
	}
	text := e.Why
	switch what := strings.TrimSpace(e.What + " " + e.Which()); {
	case e.What == control.EventExplain:
	case e.What == control.EventMissed:
		text = fmt.Sprintf("%d lines are missing here: %s", e.Count, e.Why)
	case !e.Until.IsZero():
		text = fmt.Sprintf("%s for %s until %s", what, e.Who(), e.Until.Local().Format(time.TimeOnly))
	case e.What == control.EventClosed && e.Why != "":
		text = strings.TrimSpace("closed nothing of "+e.Service) + ": " + e.Why
	case e.Why != "":
		text = what + ": " + e.Why
	default:
		text = what
	}
	if e.Key != "" {
		text += ", by " + e.Key
	}
	return strings.Join(append(words, text), ": ")
}

// hear remembers what the verdict needs.
func (s *story) hear(e *control.Event) {
	ofKnock := e.Knock != "" // else an administrator did it
	switch e.What {
	case control.EventOpen, control.EventRan:
		s.gain(e)
	case control.EventClosed, control.EventUndone:
		if ofKnock {
			s.any, s.reasons, s.made = true, nil, e
		}
	case control.EventExplain, control.EventRefused:
		if ofKnock || e.What == control.EventExplain {
			s.any = true
			s.blame(e)
		}
	}
}

func (s *story) gain(e *control.Event) {
	s.any, s.reasons = true, nil
	s.in = s.in || e.Covers(s.of)
	g := gained{what: e.Which()}
	if e.Who() != s.of.String() {
		g.what += " for " + e.Who()
	}
	g.what += " by " + cmp.Or(e.Knock, "an administrator")
	if e.Until.IsZero() {
		g.what += ", which ran it"
	} else {
		g.until = " until " + e.Until.Local().Format(time.TimeOnly)
	}
	// An address that comes again and again is told of once.
	s.got = slices.DeleteFunc(s.got, func(o gained) bool { return o.what == g.what })
	s.got = append(s.got, g)
}

// aftermathTime is how long a reason can be that of the packets which come behind it.
const aftermathTime = time.Minute

// aftermath is what packets mean that come behind the one which decided: the rest of
// a sequence that was broken, the copies of a request. It is a reason where there is
// no other.
var aftermath = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`did not come before it|no attempt is under way|nobody's sequence now|no code was begun|has run out$|` +
		`^a copy of |had its answer|counts for nothing|another knock has taken|another door is under way|to the one address that`)
})

// decides is the weight of a reason that ended an attempt, or is as far as one came.
const decides = 2

// weight says which reason takes the place of which: a lighter one never that of a
// heavier one.
func weight(e *control.Event) int {
	switch {
	case e.Knock == "" || strings.HasSuffix(e.Why, "harmless"):
		return 0
	case e.What == control.EventExplain && aftermath().MatchString(e.Why):
		return 1
	}
	return decides
}

// blame keeps a reason, beside those of other knocks that are as heavy.
func (s *story) blame(e *control.Event) {
	s.reasons = slices.DeleteFunc(s.reasons, func(o *control.Event) bool { return e.Time.Sub(o.Time) > aftermathTime })
	if len(s.reasons) > 0 {
		switch was, is := weight(s.reasons[0]), weight(e); {
		case is < was:
			return
		case is > was || is < decides:
			s.reasons = nil // of those that decide nothing the latest is enough
		}
	}
	if i := slices.IndexFunc(s.reasons, func(o *control.Event) bool { return o.Knock == e.Knock }); i >= 0 {
		s.reasons[i] = e
		return
	}
	s.reasons = append(s.reasons, e)
}

// verdict is what became of a source, in the end.
type verdict struct {
	What string     `json:"what"`
	Addr netip.Addr `json:"addr"`
	In   bool       `json:"in"`
	Why  string     `json:"why"`
	Try  string     `json:"try,omitempty"`
}

// end prints the verdict, as the last object where objects are asked for.
func (s *story) end(u *ui, json bool) error {
	v := s.verdict()
	if json {
		return u.json(v)
	}
	if s.rest > 0 {
		s.rest--
		s.print(u, s.part)
	}
	u.print("%v\n", v)
	return nil
}

// String is for people, a line or two.
func (v verdict) String() string {
	text := fmt.Sprintf("%v did not get in: %s", v.Addr, v.Why)
	if v.In {
		text = fmt.Sprintf("%v got in: %s", v.Addr, v.Why)
	}
	if v.Try != "" {
		text += "\ntry: " + v.Try
	}
	return text
}

// verdict is whether the source got in, why not, and what to try.
func (s *story) verdict() verdict {
	v := verdict{What: control.EventVerdict, Addr: s.of, In: s.in}
	switch {
	case !s.any:
		v.Why, v.Try = "no packet of its "+s.none, s.look
	case len(s.got) > 0:
		v.Why = s.gains()
	case len(s.reasons) > 0:
		v.Why, v.Try = s.causes()
	default:
		v.Why = s.made.Knock + ": the knock was made; it closes and lets nobody in"
		if s.made.Why != "" {
			v.Why += "; " + s.made.Why
		}
	}
	return v
}

func (s *story) gains() string {
	var words []string
	for _, g := range s.got {
		words = append(words, g.what+g.until)
	}
	text := strings.Join(words, "; ")
	if !s.in {
		text = "its knock was for another address: " + text
	}
	return text
}

// causes gives the reasons, and what to try about the first of them for which there is
// something.
func (s *story) causes() (why, try string) {
	var words []string
	for _, e := range s.reasons {
		text := e.Why
		if e.Knock != "" {
			text = e.Knock + ": " + text
		}
		if e.Packet != "" {
			text += " (" + e.Packet + ")"
		}
		words = append(words, text)
		try = cmp.Or(try, advice(e.Why))
	}
	return strings.Join(words, "; "), try
}

// remedies are what to try, by the words of the last reason; the first that fits
// counts. They are compiled when they are asked for: the daemon is the same program,
// and its two processes would hold them for nothing.
var remedies = []struct {
	words, try string
}{
	{`(^|; )step \d+ of \d+ made($| \(|, of)|^part \d+ of .*parts here: \d+$`, "the steps behind this one did not arrive: send all of them from one address; if they were sent, something on the way drops them, often the firewall of the network that they leave"},
	{`^too late|took longer than within`, "send the steps closer together, as 'sallyport knock' does, or raise within"},
	{`is missing`, "send the steps in the config's order, each once; if they were, the one between was lost or overtaken on the way: send them a little more apart"},
	{`was to come|has run out`, "send the steps in the config's order, each once"},
	{`its protocol is not`, "send that step by the protocol that the config names"},
	{`flags are not`, "send that step with the flags that the config names"},
	{`step 1 did not come before|not its first step|no code was begun`, "begin with the first step; if it was sent, it was lost on the way or came from another address"},
	{`step \d+ wants`, "compare what is sent with the config's sequence; whoever browses or scans at the same time spoils it too"},
	{`another door is under way`, "wait until the time of the other attempt is over"},
	{`no address of this host`, "send the knock to an address that this host has; for a capture, --host names them"},
	{`not listened to`, "knock by one of the interfaces that the config names, or add this one to interfaces"},
	{`this host itself`, "knock from another machine"},
	{`declined: fragment`, "send packets that fit: no fragment counts, because hosts differ in how they put them together"},
	{`no knock has`, "compare the port with the config's, and the config with the one that the daemon has read"},
	{`no request's`, "send it by 'sallyport knock'; if it was, some program on the way changed it, or the client is of another version"},
	{`first gate tag is wrong|time is over$`, "give the client this server's address line anew: 'sallyport invite' prints it, 'sallyport add' takes it"},
	{`before this server remembers`, "knock again, one-time ports in the next time step: at a first start, and after an end that was not clean, nothing made before it counts, because it may have been used"},
	{`(stale|ahead) by`, "set the clock that is wrong, here or at the client; an old capture of a request opens nothing, and must not"},
	{`not in authorized_keys`, "add the key's line to the knock's authorized_keys, if its owner may come in"},
	{`only its beginning|declined: truncated`, "capture whole packets: 'tcpdump -s 0 -w FILE'"},
	{`one knock and was used`, "take the next sequence of the list"},
	{`used up before|too many wrong codes`, "knock again in the next time step"},
	{`is over after`, "send all ports of one 'sallyport ports' in their order, from one address; behind NAT say the address that the server sees, with --address"},
	{`no person's secret`, "give the client its person's line anew: 'sallyport invite --person NAME' prints it, 'sallyport add' takes it"},
	{`nobody's sequence now`, "compare the two clocks; if they agree, give the client its person's line anew: 'sallyport invite --person NAME' prints it, 'sallyport add' takes it"},
	{`code is nobody's`, "send the code that the app shows now, and compare the two clocks"},
	{`was heard before|says nothing new`, "knock anew: each request is good once, and a copy opens nothing"},
	{`time of the secret is over`, "give its owner a new secret, or move expiry-time in the file of secrets"},
	{`another address than its sender's`, "have the client say --address observed, or the address that the server sees: something on the way changes the client's own"},
	{`must state an address|may not state another`, "compare the client's --address with the knock's address in the config"},
	{`too many requests a second|does not keep up`, "knock again in a moment"},
	{`grant set is full`, "close some grants, or raise max_grants"},
	{`does not open that service|may not be used from there|not valid at this time|the key may not|has that port`, "look at the options of the line of that key or person, which say for what, when and from where it is good"},
	{`nothing to extend`, "open first: only what is open can be extended"},
}

func advice(why string) string {
	for _, r := range remedies {
		if regexp.MustCompile(r.words).MatchString(why) {
			return r.try
		}
	}
	return ""
}
