//go:build linux

package engine

import (
	"bytes"
	"crypto"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/hpke"
	"crypto/mlkem"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha3"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dchest/siphash"
	"golang.org/x/crypto/chacha20poly1305"
	"golang.org/x/crypto/ssh"

	"github.com/sallyport/sallyport/internal/spa"
)

// The format's figures, written down a second time: what an attacker
// works from is the description, not our code.
const (
	gatesLen = 16
	sealInfo = "sallyport spa v1"
)

// enrolled is a server's key with all that can be had of it: its clients hold
// the gate keys and the public key, and the seed opens what they send.
type enrolled struct {
	key    *spa.ServerKey
	gates  [4]uint64
	public hpke.PublicKey
	seed   []byte
	encLen int
	kem    uint16 // of RFC 9180's registry
}

func newEnrolled(t *testing.T, suite spa.Suite) *enrolled {
	t.Helper()
	key, err := spa.NewServerKey(suite)
	if err != nil {
		t.Fatal(err)
	}
	secret, _ := key.MarshalText()
	body := unspell(t, "sallyport-key1", string(secret))
	e := &enrolled{key: key, seed: body[1+32:], encLen: 32, kem: 0x0020}
	kem := hpke.DHKEM(ecdh.X25519())
	if suite == spa.PostQuantum {
		kem, e.kem, e.encLen = hpke.MLKEM768X25519(), 0x647a, mlkem.CiphertextSize768+32
	}
	for i := range e.gates {
		e.gates[i] = binary.LittleEndian.Uint64(body[1+8*i:])
	}
	if e.public, err = kem.NewPublicKey(unspell(t, "sallyport1", key.Address().String())[1+32:]); err != nil {
		t.Fatal(err)
	}
	return e
}

// unspell gives what a line of ours has between its prefix and its check.
func unspell(t *testing.T, prefix, line string) []byte {
	t.Helper()
	b, err := base64.RawURLEncoding.DecodeString(strings.TrimPrefix(line, prefix))
	if err != nil {
		t.Fatal(err)
	}
	return b[:len(b)-4]
}

// closeFirst makes the first tag right, of a datagram that is long enough to
// have one.
func (e *enrolled) closeFirst(b []byte) {
	if len(b) >= 48 {
		binary.LittleEndian.PutUint64(b, siphash.Hash(e.gates[0], e.gates[1], b[8:48]))
	}
}

// closeGates makes both tags right.
func (e *enrolled) closeGates(b []byte) {
	if len(b) >= 48 {
		binary.LittleEndian.PutUint64(b[8:], siphash.Hash(e.gates[2], e.gates[3], b[gatesLen:]))
		e.closeFirst(b)
	}
}

// sameSeal gives the cipher and nonce of a datagram's own seal (RFC 9180,
// sections 4.1 and 5.1), which crypto/hpke keeps to itself: only the sender and
// the server have them. With a fresh seal no signature is good any more, so
// without this nothing would try the fields one by one.
func (e *enrolled) sameSeal(t *testing.T, enc []byte) (cipher.AEAD, []byte) {
	t.Helper()
	shared := e.decapsulate(t, enc)
	suite := binary.BigEndian.AppendUint16([]byte("HPKE"), e.kem)
	suite = append(suite, 0, 1, 0, 3) // HKDF-SHA256, ChaCha20Poly1305
	context := slices.Concat([]byte{0}, extract(t, suite, nil, "psk_id_hash", nil), extract(t, suite, nil, "info_hash", []byte(sealInfo)))
	secret := extract(t, suite, shared, "secret", nil)
	aead, err := chacha20poly1305.New(expand(t, suite, secret, "key", context, chacha20poly1305.KeySize))
	if err != nil {
		t.Fatal(err)
	}
	return aead, expand(t, suite, secret, "base_nonce", context, chacha20poly1305.NonceSize)
}

