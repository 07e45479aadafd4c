//go:build !linux

package main

// serverCommands is empty: the daemon and its tools need Linux.
type serverCommands struct{}
