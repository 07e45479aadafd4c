//go:build linux

package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/term"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/keys"
	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/sallyport/sallyport/internal/spa"
)

type inviteCmd struct {
	Config string `short:"c" default:"/etc/sallyport/sallyport.toml" placeholder:"FILE" help:"The config (default ${default})."`
	Host   string `placeholder:"HOST" help:"The name or address by which clients reach this machine (default: its name, if that has a dot)."`
	Name   string `placeholder:"NAME" help:"What clients call this server (default: the first part of HOST)."`
	QR     bool   `name:"qr" help:"Draw the QR code also where standard output is no terminal."`
	NoQR   bool   `name:"no-qr" help:"Draw no QR code."`
	Person string `placeholder:"NAME" help:"Invite this person, by the secret that the knock's file has of them, to a knock of type otp or encoded."`
	Knock  string `arg:"" optional:"" help:"Which knock to invite to, if the config has several that fit."`
}

// Run prints what one user has to type: it holds the server's address, which
// is no secret but better not published. The same line is in the QR code.
func (c *inviteCmd) Run(u *ui) error {
	if c.QR && c.NoQR {
		return usageError{errors.New("--qr and --no-qr can't both be")}
	}
	cfg, err := config.Load(c.Config)
	if err != nil {
		return configError(err)
	}
	if c.Person != "" {
		return c.invitePerson(cfg, u)
	}
	knock, name, host, err := c.chooseWords(cfg, &byAddress)
	if err != nil {
		return err
	}
	list, err := keys.Server(knock.Key)
	if err != nil {
		return err
	}
	line := invitation(cfg, knock, list[0].Key.Address(), name, host)
	u.print("%s\n", line)
	c.draw(u, line)
	u.say("typing it prints the user's public key; that line belongs into %s", keys.Word(knock.AuthorizedKeys))
	return nil
}

// invitable is what kind of knock somebody is invited to.
type invitable struct {
	fits   func(*config.Knock) bool
	are    string // in words, of several
	none   string // what is said where there is no such knock
	misfit func(*config.Knock) string
}

// byAddress are knocks that a server's address is good for.
var byAddress = invitable{
	fits: func(k *config.Knock) bool { return k.Type == "spa" },
	are:  `of type "spa"`,
	none: `there is no knock of type "spa"; make a key with 'sallyport keygen --out FILE', which says what to put into the config; to a knock of type "otp" or "encoded" you invite with --person NAME`,
	misfit: func(k *config.Knock) string {
		if k.HasSecrets() {
			return fmt.Sprintf("knock.%s is of type %q, whose secrets are people's: say whom to invite with --person NAME", k.Name, k.Type)
		}
		return fmt.Sprintf("knock.%s is of type %q; only a knock of type \"spa\" has an address to invite to", k.Name, k.Type)
	},
}

// choose gives the knock that is meant.
func (v *invitable) choose(cfg *config.Config, name string) (*config.Knock, error) {
	var found []*config.Knock
	var names []string
	for i := range cfg.Knocks {
		k := &cfg.Knocks[i]
		if v.fits(k) {
			found, names = append(found, k), append(names, k.Name)
		} else if k.Name == name {
			return nil, errors.New(v.misfit(k))
		}
	}
	i := slices.Index(names, name)
	switch {
	case len(found) == 0:
		return nil, errors.New(v.none)
	case name != "" && i < 0:
		return nil, fmt.Errorf("there is no knock %.40q; say one of %s", name, strings.Join(names, ", "))
	case name != "":
		return found[i], nil
	case len(found) > 1:
		return nil, fmt.Errorf("there are several knocks %s; say which one: %s", v.are, strings.Join(names, ", "))
	}
	return found[0], nil
}

// chooseWords finds the knock, and how its clients are to reach and to call this
// machine.
func (c *inviteCmd) chooseWords(cfg *config.Config, of *invitable) (knock *config.Knock, name, host string, err error) {
	if knock, err = of.choose(cfg, c.Knock); err != nil {
		return nil, "", "", usageError{fmt.Errorf("%s: %w", c.Config, err)}
	}
	machine, _ := os.Hostname() // none is as good as one without a dot
	if host, err = chooseHost(c.Host, machine); err == nil {
		name, err = chooseName(c.Name, host, knock.Name)
	}
	if err != nil {
		return nil, "", "", usageError{err}
	}
	return knock, name, host, nil
}

