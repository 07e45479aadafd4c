package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/internal/spa"
)

// serverWindow is how far a request's time may be off unless a server's config
// says otherwise, either way.
const serverWindow = 60 * time.Second

// remotes looks the host up, for what is planned but not sent: the first address
// of each family, as Dialer.Send takes them.
func (o *order) remotes(timeout time.Duration) ([]netip.Addr, error) {
	if addr, err := netip.ParseAddr(o.host); err == nil {
		return []netip.Addr{addr.Unmap()}, nil // the resolver would lose a zone
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip"+o.family, o.host)
	if err != nil {
		return nil, err
	}
	first := addrs[0].Unmap()
	list := []netip.Addr{first}
	if i := slices.IndexFunc(addrs, func(a netip.Addr) bool { return a.Unmap().Is4() != first.Is4() }); i > 0 {
		list = append(list, addrs[i].Unmap())
	}
	return list, nil
}

// show says what would be sent. A counter is left as it is.
func (c *knockCmd) show(o *order, dialer *sallyport.Dialer, u *ui) error {
	if o.request != nil && o.server.counts {
		o.request.Stamp = nil
	}
	plans, err := o.plans(dialer)
	if err != nil {
		return err
	}
	var to []netip.Addr
	for _, plan := range plans {
		if to = append(to, plan.Remote); c.Verbose {
			u.print("%s", plan.String())
		}
	}
	u.say("would send %s to %s", o.what(), listed(to))
	return nil
}

// plans has at least one plan, or there is an error. An address without a route
// is left out if there is another.
func (o *order) plans(dialer *sallyport.Dialer) (plans []*sallyport.Plan, err error) {
	remotes, err := o.remotes(dialer.Timeout)
	if err != nil {
		return nil, err
	}
	for _, remote := range remotes {
		plan, reason := dialer.Plan(context.Background(), remote)
		if reason != nil {
			err = errors.Join(err, reason)
			continue
		}
		plans = append(plans, plan)
	}
	if len(plans) == 0 {
		return nil, err
	}
	return plans, nil
}

// listed is one address, or two of them, for people.
func listed(addrs []netip.Addr) string {
	var words []string
	for _, a := range addrs {
		words = append(words, a.String())
	}
	return strings.Join(words, " and ")
}

// save writes the datagram, for somebody else's means of sending it. Only for
// auto does it depend on the way to the server.
func (c *knockCmd) save(o *order, dialer *sallyport.Dialer, u *ui) error {
	datagram, err := o.datagram(dialer)
	if err != nil {
		return err
	}
	if err := writeDatagram(c.Save, datagram, c.Force); err != nil {
		return err
	}
	good := fmt.Sprintf("it is good once, until about %s", time.Now().Add(serverWindow).Format(time.TimeOnly))
	if o.server.counts {
		good = "it is good once, until a later one arrives"
	}
	u.say("saved %s for %s in %s, %d bytes; %s", o.what(), o.server.name, c.Save, len(datagram), good)
	return nil
}

func (o *order) datagram(dialer *sallyport.Dialer) ([]byte, error) {
	if o.request.Observed || len(o.request.Addresses) > 0 {
		return o.request.Seal(netip.Addr{})
	}
	remotes, err := o.remotes(dialer.Timeout)
	if err != nil {
		return nil, err
	}
	// One is enough: each costs a signature, perhaps the touch of a key.
	for _, remote := range remotes {
		plan, reason := dialer.Plan(context.Background(), remote)
		if reason == nil {
			return plan.Packets[0].Payload, nil
		}
		err = errors.Join(err, reason)
	}
	return nil, err
}

// writeDatagram makes a file that only its owner can read: whoever sends the
// datagram first may get the grant. A link that waits under that name is not
// followed.
func writeDatagram(file string, datagram []byte, force bool) error {
	if force {
		if info, err := os.Lstat(file); err == nil && !info.Mode().IsRegular() {
			return fmt.Errorf("%s is no regular file: choose another name", file)
		}
		return writeWhole(file, datagram, 0o600)
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("%s is there already: choose another name, or replace it with --force", file)
	}
	if err != nil {
		return fmt.Errorf("%s can't be written: %w", file, pathCause(err))
	}
	_, err = f.Write(datagram)
	return errors.Join(err, f.Close())
}

// explain adds to an error what is known here about its cause, the likely ones
// first: a server never answers, so nothing better can be known.
func (o *order) explain(err error) error {
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		return fmt.Errorf("no address for %s: %s; check the name, or give an address", o.host, dns.Err)
	}
	if nat, ok := errors.AsType[*sallyport.TranslatedError](err); ok {
		return fmt.Errorf("%w; with --address ADDR you say it", nat)
	}
	if !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if _, ok := errors.AsType[*stillShut](err); ok {
		return err
	}
	if causes := o.secretCauses(); causes != nil {
		return &unopened{err, enumerated(causes)}
	}
	if o.request == nil {
		return err
	}
	if key, ok := o.request.Signer.(*patient); ok && !key.signed.Load() {
		return fmt.Errorf("nothing was sent: the key did not sign in time; %s", key.wish())
	}
	return &unopened{err, enumerated(o.causes(err))}
}

