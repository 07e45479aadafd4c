//go:build linux

package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// knockdLog is the log in knockd's words: a file, syslog and standard output, each
// with a queue of its own, so that one that blocks holds up neither the daemon nor
// the others. Messages are without an end of line; where the original's have one
// all the same, a blank line follows in the file, and programs read both.
type knockdLog struct {
	ui   *ui
	loud bool // -v
	out  *logQueue

	mu     sync.Mutex
	name   string    // of the file
	file   *logQueue // nil: none
	syslog *logQueue // nil: none
}

func newKnockdLog(u *ui) *knockdLog {
	return &knockdLog{ui: u, out: &logQueue{to: u.out, warning: "sallyport: warning: "}}
}

// print writes a line to standard output.
func (l *knockdLog) print(message string) {
	fmt.Fprintln(l.out, strings.TrimSuffix(message, "\n"))
}

// verbose writes a line to standard output with -v.
func (l *knockdLog) verbose(message string) {
	if l.loud {
		l.print(message)
	}
}

// record writes a message to the log file and to syslog.
func (l *knockdLog) record(message string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file != nil {
		io.WriteString(l.file, message)
	}
	if l.syslog != nil {
		io.WriteString(l.syslog, message)
	}
}

// system writes a message to syslog alone.
func (l *knockdLog) system(message string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.syslog != nil {
		io.WriteString(l.syslog, message)
	}
}

// say is verbose and record.
func (l *knockdLog) say(message string) {
	l.verbose(message)
	l.record(message)
}

// complain writes to standard error, with or without -v, and to the log.
func (l *knockdLog) complain(message string) {
	fmt.Fprintln(l.ui.err, strings.TrimSuffix(message, "\n"))
	l.record(message)
}

// path is the log file's; "": there is none.
func (l *knockdLog) path() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.name
}

// open opens the log file anew ("": none) and syslog or not. What waits for the
// file before is still written there.
func (l *knockdLog) open(path string, toSyslog bool) error {
	var file *logQueue
	var err error
	if path != "" {
		file, err = openLogFile(path)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if old := l.file; old != nil {
		go func() {
			old.flush()
			old.to.(*logFile).Close()
		}()
	}
	l.file, l.name = file, path
	switch {
	case !toSyslog:
		l.syslog = nil
	case l.syslog == nil:
		l.syslog = &logQueue{to: &syslogger{path: syslogPath}}
	}
	return err
}

// flush waits a moment until everything is written.
func (l *knockdLog) flush() {
	l.mu.Lock()
	queues := []*logQueue{l.out, l.file, l.syslog}
	l.mu.Unlock()
	for _, q := range queues {
		if q != nil {
			q.flush()
		}
	}
}

// handler gives what the daemon warns of to the log too: in the background there is
// no other place for it.
func (l *knockdLog) handler() slog.Handler {
	return warnings{&logHandler{ui: &ui{err: recorder{l}}}}
}

// recorder takes lines for the log file and syslog.
type recorder struct{ log *knockdLog }

// Write takes one line, with its end.
func (r recorder) Write(line []byte) (int, error) {
	r.log.record(strings.TrimSuffix(string(line), "\n"))
	return len(line), nil
}

// warnings leaves out what is below a warning.
type warnings struct{ slog.Handler }

// Enabled reports whether the level is a warning's or worse.
func (w warnings) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelWarn }

// WithAttrs keeps the limit.
func (w warnings) WithAttrs(attrs []slog.Attr) slog.Handler {
	return warnings{w.Handler.WithAttrs(attrs)}
}

// logFile writes lines as knockd's log file has them.
type logFile struct{ *os.File }

// openLogFile never waits for the reader of a named pipe.
func openLogFile(path string) (*logQueue, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|unix.O_NONBLOCK, 0o644)
	if err != nil {
		return nil, err
	}
	return &logQueue{to: &logFile{f}}, nil
}

// Write appends one message, in one piece: others may append too.
func (f *logFile) Write(message []byte) (int, error) {
	_, err := io.WriteString(f.File, time.Now().Format("[2006-01-02 15:04] ")+string(message)+"\n")
	return len(message), err
}
