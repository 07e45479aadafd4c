package main

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"time"

	"github.com/sallyport/sallyport/internal/spa"
	"github.com/sallyport/sallyport/internal/testnet"
)

const (
	askers      = 200
	askersApart = 20 * time.Millisecond
	// askPatience is how long an asker tries the port after his first datagram.
	askPatience = 3 * time.Second
	// junkEach is the number of forged sources of each family, each with another
	// datagram: more than a flood of bad seals sends.
	junkEach = 1 << 13
	fullRate = 200_000 // packets a second that a flood is to reach
)

// askCopies is when the copies of a datagram go, as the client sends them.
var askCopies = []time.Duration{0, 30 * time.Millisecond, 90 * time.Millisecond}

// spaJunk is a flood of datagrams, by how far they get.
type spaJunk struct {
	name    string
	rate    uint64 // packets a second; 0: as fast as this machine sends
	payload func(e *enrolled, random *rand.Rand) []byte
}

var spaJunks = []spaJunk{
	{name: "no flood"},
	{"wrong length", 0, func(_ *enrolled, random *rand.Rand) []byte { return junk(random, spa.SmallSize+2) }},
	{"wrong gate", 0, func(_ *enrolled, random *rand.Rand) []byte { return junk(random, spa.SmallSize) }},
	{"wrong second tag", 0, func(e *enrolled, random *rand.Rand) []byte {
		d := junk(random, spa.SmallSize)
		e.closeFirst(d)
		return d
	}},
	{"right gates, bad seal", 1000, func(e *enrolled, random *rand.Rand) []byte {
		d := junk(random, spa.SmallSize)
		e.closeBoth(d)
		return d
	}},
}

// spaFlood measures how many real requests come through while junk arrives.
func (b *bench) spaFlood() {
	b.title("SPA: served during a flood", fmt.Sprintf(`  %d requests, each from a fresh address and in three copies at 0, 30 and
  90 ms, one begun every %v, while datagrams from %d forged sources
  arrive at the same port. An asker tries the guarded port every %v for
  %v. fwknopd gets its own client's packets, three copies of each as well,
  and the junk at the rate that arrived at ours; each is flooded alone. ours:
  both families, fwknopd: IPv4. Half of the processors send the junk and do
  the kernel's work of receiving it; the daemon has the rest.`, askers, askersApart, 2*junkEach, pace, askPatience))
	for i := range spaJunks {
		b.interrupted()
		b.junked(&spaJunks[i])
	}
}

// junked floods both daemons with one kind of junk.
func (b *bench) junked(j *spaJunk) {
	ours, theirs := b.newWorld(), b.newWorld()
	e := ours.enroll()
	d := ours.sallyport(e.config)
	served, got := ours.asked(j, e, j.rate, true, e.datagram)
	s := ours.status(d)
	c := s.Counters
	b.row("flood: "+j.name, "%d packets a second received", got)
	b.row("", "capture drops %d of %d; ended at length %d, gate %d,", c["dropped"], c["captured"], c["spa_length"], c["spa_gate"])
	b.row("", "second tag %d, seal %d; served %d, copies %d", c["spa_second_gate"], c["spa_seal"], c["spa_made"], c["spa_repeat"])
	b.aim("sallyport, served", fmt.Sprintf("%d of %d", served, askers), "all", served == askers)
	if j.payload != nil && j.rate == 0 {
		b.aim("the flood's rate", fmt.Sprintf("%d a second", got), fmt.Sprintf("at least %d", fullRate), got >= fullRate)
	}
	f := theirs.fwknopd()
	same := got
	if j.rate > 0 {
		same = j.rate // got counts the askers too
	}
	served, rate := theirs.asked(j, e, same, false, f.datagram)
	b.row("fwknopd, served", "%d of %d, at %d packets a second", served, askers, rate)
}

// asked floods the server, has everybody ask, and gives how many were served
// and the packets a second that arrived.
func (w *world) asked(j *spaJunk, e *enrolled, rate uint64, v6 bool, datagram func() []byte) (served int, got uint64) {
	list := w.newAskers(v6, datagram)
	var f *flooder
	if j.payload != nil {
		f = w.newFlooder(forged(7, junkEach, v6, func(src netip.AddrPort, to netip.Addr, random *rand.Rand) []byte {
			return testnet.UDP(src, netip.AddrPortFrom(to, spa.DefaultPort), j.payload(e, random))
		}))
	}
	before, began := w.received(), time.Now()
	if f != nil {
		f.start(math.MaxUint64/2, rate, max(runtime.NumCPU()/2, 1))
		time.Sleep(ahead)
	}
	w.askAll(list)
	got = uint64(float64(w.received()-before) / time.Since(began).Seconds())
	if f != nil {
		if err := f.halt(); err != nil {
			w.b.Fatalf("the flood: %v", err)
		}
	}
	for _, a := range list {
		if a.served {
			served++
		}
	}
	return served, got
}

// asker is one real user: he sends his datagram's copies and tries the port
// until his patience ends.
type asker struct {
	from, to netip.Addr
	copies   [][]byte
	sent     int
	begins   time.Time
	tries    time.Time // when the port's next try is due
	served   bool
}

// newAskers makes everybody's datagrams: under a flood is no time for that.
func (w *world) newAskers(v6 bool, datagram func() []byte) (list []*asker) {
	for n := range askers {
		is6 := v6 && n%2 == 1
		a := &asker{from: w.fresh(is6), to: serverAddr(is6)}
		payload := datagram()
		for range askCopies {
			a.copies = append(a.copies, w.prober.datagram(a.from, a.to, payload))
		}
		list = append(list, a)
	}
	return list
}

// askAll plays all askers until each is served or has given up.
func (w *world) askAll(list []*asker) {
	byAddr := map[netip.Addr]*asker{}
	start := time.Now()
	for n, a := range list {
		a.begins = start.Add(time.Duration(n) * askersApart)
		byAddr[a.from] = a
	}
	longest := askers*askersApart + askPatience
	for waiting := len(list); waiting > 0 && time.Since(start) < longest; {
		w.b.interrupted()
		if from, ok := w.prober.answered(time.Millisecond); ok && byAddr[from] != nil && !byAddr[from].served {
			byAddr[from].served = true
			waiting--
		}
		for _, a := range list {
			if err := a.act(w.prober, time.Now()); err != nil {
				w.b.Fatalf("sending: %v", err)
			}
		}
	}
}

// act sends what is due: all copies, as the client does, which hears no answer.
func (a *asker) act(p *prober, now time.Time) error {
	since := now.Sub(a.begins)
	if since < 0 || since > askPatience {
		return nil
	}
	if a.sent < len(a.copies) && since >= askCopies[a.sent] {
		a.sent++
		return p.wire.SendOne(a.copies[a.sent-1])
	}
	if a.served || now.Before(a.tries) {
		return nil
	}
	a.tries = now.Add(pace)
	return p.try(a.from, a.to, guarded)
}
