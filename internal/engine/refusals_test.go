package engine

import (
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/engine/internal/knock"
	"github.com/sallyport/sallyport/internal/engine/internal/policy"
	"github.com/sallyport/sallyport/internal/secrets"
)

// Who knocked by a secret and got nothing is named as a person, and that the start is
// why, and until when, is said as of a request by a key.
func TestRefusalsNamePeople(t *testing.T) {
	at := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	for _, from := range []string{"192.0.2.7", "2001:db8::7"} {
		for _, c := range []struct {
			refusal knock.Refusal
			want    string
		}{
			{knock.Refusal{Why: "over"}, `a request by an allowed key or secret opened nothing" address=` + from + ` knock=phone whose=ann why=over requests=1`},
			{knock.Refusal{Why: "early", Boundary: at}, `whose=ann "refused up to"=2026-03-04T05:06:07Z why=early requests=1`},
			{knock.Refusal{Why: "late", Skew: -time.Hour}, `set the clock that is wrong, here or there, or somebody repeats an old datagram" address=` + from + ` knock=phone whose=ann "off by"=-1h0m0s`},
		} {
			var out strings.Builder
			var r refusals
			claim := policy.Claim{Source: netip.MustParseAddr(from), Asked: &policy.Asked{Person: &secrets.Person{Name: "ann"}}}
			r.add(&knock.Outcome{Claim: claim, Refusal: &c.refusal}, "phone")
			r.report(slog.New(slog.NewTextHandler(&out, nil)), at)
			if !strings.Contains(out.String(), c.want) {
				t.Errorf("%q, want %s", out.String(), c.want)
			}
		}
	}
}
