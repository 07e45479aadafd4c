package sallyport

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"
)

// DefaultTimeout ends a Dialer's work when neither its Timeout nor the context
// does so sooner: a wrong knock would else be repeated for ever.
const DefaultTimeout = 30 * time.Second

// The pace of a Dialer. A try may meet the port before the server opened it;
// where closed ports drop, the kernel would repeat that try's SYN only after a
// second (RFC 6298 section 2), so each try is a new socket with a time of its
// own, twice as long as the one before. The eight tries of the first window end
// after 5+10+…+640 = 1,275 ms; only then is the knock thought lost and sent
// again. Windows double as well, so a server with an ordinary rate limit hears
// six knocks in the first minute, and one that still holds half of a spoilt
// attempt has time to forget it.
const (
	firstTry    = 5 * time.Millisecond
	longestTry  = time.Second // round trips above this are out of reach
	firstWindow = 1275 * time.Millisecond
	maxWindow   = 32 * firstWindow
)

// maxAddresses bounds how many addresses of one name are knocked at, so that a
// name server cannot turn one dial into a spray of packets.
const maxAddresses = 8

// Dialer knocks and then connects. The zero value but for Knock is ready for
// use, by several goroutines at once.
type Dialer struct {
	// Knock is sent before the first try, and again when the port stays shut.
	Knock Knock
	// Local is the address that knock and connection come from. The zero Addr
	// means the one that the system would use, chosen anew for each knock.
	Local netip.Addr
	// Interface is the network interface that knock and connection leave by,
	// whatever the routing table says, such as "eth0". Empty: as that says. Linux
	// alone can choose; before Linux 5.7 that took CAP_NET_RAW.
	Interface string
	// Timeout limits the whole of a call: name lookup, knocks, tries.
	// Zero means DefaultTimeout, a negative value only the context's limit.
	Timeout time.Duration
	// Resolver looks names up; nil means net.DefaultResolver.
	Resolver *net.Resolver
}

// DialContext knocks at the host of address ("example.net:22",
// "[2001:db8::1]:22") and connects to its port, knock and connection from one
// local to one remote address. The network is "tcp", "tcp4" or "tcp6".
//
// The name is looked up once. Each of its addresses, eight at most, in the
// resolver's order, gets a whole knock and a window of tries; when all have
// had theirs the next round begins, with windows twice as long; those of an [OTP] end
// with its time step, and the ports of the next are sent. A connection
// that was made outlives ctx. The error unwraps to ctx's error when time ran
// out, and to what the system said of the last try; when no address could be knocked at, it comes at once and says why.
func (d *Dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	if err := d.Knock.Validate(); err != nil {
		return nil, err
	}
	if err := checkDevice(d.Interface); err != nil {
		return nil, err
	}
	start := time.Now()
	ctx, cancel := d.limit(ctx)
	defer cancel()
	targets, err := d.targets(ctx, network, address)
	if err != nil {
		return nil, err
	}
	knocks, plans := 0, make([]*Plan, len(targets))
	for window := firstWindow; ; window = min(2*window, maxWindow) {
		unsent, last := 0, error(nil)
		for i, target := range targets {
			var rest *tail
			before := plans[i]
			plans[i], rest, err = d.knockAt(ctx, target.Addr(), before)
			if err == nil {
				knocks++
				var conn net.Conn
				window = d.window(window, before, plans[i])
				if conn, err = try(ctx, d.NetDialer(plans[i].Local), target, window, rest); err == nil {
					return conn, nil
				}
			} else {
				unsent++
			}
			last = err
			if ctx.Err() != nil {
				return nil, &shutError{address, knocks, time.Since(start), last, ctx.Err(), suspect(d.Knock)}
			}
		}
		if unsent == len(targets) {
			return nil, last
		}
	}
}

