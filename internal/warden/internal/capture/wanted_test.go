//go:build linux

package capture

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/sallyport/sallyport/internal/testnet"
)

func steps(t *testing.T, text ...string) []sequence.Step {
	t.Helper()
	var all []sequence.Step
	for _, s := range text {
		var step sequence.Step
		if err := step.UnmarshalText([]byte(s)); err != nil {
			t.Fatal(err)
		}
		all = append(all, step)
	}
	return all
}

func TestWantedBy(t *testing.T) {
	all := []Range{{1, 65535}}
	tests := []struct {
		name  string
		knock config.Knock
		want  Wanted
	}{
		{"tcp", config.Knock{Sequence: steps(t, "7000/tcp", "8500/tcp")}, Wanted{TCP: []Range{{6936, 8564}}}},
		{"udp", config.Knock{Sequence: steps(t, "7000/udp")}, Wanted{UDP: []Range{{6936, 7064}}}},
		{"mixed", config.Knock{Sequence: steps(t, "7000/tcp", "8500/udp")}, Wanted{TCP: []Range{{6936, 8564}}, UDP: []Range{{6936, 8564}}}},
		{"flags", config.Knock{Sequence: steps(t, "7000/tcp:fin", "8500/udp")}, Wanted{TCP: []Range{{6936, 8564}}, TCPFlags: []Range{{6936, 8564}}, UDP: []Range{{6936, 8564}}}},
		{"flags and not", config.Knock{Sequence: steps(t, "7000/tcp:fin", "7000/tcp")}, Wanted{TCPFlags: []Range{{6936, 7064}}, TCP: []Range{{6936, 7064}}}},
		{"ping", config.Knock{Sequence: steps(t, "37/icmp", "icmp")}, Wanted{Echo: true}},
		{"ping and tcp", config.Knock{Sequence: steps(t, "37/icmp", "7000/tcp")}, Wanted{Echo: true, TCP: []Range{{6936, 7064}}}},
		{"wraps down", config.Knock{Sequence: steps(t, "10/tcp")}, Wanted{TCP: []Range{{1, 74}, {65481, 65535}}}},
		{"wraps up", config.Knock{Sequence: steps(t, "65530/udp")}, Wanted{UDP: []Range{{1, 59}, {65466, 65535}}}},
		{"lowest and highest", config.Knock{Sequence: steps(t, "1/tcp", "65535/tcp")}, Wanted{TCP: []Range{{1, 65535}}}},
		{"strict", config.Knock{Sequence: steps(t, "7000/tcp"), Strict: true}, Wanted{TCP: all, UDP: all}},
		// What closes is what is wrong: the guard, and nothing beyond it.
		{"close on wrong", config.Knock{Sequence: steps(t, "7000/udp"), CloseOnWrong: true}, Wanted{UDP: []Range{{6936, 7064}}}},
		{"close on wrong, strict", config.Knock{Sequence: steps(t, "7000/udp"), CloseOnWrong: true, Strict: true}, Wanted{TCP: all, UDP: all}},
		{"spa over udp", spaKnock(config.OverUDP), Wanted{SizedUDP: []Range{{62201, 62201}}}},
		{"spa over icmp", spaKnock(config.OverICMP), Wanted{SizedEcho: true}},
		{"spa over tcp", spaKnock(config.OverTCP), Wanted{SizedTCP: []Range{{62201, 62201}}}},
		{"spa over all", spaKnock(config.OverTCP, config.OverICMP, config.OverUDP), Wanted{SizedTCP: []Range{{62201, 62201}}, SizedUDP: []Range{{62201, 62201}}, SizedEcho: true}},
		{"any segment", config.Knock{Sequence: steps(t, "7000/tcp:any", "8500/udp")}, Wanted{TCP: []Range{{6936, 8564}}, TCPFlags: []Range{{6936, 8564}}, UDP: []Range{{6936, 8564}}}},
		{"other protocols", config.Knock{Sequence: steps(t, "9000/sctp", "proto/47", "9500/udplite")}, Wanted{SCTP: []Range{{8936, 9564}}, UDPLite: []Range{{8936, 9564}}, Bare: []Range{{47, 47}}}},
		{"dccp and tcp", config.Knock{Sequence: steps(t, "9000/dccp", "9500/tcp")}, Wanted{DCCP: []Range{{8936, 9564}}, TCP: []Range{{8936, 9564}}}},
		{"bare alone, twice and next door", config.Knock{Sequence: steps(t, "proto/50", "proto/51", "proto/50", "proto/89")}, Wanted{Bare: []Range{{50, 51}, {89, 89}}}},
		{"strict with sctp", config.Knock{Sequence: steps(t, "9000/sctp", "proto/47"), Strict: true}, Wanted{TCP: all, UDP: all, SCTP: all, Bare: []Range{{47, 47}}}},
		{"port 0", config.Knock{Sequence: steps(t, "0/udp", "7000/udp")}, Wanted{UDP: []Range{{0, 0}, {6936, 7064}}}},
		{"switched off", config.Knock{Type: "sequence"}, Wanted{}},
		{"strict with flags", config.Knock{Sequence: steps(t, "7000/tcp:fin"), Strict: true}, Wanted{TCP: all, TCPFlags: all, UDP: all}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := WantedBy(&config.Config{Knocks: []config.Knock{tt.knock}})
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func spaKnock(over ...config.Transport) config.Knock {
	return config.Knock{Type: "spa", Port: 62201, Transports: over}
}

// By knockd's rules only the steps themselves are seen. The kernel's own filter
// says which packets that are, port 0 and segments that are no SYN among them.
func TestWantedByClassic(t *testing.T) {
	cfg := &config.Config{Knockd: config.Knockd{Classic: true}, Knocks: []config.Knock{
		{Type: "sequence", Sequence: steps(t, "7000/tcp:any", "9000/udp", "7000/tcp:any")},
		{Type: "sequence", Sequence: steps(t, "8000/tcp", "0/tcp")},
		{Type: "sequence"},
	}}
	got := WantedBy(cfg)
	want := Wanted{TCP: []Range{{0, 0}, {7000, 7000}, {8000, 8000}}, TCPFlags: []Range{{7000, 7000}}, UDP: []Range{{9000, 9000}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	for family := range client {
		kernel := newKernelFilter(t)
		kernel.attach(t, network(got))
		for _, p := range []struct {
			port  uint16
			flags uint8
			want  bool
		}{
			{7000, sequence.SYN, true}, {7000, sequence.ACK, true}, {7000, 0, true}, {7001, sequence.SYN, false}, {6999, sequence.SYN, false},
			{8000, sequence.SYN, true}, {8000, sequence.ACK, false}, {9000, sequence.SYN, false},
			{0, sequence.SYN, true}, {0, sequence.ACK, false}, {1, sequence.SYN, false}, {65535, sequence.SYN, false},
		} {
			b := testnet.TCP(netip.AddrPortFrom(client[family], 1234), netip.AddrPortFrom(server[family], p.port), p.flags, 1)
			if kernel.passes(t, b) != p.want {
				t.Errorf("%v: port %d, flags %#x passes: %v, want %v", client[family], p.port, p.flags, !p.want, p.want)
			}
		}
	}
}

// BenchmarkWantedBy is a knockd.conf of a thousand doors, at start and reload.
func BenchmarkWantedBy(b *testing.B) {
	for _, classic := range []bool{false, true} {
		b.Run(map[bool]string{false: "ours", true: "classic"}[classic], func(b *testing.B) {
			cfg := &config.Config{Knockd: config.Knockd{Classic: classic}}
			for i := range 1000 {
				k := config.Knock{Type: "sequence"}
				for n := range 4 {
					k.Sequence = append(k.Sequence, sequence.Step{Proto: sequence.TCP, Port: uint16(1 + (i*7919+n*104729)%65535), Flags: sequence.Flags{Set: sequence.SYN}})
				}
				cfg.Knocks = append(cfg.Knocks, k)
			}
			for b.Loop() {
				WantedBy(cfg)
			}
		})
	}
}

// A sequence and an SPA knock on one port: the sequence has to see everything.
func TestWantedBySequenceAndSPA(t *testing.T) {
	got := WantedBy(&config.Config{Knocks: []config.Knock{
		spaKnock(config.OverUDP, config.OverICMP), {Sequence: steps(t, "62200/udp", "icmp")},
	}})
	for family := range client {
		src, dst := netip.AddrPortFrom(client[family], 1), netip.AddrPortFrom(server[family], 62201)
		kernel := newKernelFilter(t)
		kernel.attach(t, network(got))
		for _, b := range [][]byte{testnet.UDP(src, dst, nil), testnet.UDP(src, dst, make([]byte, 448)), testnet.Echo(src.Addr(), dst.Addr(), 1, 1, 8)} {
			if !kernel.passes(t, b) {
				t.Errorf("%s does not pass", words(b))
			}
		}
	}
}

// Every step is wanted, and every port within 64 of it, wherever that wraps to
// (the guard range of doc/sallyport.toml.5, counted here and not taken from the matcher).
func TestWantedByGuardsEachStep(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		port := rapid.Uint16Range(1, 65535).Draw(t, "port")
		off := rapid.IntRange(-64, 64).Draw(t, "offset")
		near := (int(port)+off-1+65535)%65535 + 1
		step := sequence.Step{Proto: sequence.TCP, Port: port, Flags: sequence.Opening}
		got := WantedBy(&config.Config{Knocks: []config.Knock{{Sequence: []sequence.Step{step}}}}).TCP
		if !slices.ContainsFunc(got, func(r Range) bool { return int(r.Low) <= near && near <= int(r.High) }) {
			t.Fatalf("port %d is %+d from %d and not in %v", near, off, port, got)
		}
	})
}

func TestUnionWantsBoth(t *testing.T) {
	a := Wanted{TCP: []Range{{10, 20}}, UDP: []Range{{1, 2}}, Watch: Watch{Port: 5}, SizedUDP: []Range{{9, 9}}, SizedEcho: true}
	b := Wanted{SizedUDP: []Range{{8, 8}}, SizedTCP: []Range{{6, 6}}, TCP: []Range{{21, 30}, {40, 50}}, TCPFlags: []Range{{7, 7}}, Echo: true}
	want := Wanted{TCP: []Range{{10, 30}, {40, 50}}, TCPFlags: []Range{{7, 7}}, UDP: []Range{{1, 2}}, Echo: true, Watch: Watch{Port: 5}}
	want.SizedUDP, want.SizedTCP, want.SizedEcho = []Range{{8, 9}}, []Range{{6, 6}}, true
	a.SCTP, a.Bare, b.SCTP, b.DCCP, b.UDPLite, b.Bare = []Range{{1, 2}}, []Range{{47, 47}}, []Range{{3, 4}}, []Range{{5, 5}}, []Range{{6, 6}}, []Range{{50, 50}}
	want.SCTP, want.DCCP, want.UDPLite, want.Bare = []Range{{1, 4}}, b.DCCP, b.UDPLite, []Range{{47, 47}, {50, 50}}
	if diff := cmp.Diff(want, Union(a, b)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if diff := cmp.Diff(want, Union(b, a)); diff != "" {
		t.Errorf("the other way round: -want +got:\n%s", diff)
	}
}

func TestThinClosesTheNarrowestGaps(t *testing.T) {
	a, b := []Range{{1, 1}, {3, 3}, {100, 100}}, []Range{{5, 5}, {9, 9}}
	thin(3, &a, &b)
	if !slices.Equal(a, []Range{{1, 3}, {100, 100}}) || !slices.Equal(b, []Range{{5, 9}}) {
		t.Errorf("got %v and %v", a, b)
	}
}
