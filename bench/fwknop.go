package main

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// fwknopdSleep is how long Debian's fwknopd sleeps between looks at its packets
// (PCAP_LOOP_SLEEP).
const fwknopdSleep = 100 * time.Millisecond

// fwknop is Debian's fwknopd and its client, both as their package sets them
// up: nothing is set but the interface, the keys and where files go.
type fwknop struct {
	w    *world
	home string // of the client; also the server's files
}

// fwknopd starts the server on a firewall that drops what it has no rule for.
func (w *world) fwknopd() *fwknop {
	f := &fwknop{w, w.dir()}
	key, mac := make([]byte, 32), make([]byte, 64) // the lengths that fwknop --key-gen chooses
	rand.Read(key)
	rand.Read(mac)
	keys := fmt.Sprintf("KEY_BASE64 %s\nHMAC_KEY_BASE64 %s\n", base64.StdEncoding.EncodeToString(key), base64.StdEncoding.EncodeToString(mac))
	run := filepath.Join(f.home, "run")
	if err := errors.Join(os.Mkdir(run, 0o700),
		f.write("fwknopd.conf", fmt.Sprintf("PCAP_INTF %s;\nFWKNOP_RUN_DIR %s;\n", w.serverWire, run)),
		f.write("access.conf", "SOURCE ANY\n"+keys),
		// "source" is what ours asks for too: the address that the packet comes from.
		f.write(".fwknoprc", "[server]\nSPA_SERVER 192.0.2.2\nALLOW_IP source\nACCESS tcp/22\nUSE_HMAC Y\n"+keys)); err != nil {
		w.b.Fatal(err)
	}
	w.server.Run("iptables", "-P", "INPUT", "DROP")
	cmd := exec.Command("fwknopd", "-f", "-c", filepath.Join(f.home, "fwknopd.conf"), "-a", filepath.Join(f.home, "access.conf"))
	if err := w.server.Start(cmd); err != nil {
		w.b.Fatalf("fwknopd: %v; install the package fwknop-server", err)
	}
	w.b.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	w.ready("fwknopd", f.knock)
	return f
}

func (f *fwknop) write(name, text string) error {
	return os.WriteFile(filepath.Join(f.home, name), []byte(text), 0o600)
}

// datagram has the client make a packet; each is another one.
func (f *fwknop) datagram() []byte {
	file := filepath.Join(f.home, "packet")
	cmd := exec.Command("fwknop", "--test", "--no-save-args", "--named-config", "server", "--save-packet", file)
	cmd.Env = append(os.Environ(), "HOME="+f.home)
	if out, err := cmd.CombinedOutput(); err != nil {
		f.w.b.Fatalf("fwknop: %v; install the package fwknop-client\n%s", err, out)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		f.w.b.Fatal(err)
	}
	return []byte(strings.TrimSpace(string(text)))
}

// knock asks once.
func (f *fwknop) knock(w *world, from, to netip.Addr) [][]byte {
	return [][]byte{w.prober.datagram(from, to, f.datagram())}
}

// flush takes fwknopd's rules away: a chain that grows would slow it down.
func (f *fwknop) flush() { f.w.server.Run("iptables", "-F", "FWKNOP_INPUT") }
