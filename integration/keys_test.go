//go:build linux

package integration_test

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/spa"
	"github.com/sallyport/sallyport/internal/testnet"
)

// user is somebody with an ed25519 key.
type user struct{ key ed25519.PrivateKey }

func newUser(n int) user {
	seed := make([]byte, ed25519.SeedSize)
	binary.BigEndian.PutUint32(seed, uint32(n))
	return user{ed25519.NewKeyFromSeed(seed)}
}

func sshString(parts ...string) (b []byte) {
	for _, p := range parts {
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(p))), p...)
	}
	return b
}

// PublicKey makes a user a spa.Signer.
func (u user) PublicKey() []byte {
	return sshString("ssh-ed25519", string(u.key.Public().(ed25519.PublicKey)))
}

// Sign makes a user a spa.Signer.
func (u user) Sign(data []byte) ([]byte, error) {
	return sshString("ssh-ed25519", string(ed25519.Sign(u.key, data))), nil
}

// line is the user's line of authorized_keys.
func (u user) line(comment string) string {
	return "ssh-ed25519 " + base64.StdEncoding.EncodeToString(u.PublicKey()) + " " + comment + "\n"
}

func (u user) fingerprint(t *testing.T) string {
	t.Helper()
	p, err := spa.ParsePublicKey(u.PublicKey())
	if err != nil {
		t.Fatal(err)
	}
	f := p.Fingerprint()
	return f.String()
}

// keyHouse is a house with an spa knock.
type keyHouse struct {
	*house
	server *spa.ServerKey
	dir    string // of the key files
}

const spaPort = 48900

func (h *keyHouse) config(daemon string) string {
	return `[daemon]
state_dir = "DIR/state"
control = "DIR/control.sock"
` + daemon + `
[service.ssh]
ports = ["22/tcp"]
open_for = "30s"
max_open_for = "1h"
[knock.keys]
type = "spa"
opens = ["ssh"]
port = ` + fmt.Sprint(spaPort) + `
key = "` + h.path("server.key") + `"
authorized_keys = "` + h.path("authorized_keys") + `"
`
}

func (h *keyHouse) path(name string) string { return filepath.Join(h.dir, name) }

// put replaces a file as an editor does.
func (h *keyHouse) put(name, text string) {
	h.t.Helper()
	temp := h.path(".new")
	if err := errors.Join(os.WriteFile(temp, []byte(text), 0o600), os.Rename(temp, h.path(name))); err != nil {
		h.t.Fatal(err)
	}
}

func newKeyHouse(t *testing.T, users ...user) *keyHouse {
	t.Helper()
	h := &keyHouse{house: newHouse(t), dir: t.TempDir()}
	var err error
	if h.server, err = spa.NewServerKey(spa.Classic); err != nil {
		t.Fatal(err)
	}
	h.put("server.key", spa.FormatKeyFile([]spa.FileKey{{Key: h.server}}))
	var lines strings.Builder
	for i, u := range users {
		lines.WriteString(u.line(fmt.Sprintf("user%d", i)))
	}
	h.put("authorized_keys", lines.String())
	return h
}

