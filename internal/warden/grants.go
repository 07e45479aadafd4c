package warden

import (
	"net/netip"
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
