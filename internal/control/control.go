// Package control is the language of the control socket: one JSON object a
// line, a request from the administrator's command and the engine's answers.
// The engine reads the requests, never the warden, and the command takes an
// answer as from somebody who may have been taken over by strangers.
package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"
	"unicode"

	"github.com/sallyport/sallyport/internal/border"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/spa"
)

const (
	// MaxRequest is the longest request in bytes, its newline included.
	MaxRequest = 4096
	// MaxAnswer is the longest answer in bytes; a listing of 131,072 grants
	// has about 20 MB.
	MaxAnswer = 64 << 20
	// MinFor is the shortest time that open takes. The kernel reads less than
	// a millisecond as for ever, and nobody connects within less than this.
	MinFor = Duration(time.Second)
)

// What a request can ask for.
const (
	DoStatus  = "status"
	DoGrants  = "grants"
	DoOpen    = "open"
	DoClose   = "close"
	DoConfirm = "confirm"
	DoEvents  = "events"
	DoExplain = "explain"
)

// Request is the one line that a client sends.
type Request struct {
	Do      string     `json:"do"`
	Service string     `json:"service,omitempty"` // open: required; close: empty means all
	Port    string     `json:"port,omitempty"`    // close: the service's one port, as "25/tcp"; empty means all
	Addr    netip.Addr `json:"addr,omitzero"`     // open, close and explain
	Bits    int        `json:"bits,omitempty"`    // close: the mask's length, with Addr the network's lowest address
	For     Duration   `json:"for,omitempty"`     // open: 0 means the service's open_for
	Key     string     `json:"key,omitempty"`     // close: a fingerprint, in place of service and addr
	Cut     bool       `json:"cut,omitempty"`     // close: live connections too
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
	if err := r.Check(); err != nil {
		return Request{}, err
	}
	return r, nil
}

// Check finds what is wrong with a request whatever the config says. Its errors
// are for the person who typed it.
func (r *Request) Check() error {
	a := r.Addr
	switch {
	case r.Do == DoStatus, r.Do == DoGrants, r.Do == DoConfirm, r.Do == DoEvents:
		return nil
	case r.Do == DoExplain && (r.Service != "" || r.For != 0 || r.Key != "" || r.Cut):
		return errors.New("explain takes an address and nothing else")
	case r.Do != DoOpen && r.Do != DoClose && r.Do != DoExplain:
		return fmt.Errorf("the daemon does not know the request %q; are the command and the daemon of one version?", r.Do)
	case r.Do == DoOpen && (r.Key != "" || r.Cut):
		return errors.New("open takes no key and cuts nothing")
	case r.Do != DoClose && (r.Port != "" || r.Bits != 0):
		return fmt.Errorf("%s takes one address, and no port", r.Do)
	case r.Key != "":
		return r.checkKey()
	case r.Do == DoOpen && r.Service == "":
		return errors.New("open needs a service")
	case !a.IsValid():
		return fmt.Errorf("%s needs an IPv4 or IPv6 address", r.Do)
	case a.Zone() != "":
		return fmt.Errorf("%s needs an IPv4 or IPv6 address without a zone; leave out %%%s", r.Do, a.Zone())
	// What packets never come from, a knock can't open for either.
	case r.Do == DoOpen && !a.IsGlobalUnicast() && !a.IsLinkLocalUnicast():
		return fmt.Errorf("nobody can connect from %v; open needs the address of one machine, which is not this one", a)
	case r.For < 0 || r.For > 0 && r.For < MinFor:
		return errors.New("--for: the duration must be 1s or more, as 30s")
	}
	return r.checkPart()
}

// checkPart is Check for a close of a network's grant, or of one port's.
func (r *Request) checkPart() error {
	if p, err := config.ParsePortRange(r.Port); r.Port != "" && (err != nil || p.Count() > 1 || r.Service == "") {
		return fmt.Errorf("close takes a port behind its service, such as ssh 22/tcp, and not %q", r.Port)
	}
	if r.Bits != 0 {
		p, err := r.Addr.Prefix(r.Bits)
		if err != nil || p.Addr() != r.Addr || p.IsSingleIP() {
			return fmt.Errorf("%v/%d is no network by its lowest address; write it as 'sallyport grants' does", r.Addr, r.Bits)
		}
	}
	if r.Cut && (r.Port != "" || r.Bits != 0) {
		return errors.New("--cut ends the connections of one address to all ports of a service; leave it out, or name these")
	}
	return nil
}

// Who gives the address, or the network.
func (r *Request) Who() string { return who(r.Addr, r.Bits) }

func who(a netip.Addr, bits int) string {
	switch {
	case !a.IsValid():
		return ""
	case bits == 0:
		return a.String()
	}
	return netip.PrefixFrom(a, bits).String()
}

// checkKey is Check for a close by key.
func (r *Request) checkKey() error {
	if r.Service != "" || r.Addr.IsValid() || r.Port != "" || r.Bits != 0 {
		return errors.New("close takes a key, or an address; give one of them")
	}
	_, err := spa.ParseFingerprint(r.Key)
	switch bare, _ := spa.ParseFingerprint("SHA256:" + r.Key); {
	case err == nil:
		return nil
	case strings.HasPrefix(r.Key, "MD5:") || strings.Count(r.Key, ":") == 15:
		return errors.New("--key: this is an MD5 fingerprint; 'ssh-keygen -l -f FILE' gives the SHA-256 one of a public key")
	case bare != spa.Fingerprint{}:
		return fmt.Errorf("--key: the hash is not named; write SHA256:%s", r.Key)
	}
	return fmt.Errorf("--key: %w", err)
}

