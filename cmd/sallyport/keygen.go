package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/sallyport/sallyport/internal/keys"
	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/sallyport/sallyport/internal/spa"
)

type keygenCmd struct {
	Out         string         `placeholder:"FILE" help:"Make a server's key in this file, for knocks of type spa, and print the address that clients need. With --secret and --otp-list: the file that these write to."`
	Rotate      bool           `help:"With --out: replace the key in FILE and let the old one work a while longer; with --secret the person's secret."`
	Overlap     *time.Duration `placeholder:"DURATION" help:"With --rotate: how long old keys and secrets still work, 0s to 8760h (default 720h)."`
	Secret      string         `placeholder:"NAME" help:"With --out: add a secret for this person to FILE, for knocks of types otp and encoded."`
	Services    string         `placeholder:"NAME,…" help:"With --secret: what the person may open; without it all that the knock opens."`
	Show        bool           `help:"With --secret: print the otpauth:// URI of the secret, for an authenticator app, with 6 digits; 'sallyport invite' draws the QR code."`
	PostQuantum bool           `help:"With --out: make a post-quantum key. Clients can't use RSA keys with it."`
	Classic     bool           `help:"With --out: make an X25519 key (default; --rotate keeps the file's kind)."`
	Address     string         `placeholder:"FILE" help:"Print the address of the current key in FILE."`
	Sequence    bool           `help:"Make a random sequence of TCP and UDP steps."`
	OTPList     *int           `name:"otp-list" placeholder:"N" help:"Make a list of N sequences that are good for one knock each, for server and client; with --out into FILE, else on standard output."`
	ListSteps   *int           `name:"steps" placeholder:"N" help:"With --otp-list: how many steps each has, 3 to 32 (default 4)."`
	Steps       *int           `arg:"" optional:"" help:"With --sequence: how many steps, 3 to 32 (default 4)."`
}

const (
	usualSteps   = 4
	usualOverlap = 720 * time.Hour
	mostOverlap  = 8760 * time.Hour
)

// Run prints one line on standard output, so that it can be appended to a file
// or stored: a sequence or an address. A secret goes to its file only.
func (c *keygenCmd) Run(u *ui) error {
	if err := c.check(); err != nil {
		return usageError{err}
	}
	if info, err := os.Stat(c.Out); c.Out != "" && err == nil && info.IsDir() {
		return fmt.Errorf("%s is a directory: name the file in it, such as %s", keys.Word(c.Out), keys.Word(filepath.Join(c.Out, "server.key")))
	}
	switch {
	case c.OTPList != nil:
		return c.otpList(u)
	case c.Secret != "":
		return c.secret(u, time.Now())
	case c.Sequence:
		return c.sequence(u)
	case c.Address != "":
		return printAddress(u, c.Address)
	case c.Rotate:
		return c.rotate(u, time.Now())
	}
	return c.create(u)
}

// check refuses what does not go together: an option without effect is one
// that somebody meant something by.
func (c *keygenCmd) check() error {
	if c.OTPList != nil || c.ListSteps != nil {
		return c.checkOTPList()
	}
	if c.Secret != "" || c.Services != "" || c.Show {
		return c.checkSecret()
	}
	modes := 0
	for _, chosen := range []bool{c.Sequence, c.Out != "", c.Address != ""} {
		if chosen {
			modes++
		}
	}
	switch {
	case modes != 1:
		return errors.New("say 'sallyport keygen --out FILE' for a server's key, 'sallyport keygen --sequence' for a random sequence, 'sallyport keygen --secret NAME --out FILE' for a person's secret, 'sallyport keygen --otp-list N' for a list of one-time sequences, or 'sallyport keygen --address FILE' for the address of a key that is there")
	case c.Steps != nil && !c.Sequence:
		return fmt.Errorf("%d is a number of steps, which only --sequence takes", *c.Steps)
	case (c.Rotate || c.PostQuantum || c.Classic) && c.Out == "":
		return errors.New("--rotate, --post-quantum and --classic need --out FILE")
	case c.PostQuantum && c.Classic:
		return errors.New("a key is either --classic or --post-quantum")
	}
	return c.checkOverlap()
}

