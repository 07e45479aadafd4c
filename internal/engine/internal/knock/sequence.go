// Package knock has the recognisers: each watches packets for one type of
// knock and says who made it.
package knock

import (
	"hash/maphash"

	"github.com/sallyport/sallyport/internal/border"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/engine/internal/packet"
	"github.com/sallyport/sallyport/internal/sequence"
)

// Sequences recognises all knocks of type "sequence" at once: one table for
// every source, whatever the number of knocks.
type Sequences struct {
	matcher *sequence.Matcher
	cfg     *config.Config
	knocks  []int // index in the matcher → index in the config's Knocks
	seed    maphash.Seed
}

// NewSequences makes the recogniser for a config. Attempts of old whose
// sequence is still in the config go on; old may be nil.
func NewSequences(cfg *config.Config, host *border.HostFacts, old *Sequences) *Sequences {
	s := &Sequences{cfg: cfg, seed: maphash.MakeSeed()}
	var sequences []sequence.Sequence
	for i := range cfg.Knocks {
		if k := &cfg.Knocks[i]; k.Type == "sequence" {
			s.knocks = append(s.knocks, i)
			sequences = append(sequences, sequence.Sequence{Name: k.Name, Steps: k.Sequence, Within: k.Within, Strict: k.Strict})
		}
	}
	s.matcher = sequence.New(sequences, config.Innocent(cfg, host.Listening), cfg.Daemon.MaxAttempts)
	if old != nil {
		s.seed = old.seed // so that retransmissions are still known
		s.matcher.Adopt(old.matcher)
	}
	return s
}

// Host turns to other facts of the host: other ports may listen now.
func (s *Sequences) Host(host *border.HostFacts) {
	s.matcher.Innocent(config.Innocent(s.cfg, host.Listening))
}

// Observe shows the recogniser one packet to this host, now being nanoseconds on
// a monotonic clock. The result is valid until the next call.
func (s *Sequences) Observe(p *packet.Packet, now int64) []sequence.Outcome {
	return s.matcher.Observe(p.Src, sequence.Hit{Proto: p.Proto, Port: p.DstPort, Flags: p.Flags, ID: s.identity(p)}, now)
}

// identity is the same for a packet and its retransmissions or copies, and
// differs, as far as the packet allows, for another packet to the same port.
func (s *Sequences) identity(p *packet.Packet) uint64 {
	id := uint64(p.SrcPort)<<32 | uint64(p.Seq)
	if p.Proto == sequence.TCP {
		return id
	}
	// UDP over IPv6 has no identification, so the payload must tell.
	return id ^ maphash.Bytes(s.seed, p.Payload)
}

// Knock gives the config's index of the knock that an outcome is about.
func (s *Sequences) Knock(o sequence.Outcome) int { return s.knocks[o.Sequence] }

// Attempts is how many places of the table are taken: by attempts under way,
// and for a moment by those that completed or expired.
func (s *Sequences) Attempts() int { return s.matcher.Len() }

// Evicted counts attempts that made room for another in a full table.
func (s *Sequences) Evicted() uint64 { return s.matcher.Evicted() }
