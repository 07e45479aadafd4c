//go:build linux

package warden

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestFilesTellsOfEveryWayToChangeAFile(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	must := func(errs ...error) {
		t.Helper()
		for _, err := range errs {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	write := func(name string) error { return os.WriteFile(at(name), []byte(name), 0o600) }
	// path leads through a symlink to a directory and one to a file.
	must(os.Mkdir(at("a"), 0o700), os.Mkdir(at("b"), 0o700), os.Mkdir(at("c"), 0o700), write("a/real"), write("b/real"), write("c/real"), write("plain"),
		os.Symlink("a", at("to")), os.Symlink("real", at("a/link")), os.Symlink(at("c/real"), at("b/link")))
	f := newFiles()
	defer f.close()
	must(f.follow([]string{at("to/link"), at("plain")}))
	for _, c := range []struct {
		name   string
		change func() error
		quiet  bool
	}{
		{"written", func() error { return write("plain") }, false},
		{"renamed over", func() error { must(write("other")); return os.Rename(at("other"), at("plain")) }, false},
		{"another file", func() error { must(write("strange")); return os.Chmod(at("strange"), 0o644) }, true},
		{"mode", func() error { return os.Chmod(at("plain"), 0o644) }, false},
		{"removed", func() error { return os.Remove(at("plain")) }, false},
		{"made", func() error { return write("plain") }, false},
		{"behind two links", func() error { return write("a/real") }, false},
		{"the target of a link, renamed over", func() error { must(write("a/new")); return os.Rename(at("a/new"), at("a/real")) }, false},
		{"a link to a directory, turned", func() error { must(os.Symlink("b", at("next"))); return os.Rename(at("next"), at("to")) }, false},
		{"behind the turned link", func() error { return write("c/real") }, false},
		{"where the link led before", func() error { return os.Remove(at("a/real")) }, true},
	} {
		for len(f.changed) > 0 {
			<-f.changed
		}
		must(c.change())
		wait := 10 * time.Second
		if c.quiet {
			wait = 3 * keyPause
		}
		select {
		case <-f.changed:
			if c.quiet {
				t.Errorf("%s: told", c.name)
			}
		case <-time.After(wait):
			if !c.quiet {
				t.Errorf("%s: not told", c.name)
			}
		}
		time.Sleep(2 * keyPause) // a change of several events is told twice
		must(f.follow([]string{at("to/link"), at("plain")}))
	}
	loop := at("loop")
	must(os.Symlink("loop", loop))
	if err := f.follow([]string{loop}); err != nil {
		t.Error(err)
	}
}
