//go:build unix

package sallyport

import (
	"net/netip"
	"syscall"
)

// errNotOurs comes of an address to send from that no interface has.
const errNotOurs = syscall.EADDRNOTAVAIL

// sendSYN starts a connect and closes the socket at once. The SYN leaves inside
// connect(2); closing a socket in SYN-SENT deletes it (RFC 9293 section
// 3.10.4), so nothing repeats the SYN a second later, in the middle of whatever
// the client does next.
func sendSYN(by path, port uint16) error {
	from, err := sockaddr(netip.AddrPortFrom(by.local, 0))
	if err != nil {
		return err
	}
	dest, err := sockaddr(netip.AddrPortFrom(by.remote, port))
	if err != nil {
		return err
	}
	fd, err := newSocket(by, syscall.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	if err := syscall.Bind(fd, from); err != nil {
		return err
	}
	switch err := syscall.Connect(fd, dest); err {
	// Refused: over loopback the answer to the SYN may be here already.
	case nil, syscall.EINPROGRESS, syscall.EINTR, syscall.ECONNREFUSED:
		return nil
	default:
		return err
	}
}

// sendMessage sends an echo request from an unprivileged ping socket where the
// system has and allows them, else from a raw one.
func sendMessage(by path, message []byte, whole bool) error {
	proto := syscall.IPPROTO_ICMP
	if by.remote.Is6() {
		proto = syscall.IPPROTO_ICMPV6
	}
	fd, err := newSocket(by, syscall.SOCK_DGRAM, proto)
	if err != nil {
		if fd, err = newSocket(by, syscall.SOCK_RAW, proto); err != nil {
			return err
		}
	}
	return sendFrom(fd, by, message, whole)
}

// sendFrom sends one packet from a new raw socket and closes the socket.
func sendFrom(fd int, by path, packet []byte, whole bool) error {
	return sendTo(fd, by, 0, packet, whole)
}

// sendTo sends one packet to a port from a new socket and closes the socket.
func sendTo(fd int, by path, port uint16, packet []byte, whole bool) error {
	defer syscall.Close(fd)
	from, err := sockaddr(netip.AddrPortFrom(by.local, 0))
	if err != nil {
		return err
	}
	to, err := sockaddr(netip.AddrPortFrom(by.remote, port))
	if err != nil {
		return err
	}
	if err := syscall.Bind(fd, from); err != nil {
		return err
	}
	if whole {
		dontFragment(uintptr(fd), by.local.Is4())
	}
	return syscall.Sendto(fd, packet, 0, to)
}

// newSocket makes a non-blocking socket that no child process inherits, and that
// sends by the path's way out.
func newSocket(by path, kind, proto int) (int, error) {
	family := syscall.AF_INET6
	if by.local.Is4() {
		family = syscall.AF_INET
	}
	syscall.ForkLock.RLock()
	fd, err := syscall.Socket(family, kind, proto)
	if err == nil {
		syscall.CloseOnExec(fd)
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return -1, err
	}
	if err = syscall.SetNonblock(fd, true); err == nil {
		err = bindDevice(fd, by.device)
	}
	if err != nil {
		syscall.Close(fd)
		return -1, err
	}
	return fd, nil
}