func (c *keygenCmd) checkOverlap() error {
	switch {
	case c.Overlap != nil && !c.Rotate:
		return errors.New("--overlap needs --rotate")
	case c.Overlap != nil && (*c.Overlap < 0 || *c.Overlap > mostOverlap):
		return errors.New("--overlap must be from 0s to 8760h")
	}
	return nil
}

// overlap is how long what is rotated out works on.
func (c *keygenCmd) overlap() time.Duration {
	if c.Overlap != nil {
		return *c.Overlap
	}
	return usualOverlap
}

func (c *keygenCmd) sequence(u *ui) error {
	n := usualSteps
	if c.Steps != nil {
		n = *c.Steps
	}
	steps, err := sequence.Random(n)
	if err != nil {
		return usageError{err}
	}
	u.print("%s\n", sequence.ConfigLine(steps))
	return nil
}

func printAddress(u *ui, file string) error {
	list, err := keys.Server(file)
	if err != nil {
		return err
	}
	u.print("%v\n", list[0].Key.Address())
	return nil
}

func (c *keygenCmd) create(u *ui) error {
	suite := spa.Classic
	if c.PostQuantum {
		suite = spa.PostQuantum
	}
	key, err := spa.NewServerKey(suite)
	if err != nil {
		return err
	}
	next, err := beginFile(c.Out)
	if err != nil {
		return err
	}
	defer next.abandon()
	if err := next.write(spa.FormatKeyFile([]spa.FileKey{{Key: key}})); err != nil {
		return err
	}
	// Unlike a rename, a link never replaces a file.
	if err := os.Link(next.path, c.Out); errors.Is(err, fs.ErrExist) {
		word := keys.Word(c.Out)
		return fmt.Errorf("%s is there already and stays as it is; to replace the key in it say 'sallyport keygen --rotate --out %s', to see its address 'sallyport keygen --address %s'", word, word, word)
	} else if err != nil {
		return fmt.Errorf("%s can't be made: %w", keys.Word(c.Out), reason(err))
	}
	next.keep()
	u.print("%v\n", key.Address())
	c.explain(u)
	return nil
}

// explain says what a new key is for. The lines of the config stand alone, so
// that they can be copied.
func (c *keygenCmd) explain(u *ui) {
	path := c.Out
	if abs, err := filepath.Abs(path); err == nil {
		path = abs
	}
	u.say("%s has the server's secret key now; the line on standard output is its address, which clients need", keys.Word(c.Out))
	u.hint("add a knock to the config, with the public keys of those who may knock in authorized_keys:\n"+
		"[knock.front]\ntype = \"spa\"\nopens = [\"ssh\"]\nkey = %s\nauthorized_keys = \"/etc/sallyport/authorized_keys\"", strconv.Quote(path))
	u.hint("then 'sallyport invite' prints the line that each of them types")
}

func (c *keygenCmd) rotate(u *ui, now time.Time) error {
	path, next, err := beginNext(c.Out)
	if err != nil {
		return err
	}
	defer next.abandon()
	old, err := keys.Server(path)
	if err != nil {
		return err
	}
	list, err := rotated(old, c.suite(old[0].Key.Address().Suite()), now, c.overlap())
	if err != nil {
		return fmt.Errorf("%s: %w", keys.Word(c.Out), err)
	}
	if err := next.write(spa.FormatKeyFile(list)); err != nil {
		return err
	}
	if err := next.replace(path); err != nil {
		return err
	}
	u.print("%v\n", list[0].Key.Address())
	c.explainRotation(u, old[0].Key.Address().Suite(), list)
	return nil
}

// suite is what was asked for, or else what the file has.
func (c *keygenCmd) suite(now spa.Suite) spa.Suite {
	switch {
	case c.PostQuantum:
		return spa.PostQuantum
	case c.Classic:
		return spa.Classic
	}
	return now
}

