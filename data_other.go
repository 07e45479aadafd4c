//go:build !linux

package sallyport

import "errors"

func sendData(path, uint16, []byte) error {
	return errors.New("this system can't send a SYN with data: knock over udp or icmp")
}
