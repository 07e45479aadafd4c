package main

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"errors"
	randv2 "math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/dchest/siphash"

	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/sallyport/sallyport/internal/spa"
)

// spaConfig is a server of SPA; KEYS stands for the directory of its files.
const spaConfig = `[service.ssh]
ports = ["22/tcp"]
open_for = "30s"
[knock.keys]
type = "spa"
opens = ["ssh"]
key = "KEYS/server.key"
authorized_keys = "KEYS/authorized_keys"
`

// user is who asks, with the kind of key that ssh-keygen makes by itself.
type user struct{ key ed25519.PrivateKey }

const keyType = "ssh-ed25519"

// PublicKey makes a user a spa.Signer.
func (u user) PublicKey() []byte {
	return sshStrings(keyType, string(u.key.Public().(ed25519.PublicKey)))
}

// Sign makes a user a spa.Signer.
func (u user) Sign(data []byte) ([]byte, error) {
	return sshStrings(keyType, string(ed25519.Sign(u.key, data))), nil
}

// sshStrings is SSH's wire form of strings (RFC 4251 section 5).
func sshStrings(list ...string) (b []byte) {
	for _, s := range list {
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...)
	}
	return b
}

// enrolled is a server and its one user.
type enrolled struct {
	b      *bench
	server *spa.ServerKey
	user   user
	gates  [4]uint64 // the two keys of the gate, which a user has too
	config string
}

func (w *world) enroll() *enrolled {
	server, err := spa.NewServerKey(spa.Classic)
	if err != nil {
		w.b.Fatal(err)
	}
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		w.b.Fatal(err)
	}
	dir := w.dir()
	e := &enrolled{b: w.b, server: server, gates: gatesOf(server), user: user{key}, config: strings.ReplaceAll(spaConfig, "KEYS", dir)}
	line := keyType + " " + base64.StdEncoding.EncodeToString(e.user.PublicKey()) + "\n"
	if err := errors.Join(
		os.WriteFile(filepath.Join(dir, "server.key"), []byte(spa.FormatKeyFile([]spa.FileKey{{Key: server}})), 0o600),
		os.WriteFile(filepath.Join(dir, "authorized_keys"), []byte(line), 0o600)); err != nil {
		w.b.Fatal(err)
	}
	return e
}

// gatesOf takes the gate's keys out of a server's address: they stand behind its
// prefix and a byte for the suite.
func gatesOf(server *spa.ServerKey) (gates [4]uint64) {
	body, err := base64.RawURLEncoding.DecodeString(strings.TrimPrefix(server.Address().String(), "sallyport1"))
	if err != nil {
		panic(err) // the format has changed, and this function must
	}
	for i := range gates {
		gates[i] = binary.LittleEndian.Uint64(body[1+8*i:])
	}
	return gates
}

// datagram asks for all, for the address that it comes from.
func (e *enrolled) datagram() []byte {
	d, err := spa.Seal(e.server.Address(), &spa.Request{Stamp: time.Now().UnixNano(), Action: spa.Open}, e.user)
	if err != nil {
		e.b.Fatalf("sealing a request: %v", err)
	}
	return d
}

// knock asks once.
func (e *enrolled) knock(w *world, from, to netip.Addr) [][]byte {
	return [][]byte{w.prober.datagram(from, to, e.datagram())}
}

// unheard is the floor: as long a datagram that nobody watches for.
func unheard(w *world, from, to netip.Addr) [][]byte {
	return [][]byte{w.prober.packet(from, to, stray[1], make([]byte, spa.SmallSize))}
}

// datagram sends a payload to the port of SPA, which is also fwknopd's.
func (p *prober) datagram(from, to netip.Addr, payload []byte) []byte {
	return p.packet(from, to, sequence.Step{Proto: sequence.UDP, Port: spa.DefaultPort}, payload)
}

// closeFirst makes the first tag of a datagram right, which takes the gate's
// key: as a thief of a client's settings could.
func (e *enrolled) closeFirst(d []byte) {
	binary.LittleEndian.PutUint64(d, siphash.Hash(e.gates[0], e.gates[1], d[8:48]))
}

// closeBoth makes both tags right.
func (e *enrolled) closeBoth(d []byte) {
	binary.LittleEndian.PutUint64(d[8:], siphash.Hash(e.gates[2], e.gates[3], d[16:]))
	e.closeFirst(d)
}

// junk is so many random bytes.
func junk(random *randv2.Rand, size int) []byte {
	d := make([]byte, size+8)
	for i := 0; i < size; i += 8 {
		binary.LittleEndian.PutUint64(d[i:], random.Uint64())
	}
	return d[:size]
}
