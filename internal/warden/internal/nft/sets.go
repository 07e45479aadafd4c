package nft

import (
	"bytes"
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/sallyport/sallyport/internal/config"
	"golang.org/x/sys/unix"
)

// ipFamily is unix.NFPROTO_IPV4 or unix.NFPROTO_IPV6.
type ipFamily byte

var families = []ipFamily{unix.NFPROTO_IPV4, unix.NFPROTO_IPV6}

func family(a netip.Addr) ipFamily {
	if a.Is4() {
		return unix.NFPROTO_IPV4
	}
	return unix.NFPROTO_IPV6
}

func (f ipFamily) suffix(name string) string {
	if f == unix.NFPROTO_IPV4 {
		return name + "4"
	}
	return name + "6"
}

func (f ipFamily) addrBytes() int {
	if f == unix.NFPROTO_IPV4 {
		return 4
	}
	return 16
}

func (f ipFamily) addrType() nftables.SetDatatype {
	if f == unix.NFPROTO_IPV4 {
		return nftables.TypeIPAddr
	}
	return nftables.TypeIP6Addr
}

// fixedSet is a set that only Apply fills.
type fixedSet struct {
	*nftables.Set
	elements []nftables.SetElement
}

// rangeSet holds runs of ports, and prefixes of addresses before them. With a
// time the kernel takes each element away when it is over.
func rangeSet(name string, elements []nftables.SetElement, ttl time.Duration, types ...nftables.SetDatatype) fixedSet {
	types = append(types, nftables.TypeInetProto, nftables.TypeInetService)
	slices.SortFunc(elements, func(a, b nftables.SetElement) int {
		return cmp.Or(bytes.Compare(a.Key, b.Key), bytes.Compare(a.KeyEnd, b.KeyEnd))
	})
	for i := range elements {
		elements[i].Timeout = ttl
	}
	return fixedSet{&nftables.Set{
		Table:         inet(),
		Name:          name,
		KeyType:       nftables.MustConcatSetType(types...),
		Interval:      true,
		Concatenation: true,
		HasTimeout:    ttl > 0,
	}, elements}
}

// spans gives one element for each run of ports, behind the same addresses,
// low to high.
func spans(low, high []byte, ports []config.PortRange) []nftables.SetElement {
	var out []nftables.SetElement
	for _, r := range ports {
		out = append(out, nftables.SetElement{
			Key:    appendPort(bytes.Clone(low), r.Proto, r.Low),
			KeyEnd: appendPort(bytes.Clone(high), r.Proto, r.High),
		})
	}
	return out
}

// last gives the highest address of a masked prefix.
func last(p netip.Prefix) []byte {
	b := p.Addr().AsSlice()
	for bit := p.Bits(); bit < len(b)*8; bit++ {
		b[bit/8] |= 1 << (7 - bit%8)
	}
	return b
}

// interfaceSet holds names, so that it fits interfaces that appear later.
func interfaceSet(names []string) fixedSet {
	s := fixedSet{Set: &nftables.Set{Table: inet(), Name: "interfaces",
		KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian}}
	for _, name := range names {
		key := make([]byte, unix.IFNAMSIZ)
		copy(key[:unix.IFNAMSIZ-1], name)
		s.elements = append(s.elements, nftables.SetElement{Key: key})
	}
	return s
}

// liveSet holds one family's part of Options.Live.
func liveSet(f ipFamily, live []Connection) fixedSet {
	s := fixedSet{Set: &nftables.Set{Table: inet(), Name: f.suffix("live"), KeyType: nftables.MustConcatSetType(
		f.addrType(), nftables.TypeInetService, f.addrType(), nftables.TypeInetService)}}
	for _, c := range live {
		if family(plain(c.Remote.Addr())) != f {
			continue
		}
		var key []byte
		for _, end := range []netip.AddrPort{c.Remote, c.Local} {
			key = append(key, plain(end.Addr()).AsSlice()...)
			key = append(key, byte(end.Port()>>8), byte(end.Port()), 0, 0)
		}
		s.elements = append(s.elements, nftables.SetElement{Key: key})
	}
	return s
}

// hiddenSets gives a set for each look of this host's ports, empty or not, and
// one for the quiet knock ports if there are any.
func hiddenSets(cfg *config.Config, ttl time.Duration) []fixedSet {
	var out []fixedSet
	for as, ports := range hidden(cfg) {
		name := "hidden_" + config.ClosedAs(as).String()
		out = append(out, rangeSet(name, spans(nil, nil, ports), ttl))
	}
	if ports := Quiet(cfg); len(ports) > 0 {
		out = append(out, rangeSet("quiet", spans(nil, nil, ports), ttl))
	}
	return out
}

// onwardSets gives the sets for forwarded destinations: what is dropped and
// what is refused. A family that has none has no set.
func onwardSets(cfg *config.Config, ttl time.Duration) []fixedSet {
	byName := map[string][]nftables.SetElement{}
	for addr, l := range forwarded(cfg) {
		for _, as := range []config.ClosedAs{config.Drop, config.Reject} {
			if elements := spans(addr.AsSlice(), addr.AsSlice(), l[as]); len(elements) > 0 {
				name := onwardSet(family(addr), as)
				byName[name] = append(byName[name], elements...)
			}
		}
	}
	var out []fixedSet
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		out = append(out, rangeSet(name, byName[name], ttl, suffixFamily(name).addrType()))
	}
	return out
}

func onwardSet(f ipFamily, as config.ClosedAs) string {
	return f.suffix("onward_" + as.String())
}

// suffixFamily reads the family off a set's name.
func suffixFamily(name string) ipFamily {
	if strings.HasSuffix(name, "4") {
		return unix.NFPROTO_IPV4
	}
	return unix.NFPROTO_IPV6
}

// allowSets gives the sets of sources that are no strangers: allow4 and allow6,
// and allowon4 and allowon6 for forwarded destinations.
func allowSets(cfg *config.Config) []fixedSet {
	byName := map[string][]nftables.SetElement{}
	for r, ports := range allowed(cfg) {
		name := family(r.from.Addr()).suffix("allow")
		if r.on.IsValid() {
			name = family(r.from.Addr()).suffix("allowon")
		}
		low := append(r.from.Addr().AsSlice(), r.on.AsSlice()...)
		high := append(last(r.from), r.on.AsSlice()...)
		byName[name] = append(byName[name], spans(low, high, ports)...)
	}
	var out []fixedSet
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		types := []nftables.SetDatatype{suffixFamily(name).addrType()}
		if strings.HasPrefix(name, "allowon") {
			types = append(types, types[0])
		}
		out = append(out, rangeSet(name, byName[name], 0, types...))
	}
	return out
}
