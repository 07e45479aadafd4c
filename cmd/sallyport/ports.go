package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	"github.com/sallyport/sallyport"
)

// portsCmd prints one-time ports, for any tool that can send them.
type portsCmd struct {
	Name string `arg:"" help:"A server that 'sallyport add' stored with one-time ports."`
	From string `placeholder:"ADDR" help:"The address that the server sees, if it is not this computer's own: behind NAT it is another one."`
	Code string `placeholder:"-" help:"Turn what an authenticator app shows into ports, without the stored secret: - asks for it at the terminal, or else reads it from standard input."`
	IPv4 bool   `name:"ipv4" short:"4" xor:"family" help:"For IPv4 alone."`
	IPv6 bool   `name:"ipv6" short:"6" xor:"family" help:"For IPv6 alone."`
	wayOut
	JSON    bool          `name:"json" help:"Print JSON."`
	Timeout time.Duration `default:"30s" help:"Give up the name lookup after this long (${default})."`
}

// sheet is the ports for one address, as --json prints them.
type sheet struct {
	From    string    `json:"from,omitempty"` // empty: whatever the address
	To      string    `json:"to,omitempty"`
	Ports   []uint16  `json:"ports"`
	Proto   string    `json:"protocol"`
	Until   time.Time `json:"until"`
	Seconds int       `json:"seconds"` // until then
}

// Run prints a line of ports for each of the server's addresses, or one if they do
// not depend on it.
func (c *portsCmd) Run(u *ui) error {
	o, err := c.order(u.in)
	if err != nil {
		return usageError{err}
	}
	sheets, err := c.sheets(o)
	if nat, ok := errors.AsType[*sallyport.TranslatedError](err); ok {
		return fmt.Errorf("%w; with --from ADDR you say it", nat)
	}
	if err != nil {
		return o.explain(err)
	}
	for _, s := range sheets {
		if c.JSON { // an object a line
			text, err := json.Marshal(s)
			if err != nil {
				return err
			}
			u.print("%s\n", text)
			continue
		}
		words := make([]string, len(s.Ports))
		for i, port := range s.Ports {
			words[i] = fmt.Sprintf("%d/%s", port, s.Proto)
		}
		u.print("%s\n", strings.Join(words, " "))
		u.say("%sgood once, until %s, for %ds more", s.whose(), s.Until.Local().Format(time.TimeOnly), s.Seconds)
	}
	return nil
}

func (s *sheet) whose() string {
	whose := ""
	if s.To != "" {
		whose = "to " + s.To + " "
	}
	if s.From != "" {
		whose += "from " + s.From
	}
	if whose != "" {
		whose += ": "
	}
	return whose
}

func (c *portsCmd) order(in io.Reader) (*order, error) {
	if c.Timeout <= 0 {
		return nil, errors.New("--timeout is out of range: it takes more than 0, such as 5s")
	}
	s, err := loadServer(c.Name)
	switch {
	case err != nil:
		return nil, err
	case s == nil:
		return nil, noServer(c.Name)
	case s.encoded != nil:
		return nil, fmt.Errorf("each knock at %s has new ports, %d of them: 'sallyport knock %s --dry-run --verbose' prints those of one", c.Name, messageLength(s.encoded), c.Name)
	case s.otp == nil:
		return nil, fmt.Errorf("%s is not stored with one-time ports: 'sallyport knock %s' opens it", c.Name, c.Name)
	}
	k := s.knock().(*sallyport.OTP)
	o := &order{server: s, knock: k}
	if err := c.setWay(o, s.host, c.IPv4, c.IPv6); err != nil {
		return nil, err
	}
	if c.From != "" {
		if k.Addresses, err = parseAddresses(c.From); err != nil || len(k.Addresses) == 0 {
			return nil, fmt.Errorf("--from %.60q: give the IP address that the server sees, or one IPv4 and one IPv6 address with a comma between", c.From)
		}
	}
	if k.Code, err = readCode(k, c.Code, in); err != nil {
		return nil, err
	}
	return o, k.Validate()
}

// messageLength is how many packets a message takes.
func messageLength(k *sallyport.Encoded) int {
	loopback := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	plan, err := k.Plan(loopback, loopback)
	if err != nil {
		return 0
	}
	return len(plan.Packets)
}

// sheets has at least one, or there is an error. What is known without asking the
// network is not asked.
func (c *portsCmd) sheets(o *order) ([]sheet, error) {
	k, now := o.knock.(*sallyport.OTP), time.Now()
	addresses := k.Addresses
	if !k.Bound() {
		addresses = []netip.Addr{{}}
	}
	var sheets []sheet
	for _, from := range addresses {
		s, err := sheetOf(k, now, from)
		if err != nil {
			return nil, err
		}
		sheets = append(sheets, s)
	}
	if len(sheets) > 0 {
		return sheets, nil
	}
	dialer := sallyport.Dialer{Knock: k, Local: o.local, Interface: c.Interface, Timeout: c.Timeout}
	plans, err := o.plans(&dialer)
	if err != nil {
		return nil, err
	}
	for _, plan := range plans {
		s, err := sheetOf(k, now, plan.Local)
		if err != nil {
			return nil, err
		}
		s.To = plan.Remote.String()
		sheets = append(sheets, s)
	}
	return sheets, nil
}

func sheetOf(k *sallyport.OTP, now time.Time, from netip.Addr) (sheet, error) {
	ports, until, err := k.Ports(now, from)
	s := sheet{Ports: ports, Proto: k.Proto.String(), Until: until.UTC(), Seconds: int(until.Sub(now).Round(time.Second) / time.Second)}
	if from.IsValid() {
		s.From = from.WithZone("").String()
	}
	return s, err
}
