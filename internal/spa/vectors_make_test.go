package spa

import (
	"bytes"
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
	"maps"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/cryptotest"
	"time"

	"golang.org/x/crypto/chacha20poly1305"
	"golang.org/x/crypto/ssh"

	"github.com/sallyport/sallyport/vectors"
)

const vectorsDir = "../../vectors"

// vectorsNow is the server's clock in every vector, in seconds since 1970.
const vectorsNow = 1_800_000_000

// recipe is how a vector is made. What is left out is the usual.
type recipe struct {
	name, about, expect string
	by                  string   // who signs; "": ed25519
	options             string   // of the signer in the authorized keys
	authorized          []string // other signers that stand there instead
	lines               string   // "address: observed\nwindow: 300": the server's settings
	from                string   // who delivers it
	request             Request
	granted             string // the addresses that it opens for; "": the stated ones, else from
	seed                string // of the randomness; "": the name
	forge               forgery
}

// forgery is what is not as a client makes it.
type forgery struct {
	fields     func(b []byte) []byte   // before they are signed
	data       func(b []byte) []byte   // what is signed
	signature  func(sig []byte) []byte // after it is made
	length     int                     // stated of the signature, where it is not the true one
	plain      func(b []byte)          // before it is sealed
	forOther   bool                    // the message is signed for another server
	toOther    bool                    // sealed to another server
	otherGate  bool                    // closed with another server's gate keys
	size       int                     // of the datagram
	otherSuite bool                    // of a length that another suite has
	claims     string                  // the signer that it says it is
	lowOrder   bool                    // the X25519 share is zero
	packet     func(b []byte) []byte   // what arrives
}

func (f *forgery) any() bool {
	return f.fields != nil || f.data != nil || f.signature != nil || f.length != 0 || f.plain != nil || f.forOther ||
		f.toOther || f.otherGate || f.size != 0 || f.lowOrder || f.otherSuite || f.claims != ""
}

func seedOf(name string) uint64 {
	sum := sha256.Sum256([]byte(name))
	return binary.LittleEndian.Uint64(sum[:])
}

