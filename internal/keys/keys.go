// Package keys reads the files that say who may knock from disk: of a knock of
// type spa the server's key file and the clients' authorized_keys, of types otp and
// encoded the people's secrets, of type sequence a list of one-time sequences. It
// takes none from a file that somebody else could have read or written.
package keys

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/sallyport/sallyport/internal/authorized"
	"github.com/sallyport/sallyport/internal/onetime"
	"github.com/sallyport/sallyport/internal/secrets"
	"github.com/sallyport/sallyport/internal/spa"
)

// MaxServer is the most that a server's key file can have, in bytes: its keys
// take 500, the rest is for comments.
const MaxServer = 64 << 10

// Server reads a server's key file: the current key, then old ones, also those
// whose overlap is over. It must be a regular file (or a link to one) of at most
// MaxServer bytes that root or this user owns and nobody else can read. An error
// says what to type and nothing of the file's text.
func Server(path string) ([]spa.FileKey, error) {
	text, err := private("the server's key file", "sallyport keygen --out "+Word(path), MaxServer, path).read(path)
	if err != nil {
		return nil, err
	}
	keys, err := spa.ParseKeyFile(string(text))
	if err != nil {
		return nil, fmt.Errorf("the server's key file %s: %w", Word(path), err)
	}
	return keys, nil
}

// Authorized reads the clients' public keys and says which lines give none. It
// must be a regular file (or a link to one) of at most authorized.MaxSize bytes
// that root or this user owns and nobody else can write.
func Authorized(path string) ([]authorized.Key, []authorized.Error, error) {
	text, err := rule{
		name:    "the authorized_keys file",
		missing: "put the public keys of those who may knock into it, one a line: the files that end in .pub, or what ssh-add -L prints",
		limit:   authorized.MaxSize,
		denied:  0o022,
		open:    "others on this machine can change",
		repair:  "chmod go-w " + Word(path),
	}.read(path)
	if err != nil {
		return nil, nil, err
	}
	good, bad := authorized.Parse(text)
	return good, bad, nil
}

// Secrets reads the people's secrets and says which lines give nobody. It must be a
// regular file (or a link to one) of at most secrets.MaxSize bytes that root or
// this user owns and nobody else can read. No error shows a secret.
func Secrets(path string) ([]secrets.Person, []authorized.Error, error) {
	text, err := SecretsText(path)
	if err != nil {
		return nil, nil, err
	}
	good, bad := secrets.Parse(text)
	return good, bad, nil
}

// SecretsText gives the text of such a file, to be written anew. The error is
// fs.ErrNotExist where there is none.
func SecretsText(path string) ([]byte, error) {
	rule := private("the file of secrets", "sallyport keygen --secret NAME --out "+Word(path), secrets.MaxSize, path)
	rule.missing += ", NAME being whom the secret is for"
	return rule.read(path)
}

// List gives the text of a list of one-time sequences. It must be a regular file (or a
// link to one) of at most onetime.MaxSize bytes that root or this user owns and nobody
// else can read. The error is fs.ErrNotExist where there is none.
func List(path string) ([]byte, error) {
	return private("the list of one-time sequences", "sallyport keygen --otp-list 100 --out "+Word(path), onetime.MaxSize, path).read(path)
}

// rule is what one kind of file is held to.
type rule struct {
	name    string // with its article
	missing string // what to do when it is not there
	limit   int64  // bytes
	denied  fs.FileMode
	open    string // what others can do to it if its mode has a denied bit
	repair  string // the command against that
}

// private is the rule of a file that nobody else may read, and that a command makes.
func private(name, command string, limit int64, path string) rule {
	return rule{
		name:    name,
		missing: "make it with '" + command + "'",
		limit:   limit,
		denied:  0o077,
		open:    "others on this machine can read or change",
		repair:  "chmod 600 " + Word(path),
	}
}

