package sallyport

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// Packet is one packet of a Plan.
type Packet struct {
	Proto Proto
	Port  uint16 // destination port; 0 for ICMP and a bare protocol
	// Payload is what a datagram, an echo request or a packet of a bare protocol
	// carries, or the data of a SYN. With nil it is Size random bytes, fresh at
	// each sending.
	Payload []byte
	Size    int           // bytes, when Payload is nil
	Wait    time.Duration // pause before it
}

// Plan is a knock made ready to be sent from one address to another. It may be
// sent again, until Until.
type Plan struct {
	Local, Remote netip.Addr
	// Interface is the network interface that the packets leave by, whatever the
	// routing table says. Empty: as that says. Linux alone can choose.
	Interface string
	Packets   []Packet
	// Copies says that each packet is the whole knock: any one that arrives is
	// enough.
	Copies bool
	// Until is when the server may begin to refuse it as too old; the zero
	// time: never.
	Until time.Time
	// About says in a few lines what is asked, for people. It has no secret.
	About string
}

func newPlan(local, remote netip.Addr) (*Plan, error) {
	local, remote = local.Unmap(), remote.Unmap()
	local, err := source(local, remote, "")
	if err != nil {
		return nil, err
	}
	return &Plan{Local: local, Remote: remote}, nil
}

// source is the local address of a whole knock: local itself if it is valid.
// The system picks a source address for each socket anew; a temporary IPv6
// address (RFC 8981) that changes between two steps would make them two half
// knocks.
func source(local, remote netip.Addr, device string) (netip.Addr, error) {
	if err := checkRemote(remote); err != nil {
		return netip.Addr{}, err
	}
	if local.IsValid() {
		if local.Is4() != remote.Is4() {
			return netip.Addr{}, fmt.Errorf("a knock from %s cannot reach %s: one is IPv4, the other IPv6", local, remote)
		}
		return scoped(scoped(local, device), remote.Zone()), nil
	}
	if noSockets {
		return netip.Addr{}, errNoSockets
	}
	// Connecting a datagram socket sends nothing; port 9 is as good as any.
	dialer := net.Dialer{Control: through(device)}
	conn, err := dialer.Dial("udp", netip.AddrPortFrom(remote, 9).String())
	if err != nil && device != "" {
		return netip.Addr{}, fmt.Errorf("no route to %s through %s: %w", remote, device, cause(err))
	}
	if err != nil {
		return netip.Addr{}, fmt.Errorf("no route to %s: %w", remote, cause(err))
	}
	defer conn.Close()
	return conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap(), nil
}

// noSockets is true where package net only plays at having a network.
const noSockets = runtime.GOOS == "js" || runtime.GOOS == "wasip1"

var errNoSockets = errors.New("this system has no sockets: seal the request here, and send it from another")

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

// Send sends every packet once, in order, each from a new socket and all from
// one local address, and waits for no answer: a knock has none. It returns
// early with ctx's error when ctx ends. Packets that a local firewall throws
// away may count as sent.
//
// A TCP packet without data is one SYN: the connect is abandoned at once, so
// the system does not repeat it. One with data needs a raw socket: on Linux
// CAP_NET_RAW; other systems can't. UDP needs nothing. An ICMP packet is an echo
// request; on Linux it needs a group that net.ipv4.ping_group_range allows (it
// rules both families), or CAP_NET_RAW; on macOS nothing; on Windows an
// administrator. SCTP is an INIT, DCCP a Request, each one packet: they and bare
// protocols need CAP_NET_RAW on Linux, as does UDP-Lite where the kernel lacks it;
// other systems can't.
func (p *Plan) Send(ctx context.Context) error {
	if noSockets {
		return errNoSockets
	}
	if err := checkRemote(p.Remote); err != nil {
		return err
	}
	if err := checkDevice(p.Interface); err != nil {
		return err
	}
	return p.send(ctx, 0, len(p.Packets))
}

// begin sends what the server needs to open. What is behind that are copies,
// which the caller sends while it tries.
func (p *Plan) begin(ctx context.Context) (*tail, error) {
	if !p.Copies || noSockets {
		return &tail{}, p.Send(ctx)
	}
	c := &tail{plan: p, rest: p.Packets[1:], last: time.Now()}
	return c, p.send(ctx, 0, 1)
}

// tail is what is left of a plan whose first packet is on its way. There is no
// goroutine for it: nobody waits for more than the next copy.
type tail struct {
	plan *Plan
	rest []Packet
	last time.Time // when the one before went out
}

// within gives how much of a time passes before the next copy is due.
func (c *tail) within(d time.Duration) time.Duration {
	if len(c.rest) == 0 {
		return d
	}
	return max(min(d, time.Until(c.last.Add(c.rest[0].Wait))), time.Millisecond)
}

// send sends the next copy if it is due. What goes wrong with it says no more
// than that a copy is missing.
func (c *tail) send() {
	if len(c.rest) == 0 || time.Since(c.last) < c.rest[0].Wait {
		return
	}
	c.rest[0].send(c.plan.path())
	c.rest, c.last = c.rest[1:], time.Now()
}

// send sends the packets from one place of the plan up to another.
func (p *Plan) send(ctx context.Context, from, to int) error {
	for i := from; i < to; i++ {
		packet := p.Packets[i]
		wait(ctx, packet.Wait)
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("the knock broke off after %d of %d packets: %w", i, len(p.Packets), err)
		}
		// The message names no port: it may end up in a log.
		if err := packet.send(p.path()); err != nil {
			return fmt.Errorf("packet %d of %d could not be sent to %s: %w", i+1, len(p.Packets), p.Remote, p.explain(err, packet))
		}
	}
	return nil
}

func (p *Plan) path() path { return path{p.Local, p.Remote, p.Interface} }

// explain adds what a size that does not fit means, and a wrong address.
func (p *Plan) explain(err error, packet Packet) error {
	if errors.Is(err, errNotOurs) {
		return fmt.Errorf("%s is no address of this host: %w", p.Local, cause(err))
	}
	if !errors.Is(err, errTooLong) || !packet.whole() {
		return cause(err)
	}
	return fmt.Errorf("%w: the path does not take its %d bytes in one piece, and a server declines fragments; "+
		"knock over another path, or use what needs fewer bytes: an ed25519 key and a classic address", cause(err), len(packet.Payload))
}

// String lists the packets, one a line, under About. It has no secret, but it
// has the ports.
func (p *Plan) String() string {
	var b strings.Builder
	if p.About != "" {
		fmt.Fprintln(&b, p.About)
	}
	through := ""
	if p.Interface != "" {
		through = " through " + p.Interface
	}
	fmt.Fprintf(&b, "to %s from %s%s:\n", p.Remote, p.Local, through)
	for _, packet := range p.Packets {
		fmt.Fprintln(&b, "  "+packet.String())
	}
	return b.String()
}

// String gives protocol, port, payload and pause, as in "udp port 62201, 448
// bytes, after 30ms".
func (p Packet) String() string {
	s := p.Proto.String()
	if p.Proto.Ported() {
		s += fmt.Sprintf(" port %d", p.Port)
	}
	s += fmt.Sprintf(", %d bytes", max(p.Size, len(p.Payload)))
	if p.Wait > 0 {
		s += fmt.Sprintf(", after %v", p.Wait)
	}
	return s
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
// puts around it repeats addresses and would name the packet's port.
func cause(err error) error {
	if errno := syscall.Errno(0); errors.As(err, &errno) {
		return errno
	}
	return err
}
