//go:build unix && !linux && !darwin && !freebsd

package sallyport

import "syscall"

const errTooLong = syscall.EMSGSIZE

// dontFragment has no option to set that all these systems share.
func dontFragment(uintptr, bool) {}
