package encoded

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/sallyport/sallyport/vectors"
)

const vectorDir = "../../vectors/encoded"

var (
	vectorShape = Shape{Base: 20000, Span: 16384}
	vectorNow   = time.UnixMilli(1_800_000_000_000)
)

// vector is one file in the making.
type vector struct {
	name, about string
	door        string // the server's; the message is for "front"
	secret      string // the server's, in hex; "": the client's
	shape       Shape
	m           Message
	plain       func(b []byte) // breaks the plaintext
	wire        func(ports []uint16) []uint16
	server      Shape  // where the server has another
	after       string // the file whose message was taken before
	again       bool   // it is that message
	expect      string
}

func vectorList() []vector {
	at := func(d time.Duration) Message { return Message{Action: Open, Time: vectorNow.Add(d)} }
	with := func(f func(m *Message)) Message { m := at(0); f(&m); return m }
	four := Shape{Base: 1, Span: 1600}
	payload := Shape{Base: 20000, Span: 16384, Payload: 64}
	odd := Shape{Base: 40000, Span: 23040, Payload: 0}
	list := []vector{
		{name: "open", about: "the plainest message", m: at(0)},
		{name: "close", about: "it closes", m: with(func(m *Message) { m.Action = Close })},
		{name: "extend", about: "it prolongs", m: with(func(m *Message) { m.Action, m.For = Extend, time.Hour })},
		{name: "ipv4", about: "an IPv4 address is stated, with a mask", m: with(func(m *Message) { m.Addr, m.Bits = netip.MustParseAddr("192.0.2.7"), 24 })},
		{name: "ipv6", about: "an IPv6 address is stated, with a mask", m: with(func(m *Message) { m.Addr, m.Bits = netip.MustParseAddr("2001:db8::7"), 56 })},
		{name: "observed-mask", about: "a mask on the address that it comes from", m: with(func(m *Message) { m.Bits = 64 })},
		{name: "tcp-port", about: "one TCP port", m: with(func(m *Message) { m.Proto, m.Port = sequence.TCP, 443 })},
		{name: "udp-port", about: "one UDP port", m: with(func(m *Message) { m.Proto, m.Port = sequence.UDP, 65535 })},
		{name: "longest-for", about: "30 days", m: with(func(m *Message) { m.For = MaxFor })},
		{name: "smallest-span", about: "four bits a part", shape: four, m: at(0)},
		{name: "spare-bits", about: "nine bits a part, of which the last one has five to spare", shape: odd, m: at(0)},
		{name: "payload", about: "a payload of any bytes", shape: payload, m: with(func(m *Message) { m.Payload = []byte("a\x00\xff\n'`") })},
		{name: "payload-full", about: "the longest payload", shape: payload, m: with(func(m *Message) { m.Payload = []byte(strings.Repeat("0123456789abcdef", 4)) })},
		{name: "payload-none", about: "no payload, where there could be one", shape: payload, m: at(0)},
		{name: "backwards", about: "the parts come in the opposite order", m: at(0), wire: func(p []uint16) []uint16 { slices.Reverse(p); return p }},
		{name: "twice", about: "each part comes twice", m: at(0), wire: func(p []uint16) []uint16 { return append(p, p...) }},
		{name: "old-edge", about: "as old as the window allows", m: at(-time.Minute)},
		{name: "old", about: "a millisecond older", m: at(-time.Minute - time.Millisecond), expect: "too-old"},
		{name: "future-edge", about: "as far ahead as the window allows", m: at(time.Minute)},
		{name: "future", about: "a millisecond further", m: at(time.Minute + time.Millisecond), expect: "future"},
		{name: "replay", about: "the same message again", m: at(0), after: "open", again: true, expect: "replay"},
		{name: "lost", about: "one part is missing", m: at(0), wire: func(p []uint16) []uint16 { return p[:49] }, expect: "incomplete"},
		{name: "contradiction", about: "a part comes with other content in the middle: a new attempt, which lacks what came before", m: at(0),
			wire: func(p []uint16) []uint16 { return slices.Insert(p, 25, p[7]^1) }, expect: "incomplete"},
		{name: "contradiction-repeat", about: "the same, and the message comes twice more", m: at(0),
			wire: func(p []uint16) []uint16 { return slices.Concat(p[:25], []uint16{p[7] ^ 1}, p[25:], p, p) }},
		{name: "spare-bit-set", about: "the last part with a spare bit set is no part", shape: odd, m: at(0), wire: func(p []uint16) []uint16 { p[44]++; return p }, expect: "incomplete"},
		{name: "bit", about: "one bit of one part turned", m: at(0), wire: func(p []uint16) []uint16 { p[20] ^= 4; return p }, expect: "wrong-seal"},
		{name: "tag-bit", about: "one bit of the tag turned", m: at(0), wire: func(p []uint16) []uint16 { p[49] ^= 1; return p }, expect: "wrong-seal"},
		{name: "other-secret", about: "another person's secret", secret: "ff0102030405060708090a0b0c0d0e0f", m: at(0), expect: "wrong-seal"},
		{name: "other-door", about: "the same secret at another door", door: "back", m: at(0), expect: "wrong-seal"},
		{name: "other-span", about: "the server has another span of the same width", server: Shape{Base: 20000, Span: 16385}, m: at(0), expect: "wrong-seal"},
	}
	for _, c := range malformed {
		list = append(list, vector{name: "malformed-" + c.name, about: "the seal is good and a rule about the plaintext is broken: " + c.name,
			shape: Shape{Base: 20000, Span: 16384, Payload: 4}, m: at(0), plain: c.edit, expect: "malformed"})
	}
	wide := Shape{Base: 1, Span: 65535}
	top := Shape{Base: 61856, Span: 3680, Payload: 64}
	two, three := Shape{Base: 20000, Span: 24576, Payload: 2}, Shape{Base: 20000, Span: 24576, Payload: 3}
	return append(list,
		vector{name: "time-greatest", about: "the greatest time is one, though far ahead", m: at(time.UnixMilli(maxTime).Sub(vectorNow)), expect: "future"},
		vector{name: "replay-time", about: "another message of the same person and millisecond", m: at(0), after: "open", expect: "replay"},
		vector{name: "ipv4-31", about: "the longest mask of IPv4", m: with(func(m *Message) { m.Addr, m.Bits = netip.MustParseAddr("192.0.2.7"), 31 })},
		vector{name: "ipv6-127", about: "the longest mask of IPv6", m: with(func(m *Message) { m.Addr, m.Bits = netip.MustParseAddr("2001:db8::7"), 127 })},
		vector{name: "ipv6-alone", about: "an IPv6 address without a mask", m: with(func(m *Message) { m.Addr = netip.MustParseAddr("2001:db8::7") })},
		vector{name: "widest-span", about: "the largest span has ten bits a part", shape: wide, m: at(0)},
		vector{name: "highest-ports", about: "the longest message in the smallest span, up to port 65535", shape: top,
			m: with(func(m *Message) { m.Payload = []byte(strings.Repeat("fedcba9876543210", 4)) })},
		vector{name: "other-payload", about: "the server has room for a byte more in as many parts", shape: two, server: three, m: at(0), expect: "wrong-seal"},
	)
}