// ask sends one request from the client.
func (h *keyHouse) ask(p path, u user, r spa.Request) {
	h.t.Helper()
	r.Stamp = time.Now().UnixNano()
	b, err := spa.Seal(h.server.Address(), &r, u)
	if err != nil {
		h.t.Fatal(err)
	}
	var c net.Conn
	h.client.Do(func() { c, err = net.Dial("udp", netip.AddrPortFrom(p.server, spaPort).String()) })
	if err != nil {
		h.t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write(b); err != nil && !errors.Is(err, syscall.ECONNREFUSED) {
		h.t.Fatal(err)
	}
}

// dead checks that neither end of a connection reaches the other any more,
// whoever speaks first, and that the server's end is told so where it is here.
func (h *house) dead(when string, calls ...call) {
	h.t.Helper()
	for _, c := range calls {
		c.server.SetDeadline(time.Now().Add(soon))
		if _, err := io.ReadFull(c.server, make([]byte, 1)); !errors.Is(err, syscall.ECONNABORTED) && !errors.Is(err, net.ErrClosed) {
			h.t.Errorf("%s: after %s the server's end says %v", c.by.name, when, err)
		}
		c.client.SetDeadline(time.Now().Add(time.Second))
		c.client.Write([]byte("ping"))
		if n, err := c.client.Read(make([]byte, 4)); err == nil {
			h.t.Errorf("%s: after %s the client's end read %d bytes", c.by.name, when, n)
		}
	}
}

// A close ends what comes next; with --cut it ends what is there.
func TestCutEndsLiveConnections(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.serve(houseConfig("30s"))
	var calls, others []call
	for _, p := range paths {
		h.must("open", "ssh", p.client.String())
		calls = append(calls, h.call(p))
	}
	// Somebody else's connection to the same service, of both families.
	strangers := []path{
		{"IPv4, other", netip.MustParseAddr("192.0.2.3"), paths[0].server},
		{"IPv6, other", netip.MustParseAddr("2001:db8::3"), paths[1].server},
	}
	h.client.Run("sh", "-c", "ip -o link show type veth | sed -E 's/^[0-9]+: ([^@:]+).*/\\1/' | while read l; do ip addr add 192.0.2.3/24 dev $l; ip addr add 2001:db8::3/64 dev $l nodad; done")
	for _, p := range strangers {
		h.must("open", "ssh", p.client.String())
		others = append(others, h.call(p))
	}
	for i, p := range paths {
		contains(t, h.must("close", p.client.String()), "live connections go on")
		h.lives("close", calls[i])
		contains(t, h.must("close", "ssh", p.client.String(), "--cut"), "closed: 0 grants of "+p.client.String()+" ended, 1 connections cut")
		h.dead("close --cut", calls[i])
		h.is(false, 22, p)
	}
	h.lives("another's close --cut", others...)
	h.said("live connections were cut connections=1")
}

// behind makes the house the router of a server.
func (h *house) behind() *testnet.Namespace {
	h.t.Helper()
	inner := testnet.New(h.t)
	testnet.Connect(inner, h.server, []string{"198.51.100.5/24", "2001:db8:5::5/64"}, []string{"198.51.100.1/24", "2001:db8:5::1/64"})
	h.server.Run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
	inner.Run("ip", "route", "add", "192.0.2.0/24", "via", "198.51.100.1")
	inner.Run("ip", "-6", "route", "add", "2001:db8::/64", "via", "2001:db8:5::1")
	h.client.Run("ip", "route", "add", "198.51.100.0/24", "via", "192.0.2.2")
	h.client.Run("ip", "-6", "route", "add", "2001:db8:5::/64", "via", "2001:db8::2")
	return inner
}

// The house is the router of a server behind it.
func TestCutEndsForwardedConnections(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	inner := h.behind()
	var l net.Listener
	var packets net.PacketConn
	var err error
	inner.Do(func() {
		l, err = net.Listen("tcp", ":80")
		if err == nil {
			packets, err = net.ListenPacket("udp", ":53")
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	defer packets.Close()
	go echoPackets(packets)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { io.Copy(c, c); c.Close() }()
		}
	}()
	h.serve(`[service.inner]
ports = ["80/tcp", "53/udp"]
on = ["198.51.100.5", "2001:db8:5::5"]
[knock.front]
type = "sequence"
opens = ["inner"]
sequence = ["47011/tcp", "48022/udp", "45033/tcp"]
`)
	answers := func(c net.Conn) bool {
		for range 5 { // UDP may lose one, TCP only waits
			c.SetDeadline(time.Now().Add(500 * time.Millisecond))
			c.Write([]byte("ping"))
			if n, err := c.Read(make([]byte, 4)); err == nil && n > 0 {
				return true
			}
		}
		return false
	}
	for _, p := range []path{
		{"IPv4", paths[0].client, netip.MustParseAddr("198.51.100.5")},
		{"IPv6", paths[1].client, netip.MustParseAddr("2001:db8:5::5")},
	} {
		h.must("open", "inner", p.client.String())
		var conns []net.Conn
		h.client.Do(func() {
			for network, port := range map[string]uint16{"tcp": 80, "udp": 53} {
				c, err := net.DialTimeout(network, netip.AddrPortFrom(p.server, port).String(), soon)
				if err != nil {
					t.Fatal(p.name, err)
				}
				t.Cleanup(func() { c.Close() })
				conns = append(conns, c)
			}
		})
		for _, c := range conns {
			if !answers(c) {
				t.Fatalf("%s: %s does not work at all\n%s", p.name, c.RemoteAddr().Network(), h.Log())
			}
		}
		h.must("close", p.client.String())
		for _, c := range conns {
			if !answers(c) {
				t.Errorf("%s: %s ended with close alone", p.name, c.RemoteAddr().Network())
			}
		}
		h.must("close", "inner", p.client.String(), "--cut")
		for _, c := range conns {
			if answers(c) {
				t.Errorf("%s: %s lives on after close --cut", p.name, c.RemoteAddr().Network())
			}
		}
	}
	h.said("live connections were cut connections=2")
}

// busy serves TCP and UDP at a port; to each client it speaks every 50 ms from
// the first word on, and it hears what the client says.
type busy struct {
	mu    sync.Mutex
	heard map[string]time.Time // by network and client's address: the last time
}

func (b *busy) hears(network string, from net.Addr) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.heard[network+" "+netip.MustParseAddrPort(from.String()).Addr().Unmap().String()] = time.Now()
}

// heardSince reports whether a client was heard after then.
func (b *busy) heardSince(then time.Time, network string, client netip.Addr) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.heard[network+" "+client.String()].After(then)
}

