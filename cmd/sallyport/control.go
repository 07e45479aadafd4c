//go:build linux

package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/sallyport/sallyport/internal/control"
)

// socketFlag is how the daemon's tools find it.
type socketFlag struct {
	Control string `default:"/run/sallyport/control.sock" placeholder:"SOCKET" help:"The daemon's control socket (default ${default})."`
	JSON    bool   `name:"json" help:"Print JSON."`
}

// answerLimit is how long the daemon may take for an answer.
const answerLimit = 15 * time.Second

// ask sends one request and calls each for every line of the answer.
func (f *socketFlag) ask(r control.Request, each func(control.Answer) error) error {
	conn, err := f.connect(r)
	if err != nil {
		return err
	}
	defer conn.Close()
	return answers(conn, r, each)
}

// connect sends one request.
func (f *socketFlag) connect(r control.Request) (net.Conn, error) {
	if err := r.Check(); err != nil {
		return nil, usageError{err}
	}
	conn, err := net.Dial("unix", r.Socket(f.Control))
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, f.nobody()
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("%s may be used by root alone; try again with sudo", f.Control)
	case err != nil:
		return nil, err
	}
	line, err := json.Marshal(r)
	if err != nil {
		conn.Close()
		return nil, err
	}
	if !r.Follows() {
		conn.SetDeadline(time.Now().Add(answerLimit))
	}
	// A daemon with too many connections answers before it reads, so a failed
	// write says less than the answer.
	conn.Write(append(line, '\n'))
	return conn, nil
}

// mostNamed bounds how many other daemons are named.
const mostNamed = 3

// nobody says that no daemon answers, and where some do that serve a knockd.conf. A
// killed one leaves its socket behind, so each is tried.
func (f *socketFlag) nobody() error {
	files, _ := filepath.Glob(filepath.Join(filepath.Dir(f.Control), "knockd-*.sock"))
	var others []string
	for _, file := range files {
		conn, err := net.Dial("unix", file)
		if errors.Is(err, fs.ErrPermission) { // nor can anybody but root see which are alive
			return fmt.Errorf("no daemon answers at %s; one that serves a knockd.conf answers root alone: try again with sudo, and name its socket with --control", f.Control)
		}
		if err != nil {
			continue
		}
		conn.Close()
		if others = append(others, file); len(others) == mostNamed {
			break
		}
	}
	if len(others) == 0 {
		return fmt.Errorf("no daemon answers at %s; is 'sallyport serve' running? --control names another socket", f.Control)
	}
	return fmt.Errorf("no daemon answers at %s; a knockd.conf is served at %s: name the socket with --control", f.Control, strings.Join(others, ", "))
}

func answers(conn net.Conn, r control.Request, each func(control.Answer) error) error {
	lines := bufio.NewScanner(conn)
	lines.Buffer(nil, control.MaxAnswer)
	for lines.Scan() {
		a, err := control.ParseAnswer(lines.Bytes(), r.Do)
		if err == nil && a.Error != "" {
			err = errors.New(a.Error)
		}
		if err == nil {
			err = each(a)
		}
		if err != nil || !r.Follows() {
			return err
		}
	}
	switch err := lines.Err(); {
	case errors.Is(err, bufio.ErrTooLong):
		return fmt.Errorf("the daemon's answer is not understood: it has more than %d bytes", control.MaxAnswer)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("the daemon gave no answer within %v; it may be stopped or very busy: look at its log, and try again", answerLimit)
	case err == nil && r.Follows():
		return errors.New("the daemon ended")
	}
	return errors.New("the daemon closed the connection without an answer: only root and the daemon's own user may ask; if you are one of them, it is ending or was busy with another request, so look at its log and try again")
}

// json prints data for another program, one object a line.
func (u *ui) json(v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	u.print("%s\n", text)
	return nil
}

type statusCmd struct {
	socketFlag `embed:""`
}

