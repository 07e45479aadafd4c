package nft

import (
	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// A rule is conditions and then a verdict, each a few of nftables' own
// instructions, and what an administrator reads behind it.
type rule struct {
	exprs   []expr.Any
	comment string
}

func newRule(comment string, parts ...[]expr.Any) rule {
	r := rule{comment: comment}
	for _, part := range parts {
		r.exprs = append(r.exprs, part...)
	}
	return r
}

func (r rule) in(chain *nftables.Chain) *nftables.Rule {
	out := &nftables.Rule{Table: chain.Table, Chain: chain, Exprs: r.exprs}
	if r.comment != "" {
		out.UserData = userdata.AppendString(nil, userdata.TypeComment, r.comment)
	}
	return out
}

// firstRegister is NFT_REG32_00; the others follow it, four bytes each.
const firstRegister = unix.NFT_REG32_00

// A field is a part of a packet that a set's key can have.
type field struct {
	load  func(register uint32) expr.Any
	bytes int
	mask  []byte // what of it counts; nil: all
}

// masked is the field with only its first bits.
func (f field) masked(bits int) field {
	f.mask = make([]byte, f.bytes)
	for i := range bits {
		f.mask[i/8] |= 1 << (7 - i%8)
	}
	return f
}

func payload(base expr.PayloadBase, offset, size int) field {
	return field{func(register uint32) expr.Any {
		return &expr.Payload{DestRegister: register, Base: base, Offset: uint32(offset), Len: uint32(size)}
	}, size, nil}
}

func metaField(key expr.MetaKey, size int) field {
	return field{func(register uint32) expr.Any { return &expr.Meta{Key: key, Register: register} }, size, nil}
}

// The places are those of RFC 791, RFC 8200, RFC 9293 and RFC 768.
var (
	protocol = metaField(expr.MetaKeyL4PROTO, 1)
	inName   = metaField(expr.MetaKeyIIFNAME, unix.IFNAMSIZ)
	srcPort  = payload(expr.PayloadBaseTransportHeader, 0, 2)
	dstPort  = payload(expr.PayloadBaseTransportHeader, 2, 2)
)

func (f ipFamily) source() field {
	if f == unix.NFPROTO_IPV4 {
		return payload(expr.PayloadBaseNetworkHeader, 12, 4)
	}
	return payload(expr.PayloadBaseNetworkHeader, 8, 16)
}

func (f ipFamily) destination() field {
	if f == unix.NFPROTO_IPV4 {
		return payload(expr.PayloadBaseNetworkHeader, 16, 4)
	}
	return payload(expr.PayloadBaseNetworkHeader, 24, 16)
}

// load puts a packet's fields side by side.
func load(fields ...field) []expr.Any {
	var out []expr.Any
	register := uint32(firstRegister)
	for _, f := range fields {
		out = append(out, f.load(register))
		if f.mask != nil {
			out = append(out, &expr.Bitwise{SourceRegister: register, DestRegister: register,
				Len: uint32(f.bytes), Mask: f.mask, Xor: make([]byte, f.bytes)})
		}
		register += uint32(f.bytes+3) / 4
	}
	return out
}

// within matches a packet whose fields, side by side, are in a set.
func within(set string, fields ...field) []expr.Any {
	return append(load(fields...), &expr.Lookup{SourceRegister: firstRegister, SetName: set})
}

// outside matches what within does not.
func outside(set string, fields ...field) []expr.Any {
	out := within(set, fields...)
	out[len(out)-1].(*expr.Lookup).Invert = true
	return out
}

func compare(load expr.Any, op expr.CmpOp, data ...byte) []expr.Any {
	return []expr.Any{load, &expr.Cmp{Op: op, Register: firstRegister, Data: data}}
}

func (f ipFamily) is() []expr.Any {
	return compare(&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: firstRegister}, expr.CmpOpEq, byte(f))
}

func protocolIs(number byte) []expr.Any {
	return compare(protocol.load(firstRegister), expr.CmpOpEq, number)
}