func serveBusy(t *testing.T, ns *testnet.Namespace, port int) *busy {
	t.Helper()
	b := &busy{heard: map[string]time.Time{}}
	var l net.Listener
	var packets net.PacketConn
	var err1, err2 error
	ns.Do(func() {
		l, err1 = net.Listen("tcp", fmt.Sprintf(":%d", port))
		packets, err2 = net.ListenPacket("udp", fmt.Sprintf(":%d", port))
	})
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close(); packets.Close() })
	talk := func(write func() error) {
		for range 2000 { // 100 seconds at most
			if t.Context().Err() != nil || write() != nil {
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go talk(func() error { _, err := c.Write([]byte("news")); return err })
			go func() {
				defer c.Close()
				for p := make([]byte, 64); ; {
					if _, err := c.Read(p); err != nil {
						return
					}
					b.hears("tcp", c.RemoteAddr())
				}
			}()
		}
	}()
	go func() {
		known := map[string]bool{}
		for p := make([]byte, 64); ; {
			_, from, err := packets.ReadFrom(p)
			if err != nil {
				return
			}
			b.hears("udp", from)
			if !known[from.String()] {
				known[from.String()] = true
				go talk(func() error { packets.WriteTo([]byte("news"), from); return nil })
			}
		}
	}()
	return b
}

