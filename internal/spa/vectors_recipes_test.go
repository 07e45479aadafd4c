package spa

import (
	"crypto/sha512"
	"encoding/binary"
	"net/netip"
	"slices"
	"time"
)

// Addresses of the vectors, of documentation's networks (RFC 5737, RFC 3849).
var (
	home4, home6 = netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8::7")
	away4, away6 = netip.MustParseAddr("198.51.100.9"), netip.MustParseAddr("2001:db8:9::9")
)

// recipes is every vector but for its suite. Those whose key does not fit into
// a suite are left out there.
func recipes() []recipe {
	return slices.Concat(goodRecipes(), addressRecipes(), gateRecipes(), sealRecipes(), fieldRecipes(), signatureRecipes(), freshRecipes(), keyRecipes())
}

func at(seconds float64) int64 { return vectorsNow*1e9 + int64(seconds*1e9) }

func goodRecipes() []recipe {
	everything := Request{For: time.Hour, IPv4: home4, IPv6: home6, Own: true, Services: []string{"ssh", "web"}}
	list := []recipe{
		{name: "open-everything", about: "every field is set", expect: "open", request: everything},
		{name: "close", about: "a close takes no duration", expect: "close", request: Request{Action: Close, Services: []string{"ssh"}}},
		{name: "close-everything", about: "a close of all services, for both families", expect: "close", from: "2001:db8::7",
			request: Request{Action: Close, IPv4: home4, IPv6: home6, Own: true}},
		{name: "extend", about: "an extension", expect: "extend", from: "2001:db8::7", request: Request{Action: Extend, For: 10 * time.Minute}},
		{name: "open-longest", about: "the longest time that can be asked for, 720 hours", expect: "open", request: Request{For: MaxFor}},
		{name: "open-fractions", about: "a stamp with all its digits", expect: "open", request: Request{Stamp: at(0) - 123_456_789}},
		{name: "open-long-name", about: "a name of 32 bytes with every kind of character", expect: "open", lines: "services: " + longest,
			request: Request{Services: []string{longest}}},
		{name: "open-large", about: "the length goes with the key, but a server takes either of its suite's", expect: "open", forge: forgery{size: LargeSize}},
	}
	for _, by := range []string{
		"ed25519", "ecdsa-p256", "ecdsa-p384", "ecdsa-p521", "rsa-2048", "rsa-2048-sha256", "rsa-3072", "rsa-3072-sha256", "rsa-4096",
		"rsa-4096-sha256", "sk-ed25519", "sk-ed25519-verified", "sk-ecdsa", "sk-ecdsa-verified",
	} {
		list = append(list, recipe{name: "open-" + by, about: "signed by " + by, expect: "open", by: by, request: Request{Services: []string{"ssh"}}})
	}
	return list
}

const longest = "abcdefghijklmnopqrstuvwxyz_-0189"

func addressRecipes() []recipe {
	own := func(a ...netip.Addr) Request { r := stating(a...); r.Own = true; return r }
	return []recipe{
		{name: "observed-4", about: "no address stated: the one that it comes from", expect: "open"},
		{name: "observed-6", about: "no address stated: the one that it comes from", expect: "open", from: "2001:db8::7"},
		{name: "own-4", about: "its own address, and from there", expect: "open", request: own(home4)},
		{name: "own-6", about: "its own address, and from there", expect: "open", request: own(home6), from: "2001:db8::7"},
		{name: "own-other-family", about: "both addresses are its own, and it comes from one", expect: "open", request: own(home4, home6), from: "2001:db8::7"},
		{name: "own-caught-4", about: "somebody else delivers it from another address", expect: "elsewhere", request: own(home4), from: "198.51.100.9"},
		{name: "own-caught-6", about: "somebody else delivers it from another address", expect: "elsewhere", request: own(home6), from: "2001:db8:9::9"},
		{name: "stated-4", about: "for somebody else", expect: "open", request: stating(away4)},
		{name: "stated-6", about: "for somebody else, over the other family", expect: "open", request: stating(away6)},
		{name: "stated-both", about: "for somebody else, in both families", expect: "open", request: stating(away4, away6)},
		{name: "stated-another-observed", about: "the server wants observed addresses", expect: "states-another", lines: "address: observed", request: stating(away6)},
		{name: "stated-same-observed", about: "the stated address is the observed one", expect: "open", lines: "address: observed", request: stating(home6), from: "2001:db8::7"},
		{name: "none-stated", about: "the server wants stated addresses", expect: "states-none", lines: "address: stated"},
		{name: "stated-stated", about: "the server wants stated addresses", expect: "open", lines: "address: stated", request: stating(away4)},
		{name: "none-both", about: "the server wants both and they must be the same", expect: "states-none", lines: "address: both", from: "2001:db8::7"},
		{name: "another-both", about: "the server wants both and they must be the same", expect: "states-another", lines: "address: both", request: stating(away4)},
		{name: "same-both", about: "the server wants both and they are the same", expect: "open", lines: "address: both", request: stating(home4)},
		{name: "families-both", about: "the server wants both, and an address of the other family is another", expect: "states-another", lines: "address: both", request: stating(home4, home6)},
		{name: "nobody-4", about: "0.0.0.0 is stated: nobody can connect from there", expect: "not-unicast", request: stating(netip.IPv4Unspecified())},
		{name: "nobody-6", about: "a multicast address is stated", expect: "not-unicast", request: stating(netip.MustParseAddr("ff02::1"))},
		{name: "loopback", about: "a loopback address is stated", expect: "not-unicast", request: stating(netip.MustParseAddr("127.0.0.1"))},
		{name: "broadcast", about: "the broadcast address is stated", expect: "not-unicast", request: stating(netip.MustParseAddr("255.255.255.255"))},
	}
}

