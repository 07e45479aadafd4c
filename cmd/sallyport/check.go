//go:build linux

package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/sallyport/sallyport/internal/authorized"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/keys"
	"github.com/sallyport/sallyport/internal/rules"
	"github.com/sallyport/sallyport/internal/secrets"
	"github.com/sallyport/sallyport/internal/spa"
	"github.com/sallyport/sallyport/internal/warden"
)

type checkCmd struct {
	Config   string `short:"c" placeholder:"FILE" help:"The config (default /etc/sallyport/sallyport.toml)."`
	Knockd   string `placeholder:"FILE" help:"Check this knockd.conf instead."`
	Defaults string `placeholder:"FILE" help:"With --knockd: the file of options beside it (default /etc/default/knockd, if it is there)."`
	JSON     bool   `name:"json" help:"Print JSON."`
}

// checked is what check --json prints: errors, or all the rest.
type checked struct {
	Errors   config.Errors     `json:"errors,omitempty"`
	Config   map[string]any    `json:"config,omitempty"` // the keys and spellings of the file
	Strength []config.Strength `json:"strength,omitempty"`
	SPA      []spaSummary      `json:"spa,omitempty"`
	People   []peopleSummary   `json:"people,omitempty"`
	Native   []nativeOffer     `json:"native,omitempty"` // of a knockd.conf
	Warnings []config.Warning  `json:"warnings,omitempty"`
	Rules    []string          `json:"rules,omitempty"`          // what `sallyport rules` can't do of it
	Iptables []string          `json:"rules_iptables,omitempty"` // and `sallyport rules iptables` besides
}

// Run prints the normal form, and in words what is weak. A config that is only
// weak is a valid one: exit status 0.
func (c *checkCmd) Run(u *ui) error {
	switch {
	case c.Knockd != "" && c.Config != "":
		return usageError{errors.New("--knockd checks a knockd.conf and --config a config of ours; leave one out")}
	case c.Knockd != "":
		return c.knockd(u)
	case c.Defaults != "":
		return usageError{errors.New("--defaults goes with --knockd FILE; leave it out")}
	case c.Config == "":
		c.Config = defaultConfig
	}
	cfg, text, err := config.LoadText(c.Config)
	if err != nil {
		return c.refuse(u, err)
	}
	facts := gatherFacts(c.Config)
	plain := cfg // without the lines of lists, which are nobody's to see
	cfg, lists, err := withLists(cfg, c.Config, text)
	if err != nil {
		return c.refuse(u, err)
	}
	result := checked{Warnings: append(config.Lint(cfg, facts), lists...)}
	if faults := result.knocks(cfg, c.Config, text, facts); len(faults) > 0 {
		return c.refuse(u, faults)
	}
	result.warn(firewallWarnings(cfg)...)
	result.warn(commandWarnings(&cfg.Daemon)...)
	result.Rules = rules.Limits(cfg, rules.Nftables)
	for _, limit := range rules.Limits(cfg, rules.Iptables) {
		if !slices.Contains(result.Rules, limit) {
			result.Iptables = append(result.Iptables, limit)
		}
	}
	if c.JSON {
		if result.Config, err = plain.Tree(); err != nil {
			return err
		}
		return u.json(result)
	}
	u.print("%s", plain.Format())
	result.tell(u)
	if len(cfg.Actions) > 0 || cfg.Daemon.Backend == config.Commands {
		u.hint("under systemd commands run within the limits of sallyport.service; if they fail there, put these lines, or those of them that they need, into %s, then 'systemctl daemon-reload'", dropInPath)
		fmt.Fprint(u.err, dropIn) // without our name before each line, to be copied
	}
	return nil
}

// warn adds what is not there yet: two knocks may share a file.
func (c *checked) warn(list ...config.Warning) {
	for _, w := range list {
		if !slices.Contains(c.Warnings, w) {
			c.Warnings = append(c.Warnings, w)
		}
	}
}

