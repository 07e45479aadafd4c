//go:build linux

package source

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/internal/engine/internal/packet"
	"github.com/sallyport/sallyport/internal/sequence"
)

// The parts of lines of both families, as a kernel 6.18 wrote them.
const (
	in4  = "IN=eth0 OUT= MAC=ae:23:a9:7e:c5:b0:d2:db:9e:d1:fc:41:08:00 SRC=192.0.2.1 DST=192.0.2.2 "
	tcp4 = in4 + "LEN=40 TOS=0x00 PREC=0x00 TTL=64 ID=45397 PROTO=TCP SPT=1736 DPT=7001 WINDOW=512 RES=0x00 SYN URGP=0 "
	in6  = "IN=eth0 OUT= MAC=ae:23:a9:7e:c5:b0:d2:db:9e:d1:fc:41:86:dd SRC=2001:0db8:0000:0000:0000:0000:0000:0001 DST=2001:0db8:0000:0000:0000:0000:0000:0002 "
	tcp6 = in6 + "LEN=80 TC=0 HOPLIMIT=64 FLOWLBL=166856 PROTO=TCP SPT=1736 DPT=7001 WINDOW=512 RES=0x00 SYN URGP=0 "

	syslog = "Nov 22 11:53:09 web1 kernel: "
)

// written is when the lines here were.
var written = time.Date(2026, 11, 22, 11, 53, 9, 0, time.UTC)

// web1 is a host whose log is read.
func web1(format Format, prefix string) *Lines {
	return &Lines{Format: format, Prefix: prefix, Host: "web1.example.org", Links: map[string]int{"eth0": 7}}
}

// words tells what a line gives, as the decoder reads it.
func words(line string, lines *Lines) string { return wordsAt(line, lines, written) }

func wordsAt(line string, lines *Lines, now time.Time) string {
	var room [maxHeaders]byte
	reader := parser{now: now.Unix()}
	link, ok := reader.read([]byte(line), lines, &room)
	if !ok {
		return ""
	}
	if reader.other {
		return "declined: another time"
	}
	var p packet.Packet
	packet.Decode(reader.packet, &p)
	if p.Proto == 0 {
		return "declined: " + p.Why.String()
	}
	return fmt.Sprintf("%s %v>%v %v %d>%d flags %#x seq %d", link, p.Src, p.Dst, p.Proto, p.SrcPort, p.DstPort, p.Flags, p.Seq)
}

const (
	heard4 = "eth0 192.0.2.1>192.0.2.2 tcp 1736>7001 flags 0x2 seq 0"
	heard6 = "eth0 2001:db8::1>2001:db8::2 tcp 1736>7001 flags 0x2 seq 0"
)

