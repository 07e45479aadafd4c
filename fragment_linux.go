package sallyport

import "syscall"

const errTooLong = syscall.EMSGSIZE

// dontFragment sets the bit in the header (RFC 791), and turns off that the
// sender itself makes fragments, which is all that IPv6 has.
func dontFragment(fd uintptr, v4 bool) {
	if v4 {
		syscall.SetsockoptInt(int(fd), syscall.IPPROTO_IP, syscall.IP_MTU_DISCOVER, syscall.IP_PMTUDISC_DO)
		return
	}
	syscall.SetsockoptInt(int(fd), syscall.IPPROTO_IPV6, syscall.IPV6_MTU_DISCOVER, syscall.IPV6_PMTUDISC_DO)
}