// knocks looks at each knock and the files that it names.
func (c *checked) knocks(cfg *config.Config, file string, text []byte, facts config.Facts) (faults config.Errors) {
	servers, people := make([][]spa.FileKey, len(cfg.Knocks)), make([][]secrets.Person, len(cfg.Knocks))
	for i := range cfg.Knocks {
		k := &cfg.Knocks[i]
		if k.HasSecrets() {
			list, errs := c.people(cfg, k, file, text)
			people[i], faults = list, append(faults, errs...)
			faults = append(faults, sharedCode(cfg, people, i, file, text)...)
		}
		if k.Type != "spa" {
			c.Strength = append(c.Strength, config.StrengthOf(cfg, k, facts.Listening))
			continue
		}
		f, errs := readKnockFiles(file, text, k)
		servers[i] = f.server
		if j := keys.Shared(servers, i); j >= 0 {
			path := "knock." + k.Name + ".key"
			errs = append(errs, config.Error{File: file, Line: config.LineOf(text, path), Text: path + ": " + keys.SharedError(cfg.Knocks[j].Name).Error()})
		}
		if len(errs) > 0 {
			faults = append(faults, errs...)
			continue
		}
		summary, warnings := f.look(cfg, k, time.Now())
		c.SPA = append(c.SPA, summary)
		c.warn(warnings...)
	}
	return faults
}

// dropInPath is where the lines below belong, and dropIn is what sallyport.service
// has to give up for commands that may do anything: packaging/actions.conf, where
// comments say what each is for.
const (
	dropInPath = "/etc/systemd/system/sallyport.service.d/actions.conf"
	dropIn     = `[Service]
CapabilityBoundingSet=~
NoNewPrivileges=no
SystemCallFilter=
SystemCallArchitectures=
RestrictAddressFamilies=
RestrictNamespaces=no
RestrictSUIDSGID=no
RestrictRealtime=no
LockPersonality=no
MemoryDenyWriteExecute=no
IPAddressDeny=
IPAddressAllow=
ProtectSystem=no
ProtectHome=no
ProtectProc=default
PrivateDevices=no
PrivateTmp=no
ProtectClock=no
ProtectControlGroups=no
ProtectKernelLogs=no
ProtectKernelModules=no
ProtectKernelTunables=no
UMask=0022
KillMode=process
`
)

// tell says in words what was found.
func (c *checked) tell(u *ui) {
	for _, s := range c.Strength {
		u.say("%v", s)
	}
	for _, s := range c.SPA {
		u.say("%v", s)
	}
	for _, s := range c.People {
		u.say("%v", s)
	}
	for _, limit := range c.Rules {
		u.say("without a daemon, by sallyport rules: %s", limit)
	}
	for _, limit := range c.Iptables {
		u.say("without a daemon, by sallyport rules iptables: %s", limit)
	}
	for _, w := range c.Warnings {
		u.say("warning: %s", w.Text)
		switch {
		case strings.Contains(w.Advice, "\n"): // without our name before the first line, to be copied
			u.hint("type these lines:\n%s", w.Advice)
		case w.Advice != "":
			u.hint("%s", w.Advice)
		}
	}
}

// refuse gives the errors of a config that can't be used, for programs too.
func (c *checkCmd) refuse(u *ui, err error) error {
	if errs, ok := errors.AsType[config.Errors](err); ok && c.JSON {
		return errors.Join(configError(err), u.json(checked{Errors: errs}))
	}
	return configError(err)
}

// firewallWarnings names what this machine's other rules would drop. Only root
// can read them, and the config may be meant for another machine; so that they
// can't be read is said and is no failure.
func firewallWarnings(cfg *config.Config) []config.Warning {
	blockers, err := warden.Blockers(cfg)
	if errors.Is(err, warden.ErrNotLooked) {
		return []config.Warning{{Text: err.Error(), Advice: "look at 'iptables -S INPUT', 'ip6tables -S INPUT' and 'nft list ruleset', and see by a knock from outside that the port opens"}}
	}
	if err != nil {
		return []config.Warning{{Text: err.Error(), Advice: "run check as root on the machine that the config is for"}}
	}
	var warnings []config.Warning
	for _, b := range blockers {
		warnings = append(warnings, config.Warning{Text: b.String()})
	}
	return warnings
}

