package spa

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/binary"
	"sync"
	"testing"

	"golang.org/x/crypto/ssh"
)

// software is a key that golang.org/x/crypto/ssh signs with, which keeps our own
// reading of keys and signatures honest.
type software struct {
	ssh.Signer
	algorithm string
}

func (s software) PublicKey() []byte { return s.Signer.PublicKey().Marshal() }

func (s software) Sign(data []byte) ([]byte, error) {
	sig, err := s.Signer.(ssh.AlgorithmSigner).SignWithAlgorithm(rand.Reader, data, s.algorithm)
	if err != nil {
		return nil, err
	}
	return ssh.Marshal(sig), nil
}

// hardware signs as a security key does (PROTOCOL.u2f), with these flags.
type hardware struct {
	kind, curve string
	key         crypto.Signer
	flags       byte
}

const application = "ssh:"

func (h hardware) PublicKey() []byte {
	if key, ok := h.key.Public().(ed25519.PublicKey); ok {
		return ssh.Marshal(struct {
			Kind        string
			Key         []byte
			Application string
		}{h.kind, key, application})
	}
	point, err := h.key.Public().(*ecdsa.PublicKey).Bytes()
	if err != nil {
		panic(err)
	}
	return ssh.Marshal(struct {
		Kind, Curve string
		Point       []byte
		Application string
	}{h.kind, h.curve, point, application})
}

func (h hardware) Sign(data []byte) ([]byte, error) {
	app, hash := sha256.Sum256([]byte(application)), sha256.Sum256(data)
	state := append([]byte{h.flags}, binary.BigEndian.AppendUint32(nil, 7)...)
	signed := append(append(append([]byte{}, app[:]...), state...), hash[:]...)
	signer, err := ssh.NewSignerFromSigner(h.key)
	if err != nil {
		return nil, err
	}
	sig, err := signer.Sign(rand.Reader, signed)
	if err != nil {
		return nil, err
	}
	sig.Format, sig.Rest = h.kind, state
	return ssh.Marshal(sig), nil
}

var signers = sync.OnceValue(func() map[string]Signer {
	all := map[string]Signer{}
	soft := func(name, algorithm string, key any, err error) {
		if err != nil {
			panic(err)
		}
		signer, err := ssh.NewSignerFromKey(key)
		if err != nil {
			panic(err)
		}
		all[name] = software{signer, algorithm}
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	soft("ed25519", ssh.KeyAlgoED25519, ed, err)
	for _, c := range []elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P521()} {
		key, err := ecdsa.GenerateKey(c, rand.Reader)
		soft(c.Params().Name, map[int]string{256: ssh.KeyAlgoECDSA256, 384: ssh.KeyAlgoECDSA384, 521: ssh.KeyAlgoECDSA521}[c.Params().BitSize], key, err)
	}
	for _, bits := range []int{2048, 3072, 4096} {
		key, err := rsa.GenerateKey(rand.Reader, bits)
		soft(map[int]string{2048: "rsa2048", 3072: "rsa3072", 4096: "rsa4096"}[bits], ssh.KeyAlgoRSASHA512, key, err)
		if bits == 2048 {
			soft("rsa2048-256", ssh.KeyAlgoRSASHA256, key, err)
		}
	}
	_, ed, _ = ed25519.GenerateKey(rand.Reader)
	p256, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	all["sk-ed25519"] = hardware{typeSKEd25519, "", ed, flagTouched}
	all["sk-ecdsa"] = hardware{typeSKP256, "nistp256", p256, flagTouched | flagVerified}
	return all
})

func signer(t testing.TB, name string) Signer {
	t.Helper()
	s, ok := signers()[name]
	if !ok {
		t.Fatalf("no signer %q", name)
	}
	return s
}
