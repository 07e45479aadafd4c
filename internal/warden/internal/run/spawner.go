//go:build linux

package run

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

const (
	maxLine   = 400 // bytes of a line of output that are passed on
	maxLines  = 100 // of one command
	maxSecond = 20  // of one command in a second
	// maxReports is how many wait for a warden that does not read; further lines
	// are dropped, so that no command ever waits for the warden.
	maxReports = 1024

	// As sh(1) says it.
	notExecutable = 126
	bySignal      = 128
)

// spawner starts commands for the warden and reads their output. When the warden has
// gone it leaves that to cat(1), so that a service which a knock started never meets
// SIGPIPE.
type spawner struct {
	env  []string
	null *os.File
	out  chan report

	mu      sync.Mutex
	pipes   map[*os.File]bool // outputs that somebody has open
	numbers map[int]uint64    // of the commands that run, by process
}

// Spawner is the main function of the process that starts commands: the warden
// starts it, with a socket as descriptor 3. It returns when the warden has gone.
func Spawner() error {
	if _, err := unix.GetsockoptInt(3, unix.SOL_SOCKET, unix.SO_TYPE); err != nil {
		return errors.New("the spawner is started by 'sallyport serve', not by hand")
	}
	// What our own starter left open must not reach a command.
	if err := unix.CloseRange(3, ^uint(0)>>1, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("close_range: %w", err)
	}
	// Caught and not ignored: what is ignored stays so in every command.
	signal.Notify(make(chan os.Signal, 1), unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM,
		unix.SIGPIPE, unix.SIGUSR1, unix.SIGUSR2)
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	if err := unix.SetNonblock(3, true); err != nil {
		return err
	}
	// What a command leaves behind becomes our child and not that of init, which in a
	// container can be the warden and reaps nobody. When we end, init gets it.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("prctl: %w", err)
	}
	children := make(chan os.Signal, 1)
	signal.Notify(children, unix.SIGCHLD)
	conn := os.NewFile(3, "warden")
	s := &spawner{env: environment(os.Environ()), null: null, out: make(chan report, maxReports), pipes: map[*os.File]bool{}, numbers: map[int]uint64{}}
	go s.reap(children)
	written := make(chan struct{})
	go func() {
		defer close(written)
		s.write(conn)
	}()
	s.out <- report{Kind: hello}
	for requests := json.NewDecoder(conn); ; {
		var m request
		if requests.Decode(&m) != nil {
			break // the warden has gone
		}
		s.run(&m)
	}
	s.out <- report{Kind: bye}
	<-written
	return s.leave()
}

// write passes the reports on, the last being the goodbye, and drops them when nobody
// is there.
func (s *spawner) write(conn io.Writer) {
	enc := json.NewEncoder(conn)
	var err error
	for m := range s.out {
		if err == nil {
			err = enc.Encode(&m)
		}
		if m.Kind == bye {
			return
		}
	}
}

// leave hands the outputs that somebody still has open to a program that reads them
// into nothing. This one must not stay for that: init scripts find a daemon by the
// file that it runs (start-stop-daemon --exec) and would take it for the daemon.
func (s *spawner) leave() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs error
	for pipe := range s.pipes {
		_, err := syscall.ForkExec("/bin/cat", []string{"cat"}, &syscall.ProcAttr{
			Dir: "/", Files: []uintptr{pipe.Fd(), s.null.Fd(), s.null.Fd()}, Sys: &syscall.SysProcAttr{Setsid: true},
		})
		errs = errors.Join(errs, err)
	}
	return errs
}

// run starts a command.
func (s *spawner) run(m *request) {
	o := &lines{number: m.Number, out: s.out}
	read, write, err := os.Pipe()
	if err != nil { // out of descriptors: a command without a log is better than none
		read, write = nil, s.null
	}
	err = s.start(m, write)
	if read != nil {
		write.Close()
		s.mu.Lock()
		s.pipes[read] = true
		s.mu.Unlock()
		go s.follow(o, read)
	} else {
		go o.end()
	}
	if err != nil {
		s.out <- report{Kind: ended, Number: m.Number, Status: notExecutable, Text: escape([]byte(err.Error()))}
		return
	}
	s.out <- report{Kind: began, Number: m.Number}
}

// follow passes a command's output on until nobody has it open.
func (s *spawner) follow(o *lines, pipe *os.File) {
	o.copy(pipe)
	s.mu.Lock()
	delete(s.pipes, pipe)
	s.mu.Unlock()
	pipe.Close()
	o.end()
}

