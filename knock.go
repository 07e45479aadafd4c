package sallyport

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"github.com/sallyport/sallyport/internal/sequence"
)

// Send sends every step to remote once, in order, each from a new socket and
// all from one local address, and waits for no answer: a knock has none. It
// returns early with ctx's error when ctx ends. Steps that a local firewall
// throws away may count as sent.
//
// A TCP step is one SYN: the connect is abandoned at once, so the system does
// not repeat it. A UDP step is a datagram of 8 random bytes. An ICMP step is
// an echo request; on Linux it needs a group that net.ipv4.ping_group_range
// allows (it rules both families), or CAP_NET_RAW; on macOS nothing; on Windows
// an administrator.
func (k *Knock) Send(ctx context.Context, remote netip.Addr) error {
	if err := k.Validate(); err != nil {
		return err
	}
	remote = remote.Unmap()
	local, err := k.source(remote)
	if err != nil {
		return err
	}
	for i, step := range k.Steps {
		if i > 0 {
			wait(ctx, k.delay())
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("the knock broke off after %d of %d steps: %w", i, len(k.Steps), err)
		}
		// The message names no port: it may end up in a log.
		if err := send(step, local, remote); err != nil {
			return fmt.Errorf("step %d of %d could not be sent to %s: %w", i+1, len(k.Steps), remote, cause(err))
		}
	}
	return nil
}

// source is the local address of the whole knock. The system picks a source
// address for each socket anew; a temporary IPv6 address (RFC 8981) that
// changes between two steps would make them two half knocks.
func (k *Knock) source(remote netip.Addr) (netip.Addr, error) {
	if err := checkRemote(remote); err != nil {
		return netip.Addr{}, err
	}
	if local := k.Local.Unmap(); local.IsValid() {
		if local.Is4() != remote.Is4() {
			return netip.Addr{}, fmt.Errorf("a knock from %s cannot reach %s: one is IPv4, the other IPv6", local, remote)
		}
		return local, nil
	}
	// Connecting a datagram socket sends nothing; port 9 is as good as any.
	conn, err := net.DialUDP("udp", nil, udpAddr(remote, 9))
	if err != nil {
		return netip.Addr{}, fmt.Errorf("no route to %s: %w", remote, cause(err))
	}
	defer conn.Close()
	return conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap(), nil
}

// checkRemote catches what connect(2) only calls an invalid argument.
func checkRemote(remote netip.Addr) error {
	if !remote.IsValid() || remote.IsUnspecified() {
		return fmt.Errorf("%s is no address that a knock can be sent to: name the server's own", remote)
	}
	if remote.Is6() && remote.IsLinkLocalUnicast() && remote.Zone() == "" {
		return fmt.Errorf("%s is different on every link: add the interface, as in %s%%eth0", remote, remote)
	}
	_, err := zoneIndex(remote.Zone())
	return err
}

func send(step Step, local, remote netip.Addr) error {
	switch step.Proto {
	case sequence.TCP:
		return sendSYN(local, netip.AddrPortFrom(remote, step.Port))
	case sequence.UDP:
		return sendDatagram(local, netip.AddrPortFrom(remote, step.Port))
	}
	size := int(step.Port)
	if step.AnySize {
		size = pingSize
	}
	return sendEcho(local, remote, size)
}

// datagramSize is the payload of a UDP step in bytes. Random bytes rather than
// none or a constant: over IPv6 nothing else tells two equal steps from a
// repeat by the network, and an empty datagram is dropped by some middleboxes.
const datagramSize = 8

func sendDatagram(local netip.Addr, to netip.AddrPort) error {
	conn, err := net.DialUDP("udp", udpAddr(local, 0), net.UDPAddrFromAddrPort(to))
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.Write(random(datagramSize))
	return err
}

// pingSize is the payload in bytes of a step that leaves the size open: what
// ping(8) sends, so that the step looks like any ping.
const pingSize = 56

// sendEcho sends one echo request. The system fills in the identifier on a
// ping socket; on a raw socket ours is random like the sequence number.
func sendEcho(local, remote netip.Addr, size int) error {
	var kind icmp.Type = ipv4.ICMPTypeEcho
	if remote.Is6() {
		kind = ipv6.ICMPTypeEchoRequest
	}
	numbers := random(4)
	message := icmp.Message{Type: kind, Body: &icmp.Echo{
		ID:   int(numbers[0])<<8 | int(numbers[1]),
		Seq:  int(numbers[2])<<8 | int(numbers[3]),
		Data: random(size),
	}}
	// No pseudo-header: the system computes the ICMPv6 checksum itself
	// (RFC 3542 section 3.1).
	packet, err := message.Marshal(nil)
	if err != nil {
		return err
	}
	conn, to, err := pingSocket(local, remote)
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.WriteTo(packet, to)
	return err
}

// pingSocket opens an unprivileged ping socket where the system has and allows
// them, else a raw one.
func pingSocket(local, remote netip.Addr) (*icmp.PacketConn, net.Addr, error) {
	ping, raw := "udp4", "ip4:icmp"
	if remote.Is6() {
		ping, raw = "udp6", "ip6:ipv6-icmp"
	}
	to := udpAddr(remote, 0)
	conn, pingErr := icmp.ListenPacket(ping, local.String())
	if pingErr == nil {
		return conn, to, nil
	}
	conn, rawErr := icmp.ListenPacket(raw, local.String())
	if rawErr == nil {
		return conn, &net.IPAddr{IP: to.IP, Zone: to.Zone}, nil
	}
	if errors.Is(rawErr, syscall.EPERM) || errors.Is(rawErr, syscall.EACCES) {
		return nil, nil, noPing()
	}
	return nil, nil, rawErr
}

// noPing says what the user can do about it.
func noPing() error {
	if runtime.GOOS == "linux" {
		return errors.New(`this user may not send pings: allow it with sysctl -w net.ipv4.ping_group_range="0 2147483647" ` +
			"(it rules IPv6 too), or give this program CAP_NET_RAW with setcap cap_net_raw+ep PROGRAM")
	}
	return errors.New("this user may not send pings: run it as an administrator")
}

// sockaddr is the form that bind and connect take.
func sockaddr(a netip.AddrPort) (syscall.Sockaddr, error) {
	if a.Addr().Is4() {
		return &syscall.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}, nil
	}
	zone, err := zoneIndex(a.Addr().Zone())
	return &syscall.SockaddrInet6{Port: int(a.Port()), ZoneId: zone, Addr: a.Addr().As16()}, err
}

// zoneIndex turns a zone (RFC 4007 section 11) into an interface index: it is
// the interface's name or its number.
func zoneIndex(zone string) (uint32, error) {
	if zone == "" {
		return 0, nil
	}
	if n, err := strconv.ParseUint(zone, 10, 31); err == nil {
		return uint32(n), nil
	}
	iface, err := net.InterfaceByName(zone)
	if err != nil {
		return 0, fmt.Errorf("there is no interface %q: the part behind %% must be one", zone)
	}
	return uint32(iface.Index), nil
}

func udpAddr(a netip.Addr, port uint16) *net.UDPAddr {
	return net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, port))
}

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b) // never fails: see crypto/rand
	return b
}

// wait lasts d, or less when ctx ends.
func wait(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// cause is the system's own error in err where there is one: what package net
// puts around it repeats addresses and would name the step's port.
func cause(err error) error {
	if errno := syscall.Errno(0); errors.As(err, &errno) {
		return errno
	}
	return err
}
