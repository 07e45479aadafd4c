package sallyport

import (
	"fmt"
	"net"
	"net/netip"
	"syscall"
)

// path is where a packet comes from, where it goes, and by which way out.
type path struct {
	local, remote netip.Addr
	device        string // the network interface; empty: as the routing table says
}

// checkDevice says why nothing can be sent through a network interface.
func checkDevice(device string) error {
	if device == "" {
		return nil
	}
	if err := noDevices(device); err != nil {
		return err
	}
	if _, err := net.InterfaceByName(device); err != nil {
		return fmt.Errorf("there is no network interface %.40q on this host to knock through: name one that there is", device)
	}
	return nil
}

// through is the Control of a net.Dialer: it runs before the socket is bound and
// connected, which is when the way out is chosen.
func through(device string) func(network, address string, conn syscall.RawConn) error {
	if device == "" {
		return nil
	}
	return func(_, _ string, conn syscall.RawConn) error {
		var err error
		if broken := conn.Control(func(fd uintptr) { err = bindDevice(int(fd), device) }); broken != nil {
			return broken
		}
		return err
	}
}

// scoped puts the zone on a link-local address that has none: the interface says
// on which link it is.
func scoped(remote netip.Addr, device string) netip.Addr {
	if device != "" && remote.Is6() && remote.IsLinkLocalUnicast() && remote.Zone() == "" {
		return remote.WithZone(device)
	}
	return remote
}
