package encoded

import (
	"bytes"
	"flag"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/sallyport/sallyport/internal/sequence"
)

var update = flag.Bool("update", false, "write the vectors anew")

var (
	secret  = []byte("0123456789abcdef")
	compare = []cmp.Option{cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(time.Time.Equal)}
)

func shapes() *rapid.Generator[Shape] {
	return rapid.Custom(func(t *rapid.T) Shape {
		s := Shape{Payload: rapid.IntRange(0, MaxPayload).Draw(t, "payload")}
		s.Span = rapid.IntRange(s.Least(), 65535).Draw(t, "span")
		s.Base = uint16(rapid.IntRange(1, 65536-s.Span).Draw(t, "base"))
		return s
	})
}

func addrs() *rapid.Generator[netip.Addr] {
	return rapid.Custom(func(t *rapid.T) netip.Addr {
		size := rapid.SampledFrom([]int{0, 4, 16}).Draw(t, "size")
		a, _ := netip.AddrFromSlice(rapid.SliceOfN(rapid.Byte(), size, size).Draw(t, "addr"))
		return a.Unmap()
	})
}

func messages(payload int) *rapid.Generator[*Message] {
	return rapid.Custom(func(t *rapid.T) *Message {
		m := &Message{
			Action: Action(rapid.IntRange(1, 3).Draw(t, "action")),
			Time:   time.UnixMilli(rapid.Int64Range(1, maxTime).Draw(t, "time")),
			Addr:   addrs().Draw(t, "address"),
		}
		bits := 127
		if m.Addr.Is4() {
			bits = 31
		}
		m.Bits = rapid.IntRange(0, bits).Draw(t, "bits")
		if m.Action != Close {
			m.For = time.Duration(rapid.IntRange(0, int(MaxFor/time.Second)).Draw(t, "for")) * time.Second
		}
		if m.Port = rapid.Uint16().Draw(t, "port"); m.Port != 0 {
			m.Proto = rapid.SampledFrom([]sequence.Proto{sequence.TCP, sequence.UDP}).Draw(t, "proto")
		}
		if b := rapid.SliceOfN(rapid.Byte(), 0, payload).Draw(t, "payload"); len(b) > 0 && m.Action == Open {
			m.Payload = b
		}
		return m
	})
}

// symbols reads ports as a server does: each says where it belongs.
func symbols(t rapid.TB, s Shape, ports []uint16) []uint16 {
	out := make([]uint16, s.Steps())
	for _, p := range ports {
		i, symbol, ok := s.Index(p)
		if !ok {
			t.Fatalf("%+v: port %d is not ours", s, p)
		}
		out[i] = symbol
	}
	return out
}

// Every message comes back from its ports, in whatever order they come and however
// often, and each of them is in the span and an own part.
func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := shapes().Draw(t, "shape")
		m := messages(s.Payload).Draw(t, "message")
		k := NewKey(secret, "door")
		ports, err := s.Encode(k, m)
		if err != nil {
			t.Fatal(err)
		}
		seen := map[int]bool{}
		for _, p := range ports {
			i, _, ok := s.Index(p)
			if !ok || seen[i] || p < s.Base || int(p) >= int(s.Base)+s.Span || p > s.Last() {
				t.Fatalf("port %d, part %d of %d: %v %v", p, i, s.Steps(), ok, seen[i])
			}
			seen[i] = true
		}
		order := append(append([]uint16(nil), ports...), ports...)
		rand.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
		got, tag, ok := s.Open(k, symbols(t, s, order))
		if !ok || tag == (Tag{}) {
			t.Fatal("it does not open")
		}
		if diff := cmp.Diff(m, got, compare...); diff != "" {
			t.Fatalf("-want +got:\n%s", diff)
		}
	})
}

// A part that is another than it was, or is not there, opens nothing; nor does
// another secret, another door or another shape.
func TestForgery(t *testing.T) {
	for _, payload := range []int{0, 5, MaxPayload} {
		s := Shape{Base: 20000, Span: 30000, Payload: payload}
		k := NewKey(secret, "door")
		ports, err := s.Encode(k, &Message{Action: Open, Time: time.Now(), Payload: make([]byte, payload)})
		if err != nil {
			t.Fatal(err)
		}
		good := symbols(t, s, ports)
		if _, _, ok := s.Open(k, good); !ok {
			t.Fatal("the message itself does not open")
		}
		for i := range good {
			for bit := range s.Width() {
				bad := append([]uint16(nil), good...)
				bad[i] ^= 1 << bit
				if _, _, ok := s.Open(k, bad); ok {
					t.Errorf("payload %d: part %d with bit %d turned opens", payload, i, bit)
				}
			}
			if _, _, ok := s.Open(k, append(append([]uint16(nil), good[:i]...), good[i+1:]...)); ok {
				t.Errorf("payload %d: without part %d it opens", payload, i)
			}
		}
		other := append([]byte(nil), secret...)
		other[0]++
		for name, k := range map[string]*Key{"another secret": NewKey(other, "door"), "another door": NewKey(secret, "Door"), "a longer name": NewKey(secret, "door ")} {
			if _, _, ok := s.Open(k, good); ok {
				t.Errorf("payload %d: with %s it opens", payload, name)
			}
		}
		for _, o := range []Shape{{s.Base + 1, s.Span, s.Payload}, {s.Base, s.Span + 1, s.Payload}} {
			if o.Steps() != s.Steps() {
				t.Fatal("the shapes differ by more than was meant")
			}
			if _, _, ok := o.Open(k, good); ok {
				t.Errorf("payload %d: it opens in %+v", payload, o)
			}
		}
	}
}

