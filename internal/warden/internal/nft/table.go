// Package nft keeps the one nftables table that hides ports: table inet
// sallyport. It speaks netlink, starts no program, and touches no rule that it
// did not make. The kernel ends every grant by itself, so nothing here needs to
// run for a port to close.
package nft

import (
	"errors"
	"fmt"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// TableName is the name of our table, in the family inet.
const TableName = "sallyport"

// The ways in which the kernel can refuse. Errors of this package wrap one of
// them where it fits.
var (
	ErrPermission = errors.New("the kernel refuses us its firewall: CAP_NET_ADMIN is missing; run as root or give the service that capability")
	ErrAbsent     = errors.New("this kernel has no nftables: load the module nf_tables, or use a kernel built with CONFIG_NF_TABLES and CONFIG_NF_TABLES_INET")
	ErrFull       = errors.New("no room for another grant: those that are open stay open; wait until one ends, or raise max_grants")
)

// Table is our table in one network namespace. It is not safe for use by two
// goroutines at once.
type Table struct {
	conn *nftables.Conn
	dump *netlink.Conn // lists the sets of grants
	full time.Time     // when a full set was last waited for

	// cover is what the last Apply hid, nil before the first: no grant is for
	// anything else. live says that it was with Options.Live.
	cover cover
	live  bool
}

// inet names our table and nothing more: no flags, and above all not owner,
// which would make the kernel remove the table when the process dies.
func inet() *nftables.Table {
	return &nftables.Table{Name: TableName, Family: nftables.TableFamilyINet}
}

// Open connects to nftables in the caller's current network namespace and asks
// it one question, so that a kernel that will refuse does so here. Its errors
// wrap ErrPermission or ErrAbsent where one of them is the reason.
func Open() (*Table, error) {
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return nil, because("nftables could not be opened", err)
	}
	port, err := conn.GetPortID()
	if err != nil {
		return nil, because("nftables could not be opened", errors.Join(err, conn.CloseLasting()))
	}
	own.Store(port, nil)
	dump, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{MessageBufferSize: dumpBytes})
	if err != nil {
		return nil, because("nftables could not be opened", errors.Join(err, conn.CloseLasting()))
	}
	t := &Table{conn: conn, dump: dump}
	if _, err := conn.ListTablesOfFamily(nftables.TableFamilyINet); err != nil {
		t.Close()
		if errors.Is(err, unix.EINVAL) { // no nf_tables behind nfnetlink
			err = fmt.Errorf("%w (%w)", ErrAbsent, err)
		}
		return nil, because("nftables did not answer", err)
	}
	return t, nil
}

// Close lets go of the connection. The table and its grants stay.
func (t *Table) Close() error { return errors.Join(t.dump.Close(), t.conn.CloseLasting()) }

// Exists reports whether the kernel has our table.
func (t *Table) Exists() (bool, error) {
	tables, err := t.conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return false, because("the firewall's tables could not be listed", err)
	}
	for _, table := range tables {
		if table.Name == TableName {
			return true, nil
		}
	}
	return false, nil
}

// Down removes our table and all its grants, and nothing else: what was hidden
// is reachable again. That there is none is no error.
func (t *Table) Down() error {
	t.conn.DelTable(inet())
	err := t.conn.Flush()
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return because("the table inet sallyport could not be removed, so ports stay hidden", err)
}

// because says what failed and adds the reason in words where the kernel's
// error number has one. The errors for a missing nf_tables differ by what is
// missing: the netlink family, the family inet, or the batch's receiver.
func because(what string, err error) error {
	var reason error
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		reason = ErrPermission
	case errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EAFNOSUPPORT), errors.Is(err, unix.EOPNOTSUPP):
		reason = ErrAbsent
	case errors.Is(err, unix.ENFILE):
		reason = ErrFull
	default:
		return fmt.Errorf("%s: %w", what, err)
	}
	return fmt.Errorf("%s: %w (%w)", what, reason, err)
}
