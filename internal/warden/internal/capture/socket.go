//go:build linux

// Package capture opens what strangers' packets come in by, and gives the
// descriptor away. It never reads one: that is the engine's work, which has no
// privilege to lose.
package capture

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Buffer is the receive buffer in bytes. The kernel doubles it (socket(7)) and
// charges a SYN 832 bytes, its bookkeeping included (measured on Linux 6.18):
// 8 MiB are 10,083 of them, 10 ms of a million a second. That is longer than
// the scheduler lets the engine wait on a busy core. An idle daemon pays
// nothing: the memory is taken packet by packet.
const Buffer = 4 << 20

// Open opens a non-blocking packet socket over all interfaces, present and
// future, that delivers packets from their IP header on, as the filter lets
// them through. The descriptor closes on exec; its owner closes it.
//
// An error wraps the system's errno and says what is missing.
func Open(filter []bpf.RawInstruction) (fd int, err error) {
	// Protocol 0 receives nothing (packet(7)): no packet can queue before the
	// filter is there and slip past it.
	fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, opening(err)
	}
	if err := prepare(fd, filter); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func prepare(fd int, filter []bpf.RawInstruction) error {
	if err := Attach(fd, filter); err != nil {
		return err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1); err != nil {
		return fmt.Errorf("the packet socket can't leave out what this host sends: %w; use Linux 4.20 or newer", err)
	}
	if err := enlarge(fd); err != nil {
		return fmt.Errorf("the packet socket %w", err)
	}
	everywhere := unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL)} // index 0: all interfaces
	if err := unix.Bind(fd, &everywhere); err != nil {
		return fmt.Errorf("the packet socket can't receive: %w", err)
	}
	return nil
}

// enlarge gives a socket its receive buffer. Without CAP_NET_ADMIN that is no larger
// than net.core.rmem_max: a flood then costs knocks sooner, which is no reason to
// hear none. The error's text goes behind the socket's name.
func enlarge(fd int) error {
	err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, Buffer)
	if err == unix.EPERM {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, Buffer)
	}
	if err != nil {
		return fmt.Errorf("got no buffer of %d bytes: %w", Buffer, err)
	}
	return nil
}

// Attach puts a filter on the socket in the place of the one it has, in one
// step: no packet meets neither of them. Packets that already wait stay.
func Attach(fd int, filter []bpf.RawInstruction) error {
	if len(filter) == 0 || len(filter) > MaxInstructions {
		return fmt.Errorf("a packet filter of %d instructions: it must have 1 to %d", len(filter), MaxInstructions)
	}
	code := make([]unix.SockFilter, len(filter))
	for i, in := range filter {
		code[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	prog := unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &prog); err != nil {
		return fmt.Errorf("the kernel took no packet filter of %d instructions: %w; see net.core.optmem_max", len(filter), err)
	}
	return nil
}

// opening explains why there is no packet socket.
func opening(err error) error {
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Errorf("opening a packet socket: %w; knocks can't be seen: run as root, or give the daemon CAP_NET_RAW", err)
	case errors.Is(err, unix.EAFNOSUPPORT), errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.ESOCKTNOSUPPORT):
		return fmt.Errorf("opening a packet socket: %w; this kernel has no AF_PACKET: load the module af_packet, or allow the family where the unit restricts it (RestrictAddressFamilies)", err)
	}
	return fmt.Errorf("opening a packet socket: %w", err)
}

// htons puts a number into network byte order, as packet(7) wants its protocol.
func htons(v uint16) uint16 {
	return binary.NativeEndian.Uint16([]byte{byte(v >> 8), byte(v)})
}
