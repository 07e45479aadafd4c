//go:build darwin || freebsd

package sallyport

import "golang.org/x/sys/unix"

const errTooLong = unix.EMSGSIZE

// dontFragment is a wish: not every kind of socket has the option, and where it
// fails, only the error for what is too long is lost.
func dontFragment(fd uintptr, v4 bool) {
	if v4 {
		unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_DONTFRAG, 1)
		return
	}
	unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, 1)
}
