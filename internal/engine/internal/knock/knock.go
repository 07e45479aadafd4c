// Package knock has the recognisers: each watches packets for one type of
// knock and says who made it.
package knock

import (
	"time"

	"github.com/sallyport/sallyport/internal/border"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/engine/internal/packet"
	"github.com/sallyport/sallyport/internal/engine/internal/policy"
	"github.com/sallyport/sallyport/internal/engine/internal/replay"
	"github.com/sallyport/sallyport/internal/spa"
)

// Types is every type of knock: the constructor of its recogniser, which serves
// all knocks of the type at once. Old is the one before a reload, or nil.
var Types = map[string]func(s *Setting, old Recogniser) Recogniser{
	"sequence": newSequences,
	"otp":      newOTP,
	"encoded":  newEncoded,
	"spa":      newSPA,
}

// Setting is what recognisers are made from. They keep and read it.
type Setting struct {
	Config *config.Config
	Keys   []border.Keys // by knock
	Host   *border.HostFacts
	Memory *replay.Memory
	Policy *policy.Policy
	Clock  func() time.Time // of a capture file it is the packet's
}

// Recogniser watches for the knocks of one type. The engine has one of each
// type in the config and knows nothing else of them.
type Recogniser interface {
	// Observe shows it one packet to this host, now being nanoseconds on a
	// monotonic clock. The result is valid until the next call.
	Observe(p *packet.Packet, now int64) []Outcome
	// Explain is Observe for a source that somebody looks at: it also says in words
	// what the packet meant to each knock, and may allocate. The words name no port
	// but the packet's own.
	Explain(p *packet.Packet, now int64) ([]Outcome, []Explanation)
	// Tick tells it the time where no packet did, about once a second.
	Tick(now int64) []Outcome
	// HostChanged says that the setting's Host has other facts now.
	HostChanged()
	// Count adds what it counted to status's numbers.
	Count(numbers map[string]uint64)
}

// Explanation is what a packet meant to one knock, in words for people.
type Explanation struct {
	Knock int // index into the config's Knocks
	Text  string
}

// Verdict is what a packet did to a knock.
type Verdict uint8

// The verdicts.
const (
	Advanced Verdict = iota // a step was made
	Lost                    // a wrong packet ended an attempt
	TimedOut                // an attempt's time was over before its last step
	Made                    // a knock is complete
	Refused                 // a request that is good for nothing: authentic, or with a key that is not in use
)

// Outcome is what one packet meant to one knock. Strangers cause these at the rate
// of their packets, so it is small.
type Outcome struct {
	Verdict Verdict
	Stage   int // steps made; 0 for one datagram
	Ahead   int // of a list, when Made: which of its sequences, see config.Knock.Ahead
	Claim   policy.Claim
	Refusal *Refusal // why, of what is Refused
	// Grants is what a Made claim is good for, where the recogniser had to ask
	// the policy already; else nil.
	Grants []policy.Grant
}

// Refusal is why a request is good for nothing.
type Refusal struct {
	Why  string
	Skew time.Duration // by how much its time is off, where that is why; ahead is positive
	// Boundary is up to when requests are refused after an unclean end, where that
	// is why.
	Boundary time.Time
	// OldKey says that it was sealed for a server key that was in overlap and is
	// not any more: nobody opened it.
	OldKey bool
	// Stranger is who claims to have signed it, where that key is not in
	// authorized_keys: nobody checked the signature.
	Stranger spa.Fingerprint
}
