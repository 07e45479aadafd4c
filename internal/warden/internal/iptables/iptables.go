// Package iptables hides ports with chains of its own in iptables and ip6tables, and
// keeps grants in ipsets: the kernel ends each by itself, so nothing here needs to run
// for a port to close. It touches no rule and no set that it did not make.
package iptables

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/sallyport/sallyport/internal/warden/internal/nft"
	"github.com/sallyport/sallyport/internal/warden/internal/run"
)

// ErrAbsent says that the kernel has no ipset.
var ErrAbsent = errors.New("this kernel has no ipset: load the modules ip_set, ip_set_hash_ipport, ip_set_hash_ipportip, ip_set_hash_net and xt_set, or use a kernel built with CONFIG_IP_SET and CONFIG_NETFILTER_XT_SET")

// ErrNoTools says that a program of the package iptables is missing.
var ErrNoTools = errors.New("iptables is not installed: install the package iptables, or leave backend out to use nftables, which needs no program")

// Table is our chains and sets in one network namespace. It is not safe for use by two
// goroutines at once.
type Table struct {
	sets *sets
	// guarded are the ports that the last Apply hid, nil before the first: no grant is
	// for any other. live says that it was with Options.Live.
	guarded []config.PortRange
	live    bool
	loaded  map[uint8]string // by family: our rules as the host had them behind the last Apply
}

// Open connects to the kernel in the caller's current network namespace and asks it
// about ipset, so that a kernel that will refuse does so here. Its errors wrap
// nft.ErrPermission, ErrAbsent or ErrNoTools where one of them is the reason.
func Open() (*Table, error) {
	for _, f := range families {
		for _, name := range []string{f.restore, f.save} {
			if _, err := run.Find(name); err != nil {
				return nil, fmt.Errorf("%w (%w)", ErrNoTools, err)
			}
		}
	}
	return openSetsOnly()
}

func openSetsOnly() (*Table, error) {
	s, err := openSets()
	if err != nil {
		return nil, because("ipset could not be opened", err)
	}
	t := &Table{sets: s, loaded: map[uint8]string{}}
	if _, err := t.sets.exists(families[0].open()); err != nil {
		t.Close()
		return nil, because("ipset did not answer", err)
	}
	return t, nil
}

// Close lets go of the connection. Chains, sets and grants stay.
func (t *Table) Close() error { return t.sets.conn.Close() }

// because says what failed and adds the reason in words where the kernel's error number
// has one.
func because(what string, err error) error {
	var reason error
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		reason = nft.ErrPermission
	case errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP):
		reason = ErrAbsent
	case errors.Is(err, errFull):
		return fmt.Errorf("%s: %w", what, nft.ErrFull)
	case errors.Is(err, unix.ENOENT):
		// As the gate knows it: our sets are gone.
		return fmt.Errorf("%s: the set is not there: %w", what, err)
	default:
		return fmt.Errorf("%s: %w", what, err)
	}
	return fmt.Errorf("%s: %w (%w)", what, reason, err)
}

// Exists reports whether the rules of both families are there, whole and first.
func (t *Table) Exists() (bool, error) {
	for _, f := range families {
		if there, err := t.sets.exists(f.open()); err != nil || !there {
			return false, because("the sets could not be looked at", err)
		}
		host, err := f.read()
		if err != nil {
			return false, because("the rules could not be looked at", err)
		}
		if !host.whole(t.loaded[f.number]) {
			return false, nil
		}
	}
	return true, nil
}

// Present reports whether anything of ours is there, by a question to the kernel
// alone: rules can't be without their sets.
func Present() bool {
	t, err := openSetsOnly()
	if err != nil {
		return false
	}
	defer t.Close()
	for _, f := range families {
		for _, name := range f.sets() {
			if there, err := t.sets.exists(name); err == nil && there {
				return true
			}
		}
	}
	return false
}

