// Package config turns the text of a configuration file into a checked Config.
// Past it nobody sees a string that should be an address, a port or a duration.
package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sallyport/sallyport/internal/sequence"
)

// Config is a checked configuration. Indices (Knock.Opens, Runs, Closes) are
// valid, names are unique, every port, address and duration is in range. It crosses
// to the engine as JSON, so each field's text form reads back as an equal value;
// what the engine has no use for stays behind (json:"-").
type Config struct {
	Daemon   Daemon
	Services []Service
	Actions  []Action
	Knocks   []Knock
	Knockd   Knockd
}

// Knockd is what a knockd.conf and knockd's command line ask for beyond a
// configuration of ours: no key sets it.
type Knockd struct {
	Log      bool // the engine tells of every step, for a log in knockd's words
	Classic  bool // knockd's own rules: sequence.Sequence.Classic
	IPv4Only bool // knocks over IPv6 are not heard
	// StateDir is where the undos of its commands are remembered: one for each file,
	// whether its doors hide something or not. Else it is the daemon's.
	StateDir string `json:"-"`
}

// Daemon is the [daemon] table.
type Daemon struct {
	Interfaces   []string    // names; empty: all, now and later
	StateDir     string      // absolute path
	Control      string      // absolute path of the control socket
	HideAll      bool        // hide = "all": every port that Public does not name is hidden
	Public       []PortRange // strangers may use these: never hidden by HideAll, never a wrong step
	MaxAttempts  int         // half-done sequences remembered, 16 to 1,048,576; default 65,536
	MaxGrants    int         // elements in each grant set, 16 to 1,048,576; default 65,536
	Source       Source      // how packets are seen
	NFLOGGroup   uint16      // with source = "nflog": the group that the owner's own rules fill
	LogFile      string      // with source = "log": the absolute path of a log, "kernel" (/dev/kmsg) or "journal"
	LogPrefix    string      // with source = "log": how the owner's own rules begin their lines; empty: anyhow
	Backend      Backend     // what opens and closes ports
	OpenCommand  Command     `json:"-"` // with backend = "command", as the two below: see package command
	CloseCommand Command     `json:"-"`
	AdoptCommand Command     `json:"-"`
	GrantMark    uint32      // packet mark put on what a grant lets in; 0: none
}

// Loopback reports whether knocks of this host to itself are heard. Only a
// knockd.conf can name lo, and people try theirs there.
func (d *Daemon) Loopback() bool { return slices.Contains(d.Interfaces, "lo") }

// Source says how the daemon sees packets.
type Source uint8

// The sources.
const (
	Capture Source = iota // a packet socket: every port stays closed
	Socket                // a UDP socket for each knock of type spa: needs no privilege, and the port is open
	NFLOG                 // packets that the owner's own rules send to a group
	Log                   // lines that the owner's own rules write to a log
)

var sources = []string{Capture: "capture", Socket: "socket", NFLOG: "nflog", Log: "log"}

// String gives the config's spelling.
func (s Source) String() string { return sources[s] }

// MarshalText is String.
func (s Source) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads "capture", "socket", "nflog" or "log".
func (s *Source) UnmarshalText(text []byte) error { return word(s, sources, text, "source") }

// Backend says what opens and closes ports.
type Backend uint8

// The backends.
const (
	Nftables Backend = iota // our own table
	Iptables                // our own chains of iptables and ip6tables, with ipset
	Commands                // the owner's commands
)

var backends = []string{Nftables: "nftables", Iptables: "iptables", Commands: "command"}

// String gives the config's spelling.
func (b Backend) String() string { return backends[b] }

// MarshalText is String.
func (b Backend) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// UnmarshalText reads "nftables", "iptables" or "command".
func (b *Backend) UnmarshalText(text []byte) error { return word(b, backends, text, "backend") }

// word reads one of a few words as its index.
func word[T ~uint8](to *T, words []string, text []byte, what string) error {
	i := slices.Index(words, string(text))
	if i < 0 {
		last := len(words) - 1
		return fmt.Errorf("%q is no %s: use %s or %s", text, what, strings.Join(words[:last], ", "), words[last])
	}
	*to = T(i)
	return nil
}

// ClosedAs says how a hidden port looks to strangers.
type ClosedAs uint8

