//go:build linux

package warden

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/sallyport/sallyport/internal/authorized"
	"github.com/sallyport/sallyport/internal/border"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/keys"
	"github.com/sallyport/sallyport/internal/spa"
)

// keyring reads the files that say who may knock, and says each fault in them once.
type keyring struct {
	log  *slog.Logger
	told map[string]bool // faults that stand in the files now

	lists map[string]string // by knock: the fault in its list that was told
}

// load reads the files of a config that is to come into use. An error, a
// config.Errors like one about the text itself, says that it can't: a knock that
// nobody could use must not hide anything.
func (r *keyring) load(cfg *config.Config, file string, text []byte) ([]border.Keys, error) {
	fault := func(k *config.Knock, key string, err error) error {
		path := "knock." + k.Name + "." + key
		return config.Errors{{File: file, Line: config.LineOf(text, path), Text: path + ": " + err.Error()}}
	}
	list, servers := make([]border.Keys, len(cfg.Knocks)), make([][]spa.FileKey, len(cfg.Knocks))
	faults := map[string]bool{}
	for i := range cfg.Knocks {
		k := &cfg.Knocks[i]
		if k.HasSecrets() {
			good, bad, err := keys.Secrets(k.Secrets)
			list[i].People = good
			if j := sharedCode(cfg, list, i); err == nil && j >= 0 {
				err = keys.SharedCodeError(cfg.Knocks[j].Name)
			}
			if err != nil {
				return nil, fault(k, "secrets", err)
			}
			r.people(k, good, bad, faults)
		}
		if k.Type != "spa" {
			continue
		}
		server, err := keys.Server(k.Key)
		servers[i] = server
		if j := keys.Shared(servers, i); err == nil && j >= 0 {
			err = keys.SharedError(cfg.Knocks[j].Name)
		}
		if err != nil {
			return nil, fault(k, "key", err)
		}
		good, bad, err := keys.Authorized(k.AuthorizedKeys)
		if err != nil {
			return nil, fault(k, "authorized_keys", err)
		}
		r.lines(k, bad, faults)
		r.nobody(k, good, faults)
		list[i] = border.Keys{Server: server, Authorized: good}
	}
	r.told = faults
	return list, nil
}

// again reads the files of the config that is in use. Without its
// authorized_keys a knock lets nobody in: who removed it may have meant that. A
// server's key that is gone stays in use, for nobody could knock without it.
func (r *keyring) again(cfg *config.Config, old []border.Keys) []border.Keys {
	list := slices.Clone(old)
	faults := map[string]bool{}
	servers := r.servers(cfg, old, faults)
	for i := range cfg.Knocks {
		k := &cfg.Knocks[i]
		if k.HasSecrets() {
			list[i].People = r.peopleAgain(cfg, list, i, faults)
		}
		if k.Type != "spa" {
			continue
		}
		good, bad, err := keys.Authorized(k.AuthorizedKeys)
		if err != nil {
			good = nil
			r.fault(r.log.Error, faults, "nobody can knock by this knock until its authorized_keys file is back", "knock", k.Name, "error", err)
		} else {
			r.nobody(k, good, faults)
		}
		r.lines(k, bad, faults)
		list[i] = border.Keys{Server: servers[i], Authorized: good}
	}
	r.told = faults
	return list
}

// servers reads the servers' keys again. Of those that two knocks would share
// the changed ones stay as they were, until none are shared: the old ones were
// not.
func (r *keyring) servers(cfg *config.Config, old []border.Keys, faults map[string]bool) [][]spa.FileKey {
	list := make([][]spa.FileKey, len(cfg.Knocks))
	keep := func(i int, err error) {
		list[i] = old[i].Server
		r.fault(r.log.Error, faults, "the server's key that was read before stays in use, and a restart would fail", "knock", cfg.Knocks[i].Name, "error", err)
	}
	fresh := map[int]bool{}
	for i := range cfg.Knocks {
		if cfg.Knocks[i].Type != "spa" {
			continue
		}
		server, err := keys.Server(cfg.Knocks[i].Key)
		if err != nil {
			keep(i, err)
			continue
		}
		list[i], fresh[i] = server, !slices.EqualFunc(server, old[i].Server, func(a, b spa.FileKey) bool { return a.Key.Equal(b.Key) })
	}
	for changed := true; changed; {
		changed = false
		for i := range list {
			if j := keys.Shared(list, i); fresh[i] && j >= 0 {
				keep(i, keys.SharedError(cfg.Knocks[j].Name))
				fresh[i], changed = false, true
			}
		}
	}
	return list
}