// Apply brings the chains and sets to what cfg says, and makes them if there are none.
// Each packet meets the old rules of a table or the new. Grants for what is still
// hidden stay with the time that they have left. Done twice it changes nothing.
func (t *Table) Apply(cfg *config.Config, o nft.Options) error {
	hidden := nft.Hides(cfg)
	guarded := slices.Concat(hidden[:]...)
	// A mark from before says nothing of these rules.
	if err := t.sets.destroy(mark); err != nil {
		return because("the set "+mark+" could not be removed", err)
	}
	for _, f := range families {
		if err := t.apply(cfg, o, f, guarded); err != nil {
			return because("the chains "+chain+" of "+f.restore+" could not be brought to what the config says; the tables that were not reached keep the rules before", err)
		}
	}
	t.guarded, t.live = guarded, o.Live != nil
	return nil
}

func (t *Table) apply(cfg *config.Config, o nft.Options, f family, guarded []config.PortRange) error {
	keep := func(x entry) bool { return config.HasPort(guarded, x.proto, x.port) }
	if err := t.sets.settle(f.open(), f, cfg.Daemon.MaxGrants, keep); err != nil {
		return err
	}
	if err := t.sets.settle(f.cut(), f, max(cfg.Daemon.MaxGrants, nft.MinCuts), keep); err != nil {
		return err
	}
	if err := t.fill(f, o); err != nil {
		return err
	}
	host, err := f.read()
	if err != nil {
		return err
	}
	l := layout{family: f, cfg: cfg, live: o.Live != nil, trial: o.HiddenFor > 0, autoDrops: host.dropsUnheard()}
	if err := f.load(l.text(host)); err != nil {
		return err
	}
	host, err = f.read()
	t.loaded[f.number] = host.ours()
	return err
}

// fill makes the sets that only Apply fills. They are there also where no rule names
// them, so that Down finds all by their names.
func (t *Table) fill(f family, o nft.Options) error {
	var live, trial []entry
	for _, c := range o.Live {
		remote, local := plain(c.Remote.Addr()), plain(c.Local.Addr())
		if remote.Is4() == (f.number == unix.NFPROTO_IPV4) {
			live = append(live, entry{addr: remote, addr2: local, proto: sequence.TCP, port: c.Remote.Port()})
		}
	}
	if o.HiddenFor > 0 {
		for _, half := range f.halves {
			p := netip.MustParsePrefix(half)
			trial = append(trial, entry{addr: p.Addr(), bits: uint8(p.Bits()), seconds: seconds(o.HiddenFor)})
		}
	}
	return errors.Join(
		t.sets.refill(f.live(), ipPortIP, f, max(len(live), 1), live),
		t.sets.refill(f.trial(), network, f, 2, trial))
}

// Stale reports whether listeners have changed since the last Apply, so that its
// Options.Live does not fit them any more and ACK probes could be answered.
func (t *Table) Stale(cfg *config.Config) (bool, error) {
	bound, err := nft.Bound(cfg)
	return err == nil && t.guarded != nil && bound != t.live, err
}

// Down removes our chains and sets, and nothing else: what was hidden is reachable
// again. That there are none is no error.
func (t *Table) Down() error {
	var errs []error
	for _, f := range families {
		errs = append(errs, t.down(f))
	}
	return errors.Join(errs...)
}

func (t *Table) down(f family) error {
	host, err := f.read()
	if err != nil {
		return err
	}
	if text := host.removal(); text != "" {
		if err := f.load(text); err != nil {
			return fmt.Errorf("the chains %s could not be removed, so ports stay hidden: %w", chain, err)
		}
	}
	for _, name := range f.sets() {
		err := errors.Join(t.sets.destroy(name), t.sets.destroy(name+"-new"))
		if errors.Is(err, errBusy) {
			return fmt.Errorf("ports may stay hidden, by rules that %s does not list and that name the set %s: iptables has two kinds of tables, so look with iptables-legacy-save and iptables-nft-save; with the other kind chosen (update-alternatives --config iptables, and ip6tables) 'sallyport down' removes them", f.save, name)
		}
		if err != nil {
			return because("the set "+name+" could not be removed", err)
		}
	}
	return nil
}