// The three looks of a hidden port.
const (
	Auto   ClosedAs = iota // as if the service were stopped
	Drop                   // no answer
	Reject                 // the RST or unreachable that this kernel sends
)

var closedAs = []string{Auto: "auto", Drop: "drop", Reject: "reject"}

// String gives the config's spelling.
func (c ClosedAs) String() string { return closedAs[c] }

// MarshalText is String.
func (c ClosedAs) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText reads "auto", "drop" or "reject".
func (c *ClosedAs) UnmarshalText(text []byte) error {
	return word(c, closedAs, text, "way to look closed")
}

// Service is a [service.NAME] table: ports that are hidden, and how long they
// open.
type Service struct {
	Name       string
	Ports      []PortRange
	ClosedAs   ClosedAs
	OpenFor    time.Duration // 1 s to MaxOpenFor
	MaxOpenFor time.Duration // at most 24 h * 30
	// CloseOnDisconnect ends a grant when the last connection of its address to
	// the service has ended.
	CloseOnDisconnect bool
	// Once ends a grant with the first connection that it let in; the service has
	// one port.
	Once  bool
	Allow []netip.Prefix // never hidden from these
	On    []netip.Addr   // forwarded destinations; empty: this host
}

// Action is an [action.NAME] table: a command that a knock runs, and its undo.
// The engine knows of it only that it exists.
type Action struct {
	Name string
	// The commands, for each family; none: there is nothing to do.
	Run      Command `json:"-"`
	RunIPv6  Command `json:"-"`
	Undo     Command `json:"-"`
	UndoIPv6 Command `json:"-"`
	// UndoAfter is when the undo runs, counted from the latest run; 0: only when
	// it is asked for.
	UndoAfter time.Duration
	// AtStart runs it when the daemon begins to serve and its undo when the daemon
	// is stopped; no knock does, and there is no address.
	AtStart bool
	// Again runs it at every knock, each with an undo of its own. Otherwise a knock
	// of an address whose undo is still to come only moves that to a later time.
	// No key sets it.
	Again bool `json:"-"`
	// Address is what stands for the address in the commands: "{addr}", or in a
	// knockd.conf "%IP%".
	Address string `json:"-"`
}

// Command is a program, by its absolute path, and its arguments.
type Command []string

// Commands gives what to run for an address, and what undoes it; for the zero
// Addr those of IPv4.
func (a *Action) Commands(addr netip.Addr) (run, undo Command) {
	run, undo = a.Run, a.Undo
	if addr.Is6() {
		run, undo = a.RunIPv6, a.UndoIPv6
	}
	return run.with(a.Address, addr), undo.with(a.Address, addr)
}

// with puts an address in. Only digits, letters a to f, dots and colons are in
// its text, so that it means nothing to any shell.
func (c Command) with(token string, addr netip.Addr) Command {
	if token == "" || !addr.IsValid() {
		return c
	}
	text := addr.WithZone("").String()
	out := make(Command, len(c))
	for i, word := range c {
		out[i] = strings.ReplaceAll(word, token, text)
	}
	return out
}