// Follows reports whether the answers go on until one side ends the connection.
func (r *Request) Follows() bool { return r.Do == DoEvents || r.Do == DoExplain }

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

// ParseAnswer reads the daemon's answer to a request for do. One that says
// something else than was asked for is an error, and no text in it can fool a
// terminal.
func ParseAnswer(line []byte, do string) (Answer, error) {
	var a Answer
	err := json.Unmarshal(line, &a)
	if err == nil && !a.answers(do) {
		err = errors.New("it does not answer " + do)
	}
	if err != nil {
		return Answer{}, fmt.Errorf("the daemon's answer is not understood: %s; are the command and the daemon of one version?", Printable(err.Error()))
	}
	a.clean()
	return a, nil
}

func (a *Answer) answers(do string) bool {
	if a.Error != "" {
		return true
	}
	switch do {
	case DoStatus:
		return a.Status != nil
	case DoGrants:
		return a.Grants != nil
	case DoEvents, DoExplain:
		return a.Event != nil
	case DoOpen:
		return a.Done != nil && !a.Done.Until.IsZero()
	}
	return a.Done != nil
}

// clean makes every text of an answer printable. A zone is one as well.
func (a *Answer) clean() {
	texts := []*string{&a.Error}
	if a.Done != nil {
		texts = append(texts, &a.Done.Result)
	}
	if s := a.Status; s != nil {
		for i := range s.Sandbox {
			texts = append(texts, &s.Sandbox[i].Part, &s.Sandbox[i].Why)
		}
		counters := make(map[string]uint64, len(s.Counters))
		for name, n := range s.Counters {
			counters[Printable(name)] = n
		}
		s.Counters = counters
	}
	if a.Grants != nil {
		texts = append(texts, &a.Grants.Error)
		for i := range a.Grants.Grants {
			g := &a.Grants.Grants[i]
			g.Addr = g.Addr.WithZone("")
			texts = append(texts, &g.Service, &g.By)
		}
	}
	if e := a.Event; e != nil {
		e.Addr = e.Addr.WithZone("")
		texts = append(texts, &e.What, &e.Knock, &e.Service, &e.Port, &e.Key, &e.Packet, &e.Why)
	}
	for _, t := range texts {
		*t = Printable(*t)
	}
}

// Printable replaces what a terminal would obey or a reader take for another
// line: escape sequences, the bell, line ends, writing from right to left.
func Printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

// Done answers open, close and confirm.
type Done struct {
	Result string    `json:"result"`
	Until  time.Time `json:"until,omitzero"` // open
	Count  int       `json:"count"`          // close: grants that ended
	Cut    int       `json:"cut"`            // close: connections that were ended
	Left   int       `json:"left,omitempty"` // close: addresses that others use too, whose connections go on
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

// Event is what happened to one source. It never names a step's port, but for
// Packet: who reads the log must not learn the knock. Port is a service's.
type Event struct {
	Time    time.Time  `json:"time"`
	What    string     `json:"what"` // one of the constants below
	Addr    netip.Addr `json:"addr,omitzero"`
	Bits    uint8      `json:"bits,omitempty"` // of a mask, with Addr its lowest address; 0: Addr alone
	Knock   string     `json:"knock,omitempty"`
	Service string     `json:"service,omitempty"`
	Port    string     `json:"port,omitempty"`  // the service's one port that was asked for, as "25/tcp"; empty: all
	Key     string     `json:"key,omitempty"`   // fingerprint of who signed, or name of whose secret it was; empty: neither
	Stage   int        `json:"stage,omitempty"` // steps made
	Until   time.Time  `json:"until,omitzero"`
	Count   uint64     `json:"count,omitempty"`  // missed: how many; closed: services; end: packets
	Packet  string     `json:"packet,omitempty"` // explain: which, as "7000/tcp SYN"
	Why     string     `json:"why,omitempty"`
}

// Who gives the address, or the network, that an event is about; empty: none.
func (e *Event) Who() string { return who(e.Addr, int(e.Bits)) }

// Which gives the service or action, and the port where one was asked for.
func (e *Event) Which() string { return strings.TrimSpace(e.Service + " " + e.Port) }

// Covers reports whether an address is the event's, or in its network.
func (e *Event) Covers(a netip.Addr) bool {
	return e.Addr == a || e.Bits > 0 && netip.PrefixFrom(e.Addr, int(e.Bits)).Contains(a)
}

// What an event can tell.
const (
	EventStep      = "step"      // a knock went on by one step
	EventLost      = "lost"      // a wrong packet ended an attempt
	EventKnock     = "knock"     // a knock is complete
	EventOpen      = "open"      // an address was let in
	EventRefused   = "refused"   // it was not, and why
	EventClosed    = "closed"    // grants were ended before their time
	EventRan       = "ran"       // an action was run
	EventUndone    = "undone"    // an action is undone before its time
	EventReload    = "reload"    // the config was read again
	EventConfirmed = "confirmed" // the administrator said that the hiding stays
	EventMissed    = "missed"    // events that this follower was not told of
	EventExplain   = "explain"   // what a packet of a source meant to a knock, and why
	EventAssumed   = "assumed"   // replay: packets to this address are taken as to the host
	EventVerdict   = "verdict"   // whether an explained source got in; only the command line makes it
	EventEnd       = "end"       // replay: the capture is at its end, and what is wrong with it
)
