package warden

import (
	"container/list"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/sallyport/sallyport/internal/sequence"
)

// admin is who asked for a grant that no knock asked for. The space keeps it
// apart from every knock's name.
const admin = "the administrator"

// unknown is who asked for a grant that somebody put into the set by hand.
const unknown = "somebody else"

// asked is one reason why an address may reach a service: who asked, and until
// when.
type asked struct {
	by    string
	until time.Time
}

// grantKey is what one request asks for: who may reach what. Those of one address
// and service with and without a port, and of each mask, have ends of their own.
type grantKey struct {
	addr    netip.Addr // the lowest of the network where bits is not 0
	service string
	bits    uint8 // of the mask; 0: addr alone
	proto   sequence.Proto
	port    uint16 // 0: all of the service's
}

// grants remembers who asked for each grant, so that a close ends only what
// its own knock opened and a refresh never shortens. The kernel's set is the
// grant; this is the memory of why. It is bounded: what the kernel refuses is not
// remembered, and what has ended is forgotten once a minute. Who asked and has
// nothing any more is forgotten while others hold the grant open: a hijacked
// engine could ask by every key in turn.
type grants map[grantKey][]asked

// add records that by asked until then. An earlier end than before is ignored.
func (g grants) add(key grantKey, by string, until, now time.Time) {
	list := lasting(g[key], now)
	i := slices.IndexFunc(list, func(a asked) bool { return a.by == by })
	switch {
	case i < 0:
		list = append(list, asked{by, until})
	case until.After(list[i].until):
		list[i].until = until
	}
	g[key] = list
}

// lasting drops what has ended, in place.
func lasting(list []asked, now time.Time) []asked {
	return slices.DeleteFunc(list, func(a asked) bool { return !a.until.After(now) })
}

// end gives who holds the grant open longest, and until when; the zero asked
// if nobody does.
func (g grants) end(key grantKey) asked { return g.without(key, "") }

// without gives who would hold the grant open longest if by had never asked.
func (g grants) without(key grantKey, by string) asked {
	var last asked
	for _, a := range g[key] {
		if a.by != by && a.until.After(last.until) {
			last = a
		}
	}
	return last
}

// live reports whether by holds the grant open now.
func (g grants) live(key grantKey, by string, now time.Time) bool {
	return slices.ContainsFunc(g[key], func(a asked) bool { return a.by == by && a.until.After(now) })
}

// last gives who of them holds the grant open longest, "" if none does now.
func (g grants) last(key grantKey, of []string, now time.Time) (by string) {
	until := now
	for _, a := range g[key] {
		if slices.Contains(of, a.by) && a.until.After(until) {
			by, until = a.by, a.until
		}
	}
	return by
}

// remove forgets what by asked for.
func (g grants) remove(key grantKey, by string) {
	var keep []asked
	for _, a := range g[key] {
		if a.by != by {
			keep = append(keep, a)
		}
	}
	if len(keep) == 0 {
		delete(g, key)
		return
	}
	g[key] = keep
}

// forget drops what has ended.
func (g grants) forget(now time.Time) {
	for key, list := range g {
		if list = lasting(list, now); len(list) == 0 {
			delete(g, key)
		} else {
			g[key] = list
		}
	}
}

// entry is somebody who was let in by a key.
type entry struct {
	grantKey
	by string
}

// entries remembers who was let in by a key after the grant's end, because the
// connections that were made meanwhile live on and can still be cut. A restart
// forgets those whose grants have ended.
type entries struct {
	at map[entry]*list.Element
	of map[string]*list.List // of entry, by the key's fingerprint, the newest last
}

func newEntries() entries { return entries{map[entry]*list.Element{}, map[string]*list.List{}} }

// keyOf gives the fingerprint of the key that asked, or "" if none did.
func keyOf(by string) string {
	if i := strings.Index(by, " SHA256:"); i >= 0 {
		return by[i+1:]
	}
	return ""
}

// add remembers e, unless it came by no key. Above the most that there may be,
// the oldest leaves of whichever key has most: who states one address after
// another makes us forget his own and nobody else's.
func (l entries) add(e entry, most int) {
	key := keyOf(e.by)
	if key == "" {
		return
	}
	if old, ok := l.at[e]; ok {
		l.of[key].MoveToBack(old)
		return
	}
	if l.of[key] == nil {
		l.of[key] = list.New()
	}
	l.at[e] = l.of[key].PushBack(e)
	if len(l.at) <= most {
		return
	}
	longest := l.of[key] // among equals
	for _, other := range l.of {
		if other.Len() > longest.Len() {
			longest = other
		}
	}
	l.remove([]entry{longest.Front().Value.(entry)})
}

// by gives what a key has, the oldest first.
func (l entries) by(key string) (mine []entry) {
	if l.of[key] == nil {
		return nil
	}
	for at := l.of[key].Front(); at != nil; at = at.Next() {
		mine = append(mine, at.Value.(entry))
	}
	return mine
}

func (l entries) remove(gone []entry) {
	for _, e := range gone {
		at, ok := l.at[e]
		if !ok {
			continue
		}
		delete(l.at, e)
		key := keyOf(e.by)
		if l.of[key].Remove(at); l.of[key].Len() == 0 {
			delete(l.of, key)
		}
	}
}