// Knock is a [knock.NAME] table: one way to ask for services and actions.
type Knock struct {
	Name  string
	Type  string // "sequence", "otp", "encoded" or "spa"
	Opens []int  // indices into Config.Services
	Runs  []int  // indices into Config.Actions, none AtStart
	Quiet bool

	// Closes and ClosesActions are what a sequence takes back for its source:
	// grants that sequences asked for, and actions whose undo is still to come.
	Closes        []int // indices into Config.Services
	ClosesActions []int // indices into Config.Actions
	// Extends are services whose grants a sequence or one-time password prolongs,
	// for its source, where a knock without keys opened them and they last still.
	Extends []int // indices into Config.Services
	// Target is the one address that its packets must go to, which need not be this
	// host's own; the zero Addr: any of this host's.
	Target netip.Addr
	// Door is the name in a knockd.conf, where two may be equal, and OneTime says
	// that a sequence is good for one knock: only a knockd.conf has these.
	Door    string `json:"-"`
	OneTime bool

	// Of type "sequence". With a list, Sequence is the first of its lines that is not
	// used yet, and Ahead are the ones behind it that are taken too: whoever makes one
	// uses up those before it.
	Sequence     []sequence.Step
	List         string // path of a file of sequences, each good for one knock; empty: none
	LookAhead    int    // of a list: how many lines are taken at once; 1 to 64, default 5
	Ahead        [][]sequence.Step
	Within       time.Duration // for the whole sequence, from its first step; 1 s to 10 min; of otp and encoded too
	Strict       bool
	CloseOnWrong bool
	ScanOpens    bool

	// Of type "spa".
	Port           uint16 // of UDP and TCP
	Transports     []Transport
	Key            string // path of the server's key file
	AuthorizedKeys string // path of the clients' public keys
	Address        Address
	Window         time.Duration // how far a request's time may be off, either way; 1 s to 10 min; of encoded too
	Clock          Clock

	// Of types "otp" and "encoded": the file of the people's secrets.
	Secrets string
	// Of type "otp". Either Steps ports out of Pool less LeaveOut, or, with Digits, an
	// authenticator app's code in pairs of digits: pair i is port Base + 100·i + pair.
	Pool       []PortRange // all of one protocol
	LeaveOut   []PortRange // ports in use: never part of a sequence
	Steps      int         // otp.MinSteps to otp.MaxSteps
	TimeStep   time.Duration
	AnyAddress bool // the ports do not depend on the sender's address
	Digits     int  // 6 or 8; 0: no code
	// Of type "encoded": the ports from Base on that carry the message, at most Span.
	Base    PortRange `json:",omitzero"` // one port; of otp with Digits too
	Span    int
	Payload int            // bytes of the operator's own in each message, 0 to 64
	Widths  []netip.Prefix // such as 0.0.0.0/24: the lengths of the masks that may be asked for
}

// HasSecrets reports whether the knock's users are told apart by secrets.
func (k *Knock) HasSecrets() bool { return k.Type == "otp" || k.Type == "encoded" }

// TakesMask reports whether a mask of that length may be asked for, of an address's
// family.
func (k *Knock) TakesMask(addr netip.Addr, bits int) bool {
	return slices.ContainsFunc(k.Widths, func(w netip.Prefix) bool { return w.Bits() == bits && w.Addr().Is4() == addr.Is4() })
}

// Ports gives the ports of this host that the knock's packets go to, of whatever
// protocol.
func (k *Knock) Ports() []PortRange {
	var ports []PortRange
	for _, line := range k.Lines() {
		for _, s := range line {
			if s.Proto.Ported() {
				ports = append(ports, PortRange{s.Proto, s.Port, s.Port})
			}
		}
	}
	for _, t := range k.Transports {
		switch t {
		case OverUDP:
			ports = append(ports, PortRange{sequence.UDP, k.Port, k.Port})
		case OverTCP:
			ports = append(ports, PortRange{sequence.TCP, k.Port, k.Port})
		}
	}
	switch k.Type {
	case "otp":
		ports = append(ports, k.otpPorts()...)
	case "encoded":
		ports = append(ports, k.encodedPorts()...)
	}
	return ports
}

// Transport is a kind of packet that can carry an SPA datagram.
type Transport uint8

// The transports.
const (
	OverUDP  Transport = iota // a datagram to the port
	OverICMP                  // the payload of an echo request
	OverTCP                   // the data of a SYN to the port
)

var transports = []string{OverUDP: "udp", OverICMP: "icmp", OverTCP: "tcp"}

// String gives the config's spelling.
func (t Transport) String() string { return transports[t] }

// MarshalText is String.
func (t Transport) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText reads "udp", "icmp" or "tcp".
func (t *Transport) UnmarshalText(text []byte) error { return word(t, transports, text, "transport") }

// Address says for which address an SPA request may ask.
type Address uint8

// The policies.
const (
	Either   Address = iota // the one it states, or else the one that it comes from
	Observed                // only the one that it comes from
	Stated                  // only one that it states, wherever it comes from
	Both                    // it must state the one that it comes from
)

var addresses = []string{Either: "either", Observed: "observed", Stated: "stated", Both: "both"}

// String gives the config's spelling.
func (a Address) String() string { return addresses[a] }

// MarshalText is String.
func (a Address) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// UnmarshalText reads "either", "observed", "stated" or "both".
func (a *Address) UnmarshalText(text []byte) error {
	return word(a, addresses, text, "policy for addresses")
}

// Clock says what an SPA request's stamp is held against.
type Clock uint8

// The clocks.
const (
	SystemClock Clock = iota // this machine's time, within the window
	NoClock                  // nothing: stamps of one key must only rise
)

