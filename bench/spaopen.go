package main

import (
	"fmt"
	"math/rand/v2"
	"time"
)

const (
	// fwknopdLongest ends fwknopd's turns, at 0.1 to 0.2 s each; the rest of the
	// rounds is ours alone.
	fwknopdLongest = 240 * time.Second

	spaOpenMedian = time.Millisecond // above the floor
	spaOpenRatio  = 80               // times as quick as fwknopd
)

// spaOpen measures from a request's datagram to the first answer of the port.
func (b *bench) spaOpen() {
	b.title("SPA: knock -> open", fmt.Sprintf(`  As "knock -> open", with one datagram of SPA: from just before it is sent
  until the prober has the port's first SYN-ACK. The journal is on, on a real
  file. The floor is a datagram as long that nobody watches for. fwknopd gets
  its own client's packet, at a random moment of its %v loop; its rules
  are flushed between turns. It has IPv4 only.`, fwknopdSleep))
	if err := precise(); err != nil {
		b.Fatal(err)
	}
	ours, theirs := b.newWorld(), b.newWorld()
	e := ours.enroll()
	ours.sallyport(e.config)
	f := theirs.fwknopd()
	rows := timings(ours, unheard, e.knock)
	fwknopd := &timing{name: "fwknopd, IPv4", w: theirs, knock: f.knock, port: guarded}
	began := time.Now()
	for range openRounds {
		b.interrupted()
		for _, r := range rows {
			r.round()
		}
		if time.Since(began) < fwknopdLongest {
			f.flush()
			time.Sleep(rand.N(fwknopdSleep))
			fwknopd.round()
		}
	}
	b.timed(append(rows, fwknopd))
	for i, family := range families {
		ours, floor := rows[2*i+1], rows[2*i]
		b.above(family, .5, ours, floor, spaOpenMedian)
		b.quicker(family, "fwknopd", ours, fwknopd, spaOpenRatio)
	}
}
