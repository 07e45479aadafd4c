package sallyport

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/sallyport/sallyport/internal/spa"
)

// Address is what a client must know of a server to send it a Request: one
// line, which the server's owner hands out.
type Address = spa.Address

// ParseAddress reads a server's address, "sallyport1" and what follows, without
// white space around it. The error does not quote it.
func ParseAddress(line string) (*Address, error) { return spa.ParseAddress(line) }

// Signer is an SSH key that can sign: a file's ([LoadKey]), an agent's
// ([AgentKeys]), or one of your own.
type Signer = spa.Signer

// Fingerprint is the SHA-256 of a public key; its text is that of ssh-keygen -l.
type Fingerprint = spa.Fingerprint

// Action is what a Request asks for.
type Action = spa.Action

// The actions.
const (
	Open   = spa.Open   // let me reach services
	Close  = spa.Close  // end what I opened
	Extend = spa.Extend // keep open what I opened; open nothing that is not
)

// Transport is what carries a Request. The datagram is the same in each.
type Transport uint8

// The transports.
const (
	OverUDP  Transport = iota // a UDP datagram
	OverICMP                  // the payload of an echo request
	OverTCP                   // the data of a SYN
)

var transports = [...]Proto{OverUDP: UDP, OverICMP: ICMP, OverTCP: TCP}

// String gives "udp", "icmp" or "tcp".
func (t Transport) String() string {
	if int(t) >= len(transports) {
		return fmt.Sprintf("transport %d", uint8(t))
	}
	return transports[t].String()
}

// DefaultPort is where a server hears requests over UDP and TCP unless its
// owner chose another port.
const DefaultPort = spa.DefaultPort

// requestLife is how long after its stamp a request is sent again unchanged:
// well within the ±60 s that servers allow for clocks by default.
const requestLife = 20 * time.Second

// softwareLife is the same for a key that signs without its owner: a request
// that the server heard and could not grant, because it was busy, is spent.
const softwareLife = 2 * time.Second

// copies are the pauses before each of the identical datagrams, in all 0, 30
// and 90 ms after the first. One may be lost, and a burst of losses on a radio
// link seldom lasts as long; a server recognises the others as repeats.
var copies = [...]time.Duration{0, 30 * time.Millisecond, 60 * time.Millisecond}

// Request is a knock of one datagram, encrypted to the server and signed by an
// SSH key. A value may be used by several goroutines as long as nobody changes
// it and Signer and Stamp allow it.
type Request struct {
	Server *Address
	Signer Signer
	Port   uint16 // over UDP and TCP; 0: DefaultPort
	Over   Transport
	Action Action // zero: Open
	// Services are names; none: all that the key may open.
	Services []string
	// For is how long, in whole seconds up to 30 days; 0: as long as the service
	// opens by itself.
	For time.Duration
	// Addresses are what to open for, at most one of each family, which needn't
	// be the sender's; the server may not allow it. None: the local address if
	// it is a public one, else the address that the server sees.
	Addresses []netip.Addr
	// Observed leaves the local address out even if it is public, for hosts
	// behind a network that rewrites public addresses.
	Observed bool
	// Stamp gives a number that is larger each time, for servers that compare
	// no clocks. nil: the time, in nanoseconds since 1970.
	Stamp func() (int64, error)
}

// Validate says what keeps the request from being sealed: a field that is out
// of range, no server or signer, or a key that the server can't take. How many
// services fit only Seal can tell, for it depends on the signature.
func (r *Request) Validate() error {
	switch {
	case r.Server == nil:
		return errors.New("the request is for no server: give its address, the line that begins with sallyport1")
	case r.Signer == nil:
		return errors.New("the request has no key to sign with: name a key file, or use ssh-agent")
	case int(r.Over) >= len(transports):
		return fmt.Errorf("there is no %v: a request goes over udp, icmp or tcp", r.Over)
	case r.Observed && len(r.Addresses) > 0:
		return errors.New("the request states an address and asks for the observed one: leave one of them out")
	}
	if err := checkAddresses(r.Addresses); err != nil {
		return err
	}
	// Sealing checks everything else, and stops short at a signer that won't.
	_, err := spa.Seal(r.Server, r.fields(netip.Addr{}, 1), unwilling{r.Signer})
	if errors.Is(err, errUnwilling) {
		return nil
	}
	return err
}

// unwilling is a key that does not sign: nobody is asked to touch anything.
type unwilling struct{ Signer }

var errUnwilling = errors.New("not signed")

// Sign does not.
func (unwilling) Sign([]byte) ([]byte, error) { return nil, errUnwilling }

func checkAddresses(stated []netip.Addr) error {
	if len(stated) > 2 || len(stated) == 2 && stated[0].Unmap().Is4() == stated[1].Unmap().Is4() {
		return errors.New("the request states two addresses of one family: there is room for one IPv4 and one IPv6 address")
	}
	for _, a := range stated {
		if !a.IsValid() || a.IsUnspecified() || a.Zone() != "" {
			return fmt.Errorf("%s is no address to open for: state one host's address, without a zone", a)
		}
	}
	return nil
}

