package nft

import (
	"encoding/binary"
	"errors"
	"time"

	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	// dumpBytes is the room for one message of a listing. For each message the
	// kernel walks the whole set from its beginning, so large ones are what
	// makes a full set quick to list. It sizes them by the reader's buffer, up
	// to 32 KiB (netlink_recvmsg); the usual ones have 4 KiB.
	dumpBytes = 32 << 10

	// dumpTries bounds how often a listing begins again because the table
	// changed meanwhile: the walk could have passed over an element.
	dumpTries = 5
)

// list gives the elements of one set of grants; each TTL is what is left. It
// reads by itself: the library asks with small messages, and 131,072 elements
// would take seconds.
func (t *Table) list(set kind) ([]Element, error) {
	names, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_SET_ELEM_LIST_TABLE, Data: []byte(TableName + "\x00")},
		{Type: unix.NFTA_SET_ELEM_LIST_SET, Data: []byte(set.name() + "\x00")},
	})
	if err != nil {
		return nil, err
	}
	ask := netlink.Message{
		Header: netlink.Header{Type: change(unix.NFT_MSG_GETSETELEM), Flags: netlink.Request | netlink.Dump},
		Data:   append([]byte{unix.NFPROTO_INET, unix.NFNETLINK_V0, 0, 0}, names...),
	}
	for range dumpTries {
		messages, err := t.dump.Execute(ask)
		if err != nil {
			return nil, err
		}
		whole := true
		var out []Element
		for _, m := range messages {
			whole = whole && m.Header.Flags&netlink.DumpInterrupted == 0
			if out, err = appendElements(out, set, m.Data); err != nil {
				return nil, err
			}
		}
		if whole {
			return out, nil
		}
	}
	return nil, errors.New("the table changes all the time")
}

// appendElements reads one message of a listing: attributes in a list in an
// attribute. What has another key than a grant of that set is left out.
func appendElements(out []Element, set kind, message []byte) ([]Element, error) {
	d, err := netlink.NewAttributeDecoder(message[min(len(message), nfgenmsg):])
	if err != nil {
		return out, err
	}
	d.ByteOrder = binary.BigEndian
	for d.Next() {
		if d.Type() != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
			continue
		}
		d.Nested(func(list *netlink.AttributeDecoder) error {
			for list.Next() {
				var e Element
				var ok bool
				list.Nested(func(a *netlink.AttributeDecoder) error {
					e, ok = decodeElement(a, set)
					return nil
				})
				if ok {
					out = append(out, e)
				}
			}
			return nil
		})
	}
	return out, d.Err()
}

// decodeElement reads one element, and reports whether it is a grant.
func decodeElement(a *netlink.AttributeDecoder, set kind) (e Element, ok bool) {
	for a.Next() {
		switch a.Type() {
		case unix.NFTA_SET_ELEM_KEY:
			a.Nested(func(key *netlink.AttributeDecoder) error {
				for key.Next() {
					var g target
					g, ok = set.target(key.Bytes())
					e.Cut, e.Once, e.Bits, e.Addr, e.On, e.Proto, e.Port = g.cut, g.once, g.bits, g.addr, g.on, g.proto, g.port
				}
				return nil
			})
		case unix.NFTA_SET_ELEM_EXPIRATION:
			e.TTL = time.Duration(a.Uint64()) * time.Millisecond
		case unix.NFTA_SET_ELEM_USERDATA:
			e.By, _ = userdata.GetString(a.Bytes(), userdata.NFTNL_UDATA_SET_ELEM_COMMENT)
		}
	}
	return e, ok
}
