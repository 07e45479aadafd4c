package sallyport_test

import (
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"math/big"
	"net/netip"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/internal/spa"
)

// memoryKey is a Signer that counts how often it signed.
type memoryKey struct {
	key    ssh.Signer
	signed int
}

func (k *memoryKey) PublicKey() []byte { return k.key.PublicKey().Marshal() }

func (k *memoryKey) Sign(data []byte) ([]byte, error) {
	k.signed++
	signature, err := k.key.Sign(nil, data)
	if err != nil {
		return nil, err
	}
	return ssh.Marshal(signature), nil
}

func newKey(t testing.TB) *memoryKey {
	t.Helper()
	_, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.NewSignerFromSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	return &memoryKey{key: key}
}

func newServer(t testing.TB, suite spa.Suite) *spa.ServerKey {
	t.Helper()
	key, err := spa.NewServerKey(suite)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// open does what a server does with a datagram.
func open(server *spa.ServerKey, datagram, publicKey []byte) (*spa.Opened, error) {
	if !spa.IsSize(len(datagram)) || !server.Gate().First(datagram) || !server.Gate().Second(datagram) {
		return nil, errors.New("not through the gate")
	}
	o, err := server.Open(datagram)
	if err != nil {
		return nil, err
	}
	key, err := spa.ParsePublicKey(publicKey)
	if err != nil {
		return nil, err
	}
	_, err = o.Verify(key)
	return o, err
}

var bothSuites = []struct {
	suite spa.Suite
	size  int
}{{spa.Classic, spa.SmallSize}, {spa.PostQuantum, spa.PostQuantumSize}}

func TestARequestArrivesAsItWasMeant(t *testing.T) {
	for _, s := range bothSuites {
		server, key := newServer(t, s.suite), newKey(t)
		before := time.Now().UnixNano()
		r := sallyport.Request{Server: server.Address(), Signer: key, Action: sallyport.Extend, For: time.Hour, Services: []string{"ssh", "web"}}
		b, err := r.Seal(netip.MustParseAddr("2001:db8::7"))
		if err != nil || len(b) != s.size {
			t.Fatalf("%v: %d bytes, %v", s.suite, len(b), err)
		}
		o, err := open(server, b, key.PublicKey())
		if err != nil {
			t.Fatal(err)
		}
		if o.Stamp < before || o.Stamp > time.Now().UnixNano() {
			t.Errorf("%v: the stamp %d is not now", s.suite, o.Stamp)
		}
		o.Stamp = 0
		want := spa.Request{Action: spa.Extend, For: time.Hour, IPv6: netip.MustParseAddr("2001:db8::7"), Own: true, Services: []string{"ssh", "web"}}
		if !reflect.DeepEqual(o.Request, want) {
			t.Errorf("%v: got %+v, want %+v", s.suite, o.Request, want)
		}
	}
}

func TestNothingAskedIsOpenAll(t *testing.T) {
	server, key := newServer(t, spa.Classic), newKey(t)
	r := sallyport.Request{Server: server.Address(), Signer: key, Stamp: func() (int64, error) { return 41, nil }}
	b, err := r.Seal(netip.Addr{})
	if err != nil {
		t.Fatal(err)
	}
	o, err := open(server, b, key.PublicKey())
	if want := (spa.Request{Stamp: 41, Action: spa.Open}); err != nil || !reflect.DeepEqual(o.Request, want) {
		t.Errorf("got %+v, %v; want %+v", o, err, want)
	}
}

// In observed mode whoever delivers a datagram first has the grant, so a public
// address is stated; one that something translates on the way must not be, for
// the server would never see it.
func TestWhichAddressesAreStated(t *testing.T) {
	addrs := func(text string) (list []netip.Addr) {
		for field := range strings.FieldsSeq(text) {
			list = append(list, netip.MustParseAddr(field))
		}
		return list
	}
	server, key := newServer(t, spa.Classic), newKey(t)
	for _, test := range []struct {
		local, given string
		observed     bool
		want         string
	}{
		{"192.0.2.1", "", false, "own 192.0.2.1"},
		{"2001:db8::1", "", false, "own 2001:db8::1"},
		{"::ffff:192.0.2.1", "", false, "own 192.0.2.1"},
		{"8.8.8.8", "", false, "own 8.8.8.8"},
		{"2a00::1", "", false, "own 2a00::1"},
		{"192.0.2.1", "", true, ""},
		{"2001:db8::1", "", true, ""},
		{"10.1.2.3", "", false, ""},
		{"172.31.0.1", "", false, ""},
		{"192.168.1.2", "", false, ""},
		{"100.64.0.1", "", false, ""},
		{"100.127.255.255", "", false, ""},
		{"100.128.0.1", "", false, "own 100.128.0.1"},
		{"169.254.1.1", "", false, ""},
		{"127.0.0.1", "", false, ""},
		{"192.0.0.2", "", false, ""},
		{"198.18.0.1", "", false, ""},
		{"224.0.0.1", "", false, ""},
		{"250.0.0.1", "", false, ""},
		{"fd00::1", "", false, ""},
		{"fec0::1", "", false, ""},
		{"fe80::1%1", "", false, ""},
		{"64:ff9b::c000:201", "", false, ""},
		{"::1", "", false, ""},
		{"10.1.2.3", "203.0.113.5", false, "203.0.113.5"},
		{"192.0.2.1", "2001:db8::9", false, "2001:db8::9"},
		{"2001:db8::1", "203.0.113.5", false, "203.0.113.5"},
		{"192.0.2.1", "2001:db8::9 203.0.113.5", false, "203.0.113.5 2001:db8::9"},
		{"192.0.2.1", "::ffff:203.0.113.5", false, "203.0.113.5"},
	} {
		r := sallyport.Request{Server: server.Address(), Signer: key, Addresses: addrs(test.given), Observed: test.observed}
		b, err := r.Seal(netip.MustParseAddr(test.local))
		if err != nil {
			t.Errorf("%s: %v", test.local, err)
			continue
		}
		o, err := open(server, b, key.PublicKey())
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		if o.Own {
			got = append(got, "own")
		}
		for _, a := range o.Stated() {
			got = append(got, a.String())
		}
		if s := strings.Join(got, " "); s != test.want {
			t.Errorf("from %s, given %q, observed %v: stated %q, want %q", test.local, test.given, test.observed, s, test.want)
		}
	}
}

// rsaKey is a public key that need not sign.
func rsaKey(t *testing.T, bits uint) *stubKey {
	n := new(big.Int).Lsh(big.NewInt(1), bits-1)
	public, err := ssh.NewPublicKey(&rsa.PublicKey{N: n.SetBit(n, 0, 1), E: 65537})
	if err != nil {
		t.Fatal(err)
	}
	return &stubKey{public.Marshal()}
}

type stubKey struct{ public []byte }

func (k *stubKey) PublicKey() []byte           { return k.public }
func (k *stubKey) Sign([]byte) ([]byte, error) { return nil, errors.New("it was asked to sign") }

func TestWhatARequestRefuses(t *testing.T) {
	classic, hybrid := newServer(t, spa.Classic).Address(), newServer(t, spa.PostQuantum).Address()
	ip4, ip6 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	key := newKey(t)
	request := func(change func(r *sallyport.Request)) *sallyport.Request {
		r := &sallyport.Request{Server: classic, Signer: key}
		change(r)
		return r
	}
	for _, test := range []struct {
		r    *sallyport.Request
		want string
	}{
		{&sallyport.Request{Signer: key}, "the request is for no server: give its address, the line that begins with sallyport1"},
		{&sallyport.Request{Server: classic}, "the request has no key to sign with: name a key file, or use ssh-agent"},
		{&sallyport.Request{Server: hybrid, Signer: rsaKey(t, 2048)}, "a signature by ssh-rsa does not fit into a post-quantum datagram: " +
			"use an ed25519 key (ssh-keygen -t ed25519 makes one), or ask the server's owner for a classic address"},
		{&sallyport.Request{Server: classic, Signer: rsaKey(t, 1024)}, "the RSA key has 1024 bits; from 2048 to 4096 are taken"},
		{&sallyport.Request{Server: classic, Signer: &stubKey{[]byte("junk")}}, "the key is damaged"},
		{request(func(r *sallyport.Request) { r.Over = 3 }), "there is no transport 3: a request goes over udp, icmp or tcp"},
		{request(func(r *sallyport.Request) { r.Action = 9 }), "there is no action 9"},
		{request(func(r *sallyport.Request) { r.For = 1500 * time.Millisecond }), "must be whole seconds"},
		{request(func(r *sallyport.Request) { r.For = -time.Second }), "must be whole seconds"},
		{request(func(r *sallyport.Request) { r.Action, r.For = sallyport.Close, time.Second }), "a close takes no duration"},
		{request(func(r *sallyport.Request) { r.Services = []string{"Ssh"} }), `"Ssh" is no name of a service`},
		{request(func(r *sallyport.Request) { r.Services = []string{"ssh", "ssh"} }), "named twice"},
		{request(func(r *sallyport.Request) { r.Addresses = []netip.Addr{ip4, netip.MustParseAddr("192.0.2.2")} }),
			"the request states two addresses of one family: there is room for one IPv4 and one IPv6 address"},
		{request(func(r *sallyport.Request) { r.Addresses = []netip.Addr{ip6, netip.MustParseAddr("2001:db8::2")} }), "two addresses of one family"},
		{request(func(r *sallyport.Request) { r.Addresses = []netip.Addr{ip4, ip6, ip6} }), "two addresses of one family"},
		{request(func(r *sallyport.Request) { r.Addresses = []netip.Addr{{}} }), "is no address to open for"},
		{request(func(r *sallyport.Request) { r.Addresses = []netip.Addr{netip.MustParseAddr("fe80::1%1")} }), "is no address to open for"},
		{request(func(r *sallyport.Request) { r.Addresses = []netip.Addr{netip.MustParseAddr("::")} }), "is no address to open for"},
		{request(func(r *sallyport.Request) { r.Addresses, r.Observed = []netip.Addr{ip4}, true }), "asks for the observed one"},
	} {
		err := test.r.Validate()
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%+v: got %v, want %q", test.r, err, test.want)
		}
		if _, again := test.r.Seal(ip4); again == nil || err != nil && again.Error() != err.Error() {
			t.Errorf("Seal says %v, Validate %v", again, err)
		}
	}
	if key.signed != 0 {
		t.Errorf("%d signatures were asked for in vain", key.signed)
	}
}

