package later

import (
	"encoding/binary"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/internal/sequence"
)

// Objects that a rule may name without a condition: a counter and a conntrack
// helper (NFT_OBJECT_COUNTER, NFT_OBJECT_CT_HELPER). Limits and quotas are
// conditions.
var harmlessObjects = []uint32{1, 3}

// Attributes and operation of dynset in linux/netfilter/nf_tables.h.
const (
	dynsetExpression  = 7
	dynsetExpressions = 10
	dynsetDelete      = 2
)

// addsMember is the answer of "add @set { ... }" in a rule: it lets the packet
// go on, but with a limit inside it is a condition.
func addsMember(f attributes) truth {
	limited := f[dynsetExpression] != nil || f[dynsetExpressions] != nil
	return certain(!limited && f.number(unix.NFTA_DYNSET_OP) != dynsetDelete).or(maybe)
}

// Targets of iptables-nft after which the packet goes on to the next rule
// (iptables-extensions(8)).
var passingTargets = []string{
	"AUDIT", "CHECKSUM", "CLASSIFY", "CONNMARK", "CONNSECMARK", "CT", "DSCP", "ECN", "HL", "LOG", "MARK",
	"NFLOG", "NOTRACK", "SECMARK", "SET", "TCPMSS", "TOS", "TRACE", "TTL",
}

func targetFate(name string) (truth, fate) {
	switch {
	case name == "REJECT":
		return yes, rejected
	case slices.Contains([]string{"DNAT", "REDIRECT", "NETMAP", "SNAT", "MASQUERADE"}, name):
		return yes, translated
	case slices.Contains(passingTargets, name):
		return yes, 0
	}
	return yes, elsewhere | onward
}

// xtMatch names a match of iptables by what decides its layout.
type xtMatch struct {
	name     string
	revision uint32
}

// xtMatches are the matches that iptables-nft passes on in the old layout
// (structs of linux/netfilter/xt_*.h, numbers in the host's byte order), with
// the least length of each in bytes. All others may hold and may not.
var xtMatches = map[xtMatch]struct {
	size int
	is   func(*walk, []byte) truth
}{
	{"comment", 0}:   {0, func(*walk, []byte) truth { return yes }},
	{"tcp", 0}:       {12, (*walk).xtTCP},
	{"udp", 0}:       {8, (*walk).xtUDP},
	{"multiport", 1}: {48, (*walk).xtMultiport},
	{"conntrack", 1}: {152, (*walk).xtConntrack},
	{"conntrack", 2}: {152, (*walk).xtConntrack},
	{"conntrack", 3}: {152, (*walk).xtConntrack},
	{"addrtype", 1}:  {8, (*walk).xtAddrtype},
	{"mark", 1}:      {9, (*walk).xtMark},
}

func (w *walk) match(f attributes) truth {
	m, ok := xtMatches[xtMatch{f.text(unix.NFTA_MATCH_NAME), f.number(unix.NFTA_MATCH_REV)}]
	info := f[unix.NFTA_MATCH_INFO]
	if !ok || len(info) < m.size {
		return maybe
	}
	return m.is(w, info)
}

func short(info []byte, at int) uint16 { return binary.NativeEndian.Uint16(info[at:]) }

func (w *walk) portWithin(low, high uint16) truth {
	return w.within(w.dialled(), binary.BigEndian.AppendUint16(nil, low), binary.BigEndian.AppendUint16(nil, high))
}

// xtTCP reads spts[2], dpts[2], option, flg_mask, flg_cmp, invflags.
func (w *walk) xtTCP(info []byte) truth {
	const invertPorts, invertFlags, invertOthers = 2, 4, 1 | 8
	option, mask, flags, invert := info[8], info[9], info[10], info[11]
	if w.proto != sequence.TCP {
		return no
	}
	is := w.portWithin(short(info, 4), short(info, 6)).notIf(invert&invertPorts != 0)
	is = is.and(certain(sequence.SYN&mask == flags).notIf(invert&invertFlags != 0))
	if option != 0 || short(info, 0) != 0 || short(info, 2) != 0xffff || invert&invertOthers != 0 {
		return is.and(maybe)
	}
	return is
}

// xtUDP reads spts[2], dpts[2], invflags; the last lies in the padding of old
// kernels' eight bytes, so it may be absent.
func (w *walk) xtUDP(info []byte) truth {
	const invertSource, invertPorts = 1, 2
	if w.proto != sequence.UDP {
		return no
	}
	var invert byte
	if len(info) > 8 {
		invert = info[8]
	}
	is := w.portWithin(short(info, 4), short(info, 6)).notIf(invert&invertPorts != 0)
	if short(info, 0) != 0 || short(info, 2) != 0xffff || invert&invertSource != 0 {
		return is.and(maybe)
	}
	return is
}

// xtMultiport reads flags, count, ports[15], pflags[15], invert: a port with a
// flag and the one after it are a range.
func (w *walk) xtMultiport(info []byte) truth {
	const ofSource, maxPorts, portsAt, flagsAt, invertAt = 0, 15, 2, 32, 47
	if info[0] == ofSource {
		return maybe
	}
	is := no
	count := min(int(info[1]), maxPorts)
	for i := 0; i < count; i++ {
		low := short(info, portsAt+2*i)
		high := low
		if info[flagsAt+i] != 0 && i+1 < count {
			i++
			high = short(info, portsAt+2*i)
		}
		is = is.or(w.portWithin(low, high))
	}
	const ofDestination = 1
	if info[0] != ofDestination { // either end's port
		is = is.or(maybe)
	}
	return is.notIf(info[invertAt] != 0)
}

// xtConntrack reads the state and nothing else of xt_conntrack_mtinfo1 to 3,
// where match_flags, invert_flags and state_mask begin at byte 146.
func (w *walk) xtConntrack(info []byte) truth {
	const byState, alias = 1, 1 << 13
	flags, invert, states := short(info, 146), short(info, 148), info[150]
	if w.untracked {
		return maybe
	}
	is := yes
	if flags&byState != 0 {
		is = certain(states&ctStateNew != 0).notIf(invert&byState != 0)
	}
	if flags&^(byState|alias) != 0 {
		is = is.and(maybe)
	}
	return is
}

// xtAddrtype reads source, dest, flags: masks of route types.
func (w *walk) xtAddrtype(info []byte) truth {
	const invertDestination = 2
	is := yes
	if to := short(info, 2); to != 0 {
		is = certain(to&(1<<routeLocal) != 0).notIf(binary.NativeEndian.Uint32(info[4:])&invertDestination != 0)
	}
	if short(info, 0) != 0 {
		return is.and(maybe)
	}
	return is
}

// xtMark reads mark, mask, invert.
func (w *walk) xtMark(info []byte) truth {
	v := w.packetMark()
	masked(v, info[4:8], make([]byte, 4))
	return w.equal(v, info[:4]).notIf(info[8] != 0)
}
