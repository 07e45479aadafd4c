// Package conntrack follows and lists the connections that the kernel tracks. It
// changes none, and reads what the kernel writes about them, never a packet.
package conntrack

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/internal/sequence"
)

// Flow is a tracked connection as its first packet had it, which is before any
// address was translated.
type Flow struct {
	Src, Dst netip.Addr
	Port     uint16         // of the destination
	Proto    sequence.Proto // TCP or UDP
	// Assured says that both ends take part (IPS_ASSURED): of TCP from the end of the
	// handshake until one end closes, of UDP when packets went both ways for two
	// seconds. Who forges a source address does not get there with TCP.
	Assured bool
	// Ended says that nothing more can be said in it: of TCP that both ends have
	// closed or one has reset, of both that the kernel has forgotten it. With one
	// end closed the other may still be sending.
	Ended bool
}

// Event is news of a Flow, or, where Lost, that news were lost: ask what there is.
type Event struct {
	Flow
	Lost bool
}

// buffer is the room for news in the kernel, in bytes: some 3,000 of them. A burst
// above it is told as Lost.
const buffer = 1 << 20

// Follow tells of connections that begin in earnest, change or end, of those that
// wanted takes; it is called from another goroutine. The channel closes when ctx
// ends, or when the kernel gives no more news. Connections that began before
// may be missing: the kernel (5.19 and later) marks a connection for news when it
// begins, if somebody follows then. It needs CAP_NET_ADMIN and the kernel module
// nf_conntrack_netlink.
func Follow(ctx context.Context, wanted func(Flow) bool) (<-chan Event, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{
		Groups: 1<<(unix.NFNLGRP_CONNTRACK_UPDATE-1) | 1<<(unix.NFNLGRP_CONNTRACK_DESTROY-1),
	})
	if err == nil {
		if err = conn.SetReadBuffer(buffer); err != nil {
			conn.Close()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("connections can't be followed: %w; is the kernel module nf_conntrack_netlink there?", err)
	}
	context.AfterFunc(ctx, func() { conn.Close() })
	events := make(chan Event)
	go follow(ctx, conn, wanted, events)
	return events, nil
}

// follow waits for its reader: what comes meanwhile is in the kernel's buffer,
// which is the bound.
func follow(ctx context.Context, conn *netlink.Conn, wanted func(Flow) bool, events chan<- Event) {
	defer close(events)
	for {
		messages, err := conn.Receive()
		lost := errors.Is(err, unix.ENOBUFS)
		if err != nil && !lost {
			return // mostly: ctx has ended
		}
		if lost && !send(ctx, events, Event{Lost: true}) {
			return
		}
		for _, m := range messages {
			if f, ok := decode(m); ok && wanted(f) && !send(ctx, events, Event{Flow: f}) {
				return
			}
		}
	}
}

func send(ctx context.Context, events chan<- Event, e Event) bool {
	select {
	case events <- e:
		return true
	case <-ctx.Done():
		return false
	}
}

// List calls f for each TCP and UDP connection of either family that the kernel
// tracks in the current network namespace. A busy host has a hundred thousand.
func List(f func(Flow)) error {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return fmt.Errorf("connections can't be listed: %w", err)
	}
	defer conn.Close()
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		messages, err := conn.Execute(netlink.Message{
			Header: netlink.Header{Type: created(nl.IPCTNL_MSG_CT_GET), Flags: netlink.Request | netlink.Dump},
			Data:   []byte{family, unix.NFNETLINK_V0, 0, 0}, // struct nfgenmsg
		})
		if err != nil {
			return fmt.Errorf("connections can't be listed: %w; is the kernel module nf_conntrack_netlink there?", err)
		}
		for _, m := range messages {
			if flow, ok := decode(m); ok {
				f(flow)
			}
		}
	}
	return nil
}

func created(kind int) netlink.HeaderType {
	return netlink.HeaderType(unix.NFNL_SUBSYS_CTNETLINK<<8 | kind)
}

