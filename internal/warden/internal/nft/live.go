package nft

import (
	"fmt"
	"net/netip"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/sallyport/sallyport/internal/warden/internal/sockets"
)

// Connection is one TCP connection of this host, by its two ends.
type Connection struct{ Remote, Local netip.AddrPort }

// Live looks at the TCP sockets of the current network namespace and gives what
// Options.Live wants. It is nil where the socket rule is safe, and that is
// everywhere but where a guarded port has a listener bound to one address: to
// the kernel's socket lookup such a listener looks like a connection, so that a
// stranger's ACK probe would be let through to it and answered. There it gives
// the connections to guarded ports that exist now, which may be none, but then
// not nil.
func Live(cfg *config.Config) ([]Connection, error) {
	bound, err := Bound(cfg)
	if err != nil || !bound {
		return nil, err
	}
	list, err := sockets.List(sequence.TCP, sockets.Connections)
	if err != nil {
		return nil, fmt.Errorf("hiding ports now might cut the open connections: %w", err)
	}
	live := []Connection{}
	guarded := hidden(cfg)
	ports := guarded.all()
	for _, s := range list {
		if config.HasPort(ports, sequence.TCP, s.Local.Port()) {
			live = append(live, Connection{s.Remote, s.Local})
		}
	}
	return live, nil
}

// Bound reports whether a guarded port has a listener bound to one address that
// strangers can reach.
func Bound(cfg *config.Config) (bool, error) {
	guarded := hidden(cfg)
	ports := guarded.all()
	listeners, err := sockets.List(sequence.TCP, sockets.Listening)
	if err != nil {
		return false, fmt.Errorf("hiding ports now might cut open connections: %w", err)
	}
	for _, s := range listeners {
		if s.OneAddress() && config.HasPort(ports, sequence.TCP, s.Local.Port()) {
			return true, nil
		}
	}
	return false, nil
}

// Stale reports whether listeners have changed since the last Apply, so that its
// Options.Live does not fit them any more and ACK probes could be answered.
func (t *Table) Stale(cfg *config.Config) (bool, error) {
	bound, err := Bound(cfg)
	return err == nil && t.cover != nil && bound != t.live, err
}
