//go:build !unix && !windows

package sallyport

import (
	"net/netip"
	"syscall"
)

const errTooLong = syscall.EMSGSIZE

// Where there are no sockets nothing of this is reached: see noSockets.

func sendSYN(netip.Addr, netip.AddrPort) error { return errNoSockets }

func sendMessage(_, _ netip.Addr, _ []byte, _ bool) error { return errNoSockets }

func dontFragment(uintptr, bool) {}