// Every beginning that loggers write, with lines of both families.
func TestHeadersOfLines(t *testing.T) {
	for _, tt := range []struct {
		name, before string
		format       Format
		prefix       string
		heard        bool
	}{
		{"rsyslog, traditional", "Nov 22 11:53:09 web1 kernel: ", Syslog, "", true},
		{"rsyslog, RFC 3339", "2026-11-22T11:53:09.123456+00:00 web1 kernel: ", Syslog, "", true},
		{"whole seconds in UTC", "2026-11-22T11:53:09Z web1 kernel: ", Syslog, "", true},
		{"the kernel's time too", syslog + "[34898.731802] ", Syslog, "", true},
		{"the kernel's time, early", syslog + "[    4.731802] ", Syslog, "", true},
		{"the whole name", "Nov 22 11:53:09 web1.example.org kernel: ", Syslog, "", true},
		{"in capitals", "Nov 22 11:53:09 WEB1 kernel: ", Syslog, "", true},
		{"the kernel's time and who spoke", syslog + "[34898.731802][  T123] [UFW BLOCK] ", Syslog, "[UFW BLOCK] ", true},
		{"the kernel's time in an interrupt", syslog + "[    4.731802][    C1] ", Syslog, "", true},
		{"a prefix like a time", syslog + "[2] ", Syslog, "[2] ", true},
		{"ufw", syslog + "[UFW BLOCK] ", Syslog, "", true},
		{"ufw with the kernel's time", syslog + "[34898.731802] [UFW BLOCK] ", Syslog, "[UFW BLOCK] ", true},
		{"firewalld", syslog + "FINAL_REJECT: ", Syslog, "", true},
		{"a zone of firewalld's", syslog + "filter_IN_public_DROP: ", Syslog, "filter_IN_public", true},
		{"a prefix without a space", syslog + "KNOCK", Syslog, "KNOCK", true},
		{"dmesg", "4,7146,34898731822,-;", Kernel, "", true},
		{"dmesg with its caller", "4,7146,34898731822,-,caller=T123;NFT: ", Kernel, "NFT: ", true},
		{"journalctl", "1795348389.123456 kernel: NFT: ", Journal, "NFT: ", true},
		{"a prefix with a field, asked for", syslog + "policy=drop ", Syslog, "policy=drop ", true},

		{"a record of any time", "4,7146,1,-;", Kernel, "", true}, // see kmsg

		{"another host's", "Nov 22 11:53:09 web2 kernel: ", Syslog, "", false},
		{"a name that begins like ours", "Nov 22 11:53:09 web1.example kernel: ", Syslog, "", false},
		{"a shorter name", "Nov 22 11:53:09 web kernel: ", Syslog, "", false},
		{"no name", "Nov 22 11:53:09 kernel: ", Syslog, "", false},
		{"a program's", "Nov 22 11:53:09 web1 sshd[17]: ", Syslog, "", false},
		{"a program that quotes the kernel", "Nov 22 11:53:09 web1 app: kernel: ", Syslog, "", false},
		{"a line break, as rsyslog writes it", "Nov 22 11:53:09 web1 su: x#012<4>" + syslog, Syslog, "", false},
		{"a number of a process", "Nov 22 11:53:09 web1 kernel[17]: ", Syslog, "", false},
		{"no time", "web1 kernel: ", Syslog, "", false},
		{"half a time", "22 11:53:09 web1 kernel: ", Syslog, "", false},
		{"a time of letters", "2026-11-22T11:53:09x web1 kernel: ", Syslog, "", false},
		{"another prefix", syslog + "OTHER ", Syslog, "KNOCK ", false},
		{"the prefix later", syslog + "OTHER KNOCK ", Syslog, "KNOCK ", false},
		{"none where one is asked for", syslog, Syslog, "KNOCK ", false},
		{"a field in the prefix", syslog + "SRC=198.51.100.1 ", Syslog, "", false},
		{"a prefix that ends like a field", syslog + "ORIGIN=", Syslog, "", false},
		{"a prefix too long", syslog + strings.Repeat("x", 128), Syslog, "", false},
		{"written to /dev/kmsg by a program", "12,7146,34898731822,-;", Kernel, "", false},
		{"a second line of a record", " 4,7146,34898731822,-;", Kernel, "", false},
		{"a device's property", " DEVICE=+usb:1-1;", Kernel, "", false},
		{"no record", "", Kernel, "", false},
		{"a file's line in the journal", syslog, Journal, "", false},
		{"the journal's in a file", "1795348389.123456 web1 kernel: ", Syslog, "", false},
		{"a time with a sign", "-1795348389.123456 kernel: ", Journal, "", false},
		{"a program's in the journal", "1795348389.123456 sshd[17]: ", Journal, "", false},
		{"half a second", "1795348389.12345 kernel: ", Journal, "", false},
		{"no zone", "2026-11-22T11:53:09 web1 kernel: ", Syslog, "", false},
		{"half a zone", "2026-11-22T11:53:09+01 web1 kernel: ", Syslog, "", false},
		{"a zone without a sign", "2026-11-22T11:53:09.100000001:00 web1 kernel: ", Syslog, "", false},
		{"a month that is none", "Ovd 22 11:53:09 web1 kernel: ", Syslog, "", false},
		{"a month of that name in part", "anF 22 11:53:09 web1 kernel: ", Syslog, "", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for line, want := range map[string]string{tcp4: heard4, tcp6: heard6} {
				if !tt.heard {
					want = ""
				}
				if got := words(tt.before+line, web1(tt.format, tt.prefix)); got != want {
					t.Errorf("got %q, want %q", got, want)
				}
			}
		})
	}
}

