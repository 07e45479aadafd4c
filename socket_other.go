//go:build !unix && !windows

package sallyport

import "syscall"

const (
	errTooLong = syscall.EMSGSIZE
	errNotOurs = syscall.EADDRNOTAVAIL
)

// Where there are no sockets nothing of this is reached: see noSockets.

func sendSYN(path, uint16) error { return errNoSockets }

func sendMessage(path, []byte, bool) error { return errNoSockets }

func dontFragment(uintptr, bool) {}
