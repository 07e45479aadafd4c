package web_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/testnet"
)

// browser is a Chromium inside a namespace, driven by W3C WebDriver.
type browser struct {
	t       *testing.T
	client  http.Client
	session string // the path of its session
	log     testnet.Output
}

// driverPort is free: the namespace is the test's own.
const driverPort = 9515

// newBrowser starts one. It ends with the test.
func newBrowser(t *testing.T, ns *testnet.Namespace) *browser {
	t.Helper()
	for _, program := range []string{"chromium", "chromedriver"} {
		if _, err := exec.LookPath(program); err != nil {
			missing(t, program)
		}
	}
	b := &browser{t: t, client: http.Client{Timeout: time.Minute, Transport: &http.Transport{
		DialContext: func(context.Context, string, string) (c net.Conn, err error) {
			ns.Do(func() { c, err = net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", driverPort), 5*time.Second) })
			return c, err
		},
	}}}
	home := t.TempDir()
	cmd := exec.Command("chromedriver", fmt.Sprintf("--port=%d", driverPort))
	cmd.Env = append(os.Environ(), "HOME="+home, "TMPDIR="+home)
	cmd.Stdout, cmd.Stderr = &b.log, &b.log
	// A group of its own: what it started ends with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = time.Second
	if err := ns.Start(cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if b.session != "" {
			b.ask("DELETE", b.session, nil)
		}
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		cmd.Wait()
	})
	b.eventually("the driver answers", func() bool { _, err := b.ask("GET", "/status", nil); return err == nil })
	b.open(home)
	return b
}

func (b *browser) open(home string) {
	b.t.Helper()
	answer := b.must("POST", "/session", map[string]any{"capabilities": map[string]any{"alwaysMatch": map[string]any{
		"acceptInsecureCerts": true,
		"goog:loggingPrefs":   map[string]string{"browser": "ALL"},
		"goog:chromeOptions": map[string]any{"args": []string{
			"--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
			"--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--user-data-dir=" + home + "/profile",
			"--host-resolver-rules=MAP four.example.net 192.0.2.2, MAP six.example.net [2001:db8::2]",
		}},
	}}})
	var session struct{ SessionID string }
	if err := json.Unmarshal(answer, &session); err != nil || session.SessionID == "" {
		b.t.Fatalf("%v: %s", err, answer)
	}
	b.session = "/session/" + session.SessionID
}

// ask makes a request and gives the answer's value.
func (b *browser) ask(method, path string, body any) (json.RawMessage, error) {
	var text []byte
	if body != nil {
		text, _ = json.Marshal(body)
	}
	request, err := http.NewRequest(method, fmt.Sprintf("http://127.0.0.1:%d%s", driverPort, path), bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	response, err := b.client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	text, err = io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err != nil {
		return nil, err
	}
	var answer struct{ Value json.RawMessage }
	if err := json.Unmarshal(text, &answer); err != nil || response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s %s: %s, %s, %v", method, path, response.Status, text, err)
	}
	return answer.Value, nil
}

func (b *browser) must(method, path string, body any) json.RawMessage {
	b.t.Helper()
	answer, err := b.ask(method, path, body)
	if err != nil {
		b.t.Fatalf("%v\n%s", err, b.log.String())
	}
	return answer
}

func (b *browser) eventually(what string, ok func() bool) {
	b.t.Helper()
	for end := time.Now().Add(40 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			b.t.Fatalf("it never came to this: %s\n%s", what, b.log.String())
		}
	}
}

// visit loads a page.
func (b *browser) visit(url string) {
	b.t.Helper()
	b.must("POST", b.session+"/url", map[string]string{"url": url})
}

// run runs a script in the page and gives its text.
func (b *browser) run(script string, args ...any) string {
	b.t.Helper()
	if args == nil {
		args = []any{}
	}
	var text string
	answer := b.must("POST", b.session+"/execute/sync", map[string]any{"script": script, "args": args})
	if err := json.Unmarshal(answer, &text); err != nil {
		b.t.Fatalf("%s: %v", answer, err)
	}
	return text
}

// element gives the path of the element with an id.
func (b *browser) element(id string) string {
	b.t.Helper()
	answer := b.must("POST", b.session+"/element", map[string]string{"using": "css selector", "value": "#" + id})
	var found map[string]string
	if err := json.Unmarshal(answer, &found); err != nil {
		b.t.Fatal(err)
	}
	for _, element := range found {
		return b.session + "/element/" + element
	}
	b.t.Fatalf("there is no #%s", id)
	return ""
}

// write types into a field, in place of what is there.
func (b *browser) write(id, text string) {
	b.t.Helper()
	b.run(`const e = document.getElementById(arguments[0]); const d = e.closest("details"); if (d) d.open = true; if ("value" in e && e.tagName !== "SELECT") e.value = ""; return ""`, id)
	if text != "" {
		b.must("POST", b.element(id)+"/value", map[string]string{"text": text})
	}
}

func (b *browser) click(id string) {
	b.t.Helper()
	b.must("POST", b.element(id)+"/click", struct{}{})
}

// console is what the page said to its developer.
func (b *browser) console() string {
	answer, _ := b.ask("POST", b.session+"/se/log", map[string]string{"type": "browser"})
	return string(answer)
}

// knock presses the button, waits until the page is done, and gives its state
// and its words.
func (b *browser) knock() (state, words string) {
	b.t.Helper()
	b.run(`const s = document.getElementById("status"); s.dataset.state = "pressed"; s.textContent = ""; return ""`)
	b.click("send")
	b.eventually("the page is done", func() bool {
		state = b.run(`return document.getElementById("status").dataset.state || ""`)
		return state == "sent" || state == "refused"
	})
	return state, b.run(`return document.getElementById("status").textContent`)
}
