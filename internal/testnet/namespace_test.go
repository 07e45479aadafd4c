package testnet_test

import (
	"strings"
	"testing"

	"github.com/sallyport/sallyport/internal/testnet"
)

func TestConnectReachesTheOtherEndAndNothingElse(t *testing.T) {
	a, b := testnet.New(t), testnet.New(t)
	testnet.Connect(a, b, []string{"192.0.2.1/24", "2001:db8::1/64"}, []string{"192.0.2.2/24", "2001:db8::2/64"})
	for _, addr := range []string{"192.0.2.2", "2001:db8::2"} {
		a.Run("ping", "-c1", "-W2", addr)
	}
	if out := b.Run("ip", "-brief", "link"); strings.Count(out, "\n") != 2 {
		t.Errorf("want lo and one wire, got\n%s", out)
	}
}
