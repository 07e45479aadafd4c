package knock

import "github.com/sallyport/sallyport/internal/engine/internal/packet"

// messages recognises all knocks of type "encoded" at once.
type messages struct{ *Setting }

func newEncoded(setting *Setting, old Recogniser) Recogniser { return &messages{setting} }

// Observe shows the recogniser one packet.
func (s *messages) Observe(p *packet.Packet, now int64) []Outcome { return nil }

// Explain is Observe.
func (s *messages) Explain(p *packet.Packet, now int64) ([]Outcome, []Explanation) { return nil, nil }

// Tick changes nothing.
func (s *messages) Tick(int64) []Outcome { return nil }

// HostChanged changes nothing.
func (s *messages) HostChanged() {}

// Count adds nothing.
func (s *messages) Count(map[string]uint64) {}