// commandWarnings names what a backend of commands could not run here.
func commandWarnings(d *config.Daemon) (warnings []config.Warning) {
	for _, c := range []struct {
		key   string
		words config.Command
		so    string
	}{
		{"open_command", d.OpenCommand, "no knock opens anything"},
		{"close_command", d.CloseCommand, "what a knock opened is not closed"},
		{"adopt_command", d.AdoptCommand, "what is open at the daemon's start stays open"},
	} {
		if len(c.words) == 0 {
			continue
		}
		info, err := os.Stat(c.words[0])
		why := ""
		switch {
		case err != nil:
			why = fmt.Sprintf("can't be run here: %v", pathCause(err))
		case info.IsDir():
			why = "is a directory"
		case info.Mode()&0o111 == 0:
			why = fmt.Sprintf("is not executable (its mode is %04o)", info.Mode().Perm())
		default:
			continue
		}
		warnings = append(warnings, config.Warning{
			Text:   fmt.Sprintf("daemon.%s: %s %s, so %s", c.key, c.words[0], why, c.so),
			Advice: "put the program there, and make it executable: 'chmod 755 " + keys.Word(c.words[0]) + "'",
		})
	}
	return warnings
}

// spaSummary is what check says of one knock of type spa: it has no guesses to
// count, because nobody gets in without one of these keys.
type spaSummary struct {
	Knock    string         `json:"knock"`
	Suite    string         `json:"suite"`
	Keys     map[string]int `json:"keys"`      // lines of authorized_keys by their key's type
	Usable   int            `json:"usable"`    // of these, that can open something now
	OldUntil []time.Time    `json:"old_until"` // when each old server key ends
}

// String says it in one line.
func (s spaSummary) String() string {
	who := "nobody"
	if s.Usable > 0 {
		who = plural(s.Usable, "key")
	}
	text := fmt.Sprintf("knock.%s: authenticated by %s now (%s server key", s.Knock, who, s.Suite)
	var kinds []string
	for _, kind := range slices.Sorted(maps.Keys(s.Keys)) {
		kinds = append(kinds, fmt.Sprintf("%d %s", s.Keys[kind], kind))
	}
	if len(kinds) > 0 {
		text += "; authorized: " + strings.Join(kinds, ", ")
	}
	for _, until := range s.OldUntil {
		text += "; an old server key works until " + until.UTC().Format(time.RFC3339)
	}
	return text + ")"
}

// knockFiles is the two files of a knock of type spa.
type knockFiles struct {
	server []spa.FileKey
	users  []authorized.Key
	bad    []authorized.Error
}

// readKnockFiles reads both files; the faults stand at the config's lines that
// name them.
func readKnockFiles(file string, text []byte, k *config.Knock) (f knockFiles, faults config.Errors) {
	fault := func(key string, err error) {
		path := "knock." + k.Name + "." + key
		faults = append(faults, config.Error{File: file, Line: config.LineOf(text, path), Text: path + ": " + err.Error()})
	}
	var err error
	if f.server, err = keys.Server(k.Key); err != nil {
		fault("key", err)
	}
	if f.users, f.bad, err = keys.Authorized(k.AuthorizedKeys); err != nil {
		fault("authorized_keys", err)
	}
	return f, faults
}

const (
	// soon is when a key's end is worth a warning: time enough to replace it.
	soon = 14 * 24 * time.Hour
	// mostLines bounds what is said of the lines of one file.
	mostLines = 20
)