func stating(addrs ...netip.Addr) (r Request) {
	for _, a := range addrs {
		if a.Is4() {
			r.IPv4 = a
		} else {
			r.IPv6 = a
		}
	}
	return r
}

func gateRecipes() []recipe {
	return []recipe{
		{name: "nothing", about: "a datagram without a byte", expect: "wrong-length", forge: forgery{packet: func([]byte) []byte { return nil }}},
		{name: "truncated", about: "the last byte is missing", expect: "wrong-length", forge: forgery{packet: func(b []byte) []byte { return b[:len(b)-1] }}},
		{name: "over-long", about: "a zero byte more", expect: "wrong-length", forge: forgery{packet: func(b []byte) []byte { return append(b, 0) }}},
		{name: "glued-2", about: "two copies glued together are one", expect: "open", forge: forgery{packet: times(2)}},
		{name: "glued-3", about: "three copies glued together are one", expect: "open", from: "2001:db8::7", forge: forgery{packet: times(3)}},
		{name: "glued-4", about: "nobody sends four copies", expect: "wrong-length", forge: forgery{packet: times(4)}},
		{name: "glued-differing", about: "glued together, but the last is not a copy", expect: "wrong-length", forge: forgery{packet: func(b []byte) []byte { return flipped(-1)(times(3)(b)) }}},
		{name: "glued-half", about: "a copy and half of another", expect: "wrong-length", forge: forgery{packet: func(b []byte) []byte { return append(times(1)(b), b[:len(b)/2]...) }}},
		{name: "gate", about: "a bit of the first tag is wrong", expect: "wrong-gate", forge: forgery{packet: flipped(0)}},
		{name: "gate-tag", about: "a bit of the second tag is wrong: the first covers it", expect: "wrong-gate", forge: forgery{packet: flipped(8)}},
		{name: "gate-end", about: "the last bit that the first tag covers", expect: "wrong-gate", forge: forgery{packet: flipped(47)}},
		{name: "gate-other", about: "closed with another server's gate keys", expect: "wrong-gate", forge: forgery{otherGate: true}},
		{name: "other-server", about: "made for another server", expect: "wrong-gate", forge: forgery{otherGate: true, toOther: true, forOther: true}},
		{name: "second-gate", about: "the first bit that the first tag does not cover", expect: "wrong-second-gate", forge: forgery{packet: flipped(48)}},
		{name: "second-gate-end", about: "the last byte counts", expect: "wrong-second-gate", from: "2001:db8::7", forge: forgery{packet: flipped(-1)}},
	}
}

func sealRecipes() []recipe {
	return []recipe{
		{name: "seal-other", about: "behind our gate, but sealed to another server's key", expect: "not-sealed-for-us", forge: forgery{toOther: true}},
		{name: "seal-low-order", about: "the X25519 share is zero: whoever does not look for a zero secret opens this (RFC 7748 section 6.1)", expect: "not-sealed-for-us", forge: forgery{lowOrder: true}},
		{name: "seal-suite", about: "a length of another suite behind our gate", expect: "not-sealed-for-us", forge: forgery{otherSuite: true}},
		{name: "resealed", about: "made for another server, which opened it and sealed it for this one", expect: "wrong-signature", forge: forgery{forOther: true}},
	}
}

// replaced gives fields with what stands from a place on taken by others.
func replaced(from int, with ...byte) func([]byte) []byte {
	return func(b []byte) []byte { return append(b[:from:from], with...) }
}

