package config

import "testing"

// A message's strength is its tag's, whatever the span.
func TestStrengthOfEncoded(t *testing.T) {
	for span, want := range map[string]string{
		"16384": "knock.m: a message of 50 bytes in 50 packets, sealed: a forger guesses one in 2^96 for each person, and a scan guesses once at most",
		"4096":  "knock.m: a message of 50 bytes in 80 packets, sealed: a forger guesses one in 2^96 for each person, and a scan guesses once at most",
	} {
		c, err := Parse("f", []byte("[service.ssh]\nports = [\"22/tcp\"]\n[knock.m]\ntype = \"encoded\"\nopens = [\"ssh\"]\nsecrets = \"/s\"\nspan = "+span+"\n"))
		if err != nil {
			t.Fatal(err)
		}
		if got := StrengthOf(c, &c.Knocks[0], nil).String(); got != want {
			t.Errorf("span %s: %q", span, got)
		}
	}
}
