package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/sallyport/sallyport"
)

// addCmd stores a server under a name.
type addCmd struct {
	Name     string         `arg:"" help:"What to call the server: a-z, 0-9, _, - and ., such as home or web1.example.net."`
	Operands []string       `arg:"" optional:"" name:"address|step" help:"What opens the server: its address, sallyport1…, which its owner gives out; or the steps of a sequence, in order, such as 7000/tcp 8500/udp. A lone - reads either from standard input, so that it stands in no history and no process list; a line with a secret, sallyport-otp… or sallyport-encoded…, comes in no other way."`
	OTPList  string         `name:"otp-list" placeholder:"FILE" help:"In place of steps: this computer's copy of a list of one-time sequences, of which each knock uses up a line."`
	Host     string         `help:"The server's name or IP address; needed."`
	Key      string         `placeholder:"FILE|agent|agent:SHA256:…" help:"The SSH key that signs, for a server with an address: a private key's file, a .pub file of a key in ssh-agent, or the agent's key with that fingerprint. Without it the agent's first one that fits is chosen, else id_ed25519, id_ecdsa or id_rsa in ~/.ssh; whichever it is stays the server's."`
	Port     uint16         `placeholder:"62201" help:"The UDP port that the server hears datagrams at."`
	Over     string         `enum:"udp,icmp,tcp," default:"" placeholder:"udp" help:"What carries the datagram: udp, icmp (a ping) or tcp (a SYN)."`
	Service  []string       `placeholder:"NAME=PORT" help:"The TCP port of a service, for --wait and --then. May be given several times."`
	Clock    string         `enum:"system,none," default:"" placeholder:"system" help:"none: the server has no clock and wants numbers that rise; this computer counts them."`
	Delay    *time.Duration `placeholder:"20ms" help:"Pause between two steps or ports; 0 for none."`
	SSH      bool           `name:"ssh" help:"Let 'ssh NAME' knock first: writes ~/.ssh/config.d/sallyport-NAME, and one Include line at the top of ~/.ssh/config."`
	Force    bool           `help:"Replace a server of that name."`
}

// Run stores the server, and tells what its owner must know.
func (c *addCmd) Run(u *ui) error {
	raw, err := c.raw(u)
	if err != nil {
		return usageError{err}
	}
	dir, err := storeDir()
	if err != nil {
		return err
	}
	file := filepath.Join(dir, c.Name+".toml")
	if _, err := os.Lstat(file); err == nil && !c.Force {
		return fmt.Errorf("there is a server %s already: choose another name, or replace it with --force", c.Name)
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s can't be looked at: %w", file, pathCause(err))
	}
	key, err := c.chooseKey(raw, u)
	if err != nil {
		return err
	}
	s, err := raw.check(c.Name)
	if err != nil {
		return usageError{err}
	}
	if err := raw.store(file, c.Name); err != nil {
		return err
	}
	u.say("stored %s in %s", c.Name, file)
	if key != nil {
		u.say("its key is %s, %s, from %s", key.public.Fingerprint(), key.public.Type(), key.where)
		u.say("give the server's owner this line for the authorized_keys of its knock:")
		u.print("%s\n", key.line())
	}
	if c.SSH {
		return s.configureSSH(u)
	}
	if s.otp != nil {
		u.say("'sallyport ports %s' prints its ports, for any tool", c.Name)
	}
	u.say("'sallyport knock %s --wait' opens it", c.Name)
	return nil
}

