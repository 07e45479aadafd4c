package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/sallyport/sallyport/internal/keys"
	"github.com/sallyport/sallyport/internal/secrets"
)

// checkSecret refuses what does not go with --secret.
func (c *keygenCmd) checkSecret() error {
	switch {
	case c.Secret == "":
		return errors.New("--services and --show go with --secret NAME --out FILE")
	case c.Out == "" || c.Sequence || c.Address != "" || c.Steps != nil:
		return errors.New("--secret NAME needs --out FILE, the file that secrets = names in the config, and nothing else to make")
	case c.PostQuantum || c.Classic:
		return errors.New("--post-quantum and --classic are for a server's key: a secret is neither")
	}
	if err := secrets.CheckName(c.Secret); err != nil {
		return fmt.Errorf("--secret %.40q: %w", c.Secret, err)
	}
	for _, name := range c.services() {
		if err := checkService(name); err != nil {
			return fmt.Errorf("--services: %w", err)
		}
	}
	return c.checkOverlap()
}

func (c *keygenCmd) services() []string {
	if c.Services == "" {
		return nil
	}
	return strings.Split(c.Services, ",")
}

// secret adds a person's secret to a file, or replaces it. It is printed only if
// that is asked for: a terminal keeps what scrolled by.
func (c *keygenCmd) secret(u *ui, now time.Time) error {
	path, next, err := beginNext(c.Out)
	if err != nil {
		return err
	}
	defer next.abandon()
	old, err := keys.SecretsText(path)
	fresh := errors.Is(err, fs.ErrNotExist)
	if err != nil && (!fresh || c.Rotate) {
		return err
	}
	p := secrets.Person{Name: c.Secret, Secret: secrets.New(), Services: c.services()}
	text, err := c.edit(old, p, now)
	if err != nil {
		return fmt.Errorf("%s: %w", keys.Word(c.Out), err)
	}
	if err := next.write(string(text)); err != nil {
		return err
	}
	if fresh {
		err = next.make(path)
	} else {
		err = next.replace(path)
	}
	if err != nil {
		return err
	}
	if c.Show {
		u.print("%s\n", appURI(p.Name, "sallyport", p.Secret, 6))
		u.private()
	}
	c.explainSecret(u, text, now)
	if fresh {
		c.explainPeople(u)
	}
	return nil
}

func (c *keygenCmd) edit(old []byte, p secrets.Person, now time.Time) ([]byte, error) {
	if c.Rotate {
		return secrets.Rotate(old, p, now, c.overlap())
	}
	return secrets.Add(old, p)
}

// make gives a file its name where there was none.
func (n *newFile) make(path string) error {
	if err := os.Link(n.path, path); err != nil {
		return fmt.Errorf("%s can't be made: %w", keys.Word(path), reason(err))
	}
	n.keep()
	return nil
}

func (c *keygenCmd) explainSecret(u *ui, text []byte, now time.Time) {
	u.say("%s has a new secret of %s, which a running daemon takes up by itself", keys.Word(c.Out), c.Secret)
	if c.Rotate {
		people, _ := secrets.Parse(text)
		old := slices.IndexFunc(people, func(p secrets.Person) bool { return p.Name == c.Secret && !p.Expires.IsZero() })
		if until := now.Add(c.overlap()); old >= 0 && c.overlap() > 0 && !people[old].Expires.After(until) {
			u.say("the old one works until %s", people[old].Expires.UTC().Format(time.RFC3339))
		} else {
			u.say("the old one does not work any longer")
		}
	}
	u.hint("'sallyport invite -c CONFIG --person %s' prints what %s needs; to revoke it delete the line", c.Secret, c.Secret)
}

// explainPeople says what a new file is for. The lines of the config stand alone, so
// that they can be copied.
func (c *keygenCmd) explainPeople(u *ui) {
	path := c.Out
	if abs, err := filepath.Abs(path); err == nil {
		path = abs
	}
	u.hint("add a knock to the config if none has the file yet, of type otp or encoded; with digits = 6 an otp knock is an authenticator app's code:\n"+
		"[knock.people]\ntype = \"otp\"\nopens = [\"ssh\"]\nsecrets = %q", path)
}

// appURI is what an authenticator app reads (the Key Uri Format of such apps): the
// secret in clear.
func appURI(person, server string, secret []byte, digits int) string {
	q := url.Values{"secret": {secrets.Encode(secret)}, "issuer": {server}, "algorithm": {"SHA1"}, "digits": {fmt.Sprint(digits)}, "period": {"30"}}
	u := url.URL{Scheme: "otpauth", Host: "totp", Path: "/" + server + ":" + person, RawQuery: q.Encode()}
	return u.String()
}
