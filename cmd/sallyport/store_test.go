package main

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/sallyport/sallyport/internal/spa"
)

// FuzzStore reads arbitrary stored servers: what is taken is written back and
// reads as the same server.
func FuzzStore(f *testing.F) {
	for _, suite := range []spa.Suite{spa.Classic, spa.PostQuantum} {
		key, err := spa.NewServerKey(suite)
		if err != nil {
			f.Fatal(err)
		}
		address := "address = '" + key.Address().String() + "'\n"
		f.Add("host = 'h'\n" + address + "key = '/etc/keys/id_ed25519'\n")
		f.Add("host = '2001:db8::1'\n" + address + "key = 'agent:SHA256:" + strings.Repeat("A", 43) + "'\nport = 7777\nover = 'icmp'\nclock = 'none'\n[services]\nssh = 22\nweb = 443\n")
	}
	const secret = "secret=MFRGGZDFMZTWQ2LKNNWG23TPOBYXE43U'\n"
	for _, text := range []string{
		"host = 'h'\ndelay = '1ms'\nknock = 'sallyport-otp 1 door=a digits=6 base=7000/tcp within=10s " + secret,
		"host = 'h'\nknock = 'sallyport-encoded 1 door=a base=20000/udp span=16384 payload=0 within=30s " + secret,
		"", "host = 'h'", "host = 'fe80::1%eth0'\nsequence = ['7000/tcp', 'icmp 37/icmp']\ndelay = '5ms'\n",
		"host = '192.0.2.7'\nsequence = ['7000/tcp']\ndelay = '0'\n[services]\nssh = 2222\n", "host = 'h'\nsequence = ['7000/tcp']\n[services]\n",
		"host = \"\\u0041\"\nsequence = [\"7000/tcp\"]\n", "host = 'h'\nx = 1\n", "services = { a = 70000 }", "host = 1",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		raw, s := readServer(text)
		if s == nil {
			return
		}
		written, err := raw.text("home")
		if err != nil {
			if len(text) > maxStored/8 { // nothing grows more by being quoted
				return
			}
			t.Fatal(err)
		}
		raw2, again := readServer(string(written))
		if again == nil || !reflect.DeepEqual(again, s) || raw2.Key != raw.Key {
			t.Fatalf("%q was written as %q and reads as %+v, not %+v", text, written, again, s)
		}
	})
}

// readServer gives nil for what is refused.
func readServer(text string) (*rawServer, *server) {
	raw, err := parseServer([]byte(text))
	if err != nil {
		return nil, nil
	}
	s, err := raw.check("home")
	if err == nil && s.address != nil {
		err = checkKeyName(s.key)
	}
	if err != nil {
		return nil, nil
	}
	if len(s.services) == 0 {
		s.services = nil // an empty table is not written
	}
	return raw, s
}

// What is stored can be read again: 255 services fit, and no more are of use.
func TestTooMuchForOneStoredServer(t *testing.T) {
	for n, good := range map[int]bool{255: true, 600: false} {
		raw := rawServer{Host: "h", Sequence: []string{"7000/tcp"}, Services: map[string]uint16{}}
		for i := range n {
			raw.Services[fmt.Sprintf("s%0*d", spa.MaxName-1, i)] = 65535
		}
		text, err := raw.text("home")
		if (err == nil) != good || len(text) > maxStored {
			t.Errorf("%d services: %d bytes, %v", n, len(text), err)
		}
	}
}
