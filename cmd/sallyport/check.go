//go:build linux

package main

import (
	"errors"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/warden"
)

type checkCmd struct {
	Config string `short:"c" default:"/etc/sallyport/sallyport.toml" placeholder:"FILE" help:"The config (default ${default})."`
	JSON   bool   `name:"json" help:"Print JSON."`
}

// checked is what check --json prints: errors, or all the rest.
type checked struct {
	Errors   config.Errors     `json:"errors,omitempty"`
	Config   map[string]any    `json:"config,omitempty"` // the keys and spellings of the file
	Strength []config.Strength `json:"strength,omitempty"`
	Warnings []config.Warning  `json:"warnings,omitempty"`
}

// Run prints the normal form, and in words what is weak. A config that is only
// weak is a valid one: exit status 0.
func (c *checkCmd) Run(u *ui) error {
	cfg, err := config.Load(c.Config)
	if err != nil {
		if errs, ok := errors.AsType[config.Errors](err); ok && c.JSON {
			return errors.Join(configError(err), u.json(checked{Errors: errs}))
		}
		return configError(err)
	}
	facts := gatherFacts(c.Config)
	result := checked{Warnings: config.Lint(cfg, facts)}
	for i := range cfg.Knocks {
		result.Strength = append(result.Strength, config.StrengthOf(cfg, &cfg.Knocks[i], facts.Listening))
	}
	result.Warnings = append(result.Warnings, firewallWarnings(cfg)...)
	if c.JSON {
		if result.Config, err = cfg.Tree(); err != nil {
			return err
		}
		return u.json(result)
	}
	u.print("%s", cfg.Format())
	for _, s := range result.Strength {
		u.say("%v", s)
	}
	for _, w := range result.Warnings {
		u.say("warning: %s", w.Text)
		if w.Advice != "" {
			u.hint("%s", w.Advice)
		}
	}
	return nil
}

// firewallWarnings names what this machine's other rules would drop. Only root
// can read them, and the config may be meant for another machine; so that they
// can't be read is said and is no failure.
func firewallWarnings(cfg *config.Config) []config.Warning {
	blockers, err := warden.Blockers(cfg)
	if err != nil {
		return []config.Warning{{Text: err.Error(), Advice: "run check as root on the machine that the config is for"}}
	}
	var warnings []config.Warning
	for _, b := range blockers {
		warnings = append(warnings, config.Warning{Text: b.String()})
	}
	return warnings
}
