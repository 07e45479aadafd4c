//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/signal"
	"regexp"
	"slices"
	"strings"
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
	s := &story{of: c.Addr.Addr, none: "reached a knock's ports or their neighbours, which is all that the daemon sees; " +
		"try: 'tcpdump host " + c.Addr.String() + "' here shows whether anything comes: if not, something on the way drops it, or it comes from another address; " +
		"with source = \"log\" or \"nflog\" look whether the firewall's own rules log the knock's ports, log_prefix is the one that they write, and the lines carry this host's name"}
	err = answers(conn, r, func(a control.Answer) error { return s.tell(u, a.Event, c.JSON) })
	if ctx.Err() != nil {
		err = nil
	}
	return errors.Join(err, s.end(u, c.JSON))
}

// moment is how the times of packets are printed.
const moment = "2006-01-02 15:04:05.000"

// story is what became of one source's packets.
type story struct {
	of   netip.Addr
	none string // what is said where no packet came
	any  bool
	got  []string
	last *control.Event // the latest that says why it did not get in; nil: it did since
	made *control.Event // the latest knock that let nobody in because it ends something
	rest int            // parts of a message that were not printed
	part *control.Event // the last of these
}

// tell prints one event.
func (s *story) tell(u *ui, e *control.Event, json bool) error {
	s.hear(e)
	switch {
	case json:
		return u.json(e)
	case e.What == control.EventKnock && e.Key == "":
		return nil // the explanation has said it
	case e.What == control.EventExplain && between.MatchString(e.Why):
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
var between = regexp.MustCompile(`^part \d+ of \d+(; parts here: ([2-9]|\d\d+)$| came again.*: harmless)`)

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
	switch e.What {
	case control.EventOpen:
		s.gain(fmt.Sprintf("%s by %s until %s", e.Which(), e.Knock, e.Until.Local().Format(time.TimeOnly)))
	case control.EventRan:
		s.gain(fmt.Sprintf("%s by %s, which ran it", e.Service, e.Knock))
	case control.EventClosed, control.EventUndone:
		s.any, s.last, s.made = true, nil, e
	case control.EventExplain:
		s.any = true
		// What means nothing to any knock is no reason where there is a better one.
		if e.Knock != "" || s.last == nil || s.last.Knock == "" {
			s.blame(e)
		}
	case control.EventRefused:
		s.any = true
		s.blame(e)
	}
}

func (s *story) gain(what string) {
	s.any, s.last = true, nil
	if !slices.Contains(s.got, what) {
		s.got = append(s.got, what)
	}
}

// blame keeps a reason. A harmless packet behind another is none.
func (s *story) blame(e *control.Event) {
	if s.last == nil || !strings.HasSuffix(e.Why, "harmless") {
		s.last = e
	}
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
	v := verdict{What: control.EventVerdict, Addr: s.of}
	switch {
	case !s.any:
		v.Why = "no packet of its " + s.none
		return v
	case len(s.got) > 0:
		v.In, v.Why = true, strings.Join(s.got, "; ")
		return v
	case s.last == nil:
		v.Why = s.made.Knock + ": the knock was made; it closes and lets nobody in"
		if s.made.Why != "" {
			v.Why += "; " + s.made.Why
		}
		return v
	}
	v.Why, v.Try = s.last.Why, advice(s.last.Why)
	if s.last.Knock != "" {
		v.Why = s.last.Knock + ": " + v.Why
	}
	if s.last.Packet != "" {
		v.Why += " (" + s.last.Packet + ")"
	}
	return v
}

// remedies are what to try, by the words of the last reason; the first that fits
// counts.
var remedies = []struct {
	words *regexp.Regexp
	try   string
}{
	{regexp.MustCompile(`(^|; )step \d+ of \d+ made$|^part \d+ of .*parts here: \d+$`), "the steps behind this one did not arrive: send all of them from one address; if they were sent, something on the way drops them, often the firewall of the network that they leave"},
	{regexp.MustCompile(`^too late`), "send the steps closer together, as 'sallyport knock' does, or raise within"},
	{regexp.MustCompile(`is missing`), "the step between was lost or overtaken on the way: send the steps a little more apart"},
	{regexp.MustCompile(`was to come`), "send the steps in the config's order, each once"},
	{regexp.MustCompile(`its protocol is not`), "send that step by the protocol that the config names"},
	{regexp.MustCompile(`flags are not`), "send that step with the flags that the config names"},
	{regexp.MustCompile(`step 1 did not come before|not its first step`), "begin with the first step; if it was sent, it was lost on the way or came from another address"},
	{regexp.MustCompile(`step \d+ wants`), "compare what is sent with the config's sequence; whoever browses or scans at the same time spoils it too"},
	{regexp.MustCompile(`another door is under way`), "wait until the time of the other attempt is over"},
	{regexp.MustCompile(`no address of this host`), "send the knock to an address that this host has; for a capture, --host names them"},
	{regexp.MustCompile(`not listened to`), "knock by one of the interfaces that the config names, or add this one to interfaces"},
	{regexp.MustCompile(`(?i)declined: fragment`), "send packets that fit: no fragment counts, because hosts differ in how they put them together"},
	{regexp.MustCompile(`no knock has`), "compare the port with the config's, and the config with the one that the daemon has read"},
	{regexp.MustCompile(`no request's`), "send it by 'sallyport knock'; if it was, some program on the way changed it, or the client is of another version"},
	{regexp.MustCompile(`first gate tag is wrong|time is over$`), "give the client this server's address line anew: 'sallyport invite' prints it, 'sallyport add' takes it"},
	{regexp.MustCompile(`before this server remembers`), "knock again, one-time ports in the next time step: at a first start, and after an end that was not clean, nothing made before it counts, because it may have been used"},
	{regexp.MustCompile(`(stale|ahead) by`), "set the clock that is wrong, here or at the client; an old capture of a request opens nothing, and must not"},
	{regexp.MustCompile(`not in authorized_keys`), "add the key's line to the knock's authorized_keys, if its owner may come in"},
	{regexp.MustCompile(`only its beginning`), "capture whole packets: 'tcpdump -s 0 -w FILE'"},
	{regexp.MustCompile(`was used`), "take the next sequence of the list"},
	{regexp.MustCompile(`grant set is full`), "close some grants, or raise max_grants"},
	{regexp.MustCompile(`does not open that service|may not be used from there|not valid at this time|not let the key|the key may not`), "look at the options of the key's line in authorized_keys"},
	{regexp.MustCompile(`nothing to extend`), "open first: only what is open can be extended"},
}

func advice(why string) string {
	for _, r := range remedies {
		if r.words.MatchString(why) {
			return r.try
		}
	}
	return ""
}
