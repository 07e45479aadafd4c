package knock

import (
	"encoding/json"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/border"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/engine/internal/packet"
	"github.com/sallyport/sallyport/internal/engine/internal/policy"
	"github.com/sallyport/sallyport/internal/sequence"
)

// doors is a checked config as one from a knockd.conf is, after it crossed to the
// engine: a step of port 0, a door that is switched off, a target, no flags.
func doors(t testing.TB, classic bool) *config.Config {
	t.Helper()
	udp := func(ports ...uint16) (all []sequence.Step) {
		for _, p := range ports {
			all = append(all, sequence.Step{Proto: sequence.UDP, Port: p})
		}
		return all
	}
	cfg := &config.Config{
		Daemon: config.Daemon{MaxAttempts: 64},
		Knockd: config.Knockd{Log: true, Classic: classic},
		Knocks: []config.Knock{
			{Name: "spa", Type: "spa", Port: 62201},
			{Name: "plain", Type: "sequence", Sequence: udp(7000, 9000, 8000), Within: 5 * time.Second},
			{Name: "off", Type: "sequence", Within: 5 * time.Second},
			{Name: "gateway", Type: "sequence", Sequence: udp(7000, 9000), Within: 5 * time.Second, Target: netip.MustParseAddr("198.51.100.7")},
			{Name: "gateway6", Type: "sequence", Sequence: udp(7000, 9000), Within: 5 * time.Second, Target: netip.MustParseAddr("2001:db8::7")},
			{Name: "any", Type: "sequence", Sequence: []sequence.Step{{Proto: sequence.TCP, Port: 100}, {Proto: sequence.TCP}}, Within: 5 * time.Second},
		},
	}
	text, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	cfg = new(config.Config)
	if err := json.Unmarshal(text, cfg); err != nil {
		t.Fatal(err)
	}
	return cfg
}

var worlds = map[string]struct{ own, gateway, client netip.Addr }{
	"IPv4": {netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("198.51.100.7"), netip.MustParseAddr("203.0.113.9")},
	"IPv6": {netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::7"), netip.MustParseAddr("2001:db8:9::9")},
}

func TestSequences(t *testing.T) {
	for family, w := range worlds {
		for _, classic := range []bool{false, true} {
			gateway := map[string]int{"IPv4": 3, "IPv6": 4}[family]
			s := newSequences(&Setting{Config: doors(t, classic), Host: &border.HostFacts{}}, nil).(*sequences)
			udp := func(port uint16) packet.Packet { return packet.Packet{Proto: sequence.UDP, DstPort: port} }
			for i, p := range []struct {
				packet packet.Packet
				away   bool // to the gateway
				want   []Outcome
			}{
				{udp(7000), false, []Outcome{{Verdict: Advanced, Stage: 1, Claim: policy.Claim{Knock: 1}}}},
				{udp(7000), true, []Outcome{{Verdict: Advanced, Stage: 1, Claim: policy.Claim{Knock: gateway}}}},
				{udp(9000), true, []Outcome{{Verdict: Made, Stage: 2, Claim: policy.Claim{Knock: gateway}}}},
				{udp(9000), false, []Outcome{{Verdict: Advanced, Stage: 2, Claim: policy.Claim{Knock: 1}}}},
				{udp(7000), true, []Outcome{{Verdict: Advanced, Stage: 1, Claim: policy.Claim{Knock: gateway}}}},
				{udp(8000), false, []Outcome{{Verdict: Made, Stage: 3, Claim: policy.Claim{Knock: 1}}}},
				{packet.Packet{Proto: sequence.TCP, DstPort: 100, Flags: sequence.ACK}, false, []Outcome{{Verdict: Advanced, Stage: 1, Claim: policy.Claim{Knock: 5}}}},
				{packet.Packet{Proto: sequence.TCP, DstPort: 0}, false, []Outcome{{Verdict: Made, Stage: 2, Claim: policy.Claim{Knock: 5}}}},
			} {
				p.packet.Src, p.packet.Dst, p.packet.Elsewhere = w.client, w.own, p.away
				p.packet.SrcPort = uint16(i) + 1 // else a datagram is a copy of one before
				if p.away {
					p.packet.Dst = w.gateway
				}
				for j := range p.want {
					p.want[j].Claim.Source = w.client
				}
				if got := s.Observe(&p.packet, 1e9); !equal(got, p.want) {
					t.Errorf("%s, classic %v, packet %d: got %+v, want %+v", family, classic, i, got, p.want)
				}
			}
			if got := s.Tick(5.9e9); len(got) != 0 {
				t.Errorf("too soon: %+v", got)
			}
			want := []Outcome{{Verdict: TimedOut, Stage: 1, Claim: policy.Claim{Knock: gateway, Source: w.client}}}
			if got := s.Tick(6.1e9); !equal(got, want) {
				t.Errorf("%s, classic %v: over is %+v, want %+v", family, classic, got, want)
			}
			if got := s.Tick(6.1e9); len(got) != 0 {
				t.Errorf("told twice: %+v", got)
			}
		}
	}
}

func equal(a, b []Outcome) bool {
	return slices.EqualFunc(a, b, func(a, b Outcome) bool {
		return a.Verdict == b.Verdict && a.Stage == b.Stage && a.Claim.Knock == b.Claim.Knock && a.Claim.Source == b.Claim.Source
	})
}

// Without a log in knockd's words nobody asks what is over, and a source that
// comes back is told of still.
func TestTickWithoutALog(t *testing.T) {
	cfg := doors(t, false)
	cfg.Knockd.Log = false
	s := newSequences(&Setting{Config: cfg, Host: &border.HostFacts{}}, nil)
	p := &packet.Packet{Proto: sequence.UDP, DstPort: 7000, Src: worlds["IPv4"].client, Dst: worlds["IPv4"].own}
	s.Observe(p, 0)
	if got := s.Tick(60e9); len(got) != 0 {
		t.Errorf("a tick told of %+v", got)
	}
	p.SrcPort++
	if got := s.Observe(p, 60e9); len(got) != 2 || got[0].Verdict != TimedOut || got[1].Verdict != Advanced {
		t.Errorf("coming back told %+v", got)
	}
}

func TestSequencesDoNotAllocate(t *testing.T) {
	for _, classic := range []bool{false, true} {
		s := newSequences(&Setting{Config: doors(t, classic), Host: &border.HostFacts{}}, nil)
		now, port, p := int64(0), uint16(0), new(packet.Packet)
		allocs := testing.AllocsPerRun(100, func() {
			for _, w := range worlds {
				for _, to := range []uint16{7000, 9000, 7000, 7000} {
					now, port = now+1e8, port+1
					*p = packet.Packet{Proto: sequence.UDP, SrcPort: port, DstPort: to, Src: w.client, Dst: w.gateway, Elsewhere: true}
					s.Observe(p, now)
				}
			}
			now += 10e9
			s.Tick(now)
		})
		if allocs != 0 {
			t.Errorf("classic %v: %v allocations, want 0", classic, allocs)
		}
	}
}
