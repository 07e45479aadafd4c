package engine

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/sallyport/sallyport/internal/control"
	"github.com/sallyport/sallyport/internal/engine/internal/knock"
	"github.com/sallyport/sallyport/internal/engine/internal/packet"
	"github.com/sallyport/sallyport/internal/sequence"
)

// follows is whose packets are explained, and to whom.
type follows struct {
	sources []netip.Addr
	tell    func(source netip.Addr, ev control.Event)
	last    control.Event // the latest of a packet that meant nothing to any knock
}

// Explain has f told what each packet of the sources meant, in events of What
// "explain", and how what they asked for was answered. Without sources it tells
// nobody, and then a packet costs no more than a look at a pointer.
func (e *Engine) Explain(sources []netip.Addr, f func(source netip.Addr, ev control.Event)) {
	e.follows = nil
	if len(sources) > 0 {
		sources = slices.Clone(sources)
		slices.SortFunc(sources, netip.Addr.Compare)
		e.follows = &follows{sources: slices.Compact(sources), tell: f}
	}
}

// explained reports whether somebody looks at a source.
func (e *Engine) explained(src netip.Addr) bool {
	return e.follows != nil && slices.Contains(e.follows.sources, src)
}

// explainAnswer tells who looks at the source that asked, and who looks at one that was
// asked for: a message can name another address than its own, or a network.
func (e *Engine) explainAnswer(ev control.Event, source netip.Addr) {
	if e.follows == nil {
		return
	}
	ev.Time = e.clock()
	for _, src := range e.follows.sources {
		if src == source || ev.Covers(src) {
			e.follows.tell(src, ev)
		}
	}
}

// place is what the engine knows of a packet before any knock sees it.
type place uint8

const (
	heard place = iota
	declined
	watching // the warden's own packet
	offInterface
	fromItself
	falseLoopback
	wrongFamily
	notHere
)

// place says whether a packet is to be heard.
func (e *Engine) place(p *packet.Packet, ifindex int) place {
	switch {
	case p.Proto == 0:
		return declined
	case p.Dst.IsLoopback() && e.watchPacket(p):
		return watching
	case !e.hears(ifindex) && ifindex == loopbackIndex:
		return fromItself
	case !e.hears(ifindex):
		return offInterface
	case (p.Dst.IsLoopback() || p.Src.IsLoopback()) && !e.itself(ifindex):
		return falseLoopback
	case e.cfg != nil && e.cfg.Knockd.IPv4Only && p.Dst.Is6():
		return wrongFamily
	case p.Dst.IsLoopback() || e.ours(p.Dst):
		return heard
	case e.targeted(p.Dst):
		p.Elsewhere = true
		return heard
	}
	return notHere
}

// unheard explains a packet that no knock sees.
func (e *Engine) unheard(b []byte, p *packet.Packet, at place) {
	src := p.Src
	if at == declined {
		src = packet.Source(b)
	}
	if !e.explained(src) || at == watching {
		return
	}
	text := "a packet"
	if at != declined {
		text = describe(p)
	}
	why := ""
	switch at {
	case declined:
		why = "declined: " + p.Why.String()
	case offInterface:
		why = "on an interface that is not listened to"
	case fromItself:
		why = "from this host itself, which is heard only where the config's interfaces name lo"
	case falseLoopback:
		why = "with a loopback address on a wire, which only a forger sends"
	case wrongFamily:
		why = "over IPv6, and this knockd.conf is served for IPv4 alone"
	default:
		why = "to " + p.Dst.String() + ", which is no address of this host"
	}
	e.meaningless(src, text, why)
}

// meaningless explains a packet that is nothing to any knock. A run of the same is
// told once: a connection has thousands.
func (e *Engine) meaningless(src netip.Addr, text, why string) {
	ev := control.Event{What: control.EventExplain, Addr: src, Packet: text, Why: why}
	if e.follows.last != ev {
		e.follows.last = ev
		ev.Time = e.clock()
		e.follows.tell(src, ev)
	}
}

// aloud is recognise for a source that somebody looks at.
func (e *Engine) aloud(p *packet.Packet) {
	now, src, text, said := e.now(), p.Src, describe(p), false
	for _, r := range e.knocks {
		out, meant := r.Explain(p, now)
		for _, m := range meant {
			said = true
			e.say(src, m.Knock, text, m.Text)
		}
		for i := range out {
			e.outcome(&out[i])
		}
	}
	switch {
	case said:
	case p.Proto == sequence.TCP && !sequence.Opening.Match(p.Flags):
		e.meaningless(src, strconv.Itoa(int(p.DstPort))+"/tcp", "part of a connection: no knock has such a step")
	default:
		e.meaningless(src, text, "no knock has a step there, or near there")
	}
}

func (e *Engine) say(src netip.Addr, knock int, packet, why string) {
	e.follows.last = control.Event{}
	e.follows.tell(src, control.Event{
		Time: e.clock(), What: control.EventExplain, Addr: src, Knock: e.cfg.Knocks[knock].Name, Packet: packet, Why: why,
	})
}

// useless explains a complete knock that was not counted, see spend.
func (e *Engine) useless(o *knock.Outcome) {
	if !e.explained(o.Claim.Source) {
		return
	}
	why := "the knock is complete and does nothing: more are made in a second than anybody makes"
	if e.used(o) {
		why = "the knock is complete and does nothing: this sequence is good for one knock and was used"
	}
	e.say(o.Claim.Source, o.Claim.Knock, "", why)
}

// describe names a packet as a step is spelled, with what it is beyond that.
func describe(p *packet.Packet) string {
	switch p.Proto {
	case sequence.TCP:
		return fmt.Sprintf("%d/tcp %s", p.DstPort, flagNames(p.Flags))
	case sequence.UDP:
		size := "of " + strconv.Itoa(len(p.Payload)) + " bytes"
		if p.Cut {
			size = "of more bytes than the capture has"
		}
		return fmt.Sprintf("%d/udp %s", p.DstPort, size)
	case sequence.ICMP:
		return fmt.Sprintf("%d/icmp", p.DstPort)
	}
	if p.Proto.Ported() {
		return fmt.Sprintf("%d/%v", p.DstPort, p.Proto)
	}
	return p.Proto.String()
}

// flagNames gives the flags of a TCP header, byte 13 (RFC 9293, 3.1; RFC 3168).
func flagNames(b uint8) string {
	var names []string
	for i, name := range []string{"FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"} {
		if b&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return "without flags"
	}
	return strings.Join(names, ",")
}
