// Package control is the language of the control socket: one JSON object a
// line, a request from the administrator's command and the engine's answers.
// The engine reads it, never the warden.
package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/sallyport/sallyport/internal/border"
)

// MaxRequest is the longest request in bytes, its newline included.
const MaxRequest = 4096

// What a request can ask for.
const (
	DoStatus  = "status"
	DoGrants  = "grants"
	DoOpen    = "open"
	DoClose   = "close"
	DoConfirm = "confirm"
	DoEvents  = "events"
)

// Request is the one line that a client sends.
type Request struct {
	Do      string     `json:"do"`
	Service string     `json:"service,omitempty"` // open: required; close: empty means all
	Addr    netip.Addr `json:"addr,omitzero"`     // open and close
	For     Duration   `json:"for,omitempty"`     // open: 0 means the service's open_for
}

// Parse reads a request. Its errors are for the person who typed it.
func Parse(line []byte) (Request, error) {
	var r Request
	dec := json.NewDecoder(strings.NewReader(string(line)))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&r); err != nil {
		return Request{}, fmt.Errorf("the request is not understood: %w; are the command and the daemon of one version?", err)
	}
	r.Addr = r.Addr.Unmap()
	switch r.Do {
	case DoStatus, DoGrants, DoConfirm, DoEvents:
		return r, nil
	case DoOpen:
		if r.Service == "" {
			return Request{}, errors.New("open needs a service")
		}
	case DoClose:
	default:
		return Request{}, fmt.Errorf("the daemon does not know the request %q; are the command and the daemon of one version?", r.Do)
	}
	if !r.Addr.IsValid() || r.Addr.Zone() != "" {
		return Request{}, fmt.Errorf("%s needs an IPv4 or IPv6 address without a zone", r.Do)
	}
	if r.For < 0 {
		return Request{}, fmt.Errorf("%s: the duration must be more than 0", r.Do)
	}
	return r, nil
}

// Duration is a time.Duration that JSON spells as Go does: "30s".
type Duration time.Duration

// MarshalText is time.Duration's String.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText is time.ParseDuration.
func (d *Duration) UnmarshalText(text []byte) error {
	got, err := time.ParseDuration(string(text))
	*d = Duration(got)
	return err
}

// Answer is one line that the engine sends. Exactly one of its fields is set.
type Answer struct {
	Error  string         `json:"error,omitempty"`
	Done   *Done          `json:"done,omitempty"`
	Status *Status        `json:"status,omitempty"`
	Grants *border.Listed `json:"grants,omitempty"`
	Event  *Event         `json:"event,omitempty"`
}

// Done answers open, close and confirm.
type Done struct {
	Result string    `json:"result"`
	Until  time.Time `json:"until,omitzero"` // open
	Count  int       `json:"count"`          // close: grants that ended
}

// Status answers status.
type Status struct {
	Since      time.Time         `json:"since"`      // start of the daemon
	Generation uint32            `json:"generation"` // of the config; 1 at start, one more for each reload
	Observe    bool              `json:"observe"`    // nothing is changed
	Services   int               `json:"services"`
	Knocks     int               `json:"knocks"`
	Watched    time.Time         `json:"watched,omitzero"` // when a packet of our own last went the whole way
	Attempts   int               `json:"attempts"`         // in the table: half-done, or completed a moment ago
	Counters   map[string]uint64 `json:"counters"`
	Sandbox    []Proof           `json:"sandbox"`
}

// Proof is one thing that the engine gave up, and whether it tried and failed
// to do it.
type Proof struct {
	Part   string `json:"part"`
	Proven bool   `json:"proven"`
	Why    string `json:"why,omitempty"`
}

// Event is what happened to one source. It never names a step's port: who
// reads the log must not learn the knock.
type Event struct {
	Time    time.Time  `json:"time"`
	What    string     `json:"what"` // one of the constants below
	Addr    netip.Addr `json:"addr,omitzero"`
	Knock   string     `json:"knock,omitempty"`
	Service string     `json:"service,omitempty"`
	Stage   int        `json:"stage,omitempty"` // steps made
	Until   time.Time  `json:"until,omitzero"`
	Why     string     `json:"why,omitempty"`
}

// What an event can tell.
const (
	EventStep      = "step"      // a sequence went on by one step
	EventLost      = "lost"      // a wrong packet ended an attempt
	EventKnock     = "knock"     // a sequence is complete
	EventOpen      = "open"      // an address was let in
	EventRefused   = "refused"   // it was not, and why
	EventClosed    = "closed"    // grants were ended before their time
	EventReload    = "reload"    // the config was read again
	EventConfirmed = "confirmed" // the administrator said that the hiding stays
)
