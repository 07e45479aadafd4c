//go:build linux

// Package command opens and closes ports by commands of the owner's, for firewalls that
// we don't know. It hides nothing: the owner's firewall is closed already. The kernel
// does not own the clock here, so each close lies in the journal of undos on disk
// before its open runs.
package command

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/warden/internal/nft"
	"github.com/sallyport/sallyport/internal/warden/internal/run"
)

const (
	// openTime is how long a grant waits for its commands.
	openTime = 5 * time.Second
	// maxAdopted is the most lines of adopt_command that are read.
	maxAdopted = 65536
	// prefix begins the names of our actions; the blank keeps them apart from those of
	// a config.
	prefix = "open "
)

// Backend opens and closes by commands. It is not safe for use by two goroutines at
// once, but for what Begin gives.
type Backend struct {
	Runner *run.Runner
	Log    *slog.Logger

	cfg *config.Config // nil: before the first Apply
}

func mine(action string) bool { return strings.HasPrefix(action, prefix) }

// name is the action of a port and destination. Its grants differ by the address alone.
func name(e nft.Element) string {
	text := prefix + config.PortRange{Proto: e.Proto, Low: e.Port, High: e.Port}.String()
	if e.On.IsValid() {
		text += " " + e.On.String()
	}
	return text
}

// Port gives the port and protocol, and of a forwarded one the destination, that an
// action of ours is for; "" for an action of a config.
func Port(action string) string {
	port, ours := strings.CutPrefix(action, prefix)
	if !ours {
		return ""
	}
	return port
}

// element is the inverse of name.
func element(action string, addr netip.Addr) (e nft.Element, ok bool) {
	port, on, forwarded := strings.Cut(strings.TrimPrefix(action, prefix), " ")
	r, err := config.ParsePortRange(port)
	e = nft.Element{Addr: addr, Proto: r.Proto, Port: r.Low}
	if forwarded && err == nil {
		e.On, err = netip.ParseAddr(on)
	}
	return e, err == nil && r.Low == r.High && addr.IsValid()
}

// words puts an element into a command. Nothing but digits, letters, dots and colons
// comes from a packet, so that it means nothing to any shell.
func words(of config.Command, e nft.Element) config.Command {
	on := ""
	if e.On.IsValid() {
		on = e.On.String()
	}
	fill := strings.NewReplacer(
		"{addr}", e.Addr.Unmap().WithZone("").String(), "{port}", strconv.Itoa(int(e.Port)), "{proto}", e.Proto.String(),
		"{seconds}", strconv.FormatInt(int64((e.TTL+time.Second-1)/time.Second), 10), "{on}", on)
	out := make(config.Command, len(of))
	for i, word := range of {
		out[i] = fill.Replace(word)
	}
	return out
}

// start runs open_command for an element whose close is still to come, if there is
// one, or else is remembered before. It gives where its exit status comes.
func (b *Backend) start(e nft.Element, there bool, now time.Time) (status <-chan int, err error) {
	ended := make(chan int, 1)
	open := words(b.cfg.Daemon.OpenCommand, e)
	a := &config.Action{Name: name(e), Run: open, RunIPv6: open}
	if there {
		// What the command opened for {seconds} is prolonged, and what a reload of the
		// owner's firewall has shut is open again. Of its own name, or the undo that
		// is to come would take its place.
		a.Name, a.Again = "again "+a.Name, true
	} else {
		shut := words(b.cfg.Daemon.CloseCommand, e)
		a.Undo, a.UndoIPv6, a.UndoAfter = shut, shut, e.TTL
	}
	// A share for each who asks: whoever forges an anonymous knock, from one address
	// after another, makes nobody wait who has a key or a secret.
	err = b.Runner.Run(run.Job{
		Action: a, Addr: e.Addr, By: e.By, Share: prefix + e.By, Ports: []config.PortRange{{Proto: e.Proto, Low: e.Port, High: e.Port}}, Ended: ended,
	}, now)
	return ended, err
}

// Grant gives what is open another end, also an earlier one. What is not open it opens
// as Begin does, and waits.
func (b *Backend) Grant(elements []nft.Element) error {
	now := time.Now()
	var closed []nft.Element
	for _, e := range elements {
		if !b.Runner.Move(name(e), e.Addr, e.By, now.Add(e.TTL)) {
			closed = append(closed, e)
		}
	}
	wait, err := b.Begin(closed)
	if err != nil {
		return err
	}
	return wait()
}

// Begin runs open_command for all elements, and does not wait for it. Any goroutine
// can wait: at most five seconds. With an error of either, what was not open before is
// closed again.
func (b *Backend) Begin(elements []nft.Element) (wait func() error, err error) {
	now := time.Now()
	enough := time.After(openTime)
	var waiting []<-chan int
	var fresh []nft.Element
	switch {
	case slices.ContainsFunc(elements, func(e nft.Element) bool { return e.Cut }):
		return nil, errors.New("with backend = \"command\" nobody is kept out of connections that a server inside goes on with")
	case b.full(elements):
		return nil, fmt.Errorf("open_command was not run: %w", nft.ErrFull)
	}
	for _, e := range elements {
		there := b.Runner.Move(name(e), e.Addr, e.By, now.Add(e.TTL))
		status, err := b.start(e, there, now)
		if !there {
			fresh = append(fresh, e)
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("open_command was not run: %w", err), b.Revoke(fresh))
		}
		waiting = append(waiting, status)
	}
	return func() error { return b.await(waiting, enough, fresh) }, nil
}

