package sallyport

import (
	"fmt"
	"syscall"
)

// noDevices says why no socket can be bound to an interface on this system.
func noDevices(string) error { return nil }

// bindDevice makes a socket send through one network interface, whatever the
// routing table prefers (socket(7), SO_BINDTODEVICE). A local address alone does
// not: the packet would leave with it by the usual way out.
func bindDevice(fd int, device string) error {
	if device == "" {
		return nil
	}
	err := syscall.BindToDevice(fd, device)
	if err == syscall.EPERM { // any user may, since Linux 5.7
		return fmt.Errorf("this kernel lets only CAP_NET_RAW choose the interface %s: give this program that with "+
			"setcap cap_net_raw+ep PROGRAM, or name the address to knock from instead", device)
	}
	return err
}