// set says where an element belongs.
func set(e nft.Element) string {
	f := families[0]
	if plain(e.Addr).Is6() {
		f = families[1]
	}
	if e.Cut {
		return f.cut()
	}
	return f.open()
}

func check(e nft.Element) error {
	switch {
	case !e.Addr.IsValid(), e.On.IsValid(), e.Bits > 0, e.Once:
		return fmt.Errorf("a grant for %v was refused: with iptables it is for one address, this host, and until its time", e.Addr)
	case e.Proto != sequence.TCP && e.Proto != sequence.UDP, e.Port == 0:
		return fmt.Errorf("a grant for %v was refused: %v has no ports", e.Addr, e.Proto)
	case e.TTL < time.Millisecond:
		return fmt.Errorf("a grant for %v was refused: it would last %v", e.Addr, e.TTL)
	case len(e.By) > nft.MaxBy:
		return fmt.Errorf("a grant for %v was refused: the name of who asked has %d bytes, more than %d", e.Addr, len(e.By), nft.MaxBy)
	}
	return nil
}

// Grant opens: all elements or, with an error, none that was not open before. An
// element that is there gets the new time and name. Times are whole seconds, rounded
// up. A full set refuses with nft.ErrFull, and evicts nothing.
func (t *Table) Grant(elements []nft.Element) error {
	var fresh []nft.Element
	for _, e := range elements {
		if err := check(e); err != nil {
			return err
		}
	}
	for _, e := range elements {
		err := t.sets.change(cmdAdd, netlink.Excl, set(e), spell(e))
		if err == nil {
			fresh = append(fresh, e)
			continue
		}
		if errors.Is(err, errExist) {
			err = t.sets.change(cmdAdd, 0, set(e), spell(e))
		}
		if err != nil {
			return because("the port was not opened", errors.Join(err, t.Revoke(fresh)))
		}
	}
	return nil
}

// Revoke ends grants now, for new connections; those that are established live on.
// Ones that are not there are no error.
func (t *Table) Revoke(elements []nft.Element) error {
	var errs []error
	for _, e := range elements {
		if err := t.sets.change(cmdDel, netlink.Excl, set(e), spell(e)); err != nil && !errors.Is(err, errExist) {
			errs = append(errs, err)
		}
	}
	return because("the port was not closed; its grant ends by its own time", errors.Join(errs...))
}

// Holds asks the kernel for one element, by all but its TTL and By.
func (t *Table) Holds(e nft.Element) (bool, error) {
	err := t.sets.change(cmdTest, 0, set(e), spell(e))
	if errors.Is(err, errExist) || errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	return err == nil, because("a grant could not be looked up", err)
}

// Grants lists what the kernel holds, also what has Cut; each TTL is what is left.
// Without our sets there are none.
func (t *Table) Grants() ([]nft.Element, error) {
	var out []nft.Element
	for _, f := range families {
		for _, name := range []string{f.open(), f.cut()} {
			l, err := t.sets.list(name)
			if errors.Is(err, unix.ENOENT) {
				continue
			}
			if err != nil {
				return nil, because("the grants could not be listed", err)
			}
			for _, x := range l.entries {
				out = append(out, nft.Element{Cut: name == f.cut(), Addr: x.addr, Proto: x.proto, Port: x.port,
					TTL: time.Duration(x.seconds) * time.Second, By: x.comment})
			}
		}
	}
	return out, nil
}

// mark is an empty set that says: the administrator took the rules down. A daemon that
// finds no rules but this set does not put them back.
const mark = "sallyport-down"

// Mark leaves the mark for the daemon that serves.
func (t *Table) Mark() error {
	if err := t.sets.make(mark, ipPort, families[0], 1); err != nil && !errors.Is(err, unix.EEXIST) {
		return because("the daemon can't be told", err)
	}
	return nil
}

// Marked reports whether somebody called Mark, and takes the mark away.
func (t *Table) Marked() bool {
	there, err := t.sets.exists(mark)
	return err == nil && there && t.sets.destroy(mark) == nil
}