func fieldRecipes() []recipe {
	malformed := func(name, about string, r Request, change func([]byte) []byte) recipe {
		return recipe{name: "malformed-" + name, about: about + "; the signature is good", expect: "malformed", request: r, forge: forgery{fields: change}}
	}
	seconds := func(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }
	list := []recipe{
		malformed("flags", "the flag 0x08 means nothing", Request{}, set(atFlags, 1<<3)),
		malformed("flags-high", "the flag 0x80 means nothing", Request{}, set(atFlags, 1<<7)),
		malformed("ipv4", "an IPv4 address without its flag", Request{}, set(atIPv4, 192, 0, 2, 7)),
		malformed("ipv6", "an IPv6 address without its flag", Request{}, set(atIPv6+15, 1)),
		malformed("4in6", "an IPv4 address in the clothes of an IPv6 one", Request{IPv6: home6}, set(atIPv6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 7)),
		malformed("own", "its own address, but none is stated", Request{}, set(atFlags, flagOwn)),
		malformed("twice", "a service is named twice", Request{}, replaced(atServices, 2, 3, 's', 's', 'h', 3, 's', 's', 'h')),
		malformed("empty-name", "a name of no bytes", Request{}, replaced(atServices, 1, 0)),
		malformed("long-name", "a name of 33 bytes", Request{}, replaced(atServices, append([]byte{1, 33}, longest+"a"...)...)),
		malformed("capital", "names have no capitals", Request{}, replaced(atServices, 1, 3, 'S', 's', 'h')),
		malformed("line-end", "names have no line ends", Request{}, replaced(atServices, 1, 4, 's', 's', 'h', '\n')),
		malformed("nul", "names have no zero bytes", Request{}, replaced(atServices, 1, 4, 's', 's', 'h', 0)),
		malformed("action-0", "there is no action 0", Request{}, set(atAction, 0)),
		malformed("action-4", "there is no action 4", Request{}, set(atAction, 4)),
		malformed("stamp-0", "the stamp is zero", Request{}, set(0, make([]byte, 8)...)),
		malformed("stamp-high", "the stamp has its highest bit set: it is a positive number of 63 bits", Request{}, set(0, 0x98)),
		malformed("close-for", "a close with a duration", Request{Action: Close}, set(atFor, seconds(1)...)),
		malformed("for", "a second more than the longest duration", Request{}, set(atFor, seconds(uint32(MaxFor/time.Second)+1)...)),
		malformed("for-high", "a duration with its highest bit set", Request{}, set(atFor, 0x80)),
		malformed("names-beyond", "255 names, and none stands there", Request{}, set(atServices, 255)),
	}
	for _, c := range []struct {
		name, about string
		forge       forgery
	}{
		{"padding", "the last byte of the padding is not zero", forgery{plain: func(b []byte) { b[len(b)-1] = 1 }}},
		{"padding-first", "the first byte of the padding is not zero", forgery{plain: func(b []byte) { b[atServices+1+2+ed25519Blob] = 1 }}},
		{"signature-beyond", "the signature would end beyond the plaintext", forgery{length: 0xffff}},
		{"name-beyond", "one name after another to the plaintext's end, where the last is cut off", forgery{plain: names}},
	} {
		list = append(list, recipe{name: "malformed-" + c.name, about: c.about, expect: "malformed", forge: c.forge})
	}
	return list
}

// ed25519Blob is how many bytes an Ed25519 signature has in SSH's wire form.
const ed25519Blob = 4 + 11 + 4 + 64

// names fills the plaintext with names of 32 bytes.
func names(b []byte) {
	rest := b[atServices+1:]
	b[atServices] = byte((len(rest) + MaxName) / (1 + MaxName))
	for i := range rest {
		rest[i] = 'a' + byte(i/(1+MaxName))
		if i%(1+MaxName) == 0 {
			rest[i] = MaxName
		}
	}
}