func vectorServer(t *testing.T, suite Suite, name string) *ServerKey {
	t.Helper()
	gates, seed := sha256.Sum256([]byte(name+" gates")), sha256.Sum256([]byte(name+" seal"))
	k, err := newServerKey(suite, slices.Concat(gates[:], seed[:]))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// vectorSigners makes the same keys each time.
func vectorSigners(t *testing.T) map[string]Signer {
	all := map[string]Signer{}
	soft := func(name, algorithm string, key any, err error) {
		if err != nil {
			t.Fatal(err)
		}
		s, err := ssh.NewSignerFromKey(key)
		if err != nil {
			t.Fatal(err)
		}
		all[name] = software{s, algorithm}
	}
	for _, name := range []string{"ed25519", "stranger"} {
		cryptotest.SetGlobalRandom(t, seedOf(name))
		_, key, err := ed25519.GenerateKey(rand.Reader)
		soft(name, ssh.KeyAlgoED25519, key, err)
	}
	curves := map[string]elliptic.Curve{ssh.KeyAlgoECDSA256: elliptic.P256(), ssh.KeyAlgoECDSA384: elliptic.P384(), ssh.KeyAlgoECDSA521: elliptic.P521()}
	for algorithm, curve := range curves {
		cryptotest.SetGlobalRandom(t, seedOf(algorithm))
		key, err := ecdsa.GenerateKey(curve, rand.Reader)
		soft(fmt.Sprint("ecdsa-p", curve.Params().BitSize), algorithm, key, err)
	}
	for _, bits := range []int{2048, 3072, 4096} {
		cryptotest.SetGlobalRandom(t, uint64(bits))
		key, err := rsa.GenerateKey(rand.Reader, bits)
		soft(fmt.Sprint("rsa-", bits), ssh.KeyAlgoRSASHA512, key, err)
		soft(fmt.Sprintf("rsa-%d-sha256", bits), ssh.KeyAlgoRSASHA256, key, err)
		soft(fmt.Sprintf("rsa-%d-sha1", bits), ssh.KeyAlgoRSA, key, err)
	}
	cryptotest.SetGlobalRandom(t, seedOf("hardware"))
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, flags := range map[string]byte{"": flagTouched, "-untouched": 0, "-verified": flagTouched | flagVerified} {
		all["sk-ed25519"+name] = hardware{typeSKEd25519, "", ed, flags}
		all["sk-ecdsa"+name] = hardware{typeSKP256, "nistp256", p256, flags}
	}
	return all
}

// kitchen makes the vectors of one suite.
type kitchen struct {
	*testing.T
	suite         Suite
	server, other *ServerKey
	signers       map[string]Signer
	made          map[string]*vectors.Vector
}

// prefixes begin the names of each suite's files.
var prefixes = map[Suite]string{Classic: "classic-", PostQuantum: "pq-"}

func makeVectors(t *testing.T) map[string]*vectors.Vector {
	made, signers := map[string]*vectors.Vector{}, vectorSigners(t)
	for _, suite := range []Suite{Classic, PostQuantum} {
		k := &kitchen{t, suite, vectorServer(t, suite, "server"), vectorServer(t, suite, "other server"), signers, made}
		for _, r := range recipes() {
			if r.fits(suite) {
				k.make(r)
			}
		}
	}
	return made
}

// fits is false where a vector needs a key or a length that the suite lacks.
func (r *recipe) fits(suite Suite) bool {
	return suite == Classic || r.forge.size == 0 && !strings.HasPrefix(r.by, "rsa") && r.by != "ecdsa-p521"
}

func (k *kitchen) make(r recipe) {
	prefix := prefixes[k.suite]
	r.name = prefix + r.name
	r.by, r.from = or(r.by, "ed25519"), or(r.from, "192.0.2.7")
	if r.request.Stamp == 0 {
		r.request.Stamp = vectorsNow*1e9 - 1_500_000_000
	}
	if r.request.Action == 0 {
		r.request.Action = Open
	}
	if k.made[r.name] != nil {
		k.Fatalf("two recipes make %s", r.name)
	}
	cryptotest.SetGlobalRandom(k.T, seedOf(prefix+or(r.seed, strings.TrimPrefix(r.name, prefix))))
	b := k.datagram(&r)
	if r.forge.packet != nil {
		b = r.forge.packet(b)
	}
	v := &vectors.Vector{Name: r.name, Packet: b}
	k.lines(v, &r)
	k.made[r.name] = v
}

func or(value, usual string) string {
	if value == "" {
		return usual
	}
	return value
}

func (k *kitchen) datagram(r *recipe) []byte {
	signer := k.signers[r.by]
	if signer == nil {
		k.Fatalf("%s: no signer %s", r.name, r.by)
	}
	if r.forge.any() || strings.HasSuffix(r.by, "-sha1") {
		return k.forged(r, signer)
	}
	b, err := Seal(k.server.Address(), &r.request, signer)
	if err != nil {
		k.Fatalf("%s: %v", r.name, err)
	}
	return b
}

// forged makes what Seal refuses to make.
func (k *kitchen) forged(r *recipe, signer Signer) []byte {
	f, to, gate := &r.forge, k.server, k.server.gate
	if f.toOther {
		to = k.other
	}
	if f.otherGate {
		gate = k.other.gate
	}
	enc, seal := k.sender(to, f.lowOrder)
	fields := r.request.encode(public(k, k.signers[or(f.claims, r.by)]).Fingerprint())
	if f.fields != nil {
		fields = f.fields(fields)
	}
	recipient := k.server
	if f.forOther {
		recipient = k.other
	}
	data := signedData(message(recipient.Address(), enc, fields))
	if f.data != nil {
		data = f.data(message(recipient.Address(), enc, fields))
	}
	signature, err := signer.Sign(data)
	if err != nil {
		k.Fatal(err)
	}
	if f.signature != nil {
		signature = f.signature(signature)
	}
	size, _ := k.suite.SizeFor(public(k, signer))
	if f.size != 0 {
		size = f.size
	} else if f.otherSuite && k.suite == Classic {
		size = PostQuantumSize
	}
	plain := f.plaintext(size-gateSize-len(enc)-aeadSize, fields, signature)
	b := slices.Concat(make([]byte, gateSize), enc, seal(plain))
	if f.otherSuite && k.suite == PostQuantum {
		b = b[:LargeSize]
	}
	gate.close(b)
	return b
}

func (f *forgery) plaintext(size int, fields, signature []byte) []byte {
	plain := make([]byte, size)
	n := copy(plain, fields)
	length := len(signature)
	if f.length != 0 {
		length = f.length
	}
	binary.BigEndian.PutUint16(plain[n:], uint16(length))
	copy(plain[n+2:], signature)
	if f.plain != nil {
		f.plain(plain)
	}
	return plain
}

// sender gives an encapsulated key and what seals with it.
func (k *kitchen) sender(to *ServerKey, lowOrder bool) (enc []byte, seal func([]byte) []byte) {
	if lowOrder {
		return k.lowOrder(to)
	}
	public, err := k.suite.kem().NewPublicKey(to.address.public)
	if err != nil {
		k.Fatal(err)
	}
	enc, sender, err := hpke.NewSender(public, hpke.HKDFSHA256(), hpke.ChaCha20Poly1305(), info)
	if err != nil {
		k.Fatal(err)
	}
	return enc, func(b []byte) []byte {
		sealed, err := sender.Seal(nil, b)
		if err != nil {
			k.Fatal(err)
		}
		return sealed
	}
}

// lowOrder seals to a share whose X25519 secret is zero for every server, so
// that a recipient who does not look for that opens it (RFC 7748 section 6.1).
func (k *kitchen) lowOrder(to *ServerKey) (enc []byte, seal func([]byte) []byte) {
	enc, secret := make([]byte, 32), make([]byte, 32)
	kem, public := []byte{0x00, 0x20}, to.address.public
	if k.suite == PostQuantum {
		lattice, err := mlkem.NewEncapsulationKey768(public[:mlkem.EncapsulationKeySize768])
		if err != nil {
			k.Fatal(err)
		}
		shared, ct := lattice.Encapsulate()
		kem, enc = []byte{0x64, 0x7a}, append(ct, enc...)
		sum := sha3.Sum256(slices.Concat(shared, secret, make([]byte, 32), public[mlkem.EncapsulationKeySize768:], []byte(`\.//^\`)))
		secret = sum[:]
	} else {
		id := append([]byte("KEM"), kem...)
		secret = k.expand(id, k.extract(id, nil, "eae_prk", secret), "shared_secret", slices.Concat(enc, public), 32)
	}
	id := slices.Concat([]byte("HPKE"), kem, []byte{0, 1, 0, 3})
	context := slices.Concat([]byte{0}, k.extract(id, nil, "psk_id_hash", nil), k.extract(id, nil, "info_hash", info))
	prk := k.extract(id, secret, "secret", nil)
	aead, err := chacha20poly1305.New(k.expand(id, prk, "key", context, 32))
	if err != nil {
		k.Fatal(err)
	}
	nonce := k.expand(id, prk, "base_nonce", context, 12)
	return enc, func(b []byte) []byte { return aead.Seal(nil, nonce, b, nil) }
}

// extract and expand are LabeledExtract and LabeledExpand of RFC 9180 section 4.
func (k *kitchen) extract(id, salt []byte, label string, b []byte) []byte {
	out, err := hkdf.Extract(sha256.New, slices.Concat([]byte("HPKE-v1"), id, []byte(label), b), salt)
	if err != nil {
		k.Fatal(err)
	}
	return out
}

func (k *kitchen) expand(id, prk []byte, label string, context []byte, n int) []byte {
	labelled := slices.Concat([]byte{byte(n >> 8), byte(n)}, []byte("HPKE-v1"), id, []byte(label), context)
	out, err := hkdf.Expand(sha256.New, prk, string(labelled), n)
	if err != nil {
		k.Fatal(err)
	}
	return out
}

// lines writes what is given and what is expected.
func (k *kitchen) lines(v *vectors.Vector, r *recipe) {
	text, _ := k.server.MarshalText()
	given := map[string]string{
		"about": r.about, "server-key": string(text), "services": "ssh web", "address": "either", "window": "60", "clock": "system",
		"now": time.Unix(vectorsNow, 0).UTC().Format(time.RFC3339), "from": r.from, "expect": r.expect,
	}
	for line := range strings.Lines(r.lines) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		if name == "after" {
			value = prefixes[k.suite] + value
		}
		given[name] = value
	}
	if r.name == prefixes[k.suite]+"open-ed25519" {
		given["server-address"] = k.server.Address().String()
	}
	if !slices.Contains(early, r.expect) {
		maps.Copy(given, k.opened(v, r))
	}
	for _, name := range vectors.Names {
		if name == "authorized-key" {
			for _, line := range k.authorized(r) {
				v.Lines = append(v.Lines, vectors.Line{Name: name, Value: line})
			}
		} else if value := given[name]; value != "" {
			v.Lines = append(v.Lines, vectors.Line{Name: name, Value: value})
		}
	}
}

func (k *kitchen) authorized(r *recipe) []string {
	names := r.authorized
	if names == nil {
		names = []string{r.by}
	}
	var lines []string
	for _, name := range names {
		key := public(k, k.signers[name])
		lines = append(lines, strings.TrimSpace(fmt.Sprintf("%s %s %s %s", r.options, key.Type(), base64.StdEncoding.EncodeToString(key.Blob()), name)))
	}
	return lines
}

// early are the verdicts before a signature is believed: nothing that such a
// datagram says is worth a line.
var early = []string{"wrong-length", "wrong-gate", "wrong-second-gate", "not-sealed-for-us", "malformed", "unknown-key", "wrong-signature"}

// opened gives the lines about what the request says.
func (k *kitchen) opened(v *vectors.Vector, r *recipe) map[string]string {
	b := Single(v.Packet)
	if b == nil {
		k.Fatalf("%s: no length of ours", r.name)
	}
	o, err := k.server.Open(b)
	if err != nil {
		k.Fatalf("%s: %v", r.name, err)
	}
	lines := said(o)
	if r.expect == o.Action.String() {
		granted := r.from
		if stated := o.Stated(); len(stated) > 0 {
			granted = strings.Trim(fmt.Sprint(stated), "[]")
		}
		lines["granted"] = or(r.granted, granted)
	}
	return lines
}

// said is what a request says, in a vector's words.
func said(o *Opened) map[string]string {
	lines := map[string]string{
		"action": o.Action.String(), "stamp": fmt.Sprint(o.Stamp), "for": fmt.Sprint(int(o.For / time.Second)),
		"names": strings.Join(o.Services, " "), "key": o.Key.String(), "tag": fmt.Sprintf("%x", o.Tag),
	}
	if o.IPv4.IsValid() {
		lines["ipv4"] = o.IPv4.String()
	}
	if o.IPv6.IsValid() {
		lines["ipv6"] = o.IPv6.String()
	}
	if o.Own {
		lines["own"] = "yes"
	}
	return lines
}

// writeVectors puts the files in place of those that are there.
func writeVectors(t *testing.T, made map[string]*vectors.Vector) {
	old, err := filepath.Glob(vectorsDir + "/*.txt")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range old {
		if made[strings.TrimSuffix(filepath.Base(path), ".txt")] == nil {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, v := range made {
		if err := os.WriteFile(filepath.Join(vectorsDir, name+".txt"), []byte(v.Format()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// Changes of a signature. Each parses what it changes with ssh's own reader.
func parsed(sig []byte) *ssh.Signature {
	s := new(ssh.Signature)
	if err := ssh.Unmarshal(sig, s); err != nil {
		panic(err)
	}
	return s
}

type pair struct{ R, S *big.Int }

// negated is the other signature that whoever has one can compute (r, n-s).
func negated(sig []byte) []byte {
	s, p := parsed(sig), pair{}
	if err := ssh.Unmarshal(s.Blob, &p); err != nil {
		panic(err)
	}
	p.S = new(big.Int).Sub(elliptic.P256().Params().N, p.S)
	s.Blob = ssh.Marshal(p)
	return ssh.Marshal(s)
}

// widened spells r with a zero byte more than it needs.
func widened(sig []byte) []byte {
	s := parsed(sig)
	n := binary.BigEndian.Uint32(s.Blob)
	s.Blob = slices.Concat(binary.BigEndian.AppendUint32(nil, n+1), []byte{0}, s.Blob[4:])
	return ssh.Marshal(s)
}

// raised adds the group's order to S, which must be below it (RFC 8032 section
// 5.1.7): without that rule each signature has a second spelling.
func raised(sig []byte) []byte {
	s := parsed(sig)
	half := slices.Clone(s.Blob[32:])
	slices.Reverse(half)
	order, _ := new(big.Int).SetString("7237005577332262213973186563042994240857116359379907606001950938285454250989", 10)
	sum := new(big.Int).Add(new(big.Int).SetBytes(half), order).FillBytes(make([]byte, 32))
	slices.Reverse(sum)
	s.Blob = slices.Concat(s.Blob[:32], sum)
	return ssh.Marshal(s)
}

func flipped(at int) func([]byte) []byte {
	return func(b []byte) []byte {
		c := bytes.Clone(b)
		if at < 0 {
			at += len(c)
		}
		c[at] ^= 1
		return c
	}
}

func times(n int) func([]byte) []byte {
	return func(b []byte) []byte { return bytes.Repeat(b, n) }
}

// set puts bytes at a place of the fields.
func set(at int, with ...byte) func([]byte) []byte {
	return func(b []byte) []byte { copy(b[at:], with); return b }
}
