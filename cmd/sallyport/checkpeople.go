//go:build linux

package main

import (
	"fmt"
	"slices"
	"time"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/keys"
	"github.com/sallyport/sallyport/internal/secrets"
)

// peopleSummary is what check says of one file of secrets.
type peopleSummary struct {
	Knock  string `json:"knock"`
	People int    `json:"people"` // names in the file
	Usable int    `json:"usable"` // of these, who can open something now
}

// String says it in one line.
func (s peopleSummary) String() string {
	who := "nobody"
	switch {
	case s.Usable == 1:
		who = "1 person"
	case s.Usable > 1:
		who = fmt.Sprintf("%d people", s.Usable)
	}
	return fmt.Sprintf("knock.%s: %s can knock now (the file names %d)", s.Knock, who, s.People)
}

// people reads a knock's file of secrets; the faults stand at the config's line that
// names it.
func (c *checked) people(cfg *config.Config, k *config.Knock, file string, text []byte) ([]secrets.Person, config.Errors) {
	list, bad, err := keys.Secrets(k.Secrets)
	if err != nil {
		return nil, secretsFault(k, file, text, err)
	}
	w := warner{file: k.Secrets}
	for _, b := range bad {
		w.line(b.Line, "repair or delete the line; the others work without it", "gives nobody: %s", b.Text)
	}
	all, usable, now := map[string]bool{}, map[string]bool{}, time.Now()
	for i := range list {
		p := &list[i]
		all[p.Name] = true
		if w.person(namesOf(cfg, k), k, p, replaced(list[i+1:], p), now) {
			usable[p.Name] = true
		}
	}
	w.rest()
	if len(usable) == 0 {
		w.say("add somebody with 'sallyport keygen --secret NAME --out "+keys.Word(k.Secrets)+"'", "knock.%s can be opened by nobody: %s has no secret that works now", k.Name, k.Secrets)
	}
	c.People = append(c.People, peopleSummary{k.Name, len(all), len(usable)})
	c.warn(w.out...)
	return list, nil
}

func secretsFault(k *config.Knock, file string, text []byte, err error) config.Errors {
	path := "knock." + k.Name + ".secrets"
	return config.Errors{{File: file, Line: config.LineOf(text, path), Text: path + ": " + err.Error()}}
}

// sharedCode refuses what serve would: an authenticator app's code that is good for
// two knocks.
func sharedCode(cfg *config.Config, people [][]secrets.Person, i int, file string, text []byte) config.Errors {
	for j := range i {
		if cfg.Knocks[i].Digits > 0 && cfg.Knocks[j].Digits > 0 && keys.SharedCode(people[i], people[j]) {
			return secretsFault(&cfg.Knocks[i], file, text, keys.SharedCodeError(cfg.Knocks[j].Name))
		}
	}
	return nil
}

// replaced reports whether a person has a newer secret, which lasts longer: the end of
// the old one is then what a rotation meant.
func replaced(behind []secrets.Person, p *secrets.Person) bool {
	return slices.ContainsFunc(behind, func(next secrets.Person) bool {
		return next.Name == p.Name && (next.Expires.IsZero() || next.Expires.After(p.Expires))
	})
}

// person looks at one line and reports whether it can open anything now.
func (w *warner) person(names []string, k *config.Knock, p *secrets.Person, replaced bool, now time.Time) bool {
	opens := slices.ContainsFunc(names, p.Opens)
	for _, name := range p.Services {
		if !slices.Contains(names, name) {
			w.line(p.Line, "take the name out of services=, or add it to opens or runs", "services= names %q, which knock.%s does not open", name, k.Name)
		}
	}
	date := p.Expires.UTC().Format(time.RFC3339)
	switch {
	case p.Expires.IsZero():
	case !p.At(now):
		w.line(p.Line, "delete the line", "the secret of %s expired at %s", p.Name, date)
	case p.Expires.Sub(now) < soon && !replaced:
		w.line(p.Line, "give it a later expiry-time if its owner still needs it", "the secret of %s expires at %s", p.Name, date)
	}
	return opens && p.At(now)
}
