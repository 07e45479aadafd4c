package spa

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/crypto/ssh"
)

func newKey(t testing.TB, suite Suite) *ServerKey {
	t.Helper()
	k, err := NewServerKey(suite)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// full has every field set.
var full = Request{
	Stamp: 1_800_000_000_123_456_789, Action: Open, For: time.Hour,
	IPv4: netip.MustParseAddr("192.0.2.7"), IPv6: netip.MustParseAddr("2001:db8::7"), Own: true,
	Services: []string{"ssh", "web-admin"},
}

var least = Request{Stamp: 1, Action: Extend}

func seal(t testing.TB, to *ServerKey, r *Request, s Signer) []byte {
	t.Helper()
	b, err := Seal(to.Address(), r, s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func public(t testing.TB, s Signer) *PublicKey {
	t.Helper()
	p, err := ParsePublicKey(s.PublicKey())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// fits says which length a key's datagrams have; 0: none.
func fits(suite Suite, name string) int {
	switch {
	case suite == PostQuantum && (strings.HasPrefix(name, "rsa") || name == "P-521"):
		return 0
	case suite == PostQuantum:
		return PostQuantumSize
	case strings.HasPrefix(name, "rsa"):
		return LargeSize
	}
	return SmallSize
}

func TestEachKeyInEachSuite(t *testing.T) {
	for _, suite := range []Suite{Classic, PostQuantum} {
		for name, s := range signers() {
			for _, want := range []Request{full, least, {Stamp: 5, Action: Close, IPv6: full.IPv6}} {
				t.Run(fmt.Sprint(suite, "/", name, "/", want.Action), func(t *testing.T) {
					k := newKey(t, suite)
					b, err := Seal(k.Address(), &want, s)
					size := fits(suite, name)
					if size == 0 {
						if err == nil {
							t.Fatal("sealed what does not fit")
						}
						return
					}
					if err != nil || len(b) != size {
						t.Fatalf("got %d bytes, %v; want %d", len(b), err, size)
					}
					if !k.Gate().First(b) || !k.Gate().Second(b) {
						t.Error("the gate is shut")
					}
					got, err := k.Open(b)
					if err != nil {
						t.Fatal(err)
					}
					if d := cmp.Diff(want, got.Request, cmpopts.EquateComparable(netip.Addr{})); d != "" {
						t.Errorf("(-sealed +opened)\n%s", d)
					}
					presence, err := got.Verify(public(t, s))
					if err != nil {
						t.Fatal(err)
					}
					if want := (Presence{Touched: true, Verified: name != "sk-ed25519"}); presence != want {
						t.Errorf("got %+v, want %+v", presence, want)
					}
				})
			}
		}
	}
}

// Whoever lacks any of the three secrets gets no further than that one.
func TestWrongKeysGetNowhere(t *testing.T) {
	mine, other := newKey(t, Classic), newKey(t, Classic)
	b := seal(t, mine, &full, signer(t, "ed25519"))
	if other.Gate().First(b) || other.Gate().Second(b) {
		t.Error("another server's gate is open")
	}
	if _, err := other.Open(b); err != ErrSeal {
		t.Errorf("another server opened it: %v", err)
	}
	opened, err := mine.Open(b)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"sk-ed25519", "P-256", "rsa2048"} {
		if _, err := opened.Verify(public(t, signer(t, name))); err != ErrSignature {
			t.Errorf("%s verified what ed25519 signed: %v", name, err)
		}
	}
	if _, err := opened.Verify(new(PublicKey)); err != ErrSignature {
		t.Error("no key at all verified it")
	}
}

// A request that one server opened is no request to another that trusts the
// same key, whatever it is sealed in.
func TestAResealedRequestVerifiesNowhere(t *testing.T) {
	first, second := newKey(t, Classic), newKey(t, Classic)
	s := signer(t, "ed25519")
	b := seal(t, first, &full, s)
	opened, err := first.Open(b)
	if err != nil {
		t.Fatal(err)
	}
	again := replayedSigner{s.PublicKey(), opened.signature}
	if resealed, err := Seal(second.Address(), &full, again); err == nil {
		t.Errorf("sealed with a signature of another message: %x", resealed[:16])
	}
	resealed := mustReseal(t, second, opened)
	o, err := second.Open(resealed)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := o.Verify(public(t, s)); err != ErrSignature {
		t.Errorf("got %v, want ErrSignature", err)
	}
}

type replayedSigner struct{ public, signature []byte }

func (r replayedSigner) PublicKey() []byte           { return r.public }
func (r replayedSigner) Sign([]byte) ([]byte, error) { return r.signature, nil }

// One bit changed anywhere, and nothing opens.
func TestOneBit(t *testing.T) {
	k := newKey(t, Classic)
	s := signer(t, "ed25519")
	b := seal(t, k, &full, s)
	for bit := range len(b) * 8 {
		c := bytes.Clone(b)
		c[bit/8] ^= 1 << (bit % 8)
		if k.Gate().First(c) && k.Gate().Second(c) {
			t.Fatalf("bit %d: the gate is open", bit)
		}
		if bit/8 < gateSize {
			continue
		}
		if _, err := k.Open(c); err == nil {
			t.Fatalf("bit %d: the seal opened", bit)
		}
	}
}

// Behind the gate as well: whoever holds the gate keys can close the gate over
// anything.
func TestMutatedPlaintext(t *testing.T) {
	k, s := newKey(t, Classic), signer(t, "ed25519")
	opened, err := k.Open(seal(t, k, &full, s))
	if err != nil {
		t.Fatal(err)
	}
	fields := opened.encode(opened.Key)
	for bit := range len(fields) * 8 {
		c := bytes.Clone(fields)
		c[bit/8] ^= 1 << (bit % 8)
		var r Request
		key, n, err := r.decode(c)
		if err != nil {
			continue
		}
		if again := r.encode(key); n > len(c) || !bytes.Equal(again, c[:n]) {
			t.Errorf("bit %d: decodes as %+v, which encodes as\n%x, not\n%x", bit, r, again, c)
		}
		if o, err := k.Open(mustSealFields(t, k, c, opened.signature)); err == nil {
			if _, err := o.Verify(public(t, s)); err == nil {
				t.Errorf("bit %d: verified", bit)
			}
		}
	}
}

// FuzzRequest: what decodes encodes back to the same bytes, so that no request
// has a second spelling.
func FuzzRequest(f *testing.F) {
	for _, r := range []*Request{&full, &least} {
		f.Add(r.encode(Fingerprint{1, 2, 3}))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var r Request
		key, n, err := r.decode(b)
		if err != nil {
			return
		}
		if again := r.encode(key); !bytes.Equal(again, b[:n]) {
			t.Errorf("%x\nreads as %+v, which is written\n%x", b[:n], r, again)
		}
	})
}

// FuzzOpen: no datagram behind the gate does more than fail.
func FuzzOpen(f *testing.F) {
	keys := []*ServerKey{newKey(f, Classic), newKey(f, PostQuantum)}
	for _, k := range keys {
		f.Add(seal(f, k, &full, signer(f, "ed25519")))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		d := Single(b)
		if d == nil {
			return
		}
		for _, k := range keys {
			if o, err := k.Open(d); err == nil {
				o.Verify(public(t, signer(t, "ed25519")))
			}
		}
	})
}

// FuzzAddress: an address has one spelling.
func FuzzAddress(f *testing.F) {
	for _, s := range []Suite{Classic, PostQuantum} {
		f.Add(newKey(f, s).Address().String())
	}
	f.Fuzz(func(t *testing.T, line string) {
		if a, err := ParseAddress(line); err == nil && a.String() != line {
			t.Errorf("%q reads as %q", line, a)
		}
	})
}

// FuzzPublicKey: we take no key that OpenSSH's Go reader does not take, and
// spell it back as it was.
func FuzzPublicKey(f *testing.F) {
	for _, s := range signers() {
		f.Add(s.PublicKey())
	}
	f.Fuzz(func(t *testing.T, blob []byte) {
		p, err := ParsePublicKey(blob)
		if err != nil {
			return
		}
		if !bytes.Equal(p.Blob(), blob) {
			t.Errorf("%x reads back as %x", blob, p.Blob())
		}
		if _, err := ssh.ParsePublicKey(blob); err != nil {
			t.Errorf("%x is a key to us and to nobody else: %v", blob, err)
		}
	})
}

// FuzzSignature: nothing but the signature verifies.
func FuzzSignature(f *testing.F) {
	data := []byte("data")
	for _, s := range signers() {
		sig, err := s.Sign(data)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(sig)
	}
	f.Fuzz(func(t *testing.T, sig []byte) {
		for name, s := range signers() {
			if _, err := public(t, s).verify(data, sig); err != nil {
				continue
			}
			var known ssh.Signature
			if err := ssh.Unmarshal(sig, &known); err != nil {
				t.Errorf("%s took a signature that is none: %x", name, sig)
			}
		}
	})
}

func TestSingle(t *testing.T) {
	one := make([]byte, SmallSize)
	one[5] = 7
	for n := range 4*PostQuantumSize + 2 {
		b := bytes.Repeat(one, n/SmallSize+1)[:n]
		want := IsSize(n) || n > 0 && n%SmallSize == 0 && n/SmallSize <= MaxParts
		if got := Single(b); (got != nil) != want {
			// Zeros are equal parts of the other lengths too, if they fit.
			if got == nil || len(b)%len(got) != 0 || !bytes.Equal(bytes.Repeat(got, len(b)/len(got)), b) {
				t.Errorf("%d bytes: got %d, want %v", n, len(got), want)
			}
		}
	}
	for _, size := range Sizes {
		part := make([]byte, size)
		for i := range part {
			part[i] = byte(rand.Uint32())
		}
		for parts := 1; parts <= MaxParts+1; parts++ {
			glued := bytes.Repeat(part, parts)
			if got := Single(glued); bytes.Equal(got, part) != (parts <= MaxParts) {
				t.Errorf("%d parts of %d bytes: got %d bytes", parts, size, len(got))
			}
			if parts == 1 {
				continue
			}
			glued[len(glued)-1] ^= 1
			if Single(glued) != nil {
				t.Errorf("%d parts of %d bytes, one of them damaged: taken", parts, size)
			}
		}
	}
}

// No two lengths may have a multiple in common that glued copies can have, or
// one datagram could be read as another.
func TestSizesCantBeConfused(t *testing.T) {
	seen := map[int]int{}
	for _, size := range Sizes {
		for parts := 1; parts <= MaxParts; parts++ {
			if other, ok := seen[size*parts]; ok {
				t.Errorf("%d bytes are copies of %d and of %d", size*parts, other, size)
			}
			seen[size*parts] = size
		}
	}
}

func TestJunkCostsNoMemory(t *testing.T) {
	k := newKey(t, Classic)
	b := seal(t, k, &full, signer(t, "ed25519"))
	glued := bytes.Repeat(b, 3)
	for name, f := range map[string]func(){
		"first gate":   func() { k.Gate().First(b) },
		"second gate":  func() { k.Gate().Second(b) },
		"glued copies": func() { Single(glued) },
	} {
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func TestRefusedRequests(t *testing.T) {
	ed := signer(t, "ed25519")
	long := make([]string, 0, 300)
	for i := range 300 {
		long = append(long, fmt.Sprintf("service-%03d", i))
	}
	change := func(f func(*Request)) Request { r := full; r.Services = slices.Clone(full.Services); f(&r); return r }
	for name, c := range map[string]struct {
		r    Request
		s    Signer
		to   Suite
		text string
	}{
		"no time":             {change(func(r *Request) { r.Stamp = 0 }), ed, Classic, "set the clock"},
		"no action":           {change(func(r *Request) { r.Action = 0 }), ed, Classic, "there is no action 0"},
		"half a second":       {change(func(r *Request) { r.For = time.Second / 2 }), ed, Classic, "whole seconds"},
		"for ever":            {change(func(r *Request) { r.For = MaxFor + time.Second }), ed, Classic, "720h"},
		"a close with a time": {change(func(r *Request) { r.Action = Close }), ed, Classic, "no duration"},
		"families swapped":    {change(func(r *Request) { r.IPv4, r.IPv6 = r.IPv6, r.IPv4 }), ed, Classic, "wrong family"},
		"a zone":              {change(func(r *Request) { r.IPv6 = netip.MustParseAddr("fe80::1%eth0") }), ed, Classic, "zone"},
		"own, but none":       {change(func(r *Request) { r.IPv4, r.IPv6 = netip.Addr{}, netip.Addr{} }), ed, Classic, "own"},
		"a bad name":          {change(func(r *Request) { r.Services = []string{"SSH"} }), ed, Classic, "no name of a service"},
		"a name twice":        {change(func(r *Request) { r.Services = []string{"a", "a"} }), ed, Classic, "twice"},
		"many names":          {change(func(r *Request) { r.Services = long }), ed, Classic, "room for 255"},
		"too many names":      {change(func(r *Request) { r.Services = long[:30] }), ed, Classic, "ask for fewer"},
		"rsa, post-quantum":   {full, signer(t, "rsa2048"), PostQuantum, "ed25519"},
		"P-521, post-quantum": {least, signer(t, "P-521"), PostQuantum, "use an ed25519 key"},
	} {
		_, err := Seal(newKey(t, c.to).Address(), &c.r, c.s)
		if err == nil || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: got %v, want something about %q", name, err, c.text)
		}
	}
}

func TestTextsReadBack(t *testing.T) {
	for _, suite := range []Suite{Classic, PostQuantum} {
		k := newKey(t, suite)
		line := k.Address().String()
		a, err := ParseAddress(line)
		if err != nil || a.String() != line || a.Suite() != suite {
			t.Errorf("%v: got %v, %v", suite, a, err)
		}
		if want := map[Suite]int{Classic: 102, PostQuantum: 1681}[suite]; len(line) != want {
			t.Errorf("%v: an address has %d characters, want %d", suite, len(line), want)
		}
		text, _ := json.Marshal(k)
		var again ServerKey
		if err := json.Unmarshal(text, &again); err != nil || !again.Equal(k) {
			t.Errorf("%v: a key does not read back: %v", suite, err)
		}
		if s := fmt.Sprintf("%v %+v %s %#v %q", k, k, k, k, k); strings.Contains(s, "1") {
			t.Errorf("a key shows itself: %s", s)
		}
		for i := range line {
			damaged := []byte(line)
			damaged[i] ^= 1
			if _, err := ParseAddress(string(damaged)); err == nil {
				t.Fatalf("%v: an address with character %d changed is taken", suite, i)
			}
		}
		if _, err := ParseAddress(line + "\n"); err == nil {
			t.Error("an address with a line end is taken")
		}
	}
}

func TestKeyFile(t *testing.T) {
	now, old := newKey(t, Classic), newKey(t, PostQuantum)
	until := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	text := FormatKeyFile([]FileKey{{Key: now}, {Key: old, Until: until}})
	got, err := ParseKeyFile("\n# a comment\n" + text)
	if err != nil || len(got) != 2 || !got[0].Key.Equal(now) || !got[1].Key.Equal(old) || !got[1].Until.Equal(until) {
		t.Fatalf("got %v, %v", got, err)
	}
	lines := strings.SplitAfter(text, "\n")[1:3]
	for name, bad := range map[string]string{
		"nothing":           "# nothing\n",
		"only an old one":   lines[1],
		"two current ones":  lines[0] + strings.Fields(lines[1])[0] + "\n",
		"one twice":         lines[0] + strings.TrimSpace(lines[0]) + " until=2030-01-02T03:04:05Z\n",
		"words behind":      strings.TrimSpace(lines[0]) + " hello\n",
		"a damaged one":     lines[0][:40] + lines[0][41:],
		"an address":        now.Address().String() + "\n",
		"more behind until": lines[0] + strings.TrimSpace(lines[1]) + " more\n",
	} {
		_, err := ParseKeyFile(bad)
		if err == nil {
			t.Errorf("%s: taken", name)
		} else if strings.Contains(err.Error(), lines[0][20:40]) {
			t.Errorf("%s: the error shows the key: %v", name, err)
		}
	}
}

func TestFingerprint(t *testing.T) {
	p := public(t, signer(t, "ed25519"))
	key, err := ssh.ParsePublicKey(p.Blob())
	if err != nil {
		t.Fatal(err)
	}
	text := p.Fingerprint().String()
	if want := ssh.FingerprintSHA256(key); text != want {
		t.Errorf("got %s, want %s", text, want)
	}
	if f, err := ParseFingerprint(text); err != nil || f != p.Fingerprint() {
		t.Errorf("%s reads as %v, %v", text, f, err)
	}
	for _, bad := range []string{"", text[7:], "MD5:" + text[7:], text[:49], text + "A"} {
		if _, err := ParseFingerprint(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func TestPublicKeysThatAreRefused(t *testing.T) {
	ed := signer(t, "ed25519").PublicKey()
	for name, c := range map[string]struct {
		blob []byte
		text string
	}{
		"nothing":       {nil, "damaged"},
		"half a type":   {[]byte{0, 0, 0, 7, 's'}, "damaged"},
		"a certificate": {ssh.Marshal(struct{ Kind string }{"ssh-ed25519-cert-v01@openssh.com"}), "can't sign"},
		"DSA":           {ssh.Marshal(struct{ Kind string }{"ssh-dss"}), "DSA"},
		"more behind":   {append(bytes.Clone(ed), 0), "damaged"},
		"short":         {ed[:len(ed)-1], "damaged"},
		"another curve": {bytes.Replace(signer(t, "P-256").PublicKey(), []byte("nistp256"), []byte("nistp384"), 1), "damaged"},
	} {
		if _, err := ParsePublicKey(c.blob); err == nil || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: got %v, want something about %q", name, err, c.text)
		}
	}
}
