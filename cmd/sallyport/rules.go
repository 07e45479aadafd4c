//go:build linux

package main

import (
	"errors"
	"fmt"
	"slices"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/rules"
	"github.com/sallyport/sallyport/internal/sequence"
)

type rulesCmd struct {
	What       string `arg:"" optional:"" help:"nft or iptables; with --shell, --powershell or --batch, a knock of the config whose steps to write into the client."`
	Config     string `short:"c" placeholder:"FILE" help:"The config (default /etc/sallyport/sallyport.toml)."`
	Shell      bool   `xor:"client" help:"Print a client for any POSIX shell, which uses bash, nc, ncat, busybox or nmap."`
	Powershell bool   `xor:"client" help:"Print a client for Windows PowerShell 5 and PowerShell 7."`
	Batch      bool   `xor:"client" help:"Print a client for cmd.exe."`
}

// Run prints a ruleset that does the job of a config's sequences without a daemon, or
// a client that needs nothing installed.
func (c *rulesCmd) Run(u *ui) error {
	if c.Shell || c.Powershell || c.Batch {
		return c.client(u)
	}
	var compile func(*config.Config) (string, error)
	var kind rules.Kind
	switch c.What {
	case "nft":
		compile, kind = rules.NFT, rules.Nftables
	case "iptables":
		compile, kind = rules.IPTables, rules.Iptables
	default:
		return usageError{errors.New("say for what: 'sallyport rules nft' or 'sallyport rules iptables', or --shell, --powershell or --batch for a client")}
	}
	cfg, err := c.load()
	if err != nil {
		return err
	}
	text, err := compile(cfg)
	if err != nil {
		return usageError{err}
	}
	u.print("%s", text)
	for _, limit := range rules.Limits(cfg, kind) {
		u.say("warning: %s", limit)
	}
	u.hint("its first lines say how to load and undo it; it holds the sequences, so keep it where root alone can read it")
	return nil
}

func (c *rulesCmd) load() (*config.Config, error) {
	if c.Config == "" {
		c.Config = defaultConfig
	}
	cfg, err := config.Load(c.Config)
	return cfg, configError(err)
}

// client prints a client, without a secret unless a knock is named.
func (c *rulesCmd) client(u *ui) error {
	steps, err := c.steps()
	if err != nil {
		return err
	}
	print := rules.Shell
	switch {
	case c.Powershell:
		print = rules.PowerShell
	case c.Batch:
		print = rules.Batch
	}
	text, err := print(steps)
	if err != nil {
		return usageError{fmt.Errorf("knock.%s: %w", c.What, err)}
	}
	u.print("%s", text)
	if len(steps) > 0 {
		u.say("the steps of knock.%s are in this text: it is as secret as they are", c.What)
	}
	return nil
}

// steps gives those of the knock that was named; none: no knock was.
func (c *rulesCmd) steps() ([]sequence.Step, error) {
	switch {
	case c.What == "" && c.Config == "":
		return nil, nil
	case c.What == "":
		return nil, usageError{errors.New("name the knock whose steps to write into the client, or leave --config out for a client that takes them as arguments")}
	case c.Config == "" && (c.What == "nft" || c.What == "iptables"):
		return nil, usageError{fmt.Errorf("%s is for a ruleset and --shell, --powershell and --batch are for a client; leave one out", c.What)}
	}
	cfg, err := c.load()
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(cfg.Knocks, func(k config.Knock) bool { return k.Name == c.What })
	if i < 0 {
		return nil, usageError{fmt.Errorf("%s has no knock.%s", c.Config, c.What)}
	}
	k := &cfg.Knocks[i]
	if k.Type != "sequence" || k.List != "" {
		return nil, usageError{fmt.Errorf("knock.%s is no sequence that stays the same, which is all that such a client can send; use sallyport knock", c.What)}
	}
	return k.Sequence, nil
}