func signatureRecipes() []recipe {
	wrong := func(name, by, about string, f forgery) recipe {
		return recipe{name: "signature-" + name, about: about, expect: "wrong-signature", by: by, forge: f}
	}
	return []recipe{
		wrong("bit", "", "a bit of the signature is wrong", forgery{signature: flipped(-1)}),
		wrong("none", "", "the signature has no bytes", forgery{signature: func([]byte) []byte { return nil }}),
		wrong("trailing", "", "a byte stands behind the signature", forgery{signature: func(b []byte) []byte { return append(b, 0) }}),
		wrong("raised", "", "S is not below the group's order (RFC 8032 section 5.1.7)", forgery{signature: raised}),
		{name: "signature-stranger", about: "a stranger claims to be the key", expect: "wrong-signature", by: "stranger",
			authorized: []string{"ed25519"}, forge: forgery{claims: "ed25519"}},
		wrong("raw", "", "the message itself is signed, not SSHSIG's structure", forgery{data: func(m []byte) []byte { return m }}),
		wrong("namespace", "", "signed for another namespace: a commit or a file", forgery{data: otherNamespace}),
		wrong("hash", "", "SSHSIG's structure says sha256", forgery{data: otherHash}),
		wrong("version", "", "signed for version 2", forgery{data: func(m []byte) []byte { return signedData(set(0, 2)(m)) }}),
		wrong("suite", "", "signed for another suite", forgery{data: func(m []byte) []byte { return signedData(set(1, 3)(m)) }}),
		wrong("ecdsa-bit", "ecdsa-p256", "a bit of s is wrong", forgery{signature: flipped(-1)}),
		wrong("ecdsa-widened", "ecdsa-p384", "r has a zero byte more than its one spelling", forgery{signature: widened}),
		{name: "signature-negated", about: "SSH takes either of s and n-s", expect: "open", by: "ecdsa-p256", forge: forgery{signature: negated}},
		wrong("rsa-sha1", "rsa-2048-sha1", "the format ssh-rsa is SHA-1", forgery{}),
		wrong("rsa-bit", "rsa-3072", "a bit of the signature is wrong", forgery{signature: flipped(-1)}),
		wrong("sk-flags", "sk-ed25519-untouched", "a hardware key's flags changed after it signed", forgery{signature: flipped(-5)}),
		wrong("sk-counter", "sk-ecdsa", "a hardware key's counter changed after it signed", forgery{signature: flipped(-1)}),
		wrong("sk-short", "sk-ed25519", "a hardware key's counter has three bytes", forgery{signature: func(b []byte) []byte { return b[:len(b)-1] }}),
	}
}

func otherNamespace(m []byte) []byte {
	b := signedData(m)
	copy(b[len("SSHSIG")+4:], "sallyport-abc")
	return b
}

func otherHash(m []byte) []byte {
	sum := sha512.Sum512(m)
	b := signedData(m)
	b = b[:len(b)-4-len(sum)-len("sha512")]
	return slices.Concat(b, []byte("sha256"), binary.BigEndian.AppendUint32(nil, uint32(len(sum))), sum[:])
}

func freshRecipes() []recipe {
	list := []recipe{
		{name: "replay", about: "the same datagram again", expect: "replay", lines: "after: open-ed25519", seed: "open-ed25519", request: Request{Services: []string{"ssh"}}},
		{name: "replay-elsewhere", about: "the same datagram again, from another address and family", expect: "replay", lines: "after: open-ed25519",
			seed: "open-ed25519", request: Request{Services: []string{"ssh"}}, from: "2001:db8:9::9"},
		{name: "replay-signature", about: "the same message under the other signature that anybody can compute: the tag is the message's", expect: "replay",
			lines: "after: open-ecdsa-p256", seed: "open-ecdsa-p256", by: "ecdsa-p256", request: Request{Services: []string{"ssh"}}, forge: forgery{signature: negated}},
		{name: "replay-stamp", about: "another message of the same key with the same stamp", expect: "replay", lines: "after: open-ed25519", request: Request{Services: []string{"web"}}},
		{name: "second", about: "a second message, a nanosecond older than the first", expect: "open", lines: "after: open-ed25519", request: Request{Stamp: at(-1.5) - 1}},
		{name: "second-key", about: "another key may have the same stamp", expect: "open", lines: "after: open-ed25519", by: "ecdsa-p256"},
		{name: "counter", about: "a server without a clock takes any counter of a new key", expect: "open", lines: "clock: none", request: Request{Stamp: 7}},
		{name: "counter-rises", about: "and then a greater one", expect: "open", lines: "clock: none\nafter: counter", request: Request{Stamp: 8}},
		{name: "counter-again", about: "the same datagram again", expect: "replay", lines: "clock: none\nafter: counter", seed: "counter", request: Request{Stamp: 7}},
		{name: "counter-falls", about: "never a smaller one", expect: "not-rising", lines: "clock: none\nafter: counter", request: Request{Stamp: 6}},
		{name: "counter-stays", about: "nor the same in another message", expect: "not-rising", lines: "clock: none\nafter: counter", request: Request{Stamp: 7, Services: []string{"web"}}},
		{name: "counter-greatest", about: "the greatest stamp that there is", expect: "open", lines: "clock: none", request: Request{Stamp: 1<<63 - 1}},
	}
	for _, c := range []struct {
		name, about, expect, lines string
		stamp                      int64
	}{
		{"old-edge", "as old as the window", "open", "", at(-60)},
		{"old", "a nanosecond older than the window", "too-old", "", at(-60) - 1},
		{"old-1970", "the first nanosecond of 1970", "too-old", "", 1},
		{"future-edge", "as far ahead as the window", "open", "", at(60)},
		{"future", "a nanosecond further ahead than the window", "future", "", at(60) + 1},
		{"future-last", "the greatest stamp that there is", "future", "", 1<<63 - 1},
		{"old-window", "a wider window", "open", "window: 300", at(-299)},
		{"unclean", "the server lost its memory at the moment of the stamp", "before-start", "unclean-start: 2027-01-15T07:59:50Z", at(-10)},
		{"unclean-after", "a nanosecond after the server lost its memory", "open", "unclean-start: 2027-01-15T07:59:50Z", at(-10) + 1},
	} {
		list = append(list, recipe{name: c.name, about: c.about, expect: c.expect, lines: c.lines, request: Request{Stamp: c.stamp}})
	}
	return list
}