// A server that goes on sending has conntrack take what was cut for established
// again. Its client's packets die all the same: by route, and by a published
// port as Docker makes them, which keeps its number inside.
func TestCutEndsBusyConnections(t *testing.T) {
	t.Parallel()
	for _, published := range []bool{false, true} {
		h := newHouse(t)
		inner := h.behind()
		b := serveBusy(t, inner, 80)
		on := `on = ["198.51.100.5", "2001:db8:5::5"]`
		ways := []path{
			{"IPv4", paths[0].client, netip.MustParseAddr("198.51.100.5")},
			{"IPv6", paths[1].client, netip.MustParseAddr("2001:db8:5::5")},
		}
		if published {
			on, ways = "", paths
			h.server.Input(`table inet docker {
				chain prerouting { type nat hook prerouting priority dstnat;
					fib daddr type local meta l4proto { tcp, udp } th dport 80 dnat ip to 198.51.100.5
					fib daddr type local meta l4proto { tcp, udp } th dport 80 dnat ip6 to 2001:db8:5::5
				}
				chain postrouting { type nat hook postrouting priority srcnat;
					ip saddr 198.51.100.0/24 ip daddr 192.0.2.0/24 masquerade
					ip6 saddr 2001:db8:5::/64 ip6 daddr 2001:db8::/64 masquerade
				}
			}`, "nft", "-f", "-")
		}
		h.client.Run("sh", "-c", "ip -o link show type veth | sed -E 's/^[0-9]+: ([^@:]+).*/\\1/' | while read l; do ip addr add 192.0.2.3/24 dev $l; ip addr add 2001:db8::3/64 dev $l nodad; done")
		config := `[service.inner]
ports = ["80/tcp", "80/udp"]
` + on + `
max_open_for = "1h"
[knock.front]
type = "sequence"
opens = ["inner"]
sequence = ["47011/tcp", "48022/udp", "45033/tcp"]
`
		h.serve(config)
		// Whoever speaks first behind a cut makes conntrack's entry, and that is to
		// be the server.
		var hush atomic.Bool
		// speaks has a client say something every 50 ms.
		speaks := func(network string, from, to netip.Addr) {
			t.Helper()
			d := net.Dialer{Timeout: 4 * time.Second, LocalAddr: &net.TCPAddr{IP: from.AsSlice()}}
			if network == "udp" {
				d.LocalAddr = &net.UDPAddr{IP: from.AsSlice()}
			}
			var c net.Conn
			var err error
			h.client.Do(func() { c, err = d.Dial(network, netip.AddrPortFrom(to, 80).String()) })
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
			go io.Copy(io.Discard, c)
			go func() {
				for range 2000 {
					if !hush.Load() {
						c.Write([]byte("ping"))
					}
					time.Sleep(50 * time.Millisecond)
					if t.Context().Err() != nil {
						return
					}
				}
			}()
			start := time.Now()
			h.eventually(network+" works at all", func() bool { return b.heardSince(start, network, from) })
		}
		for i, p := range ways {
			neighbour := []netip.Addr{netip.MustParseAddr("192.0.2.3"), netip.MustParseAddr("2001:db8::3")}[i]
			for _, from := range []netip.Addr{p.client, neighbour} {
				h.must("open", "inner", from.String(), "--for", "1h")
				speaks("tcp", from, p.server)
				speaks("udp", from, p.server)
			}
			h.must("close", p.client.String())
			before := time.Now()
			for _, network := range []string{"tcp", "udp"} {
				h.eventually(network+" lives behind a close alone", func() bool { return b.heardSince(before, network, p.client) })
			}
			hush.Store(true)
			time.Sleep(100 * time.Millisecond) // what was on its way
			contains(t, h.must("close", "inner", p.client.String(), "--cut"), "closed: 0 grants of "+p.client.String()+" ended, 2 connections cut")
			time.Sleep(200 * time.Millisecond)
			hush.Store(false)
			deaf := func(when string) {
				t.Helper()
				then := time.Now()
				for _, network := range []string{"tcp", "udp"} {
					h.eventually(network+" of a neighbour lives "+when, func() bool { return b.heardSince(then, network, neighbour) })
				}
				time.Sleep(time.Until(then.Add(2 * time.Second)))
				for _, network := range []string{"tcp", "udp"} {
					if b.heardSince(then, network, p.client) {
						t.Errorf("published %v, %s: %s is heard %s", published, p.name, network, when)
					}
				}
			}
			deaf("after --cut")
			h.reload(strings.Replace(config, "1h", fmt.Sprint(2+i, "h"), 1), readAgain)
			deaf("after a reload")

			// A daemon that did not see the cut knows of it too.
			h.Signal(syscall.SIGTERM)
			h.Wait()
			h.serve(config)
			deaf("after a restart")
			h.must("open", "inner", p.client.String(), "--for", "2s")
			speaks("tcp", p.client, p.server)
			time.Sleep(2500 * time.Millisecond) // the grant is over
			then := time.Now()
			h.eventually("what was begun behind the cut outlives its grant", func() bool { return b.heardSince(then, "tcp", p.client) })
		}
	}
}

// Promise 1 again: asking for the status gives no leave to close by key.
func TestCloseByKeyNeedsATicket(t *testing.T) {
	t.Parallel()
	u := newUser(1)
	h := newKeyHouse(t, u)
	h.serve(h.config(""))
	for _, p := range paths {
		h.ask(p, u, spa.Request{Action: spa.Open})
		h.await(true, 22, p)
	}
	c := h.connect() // by the socket that only asks
	c.SetDeadline(time.Now().Add(soon))
	io.WriteString(c, `{"do":"close","key":"`+u.fingerprint(t)+`"}`+"\n")
	if answer, err := io.ReadAll(c); err != nil || !strings.Contains(string(answer), "no administrator asked") {
		t.Errorf("%s, %v", answer, err)
	}
	if n := len(h.grants()); n != 2 {
		t.Errorf("%d grants are left", n)
	}
}

