package nft

import (
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// A grant of a service with once is used up by the first connection that it lets
// in, by rules alone, so that no process of ours need be alive.
//
// For TCP that is the packet that completes the handshake. Were it the SYN, anybody
// could use up another's grant by a packet with that one's address in it; whoever
// completes a handshake has heard the SYN-ACK. Until then every SYN is let in, its
// repeats too, and remembered in half4 and half6; of the connections that were begun
// so, the first one to be complete takes the grant out of its set, and the others
// are refused at that same packet, before the server has accepted them.
//
// A datagram proves nothing, so the first one uses the grant up, and its two ends are
// remembered in flow4 and flow6 until the server has answered, from when on conntrack
// knows the connection.
const (
	// halfLife is longer than a server waits for the end of a handshake: 63 s with
	// net.ipv4.tcp_synack_retries = 5, and 2 minutes for a SYN cookie. A connection
	// that is forgotten earlier could be completed uncounted.
	halfLife = 130 * time.Second
	// flowLife is as long as conntrack keeps what nobody answered
	// (nf_conntrack_udp_timeout).
	flowLife = 30 * time.Second
	// maxHalf bounds each of these sets. When one is full no further connection to a
	// service with once can begin; nobody who is in is put out.
	maxHalf = 65536
)

// ends are the fields of a connection's two ends, as dialled.
func (f ipFamily) ends() []field {
	return []field{f.source(), srcPort, f.destination(), dstPort}
}

func (f ipFamily) half() string { return f.suffix("half") }
func (f ipFamily) flow() string { return f.suffix("flow") }

// endsSet remembers connections by their two ends.
func endsSet(f ipFamily, name string) *nftables.Set {
	return &nftables.Set{
		Table: inet(), Name: name, HasTimeout: true, Dynamic: true, Size: maxHalf,
		KeyType: nftables.MustConcatSetType(f.addrType(), nftables.TypeInetService, f.addrType(), nftables.TypeInetService),
	}
}

// onceKinds picks the sets whose grants one connection uses up.
func (l layout) onceKinds(f ipFamily, forward bool) (list []kind) {
	for _, k := range l.kinds {
		if k.once && k.family == f && k.forward == forward {
			list = append(list, k)
		}
	}
	return list
}

// letIn are the rules that let a packet in by a grant of the kind.
func (k kind) letIn(mark uint32) []rule {
	f, found := k.family, within(k.name(), k.within()...)
	if !k.once {
		return []rule{newRule("", f.is(), found, setMark(mark), accept)}
	}
	rules := []rule{newRule("", f.is(), protocolIs(unix.IPPROTO_UDP), within(f.flow(), f.ends()...),
		dynamic(unix.NFT_DYNSET_OP_UPDATE, f.flow(), flowLife, f.ends()...), setMark(mark), accept)}
	if k.bits > 0 {
		rules = nil // it stands before those of exact addresses
	}
	opening := tcpFlags(flagSYN|flagACK|flagRST|flagFIN, flagSYN, expr.CmpOpEq)
	return append(rules,
		newRule("", f.is(), protocolIs(unix.IPPROTO_TCP), opening, found,
			dynamic(unix.NFT_DYNSET_OP_UPDATE, f.half(), halfLife, f.ends()...), setMark(mark), accept),
		newRule("", f.is(), protocolIs(unix.IPPROTO_UDP), found, alone(),
			dynamic(unix.NFT_DYNSET_OP_UPDATE, f.flow(), flowLife, f.ends()...), k.useUp(), setMark(mark), accept),
		newRule("two at once", f.is(), protocolIs(unix.IPPROTO_UDP), found, drop))
}

// statusAssured is conntrack's IPS_ASSURED: it saw the end of the handshake, in its
// window. Its state alone says established of every second forged ACK, because a
// number far below the window is taken for one that was on its way for long.
const statusAssured = 1 << 2

// claims decides about the end of a handshake that a grant of a service with once let
// begin. A forged ACK has to guess the server's number, to within conntrack's window
// of 66,000: a chance of 1 in 65,000.
func (l layout) claims() []rule {
	rules := []rule{newRule("a repeated SYN, or the end of it all", tcpFlags(flagSYN|flagACK|flagRST, flagACK, expr.CmpOpNeq), verdict(expr.VerdictReturn, ""))}
	for _, f := range families {
		for _, forward := range []bool{false, true} {
			for _, k := range l.onceKinds(f, forward) {
				here := f.is()
				if !forward { // the key does not say which host
					here = append(here, destinationType(expr.CmpOpEq, unix.RTN_LOCAL)...)
				}
				found := within(k.name(), k.within()...)
				rules = append(rules,
					newRule("", here, ct(expr.CtKeySTATUS, statusAssured), found, alone(), dynamic(dynsetDelete, f.half(), 0, f.ends()...), k.useUp(), accept),
					newRule("no end of a handshake, or two at once: the second one comes again", here, found, drop))
			}
		}
	}
	return append(rules, newRule("another connection used the grant up", goTo("refuse")))
}

// unclaimed sends what a grant of a service with once let begin to claims.
func (l layout) unclaimed() []rule {
	var rules []rule
	for _, f := range families {
		if l.once {
			rules = append(rules, newRule("", protocolIs(unix.IPPROTO_TCP), f.is(), within(f.half(), f.ends()...), jump("once")))
		}
	}
	return rules
}

// useUp takes the grant that a packet matches out of its set.
func (k kind) useUp() []expr.Any { return dynamic(dynsetDelete, k.name(), 0, k.within()...) }

// dynsetDelete is NFT_DYNSET_OP_DELETE of linux/netfilter/nf_tables.h.
const dynsetDelete = 2

// dynamic changes a set by a packet's fields. It matches unless the set is full.
func dynamic(op uint32, set string, life time.Duration, fields ...field) []expr.Any {
	return append(load(fields...), &expr.Dynset{SrcRegKey: firstRegister, SetName: set, Operation: op, Timeout: life})
}

// alone matches once in 0.1 ms. Between the look into a set and the taking
// out, another processor could let a second connection in by the same grant; its
// packet is dropped, comes again, and finds the grant gone.
func alone() []expr.Any {
	return []expr.Any{&expr.Limit{Type: expr.LimitTypePkts, Rate: 10_000, Unit: expr.LimitTimeSecond, Burst: 1}}
}