// read opens the file once and asks the open file what it is: a name could
// point elsewhere by the second look.
func (r rule) read(path string) ([]byte, error) {
	// Without O_NONBLOCK a FIFO would wait for a writer for ever.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, r.opening(path, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", r.name, Word(path), cause(err))
	}
	if err := r.check(path, info); err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(f, r.limit+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s %s can't be read: %w", r.name, Word(path), cause(err))
	case int64(len(text)) > r.limit: // it grew behind the stat
		return nil, r.tooLong(path)
	}
	return text, nil
}

func (r rule) opening(path string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return &missing{fmt.Sprintf("%s %s is not there; %s", r.name, Word(path), r.missing)}
	case errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0:
		return fmt.Errorf("%s %s can't be read by user %d; do this as root", r.name, Word(path), os.Geteuid())
	}
	return fmt.Errorf("%s %s can't be opened: %w", r.name, Word(path), cause(err))
}

// missing says that there is no file, and what to do.
type missing struct{ text string }

// Error gives the text.
func (e *missing) Error() string { return e.text }

// Unwrap gives fs.ErrNotExist.
func (e *missing) Unwrap() error { return fs.ErrNotExist }

func (r rule) check(path string, info fs.FileInfo) error {
	owner, known := ownerOf(info)
	switch {
	case !info.Mode().IsRegular():
		return fmt.Errorf("%s %s is no regular file; name the file itself", r.name, Word(path))
	case known && owner != 0 && owner != os.Geteuid():
		return fmt.Errorf("%s %s belongs to user %d, who could replace it; type 'chown %d %s'", r.name, Word(path), owner, os.Geteuid(), Word(path))
	case info.Mode().Perm()&r.denied != 0:
		return fmt.Errorf("%s %s, whose mode is %04o; type '%s'", r.open, Word(path), info.Mode().Perm(), r.repair)
	case info.Size() > r.limit:
		return r.tooLong(path)
	}
	return nil
}

func (r rule) tooLong(path string) error {
	return fmt.Errorf("%s %s is longer than %d bytes, so it is probably another file", r.name, Word(path), r.limit)
}

// cause is an error of package os without the path, which the message has.
func cause(err error) error {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		return p.Err
	}
	return err
}

// Shared gives a knock other than number i that has one of its keys, or -1.
// Names of files say nothing: one may be a link or a copy of another. A request
// is for a server's key, so with one key for two knocks who is on the path could
// choose whose rules and whose memory of what was heard it meets.
func Shared(servers [][]spa.FileKey, i int) int {
	for j := range servers {
		for _, a := range servers[j] {
			if j != i && slices.ContainsFunc(servers[i], func(b spa.FileKey) bool { return a.Key.Equal(b.Key) }) {
				return j
			}
		}
	}
	return -1
}

// SharedCode reports whether an authenticator app's code for one of two knocks is
// good for the other too: somebody on the path could take it there. Other secrets
// may be the same, because the knock's name is part of what is sent.
func SharedCode(a, b []secrets.Person) bool {
	return slices.ContainsFunc(a, func(p secrets.Person) bool {
		return slices.ContainsFunc(b, func(q secrets.Person) bool { return bytes.Equal(p.Secret, q.Secret) })
	})
}

// SharedError is what is wrong with that, and what to do.
func SharedError(other string) error {
	return fmt.Errorf("this file has a key of knock.%s, so that a request to the one could be sent to the other; make a new one with 'sallyport keygen', or use services= in authorized_keys", other)
}

// SharedCodeError is what is wrong with a code that is good for two knocks, and what
// to do.
func SharedCodeError(other string) error {
	return fmt.Errorf("this file has a secret of knock.%s, and a code does not say for which knock it is: whoever sees one could use it there; give each knock with digits its own file", other)
}

const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789@%+=:,./_-"

// Word spells a text so that a shell reads it as one word: messages hold
// commands that people copy.
func Word(s string) string {
	if s != "" && strings.Trim(s, plain) == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
