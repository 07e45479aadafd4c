package main

import (
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/bpf"

	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/sallyport/sallyport/internal/spa"
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

func TestReadFigures(t *testing.T) {
	const out = `goos: linux
BenchmarkJunk/engine/first/448/IPv4-2   	  253660	        98.31 ns/op	        95.00 cpu-ns/op	       0 B/op	       1 allocs/op
BenchmarkJunk/engine/first/448/IPv4-2   	  253660	        88.31 ns/op	        96.00 cpu-ns/op	       0 B/op	       0 allocs/op
BenchmarkRequest/post-quantum/ed25519   	       3	1068134360 ns/op	    169653 bare-ns	    1.5e+06 request-ns
PASS
`
	got := readFigures(out)
	want := &figures{
		names: []string{"Junk/engine/first/448/IPv4", "Request/post-quantum/ed25519"},
		of: map[string]map[string]float64{
			"Junk/engine/first/448/IPv4":   {"ns/op": 88.31, "cpu-ns/op": 95, "B/op": 0, "allocs/op": 1},
			"Request/post-quantum/ed25519": {"ns/op": 1068134360, "bare-ns": 169653, "request-ns": 1.5e6},
		},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(figures{})); diff != "" {
		t.Error(diff)
	}
}

// Junk that died earlier than its row says would be a cheap flood.
func TestJunkGetsAsFarAsItsName(t *testing.T) {
	server, err := spa.NewServerKey(spa.Classic)
	if err != nil {
		t.Fatal(err)
	}
	e, random := &enrolled{gates: gatesOf(server)}, rand.New(rand.NewPCG(1, 2))
	want := map[string][3]bool{ // size, first tag, second tag
		"wrong length": {}, "wrong gate": {true}, "wrong second tag": {true, true}, "right gates, bad seal": {true, true, true},
	}
	for _, j := range spaJunks[1:] {
		d := j.payload(e, random)
		got := [3]bool{spa.IsSize(len(d)), server.Gate().First(d), server.Gate().Second(d)}
		if _, err := server.Open(d); got != want[j.name] || err == nil {
			t.Errorf("%s: size and tags %v, want %v; error of its seal %v", j.name, got, want[j.name], err)
		}
	}
}