// file makes a vector's.
func (v *vector) file(n int) *vectors.Message {
	clientSecret := "000102030405060708090a0b0c0d0e0f"
	key, _ := hex.DecodeString(clientSecret)
	if v.shape == (Shape{}) {
		v.shape = vectorShape
	}
	if v.server == (Shape{}) {
		v.server = v.shape
	}
	if v.expect == "" {
		v.expect = "good"
	}
	var nonce [nonceSize]byte
	if !v.again { // else it is the message of the first file
		binary.BigEndian.PutUint64(nonce[:], uint64(n)*0x9e3779b97f4a7c15)
	}
	plain := make([]byte, v.shape.plain())
	v.m.write(plain)
	if v.plain != nil {
		v.plain(plain)
	}
	k := NewKey(key, "front")
	ports := v.shape.seal(k, plain, nonce)
	f := &vectors.Message{Name: v.name}
	line := func(name string, value any) {
		if text := fmt.Sprint(value); text != "" && text != "0" && text != "invalid IP" {
			f.Lines = append(f.Lines, vectors.Line{Name: name, Value: text})
		}
	}
	or := func(a, b string) string {
		if a != "" {
			return a
		}
		return b
	}
	line("about", v.about)
	line("door", or(v.door, "front"))
	line("secret", or(v.secret, clientSecret))
	line("base", v.server.Base)
	line("span", v.server.Span)
	line("payload", v.server.Payload)
	line("window", 60)
	line("after", v.after)
	line("now", vectorNow.UnixMilli())
	line("expect", v.expect)
	if v.expect == "good" {
		line("action", []string{1: "open", 2: "close", 3: "extend"}[v.m.Action])
		line("time", v.m.Time.UnixMilli())
		line("for", int(v.m.For.Seconds()))
		line("address", v.m.Addr)
		line("bits", v.m.Bits)
		if v.m.Port > 0 {
			line("port", fmt.Sprintf("%d/%v", v.m.Port, v.m.Proto))
		}
		line("input", hex.EncodeToString(v.m.Payload))
		o, _ := NewOpener(v.shape)
		symbols := make([]uint16, len(ports))
		for i, p := range ports {
			_, symbols[i], _ = v.shape.Index(p)
		}
		o.Load(symbols)
		tag := o.Tag()
		line("tag", hex.EncodeToString(tag[:]))
	}
	if v.wire != nil {
		ports = v.wire(ports)
	}
	f.Ports = ports
	return f
}