// look sums up the files and says what in them is probably not meant.
func (f *knockFiles) look(cfg *config.Config, k *config.Knock, now time.Time) (spaSummary, []config.Warning) {
	suite := f.server[0].Key.Address().Suite()
	s := spaSummary{Knock: k.Name, Suite: suite.String(), Keys: map[string]int{}, OldUntil: []time.Time{}}
	w := warner{file: k.AuthorizedKeys}
	for _, old := range f.server[1:] {
		if old.Until.After(now) {
			s.OldUntil = append(s.OldUntil, old.Until)
		}
	}
	if ended := len(f.server) - 1 - len(s.OldUntil); ended > 0 {
		w.say("delete the lines whose until= is over, or let the next 'sallyport keygen --rotate' do it", "%s holds %s whose time is over; they open nothing and can still read what was recorded", k.Key, plural(ended, "old server key"))
	}
	for _, bad := range f.bad {
		w.line(bad.Line, "repair or delete the line; the others work without it", "gives no key: %s", bad.Text)
	}
	for i := range f.users {
		key := &f.users[i]
		s.Keys[key.Public.Type()]++
		if w.user(cfg, k, key, suite, now) {
			s.Usable++
		}
	}
	w.rest()
	if s.Usable == 0 {
		w.say("put the public key of somebody who may knock into it", "knock.%s can be opened by nobody: %s has no key that works now", k.Name, k.AuthorizedKeys)
	}
	return s, w.out
}

// warner collects warnings, of which only so many are about lines.
type warner struct {
	file  string // of which the lines are
	lines int
	out   []config.Warning
}

func (w *warner) say(advice, format string, args ...any) {
	w.out = append(w.out, config.Warning{Text: fmt.Sprintf(format, args...), Advice: advice})
}

func (w *warner) line(n int, advice, format string, args ...any) {
	if w.lines++; w.lines <= mostLines {
		w.say(advice, "%s:%d: %s", w.file, n, fmt.Sprintf(format, args...))
	}
}

func (w *warner) rest() {
	if more := w.lines - mostLines; more > 0 {
		w.say("repair the lines above first", "%s: %s more are not listed", w.file, plural(more, "warning"))
	}
}

// user looks at one key and reports whether it can open anything now.
func (w *warner) user(cfg *config.Config, k *config.Knock, key *authorized.Key, suite spa.Suite, now time.Time) bool {
	names, opens := namesOf(cfg, k), 0
	for _, name := range names {
		if key.Opens(name) {
			opens++
		}
	}
	for _, name := range key.Services {
		if !slices.Contains(names, name) {
			w.line(key.Line, "take the name out of services=, or add it to opens or runs", "services= names %q, which knock.%s does not open", name, k.Name)
		}
	}
	switch date := key.Expires.UTC().Format(time.RFC3339); {
	case key.Expires.IsZero():
	case !key.Expires.After(now):
		w.line(key.Line, "delete the line, or give it a later expiry-time", "the key%s expired at %s", whose(key), date)
	case key.Expires.Sub(now) < soon:
		w.line(key.Line, "give it a later expiry-time if its owner still needs it", "the key%s expires at %s", whose(key), date)
	}
	_, err := suite.SizeFor(&key.Public)
	if err != nil {
		w.line(key.Line, "ask its owner for an ed25519 key", "the key%s is of type %s, whose signatures do not fit into a post-quantum datagram", whose(key), key.Public.Type())
	}
	return err == nil && opens > 0 && key.At(now)
}

// namesOf gives what a key or a secret of a knock can be good for: services and actions.
func namesOf(cfg *config.Config, k *config.Knock) (names []string) {
	for _, i := range slices.Concat(k.Opens, k.Closes, k.Extends) {
		names = append(names, cfg.Services[i].Name)
	}
	for _, i := range slices.Concat(k.Runs, k.ClosesActions) {
		names = append(names, cfg.Actions[i].Name)
	}
	return names
}

func whose(key *authorized.Key) string {
	if key.Comment == "" {
		return ""
	}
	return fmt.Sprintf(" of %q", key.Comment)
}
