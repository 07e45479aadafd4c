package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"
	"unicode"
)

// ui is the only mouth: nothing else writes to the standard streams. Data goes
// to out, words to err, each line with the program's name before it.
// Several goroutines may write to err at a time, a whole line at once.
type ui struct {
	in       io.Reader
	out, err io.Writer
	lost     error // why data did not get to out
}

// usageError is a mistake on the command line or in a config: exit status 2.
type usageError struct{ error }

// Unwrap gives the mistake itself.
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

// print writes data. A key's address or half of a ruleset that a full disk did not take
// must not look like success: see finish.
func (u *ui) print(format string, args ...any) {
	if _, err := fmt.Fprintf(u.out, format, args...); err != nil && u.lost == nil {
		u.lost = err
	}
}

// private warns where a secret went to a file that others can read, as those are that a
// shell makes for a >.
func (u *ui) private() {
	f, is := u.out.(*os.File)
	if !is || runtime.GOOS == "windows" { // whose modes say nothing of others
		return
	}
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() || info.Mode().Perm()&0o077 == 0 {
		return
	}
	u.say("warning: others on this machine may read the file that this went to, whose mode is %04o", info.Mode().Perm())
	u.hint("type 'chmod 600' and its name, and 'umask 077' before the next one")
}

// logger writes a daemon's lines. Under systemd each starts with its level
// (sd-daemon(3)) so that the journal can be searched by it.
func (u *ui) logger() *slog.Logger {
	return slog.New(&logHandler{ui: u, journal: underJournal()})
}

func underJournal() bool { return os.Getenv("JOURNAL_STREAM") != "" }

type logHandler struct {
	ui      *ui
	journal bool
	attrs   []slog.Attr
}

// Enabled leaves out what is below info: strangers cause those at will.
func (h *logHandler) Enabled(_ context.Context, level slog.Level) bool {
	return level >= slog.LevelInfo
}

// Handle writes one line: what happened, then "name=value" for each attribute.
func (h *logHandler) Handle(_ context.Context, r slog.Record) error {
	var b strings.Builder
	b.WriteString(h.beginning(r.Level) + r.Message)
	write := func(a slog.Attr) bool {
		fmt.Fprintf(&b, " %s=%s", strings.ReplaceAll(a.Key, " ", "_"), quoted(a.Value.String()))
		return true
	}
	for _, a := range h.attrs {
		write(a)
	}
	r.Attrs(write)
	b.WriteByte('\n')
	_, err := io.WriteString(h.ui.err, b.String())
	return err
}

// beginning is how a line of this level begins.
func (h *logHandler) beginning(level slog.Level) string {
	switch {
	case h.journal && level >= slog.LevelError:
		return "<3>"
	case h.journal && level >= slog.LevelWarn:
		return "<4>"
	case h.journal:
		return "<6>"
	case level >= slog.LevelError:
		return "sallyport: error: "
	case level >= slog.LevelWarn:
		return "sallyport: warning: "
	}
	return "sallyport: "
}

// plural counts things whose name takes an s.
func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// quoted keeps a value to one printable word, or puts it in quotes: an error
// text may have spaces, line ends and what a terminal obeys.
func quoted(s string) string {
	odd := func(r rune) bool { return r == unicode.ReplacementChar || !unicode.IsPrint(r) }
	if s == "" || strings.ContainsAny(s, " \"=") || strings.ContainsFunc(s, odd) {
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

const (
	// maxWaiting is how many lines wait for a reader of the log; newer ones are
	// dropped, because the first ones of a trouble say most.
	maxWaiting = 1024
	// flushLimit is how long the end of the program waits for that reader.
	flushLimit = time.Second

	linesLost = "lines of the log were lost here: whoever reads it did not keep up"
)

// logQueue hands lines on to a writer that may block for ever: a terminal
// stopped with Ctrl-S, a pipe that nobody reads. Its Write takes one line and
// never waits.
type logQueue struct {
	to      io.Writer
	warning string // how a line begins that tells of lost ones
	mu      sync.Mutex
	waiting [][]byte
	lost    int
	busy    bool          // a goroutine writes
	idle    chan struct{} // closed when it has written all
}

// Write queues a line, or counts it as lost when the queue is full.
func (q *logQueue) Write(line []byte) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.waiting) >= maxWaiting {
		q.lost++
		return len(line), nil
	}
	q.waiting = append(q.waiting, bytes.Clone(line))
	if !q.busy {
		q.busy, q.idle = true, make(chan struct{})
		go q.write()
	}
	return len(line), nil
}

// write ends when nothing waits: the engine must have no goroutine of its own
// before its sandbox is up. Lines are lost while others wait, so behind those
// is the place to say it.
func (q *logQueue) write() {
	for {
		q.mu.Lock()
		lines, lost := q.waiting, q.lost
		q.waiting, q.lost = nil, 0
		if len(lines) == 0 {
			q.busy = false
			close(q.idle)
			q.mu.Unlock()
			return
		}
		q.mu.Unlock()
		for _, line := range lines {
			q.to.Write(line) // an error has nowhere to be told
		}
		if lost > 0 {
			fmt.Fprintf(q.to, "%s%s lines=%d\n", q.warning, linesLost, lost)
		}
	}
}

// flush gives the last lines of a daemon a moment to be written.
func (u *ui) flush() {
	if q, ok := u.err.(*logQueue); ok {
		q.flush()
	}
}

// flush waits until nothing waits, at most flushLimit.
func (q *logQueue) flush() {
	q.mu.Lock()
	idle, busy := q.idle, q.busy
	q.mu.Unlock()
	if !busy {
		return
	}
	select {
	case <-idle:
	case <-time.After(flushLimit):
	}
}