var clocks = []string{SystemClock: "system", NoClock: "none"}

// String gives the config's spelling.
func (c Clock) String() string { return clocks[c] }

// MarshalText is String.
func (c Clock) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText reads "system" or "none".
func (c *Clock) UnmarshalText(text []byte) error { return word(c, clocks, text, "clock") }

// PortRange is one port or an unbroken run of ports of one protocol.
type PortRange struct {
	Proto     sequence.Proto // TCP or UDP
	Low, High uint16         // 1 <= Low <= High
}

// ParsePortRange reads "22/tcp" or "60000-61000/udp".
func ParsePortRange(s string) (PortRange, error) {
	ports, proto, ok := strings.Cut(s, "/")
	bad := fmt.Errorf("%q is not a port: write it as 22/tcp, 53/udp or 60000-61000/udp, with ports from 1 to 65535", s)
	r := PortRange{Proto: sequence.TCP}
	switch {
	case !ok:
		return PortRange{}, bad
	case proto == "udp":
		r.Proto = sequence.UDP
	case proto != "tcp":
		return PortRange{}, fmt.Errorf("%q names the protocol %q: a port is tcp or udp", s, proto)
	}
	low, high, ranged := strings.Cut(ports, "-")
	if !ranged {
		high = low
	}
	for _, end := range []struct {
		text string
		to   *uint16
	}{{low, &r.Low}, {high, &r.High}} {
		n, err := strconv.ParseUint(end.text, 10, 16)
		if err != nil || n == 0 || strconv.FormatUint(n, 10) != end.text {
			return PortRange{}, bad
		}
		*end.to = uint16(n)
	}
	if r.Low > r.High || (ranged && r.Low == r.High) {
		return PortRange{}, fmt.Errorf("%q: the first port of a range must be the lower one", s)
	}
	return r, nil
}

// Contains reports whether the range has this port of this protocol.
func (r PortRange) Contains(proto sequence.Proto, port uint16) bool {
	return r.Proto == proto && r.Low <= port && port <= r.High
}

// Count is the number of ports in the range.
func (r PortRange) Count() int { return int(r.High) - int(r.Low) + 1 }

// String gives the spelling that ParsePortRange reads.
func (r PortRange) String() string {
	if r.Low == r.High {
		return fmt.Sprintf("%d/%s", r.Low, r.Proto)
	}
	return fmt.Sprintf("%d-%d/%s", r.Low, r.High, r.Proto)
}

// MarshalText is String.
func (r PortRange) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText is ParsePortRange.
func (r *PortRange) UnmarshalText(text []byte) error {
	got, err := ParsePortRange(string(text))
	if err == nil {
		*r = got
	}
	return err
}

// Rule is one thing that a knock does: it opens or closes a service, runs an
// action or undoes it. The engine names a rule by its index in Rules, and the
// warden looks it up in its own copy.
type Rule struct {
	Knock   int  // index into Config.Knocks
	Service int  // index into Config.Services; None: it is of an action
	Action  int  // index into Config.Actions; None: it is of a service
	Close   bool // it takes back
	Extend  bool // it prolongs
}

// None is in place of an index.
const None = -1

// NameOf gives the name of a rule's service or action.
func (c *Config) NameOf(r Rule) string {
	if r.Service == None {
		return c.Actions[r.Action].Name
	}
	return c.Services[r.Service].Name
}

// Rules lists them in the config's order. Both sides of the border call it on the
// same Config, so a number means the same to both.
func (c *Config) Rules() []Rule {
	var rules []Rule
	for i := range c.Knocks {
		k := &c.Knocks[i]
		for _, s := range k.Opens {
			rules = append(rules, Rule{Knock: i, Service: s, Action: None})
		}
		for _, a := range k.Runs {
			rules = append(rules, Rule{Knock: i, Service: None, Action: a})
		}
		for _, s := range k.Closes {
			rules = append(rules, Rule{Knock: i, Service: s, Action: None, Close: true})
		}
		for _, a := range k.ClosesActions {
			rules = append(rules, Rule{Knock: i, Service: None, Action: a, Close: true})
		}
		for _, s := range k.Extends {
			rules = append(rules, Rule{Knock: i, Service: s, Action: None, Extend: true})
		}
	}
	return rules
}