// rotated puts a fresh key before those that still work. None of these works
// longer than the overlap, and none longer than was said of it before.
func rotated(old []spa.FileKey, suite spa.Suite, now time.Time, overlap time.Duration) ([]spa.FileKey, error) {
	key, err := spa.NewServerKey(suite)
	if err != nil {
		return nil, err
	}
	list := []spa.FileKey{{Key: key}}
	end := now.Add(overlap).UTC().Truncate(time.Second)
	for _, k := range old {
		if k.Until.IsZero() || k.Until.After(end) {
			k.Until = end
		}
		if k.Until.After(now) {
			list = append(list, k)
		}
	}
	if len(list) > spa.MaxFileKeys {
		first := slices.MinFunc(list[1:], func(a, b spa.FileKey) int { return a.Until.Compare(b.Until) })
		return nil, fmt.Errorf("%d old keys still work, and a file can have %d keys; wait until %s, when the first of them ends, or end them all with --overlap 0s",
			len(list)-1, spa.MaxFileKeys, first.Until.Format(time.RFC3339))
	}
	return list, nil
}

func (c *keygenCmd) explainRotation(u *ui, before spa.Suite, list []spa.FileKey) {
	u.say("%s has a new key; the line on standard output is its address, and a running daemon takes it up by itself", keys.Word(c.Out))
	if len(list) == 1 {
		u.say("no old key works any longer: clients need the new address now")
	} else {
		u.say("the old key works until %s: clients need the new address before", list[1].Until.Format(time.RFC3339))
	}
	if before == spa.Classic && list[0].Key.Address().Suite() == spa.PostQuantum {
		u.say("clients with an RSA key can't use the new address; they need an ed25519 key")
	}
	u.hint("'sallyport invite' prints the line that each of them types")
}

// newFile is a file in the making beside the one that it is to become, so that
// this one is never seen half-written.
type newFile struct {
	path string
	f    *os.File
}

// beginFile makes the file that a key is written to. It has nothing in it yet.
func beginFile(target string) (*newFile, error) {
	path := target + ".new"
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	switch {
	case errors.Is(err, fs.ErrExist):
		return nil, fmt.Errorf("%s is there: another keygen is at work, or one was interrupted; in that case remove it", keys.Word(path))
	case errors.Is(err, fs.ErrNotExist):
		dir := keys.Word(filepath.Dir(path))
		return nil, fmt.Errorf("there is no directory %s for it; make it with 'mkdir -m 700 %s'", dir, dir)
	case err != nil:
		return nil, fmt.Errorf("%s can't be made: %w", keys.Word(path), reason(err))
	}
	return &newFile{path, f}, nil
}

// beginNext makes what is to become the next version of a file, and gives where that
// is: a symbolic link stays one, and the file that it leads to is replaced. The file
// beside it is also the lock against a second keygen.
func beginNext(target string) (path string, next *newFile, err error) {
	if path, err = filepath.EvalSymlinks(target); err != nil {
		path = target
	}
	next, err = beginFile(path)
	return path, next, err
}

// write brings the text to the disk: an address that was given away is worth
// nothing if its key is lost with the power.
func (n *newFile) write(text string) error {
	_, err := n.f.WriteString(text)
	if err == nil {
		err = n.f.Sync()
	}
	if err != nil {
		return fmt.Errorf("%s can't be written: %w", keys.Word(n.path), reason(err))
	}
	return nil
}

// replace gives the file the mode and owner of the one that it replaces.
func (n *newFile) replace(path string) error {
	info, err := os.Stat(path)
	if err == nil {
		err = keys.SameOwner(n.f, info)
	}
	if err == nil {
		err = n.f.Chmod(info.Mode().Perm())
	}
	if err == nil {
		err = os.Rename(n.path, path)
	}
	if err != nil {
		return fmt.Errorf("%s can't be replaced: %w", keys.Word(path), reason(err))
	}
	n.keep()
	n.path = ""
	return nil
}

// keep makes the new name survive a power failure. Not every file system can
// do that for a directory, and the file is good without.
func (n *newFile) keep() {
	dir, err := os.Open(filepath.Dir(n.path))
	if err != nil {
		return
	}
	defer dir.Close()
	dir.Sync()
}

// abandon leaves nothing behind but what has its final name.
func (n *newFile) abandon() {
	n.f.Close()
	if n.path != "" { // after a rename the name may be another keygen's already
		os.Remove(n.path)
	}
}

// reason is a system's error without the path, which the message has.
func reason(err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return e.Err
	}
	if e, ok := errors.AsType[*os.LinkError](err); ok {
		return e.Err
	}
	return err
}
