//go:build !linux

package main

// serverCommands is empty: the daemon and its tools need Linux.
type serverCommands struct{}

// processes is empty too.
var processes map[string]func(*ui, []string) error

// runKnockd says so.
func runKnockd(u *ui, _ []string) int {
	u.say("knockd needs Linux")
	return exitFailed
}
