package main

import (
	"fmt"
	"time"
)

const (
	openRounds  = 1000 // of ours and of the floor, for each family
	knockdEvery = 8    // every so many rounds knockd has its turn: 125 in all
	openLost    = 10   // knocks that may open nothing: more, and there is no figure
)

// The aims for a knock, above the floor.
const (
	openMedian = 400 * time.Microsecond
	openTail   = 3 * time.Millisecond
	openRatio  = 60 // times as quick as knockd
)

// timing is one row of figures.
type timing struct {
	name  string
	w     *world
	v6    bool
	floor bool
	took  []time.Duration
	lost  int
}

// open measures from the last packet of a knock to the first answer of the port.
func (b *bench) open() {
	b.title("knock -> open", fmt.Sprintf(`  From just before the last knock packet is sent until the prober has the port's first SYN-ACK. The
  prober sends a raw SYN every %v or oftener; each knock comes from a fresh address; ours, the floor
  and knockd take turns, in two worlds alike. The floor is three packets that nobody watches for, then
  a port that is open to all. knockd's command is one iptables -A; its rules are flushed between turns.`, probeEvery))
	if err := precise(); err != nil {
		b.Fatal(err)
	}
	ours, theirs := b.newWorld(), b.newWorld()
	ours.sallyport()
	theirs.knockd()
	rows := []*timing{
		{name: "floor, IPv4", w: ours, floor: true}, {name: "sallyport, IPv4", w: ours},
		{name: "floor, IPv6", w: ours, v6: true, floor: true}, {name: "sallyport, IPv6", w: ours, v6: true},
	}
	knockd := &timing{name: "knockd, IPv4", w: theirs}
	for n := range openRounds {
		b.interrupted()
		for _, r := range rows {
			r.round()
		}
		if n%knockdEvery == 0 {
			theirs.flush()
			knockd.round()
		}
	}
	for _, r := range append(rows, knockd) {
		if r.lost > openLost {
			b.Fatalf("%s: %d knocks of %d opened nothing", r.name, r.lost, r.lost+len(r.took))
		}
		b.row(r.name, "n %-5d  p50 %-10s  p99 %-10s  max %-10s  opened nothing: %d",
			len(r.took), ms(r.p(.5)), ms(r.p(.99)), ms(r.p(1)), r.lost)
	}
	b.judge("IPv4", rows[1], rows[0], knockd)
	b.judge("IPv6", rows[3], rows[2], knockd)
}

func (b *bench) judge(family string, ours, floor, knockd *timing) {
	for _, q := range []struct {
		name  string
		share float64
		above time.Duration
	}{{"p50", .5, openMedian}, {"p99", .99, openTail}} {
		d := ours.p(q.share) - floor.p(q.share)
		b.aim(q.name+" above the floor, "+family, ms(d), "at most "+ms(q.above), d <= q.above)
	}
	ratio := float64(knockd.p(.5)) / float64(ours.p(.5))
	b.aim("times quicker than knockd, "+family, fmt.Sprintf("%.0f", ratio), fmt.Sprintf("at least %d", openRatio), ratio >= openRatio)
}

func (r *timing) round() {
	knock, port := steps, uint16(guarded)
	if r.floor {
		knock, port = stray, public
	}
	took, ok := r.w.opens(r.v6, knock, port)
	if !ok {
		r.lost++
		return
	}
	r.took = append(r.took, took)
}

func (r *timing) p(share float64) time.Duration { return quantile(r.took, share) }
