package later

import (
	"encoding/binary"
	"slices"

	"golang.org/x/sys/unix"
)

// fate is the set of ends that a packet may come to in a rule or a chain.
type fate uint8

const (
	accepted fate = 1 << iota
	byPolicy
	dropped
	rejected
	translated // to another address or port: what happens there is not ours to say
	elsewhere  // given to a program, or to something that we do not know
	onward     // the next rule
	back       // to the calling chain
)

const drops = byPolicy | dropped | rejected

// Verdicts as signed numbers (enum nft_verdicts, linux/netfilter.h). The upper
// 16 bits of a queue verdict hold the queue.
const (
	verdictReturn = -5
	verdictGoto   = -4
	verdictJump   = -3
	verdictDrop   = 0
	verdictAccept = 1
	verdictQueue  = 3
)

const (
	registerSize  = 16
	registerBytes = 64
)

// walk follows one stranger through one table.
type walk struct {
	*stranger
	host *hostRules
	// seen keeps each chain's fate, for a chain can be jumped to from many
	// places and 16 levels of that would take exponential time.
	seen map[*hostChain]fate
	err  error // of a set that could not be read

	headers   map[uint32]value // by payload base
	registers [registerBytes]cell
}

// fate is where the packet may end in a base chain. Accept ends one base chain
// only, so each is judged by itself.
func (h *hostRules) fate(c *hostChain, p *stranger) (fate, error) {
	w := walk{stranger: p, host: h, seen: map[*hostChain]fate{}, headers: map[uint32]value{
		unix.NFT_PAYLOAD_NETWORK_HEADER: p.network(), unix.NFT_PAYLOAD_TRANSPORT_HEADER: p.transport(),
	}}
	f := w.chain(c)
	if f&back != 0 {
		f &^= back
		if c.drops {
			f |= byPolicy
		} else {
			f |= accepted
		}
	}
	return f, w.err
}

func (w *walk) chain(c *hostChain) fate {
	if f, ok := w.seen[c]; ok {
		return f
	}
	var all fate
	for _, rule := range c.rules {
		f := w.rule(c.table, rule)
		all |= f &^ onward
		if f&onward == 0 {
			w.seen[c] = all
			return all
		}
	}
	w.seen[c] = all | back
	return all | back
}

// rule evaluates expressions until one says no or decides.
func (w *walk) rule(t *hostTable, exprs []expression) fate {
	w.registers = [registerBytes]cell{}
	sure := yes
	for _, e := range exprs {
		is, f := w.expression(t, e)
		sure = sure.and(is)
		switch {
		case sure == no:
			return onward
		case f != 0 && sure == maybe:
			return f | onward
		case f != 0:
			return f
		}
	}
	return onward
}

// expression gives the condition that e makes, and the fate that it decides: 0
// for none. What is not known here may hold and may not.
func (w *walk) expression(t *hostTable, e expression) (truth, fate) {
	switch e.name {
	case "counter", "log", "notrack", "last":
		return yes, 0
	case "meta":
		return w.fill(e, unix.NFTA_META_DREG, func() value { return w.meta(e.fields.number(unix.NFTA_META_KEY)) }), 0
	case "ct":
		return w.fill(e, unix.NFTA_CT_DREG, func() value { return w.conntrack(e.fields.number(unix.NFTA_CT_KEY)) }), 0
	case "payload":
		return w.fill(e, unix.NFTA_PAYLOAD_DREG, func() value { return w.payload(e.fields) }), 0
	case "fib":
		return w.fill(e, unix.NFTA_FIB_DREG, func() value { return fib(e.fields) }), 0
	case "bitwise":
		return w.bitwise(e.fields), 0
	case "byteorder":
		return w.byteorder(e.fields), 0
	case "cmp":
		return w.cmp(e.fields), 0
	case "range":
		return w.inRange(e.fields), 0
	case "immediate":
		return w.immediate(t, e.fields)
	case "lookup":
		return w.lookup(t, e.fields)
	case "match":
		return w.match(e.fields), 0
	case "target":
		return targetFate(e.fields.text(unix.NFTA_TARGET_NAME))
	case "objref":
		return certain(slices.Contains(harmlessObjects, e.fields.number(unix.NFTA_OBJREF_IMM_TYPE))).or(maybe), 0
	case "dynset":
		return addsMember(e.fields), 0
	case "reject":
		return yes, rejected
	case "nat", "redir", "masq":
		return yes, translated
	case "queue", "tproxy", "synproxy":
		return yes, elsewhere
	}
	w.registers = [registerBytes]cell{}
	return maybe, 0
}

