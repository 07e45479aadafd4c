package nft

import (
	"context"
	"errors"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Follow tells when our table is removed, by the name of the process that did
// it ("nft", say; "" where the kernel could not tell us, and then the table may
// still be there). Debian's nftables.service flushes the whole ruleset whenever
// it starts, and ours goes with it. The channel closes when ctx ends.
func Follow(ctx context.Context) (<-chan string, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{Groups: 1 << (unix.NFNLGRP_NFTABLES - 1)})
	if err != nil {
		return nil, because("changes of the firewall can't be followed", err)
	}
	// Every grant is a change too; a burst of them must not cost us the news.
	if err := conn.SetReadBuffer(1 << 20); err != nil {
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
				return // ctx has ended
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

// whoRemoved reads changes. The name of who made a batch ends it, so it comes
// after the news; gone says that the news came and the name is still to come.
func whoRemoved(messages []netlink.Message, gone bool) (by string, still bool) {
	for _, m := range messages {
		switch m.Header.Type {
		case change(unix.NFT_MSG_DELTABLE):
			gone = gone || len(m.Data) > 0 && m.Data[0] == unix.NFPROTO_INET && attribute(m.Data, unix.NFTA_TABLE_NAME) == TableName
		case change(unix.NFT_MSG_NEWGEN):
			if gone {
				by = attribute(m.Data, unix.NFTA_GEN_PROC_NAME)
			}
			gone = false
		}
	}
	return by, gone
}

func change(kind int) netlink.HeaderType {
	return netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | kind)
}

// attribute gives a text attribute of a message, or "".
func attribute(data []byte, kind uint16) string {
	const nfgenmsg = 4 // struct nfgenmsg stands before the attributes
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
