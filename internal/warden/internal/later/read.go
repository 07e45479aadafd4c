package later

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/internal/warden/internal/nft"
)

// Numbers of linux/netfilter/nf_tables.h that x/sys/unix lacks.
const (
	attrValue          = 1 // NFTA_DATA_VALUE
	attrVerdict        = 2 // NFTA_DATA_VERDICT
	attrElement        = 1 // NFTA_LIST_ELEM
	attrSetDescConcat  = 2
	attrElementKeyEnd  = 10
	attrBitwiseOp      = 6
	elementIsCatchall  = 2
	setFlagsUnsettled  = unix.NFT_SET_TIMEOUT | unix.NFT_SET_EVAL
	maxReads           = 3 // tries at a ruleset that others keep changing
	attributeTypeMask  = 0x3fff
	netfilterHeaderLen = 4 // struct nfgenmsg: family, version, resource id
)

// hostRules is what the kernel runs besides our own table. It is read with
// plain netlink and not with google/nftables, because that library leaves out
// any expression it does not know: a condition that vanishes turns "maybe
// accepts" into "accepts", and a lost service would go unreported.
type hostRules struct {
	conn   *netlink.Conn
	tables []*hostTable
}

type hostTable struct {
	family byte
	name   string
	chains []*hostChain
	sets   map[string]*hostSet
}

type hostChain struct {
	table    *hostTable
	name     string
	kind     string // "filter" or "nat"; empty for a chain without a hook
	hook     uint32
	priority int32
	drops    bool // policy drop
	rules    [][]expression
}

// expression is one step of a rule as the kernel names it, with its attributes
// left undecoded.
type expression struct {
	name   string
	fields attributes
}

// operands are the attributes that wrap a plain value; they are unwrapped once,
// because a walk asks for them at every port.
var operands = map[string][]uint16{
	"cmp":     {unix.NFTA_CMP_DATA},
	"bitwise": {unix.NFTA_BITWISE_MASK, unix.NFTA_BITWISE_XOR},
	"range":   {unix.NFTA_RANGE_FROM_DATA, unix.NFTA_RANGE_TO_DATA},
}

type hostSet struct {
	table    *hostTable
	name     string
	flags    uint32
	concat   []int // lengths in bytes of a concatenation's fields, padded to 4
	loaded   bool
	elements []member
	catchall *member
}

// member is a key or an inclusive range of keys, and what a map gives for it.
type member struct{ low, high, data []byte }

// attributes are netlink attributes by type. What does not decode is absent:
// an evaluator that finds nothing says "maybe".
type attributes map[uint16][]byte

func decodeAttributes(b []byte) attributes {
	list, _ := netlink.UnmarshalAttributes(b)
	fields := make(attributes, len(list))
	for _, a := range list {
		fields[a.Type&attributeTypeMask] = a.Data
	}
	return fields
}

// each calls f with every NFTA_LIST_ELEM of a list; a map would keep one.
func each(list []byte, f func([]byte)) {
	entries, _ := netlink.UnmarshalAttributes(list)
	for _, a := range entries {
		if a.Type&attributeTypeMask == attrElement {
			f(a.Data)
		}
	}
}

func (a attributes) nested(kind uint16) attributes { return decodeAttributes(a[kind]) }

func (a attributes) text(kind uint16) string { return string(bytes.TrimRight(a[kind], "\x00")) }

// number is a big-endian 32-bit attribute, 0 if absent.
func (a attributes) number(kind uint16) uint32 {
	if len(a[kind]) != 4 {
		return 0
	}
	return binary.BigEndian.Uint32(a[kind])
}

type reply struct {
	family byte
	fields attributes
}

// ask sends one nf_tables request and gives all its answers. It only reads.
func (h *hostRules) ask(request, flags uint16, family byte, want ...netlink.Attribute) ([]reply, error) {
	body, err := netlink.MarshalAttributes(want)
	if err != nil {
		return nil, err
	}
	answers, err := h.conn.Execute(netlink.Message{
		Header: netlink.Header{
			Type:  netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | request),
			Flags: netlink.Request | netlink.HeaderFlags(flags),
		},
		Data: append([]byte{family, unix.NFNETLINK_V0, 0, 0}, body...),
	})
	if err != nil {
		return nil, err
	}
	var replies []reply
	for _, m := range answers {
		if len(m.Data) >= netfilterHeaderLen {
			replies = append(replies, reply{m.Data[0], decodeAttributes(m.Data[netfilterHeaderLen:])})
		}
	}
	return replies, nil
}

