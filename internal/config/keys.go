package config

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/sallyport/sallyport/internal/encoded"
	"github.com/sallyport/sallyport/internal/otp"
	"github.com/sallyport/sallyport/internal/sequence"
)

// key is one key of a table: its name, how a decoded value becomes a checked
// field, and how the field is spelled in the normal form. One row does both, so
// that what is read can't drift from what is written.
type key[T any] struct {
	name string
	read func(r *reader, path string, v any, to *T)
	show func(from *T) string
}

// The raw tables are the checked ones, less what only the whole file can tell.
type (
	rawDaemon = Daemon
	rawKnock  struct {
		Knock
		// Names of services and actions; the checked form has their indices.
		names, runs, closes, extends []string
	}
)

var daemonKeys = []key[rawDaemon]{
	texts("interfaces", func(d *rawDaemon) *[]string { return &d.Interfaces }, parseInterface),
	text("state_dir", func(d *rawDaemon) *string { return &d.StateDir }, parsePath),
	text("control", func(d *rawDaemon) *string { return &d.Control }, parseSocket),
	hideKey,
	texts("public", func(d *rawDaemon) *[]PortRange { return &d.Public }, ParsePortRange),
	integer("max_attempts", func(d *rawDaemon) *int { return &d.MaxAttempts }, minTable, maxTable, "%d"),
	integer("max_grants", func(d *rawDaemon) *int { return &d.MaxGrants }, minTable, maxTable, "%d"),
	text("source", func(d *rawDaemon) *Source { return &d.Source }, oneOf[Source]),
	integer("nflog_group", func(d *rawDaemon) *uint16 { return &d.NFLOGGroup }, 0, math.MaxUint16, "%d"),
	text("log_file", func(d *rawDaemon) *string { return &d.LogFile }, parseLogFile),
	text("log_prefix", func(d *rawDaemon) *string { return &d.LogPrefix }, parseLogPrefix),
	text("backend", func(d *rawDaemon) *Backend { return &d.Backend }, oneOf[Backend]),
	texts("open_command", func(d *rawDaemon) *[]string { return (*[]string)(&d.OpenCommand) }, parseWord),
	texts("close_command", func(d *rawDaemon) *[]string { return (*[]string)(&d.CloseCommand) }, parseWord),
	texts("adopt_command", func(d *rawDaemon) *[]string { return (*[]string)(&d.AdoptCommand) }, parseWord),
	integer("grant_mark", func(d *rawDaemon) *uint32 { return &d.GrantMark }, 0, math.MaxUint32, "0x%x"),
}

var serviceKeys = []key[Service]{
	texts("ports", func(s *Service) *[]PortRange { return &s.Ports }, ParsePortRange),
	text("closed_as", func(s *Service) *ClosedAs { return &s.ClosedAs }, oneOf[ClosedAs]),
	text("open_for", func(s *Service) *time.Duration { return &s.OpenFor }, parseDuration(minOpenFor, maxOpenFor)),
	text("max_open_for", func(s *Service) *time.Duration { return &s.MaxOpenFor }, parseDuration(minOpenFor, maxOpenFor)),
	texts("allow", func(s *Service) *[]prefix { return &s.Allow }, parsePrefix),
	texts("on", func(s *Service) *[]addr { return &s.On }, parseAddr),
	boolean("close_on_disconnect", func(s *Service) *bool { return &s.CloseOnDisconnect }),
	boolean("once", func(s *Service) *bool { return &s.Once }),
}

var actionKeys = []key[Action]{
	texts("run", func(a *Action) *[]string { return (*[]string)(&a.Run) }, parseWord),
	texts("run_ipv6", func(a *Action) *[]string { return (*[]string)(&a.RunIPv6) }, parseWord),
	texts("undo", func(a *Action) *[]string { return (*[]string)(&a.Undo) }, parseWord),
	texts("undo_ipv6", func(a *Action) *[]string { return (*[]string)(&a.UndoIPv6) }, parseWord),
	text("undo_after", func(a *Action) *time.Duration { return &a.UndoAfter }, parseUndoAfter),
	boolean("at_start", func(a *Action) *bool { return &a.AtStart }),
}

// Keys that every type of knock has.
var (
	typeKey  = text("type", func(k *rawKnock) *string { return &k.Type }, parseType)
	opensKey = texts("opens", func(k *rawKnock) *[]string { return &k.names }, asIs)
	runsKey  = texts("runs", func(k *rawKnock) *[]string { return &k.runs }, asIs)
	quietKey = boolean("quiet", func(k *rawKnock) *bool { return &k.Quiet })
)