// start executes a program by way of a shell, which does no more than to execute it
// in its own place. Go holds up every other start until an exec is done, and that of
// a file on a server that does not answer takes for ever; that of the shell is quick.
// The shell also knows what to do where there is no such program, or no "#!" in it.
// A "--" would be the program's name to some shells; it needs none, as the first word
// is a path from "/".
func (s *spawner) start(m *request, output *os.File) error {
	input, err := s.input(m.Input)
	if err != nil {
		return err
	}
	if input != s.null {
		defer input.Close()
	}
	attr := &syscall.ProcAttr{
		Dir:   "/",
		Env:   append(s.env[:len(s.env):len(s.env)], to[string](m.Env)...),
		Files: []uintptr{input.Fd(), output.Fd(), output.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	}
	s.mu.Lock() // so that its end is not seen before its number is known
	defer s.mu.Unlock()
	pid, err := syscall.ForkExec("/bin/sh", append([]string{"sh", "-c", `exec "$@"`, "sh"}, to[string](m.Words)...), attr)
	if err == nil {
		s.numbers[pid] = m.Number
	}
	return err
}

// input gives what a command reads: a pipe that holds the bytes and has no writer
// any more, so that nothing of them is in a file, an argument or the environment.
func (s *spawner) input(b []byte) (*os.File, error) {
	switch {
	case len(b) == 0:
		return s.null, nil
	case len(b) > MaxInput: // it could fill a pipe, and every command would wait
		return nil, errors.New("too much for its standard input")
	}
	read, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer write.Close()
	if _, err := write.Write(b); err != nil {
		read.Close()
		return nil, err
	}
	return read, nil
}

// reap takes the end of every child, reports those of commands, and so leaves no
// zombie of what a command left behind.
func (s *spawner) reap(children <-chan os.Signal) {
	for range children {
		for s.reapOne() {
		}
	}
}

func (s *spawner) reapOne() bool {
	var w unix.WaitStatus
	s.mu.Lock()
	pid, _ := unix.Wait4(-1, &w, unix.WNOHANG, nil)
	number, known := s.numbers[pid]
	delete(s.numbers, pid)
	s.mu.Unlock()
	status := w.ExitStatus()
	if w.Signaled() {
		status = bySignal + int(w.Signal())
	}
	if known {
		s.out <- report{Kind: ended, Number: number, Status: status}
	}
	return pid > 0
}

// lines passes a command's output on, as much of it as a log can bear, and reads
// all of it, so that the command never waits.
type lines struct {
	number uint64
	out    chan<- report
	passed int
	lost   int
	since  time.Time
	recent int // since then
}

// copy ends when nobody has the pipe open for writing any more.
func (l *lines) copy(r io.Reader) {
	in := bufio.NewReaderSize(r, maxLine)
	for whole := true; ; {
		b, err := in.ReadSlice('\n')
		if whole && len(b) > 0 {
			l.line(b, err == bufio.ErrBufferFull, time.Now())
		}
		whole = err != bufio.ErrBufferFull // the rest of a long line is lost
		if whole && err != nil {
			return
		}
	}
}

func (l *lines) end() { l.out <- report{Kind: silent, Number: l.number, Lost: l.lost} }

func (l *lines) line(b []byte, cut bool, now time.Time) {
	if now.Sub(l.since) >= time.Second {
		l.since, l.recent = now, 0
	}
	if l.passed >= maxLines || l.recent >= maxSecond {
		l.lost++
		return
	}
	text := escape(b)
	if cut {
		text += "…"
	}
	select {
	case l.out <- report{Kind: output, Number: l.number, Text: text}:
		l.passed++
		l.recent++
	default:
		l.lost++
	}
}

// escape keeps what a terminal or a log reader can't be fooled with: no escape
// sequence, no line of its own, no writing from right to left.
func escape(b []byte) string {
	var out strings.Builder
	for s := strings.TrimRight(string(b), "\r\n"); s != ""; {
		r, n := utf8.DecodeRuneInString(s)
		if strconv.IsPrint(r) && (r != utf8.RuneError || n > 1) {
			out.WriteString(s[:n])
		} else {
			q := strconv.Quote(s[:n])
			out.WriteString(q[1 : len(q)-1])
		}
		s = s[n:]
	}
	return out.String()
}