// hostName reports whether a client's resolver and shell take a name as it stands.
func hostName(s string) bool {
	return plainName(s) && !strings.ContainsRune(".-", rune(s[0])) && s[len(s)-1] != '-'
}

func chooseHost(given, machine string) (string, error) {
	if given == "" {
		if !strings.Contains(machine, ".") || !hostName(machine) {
			return "", errors.New("this machine's own name says nothing to others; name it as clients reach it, with --host")
		}
		return machine, nil
	}
	a, err := netip.ParseAddr(given)
	switch {
	case err == nil && a.Zone() != "":
		return "", fmt.Errorf("%q has a zone, which means something on one machine only; give an address without one", given)
	case err == nil && (a.IsUnspecified() || a.IsMulticast()):
		return "", fmt.Errorf("%s is no address of a machine", a)
	case err == nil:
		return a.Unmap().String(), nil
	case !hostName(given) || looksLikeAddress(given):
		return "", fmt.Errorf("%q is neither the name nor the address of a machine", given)
	}
	return given, nil
}

// looksLikeAddress tells 192.0.2.300 from a name: no top-level domain is a number.
func looksLikeAddress(s string) bool {
	s = strings.TrimSuffix(s, ".")
	last := s[strings.LastIndex(s, ".")+1:]
	return strings.Trim(last, "0123456789") == ""
}

// chooseName names the server by its host, or else by its knock: what a client
// can't store is not offered.
func chooseName(given, host, knock string) (string, error) {
	if given == "" {
		given, _, _ = strings.Cut(strings.ToLower(host), ".")
		if _, err := netip.ParseAddr(host); err == nil || checkServerName(given) != nil {
			given = knock
		}
	}
	if err := checkServerName(given); err != nil {
		return "", fmt.Errorf("%w; give another with --name", err)
	}
	return given, nil
}

// invitation is the client's command line, with the flags that say something
// else than its defaults.
func invitation(cfg *config.Config, k *config.Knock, a *spa.Address, name, host string) string {
	words := []string{"sallyport", "add", name, a.String(), "--host", host}
	if k.Port != spa.DefaultPort {
		words = append(words, "--port", strconv.Itoa(int(k.Port)))
	}
	if !slices.Contains(k.Transports, config.OverUDP) {
		words = append(words, "--over", k.Transports[0].String())
	}
	if k.Clock == config.NoClock {
		words = append(words, "--clock", k.Clock.String())
	}
	for _, i := range k.Opens {
		s := &cfg.Services[i]
		if port, ok := firstTCP(s.Ports); ok {
			words = append(words, "--service", fmt.Sprintf("%s=%d", s.Name, port))
		}
	}
	return strings.Join(words, " ")
}

// firstTCP is the port that a client can try to see whether a service is open.
func firstTCP(ports []config.PortRange) (uint16, bool) {
	for _, p := range ports {
		if p.Proto == sequence.TCP {
			return p.Low, true
		}
	}
	return 0, false
}

// draw draws the code where somebody can scan it, or says why not.
func (c *inviteCmd) draw(u *ui, line string) {
	columns, terminal := columnsOf(u)
	if c.NoQR || !terminal && !c.QR {
		return
	}
	text, width, err := drawQR(line)
	switch {
	case err != nil:
		u.say("there is no QR code of it: %v", err)
	case terminal && columns < width:
		u.say("there is no QR code of it: it takes %d columns and the terminal has %d; widen it, or make its letters smaller", width, columns)
	default:
		u.print("%s", text)
	}
}

// columnsOf reports whether data goes to a terminal, and how wide it is.
func columnsOf(u *ui) (columns int, terminal bool) {
	f, ok := u.out.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return 0, false
	}
	columns, _, err := term.GetSize(int(f.Fd()))
	if err != nil || columns == 0 { // a serial line does not know
		columns = 80
	}
	return columns, true
}
