package sallyport

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/encoded"
)

const (
	testSecret  = "MFRGGZDFMZTWQ2LKNNWG23TPOBYXE43U"
	otpText     = "sallyport-otp 1 door=gate pool=20000-29999,30001,30003-39999/tcp steps=5 step=30s within=10s secret=" + testSecret
	digitsText  = "sallyport-otp 1 door=gate digits=6 base=7000/udp within=10s secret=" + testSecret
	encodedText = "sallyport-encoded 1 door=gate base=20000/tcp span=16384 payload=16 within=30s secret=" + testSecret
)

func TestSecretLines(t *testing.T) {
	read := func(line string) (interface{ Line() string }, error) {
		if strings.HasPrefix(line, encodedWord) {
			return ParseEncoded(line)
		}
		return ParseOTP(line)
	}
	for _, line := range []string{otpText, strings.Replace(otpText, "30s within", "1m0s any-address within", 1), digitsText, strings.Replace(digitsText, "=6", "=8", 1), encodedText} {
		k, err := read(line)
		if err != nil || k.Line() != line {
			t.Errorf("%q\nis written as\n%q, %v", line, k.Line(), err)
		}
		if said := fmt.Sprintf("%v %+v %#v %s", k, k, k, k); strings.Contains(said, testSecret) || strings.Contains(said, "abcdef") {
			t.Errorf("a secret is printed: %s", said)
		}
	}
	for _, test := range []struct{ line, old, new, want string }{
		{otpText, " 1 ", " 2 ", "of a later version"},
		{otpText, "sallyport-otp", "sallyport", "this is no sallyport-otp line"},
		{otpText, "steps=5 ", "", "has no steps"},
		{otpText, "steps=5", "steps=5 steps=5", "has steps twice"},
		{otpText, "steps=5", "steps=05", "steps is wrong"},
		{otpText, "steps=5", "steps=33", "steps is wrong"},
		{otpText, "steps=5", "steps=2", "3 to 32 steps"},
		{otpText, "steps=5", "steps", "without a value"},
		{otpText, "steps=5", "any-address=1 steps=5", "with one that it can't have"},
		{otpText, "step=30s", "step=0.5s", "step is wrong"},
		{otpText, "step=30s", "step=1.5s", "whole seconds"},
		{otpText, "step=30s", "step=-30s", "whole seconds"},
		{otpText, "step=30s", "digits=6", "has no base"},
		{digitsText, "digits=6", "digits=6 steps=5", "steps, which does not go with the rest"},
		{digitsText, "digits=6", "digits=7", "6 or 8 digits"},
		{digitsText, "base=7000", "base=7001", "a multiple of 100"},
		{digitsText, "base=7000", "base=7000-7001", "base is wrong"},
		{digitsText, "base=7000/udp", "base=65500/udp", "above 65535"},
		{otpText, "/tcp", "/sctp", "pool is wrong"},
		{otpText, "/tcp", "", "pool is wrong"},
		{otpText, "20000-29999", "020000-29999", "pool is wrong"},
		{otpText, "20000-29999", "0-29999", "pool is wrong"},
		{otpText, "20000-29999", "29999-20000", "pool is wrong"},
		{otpText, "20000-29999", "20000-70000", "pool is wrong"},
		{otpText, "20000-29999", "30003-39999", "must rise"},
		{otpText, "door=gate", "door=Gate", "no name"},
		{otpText, "within=10s", "within=0s", "within is 0s"},
		{otpText, testSecret, testSecret[:24], "the secret has 15 bytes"},
		{otpText, testSecret, testSecret + " " + testSecret, "word 9 of the sallyport-otp line is not known here"},
		{otpText, "gate", strings.Repeat("g", 5000), "more than 4096 bytes"},
		{encodedText, "span=16384", "span=100", "too small"},
		{encodedText, "span=16384", "span=65536", "span is wrong"},
		{encodedText, "payload=16", "payload=65", "payload is wrong"},
		{encodedText, "base=20000", "base=60000", "end behind port 65535"},
	} {
		line := strings.Replace(test.line, test.old, test.new, 1)
		_, err := read(line)
		if test.old == "sallyport-otp" {
			_, err = ParseOTP(line)
		}
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%q: %v, want %q", line, err, test.want)
		}
		if err != nil && strings.Contains(err.Error(), testSecret[:10]) {
			t.Errorf("a secret is in %v", err)
		}
	}
}

// What a server may have, a client reads: 256 ranges, the longest name and secret.
func TestLongestLine(t *testing.T) {
	k := &OTP{Door: strings.Repeat("d", 32), Secret: make([]byte, 64), Proto: TCP, Steps: 32, TimeStep: time.Hour, AnyAddress: true, Within: 10*time.Minute - time.Second}
	for i := range 256 {
		k.Pool = append(k.Pool, Span{Low: uint16(10001 + 10*i), High: uint16(10008 + 10*i)})
	}
	if got, err := ParseOTP(k.Line()); err != nil || got.Line() != k.Line() {
		t.Errorf("%d bytes: %v", len(k.Line()), err)
	}
}