// nobody tells of a file that lets nobody in now. Its knock hides what it opens
// all the same: the keys may come, or their time.
func (r *keyring) nobody(k *config.Knock, good []authorized.Key, faults map[string]bool) {
	now := time.Now()
	if !slices.ContainsFunc(good, func(key authorized.Key) bool { return key.At(now) }) {
		r.fault(r.log.Warn, faults, "nobody can knock by this knock: its authorized_keys file has no key in it that is valid now", "knock", k.Name, "file", k.AuthorizedKeys)
	}
}

func (r *keyring) lines(k *config.Knock, bad []authorized.Error, faults map[string]bool) {
	for _, e := range bad {
		r.fault(r.log.Error, faults, "a line of authorized_keys gives no key; the others work", "file", k.AuthorizedKeys, "line", e.Line, "error", e.Text)
	}
}

// fault tells of a fault that was not there before.
func (r *keyring) fault(log func(string, ...any), faults map[string]bool, text string, args ...any) {
	said := text + fmt.Sprint(args...)
	faults[said] = true
	if !r.told[said] {
		log(text, args...)
	}
}

// refreshKeys gives the engine what changed in the files, as a new generation of
// the same config.
func (w *warden) refreshKeys() {
	w.followKeys(w.cfg) // before the look, so that a change behind it is told
	list := w.ring.again(w.cfg, w.keys)
	if sameKeys(list, w.keys) {
		return
	}
	if err := w.offer(w.cfg, list); err != nil {
		w.log.Error("the keys in the files changed, and those before stay in use; send the daemon SIGHUP, or restart it", "error", err)
		return
	}
	w.tellKeys(w.cfg, w.cfg, list)
	w.keys = list
	w.gate.use(w.cfg, w.generation, list)
}

// sameKeys compares what crosses the border.
func sameKeys(a, b []border.Keys) bool {
	textA, errA := json.Marshal(a)
	textB, errB := json.Marshal(b)
	return errA == nil && errB == nil && bytes.Equal(textA, textB)
}

// maxTold bounds the removed keys that one log line names.
const maxTold = 20

// tellKeys logs how the keys of the knocks that are in both configs changed.
func (w *warden) tellKeys(old, cfg *config.Config, list []border.Keys) {
	for i := range cfg.Knocks {
		name := cfg.Knocks[i].Name
		was := slices.IndexFunc(old.Knocks, func(k config.Knock) bool { return k.Name == name })
		if was >= 0 && !sameKeys(w.keys[was:was+1], list[i:i+1]) {
			w.tellKnock(name, &w.keys[was], &list[i])
		}
	}
}

func (w *warden) tellKnock(knock string, before, after *border.Keys) {
	if len(before.People)+len(after.People) > 0 {
		w.tellPeople(knock, before.People, after.People)
		return
	}
	was, is := byFingerprint(before.Authorized), byFingerprint(after.Authorized)
	added := len(is)
	for f := range is {
		if _, ok := was[f]; ok {
			added--
		}
	}
	var removed []string
	for _, k := range before.Authorized {
		if f := k.Public.Fingerprint(); is[f] == nil {
			removed = append(removed, f.String()+" "+k.Comment)
		}
	}
	text := "the keys changed"
	if len(removed) > 0 {
		text += "; grants of removed ones go on until their time, 'sallyport close --key' ends them"
	}
	w.log.Info(text,
		"knock", knock, "added", added, "removed", len(removed), "who", removed[:min(len(removed), maxTold)], "authorized", len(is), "server keys", len(after.Server))
}

func byFingerprint(list []authorized.Key) map[spa.Fingerprint]*authorized.Key {
	by := make(map[spa.Fingerprint]*authorized.Key, len(list))
	for i := range list {
		by[list[i].Public.Fingerprint()] = &list[i]
	}
	return by
}

// followKeys looks at the places that a config's key files depend on. Where that
// fails, the look once a minute goes on.
func (w *warden) followKeys(cfg *config.Config) {
	var paths []string
	for i := range cfg.Knocks {
		switch k := &cfg.Knocks[i]; {
		case k.Type == "spa":
			paths = append(paths, k.Key, k.AuthorizedKeys)
		case k.HasSecrets():
			paths = append(paths, k.Secrets)
		case k.List != "":
			paths = append(paths, k.List)
		}
	}
	if err := w.files.follow(paths); err != nil {
		w.log.Warn("changes of key files can't be followed and are seen within a minute", "error", err)
	}
}

// keyPause joins changes that come together: an editor writes in several steps.
const keyPause = 200 * time.Millisecond
