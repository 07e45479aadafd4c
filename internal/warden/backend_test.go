//go:build linux

package warden

import (
	"strings"
	"testing"

	"github.com/sallyport/sallyport/internal/config"
)

// What is said of a backend's rules names its own, which the owner is to look at.
func TestWordsOfABackend(t *testing.T) {
	for _, b := range []config.Backend{config.Nftables, config.Iptables, config.Commands} {
		text := missingHint(b)
		if b != config.Commands {
			text += placeOf(b)
		}
		if table := strings.Contains(text, "inet sallyport"); table != (b == config.Nftables) {
			t.Errorf("%v: %q", b, text)
		}
		if chains := strings.Contains(text, "ip6tables"); chains != (b == config.Iptables) {
			t.Errorf("%v: %q", b, text)
		}
	}
}