// Hosts that give themselves a short name, or a whole one.
func TestHostsOfLines(t *testing.T) {
	for _, tt := range []struct {
		host, name string
		same       bool
	}{
		{"web1", "web1", true},
		{"web1.example.org", "web1", true},
		{"WEB1.example.org", "Web1", true},
		{"web1", "web1.example.org", true},
		{"web1.example.org", "web1.example.org", true},
		{"web1.example.net", "web1.example.org", false},
		{"web1.example", "web1.example.org", false},
		{"web10.example.org", "web1", false},
		{"web.example.org", "web1", false},
		{".web1", "web1", false},
		{".", "web1", false},
		{"web1", "", false},
	} {
		if got := sameHost([]byte(tt.host), tt.name); got != tt.same {
			t.Errorf("%q in a log of %q: %v", tt.host, tt.name, got)
		}
	}
}

// A line counts for a minute around its own time, and then never again but in a year.
func TestTimesOfLines(t *testing.T) {
	at := func(text string) time.Time {
		now, err := time.Parse(time.RFC3339, text)
		if err != nil {
			t.Fatal(err)
		}
		return now
	}
	const hour = 3600
	utc, berlin, kathmandu := [2]int{}, [2]int{hour, hour}, [2]int{20700, 20700}
	ends, begins := [2]int{2 * hour, hour}, [2]int{hour, 2 * hour} // summer time, within two minutes
	for _, tt := range []struct {
		now, stamp string
		zone       [2]int
		heard      bool
	}{
		{"2026-11-22T11:53:09Z", "Nov 22 11:53:09", utc, true},
		{"2026-11-22T11:54:09Z", "Nov 22 11:53:09", utc, true},
		{"2026-11-22T11:54:10Z", "Nov 22 11:53:09", utc, false},
		{"2026-11-22T11:52:09Z", "Nov 22 11:53:09", utc, true}, // the clock was set back a little
		{"2026-11-22T11:52:08Z", "Nov 22 11:53:09", utc, false},
		{"2026-11-23T11:53:09Z", "Nov 22 11:53:09", utc, false},
		{"2026-11-02T11:53:09Z", "Nov  2 11:53:09", utc, true},
		{"2026-11-22T11:53:09Z", "Nov 02 11:53:09", utc, false},
		{"2026-11-22T11:53:09Z", "Nov 22 12:53:09", berlin, true},
		{"2026-11-22T11:53:09Z", "Nov 22 11:53:09", berlin, false},
		{"2026-11-22T20:15:00Z", "Nov 23 02:00:00", kathmandu, true},
		{"2026-12-31T23:59:50Z", "Jan  1 00:00:10", utc, true},
		{"2027-01-01T00:00:10Z", "Dec 31 23:59:50", utc, true},
		{"2027-01-01T00:00:51Z", "Dec 31 23:59:50", utc, false},
		{"2026-12-31T23:00:10Z", "Dec 31 23:59:50", berlin, true},
		{"2028-02-29T12:00:00Z", "Feb 29 12:00:00", utc, true},
		{"2027-03-01T12:00:00Z", "Feb 29 12:00:00", utc, false}, // no such day
		{"2028-03-01T00:00:10Z", "Feb 29 23:59:50", utc, true},
		{"2026-11-22T12:00:00Z", "Nov 22 11:60:00", utc, false}, // no such minute
		{"2026-10-25T00:59:59Z", "Oct 25 02:59:58", ends, true},
		{"2026-10-25T01:00:01Z", "Oct 25 02:59:59", ends, true},
		{"2026-10-25T01:00:01Z", "Oct 25 02:00:00", ends, true},
		{"2026-10-25T01:59:59Z", "Oct 25 02:59:58", berlin, true},
		{"2026-10-25T02:30:00Z", "Oct 25 02:30:00", berlin, false},
		{"2026-03-29T00:59:59Z", "Mar 29 01:59:58", begins, true},
		{"2026-03-29T01:00:01Z", "Mar 29 03:00:00", begins, true},
		{"2026-03-29T01:00:01Z", "Mar 29 01:59:59", begins, true},

		{"2026-11-22T11:54:09Z", "2026-11-22T11:53:09.999999+00:00", utc, true},
		{"2026-11-22T11:54:10Z", "2026-11-22T11:53:09.999999+00:00", utc, false},
		{"2026-11-22T11:53:09Z", "2026-11-22T12:53:09+01:00", utc, true},
		{"2026-11-22T11:53:09Z", "2026-11-22T06:08:09.5-05:45", berlin, true},
		{"2026-11-22T11:53:09Z", "2026-11-22T11:53:09-05:45", berlin, false},
		{"2026-11-22T11:53:09Z", "2025-11-22T11:53:09Z", utc, false},
		{"2027-01-01T00:00:10Z", "2026-12-31T23:59:50Z", utc, true},
		{"2027-03-01T11:53:09Z", "2027-02-29T11:53:09Z", utc, false},
		{"2026-11-22T11:53:09Z", "9999-11-22T11:53:09Z", utc, false},
		{"2026-11-22T11:53:09Z", "0000-00-00T00:00:00Z", utc, false},

		{"2026-11-22T11:54:09Z", "1795348389.999999", utc, true},
		{"2026-11-22T11:54:10Z", "1795348389.999999", berlin, false},
		{"2026-11-22T11:52:08Z", "1795348389.000000", utc, false},
		{"2026-11-22T11:53:09Z", "9999999999.000000", utc, false},
		{"2026-11-22T11:53:09Z", "0.000000", utc, false},
	} {
		lines, before := web1(Syslog, ""), tt.stamp+" web1 kernel: "
		if strings.Contains(tt.stamp, ".") && !strings.Contains(tt.stamp, "T") {
			lines, before = web1(Journal, ""), tt.stamp+" kernel: "
		}
		lines.Zone = tt.zone
		for line, heard := range map[string]string{tcp4: heard4, tcp6: heard6} {
			if got := wordsAt(before+line, lines, at(tt.now)); (got == heard) != tt.heard {
				t.Errorf("at %s, %v: %q gives %q", tt.now, tt.zone, tt.stamp, got)
			}
		}
	}
}

