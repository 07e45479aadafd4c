package spa

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"math/big"
	"strings"
)

// The SSH key types that can sign a request. golang.org/x/crypto/ssh reads them
// too, but it dials, and what it dials with must not be linked into the engine.
const (
	typeEd25519   = "ssh-ed25519"
	typeRSA       = "ssh-rsa"
	typeP256      = "ecdsa-sha2-nistp256"
	typeP384      = "ecdsa-sha2-nistp384"
	typeP521      = "ecdsa-sha2-nistp521"
	typeSKEd25519 = "sk-ssh-ed25519@openssh.com"
	typeSKP256    = "sk-ecdsa-sha2-nistp256@openssh.com"
)

// The sizes of an RSA key that are taken, in bits. A longer one does not fit.
const (
	minRSA = 2048
	maxRSA = 4096
)

// Fingerprint is the SHA-256 of a public key's wire form.
type Fingerprint [32]byte

// String gives it as ssh-keygen -l does: 50 characters.
func (f Fingerprint) String() string { return "SHA256:" + base64.RawStdEncoding.EncodeToString(f[:]) }

// ParseFingerprint reads what String gives.
func ParseFingerprint(s string) (f Fingerprint, err error) {
	text, ok := strings.CutPrefix(s, "SHA256:")
	b, err := base64.RawStdEncoding.Strict().DecodeString(text)
	if !ok || err != nil || len(b) != len(f) {
		return f, fmt.Errorf("%.60q is no fingerprint: write it as ssh-keygen -l does, SHA256: and 43 characters", s)
	}
	return Fingerprint(b), nil
}

// PublicKey is an SSH public key that can be checked against. The zero value
// verifies nothing.
type PublicKey struct {
	kind        string
	blob        []byte // wire form
	key         crypto.PublicKey
	application string // of a hardware key
}

// ParsePublicKey reads a key's wire form (RFC 4253 section 6.6, RFC 5656, RFC
// 8709, PROTOCOL.u2f of OpenSSH).
func ParsePublicKey(blob []byte) (*PublicKey, error) {
	r := reader{rest: blob}
	p := &PublicKey{kind: string(r.bytes()), blob: bytes.Clone(blob)}
	switch p.kind {
	case typeEd25519, typeSKEd25519:
		if b := r.bytes(); len(b) == ed25519.PublicKeySize {
			p.key = ed25519.PublicKey(bytes.Clone(b))
		}
	case typeP256, typeP384, typeP521, typeSKP256:
		p.key = r.curve(p.kind)
	case typeRSA:
		e, n := r.integer(), r.integer()
		if !r.bad {
			return p, p.setRSA(n, e, &r)
		}
	case "ssh-dss":
		return nil, fmt.Errorf("DSA keys (ssh-dss) are too weak; use ed25519")
	default:
		if r.bad || p.kind == "" {
			return nil, fmt.Errorf("the key is %w", ErrFormat)
		}
		return nil, fmt.Errorf("keys of type %.40q can't sign requests; use ed25519, ecdsa, rsa or their hardware forms (sk-)", p.kind)
	}
	if p.Hardware() {
		p.application = string(r.bytes())
	}
	if p.key == nil || !r.done() {
		return nil, fmt.Errorf("the %s key is %w", p.kind, ErrFormat)
	}
	return p, nil
}

func (p *PublicKey) setRSA(n, e *big.Int, r *reader) error {
	switch bits := n.BitLen(); {
	case !r.done() || e.BitLen() > 31 || e.Sign() <= 0 || e.Bit(0) == 0 || e.Int64() < 3:
		return fmt.Errorf("the %s key is %w", p.kind, ErrFormat)
	case bits < minRSA || bits > maxRSA:
		return fmt.Errorf("the RSA key has %d bits; from %d to %d are taken", bits, minRSA, maxRSA)
	}
	p.key = &rsa.PublicKey{N: n, E: int(e.Int64())}
	return nil
}

// Type is the key's type as authorized_keys files have it.
func (p *PublicKey) Type() string { return p.kind }

// Fingerprint names the key.
func (p *PublicKey) Fingerprint() Fingerprint { return sha256.Sum256(p.blob) }

// Blob is the key's wire form.
func (p *PublicKey) Blob() []byte { return bytes.Clone(p.blob) }

// MarshalText gives the wire form in base64, as authorized_keys files have it.
func (p PublicKey) MarshalText() ([]byte, error) {
	return []byte(base64.StdEncoding.EncodeToString(p.blob)), nil
}

// UnmarshalText reads what MarshalText gives.
func (p *PublicKey) UnmarshalText(text []byte) error {
	blob, err := base64.StdEncoding.Strict().DecodeString(string(text))
	if err != nil {
		return ErrFormat
	}
	read, err := ParsePublicKey(blob)
	if err == nil {
		*p = *read
	}
	return err
}