// Numbers of linux/netfilter/nf_conntrack_common.h and nf_conntrack_tcp.h.
const (
	deleted  = 2      // IPCTNL_MSG_CT_DELETE
	assured  = 1 << 2 // IPS_ASSURED
	settled  = 3      // TCP_CONNTRACK_ESTABLISHED
	lastAck  = 6      // TCP_CONNTRACK_LAST_ACK: the second FIN was seen
	timeWait = 7      // TCP_CONNTRACK_TIME_WAIT
	closed   = 8      // TCP_CONNTRACK_CLOSE: a reset was seen
)

// nfgenmsg is the size in bytes of the struct before the attributes, of which the
// first is the family.
const nfgenmsg = 4

// decode reads one message. It declines what is neither TCP nor UDP, and whatever
// it does not understand whole.
func decode(m netlink.Message) (f Flow, ok bool) {
	gone := m.Header.Type == created(deleted)
	if !gone && m.Header.Type != created(nl.IPCTNL_MSG_CT_NEW) || len(m.Data) < nfgenmsg {
		return f, false // an update has the type of what is new
	}
	family, state := m.Data[0], uint8(0)
	d, err := attributes(m.Data[nfgenmsg:])
	if err != nil {
		return f, false
	}
	for d.Next() {
		switch d.Type() {
		case nl.CTA_TUPLE_ORIG:
			d.Nested(func(d *netlink.AttributeDecoder) error { return f.tuple(d, family) })
		case nl.CTA_STATUS:
			f.Assured = d.Uint32()&assured != 0
		case nl.CTA_PROTOINFO:
			d.Nested(func(d *netlink.AttributeDecoder) error { return tcpState(d, &state) })
		}
	}
	valid := f.Src.IsValid() && f.Dst.IsValid() && f.Port != 0 && (f.Proto == sequence.TCP || f.Proto == sequence.UDP)
	over := state == lastAck || state == timeWait || state == closed
	f.Ended = over || gone
	f.Assured = f.Assured && (f.Proto != sequence.TCP || state == settled)
	// What is forgotten two minutes after its end was told of then.
	return f, d.Err() == nil && valid && !(over && gone)
}

func attributes(b []byte) (*netlink.AttributeDecoder, error) {
	d, err := netlink.NewAttributeDecoder(b)
	if err == nil {
		d.ByteOrder = binary.BigEndian
	}
	return d, err
}

// tuple reads CTA_TUPLE_ORIG: addresses and ports of the first packet.
func (f *Flow) tuple(d *netlink.AttributeDecoder, family byte) error {
	for d.Next() {
		switch d.Type() {
		case nl.CTA_TUPLE_IP:
			d.Nested(func(d *netlink.AttributeDecoder) error { return f.addresses(d, family) })
		case nl.CTA_TUPLE_PROTO:
			d.Nested(f.ports)
		}
	}
	return nil
}

var errAddress = errors.New("conntrack: an address of another family or length")

// addresses takes those of the message's own family only.
func (f *Flow) addresses(d *netlink.AttributeDecoder, family byte) error {
	for d.Next() {
		to, six := &f.Src, false
		switch d.Type() {
		case nl.CTA_IP_V4_SRC:
		case nl.CTA_IP_V4_DST:
			to = &f.Dst
		case nl.CTA_IP_V6_SRC:
			six = true
		case nl.CTA_IP_V6_DST:
			to, six = &f.Dst, true
		default:
			continue
		}
		a, ok := netip.AddrFromSlice(d.Bytes())
		if !ok || a.Is6() != six || six != (family == unix.AF_INET6) || a.Is4In6() {
			return errAddress
		}
		*to = a
	}
	return nil
}

func (f *Flow) ports(d *netlink.AttributeDecoder) error {
	for d.Next() {
		switch d.Type() {
		case nl.CTA_PROTO_NUM:
			f.Proto = sequence.Proto(d.Uint8())
		case nl.CTA_PROTO_DST_PORT:
			f.Port = d.Uint16()
		}
	}
	return nil
}

// tcpState reads CTA_PROTOINFO.
func tcpState(d *netlink.AttributeDecoder, state *uint8) error {
	for d.Next() {
		if d.Type() != nl.CTA_PROTOINFO_TCP {
			continue
		}
		d.Nested(func(d *netlink.AttributeDecoder) error {
			for d.Next() {
				if d.Type() == nl.CTA_PROTOINFO_TCP_STATE {
					*state = d.Uint8()
				}
			}
			return nil
		})
	}
	return nil
}
