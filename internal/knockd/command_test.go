package knockd

import (
	"os/exec"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// TestCommands: which texts need a shell.
func TestCommands(t *testing.T) {
	for text, want := range map[string][]string{
		"":          nil,
		"/bin/true": {"/bin/true"},
		"/sbin/iptables -A INPUT  -s\t%IP% --dport 22": {"/sbin/iptables", "-A", "INPUT", "-s", "%IP%", "--dport", "22"},
		"/bin/x a=b ,%IP%:22 @é –x":                    {"/bin/x", "a=b", ",%IP%:22", "@é", "–x"},
	} {
		if got := commandOf(text); !slices.Equal(got, want) {
			t.Errorf("%q: %q", text, got)
		}
	}
	for _, text := range []string{
		"iptables -A", "./x", "a/b", "A=1 /bin/x", "/bin/a=b", "/bin/x $HOME", "/bin/x 'a b'", `/bin/x "a"`, `/bin/x \a`, "/bin/x a;b", "/bin/x&", "/bin/x|y", "/bin/x >f", "/bin/x <f",
		"/bin/x *", "/bin/x ?", "/bin/x [a]", "/bin/x {a,b}", "/bin/x ~", "/bin/x `y`", "/bin/x (y)", "/bin/x #y", "/bin/x !", "/bin/x a\rb", "/bin/x a\vb", "/bin/x a^b", "if /bin/x", "/bin/x" + strings.Repeat(" a", 256),
	} {
		if got := commandOf(text); !slices.Equal(got, []string{"/bin/sh", "-c", text}) {
			t.Errorf("%q: %q", text, got)
		}
	}
}

// TestLikeShell: where we split a text ourselves, a real shell makes the same words
// of it, whatever address is put in, before or after.
func TestLikeShell(t *testing.T) {
	split := 0
	word := rapid.StringMatching(`[a-zA-Z0-9%+,./:=@_é–\x{a0}-]{1,6}`)
	odd := rapid.SampledFrom([]string{"'", "\"", "$", "*", "~", "#", "!", "{", "=", "^", "\xff", "\x81", "\x88", "%IP%", "[x]", "\\", "-"})
	rapid.Check(t, func(t *rapid.T) {
		var b strings.Builder
		b.WriteString(rapid.SampledFrom([]string{"/", "/bin/echo", "/x%IP%"}).Draw(t, "first"))
		for range rapid.IntRange(0, 5).Draw(t, "words") {
			b.WriteString(rapid.SampledFrom([]string{" ", "  ", "\t", ""}).Draw(t, "blank"))
			if rapid.IntRange(0, 9).Draw(t, "kind") == 0 {
				b.WriteString(odd.Draw(t, "odd"))
			} else {
				b.WriteString(word.Draw(t, "word"))
			}
		}
		text := b.String()
		words := commandOf(text)
		if words[0] == "/bin/sh" {
			return
		}
		split++
		addr := rapid.SampledFrom([]string{"192.0.2.1", "2001:db8::1"}).Draw(t, "addr")
		for i := range words {
			words[i] = strings.ReplaceAll(words[i], address, addr)
		}
		// The first word is replaced by a program that prints its arguments.
		text = strings.ReplaceAll(text, address, addr)
		out, err := exec.Command("/bin/sh", "-c", `/usr/bin/printf '%s\0' `+text).Output()
		if got := strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00"); err != nil || !slices.Equal(got, words) {
			t.Fatalf("%q: the shell makes %q (%v), we %q", text, got, err, words)
		}
	})
	if split < 10 {
		t.Errorf("only %d texts were split", split)
	}
}
