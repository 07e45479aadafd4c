package sallyport

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// send sends the packet once, from a socket of its own.
func (p Packet) send(by path) error {
	payload := p.Payload
	if payload == nil {
		payload = random(p.Size)
	}
	switch {
	case p.Proto == ICMP:
		return sendEcho(by, payload, p.whole())
	case p.Proto == UDP:
		return sendDatagram(by, p.Port, payload, p.whole())
	case p.Proto != TCP:
		return sendProtocol(by, p.Proto, p.Port, payload)
	case len(payload) > 0:
		return sendData(by, p.Port, payload)
	}
	return sendSYN(by, p.Port)
}

// whole is true for what must not be sent in fragments: a server declines every
// one of them, so the sender had better hear that it did not fit.
func (p Packet) whole() bool { return p.Payload != nil }

func sendDatagram(by path, port uint16, payload []byte, whole bool) error {
	dialer := net.Dialer{LocalAddr: udpAddr(by.local, 0), Control: through(by.device)}
	conn, err := dialer.Dial("udp", netip.AddrPortFrom(by.remote, port).String())
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := keepWhole(conn.(syscall.Conn), by.local.Is4(), whole); err != nil {
		return err
	}
	// A "port unreachable" is no failure: nobody need listen where knocks go.
	if _, err = conn.Write(payload); errors.Is(err, syscall.ECONNREFUSED) {
		return nil
	}
	return err
}

// keepWhole sets a socket of package net to don't-fragment, if whole.
func keepWhole(conn syscall.Conn, v4, whole bool) error {
	if !whole {
		return nil
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Control(func(fd uintptr) { dontFragment(fd, v4) })
}

// sendEcho sends one echo request. The system fills in the identifier on a
// ping socket; on a raw socket ours is random like the sequence number.
func sendEcho(by path, payload []byte, whole bool) error {
	var kind icmp.Type = ipv4.ICMPTypeEcho
	if by.remote.Is6() {
		kind = ipv6.ICMPTypeEchoRequest
	}
	numbers := random(4)
	message := icmp.Message{Type: kind, Body: &icmp.Echo{
		ID:   int(numbers[0])<<8 | int(numbers[1]),
		Seq:  int(numbers[2])<<8 | int(numbers[3]),
		Data: payload,
	}}
	// No pseudo-header: the system computes the ICMPv6 checksum itself
	// (RFC 3542 section 3.1).
	packet, err := message.Marshal(nil)
	if err != nil {
		return err
	}
	err = sendMessage(by, packet, whole)
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EACCES) {
		return noPing()
	}
	return err
}

// noPing says what the user can do about it.
func noPing() error {
	if runtime.GOOS == "linux" {
		return errors.New(`this user may not send pings: allow it with sysctl -w net.ipv4.ping_group_range="0 2147483647" ` +
			"(it rules IPv6 too), or give this program CAP_NET_RAW with setcap cap_net_raw+ep PROGRAM")
	}
	return errors.New("this user may not send pings: run it as an administrator")
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
