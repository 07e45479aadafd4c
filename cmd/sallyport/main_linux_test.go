package main

import "github.com/sallyport/sallyport/internal/testnet"

// Run gives the exit status.
func (t tests) Run() int { return testnet.Main(t.m) }