// fill loads a register; an expression without a destination sets something
// of the packet instead, and lets it pass.
func (w *walk) fill(e expression, dreg uint16, load func() value) truth {
	if e.fields[dreg] != nil {
		w.store(e.fields.number(dreg), load())
	}
	return yes
}

// offset of a register in bytes, or the end of the file for none. 1 to 4 are
// the old names of four 32-bit registers each.
func offset(register uint32) int {
	switch {
	case register >= unix.NFT_REG_1 && register <= unix.NFT_REG_4:
		return int(register-unix.NFT_REG_1) * registerSize
	case register >= unix.NFT_REG32_00 && register <= unix.NFT_REG32_15:
		return int(register-unix.NFT_REG32_00) * 4
	}
	return registerBytes
}

// store pads with zeros to a whole 32-bit register, as the kernel does.
func (w *walk) store(register uint32, v value) {
	v = append(slices.Clone(v), known(make([]byte, -len(v)&3)...)...)
	copy(w.registers[offset(register):], v)
}

// read gives n bytes of registers; fewer if there are no more.
func (w *walk) read(register uint32, n int) value {
	at := offset(register)
	return w.registers[at:min(at+n, registerBytes)]
}

func (w *walk) payload(f attributes) value {
	at, n := int(f.number(unix.NFTA_PAYLOAD_OFFSET)), int(f.number(unix.NFTA_PAYLOAD_LEN))
	header := w.headers[f.number(unix.NFTA_PAYLOAD_BASE)]
	if n > registerBytes || at+n > len(header) {
		return unknown(registerSize, anywhere)
	}
	return header[at : at+n]
}

// fib knows one thing: what is addressed to a guarded port is addressed to this
// host.
func fib(f attributes) value {
	if f.number(unix.NFTA_FIB_RESULT) == unix.NFT_FIB_RESULT_ADDRTYPE && f.number(unix.NFTA_FIB_FLAGS)&unix.NFTA_FIB_F_DADDR != 0 {
		return known(native32(routeLocal)...)
	}
	return unknown(registerSize, anywhere)
}

// bitwise is (register & mask) ^ xor; shifts and operations between registers
// give unknown bytes.
func (w *walk) bitwise(f attributes) truth {
	n := min(int(f.number(unix.NFTA_BITWISE_LEN)), registerBytes)
	v := slices.Clone(w.read(f.number(unix.NFTA_BITWISE_SREG), n))
	mask, xor := f[unix.NFTA_BITWISE_MASK], f[unix.NFTA_BITWISE_XOR]
	if f.number(attrBitwiseOp) != unix.NFT_BITWISE_BOOL || len(mask) < len(v) || len(xor) < len(v) {
		v = unknown(len(v), anywhere)
	} else {
		masked(v, mask, xor)
	}
	w.store(f.number(unix.NFTA_BITWISE_DREG), v)
	return yes
}

// byteorder turns numbers of the host around, which nft does before it compares
// a range; a length below the number's size leaves things as they are.
func (w *walk) byteorder(f attributes) truth {
	n, size := min(int(f.number(unix.NFTA_BYTEORDER_LEN)), registerBytes), int(f.number(unix.NFTA_BYTEORDER_SIZE))
	v := slices.Clone(w.read(f.number(unix.NFTA_BYTEORDER_SREG), n))
	if size > 0 && binary.NativeEndian.Uint16([]byte{1, 0}) == 1 {
		for at := 0; at+size <= len(v); at += size {
			slices.Reverse(v[at : at+size])
		}
	}
	w.store(f.number(unix.NFTA_BYTEORDER_DREG), v)
	return yes
}

func (w *walk) cmp(f attributes) truth {
	data := f[unix.NFTA_CMP_DATA]
	v := w.read(f.number(unix.NFTA_CMP_SREG), len(data))
	if len(v) < len(data) || len(data) == 0 {
		return maybe
	}
	zeros, ones := make([]byte, len(data)), slices.Repeat([]byte{0xff}, len(data))
	switch f.number(unix.NFTA_CMP_OP) {
	case unix.NFT_CMP_EQ:
		return w.equal(v, data)
	case unix.NFT_CMP_NEQ:
		return w.equal(v, data).not()
	case unix.NFT_CMP_LTE:
		return w.within(v, zeros, data)
	case unix.NFT_CMP_GT:
		return w.within(v, zeros, data).not()
	case unix.NFT_CMP_GTE:
		return w.within(v, data, ones)
	case unix.NFT_CMP_LT:
		return w.within(v, data, ones).not()
	}
	return maybe
}