// generation changes with every change of any rule in this network namespace.
func (h *hostRules) generation() (uint32, error) {
	replies, err := h.ask(unix.NFT_MSG_GETGEN, 0, unix.AF_UNSPEC)
	if err == nil && len(replies) == 0 {
		err = errors.New("no answer from nf_tables")
	}
	if err != nil {
		return 0, err
	}
	return replies[0].fields.number(unix.NFTA_GEN_ID), nil
}

// withHostRules runs f on a reading of the whole ruleset. A ruleset that
// changed between its several dumps is none that any packet ever met, so it is
// read again.
func withHostRules(f func(*hostRules) error) error {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return err
	}
	defer conn.Close()
	for range maxReads {
		h := &hostRules{conn: conn}
		before, err := h.generation()
		if err != nil {
			return err
		}
		err = h.read()
		if err == nil {
			err = f(h)
		}
		after, genErr := h.generation()
		if genErr != nil {
			return genErr
		}
		if before == after {
			return err
		}
	}
	return fmt.Errorf("another program changed the rules during each of %d readings: try again", maxReads)
}

func (h *hostRules) read() error {
	for _, step := range []struct {
		request uint16
		add     func(*hostTable, reply)
		table   uint16
	}{
		{unix.NFT_MSG_GETTABLE, nil, unix.NFTA_TABLE_NAME},
		{unix.NFT_MSG_GETSET, addSet, unix.NFTA_SET_TABLE},
		{unix.NFT_MSG_GETCHAIN, addChain, unix.NFTA_CHAIN_TABLE},
		{unix.NFT_MSG_GETRULE, addRule, unix.NFTA_RULE_TABLE},
	} {
		replies, err := h.ask(step.request, uint16(netlink.Dump), unix.AF_UNSPEC)
		if err != nil {
			return err
		}
		for _, r := range replies {
			name := r.fields.text(step.table)
			if step.add == nil {
				h.addTable(name, r)
			} else if t := h.table(r.family, name); t != nil {
				step.add(t, r)
			}
		}
	}
	return nil
}

// addTable leaves out our own table, which drops strangers by design, the
// families whose hooks are not ours, and tables that are switched off.
func (h *hostRules) addTable(name string, r reply) {
	ours := r.family == unix.NFPROTO_INET && name == nft.TableName
	dormant := r.fields.number(unix.NFTA_TABLE_FLAGS)&unix.NFT_TABLE_F_DORMANT != 0
	if _, known := familyNames[r.family]; known && !ours && !dormant {
		h.tables = append(h.tables, &hostTable{family: r.family, name: name, sets: map[string]*hostSet{}})
	}
}

func (h *hostRules) table(family byte, name string) *hostTable {
	for _, t := range h.tables {
		if t.family == family && t.name == name {
			return t
		}
	}
	return nil
}

func (t *hostTable) chain(name string) *hostChain {
	for _, c := range t.chains {
		if c.name == name {
			return c
		}
	}
	return nil
}

func addChain(t *hostTable, r reply) {
	hook := r.fields.nested(unix.NFTA_CHAIN_HOOK)
	t.chains = append(t.chains, &hostChain{
		table:    t,
		name:     r.fields.text(unix.NFTA_CHAIN_NAME),
		kind:     r.fields.text(unix.NFTA_CHAIN_TYPE),
		hook:     hook.number(unix.NFTA_HOOK_HOOKNUM),
		priority: int32(hook.number(unix.NFTA_HOOK_PRIORITY)),
		drops:    len(r.fields[unix.NFTA_CHAIN_POLICY]) == 4 && r.fields.number(unix.NFTA_CHAIN_POLICY) == verdictDrop,
	})
}