// Keys that several types of knock have.
var (
	closesKey  = texts("closes", func(k *rawKnock) *[]string { return &k.closes }, asIs)
	extendsKey = texts("extends", func(k *rawKnock) *[]string { return &k.extends }, asIs)
	withinKey  = text("within", func(k *rawKnock) *time.Duration { return &k.Within }, parseDuration(minWithin, maxWithin))
	windowKey  = text("window", func(k *rawKnock) *time.Duration { return &k.Window }, parseDuration(minWindow, maxWindow))
	secretsKey = text("secrets", func(k *rawKnock) *string { return &k.Secrets }, parsePath)
	baseKey    = text("base", func(k *rawKnock) *PortRange { return &k.Base }, parsePort)
)

// knockKeys is the keys of each type of knock.
var knockKeys = map[string][]key[rawKnock]{"sequence": sequenceKeys, "otp": otpKeys, "encoded": encodedKeys, "spa": spaKeys}

var sequenceKeys = []key[rawKnock]{
	typeKey, opensKey, runsKey,
	closesKey, extendsKey,
	targetKey,
	texts("sequence", func(k *rawKnock) *[]sequence.Step { return &k.Sequence }, parseStep),
	text("list", func(k *rawKnock) *string { return &k.List }, parseListFile),
	integer("look_ahead", func(k *rawKnock) *int { return &k.LookAhead }, 1, maxLookAhead, "%d"),
	withinKey,
	boolean("strict", func(k *rawKnock) *bool { return &k.Strict }),
	boolean("close_on_wrong", func(k *rawKnock) *bool { return &k.CloseOnWrong }),
	quietKey,
	boolean("scan_opens", func(k *rawKnock) *bool { return &k.ScanOpens }),
}

var otpKeys = []key[rawKnock]{
	typeKey, opensKey, runsKey, closesKey, extendsKey, secretsKey,
	texts("pool", func(k *rawKnock) *[]PortRange { return &k.Pool }, ParsePortRange),
	texts("leave_out", func(k *rawKnock) *[]PortRange { return &k.LeaveOut }, ParsePortRange),
	integer("steps", func(k *rawKnock) *int { return &k.Steps }, otp.MinSteps, otp.MaxSteps, "%d"),
	text("time_step", func(k *rawKnock) *time.Duration { return &k.TimeStep }, parseDuration(minTimeStep, maxTimeStep)),
	boolean("any_address", func(k *rawKnock) *bool { return &k.AnyAddress }),
	integer("digits", func(k *rawKnock) *int { return &k.Digits }, 0, 8, "%d"),
	baseKey, withinKey, quietKey,
}

var encodedKeys = []key[rawKnock]{
	typeKey, opensKey, runsKey, secretsKey, baseKey,
	integer("span", func(k *rawKnock) *int { return &k.Span }, minSpan, maxSpan, "%d"),
	integer("payload", func(k *rawKnock) *int { return &k.Payload }, 0, encoded.MaxPayload, "%d"),
	texts("widths", func(k *rawKnock) *[]prefix { return &k.Widths }, parseWidth),
	windowKey, withinKey, quietKey,
}

var spaKeys = []key[rawKnock]{
	typeKey, opensKey, runsKey,
	integer("port", func(k *rawKnock) *uint16 { return &k.Port }, 1, math.MaxUint16, "%d"),
	texts("transports", func(k *rawKnock) *[]Transport { return &k.Transports }, oneOf[Transport]),
	text("key", func(k *rawKnock) *string { return &k.Key }, parsePath),
	text("authorized_keys", func(k *rawKnock) *string { return &k.AuthorizedKeys }, parsePath),
	text("address", func(k *rawKnock) *Address { return &k.Address }, oneOf[Address]),
	windowKey,
	text("clock", func(k *rawKnock) *Clock { return &k.Clock }, oneOf[Clock]),
	quietKey,
}

// targetKey takes an address or "", which is any of this host's.
var targetKey = key[rawKnock]{
	name: "target",
	read: func(r *reader, path string, v any, to *rawKnock) {
		if v == "" {
			return
		}
		text("target", func(k *rawKnock) *addr { return &k.Target }, parseTarget).read(r, path, v, to)
	},
	show: func(from *rawKnock) string {
		if !from.Target.IsValid() {
			return `""`
		}
		return spell(from.Target)
	},
}

