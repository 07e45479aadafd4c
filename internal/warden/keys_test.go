//go:build linux

package warden

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/spa"
)

// keyFiles makes the files of one spa knock and a config that names them.
func keyFiles(t *testing.T, lines ...string) (cfg *config.Config, key, authorized string) {
	t.Helper()
	dir := t.TempDir()
	key, authorized = filepath.Join(dir, "key"), filepath.Join(dir, "authorized")
	writeServerKey(t, key)
	writeLines(t, authorized, lines...)
	cfg, err := config.Parse("keys.toml", []byte(strings.NewReplacer("/etc/sallyport/keys.key", key, "\"/etc/sallyport/keys\"", "\""+authorized+"\"").Replace(
		strings.Split(keysConfig, "[knock.a2345")[0])))
	if err != nil {
		t.Fatal(err)
	}
	return cfg, key, authorized
}

func writeServerKey(t *testing.T, path string) {
	t.Helper()
	k, err := spa.NewServerKey(1)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(spa.FormatKeyFile([]spa.FileKey{{Key: k}})), 0o600); err != nil {
		t.Fatal(err)
	}
}

func writeLines(t *testing.T, path string, lines ...string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestLoadRefusesWhatNobodyCouldUse(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(key, authorized string) error
		want   string
	}{
		{"others may read the key", func(key, _ string) error { return os.Chmod(key, 0o640) }, "chmod 600"},
		{"others may write the list", func(_, list string) error { return os.Chmod(list, 0o620) }, "chmod go-w"},
		{"no key", func(key, _ string) error { return os.Remove(key) }, "sallyport keygen"},
		{"no list", func(_, list string) error { return os.Remove(list) }, "is not there"},
	} {
		cfg, key, list := keyFiles(t, publicLine(1))
		r := &keyring{log: slog.New(slog.DiscardHandler)}
		if got, err := r.load(cfg, "f", nil); err != nil || len(got) != len(cfg.Knocks) || len(got[2].Server) != 1 || len(got[2].Authorized) != 1 {
			t.Fatalf("%v, %v", got, err)
		}
		if err := c.change(key, list); err != nil {
			t.Fatal(err)
		}
		if got, err := r.load(cfg, "f", nil); err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "knock.keys.") {
			t.Errorf("%s: %v, %v", c.name, got, err)
		}
	}
}

// Who removed the list may mean that nobody is to get in; who removed the key
// can't mean that nobody ever will again.
func TestAgainFailsClosed(t *testing.T) {
	var said buffer
	cfg, key, list := keyFiles(t, publicLine(1), publicLine(2))
	r := &keyring{log: slog.New(slog.NewTextHandler(&said, nil))}
	old, err := r.load(cfg, "f", nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := r.again(cfg, old); !sameKeys(got, old) {
		t.Error("the same files give other keys")
	}
	if err := os.Chmod(list, 0o666); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		got := r.again(cfg, old)
		if len(got[2].Authorized) != 0 || len(got[2].Server) != 1 || sameKeys(got, old) {
			t.Errorf("with a list that others may write: %d keys, %d of the server", len(got[2].Authorized), len(got[2].Server))
		}
	}
	if err := os.Chmod(list, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(key); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if got := r.again(cfg, old); !sameKeys(got, old) {
			t.Error("a removed key is not kept")
		}
	}
	writeServerKey(t, key)
	if got := r.again(cfg, old); sameKeys(got, old) || len(got[2].Server) != 1 {
		t.Error("another key of the server's is not seen")
	}
	if n := strings.Count(said.String(), "level=ERROR"); n != 2 {
		t.Errorf("%d errors for two faults:\n%s", n, said.String())
	}
	if strings.Contains(said.String(), "sallyport-key1") {
		t.Errorf("a secret is in the log:\n%s", said.String())
	}
}

func TestABadLineIsToldOnce(t *testing.T) {
	var said buffer
	cfg, _, list := keyFiles(t, publicLine(1), "ssh-dss AAAA", "", publicLine(2))
	r := &keyring{log: slog.New(slog.NewTextHandler(&said, nil))}
	old, err := r.load(cfg, "f", nil)
	if err != nil || len(old[2].Authorized) != 2 {
		t.Fatalf("%v, %v", old, err)
	}
	count := func(want int, when string) {
		t.Helper()
		if n := strings.Count(said.String(), "gives no key"); n != want || !strings.Contains(said.String(), "line=2") {
			t.Errorf("%s: told %d times, want %d:\n%s", when, n, want, said.String())
		}
	}
	count(1, "at the start")
	r.again(cfg, old)
	if _, err := r.load(cfg, "f", nil); err != nil {
		t.Fatal(err)
	}
	count(1, "looked at again")
	writeLines(t, list, publicLine(1))
	r.again(cfg, old)
	writeLines(t, list, publicLine(1), "ssh-dss AAAA")
	r.again(cfg, old)
	count(2, "when it came back")
}
