package main

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport"
)

func oneTime(t *testing.T, fields string) *sallyport.OTP {
	t.Helper()
	k, err := sallyport.ParseOTP("sallyport-otp 1 door=a " + fields + " within=10s secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ")
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// By itself the client waits for the ports of the next time step, unless that is so far
// away that nobody would.
func TestTimeoutOfOneTimePorts(t *testing.T) {
	const pool = "pool=20000-39999/tcp steps=5 step="
	coded := oneTime(t, "digits=6 base=7000/tcp")
	coded.Code = "123456"
	given := 7 * time.Second
	for _, c := range []struct {
		knock sallyport.Knock
		given *time.Duration
		want  time.Duration
	}{
		{oneTime(t, pool+"30s"), nil, 40 * time.Second},
		{oneTime(t, pool+"10s"), nil, 30 * time.Second},
		{oneTime(t, pool+"5m0s"), nil, 310 * time.Second},
		{oneTime(t, pool+"1h0m0s"), nil, 30 * time.Second},
		{oneTime(t, pool+"30s"), &given, given},
		{oneTime(t, "digits=8 base=7000/udp"), nil, 40 * time.Second},
		{coded, nil, 30 * time.Second}, // of the next code nobody knows here
		{sallyport.Sequence{}, nil, 30 * time.Second},
	} {
		o := order{knock: c.knock}
		if got := o.timeout(c.given); got != c.want {
			t.Errorf("%v: %v, want %v", c.knock, got, c.want)
		}
	}
}

// A server that has just started refuses the ports of its first time step. Where those
// of the next were sent too, that is no cause any more.
func TestAStartIsNamedAsACause(t *testing.T) {
	k := oneTime(t, "pool=20000-39999/tcp steps=5 step=1h0m0s")
	coded := oneTime(t, "digits=6 base=7000/tcp")
	coded.Code = "123456"
	for _, c := range []struct {
		name  string
		knock *sallyport.OTP
		began time.Duration
		want  string
	}{
		{"in one step", k, time.Second, "the server started within the last 1h0m0s and takes the ports of the next time step, not of this one: try again in "},
		{"in two steps", k, time.Hour, ""},
		{"with a code", coded, time.Hour, "takes no code from before: try again with the code that the app shows next"},
	} {
		now := c.knock.StepEnd(time.Now()).Add(-time.Minute / 6)
		o := order{knock: c.knock, began: now.Add(-c.began)}
		if got := strings.Join(o.startCause(c.knock, now), ""); (c.want == "") != (got == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
	o := order{knock: k, began: time.Now()}
	if text := enumerated(o.secretCauses()); !strings.Contains(text, "the server started within") {
		t.Errorf("the causes are %s", text)
	}
}

// Of ports that are good from any address one of a host's two addresses opens.
func TestOneOfTwoAddressesIsTold(t *testing.T) {
	both := []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
	for _, c := range []struct {
		fields string
		sent   []netip.Addr
		want   bool
	}{
		{"pool=20000-39999/tcp steps=5 step=30s", both, false},
		{"pool=20000-39999/tcp steps=5 step=30s any-address", both, true},
		{"pool=20000-39999/tcp steps=5 step=30s any-address", both[1:], false},
		{"digits=6 base=7000/tcp", both, true},
		{"digits=6 base=7000/tcp", both[:1], false},
	} {
		o := order{knock: oneTime(t, c.fields)}
		if got := o.once(c.sent); got != c.want {
			t.Errorf("%s, to %v: %v", c.fields, c.sent, got)
		}
		if causes := enumerated(o.secretCauses()); strings.Contains(causes, "-4 or -6") == o.knock.(*sallyport.OTP).Bound() {
			t.Errorf("%s: the causes are %s", c.fields, causes)
		}
	}
	if o := (order{knock: sallyport.Sequence{}}); o.once(both) {
		t.Error("a sequence is good as often as it is sent")
	}
}