func TestTooManyServices(t *testing.T) {
	var names []string
	for c := 'a'; c <= 'z'; c++ {
		names = append(names, strings.Repeat(string(c), 20))
	}
	for _, s := range bothSuites {
		server, key := newServer(t, s.suite), newKey(t)
		r := sallyport.Request{Server: server.Address(), Signer: key, Services: names}
		_, err := r.Seal(netip.Addr{})
		want := "520 bytes of services' names do not fit beside a signature by ssh-ed25519: ask for fewer at a time, or for all by naming none"
		if err == nil || err.Error() != want {
			t.Errorf("%v: got %v, want %q", s.suite, err, want)
		}
	}
}

func TestAFailingStampOrSignatureIsSaid(t *testing.T) {
	r := sallyport.Request{Server: newServer(t, spa.Classic).Address(), Signer: newKey(t),
		Stamp: func() (int64, error) { return 0, errors.New("the disk is full") }}
	if _, err := r.Seal(netip.Addr{}); err == nil || err.Error() != "no number for the request: the disk is full" {
		t.Errorf("got %v", err)
	}
	r.Stamp, r.Signer = nil, &stubKey{newKey(t).PublicKey()}
	if _, err := r.Seal(netip.Addr{}); err == nil || !strings.Contains(err.Error(), "it was asked to sign") {
		t.Errorf("got %v", err)
	}
	if err := r.Validate(); err != nil {
		t.Errorf("Validate asked the key: %v", err)
	}
}