func addRule(t *hostTable, r reply) {
	c := t.chain(r.fields.text(unix.NFTA_RULE_CHAIN))
	if c == nil {
		return
	}
	var rule []expression
	each(r.fields[unix.NFTA_RULE_EXPRESSIONS], func(b []byte) {
		e := decodeAttributes(b)
		x := expression{e.text(unix.NFTA_EXPR_NAME), e.nested(unix.NFTA_EXPR_DATA)}
		for _, kind := range operands[x.name] {
			x.fields[kind] = x.fields.nested(kind)[attrValue]
		}
		rule = append(rule, x)
	})
	c.rules = append(c.rules, rule)
}

func addSet(t *hostTable, r reply) {
	s := &hostSet{table: t, name: r.fields.text(unix.NFTA_SET_NAME), flags: r.fields.number(unix.NFTA_SET_FLAGS)}
	each(r.fields.nested(unix.NFTA_SET_DESC)[attrSetDescConcat], func(b []byte) {
		length := decodeAttributes(b).number(1) // NFTA_SET_FIELD_LEN
		s.concat = append(s.concat, int(length+3)&^3)
	})
	t.sets[s.name] = s
}

// load fetches a set's elements, once. Only sets whose key the evaluator knows
// come here, so a list of a million banned addresses is never read.
func (h *hostRules) load(s *hostSet) error {
	if s.loaded {
		return nil
	}
	replies, err := h.ask(unix.NFT_MSG_GETSETELEM, uint16(netlink.Dump), s.table.family,
		netlink.Attribute{Type: unix.NFTA_SET_ELEM_LIST_TABLE, Data: []byte(s.table.name + "\x00")},
		netlink.Attribute{Type: unix.NFTA_SET_ELEM_LIST_SET, Data: []byte(s.name + "\x00")})
	if err != nil {
		return err
	}
	var marks []mark
	for _, r := range replies {
		each(r.fields[unix.NFTA_SET_ELEM_LIST_ELEMENTS], func(b []byte) {
			marks = append(marks, s.add(decodeAttributes(b))...)
		})
	}
	s.elements = append(s.elements, intervals(marks)...)
	s.loaded = true
	return nil
}

// mark is one end of an interval in a kernel's interval set: it starts a run of
// keys, or ends the one before it and is no longer in it.
type mark struct {
	key, data []byte
	ends      bool
}

// add takes one element as the kernel lists it; what it gives back is still to
// be paired into an interval.
func (s *hostSet) add(e attributes) []mark {
	low := e.nested(unix.NFTA_SET_ELEM_KEY)[attrValue]
	high := e.nested(attrElementKeyEnd)[attrValue]
	data := e[unix.NFTA_SET_ELEM_DATA]
	flags := e.number(unix.NFTA_SET_ELEM_FLAGS)
	switch {
	case flags&elementIsCatchall != 0:
		s.catchall = &member{data: data}
	case high != nil:
		s.elements = append(s.elements, member{low, high, data})
	case s.flags&unix.NFT_SET_INTERVAL != 0 && len(s.concat) < 2:
		return []mark{{low, data, flags&unix.NFT_SET_ELEM_INTERVAL_END != 0}}
	default:
		s.elements = append(s.elements, member{low, low, data})
	}
	return nil
}

// intervals pairs starts with ends. The kernel lists them in either order; two
// runs that touch share a key, whose end then sorts first.
func intervals(marks []mark) []member {
	slices.SortFunc(marks, func(a, b mark) int {
		if c := bytes.Compare(a.key, b.key); c != 0 || a.ends == b.ends {
			return c
		}
		if a.ends {
			return -1
		}
		return 1
	})
	var runs []member
	for i, m := range marks {
		if m.ends {
			continue
		}
		high := bytes.Repeat([]byte{0xff}, len(m.key))
		if i+1 < len(marks) {
			high = before(marks[i+1].key)
		}
		runs = append(runs, member{m.key, high, m.data})
	}
	return runs
}

// before is the big-endian number below key.
func before(key []byte) []byte {
	less := slices.Clone(key)
	for i := len(less) - 1; i >= 0; i-- {
		less[i]--
		if less[i] != 0xff {
			break
		}
	}
	return less
}
