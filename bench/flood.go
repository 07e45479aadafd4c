package main

import (
	"fmt"
	"math"
	"net/netip"
	"time"

	"github.com/sallyport/sallyport/internal/testnet"
)

const (
	knockers   = 50
	knockTries = 4
	// apart is the time between two knockers' beginnings, and pace that between
	// the packets of one.
	apart = 40 * time.Millisecond
	pace  = 10 * time.Millisecond
	// patience is how long a knocker waits for the port before it knocks again.
	patience = time.Second
	// ahead is how long the flood runs before the first knock.
	ahead = 500 * time.Millisecond
)

// knocker is one real user: it knocks, then tries the port until patience ends,
// and knocks again.
type knocker struct {
	from   netip.Addr
	to     netip.Addr
	tries  int       // knocks begun
	step   int       // the next step of this knock
	knock  time.Time // when this knock began
	next   time.Time // when its next packet is due
	served bool
}

// flood measures how many real knocks come through while forged ones arrive.
func (b *bench) flood() {
	b.title("served during a flood", fmt.Sprintf(`  %d knocks from fresh addresses, one begun every %v, while first steps from forged sources arrive.
  A knocker tries the port every %v; when it has not answered within %v he knocks again, %d times in
  all. The first flood is of 20,000 packets a second, the second as fast as this machine sends; knockd gets
  the rate that arrived at ours. Each is flooded alone. ours: both families, knockd: IPv4.`, knockers, apart, pace, patience, knockTries))
	for _, rate := range []uint64{20_000, 0} {
		ours, theirs := b.newWorld(), b.newWorld()
		d := ours.sallyport(sallyportConfig)
		first, all, got := ours.served(rate, true, d)
		b.row("sallyport, at the first knock", "%d of %d", first, knockers)
		b.aim(fmt.Sprintf("sallyport, within %d knocks", knockTries), fmt.Sprintf("%d of %d", all, knockers), "all", all == knockers)
		theirs.knockd()
		first, all, _ = theirs.served(got, false, nil)
		b.row("knockd, at the first knock", "%d of %d", first, knockers)
		b.row(fmt.Sprintf("knockd, within %d knocks", knockTries), "%d of %d", all, knockers)
	}
}

// served floods the server, has everybody knock, and gives how many were let in
// at their first knock and in all, and the packets a second that arrived.
func (w *world) served(rate uint64, v6 bool, d *testnet.Daemon) (first, all int, got uint64) {
	f := w.newFlooder(forged(7, forgedEach, v6, firstStep))
	before, began := w.received(), time.Now()
	f.start(math.MaxUint64/2, rate, 1)
	time.Sleep(ahead)
	list := w.knockAll(v6)
	seconds := time.Since(began).Seconds()
	got = uint64(float64(w.received()-before) / seconds)
	if err := f.halt(); err != nil {
		w.b.Fatalf("the flood: %v", err)
	}
	drops := ""
	if d != nil {
		s := w.status(d)
		drops = fmt.Sprintf(", capture drops %d of %d", s.Counters["dropped"], s.Counters["captured"])
	}
	w.b.row("flood", "%d packets a second received for %.1f s%s", got, seconds, drops)
	for _, k := range list {
		if k.served {
			all++
			if k.tries == 1 {
				first++
			}
		}
	}
	return first, all, got
}

// knockAll plays all knockers until each is served or has given up.
func (w *world) knockAll(v6 bool) []*knocker {
	byAddr := map[netip.Addr]*knocker{}
	var list []*knocker
	start := time.Now()
	for n := range knockers {
		is6 := v6 && n%2 == 1
		k := &knocker{from: w.fresh(is6), to: serverAddr(is6), next: start.Add(time.Duration(n) * apart)}
		byAddr[k.from] = k
		list = append(list, k)
	}
	longest := knockers*apart + (knockTries+1)*patience
	for waiting := knockers; waiting > 0 && time.Since(start) < longest; {
		w.b.interrupted()
		if a, ok := w.prober.answered(time.Millisecond); ok && byAddr[a] != nil && !byAddr[a].served {
			byAddr[a].served = true
			waiting--
		}
		for _, k := range list {
			if err := k.act(w.prober, time.Now()); err != nil {
				w.b.Fatalf("sending: %v", err)
			}
		}
	}
	return list
}

// act sends what is due.
func (k *knocker) act(p *prober, now time.Time) error {
	if k.served || now.Before(k.next) {
		return nil
	}
	if k.tries == 0 || k.step == len(steps) && now.Sub(k.knock) > patience && k.tries < knockTries {
		k.tries, k.step, k.knock = k.tries+1, 0, now
	}
	k.next = now.Add(pace)
	if k.step < len(steps) {
		k.step++
		return p.wire.SendOne(p.packet(k.from, k.to, steps[k.step-1], []byte("knock")))
	}
	return p.try(k.from, k.to, guarded)
}
