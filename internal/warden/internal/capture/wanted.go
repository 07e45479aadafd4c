//go:build linux

package capture

import (
	"cmp"
	"slices"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/sallyport/sallyport/internal/spa"
)

// Range is an unbroken run of ports or of protocol numbers, both ends included.
type Range struct{ Low, High uint16 }

// Wanted says which packets the engine needs to see. The zero value wants
// nothing.
type Wanted struct {
	TCP      []Range // a SYN without ACK to these ports
	TCPFlags []Range // any TCP segment to these: a step there names flags
	UDP      []Range // any datagram to these
	Echo     bool    // echo requests, of either family
	UDPLite  []Range // any datagram to these
	SCTP     []Range // a packet to these that begins with an INIT
	DCCP     []Range // a Request to these
	Bare     []Range // of protocol numbers: any packet of these
	// The same again, but only with as many bytes of payload as up to three SPA
	// datagrams have (sizes).
	SizedTCP  []Range
	SizedUDP  []Range
	SizedEcho bool
	// Loopback has what is above pass on lo too.
	Loopback bool
	// Watch, unless its port is 0, is the one packet on lo that passes in any case: the
	// warden sends it to itself to see that packets go the whole way.
	Watch Watch
}

// Watch describes the warden's own datagram: IPv4 UDP, from 127.0.0.1 to Port
// on 127.0.0.1, with the token as its whole payload, so that no other program
// on this host can keep a dead engine looking alive by accident.
type Watch struct {
	Port  uint16
	Token [8]byte
}

// sizes gives the lengths of an SPA datagram in bytes, and of up to so many
// identical ones glued together by receive offload (spa.Single).
func sizes(parts int) []uint32 {
	var all []uint32
	for _, size := range spa.Sizes {
		for n := 1; n <= parts; n++ {
			all = append(all, uint32(n*size))
		}
	}
	return all
}

// WantedBy gives what the knocks of a config need. For a sequence the matcher
// says itself what that is (sequence.Sequence.Guard): a filter that hid a wrong
// packet from it would let a scan open a sequence. The watch packet is the
// caller's to add.
func WantedBy(cfg *config.Config) Wanted {
	w := Wanted{Loopback: cfg.Daemon.Loopback()}
	for i := range cfg.Knocks {
		for _, line := range cfg.Knocks[i].Lines() {
			w.sequence(line, &cfg.Knocks[i], cfg.Knockd.Classic)
		}
		w.spa(&cfg.Knocks[i])
		w.secret(&cfg.Knocks[i])
	}
	return Union(w, Wanted{}) // sorted once: a knockd.conf may have a thousand doors
}

func (w *Wanted) sequence(steps []sequence.Step, k *config.Knock, classic bool) {
	flags := slices.ContainsFunc(steps, namesFlags)
	for _, span := range (sequence.Sequence{Steps: steps, Strict: k.Strict, Classic: classic}).Guard() {
		ports := Range{span.Low, span.High}
		switch span.Proto {
		case sequence.TCP:
			w.TCP = append(w.TCP, ports)
			if flags {
				w.TCPFlags = append(w.TCPFlags, ports)
			}
		case sequence.UDP:
			w.UDP = append(w.UDP, ports)
		case sequence.ICMP:
			w.Echo = true
		case sequence.UDPLite:
			w.UDPLite = append(w.UDPLite, ports)
		case sequence.SCTP:
			w.SCTP = append(w.SCTP, ports)
		case sequence.DCCP:
			w.DCCP = append(w.DCCP, ports)
		default:
			w.Bare = append(w.Bare, Range{uint16(span.Proto), uint16(span.Proto)})
		}
	}
}

// secret takes all ports that a step can have: a filter that hid a wrong one from
// the recogniser would let a scan through.
func (w *Wanted) secret(k *config.Knock) {
	if !k.HasSecrets() {
		return
	}
	for _, p := range k.Ports() {
		ports := Range{p.Low, p.High}
		if p.Proto == sequence.TCP {
			w.TCP = append(w.TCP, ports)
		} else {
			w.UDP = append(w.UDP, ports)
		}
	}
}

func (w *Wanted) spa(k *config.Knock) {
	for _, t := range k.Transports {
		switch t {
		case config.OverUDP:
			w.SizedUDP = append(w.SizedUDP, Range{k.Port, k.Port})
		case config.OverTCP:
			w.SizedTCP = append(w.SizedTCP, Range{k.Port, k.Port})
		case config.OverICMP:
			w.SizedEcho = true
		}
	}
}

// namesFlags reports whether a step takes other segments than an opening SYN.
// Then so does all of its sequence: what has such flags elsewhere is wrong.
func namesFlags(s sequence.Step) bool { return s.Proto == sequence.TCP && s.Flags != sequence.Opening }

// Union wants what either wants; the watch packet is b's unless b has none.
// A reload widens the filter to the union of old and new before it narrows.
func Union(a, b Wanted) Wanted {
	w := Wanted{
		TCP:       merge(slices.Concat(a.TCP, b.TCP)),
		TCPFlags:  merge(slices.Concat(a.TCPFlags, b.TCPFlags)),
		UDP:       merge(slices.Concat(a.UDP, b.UDP)),
		Echo:      a.Echo || b.Echo,
		UDPLite:   merge(slices.Concat(a.UDPLite, b.UDPLite)),
		SCTP:      merge(slices.Concat(a.SCTP, b.SCTP)),
		DCCP:      merge(slices.Concat(a.DCCP, b.DCCP)),
		Bare:      merge(slices.Concat(a.Bare, b.Bare)),
		SizedTCP:  merge(slices.Concat(a.SizedTCP, b.SizedTCP)),
		SizedUDP:  merge(slices.Concat(a.SizedUDP, b.SizedUDP)),
		SizedEcho: a.SizedEcho || b.SizedEcho,
		Loopback:  a.Loopback || b.Loopback,
		Watch:     a.Watch,
	}
	if b.Watch.Port != 0 {
		w.Watch = b.Watch
	}
	return w
}

// merge sorts ranges and joins those that overlap or touch. It may reorder its
// argument.
func merge(ranges []Range) []Range {
	slices.SortFunc(ranges, func(a, b Range) int { return cmp.Compare(a.Low, b.Low) })
	var merged []Range
	for _, r := range ranges {
		if last := len(merged) - 1; last >= 0 && int(r.Low) <= int(merged[last].High)+1 {
			merged[last].High = max(merged[last].High, r.High)
			continue
		}
		merged = append(merged, r)
	}
	return merged
}

// thin joins ranges across the narrowest gaps, over all lists together, until
// at most limit ranges are left. What lies in a joined gap passes the filter
// and is the matcher's to ignore.
func thin(limit int, lists ...*[]Range) {
	total := 0
	var gaps []int
	for _, list := range lists {
		total += len(*list)
		for i := range max(len(*list)-1, 0) {
			gaps = append(gaps, gap(*list, i))
		}
	}
	if total <= limit {
		return
	}
	slices.Sort(gaps)
	// Equal gaps go together, so a few more than needed may close.
	widest := gaps[total-limit-1]
	for _, list := range lists {
		var kept []Range
		for i, r := range *list {
			if i > 0 && gap(*list, i-1) <= widest {
				kept[len(kept)-1].High = r.High
				continue
			}
			kept = append(kept, r)
		}
		*list = kept
	}
}

// gap is the number of ports between the i-th range and the next.
func gap(ranges []Range, i int) int { return int(ranges[i+1].Low) - int(ranges[i].High) - 1 }
