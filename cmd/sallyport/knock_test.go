package main

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/internal/spa"
)

// kong wants the defaults as text.
func TestDefaultsAreThePackages(t *testing.T) {
	if sallyport.DefaultDelay != 20*time.Millisecond || sallyport.DefaultTimeout != 30*time.Second {
		t.Error("change the defaults of knockCmd as well")
	}
}

// publicOnly is a key that is not asked to sign.
type publicOnly []byte

func (k publicOnly) PublicKey() []byte           { return k }
func (k publicOnly) Sign([]byte) ([]byte, error) { return nil, errors.New("it was asked to sign") }

// The likely causes come first: what a person reads first is tried first.
func TestCausesInTheirOrder(t *testing.T) {
	public, _, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	blob, err := ssh.NewPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	shut := context.DeadlineExceeded
	refused := fmt.Errorf("%w, %w", shut, connectionRefused)
	const udp, key, address, clock, nat, down = "drops udp", "authorized_keys", "new invitation", "a clock is wrong", "behind NAT", "the service is down"
	for _, test := range []struct {
		suite    spa.Suite
		services []string
		observed bool
		counts   bool
		err      error
		want     []string
	}{
		{spa.Classic, nil, false, false, shut, []string{udp, key, address, clock, nat, down}},
		{spa.Classic, nil, true, true, shut, []string{udp, key, address, down}},
		{spa.PostQuantum, nil, true, true, shut, []string{udp, "does not take 1,372 bytes in one piece", key, address, down}},
		{spa.Classic, []string{"ssh", "web"}, true, true, shut, []string{"may not open ssh, web", address, udp, down}},
		{spa.Classic, nil, true, true, refused, []string{"the service is not running", udp, key, address}},
		{spa.PostQuantum, []string{"ssh"}, false, false, refused, []string{"the service is not running", "may not open ssh", address, udp, "1,372 bytes", clock, nat}},
	} {
		r := &sallyport.Request{Server: serverKey(t, test.suite).Address(), Signer: publicOnly(blob.Marshal()), Services: test.services, Observed: test.observed}
		o := &order{request: r, server: &server{counts: test.counts}}
		got := o.causes(test.err)
		if len(got) != len(test.want) {
			t.Errorf("%+v: got %q", test, got)
			continue
		}
		for i, cause := range got {
			if !strings.Contains(cause, test.want[i]) {
				t.Errorf("%+v: cause %d is %q", test, i+1, cause)
			}
		}
	}
}

func TestListed(t *testing.T) {
	four, six := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::2")
	if got := listed([]netip.Addr{six, four}); got != "2001:db8::2 and 192.0.2.1" {
		t.Error(got)
	}
	if got := listed([]netip.Addr{four}); got != "192.0.2.1" {
		t.Error(got)
	}
}