// Of the 96 bits of the tag no shorter part counts.
func TestTagIsWhole(t *testing.T) {
	s := Shape{Base: 1000, Span: 16384}
	k := NewKey(secret, "door")
	ports, _ := s.Encode(k, &Message{Action: Open, Time: time.Now()})
	good := symbols(t, s, ports)
	for i := range 1 << 12 {
		bad := append([]uint16(nil), good...)
		for j := s.Steps() - tagSize; j < s.Steps(); j++ {
			bad[j] = uint16(rand.Uint32() & 0xff)
		}
		if _, _, ok := s.Open(k, bad); ok {
			t.Fatalf("try %d opens", i)
		}
	}
}

// The bits of the last part that carry nothing are zero: one message, one spelling.
func TestSpareBits(t *testing.T) {
	s := Shape{Base: 1000, Span: 23040} // 45 parts of 9 bits carry 400
	k := NewKey(secret, "door")
	ports, _ := s.Encode(k, &Message{Action: Open, Time: time.Now()})
	good, last := symbols(t, s, ports), ports[len(ports)-1]
	for bit := range 5 {
		if i, _, ok := s.Index(last + 1<<bit); ok {
			t.Errorf("spare bit %d is taken for part %d", bit, i)
		}
		bad := append([]uint16(nil), good...)
		bad[44] |= 1 << bit
		if _, _, ok := s.Open(k, bad); ok {
			t.Errorf("with spare bit %d it opens", bit)
		}
	}
}

// malformed are plaintexts that break one rule each, made from a good one.
var malformed = []struct {
	name string
	edit func(b []byte)
}{
	{"action-0", func(b []byte) { b[atKind] &= 0xf0 }},
	{"action-4", func(b []byte) { b[atKind] = b[atKind]&0xf0 | 4 }},
	{"close-for", func(b []byte) { b[atKind] = b[atKind]&0xf0 | 2; b[atFor+2] = 1 }},
	{"family-5", func(b []byte) { b[atKind] = 5<<4 | 1 }},
	{"time-0", func(b []byte) { clear(b[atTime:atFor]) }},
	{"time-high", func(b []byte) { copy(b[atTime:], bytes.Repeat([]byte{0xff}, 6)) }},
	{"for-high", func(b []byte) { copy(b[atFor:], []byte{0x27, 0x8d, 0x01}) }},
	{"address-behind-4", func(b []byte) { b[atKind] = 4<<4 | 1; b[atAddr+4] = 1 }},
	{"address-of-none", func(b []byte) { b[atKind] = 1; b[atAddr+15] = 1 }},
	{"4in6", func(b []byte) { b[atKind] = 6<<4 | 1; clear(b[atAddr:atBits]); b[atAddr+10], b[atAddr+11] = 0xff, 0xff }},
	{"bits-4", func(b []byte) { b[atKind] = 4<<4 | 1; clear(b[atAddr:atBits]); b[atBits] = 32 }},
	{"bits-6", func(b []byte) { b[atBits] = 128 }},
	{"proto-alone", func(b []byte) { b[atProto] = 6 }},
	{"port-alone", func(b []byte) { b[atPort+1] = 22 }},
	{"proto-icmp", func(b []byte) { b[atProto], b[atPort+1] = 1, 22 }},
	{"payload-long", func(b []byte) { b[fixed] = 5 }},
	{"payload-close", func(b []byte) { b[atKind] = b[atKind]&0xf0 | 2; b[fixed] = 1 }},
	{"payload-behind", func(b []byte) { b[fixed], b[fixed+1] = 0, 1 }},
	// New ones stand at the end: a vector's nonce follows from its place.
	{"payload-extend", func(b []byte) { b[atKind] = b[atKind]&0xf0 | 3; b[fixed] = 1 }},
	{"bits-of-6", func(b []byte) { b[atKind] = 6<<4 | 1; b[atAddr], b[atBits] = 0x20, 128 }},
	{"time-above", func(b []byte) { copy(b[atTime:], []byte{0x08, 0x63, 0x7b, 0xd0, 0x5a, 0xf7}) }},
}

