//go:build linux

package main

import (
	"fmt"
	"slices"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/warden"
)

// withLists gives a copy of the config with the lines of its lists, as serve would take
// them, and warns of lists that come to their end.
func withLists(cfg *config.Config, file string, text []byte) (*config.Config, []config.Warning, error) {
	with := *cfg
	with.Knocks = slices.Clone(cfg.Knocks)
	left, err := warden.Lists(&with, file, text, true)
	if err != nil {
		return nil, nil, err
	}
	var warnings []config.Warning
	for i := range with.Knocks {
		if k := &with.Knocks[i]; k.List != "" && left[i] < warden.LowLines {
			warnings = append(warnings, config.Warning{
				Text:   fmt.Sprintf("knock.%s: %s has %s left, each good for one knock", k.Name, k.List, plural(left[i], "unused line")),
				Advice: "add lines that 'sallyport keygen --otp-list N' makes to the file, and to the client's copy",
			})
		}
	}
	return &with, warnings, nil
}
