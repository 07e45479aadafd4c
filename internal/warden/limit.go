package warden

import (
	"time"
)

// rate bounds how often a second the engine may ask for something: a hijacked
// engine must not keep the firewall busy.
type rate struct {
	left float64
	last time.Time
}

// opensPerSecond bounds grants and closes: each costs the kernel about 0.1 ms.
const opensPerSecond = 1000

// take gives leave for one, of so many a second and as many at once.
func (r *rate) take(now time.Time, perSecond float64) bool {
	if r.last.IsZero() {
		r.left = perSecond
	} else {
		r.left = min(perSecond, r.left+now.Sub(r.last).Seconds()*perSecond)
	}
	r.last = now
	if r.left < 1 {
		return false
	}
	r.left--
	return true
}

// tickets are the administrator's connections for changes that were passed to the
// engine and have asked for nothing yet. Each is good for one request, so that a
// hijacked engine can't ask in an administrator's name when none is there.
type tickets map[uint32]time.Time

const (
	ticketLife = 10 * time.Second
	maxTickets = 64
)

// issue records a ticket. When too many are out the oldest makes room: status
// and events leave theirs unused, and must not lock the administrator out.
func (t tickets) issue(n uint32, now time.Time) {
	oldest := n
	t[n] = now
	for n, at := range t {
		if now.Sub(at) > ticketLife {
			delete(t, n)
		} else if at.Before(t[oldest]) {
			oldest = n
		}
	}
	if len(t) > maxTickets {
		delete(t, oldest)
	}
}

// use takes a ticket back; false if there was none.
func (t tickets) use(n uint32, now time.Time) bool {
	at, ok := t[n]
	delete(t, n)
	return ok && now.Sub(at) <= ticketLife
}