func (w *walk) inRange(f attributes) truth {
	low, high := f[unix.NFTA_RANGE_FROM_DATA], f[unix.NFTA_RANGE_TO_DATA]
	v := w.read(f.number(unix.NFTA_RANGE_SREG), len(low))
	if len(low) == 0 || len(low) != len(high) || len(v) < len(low) {
		return maybe
	}
	return w.within(v, low, high).notIf(f.number(unix.NFTA_RANGE_OP) == unix.NFT_RANGE_NEQ)
}

func (w *walk) immediate(t *hostTable, f attributes) (truth, fate) {
	data := f.nested(unix.NFTA_IMMEDIATE_DATA)
	if data[attrVerdict] != nil {
		return yes, w.verdict(t, data.nested(attrVerdict))
	}
	w.store(f.number(unix.NFTA_IMMEDIATE_DREG), known(data[attrValue]...))
	return yes, 0
}

func (w *walk) verdict(t *hostTable, v attributes) fate {
	if len(v[unix.NFTA_VERDICT_CODE]) != 4 {
		return elsewhere | onward
	}
	code := int32(binary.BigEndian.Uint32(v[unix.NFTA_VERDICT_CODE]))
	switch {
	case code == verdictJump || code == verdictGoto:
		return w.enter(t.chain(v.text(unix.NFTA_VERDICT_CHAIN)), code == verdictJump)
	case code == verdictReturn:
		return back
	case code < 0: // continue, break
		return onward
	case code == verdictDrop:
		return dropped
	case code == verdictAccept:
		return accepted
	case code&0xffff == verdictQueue:
		return elsewhere
	}
	return elsewhere | onward
}

// enter judges another chain; its caller's registers are done with, for
// whatever a jump comes back to loads its own.
func (w *walk) enter(c *hostChain, comesBack bool) fate {
	if c == nil {
		return elsewhere | onward
	}
	f := w.chain(c)
	if comesBack && f&back != 0 {
		f = f&^back | onward
	}
	return f
}

// lookup asks a set, a verdict map or a data map.
func (w *walk) lookup(t *hostTable, f attributes) (truth, fate) {
	s := t.sets[f.text(unix.NFTA_LOOKUP_SET)]
	is, found := w.find(s, f.number(unix.NFTA_LOOKUP_SREG))
	if f[unix.NFTA_LOOKUP_DREG] == nil {
		return is.notIf(f.number(unix.NFTA_LOOKUP_FLAGS)&unix.NFT_LOOKUP_F_INV != 0), 0
	}
	register := f.number(unix.NFTA_LOOKUP_DREG)
	if register != unix.NFT_REG_VERDICT {
		w.store(register, unknown(registerSize, anywhere)) // for a statement: nat, mark
		return is, 0
	}
	var all fate
	for _, e := range found {
		all |= w.verdict(t, decodeAttributes(e.data).nested(attrVerdict))
	}
	if is == maybe && len(found) == 0 {
		all = elsewhere
	}
	return is, all
}

// find gives the members that the key may meet, and whether it surely meets
// one of them. In a set whose members come and go, nothing is sure.
func (w *walk) find(s *hostSet, register uint32) (truth, []member) {
	first := w.read(register, 1)
	if s == nil || len(first) == 0 {
		return maybe, nil
	}
	if blind(first[0]) {
		return w.unsure(first), nil
	}
	if err := w.host.load(s); err != nil {
		w.err = err
		return maybe, nil
	}
	is, found := no, []member(nil)
	for _, e := range s.elements {
		switch w.meets(s, w.read(register, len(e.low)), e) {
		case yes:
			is, found = yes, append(found, e)
		case maybe:
			is, found = max(is, maybe), append(found, e)
		}
	}
	if s.catchall != nil && is != yes {
		is, found = yes, append(found, *s.catchall)
	}
	if s.flags&setFlagsUnsettled != 0 {
		return maybe, found
	}
	return is, found
}

// blind reports a key that begins with a byte of which nothing is known, such
// as an address: there a set that may be huge is not worth reading.
func blind(first cell) bool {
	return first.known == 0 && (first.of == anywhere || first.of == source)
}

// meets compares field by field: in a concatenation each field has a range of
// its own.
func (w *walk) meets(s *hostSet, key value, e member) truth {
	if len(key) < len(e.low) || len(e.low) == 0 || len(e.high) != len(e.low) {
		return maybe
	}
	is, at := yes, 0
	for _, n := range s.concat {
		if at+n > len(key) {
			return maybe
		}
		is = is.and(w.within(key[at:at+n], e.low[at:at+n], e.high[at:at+n]))
		at += n
	}
	return is.and(w.within(key[at:], e.low[at:], e.high[at:]))
}
