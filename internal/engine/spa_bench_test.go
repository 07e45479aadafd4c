//go:build linux

package engine

import (
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hpke"
	"crypto/mlkem"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dchest/siphash"
	"golang.org/x/crypto/ssh"

	"github.com/sallyport/sallyport/internal/authorized"
	"github.com/sallyport/sallyport/internal/border"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/engine/internal/packet"
	"github.com/sallyport/sallyport/internal/spa"
	"github.com/sallyport/sallyport/internal/testnet"
)

const benchText = `
[service.ssh]
ports = ["22/tcp"]
[knock.keys]
type = "spa"
opens = ["ssh"]
key = "/k"
authorized_keys = "/a"
window = "10m"
`

// willing is a warden that takes every request; who calls the engine answers
// for it, once the engine is done.
type willing struct{ asked int }

// Send makes willing a Border.
func (w *willing) Send(border.Message) error {
	w.asked++
	return nil
}

// benchDoor is an engine with one SPA knock.
func benchDoor(t testing.TB, warden Border, keys border.Keys, journal [2]int, whole bool) *Engine {
	t.Helper()
	cfg, err := config.Parse("bench.toml", []byte(benchText))
	if err != nil {
		t.Fatal(err)
	}
	e := New(warden, journal, slog.New(slog.NewTextHandler(io.Discard, nil)))
	e.Host(&border.HostFacts{Addrs: benchHost})
	if err := e.Use(1, &border.Generation{Config: *cfg, Keys: []border.Keys{keys}, Journal: whole}, [8]byte{}); err != nil {
		t.Fatal(err)
	}
	return e
}

func benchServerKey(t testing.TB, suite spa.Suite) *spa.ServerKey {
	t.Helper()
	key, err := spa.NewServerKey(suite)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func benchUDP(family int, payload []byte) []byte {
	return testnet.UDP(netip.AddrPortFrom(benchSource[family], 40000), netip.AddrPortFrom(benchHost[family], spa.DefaultPort), payload)
}

// benchJunk is a datagram of random bytes and how far it gets.
type benchJunk struct {
	name    string
	size    int
	payload []byte
}

// everyJunk has, for each size, junk that ends at the length, at the first tag
// and at the second.
func everyJunk(key *spa.ServerKey) []benchJunk {
	body, _ := base64.RawURLEncoding.DecodeString(strings.TrimPrefix(key.Address().String(), "sallyport1"))
	k0, k1 := binary.LittleEndian.Uint64(body[1:]), binary.LittleEndian.Uint64(body[9:])
	var all []benchJunk
	for _, size := range spa.Sizes {
		length, first, second := make([]byte, size-1), make([]byte, size), make([]byte, size)
		for _, b := range [][]byte{length, first, second} {
			rand.Read(b)
		}
		binary.LittleEndian.PutUint64(second, siphash.Hash(k0, k1, second[8:48]))
		all = append(all, benchJunk{"length", size, length}, benchJunk{"first", size, first}, benchJunk{"second", size, second})
	}
	return all
}

// everyJunkTurn runs f for junk shown to the recogniser alone, decoded before,
// and to the whole engine in packets of both families.
func everyJunkTurn(t testing.TB, f func(name string, turn func())) {
	key := benchServerKey(t, spa.Classic)
	e := benchDoor(t, silent{t}, border.Keys{Server: []spa.FileKey{{Key: key}}}, noJournal, true)
	for _, j := range everyJunk(key) {
		var decoded packet.Packet
		whole := [][]byte{benchUDP(0, j.payload), benchUDP(1, j.payload)}
		packet.Decode(whole[0], &decoded)
		e.Packet(whole[0], 1) // for the counts below, whichever benchmarks are chosen
		f(fmt.Sprintf("recogniser/%s/%d", j.name, j.size), func() { e.knocks[0].Observe(&decoded, 0) })
		for i, ip := range []string{"IPv4", "IPv6"} {
			f(fmt.Sprintf("engine/%s/%d/%s", j.name, j.size, ip), func() { e.Packet(whole[i], 1) })
		}
	}
	n := e.numbers()
	if n["declined"]+n["elsewhere"]+n["spa_seal"] != 0 || n["spa_length"] == 0 || n["spa_gate"] == 0 || n["spa_second_gate"] == 0 {
		t.Errorf("the junk ended elsewhere than it was to: %v", n)
	}
}

// Junk comes at the rate of strangers, to the second tag at that of clients.
func TestJunkAllocatesNothing(t *testing.T) {
	everyJunkTurn(t, func(name string, turn func()) {
		if allocs := testing.AllocsPerRun(100, turn); allocs != 0 {
			t.Errorf("%s: %v allocations, want 0", name, allocs)
		}
	})
}

// BenchmarkJunk is what a datagram of junk costs, by how far it gets.
func BenchmarkJunk(b *testing.B) {
	everyJunkTurn(b, func(name string, turn func()) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			before := processorTime(b)
			for b.Loop() {
				turn()
			}
			b.ReportMetric(float64(processorTime(b)-before)/float64(b.N), "cpu-ns/op")
		})
	})
}

