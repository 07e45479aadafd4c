//go:build linux

package warden

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/testnet"
)

// secretsConfig has two knocks, each with a file of secrets of its own.
func secretsConfig(t *testing.T, more string) (cfg *config.Config, one, two string) {
	t.Helper()
	dir := t.TempDir()
	one, two = filepath.Join(dir, "one"), filepath.Join(dir, "two")
	base := ""
	if strings.Contains(more, "digits") {
		base = "base = \"N/tcp\""
	}
	cfg, err := config.Parse("people.toml", []byte(`[service.ssh]
ports = ["22/tcp"]
[knock.a]
type = "otp"
opens = ["ssh"]
secrets = "`+one+`"
`+more+strings.ReplaceAll(base, "N", "7000")+`
[knock.b]
type = "otp"
opens = ["ssh"]
secrets = "`+two+`"
`+more+strings.ReplaceAll(base, "N", "8000")+`
`))
	if err != nil {
		t.Fatal(err)
	}
	return cfg, one, two
}

const (
	annsLine = "ann MFRGGZDFMZTWQ2LKNNWG23TPOBYXE43U"
	bobsLine = "bob GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"
)

// A secret that others could read is none; a line that left is revoked; one that is
// wrong takes nobody else with it.
func TestPeopleFollowTheirFile(t *testing.T) {
	var said testnet.Output
	cfg, one, two := secretsConfig(t, "digits = 6\n")
	writeLines(t, one, annsLine, bobsLine, "what")
	writeLines(t, two, "eve MFRGGZDFMZTWQ2LKNNWG23TPOBYXE43V")
	r := &keyring{log: slog.New(slog.NewTextHandler(&said, nil))}
	list, err := r.load(cfg, "f", nil)
	if err != nil || len(list[0].People) != 2 || len(list[1].People) != 1 {
		t.Fatalf("%v, %v", list, err)
	}
	if again := r.again(cfg, list); !sameKeys(again, list) {
		t.Error("the same files give other people")
	}
	steps := []struct {
		change func()
		want   int
		said   string
	}{
		{func() { writeLines(t, one, annsLine) }, 1, ""},
		{func() { os.Chmod(one, 0o644) }, 0, "nobody can knock by this knock until its file of secrets is right"},
		{func() { os.Chmod(one, 0o600) }, 1, ""},
		{func() { os.Remove(one) }, 0, "is not there"},
		{func() { writeLines(t, one, annsLine+` expiry-time="20200101Z"`) }, 1, "none in it that is valid now"},
		{func() { writeLines(t, one, "", annsLine, bobsLine) }, 2, ""},
	}
	for i, step := range steps {
		step.change()
		list = r.again(cfg, list)
		if len(list[0].People) != step.want || len(list[1].People) != 1 || !strings.Contains(said.String(), step.said) {
			t.Errorf("step %d: %v, %v\n%s", i, list[0].People, list[1].People, said.String())
		}
	}
	if n := strings.Count(said.String(), "gives nobody"); n != 1 {
		t.Errorf("a wrong line was told %d times", n)
	}
	for _, line := range []string{annsLine, bobsLine} {
		if strings.Contains(said.String(), strings.Fields(line)[1]) {
			t.Errorf("a secret is in the log:\n%s", said.String())
		}
	}
}

// Whoever sees a code on its way to one knock could take it to the other. Ports that
// follow from a knock's name can't be taken elsewhere.
func TestNoCodeIsGoodForTwoKnocks(t *testing.T) {
	for _, c := range []struct {
		more  string
		fails bool
	}{{"digits = 6\n", true}, {"digits = 8\n", true}, {"", false}} {
		cfg, one, two := secretsConfig(t, c.more)
		writeLines(t, one, annsLine)
		writeLines(t, two, bobsLine, "ann2 "+strings.Fields(annsLine)[1])
		r := &keyring{log: slog.New(slog.DiscardHandler)}
		if _, err := r.load(cfg, "f", nil); (err != nil) != c.fails || err != nil && !strings.Contains(err.Error(), "knock.b.secrets: this file has a secret of knock.a") {
			t.Errorf("%q: %v", c.more, err)
		}
		writeLines(t, two, bobsLine)
		list, err := r.load(cfg, "f", nil)
		if err != nil {
			t.Fatal(err)
		}
		writeLines(t, two, bobsLine, "ann2 "+strings.Fields(annsLine)[1])
		if list = r.again(cfg, list); (len(list[1].People) == 0) != c.fails || len(list[0].People) != 1 {
			t.Errorf("%q: after a change %v and %v may knock", c.more, list[0].People, list[1].People)
		}
	}
}
