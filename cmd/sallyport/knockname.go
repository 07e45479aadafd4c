package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/internal/sequence"
)

// knockUsage is what -h prints. Its first line is the original's; -i and --source
// are ours.
const knockUsage = `usage: knock [options] <host> <port[:proto]> [port[:proto]] ...
options:
  -u, --udp              send every hit over UDP, whatever its port says
  -d, --delay <ms>       pause this many milliseconds after each hit (0); 20 keeps
                         hits from overtaking each other on the internet
  -4, --ipv4             use IPv4 alone
  -6, --ipv6             use IPv6 alone
  -i, --interface <name> leave by this network interface (Linux)
      --source <addr>    leave from this address, one of this computer's own
  -v, --verbose          say each hit
  -V, --version          print the version
  -h, --help             print this

A port is a number or a service's name; the protocol is tcp (without one) or udp.
example:  knock -d 20 myserver.example.com 7000 8500:udp 7800

`

// sourceLetter stands for --source, which has no letter of its own.
const sourceLetter = 's'

// knockLong has the original's options in its order, which error texts show. None
// of its abbreviations means something else for ours behind them.
var knockLong = []longOption{
	{"verbose", 'v', false}, {"udp", 'u', false}, {"delay", 'd', true}, {"help", 'h', false},
	{"version", 'V', false}, {"ipv4", '4', false}, {"ipv6", '6', false},
	{"interface", 'i', true}, {"source", sourceLetter, true},
}

// knockName is a command line of the program knock.
type knockName struct {
	udp, verbose, only4, only6 bool
	delay                      string
	way                        wayOut
	host                       string
}

// hit is one packet of it.
type hit struct {
	text string // the port as it was written
	step sallyport.Step
	plan *sallyport.Plan
}

// runKnock is the program under the name knock: the command line, the words and
// the exit statuses are those of knock 0.8.
func runKnock(u *ui, args []string) int {
	var c knockName
	options, operands, err := getopt("knock", args, "vud:hV46i:", knockLong)
	for _, o := range options {
		switch o.letter {
		case 'h':
			return knockHelp(u)
		case 'V':
			u.print("knock 0.8 (sallyport %s)\n", knockVersion())
			return exitDone
		}
		c.set(o)
	}
	if err != nil {
		fmt.Fprintln(u.err, err)
		return knockHelp(u)
	}
	if len(operands) < 2 {
		return knockHelp(u)
	}
	c.host = operands[0]
	if err := c.run(u, operands[1:]); err != nil {
		fmt.Fprintln(u.err, err)
		return exitFailed
	}
	return exitDone
}

// knockHelp fails even when it was asked for, as the original does.
func knockHelp(u *ui) int {
	u.print("%s", knockUsage)
	return exitFailed
}

func knockVersion() string {
	info, ok := debug.ReadBuildInfo()
	if version == "" && ok {
		return info.Main.Version
	}
	return version
}

func (c *knockName) set(o option) {
	switch o.letter {
	case 'u':
		c.udp = true
	case 'v':
		c.verbose = true
	case '4':
		c.only4 = true
	case '6':
		c.only6 = true
	case 'd':
		c.delay = o.value
	case 'i':
		c.way.Interface = o.value
	case sourceLetter:
		c.way.Source = o.value
	}
}

// run sends nothing before all of the command line is understood: half a knock
// would only spoil the next attempt.
func (c *knockName) run(u *ui, ports []string) error {
	delay, err := milliseconds(c.delay)
	if err != nil {
		return err
	}
	hits := make([]hit, len(ports))
	for i, text := range ports {
		if hits[i], err = c.hit(u, text); err != nil {
			return err
		}
	}
	if err := c.plan(hits); err != nil {
		return err
	}
	for i, h := range hits {
		if c.verbose {
			u.print("hitting %s %s:%s\n", h.step.Proto, h.plan.Remote, h.text)
		}
		if err := h.plan.Send(context.Background()); err != nil {
			err = cmp.Or(errors.Unwrap(err), err) // its own words count the packets of a plan
			return fmt.Errorf("knock: hit %d of %d could not be sent to %s, and the rest was not tried: %w", i+1, len(hits), h.plan.Remote, err)
		}
		time.Sleep(delay) // after the last one too: what follows in a script finds the port open
	}
	return nil
}

// plan makes all hits ready, each as a plan of its own: a whole sequence ends at
// what a server of ours takes, and the original's has no end.
func (c *knockName) plan(hits []hit) error {
	remote, dialer, err := c.address(hits[0].text)
	if err != nil {
		return err
	}
	for i := range hits {
		dialer.Knock = sallyport.Sequence{Steps: []sallyport.Step{hits[i].step}}
		if hits[i].plan, err = dialer.Plan(context.Background(), remote); err != nil {
			return fmt.Errorf("knock: %w", err)
		}
		dialer.Local = hits[i].plan.Local // one for all of them
	}
	return nil
}