// A device that somebody plugs in has the kernel say a name of his; without a prefix
// nothing tells it from a firewall's words, which is why check warns.
func TestNamesOfDevices(t *testing.T) {
	const product = "usb 1-1: Product: IN=a OUT= SRC=192.0.2.1 DST=192.0.2.2 LEN=40 TOS= PREC= TTL=1 ID=1 PROTO=UDP SPT=1 DPT=7001 LEN=8"
	for before, format := range map[string]Format{"6,7146,34898731822,-;": Kernel, "1795348389.123456 kernel: ": Journal, syslog: Syslog} {
		if got := words(before+product, web1(format, "KNOCK ")); got != "" {
			t.Errorf("with a prefix: %q", got)
		}
		if words(before+product, web1(format, "")) == "" {
			t.Error("it is told apart without a prefix: check and note 0015 say that it can't be")
		}
		if words(before+strings.Replace(product, "IN=", "KNOCK IN=", 1), web1(format, "KNOCK ")) != "" {
			t.Error("the prefix passes amid the words")
		}
	}
}

func TestFieldsOfLines(t *testing.T) {
	const ip4, ip6 = "TOS=0x00 PREC=0x00 TTL=64 ID=340 ", "TC=0 HOPLIMIT=64 FLOWLBL=0 "
	both := func(name, line, want string) [2][3]string {
		four := strings.NewReplacer("@40", "LEN=40 "+ip4, "@65", "LEN=65 "+ip4, "@echo", "PROTO=ICMP TYPE=8").Replace(line)
		six := strings.NewReplacer("@40", "LEN=60 "+ip6, "@65", "LEN=85 "+ip6, "@echo", "PROTO=ICMPv6 TYPE=128").Replace(line)
		return [2][3]string{{name, in4 + four, want}, {name + ", IPv6", in6 + six, want}}
	}
	for _, pair := range [][2][3]string{
		both("all flags", "@40PROTO=TCP SPT=1 DPT=2 WINDOW=1 RES=0x00 CWR ECE URG ACK PSH RST SYN FIN URGP=0 ", "tcp 1>2 flags 0xff seq 0"),
		both("AccECN", "@40PROTO=TCP SPT=1 DPT=2 WINDOW=1 RES=0x04 AE CWR ECE SYN URGP=0 ", "tcp 1>2 flags 0xc2 seq 0"),
		both("no flags", "@40PROTO=TCP SPT=1 DPT=2 WINDOW=1 RES=0x00 URGP=0 ", "tcp 1>2 flags 0x0 seq 0"),
		both("sequence number", "@40PROTO=TCP SPT=1 DPT=2 SEQ=4294967295 ACK=0 WINDOW=1 RES=0x00 SYN URGP=0 ", "tcp 1>2 flags 0x2 seq 4294967295"),
		both("options of TCP", "@65PROTO=TCP SPT=1 DPT=2 WINDOW=1 RES=0x00 SYN URGP=0 OPT (020405A00402) ", "tcp 1>2 flags 0x2 seq 0"),
		both("who", "@40PROTO=TCP SPT=1 DPT=2 WINDOW=1 RES=0x00 SYN URGP=0 UID=0 GID=0 MARK=0x1 ", "tcp 1>2 flags 0x2 seq 0"),
		both("no space at the end", "@40PROTO=TCP SPT=1 DPT=2 WINDOW=1 RES=0x00 SYN URGP=0", "tcp 1>2 flags 0x2 seq 0"),
		both("port 0", "@40PROTO=TCP SPT=0 DPT=0 WINDOW=1 RES=0x00 SYN URGP=0 ", "tcp 0>0 flags 0x2 seq 0"),
		both("UDP-Lite", "@65PROTO=UDPLITE SPT=1 DPT=2 LEN=8 ", "udplite 1>2 flags 0x0"),
		both("a bare protocol", "@40PROTO=47 ", "proto/47 0>0 flags 0x0"),
		both("ESP", "@40PROTO=ESP SPI=0x1f ", "proto/50 0>0 flags 0x0"),
		both("SCTP, which has no ports here", "@40PROTO=132 ", "declined"),
		both("DCCP", "@40PROTO=33 ", "declined"),
		both("TCP by its number", "@40PROTO=6 ", "declined"),
		both("a ping of 37", "@65@echo CODE=0 ID=27912 SEQ=1 ", "icmp 0>37 flags 0x0 seq 1829240833"),
		both("another ICMP", "@65PROTO=ICMP TYPE=3 CODE=3 [SRC=192.0.2.9 DST=192.0.2.1 ] ", ""),
		both("a type that is no request", "@65@echo CODE=1 ID=1 SEQ=1 ", "declined"),
		both("cut short in the kernel", "@40PROTO=TCP INCOMPLETE [4 bytes] ", ""),
		both("a fragment", "@40FRAG:185 PROTO=UDP ", ""),
		both("more to come", "@40MF PROTO=TCP SPT=1 DPT=2 WINDOW=1 RES=0x00 SYN URGP=0 ", ""),
		both("a datagram longer than its packet", "@40PROTO=UDP SPT=1 DPT=2 LEN=1000 ", "declined"),
		both("a port too large", "@40PROTO=TCP SPT=1 DPT=65536 WINDOW=1 RES=0x00 SYN URGP=0 ", ""),
		both("a port with a sign", "@40PROTO=TCP SPT=1 DPT=-2 WINDOW=1 RES=0x00 SYN URGP=0 ", ""),
		both("a port with a zero before", "@40PROTO=TCP SPT=1 DPT=02 WINDOW=1 RES=0x00 SYN URGP=0 ", ""),
		both("flags in another order", "@40PROTO=TCP SPT=1 DPT=2 WINDOW=1 RES=0x00 SYN ACK URGP=0 ", ""),
		both("fields in another order", "@40PROTO=TCP DPT=2 SPT=1 WINDOW=1 RES=0x00 SYN URGP=0 ", ""),
		both("a field twice", "@40PROTO=TCP SPT=1 DPT=2 DPT=3 WINDOW=1 RES=0x00 SYN URGP=0 ", ""),
		both("something behind", "@40PROTO=TCP SPT=1 DPT=2 WINDOW=1 RES=0x00 SYN URGP=0 more", ""),
		both("torn behind the port", "@40PROTO=TCP SPT=1 DPT=20", ""),
		both("no protocol", "@40", ""),
	} {
		for _, tt := range pair {
			t.Run(tt[0], func(t *testing.T) {
				got := words(syslog+tt[1], web1(Syslog, ""))
				if tt[2] == "" && got != "" || !strings.Contains(got, tt[2]) {
					t.Errorf("got %q, want %q in:\n%s", got, tt[2], tt[1])
				}
			})
		}
	}
}

