//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

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
	fmt.Fprintln(l.out, strings.TrimSuffix(oneLine(message), "\n"))
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
	message = oneLine(message)
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
		io.WriteString(l.syslog, oneLine(message))
	}
}

// say is verbose and record.
func (l *knockdLog) say(message string) {
	l.verbose(message)
	l.record(message)
}

// complain writes to standard error, with or without -v, and to the log.
func (l *knockdLog) complain(message string) {
	fmt.Fprintln(l.ui.err, strings.TrimSuffix(oneLine(message), "\n"))
	l.record(message)
}

// oneLine spells what can't be printed as the rest of the log does (\r, \x1b, \u202e),
// but for tabs and a newline at the end. Names, commands and paths come from files: a
// terminal must not obey them, and no piece of them may look like a line of its own
// (CWE-117). Other text stays as it is, for the programs that read such logs.
func oneLine(message string) string {
	text, ended := strings.CutSuffix(message, "\n")
	odd := func(r rune) bool { return r == utf8.RuneError || r != '\t' && !unicode.IsPrint(r) }
	if !strings.ContainsFunc(text, odd) {
		return message
	}
	var b strings.Builder
	for len(text) > 0 {
		r, size := utf8.DecodeRuneInString(text)
		switch {
		case !odd(r):
			b.WriteString(text[:size])
		case r == utf8.RuneError && size == 1: // a byte that is no UTF-8
			fmt.Fprintf(&b, `\x%02x`, text[0])
		default:
			b.WriteString(strings.Trim(strconv.QuoteRune(r), "'"))
		}
		text = text[size:]
	}
	if ended {
		b.WriteByte('\n')
	}
	return b.String()
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

// maxLinks is as many links as Debian's own layout needs, and some.
const maxLinks = 8

// openLogFile never waits for the reader of a named pipe. It follows links that root
// or its own user has made: whoever else can make one where the log lies would choose
// a file for root to write to (CWE-59).
func openLogFile(path string) (*logQueue, error) {
	flags := os.O_WRONLY | os.O_APPEND | os.O_CREATE | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_NOFOLLOW
	for range maxLinks {
		f, err := os.OpenFile(path, flags, 0o644)
		if err == nil {
			return &logQueue{to: &logFile{f}}, nil
		}
		if !errors.Is(err, unix.ELOOP) {
			return nil, err
		}
		target, kernels, err := linkTarget(path)
		if err != nil {
			return nil, &os.PathError{Op: "open", Path: path, Err: err}
		}
		if kernels {
			flags &^= unix.O_NOFOLLOW
			continue
		}
		path = target
	}
	return nil, &os.PathError{Op: "open", Path: path, Err: unix.ELOOP}
}

// linkTarget gives where a link leads, if root or this process's user has made it. It
// looks at owner and target of one and the same link. What /dev/stdout leads to is a
// link of the kernel's, in /proc, whose target is no path.
func linkTarget(path string) (target string, kernels bool, err error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", false, err
	}
	defer unix.Close(fd)
	var stat unix.Stat_t
	var fs unix.Statfs_t
	if err := errors.Join(unix.Fstat(fd, &stat), unix.Fstatfs(fd, &fs)); err != nil {
		return "", false, err
	}
	if stat.Uid != 0 && int(stat.Uid) != os.Geteuid() {
		return "", false, fmt.Errorf("this is a link that user %d made, who so would choose what is written to; name the file itself, or let root make the link", stat.Uid)
	}
	text := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd, "", text)
	if target = string(text[:max(0, n)]); !filepath.IsAbs(target) {
		target = filepath.Dir(path) + "/" + target // not cleaned: .. is meant behind links
	}
	return target, fs.Type == unix.PROC_SUPER_MAGIC, err
}

// Write appends one message, in one piece: others may append too.
func (f *logFile) Write(message []byte) (int, error) {
	_, err := io.WriteString(f.File, time.Now().Format("[2006-01-02 15:04] ")+string(message)+"\n")
	return len(message), err
}