// benchRequests is how many distinct requests a round has. All fit into what
// the engine remembers of requests that wait for the warden.
const benchRequests = 2000

// benchKey is a user's key and the suites whose datagrams have room for its
// signature.
type benchKey struct {
	name     string
	key      crypto.Signer
	hardware bool
	suites   []spa.Suite
}

func benchKeys(t testing.TB) []benchKey {
	t.Helper()
	_, ed, err1 := ed25519.GenerateKey(rand.Reader)
	_, sk, err2 := ed25519.GenerateKey(rand.Reader)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	point := func(curve elliptic.Curve) crypto.Signer {
		key, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	modulus := func(bits int) crypto.Signer {
		key, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	classic, both := []spa.Suite{spa.Classic}, []spa.Suite{spa.Classic, spa.PostQuantum}
	return []benchKey{
		{"ed25519", ed, false, both}, {"sk-ed25519", sk, true, both},
		{"ecdsa-p256", point(elliptic.P256()), false, both}, {"sk-ecdsa-p256", point(elliptic.P256()), true, both},
		{"ecdsa-p384", point(elliptic.P384()), false, both}, {"ecdsa-p521", point(elliptic.P521()), false, classic},
		{"rsa-2048", modulus(2048), false, classic}, {"rsa-3072", modulus(3072), false, classic}, {"rsa-4096", modulus(4096), false, classic},
	}
}

// benchSigner makes one request's signature and keeps what checks it: the
// public-key operation that no server can do without.
type benchSigner struct {
	*benchKey
	check func() bool
}

// PublicKey makes a benchSigner a spa.Signer.
func (s *benchSigner) PublicKey() []byte {
	public, err := ssh.NewPublicKey(s.key.Public())
	if err != nil {
		panic(err) // a key type above is wrong
	}
	if !s.hardware {
		return public.Marshal()
	}
	// A hardware key's wire form is the other's with its type and application
	// around it (PROTOCOL.u2f).
	var plain struct {
		Type string
		Rest []byte `ssh:"rest"`
	}
	if err := ssh.Unmarshal(public.Marshal(), &plain); err != nil {
		panic(err)
	}
	plain.Type = hardwareType[plain.Type]
	return append(ssh.Marshal(plain), ssh.Marshal(struct{ Application string }{application})...)
}

var hardwareType = map[string]string{ssh.KeyAlgoED25519: ssh.KeyAlgoSKED25519, ssh.KeyAlgoECDSA256: ssh.KeyAlgoSKECDSA256}

// Sign makes a benchSigner a spa.Signer.
func (s *benchSigner) Sign(data []byte) ([]byte, error) {
	sig := struct {
		Format string
		Blob   []byte
		Rest   []byte `ssh:"rest"`
	}{Format: ssh.KeyAlgoED25519}
	if s.hardware { // PROTOCOL.u2f: touched, and a counter
		app, hash := sha256.Sum256([]byte(application)), sha256.Sum256(data)
		sig.Rest = []byte{1, 0, 0, 0, 7}
		data = slices.Concat(app[:], sig.Rest, hash[:])
	}
	var err error
	switch public := s.key.Public().(type) {
	case ed25519.PublicKey:
		sig.Blob = ed25519.Sign(s.key.(ed25519.PrivateKey), data)
		s.check = func() bool { return ed25519.Verify(public, data, sig.Blob) }
	case *ecdsa.PublicKey:
		digest := map[int]crypto.Hash{256: crypto.SHA256, 384: crypto.SHA384, 521: crypto.SHA512}[public.Params().BitSize]
		sum := func() []byte {
			h := digest.New()
			h.Write(data)
			return h.Sum(nil)
		}
		var point struct{ R, S *big.Int }
		point.R, point.S, err = ecdsa.Sign(rand.Reader, s.key.(*ecdsa.PrivateKey), sum())
		sig.Format, sig.Blob = fmt.Sprintf("ecdsa-sha2-nistp%d", public.Params().BitSize), ssh.Marshal(point)
		s.check = func() bool { return ecdsa.Verify(public, sum(), point.R, point.S) }
	case *rsa.PublicKey:
		hash := sha512.Sum512(data)
		sig.Format = ssh.KeyAlgoRSASHA512
		sig.Blob, err = rsa.SignPKCS1v15(nil, s.key.(*rsa.PrivateKey), crypto.SHA512, hash[:])
		s.check = func() bool {
			hash := sha512.Sum512(data)
			return rsa.VerifyPKCS1v15(public, crypto.SHA512, hash[:], sig.Blob) == nil
		}
	}
	if s.hardware {
		sig.Format = hardwareType[sig.Format]
	}
	return ssh.Marshal(sig), err
}

// benchLoad is what one kind of request needs to be measured.
type benchLoad struct {
	keys    border.Keys
	packets [][]byte // of both families by turns
	checks  []func() bool
	enc     int // bytes
	private hpke.PrivateKey
	journal [2][]byte // the files as they were before the first request
}

func newBenchLoad(t testing.TB, key *benchKey, suite spa.Suite) *benchLoad {
	t.Helper()
	server := benchServerKey(t, suite)
	s := &benchSigner{benchKey: key}
	blob := s.PublicKey()
	kind := blob[4 : 4+binary.BigEndian.Uint32(blob)]
	allowed, faults := authorized.Parse(fmt.Appendf(nil, "%s %s\n", kind, base64.StdEncoding.EncodeToString(blob)))
	if len(faults) > 0 {
		t.Fatal(faults)
	}
	l := &benchLoad{keys: border.Keys{Server: []spa.FileKey{{Key: server}}, Authorized: allowed}, enc: 32}
	kem := hpke.DHKEM(ecdh.X25519())
	if suite == spa.PostQuantum {
		kem, l.enc = hpke.MLKEM768X25519(), mlkem.CiphertextSize768+32
	}
	secret, _ := server.MarshalText()
	body, _ := base64.RawURLEncoding.DecodeString(strings.TrimPrefix(string(secret), "sallyport-key1"))
	var err error
	if l.private, err = kem.NewPrivateKey(body[1+32 : 1+64]); err != nil {
		t.Fatal(err)
	}
	l.beginJournal(t)
	l.seal(t, key, server.Address())
	return l
}

// beginJournal has an engine make an empty journal. It refuses what is older
// than itself, so the requests must come later.
func (l *benchLoad) beginJournal(t testing.TB) {
	t.Helper()
	files := l.openJournal(t)
	benchDoor(t, &willing{}, l.keys, [2]int{int(files[0].Fd()), int(files[1].Fd())}, false)
	for i, f := range files {
		var err error
		if l.journal[i], err = os.ReadFile(f.Name()); err != nil {
			t.Fatal(err)
		}
	}
}

// openJournal gives two files that hold what a fresh journal holds.
func (l *benchLoad) openJournal(t testing.TB) (files [2]*os.File) {
	t.Helper()
	dir := t.TempDir()
	for i := range files {
		f, err := os.Create(filepath.Join(dir, fmt.Sprint(i)))
		if err == nil {
			_, err = f.Write(l.journal[i])
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		files[i] = f
	}
	return files
}

// seal makes the requests, on every processor: a signature by RSA takes long.
func (l *benchLoad) seal(t testing.TB, key *benchKey, to *spa.Address) {
	l.packets, l.checks = make([][]byte, benchRequests), make([]func() bool, benchRequests)
	start, workers := time.Now().UnixNano(), runtime.GOMAXPROCS(0)
	var all sync.WaitGroup
	for w := range workers {
		all.Go(func() {
			for i := w; i < benchRequests; i += workers {
				s := &benchSigner{benchKey: key}
				d, err := spa.Seal(to, &spa.Request{Stamp: start + int64(i), Action: spa.Open}, s)
				if err != nil {
					t.Error(err)
					return
				}
				l.packets[i], l.checks[i] = benchUDP(i%2, d), s.check
			}
		})
	}
	if all.Wait(); t.Failed() {
		t.FailNow()
	}
}

// serve gives the processor time of one request, in nanoseconds, of an engine
// that sees all of them for the first time.
func (l *benchLoad) serve(b *testing.B, journal [2]int) float64 {
	b.Helper()
	warden := &willing{}
	e := benchDoor(b, warden, l.keys, journal, true)
	took := measured(b, func() {
		for _, p := range l.packets {
			e.Packet(p, 1)
			e.Done(&border.Done{ID: e.lastID, Result: border.Granted})
		}
	})
	if warden.asked != benchRequests {
		b.Fatalf("%d of %d requests came through: %v", warden.asked, benchRequests, e.numbers())
	}
	return took
}

// bare gives the processor time of the two operations with public keys that a
// request can't do without.
func (l *benchLoad) bare(b *testing.B) float64 {
	b.Helper()
	good := 0
	took := measured(b, func() {
		for i, p := range l.packets {
			sealed := p[len(p)-l.size():][16:] // behind the gate
			r, err := hpke.NewRecipient(sealed[:l.enc], l.private, hpke.HKDFSHA256(), hpke.ChaCha20Poly1305(), []byte("sallyport spa v1"))
			if err != nil {
				continue
			}
			if _, err := r.Open(nil, sealed[l.enc:]); err == nil && l.checks[i]() {
				good++
			}
		}
	})
	if good != benchRequests {
		b.Fatalf("%d of %d requests are good", good, benchRequests)
	}
	return took
}

// size is the length of a datagram: its packets have headers of 28 and 48 bytes.
func (l *benchLoad) size() int { return len(l.packets[0]) - 28 }

// measured gives f's processor time for each request. What was left behind by
// others is collected before.
func measured(b *testing.B, f func()) float64 {
	runtime.GC()
	before := processorTime(b)
	f()
	return float64(processorTime(b)-before) / benchRequests
}

// BenchmarkRequest is a valid request from its packet to the warden's answer,
// beside the bare operations with public keys; one op is a round of all three,
// and the least of all rounds is reported.
func BenchmarkRequest(b *testing.B) {
	for _, key := range benchKeys(b) {
		for _, suite := range key.suites {
			l := sync.OnceValue(func() *benchLoad { return newBenchLoad(b, &key, suite) })
			b.Run(fmt.Sprintf("%v/%s", suite, key.name), func(b *testing.B) {
				l := l()
				bare, request, written := math.Inf(1), math.Inf(1), math.Inf(1)
				for b.Loop() {
					files := l.openJournal(b)
					bare = min(bare, l.bare(b))
					request = min(request, l.serve(b, noJournal))
					written = min(written, l.serve(b, [2]int{int(files[0].Fd()), int(files[1].Fd())}))
				}
				b.ReportMetric(bare, "bare-ns")
				b.ReportMetric(request, "request-ns")
				b.ReportMetric(written, "journal-ns")
			})
		}
	}
}