// Lines that no kernel writes of a packet that came in by a wire, to this host.
func TestForgedLines(t *testing.T) {
	edit := strings.NewReplacer
	for name, r := range map[string]*strings.Replacer{
		"going out":               edit("OUT= ", "OUT=eth1 "),
		"no way in":               edit("IN=eth0 ", "IN= "),
		"a name that no link has": edit("IN=eth0 ", "IN=eth0123456789abc "),
		"fields twice":            edit("IN=eth0 OUT= ", "IN=eth0 OUT= SRC=198.51.100.1 DST=192.0.2.2 "),
		"IN= twice":               edit("IN=eth0 ", "IN=eth0 OUT= IN=eth0 "),
		"IN= within IN=":          edit("IN=eth0 ", "IN=IN=eth0 "),
		"of two lines":            edit("DST=", "DSNov 22 11:53:09 web1 kernel: IN=eth0 OUT= MAC= SRC=192.0.2.1 DST="),
		"NULs":                    edit("IN=", "\x00IN="),
		"a control character":     edit("SYN ", "SYN \x1b"),
		"counted by rsyslog":      edit("IN=eth0 ", "message repeated 2 times: [ IN=eth0 ", "URGP=0 ", "URGP=0 ]"),
		"a tab for a space":       edit("SYN ", "SYN\t"),
		"a name for an address":   edit("SRC=192.0.2.1 ", "SRC=user ", "SRC=2001:0db8", "SRC=user:0db8"),
		"too few parts":           edit("192.0.2.1 ", "192.0.2 ", "0000:0001 ", "0001 "),
		"a part too large":        edit("192.0.2.1 ", "192.0.2.256 ", "0000:0001 ", "0000:10001 "),
		"an octal part":           edit("192.0.2.1 ", "192.0.02.1 ", "0000:0001 ", "0000:000G "),
		"both families":           edit("DST=192.0.2.2 ", "DST=2001:0db8:0000:0000:0000:0000:0000:0002 ", "DST=2001:0db8:0000:0000:0000:0000:0000:0002 ", "DST=192.0.2.2 "),
		"no length":               edit("LEN=40 ", "LEN= ", "LEN=80 ", "LEN= "),
		"a length too small":      edit("LEN=40 ", "LEN=19 ", "LEN=80 ", "LEN=39 "),
		"a link layer torn":       edit("MAC=", "MACSRC="),
		"empty":                   edit(tcp4, "", tcp6, ""),
		"4-in-6":                  edit("SRC=2001:0db8:0000:0000:0000:0000:0000:0001", "SRC=0000:0000:0000:0000:0000:ffff:c000:0201", "SRC=192.0.2.1 ", "SRC=127.0.0.1 "),
		"from everybody":          edit("SRC=192.0.2.1 ", "SRC=255.255.255.255 ", "SRC=2001:", "SRC=ff02:"),
	} {
		t.Run(name, func(t *testing.T) {
			for _, line := range []string{tcp4, tcp6} {
				if got := words(syslog+r.Replace(line), web1(Syslog, "")); got != "" && !strings.HasPrefix(got, "declined") {
					t.Errorf("got %q from %q", got, r.Replace(line))
				}
			}
		})
	}
}