// Send knocks once, at the first address of each family that host has, and
// gives those that it knocked at: whatever connects later may take either. The
// network is "ip", "ip4" or "ip6". Each address has a plan of its own, so a
// Request is signed for each. What opened, if anything, it cannot know.
//
// An address that this host has no route to, or none from Local, is left out if
// another is knocked at. When only some could be sent to, the addresses and the
// error are both given.
func (d *Dialer) Send(ctx context.Context, network, host string) (sent []netip.Addr, err error) {
	if err := d.Knock.Validate(); err != nil {
		return nil, err
	}
	if err := checkDevice(d.Interface); err != nil {
		return nil, err
	}
	ctx, cancel := d.limit(ctx)
	defer cancel()
	addrs, err := d.lookup(ctx, network, host)
	if err != nil {
		return nil, err
	}
	var routeless, unsent error
	for _, remote := range firstOfEach(addrs) {
		local, err := source(d.Local.Unmap(), remote, d.Interface)
		if err != nil {
			routeless = errors.Join(routeless, err)
			continue
		}
		// A key that does not sign for one address won't for the next.
		plan, err := d.plan(ctx, local, remote)
		if err != nil {
			return sent, errors.Join(unsent, err)
		}
		if err := plan.Send(ctx); err != nil {
			unsent = errors.Join(unsent, err)
			continue
		}
		sent = append(sent, remote)
	}
	if len(sent) == 0 {
		return nil, errors.Join(unsent, routeless)
	}
	return sent, unsent
}

// window is how long a plan's knock is given, of a time that is usual. A server that
// started in a time step takes no one-time ports of it, because they may have been
// used before. So these are not waited for beyond their step, and the pace begins
// anew with the ports of the next.
func (d *Dialer) window(usual time.Duration, before, now *Plan) time.Duration {
	if _, is := d.Knock.(*OTP); !is {
		return usual
	}
	if before != nil && before != now {
		usual = firstWindow
	}
	return max(firstWindow, min(usual, time.Until(now.Until)))
}

// firstOfEach gives the first address of each family, in the resolver's order,
// which is that of RFC 6724.
func firstOfEach(addrs []netip.Addr) []netip.Addr {
	first := addrs[0].Unmap()
	for _, a := range addrs[1:] {
		if a = a.Unmap(); a.Is4() != first.Is4() {
			return []netip.Addr{first, a}
		}
	}
	return []netip.Addr{first}
}

func (d *Dialer) limit(ctx context.Context) (context.Context, context.CancelFunc) {
	switch {
	case d.Timeout < 0:
		return ctx, func() {}
	case d.Timeout == 0:
		return context.WithTimeout(ctx, DefaultTimeout)
	}
	return context.WithTimeout(ctx, d.Timeout)
}

// knockAt knocks once, and gives the copies that are to follow.
func (d *Dialer) knockAt(ctx context.Context, remote netip.Addr, old *Plan) (plan *Plan, rest *tail, err error) {
	if plan, err = d.planAt(ctx, remote, old); err != nil {
		return nil, nil, err
	}
	rest, err = plan.begin(ctx)
	return plan, rest, err
}

// Plan gives what Send would send to one address, for callers who show or send
// it themselves. It may ask the key's owner to sign.
func (d *Dialer) Plan(ctx context.Context, remote netip.Addr) (*Plan, error) {
	if err := d.Knock.Validate(); err != nil {
		return nil, err
	}
	if err := checkDevice(d.Interface); err != nil {
		return nil, err
	}
	ctx, cancel := d.limit(ctx)
	defer cancel()
	return d.planAt(ctx, scoped(remote.Unmap(), d.Interface), nil)
}

// NetDialer gives a dialer that does not knock: from one address, by d's way out.
func (d *Dialer) NetDialer(local netip.Addr) *net.Dialer {
	return &net.Dialer{
		LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(local, 0)),
		Control:   through(d.Interface),
	}
}

// planAt gives old, the plan of an earlier window, if that is still good, else a
// fresh one: a plan may cost the touch of a hardware key.
func (d *Dialer) planAt(ctx context.Context, remote netip.Addr, old *Plan) (*Plan, error) {
	local, err := source(d.Local.Unmap(), remote, d.Interface)
	if err != nil {
		return nil, err
	}
	if old != nil && old.Local == local && (old.Until.IsZero() || time.Now().Before(old.Until)) {
		return old, nil
	}
	return d.plan(ctx, local, remote)
}

// plan plans, or gives up with ctx: nobody may be there to touch the key. The
// key is then still asked for, which only its holder could take back.
func (d *Dialer) plan(ctx context.Context, local, remote netip.Addr) (*Plan, error) {
	type result struct {
		plan *Plan
		err  error
	}
	done := make(chan result, 1)
	go func() {
		plan, err := d.Knock.Plan(local, remote)
		if err == nil && d.Interface != "" {
			through := *plan // a Knock of the caller's own may keep its plan
			through.Interface = d.Interface
			plan = &through
		}
		done <- result{plan, err}
	}()
	select {
	case r := <-done:
		return r.plan, r.err
	case <-ctx.Done():
		return nil, fmt.Errorf("the knock was not ready in time: %w", ctx.Err())
	}
}

