package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/term"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/internal/sequence"
)

// setSecret fills in what the command line asks a server whose knock has a secret
// for. It reports whether the server is one.
func (c *knockCmd) setSecret(o *order, in io.Reader) (handled bool, err error) {
	isOTP := o.server != nil && o.server.otp != nil
	isEncoded := o.server != nil && o.server.encoded != nil
	switch {
	case !isEncoded && (c.Repeat != 0 || c.Payload != "" || c.Mask != 0):
		return false, errors.New("--repeat, --payload and --mask are for servers with an encoded knock, whose message can say that")
	case !isOTP && c.Code != "":
		return false, errors.New("--code is for servers with one-time ports out of an authenticator app's digits")
	case isOTP:
		o.knock = o.server.knock()
		return true, c.setOTP(o.knock.(*sallyport.OTP), in)
	case isEncoded:
		o.knock = o.server.knock()
		return true, c.setEncoded(o, o.knock.(*sallyport.Encoded), in)
	}
	return false, nil
}

func (c *knockCmd) setOTP(k *sallyport.OTP, in io.Reader) (err error) {
	switch {
	case len(c.Operands) > 0:
		return fmt.Errorf("%s is stored with one-time ports, which open what they open: name no services", c.Target)
	case c.For != 0 || c.Close || c.Extend || c.Over != "" || c.Save != "":
		return errors.New("--for, --close, --extend, --over and --save can't be said by one-time ports: they open what they open")
	case c.Delay != nil:
		return fmt.Errorf("%s is stored with its pause: change it with 'sallyport add --force'", c.Target)
	case c.Address != "" && c.Address != "auto" && !k.Bound():
		return errors.New("--address changes nothing: these ports do not depend on it")
	case c.Address == "observed":
		return errors.New("--address observed: the ports depend on the address that the server sees, so say which one it is")
	}
	if k.Addresses, err = parseAddresses(c.Address); err != nil {
		return err
	}
	if k.Code, err = readCode(k, c.Code, in); err != nil {
		return err
	}
	return k.Validate()
}

// maxCode is what is read of a code, in bytes: 8 digits, and white space.
const maxCode = 64

// readCode reads what an authenticator app shows, from where no other user of this
// computer can: it is good for a minute and more.
func readCode(k *sallyport.OTP, option string, in io.Reader) (string, error) {
	switch {
	case option == "":
		return "", nil
	case option != "-":
		return "", errors.New("--code takes no digits: other users of this computer could read them in the process list while they are good; say --code -, and type the code or pipe it in")
	case k.Digits == 0:
		return "", errors.New("--code is for knocks with digits: the ports of this one follow from the secret alone")
	}
	text, err := askCode(in)
	if err != nil {
		return "", fmt.Errorf("--code: %w", err)
	}
	code := strings.Join(strings.Fields(string(text)), "") // apps show 123 456
	if code == "" {
		return "", errors.New("--code: nothing was given; leave --code out for the stored secret's own code")
	}
	return code, nil
}

// atTerminal reports whether somebody sits at a standard stream.
func atTerminal(stream any) bool {
	f, is := stream.(*os.File)
	return is && term.IsTerminal(int(f.Fd()))
}

// askCode asks if somebody sits there.
func askCode(in io.Reader) ([]byte, error) {
	if !atTerminal(in) {
		return io.ReadAll(io.LimitReader(in, maxCode))
	}
	from, out, err := openTerminal()
	if err != nil {
		return nil, err
	}
	defer from.Close()
	defer out.Close()
	return askTerminal(from, out, "code that the authenticator app shows: ")
}

