package nft

import (
	"cmp"
	"regexp"
	"slices"
	"strconv"

	"github.com/google/nftables"
	"github.com/sallyport/sallyport/internal/config"
)

// kind says which of the sets that Grant fills an element belongs to.
type kind struct {
	family  ipFamily
	cut     bool
	once    bool  // the first connection uses the grant up
	forward bool  // the keys name a destination
	bits    uint8 // of the mask of the keys' addresses; 0: none
}

// name is the set's: open4, onceon6, wide24_4, wideonceon64_6.
func (k kind) name() string {
	name := "open"
	switch {
	case k.cut:
		name = "cut"
	case k.bits > 0 && k.once:
		name = "wideonce"
	case k.bits > 0:
		name = "wide"
	case k.once:
		name = "once"
	}
	if k.forward {
		name += "on"
	}
	if k.bits > 0 {
		name += strconv.Itoa(int(k.bits)) + "_"
	}
	return k.family.suffix(name)
}

var kindName = regexp.MustCompile(`^(open|once|cut|wide|wideonce)(on)?(?:([1-9]\d*)_)?([46])$`)

// kindOf is the inverse of name; false for the name of another set.
func kindOf(name string) (kind, bool) {
	m := kindName.FindStringSubmatch(name)
	if m == nil {
		return kind{}, false
	}
	bits, err := strconv.ParseUint(cmp.Or(m[3], "0"), 10, 8)
	k := kind{
		family: suffixFamily(name), cut: m[1] == "cut", once: m[1] == "once" || m[1] == "wideonce",
		forward: m[2] != "", bits: uint8(bits),
	}
	return k, err == nil && k.name() == name && !(k.cut && bits > 0)
}

// source is the part of a key that names who may come in.
func (k kind) source() field {
	if k.bits == 0 {
		return k.family.source()
	}
	return k.family.source().masked(int(k.bits))
}

// within matches a packet that an element of the kind's set is for.
func (k kind) within() []field {
	if k.forward {
		return []field{k.source(), k.family.destination(), protocol, dstPort}
	}
	return []field{k.source(), protocol, dstPort}
}

// grantSet is one of the sets that Grant fills: exact keys, so that the kernel
// hashes them, and a timeout on each. size bounds it; the kernel refuses more. Out
// of a set of grants that one connection uses up the rules take elements, which
// needs the flag dynamic.
func (k kind) grantSet(size int) *nftables.Set {
	types := []nftables.SetDatatype{k.family.addrType()}
	if k.forward {
		types = append(types, k.family.addrType())
	}
	types = append(types, nftables.TypeInetProto, nftables.TypeInetService)
	return &nftables.Set{
		Table:      inet(),
		Name:       k.name(),
		KeyType:    nftables.MustConcatSetType(types...),
		HasTimeout: true,
		Dynamic:    k.once,
		Size:       uint32(size),
	}
}

// Widths are the lengths of masks that a config's knocks may ask for, of a family,
// each once and the longest first.
func Widths(cfg *config.Config, is4 bool) []uint8 {
	var list []uint8
	for _, k := range cfg.Knocks {
		for _, w := range k.Widths {
			if w.Addr().Is4() == is4 {
				list = append(list, uint8(w.Bits()))
			}
		}
	}
	slices.SortFunc(list, func(a, b uint8) int { return cmp.Compare(b, a) })
	return slices.Compact(list)
}

// kinds lists the sets of grants of one family that a config needs, the exact
// addresses before the wider ones, and first those that no connection uses up.
func kinds(cfg *config.Config, f ipFamily) []kind {
	once := map[bool]bool{} // by whether the service is forwarded
	forwards := []bool{false}
	for i := range cfg.Services {
		s := &cfg.Services[i]
		once[len(s.On) > 0] = once[len(s.On) > 0] || s.Once
		if len(s.On) > 0 && len(forwards) == 1 {
			forwards = append(forwards, true)
		}
	}
	var list []kind
	for _, forward := range forwards {
		for _, bits := range append([]uint8{0}, Widths(cfg, family4(f))...) {
			list = append(list, kind{family: f, forward: forward, bits: bits})
			if once[forward] {
				list = append(list, kind{family: f, forward: forward, bits: bits, once: true})
			}
		}
	}
	return list
}

func family4(f ipFamily) bool { return f.addrBytes() == 4 }
