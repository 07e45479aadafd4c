// Package spa is the wire format of single-packet authorization, version 1: one
// encrypted datagram, signed by an SSH key, that asks for services and gets no
// answer. sallyport-protocol(7) describes it for other implementations.
//
// A datagram is a gate of 16 bytes, which junk does not get through, and a
// seal (HPKE, RFC 9180), which only the server opens. In the seal are the
// request and the client's signature (PROTOCOL.sshsig of OpenSSH).
package spa

import (
	"bytes"
	"crypto/ecdh"
	"crypto/hpke"
	"errors"
	"fmt"
	"slices"
)

// Suite says how datagrams to a server are sealed. The server's key decides.
type Suite uint8

// The suites. The numbers are the format's.
const (
	// Classic is DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, ChaCha20Poly1305.
	Classic Suite = 1
	// PostQuantum is the same with the KEM MLKEM768-X25519, which stays closed
	// while either of ML-KEM-768 and X25519 holds.
	PostQuantum Suite = 2
)

// String gives "classic" or "post-quantum".
func (s Suite) String() string {
	switch s {
	case Classic:
		return "classic"
	case PostQuantum:
		return "post-quantum"
	}
	return fmt.Sprintf("suite %d", uint8(s))
}

// The three lengths that a datagram can have, in bytes. PostQuantumSize leaves
// room for IPv6 and UDP headers within 1,420, the usual MTU of a tunnel.
const (
	SmallSize       = 448
	LargeSize       = 832 // RSA
	PostQuantumSize = 1372
)

// Sizes is all of them.
var Sizes = [...]int{SmallSize, LargeSize, PostQuantumSize}

// MaxParts is how many copies of a datagram may arrive glued together: receive
// offload joins datagrams of one flow that follow each other closely.
const MaxParts = 3

// Lengths within a datagram, in bytes.
const (
	gateSize   = 16 // two SipHash tags
	gateSpan   = 40 // what the first tag covers: the second tag and the 32 bytes behind it
	aeadSize   = 16 // the tag of ChaCha20Poly1305
	classicEnc = 32
	hybridEnc  = 1120
	hybridKey  = 1216
)

func (s Suite) known() bool { return s == Classic || s == PostQuantum }

// takes reports whether datagrams of this suite can have n bytes.
func (s Suite) takes(n int) bool {
	if s == PostQuantum {
		return n == PostQuantumSize
	}
	return n == SmallSize || n == LargeSize
}

func (s Suite) encSize() int {
	if s == PostQuantum {
		return hybridEnc
	}
	return classicEnc
}

func (s Suite) keySize() int {
	if s == PostQuantum {
		return hybridKey
	}
	return classicEnc
}

func (s Suite) kem() hpke.KEM {
	if s == PostQuantum {
		return hpke.MLKEM768X25519()
	}
	return hpke.DHKEM(ecdh.X25519())
}

// info binds a seal to this protocol (RFC 9180 section 5).
var info = []byte("sallyport spa v1")

// IsSize reports whether a datagram can have n bytes.
func IsSize(n int) bool { return slices.Contains(Sizes[:], n) }

// Single gives the one datagram in b, which may be up to MaxParts identical
// copies of it glued together; nil if b has no length of ours or the copies
// differ. It allocates nothing.
func Single(b []byte) []byte {
	for parts := 1; parts <= MaxParts; parts++ {
		n := len(b) / parts
		if n*parts != len(b) || !IsSize(n) {
			continue
		}
		// No two of the sizes have a common multiple this small, so the first
		// that fits is the only one.
		for i := 1; i < parts; i++ {
			if !bytes.Equal(b[:n], b[i*n:(i+1)*n]) {
				return nil
			}
		}
		return b[:n]
	}
	return nil
}

// ErrFormat is what reading a text of ours that is damaged gives.
var ErrFormat = errors.New("damaged")

// DefaultPort is where a server hears datagrams unless its config says another
// port. It is fwknop's, which networks that filter may know already.
const DefaultPort = 62201
