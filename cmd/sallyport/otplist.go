package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/internal/keys"
	"github.com/sallyport/sallyport/internal/onetime"
	"github.com/sallyport/sallyport/internal/sequence"
)

// listKnock is a list of one-time sequences, the client's copy. Each address that is
// knocked at takes a line of its own, which is marked as used before the first packet is
// made: what is lost on the way, by a crash too, costs a line, and no later run repeats
// one. Who waits for a port repeats his line, or else a server that can't be reached for
// half a minute would be left behind by more lines than it looks ahead. Whoever saw the
// first sending needs no second one.
type listKnock struct {
	path  string
	delay time.Duration
	look  bool         // send nothing, so mark nothing
	left  atomic.Int64 // lines behind the one that was taken; fewLines as long as none was
}

// fewLines is from how many lines left on the person is told.
const fewLines = 10

// newListKnock looks at the file, so that a mistake is told before anything is sent.
func newListKnock(path string, delay time.Duration) (*listKnock, error) {
	f, err := os.Open(path)
	if err == nil {
		defer f.Close()
		err = checkPrivate(f, path)
	} else {
		err = fmt.Errorf("the list %s can't be read: %w; it is this client's copy of the list that 'sallyport keygen --otp-list' made for the server", path, pathCause(err))
	}
	if err != nil {
		return nil, err
	}
	k := &listKnock{path: path, delay: delay}
	k.left.Store(fewLines)
	return k, nil
}

// Validate has nothing to look at: the line is not taken yet.
func (k *listKnock) Validate() error { return nil }

// Plan takes the next line.
func (k *listKnock) Plan(local, remote netip.Addr) (*sallyport.Plan, error) {
	steps, err := k.take()
	if err != nil {
		return nil, fmt.Errorf("%s %w", k.path, err)
	}
	return sallyport.Sequence{Steps: steps, Delay: k.delay}.Plan(local, remote)
}

func (k *listKnock) take() ([]sequence.Step, error) {
	if k.look {
		return onetime.First(k.path)
	}
	steps, left, err := onetime.Take(k.path)
	if err == nil {
		k.left.Store(int64(left))
	}
	return steps, err
}

// sayLeft tells who knocked that the list comes to its end.
func (o *order) sayLeft(u *ui) {
	k, is := o.knock.(*listKnock)
	if !is || k.look || k.left.Load() >= fewLines {
		return
	}
	u.say("%s has %s left", k.path, plural(int(k.left.Load()), "unused line"))
	u.hint("make a new list with 'sallyport keygen --otp-list 100 --out FILE', and take it to both sides by a safe way")
}

func (k *listKnock) causes() []string {
	return []string{
		"the server is at another line: more knocks were lost than its look_ahead, or its list is another one; copy the server's list over " + k.path,
		"something on the way drops packets to odd ports: try another network",
		"the service is down, or the server is",
	}
}

// setList takes a list that the command line or the stored server names. It reports
// whether there is one.
func (c *knockCmd) setList(o *order) (handled bool, err error) {
	path, delay := c.OTPList, time.Duration(0)
	if o.server != nil && o.server.list != "" && path == "" {
		path, delay = o.server.list, o.server.sequence.Delay
	}
	switch {
	case path == "":
		return false, nil
	case len(c.Operands) > 0:
		return true, errors.New("a list has the steps, and opens what it opens: give no steps and no services")
	case c.OTPList != "" && o.server != nil && (o.server.address != nil || o.server.otp != nil || o.server.encoded != nil):
		return true, fmt.Errorf("%s is not opened by a sequence: leave --otp-list out, or say host:%s for a host of that name", c.Target, c.Target)
	case c.For != 0 || c.Address != "" || c.Close || c.Extend || c.Over != "" || c.Save != "":
		return true, errors.New("--for, --address, --close, --extend, --over and --save can't be said by a sequence: it opens what it opens")
	case c.Delay != nil && c.OTPList == "":
		return true, fmt.Errorf("%s is stored with its pause: change it with 'sallyport add --force'", c.Target)
	case c.Delay != nil:
		if delay, err = parseDelay(c.Delay.String()); err != nil {
			return true, err
		}
	}
	k, err := newListKnock(path, delay)
	if err != nil {
		return true, err
	}
	k.look = c.DryRun
	o.knock = k
	return true, nil
}

// setList reads the path of a stored list.
func (s *server) setList(r *rawServer) (err error) {
	if !filepath.IsAbs(r.List) {
		return fmt.Errorf("list is %.80q: give an absolute path", r.List)
	}
	s.list = r.List
	if r.Delay != "" {
		s.sequence.Delay, err = parseDelay(r.Delay)
	}
	return err
}

// checkOTPList refuses what does not go with --otp-list.
func (c *keygenCmd) checkOTPList() error {
	switch {
	case c.OTPList == nil:
		return errors.New("--steps goes with --otp-list; with --sequence the number stands alone")
	case c.Sequence || c.Address != "" || c.Secret != "" || c.Services != "" || c.Show || c.Rotate || c.PostQuantum || c.Classic || c.Overlap != nil || c.Steps != nil:
		return errors.New("--otp-list N makes a list and nothing else: it goes with --steps and --out FILE alone")
	}
	return nil
}

// otpList makes a list, in a new file or on standard output.
func (c *keygenCmd) otpList(u *ui) error {
	steps := usualSteps
	if c.ListSteps != nil {
		steps = *c.ListSteps
	}
	text, err := onetime.Random(*c.OTPList, steps)
	if err != nil {
		return usageError{err}
	}
	if c.Out == "" {
		u.print("%s", text)
		u.private()
		return nil
	}
	next, err := beginFile(c.Out)
	if err != nil {
		return err
	}
	defer next.abandon()
	if err := next.write(text); err != nil {
		return err
	}
	// A link never replaces a file, and with it the marks in it.
	if err := os.Link(next.path, c.Out); errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s is there already and stays as it is: a list that replaced it could make used lines good again; name another file", keys.Word(c.Out))
	} else if err != nil {
		return fmt.Errorf("%s can't be made: %w", keys.Word(c.Out), reason(err))
	}
	next.keep()
	c.explainList(u, strings.Count(text, "\n")-1)
	return nil
}

func (c *keygenCmd) explainList(u *ui, lines int) {
	path := c.Out
	if abs, err := filepath.Abs(path); err == nil {
		path = abs
	}
	u.say("%s has %s, each good for one knock; copy it to the one client that is to have it, by a safe way", keys.Word(c.Out), plural(lines, "sequence"))
	u.hint("add a knock to the config:\n[knock.front]\ntype = \"sequence\"\nopens = [\"ssh\"]\nlist = %q", path)
	u.hint("at the client: 'sallyport knock HOST --otp-list FILE'")
}
