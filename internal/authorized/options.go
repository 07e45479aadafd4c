package authorized

import (
	"fmt"
	"slices"
	"strings"
)

// option says how one option is written and what it does. A nil set is an option
// of sshd's that says nothing about a knock.
type option struct {
	how form
	set func(k *Key, value string) (fault string)
}

// form is how an option is written.
type form uint8

const (
	flag  form = iota // a bare name, as often as one likes
	once              // name="value", once in a line
	often             // name="value", as often as one likes
)

var options = map[string]option{
	"services":   {once, setServices},
	"max-time":   {once, setMaxTime},
	"not-before": {once, setNotBefore},
	"no-address": {flag, func(k *Key, _ string) string { k.NoAddress = true; return "" }},

	"from":               {once, setFrom},
	"expiry-time":        {often, setExpires},
	"touch-required":     {flag, func(k *Key, _ string) string { k.NoTouchRequired = false; return "" }},
	"no-touch-required":  {flag, func(k *Key, _ string) string { k.NoTouchRequired = true; return "" }},
	"verify-required":    {flag, func(k *Key, _ string) string { k.VerifyRequired = true; return "" }},
	"no-verify-required": {flag, func(k *Key, _ string) string { k.VerifyRequired = false; return "" }},
	"cert-authority":     {flag, refuseAuthority},
	"principals":         {once, refuseAuthority},

	"command":             {once, nil},
	"environment":         {often, checkEnvironment},
	"permitopen":          {often, checkPermitOpen},
	"permitlisten":        {often, checkPermitListen},
	"tunnel":              {often, checkTunnel},
	"restrict":            {flag, nil},
	"port-forwarding":     {flag, nil},
	"no-port-forwarding":  {flag, nil},
	"agent-forwarding":    {flag, nil},
	"no-agent-forwarding": {flag, nil},
	"x11-forwarding":      {flag, nil},
	"no-x11-forwarding":   {flag, nil},
	"pty":                 {flag, nil},
	"no-pty":              {flag, nil},
	"user-rc":             {flag, nil},
	"no-user-rc":          {flag, nil},
}

// refuseAuthority: sshd too lets nobody in by a plain key of such a line.
func refuseAuthority(*Key, string) string {
	return "this is for certificates, which are not taken; write the key itself without it"
}

// Options reads options as a line begins with, and gives what stands behind them:
// for files of another kind that have some of them, which names lists. The fault
// is "" or what to say about the line.
func Options(s string, names ...string) (k *Key, rest, fault string) {
	k = new(Key)
	rest, fault = k.readOptions(s, names)
	return k, rest, fault
}

// readOptions reads the options up to the first blank outside double quotes and
// gives what stands behind it. Without names all of sshd's and ours are taken.
func (k *Key) readOptions(s string, names []string) (rest, fault string) {
	seen := map[string]bool{}
	for s != "" && !strings.ContainsRune(blanks, rune(s[0])) {
		if s[0] == ',' { // sshd passes over an empty option
			s = s[1:]
			continue
		}
		end := nameEnd(s)
		name := strings.ToLower(s[:end])
		if names != nil && !slices.Contains(names, name) {
			return "", fmt.Sprintf("%s is unknown here; there are %s", named("an option", s[:end]), strings.Join(names, " and "))
		}
		if _, known := options[name]; !known {
			return "", fmt.Sprintf("%s is unknown, and sshd too refuses a line for that; correct it or take it out", named("an option", s[:end]))
		}
		if s, fault = k.readOption(name, s[end:], seen[name]); fault != "" {
			return "", fmt.Sprintf("option %s: %s", name, fault)
		}
		seen[name] = true
	}
	return strings.TrimLeft(s, blanks), ""
}

// readOption reads what stands behind a known option's name.
func (k *Key) readOption(name, s string, again bool) (rest, fault string) {
	o, value := options[name], ""
	switch valued := strings.HasPrefix(s, "="); {
	case valued && o.how == flag:
		return "", "it takes no value"
	case !valued && o.how != flag:
		return "", noQuote
	case again && o.how == once:
		return "", "it stands there twice; write it once"
	case valued:
		if value, s, fault = dequote(s[1:]); fault != "" {
			return "", fault
		}
	}
	if s != "" && !strings.ContainsRune(blanks+",", rune(s[0])) {
		return "", "write a comma behind it, or a blank behind the last option"
	}
	if o.set != nil {
		fault = o.set(k, value)
	}
	return s, fault
}

// nameEnd is where an option's name ends.
func nameEnd(s string) int {
	if i := strings.IndexAny(s, blanks+",=\""); i >= 0 {
		return i
	}
	return len(s)
}

const noQuote = `its value must stand in double quotes, as in name="value"`

// dequote reads a value in double quotes. In it only \" is special.
func dequote(s string) (value, rest, fault string) {
	if s == "" || s[0] != '"' {
		return "", "", noQuote
	}
	var b strings.Builder
	for s = s[1:]; s != "" && s[0] != '"'; s = s[1:] {
		if strings.HasPrefix(s, `\"`) {
			s = s[1:]
		}
		b.WriteByte(s[0])
	}
	if s == "" {
		return "", "", "the double quote behind its value is missing"
	}
	return b.String(), s[1:], ""
}

// contradiction says what options can't mean together, or "".
func (k *Key) contradiction() string {
	if !k.Expires.IsZero() && !k.NotBefore.Before(k.Expires) {
		return "the key is never valid: not-before is not before expiry-time"
	}
	return ""
}
