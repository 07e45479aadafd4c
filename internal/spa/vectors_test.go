package spa

import (
	"encoding/base64"
	"flag"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sallyport/sallyport/vectors"
)

var update = flag.Bool("update", false, "make the files in vectors anew; the same release of Go makes the same")

func TestVectors(t *testing.T) {
	all, err := vectors.All()
	if err != nil {
		t.Fatal(err)
	}
	for name, v := range all {
		t.Run(name, func(t *testing.T) {
			got, o := judged(t, v)
			want := v.Get("expect")
			if !slices.Contains(early, want) {
				want = v.Get("action") // what is decided behind this package
			}
			if got != want {
				t.Fatalf("got %s, want %s", got, want)
			}
			if o == nil {
				return
			}
			lines := said(o)
			maps.DeleteFunc(lines, func(_, value string) bool { return value == "" })
			if d := cmp.Diff(answer(v), lines); d != "" {
				t.Errorf("(-the vector +this package)\n%s", d)
			}
		})
	}
}

// answer gives the lines about what the request says.
func answer(v *vectors.Vector) map[string]string {
	lines := map[string]string{}
	for _, name := range []string{"action", "stamp", "for", "ipv4", "ipv6", "own", "names", "key", "tag"} {
		if value := v.Get(name); value != "" {
			lines[name] = value
		}
	}
	return lines
}

// judged takes a vector as far as this package goes, in the order of the page.
func judged(t *testing.T, v *vectors.Vector) (string, *Opened) {
	var k ServerKey
	if err := k.UnmarshalText([]byte(v.Get("server-key"))); err != nil {
		t.Fatal(err)
	}
	if line := v.Get("server-address"); line != "" && line != k.Address().String() {
		t.Errorf("the address is %s", k.Address())
	}
	b := Single(v.Packet)
	switch {
	case b == nil:
		return "wrong-length", nil
	case !k.Gate().First(b):
		return "wrong-gate", nil
	case !k.Gate().Second(b):
		return "wrong-second-gate", nil
	}
	o, err := k.Open(b)
	if err == ErrSeal {
		return "not-sealed-for-us", nil
	} else if err == ErrRequest {
		return "malformed", nil
	}
	i := slices.IndexFunc(v.All("authorized-key"), func(line string) bool { return keyOf(t, line).Fingerprint() == o.Key })
	if i < 0 {
		return "unknown-key", nil
	}
	if _, err := o.Verify(keyOf(t, v.All("authorized-key")[i])); err != nil {
		return "wrong-signature", nil
	}
	return o.Action.String(), o
}

// keyOf reads the last but one word of a line of authorized_keys.
func keyOf(t *testing.T, line string) *PublicKey {
	t.Helper()
	words := strings.Fields(line)
	blob, err := base64.StdEncoding.DecodeString(words[len(words)-2])
	if err != nil {
		t.Fatal(err)
	}
	p, err := ParsePublicKey(blob)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// Every recipe has its file and its verdict there, so that nobody can take one
// away without a word.
func TestEveryVectorIsThere(t *testing.T) {
	if *update {
		writeVectors(t, makeVectors(t))
		return // what is linked in here is what was there before
	}
	all, err := vectors.All()
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{}
	for suite, prefix := range prefixes {
		for _, r := range recipes() {
			if r.fits(suite) {
				want[prefix+r.name] = r.expect
			}
		}
	}
	got, verdicts := map[string]string{}, map[string]bool{}
	for name, v := range all {
		got[name] = v.Get("expect")
		verdicts[got[name]] = true
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-recipes +files)\n%s", d)
	}
	for _, verdict := range append([]string{"open", "close", "extend", "replay", "too-old", "future", "before-start", "not-rising", "not-unicast",
		"key-not-now", "not-touched", "not-verified", "elsewhere", "states-another", "states-none", "not-from", "no-service"}, early...) {
		if !verdicts[verdict] {
			t.Errorf("no vector is about %s", verdict)
		}
	}
}
