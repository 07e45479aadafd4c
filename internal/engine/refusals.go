package engine

import (
	"log/slog"
	"net/netip"
	"time"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/engine/internal/knock"
)

// refusals are requests that an allowed key signed and that were good for
// nothing. Their sender hears nothing, so the log tells the administrator: one
// line for each kind an interval, about the newest.
type refusals struct{ clock, other refusal }

type refusal struct {
	count  int
	source netip.Addr
	knock  int
	key    string
	whom   string // the key's comment
	why    string
	skew   time.Duration
}

func (r *refusals) add(o *knock.Outcome) {
	to := &r.other
	if o.Skew != 0 {
		to = &r.clock
	}
	*to = refusal{
		count: to.count + 1, source: o.Claim.Source, knock: o.Claim.Knock, key: signer(&o.Claim),
		whom: o.Claim.Signed.Key.Comment, why: o.Why, skew: o.Skew,
	}
}

// report logs what was added since the last report.
func (r *refusals) report(log *slog.Logger, cfg *config.Config) {
	for _, kind := range []struct {
		*refusal
		text string
	}{
		{&r.clock, "a request by an allowed key opened nothing: its time is too far from this machine's; set the clock that is wrong, here or there, or somebody repeats an old datagram"},
		{&r.other, "a request by an allowed key opened nothing"},
	} {
		if kind.count == 0 || kind.knock >= len(cfg.Knocks) {
			continue
		}
		args := []any{"address", kind.source, "knock", cfg.Knocks[kind.knock].Name, "key", kind.key, "whose", kind.whom, "why", kind.why}
		if kind.skew != 0 {
			args = append(args, "off by", kind.skew.Round(time.Millisecond))
		}
		log.Warn(kind.text, append(args, "requests", kind.count)...)
	}
	*r = refusals{}
}
