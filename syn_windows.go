package sallyport

import (
	"net/netip"
	"sync"
	"syscall"
	"unsafe"
)

// From winsock2.h; package syscall has neither.
const (
	fionbio        = 0x8004667e
	wsaeWouldBlock = syscall.Errno(10035)
)

// startup counts, so that package net's own call does not hinder ours.
var startup = sync.OnceValue(func() error {
	var data syscall.WSAData
	return syscall.WSAStartup(0x0202, &data)
})

// sendSYN starts a connect and closes the socket at once, as on Unix: a closed
// socket repeats no SYN.
func sendSYN(local netip.Addr, to netip.AddrPort) error {
	from, err := sockaddr(netip.AddrPortFrom(local, 0))
	if err != nil {
		return err
	}
	dest, err := sockaddr(to)
	if err != nil {
		return err
	}
	socket, err := streamSocket(local.Is4())
	if err != nil {
		return err
	}
	defer syscall.Closesocket(socket)
	if err := syscall.Bind(socket, from); err != nil {
		return err
	}
	if err := syscall.Connect(socket, dest); err != nil && err != wsaeWouldBlock {
		return err
	}
	return nil
}

// streamSocket makes a non-blocking TCP socket that no child process inherits.
func streamSocket(v4 bool) (syscall.Handle, error) {
	if err := startup(); err != nil {
		return syscall.InvalidHandle, err
	}
	family := syscall.AF_INET6
	if v4 {
		family = syscall.AF_INET
	}
	syscall.ForkLock.RLock()
	socket, err := syscall.Socket(family, syscall.SOCK_STREAM, syscall.IPPROTO_TCP)
	if err == nil {
		syscall.CloseOnExec(socket)
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return syscall.InvalidHandle, err
	}
	on, got := uint32(1), uint32(0)
	if err := syscall.WSAIoctl(socket, fionbio, (*byte)(unsafe.Pointer(&on)), 4, nil, 0, &got, nil, 0); err != nil {
		syscall.Closesocket(socket)
		return syscall.InvalidHandle, err
	}
	return socket, nil
}
