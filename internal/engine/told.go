package engine

import (
	"log/slog"
	"slices"
	"time"

	"github.com/sallyport/sallyport/internal/border"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/engine/internal/knock"
	"github.com/sallyport/sallyport/internal/sequence"
)

// Strangers cause lines at the rate of their packets, and each crosses to the
// warden as a request for a port does. So steps have a budget, and completed
// knocks one of their own, that a flood of first steps can't use up.
const (
	toldBurst     = 1000
	toldPerSecond = 200
	// A door of one step opens to any packet, so a flood can make it as often as it
	// likes, and must not take from the others what they share: the warden's time, the
	// commands that run at once, the log. Nor must a person who makes one message after
	// the other take from those who knock at the same door.
	madeBurst     = 1000
	madePerSecond = 200
)

// told counts what is told of knocks, for a log in knockd's words.
type told struct {
	steps, opened budget
	lost          uint64 // lines that were over the budget
	reported      uint64
	made          [][]budget // of each knock: whoever's, and those of its people by number
	excess        uint64     // complete knocks that were over it
	toldExcess    uint64
}

// budget is a bucket of burst tokens that fills again with time. The zero value is
// full.
type budget struct {
	used  float64
	since int64
}

func (b *budget) take(now int64, burst, perSecond float64) bool {
	b.used = max(0, b.used-float64(now-b.since)/float64(time.Second)*perSecond)
	b.since = now
	if b.used >= burst {
		return false
	}
	b.used++
	return true
}

// tellOf tells the warden of progress, where the config wants such a log.
func (e *Engine) tellOf(o *knock.Outcome, what border.Progress) {
	if !e.cfg.Knockd.Log {
		return
	}
	from := &e.told.steps
	if what == border.Opened {
		from = &e.told.opened
	}
	if !from.take(e.now(), toldBurst, toldPerSecond) || !e.send(&border.Told{
		Generation: e.generation, Knock: uint16(o.Claim.Knock), What: what, Stage: uint8(o.Stage), Addr: o.Claim.Source,
	}) {
		e.told.lost++
	}
}

// spend reports whether a complete knock counts. A sequence that is good for one
// knock is spent with it, before anything is asked for, so that whoever saw it and
// repeats it at once is too late.
func (e *Engine) spend(o *knock.Outcome) bool {
	k := o.Claim.Knock
	if e.used(o) {
		return false
	}
	who := 0
	if o.Claim.Asked != nil {
		who = int(o.Claim.Asked.Number)
	}
	if o.Claim.Signed == nil && !e.told.made[k][who].take(e.now(), madeBurst, madePerSecond) {
		e.told.excess++
		return false
	}
	e.tellOf(o, border.Stage)
	e.tellOf(o, border.Opened)
	if e.cfg.Knocks[k].OneTime {
		e.spent[k] = spending{ahead: o.Ahead}
		e.oweSpent()
		return e.spent[k].told
	}
	return true
}

// spending is a one-time sequence that was made, under the present generation.
type spending struct {
	ahead int  // which of the knock's lines; those before it are used up too
	told  bool // the warden was told
}

// used reports whether a knock was made by a one-time sequence that is used up.
func (e *Engine) used(o *knock.Outcome) bool {
	s, spent := e.spent[o.Claim.Knock]
	return spent && o.Ahead <= s.ahead
}

// oweSpent tells the warden of spent sequences that it had no room to hear of.
func (e *Engine) oweSpent() {
	for k, s := range e.spent {
		if !s.told {
			s.told = e.send(&border.Spent{Generation: e.generation, Knock: uint16(k), Ahead: uint8(s.ahead)})
			e.spent[k] = s
		}
	}
}

// stillSpent gives the knocks of a new config that have a sequence which was spent
// under the one before: the warden may not have got to that yet, and until it has,
// a copy of the sequence must do nothing.
func (e *Engine) stillSpent(cfg *config.Config) map[int]spending {
	spent := map[int]spending{}
	for was, s := range e.spent {
		old := &e.cfg.Knocks[was]
		made := old.Lines()[s.ahead]
		for i := range cfg.Knocks {
			k := &cfg.Knocks[i]
			if !k.OneTime || k.Name != old.Name {
				continue
			}
			is := func(line []sequence.Step) bool { return slices.Equal(line, made) }
			if at := slices.IndexFunc(k.Lines(), is); at >= 0 {
				spent[i] = spending{at, s.told}
			}
		}
	}
	return spent
}

// report tells of what was over the budgets.
func (t *told) report(log *slog.Logger) {
	if n := t.excess - t.toldExcess; n > 0 {
		log.Warn("a sequence is made faster than anybody knocks, and what is above 200 a second does nothing: somebody forges packets, or a scan opens it; take a longer sequence", "knocks", n)
	}
	t.toldExcess = t.excess
	if n := t.lost - t.reported; n > 0 {
		log.Warn("steps came faster than they are logged; these lines are missing, and what the knocks did is not", "lines", n)
	}
	t.reported = t.lost
}
