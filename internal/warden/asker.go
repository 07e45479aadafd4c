package warden

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/sallyport/sallyport/internal/authorized"
	"github.com/sallyport/sallyport/internal/border"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/secrets"
	"github.com/sallyport/sallyport/internal/spa"
)

// asker is who makes a request: the holder of a key, a person with a secret, or, of a
// sequence, anybody.
type asker struct {
	knock  *config.Knock
	key    *authorized.Key
	person *secrets.Person
	by     string // how grants remember it
}

// asker looks up who makes a request by the numbers in it.
func (g *gate) asker(rule, number uint16) (who asker, why border.Result) {
	if int(rule) >= len(g.rules) {
		return asker{}, border.NoSuchRule
	}
	i := g.rules[rule].Knock
	who.knock = &g.cfg.Knocks[i]
	if (who.knock.Type == "spa" || who.knock.HasSecrets()) != (number != border.NoKey) {
		return asker{}, border.NoSuchKey
	}
	switch {
	case number == border.NoKey:
		who.by = who.knock.Name
	case who.knock.HasSecrets():
		if int(number) > len(g.keys[i].People) {
			return asker{}, border.NoSuchKey
		}
		who.person = &g.keys[i].People[number-1]
		who.by = byPerson(who.knock.Name, who.person.Name)
	default:
		if int(number) > len(g.keys[i].Authorized) {
			return asker{}, border.NoSuchKey
		}
		who.key = &g.keys[i].Authorized[number-1]
		who.by = byKey(who.knock.Name, who.key.Public.Fingerprint())
	}
	return who, 0
}

// byKey is who asked where a key of a knock's did. The space keeps it apart
// from every knock's name.
func byKey(knock string, f spa.Fingerprint) string { return knock + " " + f.String() }

// personMark stands before a person's name in who asked. No name has a colon in it,
// and no fingerprint begins like that.
const personMark = " person:"

// byPerson is who asked where the holder of a person's secret did.
func byPerson(knock, name string) string { return knock + personMark + name }

// fixed reports whether the knock says nothing but that it was made: its rules say
// what is done then, and its services for how long.
func (a *asker) fixed() bool { return a.knock.Type == "sequence" || a.knock.Type == "otp" }

// may reports whether a service or action may be had, for an address and now.
func (a *asker) may(name string, addr netip.Addr, now time.Time) bool {
	switch {
	case a.key != nil:
		return a.key.At(now) && a.key.At(now.Add(leastTTL)) && a.key.Opens(name) && a.key.AllowsFrom(addr)
	case a.person != nil:
		return a.person.At(now) && a.person.At(now.Add(leastTTL)) && a.person.Opens(name)
	}
	return true
}

// wide reports whether a mask of that length may be asked for, of an address's family.
func (a *asker) wide(addr netip.Addr, bits uint8) bool {
	return bits == 0 || a.knock.TakesMask(addr, int(bits))
}

// whose says whose grants of a service and runs of an action the asker may end and
// prolong: a key those that it asked for by the same knock, a person those that he
// asked for by all knocks with the same file of secrets. A sequence that closes or
// extends does so with what sequences opened. Anybody can forge a sequence, so that
// it must not touch what a key or a person has opened; and since a sequence's grants
// are nobody's, a person's secret is no right to end them.
func (g *gate) whose(who *asker, rule config.Rule) []string {
	switch {
	case who.person != nil:
		var list []string
		for i := range g.cfg.Knocks {
			if k := &g.cfg.Knocks[i]; k.HasSecrets() && k.Secrets == who.knock.Secrets {
				list = append(list, byPerson(k.Name, who.person.Name))
			}
		}
		return list
	case who.key == nil && (rule.Close || rule.Extend):
		return g.sequences(rule)
	}
	return []string{who.by}
}

// sequences gives the sequences that open the service of a rule, or run its action.
func (g *gate) sequences(rule config.Rule) (names []string) {
	for i := range g.cfg.Knocks {
		k := &g.cfg.Knocks[i]
		if k.Type == "sequence" && (rule.Service == config.None || slices.Contains(k.Opens, rule.Service)) {
			names = append(names, k.Name)
		}
	}
	return names
}

// holder says who has a share of the grants: a key, by its fingerprint, or a person
// of a file of secrets, or anybody of a sequence; "" who needs none.
func (g *gate) holder(by string) string {
	knock, name, ok := strings.Cut(by, personMark)
	switch key := keyOf(by); {
	case !ok && key == "" && g.proving && by != admin:
		return anybody
	case !ok:
		return key
	}
	i := slices.IndexFunc(g.cfg.Knocks, func(k config.Knock) bool { return k.Name == knock })
	if i < 0 {
		return by // of a knock that left the config
	}
	return g.cfg.Knocks[i].Secrets + personMark + name
}