// Hardware reports whether the key is in a device that may want to be touched.
func (p *PublicKey) Hardware() bool { return strings.HasPrefix(p.kind, "sk-") }

func (p *PublicKey) rsa() bool { return p.kind == typeRSA }

// Presence is what a hardware key says about its user; both are true for other
// keys, which have no such question.
type Presence struct {
	Touched  bool // somebody touched the key
	Verified bool // a PIN or a fingerprint was checked
}

// The flags of a hardware key's signature (PROTOCOL.u2f).
const (
	flagTouched  = 0x01
	flagVerified = 0x04
)

// verify checks an SSH signature of data. The only error is ErrSignature.
func (p *PublicKey) verify(data, signature []byte) (Presence, error) {
	r := reader{rest: signature}
	format, blob := string(r.bytes()), r.bytes()
	presence := Presence{Touched: true, Verified: true}
	if p.Hardware() {
		flags := r.take(1)
		counter := r.take(4)
		if r.bad {
			return Presence{}, ErrSignature
		}
		presence = Presence{Touched: flags[0]&flagTouched != 0, Verified: flags[0]&flagVerified != 0}
		application, hash := sha256.Sum256([]byte(p.application)), sha256.Sum256(data)
		data = bytes.Join([][]byte{application[:], flags, counter, hash[:]}, nil)
	}
	if !r.done() || !p.valid(format, data, blob) {
		return Presence{}, ErrSignature
	}
	return presence, nil
}

func (p *PublicKey) valid(format string, data, blob []byte) bool {
	switch key := p.key.(type) {
	case ed25519.PublicKey:
		return format == p.kind && ed25519.Verify(key, data, blob)
	case *ecdsa.PublicKey:
		return format == p.kind && validECDSA(key, data, blob)
	case *rsa.PublicKey:
		return validRSA(key, format, data, blob)
	}
	return false
}

func validECDSA(key *ecdsa.PublicKey, data, blob []byte) bool {
	r := reader{rest: blob}
	x, y := r.integer(), r.integer()
	return r.done() && ecdsa.Verify(key, digest(key.Curve, data), x, y)
}

// digest is the hash that RFC 5656 section 6.2.1 pairs with a curve.
func digest(curve elliptic.Curve, data []byte) []byte {
	switch bits := curve.Params().BitSize; {
	case bits <= 256:
		sum := sha256.Sum256(data)
		return sum[:]
	case bits <= 384:
		sum := sha512.Sum384(data)
		return sum[:]
	}
	sum := sha512.Sum512(data)
	return sum[:]
}

// validRSA takes SHA-2 only (RFC 8332): the format ssh-rsa is SHA-1.
func validRSA(key *rsa.PublicKey, format string, data, blob []byte) bool {
	switch format {
	case "rsa-sha2-256":
		sum := sha256.Sum256(data)
		return rsa.VerifyPKCS1v15(key, crypto.SHA256, sum[:], blob) == nil
	case "rsa-sha2-512":
		sum := sha512.Sum512(data)
		return rsa.VerifyPKCS1v15(key, crypto.SHA512, sum[:], blob) == nil
	}
	return false
}

// reader walks SSH's wire form (RFC 4251 section 5).
type reader struct {
	rest []byte
	bad  bool
}

func (r *reader) take(n int) []byte {
	if r.bad || n > len(r.rest) {
		r.bad = true
		return nil
	}
	b := r.rest[:n]
	r.rest = r.rest[n:]
	return b
}

// bytes reads a string: a length of four bytes, and as many bytes.
func (r *reader) bytes() []byte {
	n := r.take(4)
	if r.bad {
		return nil
	}
	if length := binary.BigEndian.Uint32(n); length <= uint32(len(r.rest)) {
		return r.take(int(length))
	}
	r.bad = true
	return nil
}

// integer reads a positive mpint in its one spelling.
func (r *reader) integer() *big.Int {
	b := r.bytes()
	if len(b) == 0 || b[0] >= 0x80 || b[0] == 0 && (len(b) == 1 || b[1] < 0x80) {
		r.bad = true
		return new(big.Int)
	}
	return new(big.Int).SetBytes(b)
}

// curve reads the curve's name and a point on it; nil if there is none.
func (r *reader) curve(kind string) crypto.PublicKey {
	curves := map[string]elliptic.Curve{"nistp256": elliptic.P256(), "nistp384": elliptic.P384(), "nistp521": elliptic.P521()}
	name, point := string(r.bytes()), r.bytes()
	curve, ok := curves[name]
	if !ok || !strings.HasSuffix(strings.TrimSuffix(kind, "@openssh.com"), name) {
		return nil
	}
	key, err := ecdsa.ParseUncompressedPublicKey(curve, point)
	if err != nil {
		return nil
	}
	return key
}

func (r *reader) done() bool { return !r.bad && len(r.rest) == 0 }
