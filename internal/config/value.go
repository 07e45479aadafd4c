package config

import (
	"encoding"
	"errors"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/sallyport/sallyport/internal/sequence"
)

// Limits of a configuration. What crosses to the kernel or to the engine is
// bounded here, where the message can name the line.
const (
	// MaxPorts is the most ports of one service, times the addresses of its
	// `on`: each is one element of a set, for every address that is let in.
	MaxPorts = 1024
	// MaxServices and MaxKnocks keep a rule's number in 16 bits and the check
	// of every pair of knocks within milliseconds.
	MaxServices = 1024
	MaxKnocks   = 1024
	MaxActions  = 1024
	// MaxWords is the most words of a command, and MaxWord the most bytes of one:
	// far within what execve(2) takes.
	MaxWords = 256
	MaxWord  = 32 << 10
	// MaxRules is one less than the numbers of 16 bits: the last one means
	// "any rule" on the border.
	MaxRules = 65535
	// MaxSize is the largest file, in bytes.
	MaxSize = 1 << 20
	// DefaultLookAhead is how many lines of a list are taken at once unless the file
	// says otherwise.
	DefaultLookAhead = 5

	minTable, maxTable     = 16, 1 << 20
	minOpenFor, maxOpenFor = time.Second, 30 * 24 * time.Hour
	minWithin, maxWithin   = time.Second, 10 * time.Minute
	minWindow, maxWindow   = time.Second, 10 * time.Minute
	maxUndoAfter           = 30 * 24 * time.Hour

	maxLookAhead             = 64
	minTimeStep, maxTimeStep = 10 * time.Second, time.Hour
	minSpan, maxSpan         = 256, 65535

	maxName      = 32
	maxInterface = 15  // IFNAMSIZ less the final NUL: netdevice(7)
	maxSocket    = 107 // sun_path less the final NUL: unix(7)
)

type (
	prefix = netip.Prefix
	addr   = netip.Addr
)

// types are the knocks that this version has, and laterTypes those that others
// have, so that a file made for one of these gets a better answer than "unknown".
var (
	types      = []string{"sequence", "otp", "encoded", "spa"}
	laterTypes = []string{"fwknop"}
)

func asIs(s string) (string, error) { return s, nil }

func parseType(s string) (string, error) {
	for _, later := range laterTypes {
		if s == later {
			return "", fmt.Errorf("this version has no knocks of type %q; it has %s", s, quoted(types))
		}
	}
	if !slices.Contains(types, s) {
		return "", fmt.Errorf("%q is no type of knock; this version has %s", s, quoted(types))
	}
	return s, nil
}

// parseStep says nothing of what it read: see Error.
func parseStep(s string) (sequence.Step, error) {
	step, err := sequence.ParseStep(s)
	if err != nil {
		return step, errors.New("this is not a step; write it as 7000/tcp, 8500/udp, 7000/tcp:syn,!ack, icmp or 37/icmp, 9000/sctp, 9000/dccp, 9000/udplite or proto/47, with ports from 1 to 65535")
	}
	return step, nil
}

// parseUndoAfter takes "0s" for never.
func parseUndoAfter(s string) (time.Duration, error) {
	if s == "0s" {
		return 0, nil
	}
	return parseDuration(time.Second, maxUndoAfter)(s)
}

// parseWord reads one word of a command. A NUL byte would end it for the kernel.
func parseWord(s string) (string, error) {
	if len(s) > MaxWord {
		return "", fmt.Errorf("a word of a command has at most %d bytes, this one has %d; put it into a script", MaxWord, len(s))
	}
	if !utf8.ValidString(s) || strings.ContainsRune(s, 0) {
		return "", errors.New("a word of a command can't hold this; write UTF-8 without NUL bytes")
	}
	return s, nil
}

// parseTarget reads the one address that a knock's packets go to.
func parseTarget(s string) (addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil {
		return addr{}, fmt.Errorf("%q is not an address; write it as 192.0.2.5 or 2001:db8::5", s)
	}
	if a.IsUnspecified() || a.IsMulticast() {
		return addr{}, fmt.Errorf("%q is nobody's address; name one of this host's, or leave target out for all of them", s)
	}
	return plainAddr(s, a)
}

// oneOf reads a text that a type knows how to read.
func oneOf[T any, P interface {
	*T
	encoding.TextUnmarshaler
}](s string) (v T, err error) {
	err = P(&v).UnmarshalText([]byte(s))
	return v, err
}

// parsePort reads one port.
func parsePort(s string) (PortRange, error) {
	r, err := ParsePortRange(s)
	if err == nil && r.Low != r.High {
		err = fmt.Errorf("%q is more than one port; write it as 20000/tcp", s)
	}
	return r, err
}

// parseWidth reads a length of masks, written as a prefix of no address.
func parseWidth(s string) (prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil || !p.Addr().IsUnspecified() || p.Bits() == 0 || p.IsSingleIP() {
		return prefix{}, fmt.Errorf("%q is no length of masks; write it as 0.0.0.0/24 or ::/56", s)
	}
	return p, nil
}

// parseLogFile takes a path, or one of two words.
func parseLogFile(s string) (string, error) {
	if s == "" || s == LogKernel || s == LogJournal {
		return s, nil
	}
	return parsePath(s)
}