func TestVectors(t *testing.T) {
	list := vectorList()
	if *update {
		for n := range list {
			f := list[n].file(n)
			if err := os.WriteFile(filepath.Join(vectorDir, f.Name+".txt"), []byte(f.Format()), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		return
	}
	all, err := vectors.Messages()
	if err != nil || len(all) != len(list) {
		t.Fatalf("%d vectors, want %d: %v", len(all), len(list), err)
	}
	for n := range list {
		want := list[n].file(n)
		got := all[want.Name]
		if got == nil {
			t.Fatalf("there is no %s; -update makes it", want.Name)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: -made +file:\n%s", want.Name, diff)
		}
		if verdict := judge(t, got, all); verdict != got.Get("expect") {
			t.Errorf("%s: %s, want %s", got.Name, verdict, got.Get("expect"))
		}
	}
}

// judge is what a server makes of a file.
func judge(t *testing.T, f *vectors.Message, all map[string]*vectors.Message) string {
	number := func(name string) int64 { n, _ := strconv.ParseInt(f.Get(name), 10, 64); return n }
	s := Shape{Base: uint16(number("base")), Span: int(number("span")), Payload: int(number("payload"))}
	secret, _ := hex.DecodeString(f.Get("secret"))
	symbols, have := make([]uint16, s.Steps()), map[int]bool{}
	for _, port := range f.Ports {
		i, symbol, ok := s.Index(port)
		if !ok {
			continue
		}
		if have[i] && symbols[i] != symbol {
			clear(have)
		}
		symbols[i], have[i] = symbol, true
		if len(have) == s.Steps() {
			break
		}
	}
	if len(have) < s.Steps() {
		return "incomplete"
	}
	o, err := NewOpener(s)
	if err != nil || !o.Load(symbols) {
		t.Fatal(err)
	}
	m, err := o.Try(NewKey(secret, f.Get("door")))
	off, repeat := time.Duration(0), false
	if m != nil {
		off = m.Time.Sub(time.UnixMilli(number("now")))
		first := all[f.Get("after")]
		repeat = first != nil && (slices.Equal(first.Ports, f.Ports) || first.Get("time") == fmt.Sprint(m.Time.UnixMilli()))
	}
	window := time.Duration(number("window")) * time.Second
	switch {
	case err == ErrSeal:
		return "wrong-seal"
	case err != nil:
		return "malformed"
	case repeat:
		return "replay"
	case off < -window:
		return "too-old"
	case off > window:
		return "future"
	}
	return "good"
}
