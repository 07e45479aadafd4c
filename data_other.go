//go:build !linux

package sallyport

import (
	"errors"
	"net/netip"
)

func sendData(netip.Addr, netip.AddrPort, []byte) error {
	return errors.New("this system can't send a SYN with data: knock over udp or icmp")
}