// parseListFile takes a path, or "" for no list.
func parseListFile(s string) (string, error) {
	if s == "" {
		return "", nil
	}
	return parsePath(s)
}

// LogKernel and LogJournal in place of a file's path are the kernel's ring buffer
// and systemd's journal.
const (
	LogKernel  = "kernel"
	LogJournal = "journal"
)

// parseLogPrefix takes what the firewalls take: iptables 29 bytes, nftables 127. Of
// other bytes than ASCII /dev/kmsg shows the numbers (msg_print_ext_body).
func parseLogPrefix(s string) (string, error) {
	ascii := strings.IndexFunc(s, func(r rune) bool { return r < ' ' || r > '~' }) < 0
	if len(s) > 127 || !ascii || strings.ContainsAny(s, "\"'\\$`") {
		return "", fmt.Errorf("%q is no prefix of log lines: it has at most 127 bytes of ASCII (29 with iptables), and none that a shell or nft reads otherwise", s)
	}
	return s, nil
}

// quoted lists words for a message.
func quoted(words []string) string {
	var list []string
	for _, w := range words {
		list = append(list, strconv.Quote(w))
	}
	last := len(list) - 1
	return strings.Join(list[:last], ", ") + " and " + list[last]
}

func parseDuration(low, high time.Duration) func(string) (time.Duration, error) {
	return func(s string) (time.Duration, error) {
		d, err := time.ParseDuration(s)
		if err != nil {
			return 0, fmt.Errorf("%q is not a duration; write it as 30s, 10m or 1h30m", s)
		}
		if d < low || d > high {
			return 0, fmt.Errorf("%q is out of range; it must be from %s to %s", s, spellDuration(low), spellDuration(high))
		}
		return d, nil
	}
}

// parsePrefix reads a network or a single address. Host bits are an error and
// no guess: 192.0.2.77/24 may mean the network or the one host.
func parsePrefix(s string) (prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		if _, err = plainAddr(s, a); err != nil {
			return prefix{}, err
		}
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		return prefix{}, fmt.Errorf("%q is not a network; write it as 192.0.2.0/24 or 2001:db8::/32", s)
	case p.Addr().Is4In6() && p.Bits() >= 96:
		return prefix{}, fmt.Errorf("%q is an IPv4 network written as IPv6, which no packet carries; write %s", s, netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96).Masked())
	case p != p.Masked():
		return prefix{}, fmt.Errorf("%q has host bits set; write %s for the network or %s for the one address", s, p.Masked(), p.Addr())
	}
	return p, nil
}

// parseAddr reads a forwarded destination.
func parseAddr(s string) (addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil {
		return addr{}, fmt.Errorf("%q is not an address; write it as 192.0.2.5 or 2001:db8::5", s)
	}
	if a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast() {
		return addr{}, fmt.Errorf("%q can't be forwarded to; name the machine's own address, or leave `on` out for this host", s)
	}
	return plainAddr(s, a)
}

func plainAddr(s string, a addr) (addr, error) {
	if a.Is4In6() {
		return addr{}, fmt.Errorf("%q is an IPv4 address written as IPv6, which no packet carries; write %s", s, a.Unmap())
	}
	if a.Zone() != "" {
		return addr{}, fmt.Errorf("%q names a zone, which a packet does not carry; write %s", s, a.WithZone(""))
	}
	return a, nil
}

// parseInterface takes what the kernel takes (dev_valid_name in
// net/core/dev.c), less the star that would look like a pattern.
func parseInterface(s string) (string, error) {
	switch {
	case s == "" || len(s) > maxInterface:
		return "", fmt.Errorf("%q is no name of an interface; it must have 1 to %d bytes", s, maxInterface)
	case strings.Contains(s, "*"):
		return "", fmt.Errorf("%q is no pattern here; name each interface, or leave interfaces empty for all", s)
	case s == "." || s == ".." || strings.ContainsAny(s, "/: ") || !printable(s):
		return "", fmt.Errorf("%q is no name of an interface; it can't be a dot or two, nor have a slash, colon or space", s)
	case s == "lo":
		return "", errors.New(`"lo" is this host talking to itself, which is never hidden or heard; leave it out`)
	}
	return s, nil
}

// parsePath wants one spelling of an absolute path. The daemon runs on Linux
// wherever the file is checked, so this is package path and not filepath.
func parsePath(s string) (string, error) {
	if !path.IsAbs(s) || !printable(s) {
		return "", fmt.Errorf("%q is not an absolute path; begin it with a slash", s)
	}
	if clean := path.Clean(s); clean != s {
		return "", fmt.Errorf("%q has another spelling; write %s", s, clean)
	}
	if s == "/" {
		return "", errors.New(`"/" is the root directory; name a path of its own`)
	}
	return s, nil
}

func parseSocket(s string) (string, error) {
	if len(s) > maxSocket {
		return "", fmt.Errorf("%q has %d bytes; a socket's path has at most %d", s, len(s), maxSocket)
	}
	return parsePath(s)
}

func printable(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) < 0
}

// nameFault says what is wrong with a service's or a knock's name, or "". Names
// stand in logs, metrics and command lines, where other bytes need quoting.
func nameFault(s string) string {
	if s == "" || len(s) > maxName || strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789_-") != "" {
		return fmt.Sprintf("the name %q can't be used; it must have 1 to %d of a-z, 0-9, _ and -", s, maxName)
	}
	return ""
}
