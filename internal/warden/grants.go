package warden

import (
	"container/list"
	"net/netip"
	"slices"
	"strings"
	"time"
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

type grantKey struct {
	addr    netip.Addr
	service string
}

// grants remembers who asked for each grant, so that a close ends only what
// its own knock opened and a refresh never shortens. The kernel's set is the
// grant; this is the memory of why. It is bounded: what the kernel refuses is not
// remembered, and what has ended is forgotten once a minute.
type grants map[grantKey][]asked

// add records that by asked until then. An earlier end than before is ignored.
func (g grants) add(key grantKey, by string, until time.Time) {
	list := g[key]
	for i := range list {
		if list[i].by == by {
			if until.After(list[i].until) {
				list[i].until = until
			}
			return
		}
	}
	g[key] = append(list, asked{by, until})
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
	for key := range g {
		if !g.end(key).until.After(now) {
			delete(g, key)
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
	order *list.List // of entry, the newest last
	at    map[entry]*list.Element
}

func newEntries() entries { return entries{list.New(), map[entry]*list.Element{}} }

// add remembers e, unless it came by no key. Above the most that there may be,
// the oldest leaves: a hijacked engine must not fill our memory.
func (l entries) add(e entry, most int) {
	if !strings.Contains(e.by, " SHA256:") {
		return
	}
	if old, ok := l.at[e]; ok {
		l.order.MoveToBack(old)
		return
	}
	l.at[e] = l.order.PushBack(e)
	if len(l.at) > most {
		l.remove([]entry{l.order.Front().Value.(entry)})
	}
}

// of gives those who asked by a name with this end.
func (l entries) of(suffix string) []entry {
	var mine []entry
	for at := l.order.Front(); at != nil; at = at.Next() {
		if e := at.Value.(entry); strings.HasSuffix(e.by, suffix) {
			mine = append(mine, e)
		}
	}
	return mine
}

func (l entries) remove(list []entry) {
	for _, e := range list {
		if at, ok := l.at[e]; ok {
			l.order.Remove(at)
			delete(l.at, e)
		}
	}
}
