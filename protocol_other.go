//go:build !linux

package sallyport

import "errors"

func sendProtocol(path, Proto, uint16, []byte) error {
	return errors.New("this system can send no steps but tcp, udp and icmp: knock with a sequence of these alone, or from Linux")
}
