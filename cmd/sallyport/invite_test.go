//go:build linux

package main

import (
	"bytes"
	"image"
	"image/color"
	"image/png"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/spa"
)

func TestChooseHost(t *testing.T) {
	tests := []struct{ given, machine, want string }{ // want "": refused
		{"", "gate.example.org", "gate.example.org"},
		{"", "gate", ""},
		{"", "", ""},
		{"", "gate.example.org; id", ""},
		{"gate", "other.example.org", "gate"},
		{"192.0.2.7", "", "192.0.2.7"},
		{"2001:db8::7", "", "2001:db8::7"},
		{"2001:DB8:0::7", "", "2001:db8::7"},
		{"::ffff:192.0.2.7", "", "192.0.2.7"},
		{"fe80::7%eth0", "", ""},
		{"0.0.0.0", "", ""},
		{"::", "", ""},
		{"224.0.0.1", "", ""},
		{"ff02::1", "", ""},
		{"192.0.2.300", "", ""},
		{"[2001:db8::7]", "", ""},
		{"gate.example.org:62201", "", ""},
		{"-gate", "", ""},
		{"a b", "", ""},
		{"$(id)", "", ""},
		{"gate.example.org.", "", "gate.example.org."},
		{strings.Repeat("a", 254), "", ""},
	}
	for _, test := range tests {
		got, err := chooseHost(test.given, test.machine)
		if got != test.want || (err != nil) != (test.want == "") {
			t.Errorf("--host %q on %q: %q, %v; want %q", test.given, test.machine, got, err, test.want)
		}
	}
}

func TestChooseName(t *testing.T) {
	tests := []struct{ given, host, knock, want string }{ // want "": refused
		{"", "gate.example.org", "front", "gate"},
		{"", "Gate.Example.org", "front", "gate"},
		{"", "192.0.2.7", "front", "front"},
		{"", "2001:db8::7", "front", "front"},
		{"", "icmp.example.org", "front", "front"},
		{"", "_x-.example.org", "front", "_x-"},
		{"", "192.0.2.7", "-x", ""},
		{"home", "gate.example.org", "front", "home"},
		{"a.b-c_9", "gate", "front", "a.b-c_9"},
		{"Home", "gate", "front", ""},
		{"192.0.2.7", "gate", "front", ""},
		{"--force", "gate", "front", ""},
		{"a b", "gate", "front", ""},
		{strings.Repeat("a", 65), "gate", "front", ""},
	}
	for _, test := range tests {
		got, err := chooseName(test.given, test.host, test.knock)
		if got != test.want || (err != nil) != (test.want == "") {
			t.Errorf("--name %q for %q, knock.%s: %q, %v; want %q", test.given, test.host, test.knock, got, err, test.want)
		}
	}
}

func TestInvitation(t *testing.T) {
	const head = `
[service.ssh]
ports = ["60000-60010/udp", "2222-2230/tcp", "22/tcp"]
[service.dns]
ports = ["53/udp"]
[service.web]
ports = ["443/tcp"]
[knock.front]
type = "spa"
key = "/k"
authorized_keys = "/a"
`
	tests := []struct{ name, more, want string }{
		{"defaults", `opens = ["ssh"]`, "--host H --service ssh=2222"},
		{"several", `opens = ["web", "dns", "ssh"]`, "--host H --service web=443 --service ssh=2222"},
		{"nothing to try", `opens = ["dns"]`, "--host H"},
		{"port", "opens = [\"dns\"]\nport = 53", "--host H --port 53"},
		{"icmp", "opens = [\"dns\"]\ntransports = [\"icmp\", \"tcp\"]", "--host H --over icmp"},
		{"udp too", "opens = [\"dns\"]\ntransports = [\"icmp\", \"udp\"]", "--host H"},
		{"no clock", "opens = [\"dns\"]\nclock = \"none\"", "--host H --clock none"},
	}
	key := serverKey(t, spa.Classic)
	for _, test := range tests {
		cfg, err := config.Parse("f", []byte(head+test.more))
		if err != nil {
			t.Fatal(err)
		}
		got := invitation(cfg, &cfg.Knocks[0], key.Address(), "N", "H")
		if want := "sallyport add N " + key.Address().String() + " " + test.want; got != want {
			t.Errorf("%s: got  %s\nwant %s", test.name, got, want)
		}
	}
}

