package knock

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/spa"
)

// Each place where the way of a datagram ends has its words.
func TestExplainSaysWhereDatagramsEnd(t *testing.T) {
	sealed := func(s *server) []byte { return s.seal(s.key, spa.Request{}, s.user) }
	for _, c := range []struct {
		name string
		b    func(s *server) []byte
		want string
	}{
		{"good", sealed, "signed by an allowed key, fresh and allowed: the knock is complete"},
		{"a byte short", func(s *server) []byte { return sealed(s)[1:] }, "its length is no request's"},
		{"noise", func(s *server) []byte { return make([]byte, spa.SmallSize) }, "the first gate tag is wrong"},
		{"another server's", func(s *server) []byte {
			k, _ := spa.NewServerKey(spa.Classic)
			return s.seal(k, spa.Request{}, s.user)
		}, "the first gate tag is wrong: it is no request, or made with another server's address"},
		{"damaged at its end", func(s *server) []byte {
			b := sealed(s)
			b[len(b)-1] ^= 1
			return b
		}, "the first gate tag is right and the second is not"},
		{"a stranger's", func(s *server) []byte { return s.seal(s.key, spa.Request{}, s.nobody) }, "refused: its key is not in authorized_keys: SHA256:"},
		{"to an old key", func(s *server) []byte {
			s.now = s.now.Add(2 * time.Hour)
			return s.seal(s.old, spa.Request{}, s.user)
		}, "refused: it is sealed for a server key whose time is over"},
		{"stale", func(s *server) []byte {
			return s.seal(s.key, spa.Request{Stamp: s.now.Add(-3 * time.Minute).UnixNano()}, s.user)
		}, "refused: older than the window: stale by 3m0s"},
		{"ahead", func(s *server) []byte {
			return s.seal(s.key, spa.Request{Stamp: s.now.Add(2 * time.Minute).UnixNano()}, s.user)
		}, "refused: from the future: ahead by 2m0s"},
		{"for something else", func(s *server) []byte { return s.seal(s.key, spa.Request{Services: []string{"db"}}, s.user) },
			"refused: the knock or the key does not open that service"},
	} {
		bothFamilies(t, func(t *testing.T, src, _ netip.Addr) {
			s := newServer(t, "", "")
			b := c.b(s)
			for i, want := range []string{c.want, ""} {
				_, meant := s.Explain(udp(src, b), 0)
				if len(meant) != 1 || meant[0].Knock != 0 || !strings.Contains(meant[0].Text, want) {
					t.Errorf("%s, copy %d: %+v, want %q", c.name, i, meant, want)
				}
			}
		})
	}
}

func TestExplainOfCopiesAndOthers(t *testing.T) {
	bothFamilies(t, func(t *testing.T, src, _ netip.Addr) {
		s := newServer(t, "", "")
		good := s.seal(s.key, spa.Request{}, s.user)
		stale := s.seal(s.key, spa.Request{Stamp: s.now.Add(-time.Hour).UnixNano()}, s.user)
		cut := udp(src, good)
		cut.Cut = true
		if _, meant := s.Explain(cut, 0); len(meant) != 1 || !strings.Contains(meant[0].Text, "only its beginning") {
			t.Errorf("cut: %+v", meant)
		}
		for want, b := range map[string][]byte{
			"a copy of a request that had its answer: it says nothing new": good,
			"a copy of a request that was refused: it says nothing new":    stale,
		} {
			s.Explain(udp(src, b), 0)
			if _, meant := s.Explain(udp(src, bytes.Clone(b)), 0); len(meant) != 1 || meant[0].Text != want {
				t.Errorf("%+v, want %q", meant, want)
			}
		}
		other := udp(src, good)
		other.DstPort++
		if out, meant := s.Explain(other, 0); out != nil || meant != nil {
			t.Errorf("another port: %+v", meant)
		}
	})
}
