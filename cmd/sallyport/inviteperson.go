//go:build linux

package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/keys"
	"github.com/sallyport/sallyport/internal/secrets"
	"github.com/sallyport/sallyport/internal/sequence"
)

// invitePerson prints the line that one person stores. It holds the secret, so it
// is no part of the command that they type.
func (c *inviteCmd) invitePerson(cfg *config.Config, u *ui) error {
	if err := secrets.CheckName(c.Person); err != nil {
		return usageError{fmt.Errorf("--person %.40q: %w", c.Person, err)}
	}
	knock, name, host, err := c.chooseWords(cfg, &bySecret)
	if err != nil {
		return err
	}
	person, err := findPerson(knock, c.Person, time.Now())
	if err != nil {
		return err
	}
	line, err := secretLine(knock, person)
	if err != nil {
		return err
	}
	code := line
	u.print("%s\n", line)
	if knock.Digits > 0 {
		code = appURI(person.Name, name, person.Secret, knock.Digits)
		u.print("%s\n", code)
	}
	c.draw(u, code)
	u.say("this holds %s's secret: give it to nobody else, and over no way that others read", person.Name)
	u.private()
	words := []string{"sallyport", "add", name, "-", "--host", host}
	for _, i := range knock.Opens {
		s := &cfg.Services[i]
		if port, ok := firstTCP(s.Ports); ok && person.Opens(s.Name) {
			words = append(words, "--service", fmt.Sprintf("%s=%d", s.Name, port))
		}
	}
	u.say("%s types '%s', pastes the line that begins with sallyport-, and ends with Ctrl-D", person.Name, strings.Join(words, " "))
	if knock.Digits > 0 {
		u.say("or an authenticator app reads the other line or its QR code, and no client is needed: when it shows %s, %s types '%s'", exampleCode[:knock.Digits], person.Name, exampleLoop(knock, host))
	}
	return nil
}

// bySecret are knocks that know people by secrets.
var bySecret = invitable{
	fits: (*config.Knock).HasSecrets,
	are:  "that know secrets",
	none: `there is no knock of type "otp" or "encoded", and others know no secrets of people`,
	misfit: func(k *config.Knock) string {
		return fmt.Sprintf("knock.%s is of type %q; only knocks of types \"otp\" and \"encoded\" know people by secrets", k.Name, k.Type)
	},
}

// findPerson gives the newest secret of a person, the last line: an older one is on
// its way out.
func findPerson(k *config.Knock, name string, now time.Time) (*secrets.Person, error) {
	people, bad, err := keys.Secrets(k.Secrets)
	if err != nil {
		return nil, err
	}
	for i := len(people) - 1; i >= 0; i-- {
		if p := &people[i]; p.Name == name && p.At(now) {
			return p, nil
		} else if p.Name == name {
			return nil, fmt.Errorf("%s: the time of %s was over at %s (line %d)", keys.Word(k.Secrets), name, p.Expires.Format(time.RFC3339), p.Line)
		}
	}
	if len(bad) > 0 {
		return nil, fmt.Errorf("%s has no secret of %s, and %w", keys.Word(k.Secrets), name, bad[0])
	}
	return nil, fmt.Errorf("%s has no secret of %s; add one with 'sallyport keygen --secret %s --out %s'", keys.Word(k.Secrets), name, name, keys.Word(k.Secrets))
}

// secretLine is the line of a knock for one person, as the client will read it.
func secretLine(k *config.Knock, p *secrets.Person) (string, error) {
	if k.Type == "encoded" {
		e := sallyport.Encoded{Door: k.Name, Secret: p.Secret, Proto: k.Base.Proto, Base: k.Base.Low, Span: k.Span, PayloadSize: k.Payload, Within: k.Within}
		return e.Line(), e.Validate()
	}
	o := sallyport.OTP{Door: k.Name, Secret: p.Secret, Within: k.Within, Digits: k.Digits}
	if k.Digits > 0 {
		o.Base, o.Proto = k.Base.Low, k.Base.Proto
	} else {
		d := k.OTPDoor()
		o.Pool, o.Proto = d.Pool, k.Pool[0].Proto
		o.Steps, o.TimeStep, o.AnyAddress = d.Steps, d.TimeStep, d.AnyAddress
	}
	return o.Line(), o.Validate()
}

const exampleCode = "12345678"

// exampleLoop is the knock by that code, so that somebody without a client sees how.
// Nothing says that a port heard a datagram, so nc gets one to send and ends by itself.
func exampleLoop(k *config.Knock, host string) string {
	ports := strings.Trim(fmt.Sprint(k.OTPDigits().Ports(exampleCode[:k.Digits])), "[]")
	send := "nc -z -w 1 " + host + " $p"
	if k.Base.Proto == sequence.UDP {
		send = "echo | nc -u -w 1 " + host + " $p"
	}
	return "for p in " + ports + "; do " + send + "; done"
}