var testPaths = []struct{ local, remote, other string }{
	{"192.0.2.1", "192.0.2.2", "192.0.2.9"}, {"2001:db8::1", "2001:db8::2", "2001:db8::9"},
}

func portsIn(p *Plan) (ports []uint16) {
	for _, packet := range p.Packets {
		ports = append(ports, packet.Port)
	}
	return ports
}

func TestOTPPlans(t *testing.T) {
	k, err := ParseOTP(otpText)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(1_800_000_010, 0) // in the middle of a step
	k.Now = func() time.Time { return now }
	for _, path := range testPaths {
		local, remote, other := netip.MustParseAddr(path.local), netip.MustParseAddr(path.remote), netip.MustParseAddr(path.other)
		plan := func(k *OTP, local netip.Addr) []uint16 {
			t.Helper()
			p, err := k.Plan(local, remote)
			if err != nil {
				t.Fatal(err)
			}
			if p.Local != local || !p.Until.Equal(time.Unix(1_800_000_030, 0)) || p.Copies || len(p.Packets) < 3 || p.Packets[1].Wait != DefaultDelay || strings.Contains(p.String(), testSecret) {
				t.Errorf("%v", p)
			}
			return portsIn(p)
		}
		base := plan(k, local)
		if want, _, _ := k.Ports(now.Add(19*time.Second), local); !slices.Equal(base, want) || len(base) != 5 {
			t.Errorf("%v is planned, and %v are the ports", base, want)
		}
		if after, _, _ := k.Ports(now.Add(20*time.Second), local); slices.Equal(base, after) {
			t.Error("the next step has the same ports")
		}
		stated := *k
		stated.Addresses = []netip.Addr{other}
		if got, want := plan(&stated, local), plan(k, other); !slices.Equal(got, want) || slices.Equal(got, base) {
			t.Errorf("for another address: %v, and from there %v", got, want)
		}
		free := *k
		free.AnyAddress = true
		if !slices.Equal(plan(&free, local), plan(&free, other)) {
			t.Error("with any address the ports depend on it")
		}
	}
}

// RFC 6238 appendix B has eight digits of SHA-1 at 59 s, for a secret of 20 digits.
func TestOTPDigits(t *testing.T) {
	k, err := ParseOTP("sallyport-otp 1 door=gate digits=8 base=7000/tcp within=10s secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ")
	if err != nil {
		t.Fatal(err)
	}
	k.Now = func() time.Time { return time.Unix(59, 0) } // 94287082
	for _, path := range testPaths {
		for code, want := range map[string][]uint16{"": {7094, 7128, 7270, 7382}, "00112299": {7000, 7111, 7222, 7399}} {
			k.Code = code
			p, err := k.Plan(netip.MustParseAddr(path.local), netip.MustParseAddr(path.remote))
			if err != nil || !slices.Equal(portsIn(p), want) || !p.Until.Equal(time.Unix(60, 0)) {
				t.Errorf("%q: %v, %v", code, p, err)
			}
		}
	}
	for _, code := range []string{"1234567", "123456789", "1234567x", "123 4567", "1234567\n"} {
		k.Code = code
		if k.Validate() == nil {
			t.Errorf("%q is taken for a code", code)
		}
	}
}

