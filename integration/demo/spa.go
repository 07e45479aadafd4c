package main

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/sallyport/sallyport/internal/spa"
	"github.com/sallyport/sallyport/internal/testnet"
)

// keys makes the server's key, enrolls the client's, and stores the server at
// the client, all with the real program.
func (d *demo) keys() {
	d.begin("keygen")
	os.Setenv("XDG_CONFIG_HOME", d.dir) // the client's store
	out := d.run(d.server, "keygen", "--out", filepath.Join(d.dir, "server.key"))
	address := lineWith(out, "sallyport1")
	if address == "" {
		d.Fatalf("no server's address is in what keygen says: %s", out)
	}
	d.fact("the server's key is made; its address has %d characters", len(address))

	d.begin("add")
	key := d.userKey()
	for _, f := range families {
		out = d.run(d.near, "add", f.name, address, "--host", f.server.String(), "--key", key)
	}
	line := lineWith(out, "ssh-ed25519 ")
	if err := os.WriteFile(filepath.Join(d.dir, "authorized_keys"), []byte(line+"\n"), 0o600); err != nil {
		d.Fatal(err)
	}
	d.fact("the client stored it, and the server got the client's key")
}

// lineWith gives the line of a text with this beginning, or "".
func lineWith(text, beginning string) string {
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, beginning) {
			return strings.TrimSpace(line)
		}
	}
	return ""
}

// userKey makes a private key, as 'ssh-keygen -t ed25519 -m PKCS8' would, and
// gives its file.
func (d *demo) userKey() string {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		d.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		d.Fatal(err)
	}
	file := filepath.Join(d.dir, "id_ed25519")
	block := &pem.Block{Type: "PRIVATE KEY", Bytes: der}
	if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
		d.Fatal(err)
	}
	return file
}

// request has the real client knock, and gives its datagram as somebody on the
// way catches it.
func (d *demo) request(f family) []byte {
	d.begin("knock")
	tap := d.tap(f)
	defer tap.Close()
	d.run(d.near, "knock", f.name)
	datagram := catch(tap)
	d.fact("%s sent one signed datagram of %d bytes", f.client, len(datagram))
	return datagram
}

// tap opens a raw socket, which gets every UDP packet to the address (raw(7)).
func (d *demo) tap(f family) (tap net.PacketConn) {
	network := "ip4:udp"
	if f.server.Is6() {
		network = "ip6:udp"
	}
	var err error
	d.server.Do(func() { tap, err = net.ListenPacket(network, f.server.String()) })
	if err != nil {
		d.Fatalf("no packet can be caught: %v", err)
	}
	return tap
}

// catch waits for a datagram to the daemon. It gives nil where none was sent:
// then the port will not open, which is for the next step to say.
func catch(tap net.PacketConn) []byte {
	const header = 8 // of UDP (RFC 768); the destination port is bytes 2 and 3
	tap.SetReadDeadline(time.Now().Add(tryLimit))
	b := make([]byte, 2048)
	for {
		n, _, err := tap.ReadFrom(b)
		if err != nil {
			return nil
		}
		if n > header && int(b[2])<<8+int(b[3]) == spa.DefaultPort {
			return b[header:n]
		}
	}
}

// again repeats a datagram that was heard, from its sender and from elsewhere.
func (d *demo) again(f family, datagram []byte) {
	d.begin("again")
	for _, from := range []struct {
		addr netip.Addr
		*testnet.Namespace
	}{{f.client, d.near}, {f.stranger, d.far}} {
		d.heard(func() { d.send(from.Namespace, f, datagram) })
		for _, who := range []*testnet.Namespace{d.near, d.far} {
			if err := d.refused(who, f); err != nil {
				d.Fatalf("%d/tcp is not refused after %s repeated the datagram: %v", port, from.addr, err)
			}
		}
	}
	d.fact("%s and %s repeat it: nothing opens", f.client, f.stranger)
}

// early delivers a datagram from elsewhere before its sender could: it is good
// for its sender alone, and stays so.
func (d *demo) early(f family) grant {
	d.begin("caught")
	datagram := d.save(f)
	d.heard(func() { d.send(d.far, f, datagram) })
	for _, who := range []*testnet.Namespace{d.near, d.far} {
		if err := d.refused(who, f); err != nil {
			d.Fatalf("%d/tcp is not refused after %s sent the datagram of %s: %v", port, f.stranger, f.client, err)
		}
	}
	d.fact("%s sent it first: nothing opens", f.stranger)

	d.begin("knock")
	asked := time.Now()
	d.send(d.near, f, datagram)
	d.fact("%s sent it after all", f.client)
	return d.opens(f, asked)
}

// save has the client make a datagram and keep it.
func (d *demo) save(f family) []byte {
	file := filepath.Join(d.dir, "datagram")
	d.run(d.near, "knock", f.name, "--save", file, "--force")
	datagram, err := os.ReadFile(file)
	if err != nil {
		d.Fatal(err)
	}
	return datagram
}

// send sends a datagram to the server.
func (d *demo) send(from *testnet.Namespace, f family, datagram []byte) {
	var err error
	from.Do(func() {
		var conn net.Conn
		if conn, err = net.Dial("udp", netip.AddrPortFrom(f.server, spa.DefaultPort).String()); err == nil {
			_, err = conn.Write(datagram)
			conn.Close()
		}
	})
	if err != nil {
		d.Fatal(err)
	}
}

// heard does something and waits until the engine has counted a datagram: a port
// that is tried before is refused for nothing.
func (d *demo) heard(do func()) {
	before := d.datagrams()
	do()
	if !d.await(tryLimit, func() bool { return d.datagrams() > before }) {
		d.Fatalf("the engine did not hear the datagram\n%s", d.daemon.Log())
	}
}

// datagrams is how many the engine has counted, wherever they ended.
func (d *demo) datagrams() (n uint64) {
	out, err := d.daemon.Tool("status", "--json")
	var status struct{ Counters map[string]uint64 }
	if err == nil {
		err = json.Unmarshal([]byte(out), &status)
	}
	if err != nil {
		d.Fatalf("'sallyport status' says: %s (%v)", out, err)
	}
	for name, count := range status.Counters {
		if strings.HasPrefix(name, "spa_") {
			n += count
		}
	}
	return n
}

// refused tries the service once and wants to be refused.
func (d *demo) refused(from *testnet.Namespace, f family) error {
	conn, err := dial(from, f.server, port)
	if err == nil {
		conn.Close()
		return fmt.Errorf("it is open")
	}
	if errors.Is(err, syscall.ECONNREFUSED) {
		return nil
	}
	return err
}