// milliseconds reads -d as atoi(3): blanks before it and anything behind the
// digits are ignored. What atoi makes of a number out of range is anyone's guess.
func milliseconds(text string) (time.Duration, error) {
	text = strings.TrimLeft(text, " \t\n\v\f\r")
	end := 0
	for end < len(text) && (text[end] >= '0' && text[end] <= '9' || end == 0 && (text[0] == '-' || text[0] == '+')) {
		end++
	}
	n, err := strconv.ParseInt(text[:end], 10, 64)
	switch {
	case errors.Is(err, strconv.ErrRange) || n > math.MaxInt32 || n < math.MinInt32:
		return 0, fmt.Errorf("error: delay is out of range: give 0 to %d milliseconds", math.MaxInt32)
	case err == nil && n < 0:
		return 0, errors.New("error: delay cannot be negative")
	}
	return time.Duration(n) * time.Millisecond, nil
}

// hit reads port[:proto]. The original takes whatever it does not know for TCP.
func (c *knockName) hit(u *ui, text string) (hit, error) {
	name, proto, named := strings.Cut(text, ":")
	h := hit{text: name, step: sallyport.Step{Proto: sallyport.TCP, Flags: sequence.Opening}}
	switch {
	case c.udp || proto == "udp":
		h.step = sallyport.Step{Proto: sallyport.UDP}
	case named && proto != "tcp":
		fmt.Fprintf(u.err, "knock: %.40q names the protocol %.40q, which is neither tcp nor udp: it is sent as tcp\n", text, proto)
	}
	port, err := portNumber(name)
	if err != nil {
		return hit{}, &unresolvedError{c.host, name, err}
	}
	h.step.Port = port
	return h, nil
}

// portNumber reads a number as getaddrinfo(3) does, with strtoul(3)'s blanks and
// sign, or a service's name. The original sends what is above 65535 to the rest
// of the division by 65536.
func portNumber(text string) (uint16, error) {
	digits := strings.TrimPrefix(strings.TrimLeft(text, " \t\n\v\f\r"), "+")
	if strings.Trim(digits, "0123456789") != "" {
		// "ip" looks in both protocols, tcp first, as getaddrinfo(3) does.
		port, err := net.DefaultResolver.LookupPort(context.Background(), "ip", text)
		if err != nil || port < 1 || port > math.MaxUint16 {
			return 0, fmt.Errorf("%.40q is no service's name in /etc/services, and no number from 1 to 65535", text)
		}
		return uint16(port), nil
	}
	port, err := strconv.ParseUint(digits, 10, 16)
	if err != nil || port == 0 {
		return 0, fmt.Errorf("%.40q is no port: give a number from 1 to 65535, or a service's name", text)
	}
	return uint16(port), nil
}

// unresolvedError is a host or a port that means nothing.
type unresolvedError struct {
	host, port string
	reason     error
}

// Error begins with the original's line, which scripts may look for.
func (e *unresolvedError) Error() string {
	return fmt.Sprintf("Failed to resolve hostname '%s' on port %s\nknock: %v", e.host, e.port, e.reason)
}

// address looks the host up, once for all hits: of a name with several addresses
// the original may knock at a different one with each hit.
func (c *knockName) address(port string) (remote netip.Addr, dialer sallyport.Dialer, err error) {
	o := order{host: c.host}
	switch {
	case c.only4 && c.only6:
		return remote, dialer, errors.New("knock: -4 asks for IPv4 and -6 for IPv6: leave one out")
	case c.only4:
		o.family = "4"
	case c.only6:
		o.family = "6"
	}
	addr, literal := netip.ParseAddr(c.host)
	if literal == nil && o.family != "" && addr.Unmap().Is4() != c.only4 {
		return remote, dialer, &unresolvedError{c.host, port, fmt.Errorf("%s is no IPv%s address, which -%s asks for", addr, o.family, o.family)}
	}
	if dialer.Local, o.family, err = c.way.local(o.family, c.host); err != nil {
		return remote, dialer, fmt.Errorf("knock: %w", err)
	}
	dialer.Interface = c.way.Interface
	remotes, err := o.remotes(sallyport.DefaultTimeout)
	if err != nil {
		return remote, dialer, &unresolvedError{c.host, port, o.explain(err)}
	}
	return remotes[0], dialer, nil
}