// What a kernel 6.18 logged: nftables, iptables and ip6tables with and without
// their options, of packets from hping3, ping, nc and raw sockets; the last SYNs have the
// bit of AccECN.
func TestKernelLines(t *testing.T) {
	text, err := os.ReadFile("testdata/kernel.log")
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]int{}
	for line := range strings.Lines(string(text)) {
		w := strings.Fields(words(strings.TrimSuffix(line, "\n"), web1(Kernel, "")) + " - - - -")
		got[w[2]+" "+w[3]]++
	}
	for what, n := range map[string]int{
		"tcp 1736>7001": 3, "tcp 40000>7001": 4, "tcp 57492>7001": 3, "udp 1736>7002": 2, "udp 43549>7002": 2, "icmp 0>37": 4,
		"proto/47 0>0": 6, "udplite 8080>7000": 4, "- -": 0,
	} {
		if got[what] != n {
			t.Errorf("%d of %s, want %d: %v", got[what], what, n, got)
		}
	}
}

// What the rules of ufw 0.36 (logging on) and firewalld 1.3 (log-denied all) had the
// kernel write of a knock by plain sockets.
func TestLinesOfFrontends(t *testing.T) {
	want := []string{
		"192.0.2.1>192.0.2.2 tcp 47011", "192.0.2.1>192.0.2.2 udp 48022", "192.0.2.1>192.0.2.2 tcp 45033",
		"2001:db8::1>2001:db8::2 tcp 47011", "2001:db8::1>2001:db8::2 udp 48022", "2001:db8::1>2001:db8::2 tcp 45033",
	}
	for file, prefix := range map[string]string{"ufw.log": "[UFW BLOCK] ", "firewalld.log": "filter_IN_public_REJECT: "} {
		text, err := os.ReadFile("testdata/" + file)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for line := range strings.Lines(string(text)) {
			w := strings.Fields(words(strings.TrimSuffix(line, "\n"), web1(Kernel, prefix)) + " - - - -")
			_, port, _ := strings.Cut(w[3], ">")
			got = append(got, w[1]+" "+w[2]+" "+port)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: got %q, want %q", file, got, want)
		}
	}
}

