package web_test

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/internal/otp"
	"github.com/sallyport/sallyport/internal/secrets"
	"github.com/sallyport/sallyport/internal/testnet"
)

// path is a way from the browser to the server, one for each family, and who takes
// it: a person has one knock in each time step.
type path struct {
	name, person   string
	client, server netip.Addr
	other          string // an address that is not the client's
	host           string // the server's name, of which the browser knows the address
}

var paths = []path{
	{"IPv4", "ann", netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), "192.0.2.9", "four.example.net"},
	{"IPv6", "bob", netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2"), "2001:db8::9", "six.example.net"},
}

// ways are what a browser's packets meet.
var ways = []struct {
	name, proto string
	drops       bool
}{
	{"tcp", "tcp", false},
	{"tcp-dropped", "tcp", true},
	{"udp", "udp", false},
}

// house is a server with a hidden port 22/tcp, its daemon, and a browser.
type house struct {
	*testnet.Daemon
	*browser
	t              *testing.T
	server, client *testnet.Namespace
	people         string
}

// newHouse starts all of it, with one knock of ann's and bob's.
func newHouse(t *testing.T, knock string) *house {
	t.Helper()
	testnet.RequireRoot(t)
	h := &house{t: t, server: testnet.New(t), client: testnet.New(t), people: filepath.Join(t.TempDir(), "people")}
	testnet.Connect(h.client, h.server, []string{"192.0.2.1/24", "2001:db8::1/64"}, []string{"192.0.2.2/24", "2001:db8::2/64"})
	// WebRTC sends nothing where there is no way to the internet.
	h.client.Run("ip", "route", "add", "default", "via", "192.0.2.2")
	h.client.Run("ip", "-6", "route", "add", "default", "via", "2001:db8::2")
	h.listen()
	bin := testnet.Binary(t)
	for _, p := range paths {
		h.client.Run(bin, "keygen", "--secret", p.person, "--out", h.people)
	}
	h.Daemon = h.server.Serve(bin, `[service.ssh]
ports = ["22/tcp"]
open_for = "1m"
max_open_for = "1h"
[knock.people]
opens = ["ssh"]
secrets = "`+h.people+`"
`+knock)
	h.browser = newBrowser(t, h.client)
	h.page()
	return h
}

// publish has the server give the page out by http and https.
func (h *house) publish() {
	h.t.Helper()
	files := http.FileServer(http.Dir("."))
	page := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.URL.Path = "/knock.html"
		files.ServeHTTP(w, r)
	})
	for _, port := range []string{"80", "443"} {
		l := h.listenOn(port)
		s := httptest.NewUnstartedServer(page)
		s.Listener.Close()
		s.Listener = l
		if port == "443" {
			s.StartTLS()
		} else {
			s.Start()
		}
		h.t.Cleanup(s.Close)
	}
}

func (h *house) listenOn(port string) (l net.Listener) {
	h.t.Helper()
	var err error
	h.server.Do(func() { l, err = net.Listen("tcp", ":"+port) })
	if err != nil {
		h.t.Fatal(err)
	}
	return l
}

func (h *house) listen() {
	h.t.Helper()
	l := h.listenOn("22")
	h.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
}

// drop has the server's own firewall answer nothing on closed ports, and not as we do.
func (h *house) drop(drops bool) {
	h.t.Helper()
	if drops {
		h.server.Input("add table inet own\nadd chain inet own in { type filter hook input priority 0; }\n"+
			"add rule inet own in meta l4proto { tcp, udp } th dport 1024-65535 ct state new drop\n", "nft", "-f", "-")
	}
}

// step is the port of a step of a person's knock.
func (h *house) step(p path, n int, now time.Time) uint16 {
	h.t.Helper()
	knock, err := sallyport.ParseOTP(strings.TrimSpace(h.line(p.person)))
	if err != nil {
		h.t.Fatal(err)
	}
	ports, _, err := knock.Ports(now, p.client)
	if err != nil {
		h.t.Fatal(err)
	}
	return ports[n]
}

// lose has the first packet to some ports lost on its way.
func (h *house) lose(ports string) {
	h.t.Helper()
	h.client.Input("table inet lossy { chain out { type filter hook output priority 0; "+ports+" numgen inc mod 1000 == 0 drop; }; }\n", "nft", "-f", "-")
}

// page loads the page from a file.
func (h *house) page() {
	h.t.Helper()
	file, err := filepath.Abs("knock.html")
	if err != nil {
		h.t.Fatal(err)
	}
	h.visit("file://" + file)
}

