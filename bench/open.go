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
	knock knocking
	port  uint16
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
	ours.sallyport(sallyportConfig)
	theirs.knockd()
	rows := timings(ours, strangers, opening)
	knockd := &timing{name: "knockd, IPv4", w: theirs, knock: opening, port: guarded}
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
	b.timed(append(rows, knockd))
	for i, family := range families {
		ours, floor := rows[2*i+1], rows[2*i]
		b.above(family, .5, ours, floor, openMedian)
		b.above(family, .99, ours, floor, openTail)
		b.quicker(family, "knockd", ours, knockd, openRatio)
	}
}

var families = []string{"IPv4", "IPv6"}

// timings has the floor and ours, of each family.
func timings(w *world, floor, knock knocking) (rows []*timing) {
	for i, family := range families {
		rows = append(rows, &timing{name: "floor, " + family, w: w, v6: i == 1, knock: floor, port: public},
			&timing{name: "sallyport, " + family, w: w, v6: i == 1, knock: knock, port: guarded})
	}
	return rows
}

// timed prints the rows.
func (b *bench) timed(rows []*timing) {
	for _, r := range rows {
		if r.lost > openLost {
			b.Fatalf("%s: %d knocks of %d opened nothing", r.name, r.lost, r.lost+len(r.took))
		}
		b.row(r.name, "n %-5d  p50 %-10s  p99 %-10s  max %-10s  opened nothing: %d",
			len(r.took), ms(r.p(.5)), ms(r.p(.99)), ms(r.p(1)), r.lost)
	}
}

// above judges how far a quantile of ours is above that of the floor.
func (b *bench) above(family string, share float64, ours, floor *timing, most time.Duration) {
	d := ours.p(share) - floor.p(share)
	b.aim(fmt.Sprintf("p%.0f above the floor, %s", 100*share, family), ms(d), "at most "+ms(most), d <= most)
}

// quicker judges the medians' ratio.
func (b *bench) quicker(family, daemon string, ours, theirs *timing, least float64) {
	ratio := float64(theirs.p(.5)) / float64(ours.p(.5))
	b.aim(fmt.Sprintf("times quicker than %s, %s", daemon, family), fmt.Sprintf("%.0f", ratio), fmt.Sprintf("at least %.0f", least), ratio >= least)
}

func (r *timing) round() {
	took, ok := r.w.opens(r.v6, r.knock, r.port)
	if !ok {
		r.lost++
		return
	}
	r.took = append(r.took, took)
}

func (r *timing) p(share float64) time.Duration { return quantile(r.took, share) }