func (e *enrolled) decapsulate(t *testing.T, enc []byte) []byte {
	t.Helper()
	if e.kem == 0x0020 {
		dh, public := agree(t, e.seed, enc)
		suite := []byte("KEM\x00\x20")
		return expand(t, suite, extract(t, suite, nil, "eae_prk", dh), "shared_secret", slices.Concat(enc, public), 32)
	}
	seeds := sha3.SumSHAKE256(e.seed, mlkem.SeedSize+32)
	quantum, err := mlkem.NewDecapsulationKey768(seeds[:mlkem.SeedSize])
	if err != nil {
		t.Fatal(err)
	}
	first, err := quantum.Decapsulate(enc[:mlkem.CiphertextSize768])
	if err != nil {
		t.Fatal(err)
	}
	second, public := agree(t, seeds[mlkem.SeedSize:], enc[mlkem.CiphertextSize768:])
	shared := sha3.Sum256(slices.Concat(first, second, enc[mlkem.CiphertextSize768:], public, []byte(`\.//^\`)))
	return shared[:]
}

// agree gives the secret of X25519 and the public key of ours.
func agree(t *testing.T, private, theirs []byte) (secret, ours []byte) {
	t.Helper()
	own, err := ecdh.X25519().NewPrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	other, err := ecdh.X25519().NewPublicKey(theirs)
	if err != nil {
		t.Fatal(err)
	}
	if secret, err = own.ECDH(other); err != nil {
		t.Fatal(err)
	}
	return secret, own.PublicKey().Bytes()
}

func extract(t *testing.T, suite, salt []byte, label string, secret []byte) []byte {
	t.Helper()
	key, err := hkdf.Extract(sha256.New, slices.Concat([]byte("HPKE-v1"), suite, []byte(label), secret), salt)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func expand(t *testing.T, suite, key []byte, label string, info []byte, n int) []byte {
	t.Helper()
	labeled := slices.Concat([]byte{byte(n >> 8), byte(n)}, []byte("HPKE-v1"), suite, []byte(label), info)
	b, err := hkdf.Expand(sha256.New, key, string(labeled), n)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// sample is a valid datagram, taken apart.
type sample struct {
	name     string
	server   *enrolled
	datagram []byte
	plain    []byte
	aead     cipher.AEAD
	nonce    []byte
}

// sample has a user ask for something at random that the server allows.
func (o *ordeal) sample(u subject) *sample {
	o.t.Helper()
	r := spa.Request{
		Stamp: time.Now().UnixNano(), Action: spa.Action(1 + o.random.IntN(3)),
		Services: [][]string{nil, {"ssh"}, {"web", "ssh"}}[o.random.IntN(3)],
	}
	if r.Action != spa.Close {
		r.For = time.Duration(o.random.IntN(60)) * time.Second
	}
	if stated := o.random.IntN(4); stated > 0 {
		r.IPv4, r.IPv6, r.Own = benchSource[0], benchSource[1], stated > 1
	}
	s := &sample{name: fmt.Sprintf("%s, %+v", u.name, r), server: o.keys[u.suite]}
	var err error
	if s.datagram, err = spa.Seal(s.server.key.Address(), &r, u); err != nil {
		o.t.Fatal(err)
	}
	sealed := gatesLen + s.server.encLen
	s.aead, s.nonce = s.server.sameSeal(o.t, s.datagram[gatesLen:sealed])
	if s.plain, err = s.aead.Open(nil, s.nonce, s.datagram[sealed:], nil); err != nil {
		o.t.Fatal(err)
	}
	if s.server.closeGates(s.datagram); !bytes.Equal(s.sealSame(nil, s.plain), s.datagram) {
		o.t.Fatal("what was taken apart does not go together again")
	}
	return s
}

// sealSame seals into the datagram's own seal.
func (s *sample) sealSame(b, plain []byte) []byte {
	b = append(b[:0], s.datagram[:gatesLen+s.server.encLen]...)
	b = s.aead.Seal(b, s.nonce, plain, nil)
	s.server.closeGates(b)
	return b
}

// sealFresh seals as anybody can who has the server's address.
func (s *sample) sealFresh(b, plain []byte) []byte {
	enc, sender, err := hpke.NewSender(s.server.public, hpke.HKDFSHA256(), hpke.ChaCha20Poly1305(), []byte(sealInfo))
	if err != nil {
		panic(err) // the key is good: newEnrolled read it
	}
	sealed, err := sender.Seal(nil, plain)
	if err != nil {
		panic(err)
	}
	b = append(append(append(b[:0], make([]byte, gatesLen)...), enc...), sealed...)
	s.server.closeGates(b)
	return b
}

// levels are where a bit can flip.
var levels = []struct {
	name string
	of   func(s *sample) []byte
	make func(s *sample, b, flipped []byte) []byte
}{
	{"on the wire", func(s *sample) []byte { return s.datagram }, func(_ *sample, b, flipped []byte) []byte { return append(b[:0], flipped...) }},
	{"behind the gates", func(s *sample) []byte { return s.datagram }, func(s *sample, b, flipped []byte) []byte {
		b = append(b[:0], flipped...)
		s.server.closeGates(b)
		return b
	}},
	{"in its own seal", func(s *sample) []byte { return s.plain }, (*sample).sealSame},
	{"in a fresh seal", func(s *sample) []byte { return s.plain }, (*sample).sealFresh},
}

// bits is how many there are to flip.
func (s *sample) bits() int { return 2 * 8 * (len(s.datagram) + len(s.plain)) }

// torment delivers the datagram with each bit flipped, or with a bit of each
// step, and gives the number of these.
func (s *sample) torment(v *victim, step int) (n int, err error) {
	b := make([]byte, 0, 2048)
	for _, level := range levels {
		flipped := slices.Clone(level.of(s))
		for bit := v.random.IntN(step); bit < 8*len(flipped); bit += step {
			flipped[bit/8] ^= 1 << (bit % 8)
			b = level.make(s, b, flipped)
			flipped[bit/8] ^= 1 << (bit % 8)
			if bytes.Equal(b, s.datagram) {
				continue // the gates, closed again
			}
			n++
			if err := v.refuses(b, fmt.Sprintf("%s: with bit %d flipped %s it", s.name, bit, level.name)); err != nil {
				return n, err
			}
		}
	}
	return n, nil
}

// subject is a user, and the kind of datagram that one's key makes.
type subject struct {
	name  string
	suite spa.Suite
	line  string // of authorized_keys; empty: another subject has it
	ssh.Signer
	algorithm string
	hardware  bool
}

// PublicKey makes a subject a spa.Signer.
func (s subject) PublicKey() []byte {
	if s.hardware {
		raw := s.Signer.PublicKey().(ssh.CryptoPublicKey).CryptoPublicKey().(ed25519.PublicKey)
		return ssh.Marshal(struct {
			Type        string
			Key         []byte
			Application string
		}{ssh.KeyAlgoSKED25519, raw, application})
	}
	return s.Signer.PublicKey().Marshal()
}

const application = "ssh:"

// Sign makes a subject a spa.Signer.
func (s subject) Sign(data []byte) ([]byte, error) {
	var state []byte
	if s.hardware {
		// PROTOCOL.u2f of OpenSSH: touched, and a counter.
		state = []byte{1, 0, 0, 0, 7}
		app, hash := sha256.Sum256([]byte(application)), sha256.Sum256(data)
		data = slices.Concat(app[:], state, hash[:])
	}
	sig, err := s.Signer.(ssh.AlgorithmSigner).SignWithAlgorithm(rand.Reader, data, s.algorithm)
	if err != nil {
		return nil, err
	}
	if s.hardware {
		sig.Format, sig.Rest = ssh.KeyAlgoSKED25519, state
	}
	return ssh.Marshal(sig), nil
}

// subjects has a user for every size of datagram and every kind of signature.
func subjects(t *testing.T) []subject {
	t.Helper()
	_, ed, err1 := ed25519.GenerateKey(rand.Reader)
	_, sk, err2 := ed25519.GenerateKey(rand.Reader)
	p256, err3 := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	p521, err4 := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	rsa2048, err5 := rsa.GenerateKey(rand.Reader, 2048)
	rsa4096, err6 := rsa.GenerateKey(rand.Reader, 4096)
	for _, err := range []error{err1, err2, err3, err4, err5, err6} {
		if err != nil {
			t.Fatal(err)
		}
	}
	var all []subject
	for _, s := range []struct {
		key       crypto.Signer
		algorithm string
		hardware  bool
		suites    []spa.Suite
	}{
		{ed, ssh.KeyAlgoED25519, false, []spa.Suite{spa.Classic, spa.PostQuantum}},
		{sk, ssh.KeyAlgoED25519, true, []spa.Suite{spa.Classic, spa.PostQuantum}},
		{p256, ssh.KeyAlgoECDSA256, false, []spa.Suite{spa.Classic}},
		{p521, ssh.KeyAlgoECDSA521, false, []spa.Suite{spa.Classic}},
		{rsa2048, ssh.KeyAlgoRSASHA256, false, []spa.Suite{spa.Classic}},
		{rsa4096, ssh.KeyAlgoRSASHA512, false, []spa.Suite{spa.Classic}},
	} {
		signer, err := ssh.NewSignerFromSigner(s.key)
		if err != nil {
			t.Fatal(err)
		}
		for i, suite := range s.suites {
			u := subject{name: fmt.Sprintf("%s (hardware: %v), %v", s.algorithm, s.hardware, suite), suite: suite, Signer: signer, algorithm: s.algorithm, hardware: s.hardware}
			if i == 0 {
				blob := u.PublicKey()
				kind := blob[4 : 4+binary.BigEndian.Uint32(blob)]
				u.line = fmt.Sprintf("%s %s\n", kind, base64.StdEncoding.EncodeToString(blob))
			}
			all = append(all, u)
		}
	}
	return all
}
