package nft

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"github.com/mdlayher/netlink"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// own are the netlink ports (netlink(7), nl_pid) of this process's tables. By
// them Follow knows what we did ourselves. The process number that the kernel
// tells would not do: it is the thread's, as the first PID namespace counts.
// One stays in when its table is closed, for the kernel names us by it again.
var own sync.Map // uint32 → nothing

// Follow tells when our table is removed or emptied by another than this
// process's tables that are open by now: by the name of the process that did
// it ("nft", say; "" where the kernel could not tell us, and then all may still
// be there). Debian's nftables.service flushes the whole ruleset whenever it
// starts, and ours goes with it; 'nft flush table' leaves chains without rules,
// which hide nothing. Another process that replaces what the table holds, as
// 'sallyport hide' does, is told of too. The channel closes when ctx ends, or
// when the kernel gives no more news.
func Follow(ctx context.Context) (<-chan string, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{Groups: 1 << (unix.NFNLGRP_NFTABLES - 1)})
	if err != nil {
		return nil, because("changes of the firewall can't be followed", err)
	}
	// Others' grants are changes too; a burst of them must not cost us the news.
	if err := errors.Join(conn.SetBPF(notOwn()), conn.SetReadBuffer(1<<20)); err != nil {
		conn.Close()
		return nil, fmt.Errorf("changes of the firewall can't be followed: %w", err)
	}
	context.AfterFunc(ctx, func() { conn.Close() })
	removed := make(chan string)
	go func() {
		defer close(removed)
		for gone := false; ; {
			messages, err := conn.Receive()
			if err != nil && !errors.Is(err, unix.ENOBUFS) {
				return // mostly: ctx has ended
			}
			by := ""
			if err == nil {
				if by, gone = whoRemoved(messages, gone); gone || by == "" {
					continue
				}
			}
			select {
			case removed <- by:
			case <-ctx.Done():
				return
			}
		}
	}()
	return removed, nil
}

// notOwn has the kernel drop what we did ourselves, so that not even a hundred
// thousand grants at once can crowd out the news. All messages that come
// together are from one sender, whose port stands in the first one's header.
func notOwn() []bpf.RawInstruction {
	const nlmsgPid = 12 // offset in struct nlmsghdr
	program := []bpf.Instruction{bpf.LoadAbsolute{Off: nlmsgPid, Size: 4}}
	own.Range(func(port, _ any) bool {
		// The program reads in network order what is in the machine's.
		swapped := binary.BigEndian.Uint32(binary.NativeEndian.AppendUint32(nil, port.(uint32)))
		program = append(program, bpf.JumpIf{Cond: bpf.JumpEqual, Val: swapped, SkipFalse: 1}, bpf.RetConstant{Val: 0})
		return true
	})
	raw, err := bpf.Assemble(append(program, bpf.RetConstant{Val: 1<<32 - 1}))
	if err != nil {
		panic(err) // no instruction above depends on anything from outside
	}
	return raw
}

// whoRemoved reads changes. The name of who made a batch ends it, so it comes
// after the news; gone says that the news came and the name is still to come.
func whoRemoved(messages []netlink.Message, gone bool) (by string, still bool) {
	for _, m := range messages {
		if m.Header.Type != change(unix.NFT_MSG_NEWGEN) {
			gone = gone || empties(m)
			continue
		}
		if gone {
			by = attribute(m.Data, unix.NFTA_GEN_PROC_NAME)
		}
		gone = false
	}
	return by, gone
}

// empties reports whether a change takes our table away or something out of it
// that hides ports. A grant that somebody ends does not.
func empties(m netlink.Message) bool {
	if len(m.Data) == 0 || m.Data[0] != unix.NFPROTO_INET {
		return false
	}
	switch m.Header.Type {
	case change(unix.NFT_MSG_DELTABLE), change(unix.NFT_MSG_DELCHAIN), change(unix.NFT_MSG_DELRULE), change(unix.NFT_MSG_DELSET):
	case change(unix.NFT_MSG_DELSETELEM):
		if _, grant := kindOf(attribute(m.Data, unix.NFTA_SET_ELEM_LIST_SET)); grant {
			return false
		}
	default:
		return false
	}
	return attribute(m.Data, tableName) == TableName
}

// tableName is the first attribute of all these changes: NFTA_TABLE_NAME,
// NFTA_CHAIN_TABLE, NFTA_RULE_TABLE, NFTA_SET_TABLE and
// NFTA_SET_ELEM_LIST_TABLE are the same number.
const tableName = unix.NFTA_TABLE_NAME

func change(kind int) netlink.HeaderType {
	return netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | kind)
}

// nfgenmsg is the size in bytes of the struct that stands before the attributes.
const nfgenmsg = 4

// attribute gives a text attribute of a message, or "".
func attribute(data []byte, kind uint16) string {
	if len(data) < nfgenmsg {
		return ""
	}
	d, err := netlink.NewAttributeDecoder(data[nfgenmsg:])
	if err != nil {
		return ""
	}
	for d.Next() {
		if d.Type() == kind {
			return d.String()
		}
	}
	return ""
}