func portIs(port field, number uint16) []expr.Any {
	return compare(port.load(firstRegister), expr.CmpOpEq, byte(number>>8), byte(number))
}

// throughLo matches what this host sends to itself: lo is interface 1 in every
// network namespace.
func throughLo() []expr.Any {
	return compare(&expr.Meta{Key: expr.MetaKeyIIF, Register: firstRegister}, expr.CmpOpEq, binaryutil.NativeEndian.PutUint32(1)...)
}

// ct matches when conntrack's state or status has one of the bits.
func ct(key expr.CtKey, bits uint32) []expr.Any {
	return append(mask(&expr.Ct{Key: key, Register: firstRegister}, binaryutil.NativeEndian.PutUint32(bits)),
		&expr.Cmp{Op: expr.CmpOpNeq, Register: firstRegister, Data: make([]byte, 4)})
}

func mask(load expr.Any, bits []byte) []expr.Any {
	return []expr.Any{load, &expr.Bitwise{
		SourceRegister: firstRegister, DestRegister: firstRegister,
		Len: uint32(len(bits)), Mask: bits, Xor: make([]byte, len(bits)),
	}}
}

// midStream matches a TCP packet that opens nothing: ACK without SYN, which is
// all of a connection but its first packet and a bare RST.
func midStream() []expr.Any {
	return append(protocolIs(unix.IPPROTO_TCP), tcpFlags(flagSYN|flagACK, flagACK, expr.CmpOpEq)...)
}

// The flags of RFC 9293, section 3.1.
const (
	flagFIN = 0x01
	flagSYN = 0x02
	flagRST = 0x04
	flagACK = 0x10
)

// tcpFlags matches a TCP packet by some of its flags.
func tcpFlags(of, want byte, op expr.CmpOp) []expr.Any {
	flags := payload(expr.PayloadBaseTransportHeader, 13, 1)
	return append(mask(flags.load(firstRegister), []byte{of}), &expr.Cmp{Op: op, Register: firstRegister, Data: []byte{want}})
}

// hasSocket matches a packet that belongs to a socket with an address of its
// own: a connection, not a listener on all addresses.
func hasSocket() []expr.Any {
	return compare(&expr.Socket{Key: expr.SocketKeyWildcard, Register: firstRegister}, expr.CmpOpEq, 0)
}

// destinationType matches by what the routing table says of the destination.
func destinationType(op expr.CmpOp, kind uint32) []expr.Any {
	return compare(&expr.Fib{Register: firstRegister, FlagDADDR: true, ResultADDRTYPE: true}, op, binaryutil.NativeEndian.PutUint32(kind)...)
}

// setMark sets bits of the packet's mark and leaves the owner's others alone.
func setMark(bits uint32) []expr.Any {
	if bits == 0 {
		return nil
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: firstRegister},
		&expr.Bitwise{
			SourceRegister: firstRegister, DestRegister: firstRegister, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(^bits), Xor: binaryutil.NativeEndian.PutUint32(bits),
		},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: firstRegister, SourceRegister: true},
	}
}

// keepDestination is a DNAT to the address that was dialled. It changes nothing
// and binds the connection, so that no later DNAT rule is asked.
func (f ipFamily) keepDestination() []expr.Any {
	return []expr.Any{
		f.destination().load(firstRegister),
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f), RegAddrMin: firstRegister, RegAddrMax: firstRegister},
	}
}

func verdict(kind expr.VerdictKind, chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: kind, Chain: chain}}
}

var (
	accept = verdict(expr.VerdictAccept, "")
	drop   = verdict(expr.VerdictDrop, "")

	resetTCP        = []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}}
	portUnreachable = []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_PORT_UNREACH}}
)

func jump(chain string) []expr.Any    { return verdict(expr.VerdictJump, chain) }
func goTo(chain string) []expr.Any    { return verdict(expr.VerdictGoto, chain) }
func portIn(set string) []expr.Any    { return within(set, protocol, dstPort) }
func portNotIn(set string) []expr.Any { return outside(set, protocol, dstPort) }