// hideKey is a word and no boolean, so that later ways to hide have a place.
var hideKey = key[rawDaemon]{
	name: "hide",
	read: func(r *reader, path string, v any, to *rawDaemon) {
		switch v {
		case "":
			to.HideAll = false
		case "all":
			to.HideAll = true
		default:
			r.fault(path, `%s can't be this; write "all" to hide every port that public does not name, or "" to hide the services' ports only`, path)
		}
	},
	show: func(from *rawDaemon) string {
		if from.HideAll {
			return `"all"`
		}
		return `""`
	},
}

// text is a key whose value is one text.
func text[T, E any](name string, field func(*T) *E, parse func(string) (E, error)) key[T] {
	return key[T]{
		name: name,
		read: func(r *reader, path string, v any, to *T) {
			s, ok := v.(string)
			if !ok {
				r.fault(path, "%s is %s; it must be a text in double quotes", path, kind(v))
				return
			}
			e, err := parse(s)
			if err != nil {
				r.fault(path, "%s: %v", path, err)
				return
			}
			*field(to) = e
		},
		show: func(from *T) string { return spell(*field(from)) },
	}
}

// texts is a key whose value is a list of texts. An empty list is nil, so that
// it equals an absent one.
func texts[T, E any](name string, field func(*T) *[]E, parse func(string) (E, error)) key[T] {
	return key[T]{
		name: name,
		read: func(r *reader, path string, v any, to *T) {
			list, ok := v.([]any)
			if !ok {
				r.fault(path, "%s is %s; it must be a list of texts: %s = [\"…\", \"…\"]", path, kind(v), name)
				return
			}
			var out []E
			for i, v := range list {
				s, ok := v.(string)
				if !ok {
					r.fault(item(path, i), "%s, item %d is %s; it must be a text in double quotes", path, i+1, kind(v))
					continue
				}
				e, err := parse(s)
				if err != nil {
					r.fault(item(path, i), "%s, item %d: %v", path, i+1, err)
					continue
				}
				out = append(out, e)
			}
			*field(to) = out
		},
		show: func(from *T) string {
			var items []string
			for _, e := range *field(from) {
				items = append(items, spell(e))
			}
			return "[" + strings.Join(items, ", ") + "]"
		},
	}
}

func boolean[T any](name string, field func(*T) *bool) key[T] {
	return key[T]{
		name: name,
		read: func(r *reader, path string, v any, to *T) {
			b, ok := v.(bool)
			if !ok {
				r.fault(path, "%s is %s; it must be true or false, without quotes", path, kind(v))
				return
			}
			*field(to) = b
		},
		show: func(from *T) string { return strconv.FormatBool(*field(from)) },
	}
}

func integer[T any, N int | uint16 | uint32](name string, field func(*T) *N, low, high int64, format string) key[T] {
	return key[T]{
		name: name,
		read: func(r *reader, path string, v any, to *T) {
			n, ok := v.(int64)
			switch {
			case !ok:
				r.fault(path, "%s is %s; it must be a whole number from %d to %d, without quotes", path, kind(v), low, high)
				return
			case n < low || n > high:
				r.fault(path, "%s is out of range: it takes a whole number from %d to %d", path, low, high)
				return
			}
			*field(to) = N(n)
		},
		show: func(from *T) string { return fmt.Sprintf(format, *field(from)) },
	}
}

// kind names a decoded value in a message. It shows nothing of it: steps that
// lost their brackets are still steps.
func kind(v any) string {
	switch v.(type) {
	case string:
		return "a text"
	case int64, float64:
		return "a number"
	case bool:
		return "a boolean"
	case []any:
		return "a list"
	case map[string]any:
		return "a table"
	}
	return "a date or time"
}

// spell gives a checked value as a TOML text.
func spell(v any) string {
	if d, ok := v.(time.Duration); ok {
		return quote(spellDuration(d))
	}
	return quote(fmt.Sprint(v))
}

// quote gives a basic string of TOML 1.0: what is not printable in its \u form,
// of which strconv has others.
func quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteRune('\\')
			b.WriteRune(r)
		case unicode.IsPrint(r):
			b.WriteRune(r)
		case r > 0xffff:
			fmt.Fprintf(&b, "\\U%08x", r)
		default:
			fmt.Fprintf(&b, "\\u%04x", r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// spellDuration is Go's spelling without the zero units at its end: "1h" for
// "1h0m0s".
func spellDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