func (c *knockCmd) setEncoded(o *order, k *sallyport.Encoded, in io.Reader) (err error) {
	switch {
	case len(c.Operands) > 1:
		return errors.New("an encoded knock asks for one service or port, or for all: name at most one")
	case len(c.Operands) == 1 && c.Payload != "":
		return fmt.Errorf("--payload is for the server's commands, and a knock that names a port or service runs none: leave %.40q out, which asks for all that the secret may", c.Operands[0])
	case c.Over != "" || c.Save != "":
		return errors.New("--over and --save are for servers with an address, sallyport1…: this message is its ports")
	case c.Delay != nil:
		return fmt.Errorf("%s is stored with its pause: change it with 'sallyport add --force'", c.Target)
	case c.Close && (c.For != 0 || c.Then != "" || c.Wait):
		return errors.New("--close opens nothing: leave --for, --then and --wait out")
	case c.Repeat < 0 || c.Repeat > sallyport.MaxRepeat:
		return fmt.Errorf("--repeat %d is out of range: it takes 1 to %d", c.Repeat, sallyport.MaxRepeat)
	case c.Mask < 0 || c.Mask > 127:
		return fmt.Errorf("--mask %d is out of range: it takes 1 to 31 over IPv4, 1 to 127 over IPv6", c.Mask)
	case c.Close:
		k.Action = sallyport.Close
	case c.Extend:
		k.Action = sallyport.Extend
	}
	k.For, k.Repeat, k.Mask, k.Observed = c.For, c.Repeat, c.Mask, c.Address == "observed"
	if k.Addresses, err = parseAddresses(c.Address); err != nil {
		return err
	}
	if len(c.Operands) == 1 {
		if k.Port, k.PortProto, err = o.server.portOf(c.Operands[0]); err != nil {
			return err
		}
	}
	if k.Payload, err = readPayload(c.Payload, k.PayloadSize, in); err != nil {
		return err
	}
	return k.Validate()
}

// portOf reads what an encoded knock asks for: "22", "53/udp", or a service whose
// tcp port is known.
func (s *server) portOf(operand string) (uint16, sallyport.Proto, error) {
	text := operand
	if strings.Trim(text, "0123456789") == "" {
		text += "/tcp"
	} else if !strings.Contains(text, "/") {
		if err := checkService(operand); err != nil {
			return 0, 0, err
		}
		port, err := s.servicePort(operand)
		if err != nil {
			return 0, 0, fmt.Errorf("no port is known for %.40q, and an encoded knock names a port or nothing: leave the name out to ask for all that the secret may, commands too; for a service give its port, as in 22/tcp, or store it with 'sallyport add %s … --service %s=PORT'", operand, s.name, operand)
		}
		text = port + "/tcp"
	}
	number, proto, _ := strings.Cut(text, "/")
	n, err := strconv.ParseUint(number, 10, 16)
	of := map[string]sallyport.Proto{"tcp": sequence.TCP, "udp": sequence.UDP}[proto]
	if err != nil || n == 0 || of == 0 {
		return 0, 0, fmt.Errorf("%.40q is no port: give one from 1 to 65535, as 22, 22/tcp or 53/udp", operand)
	}
	return uint16(n), of, nil
}

// readPayload reads at most size bytes: a longer file is not cut, because half of a
// command's input is not what anybody meant.
func readPayload(name string, size int, in io.Reader) ([]byte, error) {
	if name == "" {
		return nil, nil
	}
	if size == 0 {
		return nil, errors.New("--payload: this knock's messages have no room for one; the server's owner sets payload = N")
	}
	from := "standard input"
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, fmt.Errorf("--payload: %s can't be read: %w", name, pathCause(err))
		}
		defer f.Close()
		in, from = f, name
	}
	b, err := io.ReadAll(io.LimitReader(in, int64(size)+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("--payload: %s can't be read: %w", from, pathCause(err))
	case len(b) > size:
		return nil, fmt.Errorf("--payload: %s has more than %d bytes, for which this knock's messages have room", from, size)
	}
	return b, nil
}

const (
	// usualTimeout is --timeout where nobody says.
	usualTimeout = 30 * time.Second
	// turnTime is for a knock with the ports of a time step that has just begun.
	turnTime = 10 * time.Second
	// longestWait is for which time steps a person waits without having said so.
	longestWait = 5 * time.Minute
)

