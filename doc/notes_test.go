package doc_test

import (
	"crypto/ed25519"
	"math/bits"
	"strings"
	"testing"

	"github.com/sallyport/sallyport/internal/spa"
)

// signer is an ed25519 key as ssh-agent would use it.
type signer struct{ ed25519.PrivateKey }

// PublicKey makes a signer a spa.Signer.
func (s signer) PublicKey() []byte {
	return []byte(sshString("ssh-ed25519") + sshString(string(s.Public().(ed25519.PublicKey))))
}

// Sign makes a signer a spa.Signer.
func (s signer) Sign(data []byte) ([]byte, error) {
	return []byte(sshString("ssh-ed25519") + sshString(string(ed25519.Sign(s.PrivateKey, data)))), nil
}

// TestShapeOfADatagram holds note 0006 to what it says of a datagram's shape: one
// request, sealed again and again, has one bit that is always the same.
func TestShapeOfADatagram(t *testing.T) {
	const note = "notes/0006-threat-model.md"
	for _, c := range []struct {
		suite spa.Suite
		size  int
		at    int
		said  string
	}{
		{spa.Classic, spa.SmallSize, 47, "bit 7 of byte 47, counted from 0"},
		{spa.PostQuantum, spa.PostQuantumSize, 1135, "in the post-quantum suite of byte 1135"},
	} {
		zeros, ones := overlay(t, c.suite, c.size)
		for i := range c.size {
			var want byte
			if i == c.at {
				want = 1 << 7
			}
			if zeros[i] != want || ones[i] != 0 {
				t.Errorf("%v: %d bits of byte %d are always the same", c.suite, bits.OnesCount8(zeros[i]|ones[i]), i)
			}
		}
		if !strings.Contains(read(t, note), c.said) {
			t.Errorf("%s does not say %q", note, c.said)
		}
	}
}

// overlay gives the bits that are 0, and those that are 1, in each of many
// datagrams. That one of 11,000 bits is so by chance happens once in 2^50 runs.
func overlay(t *testing.T, suite spa.Suite, size int) (zeros, ones []byte) {
	key, err := spa.NewServerKey(suite)
	if err != nil {
		t.Fatal(err)
	}
	request := &spa.Request{Stamp: 1, Action: spa.Open}
	who := signer{ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))}
	zeros, ones = make([]byte, size), make([]byte, size)
	for i := range zeros {
		zeros[i], ones[i] = 0xff, 0xff
	}
	for range 64 {
		b, err := spa.Seal(key.Address(), request, who)
		if err != nil || len(b) != size {
			t.Fatalf("%v: %d bytes, %v; want %d", suite, len(b), err, size)
		}
		for i := range b {
			zeros[i] &^= b[i]
			ones[i] &= b[i]
		}
	}
	return zeros, ones
}
