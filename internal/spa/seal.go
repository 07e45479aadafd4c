package spa

import (
	"crypto/hpke"
	"crypto/sha512"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// namespace keeps a signature for us from being one for anything else, and the
// other way round (PROTOCOL.sshsig).
const namespace = "sallyport-spa"

// version is signed with every request.
const version = 1

// Signer is an SSH key that can sign: a file's or an agent's.
type Signer interface {
	// PublicKey gives the key in SSH's wire form (RFC 4253 section 6.6).
	PublicKey() []byte
	// Sign gives a signature of data in SSH's wire form. RSA must sign with
	// SHA-2 (RFC 8332).
	Sign(data []byte) ([]byte, error)
}

// Seal makes the datagram that carries a request to a server. The errors are
// for the client: what does not fit is refused with the reason.
func Seal(to *Address, r *Request, s Signer) ([]byte, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	key, err := ParsePublicKey(s.PublicKey())
	if err != nil {
		return nil, err
	}
	size, err := to.suite.SizeFor(key)
	if err != nil {
		return nil, err
	}
	public, err := to.suite.kem().NewPublicKey(to.public)
	if err != nil {
		return nil, err
	}
	enc, sender, err := hpke.NewSender(public, hpke.HKDFSHA256(), hpke.ChaCha20Poly1305(), info)
	if err != nil {
		return nil, err
	}
	fields := r.encode(key.Fingerprint())
	signature, err := s.Sign(signedData(message(to, enc, fields)))
	if err != nil {
		return nil, err
	}
	// A key that no server can check would fail without a word there.
	if _, err := key.verify(signedData(message(to, enc, fields)), signature); err != nil {
		return nil, fmt.Errorf("the signature is of no use: %w", err)
	}
	plain := make([]byte, size-gateSize-len(enc)-aeadSize)
	if room := len(plain) - 2 - len(signature); len(fields) > room {
		return nil, tooBig(r, key)
	}
	n := copy(plain, fields)
	binary.BigEndian.PutUint16(plain[n:], uint16(len(signature)))
	copy(plain[n+2:], signature)
	sealed, err := sender.Seal(nil, plain)
	if err != nil {
		return nil, err
	}
	b := append(append(make([]byte, gateSize, size), enc...), sealed...)
	gate := newGate(to.keys)
	gate.close(b)
	return b, nil
}

// SizeFor gives the length of datagrams that a key signs: by the key alone, so
// that it tells nothing about the request. The error says which key would fit.
func (s Suite) SizeFor(key *PublicKey) (int, error) {
	switch {
	case s == PostQuantum && (key.rsa() || key.kind == typeP521):
		return 0, fmt.Errorf("a signature by %s does not fit into a post-quantum datagram: use an ed25519 key (ssh-keygen -t ed25519 makes one), or ask the server's owner for a classic address", key.kind)
	case s == PostQuantum:
		return PostQuantumSize, nil
	case key.rsa():
		return LargeSize, nil
	}
	return SmallSize, nil
}

func tooBig(r *Request, key *PublicKey) error {
	return fmt.Errorf("%d bytes of services' names do not fit beside a signature by %s: ask for fewer at a time, or for all by naming none",
		len(strings.Join(r.Services, "")), key.Type())
}

// message is what a client signs: for whom, in which seal, and every field.
// What one server opened can't be sealed anew for another.
func message(to *Address, enc, fields []byte) []byte {
	recipient := to.recipient()
	b := make([]byte, 0, 2+len(recipient)+len(enc)+len(fields))
	b = append(b, version, byte(to.suite))
	b = append(b, recipient[:]...)
	b = append(b, enc...)
	return append(b, fields...)
}

// signedData is the structure of PROTOCOL.sshsig over a message.
func signedData(message []byte) []byte {
	hash := sha512.Sum512(message)
	b := []byte("SSHSIG")
	for _, field := range []string{namespace, "", "sha512", string(hash[:])} {
		b = binary.BigEndian.AppendUint32(b, uint32(len(field)))
		b = append(b, field...)
	}
	return b
}

// Tag names a signed message: copies and new seals of it have the same.
type Tag [16]byte

// Opened is a datagram whose seal was ours to open. Nothing in it is to be
// believed before Verify.
type Opened struct {
	Request
	Key       Fingerprint // who claims to have signed
	Tag       Tag
	signed    []byte
	signature []byte
}

// Errors of Open and Verify. They are constant: strangers cause them.
var (
	ErrSeal      = errors.New("not sealed for this key")
	ErrSignature = errors.New("wrong signature")
)

// Open opens a datagram that passed the gate. It needs one public-key
// operation. The error is ErrSeal or ErrRequest.
func (k *ServerKey) Open(b []byte) (*Opened, error) {
	enc := k.address.suite.encSize()
	if !k.address.suite.takes(len(b)) {
		return nil, ErrSeal
	}
	recipient, err := hpke.NewRecipient(b[gateSize:gateSize+enc], k.seal, hpke.HKDFSHA256(), hpke.ChaCha20Poly1305(), info)
	if err != nil {
		return nil, ErrSeal
	}
	plain, err := recipient.Open(nil, b[gateSize+enc:])
	if err != nil {
		return nil, ErrSeal
	}
	o := new(Opened)
	key, n, err := o.decode(plain)
	if err != nil {
		return nil, err
	}
	signed := message(&k.address, b[gateSize:gateSize+enc], plain[:n])
	if o.signature, err = signatureIn(plain[n:]); err != nil {
		return nil, err
	}
	hash := sha512.Sum512(signed)
	o.Key, o.Tag, o.signed = key, Tag(hash[:len(o.Tag)]), signedData(signed)
	return o, nil
}

// signatureIn reads the rest of the plaintext: a signature, then zeros.
func signatureIn(b []byte) ([]byte, error) {
	if len(b) < 2 {
		return nil, ErrRequest
	}
	n := int(binary.BigEndian.Uint16(b))
	if n > len(b)-2 {
		return nil, ErrRequest
	}
	for _, c := range b[2+n:] {
		if c != 0 {
			return nil, ErrRequest
		}
	}
	return b[2 : 2+n], nil
}

// Verify checks the signature with the key that the request names; the caller
// has looked it up by o.Key. The presence says what a hardware key saw.
func (o *Opened) Verify(p *PublicKey) (Presence, error) {
	if o.Key != p.Fingerprint() {
		return Presence{}, ErrSignature
	}
	return p.verify(o.signed, o.signature)
}
