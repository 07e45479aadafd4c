package spa

import (
	"crypto/hpke"
	"encoding/binary"
	"testing"
)

// mustSealFields makes a datagram of any fields and signature: what a holder of
// the gate keys can do.
func mustSealFields(t testing.TB, to *ServerKey, fields, signature []byte) []byte {
	t.Helper()
	public, err := to.address.suite.kem().NewPublicKey(to.address.public)
	if err != nil {
		t.Fatal(err)
	}
	enc, sender, err := hpke.NewSender(public, hpke.HKDFSHA256(), hpke.ChaCha20Poly1305(), info)
	if err != nil {
		t.Fatal(err)
	}
	plain := make([]byte, SmallSize-gateSize-len(enc)-aeadSize)
	n := copy(plain, fields)
	binary.BigEndian.PutUint16(plain[n:], uint16(len(signature)))
	copy(plain[n+2:], signature)
	sealed, err := sender.Seal(nil, plain)
	if err != nil {
		t.Fatal(err)
	}
	b := append(append(make([]byte, gateSize), enc...), sealed...)
	to.gate.close(b)
	return b
}

// mustReseal is what a server can do with a request that it opened.
func mustReseal(t testing.TB, to *ServerKey, o *Opened) []byte {
	t.Helper()
	return mustSealFields(t, to, o.encode(o.Key), o.signature)
}
