package sallyport

import (
	"net"
	"net/netip"
	"sync"
	"syscall"
	"unsafe"
)

// From winsock2.h and ws2ipdef.h; package syscall has none of them.
const (
	fionbio        = 0x8004667e
	wsaeWouldBlock = syscall.Errno(10035)
	ipDontFragment = 14
	errTooLong     = syscall.Errno(10040) // WSAEMSGSIZE
	errNotOurs     = syscall.Errno(10049) // WSAEADDRNOTAVAIL
)

// dontFragment is a wish: where it fails, only the error for what is too long
// is lost. The option has the same number in both families.
func dontFragment(fd uintptr, v4 bool) {
	level := syscall.IPPROTO_IPV6
	if v4 {
		level = syscall.IPPROTO_IP
	}
	syscall.SetsockoptInt(syscall.Handle(fd), level, ipDontFragment, 1)
}

// startup counts, so that package net's own call does not hinder ours.
var startup = sync.OnceValue(func() error {
	var data syscall.WSAData
	return syscall.WSAStartup(0x0202, &data)
})

// sendSYN starts a connect and closes the socket at once, as on Unix: a closed
// socket repeats no SYN.
func sendSYN(by path, port uint16) error {
	from, err := sockaddr(netip.AddrPortFrom(by.local, 0))
	if err != nil {
		return err
	}
	dest, err := sockaddr(netip.AddrPortFrom(by.remote, port))
	if err != nil {
		return err
	}
	socket, err := streamSocket(by.local.Is4())
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

// sendMessage sends an echo request from a raw socket.
func sendMessage(by path, message []byte, whole bool) error {
	network := "ip4:icmp"
	if by.remote.Is6() {
		network = "ip6:ipv6-icmp"
	}
	conn, err := net.ListenIP(network, ipAddr(by.local))
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := keepWhole(conn, by.local.Is4(), whole); err != nil {
		return err
	}
	_, err = conn.WriteTo(message, ipAddr(by.remote))
	return err
}

func ipAddr(a netip.Addr) *net.IPAddr { return &net.IPAddr{IP: a.AsSlice(), Zone: a.Zone()} }