// timeout is what was given, or time enough for one-time ports of the next time step:
// a server that has just started takes none of the present one.
func (o *order) timeout(given *time.Duration) time.Duration {
	if given != nil {
		return *given
	}
	k, is := o.knock.(*sallyport.OTP)
	if !is || k.Code != "" || k.Step() > longestWait {
		return usualTimeout
	}
	return max(usualTimeout, k.Step()+turnTime)
}

// startCause is that the server has just started, unless the ports of a later time
// step were sent too.
func (o *order) startCause(k *sallyport.OTP, now time.Time) []string {
	next := k.StepEnd(o.began)
	if k.Code == "" && !now.Before(next) {
		return nil
	}
	if k.Code != "" {
		return []string{fmt.Sprintf("the server started within the last %v and takes no code from before: try again with the code that the app shows next", k.Step())}
	}
	return []string{fmt.Sprintf("the server started within the last %v and takes the ports of the next time step, not of this one: try again in %v, or with a longer --timeout", k.Step(), next.Sub(now).Round(time.Second))}
}

// wonder is when a person begins to wonder whether anything goes on.
const wonder = 3 * time.Second

// tellWait says to a person at a terminal that a knock goes on, and until when its
// ports can be in vain. The caller stops it before it says anything else.
func (o *order) tellWait(u *ui) (stop func() bool) {
	k, is := o.knock.(*sallyport.OTP)
	if !is || k.Code != "" || !atTerminal(u.err) {
		return func() bool { return true }
	}
	return time.AfterFunc(wonder, func() {
		now := time.Now()
		u.say("still shut: these ports may be used up, or the server has just started; new ones come in %v, and are sent then", k.StepEnd(now).Sub(now).Round(time.Second))
	}).Stop
}

// once reports whether a knock at a host's two addresses is good for one of them alone.
func (o *order) once(sent []netip.Addr) bool {
	k, is := o.knock.(*sallyport.OTP)
	return is && !k.Bound() && len(sent) > 1
}

// secretCauses are what may be wrong with a knock by a secret that opened nothing,
// the likely ones first; nil for other knocks.
func (o *order) secretCauses() []string {
	clock := fmt.Sprintf("a clock is wrong: this computer says %s", time.Now().UTC().Format("2006-01-02 15:04:05 UTC"))
	address := "the server sees this computer by another address than its own (behind NAT): "
	revoked := "the secret is not in the server's file any more, or its time is over: ask the owner for a new line"
	rest := []string{"something on the way drops packets to odd ports: try another network", "the service is down, or the server is"}
	switch k := o.knock.(type) {
	case *listKnock:
		return k.causes()
	case *sallyport.OTP:
		causes := []string{fmt.Sprintf("%s, and servers take the ports of the %v before and after theirs", clock, k.Step())}
		if k.Bound() {
			causes = append(causes, address+"give that one with --address ADDR, or ask the server's owner for any_address = true")
		}
		used := fmt.Sprintf("these ports were used up by a knock before: they are good once, and new ones come every %v", k.Step())
		if !k.Bound() {
			used += "; a host's two addresses share them, so try -4 or -6"
		}
		causes = append(causes, used)
		causes = append(causes, o.startCause(k, time.Now())...)
		changed := "the server's settings for these ports were changed: ask its owner for a new line"
		return append(append(causes, revoked, changed), rest...)
	case *sallyport.Encoded:
		causes := []string{clock + "; servers take messages within 1m of theirs, unless they say otherwise"}
		if !k.Observed {
			causes = append(causes, address+"try --address observed")
		}
		if k.Port > 0 || k.Mask > 0 {
			causes = append(causes, "the secret may not open that port, or not for that mask")
		}
		if k.Repeat < 2 {
			causes = append(causes, "packets were lost on the way: try --repeat 3")
		}
		return append(append(causes, revoked), rest...)
	}
	return nil
}
