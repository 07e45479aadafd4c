package engine

import (
	"log/slog"
	"net/netip"
	"time"

	"github.com/sallyport/sallyport/internal/engine/internal/knock"
	"github.com/sallyport/sallyport/internal/spa"
)

// refusals are requests by people who have the server's address and that were
// good for nothing. Their senders hear nothing, so the log tells the
// administrator: one line for each kind an interval, about the newest.
type refusals struct {
	kinds [refusalKinds]refusal
	told  time.Time
}

const (
	wrongClock = iota
	beforeStart
	unknownKey
	oldAddress
	notAllowed
	refusalKinds
)

var refusalTexts = [refusalKinds]string{
	wrongClock:  "a request by an allowed key or secret opened nothing: its time is too far from this machine's; set the clock that is wrong, here or there, or somebody repeats an old datagram",
	beforeStart: "a request by an allowed key or secret opened nothing: at a first start and after an unclean end everything made before is refused; should the time below be far ahead, the clock was wrong then, and to set it right, remove journal.0 and journal.1 from state_dir and restart ends it",
	unknownKey:  "a request opened nothing: whoever sent it has this server's address, but the key is not in authorized_keys; add its line there if it should be",
	oldAddress:  "a request opened nothing: it was made with an address of this server from before a rotation of its key; give its sender a new one with 'sallyport invite'",
	notAllowed:  "a request by an allowed key or secret opened nothing",
}

type refusal struct {
	count  int
	source netip.Addr
	knock  string
	key    string
	whom   string // the key's comment, or the person's name
	why    string
	skew   time.Duration
	before time.Time
}

func (r *refusals) add(o *knock.Outcome, name string) {
	why := o.Refusal
	n := refusal{source: o.Claim.Source, knock: name, why: why.Why, skew: why.Skew, before: why.Boundary}
	kind := notAllowed
	switch {
	case why.Stranger != (spa.Fingerprint{}):
		kind, n.key = unknownKey, why.Stranger.String()
	case why.OldKey:
		kind = oldAddress
	case why.Skew != 0:
		kind = wrongClock
	case !why.Boundary.IsZero():
		kind = beforeStart
	}
	switch c := &o.Claim; {
	case c.Signed != nil:
		n.key, n.whom = signer(c), c.Signed.Key.Comment
	case c.Asked != nil:
		n.whom = c.Asked.Person.Name
	}
	n.count = r.kinds[kind].count + 1
	r.kinds[kind] = n
}

// report logs what was added since the last report: the first at once, the
// others together.
func (r *refusals) report(log *slog.Logger, now time.Time) {
	if now.Sub(r.told) < reportEvery {
		return
	}
	for i := range r.kinds {
		k := &r.kinds[i]
		if k.count == 0 {
			continue
		}
		args := []any{"address", k.source, "knock", k.knock}
		if k.key != "" {
			args = append(args, "key", k.key)
		}
		if k.whom != "" {
			args = append(args, "whose", k.whom)
		}
		if k.skew != 0 {
			args = append(args, "off by", k.skew.Round(time.Millisecond))
		}
		if !k.before.IsZero() {
			args = append(args, "refused up to", k.before.UTC().Format(time.RFC3339))
		}
		log.Warn(refusalTexts[i], append(args, "why", k.why, "requests", k.count)...)
		*k = refusal{}
		r.told = now
	}
}
