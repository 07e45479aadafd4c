//go:build linux

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/sallyport/sallyport/internal/knockd"
)

type convertCmd struct {
	File string `arg:"" optional:"" default:"/etc/knockd.conf" help:"The knockd.conf (default ${default})."`
	Out  string `short:"o" placeholder:"FILE" help:"Write the config to this file, which must not be there yet, instead of standard output."`
}

// Run writes the config of ours that does what a knockd.conf does.
func (c *convertCmd) Run(u *ui) error {
	f, err := knockd.Load(c.File)
	if err != nil {
		return configError(err)
	}
	text := f.Convert(knockd.Settings{Out: c.Out})
	if c.Out == "" {
		u.print("%s", text)
	} else {
		if err := writeConfig(c.Out, text); err != nil {
			return err
		}
		u.say("%s is written; look through its comments, then 'sallyport check -c %s'", c.Out, c.Out)
	}
	if len(f.Warnings) > 0 {
		u.hint("'sallyport check --knockd %s' says what in that file is probably not meant", c.File)
	}
	return nil
}

// writeConfig makes a file that is root's alone: it holds sequences.
func writeConfig(path, text string) error {
	out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return usageError{fmt.Errorf("%s is there already; name another file, or move that one away", path)}
	}
	if err != nil {
		return fmt.Errorf("nothing was written: %w; name a file in a directory that is there and that you may write to", err)
	}
	_, err = out.WriteString(text)
	if err = errors.Join(err, out.Sync(), out.Close()); err != nil {
		return errors.Join(fmt.Errorf("the config was not written: %w", err), os.Remove(path))
	}
	return nil
}
