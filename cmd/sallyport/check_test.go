//go:build linux

package main

import (
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/sallyport/sallyport/internal/authorized"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/spa"
)

func publicKey(t *testing.T) spa.PublicKey {
	t.Helper()
	public, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := spa.ParsePublicKey(key.Marshal())
	if err != nil {
		t.Fatal(err)
	}
	return *parsed
}

func TestLookAtKeys(t *testing.T) {
	cfg, err := config.Parse("f", []byte("[service.ssh]\nports = [\"22/tcp\"]\n[service.web]\nports = [\"443/tcp\"]\n"+
		"[knock.front]\ntype = \"spa\"\nopens = [\"ssh\"]\nkey = \"/k\"\nauthorized_keys = \"/a\""))
	if err != nil {
		t.Fatal(err)
	}
	now := time.Date(2027, 1, 31, 12, 0, 0, 0, time.UTC)
	tests := []struct {
		name   string
		key    authorized.Key
		usable bool
		want   []string // beginnings of warnings
	}{
		{"plain", authorized.Key{}, true, nil},
		{"long to go", authorized.Key{Expires: now.Add(14 * 24 * time.Hour)}, true, nil},
		{"soon", authorized.Key{Expires: now.Add(14*24*time.Hour - time.Second)}, true, []string{"/a:7: the key expires at 2027-02-14T11:59:59Z"}},
		{"its last second", authorized.Key{Comment: "ann", Expires: now.Add(time.Second)}, true, []string{`/a:7: the key of "ann" expires at 2027-01-31T12:00:01Z`}},
		{"now", authorized.Key{Expires: now}, false, []string{"/a:7: the key expired at 2027-01-31T12:00:00Z"}},
		{"later", authorized.Key{NotBefore: now.Add(time.Second)}, false, nil},
		{"since now", authorized.Key{NotBefore: now}, true, nil},
		{"a service", authorized.Key{Services: []string{"ssh"}}, true, nil},
		{"one too many", authorized.Key{Services: []string{"ssh", "web"}}, true, []string{`/a:7: services= names "web", which knock.front does not open`}},
		{"none of ours", authorized.Key{Services: []string{"web", "shs"}}, false, []string{`/a:7: services= names "web"`, `/a:7: services= names "shs"`}},
	}
	for _, test := range tests {
		test.key.Line, test.key.Public = 7, publicKey(t)
		f := knockFiles{server: []spa.FileKey{{Key: serverKey(t, spa.Classic)}}, users: []authorized.Key{test.key}}
		s, warnings := f.look(cfg, &cfg.Knocks[0], now)
		if !test.usable {
			test.want = append(test.want, "knock.front can be opened by nobody")
		}
		good := len(warnings) == len(test.want) && (s.Usable == 1) == test.usable && s.Keys["ssh-ed25519"] == 1
		for i := range min(len(warnings), len(test.want)) {
			good = good && strings.HasPrefix(warnings[i].Text, test.want[i]) && warnings[i].Advice != ""
		}
		if !good {
			t.Errorf("%s: %+v %q, want %q", test.name, s, warnings, test.want)
		}
	}
}

// A file of another kind has a fault on each line: nobody reads all of those.
func TestLookSaysSoMuch(t *testing.T) {
	f := knockFiles{server: []spa.FileKey{{Key: serverKey(t, spa.Classic)}}}
	for n := range 500 {
		f.bad = append(f.bad, authorized.Error{Line: n + 1, Text: "bad"})
	}
	_, warnings := f.look(&config.Config{}, &config.Knock{Name: "front", AuthorizedKeys: "/a"}, time.Now())
	if len(warnings) != mostLines+2 || warnings[mostLines].Text != fmt.Sprintf("/a: %d warnings more are not listed", 500-mostLines) {
		t.Errorf("%d warnings, the last is %q", len(warnings), warnings[len(warnings)-1])
	}
}
