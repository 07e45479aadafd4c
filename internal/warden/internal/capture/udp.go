//go:build linux

package capture

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// OpenUDP opens a non-blocking UDP socket on the port, of IPv6 and IPv4 at once,
// or of IPv4 where the kernel has no IPv6. It stands in for the packet socket
// where that is not allowed; only what is addressed to this host and has exactly
// an SPA datagram's size arrives. The descriptor closes on exec; its owner
// closes it.
//
// An error wraps the system's errno and says what is missing, or that the port
// is taken.
func OpenUDP(port uint16) (fd int, err error) {
	fd, err = openUDP(unix.AF_INET6, &unix.SockaddrInet6{Port: int(port)})
	if errors.Is(err, unix.EAFNOSUPPORT) {
		fd, err = openUDP(unix.AF_INET, &unix.SockaddrInet4{Port: int(port)})
	}
	if err != nil {
		return -1, fmt.Errorf("the UDP socket for spa knocks on port %d %w", port, err)
	}
	return fd, nil
}

func openUDP(family int, at unix.Sockaddr) (int, error) {
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_UDP)
	if err != nil {
		return -1, fmt.Errorf("can't be opened: %w", err)
	}
	if err := prepareUDP(fd, family, at); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// prepareUDP binds last: before that no datagram can queue. It sets neither
// SO_REUSEADDR nor SO_REUSEPORT, with which another program could take a share
// of the datagrams.
func prepareUDP(fd, family int, at unix.Sockaddr) error {
	if err := Attach(fd, udpFilter); err != nil {
		return fmt.Errorf("has no filter: %w", err)
	}
	if err := enlarge(fd); err != nil {
		return err
	}
	if family == unix.AF_INET6 {
		// Where net.ipv6.bindv6only is set, IPv4 would not arrive.
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0); err != nil {
			return fmt.Errorf("can't take IPv4: %w", err)
		}
	}
	switch err := unix.Bind(fd, at); {
	case errors.Is(err, unix.EADDRINUSE):
		return fmt.Errorf("can't be bound: %w; another program has the port (ss -lunp names it): stop that, or give the knock another port", err)
	case errors.Is(err, unix.EACCES):
		return fmt.Errorf("can't be bound: %w; give the daemon CAP_NET_BIND_SERVICE, or the knock a port above 1023", err)
	case err != nil:
		return fmt.Errorf("can't be bound: %w", err)
	}
	return nil
}

// udpFilter keeps from a UDP socket what is no SPA datagram by its length, and
// what was sent to everybody. It sees a datagram from its UDP header on, after
// the kernel took apart what offload had glued.
var udpFilter = func() []bpf.RawInstruction {
	raw, err := bpf.Assemble(slices.Concat(
		require(bpf.LoadExtension{Num: bpf.ExtType}, packetHost),
		[]bpf.Instruction{bpf.LoadAbsolute{Off: 4, Size: 2}},
		ofSize(sizes(1), 8, accept, drop)))
	if err != nil {
		panic(fmt.Sprintf("capture: filter of UDP sockets: %v", err)) // nothing in it comes from outside
	}
	return raw
}()