func TestThePlanOfARequest(t *testing.T) {
	for _, family := range []struct{ local, remote, other string }{
		{"192.0.2.1", "192.0.2.2", "2001:db8::2"},
		{"2001:db8::1", "2001:db8::2", "192.0.2.2"},
	} {
		local, remote := netip.MustParseAddr(family.local), netip.MustParseAddr(family.remote)
		for _, test := range []struct {
			over  sallyport.Transport
			port  uint16
			proto sallyport.Proto
			want  uint16
			line  string
		}{
			{sallyport.OverUDP, 0, sallyport.UDP, 62201, "udp port 62201, 448 bytes"},
			{sallyport.OverTCP, 4000, sallyport.TCP, 4000, "tcp port 4000, 448 bytes"},
			{sallyport.OverICMP, 4000, sallyport.ICMP, 0, "icmp, 448 bytes"},
		} {
			key := newKey(t)
			r := sallyport.Request{Server: newServer(t, spa.Classic).Address(), Signer: key, Over: test.over, Port: test.port, Services: []string{"ssh"}, For: time.Minute}
			p, err := r.Plan(local, remote)
			if err != nil {
				t.Fatal(err)
			}
			if len(p.Packets) != 3 || key.signed != 1 {
				t.Fatalf("%d packets, %d signatures", len(p.Packets), key.signed)
			}
			for i, wait := range []time.Duration{0, 30 * time.Millisecond, 60 * time.Millisecond} {
				packet := p.Packets[i]
				if packet.Proto != test.proto || packet.Port != test.want || packet.Wait != wait || string(packet.Payload) != string(p.Packets[0].Payload) {
					t.Errorf("packet %d: %v", i, packet)
				}
			}
			fingerprint := ssh.FingerprintSHA256(key.key.PublicKey())
			want := "asks to open: ssh for 1m0s\nfor address: " + family.local + ", if it comes from there\nsigned by: ssh-ed25519 " + fingerprint +
				"\nsealed: classic, 448 bytes\nto " + family.remote + " from " + family.local + ":\n" +
				"  " + test.line + "\n  " + test.line + ", after 30ms\n  " + test.line + ", after 60ms\n"
			if p.String() != want {
				t.Errorf("got\n%s\nwant\n%s", p, want)
			}
			if strings.Contains(p.String(), r.Server.String()) || strings.Contains(p.String(), base64.StdEncoding.EncodeToString(p.Packets[0].Payload[:9])) {
				t.Errorf("the text has what is nobody's business:\n%s", p)
			}
		}
		r := sallyport.Request{Server: newServer(t, spa.Classic).Address(), Signer: newKey(t)}
		_, err := r.Plan(local, netip.MustParseAddr(family.other))
		if want := "a knock from " + family.local + " cannot reach " + family.other + ": one is IPv4, the other IPv6"; err == nil || err.Error() != want {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

// hardwareKey is a Signer that signs as a security key does (PROTOCOL.u2f of
// OpenSSH).
type hardwareKey struct{ key ed25519.PrivateKey }

func (k hardwareKey) PublicKey() []byte {
	return ssh.Marshal(struct {
		Type   string
		Public []byte
		App    string
	}{ssh.KeyAlgoSKED25519, k.key.Public().(ed25519.PublicKey), "ssh:"})
}

func (k hardwareKey) Sign(data []byte) ([]byte, error) {
	app, message := sha256.Sum256([]byte("ssh:")), sha256.Sum256(data)
	touched := []byte{1, 0, 0, 0, 7} // flags and a counter
	signed := append(append(app[:], touched...), message[:]...)
	return ssh.Marshal(ssh.Signature{Format: ssh.KeyAlgoSKED25519, Blob: ed25519.Sign(k.key, signed), Rest: touched}), nil
}

// A request that was heard and could not be granted is spent, so a new one costs
// less than a repeat, unless somebody has to touch something for it.
func TestHowLongAPlanOfARequestIsGood(t *testing.T) {
	soft := newKey(t)
	_, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		key  sallyport.Signer
		good time.Duration
	}{{soft, 2 * time.Second}, {hardwareKey{private}, 20 * time.Second}} {
		server := newServer(t, spa.Classic)
		r := sallyport.Request{Server: server.Address(), Signer: test.key}
		for _, remote := range []string{"192.0.2.2", "2001:db8::2"} {
			local := netip.MustParseAddr(remote).Prev()
			before := time.Now()
			p, err := r.Plan(local, netip.MustParseAddr(remote))
			if err != nil {
				t.Fatal(err)
			}
			if p.Until.Before(before.Add(test.good)) || p.Until.After(time.Now().Add(test.good)) {
				t.Errorf("%T: good until %v, at %v; want %v", test.key, p.Until, before, test.good)
			}
			if _, err := open(server, p.Packets[0].Payload, test.key.PublicKey()); err != nil {
				t.Errorf("%T: %v", test.key, err)
			}
		}
	}
}

func TestThePlanOfASequence(t *testing.T) {
	s, err := sallyport.ParseSequence("7000/tcp 8500/udp icmp 37/icmp")
	if err != nil {
		t.Fatal(err)
	}
	p, err := s.Plan(netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2"))
	want := "to 2001:db8::2 from 2001:db8::1:\n  tcp port 7000, 0 bytes\n  udp port 8500, 8 bytes, after 20ms\n  icmp, 56 bytes, after 20ms\n  icmp, 37 bytes, after 20ms\n"
	if err != nil || p.String() != want || !p.Until.IsZero() {
		t.Errorf("got %v\n%s\nwant\n%s", err, p, want)
	}
}

// A browser's page can make a datagram for somebody else to send.
func TestWithoutSockets(t *testing.T) {
	if runtime.GOOS != "js" {
		t.Skip("this system has sockets")
	}
	r := sallyport.Request{Server: newServer(t, spa.Classic).Address(), Signer: newKey(t)}
	if b, err := r.Seal(netip.Addr{}); err != nil || len(b) != spa.SmallSize {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	_, err := r.Plan(netip.Addr{}, netip.MustParseAddr("192.0.2.2"))
	if err == nil || !strings.Contains(err.Error(), "this system has no sockets") {
		t.Errorf("Plan: %v", err)
	}
	p, err := r.Plan(netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Send(t.Context()); err == nil || !strings.Contains(err.Error(), "this system has no sockets") {
		t.Errorf("Send: %v", err)
	}
}
