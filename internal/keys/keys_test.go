package keys

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/authorized"
	"github.com/sallyport/sallyport/internal/secrets"
	"github.com/sallyport/sallyport/internal/spa"
)

const publicKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f somebody\n"

func serverText(t *testing.T) string {
	t.Helper()
	key, err := spa.NewServerKey(spa.Classic)
	if err != nil {
		t.Fatal(err)
	}
	return spa.FormatKeyFile([]spa.FileKey{{Key: key}})
}

func write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil { // whatever the umask is
		t.Fatal(err)
	}
}

// readers are both functions with a good text of theirs, as one shape.
func readers(t *testing.T) map[string]struct {
	text string
	read func(path string) (int, error)
} {
	return map[string]struct {
		text string
		read func(path string) (int, error)
	}{
		"server": {serverText(t), func(path string) (int, error) {
			keys, err := Server(path)
			return len(keys), err
		}},
		"authorized": {publicKey, func(path string) (int, error) {
			keys, bad, err := Authorized(path)
			if len(bad) > 0 {
				err = bad[0]
			}
			return len(keys), err
		}},
		"secrets": {"ann MFRGGZDFMZTWQ2LKNNWG23TPOBYXE43U\n", func(path string) (int, error) {
			people, bad, err := Secrets(path)
			if len(bad) > 0 {
				err = bad[0]
			}
			return len(people), err
		}},
	}
}

// within fails a test whose reader waits for somebody.
func within(t *testing.T, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Fatal("the reader waits")
	}
}

func TestModes(t *testing.T) {
	for name, r := range readers(t) {
		for mode := os.FileMode(0o400); mode <= 0o777; mode++ {
			denied := os.FileMode(0o077)
			if name == "authorized" {
				denied = 0o022
			}
			if mode&0o400 == 0 {
				continue // root reads it, others don't
			}
			path := filepath.Join(t.TempDir(), "file")
			write(t, path, r.text, 0o600)
			if err := os.Chmod(path, mode); err != nil {
				t.Fatal(err)
			}
			n, err := r.read(path)
			if good := mode&denied == 0; good != (err == nil) || good != (n == 1) {
				t.Errorf("%s with mode %04o: %d keys, %v", name, mode, n, err)
			}
			repair := map[string]string{"server": "type 'chmod 600 " + path + "'", "authorized": "type 'chmod go-w " + path + "'", "secrets": "type 'chmod 600 " + path + "'"}[name]
			if err != nil && !strings.Contains(err.Error(), repair) {
				t.Errorf("%s with mode %04o: %v; want %q in it", name, mode, err, repair)
			}
		}
	}
}

func TestWhatIsNoFile(t *testing.T) {
	for name, r := range readers(t) {
		dir := t.TempDir()
		at := func(file string) string { return filepath.Join(dir, file) }
		write(t, at("good"), r.text, 0o600)
		for _, err := range []error{
			os.Symlink(at("good"), at("link")),
			os.Symlink(at("loop"), at("loop")),
			syscall.Mkfifo(at("fifo"), 0o600),
			syscall.Mkdir(at("directory"), 0o700),
			os.Symlink(at("fifo"), at("link to a fifo")),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
		tests := []struct{ file, want string }{
			{at("good"), ""},
			{at("link"), ""},
			{at("fifo"), "is no regular file"},
			{at("link to a fifo"), "is no regular file"},
			{at("directory"), "is no regular file"},
			{"/dev/null", "is no regular file"},
			{at("loop"), "can't be opened: too many levels of symbolic links"},
			{at("absent"), "is not there; "},
			{at("it's absent"), `it'\''s absent' is not there; `},
			{at("good") + "/under", "can't be opened: not a directory"},
		}
		for _, test := range tests {
			within(t, func() {
				n, err := r.read(test.file)
				if test.want == "" && (n != 1 || err != nil) {
					t.Errorf("%s %s: %d keys, %v", name, test.file, n, err)
				}
				if test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
					t.Errorf("%s %s: %v; want %q", name, test.file, err, test.want)
				}
			})
		}
	}
}

