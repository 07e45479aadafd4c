//go:build linux

package warden

import (
	"bytes"
	"slices"
	"time"

	"github.com/sallyport/sallyport/internal/authorized"
	"github.com/sallyport/sallyport/internal/border"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/keys"
	"github.com/sallyport/sallyport/internal/secrets"
)

// peopleAgain reads the secrets of a knock of the config that is in use. A file that
// can't be used lets nobody in: who removed it, or opened it to others, may have
// meant that, and a secret that others could read is none.
func (r *keyring) peopleAgain(cfg *config.Config, list []border.Keys, i int, faults map[string]bool) []secrets.Person {
	k := &cfg.Knocks[i]
	good, bad, err := keys.Secrets(k.Secrets)
	if err == nil {
		list[i].People = good
		if j := sharedCode(cfg, list, i); j >= 0 {
			err = keys.SharedCodeError(cfg.Knocks[j].Name)
		}
	}
	if err != nil {
		r.fault(r.log.Error, faults, "nobody can knock by this knock until its file of secrets is right", "knock", k.Name, "error", err)
		return nil
	}
	r.people(k, good, bad, faults)
	return good
}

// sharedCode gives another knock before number i with which it shares an
// authenticator app's code, or -1.
func sharedCode(cfg *config.Config, list []border.Keys, i int) int {
	if cfg.Knocks[i].Digits == 0 {
		return -1
	}
	for j := range i {
		if cfg.Knocks[j].Digits > 0 && keys.SharedCode(list[i].People, list[j].People) {
			return j
		}
	}
	return -1
}

// people tells of the lines that give nobody, and of a file that lets nobody in now.
func (r *keyring) people(k *config.Knock, good []secrets.Person, bad []authorized.Error, faults map[string]bool) {
	for _, e := range bad {
		r.fault(r.log.Error, faults, "a line of the file of secrets gives nobody; the others work", "file", k.Secrets, "line", e.Line, "error", e.Text)
	}
	now := time.Now()
	if !slices.ContainsFunc(good, func(p secrets.Person) bool { return p.At(now) }) {
		r.fault(r.log.Warn, faults, "nobody can knock by this knock: its file of secrets has none in it that is valid now", "knock", k.Name, "file", k.Secrets)
	}
}

// tellPeople logs whose secrets came and went, by name.
func (w *warden) tellPeople(knock string, before, after []secrets.Person) {
	added, removed := missingFrom(before, after), missingFrom(after, before)
	text := "the secrets changed"
	if len(removed) > 0 {
		text += "; grants by removed ones go on until their time, 'sallyport close' ends them"
	}
	w.log.Info(text, "knock", knock, "added", len(added), "removed", len(removed), "who", removed[:min(len(removed), maxTold)], "secrets", len(after))
}

// missingFrom gives the names of those in list whose secrets are not in the other.
func missingFrom(other, list []secrets.Person) []string {
	var names []string
	for i := range list {
		if !slices.ContainsFunc(other, func(p secrets.Person) bool { return p.Name == list[i].Name && bytes.Equal(p.Secret, list[i].Secret) }) {
			names = append(names, list[i].Name)
		}
	}
	return names
}
