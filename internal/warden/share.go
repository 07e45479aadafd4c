package warden

import (
	"time"

	"github.com/sallyport/sallyport/internal/config"
)

// share is a key or a person in one of the sets of grants: each family has its own,
// and each length of masks.
type share struct {
	holder string
	ip4    bool
	bits   uint8
}

// anybody has the share of all sequences, which anybody can forge.
const anybody = "a sequence"

// over reports whether a grant would give its key or person more than a quarter of a
// set of grants: an enrolled key that states one address after another must not
// keep the others out. Nor must who forges a sequence from one address after another,
// so that the last quarter is for those with a key or a secret, where there are any,
// and for the administrator. One address always gets all services. What was refused
// counts too, until the next count.
func (g *gate) over(s *config.Service, key grantKey, by string, now time.Time) bool {
	holder, most := g.holder(by), 0
	if holder == "" || g.grants.live(key, by, now) {
		return false
	}
	if !now.Before(g.countAgain) {
		g.count(now)
	}
	for i := range g.cfg.Services {
		most += size(&g.cfg.Services[i], key.whole())
	}
	part := g.cfg.Daemon.MaxGrants / 4
	if holder == anybody {
		part = g.cfg.Daemon.MaxGrants - part
	}
	of := share{holder, key.addr.Is4(), key.bits}
	g.held[of] += size(s, key)
	return g.held[of] > max(most, part)
}

// count looks at every grant, so it is done once a second at most.
func (g *gate) count(now time.Time) {
	g.held, g.countAgain = map[share]int{}, now.Add(time.Second)
	for at, list := range g.grants {
		for _, a := range list {
			if s := g.service(at.service); s != nil && a.until.After(now) {
				g.held[share{g.holder(a.by), at.addr.Is4(), at.bits}] += size(s, at)
			}
		}
	}
}