// Run prints how the daemon is.
func (c *statusCmd) Run(u *ui) error {
	return c.ask(control.Request{Do: control.DoStatus}, func(a control.Answer) error {
		s := a.Status
		if c.JSON {
			return u.json(s)
		}
		w := tabwriter.NewWriter(u.out, 0, 0, 2, ' ', 0)
		defer w.Flush()
		fmt.Fprintf(w, "serving since\t%s\n", s.Since.Local().Format(time.DateTime))
		if s.Observe {
			fmt.Fprintf(w, "mode\tobserve: nothing is hidden, nothing is opened\n")
		}
		fmt.Fprintf(w, "config\tgeneration %d: %d services, %d knocks\n", s.Generation, s.Services, s.Knocks)
		if !s.Watched.IsZero() {
			fmt.Fprintf(w, "last packet of its own\t%s ago\n", time.Since(s.Watched).Round(time.Second))
		}
		fmt.Fprintf(w, "attempts in the table\t%d\n", s.Attempts)
		for _, name := range slices.Sorted(maps.Keys(s.Counters)) {
			fmt.Fprintf(w, "%s\t%d\n", name, s.Counters[name])
		}
		for _, p := range s.Sandbox {
			state := "proven"
			if !p.Proven {
				state = "absent: " + p.Why
			}
			fmt.Fprintf(w, "sandbox: %s\t%s\n", p.Part, state)
		}
		return nil
	})
}

type grantsCmd struct {
	socketFlag `embed:""`
}

// Run lists the grants that the kernel holds.
func (c *grantsCmd) Run(u *ui) error {
	return c.ask(control.Request{Do: control.DoGrants}, func(a control.Answer) error {
		if c.JSON {
			for _, g := range a.Grants.Grants {
				if err := u.json(g); err != nil {
					return err
				}
			}
			return nil
		}
		w := tabwriter.NewWriter(u.out, 0, 0, 2, ' ', 0)
		defer w.Flush()
		for _, g := range a.Grants.Grants {
			once := ""
			if g.Once {
				once = " or one connection"
			}
			fmt.Fprintf(w, "%s\t%s\tfor %s%s\tasked by %s\n", g.Who(), g.What(), time.Until(g.Until).Round(time.Second), once, g.By)
		}
		if len(a.Grants.Grants) == 0 {
			u.say("no grants")
		}
		return nil
	})
}

type openCmd struct {
	socketFlag `embed:""`
	Service    string        `arg:"" help:"The service."`
	Addr       address       `arg:"" help:"The address to let in."`
	For        time.Duration `placeholder:"30s" help:"For how long; the service's open_for unless given, max_open_for at most."`
}

// Run lets an address in.
func (c *openCmd) Run(u *ui) error {
	r := control.Request{Do: control.DoOpen, Service: c.Service, Addr: c.Addr.Addr, For: control.Duration(c.For)}
	return c.ask(r, func(a control.Answer) error {
		if c.JSON {
			return u.json(a.Done)
		}
		u.say("%s: %s may reach %s for %s", a.Done.Result, c.Addr, c.Service, time.Until(a.Done.Until).Round(time.Second))
		return nil
	})
}

type closeCmd struct {
	socketFlag `embed:""`
	Operands   []string `arg:"" optional:"" name:"[SERVICE [PORT]] ADDR" help:"The address to shut out, or the network, and before it the service; without a service all of them. With a port that port's own grant alone."`
	Key        string   `placeholder:"FINGERPRINT" help:"In place of an address: end all that this key opened, SHA256:… as 'ssh-keygen -l' and 'grants' show it."`
	Cut        bool     `help:"End live connections too, also of others behind the same address. With --key: of all who came in by the key since the daemon's start, but for addresses that others use too."`
}

// closeTakes explains the command line to who got it wrong.
const closeTakes = "close takes an address or a network, a service before it, and between the two one port of that, or --key FINGERPRINT"

// Run ends grants.
func (c *closeCmd) Run(u *ui) error {
	r, err := c.request()
	if err != nil {
		return usageError{err}
	}
	return c.ask(r, func(a control.Answer) error {
		if a.Done.Count == 0 && a.Done.Cut == 0 && a.Done.Left == 0 && r.Key != "" {
			return nothingClosed(r)
		}
		if c.JSON {
			return u.json(a.Done)
		}
		u.say("%s", closed(r, a.Done))
		return nil
	})
}

