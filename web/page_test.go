// Package web_test tries the page that knocks: its arithmetic against the published
// vectors, and all of it in a browser against the daemon.
package web_test

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sallyport/sallyport/internal/testnet"
)

var update = flag.Bool("update", false, "write the hashes of the page's script and style into its policy")

func TestMain(m *testing.M) { os.Exit(testnet.Main(m)) }

// missing fails where 'make packages' could have installed it, and skips elsewhere.
func missing(t *testing.T, what string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skipf("needs %s, which only root can install", what)
	}
	if _, err := exec.LookPath("apt-get"); err != nil {
		t.Skipf("needs %s, which can't be installed without apt", what)
	}
	t.Fatalf("there is no %s: 'make packages' installs it", what)
}

func page(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("knock.html")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// A browser runs nothing but the very script that was reviewed: not one that got into
// the page behind it.
func TestPolicyNamesTheScriptAndTheStyle(t *testing.T) {
	text := page(t)
	for _, element := range []string{"script", "style"} {
		body := regexp.MustCompile(`(?s)<` + element + `>(.*)</` + element + `>`).FindStringSubmatch(text)
		if body == nil {
			t.Fatalf("the page has no %s", element)
		}
		sum := sha256.Sum256([]byte(body[1]))
		want := element + "-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
		if *update {
			text = regexp.MustCompile(element+`-src 'sha256-[^']*'`).ReplaceAllString(text, want)
		} else if !strings.Contains(text, want) {
			t.Errorf("the policy lacks %s; after a look at the change: go test ./web -update", want)
		}
	}
	if *update {
		if err := os.WriteFile("knock.html", []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// Nothing of the page comes from elsewhere, and nothing typed goes into text that a
// browser would read as HTML.
func TestPageStandsAlone(t *testing.T) {
	text := page(t)
	for _, bad := range []string{`\ssrc=`, `\shref=`, `@import`, `url\(`, `innerHTML`, `insertAdjacent`, `document\.write`, `eval\(`, `import\(`, `document\.cookie`, `sendBeacon`, `\son[a-z]+=`} {
		if found := regexp.MustCompile(bad).FindString(text); found != "" {
			t.Errorf("the page has %q", found)
		}
	}
	for _, want := range []string{"default-src 'none'", "connect-src https:", "form-action 'none'", "base-uri 'none'"} {
		if !strings.Contains(text, want) {
			t.Errorf("the page's policy lacks %q", want)
		}
	}
	for _, input := range regexp.MustCompile(`<(?:input|textarea) [^>]*>`).FindAllString(text, -1) {
		if !strings.Contains(input, `autocomplete="off"`) && !strings.Contains(input, "checkbox") {
			t.Errorf("a browser may remember %s", input)
		}
	}
}

// typed is what people give, and what the page makes of it.
var typed = []struct{ kind, text, want string }{
	{"host", "192.0.2.2", "192.0.2.2"},
	{"host", "2001:DB8::2", "[2001:db8::2]"},
	{"host", "[2001:db8:0:0::2]", "[2001:db8::2]"},
	{"host", "::ffff:192.0.2.2", "192.0.2.2"},
	{"host", "Server.example.net", "server.example.net"},
	{"host", "", "refused"},
	{"host", "server.example.net:22", "refused"},
	{"host", "server.example.net/x", "refused"},
	{"host", "a@b.example.net", "refused"},
	{"host", "192.0.2.300", "refused"},
	{"host", "0x7f.1", "refused"},
	{"host", "fe80::1%eth0", "refused"},
	{"host", "a b", "refused"},
	{"address", "192.0.2.7", "192.0.2.7"},
	{"address", "::ffff:192.0.2.7", "192.0.2.7"},
	{"address", "2001:db8::7", "32.1.13.184.0.0.0.0.0.0.0.0.0.0.0.7"},
	{"address", "::", "0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0"},
	{"address", "1:2:3:4:5:6:7:8", "0.1.0.2.0.3.0.4.0.5.0.6.0.7.0.8"},
	{"address", "192.0.2", "none"},
	{"address", "192.0.2.07", "none"},
	{"address", "2001:db8::7::", "none"},
	{"bad", "6667", "6667"},
	{"bad", "10080", "10080"},
	{"bad", "20000", "undefined"},
	{"line", "sallyport-otp 1 door=front pool=20000-39999/tcp steps=5 step=30s within=10s secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ", "good"},
	{"line", "sallyport-otp 1 door=front pool=20000-20999,21001/udp steps=9 step=1m0s any-address within=1m0s secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ", "good"},
	{"line", "sallyport-otp 1 door=phone digits=6 base=7000/tcp within=10s secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ", "good"},
	{"line", "sallyport-otp 1 door=phone digits=6 base=7000/tcp within=10s", "good"},
	// As a mail program breaks it, with a space that is none of ASCII's.
	{"line", "\n sallyport-otp 1\tdoor=phone digits=6\r\nbase=7000/tcp\u00a0within=10s\n\n", "good"},
	{"line", "sallyport-otp 1 door=phone digits=6 base=7000/tcp within=10s secret=GEZDGNBVGY3TQOJQ GEZDGNBVGY3TQOJQ", "refused"},
	{"line", "sallyport-encoded 1 door=front base=20000/tcp span=16384 payload=0 within=30s secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ", "good"},
	{"line", "sallyport-encoded 1 door=front base=20000/tcp span=16384 payload=0 within=30s", "refused"},
	{"line", "sallyport-encoded 2 door=front base=20000/tcp span=16384 payload=0 within=30s secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ", "refused"},
	{"line", "sallyport-encoded 1 door=front base=20000/tcp span=16384 payload=65 within=30s secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ", "refused"},
	{"line", "sallyport-encoded 1 door=front base=20000-20001/tcp span=16384 payload=0 within=30s secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ", "refused"},
	{"line", "sallyport-encoded 1 door=front door=front base=20000/tcp span=16384 payload=0 within=30s secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ", "refused"},
	{"line", "sallyport-encoded 1 door=Front base=20000/tcp span=16384 payload=0 within=30s secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ", "refused"},
	{"line", "sallyport-encoded 1 door=front base=20000/icmp span=16384 payload=0 within=30s secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ", "refused"},
	{"line", "sallyport-encoded 1 door=front base=20000/tcp span=16384 payload=0 within=30s secret=GEZDGNBV", "refused"},
	{"line", "sallyport-encoded 1 door=front base=20000/tcp span=16384 payload=0 within=30s secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ1", "refused"},
	{"line", "sallyport-encoded 1 door=front base=20000/tcp span=16384 payload=0 within=30s secret=GEZDGNBVGY3TQOJQGEZDGNBVGY", "good"},
	{"line", "sallyport-encoded 1 door=front base=20000/tcp span=16384 payload=0 within=30s secret=GEZDGNBVGY3TQOJQGEZDGNBVGZ", "refused"},
	{"line", "sallyport-encoded 1 door=front base=20000/tcp span=16384 payload=0 within=30m secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ", "refused"},
	{"line", "sallyport add home x", "refused"},
}

// The script follows the manual pages, so that these are specifications: it makes the
// very ports of every vector, and refuses what a client must refuse.
func TestScriptAgreesWithTheVectors(t *testing.T) {
	if _, err := exec.LookPath("node"); err != nil {
		missing(t, "node")
	}
	want, input := map[string]string{}, ""
	for _, kind := range []string{"otp", "encoded"} {
		files, err := filepath.Glob("../vectors/" + kind + "/*.txt")
		if err != nil || len(files) == 0 {
			t.Fatalf("no vectors of %s: %v", kind, err)
		}
		for _, file := range files {
			text, _ := os.ReadFile(file)
			expect := regexp.MustCompile(`(?m)^expect: (.*)$`).FindStringSubmatch(string(text))[1]
			if kind == "otp" || expect == "good" { // the other messages are what no client makes
				want[kind+"/"+strings.TrimSuffix(filepath.Base(file), ".txt")] = expect
			}
		}
	}
	for _, row := range typed {
		line, _ := json.Marshal([]string{row.kind, row.text})
		want[string(line)] = row.want
		input += string(line) + "\n"
	}
	cmd := exec.Command("node", "vectors.mjs", "knock.html", "../vectors/otp", "../vectors/encoded")
	cmd.Stdin, cmd.WaitDelay = strings.NewReader(input), time.Second
	timer := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() })
	defer timer.Stop()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	got := map[string]string{}
	for line := range strings.Lines(string(out)) {
		at := strings.LastIndex(line, ": ")
		if at < 0 {
			t.Fatal(line)
		}
		got[line[:at]] = strings.TrimSpace(line[at+2:])
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-expected +the page's script:\n%s", diff)
	}
	if t.Failed() {
		fmt.Fprintln(os.Stderr, "the manual pages and the vectors say what is right")
	}
}
