package authorized

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	lowerLetters = "abcdefghijklmnopqrstuvwxyz"
	letters      = lowerLetters + "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	digits       = "0123456789"
	spaces       = " \t\n\v\f\r" // C's
)

func setServices(k *Key, value string) string {
	names := strings.Split(value, ",")
	if len(names) > maxList {
		return fmt.Sprintf("it has more than %d names; leave it out, and all that its knock opens is opened", maxList)
	}
	for i, name := range names {
		if name == "" || len(name) > maxName || strings.Trim(name, lowerLetters+digits+"_-") != "" {
			return fmt.Sprintf("name %d is no service's name, which has 1 to %d of a-z, 0-9, _ and -", i+1, maxName)
		}
		if slices.Contains(names[:i], name) {
			return fmt.Sprintf("name %d stands there twice; name it once", i+1)
		}
	}
	k.Services = names
	return ""
}

func setMaxTime(k *Key, value string) string {
	d, err := time.ParseDuration(value)
	if err != nil || d < time.Second || d > longestTime || d%time.Second != 0 {
		return fmt.Sprintf("write a time in whole seconds from 1s to %dh, as 90s, 30m or 1h30m", int(longestTime.Hours()))
	}
	k.MaxTime = d
	return ""
}

const timeFault = "write a time from 1970 to 9999 as YYYYMMDD, YYYYMMDDHHMM or YYYYMMDDHHMMSS, with a Z behind it for UTC"

func setNotBefore(k *Key, value string) string {
	t, ok := parseTime(value)
	if !ok {
		return timeFault
	}
	k.NotBefore = t
	return ""
}

// setExpires: of several times the earliest counts, as in sshd.
func setExpires(k *Key, value string) string {
	t, ok := parseTime(value)
	if !ok {
		return timeFault
	}
	if k.Expires.IsZero() || t.Before(k.Expires) {
		k.Expires = t
	}
	return ""
}

// parseTime reads YYYYMMDD, with HHMM or HHMMSS behind it and then Z or UTC in
// any case. As for sshd the 31st of February is the 3rd of March, and there are
// 62 seconds in a minute. Unlike sshd it
//   - takes no blanks for digits,
//   - takes no time before 1970: some releases of sshd make it one that never comes,
//   - heeds summer time, as sshd(8) promises: sshd is an hour late then.
func parseTime(s string) (time.Time, bool) {
	zone := time.Local
	s = strings.ToLower(s)
	for _, suffix := range []string{"z", "utc"} {
		if before, ok := strings.CutSuffix(s, suffix); ok {
			s, zone = before, time.UTC
			break
		}
	}
	if n := len(s); n != 8 && n != 12 && n != 14 || strings.Trim(s, digits) != "" {
		return time.Time{}, false
	}
	s += "000000"[:14-len(s)]
	two := func(i int) int { return int(s[i]-'0')*10 + int(s[i+1]-'0') }
	month, day, hour, minute, second := two(4), two(6), two(8), two(10), two(12)
	if month < 1 || month > 12 || day < 1 || day > 31 || hour > 23 || minute > 59 || second > 61 {
		return time.Time{}, false
	}
	t := time.Date(two(0)*100+two(2), time.Month(month), day, hour, minute, second, 0, zone).UTC()
	// A year of five digits has no text form in JSON.
	return t, t.Unix() > 0 && t.Year() <= 9999
}

func setFrom(k *Key, value string) string {
	items := strings.Split(value, ",")
	if len(items) > maxList {
		return fmt.Sprintf("it has more than %d patterns; write wider networks", maxList)
	}
	for i, item := range items {
		item, not := strings.CutPrefix(item, "!")
		prefixes, fault := parsePattern(item)
		if fault != "" {
			return fmt.Sprintf("pattern %d: %s", i+1, fault)
		}
		for _, p := range prefixes {
			k.From = append(k.From, Pattern{p, not})
		}
	}
	return ""
}

var everywhere = []netip.Prefix{
	netip.PrefixFrom(netip.IPv4Unspecified(), 0),
	netip.PrefixFrom(netip.IPv6Unspecified(), 0),
}

// parsePattern reads an address, a network or "*". A host's name would have to
// be looked up, by the engine, for each knock; an address in inet_aton's older
// spellings (127.1, 0x7f000001, 010.0.0.1) does not mean the same to all programs.
func parsePattern(s string) (prefixes []netip.Prefix, fault string) {
	if s == "*" {
		return everywhere, ""
	}
	address, bits, isNetwork := strings.Cut(s, "/")
	a, err := netip.ParseAddr(address)
	if err != nil || a.Zone() != "" {
		return nil, "only addresses and CIDR networks work (192.0.2.7, 192.0.2.0/24, 2001:db8::/32), because no name is looked up"
	}
	if a.Is4In6() {
		return nil, "it is an IPv4 address within IPv6, from which nobody comes; write it as IPv4"
	}
	if !isNetwork {
		return []netip.Prefix{netip.PrefixFrom(a, a.BitLen())}, ""
	}
	n, err := strconv.ParseUint(bits, 10, 8)
	if err != nil || int(n) > a.BitLen() {
		return nil, fmt.Sprintf("the length behind the slash must be from 0 to %d", a.BitLen())
	}
	p := netip.PrefixFrom(a, int(n))
	if p != p.Masked() {
		return nil, "the address has bits set behind the network's length, which sshd refuses too; set them to 0"
	}
	return []netip.Prefix{p}, ""
}

// checkEnvironment: NAME=value.
func checkEnvironment(_ *Key, value string) string {
	name, _, ok := strings.Cut(value, "=")
	if !ok || name == "" || strings.Trim(name, letters+digits+"_") != "" {
		return "it must be NAME=value, the name of letters, digits and _"
	}
	return ""
}

// checkTunnel: "any", or a device's number below 0x7ffffffe.
func checkTunnel(_ *Key, value string) string {
	if strings.ToLower(value) == "any" {
		return ""
	}
	if _, ok := number(value, 0x7ffffffd); !ok {
		return "it must be any or the number of a device"
	}
	return ""
}

func checkPermitOpen(_ *Key, value string) string { return checkPermit(value) }

// checkPermitListen: a port alone is a port of all addresses.
func checkPermitListen(_ *Key, value string) string {
	if !strings.Contains(value, ":") {
		value = "*:" + value
	}
	return checkPermit(value)
}

// checkPermit: HOST:PORT, HOST/PORT or [HOST]:PORT, at most 1,024 bytes of host.
// A port can be *, a number or a service's name; whether that service exists is
// for sshd to look up.
func checkPermit(value string) string {
	const fault = "it must be HOST:PORT"
	end := strings.IndexAny(value, ":/")
	if strings.HasPrefix(value, "[") {
		if end = strings.IndexByte(value, ']') + 1; end == 0 {
			return fault
		}
	}
	if end < 0 || end > 1024 || end == len(value) || value[end] != ':' && value[end] != '/' {
		return fault
	}
	port := value[end+1:]
	if n, ok := number(port, 65535); port == "*" || ok && n > 0 {
		return ""
	}
	if strings.Trim(port, digits) == "" || strings.Trim(port, letters+digits+"-_+./") != "" {
		return fault
	}
	return ""
}

// number reads a decimal number from 0 to most as sshd's C does: spaces before
// it and a sign are let pass.
func number(s string, most int64) (int64, bool) {
	n, err := strconv.ParseInt(strings.TrimLeft(s, spaces), 10, 64)
	return n, err == nil && n >= 0 && n <= most
}
