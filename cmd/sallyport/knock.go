package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/sallyport/sallyport/internal/spa"
)

// knockCmd sends a knock and, if asked to, waits until ports answer.
type knockCmd struct {
	Target   string   `arg:"" help:"A server that 'sallyport add' stored, or else a host's name or address. host:NAME is always a host."`
	Operands []string `arg:"" name:"step|service" optional:"" help:"For a host: what to send, in order, such as 7000/tcp, 8500/udp, icmp, 37/icmp; a lone - reads the steps from standard input, so that they stand in no history and no process list. For a stored server with an address: the services to ask for; none asks for all that you may. For one with an encoded knock: one service or port."`
	IPv4     bool     `name:"ipv4" short:"4" xor:"family" help:"Knock over IPv4 alone."`
	IPv6     bool     `name:"ipv6" short:"6" xor:"family" help:"Knock over IPv6 alone."`
	wayOut
	Delay   *time.Duration `placeholder:"20ms" help:"Pause between two steps; 0 for none. A stored sequence has its own."`
	For     time.Duration  `placeholder:"TIME" help:"Ask for this long, such as 30s or 2h; without it the service's own time."`
	Address string         `placeholder:"auto|observed|ADDR[,ADDR]" help:"Whom to open for: auto states this computer's own address if it is a public one; observed lets the server take the one that it sees; else an IPv4 address, an IPv6 address or one of each, if the server allows that. For one-time ports: the address that the server sees."`
	Close   bool           `xor:"action" help:"End what this key or secret opened, instead of opening."`
	Extend  bool           `xor:"action" help:"Keep open what is open, instead of opening."`
	Over    string         `enum:"udp,icmp,tcp," default:"" placeholder:"udp|icmp|tcp" help:"What carries the datagram: udp, icmp (a ping) or tcp (a SYN, which needs CAP_NET_RAW)."`
	Then    string         `placeholder:"PORT|SERVICE" xor:"until" help:"Try this TCP port until it answers, and knock again when it does not."`
	Wait    bool           `xor:"until" help:"Try the TCP ports of what was asked for until they answer: those that were stored with --service, else the usual ones."`
	Timeout *time.Duration `placeholder:"30s" help:"Give up after this long; with one-time ports the default is a time step and 10s, if that is more."`
	DryRun  bool           `xor:"send" help:"Send nothing; say what would be sent. The key signs all the same."`
	Verbose bool           `short:"v" help:"With --dry-run, print what is asked and every packet."`
	Repeat  int            `placeholder:"TIMES" help:"For an encoded knock: send each packet as often, 1 to 8, against loss (default 1)."`
	Payload string         `placeholder:"FILE|-" help:"For an encoded knock: what the server's command gets on its standard input."`
	Mask    int            `placeholder:"BITS" help:"For an encoded knock: open for the network of that many bits around the address, such as 24, if the server allows that."`
	Code    string         `placeholder:"-" help:"For one-time ports with digits: - asks at the terminal, or else reads from standard input, what an authenticator app shows, in place of the stored secret's own code."`
	OTPList string         `name:"otp-list" placeholder:"FILE" help:"Send the next unused line of this list of one-time sequences, and mark it as used first."`
	Save    string         `xor:"send" placeholder:"FILE" help:"Write the datagram to a file of this name instead of sending it."`
	Force   bool           `help:"Let --save replace a file."`
}

// order is a command line that was understood.
type order struct {
	knock   sallyport.Knock
	request *sallyport.Request // the knock, unless it is a sequence
	server  *server            // nil: a host that is not stored
	host    string
	local   netip.Addr // to knock from; the zero one is the system's choice
	family  string     // "", "4" or "6": the end of package net's network names
	ports   []string   // to wait for
	opened  string     // what is said of these when they answer
	began   time.Time
}

// Run knocks.
func (c *knockCmd) Run(u *ui) error {
	o, err := c.order(u)
	if err != nil {
		return usageError{err}
	}
	if err := o.sign(u); err != nil {
		return err
	}
	dialer := sallyport.Dialer{Knock: o.knock, Local: o.local, Interface: c.Interface, Timeout: o.timeout(c.Timeout)}
	switch {
	case c.Save != "":
		err = c.save(o, &dialer, u)
	case c.DryRun:
		err = c.show(o, &dialer, u)
	case len(o.ports) > 0:
		err = o.open(&dialer, u)
	default:
		err = o.send(&dialer, u)
	}
	o.sayLeft(u)
	return o.explain(err)
}

