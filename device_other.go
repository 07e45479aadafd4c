//go:build !linux

package sallyport

import "fmt"

func noDevices(device string) error {
	return fmt.Errorf("this system can't knock through %.40q by name: name the address to knock from instead", device)
}

// bindDevice is reached without a device only: see noDevices.
func bindDevice(int, string) error { return nil }
