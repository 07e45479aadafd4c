package authorized

import (
	"encoding/base64"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/sallyport/sallyport/internal/spa"
)

// blanks part the fields of a line; no other space does, as in sshd.
const blanks = " \t"

// readLine reads a line that is neither empty nor a comment and begins with no
// blank. The fault is "" or what to say about the line.
func readLine(s string) (*Key, string) {
	// C's strings end there: sshd would use what stands before, and an editor
	// shows what stands behind.
	if strings.IndexByte(s, 0) >= 0 {
		return nil, "there is a zero byte in it; is this a text file"
	}
	if strings.HasPrefix(s, "----") {
		return nil, "this is the head of another kind of key file; write the one line that ssh-keygen puts into a .pub file"
	}
	k := new(Key)
	if first, _ := word(s); !isKeyType(first) {
		var fault string
		if s, fault = k.readOptions(s, nil); fault != "" {
			return nil, fault
		}
		if fault := k.contradiction(); fault != "" {
			return nil, fault
		}
	}
	return k, k.readKey(s)
}

// word cuts off the first field.
func word(s string) (first, rest string) {
	i := strings.IndexAny(s, blanks)
	if i < 0 {
		return s, ""
	}
	return s[:i], strings.TrimLeft(s[i:], blanks)
}

// isKeyType tells a key's type, known or not, from options: no option begins so.
func isKeyType(s string) bool {
	for _, prefix := range []string{"ssh-", "ecdsa-sha2-", "sk-", "rsa-sha2-", "webauthn-"} {
		if strings.HasPrefix(s, prefix) {
			return true
		}
	}
	return false
}

// readKey reads type, key and comment.
func (k *Key) readKey(s string) string {
	kind, rest := word(s)
	text, comment := word(rest)
	switch {
	case s == "":
		return "there is no key on this line; write options, type, key and comment on one line"
	case !isKeyType(kind):
		return "there is no key behind the options; outside double quotes a blank ends them"
	}
	if fault := refused(kind); fault != "" {
		return fault
	}
	// Strict as sshd: bits behind the key would be a second spelling of it.
	blob, err := base64.StdEncoding.Strict().DecodeString(withoutSpaces(text))
	if err != nil || len(blob) == 0 {
		return "the key is damaged (it is not base64); copy the whole line again"
	}
	public, err := spa.ParsePublicKey(blob)
	if err != nil {
		return err.Error()
	}
	if public.Type() != kind {
		return fmt.Sprintf("the line says %s, but its key is of type %s; copy the whole line again", kind, public.Type())
	}
	k.Public, k.Comment = *public, printable(comment)
	return ""
}

// refused says why a type can't be used, or "". The types that can are spa's to
// know: their bytes say again which they are.
func refused(kind string) string {
	switch {
	case strings.Contains(kind, "-cert-v01@"):
		return fmt.Sprintf("%s can't be used: certificates are not taken; write the key itself", named("a type", kind))
	case kind == "ssh-dss":
		return "ssh-dss can't be used: DSA keys have 1024 bits, too few; make an ed25519 key"
	case strings.HasPrefix(kind, "rsa-sha2-"):
		return fmt.Sprintf("%s can't be used: it names a signature; the key's type is ssh-rsa", named("a type", kind))
	case strings.HasPrefix(kind, "webauthn-"):
		return fmt.Sprintf("%s can't be used: it names a browser's signature, which no SSH client makes", named("a type", kind))
	case !types[kind]:
		return fmt.Sprintf("%s can't be used: it is not known here; use ed25519, ecdsa, rsa or their hardware forms (sk-)", named("a type", kind))
	}
	return ""
}

var types = map[string]bool{
	"ssh-ed25519":                        true,
	"ecdsa-sha2-nistp256":                true,
	"ecdsa-sha2-nistp384":                true,
	"ecdsa-sha2-nistp521":                true,
	"ssh-rsa":                            true,
	"sk-ssh-ed25519@openssh.com":         true,
	"sk-ecdsa-sha2-nistp256@openssh.com": true,
}

// withoutSpaces drops what C calls space, as sshd's base64 does: the CR of a
// file from Windows stands at the end of a key without a comment.
func withoutSpaces(s string) string {
	return strings.Map(func(r rune) rune {
		if strings.ContainsRune(spaces, r) {
			return -1
		}
		return r
	}, s)
}

// printable makes a comment fit for logs and terminals: no escape sequence, no
// bytes that are not UTF-8, no character that turns the writing's direction.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r == '\t':
			return ' '
		case r == utf8.RuneError || !unicode.IsPrint(r):
			return '?'
		}
		return r
	}, strings.Trim(s, spaces))
	if len(s) > maxComment {
		end := maxComment
		for !utf8.RuneStart(s[end]) {
			end--
		}
		s = s[:end]
	}
	return strings.Trim(s, " ")
}

// named quotes an option's name or a key's type, or gives the general word if it
// does not look like one: a line of a private key must not reach a log.
func named(general, name string) string {
	plain := strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-.@") == ""
	if name == "" || len(name) > 48 || !plain {
		return general
	}
	return name
}