// One who has a key can make any plaintext. What breaks a rule is declined, so that
// a message has one spelling.
func TestMalformed(t *testing.T) {
	s := Shape{Base: 1000, Span: 16384, Payload: 4}
	k := NewKey(secret, "door")
	for _, c := range malformed {
		plain := make([]byte, s.plain())
		(&Message{Action: Open, Time: time.Now()}).write(plain)
		if m, _, ok := s.Open(k, symbols(t, s, s.seal(k, plain, [8]byte{1}))); !ok {
			t.Fatal("the plaintext itself is refused", m)
		}
		c.edit(plain)
		if m, _, ok := s.Open(k, symbols(t, s, s.seal(k, plain, [8]byte{1}))); ok {
			t.Errorf("%s is taken: %+v", c.name, m)
		}
	}
}

func TestRefused(t *testing.T) {
	v4, v6 := netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8::7")
	now := time.Now()
	for name, m := range map[string]*Message{
		"no action":     {Time: now},
		"no time":       {Action: Open},
		"a close's for": {Action: Close, Time: now, For: time.Second},
		"a fraction":    {Action: Open, Time: now, For: time.Millisecond},
		"too long":      {Action: Open, Time: now, For: MaxFor + time.Second},
		"4 in 6":        {Action: Open, Time: now, Addr: netip.MustParseAddr("::ffff:192.0.2.7")},
		"a zone":        {Action: Open, Time: now, Addr: netip.MustParseAddr("fe80::1%eth0")},
		"bits of 4":     {Action: Open, Time: now, Addr: v4, Bits: 32},
		"bits of 6":     {Action: Open, Time: now, Addr: v6, Bits: 128},
		"a port alone":  {Action: Open, Time: now, Port: 22},
		"payload":       {Action: Open, Time: now, Payload: []byte{1}},
	} {
		if _, err := (Shape{Base: 1000, Span: 16384}).Encode(NewKey(secret, "door"), m); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}

// TestShape pins the figures that the manual gives.
func TestShape(t *testing.T) {
	for _, c := range []struct{ span, payload, size, width, steps int }{
		{1600, 0, 50, 4, 100}, {2560, 0, 50, 5, 80}, {16384, 0, 50, 8, 50}, {23040, 0, 50, 9, 45}, {65535, 0, 50, 10, 40},
		{3680, 64, 115, 4, 230}, {16384, 64, 115, 6, 154}, {29440, 64, 115, 8, 115}, {1599, 0, 50, 0, 0},
	} {
		s := Shape{Base: 1, Span: c.span, Payload: c.payload}
		if s.Size() != c.size || s.Width() != c.width || s.Steps() != c.steps || (s.Check() == nil) != (c.steps > 0) {
			t.Errorf("%+v has %d bytes, %d bits, %d steps, %v", s, s.Size(), s.Width(), s.Steps(), s.Check())
		}
	}
	for _, s := range []Shape{{0, 16384, 0}, {60000, 16384, 0}, {1, 16384, 65}, {1, 16384, -1}, {1, 65536, 0}} {
		if s.Check() == nil {
			t.Errorf("%+v is taken", s)
		}
	}
}

// FuzzRead: what is read is written back as the same bytes.
func FuzzRead(f *testing.F) {
	good := make([]byte, fixed+5)
	(&Message{Action: Open, Time: time.Now(), Addr: netip.MustParseAddr("192.0.2.7"), Bits: 24, Payload: []byte("ab")}).write(good)
	f.Add(good)
	f.Add(good[:fixed])
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) != fixed && (len(b) < fixed+2 || len(b) > fixed+1+MaxPayload) {
			return
		}
		var m Message
		if m.read(b) != nil {
			return
		}
		again := make([]byte, len(b))
		m.write(again)
		if !bytes.Equal(b, again) {
			t.Fatalf("%x\n%x", b, again)
		}
	})
}

// A failing trial, which a stranger can cause, allocates nothing.
func TestNoAllocation(t *testing.T) {
	s := Shape{Base: 1000, Span: 16384}
	o, _ := NewOpener(s)
	k := NewKey(secret, "door")
	junk := make([]uint16, s.Steps())
	if n := testing.AllocsPerRun(100, func() {
		o.Load(junk)
		if _, err := o.Try(k); err != ErrSeal {
			t.Fatal(err)
		}
		o.parts.Index(1234)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkTry(b *testing.B) {
	s := Shape{Base: 1000, Span: 16384}
	o, _ := NewOpener(s)
	k := NewKey(secret, "door")
	o.Load(make([]uint16, s.Steps()))
	for b.Loop() {
		o.Try(k)
	}
}