func (c *knockCmd) order(u *ui) (o *order, err error) {
	if c.Delay != nil && *c.Delay < 0 || c.Timeout != nil && *c.Timeout <= 0 {
		return nil, errors.New("a time is out of range: --delay takes 0 or more, --timeout more than 0, such as 20ms or 5s")
	}
	if c.Verbose && !c.DryRun || c.Force && c.Save == "" {
		return nil, errors.New("--verbose goes with --dry-run, and --force with --save")
	}
	o = &order{began: time.Now()}
	if !strings.HasPrefix(c.Target, "host:") {
		if o.server, err = loadServer(c.Target); err != nil {
			return nil, err
		}
	}
	host := strings.TrimPrefix(c.Target, "host:")
	if o.server != nil {
		host = o.server.host
	}
	if err := c.setWay(o, host, c.IPv4, c.IPv6); err != nil {
		return nil, err
	}
	if err := c.setKnock(o, u.in); err != nil {
		return nil, err
	}
	return o, c.setPorts(o, u)
}

func (c *knockCmd) setKnock(o *order, in io.Reader) error {
	if handled, err := c.setList(o); handled || err != nil {
		return err
	}
	if handled, err := c.setSecret(o, in); handled || err != nil {
		return err
	}
	if o.server != nil && o.server.address != nil {
		return c.setRequest(o)
	}
	if c.For != 0 || c.Address != "" || c.Close || c.Extend || c.Over != "" || c.Save != "" {
		return errors.New("--for, --address, --close, --extend, --over and --save are for servers with an address, sallyport1…: a sequence opens what it opens")
	}
	if o.server != nil {
		return c.setStored(o)
	}
	s, err := c.sequence(in)
	if err != nil {
		return err
	}
	if c.Delay != nil {
		s.Delay, err = parseDelay(c.Delay.String())
	}
	o.knock = s
	return err
}

// setStored takes a stored sequence as it is.
func (c *knockCmd) setStored(o *order) error {
	switch {
	case len(c.Operands) > 0 && (isStep(c.Operands[0]) || c.Operands[0] == "-"):
		return fmt.Errorf("%s is stored with its steps: give none, or say host:%s for a host of that name", c.Target, c.Target)
	case len(c.Operands) > 0:
		return fmt.Errorf("%s is stored with a sequence, and a sequence opens what it opens: name no services", c.Target)
	case c.Delay != nil:
		return fmt.Errorf("%s is stored with its pause: change it with 'sallyport add --force'", c.Target)
	}
	o.knock = o.server.sequence
	return nil
}

// setRequest fills in what the command line asks a server with an address for.
func (c *knockCmd) setRequest(o *order) (err error) {
	r := o.server.request()
	for i, operand := range c.Operands {
		if isStep(operand) || operand == "-" {
			return fmt.Errorf("%q is a step, but %s is opened by a signed datagram: name services or nothing, or say host:%s for a host of that name", operand, c.Target, c.Target)
		}
		if err := checkService(operand); err != nil {
			return err
		}
		if slices.Contains(c.Operands[:i], operand) {
			return fmt.Errorf("the service %s is named twice: name it once", operand)
		}
	}
	switch {
	case c.Delay != nil:
		return errors.New("--delay is the pause between the steps of a sequence: a datagram has none")
	case c.Close && (c.For != 0 || c.Then != "" || c.Wait):
		return errors.New("--close opens nothing: leave --for, --then and --wait out")
	case c.For < 0 || c.For%time.Second != 0 || c.For > spa.MaxFor:
		return fmt.Errorf("--for %v is out of range: it takes whole seconds, 1s to %v", c.For, spa.MaxFor)
	case c.Close:
		r.Action = sallyport.Close
	case c.Extend:
		r.Action = sallyport.Extend
	}
	r.Services, r.For = c.Operands, c.For
	if c.Over != "" {
		r.Over = transports[c.Over]
	}
	if r.Addresses, err = parseAddresses(c.Address); err != nil {
		return err
	}
	r.Observed = c.Address == "observed"
	o.request, o.knock = r, r
	return nil
}