func (c *closeCmd) request() (control.Request, error) {
	r := control.Request{Do: control.DoClose, Key: c.Key, Cut: c.Cut}
	n := len(c.Operands)
	if (r.Key != "") != (n == 0) || n > 3 {
		return r, errors.New(closeTakes)
	}
	if n == 0 {
		return r, nil
	}
	if n > 1 {
		r.Service = c.Operands[0]
	}
	if n > 2 {
		r.Port = c.Operands[1]
	}
	if p, err := netip.ParsePrefix(c.Operands[n-1]); err == nil {
		if r.Addr = p.Masked().Addr(); !p.IsSingleIP() {
			r.Bits = p.Bits()
		}
		return r, nil
	}
	var addr address
	if err := addr.UnmarshalText([]byte(c.Operands[n-1])); err != nil {
		return r, fmt.Errorf("%w; %s", err, closeTakes)
	}
	r.Addr = addr.Addr
	return r, nil
}

// nothingClosed is for a key that has nothing to end.
func nothingClosed(r control.Request) error {
	if r.Cut {
		return fmt.Errorf("no grant of %s is there, nor a connection of who came in by it since the daemon's start, so nothing was closed; 'sallyport close ADDR --cut' ends the connections of an address", r.Key)
	}
	return fmt.Errorf("no grant of %s is there, so nothing was closed; 'sallyport grants' shows who asked for which, and --cut ends connections that are left from before", r.Key)
}

// closed says what a close did, and what it did not.
func closed(r control.Request, did *control.Done) string {
	whose, connections := r.Key, "; live connections go on"
	if r.Key == "" {
		whose = r.Who()
	}
	if r.Cut {
		connections = fmt.Sprintf(", %d connections cut", did.Cut)
	}
	text := fmt.Sprintf("closed: %d grants of %s ended%s", did.Count, whose, connections)
	if r.Key != "" {
		text += "; whoever has the key can knock again until its line leaves authorized_keys"
	}
	if did.Left > 0 {
		text += fmt.Sprintf("; %d addresses that others use too were left, and the daemon's log names them; 'sallyport close SERVICE ADDR --cut' ends theirs as well", did.Left)
	}
	return text
}

// address is one that was typed.
type address struct{ netip.Addr }

// UnmarshalText reads it. A 4-in-6 address is the IPv4 address that its packets
// have.
func (a *address) UnmarshalText(typed []byte) error {
	got, err := netip.ParseAddr(string(typed))
	if err != nil {
		return fmt.Errorf("%q is not an address, such as 192.0.2.7 or 2001:db8::7", typed)
	}
	a.Addr = got.Unmap()
	return nil
}

type confirmCmd struct {
	socketFlag `embed:""`
}

// Run ends a trial: the hiding stays.
func (c *confirmCmd) Run(u *ui) error {
	return c.ask(control.Request{Do: control.DoConfirm}, func(a control.Answer) error {
		if c.JSON {
			return u.json(a.Done)
		}
		u.say("confirmed: the hiding stays")
		return nil
	})
}

type eventsCmd struct {
	socketFlag `embed:""`
}

// Run prints events until it is interrupted or the daemon ends.
func (c *eventsCmd) Run(u *ui) error {
	return c.ask(control.Request{Do: control.DoEvents}, func(a control.Answer) error {
		if c.JSON {
			return u.json(a.Event)
		}
		u.event(a.Event, time.DateTime)
		return nil
	})
}

// event prints what happened on one line, its time in a layout of package time.
func (u *ui) event(e *control.Event, layout string) {
	u.print("%s %s", e.Time.Local().Format(layout), e.What)
	for _, field := range []struct{ name, value string }{
		{"address", e.Who()}, {"knock", e.Knock}, {"service", e.Service}, {"port", e.Port}, {"key", e.Key}, {"why", e.Why},
	} {
		if field.value != "" {
			u.print(" %s=%s", field.name, quoted(field.value))
		}
	}
	if e.Stage > 0 {
		u.print(" steps_made=%d", e.Stage)
	}
	if e.Count > 0 {
		u.print(" count=%d", e.Count)
	}
	if !e.Until.IsZero() {
		u.print(" until=%s", e.Until.Local().Format(time.TimeOnly))
	}
	u.print("\n")
}
