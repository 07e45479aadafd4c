package nft

import "github.com/sallyport/sallyport/internal/config"

// Hides gives this host's own hidden ports by how they look, so that every backend
// hides the same. Index it by a config.ClosedAs; the ranges of each are disjoint, in
// order, and no port is in two.
func Hides(cfg *config.Config) [config.Reject + 1][]config.PortRange { return hidden(cfg) }

// Quiet gives the ports of knocks that are to give no answer at all.
func Quiet(cfg *config.Config) []config.PortRange { return quiet(cfg) }
