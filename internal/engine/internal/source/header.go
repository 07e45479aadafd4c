//go:build linux

package source

import (
	"bytes"
	"math"
	"strings"
	"time"
)

// header takes what the logger wrote before the kernel's words.
func (p *parser) header(lines *Lines) bool {
	switch lines.Format {
	case Kernel:
		return p.kmsg()
	case Journal:
		return p.unix() && p.word("kernel: ")
	}
	return (p.zoned() || p.traditional(lines.Zone)) && p.host(lines.Host) && p.word("kernel: ") && p.uptime()
}

// kmsg takes "4,7146,34898731822,-;". Facility 0 is the kernel's own: what a
// program writes to /dev/kmsg gets another (devkmsg_write). The time is not looked at:
// no record comes twice, and the clock of these is set by nobody, so that it is
// minutes from every other after weeks or a suspension.
func (p *parser) kmsg() bool {
	head, message, found := bytes.Cut(p.rest, []byte(";"))
	priority, _, more := bytes.Cut(head, []byte(","))
	p.rest = message
	return found && more && len(priority) == 1 && priority[0] >= '0' && priority[0] <= '7'
}

// unix takes journalctl's "1795348389.123456 ".
func (p *parser) unix() bool {
	stamp, rest, _ := bytes.Cut(p.rest, []byte(" "))
	seconds, fraction, _ := bytes.Cut(stamp, []byte("."))
	t, ok := decimal(seconds, math.MaxUint32)
	if !ok || len(fraction) != 6 || !like(fraction, "000000") {
		return false
	}
	p.rest, p.other = rest, !near(int64(t), p.now)
	return true
}

// zoned takes the time of RFC 3339, "2026-11-22T11:53:09.123456+00:00 ".
func (p *parser) zoned() bool {
	stamp, rest, _ := bytes.Cut(p.rest, []byte(" "))
	if len(stamp) < 20 || len(stamp) > 35 || !like(stamp[:19], "0000-00-00T00:00:00") {
		return false
	}
	offset, ok := offsetOf(stamp[19:])
	t, is := moment(digits(stamp[:4]), digits(stamp[5:7]), digits(stamp[8:10]), stamp[11:19])
	p.rest, p.other = rest, !near(t-offset, p.now)
	return ok && is
}

// offsetOf reads a fraction of a second and the zone, "Z" or "+01:00", in seconds
// ahead of UTC.
func offsetOf(b []byte) (seconds int64, ok bool) {
	if b[0] == '.' {
		b = bytes.TrimLeft(b[1:], "0123456789")
	}
	if string(b) == "Z" {
		return 0, true
	}
	if len(b) != 6 || b[0] != '+' && b[0] != '-' || !like(b[1:], "00:00") {
		return 0, false
	}
	seconds = int64(digits(b[1:3])*3600 + digits(b[4:])*60)
	if b[0] == '-' {
		seconds = -seconds
	}
	return seconds, true
}

// traditional takes "Nov 22 11:53:09 ", where the day may be " 2" (RFC 3164, 4.1.2).
// It is local time and has no year: the one counts with which it is nearest to now, so
// that the last second of a year is as near to the first of the next as it was.
func (p *parser) traditional(zone [2]int) bool {
	const months = "JanFebMarAprMayJunJulAugSepOctNovDec"
	b := p.rest
	if len(b) < 16 || !like(b[:16], "Aaa _0 00:00:00 ") {
		return false
	}
	at := strings.Index(months, string(b[:3]))
	if at < 0 || at%3 != 0 {
		return false
	}
	p.rest, p.other = b[16:], true
	for _, ahead := range zone {
		now := p.now + int64(ahead)
		year := time.Unix(now, 0).UTC().Year()
		for y := year - 1; y <= year+1; y++ {
			if t, is := moment(y, at/3+1, digits(b[4:6]), b[7:15]); is && near(t, now) {
				p.other = false
			}
		}
	}
	return true
}

// moment gives the seconds since 1970 of a date and "11:53:09", both in UTC, if there
// is such a moment.
func moment(year, month, day int, clock []byte) (t int64, is bool) {
	hour, minute, second := digits(clock[:2]), digits(clock[3:5]), digits(clock[6:8])
	at := time.Date(year, time.Month(month), day, hour, minute, second, 0, time.UTC)
	return at.Unix(), int(at.Month()) == month && at.Day() == day && hour < 24 && minute < 60 && second < 60
}

func near(t, now int64) bool { return t-now <= slack && now-t <= slack }

// digits reads a number whose form was checked; a space counts as 0.
func digits(b []byte) (n int) {
	for _, c := range b {
		n = n*10 + int(c&0x0f)
	}
	return n
}

// like compares with a pattern: 0 stands for a digit, _ for a digit or space, A
// and a for a letter.
func like(b []byte, pattern string) bool {
	for i, c := range b {
		digit, letter := c >= '0' && c <= '9', c|0x20 >= 'a' && c|0x20 <= 'z'
		switch pattern[i] {
		case '0':
			if !digit {
				return false
			}
		case '_':
			if !digit && c != ' ' {
				return false
			}
		case 'A', 'a':
			if !letter {
				return false
			}
		default:
			if c != pattern[i] {
				return false
			}
		}
	}
	return true
}

// host takes this host's name. Others send their lines to a log server, and their
// firewalls saw packets that were not to us.
func (p *parser) host(name string) bool {
	host, rest, found := bytes.Cut(p.rest, []byte(" "))
	p.rest = rest
	return found && len(host) > 0 && sameHost(host, name)
}

// sameHost compares without case: whole names, or the first labels where one of the
// two has no more.
func sameHost(host []byte, name string) bool {
	label, own := bytes.IndexByte(host, '.'), strings.IndexByte(name, '.')
	switch {
	case label < 0 && own > 0:
		name = name[:own]
	case own < 0 && label > 0:
		host = host[:label]
	}
	if len(host) != len(name) {
		return false
	}
	for i, c := range host {
		if lower(c) != lower(name[i]) {
			return false
		}
	}
	return true
}

func lower(c byte) byte {
	if c >= 'A' && c <= 'Z' {
		c |= 0x20
	}
	return c
}

// uptime takes the kernel's own time where syslogd keeps it: "[12345.678901] ", or with
// who spoke (CONFIG_PRINTK_CALLER) "[12345.678901][  T123] ". Other words in brackets
// are a rule's own.
func (p *parser) uptime() bool {
	head, rest, found := bytes.Cut(p.rest, []byte("] "))
	stamp, caller, _ := bytes.Cut(head, []byte("]["))
	point := len(stamp) - len(".678901")
	if found && point > 0 && stamp[0] == '[' && len(bytes.Trim(stamp[1:point], " 0123456789")) == 0 &&
		like(stamp[point:], ".000000") && len(bytes.Trim(caller, " CT0123456789")) == 0 {
		p.rest = rest
	}
	return true
}
