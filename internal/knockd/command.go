package knockd

import (
	"strings"

	"github.com/sallyport/sallyport/internal/config"
)

// address is what stands for the source's address in a command.
const address = "%IP%"

// commandOf gives the program and arguments that a shell would make of a text, or
// a call of the shell where it would do more than split words; nil for no text. With
// no shell in between there is nothing that a wrong quote could let an address do, and
// one process less. The text of an address is plain itself, so it may be put in
// before or after.
func commandOf(text string) config.Command {
	if text == "" {
		return nil
	}
	words := strings.FieldsFunc(text, func(c rune) bool { return c == ' ' || c == '\t' })
	if len(words) == 0 || len(words) > config.MaxWords || !plain(text) ||
		words[0][0] != '/' || strings.Contains(words[0], "=") {
		return config.Command{"/bin/sh", "-c", text}
	}
	return words
}

// plain reports whether a text has no character that any shell gives a meaning, not
// even at the beginning of a word (POSIX.1-2024, Shell Command Language, 2.2).
func plain(text string) bool {
	for _, c := range []byte(text) {
		letter := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c >= 0x80
		if !letter && !strings.ContainsRune(" \t%+,-./:=@_", rune(c)) {
			return false
		}
	}
	return true
}
