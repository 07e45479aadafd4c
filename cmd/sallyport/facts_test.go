//go:build linux

package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/sallyport/sallyport/internal/testnet"
)

func TestSSHDFacts(t *testing.T) {
	tests := []struct {
		name, text string // "== FILE" begins another file
		ports      []uint16
		passwords  string
	}{
		{"empty", "", []uint16{22}, "yes"},
		{"no", "PasswordAuthentication no\nKbdInteractiveAuthentication no", []uint16{22}, "no"},
		{"one of two", "PasswordAuthentication no", []uint16{22}, "yes"},
		{"old name", "passwordauthentication=no\nChallengeResponseAuthentication \"no\"", []uint16{22}, "no"},
		{"first counts", "PasswordAuthentication no\nKbdInteractiveAuthentication no\nPasswordAuthentication yes", []uint16{22}, "no"},
		{"comment", "#PasswordAuthentication no\nKbdInteractiveAuthentication no # no", []uint16{22}, "yes"},
		{"match", "KbdInteractiveAuthentication no\nMatch User a\nPasswordAuthentication no\nPort 7", []uint16{22}, "yes"},
		{"ports", "Port 22\nPORT 2222\nPort x\nPasswordAuthentication NO\nKbdInteractiveAuthentication no", []uint16{22, 2222}, "no"},
		{"include first", "Include d/*.conf\nPasswordAuthentication yes\n== d/1.conf\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n== d/2.conf\nPasswordAuthentication yes", []uint16{22}, "no"},
		{"include relative to the main file", "Include d/*.conf\n== d/1.conf\nInclude d/deep\n== d/deep\nPasswordAuthentication no\nKbdInteractiveAuthentication no", []uint16{22}, "no"},
		{"match ends its own file", "Include d/*.conf\nPasswordAuthentication no\n== d/1.conf\nKbdInteractiveAuthentication no\nMatch all\nPasswordAuthentication yes", []uint16{22}, "no"},
		{"includes itself", "Include sshd_config\nPort 5", slices.Repeat([]uint16{5}, 17), "yes"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			for i, part := range strings.Split(test.text, "== ") {
				name, text := "sshd_config", part
				if i > 0 {
					name, text, _ = strings.Cut(part, "\n")
				}
				file := filepath.Join(dir, name)
				os.MkdirAll(filepath.Dir(file), 0o755)
				if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			ports, passwords := sshdFacts(filepath.Join(dir, "sshd_config"))
			if !slices.Equal(ports, test.ports) || passwords != test.passwords {
				t.Errorf("%v %q, want %v %q", ports, passwords, test.ports, test.passwords)
			}
		})
	}
	if ports, passwords := sshdFacts(filepath.Join(t.TempDir(), "none")); ports != nil || passwords != "" {
		t.Errorf("without a file: %v %q", ports, passwords)
	}
}

// The real kernel's files, of a namespace with sockets that the test knows.
func TestListening(t *testing.T) {
	ns := testnet.New(t)
	testnet.Connect(ns, testnet.New(t), []string{"192.0.2.1/24", "2001:db8::1/64"}, nil)
	var got []config.PortRange
	ns.Do(func() {
		for _, open := range []struct{ network, addr string }{
			{"tcp4", "192.0.2.1:1001"}, {"tcp6", "[2001:db8::1]:1002"}, {"tcp", ":1003"},
			{"udp4", "192.0.2.1:1004"}, {"udp6", "[2001:db8::1]:1005"},
			{"tcp4", "127.0.0.1:2001"}, {"tcp6", "[::1]:2002"}, {"udp4", "127.0.0.1:2003"}, {"udp6", "[::1]:2004"},
		} {
			var err error
			if strings.HasPrefix(open.network, "tcp") {
				var l net.Listener
				if l, err = net.Listen(open.network, open.addr); err == nil {
					defer l.Close()
				}
			} else {
				var c net.PacketConn
				if c, err = net.ListenPacket(open.network, open.addr); err == nil {
					defer c.Close()
				}
			}
			if err != nil {
				t.Errorf("%s %s: %v", open.network, open.addr, err)
			}
		}
		// Sockets with a peer take packets from nobody else.
		for _, dial := range []struct{ network, addr string }{{"tcp4", "192.0.2.1:1001"}, {"tcp6", "[2001:db8::1]:1002"}, {"udp4", "192.0.2.1:1004"}, {"udp6", "[2001:db8::1]:1005"}} {
			c, err := net.Dial(dial.network, dial.addr)
			if err != nil {
				t.Errorf("%s %s: %v", dial.network, dial.addr, err)
				continue
			}
			defer c.Close()
		}
		got = listening(fmt.Sprintf("/proc/self/task/%d/net", syscall.Gettid()))
	})
	var want []config.PortRange
	for port, proto := range []sequence.Proto{sequence.TCP, sequence.TCP, sequence.TCP, sequence.UDP, sequence.UDP} {
		want = append(want, config.PortRange{Proto: proto, Low: uint16(1001 + port), High: uint16(1001 + port)})
	}
	slices.SortFunc(got, func(a, b config.PortRange) int { return int(a.Low) - int(b.Low) })
	if !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// Root may read everything, so the thread gives up its right to for a moment.
func TestCheckUnreadable(t *testing.T) {
	testnet.RequireRoot(t)
	file := filepath.Join(t.TempDir(), "sallyport.toml")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	syscall.Setfsuid(65534)
	var out, words strings.Builder
	status := run(&ui{out: &out, err: &words}, []string{"check", "-c", file})
	syscall.Setfsuid(0)
	want := "sallyport: " + file + " can't be read: permission denied; a file with sequences is root's alone, so run this as root\n"
	if status != exitFailed || out.String() != "" || words.String() != want {
		t.Errorf("status %d, out %q, words %q", status, out.String(), words.String())
	}
}
