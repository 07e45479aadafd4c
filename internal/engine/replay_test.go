//go:build linux

package engine

import (
	"net/netip"
	"testing"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/engine/internal/packet"
	"github.com/sallyport/sallyport/internal/sequence"
)

// Each packet to an address that is not known as the host's is looked at like this, and
// a capture can have millions: nothing may be worked out anew for one.
func TestWhatCouldBeAKnockIsWorkedOutOnce(t *testing.T) {
	cfg, err := config.Parse("replay.toml", []byte(`
[service.ssh]
ports = ["22/tcp"]
[knock.front]
type = "sequence"
opens = ["ssh"]
sequence = ["7000/tcp", "8500/udp", "37/icmp", "proto/47"]
[knock.people]
type = "otp"
opens = ["ssh"]
secrets = "/people"
[knock.message]
type = "encoded"
opens = ["ssh"]
secrets = "/people"
`))
	if err != nil {
		t.Fatal(err)
	}
	knocks := newKnockPackets(cfg)
	for _, dst := range []string{"192.0.2.1", "2001:db8::1"} {
		for _, tt := range []struct {
			proto sequence.Proto
			port  uint16
			flags uint8
			want  bool
		}{
			{sequence.TCP, 7000, 2, true}, {sequence.TCP, 7000, 16, false}, {sequence.TCP, 7001, 2, false}, {sequence.TCP, 8500, 2, false},
			{sequence.UDP, 8500, 0, true}, {sequence.UDP, 20000, 0, false}, {sequence.TCP, 20000, 2, true}, {sequence.TCP, 39999, 2, true},
			{sequence.TCP, 40000, 2, true}, {sequence.ICMP, 37, 0, true}, {sequence.ICMP, 38, 0, false}, {47, 0, 0, true}, {50, 0, 0, false},
		} {
			p := packet.Packet{Dst: netip.MustParseAddr(dst), Proto: tt.proto, DstPort: tt.port, Flags: tt.flags}
			if got := knocks.has(&p); got != tt.want {
				t.Errorf("%s, %d/%v, flags %d: %v", dst, tt.port, tt.proto, tt.flags, got)
			}
			if n := testing.AllocsPerRun(100, func() { knocks.has(&p) }); n > 0 {
				t.Errorf("%d/%v: %v allocations", tt.port, tt.proto, n)
			}
		}
	}
}
