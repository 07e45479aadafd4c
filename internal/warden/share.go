package warden

import (
	"net/netip"
	"time"

	"github.com/sallyport/sallyport/internal/config"
)

// share is a key, by its fingerprint, in one of the two sets of grants: each
// family has its own.
type share struct {
	key string
	ip4 bool
}

// over reports whether a grant would give its key more than a quarter of a set
// of grants: an enrolled key that states one address after another must not
// keep the others out. One address always gets all services. What was refused
// counts too, until the next count.
func (g *gate) over(s *config.Service, addr netip.Addr, by string, now time.Time) bool {
	key, most := keyOf(by), 0
	if key == "" || g.grants.live(grantKey{addr, s.Name}, by, now) {
		return false
	}
	if !now.Before(g.countAgain) {
		g.count(now)
	}
	for i := range g.cfg.Services {
		most += size(&g.cfg.Services[i], addr)
	}
	by4 := share{key, addr.Is4()}
	g.held[by4] += size(s, addr)
	return g.held[by4] > max(most, g.cfg.Daemon.MaxGrants/4)
}

// count looks at every grant, so it is done once a second at most.
func (g *gate) count(now time.Time) {
	g.held, g.countAgain = map[share]int{}, now.Add(time.Second)
	for at, list := range g.grants {
		for _, a := range list {
			if s := g.service(at.service); s != nil && a.until.After(now) {
				g.held[share{keyOf(a.by), at.addr.Is4()}] += size(s, at.addr)
			}
		}
	}
}
