//go:build linux

package warden

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The engine forgets nothing that it accepted only if the journal is whole;
// each doubt must count as a loss.
func TestTheJournalIsWhole(t *testing.T) {
	const other = "00000000-1111-4222-8333-444444444444"
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		t.Fatal(err)
	}
	boot := strings.TrimSpace(string(text))
	for _, c := range []struct {
		name, mark string
		without    string // this file
		want       bool
	}{
		{"this boot, killed", boot + " running\n", "", true},
		{"this boot, stopped", boot + " clean\n", "", true},
		{"another boot, stopped", other + " clean\n", "", true},
		{"another boot, power cut", other + " running\n", "", false},
		{"this boot, killed before an engine had it", boot + " starting\n", "", false},
		{"another boot, killed before an engine had it", other + " starting\n", "", false},
		{"this boot, cut off", boot, "", false},
		{"another boot, cut off", other + " cle", "", false},
		{"nothing in it", "", "", false},
		{"no boot", " clean\n", "", false},
		{"garbage", "\x00\xff clean\n", "", false},
		{"no mark", "", journalBoot, false},
		{"the first file is gone", boot + " clean\n", journalFiles[0], false},
		{"the second file is gone", boot + " running\n", journalFiles[1], false},
	} {
		dir := t.TempDir()
		for name, text := range map[string]string{journalBoot: c.mark, journalFiles[0]: "zero", journalFiles[1]: "one"} {
			if name == c.without {
				continue
			}
			mode := os.FileMode(0o644)
			if name == journalBoot {
				mode = 0o600 // as we leave it
			}
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), mode); err != nil {
				t.Fatal(err)
			}
		}
		j, whole, err := openJournal(dir)
		if err != nil || whole != c.want {
			t.Errorf("%s: whole: %v, want %v; %v", c.name, whole, c.want, err)
			continue
		}
		if c.mark != boot+" running\n" || !c.want { // else it stays as it is
			marked(t, c.name, dir, boot+" starting\n")
		}
		if err := j.taken(); err != nil {
			t.Error(c.name, err)
		}
		marked(t, c.name, dir, boot+" running\n")
		for _, name := range append([]string{journalBoot}, journalFiles[:]...) {
			if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode() != 0o600 {
				t.Errorf("%s: %s: %v, %v", c.name, name, info, err)
			}
		}
		if c.without == "" {
			if text, _ := os.ReadFile(filepath.Join(dir, journalFiles[1])); string(text) != "one" {
				t.Errorf("%s: the journal was changed to %q", c.name, text)
			}
		}
		if err := j.close(); err != nil {
			t.Error(c.name, err)
		}
		marked(t, c.name, dir, boot+" clean\n")
		j.release()
		if entries, _ := os.ReadDir(dir); len(entries) != 3 {
			t.Errorf("%s: left behind: %v", c.name, entries)
		}
	}
}

func marked(t *testing.T, name, dir, want string) {
	t.Helper()
	if got, err := os.ReadFile(filepath.Join(dir, journalBoot)); string(got) != want {
		t.Errorf("%s: the mark is %q, want %q; %v", name, got, want, err)
	}
}

// Somebody who may write the state directory must not have us write elsewhere.
func TestTheJournalFollowsNoLink(t *testing.T) {
	elsewhere := filepath.Join(t.TempDir(), "elsewhere")
	if err := os.WriteFile(elsewhere, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, make := range []func(path string) error{
		func(path string) error { return os.Symlink(elsewhere, path) },
		func(path string) error { return os.Symlink("/dev/null", path) },
		func(path string) error { return os.Mkdir(path, 0o700) },
	} {
		dir := t.TempDir()
		if err := make(filepath.Join(dir, journalFiles[1])); err != nil {
			t.Fatal(err)
		}
		if _, _, err := openJournal(dir); err == nil {
			t.Error("it was opened")
		}
	}
}
