//go:build unix

package sallyport

import (
	"net/netip"
	"syscall"
)

// sendSYN starts a connect and closes the socket at once. The SYN leaves inside
// connect(2); closing a socket in SYN-SENT deletes it (RFC 9293 section
// 3.10.4), so nothing repeats the SYN a second later, in the middle of whatever
// the client does next.
func sendSYN(local netip.Addr, to netip.AddrPort) error {
	from, err := sockaddr(netip.AddrPortFrom(local, 0))
	if err != nil {
		return err
	}
	dest, err := sockaddr(to)
	if err != nil {
		return err
	}
	fd, err := streamSocket(local.Is4())
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

// streamSocket makes a non-blocking TCP socket that no child process inherits.
func streamSocket(v4 bool) (int, error) {
	family := syscall.AF_INET6
	if v4 {
		family = syscall.AF_INET
	}
	syscall.ForkLock.RLock()
	fd, err := syscall.Socket(family, syscall.SOCK_STREAM, 0)
	if err == nil {
		syscall.CloseOnExec(fd)
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return -1, err
	}
	if err := syscall.SetNonblock(fd, true); err != nil {
		syscall.Close(fd)
		return -1, err
	}
	return fd, nil
}