func TestMissingFileNamesTheWayToMakeIt(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a b")
	_, err := Server(path)
	if want := "the server's key file '" + path + "' is not there; make it with 'sallyport keygen --out '" + path + "''"; err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	_, _, err = Authorized(path)
	if err == nil || !strings.Contains(err.Error(), "the authorized_keys file") || !strings.Contains(err.Error(), "ssh-add -L") {
		t.Errorf("%v", err)
	}
}

func TestSizes(t *testing.T) {
	limits := map[string]int{"server": MaxServer, "authorized": authorized.MaxSize, "secrets": secrets.MaxSize}
	for name, r := range readers(t) {
		path := filepath.Join(t.TempDir(), "file")
		for _, more := range []int{0, 1} {
			padding := limits[name] - len(r.text) - 1 + more
			write(t, path, r.text+strings.Repeat("\n", padding)+"\n", 0o600)
			n, err := r.read(path)
			if more == 0 && (n != 1 || err != nil) {
				t.Errorf("%s of %d bytes: %d keys, %v", name, limits[name], n, err)
			}
			if more == 1 && (err == nil || !strings.Contains(err.Error(), "is longer than")) {
				t.Errorf("%s of %d bytes: %d keys, %v", name, limits[name]+1, n, err)
			}
		}
	}
}

func TestOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to give files away")
	}
	for name, r := range readers(t) {
		path := filepath.Join(t.TempDir(), "file")
		write(t, path, r.text, 0o600)
		if err := os.Chown(path, 65533, -1); err != nil {
			t.Fatal(err)
		}
		_, err := r.read(path)
		if err == nil || !strings.Contains(err.Error(), "belongs to user 65533, who could replace it; type 'chown 0 "+path+"'") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A file that was named by mistake may be somebody's private key.
func TestErrorsHoldNoSecret(t *testing.T) {
	const secret = "c2VjcmV0LXNlY3JldA"
	good := serverText(t)
	line := strings.Split(good, "\n")[1]
	texts := []string{
		"", "# nothing\n", secret, "sallyport-key1" + secret, "ssh-ed25519 " + secret,
		line[:len(line)-1], line + "x", line + " until=" + secret, line + " " + secret,
		line + "\n" + line, line + "\n" + secret, strings.Repeat(line+" until=2030-01-01T00:00:00Z\n", 2),
	}
	for i, text := range texts {
		path := filepath.Join(t.TempDir(), "file")
		write(t, path, text, 0o600)
		_, err := Server(path)
		if err == nil {
			t.Errorf("text %d is taken", i)
			continue
		}
		_, bad, _ := Authorized(path)
		people, badPeople, _ := Secrets(path)
		said := fmt.Sprint(err, bad, people, badPeople)
		if strings.Contains(said, secret) || strings.Contains(said, line[14:40]) {
			t.Errorf("text %d is quoted: %s", i, said)
		}
		if !strings.Contains(err.Error(), path) {
			t.Errorf("text %d: %v does not name the file", i, err)
		}
	}
}

func TestGoodLinesWorkBesideBadOnes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	write(t, path, "what is this\n"+publicKey, 0o644)
	good, bad, err := Authorized(path)
	if err != nil || len(good) != 1 || good[0].Line != 2 || len(bad) != 1 || bad[0].Line != 1 {
		t.Errorf("%v, %v, %v", good, bad, err)
	}
}

// Word's only judge is a shell.
func TestWord(t *testing.T) {
	for _, s := range []string{"", "/etc/sallyport/key", "a b", "it's", "$(id)", "`id`", "a;b", "*", "~", "\\", "\"", "ü", "a\tb"} {
		out, err := exec.Command("/bin/sh", "-c", "printf %s "+Word(s)).Output()
		if err != nil || string(out) != s {
			t.Errorf("Word(%q) = %s, which a shell reads as %q (%v)", s, Word(s), out, err)
		}
	}
	if Word("/etc/sallyport/key") != "/etc/sallyport/key" {
		t.Error("a plain path is in quotes")
	}
}