// line is what 'sallyport invite' prints for a person, all of it.
func (h *house) line(person string) string {
	h.t.Helper()
	out := h.client.Run(testnet.Binary(h.t), "invite", "-c", h.Config(), "--person", person, "--host", "192.0.2.2", "--name", "home")
	line, _, _ := strings.Cut(out[strings.Index(out, "sallyport-"):], "\nsallyport: ") // what it says beside
	return line
}

// secrets are the people's, by name.
func (h *house) secrets() map[string][]byte {
	h.t.Helper()
	text, err := os.ReadFile(h.people)
	if err != nil {
		h.t.Fatal(err)
	}
	people, faults := secrets.Parse(text)
	if len(faults) > 0 {
		h.t.Fatal(faults)
	}
	all := map[string][]byte{}
	for _, p := range people {
		all[p.Name] = p.Secret
	}
	return all
}

// setClock stops the page's clock.
func (h *house) setClock(t time.Time) {
	h.t.Helper()
	h.run(`const ms = arguments[0]; Date.now = () => ms; return ""`, t.UnixMilli())
}

// open reports whether the client reaches the hidden port now.
func (h *house) open(p path) bool {
	h.t.Helper()
	var c net.Conn
	var err error
	d := net.Dialer{Timeout: 2 * time.Second}
	h.client.Do(func() { c, err = d.Dial("tcp", netip.AddrPortFrom(p.server, 22).String()) })
	if err != nil {
		return false
	}
	c.Close()
	return true
}

// press knocks, and the page must have sent it.
func (h *house) press() {
	h.t.Helper()
	state, words := h.knock()
	if state != "sent" || !strings.Contains(words, "ssh ") {
		h.t.Fatalf("%s: %s\n%s", state, words, h.console())
	}
}

// warned checks whether the page says to wait, because copies of its packets follow.
func (h *house) warned(want bool) {
	h.t.Helper()
	words := h.run(`return document.getElementById("status").textContent`)
	if strings.Contains(words, "wait half a minute") != want {
		h.t.Errorf("the page says %q; to wait: want %v", words, want)
	}
}

// opened waits for the port, and says what the daemon makes of it if it stays shut.
func (h *house) opened(p path) {
	h.t.Helper()
	for end := time.Now().Add(10 * time.Second); !h.open(p); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			h.t.Fatalf("the knock opened nothing\n%s\n%s", h.Log(), h.console())
		}
	}
}

// shut knocks, and nothing may open.
func (h *house) shut(p path, why string) {
	h.t.Helper()
	h.press()
	time.Sleep(300 * time.Millisecond)
	if h.open(p) {
		h.t.Errorf("%s opened the port\n%s", why, h.Log())
	}
}

func (h *house) close(p path) {
	h.t.Helper()
	if out, err := h.Tool("close", "ssh", p.client.String()); err != nil {
		h.t.Fatalf("%v: %s", err, out)
	}
	if h.open(p) {
		h.t.Fatal("22 is open after the close")
	}
}

// noSecret looks for the secrets wherever a page leaves things behind.
func (h *house) noSecret() {
	h.t.Helper()
	places := map[string]string{
		"storage": h.run(`return JSON.stringify({ ...localStorage, ...sessionStorage }) + document.cookie + location.href + JSON.stringify(history.state)`),
		"console": h.console(),
		"status":  h.run(`return document.getElementById("status").textContent`),
		"log":     h.Log(),
	}
	for name, secret := range h.secrets() {
		for where, text := range places {
			if strings.Contains(text, secrets.Encode(secret)) {
				h.t.Errorf("the secret of %s is in the %s: %s", name, where, text)
			}
		}
	}
}

// One-time ports from a browser open the port, once, for the address they were
// made for.
func TestBrowserKnocksByOneTimePorts(t *testing.T) {
	for _, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			h := newHouse(t, fmt.Sprintf("type = \"otp\"\ntime_step = \"1h\"\npool = [\"20000-39999/%s\"]\n", way.proto))
			h.drop(way.drops)
			// The next time step: the daemon takes none that began before its journal.
			now := time.Now().Add(time.Hour)
			h.setClock(now)
			for i, p := range paths {
				h.write("line", h.line(p.person))
				h.write("host", p.server.String())
				h.write("address", "")
				if state, words := h.knock(); state != "refused" || !strings.Contains(words, "your address") {
					t.Errorf("%s: without an address: %s: %s", p.name, state, words)
				}
				other := paths[1-i].client.String()
				h.write("address", other)
				if state, words := h.knock(); state != "refused" || !strings.Contains(words, "of one kind") {
					t.Errorf("%s: with the address %s: %s: %s", p.name, other, state, words)
				}
				// Of what is not answered copies come later, which would spoil the next knock.
				if way.drops {
					h.write("host", p.host)
				} else {
					h.write("address", p.other)
					h.shut(p, "a knock for another address")
				}
				if way.name == "tcp" {
					h.lose(fmt.Sprint("tcp dport ", h.step(p, 2, now)))
				}
				h.write("address", p.client.String())
				h.press()
				h.warned(way.drops)
				h.opened(p)
				if !way.drops {
					h.close(p)
					h.shut(p, "the same knock again")
				}
			}
			h.noSecret()
		})
	}
}