// newLog is a log and the end of its pipe that lines are written to.
func newLog(t testing.TB, lines *Lines) (*Log, *os.File) {
	t.Helper()
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	w := os.NewFile(uintptr(ends[1]), "log")
	t.Cleanup(func() { w.Close(); unix.Close(ends[0]) })
	l, err := NewLog(ends[0])
	if err != nil {
		t.Fatal(err)
	}
	l.Use(*lines)
	l.clock = func() time.Time { return written }
	return l, w
}

// drain gives the ports of what was heard, and by which interface.
func drain(t *testing.T, l *Log) (got []string) {
	t.Helper()
	if err := l.Drain(func(b []byte, ifindex int) {
		var p packet.Packet
		packet.Decode(b, &p)
		got = append(got, fmt.Sprintf("%d:%d", ifindex, p.DstPort))
	}); err != nil {
		t.Fatal(err)
	}
	return got
}

// Lines come in pieces, torn and too long, and only whole ones count.
func TestLogSplitsLines(t *testing.T) {
	good := syslog + tcp4 + "\n"
	port := func(n int) string { return strings.Replace(good, "7001", fmt.Sprint(n), 1) }
	long := strings.Repeat("x", 64<<10)
	for _, tt := range []struct {
		name    string
		pieces  []string
		want    string
		dropped uint32
	}{
		{"whole", []string{good, port(2)}, "7:7001 7:2", 0},
		{"two at once", []string{good + port(2)}, "7:7001 7:2", 0},
		{"in pieces", []string{good[:20], good[20:60], good[60:]}, "7:7001", 0},
		{"unfinished", []string{good[:len(good)-1]}, "", 0},
		{"torn", []string{good[:len(good)-1] + "\x00\n" + port(2)}, "7:2", 1},
		{"half a line and a whole one", []string{good[:60] + port(2) + port(3)}, "7:3", 0},
		{"64 KiB before", []string{long + "\n" + good}, "7:7001", 1},
		{"64 KiB without an end", []string{long, long, "\n" + good}, "7:7001", 1},
		{"64 KiB with a good line at their end", []string{long + good + port(2)}, "7:2", 1},
		{"NULs, as a truncated file has", []string{strings.Repeat("\x00", 5000) + good + port(2)}, "7:2", 1},
		{"another interface", []string{strings.ReplaceAll(good, "eth0", "eth1")}, "-1:7001", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l, w := newLog(t, web1(Syslog, ""))
			var got []string
			for _, p := range tt.pieces {
				for len(p) > 0 { // the pipe holds 64 KiB
					n := min(len(p), 30<<10)
					w.WriteString(p[:n])
					got = append(got, drain(t, l)...)
					p = p[n:]
				}
			}
			_, dropped := l.Stats()
			if strings.Join(got, " ") != tt.want || dropped != tt.dropped {
				t.Errorf("got %q and %d dropped, want %q and %d", got, dropped, tt.want, tt.dropped)
			}
		})
	}
}

func TestLogEnds(t *testing.T) {
	l, w := newLog(t, web1(Syslog, ""))
	if err := l.Drain(nil); err != nil {
		t.Errorf("nothing to read: %v", err)
	}
	w.Close()
	if err := l.Drain(nil); err == nil || !strings.Contains(err.Error(), "nobody follows") {
		t.Errorf("got %v", err)
	}
}