// raw is the command line as a file would have it, but for the key.
func (c *addCmd) raw(u *ui) (*rawServer, error) {
	if err := checkServerName(c.Name); err != nil {
		return nil, err
	}
	if c.Host == "" { // what opens the server is not repeated: it is no stranger's business
		return nil, fmt.Errorf("--host is missing: type 'sallyport add %s %s --host HOST', where HOST is the server's name or IP address", c.Name, c.shape())
	}
	host, err := checkHost(strings.TrimPrefix(c.Host, "host:"), false, false)
	if err != nil {
		return nil, err
	}
	raw := &rawServer{Host: host, Port: c.Port, Over: c.Over, Clock: c.Clock}
	if c.Delay != nil {
		raw.Delay = c.Delay.String()
	}
	if raw.Services, err = parseServices(c.Service); err != nil {
		return nil, err
	}
	operands := c.Operands
	if len(operands) == 1 && operands[0] == "-" {
		if atTerminal(u.in) {
			u.say("paste what the server's owner gave you, then type Return and Ctrl-D")
		}
		text, err := readInput(u.in)
		if err != nil {
			return nil, err
		}
		operands = strings.Fields(text)
		if isSecretLine(text) {
			operands, raw.Knock = nil, knockLine(text)
		} else if holdsSecret(text) {
			return nil, errors.New("this holds a secret and is not the line that a server is stored by: give the whole line that begins with sallyport-otp or sallyport-encoded; one that begins with otpauth: is for an authenticator app")
		}
	}
	if c.OTPList != "" && len(c.Operands) > 0 {
		return nil, errors.New("--otp-list is in place of an address or steps: give one of them")
	} else if c.OTPList != "" {
		if raw.List, err = filepath.Abs(c.OTPList); err == nil {
			_, err = newListKnock(raw.List, 0)
		}
		if err != nil {
			return nil, err
		}
	}
	if raw.Knock == "" && raw.List == "" {
		if err := raw.setOperands(operands); err != nil {
			return nil, err
		}
	}
	if raw.Address == "" && c.Key != "" {
		return nil, errors.New("--key is for a server with an address: nothing else is signed")
	}
	_, err = raw.check(c.Name)
	return raw, err
}

// knockLine is the line with a secret in what invite printed, behind which the URI
// for an authenticator app may stand.
func knockLine(text string) string {
	line, rest, _ := strings.Cut(strings.TrimSpace(text), "\n")
	if rest = strings.TrimSpace(rest); rest != "" && !strings.HasPrefix(rest, "otpauth://") {
		line += " " + rest // a terminal broke it, or it is wrong
	}
	return strings.Join(strings.Fields(line), " ")
}

// shape is what the operands look like.
func (c *addCmd) shape() string {
	switch {
	case c.OTPList != "":
		return "--otp-list FILE"
	case len(c.Operands) == 0:
		return "sallyport1…"
	case isStep(c.Operands[0]):
		return "STEP…"
	case c.Operands[0] == "-" || isSecretLine(c.Operands[0]):
		return "-"
	}
	return "sallyport1…"
}

// setOperands tells an address from steps.
func (r *rawServer) setOperands(operands []string) error {
	for _, operand := range operands {
		switch {
		case isSecretLine(operand) || holdsSecret(operand):
			return errors.New("this line holds a secret, which now stands in your shell's history and in the process list: give - in its place, and the line on standard input")
		case operand == "-":
			return errors.New("- reads the address or all the steps from standard input: give it alone")
		case isStep(operand):
			r.Sequence = append(r.Sequence, operand)
		case r.Address != "":
			return fmt.Errorf("%.20q stands behind the address: give one address, or steps", operand)
		default:
			r.Address = operand
		}
	}
	switch {
	case len(operands) == 0:
		return errors.New("nothing to store: give the server's address, sallyport1…, or the steps of its sequence, such as 7000/tcp 8500/udp")
	case r.Address != "" && len(r.Sequence) > 0:
		return fmt.Errorf("%.14q stands among steps: give one address, or steps such as 7000/tcp", r.Address)
	case r.Address != "" && !strings.HasPrefix(r.Address, "sallyport1"):
		return fmt.Errorf("%.40q is no address and no step: an address begins with sallyport1, a step is 7000/tcp, 8500/udp or icmp", r.Address)
	}
	return nil
}

// parseServices reads NAME=PORT; "/tcp" may follow.
func parseServices(list []string) (map[string]uint16, error) {
	services := map[string]uint16{}
	for _, text := range list {
		name, number, ok := strings.Cut(text, "=")
		port, err := strconv.ParseUint(strings.TrimSuffix(number, "/tcp"), 10, 16)
		if !ok || err != nil || port == 0 {
			return nil, fmt.Errorf("--service %.60q: give a name and a tcp port, as in ssh=22", text)
		}
		if err := checkService(name); err != nil {
			return nil, err
		}
		if _, twice := services[name]; twice {
			return nil, fmt.Errorf("--service %s is given twice: a service has one port here", name)
		}
		services[name] = uint16(port)
	}
	return services, nil
}

// chooseKey pins the key of a server with an address.
func (c *addCmd) chooseKey(raw *rawServer, u *ui) (*chosenKey, error) {
	if raw.Address == "" {
		return nil, nil
	}
	address, err := sallyport.ParseAddress(raw.Address)
	if err != nil {
		return nil, usageError{err}
	}
	key, err := chooseKey(c.Key, address.Suite(), u)
	if err != nil {
		return nil, err
	}
	raw.Key = key.name
	return key, nil
}
