//go:build !unix

package sallyport

import "io/fs"

// ours is always false: this system has no mode that says who can read a file.
func ours(fs.FileInfo) bool { return false }