func keyRecipes() []recipe {
	ssh, web := Request{Services: []string{"ssh"}}, Request{Services: []string{"web"}}
	list := []recipe{
		{name: "unknown-key", about: "a key that is not in the server's file", expect: "unknown-key", by: "stranger", authorized: []string{"ed25519", "ecdsa-p256"}},
		{name: "one-of-many", about: "the last of several keys", expect: "open", by: "ecdsa-p256", authorized: []string{"stranger", "ed25519", "ecdsa-p256"}},
		{name: "not-in-knock", about: "a service that the knock does not open", expect: "no-service", request: Request{Services: []string{"db"}}},
		{name: "half", about: "one service that the key may open and one that it may not: nothing opens", expect: "no-service", options: `services="ssh"`,
			request: Request{Services: []string{"ssh", "web"}}},
		{name: "untouched", about: "nobody touched the hardware key", expect: "not-touched", by: "sk-ed25519-untouched"},
		{name: "untouched-ecdsa", about: "nobody touched the hardware key", expect: "not-touched", by: "sk-ecdsa-untouched", from: "2001:db8::7"},
		{name: "no-touch-required", about: "nobody had to touch the hardware key", expect: "open", by: "sk-ecdsa-untouched", options: "no-touch-required"},
		{name: "not-verified", about: "the hardware key asked for no PIN", expect: "not-verified", by: "sk-ed25519", options: "verify-required"},
		{name: "verified", about: "the hardware key asked for a PIN", expect: "open", by: "sk-ecdsa-verified", options: "verify-required"},
	}
	for _, c := range []struct {
		name, about, options, from, expect string
		request                            Request
	}{
		{"services", "a service of the key's", `services="ssh"`, "", "open", ssh},
		{"services-not", "a service that the key may not open", `services="ssh"`, "", "no-service", web},
		{"from-4", "from one of the key's networks", fromOption, "", "open", ssh},
		{"from-6", "from one of the key's networks", fromOption, "2001:db8::7", "open", ssh},
		{"from-not-4", "from elsewhere", fromOption, "198.51.100.9", "not-from", ssh},
		{"from-not-6", "from a network that is taken out", fromOption, "2001:db8:9::9", "not-from", ssh},
		{"from-stated", "the stated address must be of the key's networks too", fromOption, "", "not-from", stating(away4)},
		{"from-source", "the stated address is of the key's networks, but not the one that it comes from", fromOption, "198.51.100.9", "not-from", stating(home4)},
		{"no-address", "a key that may state its own address only", "no-address", "", "states-another", stating(away4)},
		{"no-address-own", "a key that may state its own address only", "no-address", "2001:db8::7", "open", stating(home6)},
		{"expired-key", "the key's time is over", `expiry-time="20270115080000Z"`, "", "key-not-now", ssh},
		{"not-yet-expired", "a second before the key's time is over", `expiry-time="20270115080001Z"`, "", "open", ssh},
		{"key-too-early", "the key's time has not come", `not-before="20270115080001Z"`, "", "key-not-now", ssh},
		{"key-on-time", "the first second of the key's time", `not-before="20270115080000Z"`, "", "open", ssh},
	} {
		list = append(list, recipe{name: c.name, about: c.about, expect: c.expect, options: c.options, from: c.from, request: c.request})
	}
	return list
}

const fromOption = `from="192.0.2.0/24,!2001:db8:9::/48,2001:db8::/32"`
