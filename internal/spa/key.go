package spa

import (
	"crypto/hpke"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
)

// The beginnings of the two one-line texts. The digit is the format's version.
const (
	addressPrefix = "sallyport1"
	keyPrefix     = "sallyport-key1"
)

const (
	seedSize  = 32 // of either suite's private key
	checkSize = 4  // bytes of SHA-256 that catch a mistyped line
)

// Address is what a client must know of a server: how to pass its gate and to
// whom to seal. It is no secret of the first order, but whoever has it can make
// the server do public-key work. Use ParseAddress or ServerKey.Address.
type Address struct {
	suite  Suite
	keys   [gateKeySize]byte
	public []byte // wire form of the public seal key
}

// ParseAddress reads the line that String gives. The error does not quote it.
func ParseAddress(line string) (*Address, error) {
	body, err := unpack(addressPrefix, line)
	if err != nil {
		return nil, fmt.Errorf("this is not a server's address, which begins with %s and comes from 'sallyport keygen --out' or 'sallyport invite': %w", addressPrefix, err)
	}
	a := &Address{suite: Suite(body[0])}
	if !a.suite.known() {
		return nil, fmt.Errorf("the server's address asks for %v, which this version does not have; update the client", a.suite)
	}
	if len(body) != 1+gateKeySize+a.suite.keySize() {
		return nil, fmt.Errorf("the server's address is not as long as its suite wants: %w; copy the whole line", ErrFormat)
	}
	copy(a.keys[:], body[1:])
	a.public = body[1+gateKeySize:]
	if _, err := a.suite.kem().NewPublicKey(a.public); err != nil {
		return nil, fmt.Errorf("the server's address has no usable key in it: %w", err)
	}
	return a, nil
}

// String gives the address's one spelling: 102 characters for the classic suite,
// 1,681 for the post-quantum one.
func (a *Address) String() string {
	return pack(addressPrefix, []byte{byte(a.suite)}, a.keys[:], a.public)
}

// Suite says how datagrams to this server are sealed.
func (a *Address) Suite() Suite { return a.suite }

// recipient is the SHA-256 of the public seal key, which every signature covers.
func (a *Address) recipient() [32]byte { return sha256.Sum256(a.public) }

// ServerKey is a server's secret: its seal key and its gate keys.
type ServerKey struct {
	address Address
	seed    [seedSize]byte
	seal    hpke.PrivateKey
	gate    Gate
}

// NewServerKey makes a fresh key.
func NewServerKey(suite Suite) (*ServerKey, error) {
	if !suite.known() {
		return nil, fmt.Errorf("there is no %v", suite)
	}
	b := make([]byte, gateKeySize+seedSize)
	rand.Read(b) // never fails: see crypto/rand
	return newServerKey(suite, b)
}

// newServerKey reads gate keys and seed.
func newServerKey(suite Suite, b []byte) (*ServerKey, error) {
	k := &ServerKey{address: Address{suite: suite}}
	copy(k.address.keys[:], b)
	copy(k.seed[:], b[gateKeySize:])
	k.gate = newGate(k.address.keys)
	var err error
	if k.seal, err = suite.kem().NewPrivateKey(k.seed[:]); err != nil {
		return nil, fmt.Errorf("the seal key: %w", err)
	}
	k.address.public = k.seal.PublicKey().Bytes()
	return k, nil
}

// Address is what the server's clients get.
func (k *ServerKey) Address() *Address { return &k.address }

// Gate is the server's own, to check datagrams with.
func (k *ServerKey) Gate() *Gate { return &k.gate }

// Equal reports whether both are the same key, in constant time.
func (k *ServerKey) Equal(other *ServerKey) bool {
	return k.address.suite == other.address.suite &&
		subtle.ConstantTimeCompare(k.address.keys[:], other.address.keys[:])&
			subtle.ConstantTimeCompare(k.seed[:], other.seed[:]) == 1
}

// MarshalText gives the secret as one line, for the key file and for the
// engine's sealed memory file. A ServerKey has no String, so that no log can
// have it by mistake.
func (k *ServerKey) MarshalText() ([]byte, error) {
	return []byte(pack(keyPrefix, []byte{byte(k.address.suite)}, k.address.keys[:], k.seed[:])), nil
}

// UnmarshalText reads what MarshalText gives. The error quotes nothing of it.
func (k *ServerKey) UnmarshalText(line []byte) error {
	body, err := unpack(keyPrefix, string(line))
	if err != nil {
		return fmt.Errorf("this is not a server's key, which begins with %s: %w", keyPrefix, err)
	}
	suite := Suite(body[0])
	if !suite.known() {
		return fmt.Errorf("the server's key is of %v, which this version does not have", suite)
	}
	if len(body) != 1+gateKeySize+seedSize {
		return fmt.Errorf("the server's key has a wrong length: %w", ErrFormat)
	}
	read, err := newServerKey(suite, body[1:])
	if err != nil {
		return err
	}
	*k = *read
	return nil
}

// Format keeps the secret out of every verb of package fmt.
func (k *ServerKey) Format(f fmt.State, _ rune) { fmt.Fprint(f, "(a server's key)") }

var encoding = base64.RawURLEncoding.Strict()

// pack spells bytes behind a prefix, with a check at the end.
func pack(prefix string, parts ...[]byte) string {
	var body []byte
	for _, p := range parts {
		body = append(body, p...)
	}
	check := sha256.Sum256(append([]byte(prefix), body...))
	return prefix + encoding.EncodeToString(append(body, check[:checkSize]...))
}

// unpack reads what pack gives and nothing else: one text has one spelling. The
// result has at least one byte.
func unpack(prefix, line string) ([]byte, error) {
	text, ok := strings.CutPrefix(line, prefix)
	if !ok {
		return nil, errors.New("another beginning")
	}
	// The decoder skips line ends, which would be a second spelling.
	if strings.ContainsAny(text, "\r\n") {
		return nil, ErrFormat
	}
	b, err := encoding.DecodeString(text)
	if err != nil || len(b) <= checkSize {
		return nil, ErrFormat
	}
	body := b[:len(b)-checkSize]
	check := sha256.Sum256(append([]byte(prefix), body...))
	if subtle.ConstantTimeCompare(check[:checkSize], b[len(body):]) != 1 {
		return nil, fmt.Errorf("%w: the check at its end does not fit", ErrFormat)
	}
	return body, nil
}
