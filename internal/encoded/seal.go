package encoded

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
)

const (
	version = 1
	// label begins the HKDF info, so that the secret's key for anything else is
	// another one.
	label = "sallyport encoded v1\x00"

	nonceSize = 8 // bytes that travel; four zero bytes follow them in the nonce
	tagSize   = 12
	overhead  = nonceSize + tagSize
	maxSize   = overhead + fixed + 1 + MaxPayload
	aadSize   = 6
)

// MaxMessages is how many messages one secret is good for. The nonces of two are
// equal with a chance of n²/2⁶⁵, 1 in 33 million for so many, and then whoever has
// both could forge others. It is more than a message an hour for a century.
const MaxMessages = 1 << 20

// Key is a person's key for one door.
type Key struct{ aead cipher.AEAD }

// NewKey makes the key of a secret of 16 to 64 bytes for the door of that name.
func NewKey(secret []byte, door string) *Key {
	key, err := hkdf.Key(sha256.New, secret, nil, label+door, 32)
	if err != nil {
		panic(err) // only a length beyond 255 hashes is one
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err) // the length is right
	}
	aead, err := cipher.NewGCMWithTagSize(block, tagSize)
	if err != nil {
		panic(err)
	}
	return &Key{aead}
}

// aad binds a message to its format and shape, and with the key to the door: what
// was made for one span must not mean anything in another.
func (s Shape) aad() (b [aadSize]byte) {
	b[0] = version
	binary.BigEndian.PutUint16(b[1:], s.Base)
	binary.BigEndian.PutUint16(b[3:], uint16(s.Span))
	b[5] = byte(s.Payload)
	return b
}

// Encode seals a message and gives its ports, by index. They may be sent in any
// order, and each as often as one likes. The error says what can't be asked.
func (s Shape) Encode(k *Key, m *Message) ([]uint16, error) {
	var nonce [nonceSize]byte
	rand.Read(nonce[:]) // never fails
	return s.encode(k, m, nonce)
}

func (s Shape) encode(k *Key, m *Message, nonce [nonceSize]byte) ([]uint16, error) {
	if err := s.Check(); err != nil {
		return nil, err
	}
	if err := m.check(s.Payload); err != nil {
		return nil, err
	}
	plain := make([]byte, s.plain())
	m.write(plain)
	return s.seal(k, plain, nonce), nil
}

// seal makes ports of a plaintext.
func (s Shape) seal(k *Key, plain []byte, nonce [nonceSize]byte) []uint16 {
	aad := s.aad()
	full := append(nonce[:], 0, 0, 0, 0)
	sealed := k.aead.Seal(nonce[:], full, plain, aad[:])
	p := s.Parts()
	ports := p.split(make([]uint16, 0, p.Steps), sealed)
	for i, symbol := range ports {
		ports[i] = p.Port(i, symbol)
	}
	return ports
}

// Tag names a sealed message, the same for every copy: the tag of the seal and the
// first four bytes of its nonce.
type Tag = [16]byte

// Open takes a message apart whose symbols, by index, are all there; not ok is one
// that this key did not seal, or one that breaks a rule.
func (s Shape) Open(k *Key, symbols []uint16) (*Message, Tag, bool) {
	o, err := NewOpener(s)
	if err != nil || !o.Load(symbols) {
		return nil, Tag{}, false
	}
	m, err := o.Try(k)
	return m, o.Tag(), err == nil
}

// Why a message does not open.
var (
	ErrSeal = errors.New("the key did not seal this")
)

// Opener opens messages of one shape with any number of keys, and allocates only
// for those that open. It is for one goroutine.
type Opener struct {
	parts  Parts
	aad    [aadSize]byte
	size   int
	sealed [maxSize]byte
	nonce  [nonceSize + 4]byte
	plain  [maxSize]byte
}

// NewOpener makes one; the error is the shape's.
func NewOpener(s Shape) (*Opener, error) {
	if err := s.Check(); err != nil {
		return nil, err
	}
	return &Opener{parts: s.Parts(), aad: s.aad(), size: s.Size()}, nil
}

// Load takes the symbols of a message, by index.
func (o *Opener) Load(symbols []uint16) bool {
	last := len(symbols) - 1
	if len(symbols) != o.parts.Steps || symbols[last]&o.parts.unused != 0 {
		return false
	}
	for _, s := range symbols {
		if s>>o.parts.width != 0 {
			return false
		}
	}
	o.parts.join(o.sealed[:o.size], symbols)
	copy(o.nonce[:nonceSize], o.sealed[:])
	return true
}

// Try opens the loaded message with a key. The error is ErrSeal, or says which
// rule the message breaks though its seal is good.
func (o *Opener) Try(k *Key) (*Message, error) {
	b, err := k.aead.Open(o.plain[:0], o.nonce[:], o.sealed[nonceSize:o.size], o.aad[:])
	if err != nil {
		return nil, ErrSeal
	}
	m := new(Message)
	if err := m.read(b); err != nil {
		return nil, fmt.Errorf("the seal is good, and yet: %w", err)
	}
	m.Payload = append([]byte(nil), m.Payload...)
	return m, nil
}

// Tag is the loaded message's.
func (o *Opener) Tag() (t Tag) {
	copy(t[:], o.sealed[o.size-tagSize:o.size])
	copy(t[tagSize:], o.sealed[:])
	return t
}
