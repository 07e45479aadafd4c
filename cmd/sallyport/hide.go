//go:build linux

package main

import (
	"github.com/sallyport/sallyport/internal/warden"
)

type hideCmd struct {
	Config   string `short:"c" default:"/etc/sallyport/sallyport.toml" placeholder:"FILE" help:"Used where no last good config is kept (default ${default})."`
	StateDir string `default:"/var/lib/sallyport" placeholder:"DIR" help:"Where the last good config is kept (default ${default})."`
}

// Run loads the hidden table and leaves; the boot calls it before the network
// is up.
func (c *hideCmd) Run(u *ui) error { return configError(warden.Hide(c.StateDir, c.Config, u.logger())) }

type downCmd struct{}

// Run removes the table, whether or not a daemon runs.
func (downCmd) Run(u *ui) error {
	there, err := warden.Down()
	if err != nil {
		return err
	}
	if !there {
		u.say("nothing was hidden: there is no table inet sallyport, and no chain SALLYPORT of iptables")
		return nil
	}
	u.say("every port is public again")
	u.hint("a running daemon hides nothing until it is started or reloaded; the boot unit hides again at the next boot")
	return nil
}
