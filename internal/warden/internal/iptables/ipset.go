package iptables

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/sallyport/sallyport/internal/warden/internal/nft"
)

// The netlink language of ipset, from linux/netfilter/ipset/ip_set.h.
const (
	subsystem = 6 // NFNL_SUBSYS_IPSET
	protocol  = 6 // IPSET_PROTOCOL_MIN, which every kernel since 2.6.39 speaks

	cmdCreate  = 2
	cmdDestroy = 3
	cmdSwap    = 6
	cmdList    = 7
	cmdAdd     = 9
	cmdDel     = 10
	cmdTest    = 11
	cmdHeader  = 12

	attrProtocol = 1
	attrName     = 2
	attrType     = 3 // of a swap: the other name
	attrRevision = 4
	attrFamily   = 5
	attrData     = 7
	attrADT      = 8

	attrIP      = 1
	attrCIDR    = 3
	attrPort    = 4
	attrTimeout = 6
	attrProto   = 7
	attrFlags   = 8
	attrMaxElem = 19
	attrIP2     = 20
	attrComment = 26

	attrIPv4 = 1
	attrIPv6 = 2

	flagComment = 1 << 4

	// The kernel's own error numbers of ipset begin at IPSET_ERR_PRIVATE.
	errPrivate = 4096
	errBusy    = syscall.Errno(errPrivate + 4)   // IPSET_ERR_BUSY: a rule names the set
	errExist   = syscall.Errno(errPrivate + 7)   // IPSET_ERR_EXIST: an element is there already, or is not
	errFull    = syscall.Errno(errPrivate + 256) // IPSET_ERR_HASH_FULL, and IPSET_ERR_TYPE_SPECIFIC
)

const nfgenmsg = 4 // size in bytes of the struct before the attributes

// maxSeconds is the longest time that ipset takes: UINT_MAX / 1000 / 2.
const maxSeconds = 2147483

// sets speaks with the kernel about ipsets.
type sets struct{ conn *netlink.Conn }

func openSets() (*sets, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, err
	}
	return &sets{conn}, nil
}

// ask sends one request that names a set.
func (s *sets) ask(cmd int, flags netlink.HeaderFlags, name string, fill func(*netlink.AttributeEncoder)) ([]netlink.Message, error) {
	e := netlink.NewAttributeEncoder()
	e.ByteOrder = binary.BigEndian
	e.Uint8(attrProtocol, protocol)
	e.String(attrName, name)
	if fill != nil {
		fill(e)
	}
	attributes, err := e.Encode()
	if err != nil {
		return nil, err
	}
	m := netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(subsystem<<8 | cmd), Flags: netlink.Request | flags},
		Data:   append([]byte{unix.NFPROTO_IPV4, unix.NFNETLINK_V0, 0, 0}, attributes...),
	}
	return s.conn.Execute(m)
}

// setType is a kind of set, and the revision of it that has what we need.
type setType struct {
	name     string
	revision uint8
}

// The types that we use. Their revisions with comments are in Linux since 3.17.
var (
	ipPort   = setType{"hash:ip,port", 3}
	ipPortIP = setType{"hash:ip,port,ip", 3}
	network  = setType{"hash:net", 4}
)

// make makes a set whose elements have times and comments. That one is there by that
// name is unix.EEXIST.
func (s *sets) make(name string, t setType, f family, size int) error {
	_, err := s.ask(cmdCreate, netlink.Acknowledge|netlink.Excl|netlink.Create, name, func(e *netlink.AttributeEncoder) {
		e.String(attrType, t.name)
		e.Uint8(attrRevision, t.revision)
		e.Uint8(attrFamily, f.number)
		e.Nested(attrData, func(d *netlink.AttributeEncoder) error {
			d.ByteOrder = binary.BigEndian
			d.Uint32(attrMaxElem|unix.NLA_F_NET_BYTEORDER, uint32(size))
			d.Uint32(attrTimeout|unix.NLA_F_NET_BYTEORDER, 0)
			d.Uint32(attrFlags|unix.NLA_F_NET_BYTEORDER, flagComment)
			return nil
		})
	})
	return err
}

