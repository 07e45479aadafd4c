//go:build !linux

package main

// Run gives the exit status. Only Linux has a daemon, for which a program is built.
func (t tests) Run() int { return t.m.Run() }
