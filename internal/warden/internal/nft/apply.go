package nft

import (
	"errors"
	"slices"

	"github.com/google/nftables"
	"github.com/sallyport/sallyport/internal/config"
	"golang.org/x/sys/unix"
)

// applyTries bounds how often Apply begins again because the table changed
// between its look and its batch: mostly a grant that ended in between.
const applyTries = 5

// next begins the names of the sets that Apply uses on its way. The elements of
// a set of ranges come into force a moment after the rules of the same batch
// (nft_pipapo_commit runs behind the switch of generations), so a rule must
// never meet such a set in the batch that fills it: ports would be open for
// that moment. So Apply fills sets that no rule names, then lets the rules
// switch to them in one batch, then does the same once more under the names
// that people know.
const next = "next_"

// Apply brings the table to what cfg says, and makes it if there is none. Every
// packet meets the old rules or the new, never neither. Grants for what is
// still hidden stay with the time that they have left; the others go. Done
// twice it changes nothing. When it fails the old rules are in force, whole;
// ErrFull then means that more grants are open than the new max_grants.
func (t *Table) Apply(cfg *config.Config, o Options) error {
	var err error
	for range applyTries {
		if err = t.apply(cfg, o); !errors.Is(err, unix.ENOENT) {
			break
		}
	}
	return because("the table inet sallyport could not be brought to what the config says, so the rules before stay in force", err)
}

func (t *Table) apply(cfg *config.Config, o Options) error {
	chains, err := t.chains()
	if err != nil {
		return err
	}
	prefixes := []string{next, ""}
	if len(chains) == 0 { // no rule names any set
		prefixes = prefixes[1:]
	}
	for _, prefix := range prefixes {
		l := newLayout(cfg, o)
		l.rename(prefix)
		err := t.fill(l)
		if errors.Is(err, unix.EBUSY) && prefix == next {
			continue // an Apply that was killed half way left the rules on these
		}
		if err == nil {
			err = t.enforce(l)
		}
		if err != nil {
			t.unfill(l)
			return err
		}
	}
	t.live = o.Live != nil
	return nil
}

// fill makes the layout's fixed sets, which no rule may name yet.
func (t *Table) fill(l layout) error {
	sets, err := t.sets()
	if err != nil {
		return err
	}
	t.conn.AddTable(inet())
	for _, s := range sets {
		if l.has(s.Name) {
			t.conn.DelSet(s)
		}
	}
	for _, s := range l.fixed {
		t.conn.AddSet(s.Set, s.elements)
	}
	return t.conn.Flush()
}

// unfill takes the fixed sets away again after a failure. Where rules name them
// the kernel refuses, and that is right; so there is no error to report.
func (t *Table) unfill(l layout) {
	for _, s := range l.fixed {
		t.conn.DelSet(s.Set)
	}
	t.conn.Flush()
}

// enforce puts the rules on the layout's sets and removes all other sets.
func (t *Table) enforce(l layout) error {
	chains, err := t.chains()
	if err != nil {
		return err
	}
	sets, err := t.sets()
	if err != nil {
		return err
	}
	found, err := t.findGrants(sets, l)
	if err != nil {
		return err
	}
	// From here on the batch is written; what can't be encoded fails its Flush.
	kept := t.clearChains(chains, l.chains)
	t.replaceSets(sets, found, l)
	for _, c := range l.chains {
		if !kept[c.Name] {
			t.conn.AddChain(c.Chain)
		}
	}
	for _, c := range l.chains {
		for _, r := range c.rules {
			t.conn.AddRule(r.in(c.Chain))
		}
	}
	if err := t.conn.Flush(); err != nil {
		return err
	}
	t.cover = l.cover
	return nil
}

// clearChains takes the rules out of every chain that is there, and removes the
// chains that are not wanted as they are. A base chain that stays keeps its
// hook, so that no packet finds a moment without one. It gives the names of
// those that stay.
func (t *Table) clearChains(have []*nftables.Chain, want []chain) map[string]bool {
	for _, c := range have {
		t.conn.FlushChain(c)
	}
	kept := map[string]bool{}
	for _, c := range have {
		kept[c.Name] = slices.ContainsFunc(want, func(w chain) bool { return sameChain(w.Chain, c) })
		if !kept[c.Name] {
			t.conn.DelChain(c)
		}
	}
	return kept
}

func sameChain(a, b *nftables.Chain) bool {
	if a.Name != b.Name || (a.Hooknum == nil) != (b.Hooknum == nil) {
		return false
	}
	return a.Hooknum == nil || a.Type == b.Type && *a.Hooknum == *b.Hooknum && *a.Priority == *b.Priority
}

// replaceSets removes every set but the layout's. A set of grants whose size
// changed is made anew, and what it held is carried over.
func (t *Table) replaceSets(have []*nftables.Set, found map[string]foundGrants, l layout) {
	kept := map[string]bool{}
	for _, h := range have {
		kept[h.Name] = l.keeps(h)
		switch {
		case kept[h.Name]:
			t.conn.SetDeleteElements(h, found[h.Name].ended)
		case !l.has(h.Name):
			t.conn.DelSet(h)
		}
	}
	for _, s := range l.grants {
		if !kept[s.Name] {
			t.conn.AddSet(s, found[s.Name].live)
		}
	}
}

func sameSet(a, b *nftables.Set) bool {
	return a.Name == b.Name && a.KeyType.GetNFTMagic() == b.KeyType.GetNFTMagic() &&
		a.Size == b.Size && a.HasTimeout == b.HasTimeout && a.Dynamic == b.Dynamic && a.Interval == b.Interval
}

// foundGrants are the elements of one set of grants: those that still open
// something, as they would be added again, and those that don't.
type foundGrants struct{ live, ended []nftables.SetElement }

// findGrants lists only those sets that are made anew, or all when some of their
// grants must go: a full set takes half a second, and the warden answers
// nobody meanwhile.
func (t *Table) findGrants(sets []*nftables.Set, l layout) (map[string]foundGrants, error) {
	stay := t.cover != nil && t.cover.inside(l.cover)
	found := make(map[string]foundGrants, len(l.grants))
	for _, s := range sets {
		k, ok := kindOf(s.Name)
		if !ok || stay && l.keeps(s) {
			continue
		}
		list, err := t.list(k)
		if err != nil {
			return nil, err
		}
		var f foundGrants
		for _, e := range list {
			if l.cover.has(e.target()) {
				f.live = append(f.live, e.element())
			} else {
				f.ended = append(f.ended, e.element())
			}
		}
		found[s.Name] = f
	}
	return found, nil
}

// chains and sets list what our table has; without a table that is nothing.
func (t *Table) chains() ([]*nftables.Chain, error) {
	all, err := t.conn.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(c *nftables.Chain) bool { return c.Table.Name != TableName }), nil
}

func (t *Table) sets() ([]*nftables.Set, error) {
	sets, err := t.conn.GetSets(inet())
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	return sets, err
}
