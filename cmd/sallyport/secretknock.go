package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

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
		return true, c.setOTP(o.knock.(*sallyport.OTP))
	case isEncoded:
		o.knock = o.server.knock()
		return true, c.setEncoded(o, o.knock.(*sallyport.Encoded), in)
	}
	return false, nil
}

func (c *knockCmd) setOTP(k *sallyport.OTP) (err error) {
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
	k.Code = c.Code
	if k.Addresses, err = parseAddresses(c.Address); err != nil {
		return err
	}
	return k.Validate()
}

func (c *knockCmd) setEncoded(o *order, k *sallyport.Encoded, in io.Reader) (err error) {
	switch {
	case len(c.Operands) > 1:
		return errors.New("an encoded knock asks for one service or port, or for all: name at most one")
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
			return 0, 0, fmt.Errorf("no port is known for the service %.40q, and an encoded knock asks for a port: give it, as in 22/tcp, or store it with 'sallyport add %s … --service %s=PORT'", operand, s.name, operand)
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
		step := k.TimeStep
		if k.Digits > 0 {
			step = 30 * time.Second
		}
		causes := []string{fmt.Sprintf("%s, and servers take the ports of the %v before and after theirs", clock, step)}
		if k.Bound() {
			causes = append(causes, address+"give that one with --address ADDR, or ask the server's owner for any_address = true")
		}
		causes = append(causes, fmt.Sprintf("these ports were used up by a knock before: they are good once, and new ones come every %v", step))
		return append(append(causes, revoked), rest...)
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
