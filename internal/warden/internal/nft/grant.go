package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/sallyport/sallyport/internal/sequence"
	"golang.org/x/sys/unix"
)

const (
	// Batch is how many elements take effect at once, all or none. A refresh sends
	// each three times, and past about 5,000 elements a batch outgrows the socket's
	// buffer.
	Batch = 1500

	// MaxBy is the longest Element.By in bytes: the kernel keeps 256 bytes of
	// user data per element (NFT_USERDATA_MAXLEN).
	MaxBy = 128

	// gcWait is a little more than the second after which the kernel clears
	// ended elements out of a set; until then they take up room. fullPause keeps
	// a set that stays full from costing every knock that second.
	gcWait    = 1200 * time.Millisecond
	fullPause = 10 * time.Second
)

// Element is one grant as the kernel keeps it: an address may reach one port
// until the kernel's own clock ends it. With Cut it is no grant: until then the
// address is a stranger to that port also in the connections that it has.
// Where both are there, the grant counts. With Once the first connection that it
// lets in ends it too.
type Element struct {
	Cut   bool
	Once  bool
	Bits  uint8          // length of the mask, with Addr its lowest address; 0: Addr alone
	Addr  netip.Addr     // who
	On    netip.Addr     // forwarded destination, of Addr's family; the zero Addr: this host
	Proto sequence.Proto // TCP or UDP
	Port  uint16
	TTL   time.Duration // how long from now, at least 1 ms
	By    string        // who asked, at most MaxBy bytes, no NUL
}

// target is what two elements have in common when one replaces the other.
type target struct {
	cut      bool
	once     bool
	bits     uint8
	addr, on netip.Addr
	proto    sequence.Proto
	port     uint16
}

func (e Element) target() target {
	return target{e.Cut, e.Once, e.Bits, plain(e.Addr), plain(e.On), e.Proto, e.Port}
}

// plain is the address as it stands in a packet: no zone, never 4-in-6.
func plain(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }

// kind says which set holds such grants.
func (t target) kind() kind {
	return kind{family: family(t.addr), cut: t.cut, once: t.once, forward: t.on.IsValid(), bits: t.bits}
}

// key gives the element's key as the kernel keeps it.
func (t target) key() []byte {
	key := make([]byte, 0, 40)
	key = append(key, t.addr.AsSlice()...)
	key = append(key, t.on.AsSlice()...)
	return appendPort(key, t.proto, t.port)
}

// appendPort appends proto . port; each part of a concatenation is padded to
// four bytes.
func appendPort(key []byte, proto sequence.Proto, port uint16) []byte {
	return append(key, byte(proto), 0, 0, 0, byte(port>>8), byte(port), 0, 0)
}

// target is the inverse of target.kind and key.
func (k kind) target(key []byte) (target, bool) {
	t := target{cut: k.cut, once: k.once, bits: k.bits}
	n := k.family.addrBytes()
	want := n + 8
	if k.forward {
		want += n
	}
	if len(key) != want {
		return t, false
	}
	t.addr, _ = netip.AddrFromSlice(key[:n])
	if want > n+8 {
		t.on, _ = netip.AddrFromSlice(key[n : 2*n])
	}
	t.proto = sequence.Proto(key[want-8])
	t.port = binary.BigEndian.Uint16(key[want-4:])
	return t, true
}

// check refuses what the kernel would take for something else: above all a
// time of 0, which to nftables means for ever.
func (e Element) check() error {
	switch {
	case !e.Addr.IsValid(), e.On.IsValid() && plain(e.On).Is4() != plain(e.Addr).Is4():
		return fmt.Errorf("a grant for %v on %v was refused: it needs an address, and a destination of the same family", e.Addr, e.On)
	case e.Proto != sequence.TCP && e.Proto != sequence.UDP:
		return fmt.Errorf("a grant for %v was refused: %v has no ports", e.Addr, e.Proto)
	case !e.masked():
		return fmt.Errorf("a grant for %v/%d was refused: that is no network by its lowest address", e.Addr, e.Bits)
	case e.Cut && (e.Once || e.Bits > 0):
		return fmt.Errorf("the cut of %v was refused: it is for one address and until its time", e.Addr)
	case e.TTL < time.Millisecond:
		return fmt.Errorf("a grant for %v was refused: it would last %v, and the kernel takes less than 1ms to mean for ever", e.Addr, e.TTL)
	case len(e.By) > MaxBy:
		return fmt.Errorf("a grant for %v was refused: it was asked for by a name of %d bytes, and %d is the most", e.Addr, len(e.By), MaxBy)
	}
	return nil
}

// masked reports whether the address is the lowest of its network, so that the
// masked address of a packet finds it.
func (e Element) masked() bool {
	if e.Bits == 0 {
		return true
	}
	p, err := plain(e.Addr).Prefix(int(e.Bits))
	return err == nil && p.Addr() == plain(e.Addr) && !p.IsSingleIP()
}