func enumerated(causes []string) string {
	text := "a server never answers a request; the likely causes, in order:"
	for i, cause := range causes {
		text += fmt.Sprintf("\n%d. %s", i+1, cause)
	}
	return text
}

// unopened is an error with what may have caused it.
type unopened struct {
	error
	causes string
}

// Error has several lines. They take the place of the library's guesses, which
// are one.
func (e *unopened) Error() string {
	head, _, cut := strings.Cut(e.error.Error(), "): ")
	if cut {
		head += ")"
	}
	return head + "\n" + e.causes
}

// Unwrap gives the error without causes.
func (e *unopened) Unwrap() error { return e.error }

// causes are the likely ones first. A refusal comes from a port that is reached
// and where nobody listens, though a server may refuse instead of dropping; and
// whoever names services may have named one that is not the key's to open.
func (o *order) causes(err error) (causes []string) {
	r := o.request
	refused := errors.Is(err, connectionRefused)
	if refused {
		causes = append(causes, "the service is not running")
	}
	way, key := o.wayCauses(), o.keyCauses()
	if len(r.Services) > 0 {
		causes = append(append(causes, key...), way...)
	} else {
		causes = append(append(causes, way...), key...)
	}
	if !o.server.counts {
		causes = append(causes, fmt.Sprintf("a clock is wrong: this computer says %s; servers take requests within %s of theirs, unless they say otherwise",
			time.Now().UTC().Format("2006-01-02 15:04:05 UTC"), serverWindow))
	}
	switch {
	case len(r.Addresses) > 0:
		causes = append(causes, "the server does not take a stated address, or sees this computer by another one (behind NAT): try --address observed")
	case !r.Observed:
		causes = append(causes, "the server sees this computer by another address than its own (behind NAT): try --address observed")
	}
	if refused {
		return causes
	}
	return append(causes, "the service is down, or the server is")
}

// wayCauses are what may keep the datagram from arriving.
func (o *order) wayCauses() []string {
	causes := []string{map[sallyport.Transport]string{
		sallyport.OverUDP:  "something on the way drops udp: try --over icmp, or --over tcp",
		sallyport.OverICMP: "something on the way drops pings, or the server does not take requests over icmp: try --over udp",
		sallyport.OverTCP:  "something on the way drops a SYN with data, or the server does not take requests over tcp: try --over udp",
	}[o.request.Over]}
	if o.request.Server.Suite() == spa.PostQuantum {
		causes = append(causes, "something on the way does not take 1,372 bytes in one piece: try another network, or ask the server's owner for a classic address")
	}
	return causes
}

// keyCauses are what the server may have against the key, or the key's owner
// against the server's address.
func (o *order) keyCauses() []string {
	key, err := spa.ParsePublicKey(o.request.Signer.PublicKey())
	if err != nil {
		return nil
	}
	what := "this"
	if len(o.request.Services) > 0 {
		what = strings.Join(o.request.Services, ", ")
	}
	return []string{
		fmt.Sprintf("the key %s is not in the server's authorized_keys, or may not open %s", key.Fingerprint(), what),
		"the server has a new address since (its key was rotated): ask its owner for a new invitation",
	}
}