// An app's code is enough, without any secret on the page; a wrong one is nothing.
func TestBrowserKnocksByCode(t *testing.T) {
	h := newHouse(t, "type = \"otp\"\ndigits = 6\nbase = \"7000/tcp\"\n")
	h.publish()
	for i, p := range paths {
		if i > 0 {
			h.visit("https://" + p.host)
		}
		h.write("base", "7000/tcp")
		h.write("host", p.server.String())
		// The next code: the daemon takes none of a time step that began before its journal.
		code := otp.Code(h.secrets()[p.person], time.Now().Add(otp.CodeStep), 6)
		h.write("code", code[:4]+fmt.Sprintf("%02d", (int(code[4]-'0')*10+int(code[5]-'0')+7)%100))
		h.shut(p, "a wrong code")
		h.write("code", otp.Code(h.secrets()[p.person], time.Now().Add(otp.CodeStep), 6))
		h.press()
		h.opened(p)
		if left := h.run(`return document.getElementById("code").value`); left != "" {
			t.Errorf("%s: the code stays on the page", p.name)
		}
		if id := h.run(`return document.activeElement.id`); id != "send" {
			t.Errorf("%s: after the knock the keyboard is at %q, not at the button", p.name, id)
		}
	}
	for _, proto := range []string{"tcp", "udp"} {
		h.write("base", "6600/"+proto)
		h.write("code", "670000")
		if state, words := h.knock(); state != "refused" || !strings.Contains(words, "refuse to send to port 6667") {
			t.Errorf("a port that browsers refuse, %s: %s: %s", proto, state, words)
		}
		// It was not sent, so it is still good.
		if left := h.run(`return document.getElementById("code").value`); left != "670000" {
			t.Errorf("of a code that was refused %q is left on the page", left)
		}
	}
	h.noSecret()
	h.visit("http://192.0.2.2")
	if seen := h.run(`return document.body.innerText`); strings.Contains(seen, "Server") || !strings.Contains(seen, "plain http") {
		t.Errorf("by plain http the page asks for secrets: %s", seen)
	}
	h.keeps()
}

// keeps checks that what a person wants kept is there again, and leaves with the tick.
func (h *house) keeps() {
	h.t.Helper()
	h.page()
	line := "sallyport-otp 1 door=front pool=20000-39999/tcp steps=5 step=30s any-address within=10s secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"
	h.write("line", line)
	h.write("host", "192.0.2.2")
	h.click("keep")
	h.press()
	h.page()
	if kept := h.run(`return document.getElementById("line").value`); kept != line {
		h.t.Errorf("kept was %q", kept)
	}
	h.click("keep")
	if kept := h.run(`return JSON.stringify(localStorage)`); kept != "{}" {
		h.t.Errorf("the tick is gone, and this is in the storage: %s", kept)
	}
	h.page()
	if kept := h.run(`return document.getElementById("line").value`); kept != "" {
		h.t.Errorf("the tick is gone, and the page still knows %s", kept)
	}
}

// A message in port numbers, by connections and by datagrams, opens and closes.
func TestBrowserKnocksByMessage(t *testing.T) {
	for _, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			h := newHouse(t, fmt.Sprintf("type = \"encoded\"\nbase = \"20000/%s\"\n", way.proto))
			h.drop(way.drops)
			for _, p := range paths {
				line := h.line(p.person)
				h.write("host", p.server.String())
				h.write("action", "open")
				if !way.drops {
					at := strings.LastIndex(line, "=") + 1
					h.write("line", line[:at]+strings.Repeat("A", len(strings.TrimSpace(line[at:]))))
					h.shut(p, "a wrong secret")
				}
				h.write("line", line)
				if way.proto == "udp" {
					h.lose("udp dport 22560-22815") // part 10
				}
				h.press()
				h.warned(way.drops)
				h.opened(p)
				if !way.drops {
					h.write("action", "close")
					h.press()
					h.eventually("the port is closed", func() bool { return !h.open(p) })
				}
			}
			h.noSecret()
		})
	}
}
