package knock

import "github.com/sallyport/sallyport/internal/engine/internal/packet"

// passwords recognises all knocks of type "otp" at once.
type passwords struct{ *Setting }

func newOTP(setting *Setting, old Recogniser) Recogniser { return &passwords{setting} }

// Observe shows the recogniser one packet.
func (s *passwords) Observe(p *packet.Packet, now int64) []Outcome { return nil }

// Explain is Observe.
func (s *passwords) Explain(p *packet.Packet, now int64) ([]Outcome, []Explanation) { return nil, nil }

// Tick changes nothing.
func (s *passwords) Tick(int64) []Outcome { return nil }

// HostChanged changes nothing.
func (s *passwords) HostChanged() {}

// Count adds nothing.
func (s *passwords) Count(map[string]uint64) {}