func (b *Backend) await(waiting []<-chan int, enough <-chan time.Time, fresh []nft.Element) error {
	for _, status := range waiting {
		var err error
		select {
		case n := <-status:
			if n != 0 {
				err = fmt.Errorf("open_command ended with status %d", n)
			}
		case <-enough:
			err = fmt.Errorf("open_command did not end within %v", openTime)
		}
		if err != nil {
			return errors.Join(err, b.Revoke(fresh))
		}
	}
	return nil
}

// full reports whether with these elements there would be more than there may be.
// It is asked before the first command runs: what is opened and closed again is open
// for a moment.
func (b *Backend) full(elements []nft.Element) bool {
	all := b.Runner.Pending(mine)
	fresh := 0
	for _, e := range elements {
		action := name(e)
		if !slices.ContainsFunc(all, func(p run.Pending) bool { return p.Action == action && p.Addr == e.Addr }) {
			fresh++
		}
	}
	return fresh > 0 && len(all)+fresh > b.cfg.Daemon.MaxGrants
}

// Revoke runs close_command now. What is not open is no error.
func (b *Backend) Revoke(elements []nft.Element) error {
	everybody := func(string) bool { return true }
	for _, e := range elements {
		b.Runner.Undo(&config.Action{Name: name(e)}, e.Addr, everybody, time.Now())
	}
	return nil
}

// Holds reports whether the close of an element is still to come.
func (b *Backend) Holds(e nft.Element) (bool, error) {
	own := name(e)
	list := b.Runner.Pending(func(action string) bool { return action == own })
	return slices.ContainsFunc(list, func(p run.Pending) bool { return p.Addr == e.Addr }), nil
}

// Grants lists what is open by the journal of closes that are still to come.
func (b *Backend) Grants() (out []nft.Element, err error) {
	for _, p := range b.Runner.Pending(mine) {
		e, ok := element(p.Action, p.Addr)
		if e.TTL = time.Until(p.Due); !ok || e.TTL <= 0 {
			continue
		}
		if len(p.By) > 0 {
			e.By = p.By[0]
		}
		out = append(out, e)
	}
	slices.SortFunc(out, func(a, b nft.Element) int {
		return cmp.Or(a.Addr.Compare(b.Addr), strings.Compare(name(a), name(b)))
	})
	return out, nil
}

// Apply turns to a config: what is open of ports that no service has any more is
// closed. The first time it takes over what adopt_command prints.
func (b *Backend) Apply(cfg *config.Config, _ nft.Options) error {
	first := b.cfg == nil
	b.cfg = cfg
	open, _ := b.Grants()
	for _, e := range open {
		if !guarded(cfg, e) {
			b.Revoke([]nft.Element{e})
		}
	}
	if first && len(cfg.Daemon.AdoptCommand) > 0 {
		b.adopt()
	}
	return nil
}

func guarded(cfg *config.Config, e nft.Element) bool {
	return slices.ContainsFunc(cfg.Services, func(s config.Service) bool {
		here := len(s.On) == 0 && !e.On.IsValid() || slices.Contains(s.On, e.On)
		return here && config.HasPort(s.Ports, e.Proto, e.Port)
	})
}

// adopt opens anew, for the time that it has left, what adopt_command says is open and
// the journal knows nothing of: so its close is in there.
func (b *Backend) adopt() {
	text, err := run.Tool("", b.cfg.Daemon.AdoptCommand[0], b.cfg.Daemon.AdoptCommand[1:]...)
	if err != nil {
		b.Log.Warn("adopt_command did not say what is open: what it would have said stays open until your firewall ends it", "error", err)
		return
	}
	n := 0
	for line := range strings.Lines(text) {
		if n++; n > maxAdopted {
			b.Log.Warn("adopt_command prints too much; the rest is left out", "lines", maxAdopted)
			return
		}
		e, ok := parse(line)
		if !ok || !guarded(b.cfg, e) {
			b.Log.Warn("a line of adopt_command is left out: it is no ADDRESS PORT/PROTOCOL SECONDS of a service's port", "line", n)
			continue
		}
		if held, _ := b.Holds(e); held {
			continue
		}
		if err := b.Grant([]nft.Element{e}); err != nil {
			b.Log.Warn("what adopt_command says is open could not be taken over", "line", n, "error", err)
		}
	}
}

// parse reads a line of adopt_command.
func parse(line string) (e nft.Element, ok bool) {
	fields := strings.Fields(line)
	if len(fields) != 3 && len(fields) != 4 {
		return e, false
	}
	addr, err := netip.ParseAddr(fields[0])
	r, err2 := config.ParsePortRange(fields[1])
	left, err3 := strconv.ParseUint(fields[2], 10, 31)
	if err != nil || err2 != nil || err3 != nil || r.Low != r.High || left == 0 {
		return e, false
	}
	e = nft.Element{Addr: addr.Unmap(), Proto: r.Proto, Port: r.Low, TTL: time.Duration(left) * time.Second}
	if len(fields) == 4 {
		e.On, err = netip.ParseAddr(fields[3])
	}
	return e, err == nil
}

// Stale is never true: there are no rules of ours.
func (b *Backend) Stale(*config.Config) (bool, error) { return false, nil }

// Exists is always true: nobody can take away what is not there.
func (b *Backend) Exists() (bool, error) { return true, nil }

// Down closes what is open, and waits at most ten seconds. With the daemon goes
// whoever would do it in time.
func (b *Backend) Down() error {
	b.Runner.FinishOf(mine)
	return nil
}

// Close does nothing: the runner is the warden's.
func (b *Backend) Close() error { return nil }
