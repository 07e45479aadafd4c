package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/internal/sequence"
)

// knockCmd sends a knock and, if asked to, waits until a port answers.
type knockCmd struct {
	Target   string        `arg:"" name:"host" help:"The server's name or address. host:NAME is always a host."`
	Operands []string      `arg:"" name:"step" optional:"" help:"What to send, in order: 7000/tcp, 8500/udp, icmp, 37/icmp. A lone - reads the steps from standard input, so that they stand in no history and no process list."`
	IPv4     bool          `name:"ipv4" short:"4" xor:"family" help:"Knock over IPv4."`
	IPv6     bool          `name:"ipv6" short:"6" xor:"family" help:"Knock over IPv6."`
	Delay    time.Duration `default:"20ms" help:"Pause between two steps; 0 for none (${default})."`
	Then     string        `placeholder:"PORT" help:"Try this TCP port until it answers, and knock again when it does not."`
	Timeout  time.Duration `default:"30s" help:"Give up after this long (${default})."`
}

// knockPlan is a command line that was understood.
type knockPlan struct {
	knock  sallyport.Knock
	host   string
	family string // "", "4" or "6": the end of package net's network names
	port   string // of --then; empty without
}

// Run knocks.
func (c *knockCmd) Run(u *ui) error {
	plan, err := c.plan(u.in)
	if err != nil {
		return usageError{err}
	}
	dialer := sallyport.Dialer{Knock: plan.knock, Timeout: c.Timeout}
	if plan.port != "" {
		err = plan.open(&dialer, u)
	} else {
		err = plan.send(&dialer, u)
	}
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		return fmt.Errorf("no address for %s: %s; check the name, or give an address", plan.host, dns.Err)
	}
	return err
}

func (c *knockCmd) plan(in io.Reader) (p knockPlan, err error) {
	if p.host, p.family, err = c.target(); err != nil {
		return p, err
	}
	if p.knock, err = c.knock(in); err != nil {
		return p, err
	}
	if p.port, err = c.port(); err != nil {
		return p, err
	}
	if c.Delay < 0 || c.Timeout <= 0 {
		return p, errors.New("a time is out of range: --delay takes 0 or more, --timeout more than 0, such as 20ms or 5s")
	}
	if p.knock.Delay = c.Delay; c.Delay == 0 {
		p.knock.Delay = -1 // the package's zero is its default
	}
	return p, nil
}

// target reads the host and the family that -4, -6 or a literal ask for.
func (c *knockCmd) target() (host, family string, err error) {
	host = strings.TrimPrefix(c.Target, "host:")
	if inner, ok := strings.CutPrefix(host, "["); ok {
		host = strings.TrimSuffix(inner, "]")
	}
	switch {
	case c.IPv4:
		family = "4"
	case c.IPv6:
		family = "6"
	}
	addr, err := netip.ParseAddr(host)
	switch {
	case err == nil && c.IPv4 && !addr.Unmap().Is4():
		return "", "", fmt.Errorf("%s is an IPv6 address, but -4 asks for IPv4: leave one out", host)
	case err == nil && c.IPv6 && addr.Unmap().Is4():
		return "", "", fmt.Errorf("%s is an IPv4 address, but -6 asks for IPv6: leave one out", host)
	case err == nil:
		return host, family, nil
	case isStep(host):
		return "", "", fmt.Errorf("%q is a step, but the host comes first: sallyport knock HOST %s", host, host)
	case host == "" || strings.ContainsAny(host, ":/[]% "):
		return "", "", fmt.Errorf("%q is no host: give a name or an address, without a port", host)
	}
	return host, family, nil
}

// isStep tells steps from the names of services (DESIGN section 7).
func isStep(operand string) bool { return operand == "icmp" || strings.Contains(operand, "/") }

// maxInput is the most that is read from standard input, in bytes: 32 steps of
// the longest spelling (41 bytes and a space), thrice.
const maxInput = 4096

// knock reads the steps from the command line, or from in.
func (c *knockCmd) knock(in io.Reader) (sallyport.Knock, error) {
	if len(c.Operands) == 1 && c.Operands[0] == "-" {
		text, err := io.ReadAll(io.LimitReader(in, maxInput+1))
		if err != nil {
			return sallyport.Knock{}, fmt.Errorf("standard input cannot be read: %w", err)
		}
		if len(text) > maxInput {
			return sallyport.Knock{}, fmt.Errorf("standard input has more than %d bytes: steps never need as many", maxInput)
		}
		return sallyport.ParseKnock(string(text))
	}
	steps := 0
	for _, operand := range c.Operands {
		if isStep(operand) {
			steps++
		} else if operand == "-" {
			return sallyport.Knock{}, errors.New("- reads all the steps from standard input: give it alone")
		}
	}
	for _, operand := range c.Operands {
		switch {
		case isStep(operand):
		case steps > 0:
			return sallyport.Knock{}, fmt.Errorf("%q is a service among steps: give steps such as 7000/tcp, or services, not both", operand)
		default:
			return sallyport.Knock{}, fmt.Errorf("%q is no step: a plain host has no services to ask for, write the steps out, as in 7000/tcp 8500/udp", operand)
		}
	}
	return sallyport.ParseKnock(strings.Join(c.Operands, " "))
}

// port reads --then: "22" or "22/tcp".
func (c *knockCmd) port() (string, error) {
	if c.Then == "" {
		return "", nil
	}
	spelled := c.Then
	if !strings.Contains(spelled, "/") {
		spelled += "/tcp"
	}
	port, err := sequence.ParseStep(spelled)
	switch {
	case err == nil && port.Proto == sequence.UDP:
		return "", fmt.Errorf("--then %s: only a tcp port answers a try; nothing says whether a udp port is open", c.Then)
	case err != nil || port.Proto != sequence.TCP || strings.Contains(spelled, ":"):
		return "", fmt.Errorf("--then %s: give one port from 1 to 65535, as 22 or 22/tcp", c.Then)
	}
	return strconv.Itoa(int(port.Port)), nil
}

func (p *knockPlan) send(dialer *sallyport.Dialer, u *ui) error {
	addr, err := dialer.Send(context.Background(), "ip"+p.family, p.host)
	if err != nil {
		return err
	}
	what := "1 step"
	if n := len(p.knock.Steps); n > 1 {
		what = fmt.Sprintf("%d steps", n)
	}
	u.say("sent %s to %s", what, addr)
	return nil
}

// open knocks until the port answers, and says how long that took a person to
// wait, from the name lookup on.
func (p *knockPlan) open(dialer *sallyport.Dialer, u *ui) error {
	start := time.Now()
	conn, err := dialer.DialContext(context.Background(), "tcp"+p.family, net.JoinHostPort(p.host, p.port))
	if err != nil {
		return err
	}
	took := time.Since(start).Round(100 * time.Microsecond)
	addr := conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
	u.say("%s/tcp at %s is open, after %s", p.port, addr, took)
	return conn.Close()
}
