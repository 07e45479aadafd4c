package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
)

// ui is the only mouth: nothing else writes to the standard streams. Data goes
// to out, words to err, each line with the program's name before it.
type ui struct {
	in       io.Reader
	out, err io.Writer
}

// usageError is a mistake on the command line or in a config: exit status 2.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// say tells a person something: lower case, no full stop.
func (u *ui) say(format string, args ...any) {
	for line := range strings.SplitSeq(fmt.Sprintf(format, args...), "\n") {
		fmt.Fprintln(u.err, "sallyport:", line)
	}
}

// hint tells a person what to do about what was just said.
func (u *ui) hint(format string, args ...any) {
	fmt.Fprintf(u.err, "sallyport: hint: "+format+"\n", args...)
}

// print writes data.
func (u *ui) print(format string, args ...any) { fmt.Fprintf(u.out, format, args...) }

// logger writes a daemon's lines. Under systemd each starts with its level
// (sd-daemon(3)) so that the journal can be searched by it.
func (u *ui) logger() *slog.Logger {
	return slog.New(&logHandler{ui: u, journal: os.Getenv("JOURNAL_STREAM") != ""})
}

type logHandler struct {
	ui      *ui
	journal bool
	attrs   []slog.Attr
	mu      sync.Mutex
}

// Enabled leaves out what is below info: strangers cause those at will.
func (h *logHandler) Enabled(_ context.Context, level slog.Level) bool {
	return level >= slog.LevelInfo
}

// Handle writes one line: what happened, then "name=value" for each attribute.
func (h *logHandler) Handle(_ context.Context, r slog.Record) error {
	var b strings.Builder
	switch {
	case h.journal && r.Level >= slog.LevelError:
		b.WriteString("<3>")
	case h.journal && r.Level >= slog.LevelWarn:
		b.WriteString("<4>")
	case h.journal:
		b.WriteString("<6>")
	case r.Level >= slog.LevelError:
		b.WriteString("sallyport: error: ")
	case r.Level >= slog.LevelWarn:
		b.WriteString("sallyport: warning: ")
	default:
		b.WriteString("sallyport: ")
	}
	b.WriteString(r.Message)
	write := func(a slog.Attr) bool {
		fmt.Fprintf(&b, " %s=%s", strings.ReplaceAll(a.Key, " ", "_"), quoted(a.Value.String()))
		return true
	}
	for _, a := range h.attrs {
		write(a)
	}
	r.Attrs(write)
	b.WriteByte('\n')
	h.mu.Lock()
	defer h.mu.Unlock()
	_, err := io.WriteString(h.ui.err, b.String())
	return err
}

// quoted keeps a value to one word, or puts it in quotes: an error text may
// have spaces and line ends.
func quoted(s string) string {
	if s == "" || strings.ContainsAny(s, " \t\n\"=") {
		return fmt.Sprintf("%q", s)
	}
	return s
}

// WithAttrs gives a handler that adds attributes to every line.
func (h *logHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &logHandler{ui: h.ui, journal: h.journal, attrs: append(h.attrs[:len(h.attrs):len(h.attrs)], attrs...)}
}

// WithGroup is not used by anything here; a group adds nothing to a line.
func (h *logHandler) WithGroup(string) slog.Handler { return h }
