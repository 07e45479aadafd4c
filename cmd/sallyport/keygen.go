package main

import (
	"errors"

	"github.com/sallyport/sallyport/internal/sequence"
)

type keygenCmd struct {
	Sequence bool `help:"Make a random sequence of TCP and UDP steps."`
	Steps    int  `arg:"" optional:"" default:"4" help:"How many steps, 3 to 32 (default ${default})."`
}

// Run prints one line for a [knock.NAME] table: nothing else goes to standard
// output, so that it can be appended to a file.
func (c *keygenCmd) Run(u *ui) error {
	if !c.Sequence {
		return usageError{errors.New("keygen makes sequences; say 'sallyport keygen --sequence'")}
	}
	steps, err := sequence.Random(c.Steps)
	if err != nil {
		return usageError{err}
	}
	u.print("%s\n", sequence.ConfigLine(steps))
	return nil
}