// distinct drops repeats: of two elements for one target the longer stays.
func distinct(elements []Element) []Element {
	at := make(map[target]int, len(elements))
	var out []Element
	for _, e := range elements {
		if i, ok := at[e.target()]; !ok {
			at[e.target()] = len(out)
			out = append(out, e)
		} else if e.TTL > out[i].TTL {
			out[i] = e
		}
	}
	return out
}

// Grant opens ports, or sets anew the time of those that are open: TTL is taken
// as given, so the caller asks for the later of the old end and the new. Up to
// 1,500 elements take effect at once. In a full set a refresh still works and a
// new grant gets ErrFull. What is open stays open, but for one case that its
// error names: in a full set another program took the room of a refresh.
func (t *Table) Grant(elements []Element) error {
	for _, e := range elements {
		if err := e.check(); err != nil {
			return err
		}
	}
	for batch := range slices.Chunk(distinct(elements), Batch) {
		if err := t.grant(batch); err != nil {
			return because("the port was not opened", err)
		}
	}
	return nil
}

// grant refreshes by add, delete, add: the first add makes sure that there is
// something to delete, because a delete of an absent element fails the whole
// batch, and an add alone leaves an element's old time before Linux 6.12.
func (t *Table) grant(batch []Element) error {
	t.add(batch)
	t.remove(batch)
	t.add(batch)
	err := t.conn.Flush()
	if !errors.Is(err, unix.ENFILE) {
		return err
	}
	return t.grantFull(batch)
}

// grantFull is for a set without room, where even a refresh fails: within one
// batch the deleted element still counts. So what is open is deleted and added
// in two batches. For a moment it is closed to new connections, and if another
// program fills the room meanwhile it is lost; this process has no second
// writer. What is new is tried once more after the kernel had time to clear
// ended elements away.
func (t *Table) grantFull(batch []Element) error {
	var open, fresh []Element
	for _, e := range batch {
		if held, err := t.Holds(e); held && err == nil {
			open = append(open, e)
		} else {
			fresh = append(fresh, e)
		}
	}
	t.remove(open)
	if err := t.conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	t.add(open)
	if err := t.conn.Flush(); err != nil {
		return fmt.Errorf("%d grants that were open are lost, because another program changed the full set just then; knock again: %w", len(open), err)
	}
	t.add(fresh)
	err := t.conn.Flush()
	if !errors.Is(err, unix.ENFILE) || time.Since(t.full) < fullPause {
		return err
	}
	time.Sleep(gcWait)
	t.full = time.Now()
	t.add(fresh)
	return t.conn.Flush()
}

// Holds asks the kernel for one element, by all but its TTL and By, without listing
// the set.
func (t *Table) Holds(e Element) (bool, error) {
	found, err := t.conn.FindSetElements(e.target().kind().grantSet(0), []nftables.SetElement{{Key: e.target().key()}})
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	return len(found) == 1, because("a grant could not be looked up", err)
}

// Revoke ends grants now, for new connections; those that are established live
// on. Ones that are not there are no error.
func (t *Table) Revoke(elements []Element) error {
	for batch := range slices.Chunk(distinct(elements), Batch) {
		t.remove(batch)
		err := t.conn.Flush()
		if errors.Is(err, unix.ENOENT) {
			err = t.revokeEach(batch)
		}
		if err != nil {
			return because("the port was not closed; its grant ends by its own time", err)
		}
	}
	return nil
}

// revokeEach ends each grant in a batch of its own, so that one that is gone
// already doesn't keep the others open.
func (t *Table) revokeEach(elements []Element) error {
	var errs []error
	for _, e := range elements {
		t.remove([]Element{e})
		if err := t.conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Grants lists what the kernel holds, also what has Cut; each TTL is what is
// left. Without our table there are none.
func (t *Table) Grants() ([]Element, error) {
	sets, err := t.sets()
	if err != nil {
		return nil, because("the grants could not be listed", err)
	}
	var out []Element
	for _, s := range sets {
		k, ok := kindOf(s.Name)
		if !ok {
			continue
		}
		list, err := t.list(k)
		if err != nil {
			return nil, because("the grants could not be listed", err)
		}
		out = append(out, list...)
	}
	return out, nil
}

// add and remove put one message for each set into the next batch.
func (t *Table) add(elements []Element) {
	for k, list := range bySet(elements) {
		t.conn.SetAddElements(k.grantSet(0), list)
	}
}

func (t *Table) remove(elements []Element) {
	for k, list := range bySet(elements) {
		t.conn.SetDeleteElements(k.grantSet(0), list)
	}
}

func (e Element) element() nftables.SetElement {
	return nftables.SetElement{Key: e.target().key(), Timeout: e.TTL, Comment: e.By}
}

func bySet(elements []Element) map[kind][]nftables.SetElement {
	out := make(map[kind][]nftables.SetElement, 4)
	for _, e := range elements {
		k := e.target().kind()
		out[k] = append(out[k], e.element())
	}
	return out
}
