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
	"github.com/sallyport/sallyport/internal/testnet"
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
	var said testnet.Output
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
	var said testnet.Output
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

// twoDoors makes two spa knocks, each with a key file of its own.
func twoDoors(t *testing.T) (cfg *config.Config, text []byte, a, b string) {
	t.Helper()
	dir := t.TempDir()
	a, b = filepath.Join(dir, "a.key"), filepath.Join(dir, "b.key")
	writeServerKey(t, a)
	writeServerKey(t, b)
	writeLines(t, filepath.Join(dir, "list"), publicLine(1))
	text = []byte(strings.ReplaceAll(`[service.ssh]
ports = ["22/tcp"]
[knock.front]
type = "sequence"
opens = ["ssh"]
sequence = ["7000/tcp", "8500/udp", "7800/tcp"]
[knock.first]
type = "spa"
opens = ["ssh"]
key = "DIR/a.key"
authorized_keys = "DIR/list"
[knock.second]
type = "spa"
opens = ["ssh"]
port = 62202
key = "DIR/b.key"
authorized_keys = "DIR/list"
`, "DIR", dir))
	cfg, err := config.Parse("keys.toml", text)
	if err != nil {
		t.Fatal(err)
	}
	return cfg, text, a, b
}

// copyKeys writes into to what from has, and before it the key that is in to.
func copyKeys(t *testing.T, from, to string, overlap bool) {
	t.Helper()
	text, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if overlap {
		own, err := os.ReadFile(to)
		if err != nil {
			t.Fatal(err)
		}
		last := strings.TrimRight(string(text), "\n") + " until=2099-01-01T00:00:00Z\n"
		text = append(own, last...)
	}
	if err := os.WriteFile(to, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// With one key for two knocks a request for the one opens by the other, which
// has a memory of its own of what was heard.
func TestTwoKnocksNeverHaveOneKey(t *testing.T) {
	for _, c := range []struct {
		name  string
		share func(t *testing.T, a, b string)
	}{
		{"a copy", func(t *testing.T, a, b string) { copyKeys(t, a, b, false) }},
		{"a link", func(t *testing.T, a, b string) {
			if err := os.Remove(b); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(a, b); err != nil {
				t.Fatal(err)
			}
		}},
		{"an old key in overlap", func(t *testing.T, a, b string) { copyKeys(t, a, b, true) }},
		{"the first's old key", func(t *testing.T, a, b string) { copyKeys(t, b, a, true) }},
	} {
		cfg, text, a, b := twoDoors(t)
		var said testnet.Output
		r := &keyring{log: slog.New(slog.NewTextHandler(&said, nil))}
		old, err := r.load(cfg, "keys.toml", text)
		if err != nil {
			t.Fatal(err)
		}
		c.share(t, a, b)
		_, err = (&keyring{log: slog.New(slog.DiscardHandler)}).load(cfg, "keys.toml", text)
		if err == nil || !strings.HasPrefix(err.Error(), "keys.toml:16: ") || !strings.Contains(err.Error(), "knock.second.key: this file has a key of knock.first") {
			t.Errorf("%s: %v", c.name, err)
		}
		for range 3 {
			if got := r.again(cfg, old); !sameKeys(got, old) {
				t.Errorf("%s: taken while the daemon runs", c.name)
			}
		}
		if n := strings.Count(said.String(), "level=ERROR"); n != 1 || !strings.Contains(said.String(), "this file has a key of knock.") {
			t.Errorf("%s: %d errors:\n%s", c.name, n, said.String())
		}
	}
}

// A key that moves from one knock to the other is never both's at one time.
func TestAKeyMayMoveToAnotherKnock(t *testing.T) {
	cfg, text, a, b := twoDoors(t)
	r := &keyring{log: slog.New(slog.DiscardHandler)}
	keys, err := r.load(cfg, "keys.toml", text)
	if err != nil {
		t.Fatal(err)
	}
	was := keys[1].Server[0].Key
	copyKeys(t, a, b, false)
	writeServerKey(t, a)
	keys = r.again(cfg, keys)
	if !keys[2].Server[0].Key.Equal(was) || keys[1].Server[0].Key.Equal(was) {
		t.Error("the first's key did not move to the second")
	}
}

// Two knocks may exchange their keys: neither has the other's at any time.
func TestKnocksMayExchangeTheirKeys(t *testing.T) {
	cfg, text, a, b := twoDoors(t)
	r := &keyring{log: slog.New(slog.DiscardHandler)}
	keys, err := r.load(cfg, "keys.toml", text)
	if err != nil {
		t.Fatal(err)
	}
	first, second := keys[1].Server[0].Key, keys[2].Server[0].Key
	for _, step := range [][2]string{{a, a + ".x"}, {b, a}, {a + ".x", b}} {
		if err := os.Rename(step[0], step[1]); err != nil {
			t.Fatal(err)
		}
	}
	keys = r.again(cfg, keys)
	if !keys[1].Server[0].Key.Equal(second) || !keys[2].Server[0].Key.Equal(first) {
		t.Error("the exchange has no effect")
	}
}

// A list in which nobody may knock now is no fault of the file, but its owner
// must hear of it before he needs the way in.
func TestAListOfNobodyIsToldOnce(t *testing.T) {
	past, coming := `expiry-time="20200101Z" `+publicLine(1), `not-before="20990101Z" `+publicLine(2)
	for _, c := range []struct {
		name  string
		lines []string
		told  int
	}{
		{"one", []string{publicLine(1)}, 0},
		{"one of several", []string{past, coming, publicLine(3)}, 0},
		{"none", []string{"# nobody yet"}, 1},
		{"past and to come", []string{past, coming}, 1},
		{"not one good line", []string{"ssh-dss AAAA"}, 1},
	} {
		var said testnet.Output
		cfg, _, list := keyFiles(t, c.lines...)
		r := &keyring{log: slog.New(slog.NewTextHandler(&said, nil))}
		count := func(want int, when string) {
			t.Helper()
			if n := strings.Count(said.String(), "nobody can knock by this knock: its authorized_keys file has no key in it that is valid now"); n != want ||
				n > 0 && !strings.Contains(said.String(), "level=WARN") {
				t.Errorf("%s, %s: told %d times, want %d:\n%s", c.name, when, n, want, said.String())
			}
		}
		old, err := r.load(cfg, "f", nil)
		if err != nil {
			t.Fatal(err)
		}
		count(c.told, "at the start")
		r.again(cfg, old)
		if _, err := r.load(cfg, "f", nil); err != nil {
			t.Fatal(err)
		}
		count(c.told, "looked at again")
		writeLines(t, list, publicLine(1))
		r.again(cfg, old)
		writeLines(t, list, past)
		r.again(cfg, old)
		count(c.told+1, "when the last one goes")
	}
}
