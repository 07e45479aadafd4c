package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strings"
)

// sshDir and the files in it. Each server has a file of its own, so that none is
// ever edited, and one line takes them all in.
const (
	includedDir    = "config.d"
	includedPrefix = "sallyport-"
	includeLine    = "Include config.d/sallyport-*"
)

// configureSSH lets 'ssh NAME' knock first.
func (s *server) configureSSH(u *ui) error {
	home, err := os.UserHomeDir()
	if err != nil {
		return fmt.Errorf("ssh's configuration has no place: %w", err)
	}
	dir := filepath.Join(home, ".ssh")
	program, err := programForSSH()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(dir, includedDir), 0o700); err != nil {
		return fmt.Errorf("ssh's configuration has no place: %w", err)
	}
	file := filepath.Join(dir, includedDir, includedPrefix+s.name)
	if err := writeWhole(file, []byte(s.sshBlock(program)), 0o600); err != nil {
		return err
	}
	config := filepath.Join(dir, "config")
	text, err := includeIn(config, s.name)
	if err != nil {
		return err
	}
	if hasHost(text, s.name) {
		u.say("%s has a block 'Host %s' too: ssh takes the first value that it meets for each keyword, and ours comes first", config, s.name)
	}
	// ssh asks the system for the user's home and not the environment.
	if me, err := user.Current(); err == nil && filepath.Clean(me.HomeDir) != filepath.Clean(home) {
		u.say("HOME is %s, but ssh takes %s, which the system has for this user, and finds nothing of this until they agree", home, me.HomeDir)
	}
	u.say("'ssh %s' knocks first from now on, by %s", s.name, file)
	return nil
}

// sshBlock is the text of a server's own file.
func (s *server) sshBlock(program string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Made by 'sallyport add --ssh', which writes it anew. To undo it, remove this file.\n")
	fmt.Fprintf(&b, "Host %s\n", s.name)
	// A zone's % would be a token.
	fmt.Fprintf(&b, "    HostName %s\n", strings.ReplaceAll(s.host, "%", "%%"))
	fmt.Fprintf(&b, "    # Knocks, and hands the connection over.\n")
	fmt.Fprintf(&b, "    ProxyCommand %s proxy %s %%h %%p\n", program, s.name)
	if s.key != "" && !strings.HasPrefix(s.key, agentKey) {
		// ssh knows no escape for these within its quotes.
		if strings.ContainsAny(s.key, "\"$\\\n") {
			fmt.Fprintf(&b, "    # The key's path can't be written here: give it to ssh with -i.\n")
		} else {
			fmt.Fprintf(&b, "    # The key that signs the knocks.\n    IdentityFile \"%s\"\n", strings.ReplaceAll(s.key, "%", "%%"))
		}
	}
	return b.String()
}

// programForSSH is how the user's shell finds this program: by its name, if that
// is what PATH has, else by its whole path.
func programForSSH() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("this program's own path is not known: %w", err)
	}
	if found, err := exec.LookPath("sallyport"); err == nil && filepath.IsAbs(found) && sameFile(found, self) {
		return "sallyport", nil
	}
	return quoteCommand(self, runtime.GOOS)
}

func sameFile(a, b string) bool {
	one, err := os.Stat(a)
	if err != nil {
		return false
	}
	two, err := os.Stat(b)
	return err == nil && os.SameFile(one, two)
}

// quoteCommand makes a path one word for ssh, to which % begins a token, and for
// the shell behind it. A line end has no spelling in ssh's configuration.
func quoteCommand(path, system string) (string, error) {
	if strings.ContainsAny(path, "\n\r\x00") {
		return "", fmt.Errorf("the program's path %q has a line end in it, which ssh's configuration can't have: move the program", path)
	}
	text := strings.ReplaceAll(path, "%", "%%")
	switch {
	case system == "windows": // a path has no double quote there
		return `"` + text + `"`, nil
	case strings.Trim(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+%") == "":
		return text, nil
	}
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'", nil
}

// includeIn puts our Include at the top of ssh's configuration, unless it is
// there already, and gives the text that was there before. Further down it
// would belong to the block above it (ssh_config(5)). The bytes that were there,
// the mode and the owner stay; a symbolic link is followed and stays one.
func includeIn(config, name string) (before string, err error) {
	target, err := filepath.EvalSymlinks(config)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Lstat(config); err == nil {
			return "", fmt.Errorf("%s is a symbolic link that leads nowhere: mend it, and try again", config)
		}
		return "", writeWhole(config, []byte(included("")), 0o600)
	}
	if err != nil {
		return "", fmt.Errorf("%s can't be read: %w", config, pathCause(err))
	}
	text, err := os.ReadFile(target)
	if err != nil {
		return "", fmt.Errorf("%s can't be read: %w", config, pathCause(err))
	}
	info, err := os.Stat(target)
	if err != nil || includes(string(text), filepath.Dir(config), name) {
		return string(text), err
	}
	return string(text), writeWhole(target, []byte(included(string(text))), info.Mode().Perm())
}

func included(text string) string {
	top := "# Servers that a knock opens first ('sallyport add --ssh').\n" + includeLine + "\n"
	if text == "" {
		return top
	}
	return top + "\n" + text
}

// includes reports whether a line before the first block takes our file in.
func includes(text, sshDir, name string) bool {
	ours := filepath.Join(sshDir, includedDir, includedPrefix+name)
	for line := range strings.Lines(text) {
		keyword, values := sshLine(line)
		switch keyword {
		case "host", "match":
			return false
		case "include":
			for _, pattern := range values {
				if rest, ok := strings.CutPrefix(pattern, "~/.ssh/"); ok {
					pattern = rest
				}
				if !filepath.IsAbs(pattern) {
					pattern = filepath.Join(sshDir, pattern)
				}
				if ok, err := filepath.Match(pattern, ours); ok && err == nil {
					return true
				}
			}
		}
	}
	return false
}

// hasHost reports whether a block names exactly this host.
func hasHost(text, name string) bool {
	for line := range strings.Lines(text) {
		keyword, values := sshLine(line)
		for _, value := range values {
			if keyword == "host" && value == name {
				return true
			}
		}
	}
	return false
}

// sshLine takes a line of ssh's configuration apart: a keyword in any case, then
// an optional =, then values that may be in double quotes.
func sshLine(line string) (keyword string, values []string) {
	line = strings.TrimSpace(line)
	end := strings.IndexAny(line, " \t=")
	if end < 0 || line[0] == '#' {
		return "", nil
	}
	rest := strings.TrimLeft(line[end:], " \t")
	rest = strings.TrimPrefix(rest, "=")
	for _, value := range strings.Fields(rest) {
		values = append(values, strings.Trim(value, `"`))
	}
	return strings.ToLower(line[:end]), values
}