// One-time ports are not waited for beyond their time step, and those of the next are
// sent as often as the first ones were.
func TestWindowsEndWithTheTimeStep(t *testing.T) {
	fresh, late := &Plan{Until: time.Now().Add(time.Hour)}, &Plan{Until: time.Now().Add(5 * time.Second)}
	over := &Plan{Until: time.Now().Add(-time.Second)}
	for _, c := range []struct {
		name        string
		knock       Knock
		before, now *Plan
		want        time.Duration
	}{
		{"the first ports", &OTP{}, nil, fresh, 20 * time.Second},
		{"the same ports", &OTP{}, fresh, fresh, 20 * time.Second},
		{"new ports", &OTP{}, late, fresh, firstWindow},
		{"the end is near", &OTP{}, late, late, 5 * time.Second},
		{"the end is now", &OTP{}, over, over, firstWindow},
		{"a sequence", Sequence{}, nil, &Plan{}, 20 * time.Second},
		{"a request", &Request{}, late, over, 20 * time.Second}, // a signature may cost a touch
	} {
		d := Dialer{Knock: c.knock}
		if got := d.window(20*time.Second, c.before, c.now); got > c.want || got < c.want-time.Second {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

// The ports for an address that the server does not see open nothing, so that is
// said instead.
func TestOTPBehindNAT(t *testing.T) {
	k, err := ParseOTP(otpText)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		local, remote string
		fails         bool
	}{
		{"192.168.1.5", "192.0.2.2", true}, {"100.64.0.1", "192.0.2.2", true}, {"fd00::5", "2001:db8::2", true},
		{"192.168.1.5", "192.168.1.1", false}, {"10.0.0.1", "100.64.0.9", false}, {"fd00::5", "fd00::1", false},
		{"192.0.2.1", "192.0.2.2", false}, {"2001:db8::1", "2001:db8::2", false}, {"127.0.0.1", "127.0.0.1", false}, {"::1", "::1", false},
	} {
		local, remote := netip.MustParseAddr(test.local), netip.MustParseAddr(test.remote)
		_, err := k.Plan(local, remote)
		if (err != nil) != test.fails || err != nil && !strings.Contains(err.Error(), "any_address = true") {
			t.Errorf("%s to %s: %v", local, remote, err)
		}
		other := *k
		other.Addresses = []netip.Addr{netip.MustParseAddr("203.0.113.7"), netip.MustParseAddr("2001:db8::7")}
		if _, err := other.Plan(local, remote); err != nil {
			t.Errorf("%s to %s with the seen address: %v", local, remote, err)
		}
	}
}

func TestEncodedPlans(t *testing.T) {
	k, err := ParseEncoded(encodedText)
	if err != nil {
		t.Fatal(err)
	}
	shape, key := encoded.Shape{Base: 20000, Span: 16384, Payload: 16}, encoded.NewKey(k.Secret, "gate")
	for _, path := range testPaths {
		local, remote, other := netip.MustParseAddr(path.local), netip.MustParseAddr(path.remote), netip.MustParseAddr(path.other)
		for _, test := range []struct {
			change func(k *Encoded)
			want   string
		}{
			{func(*Encoded) {}, path.local + "/0 1 0s 0 "},
			{func(k *Encoded) { k.Observed = true }, "invalid IP/0 1 0s 0 "},
			{func(k *Encoded) {
				k.Addresses, k.Mask, k.Action, k.For = []netip.Addr{other}, 24, Extend, time.Hour
			}, path.other + "/24 3 1h0m0s 0 "},
			{func(k *Encoded) { k.Action, k.Port, k.PortProto = Close, 22, TCP }, path.local + "/0 2 0s 22 "},
			{func(k *Encoded) { k.Payload = []byte("hi") }, path.local + "/0 1 0s 0 hi"},
			{func(k *Encoded) { k.Repeat = 3 }, path.local + "/0 1 0s 0 "},
		} {
			k := *k
			test.change(&k)
			p, err := k.Plan(local, remote)
			if err != nil {
				t.Fatal(err)
			}
			ports := portsIn(p)
			if len(ports) != shape.Steps()*max(k.Repeat, 1) || p.Packets[1].Wait != EncodedDelay || !p.Until.After(time.Now()) || strings.Contains(p.String(), testSecret) {
				t.Errorf("%v", p)
			}
			symbols := make([]uint16, shape.Steps())
			for _, port := range ports {
				i, symbol, ok := shape.Index(port)
				if !ok {
					t.Fatalf("port %d is none of the message's", port)
				}
				symbols[i] = symbol
			}
			m, _, ok := shape.Open(key, symbols)
			if !ok {
				t.Fatal("the message does not open")
			}
			if got := fmt.Sprintf("%v/%d %d %v %d %s", m.Addr, m.Bits, m.Action, m.For, m.Port, m.Payload); got != test.want || time.Since(m.Time) > time.Minute {
				t.Errorf("got %q, want %q", got, test.want)
			}
		}
	}
	for _, change := range []func(k *Encoded){
		func(k *Encoded) { k.Repeat = 9 }, func(k *Encoded) { k.Mask = 128 }, func(k *Encoded) { k.Mask = -1 }, func(k *Encoded) { k.For = 1500 * time.Millisecond },
		func(k *Encoded) { k.Payload = make([]byte, 17) }, func(k *Encoded) { k.Observed, k.Addresses = true, make([]netip.Addr, 1) },
		func(k *Encoded) { k.Addresses = make([]netip.Addr, 1) }, func(k *Encoded) { k.Port = 22 }, func(k *Encoded) { k.Action = 9 },
	} {
		k := *k
		change(&k)
		if k.Validate() == nil {
			t.Errorf("%+v is taken", k.about(netip.Addr{}))
		}
	}
	k.Mask = 64
	if _, err := k.Plan(netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")); err == nil || !strings.Contains(err.Error(), "1 to 31") {
		t.Errorf("a mask that IPv4 has no room for: %v", err)
	}
}

// However fast messages are made, each has a millisecond of its own, near the clock's.
func TestEncodedTimesDiffer(t *testing.T) {
	k, err := ParseEncoded(encodedText)
	if err != nil {
		t.Fatal(err)
	}
	shape, key, seen := k.shape(), encoded.NewKey(k.Secret, k.Door), map[int64]bool{}
	for i := range 200 {
		path := testPaths[i%len(testPaths)]
		p, err := k.Plan(netip.MustParseAddr(path.local), netip.MustParseAddr(path.remote))
		if err != nil {
			t.Fatal(err)
		}
		symbols := make([]uint16, shape.Steps())
		for j, port := range portsIn(p) {
			_, symbols[j], _ = shape.Index(port)
		}
		m, _, ok := shape.Open(key, symbols)
		if !ok {
			t.Fatal("the message does not open")
		}
		if ms := m.Time.UnixMilli(); seen[ms] || time.Since(m.Time).Abs() > 5*time.Second {
			t.Fatalf("message %d has a time that another had, or is off by %v", i, time.Since(m.Time))
		} else {
			seen[ms] = true
		}
	}
}