// fields is the request as it travels.
func (r *Request) fields(local netip.Addr, stamp int64) *spa.Request {
	f := &spa.Request{Stamp: stamp, Action: r.Action, For: r.For, Services: r.Services}
	if f.Action == 0 {
		f.Action = Open
	}
	stated := r.Addresses
	if len(stated) == 0 && !r.Observed && public(local.Unmap()) {
		stated, f.Own = []netip.Addr{local}, true
	}
	for _, a := range stated {
		if a = a.Unmap(); a.Is4() {
			f.IPv4 = a
		} else {
			f.IPv6 = a
		}
	}
	return f
}

// translated are prefixes of addresses that a host can have and that the server
// does not see: something on the way puts another in their place.
var translated = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),     // RFC 791 section 3.2
	netip.MustParsePrefix("100.64.0.0/10"), // carriers' NAT, RFC 6598
	netip.MustParsePrefix("192.0.0.0/24"),  // IPv4 over IPv6 only, RFC 7335
	netip.MustParsePrefix("198.18.0.0/15"), // benchmarks, and proxies' stand-ins, RFC 2544
	netip.MustParsePrefix("240.0.0.0/4"),   // reserved, RFC 1112
}

var globalIPv6 = netip.MustParsePrefix("2000::/3") // RFC 4291 section 2.4

// public reports whether a server is likely to see this local address of ours.
func public(a netip.Addr) bool {
	if !a.IsGlobalUnicast() || a.IsPrivate() || a.Zone() != "" {
		return false
	}
	if a.Is6() {
		return globalIPv6.Contains(a)
	}
	for _, p := range translated {
		if p.Contains(a) {
			return false
		}
	}
	return true
}

// Seal gives the datagram, of 448, 832 or 1,372 bytes, that asks once. It is
// good for about 20 s and, if it states no address, opens for whoever delivers
// it. The zero local states none.
func (r *Request) Seal(local netip.Addr) ([]byte, error) {
	b, _, _, err := r.seal(local)
	return b, err
}

// seal also gives what was sealed and until when it is good: from before the
// signature on, for which somebody may have to find a hardware key.
func (r *Request) seal(local netip.Addr) ([]byte, *spa.Request, time.Time, error) {
	if err := r.Validate(); err != nil {
		return nil, nil, time.Time{}, err
	}
	now := time.Now()
	stamp := now.UnixNano()
	if r.Stamp != nil {
		var err error
		if stamp, err = r.Stamp(); err != nil {
			return nil, nil, time.Time{}, fmt.Errorf("no number for the request: %w", err)
		}
	}
	life := softwareLife
	if key, err := spa.ParsePublicKey(r.Signer.PublicKey()); err == nil && key.Hardware() {
		life = requestLife
	}
	f := r.fields(local, stamp)
	b, err := spa.Seal(r.Server, f, r.Signer)
	return b, f, now.Add(life), err
}

// Plan seals the request and gives three copies of it.
func (r *Request) Plan(local, remote netip.Addr) (*Plan, error) {
	p, err := newPlan(local, remote)
	if err != nil {
		return nil, err
	}
	b, f, until, err := r.seal(p.Local)
	if err != nil {
		return nil, err
	}
	p.Copies, p.Until, p.About = true, until, r.about(f, len(b))
	for _, wait := range copies {
		p.Packets = append(p.Packets, Packet{Proto: transports[r.Over], Port: r.port(), Payload: b, Wait: wait})
	}
	return p, nil
}

func (r *Request) port() uint16 {
	switch {
	case r.Over == OverICMP:
		return 0
	case r.Port == 0:
		return DefaultPort
	}
	return r.Port
}

func (r *Request) about(f *spa.Request, size int) string {
	what := "all services that the key may open"
	if len(f.Services) > 0 {
		what = strings.Join(f.Services, ", ")
	}
	long := ""
	if f.For > 0 {
		long = fmt.Sprintf(" for %v", f.For)
	}
	whom := "the address that the server sees"
	if stated := f.Stated(); f.Own {
		whom = fmt.Sprintf("%s, if it comes from there", stated[0])
	} else if len(stated) > 0 {
		whom = strings.Trim(fmt.Sprint(stated), "[]")
	}
	signer := "(unknown)"
	if key, err := spa.ParsePublicKey(r.Signer.PublicKey()); err == nil {
		signer = fmt.Sprintf("%s %s", key.Type(), key.Fingerprint())
	}
	return fmt.Sprintf("asks to %s: %s%s\nfor address: %s\nsigned by: %s\nsealed: %v, %d bytes",
		f.Action, what, long, whom, signer, r.Server.Suite(), size)
}