// try connects to target again and again until the window or ctx ends. A try
// that is refused still uses its time up: the pace is the same for a server
// that drops and one that refuses. The rest of the knock goes out meanwhile.
func try(ctx context.Context, dialer *net.Dialer, target netip.AddrPort, window time.Duration, rest *tail) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, window)
	defer cancel()
	var before error
	for limit := firstTry; ; limit = min(2*limit, longestTry) {
		turn, done := context.WithTimeout(ctx, rest.within(limit))
		conn, err := dialer.DialContext(turn, "tcp", target.String())
		if err != nil {
			<-turn.Done()
		}
		done()
		if err == nil {
			return conn, nil
		}
		if ctx.Err() != nil {
			return nil, telling(err, before)
		}
		before = err
		rest.send()
	}
}

// telling is the error of the last try, or of the one before if the last was cut
// short: that it had no answer would say nothing.
func telling(last, before error) error {
	if _, answered := errors.AsType[syscall.Errno](last); !answered && before != nil {
		return before
	}
	return last
}

// targets looks address up, once.
func (d *Dialer) targets(ctx context.Context, network, address string) ([]netip.AddrPort, error) {
	family, ok := map[string]string{"tcp": "ip", "tcp4": "ip4", "tcp6": "ip6"}[network]
	if !ok {
		return nil, fmt.Errorf("a dial to %q is not possible: the network must be tcp, tcp4 or tcp6", network)
	}
	host, service, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	port, err := d.resolver().LookupPort(ctx, network, service)
	if err != nil {
		return nil, err
	}
	addrs, err := d.lookup(ctx, family, host)
	if err != nil {
		return nil, err
	}
	var targets []netip.AddrPort
	for _, addr := range addrs[:min(len(addrs), maxAddresses)] {
		targets = append(targets, netip.AddrPortFrom(addr.Unmap(), uint16(port)))
	}
	return targets, nil
}

// lookup gives the addresses of host: at least one, or an error.
func (d *Dialer) lookup(ctx context.Context, family, host string) ([]netip.Addr, error) {
	// LookupNetIP would lose the zone of a literal.
	if addr, err := netip.ParseAddr(host); err == nil && addr.Zone() != "" && family != "ip4" {
		return []netip.Addr{addr}, nil
	}
	addrs, err := d.resolver().LookupNetIP(ctx, family, host)
	for i := range addrs {
		addrs[i] = scoped(addrs[i], d.Interface)
	}
	return addrs, err
}

func (d *Dialer) resolver() *net.Resolver {
	if d.Resolver == nil {
		return net.DefaultResolver
	}
	return d.Resolver
}

// shutError says that time ran out before the port opened.
type shutError struct {
	address string
	knocks  int
	after   time.Duration
	last    error // of the last try
	ended   error // the context's
	suspect string
}

// suspect is what a server that does not open may find wrong with a knock.
func suspect(k Knock) string {
	switch k.(type) {
	case *Request:
		return "the key may not be in the server's authorized_keys, or the clock"
	case *OTP, *Encoded:
		return "the secret may not be in the server's file any more, or the clock"
	}
	return "the steps"
}

// Error says how long it was tried and what the last try met.
func (e *shutError) Error() string {
	if errors.Is(e.ended, context.Canceled) {
		return fmt.Sprintf("%s had not opened when it was given up (knocks sent: %d)", e.address, e.knocks)
	}
	answer := "no answer"
	if reason := cause(e.last); reason != e.last {
		answer = reason.Error()
	}
	return fmt.Sprintf("%s did not open within %s (knocks sent: %d, last try: %s): %s may be wrong, or the knock blocked on the way, or the service down",
		e.address, e.after.Round(time.Millisecond), e.knocks, answer, e.suspect)
}

// Unwrap gives context.DeadlineExceeded or context.Canceled, and with it the
// system's error that the last try met: a refusal says that it got through.
func (e *shutError) Unwrap() []error {
	if reason, ok := errors.AsType[syscall.Errno](e.last); ok {
		return []error{e.ended, reason}
	}
	return []error{e.ended}
}