// A QR code that no program reads is none: what a terminal would show is read
// by one that is not ours.
func TestQRCodesAreRead(t *testing.T) {
	if _, err := exec.LookPath("zbarimg"); err != nil && os.Geteuid() != 0 {
		t.Skip("needs zbarimg, which only root can install")
	}
	for _, suite := range []spa.Suite{spa.Classic, spa.PostQuantum} {
		for _, more := range []string{"", " --port 53 --over icmp --clock none --service ssh=22 --service web=443"} {
			line := "sallyport add gate " + serverKey(t, suite).Address().String() + " --host 2001:db8::7" + more
			drawing, width, err := drawQR(line)
			if err != nil {
				t.Fatal(err)
			}
			picture := filepath.Join(t.TempDir(), "code.png")
			photograph(t, drawing, width, picture)
			out, err := exec.Command("zbarimg", "--quiet", "--raw", "-Sdisable", "-Sqrcode.enable", picture).Output()
			if err != nil || string(out) != line+"\n" {
				t.Errorf("%v: a code of %d columns is read as %q, %v", suite, width, out, err)
			}
		}
	}
}

// photograph makes a picture of what a terminal shows: two modules in each
// letter, in the colours that are told. Around it the terminal is black.
func photograph(t *testing.T, drawing string, width int, file string) {
	t.Helper()
	const scale, margin = 4, 10
	picture := image.NewGray(image.Rect(0, 0, (width+2*margin)*scale, (width+2*margin)*scale))
	square := func(x, y int, shade color.Gray) {
		for i := range scale * scale {
			picture.SetGray((x+margin)*scale+i%scale, (y+margin)*scale+i/scale, shade)
		}
	}
	for y, line := range strings.Split(strings.TrimSuffix(drawing, "\n"), "\n") {
		body, begins := strings.CutPrefix(line, blackOnWhite)
		body, ends := strings.CutSuffix(body, usualColours)
		letters := []rune(body)
		if !begins || !ends || len(letters) != width {
			t.Fatalf("line %d has %d letters, want %d: %q", y, len(letters), width, line)
		}
		for x, letter := range letters {
			white, black := color.Gray{255}, color.Gray{0}
			shades, known := map[rune][2]color.Gray{'█': {black, black}, '▀': {black, white}, '▄': {white, black}, ' ': {white, white}}[letter]
			if !known {
				t.Fatalf("line %d has a %q", y, letter)
			}
			square(x, 2*y, shades[0])
			square(x, 2*y+1, shades[1])
		}
	}
	var b bytes.Buffer
	if err := png.Encode(&b, picture); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestTooLongForACode(t *testing.T) {
	if _, _, err := drawQR(strings.Repeat("a", 2953)); err != nil {
		t.Errorf("2953 bytes, all that a code holds: %v", err)
	}
	_, _, err := drawQR(strings.Repeat("a", 2954))
	if err == nil {
		t.Fatal("2954 bytes are drawn")
	}
	var said strings.Builder
	(&inviteCmd{QR: true}).draw(&ui{out: io.Discard, err: &said}, strings.Repeat("a", 2954))
	if want := "sallyport: there is no QR code of it: it is too long for one\n"; said.String() != want {
		t.Errorf("%q, want %q", said.String(), want)
	}
}

// The code goes to terminals and where it is asked for, so that the line can be
// stored in a file or piped.
func TestWhereACodeIsDrawn(t *testing.T) {
	line := strings.Repeat("a", 150)
	for _, test := range []struct {
		cmd  inviteCmd
		want bool
	}{{inviteCmd{}, false}, {inviteCmd{QR: true}, true}, {inviteCmd{NoQR: true}, false}} {
		var out strings.Builder
		test.cmd.draw(&ui{out: &out, err: io.Discard}, line)
		if (out.Len() > 0) != test.want {
			t.Errorf("%+v draws %d bytes", test.cmd, out.Len())
		}
	}
}