// parseAddresses reads --address; auto and observed state none here.
func parseAddresses(text string) (stated []netip.Addr, err error) {
	if text == "" || text == "auto" || text == "observed" {
		return nil, nil
	}
	for field := range strings.SplitSeq(text, ",") {
		a, err := netip.ParseAddr(field)
		if err != nil || a.Zone() != "" || a.IsUnspecified() {
			return nil, fmt.Errorf("--address %.60q: give auto, observed, or a host's IP address; of two, one is IPv4 and one IPv6, with a comma between", text)
		}
		stated = append(stated, a.Unmap())
	}
	if len(stated) > 2 || len(stated) == 2 && stated[0].Is4() == stated[1].Is4() {
		return nil, fmt.Errorf("--address %.90q: there is room for one IPv4 and one IPv6 address", text)
	}
	return stated, nil
}

// isStep tells steps from the names of services (both are operands).
func isStep(operand string) bool { return operand == "icmp" || strings.Contains(operand, "/") }

// maxInput is the most that is read from standard input, in bytes: 32 steps of
// the longest spelling (41 bytes and a space), thrice. An address has 1,677.
const maxInput = 4096

func readInput(in io.Reader) (string, error) {
	text, err := io.ReadAll(io.LimitReader(in, maxInput+1))
	if err != nil {
		return "", fmt.Errorf("standard input cannot be read: %w", err)
	}
	if len(text) > maxInput {
		return "", fmt.Errorf("standard input has more than %d bytes: steps never need as many", maxInput)
	}
	return string(text), nil
}

// sequence reads the steps from the command line, or from in.
func (c *knockCmd) sequence(in io.Reader) (none sallyport.Sequence, err error) {
	if len(c.Operands) == 1 && c.Operands[0] == "-" {
		text, err := readInput(in)
		switch {
		case err != nil:
			return none, err
		case isSecretLine(text) || holdsSecret(text):
			return none, errors.New("this holds a secret, and no steps: 'sallyport add NAME - --host HOST' stores the line, then 'sallyport knock NAME' knocks")
		}
		return sallyport.ParseSequence(text)
	}
	var noStore error // of two reasons why there is no server of that name the first
	if !strings.HasPrefix(c.Target, "host:") {
		_, noStore = storeDir()
	}
	steps := 0
	for _, operand := range c.Operands {
		if isStep(operand) {
			steps++
		} else if operand == "-" {
			return none, errors.New("- reads all the steps from standard input: give it alone")
		}
	}
	for _, operand := range c.Operands {
		switch {
		case isStep(operand):
		case steps > 0:
			return none, fmt.Errorf("%q is a service among steps: give steps such as 7000/tcp, or services, not both", operand)
		case noStore != nil:
			return none, noStore
		default:
			return none, fmt.Errorf("%q is no step: a plain host has no services to ask for, write the steps out, as in 7000/tcp 8500/udp, or store the server with 'sallyport add'", operand)
		}
	}
	if len(c.Operands) == 0 && noStore != nil {
		return none, noStore
	}
	if len(c.Operands) == 0 && !strings.HasPrefix(c.Target, "host:") {
		return none, fmt.Errorf("no server %s is stored, and as a host it needs steps: name at least one, such as 7000/tcp, or store the server with 'sallyport add'", c.Target)
	}
	return sallyport.ParseSequence(strings.Join(c.Operands, " "))
}

// setPorts finds what --then or --wait waits for.
func (c *knockCmd) setPorts(o *order, u *ui) (err error) {
	switch {
	case c.Then != "":
		port, err := o.server.then(c.Then)
		o.ports, o.opened = []string{port}, "is open"
		if o.server != nil {
			o.opened = "answers" // it need not be what was asked for, and may have been open before
		}
		return err
	case !c.Wait:
		return nil
	case o.server == nil:
		return errors.New("--wait is for stored servers: what a sequence opens is not known, so say --then PORT")
	}
	o.opened = "is open"
	services := c.Operands
	switch o.knock.(type) {
	case sallyport.Sequence, *listKnock:
		services = nil
	}
	if k, ok := o.knock.(*sallyport.Encoded); ok && k.Port > 0 {
		if k.PortProto != sallyport.TCP {
			return errors.New("--wait tries tcp ports, and nothing says whether a udp port is open: leave it out")
		}
		o.ports = []string{strconv.Itoa(int(k.Port))}
		return nil
	}
	if o.ports, err = o.server.ports(services); err != nil {
		return err
	}
	if len(services) == 0 && len(o.server.services) == 0 {
		u.say("no ports are stored for %s, so this waits for ssh, %s/tcp; 'sallyport add --service NAME=PORT' stores others", o.server.name, o.ports[0])
	}
	return nil
}