// What looks like a firewall's line and is none is counted, and nobody else's words.
func TestDeclinedLinesAreCounted(t *testing.T) {
	l, w := newLog(t, web1(Syslog, "KNOCK "))
	counts := func(wantDeclined, wantOther uint32) {
		t.Helper()
		if declined, other := l.Declined(); declined != wantDeclined || other != wantOther {
			t.Errorf("%d declined, %d of another time; want %d and %d", declined, other, wantDeclined, wantOther)
		}
	}
	for _, packet := range []string{tcp4, tcp6} {
		for _, line := range []string{
			syslog + "KNOCK " + packet,                             // heard
			"Nov 22 11:51:00 web1 kernel: KNOCK " + packet,         // old
			"Nov 22 11:51:00 web1 kernel: KNOCK " + packet + "xxx", // and wrong
			syslog + packet, // without the prefix
			"Nov 22 11:53:09 web2 kernel: KNOCK " + packet,
			syslog + "usb 1-1: new device",
			"Nov 22 11:53:09 web1 sshd[17]: hello",
			"",
		} {
			fmt.Fprintln(w, line)
		}
	}
	if got := drain(t, l); len(got) != 2 {
		t.Errorf("heard %q", got)
	}
	counts(8, 2)
	counts(0, 0)
}

// An owner edits the log, and its old lines come again: they count when they come
// first, and a day later no more.
func TestLinesThatComeAgain(t *testing.T) {
	l, w := newLog(t, web1(Syslog, ""))
	for days, want := range []string{"7:7001 7:7001", ""} {
		l.clock = func() time.Time { return written.AddDate(0, 0, days) }
		fmt.Fprintf(w, "%s%s\n%s%s\n", syslog, tcp4, syslog, tcp6)
		if got := strings.Join(drain(t, l), " "); got != want {
			t.Errorf("after %d days: %q, want %q", days, got, want)
		}
	}
}

func TestNewLogKnowsItsPipe(t *testing.T) {
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(ends[0])
	defer unix.Close(ends[1])
	null, err := os.OpenFile("/dev/null", os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for name, fd := range map[string]int{"a pipe that blocks": ends[0], "its other end": ends[1], "no pipe": int(null.Fd()), "nothing": 1 << 20} {
		if _, err := NewLog(fd); err == nil {
			t.Errorf("%s passes", name)
		}
	}
}

func TestLinesAllocateNothing(t *testing.T) {
	l, w := newLog(t, web1(Syslog, "KNOCK "))
	lines := []byte(syslog + "KNOCK " + tcp4 + "\n2026-11-22T12:53:09.123456+01:00 web1.example.org kernel: KNOCK " + tcp6 + "\nNov 22 10:53:09 web1 kernel: KNOCK " + tcp4 + "\n" + syslog + "KNOCK " + tcp6 + "\n" + syslog + "usb 1-1: new device\n" + strings.Repeat("y", 3000) + "\n")
	heard := 0
	observe := func([]byte, int) { heard++ }
	if n := testing.AllocsPerRun(100, func() {
		w.Write(lines)
		l.Drain(observe)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if heard != 303 {
		t.Errorf("heard %d", heard)
	}
}

// Whatever the bytes are, what comes out is a whole header and a name.
func FuzzLine(f *testing.F) {
	for _, line := range []string{syslog + tcp4, syslog + tcp6, "", syslog, syslog + in4 + "LEN=20 TOS=0x00 PREC=0x00 TTL=64 ID=1 OPT (00) PROTO=47 "} {
		f.Add([]byte(line), uint8(0))
		f.Add([]byte("4,1,2,-;"+strings.TrimPrefix(line, syslog)), uint8(1))
	}
	f.Fuzz(func(t *testing.T, line []byte, format uint8) {
		var room [maxHeaders]byte
		reader := parser{now: written.Unix()}
		link, ok := reader.read(line, web1(Format(format%3), ""), &room)
		if !ok {
			return
		}
		b := reader.packet
		if len(b) < ipv4Header || len(link) == 0 || len(link) > maxLink || bytes.Count(line, []byte("IN=")) != 1 || bytes.Count(line, []byte(" SPT=")) > 1 {
			t.Errorf("%q gives %x by %q", line, b, link)
		}
		var p packet.Packet
		packet.Decode(b, &p)
		if p.Proto == sequence.TCP && !bytes.Contains(line, []byte(fmt.Sprintf(" DPT=%d ", p.DstPort))) {
			t.Errorf("%q gives port %d", line, p.DstPort)
		}
	})
}
