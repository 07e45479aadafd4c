//go:build !unix || solaris || aix

package onetime

import "os"

// lock does nothing where no daemon of ours runs.
func lock(*os.File) error { return nil }

func busy(error) bool { return false }
