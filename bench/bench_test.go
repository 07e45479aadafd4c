package main

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/bpf"

	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/sallyport/sallyport/internal/testnet"
)

// A figure is only as good as its prober: what passes here counts as the port's
// answer. An unreachable that the last knock's own port sends must not.
func TestOnlyASynAckIsAnAnswer(t *testing.T) {
	vm, err := bpf.NewVM(synAcks)
	if err != nil {
		t.Fatal(err)
	}
	for _, to := range []string{"198.18.0.1", "2001:db8:1::1"} {
		from := server4
		if netip.MustParseAddr(to).Is6() {
			from = server6
		}
		src, dst := netip.AddrPortFrom(from, guarded), netip.AddrPortFrom(netip.MustParseAddr(to), 20000)
		for _, c := range []struct {
			name   string
			packet []byte
			want   bool
		}{
			{"SYN-ACK", testnet.TCP(src, dst, sequence.SYN|sequence.ACK, 1), true},
			{"SYN", testnet.TCP(src, dst, sequence.SYN, 1), false},
			{"RST-ACK", testnet.TCP(src, dst, sequence.RST|sequence.ACK, 1), false},
			{"datagram", testnet.UDP(src, dst, []byte("    \x12\x12\x12\x12\x12\x12")), false},
			{"echo", testnet.Echo(src.Addr(), dst.Addr(), 0x1212, 0x1212, 32), false},
		} {
			if n, err := vm.Run(c.packet); err != nil || (n > 0) != c.want {
				t.Errorf("%s to %s: passed %d bytes, error %v; want passing: %v", c.name, to, n, err, c.want)
			}
		}
	}
}

func TestQuantile(t *testing.T) {
	hundred := make([]time.Duration, 100)
	for i := range hundred {
		hundred[i] = time.Duration(100 - i)
	}
	for _, c := range []struct {
		figures []time.Duration
		share   float64
		want    time.Duration
	}{
		{hundred, .5, 50}, {hundred, .99, 99}, {hundred, 1, 100}, {hundred[:1], .5, 100}, {hundred[:1], .99, 100},
	} {
		if got := quantile(c.figures, c.share); got != c.want {
			t.Errorf("the quantile %v of %d figures is %v, want %v", c.share, len(c.figures), got, c.want)
		}
	}
}

func TestReadCosts(t *testing.T) {
	const out = `goos: linux
BenchmarkPacket/stray/IPv4/knocks=1/attempts=1-2         	 1428745	  82.44 ns/op	 80.50 cpu-ns/op	   0 B/op	   0 allocs/op
BenchmarkPacket/stray/IPv4/knocks=1/attempts=1-2         	 1428745	  92.44 ns/op	 70.50 cpu-ns/op	   0 B/op	   1 allocs/op
BenchmarkPacket/stray/IPv4/knocks=1000/attempts=65536-2  	 1428745	  82.44 ns/op	 90.25 cpu-ns/op	   0 B/op	   0 allocs/op
BenchmarkPacket/flood/IPv6/knocks=1/attempts=65536     	 1428745	 400.0 ns/op	 1e3 ns	   0 B/op	   0 allocs/op
BenchmarkPacket/flood/IPv6/knocks=1/attempts=65536     	 1428745	 400.0 ns/op	 399.0 cpu-ns/op	   0 B/op	   0 allocs/op
PASS
`
	names, got := readCosts(out)
	want := map[string]*cost{
		"stray/IPv4": {sizes: []string{"knocks=1/attempts=1", "knocks=1000/attempts=65536"}, ns: []float64{70.5, 90.25}, allocs: 1},
		"flood/IPv6": {sizes: []string{"knocks=1/attempts=65536"}, ns: []float64{399}},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(cost{})); diff != "" || len(names) != 2 || names[0] != "stray/IPv4" {
		t.Errorf("cases %v, costs (-want +got):\n%s", names, diff)
	}
}