func TestCloseByKey(t *testing.T) {
	t.Parallel()
	u, other := newUser(1), newUser(2)
	h := newKeyHouse(t, u, other)
	h.serve(h.config(""))
	var calls []call
	for _, p := range paths {
		h.ask(p, u, spa.Request{Action: spa.Open, For: 2 * time.Second})
		h.await(true, 22, p)
		calls = append(calls, h.call(p))
	}
	if list := h.grants(); len(list) != 2 || list[0].By != "keys "+u.fingerprint(t) {
		t.Errorf("grants: %v", list)
	}
	contains(t, h.must("close", "--key", u.fingerprint(t)), "closed: 2 grants of "+u.fingerprint(t)+" ended; live connections go on; whoever has the key can knock again")
	h.is(false, 22, paths...)
	h.lives("close --key", calls...)
	for _, f := range []string{u.fingerprint(t), other.fingerprint(t)} {
		if out, err := h.Tool("close", "--key", f); err == nil || !strings.Contains(out, "no grant of "+f+" is there") {
			t.Errorf("%s, %v", out, err)
		}
	}
	// The grants are long gone, the connections are not.
	if out, err := h.Tool("close", "--key", other.fingerprint(t), "--cut"); err == nil || !strings.Contains(out, "nor a connection") {
		t.Errorf("%s, %v", out, err)
	}
	h.lives("another key's close --cut", calls...)
	contains(t, h.must("close", "--key", u.fingerprint(t), "--cut"), "0 grants of "+u.fingerprint(t)+" ended, 2 connections cut")
	h.dead("close --key --cut", calls...)
	h.said("live connections were cut connections=2")
}

// A line that leaves authorized_keys lets nobody in any more, at once and
// without a word to the daemon.
func TestKeyFilesAreFollowed(t *testing.T) {
	t.Parallel()
	ann, bob := newUser(1), newUser(2)
	h := newKeyHouse(t, ann, bob)
	h.serve(h.config(""))
	generation := func() string {
		return regexp.MustCompile(`"generation":\d+`).FindString(h.must("status", "--json"))
	}
	if got := generation(); got != `"generation":1` {
		t.Fatal(got)
	}
	h.put("authorized_keys", ann.line("ann")+"nonsense\n")
	line := h.Await("the keys changed")
	contains(t, line, "knock=keys added=0 removed=1")
	contains(t, line, bob.fingerprint(t)+" user1")
	contains(t, h.Await("a line of authorized_keys gives no key"), "line=2")
	if got := generation(); got != `"generation":2` {
		t.Error(got)
	}
	h.ask(paths[0], bob, spa.Request{Action: spa.Open})
	h.ask(paths[1], ann, spa.Request{Action: spa.Open})
	h.await(true, 22, paths[1])
	h.is(false, 22, paths[0])

	// Whoever can write the list lets in whom he likes, so it counts for nothing.
	if err := os.Chmod(h.path("authorized_keys"), 0o666); err != nil {
		t.Fatal(err)
	}
	contains(t, h.Await("nobody can knock by this knock"), "chmod go-w")
	h.Await("added=0 removed=1 who=\"[" + ann.fingerprint(t))
	h.ask(paths[0], ann, spa.Request{Action: spa.Open})
	h.put("authorized_keys", bob.line("bob"))
	h.Await("added=1 removed=0")
	h.is(false, 22, paths[0])

	// The server's key stays in use without its file.
	if err := os.Remove(h.path("server.key")); err != nil {
		t.Fatal(err)
	}
	contains(t, h.Await("the server's key that was read before stays in use"), "keygen")
	h.ask(paths[0], bob, spa.Request{Action: spa.Open})
	h.await(true, 22, paths[0])
	h.reload(h.config("max_attempts = 100"), refusal)
	h.said("is not there; make it with 'sallyport keygen --out")
}

func TestKeyFilesThatOthersCanReadStopTheStart(t *testing.T) {
	t.Parallel()
	h := newKeyHouse(t, newUser(1))
	if err := os.Chmod(h.path("server.key"), 0o644); err != nil {
		t.Fatal(err)
	}
	h.Daemon = h.house.server.Launch(testnet.Binary(t), h.config(""))
	h.end(2, "knock.keys.key: ", "chmod 600 "+h.path("server.key"))
	if h.table() != "" {
		t.Error("it hid something that nobody could open")
	}
}