// then reads --then: "22", "22/tcp" or a service's name.
func (s *server) then(text string) (string, error) {
	port, err := readPort(text)
	if err == nil || strings.ContainsAny(text, "/:") || strings.Trim(text, "0123456789-") == "" {
		if err != nil {
			err = fmt.Errorf("--then %w", err)
		}
		return port, err
	}
	return s.servicePort(text)
}

// readPort reads "22" or "22/tcp".
func readPort(text string) (string, error) {
	spelled := text
	if !strings.Contains(spelled, "/") {
		spelled += "/tcp"
	}
	port, err := sequence.ParseStep(spelled)
	switch {
	case err == nil && port.Proto == sequence.UDP:
		return "", fmt.Errorf("%.40q: only a tcp port answers a try; nothing says whether a udp port is open", text)
	case err != nil || port.Proto != sequence.TCP || strings.Contains(spelled, ":"):
		return "", fmt.Errorf("%.40q: give one port from 1 to 65535, as 22 or 22/tcp", text)
	}
	return strconv.Itoa(int(port.Port)), nil
}

// noServer says what to do about a name that nobody stored.
func noServer(name string) error {
	if _, err := storeDir(); err != nil {
		return err
	}
	return fmt.Errorf("no server %.64q is stored: 'sallyport add' stores one", name)
}

// sign makes the request's key ready; somebody may have to type a passphrase.
func (o *order) sign(u *ui) (err error) {
	if o.request != nil {
		o.request.Signer, err = o.server.signer(u)
	}
	return err
}

func (o *order) send(dialer *sallyport.Dialer, u *ui) error {
	sent, err := dialer.Send(context.Background(), "ip"+o.family, o.host)
	if len(sent) == 0 {
		return err
	}
	u.say("sent %s to %s", o.what(), listed(sent))
	if err != nil { // ssh would take the other family then
		u.say("the host's other address got none: %v", err)
	}
	if o.once(sent) {
		u.hint("these ports are good once from any address, so they open for one of the two, usually the first: -4 or -6 says which")
	}
	return nil
}

// what is sent, for people.
func (o *order) what() string {
	if o.request != nil {
		return fmt.Sprintf("a request to %v", action(o.request.Action))
	}
	switch k := o.knock.(type) {
	case *listKnock:
		return "a one-time sequence"
	case *sallyport.OTP:
		return "one-time ports"
	case *sallyport.Encoded:
		return fmt.Sprintf("a message to %v, in port numbers,", action(k.Action))
	case sallyport.Sequence:
		if n := len(k.Steps); n > 1 {
			return fmt.Sprintf("%d steps", n)
		}
	}
	return "1 step"
}

// action is what is asked for when nobody says.
func action(a sallyport.Action) sallyport.Action {
	if a == 0 {
		return sallyport.Open
	}
	return a
}

// open knocks until the ports answer, and says how long that took a person to
// wait, from the name lookup on.
func (o *order) open(dialer *sallyport.Dialer, u *ui) error {
	start := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), dialer.Timeout)
	defer cancel()
	stop := o.tellWait(u)
	conn, err := dialer.DialContext(ctx, "tcp"+o.family, net.JoinHostPort(o.host, o.ports[0]))
	stop()
	if err != nil {
		return err
	}
	conn.Close()
	addr := conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
	direct := dialer.NetDialer(conn.LocalAddr().(*net.TCPAddr).AddrPort().Addr())
	direct.Timeout = time.Second
	for _, port := range o.ports[1:] {
		if err := await(ctx, direct, net.JoinHostPort(addr.String(), port)); err != nil {
			return err
		}
	}
	took := time.Since(start).Round(100 * time.Microsecond)
	u.say("%s/tcp at %s %s, after %s", strings.Join(o.ports, "/tcp, "), addr, o.opened, took)
	return nil
}

// await tries a port that the knock before opened, from the address that it
// opened for, until ctx ends. Each try is a socket of its own: the kernel repeats
// a lost SYN only after a second.
func await(ctx context.Context, dialer *net.Dialer, address string) error {
	for {
		conn, err := dialer.DialContext(ctx, "tcp", address)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-ctx.Done():
			return &stillShut{address, ctx.Err()}
		case <-time.After(50 * time.Millisecond): // a refusal comes at once
		}
	}
}

// stillShut says that one port answered and another did not.
type stillShut struct {
	address string
	ended   error
}

// Error names the port.
func (e *stillShut) Error() string {
	return fmt.Sprintf("%s did not open in time, though another port did: its service may be down, or not among those that the key may open", e.address)
}

// Unwrap gives context.DeadlineExceeded.
func (e *stillShut) Unwrap() error { return e.ended }