// destroy removes a set that no rule names. That there is none is no error.
func (s *sets) destroy(name string) error {
	_, err := s.ask(cmdDestroy, netlink.Acknowledge, name, nil)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// swap exchanges what two sets hold, in one moment.
func (s *sets) swap(a, b string) error {
	_, err := s.ask(cmdSwap, netlink.Acknowledge, a, func(e *netlink.AttributeEncoder) { e.String(attrType, b) })
	return err
}

func (s *sets) exists(name string) (bool, error) {
	_, err := s.ask(cmdHeader, 0, name, nil) // an acknowledgement would be a second answer
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	return err == nil, err
}

// entry is an element of a set; what a type of set has no place for is left zero.
type entry struct {
	addr, addr2 netip.Addr
	bits        uint8
	proto       sequence.Proto
	port        uint16
	seconds     uint32 // 0: for ever
	comment     string
}

// change adds, deletes or looks for an element.
func (s *sets) change(cmd int, flags netlink.HeaderFlags, set string, x entry) error {
	_, err := s.ask(cmd, netlink.Acknowledge|flags, set, func(e *netlink.AttributeEncoder) {
		e.Nested(attrData, func(d *netlink.AttributeEncoder) error {
			d.ByteOrder = binary.BigEndian
			address(d, attrIP, x.addr)
			if x.addr2.IsValid() {
				address(d, attrIP2, x.addr2)
			}
			if x.bits > 0 {
				d.Uint8(attrCIDR, x.bits)
			}
			if x.port > 0 {
				d.Uint16(attrPort|unix.NLA_F_NET_BYTEORDER, x.port)
				d.Uint8(attrProto, uint8(x.proto))
			}
			if cmd == cmdAdd {
				d.Uint32(attrTimeout|unix.NLA_F_NET_BYTEORDER, x.seconds)
				d.String(attrComment, x.comment)
			}
			return nil
		})
	})
	return err
}

func address(d *netlink.AttributeEncoder, as uint16, a netip.Addr) {
	d.Nested(as, func(ip *netlink.AttributeEncoder) error {
		kind := uint16(attrIPv6)
		if a.Is4() {
			kind = attrIPv4
		}
		ip.Bytes(kind|unix.NLA_F_NET_BYTEORDER, a.AsSlice())
		return nil
	})
}

// listing is what a set is and holds.
type listing struct {
	size    int
	entries []entry
}

// list gives a set; that there is none is unix.ENOENT.
func (s *sets) list(name string) (listing, error) {
	var l listing
	messages, err := s.ask(cmdList, netlink.Dump, name, nil)
	if err != nil {
		return l, err
	}
	for _, m := range messages {
		d, err := netlink.NewAttributeDecoder(m.Data[min(len(m.Data), nfgenmsg):])
		if err != nil {
			return l, err
		}
		d.ByteOrder = binary.BigEndian
		for d.Next() {
			switch d.Type() {
			case attrData:
				d.Nested(l.header)
			case attrADT:
				d.Nested(l.elements)
			}
		}
		if err := d.Err(); err != nil {
			return l, err
		}
	}
	return l, nil
}

func (l *listing) header(d *netlink.AttributeDecoder) error {
	for d.Next() {
		if d.Type() == attrMaxElem {
			l.size = int(d.Uint32())
		}
	}
	return nil
}

func (l *listing) elements(d *netlink.AttributeDecoder) error {
	for d.Next() {
		var x entry
		d.Nested(x.read)
		if x.addr.IsValid() {
			l.entries = append(l.entries, x)
		}
	}
	return nil
}

func (x *entry) read(d *netlink.AttributeDecoder) error {
	for d.Next() {
		switch d.Type() {
		case attrIP:
			d.Nested(func(ip *netlink.AttributeDecoder) error {
				for ip.Next() {
					x.addr, _ = netip.AddrFromSlice(ip.Bytes())
				}
				return nil
			})
		case attrPort:
			x.port = d.Uint16()
		case attrProto:
			x.proto = sequence.Proto(d.Uint8())
		case attrTimeout:
			x.seconds = d.Uint32()
		case attrComment:
			x.comment = d.String()
		}
	}
	return nil
}

// seconds rounds a time up to what ipset counts in. 0 would mean for ever.
func seconds(d time.Duration) uint32 {
	return uint32(min(max((d+time.Second-1)/time.Second, 1), maxSeconds))
}

// spell is an element of the interface as an entry of its set.
func spell(e nft.Element) entry {
	return entry{addr: plain(e.Addr), proto: e.Proto, port: e.Port, seconds: seconds(e.TTL), comment: e.By}
}

// plain is the address as it stands in a packet: no zone, never 4-in-6.
func plain(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }

// refill makes a set hold exactly the entries, with room for size. Whoever meets it
// finds the old content or the new.
func (s *sets) refill(name string, t setType, f family, size int, entries []entry) error {
	fresh := name + "-new"
	if err := s.destroy(fresh); err != nil {
		return err
	}
	if err := s.make(fresh, t, f, size); err != nil {
		return err
	}
	for _, x := range entries {
		if err := s.change(cmdAdd, 0, fresh, x); err != nil {
			return errors.Join(err, s.destroy(fresh))
		}
	}
	if err := s.make(name, t, f, size); err != nil && !errors.Is(err, unix.EEXIST) {
		return errors.Join(err, s.destroy(fresh))
	}
	if err := s.swap(fresh, name); err != nil {
		return errors.Join(fmt.Errorf("the set %s is of another kind; 'ipset destroy %[1]s' removes it: %w", name, err), s.destroy(fresh))
	}
	return s.destroy(fresh)
}

// settle makes a set of grants fit: those entries stay that keep says, with the time
// that they have left, and there is room for size.
func (s *sets) settle(name string, f family, size int, keep func(entry) bool) error {
	l, err := s.list(name)
	if errors.Is(err, unix.ENOENT) {
		return s.make(name, ipPort, f, size)
	}
	if err != nil {
		return err
	}
	if l.size != size {
		kept := slices.DeleteFunc(l.entries, func(x entry) bool { return !keep(x) })
		return s.refill(name, ipPort, f, size, kept)
	}
	for _, x := range l.entries {
		if keep(x) {
			continue
		}
		if err := s.change(cmdDel, 0, name, x); err != nil && !errors.Is(err, errExist) {
			return err
		}
	}
	return nil
}