func TestTheJournalsLife(t *testing.T) {
	t.Parallel()
	h := newKeyHouse(t, newUser(1))
	calls := filepath.Join(t.TempDir(), "calls")
	bin := wrapper(t, "strace -D -f -y -o "+calls+" -e trace=fsync,rename,renameat,renameat2,fdatasync,exit_group,execve %s")
	h.Daemon = h.house.server.Serve(bin, h.config(""))
	state := filepath.Join(h.Dir, "state")
	mark := func() string {
		b, _ := os.ReadFile(filepath.Join(state, "journal.boot"))
		return string(b)
	}
	if !strings.HasSuffix(mark(), " running\n") {
		t.Errorf("while it runs the mark is %q", mark())
	}
	for _, name := range []string{"journal.0", "journal.1", "journal.boot"} {
		if info, err := os.Stat(filepath.Join(state, name)); err != nil || info.Mode() != 0o600 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	engine := h.enginePid()
	for fd, name := range map[int]string{5: "journal.0", 6: "journal.1"} {
		if to, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", engine, fd)); filepath.Base(to) != name {
			t.Errorf("the engine's descriptor %d is %s, %v", fd, to, err)
		}
	}
	h.Signal(syscall.SIGTERM)
	h.Wait()
	if !strings.HasSuffix(mark(), " clean\n") {
		t.Errorf("after a clean stop the mark is %q", mark())
	}
	text, err := os.ReadFile(calls)
	if err != nil {
		t.Fatal(err)
	}
	// Each step must be on disk before the next: first the doubt and then an
	// engine; what the engine refuses after an unclean end, and then the word that
	// it has the journal; at the end the journal and only then the word that it is
	// whole.
	inOrder(t, string(text),
		`fsync\(\d+<\S*/\.journal\.boot-`, `rename\S*\(.*journal\.boot"`, `fsync\(\d+<\S*/state>`,
		`execve\("/engine`,
		`fdatasync\(\d+`,
		`fsync\(\d+<\S*/\.journal\.boot-`, `rename\S*\(.*journal\.boot"`, `fsync\(\d+<\S*/state>`,
		fmt.Sprintf(`%d .*\+\+\+ killed by SIGKILL|%d .*\+\+\+ exited`, engine, engine),
		`fsync\(\d+<\S*/journal\.0>`, `fsync\(\d+<\S*/journal\.1>`,
		`fsync\(\d+<\S*/\.journal\.boot-`, `rename\S*\(.*journal\.boot"`, `fsync\(\d+<\S*/state>`)
}

// inOrder looks for lines, each behind the one before.
func inOrder(t *testing.T, text string, patterns ...string) {
	t.Helper()
	rest := text
	for i, p := range patterns {
		at := regexp.MustCompile(p).FindStringIndex(rest)
		if at == nil {
			t.Fatalf("step %d, %s, does not come behind those before it:\n%s", i, p, text)
		}
		rest = rest[at[1]:]
	}
}

// An observing daemon changes nothing.
func TestAnObserverHasNoJournal(t *testing.T) {
	t.Parallel()
	h := newKeyHouse(t, newUser(1))
	h.serve(h.config(""), "--observe")
	if files, _ := filepath.Glob(filepath.Join(h.Dir, "state", "*")); len(files) > 0 {
		t.Errorf("it made %v", files)
	}
}

// Where packet sockets are not allowed, none is tried.
func TestSourceSocketOpensNoPacketSocket(t *testing.T) {
	t.Parallel()
	u := newUser(1)
	h := newKeyHouse(t, u)
	calls := filepath.Join(t.TempDir(), "calls")
	bin := wrapper(t, "strace -D -f -o "+calls+" -e trace=socket %s")
	h.Daemon = h.house.server.Serve(bin, h.config(`source = "socket"`))
	for _, p := range paths {
		h.ask(p, u, spa.Request{Action: spa.Open})
		h.await(true, 22, p)
	}
	text, err := os.ReadFile(calls)
	if err != nil || !strings.Contains(string(text), "AF_INET6, SOCK_DGRAM") || strings.Contains(string(text), "AF_PACKET") {
		t.Errorf("%v\n%s", err, text)
	}
	h.reload(h.config(""), refusal)
	h.said("can't change while the daemon runs; restart it for that")
	h.reload(strings.Replace(h.config(`source = "socket"`), fmt.Sprint(spaPort), "48901", 1), refusal)
}

func echoPackets(c net.PacketConn) {
	b := make([]byte, 64)
	for {
		n, from, err := c.ReadFrom(b)
		if err != nil {
			return
		}
		c.WriteTo(b[:n], from)
	}
}
